//! The second look at packets to Services: the transit programs on every interface by which
//! packets leave this network namespace, while some endpoint needs them.
//!
//! Invariants: [`TRANSIT_READY`] is set only while every known exit has its program, since
//! what the first look lets pass because of it nobody else judges; and the programs go only after
//! it is cleared. Must never decide which packets are looked at twice.

use std::collections::BTreeMap;

use netpol_common::layout::{SERVICES_INCOMPLETE, TRANSIT_READY};

use super::attach::Part;
use super::error::EndpointFailure;
use super::load::{TRANSIT, TRANSIT_RAW};
use super::writer::Datapath;
use netpol_compile::{EndpointId, SetId, Step};
use netpol_endpoint::Exit;

/// What is known of the exits.
#[derive(Debug, Default)]
pub(super) struct Transit {
    /// All interfaces but loopback, by ifindex; `None`: nobody has looked yet.
    exits: Option<BTreeMap<u32, Exit>>,
    /// Those that have their program.
    attached: BTreeMap<u32, Exit>,
    is_wanted: bool,
    /// What an earlier agent may have left has been looked for.
    is_clean: bool,
}

impl Transit {
    /// Takes over from an earlier agent, whose programs are to stay and to come on new exits.
    pub(super) fn adopt(flags: u64) -> Self {
        Self { is_wanted: flags & TRANSIT_READY != 0, ..Self::default() }
    }
}

/// The program for an exit.
pub(super) fn program_for(exit: &Exit) -> &'static str {
    if exit.has_link_header { TRANSIT } else { TRANSIT_RAW }
}

impl Datapath {
    /// These are the interfaces by which packets leave this network namespace.
    pub fn set_exits(&mut self, exits: &[Exit]) -> Vec<EndpointFailure> {
        let exits: BTreeMap<u32, Exit> =
            exits.iter().map(|exit| (exit.ifindex, exit.clone())).collect();
        if self.transit.exits.as_ref() == Some(&exits) {
            return Vec::new();
        }
        self.transit.attached.retain(|ifindex, exit| exits.get(ifindex) == Some(exit));
        self.transit.exits = Some(exits);
        if self.transit.is_wanted { self.guard_exits() } else { Vec::new() }
    }

    /// Before a plan: whoever will send to Services that are not settled needs the programs by
    /// then.
    pub(super) fn prepare_transit(&mut self, plan: &[Step]) -> Vec<EndpointFailure> {
        let isolates = |step: &Step| {
            matches!(step, Step::SetEndpoint(id, sets)
                if sets.egress != SetId::NONE && self.endpoints.contains_key(id))
        };
        let serves = |step: &Step| matches!(step, Step::SetService(..));
        let will_isolate = self.isolates_egress() || plan.iter().any(isolates);
        let will_serve = self.services.has_any() || plan.iter().any(serves);
        let is_needed = will_isolate && will_serve;
        if !is_needed || self.transit.is_wanted && self.is_transit_ready() {
            return Vec::new();
        }
        self.transit.is_wanted = true;
        self.guard_exits()
    }

    /// After a plan: takes the programs off when nobody needs them any more.
    pub(super) fn settle_transit(&mut self) {
        let is_needed = self.isolates_egress() && self.services.has_any();
        if is_needed || !self.transit.is_wanted && self.transit.is_clean {
            return;
        }
        self.set_transit_ready(false);
        for (ifindex, _) in std::mem::take(&mut self.transit.attached) {
            self.attacher.detach_transit(ifindex);
        }
        if !std::mem::replace(&mut self.transit.is_clean, true) {
            let exits = self.transit.exits.iter().flat_map(BTreeMap::keys);
            self.attacher.detach_all_transit(exits.copied());
        }
        self.transit.is_wanted = false;
    }

    /// Periodic: puts back what somebody took off, on some interfaces. Returns how many had to be.
    pub fn verify_transit(&mut self, part: Part) -> (usize, Vec<EndpointFailure>) {
        if !self.transit.is_wanted {
            return (0, Vec::new());
        }
        let (programs, attacher) = (&mut self.programs, &self.attacher);
        let before = self.transit.attached.len();
        self.transit.attached.retain(|&ifindex, exit| {
            if !part.has(ifindex) {
                return true;
            }
            let info = programs.info(program_for(exit));
            info.is_ok_and(|info| attacher.has_transit(ifindex, info.id()))
        });
        let missing = before - self.transit.attached.len();
        if missing == 0 && self.is_transit_ready() {
            return (0, Vec::new());
        }
        (missing, self.guard_exits())
    }

    /// Puts the programs on every exit that lacks them, and says whether all have them.
    fn guard_exits(&mut self) -> Vec<EndpointFailure> {
        let Some(exits) = self.transit.exits.clone() else { return Vec::new() };
        let mut failures = Vec::new();
        for (ifindex, exit) in exits {
            if self.transit.attached.contains_key(&ifindex) {
                continue;
            }
            match self.attacher.attach_transit(&mut self.programs, ifindex, program_for(&exit)) {
                Ok(()) => drop(self.transit.attached.insert(ifindex, exit)),
                // It has just vanished.
                Err(_) if !self.attacher.exists(ifindex) => {}
                Err(error) => failures.push(EndpointFailure { endpoint: None, error }),
            }
        }
        self.set_transit_ready(failures.is_empty());
        failures
    }

    fn is_transit_ready(&self) -> bool {
        self.maps.control.has_flag(TRANSIT_READY)
    }

    fn set_transit_ready(&mut self, is_ready: bool) {
        let was_ready = self.is_transit_ready();
        self.maps.control.set_flag(TRANSIT_READY, is_ready);
        if was_ready && !is_ready {
            // What passed on condition that it is judged again.
            self.rejudge_all();
        }
    }

    /// Says to the programs whether there are Services that they do not know.
    pub(super) fn update_incomplete(&mut self) {
        let is_incomplete = self.services.is_incomplete();
        if is_incomplete != self.maps.control.has_flag(SERVICES_INCOMPLETE) {
            self.maps.control.set_flag(SERVICES_INCOMPLETE, is_incomplete);
            self.rejudge_all();
        }
    }

    pub(super) fn rejudge_all(&mut self) {
        let ids: Vec<EndpointId> = self.endpoints.keys().copied().collect();
        self.rejudge(&ids);
    }

    fn isolates_egress(&self) -> bool {
        self.endpoints.values().any(|endpoint| endpoint.sets.egress != SetId::NONE)
    }
}
