//! The source behind a kubeconfig or a service account: watches of the API server, folded
//! straight into changes. Must never hold whole objects, and never take "cannot ask" for "is
//! gone": only a complete list or a delete event removes anything.

use std::collections::{BTreeMap, VecDeque};
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::stream::{BoxStream, SelectAll};
use futures::{Stream, StreamExt as _};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client};
use tokio::sync::{Notify, mpsc};

use super::slim::{
    GuardedPolicy, SlimEndpointSlice, SlimNamespace, SlimNode, SlimPod, SlimService,
};
use super::{Event, Handle, Watches};

mod barrier;
mod connect;
mod object;
mod observed;
mod resume;
mod served;
mod tracker;
mod trouble;

use barrier::Barrier;
pub use connect::{connect, connect_with};
use object::{Kind, N_KINDS, WatchedObject};
use tracker::Tracker;

/// How long a barrier may take before it is given up.
const BARRIER_LIMIT: Duration = Duration::from_secs(30);
/// How many changes are sent together at most.
const BATCH: usize = 512;

/// Watches the cluster behind `client`, for the agent of node `node_name`. Needs a tokio runtime.
pub fn spawn_kubernetes(
    client: Client,
    node_name: impl AsRef<str>,
    tx: mpsc::Sender<Event>,
) -> Handle {
    spawn_with_limit(client, node_name.as_ref(), tx, BARRIER_LIMIT)
}

/// As [`spawn_kubernetes`], with another time limit for barriers.
pub fn spawn_with_limit(
    client: Client,
    node_name: &str,
    tx: mpsc::Sender<Event>,
    barrier_limit: Duration,
) -> Handle {
    let (asked, bell) = (Arc::new(AtomicU64::new(0)), Arc::new(Notify::new()));
    let watches = Watches::new(Kind::ALL.map(Kind::resource));
    let source = Source {
        watches: watches.clone(),
        trackers: Kind::ALL.map(|kind| Tracker::new(kind, node_name)),
        barrier: Barrier::new(client.clone(), node_name, barrier_limit),
        asked: asked.clone(),
        out: Out { tx, events: VecDeque::new(), problems: BTreeMap::new() },
        synced: false,
    };
    let task = tokio::spawn(source.run(client, bell.clone()));
    Handle::new(asked, move || bell.notify_one(), move || task.abort()).with_watches(watches)
}

/// A watch event of any kind of object.
enum Input {
    Init,
    InitApply(WatchedObject),
    InitDone,
    Apply(WatchedObject),
    Delete(WatchedObject),
    /// The API server has accepted a watch: whatever was wrong with it is over.
    Watching,
    Failed(watcher::Error),
    /// The API server has no such kind.
    Absent {
        /// It has said so for a while.
        is_sure: bool,
    },
    /// The API server has the kind only in versions that are not understood.
    NotUnderstood {
        /// These.
        versions: Vec<String>,
    },
}

impl Input {
    fn of<K: Into<WatchedObject>>(event: watcher::Result<watcher::Event<K>>) -> Self {
        match event {
            Ok(watcher::Event::Init) => Self::Init,
            Ok(watcher::Event::InitApply(object)) => Self::InitApply(object.into()),
            Ok(watcher::Event::InitDone) => Self::InitDone,
            Ok(watcher::Event::Apply(object)) => Self::Apply(object.into()),
            Ok(watcher::Event::Delete(object)) => Self::Delete(object.into()),
            Err(error) => Self::Failed(error),
        }
    }
}

/// What goes to the agent: events in order, problems only when they are news.
struct Out {
    tx: mpsc::Sender<Event>,
    events: VecDeque<Event>,
    problems: BTreeMap<String, String>,
}

impl Out {
    fn change(&mut self, change: netpol_model::Change) {
        match self.events.back_mut() {
            Some(Event::Changes(changes)) if changes.len() < BATCH => changes.push(change),
            _ => self.events.push_back(Event::Changes(vec![change])),
        }
    }

    fn problem(&mut self, object: String, message: String) {
        if self.problems.get(&object) != Some(&message) {
            self.problems.insert(object.clone(), message.clone());
            self.events.push_back(Event::Problem { object, message });
        }
    }

    fn resolved(&mut self, object: &str) {
        if self.problems.remove(object).is_some() {
            self.events.push_back(Event::Resolved { object: object.to_owned() });
        }
    }

    /// Sends what has gathered. False if nobody listens any more.
    async fn flush(&mut self) -> bool {
        while let Some(event) = self.events.pop_front() {
            if self.tx.send(event).await.is_err() {
                return false;
            }
        }
        true
    }
}

struct Source {
    trackers: [Tracker; N_KINDS],
    barrier: Barrier,
    asked: Arc<AtomicU64>,
    out: Out,
    watches: Watches,
    synced: bool,
}

type Inputs = BoxStream<'static, (Kind, Input)>;

