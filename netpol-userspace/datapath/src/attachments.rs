//! Which programs are on the endpoints' interfaces: those that judge where a policy selects the pod,
//! and the guards of the others: who speaks is checked there, and where others share the link
//! whether what comes is for the pod (by the shield), and nothing else. Attaching one takes the
//! kernel a while, so guards are put on one by one, whenever there is nothing else to do.
//!
//! Invariants: a guard has its entry ([`netpol_common::layout::Speaker`]) before it is attached and
//! until it is off; where the programs of an isolated pod come off, the guard is there before. Must
//! never decide which endpoint is to have what.

use std::collections::{BTreeMap, BTreeSet};

use netpol_compile::EndpointId;

use super::attach::{Attacher, Part};
use super::error::{DatapathError, EndpointFailure};
use super::load::{EGRESS, GUARD, INGRESS, Programs, SHIELD};
use super::pins::Pins;

/// What a pod that no policy selects is to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Guarding {
    /// Nothing.
    #[default]
    None,
    /// The guard.
    Guard,
    /// The shield as well, since others share the link.
    WithShield,
}

impl Guarding {
    fn is_on(self) -> bool {
        self != Self::None
    }
}

/// What is on an endpoint's interface.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Attachment {
    ifindex: u32,
    /// The programs that judge are.
    is_judged: bool,
    guarding: Guarding,
    /// The guard could not be attached; tried again from time to time.
    has_failed: bool,
}

impl Attachment {
    fn is_pending(&self, wanted: Guarding) -> bool {
        !self.has_failed && self.guarding != wanted
    }
}

/// The programs, and what of them is on each endpoint's interface. Owns the loaded programs, their
/// links and filters, and what was put where.
pub(crate) struct Attachments {
    programs: Programs,
    attacher: Attacher,
    /// The numbers in the kernel of the programs that judge.
    program_ids: [u32; 2],
    /// The numbers of guard and shield in the kernel, once they are loaded.
    guard_ids: [Option<u32>; 2],
    endpoints: BTreeMap<EndpointId, Attachment>,
}

impl Attachments {
    /// Nothing is attached to an endpoint, as far as this knows.
    pub(crate) fn new(mut programs: Programs, attacher: Attacher) -> Result<Self, DatapathError> {
        let program_ids = [programs.info(INGRESS)?.id(), programs.info(EGRESS)?.id()];
        let (guard_ids, endpoints) = ([None; 2], BTreeMap::new());
        Ok(Self { programs, attacher, program_ids, guard_ids, endpoints })
    }

    /// The loaded programs.
    pub(crate) fn programs(&mut self) -> &mut Programs {
        &mut self.programs
    }

    /// Where the links are pinned.
    pub(crate) fn pins(&self) -> &Pins {
        self.attacher.pins()
    }

