//! Keeps the list of interfaces current, on a thread of its own.
//!
//! The thread waits for events, for requests and for its own deadlines, looks, and publishes the
//! result if it differs. It lives in the network namespace of whoever started it and must never
//! leave it.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::events::{Changes, Events, Waker};
use super::scan::{Scanner, Scope};
use super::{Finding, Matching, Snapshot};

/// Pause before looking again at what is unfinished; it doubles from the first to the second.
const RETRY_FIRST: Duration = Duration::from_millis(20);
const RETRY_LAST: Duration = Duration::from_secs(1);
/// Least pause between looks: changes come in groups (a veth is made, moved, renamed, brought up).
const COALESCE: Duration = Duration::from_millis(3);

/// Where to look and how often.
#[derive(Debug, Clone)]
pub struct Options {
    /// The directory in which the container runtime names namespaces. It need not exist yet.
    pub netns_dir: PathBuf,
    /// How often everything is looked at again without a reason.
    pub period: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { netns_dir: PathBuf::from("/run/netns"), period: Duration::from_secs(10) }
    }
}

/// A running discovery. Ends when dropped.
#[derive(Debug)]
pub struct Watcher {
    shared: Arc<Shared>,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    thread: Option<JoinHandle<()>>,
}

impl Watcher {
    /// Starts discovery in the network namespace of the calling thread. Has taken its first look
    /// when it returns, which takes some milliseconds.
    pub fn spawn(options: Options) -> io::Result<Self> {
        let (events, problems) = Events::subscribe(&options.netns_dir)?;
        Self::spawn_with(options, events, problems)
    }

    /// Starts discovery with these sources of events.
    fn spawn_with(options: Options, events: Events, problems: Vec<String>) -> io::Result<Self> {
        let shared = Arc::new(Shared { waker: Waker::new()?, requests: Mutex::default() });
        let (sender, snapshots) = watch::channel(Arc::default());
        let mut state = State {
            scanner: Scanner::new(options.netns_dir)?,
            events,
            problems,
            sender,
            period: options.period,
            next_thorough: Instant::now() + options.period,
            not_before: Instant::now(),
            retry: Retry::default(),
            attention: Attention::default(),
            n_filter_losses: 0,
        };
        // Events began before this look, so nothing falls between.
        state.look(&Changes::default(), Scope { everything: true, ..Scope::default() });
        let thread = thread::Builder::new().name("endpoints".to_owned()).spawn({
            let shared = Arc::clone(&shared);
            move || state.run(&shared)
        })?;
        Ok(Self { shared, snapshots, thread: Some(thread) })
    }

    /// Snapshots from now on. The current one is complete.
    pub fn snapshots(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.snapshots.clone()
    }

    /// Looks again soon: for the links, and for the addresses of interfaces without a pod. To be
    /// called when a pod of this node came or changed.
    pub fn rescan(&self) {
        self.request(|requests| requests.rescan = true);
    }

    /// Says what the last snapshot was good for. While it leaves an interface without a pod, or a
    /// pod without an interface, discovery keeps looking, first often and then once a second.
    pub fn report(&self, matching: &Matching) {
        let attention = Attention::of(matching);
        self.request(|requests| requests.attention = Some(attention));
    }

    fn request(&self, change: impl FnOnce(&mut Requests)) {
        change(&mut self.shared.requests());
        self.shared.waker.wake();
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.request(|requests| requests.stop = true);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("The endpoint discovery thread had panicked");
        }
    }
}

/// What the thread and its owner share.
#[derive(Debug)]
struct Shared {
    waker: Waker,
    requests: Mutex<Requests>,
}

