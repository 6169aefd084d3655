//! Policies that were read and that wait for their turn: a namespace has about so many of its rules
//! taken in at a time, and the next ones when these are in force. So what one namespace writes
//! is never more than a moment ahead of what others do. Pure. Must never part policies of one
//! namespace that were read together.

use std::collections::{BTreeMap, VecDeque};

use crate::model::{Change, Direction, ObjectName, Peers, Policy, Str};

/// How many peers are taken in at a time, if they were not read together.
const N_PEERS: usize = 2_000;

/// What waits, by namespace, in the order in which it was read.
#[derive(Debug, Default)]
pub struct Turns {
    waiting: BTreeMap<Str, VecDeque<Vec<Change>>>,
}

impl Turns {
    /// Lets the policies among these changes wait; returns the others.
    pub fn add(&mut self, changes: Vec<Change>) -> Vec<Change> {
        let mut together: BTreeMap<Str, Vec<Change>> = BTreeMap::new();
        let mut others = Vec::new();
        for change in changes {
            match policy(&change).map(|id| id.namespace.clone()) {
                Some(namespace) => together.entry(namespace).or_default().push(change),
                None => others.push(change),
            }
        }
        for (namespace, changes) in together {
            self.waiting.entry(namespace).or_default().push_back(changes);
        }
        others
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Whether policies of a namespace wait.
    pub fn is_waiting(&self, namespace: &str) -> bool {
        self.waiting.contains_key(namespace)
    }

    /// The namespaces whose policies wait, and how many changes of them.
    pub fn waiting(&self) -> impl Iterator<Item = (&Str, usize)> {
        let count = |groups: &VecDeque<Vec<Change>>| groups.iter().map(Vec::len).sum();
        self.waiting.iter().map(move |(namespace, groups)| (namespace, count(groups)))
    }

    /// What is to be taken in next, of namespaces that are not busy.
    pub fn next(&mut self, is_busy: impl Fn(&str) -> bool) -> Vec<Change> {
        let mut next = Vec::new();
        for (namespace, groups) in &mut self.waiting {
            if is_busy(namespace) {
                continue;
            }
            let mut n_peers = 0;
            while n_peers < N_PEERS
                && let Some(group) = groups.pop_front()
            {
                n_peers += group.iter().map(weight).sum::<usize>();
                next.extend(group);
            }
        }
        self.waiting.retain(|_, groups| !groups.is_empty());
        next
    }
}

/// The policy that a change is about.
fn policy(change: &Change) -> Option<&ObjectName> {
    match change {
        Change::Policy(policy) => Some(&policy.id),
        Change::PolicyGone(id) => Some(id),
        _ => None,
    }
}

fn weight(change: &Change) -> usize {
    let Change::Policy(policy) = change else { return 1 };
    let peers = |policy: &Policy, direction| {
        let rules = policy.rules(direction).unwrap_or_default();
        let count = |peers: &Peers| match peers {
            Peers::Any => 1,
            Peers::Only(peers) => peers.len(),
        };
        rules.iter().map(|rule| count(&rule.peers)).sum::<usize>()
    };
    1 + Direction::BOTH.into_iter().map(|direction| peers(policy, direction)).sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gone(namespace: &str, name: usize) -> Change {
        Change::PolicyGone(ObjectName::new(namespace, name.to_string().as_str()))
    }

    fn names(changes: &[Change]) -> Vec<String> {
        changes.iter().filter_map(policy).map(ToString::to_string).collect()
    }

    #[test]
    fn what_was_read_together_stays_together_and_nobody_waits_for_another_namespace() {
        let mut turns = Turns::default();
        let pod = Change::PodGone(ObjectName::new("x", "p"), None);
        assert_eq!(turns.add(vec![gone("x", 1), pod.clone(), gone("y", 1)]), [pod]);
        turns.add((2..N_PEERS).map(|name| gone("x", name)).collect());
        turns.add(vec![gone("x", 9_000), gone("x", 9_001)]);
        turns.add(vec![gone("x", 9_002)]);
        assert_eq!(turns.waiting().map(|(_, n)| n).collect::<Vec<_>>(), [N_PEERS + 2, 1]);
        // A busy namespace has its next ones when it is not any more.
        assert_eq!(names(&turns.next(|namespace| namespace == "x")), ["y/1"]);
        assert!(turns.is_waiting("x") && !turns.is_waiting("y"));
        let next = names(&turns.next(|_| false));
        assert_eq!(next.len(), N_PEERS + 1, "one too many, since they were read together");
        assert_eq!(next.last().map(String::as_str), Some("x/9001"));
        assert_eq!(names(&turns.next(|_| false)), ["x/9002"]);
        assert!(turns.is_empty());
    }
}
