//! Arithmetic on allowed ports: collecting them from rules, merging intervals, comparing. Pure;
//! must never know which peers the ports belong to.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::PortSet;
use super::plan::Row;
use super::tiers::Ruling;
use netpol_model::{NamedPort, PortRange, Ports, Protocol, Str};

/// What the rules of one predicate say together.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Allowed {
    /// Every protocol and port; the other fields are then empty.
    pub everything: bool,
    /// Ports by number, in the normal form of [`PortSet`] after [`Allowed::normalise`].
    pub numbers: PortSet,
    /// Ports that every destination pod resolves for itself.
    pub names: BTreeSet<(Protocol, Str)>,
    /// What ClusterNetworkPolicies say, in the order of their ranks. The rest is what
    /// NetworkPolicies allow.
    pub rulings: Vec<Ruling>,
}

impl Allowed {
    /// Adds the `ports` of one rule. With `own` names are looked up there now (ingress: the policy
    /// is about that pod's ports), without they stay names (egress: the peer's ports).
    pub fn add(&mut self, ports: &Ports, own: Option<&[NamedPort]>) {
        let Ports::Only(list) = ports else {
            self.everything = true;
            return;
        };
        for entry in list {
            let numbers = &mut self.numbers.intervals[entry.protocol as usize];
            match (&entry.range, own) {
                (PortRange::All, _) => numbers.push((0, u16::MAX)),
                (PortRange::Numbers(first, last), _) => numbers.push((*first, *last)),
                // A name declared by two containers stands for both numbers.
                (PortRange::Named(name), Some(own)) => numbers.extend(
                    own.iter()
                        .filter(|port| port.protocol == entry.protocol && port.name == *name)
                        .map(|port| (port.port, port.port)),
                ),
                (PortRange::Named(name), None) => {
                    self.names.insert((entry.protocol, name.clone()));
                }
            }
        }
    }

    /// Adds what `other` allows, with its names resolved by what a destination declares.
    pub(crate) fn add_resolved(&mut self, other: &Self, declared: &[&NamedPort]) {
        self.everything |= other.everything;
        for (mine, theirs) in self.numbers.intervals.iter_mut().zip(&other.numbers.intervals) {
            mine.extend(theirs);
        }
        for port in declared {
            // The set is tiny, and a key of borrowed parts cannot be looked up in it.
            if other.names.iter().any(|(p, name)| *p == port.protocol && *name == port.name) {
                self.numbers.intervals[port.protocol as usize].push((port.port, port.port));
            }
        }
    }

    /// Brings equal permissions into equal form.
    pub(crate) fn normalise(&mut self) {
        if self.everything {
            let rulings = std::mem::take(&mut self.rulings);
            *self = Self { everything: true, rulings, ..Self::default() };
            return;
        }
        for list in &mut self.numbers.intervals {
            merge(list);
        }
        let numbers = &self.numbers;
        self.names.retain(|(protocol, _)| !is_whole(&numbers.intervals[*protocol as usize]));
    }

    /// Whether nothing is said, whoever the destination is.
    pub fn is_empty(&self) -> bool {
        !self.everything
            && self.numbers.is_empty()
            && self.names.is_empty()
            && self.rulings.is_empty()
    }

    /// The same without what NetworkPolicies allow everybody, who are allowed `any`. `None`: nothing
    /// is left. Both in normal form.
    pub(crate) fn beyond(allowed: &Arc<Self>, any: Option<&Self>) -> Option<Arc<Self>> {
        match any {
            Some(any) if any.covers(allowed) => {
                let rulings = allowed.rulings.clone();
                (!rulings.is_empty()).then(|| Arc::new(Self { rulings, ..Self::default() }))
            }
            _ => Some(allowed.clone()),
        }
    }

    /// Every name of a port that is said anything of.
    pub(crate) fn all_names(&self) -> impl Iterator<Item = &(Protocol, Str)> {
        self.names.iter().chain(self.rulings.iter().flat_map(|ruling| &ruling.ports.names))
    }

