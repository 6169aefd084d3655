//! Who wants to know when what was written before they asked is in force. Must never answer before, nor
//! wait for what was written after.

use tokio::time::Instant;

use super::{Core, INTERFACE_PATIENCE};
use crate::serve::WaitRequest;
use crate::turns;
use netpol_compile as compile;
use netpol_endpoint::Finding;

/// A wait for everything before a barrier to be in force.
pub(super) struct Pending {
    barrier: u64,
    wait: WaitRequest,
}

/// A wait whose barrier has passed.
pub(super) struct Passed {
    wait: WaitRequest,
    /// Until when it waits for interfaces.
    patience: Instant,
    left: Left,
}

/// What is still to be put in force of what was read before a barrier. What comes later does not count:
/// there may always be something.
enum Left {
    /// It waits for its turn.
    Turns(turns::Mark),
    /// It is being compiled.
    Work(compile::Mark),
}

impl Core {
    /// Someone wants to know when what was written before now is in force.
    pub fn handle_wait(&mut self, wait: WaitRequest) {
        let barrier = self.source.barrier();
        self.pending.push(Pending { barrier, wait });
    }

    pub(super) fn handle_barrier(&mut self, number: u64) {
        let (reached, pending): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.pending).into_iter().partition(|wait| wait.barrier <= number);
        self.pending = pending;
        if !reached.is_empty() && self.lacks_interfaces() {
            self.watcher.rescan();
        }
        for Pending { wait, .. } in reached {
            let patience = Instant::now() + INTERFACE_PATIENCE;
            self.passed.push(Passed { wait, patience, left: Left::Turns(self.turns.mark()) });
        }
        self.settle_waits();
    }

    /// Waits are answered when every pod has its interface, or patience is over, and what was read
    /// before them is in force; with those that policies select there is more patience.
    pub(super) fn settle_waits(&mut self) {
        // Guards that are pending are always settled soon, and this is called then.
        let is_settling = self.has_pending_guards() || self.has_young_troubles();
        if self.passed.is_empty() || !self.is_synced || is_settling {
            return;
        }
        let lacks_interfaces = self.lacks_interfaces();
        for passed in &mut self.passed {
            // Interfaces that were found have their part in what is to be in force.
            if let Left::Turns(mark) = &passed.left
                && self.turns.has_passed(mark)
                && (!lacks_interfaces || Instant::now() >= passed.patience)
            {
                passed.left = Left::Work(self.compiler.mark());
            }
        }
        let is_done = |passed: &Passed| match &passed.left {
            Left::Turns(_) => false,
            Left::Work(mark) => self.compiler.has_done(mark),
        };
        let (done, left): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.passed).into_iter().partition(is_done);
        self.passed = left;
        self.answers.extend(done.into_iter().map(|passed| passed.wait));
    }

    fn lacks_interfaces(&self) -> bool {
        self.findings.iter().any(|finding| matches!(finding, Finding::PodWithoutInterface { .. }))
    }

    /// Until when the next one waits for interfaces. After that it waits for work, which asks by
    /// itself.
    pub(super) fn patience(&self) -> Option<Instant> {
        let now = Instant::now();
        let patience = self.passed.iter().map(|passed| passed.patience);
        patience.filter(|patience| *patience > now).min()
    }
}
