//! Comparing what is attached with what ought to be, and when. Must never take all attachments at a
//! time where it is done often: everything else waits for that.

use std::time::Duration;

use tokio::time::Instant;

use super::{Enforcement, Names};
use netpol_datapath::Part;

/// How often attachments are compared with the kernel's where it does not tell of programs that
/// went, in how many parts, so that nothing else waits for all of them (interfaces are often numbered
/// by twos), and how long after it has told of some: the agent itself may take off more.
const PERIOD: Duration = Duration::from_secs(1);
const N_PARTS: u32 = 7;
const SOON: Duration = Duration::from_millis(100);

/// When to compare before the next housekeeping, and what.
#[derive(Debug)]
pub(super) struct Verification {
    at: Option<Instant>,
    /// What was compared last.
    part: Part,
    /// The kernel has told of something that went.
    is_all_due: bool,
}

impl Default for Verification {
    fn default() -> Self {
        Self { at: None, part: Part::first_of(N_PARTS), is_all_due: false }
    }
}

impl Enforcement {
    /// When to call [`Self::verify_due`].
    pub(crate) fn verification_deadline(&self) -> Option<Instant> {
        self.verification.at
    }

    /// The kernel has told of filters that went.
    pub(crate) fn verify_soon(&mut self) {
        let soon = Instant::now() + SOON;
        self.verification.is_all_due = true;
        self.verification.at = Some(self.verification.at.map_or(soon, |at| at.min(soon)));
    }

    /// Verifies what is due, if anything is. `is_started`: everything that existed has been read.
    /// Returns whether anything was wrong.
    pub(crate) fn verify_due(&mut self, is_started: bool, names: &impl Names) -> bool {
        if self.verification.at.is_none_or(|at| at > Instant::now()) {
            return false;
        }
        if self.has_pending_guards() {
            // What goes then is the agent's own doing, mostly.
            self.verification.at = Some(Instant::now() + SOON);
            return false;
        }
        if self.verification.is_all_due {
            return self.verify(Part::ALL, false, is_started, names);
        }
        self.verification.part = self.verification.part.next();
        self.verify(self.verification.part, false, is_started, names)
    }

    /// Verifies all attachments, and tries again what could not be attached. Likewise.
    pub(crate) fn verify_all(&mut self, is_started: bool, names: &impl Names) -> bool {
        self.verify(Part::ALL, true, is_started, names)
    }

    /// Puts programs back that somebody took off.
    fn verify(
        &mut self,
        part: Part,
        is_thorough: bool,
        is_started: bool,
        names: &impl Names,
    ) -> bool {
        // Of TCX programs the kernel does not tell.
        let is_unheard = is_started && self.datapath.attach_mode() == "tcx";
        self.verification.at = is_unheard.then(|| Instant::now() + PERIOD / N_PARTS);
        self.verification.is_all_due &= part != Part::ALL;
        if !self.is_reconciled {
            return false;
        }
        let (repaired, failures) = self.datapath.verify_attachments(part, is_thorough);
        let is_news = !repaired.is_empty() || !failures.is_empty();
        for id in repaired {
            let endpoint = names.name(id);
            tracing::warn!(endpoint, "the programs had been taken off its interface; put back");
            self.counters.repaired_attachments += 1;
        }
        let (n_repaired, transit_failures) = self.datapath.verify_transit(part);
        if n_repaired > 0 {
            tracing::warn!(n_repaired, "transit programs had been taken off interfaces; put back");
            self.counters.repaired_attachments += n_repaired as u64;
        }
        for failure in failures.into_iter().chain(transit_failures) {
            self.record_failure(failure, names);
        }
        is_news
    }
}
