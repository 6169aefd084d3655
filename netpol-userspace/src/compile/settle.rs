//! From what changes touched to a plan: the order of steps that keeps every intermediate verdict
//! an old or a new one. New rows first, addresses next (old sets cannot see new atoms, and a set
//! that is edited in place says of each address what it says of its class), Services with the new
//! classes of their backends, then endpoints, then flows, then garbage (new sets cannot see old
//! atoms). A Service that is gone is taken away before flows are judged again, like any other
//! change of a verdict; as garbage go those that no endpoint asks about any more.

use std::collections::BTreeSet;

use rustc_hash::FxHashSet;

use super::engine::steps;
use super::services::{Changed, Interest};
use super::wanted::Why;
use super::{Compiler, Dirty, Endpoint, EndpointId, EndpointSets, Plan, SetId, Step};

/// The sets of an endpoint that no policy selects.
pub(super) const NOT_ISOLATED: EndpointSets =
    EndpointSets { ingress: SetId::NONE, egress: SetId::NONE };

impl Compiler {
    /// Works off what was touched, also by [`Compiler::take_in`].
    pub(super) fn settle(&mut self, also: Dirty) -> Plan {
        let mut dirty = std::mem::take(&mut self.taken_in);
        dirty.add(also);
        let unnumbered = std::mem::take(&mut self.unnumbered).into_iter();
        dirty.endpoints.extend(unnumbered.map(|id| (id, Why::Anything)));
        let switches = self.compile_endpoints(dirty.endpoints, &dirty.policies);
        let (mut plan, moves) = self.engine.advance(&self.cluster, dirty.touched);
        plan.extend(steps(&moves));
        let coming = switches.iter().map(|(_, sets)| Interest::of(*sets));
        let interest = coming.chain([self.interest()]).max().unwrap_or_default();
        self.engine.services.raise(interest, &self.cluster);
        let services = self.engine.update_services(&self.cluster, &moves);
        plan.extend(services.iter().map(Changed::step));
        let mut rejudge = self.users(&self.engine.shrunk_sets(&moves));
        rejudge.extend(self.cut_off(&services));
        for &(id, sets) in &switches {
            if self.switch(id, sets, &mut plan) {
                rejudge.insert(id);
            }
        }
        // A Service that leads to the endpoint no more is one that does until now: what it sends
        // there is looked at twice, by its old sets and by its new ones.
        for (id, _) in switches {
            if let Some(endpoint) = self.endpoints.get(&id) {
                self.engine.services.set_addresses(id, endpoint.addresses().to_vec());
            }
        }
        let services = self.engine.update_services(&self.cluster, &[]);
        plan.extend(services.iter().map(Changed::step));
        rejudge.extend(self.cut_off(&services));
        plan.extend(rejudge_step(rejudge));
        plan.extend(self.engine.services.lower(self.interest()));
        let (garbage, shrunk) = self.engine.collect_garbage(&self.cluster);
        plan.extend(garbage);
        plan.extend(rejudge_step(self.users(&shrunk)));
        plan
    }

    /// Which Services some endpoint asks about.
    fn interest(&self) -> Interest {
        let wanted = self.endpoints.values().map(|endpoint| Interest::of(endpoint.sets));
        wanted.max().unwrap_or_default()
    }

    /// The endpoints that some Service may be reached from less after these changes.
    fn cut_off(&self, services: &[Changed]) -> BTreeSet<EndpointId> {
        if services.is_empty() {
            return BTreeSet::new();
        }
        let isolated = self.endpoints.iter().filter(|(_, e)| e.sets != NOT_ISOLATED);
        self.engine.cut_off(services, isolated.map(|(&id, endpoint)| (id, endpoint.sets.egress)))
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

    /// Gives an endpoint its new sets. Returns whether something may have been taken from it.
    fn switch(&mut self, id: EndpointId, new: EndpointSets, plan: &mut Plan) -> bool {
        let Some(endpoint) = self.endpoints.get_mut(&id) else { return false };
        let old = std::mem::replace(&mut endpoint.sets, new);
        let is_first = !std::mem::replace(&mut endpoint.announced, true);
        if old != new || is_first {
            plan.push(Step::SetEndpoint(id, new));
        }
        let mut covers = self.engine.set_covers(new.ingress, old.ingress)
            && self.engine.set_covers(new.egress, old.egress);
        let is_isolated = |set| set != SetId::NONE;
        if new != NOT_ISOLATED
            && (old == NOT_ISOLATED || is_isolated(old.egress) != is_isolated(new.egress))
        {
            // Even by a set that allows everything: what is looked at twice is another thing.
            covers &= !self.engine.services.may_stamp();
        }
        self.engine.sets.release(old.ingress);
        self.engine.sets.release(old.egress);
        !covers
    }
}

fn rejudge_step(endpoints: BTreeSet<EndpointId>) -> Option<Step> {
    (!endpoints.is_empty()).then(|| Step::Rejudge(endpoints.into_iter().collect()))
}
