//! Policies that were read and that wait for their turn: a namespace has about so many of its rules
//! taken in at a time, and the next ones when these are in force. So what one namespace writes
//! is never more than a moment ahead of what others do. Pure. Must never part policies of one
//! namespace that were read together, nor keep what a policy was before.

use std::collections::{BTreeMap, VecDeque};

use rustc_hash::FxHashMap;

use netpol_model::{Change, Direction, ObjectName, Str};

/// How many peers are taken in at a time, if they were not read together.
const N_PEERS: usize = 2_000;

/// What waits, by namespace.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    waiting: BTreeMap<Str, Queue>,
    /// How many groups have waited.
    n_groups: u64,
}

/// What waits of one namespace, in the order in which it was read.
#[derive(Debug, Default)]
struct Queue {
    groups: VecDeque<Group>,
    /// The number of the group that each policy came with. Later groups may have joined an earlier
    /// one since: then that is the last one whose number is no greater.
    came_with: FxHashMap<ObjectName, u64>,
}

/// What is taken in together, each policy once.
#[derive(Debug)]
struct Group {
    number: u64,
    changes: FxHashMap<ObjectName, Change>,
}

impl Queue {
    /// Puts what was read together at the end; if some of it waits already, from there on all is
    /// taken in together, and of a policy what was read last. So nothing waits behind what it used
    /// to be, and no more waits than there are policies.
    fn add(&mut self, number: u64, changes: Vec<(ObjectName, Change)>) {
        let first = changes.iter().filter_map(|(id, _)| self.came_with.get(id)).min().copied();
        let mut group = Group { number, changes: FxHashMap::default() };
        if let Some(first) = first {
            let end = self.groups.partition_point(|group| group.number <= first);
            for mut later in self.groups.drain(end - 1..).rev() {
                if later.changes.len() > group.changes.len() {
                    std::mem::swap(&mut later.changes, &mut group.changes);
                }
                group.number = later.number;
                group.changes.extend(later.changes);
            }
        }
        for (id, change) in changes {
            self.came_with.insert(id.clone(), group.number);
            group.changes.insert(id, change);
        }
        self.groups.push_back(group);
    }

    fn take(&mut self) -> Option<Vec<Change>> {
        let group = self.groups.pop_front()?;
        for id in group.changes.keys() {
            self.came_with.remove(id);
        }
        let mut changes: Vec<(ObjectName, Change)> = group.changes.into_iter().collect();
        changes.sort_by(|(a, _), (b, _)| a.cmp(b));
        Some(changes.into_iter().map(|(_, change)| change).collect())
    }
}

/// What waited at some moment: by namespace, the number of the last group.
#[derive(Debug)]
pub(crate) struct Mark(BTreeMap<Str, u64>);

impl Turns {
    /// Lets the policies among these changes wait; returns the others.
    pub(crate) fn add(&mut self, changes: Vec<Change>) -> Vec<Change> {
        let mut together: BTreeMap<Str, Vec<(ObjectName, Change)>> = BTreeMap::new();
        let mut others = Vec::new();
        for change in changes {
            match policy(&change).cloned() {
                Some(id) => together.entry(id.namespace.clone()).or_default().push((id, change)),
                None => others.push(change),
            }
        }
        for (namespace, changes) in together {
            self.n_groups += 1;
            self.waiting.entry(namespace).or_default().add(self.n_groups, changes);
        }
        others
    }

    /// Whether nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Whether policies of a namespace wait.
    pub(crate) fn is_waiting(&self, namespace: &str) -> bool {
        self.waiting.contains_key(namespace)
    }

    /// What waits now.
    pub(crate) fn mark(&self) -> Mark {
        let last = |queue: &Queue| queue.groups.back().map(|group| group.number);
        let waiting = self.waiting.iter();
        Mark(waiting.filter_map(|(name, queue)| Some((name.clone(), last(queue)?))).collect())
    }

    /// Whether nothing of what waited then waits any more.
    pub(crate) fn has_passed(&self, mark: &Mark) -> bool {
        mark.0.iter().all(|(namespace, last)| {
            let first = self.waiting.get(namespace).and_then(|queue| queue.groups.front());
            first.is_none_or(|group| group.number > *last)
        })
    }

    /// The namespaces whose policies wait, and how many of them.
    pub(crate) fn waiting(&self) -> impl Iterator<Item = (&Str, usize)> {
        self.waiting.iter().map(|(namespace, queue)| (namespace, queue.came_with.len()))
    }

    /// What is to be taken in next, of namespaces that are not busy.
    pub(crate) fn next(&mut self, is_busy: impl Fn(&str) -> bool) -> Vec<Change> {
        let mut next = Vec::new();
        for (namespace, queue) in &mut self.waiting {
            if is_busy(namespace) {
                continue;
            }
            let mut n_peers = 0;
            while n_peers < N_PEERS
                && let Some(changes) = queue.take()
            {
                n_peers += changes.iter().map(weight).sum::<usize>();
                next.extend(changes);
            }
        }
        self.waiting.retain(|_, queue| !queue.groups.is_empty());
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
    1 + Direction::BOTH.map(|direction| policy.n_peers(direction)).iter().sum::<usize>()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use netpol_model::Policy;

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
    fn put(namespace: &str, name: usize) -> Change {
        let id = ObjectName::new(namespace, name.to_string().as_str());
        let pods = netpol_model::Selector::default();
        Change::Policy(Policy { id, pods, ingress: None, egress: None })
    }

    #[test]
    fn what_is_written_again_takes_the_place_of_what_it_was() {
        let name = |change: &Change| policy(change).unwrap().name.to_string();
        let mut turns = Turns::default();
        for number in 0..5 {
            turns.add(vec![gone("x", number), gone("x", 10 + number)]);
        }
        let before = turns.mark();
        // Again and again: no more than there are policies.
        for _ in 0..1_000 {
            turns.add(vec![gone("x", 14), gone("x", 20)]);
            turns.add(vec![gone("x", 3)]);
        }
        assert_eq!(turns.waiting().map(|(_, n)| n).collect::<Vec<_>>(), [11]);
        let sizes: Vec<usize> =
            turns.waiting["x"].groups.iter().map(|group| group.changes.len()).collect();
        assert_eq!(sizes, [2, 2, 2, 5], "together from the first that was written again on");
        // What was read last counts, and is not behind what it was.
        turns.add(vec![gone("x", 0), put("x", 13)]);
        let mut next = turns.waiting.get_mut("x").unwrap().take().unwrap();
        assert_eq!(next.len(), 11);
        next.retain(|change| name(change) == "13");
        assert_eq!(next, [put("x", 13)]);
        assert!(turns.waiting["x"].came_with.is_empty());
        assert!(turns.has_passed(&before));
    }

    #[test]
    fn what_waited_has_passed_whatever_comes_after_it() {
        let mut turns = Turns::default();
        turns.add(vec![gone("x", 1), gone("y", 1)]);
        let mark = turns.mark();
        turns.add((2..N_PEERS + 2).map(|name| gone("x", name)).collect());
        turns.add(vec![gone("x", 9_000)]);
        assert!(!turns.has_passed(&mark));
        turns.next(|namespace| namespace == "y");
        assert!(turns.is_waiting("x") && !turns.has_passed(&mark), "of y it has not");
        turns.next(|namespace| namespace == "x");
        assert!(turns.is_waiting("x") && turns.has_passed(&mark));
    }
}
