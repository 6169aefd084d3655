//! What edits of policies change in the set of an endpoint, found without a look at the policies
//! that stayed as they were, unless they are about the same peers. Must never find another content
//! than that of all policies together: where that is not sure, it finds none.

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use rustc_hash::{FxHashMap, FxHashSet, FxHasher};

use super::atoms::Atoms;
use super::isolating;
use super::ports::Allowed;
use super::sets::{Changes, Predicate, Set, own_ports, sum};
use netpol_model::{Cluster, Direction, ObjectName, Peer, Peers, Pod, Policy, Ports, Rule, Str};

/// Policies that were edited, as they were before; `None`: not there.
pub(super) type EarlierPolicies = BTreeMap<ObjectName, Option<Policy>>;

/// How often the policies of a namespace mention each peer, by its hash.
#[derive(Debug, Default)]
pub(super) struct Mentions([FxHashMap<u64, u32>; 2]);

fn hash(peer: &Peer) -> u64 {
    let mut hasher = FxHasher::default();
    peer.hash(&mut hasher);
    hasher.finish()
}

fn peers(rules: &[Rule]) -> impl Iterator<Item = (&Peer, &Ports)> {
    rules.iter().flat_map(|rule| rule.peers.named().iter().map(|peer| (peer, &rule.ports)))
}

impl Mentions {
    /// Those of these policies.
    pub fn of<'a>(policies: impl Iterator<Item = &'a Policy>) -> Self {
        let mut mentions = Self::default();
        policies.for_each(|policy| mentions.add(policy));
        mentions
    }

    /// Takes one policy more into account.
    pub fn add(&mut self, policy: &Policy) {
        for direction in Direction::BOTH {
            for (peer, _) in peers(policy.rules(direction).unwrap_or_default()) {
                *self.0[direction as usize].entry(hash(peer)).or_default() += 1;
            }
        }
    }

    /// Takes one policy less into account.
    pub fn remove(&mut self, policy: &Policy) {
        for direction in Direction::BOTH {
            for (peer, _) in peers(policy.rules(direction).unwrap_or_default()) {
                let hash = hash(peer);
                let counts = &mut self.0[direction as usize];
                if let Some(count) = counts.get_mut(&hash) {
                    *count -= 1;
                    if *count == 0 {
                        counts.remove(&hash);
                    }
                }
            }
        }
    }

    fn count(&self, direction: Direction, hash: u64) -> u32 {
        self.0[direction as usize].get(&hash).copied().unwrap_or_default()
    }
}

/// The edits of one namespace in one direction.
#[derive(Debug)]
pub(super) struct Edits<'a> {
    direction: Direction,
    /// Policies that isolated, as they were.
    before: Vec<&'a Policy>,
    /// Policies that isolate, as they are.
    now: Vec<&'a Policy>,
    /// Other policies that say something of peers that these are about.
    others: Vec<&'a Policy>,
    /// What they say of them, each with the policy's place among them.
    said: Vec<(usize, &'a Peer, &'a Ports)>,
}

/// Which of the policies that [`Edits::changes`] looks at select a pod, in that order, and whether
/// any policy isolates it. Pods of one such selection, set and ports change alike.
pub(super) type Selection = (Vec<bool>, bool);

impl<'a> Edits<'a> {
    /// Those after which the cluster is like this and peers are mentioned so often.
    pub fn new(
        cluster: &'a Cluster,
        befores: &'a EarlierPolicies,
        namespace: &Str,
        direction: Direction,
        mentions: &Mentions,
    ) -> Self {
        let here = || befores.iter().filter(|(id, _)| id.namespace == *namespace);
        let isolates = |policy: &&Policy| policy.rules(direction).is_some();
        let before = here().filter_map(|(_, before)| before.as_ref()).filter(isolates).collect();
        let now = here().filter_map(|(id, _)| cluster.policy(id)).filter(isolates).collect();
        let mut edits = Self { direction, before, now, others: Vec::new(), said: Vec::new() };
        let mut n_now: FxHashMap<u64, u32> = FxHashMap::default();
        for policy in &edits.before {
            for (peer, _) in edits.peers(policy) {
                n_now.entry(hash(peer)).or_default();
            }
        }
        for policy in &edits.now {
            for (peer, _) in edits.peers(policy) {
                *n_now.entry(hash(peer)).or_default() += 1;
            }
        }
        let shared = n_now.iter().filter(|&(&hash, &n)| mentions.count(direction, hash) > n);
        let shared: FxHashSet<u64> = shared.map(|(&hash, _)| hash).collect();
        if !shared.is_empty() {
            let all =
                cluster.policies.get(namespace).into_iter().flat_map(|policies| policies.values());
            let others = all.map(|policy| &**policy).filter(|p| !befores.contains_key(&p.id));
            for policy in others {
                let peers = peers(policy.rules(direction).unwrap_or_default());
                let mut same = peers.filter(|(peer, _)| shared.contains(&hash(peer))).peekable();
                if same.peek().is_some() {
                    let place = edits.others.len();
                    edits.others.push(policy);
                    edits.said.extend(same.map(|(peer, ports)| (place, peer, ports)));
                }
            }
        }
        edits
    }

