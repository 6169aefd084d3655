//! Which rules of policies are taken into account: all of them, or the first ones of namespaces
//! that want more than their share ([`super::shares`]). What a policy isolates it isolates whatever
//! is left out. Must never let it matter in which order anything came.

use std::collections::{BTreeMap, BTreeSet};

use rustc_hash::FxHashMap;

use super::shares::{Demand, Profile, Room, Scarce, n_rules, with_first_rules};
use super::{Compiler, Dirty};
use netpol_model::{Change, ObjectName, Pod, Policy, Str};

/// What is known for sharing out.
#[derive(Debug, Default)]
pub(super) struct Shares {
    /// `None`: as much as anybody wants.
    pub room: Option<Room>,
    /// Something has changed since it was shared out.
    is_touched: bool,
    /// Of namespaces with endpoints.
    known: FxHashMap<Str, NamespaceDemand>,
    /// Policies of which rules are left out, as they were read: the cluster has what is left.
    wholes: BTreeMap<ObjectName, Policy>,
    /// The most that a namespace may have now.
    level: Demand,
}

/// What the policies of a namespace want.
#[derive(Debug, Default)]
struct NamespaceDemand {
    /// Each policy for itself, whomever it selects: never less than what it comes to.
    sum: Demand,
    /// How many endpoints differ in what may select them. `None`: to be counted.
    n_kinds: Option<usize>,
    /// What it comes to, once that had to be known.
    profile: Option<Profile>,
}

/// A policy of which rules are left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftOut {
    /// Its name.
    pub policy: ObjectName,
    /// How many rules it has.
    pub n_rules: usize,
    /// How many of them are left out, the last ones.
    pub n_left_out: usize,
    /// What there is too little of for them.
    pub scarce: Scarce,
}

impl Shares {
    /// Notes what is about to be taken in of a policy, which the cluster knows as `known`. Returns
    /// whether it is as it was read last.
    pub fn note(&mut self, id: &ObjectName, known: Option<&Policy>, now: Option<&Policy>) -> bool {
        if self.room.is_none() {
            return false;
        }
        let whole = self.wholes.get(id);
        if whole.is_some() && whole == now {
            return true;
        }
        if let Some(namespace) = self.known.get_mut(&id.namespace) {
            self.is_touched = true;
            let demand = |policy: Option<&Policy>| policy.map(Demand::of).unwrap_or_default();
            namespace.sum = namespace.sum.plus(demand(now)).minus(demand(whole.or(known)));
            namespace.profile = None;
        }
        // Without endpoints there nothing is left out.
        self.is_touched |= self.wholes.remove(id).is_some();
        false
    }

    /// Notes that a namespace has other endpoints, or that theirs are different.
    pub(crate) fn recount_endpoints(&mut self, namespace: &Str) {
        if self.room.is_some() {
            self.is_touched = true;
            if let Some(known) = self.known.get_mut(namespace) {
                (known.n_kinds, known.profile) = (None, None);
            }
        }
    }

    /// Whether it is to be shared out anew.
    pub(crate) fn is_touched(&self) -> bool {
        self.is_touched
    }
}

impl Compiler {
    /// Namespaces that want more than their share of this go without what is beyond it. To be said
    /// first.
    #[must_use]
    pub fn with_room(mut self, room: Room) -> Self {
        self.shares.room = Some(room);
        self
    }

    /// The policies of which rules are left out.
    pub fn left_out(&self) -> impl Iterator<Item = LeftOut> {
        self.shares.wholes.iter().filter_map(|(id, whole)| {
            let n_all = n_rules(whole);
            let n_admitted = self.cluster.policy(id).map_or(0, n_rules);
            Some(LeftOut {
                policy: id.clone(),
                n_rules: n_all,
                n_left_out: n_all - n_admitted,
                scarce: self.scarce(&id.namespace)?,
            })
        })
    }

    /// What a namespace wants too much of.
    fn scarce(&self, namespace: &Str) -> Option<Scarce> {
        let profile = self.shares.known.get(namespace)?.profile.as_ref()?;
        profile.demand().beyond(&self.shares.level)
    }

