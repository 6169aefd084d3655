//! What must not last: pods that ought to have an interface, and interfaces of which nobody knows whose
//! they are. Must never take what may be right in a moment for wrong. Pure.

use std::collections::{BTreeMap, BTreeSet};

use tokio::time::{Duration, Instant};

use netpol_endpoint::Finding;
use netpol_model::ObjectName;

/// How long a pod that policies select may have an address, or run, and no interface that is known
/// to be its, and an interface be undecided, before the node is not ready because of that. An
/// interface exists before the status of its pod, and is found some milliseconds after it.
const PATIENCE: Duration = Duration::from_secs(5);

/// Something that must not last.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Trouble {
    /// A pod that ought to have an interface.
    Pod(ObjectName),
    /// An interface that is enforced, and of which it is not known whose it is.
    Interface(u32),
}

impl Trouble {
    /// What a finding says of that, if anything.
    fn of(finding: &Finding) -> Option<Self> {
        match finding {
            Finding::PodWithoutInterface { pod, .. }
            | Finding::PodWithoutAddress { pod, is_running: true } => Some(Self::Pod(pod.clone())),
            Finding::Undecided { ifindex, .. } | Finding::Unknown { ifindex, .. } => {
                Some(Self::Interface(*ifindex))
            }
            _ => None,
        }
    }
}

/// What there is, and since when.
#[derive(Debug, Default)]
pub(crate) struct Troubles {
    since: BTreeMap<Trouble, Instant>,
    /// When one of them will have lasted too long.
    deadline: Option<Instant>,
}

impl Troubles {
    /// These are the findings of now.
    pub(crate) fn record(&mut self, findings: &[Finding], now: Instant) {
        let troubles: BTreeSet<Trouble> = findings.iter().filter_map(Trouble::of).collect();
        self.since.retain(|trouble, _| troubles.contains(trouble));
        for trouble in troubles {
            self.since.entry(trouble).or_insert(now);
        }
        self.schedule(now);
    }

    /// Sets the time at which the next one will have lasted too long.
    pub(crate) fn schedule(&mut self, now: Instant) {
        let deadlines = self.since.values().map(|since| *since + PATIENCE);
        self.deadline = deadlines.filter(|deadline| *deadline > now).min();
    }

    /// When the next one will have lasted too long, as of the last [`Self::schedule`].
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Whether there is any, for however long.
    pub(crate) fn is_any(&self) -> bool {
        !self.since.is_empty()
    }

    /// Those that may still turn out to last too long.
    pub(crate) fn young(&self, now: Instant) -> impl Iterator<Item = &Trouble> {
        let young = self.since.iter().filter(move |(_, since)| now < **since + PATIENCE);
        young.map(|(trouble, _)| trouble)
    }

    /// The trouble of a finding, if it has lasted too long.
    pub(crate) fn lasting(&self, finding: &Finding, now: Instant) -> Option<Trouble> {
        let trouble = Trouble::of(finding)?;
        let since = self.since.get(&trouble)?;
        (now >= *since + PATIENCE).then_some(trouble)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn without_address(is_running: bool) -> Finding {
        Finding::PodWithoutAddress { pod: ObjectName::new("shop", "web"), is_running }
    }

    #[test]
    fn what_lasts_is_trouble_only_after_a_while_and_over_when_it_is_gone() {
        let mut troubles = Troubles::default();
        let begun = Instant::now();
        troubles.record(&[without_address(false)], begun);
        assert!(!troubles.is_any() && troubles.deadline().is_none(), "it may never run");
        troubles.record(&[without_address(true)], begun);
        assert_eq!(troubles.young(begun).count(), 1);
        assert_eq!(troubles.lasting(&without_address(true), begun), None);
        assert_eq!(troubles.deadline(), Some(begun + PATIENCE));
        // Found again: since the first time.
        let later = begun + PATIENCE;
        troubles.record(&[without_address(true)], later);
        assert_eq!(troubles.deadline(), None);
        let expected = Trouble::Pod(ObjectName::new("shop", "web"));
        assert_eq!(troubles.lasting(&without_address(true), later), Some(expected));
        assert_eq!(troubles.young(later).count(), 0);
        troubles.record(&[], later);
        assert!(!troubles.is_any());
    }
}
