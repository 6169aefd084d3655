//! The one task that owns the agent's state: takes the next event, whatever it is of, and has its
//! consequences put in force a part at a time. Must never let one event wait for another for longer
//! than such a part takes.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tokio::signal::unix::Signal;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep_until};

use super::core::Core;
use super::serve::{PluginRequest, Published, QuestionRequest, WaitRequest};
use netpol_api::installation::Report;
use netpol_datapath::lock::Lock;
use netpol_endpoint::Snapshot;
use netpol_source::Event;

/// How often attachments are compared with the kernel's, failed writes are tried again, and
/// garbage is removed.
const HOUSEKEEPING: Duration = Duration::from_secs(5);
/// How long what was read is handed on, and how long it is compiled and written, before anything else
/// is looked at. Together with one slice more than the second, and what is waited for in the kernel,
/// that is what one event waits for another.
const READING: Duration = Duration::from_millis(20);
const WORKING: Duration = Duration::from_millis(20);
/// Least pause between two writings of the state file, and how many times as long as the last one
/// took it is: with much to write and many changes it may not be most of what the agent does. Events
/// wait for it, so it is more if what people read does not get old by that.
const PUBLISH: Duration = Duration::from_millis(50);
const PUBLISH_SHARE: u32 = 20;
const RARE_SHARE: u32 = 100;
const RARE_LIMIT: Duration = Duration::from_millis(300);

/// Where events come from.
pub(crate) struct Inputs {
    /// SIGTERM.
    pub(crate) terminate: Signal,
    /// SIGINT.
    pub(crate) interrupt: Signal,
    /// The node's interfaces.
    pub(crate) snapshots: watch::Receiver<Arc<Snapshot>>,
    /// Who waits for something to be in force.
    pub(crate) waits: mpsc::Receiver<WaitRequest>,
    /// Questions to the agent itself.
    pub(crate) questions: mpsc::Receiver<QuestionRequest>,
    /// The CNI plugin.
    pub(crate) plugin: mpsc::Receiver<PluginRequest>,
    /// Why a server has ended.
    pub(crate) failed: mpsc::Receiver<anyhow::Error>,
    /// What there is to say about the installation of the CNI plugin, if it is the agent's to do.
    pub(crate) installations: Option<watch::Receiver<Report>>,
    /// The source.
    pub(crate) events: mpsc::Receiver<Event>,
}

/// The agent, started.
pub(crate) struct EventLoop {
    core: Core,
    inputs: Inputs,
    published: watch::Sender<Arc<Published>>,
    housekeeping: Interval,
    next_publish: Instant,
    /// The run directory is this agent's until everything else is over.
    _lock: Lock,
}

impl EventLoop {
    /// Puts it together.
    pub(crate) fn new(
        core: Core,
        inputs: Inputs,
        published: watch::Sender<Arc<Published>>,
        lock: Lock,
    ) -> Self {
        let mut housekeeping = interval(HOUSEKEEPING);
        housekeeping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let next_publish = Instant::now();
        Self { core, inputs, published, housekeeping, next_publish, _lock: lock }
    }

    /// Runs until SIGTERM or SIGINT.
    pub(crate) async fn run(mut self) -> Result<()> {
        while self.handle_next().await? {
            self.handle_read();
            self.core.work(WORKING);
            self.core.answer_admissions();
            if self.core.has_answers() {
                self.core.write_state_for_answers(&self.published);
                self.core.send_answers();
            }
        }
        tracing::info!("stopping; what is in force stays in force");
        self.core.stop(&self.published);
        Ok(())
    }

    /// Waits for the next event and handles it. Returns whether the agent is to go on.
    async fn handle_next(&mut self) -> Result<bool> {
        let Self { core, inputs, .. } = self;
        tokio::select! {
            biased;
            _ = inputs.terminate.recv() => return Ok(false),
            _ = inputs.interrupt.recv() => return Ok(false),
            changed = inputs.snapshots.changed() => {
                changed.context("endpoint discovery has ended unexpectedly")?;
                let snapshot = inputs.snapshots.borrow_and_update().clone();
                core.handle_snapshot(snapshot);
            }
            Some(request) = inputs.waits.recv() => core.handle_wait(request),
            Some(request) = inputs.plugin.recv() => core.handle_plugin(request),
            Some(request) = inputs.questions.recv() => core.handle_question(request),
            Some(error) = inputs.failed.recv() => return Err(error),
            report = next_installation(&mut inputs.installations) => core.set_installation(report),
            _ = self.housekeeping.tick() => core.housekeeping(),
            // One takes a while, so everything else goes before.
            () = std::future::ready(()), if core.has_pending_guards() => core.update_next_guard(),
            () = sleep_until(core.next_deadline()), if core.has_deadline() => core.handle_deadline(),
            () = sleep_until(self.next_publish), if core.is_dirty() => {
                let begun = Instant::now();
                core.write_state(&self.published);
                self.next_publish = Instant::now() + pause_after(begun.elapsed());
            }
            // There may always be something, and what there is is read below anyway.
            event = inputs.events.recv() => match event {
                Some(event) => core.handle_source(event),
                None => bail!("the source of objects has ended unexpectedly; enforcement stays as it is"),
            },
            // Last, so that everything else is looked at between two parts of it.
            () = std::future::ready(()), if core.has_work() => {}
        }
        Ok(true)
    }

    /// All that has been read, so that nobody's edit waits behind somebody else's many.
    fn handle_read(&mut self) {
        let Self { core, inputs, .. } = self;
        let begun = Instant::now();
        while begun.elapsed() < READING
            && let Ok(event) = inputs.events.try_recv()
        {
            core.handle_source(event);
        }
        if inputs.snapshots.has_changed().unwrap_or_default() {
            let snapshot = inputs.snapshots.borrow_and_update().clone();
            core.handle_snapshot(snapshot);
        }
    }
}

/// How long the state file is not written after that took so long.
fn pause_after(writing: Duration) -> Duration {
    let rare = (writing * RARE_SHARE).min(RARE_LIMIT);
    PUBLISH.max(rare).max(writing * PUBLISH_SHARE)
}

/// The next thing that there is to say about the installation of the CNI plugin.
async fn next_installation(reports: &mut Option<watch::Receiver<Report>>) -> Report {
    if let Some(receiver) = reports {
        if receiver.changed().await.is_ok() {
            return receiver.borrow_and_update().clone();
        }
        *reports = None;
    }
    std::future::pending().await
}
