//! From what changes touched to a plan: the order of steps that keeps every intermediate verdict
//! an old or a new one. New rows first, addresses next (old sets cannot see new atoms), then
//! endpoints, then flows, then garbage (new sets cannot see old atoms).

use std::collections::BTreeSet;

use rustc_hash::FxHashSet;

use super::engine::steps;
use super::{
    Compiler, Dirty, Endpoint, EndpointId, EndpointSets, Plan, SetId, Step, isolating, sets,
};
use crate::model::{Direction, Pod};

/// The sets of an endpoint that no policy selects.
pub(super) const NOT_ISOLATED: EndpointSets =
    EndpointSets { ingress: SetId::NONE, egress: SetId::NONE };

impl Compiler {
    /// Works off what was touched.
    pub(super) fn settle(&mut self, mut dirty: Dirty) -> Plan {
        dirty.endpoints.append(&mut self.unnumbered);
        let switches: Vec<(EndpointId, EndpointSets)> =
            dirty.endpoints.iter().map(|&id| (id, self.compile_endpoint(id))).collect();
        let (mut plan, moves) = self.engine.advance(&self.cluster, dirty.touched);
        plan.extend(steps(&moves));
        let mut rejudge = self.users(&self.engine.shrunk_sets(&moves));
        for (id, sets) in switches {
            if self.switch(id, sets, &mut plan) {
                rejudge.insert(id);
            }
        }
        plan.extend(rejudge_step(rejudge));
        let (garbage, shrunk) = self.engine.collect_garbage(&self.cluster);
        plan.extend(garbage);
        plan.extend(rejudge_step(self.users(&shrunk)));
        plan
    }

    /// The endpoints that use one of these sets now.
    fn users(&self, sets: &FxHashSet<SetId>) -> BTreeSet<EndpointId> {
        if sets.is_empty() {
            return BTreeSet::new();
        }
        let uses = |endpoint: &Endpoint| {
            sets.contains(&endpoint.sets.ingress) || sets.contains(&endpoint.sets.egress)
        };
        let users = self.endpoints.iter().filter(|(_, endpoint)| uses(endpoint));
        users.map(|(&id, _)| id).collect()
    }

    /// The sets that an endpoint should have, each with one user more.
    fn compile_endpoint(&mut self, id: EndpointId) -> EndpointSets {
        let Some(endpoint) = self.endpoints.get_mut(&id) else { return NOT_ISOLATED };
        if let Some(pod) = self.cluster.pod(&endpoint.name) {
            endpoint.pod = Some(pod.clone());
        }
        let Some(pod) = endpoint.pod.clone() else { return NOT_ISOLATED };
        self.engine.sets.exhausted = false;
        let sets = EndpointSets {
            ingress: self.acquire_set(&pod, Direction::Ingress),
            egress: self.acquire_set(&pod, Direction::Egress),
        };
        if self.engine.sets.exhausted {
            self.unnumbered.insert(id);
        }
        sets
    }

    fn acquire_set(&mut self, pod: &Pod, direction: Direction) -> SetId {
        let mut policies = isolating(&self.cluster, pod, direction).peekable();
        if policies.peek().is_none() {
            return SetId::NONE;
        }
        let atoms = &mut self.engine.atoms;
        let content = sets::content(policies, pod, direction, atoms);
        self.engine.sets.acquire(content, atoms)
    }

    /// Gives an endpoint its new sets. Returns whether something may have been taken from it.
    fn switch(&mut self, id: EndpointId, new: EndpointSets, plan: &mut Plan) -> bool {
        let Some(endpoint) = self.endpoints.get_mut(&id) else { return false };
        let old = std::mem::replace(&mut endpoint.sets, new);
        let is_first = !std::mem::replace(&mut endpoint.announced, true);
        if old != new || is_first {
            plan.push(Step::SetEndpoint(id, new));
        }
        let covers = self.engine.set_covers(new.ingress, old.ingress)
            && self.engine.set_covers(new.egress, old.egress);
        self.engine.sets.release(old.ingress);
        self.engine.sets.release(old.egress);
        !covers
    }
}

fn rejudge_step(endpoints: BTreeSet<EndpointId>) -> Option<Step> {
    (!endpoints.is_empty()).then(|| Step::Rejudge(endpoints.into_iter().collect()))
}
