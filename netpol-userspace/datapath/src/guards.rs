//! The guards of pods that no policy selects: who speaks is checked there, and where others share the
//! link whether what comes is for the pod (by the shield), and nothing else. Attaching
//! one takes the kernel a while, so it is done one by one, whenever there is nothing else to do.
//!
//! Invariants: a guard has its entry ([`netpol_common::layout::Speaker`]) before it is attached and
//! until it is off; where the programs of an isolated pod come off, the guard is there before. Must
//! never put one on the interface of an endpoint without declared addresses.

use super::attach::Part;
use super::error::{DatapathError, EndpointFailure};
use super::load::{GUARD, SHIELD};
use super::writer::{Datapath, Endpoint};
use netpol_compile::{EndpointId, SetId};

/// Whether there are to be any.
#[derive(Debug, Default)]
pub(super) struct Guards {
    is_wanted: bool,
    /// The numbers of guard and shield in the kernel, once they are loaded.
    programs: [Option<u32>; 2],
}

/// How far an endpoint's guard has got.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Guard {
    #[default]
    None,
    /// With a shield if the link was shared.
    Attached { is_shared: bool },
    /// It could not be attached; tried again from time to time.
    Failed,
}

impl Guard {
    fn is_on(self) -> bool {
        matches!(self, Self::Attached { .. })
    }
}

impl Datapath {
    /// Whether pods that no policy selects get a guard.
    pub fn want_guards(&mut self, is_wanted: bool) {
        self.guards.is_wanted = is_wanted;
    }

    /// As [`Self::want_guards`] was told.
    pub fn wants_guards(&self) -> bool {
        self.guards.is_wanted
    }

    /// How many endpoints have one.
    pub fn guarded(&self) -> usize {
        self.endpoints.values().filter(|endpoint| endpoint.guard.is_on()).count()
    }

    /// Whether an earlier agent, or this one, has put one on the interface.
    pub fn was_guarded(&self, ifindex: u32) -> bool {
        self.attacher.is_guarded(ifindex)
    }

    /// Whether some program checks who speaks on an endpoint's interface.
    pub fn checks_speaker(&self, id: EndpointId) -> bool {
        self.endpoints.get(&id).is_some_and(|e| e.is_attached || e.guard.is_on())
    }

    /// Whether an endpoint's guard is still to be put on or taken off.
    pub fn is_guard_pending(&self, id: EndpointId) -> bool {
        self.endpoints.get(&id).is_some_and(|endpoint| self.is_pending(endpoint))
    }

    /// Whether some guard is still to be put on or taken off.
    pub fn has_pending_guards(&self) -> bool {
        self.endpoints.values().any(|endpoint| self.is_pending(endpoint))
    }

    fn is_pending(&self, endpoint: &Endpoint) -> bool {
        match endpoint.guard {
            Guard::None => self.wants_guard(endpoint),
            Guard::Attached { is_shared } => {
                !self.wants_guard(endpoint) || is_shared != endpoint.link.is_shared
            }
            Guard::Failed => false,
        }
    }

    /// Puts one guard on that is missing, or takes one off. Returns the endpoint, if there was any.
    pub fn settle_a_guard(&mut self) -> Option<(EndpointId, Result<(), DatapathError>)> {
        let pending = self.endpoints.iter().find(|(_, endpoint)| self.is_pending(endpoint));
        let id = pending.map(|(&id, _)| id)?;
        Some((id, self.settle_guard(id)))
    }

    /// Brings an endpoint's guard up to date.
    pub fn settle_guard(&mut self, id: EndpointId) -> Result<(), DatapathError> {
        let Some(endpoint) = self.endpoints.get(&id) else { return Ok(()) };
        if self.wants_guard(endpoint) {
            self.attach_guard(id)
        } else {
            self.detach_guard(id);
            Ok(())
        }
    }

    /// No policy selects it, and what it may speak as is declared and written down, or was once: who
    /// has lost all addresses speaks as nobody.
    fn wants_guard(&self, endpoint: &Endpoint) -> bool {
        let sets = endpoint.sets;
        self.guards.is_wanted
            && sets.ingress == SetId::NONE
            && sets.egress == SetId::NONE
            && !endpoint.is_closed
            && endpoint.is_main
            && endpoint.speaker.is_some()
            && (!endpoint.addresses.is_empty() || endpoint.was_declared)
    }

