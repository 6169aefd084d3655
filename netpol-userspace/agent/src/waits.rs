//! Who wants to know when what was written before they asked is in force. Must never answer before, nor
//! wait for what was written after.

use std::time::Duration;

use tokio::time::Instant;

use crate::compilation::Compilation;
use crate::serve::WaitRequest;
use crate::turns;
use netpol_compile as compile;

/// How long a wait for "in force" lets discovery look for a pod's interface.
pub(crate) const INTERFACE_PATIENCE: Duration = Duration::from_secs(2);

/// All that wait.
#[derive(Default)]
pub(crate) struct Waits {
    pending: Vec<Pending>,
    passed: Vec<Passed>,
    answers: Vec<WaitRequest>,
}

/// A wait for everything before a barrier to be in force.
struct Pending {
    barrier: u64,
    request: WaitRequest,
}

/// A wait whose barrier has passed.
struct Passed {
    request: WaitRequest,
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

impl Waits {
    /// Someone wants to know when what is read before a barrier is in force.
    pub(crate) fn add(&mut self, barrier: u64, request: WaitRequest) {
        self.pending.push(Pending { barrier, request });
    }

    /// Everything before a barrier was read. Returns whether anybody waits for that.
    pub(crate) fn pass(&mut self, barrier: u64, compilation: &Compilation) -> bool {
        let (reached, pending): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.pending).into_iter().partition(|wait| wait.barrier <= barrier);
        self.pending = pending;
        let is_any = !reached.is_empty();
        for Pending { request, .. } in reached {
            let patience = Instant::now() + INTERFACE_PATIENCE;
            let left = Left::Turns(compilation.mark_turns());
            self.passed.push(Passed { request, patience, left });
        }
        is_any
    }

    /// Whether anybody waits for something that was read.
    pub(crate) fn has_passed(&self) -> bool {
        !self.passed.is_empty()
    }

    /// Readies the answers of those who wait when every pod has its interface, or patience is over,
    /// and what was read before them is in force.
    pub(crate) fn update(&mut self, compilation: &mut Compilation, lacks_interfaces: bool) {
        for passed in &mut self.passed {
            // Interfaces that were found have their part in what is to be in force.
            if let Left::Turns(mark) = &passed.left
                && compilation.has_turned(mark)
                && (!lacks_interfaces || Instant::now() >= passed.patience)
            {
                passed.left = Left::Work(compilation.mark_work());
            }
        }
        let is_done = |passed: &Passed| match &passed.left {
            Left::Turns(_) => false,
            Left::Work(mark) => compilation.has_done(mark),
        };
        let (done, left): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.passed).into_iter().partition(is_done);
        self.passed = left;
        self.answers.extend(done.into_iter().map(|passed| passed.request));
    }

    /// Until when the next one waits for interfaces. After that it waits for work, which asks by
    /// itself.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let now = Instant::now();
        let patience = self.passed.iter().map(|passed| passed.patience);
        patience.filter(|patience| *patience > now).min()
    }

    /// Whether there is something for [`Self::send_answers`].
    pub(crate) fn has_answers(&self) -> bool {
        !self.answers.is_empty()
    }

    /// Sends the answers.
    pub(crate) fn send_answers(&mut self) {
        for request in self.answers.drain(..) {
            // Who asked may have given up.
            let _ = request.reply.send(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use netpol_compile::Compiler;
    use netpol_model::{Change, ObjectName};
    use tokio::sync::oneshot;

    fn policy(name: &str) -> Change {
        Change::PolicyGone(ObjectName::new("shop", name))
    }

    #[test]
    fn a_wait_is_for_what_was_read_before_it_and_for_nothing_later() {
        let mut compilation = Compilation::new(Compiler::new());
        let mut waits = Waits::default();
        let (reply, mut answer) = oneshot::channel();
        waits.add(2, WaitRequest { reply });
        compilation.add(vec![policy("before")]);
        assert!(!waits.pass(1, &compilation) && !waits.has_passed());
        assert!(waits.pass(2, &compilation) && waits.has_passed());
        waits.update(&mut compilation, false);
        assert!(!waits.has_answers(), "it has not had its turn");
        drop(compilation.next_plan());
        compilation.add(vec![policy("after")]);
        waits.update(&mut compilation, true);
        assert!(!waits.has_answers() && waits.deadline().is_some(), "a pod has no interface");
        waits.update(&mut compilation, false);
        assert!(waits.has_answers() && answer.try_recv().is_err());
        waits.send_answers();
        assert_eq!(answer.try_recv(), Ok(()));
    }
}