    /// Leaves out what there is no room for, and takes in what there is room for again.
    pub(super) fn share_out(&mut self) {
        if !std::mem::take(&mut self.shares.is_touched) {
            return;
        }
        let Some(room) = self.shares.room else { return };
        let mut demands = self.rough_demands();
        let level = room.level(demands.values());
        if demands.values().all(|demand| demand.fits(&level)) {
            self.shares.known.values_mut().for_each(|known| known.profile = None);
        } else {
            for (namespace, demand) in &mut demands {
                *demand = self.exact_demand(namespace, &room.most());
            }
        }
        self.shares.level = room.level(demands.values());
        let cut = self.shares.wholes.keys().map(|id| id.namespace.clone());
        let over = demands.into_iter().filter(|(_, demand)| !demand.fits(&self.shares.level));
        let namespaces: BTreeSet<Str> = cut.chain(over.map(|(namespace, _)| namespace)).collect();
        let mut dirty = std::mem::take(&mut self.taken_in);
        for namespace in namespaces {
            self.admit(&namespace, &mut dirty);
        }
        self.taken_in = dirty;
    }

    /// What each namespace with endpoints wants at most.
    fn rough_demands(&mut self) -> BTreeMap<Str, Demand> {
        let endpoints_in = &self.endpoints_in;
        self.shares.known.retain(|namespace, _| endpoints_in.contains_key(namespace));
        let namespaces: Vec<Str> = endpoints_in.keys().cloned().collect();
        let mut demands = BTreeMap::new();
        for namespace in namespaces {
            let mut known =
                self.shares.known.remove(&namespace).unwrap_or_else(|| NamespaceDemand {
                    sum: self
                        .wholes_in(&namespace)
                        .fold(Demand::default(), |sum, policy| sum.plus(Demand::of(policy))),
                    ..NamespaceDemand::default()
                });
            let n_kinds = known.n_kinds.unwrap_or_else(|| self.kinds_in(&namespace).len());
            known.n_kinds = Some(n_kinds);
            demands.insert(namespace.clone(), known.sum.weighed(n_kinds));
            self.shares.known.insert(namespace, known);
        }
        demands
    }

    /// What a namespace wants, as far as there is as much at all.
    fn exact_demand(&mut self, namespace: &Str, most: &Demand) -> Demand {
        let mut known = self.shares.known.remove(namespace).unwrap_or_default();
        let profile = known.profile.get_or_insert_with(|| {
            let policies: Vec<&Policy> = self.wholes_in(namespace).collect();
            Profile::of(&policies, &self.kinds_in(namespace), most)
        });
        let demand = profile.demand();
        self.shares.known.insert(namespace.clone(), known);
        demand
    }

    /// The policies of a namespace as they were read, sorted.
    fn wholes_in<'a>(&'a self, namespace: &Str) -> impl Iterator<Item = &'a Policy> {
        let policies =
            self.cluster.policies.get(namespace).into_iter().flat_map(|named| named.values());
        policies.map(|policy| self.shares.wholes.get(&policy.id).unwrap_or(policy))
    }

    /// A pod for each kind that the policies of a namespace may tell apart.
    fn kinds_in<'a>(&'a self, namespace: &Str) -> Vec<&'a Pod> {
        let endpoints = self.endpoints_in.get(namespace).into_iter().flatten();
        let pods = endpoints.flat_map(|id| self.endpoints[id].pods_soon(&self.cluster));
        let pods = pods.filter(|pod| pod.id.namespace == *namespace && pod.is_networked());
        let kinds: FxHashMap<_, &Pod> = pods.map(|pod| ((&pod.labels, &pod.ports), pod)).collect();
        kinds.into_values().collect()
    }

    /// Takes as many rules of a namespace into account as there is room for.
    fn admit(&mut self, namespace: &Str, dirty: &mut Dirty) {
        let known = self.shares.known.get(namespace);
        let profile = known.and_then(|known| known.profile.as_ref());
        let admitted = profile.into_iter().flat_map(|profile| profile.admitted(&self.shares.level));
        let admitted: FxHashMap<&Str, usize> = admitted.collect();
        let mut changes = Vec::new();
        for whole in self.wholes_in(namespace) {
            let n_all = n_rules(whole);
            let n_admitted = admitted.get(&whole.id.name).copied().unwrap_or(n_all);
            if n_admitted != self.cluster.policy(&whole.id).map_or(0, n_rules) {
                let rest = (n_admitted < n_all).then(|| with_first_rules(whole, n_admitted));
                changes.push((whole.clone(), rest));
            }
        }
        for (whole, rest) in changes {
            let id = whole.id.clone();
            self.shares.wholes.remove(&id);
            let now = match rest {
                Some(rest) => {
                    self.shares.wholes.insert(id.clone(), whole);
                    rest
                }
                None => whole,
            };
            self.store_policy(id, Change::Policy(now), dirty);
        }
    }
}