    fn peers(&self, policy: &'a Policy) -> impl Iterator<Item = (&'a Peer, &'a Ports)> {
        peers(policy.rules(self.direction).unwrap_or_default())
    }

    /// Whether one of the policies isolates a pod as it is now.
    pub fn isolate(&self, pod: &Pod) -> bool {
        pod.is_networked() && self.now.iter().any(|policy| policy.pods.matches(&pod.labels))
    }

    /// What decides which changes a pod sees. `None`: all policies have to be looked at.
    pub fn selection(&self, cluster: &Cluster, pod: &Pod) -> Option<Selection> {
        if !pod.is_networked() {
            return None;
        }
        let selects = |policy: &&Policy| policy.pods.matches(&pod.labels);
        let all = self.before.iter().chain(&self.now).chain(&self.others);
        let is_isolated = self.now.iter().any(selects)
            || isolating(cluster, pod, self.direction).next().is_some();
        Some((all.map(selects).collect(), is_isolated))
    }

    /// What they change in the set of a pod, which had it by the policies of before. `None`: all
    /// policies have to be looked at.
    pub fn changes(
        &self,
        (selected, is_isolated): &Selection,
        pod: &Pod,
        set: &Set,
        atoms: &mut Atoms,
    ) -> Option<Changes> {
        if !is_isolated {
            return None;
        }
        let (before, selected) = selected.split_at(self.before.len());
        let (now, others) = selected.split_at(self.now.len());
        let chosen = |policies: &[&'a Policy], selected: &[bool]| -> Vec<&'a Policy> {
            policies
                .iter()
                .zip(selected)
                .filter(|(_, is)| **is)
                .map(|(policy, _)| *policy)
                .collect()
        };
        let mut said: FxHashMap<&Peer, Vec<&Ports>> = FxHashMap::default();
        for policy in chosen(&self.before, before) {
            if says_any(policy, self.direction) {
                return None;
            }
            for (peer, _) in self.peers(policy) {
                said.entry(peer).or_default();
            }
        }
        for policy in chosen(&self.now, now) {
            if says_any(policy, self.direction) {
                return None;
            }
            for (peer, ports) in self.peers(policy) {
                said.entry(peer).or_default().push(ports);
            }
        }
        for (place, peer, ports) in &self.said {
            if others[*place]
                && let Some(list) = said.get_mut(peer)
            {
                list.push(ports);
            }
        }
        let own = own_ports(pod, self.direction);
        let mut changes = Changes::new();
        let mut last: Option<Arc<Allowed>> = None;
        for (peer, ports) in said {
            // Not what everybody is allowed anyway, which stays as it is.
            let is_news = |allowed: &Allowed| !set.to_any().is_some_and(|any| any.covers(allowed));
            let allowed = sum(ports.into_iter(), own).filter(is_news);
            let predicate = Predicate::of(peer, atoms);
            if set.allowed(&predicate).map(|known| &**known) == allowed.as_ref() {
                continue;
            }
            let allowed = allowed.map(|allowed| match &last {
                Some(last) if **last == allowed => last.clone(),
                _ => last.insert(Arc::new(allowed)).clone(),
            });
            changes.push((predicate, allowed));
        }
        changes.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        Some(changes)
    }
}

fn says_any(policy: &Policy, direction: Direction) -> bool {
    let rules = policy.rules(direction).unwrap_or_default();
    rules.iter().any(|rule| rule.peers == Peers::Any)
}
