//! The second look at packets to Services: the transit programs on every interface by which
//! packets leave this network namespace, while some endpoint needs them.
//!
//! Invariants, which [`super::Datapath`] keeps: [`netpol_common::layout::TRANSIT_READY`] is set only
//! while every known exit has its program, since what the first look lets pass because of it nobody
//! else judges; and the programs go only after it is cleared.

use std::collections::BTreeMap;

use netpol_endpoint::Exit;

use super::attach::Part;
use super::attachments::Attachments;
use super::error::EndpointFailure;
use super::load::{TRANSIT, TRANSIT_RAW};

/// The exits, and which of them have their program. Owns nothing in the kernel: the programs are
/// those of [`Attachments`]. Must never decide which packets are looked at twice.
#[derive(Debug, Default)]
pub(crate) struct TransitHooks {
    /// All interfaces but loopback, by ifindex; `None`: nobody has looked yet.
    exits: Option<BTreeMap<u32, Exit>>,
    /// Those that have their program.
    attached: BTreeMap<u32, Exit>,
    is_wanted: bool,
    /// What an earlier agent may have left has been looked for.
    is_clean: bool,
}

impl TransitHooks {
    /// Takes over from an earlier agent. If its programs were ready they are to stay, and to come on
    /// new exits.
    pub(crate) fn adopt(was_ready: bool) -> Self {
        Self { is_wanted: was_ready, ..Self::default() }
    }

    /// Whether exits are to have their programs.
    pub(crate) fn is_wanted(&self) -> bool {
        self.is_wanted
    }

    /// They are to have them from now on.
    pub(crate) fn want(&mut self) {
        self.is_wanted = true;
    }

    /// Whether [`Self::detach`] has anything to do.
    pub(crate) fn may_be_attached(&self) -> bool {
        self.is_wanted || !self.is_clean
    }

    /// These are the exits. Returns whether that is news.
    pub(crate) fn set_exits(&mut self, exits: &[Exit]) -> bool {
        let exits: BTreeMap<u32, Exit> =
            exits.iter().map(|exit| (exit.ifindex, exit.clone())).collect();
        if self.exits.as_ref() == Some(&exits) {
            return false;
        }
        self.attached.retain(|ifindex, exit| exits.get(ifindex) == Some(exit));
        self.exits = Some(exits);
        true
    }

    /// Puts the programs on every exit that lacks them. Without failures all have them; `None`:
    /// nobody has looked which exits there are.
    pub(crate) fn attach(&mut self, attachments: &mut Attachments) -> Option<Vec<EndpointFailure>> {
        let exits = self.exits.clone()?;
        let mut failures = Vec::new();
        for (ifindex, exit) in exits {
            if self.attached.contains_key(&ifindex) {
                continue;
            }
            match attachments.attach_transit(ifindex, program_for(&exit)) {
                Ok(true) => drop(self.attached.insert(ifindex, exit)),
                // It has just vanished.
                Ok(false) => {}
                Err(error) => failures.push(EndpointFailure { endpoint: None, error }),
            }
        }
        Some(failures)
    }

    /// Takes the programs off all exits, and what an earlier agent has left of them.
    pub(crate) fn detach(&mut self, attachments: &Attachments) {
        for (ifindex, _) in std::mem::take(&mut self.attached) {
            attachments.detach_transit(ifindex);
        }
        if !std::mem::replace(&mut self.is_clean, true) {
            let exits = self.exits.iter().flat_map(BTreeMap::keys);
            attachments.detach_all_transit(exits.copied());
        }
        self.is_wanted = false;
    }

    /// Looks whether the exits in this part still have their programs. Returns how many have not.
    pub(crate) fn verify(&mut self, part: Part, attachments: &mut Attachments) -> usize {
        let before = self.attached.len();
        self.attached.retain(|&ifindex, exit| {
            !part.has(ifindex) || attachments.has_transit(ifindex, program_for(exit))
        });
        before - self.attached.len()
    }
}

/// The program for an exit.
fn program_for(exit: &Exit) -> &'static str {
    if exit.has_link_header { TRANSIT } else { TRANSIT_RAW }
}