    fn attach_guard(&mut self, id: EndpointId) -> Result<(), DatapathError> {
        let Some(endpoint) = self.endpoints.get_mut(&id) else { return Ok(()) };
        let is_shared = endpoint.link.is_shared;
        if endpoint.guard == (Guard::Attached { is_shared }) {
            return Ok(());
        }
        let attached = self.attacher.attach_guard(&mut self.programs, endpoint.ifindex, is_shared);
        let is_gone = attached.is_err() && !self.attacher.exists(endpoint.ifindex);
        endpoint.guard =
            if attached.is_ok() { Guard::Attached { is_shared } } else { Guard::Failed };
        if is_gone { Ok(()) } else { attached }
    }

    /// Takes the guard off, if there is one.
    pub(super) fn detach_guard(&mut self, id: EndpointId) {
        let Some(endpoint) = self.endpoints.get_mut(&id) else { return };
        if std::mem::take(&mut endpoint.guard).is_on() {
            self.attacher.detach_guard(endpoint.ifindex);
        }
    }

    /// An endpoint that an earlier agent has given a guard still has it.
    pub(super) fn adopt_guard(&mut self, id: EndpointId) {
        let Some(endpoint) = self.endpoints.get_mut(&id) else { return };
        if endpoint.guard == Guard::None && self.attacher.is_guarded(endpoint.ifindex) {
            // Whether it has a shield, too, is seen to once the link is known.
            endpoint.guard = Guard::Attached { is_shared: false };
            endpoint.was_declared = true;
        }
    }

    /// Takes guards off that an earlier agent has put on interfaces that are no endpoint's.
    pub(super) fn remove_unknown_guards(&self) {
        let known = |ifindex| {
            let mut endpoints = self.endpoints.values();
            endpoints.any(|known| known.ifindex == ifindex && known.guard.is_on())
        };
        for ifindex in self.attacher.guarded().into_iter().filter(|ifindex| !known(*ifindex)) {
            self.attacher.detach_guard(ifindex);
        }
    }

    /// The numbers of guard and shield in the kernel; 0, which none has, for one that is not loaded.
    fn guard_ids(&mut self) -> [u32; 2] {
        for (known, name) in self.guards.programs.iter_mut().zip([GUARD, SHIELD]) {
            *known = known.or_else(|| self.programs.info(name).ok().map(|info| info.id()));
        }
        self.guards.programs.map(Option::unwrap_or_default)
    }

    /// Periodic: puts back what somebody took off, and tries again what failed. Returns the
    /// endpoints whose guards were gone, and failures.
    pub(super) fn verify_guards(
        &mut self,
        part: Part,
        is_thorough: bool,
    ) -> (Vec<EndpointId>, Vec<EndpointFailure>) {
        let (mut repaired, mut failures) = (Vec::new(), Vec::new());
        let here = self.endpoints.iter().filter(|(_, endpoint)| part.has(endpoint.ifindex));
        let ids: Vec<EndpointId> = here.map(|(&id, _)| id).collect();
        let program_ids = self.guard_ids();
        for id in ids {
            let endpoint = &self.endpoints[&id];
            let is_left = endpoint.guard == Guard::Failed && !is_thorough;
            if !self.wants_guard(endpoint) || self.is_pending(endpoint) || is_left {
                continue;
            }
            let (ifindex, is_shared) = (endpoint.ifindex, endpoint.link.is_shared);
            let was_attached = endpoint.guard.is_on();
            if was_attached && self.attacher.has_guard(ifindex, program_ids, is_shared) {
                continue;
            }
            if let Some(endpoint) = self.endpoints.get_mut(&id) {
                endpoint.guard = Guard::None;
            }
            match self.attach_guard(id) {
                // Unless the interface has just vanished.
                Ok(()) if was_attached && self.endpoints[&id].guard.is_on() => {
                    repaired.push(id);
                }
                Ok(()) => {}
                Err(error) => failures.push(EndpointFailure { endpoint: Some(id), error }),
            }
        }
        (repaired, failures)
    }
}