    /// `tcx` or `clsact`.
    pub(crate) fn mode(&self) -> &'static str {
        self.attacher.name()
    }

    /// An endpoint is there, with nothing on its interface.
    pub(crate) fn add(&mut self, id: EndpointId, ifindex: u32) {
        self.endpoints.insert(id, Attachment { ifindex, ..Attachment::default() });
    }

    /// Forgets an endpoint. What is on its interface stays.
    pub(crate) fn forget(&mut self, id: EndpointId) -> Option<Attachment> {
        self.endpoints.remove(&id)
    }

    /// An endpoint has what [`Self::forget`] said of another one with the same interface.
    pub(crate) fn take_over(&mut self, id: EndpointId, attachment: Attachment) {
        self.endpoints.insert(id, attachment);
    }

    /// Puts the programs that judge on an endpoint's interface, if they are not there.
    pub(crate) fn attach(&mut self, id: EndpointId) -> Result<(), DatapathError> {
        let Some(endpoint) = self.endpoints.get_mut(&id) else { return Ok(()) };
        if endpoint.is_judged {
            return Ok(());
        }
        match self.attacher.attach(&mut self.programs, endpoint.ifindex) {
            Ok(()) => endpoint.is_judged = true,
            // It has just vanished, and that will be heard of.
            Err(_) if !self.attacher.exists(endpoint.ifindex) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Takes them off.
    pub(crate) fn detach(&mut self, id: EndpointId) {
        if let Some(endpoint) = self.endpoints.get_mut(&id) {
            self.attacher.detach(endpoint.ifindex);
            endpoint.is_judged = false;
        }
    }

    /// Puts them back where somebody took them off, of these endpoints. Returns which those were,
    /// and failures.
    pub(crate) fn verify(
        &mut self,
        isolated: impl IntoIterator<Item = EndpointId>,
    ) -> (Vec<EndpointId>, Vec<EndpointFailure>) {
        let (mut repaired, mut failures) = (Vec::new(), Vec::new());
        for id in isolated {
            let Some(endpoint) = self.endpoints.get_mut(&id) else { continue };
            if endpoint.is_judged && self.attacher.is_attached(endpoint.ifindex, self.program_ids) {
                continue;
            }
            endpoint.is_judged = false;
            match self.attach(id) {
                Ok(()) if self.is_judged(id) => repaired.push(id),
                Ok(()) => {}
                Err(error) => failures.push(EndpointFailure { endpoint: Some(id), error }),
            }
        }
        (repaired, failures)
    }

    fn is_judged(&self, id: EndpointId) -> bool {
        self.endpoints.get(&id).is_some_and(|endpoint| endpoint.is_judged)
    }

    /// Whether some program checks who speaks on an endpoint's interface.
    pub(crate) fn checks_speaker(&self, id: EndpointId) -> bool {
        self.endpoints.get(&id).is_some_and(|e| e.is_judged || e.guarding.is_on())
    }

    /// How many endpoints have a guard.
    pub(crate) fn guarded(&self) -> usize {
        self.endpoints.values().filter(|endpoint| endpoint.guarding.is_on()).count()
    }

    /// Whether an earlier agent, or this one, has put a guard on the interface.
    pub(crate) fn was_guarded(&self, ifindex: u32) -> bool {
        self.attacher.is_guarded(ifindex)
    }

    /// Whether an earlier agent enforced an endpoint on the interface, which is the same since.
    pub(crate) fn is_enforced(&self, ifindex: u32) -> bool {
        self.attacher.is_enforced(ifindex)
    }

    /// Whether an endpoint's guard is still to be put on or taken off, where this is wanted.
    pub(crate) fn is_guard_pending(&self, id: EndpointId, wanted: Guarding) -> bool {
        self.endpoints.get(&id).is_some_and(|endpoint| endpoint.is_pending(wanted))
    }

    /// Brings an endpoint's guard up to date.
    pub(crate) fn update_guard(
        &mut self,
        id: EndpointId,
        wanted: Guarding,
    ) -> Result<(), DatapathError> {
        let Some(endpoint) = self.endpoints.get_mut(&id) else { return Ok(()) };
        if !wanted.is_on() {
            self.detach_guard(id);
            return Ok(());
        }
        if endpoint.guarding == wanted {
            return Ok(());
        }
        let has_shield = wanted == Guarding::WithShield;
        let attached = self.attacher.attach_guard(&mut self.programs, endpoint.ifindex, has_shield);
        endpoint.guarding = if attached.is_ok() { wanted } else { Guarding::None };
        endpoint.has_failed = attached.is_err();
        let is_gone = attached.is_err() && !self.attacher.exists(endpoint.ifindex);
        if is_gone { Ok(()) } else { attached }
    }

    /// Takes the guard off, if there is one.
    pub(crate) fn detach_guard(&mut self, id: EndpointId) {
        let Some(endpoint) = self.endpoints.get_mut(&id) else { return };
        endpoint.has_failed = false;
        if std::mem::take(&mut endpoint.guarding).is_on() {
            self.attacher.detach_guard(endpoint.ifindex);
        }
    }

    /// An endpoint that an earlier agent has given a guard still has it. Returns whether that is so.
    pub(crate) fn adopt_guard(&mut self, id: EndpointId) -> bool {
        let Some(endpoint) = self.endpoints.get_mut(&id) else { return false };
        let knows_none = !endpoint.guarding.is_on() && !endpoint.has_failed;
        if !knows_none || !self.attacher.is_guarded(endpoint.ifindex) {
            return false;
        }
        // Whether it has a shield, too, is seen to once the link is known.
        endpoint.guarding = Guarding::Guard;
        true
    }

    /// Periodic: puts back what somebody took off, and if `is_thorough` tries again what failed.
    /// Returns the endpoints whose guards were gone, and failures.
    pub(crate) fn verify_guards(
        &mut self,
        wanted: impl Fn(EndpointId) -> Guarding,
        part: Part,
        is_thorough: bool,
    ) -> (Vec<EndpointId>, Vec<EndpointFailure>) {
        let (mut repaired, mut failures) = (Vec::new(), Vec::new());
        let here = self.endpoints.iter().filter(|(_, endpoint)| part.has(endpoint.ifindex));
        let ids: Vec<EndpointId> = here.map(|(&id, _)| id).collect();
        let guard_ids = self.guard_ids();
        for (id, wanted) in ids.into_iter().map(|id| (id, wanted(id))) {
            let Some(endpoint) = self.endpoints.get_mut(&id) else { continue };
            let is_left = endpoint.has_failed && !is_thorough;
            if !wanted.is_on() || endpoint.is_pending(wanted) || is_left {
                continue;
            }
            let has_shield = wanted == Guarding::WithShield;
            let was_attached = endpoint.guarding.is_on();
            if was_attached && self.attacher.has_guard(endpoint.ifindex, guard_ids, has_shield) {
                continue;
            }
            (endpoint.guarding, endpoint.has_failed) = (Guarding::None, false);
            match self.update_guard(id, wanted) {
                // Unless the interface has just vanished.
                Ok(()) if was_attached && self.endpoints[&id].guarding.is_on() => {
                    repaired.push(id);
                }
                Ok(()) => {}
                Err(error) => failures.push(EndpointFailure { endpoint: Some(id), error }),
            }
        }
        (repaired, failures)
    }

    /// The numbers of guard and shield in the kernel; 0, which none has, for one that is not loaded.
    fn guard_ids(&mut self) -> [u32; 2] {
        for (known, name) in self.guard_ids.iter_mut().zip([GUARD, SHIELD]) {
            *known = known.or_else(|| self.programs.info(name).ok().map(|info| info.id()));
        }
        self.guard_ids.map(Option::unwrap_or_default)
    }

    /// Takes the programs that judge off an interface that is no endpoint's.
    pub(crate) fn detach_unknown(&self, ifindex: u32) {
        self.attacher.detach(ifindex);
    }

    /// Takes guards off an interface whose entry is no endpoint's.
    pub(crate) fn detach_unknown_guard(&self, ifindex: u32) {
        self.attacher.detach_guard(ifindex);
    }

    /// Takes off what an agent with the other mode has put on an interface.
    pub(crate) fn detach_other_mode(&self, ifindex: u32) {
        self.attacher.detach_other_mode(ifindex);
    }

    /// Takes links off that an earlier agent has put on interfaces other than these.
    pub(crate) fn keep_links_of(&self, isolated: &BTreeSet<u32>) {
        for ifindex in self.attacher.linked().difference(isolated) {
            self.attacher.detach_links(*ifindex);
        }
    }

    /// Takes guards off that an earlier agent has put on interfaces that are no endpoint's.
    pub(crate) fn remove_unknown_guards(&self) {
        let known = |ifindex| {
            let mut endpoints = self.endpoints.values();
            endpoints.any(|known| known.ifindex == ifindex && known.guarding.is_on())
        };
        for ifindex in self.attacher.guarded().into_iter().filter(|ifindex| !known(*ifindex)) {
            self.attacher.detach_guard(ifindex);
        }
    }

    /// Puts a transit program on an interface. False: there is no such interface any more.
    pub(crate) fn attach_transit(
        &mut self,
        ifindex: u32,
        program: &str,
    ) -> Result<bool, DatapathError> {
        match self.attacher.attach_transit(&mut self.programs, ifindex, program) {
            Ok(()) => Ok(true),
            Err(_) if !self.attacher.exists(ifindex) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether this transit program still is on an interface.
    pub(crate) fn has_transit(&mut self, ifindex: u32, program: &str) -> bool {
        let info = self.programs.info(program);
        info.is_ok_and(|info| self.attacher.has_transit(ifindex, info.id()))
    }

    /// Takes transit programs off an interface.
    pub(crate) fn detach_transit(&self, ifindex: u32) {
        self.attacher.detach_transit(ifindex);
    }

    /// Takes transit programs off all interfaces that have links of them, and off these.
    pub(crate) fn detach_all_transit(&self, ifindexes: impl IntoIterator<Item = u32>) {
        self.attacher.detach_all_transit(ifindexes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guard_is_pending_while_it_is_another_than_wanted_unless_it_has_failed() {
        let all = [Guarding::None, Guarding::Guard, Guarding::WithShield];
        for guarding in all {
            for wanted in all {
                let attachment = Attachment { guarding, ..Attachment::default() };
                assert_eq!(attachment.is_pending(wanted), guarding != wanted);
                let failed = Attachment { has_failed: true, ..attachment };
                assert!(!failed.is_pending(wanted), "it is tried again from time to time");
            }
        }
    }
}