    /// Whether everything that NetworkPolicies allow by `other` they allow here too. Both in normal
    /// form.
    pub fn covers(&self, other: &Self) -> bool {
        self.everything
            || (!other.everything
                && port_set_covers(&self.numbers, &other.numbers)
                && other.names.iter().all(|name| {
                    self.names.contains(name) || is_whole(&self.numbers.intervals[name.0 as usize])
                }))
    }
}

fn is_whole(list: &[(u16, u16)]) -> bool {
    list == [(0, u16::MAX)]
}

/// Sorts intervals and joins those that overlap or touch.
pub(super) fn merge(list: &mut Vec<(u16, u16)>) {
    list.sort_unstable();
    let mut kept = 0;
    for index in 0..list.len() {
        let (first, last) = list[index];
        if kept > 0 && first <= list[kept - 1].1.saturating_add(1) {
            list[kept - 1].1 = list[kept - 1].1.max(last);
        } else {
            list[kept] = (first, last);
            kept += 1;
        }
    }
    list.truncate(kept);
}

fn port_set_covers(big: &PortSet, small: &PortSet) -> bool {
    big.intervals.iter().zip(&small.intervals).all(|(big, small)| {
        small.iter().all(|&(first, last)| {
            let index = big.partition_point(|&(start, _)| start <= first);
            index > 0 && last <= big[index - 1].1
        })
    })
}

/// Whether row `big` allows all that row `small` allows; `None` allows nothing.
pub(super) fn row_covers(big: Option<&Row>, small: Option<&Row>) -> bool {
    let (Some(big), Some(small)) = (big, small) else {
        return small.is_none_or(Row::is_closed);
    };
    match (big.ports(), small.ports()) {
        (None, _) => true,
        // In normal form not even all ports are everything.
        (Some(_), None) => false,
        (Some(mine), Some(theirs)) => {
            big.allows_others() >= small.allows_others() && port_set_covers(mine, theirs)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use netpol_model::PortMatch;

    fn numbers(list: &[(u16, u16)]) -> Ports {
        Ports::Only(
            list.iter()
                .map(|&(first, last)| PortMatch {
                    protocol: Protocol::Tcp,
                    range: PortRange::Numbers(first, last),
                })
                .collect(),
        )
    }

    fn allowed(list: &[(u16, u16)]) -> Allowed {
        let mut allowed = Allowed::default();
        allowed.add(&numbers(list), None);
        allowed.normalise();
        allowed
    }

    #[test]
    fn intervals_that_overlap_or_touch_become_one() {
        type Intervals = &'static [(u16, u16)];
        let cases: [(Intervals, Intervals); 6] = [
            (&[(80, 80), (80, 80)], &[(80, 80)]),
            (&[(81, 90), (80, 80)], &[(80, 90)]),
            (&[(1, 100), (20, 30)], &[(1, 100)]),
            (&[(1, 10), (12, 20)], &[(1, 10), (12, 20)]),
            (&[(65535, 65535), (0, 0)], &[(0, 0), (65535, 65535)]),
            (&[(2, 65535), (65535, 65535), (0, 1)], &[(0, 65535)]),
        ];
        for (input, output) in cases {
            assert_eq!(allowed(input).numbers.intervals[0], output, "{input:?}");
        }
    }

    #[test]
    fn covering_needs_one_interval_around_each() {
        assert!(allowed(&[(1, 10), (20, 30)]).covers(&allowed(&[(5, 10), (20, 20)])));
        assert!(!allowed(&[(1, 10), (12, 30)]).covers(&allowed(&[(5, 15)])));
        assert!(!allowed(&[]).covers(&allowed(&[(5, 5)])));
        assert!(allowed(&[]).covers(&allowed(&[])));
    }

    #[test]
    fn a_name_under_a_whole_protocol_says_nothing_more() {
        let mut both = allowed(&[(0, 65535)]);
        both.names.insert((Protocol::Tcp, "http".into()));
        both.names.insert((Protocol::Udp, "dns".into()));
        both.normalise();
        assert_eq!(both.names, BTreeSet::from([(Protocol::Udp, "dns".into())]));
    }
}