impl Shared {
    fn requests(&self) -> MutexGuard<'_, Requests> {
        // Requests are set field by field, so a panic cannot have left them half-way.
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the owner wants.
#[derive(Debug, Default)]
struct Requests {
    stop: bool,
    rescan: bool,
    attention: Option<Attention>,
}

/// What the owner could not make sense of.
#[derive(Debug, Default, PartialEq, Eq)]
struct Attention {
    /// Interfaces without a pod, or with several that they may be.
    interfaces: BTreeSet<u32>,
    /// Some pod has no interface.
    pods: bool,
}

impl Attention {
    fn of(matching: &Matching) -> Self {
        let mut attention = Self::default();
        for finding in &matching.findings {
            match finding {
                Finding::InterfaceWithoutPod { ifindex, .. }
                | Finding::Undecided { ifindex, .. } => {
                    attention.interfaces.insert(*ifindex);
                }
                Finding::PodWithoutInterface { .. } => attention.pods = true,
                _ => {}
            }
        }
        attention
    }
}

/// When to look again at what is unfinished.
#[derive(Debug, Default)]
struct Retry {
    unfinished: BTreeSet<(u32, u64)>,
    pause: Duration,
    at: Option<Instant>,
}

impl Retry {
    /// After a look that left `unfinished`; `urgent` starts from the shortest pause.
    fn plan(&mut self, unfinished: BTreeSet<(u32, u64)>, attention: &Attention, urgent: bool) {
        let now = Instant::now();
        let is_idle = unfinished.is_empty() && *attention == Attention::default();
        if is_idle {
            self.at = None;
        } else if urgent || self.at.is_none() || !unfinished.is_subset(&self.unfinished) {
            self.pause = RETRY_FIRST;
            self.at = Some(now + self.pause);
        } else if self.is_due() {
            self.pause = (self.pause * 2).min(RETRY_LAST);
            self.at = Some(now + self.pause);
        }
        self.unfinished = unfinished;
    }

    fn is_due(&self) -> bool {
        self.at.is_some_and(|at| at <= Instant::now())
    }

    /// Whether something changed recently enough for a costly look to be worth it.
    fn is_young(&self) -> bool {
        self.pause < RETRY_LAST
    }
}

/// What the thread owns.
struct State {
    scanner: Scanner,
    events: Events,
    /// Problems since the start.
    problems: Vec<String>,
    sender: watch::Sender<Arc<Snapshot>>,
    period: Duration,
    next_thorough: Instant,
    /// When the next look may begin.
    not_before: Instant,
    retry: Retry,
    attention: Attention,
    n_filter_losses: u64,
}

impl State {
    fn run(mut self, shared: &Shared) {
        loop {
            if let Err(error) = self.events.wait(&shared.waker, self.pause()) {
                tracing::error!(%error, "Cannot wait for events about interfaces, polling");
                thread::sleep(RETRY_LAST);
            }
            thread::sleep(self.not_before.saturating_duration_since(Instant::now()));
            shared.waker.reset();
            let requests = std::mem::take(&mut *shared.requests());
            if requests.stop {
                return;
            }
            let mut changes = Changes::default();
            self.events.drain(&mut changes);
            self.n_filter_losses += u64::from(changes.filters || changes.lost);
            let scope = self.scope(requests);
            self.look(&changes, scope);
        }
    }

    /// Until the next deadline.
    fn pause(&self) -> Duration {
        let next = self.retry.at.map_or(self.next_thorough, |at| at.min(self.next_thorough));
        next.saturating_duration_since(Instant::now())
    }

    /// What to look at beside what events say.
    fn scope(&mut self, requests: Requests) -> Scope {
        let mut urgent = requests.rescan;
        if let Some(attention) = requests.attention
            && attention != self.attention
        {
            self.attention = attention;
            urgent = true;
        }
        if urgent {
            self.retry.at = None;
        }
        let everything = self.next_thorough <= Instant::now();
        let is_due = urgent || self.retry.is_due();
        Scope {
            links: requests.rescan || is_due && self.attention.pods,
            namespaces: is_due && self.retry.is_young(),
            everything,
            peers: if is_due { self.attention.interfaces.clone() } else { BTreeSet::new() },
        }
    }

    fn look(&mut self, changes: &Changes, scope: Scope) {
        self.scanner.scan(changes, &scope);
        self.retry.plan(self.scanner.unfinished(), &self.attention, changes.directory);
        if scope.everything {
            self.next_thorough = Instant::now() + self.period;
            self.events.refresh();
        }
        self.publish();
        self.not_before = Instant::now() + COALESCE;
    }

    fn publish(&self) {
        let problem = self.scanner.problem().map(str::to_owned);
        let snapshot = Snapshot {
            interfaces: self.scanner.interfaces(),
            exits: self.scanner.exits(),
            own_addresses: self.scanner.own_addresses(),
            n_filter_losses: self.n_filter_losses,
            problems: self.problems.iter().cloned().chain(problem).collect(),
        };
        self.sender.send_if_modified(|current| {
            let is_new = **current != snapshot;
            if is_new {
                *current = Arc::new(snapshot);
            }
            is_new
        });
    }
}

#[cfg(test)]
mod tests;