impl Source {
    async fn run(mut self, client: Client, bell: Arc<Notify>) {
        let (client, accepted) = observed::observe(client);
        let accepted = futures::stream::unfold(accepted, |mut accepted| async {
            let kind = accepted.recv().await?;
            Some(((kind, Input::Watching), accepted))
        });
        let watches = Kind::ALL.map(|kind| watch(kind, client.clone()));
        let mut all = SelectAll::new();
        all.extend(watches);
        all.push(accepted.boxed());
        let mut inputs = all.ready_chunks(BATCH);
        loop {
            if !self.out.flush().await {
                return;
            }
            tokio::select! {
                chunk = inputs.next() => {
                    for (kind, input) in chunk.into_iter().flatten() {
                        self.take(kind, input);
                    }
                }
                () = bell.notified() => {}
                () = self.barrier.progress() => {}
            }
            if !self.synced && self.trackers.iter().all(Tracker::is_synced) {
                self.synced = true;
                self.out.events.push_back(Event::Synced);
            }
            let asked = self.asked.load(Ordering::SeqCst);
            self.barrier.step(asked, &mut self.trackers, &mut self.out);
        }
    }

    fn take(&mut self, kind: Kind, input: Input) {
        let tracker = &mut self.trackers[kind as usize];
        let watch = format!("watch {}", kind.resource());
        let (mut is_list, mut is_event, mut is_error) = (false, false, false);
        match input {
            Input::Init => {
                is_list = true;
                tracker.list_begins();
            }
            Input::InitApply(seen) | Input::Apply(seen) => {
                is_event = true;
                tracker.exists(seen, &mut self.out);
            }
            Input::InitDone => tracker.list_ends(&mut self.out),
            Input::Delete(seen) => {
                is_event = true;
                tracker.is_gone(&seen, &mut self.out);
            }
            Input::Watching => self.out.resolved(&watch),
            Input::Absent { is_sure } => {
                self.out.resolved(&watch);
                tracker.is_absent(is_sure, &mut self.out);
            }
            Input::NotUnderstood { versions } => {
                is_error = true;
                tracker.is_denied();
                self.out.problem(watch, trouble::not_understood(kind, &versions));
            }
            Input::Failed(error) => {
                if kind.without().is_some() && trouble::is_forbidden(&error) {
                    tracker.is_refused();
                }
                if let Some(message) = trouble::explain(kind, &error, tracker.is_synced()) {
                    is_error = true;
                    self.out.problem(watch, message);
                }
            }
        }
        self.watches.update(kind as usize, |watch| {
            watch.is_synced = tracker.is_synced();
            watch.objects = tracker.len();
            watch.lists += u64::from(is_list);
            watch.events += u64::from(is_event);
            watch.errors += u64::from(is_error);
            if !is_list && !is_error {
                watch.heard = Some(Instant::now());
            }
        });
    }
}

/// All objects of a kind, for ever.
fn watch(kind: Kind, client: Client) -> Inputs {
    match kind {
        Kind::Namespace => watch_as::<SlimNamespace>(kind, client),
        Kind::Pod => watch_as::<SlimPod>(kind, client),
        Kind::Policy => watch_as::<GuardedPolicy>(kind, client),
        Kind::Service => watch_as::<SlimService>(kind, client),
        Kind::EndpointSlice => watch_as::<SlimEndpointSlice>(kind, client),
        Kind::Node => watch_as::<SlimNode>(kind, client),
        Kind::ClusterPolicy => served::watch(client),
    }
}

fn watch_as<K>(kind: Kind, client: Client) -> Inputs
where
    K: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + Send + 'static,
    K: serde::de::DeserializeOwned + Into<WatchedObject>,
{
    // Outside the watcher: what only a new list can mend, and it would not make.
    let rounds = futures::stream::unfold(false, move |is_again| {
        let client = client.clone();
        async move {
            if is_again {
                tokio::time::sleep(jitter()).await;
            }
            let stream = watcher(Api::<K>::all(client), watcher::Config::default());
            Some((until_new_list(stream.default_backoff()), true))
        }
    });
    rounds.flatten().map(move |event| (kind, Input::of(event))).boxed()
}

/// Ends right after an error that only a new list can mend: the watcher may have nothing more to
/// say for a long time.
fn until_new_list<K>(
    events: impl Stream<Item = watcher::Result<watcher::Event<K>>>,
) -> impl Stream<Item = watcher::Result<watcher::Event<K>>> {
    futures::stream::unfold(Some(Box::pin(events)), |events| async {
        let mut events = events?;
        let event = events.next().await?;
        let is_over = matches!(&event, Err(error) if trouble::needs_new_list(error));
        Some((event, (!is_over).then_some(events)))
    })
}

/// Between half a second and two and a half, so that not every agent lists at the same moment.
fn jitter() -> Duration {
    let random = RandomState::new().build_hasher().finish();
    Duration::from_millis(500 + random % 2000)
}
