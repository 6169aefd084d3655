//! An API server for one agent: lists in pages, watches with bookmarks, of a synthetic cluster,
//! written out as they are asked for. Must never take an agent for one that follows its watches
//! when it has listed anew: then its figures would be another thing's.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use netpol_isolation::netns::Netns;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::time::Instant;

use super::objects::{Kind, Objects};

type Params = HashMap<String, String>;

/// How far an agent may be behind before who sends has to wait.
const LAG: usize = 4_096;
/// How many events a watch gets in one piece at most.
const CHUNK: usize = 256;
/// How often a watch hears of the newest version when nothing happens.
const BOOKMARK: Duration = Duration::from_secs(30);
/// A hang guard for an agent that reads nothing any more.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running server. Ends when dropped.
pub struct Server {
    shared: Arc<Shared>,
    runtime: Option<Runtime>,
    address: SocketAddr,
}

struct Shared {
    objects: Objects,
    version: AtomicU64,
    logs: [Mutex<Log>; Kind::ALL.len()],
    changed: watch::Sender<u64>,
}

/// What has happened to objects of one kind.
#[derive(Default)]
struct Log {
    /// With versions; those that the agent has been sent may be gone from the front.
    events: VecDeque<(u64, Arc<str>)>,
    /// How many are gone.
    n_forgotten: usize,
    /// How many there were.
    n_sent: usize,
    /// Lists begun.
    n_lists: usize,
    /// Bytes of all lists.
    n_bytes: u64,
}

impl Server {
    /// Serves these objects on the loopback interface of a network namespace.
    pub fn start(node: &Netns, objects: Objects) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("api-server")
            .enable_all()
            .build()
            .context("start the API server's runtime")?;
        let listener = node.run(|| std::net::TcpListener::bind("127.0.0.1:0"))??;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let (changed, _) = watch::channel(0);
        let shared = Arc::new(Shared {
            objects,
            version: AtomicU64::new(1_000),
            logs: Default::default(),
            changed,
        });
        let app = Router::new()
            .route("/api/v1/{resource}", get(answer))
            .route("/apis/networking.k8s.io/v1/{resource}", get(answer))
            .route("/apis/discovery.k8s.io/v1/{resource}", get(answer))
            .with_state(shared.clone());
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener)?;
            axum::serve(listener, app).await
        });
        Ok(Self { shared, runtime: Some(runtime), address })
    }

    /// What a kubeconfig says to reach it.
    pub fn kubeconfig(&self) -> String {
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: bench\n\
             clusters: [{{name: bench, cluster: {{server: \"http://{}\"}}}}]\n\
             contexts: [{{name: bench, context: {{cluster: bench, user: bench}}}}]\n\
             users: [{{name: bench, user: {{}}}}]\n",
            self.address
        )
    }

    /// The objects of the beginning.
    pub fn objects(&self) -> &Objects {
        &self.shared.objects
    }

    /// Sends an event of an object, which `line` writes with the resourceVersion that it gets.
    /// Waits while the agent is far behind.
    pub fn send(&self, kind: Kind, line: impl FnOnce(u64) -> String) -> Result<()> {
        let begun = std::time::Instant::now();
        while self.shared.log(kind).events.len() >= LAG {
            ensure!(begun.elapsed() < PATIENCE, "the agent reads no events of {kind:?} any more");
            std::thread::sleep(Duration::from_micros(200));
        }
        {
            let mut log = self.shared.log(kind);
            let version = self.shared.version.fetch_add(1, Ordering::SeqCst) + 1;
            log.events.push_back((version, line(version).into()));
            log.n_sent += 1;
        }
        self.shared.changed.send_modify(|count| *count += 1);
        Ok(())
    }

    /// How many events of a kind were sent.
    pub fn n_sent(&self, kind: Kind) -> usize {
        self.shared.log(kind).n_sent
    }

    /// Insists that the agent has listed each kind once. Returns how many bytes the lists had.
    pub fn check(&self) -> Result<u64> {
        let mut n_bytes = 0;
        for kind in Kind::ALL {
            let log = self.shared.log(kind);
            let n_lists = log.n_lists;
            ensure!(n_lists == 1, "the agent has listed {kind:?}s {n_lists} times instead of once");
            n_bytes += log.n_bytes;
        }
        Ok(n_bytes)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(1));
        }
    }
}

impl Shared {
    fn log(&self, kind: Kind) -> MutexGuard<'_, Log> {
        // Whoever panicked with it has not left a half-written event.
        self.logs[kind as usize].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn answer(
    State(shared): State<Arc<Shared>>,
    Path(resource): Path<String>,
    Query(params): Query<Params>,
) -> Response {
    let Some(kind) = Kind::ALL.into_iter().find(|kind| kind.resource() == resource) else {
        return refusal(StatusCode::NOT_FOUND, &format!("there is no resource {resource}"));
    };
    let is_watch = params.get("watch").is_some_and(|watch| watch == "true" || watch == "1");
    let is_other = params.keys().any(|key| key == "fieldSelector" || key == "labelSelector");
    match (is_watch, is_other) {
        (_, true) => refusal(StatusCode::BAD_REQUEST, "no selectors are served here"),
        (true, false) => follow(shared, kind, &params),
        (false, false) => list(&shared, kind, &params),
    }
}

fn refusal(code: StatusCode, message: &str) -> Response {
    let status = serde_json::json!({"kind": "Status", "apiVersion": "v1", "metadata": {},
        "status": "Failure", "message": message, "code": code.as_u16()});
    (code, axum::Json(status)).into_response()
}

fn number<T: std::str::FromStr>(params: &Params, key: &str) -> Option<T> {
    params.get(key)?.parse().ok()
}

fn list(shared: &Shared, kind: Kind, params: &Params) -> Response {
    let total = shared.objects.len(kind);
    let begin = number(params, "continue").unwrap_or(0).min(total);
    let end = number(params, "limit").map_or(total, |limit: usize| total.min(begin + limit));
    let version = shared.version.load(Ordering::SeqCst);
    let next = if end < total { format!(r#","continue":"{end}""#) } else { String::new() };
    let mut text = format!(
        r#"{{"kind":"List","apiVersion":"v1","metadata":{{"resourceVersion":"{version}"{next}}},"items":["#
    );
    for index in begin..end {
        if index > begin {
            text.push(',');
        }
        // Objects that were created one after another, all before the list.
        shared.objects.write(kind, index, 1 + index as u64 % version, &mut text);
    }
    text += "]}";
    let mut log = shared.log(kind);
    log.n_lists += usize::from(begin == 0);
    log.n_bytes += text.len() as u64;
    ([(header::CONTENT_TYPE, "application/json")], text).into_response()
}

fn follow(shared: Arc<Shared>, kind: Kind, params: &Params) -> Response {
    let Some(since) = number::<u64>(params, "resourceVersion") else {
        return refusal(StatusCode::BAD_REQUEST, "a watch goes on from a resourceVersion");
    };
    let limit = Duration::from_secs(number(params, "timeoutSeconds").unwrap_or(290));
    let cursor = {
        let log = shared.log(kind);
        let old = log.events.iter().take_while(|(version, _)| *version <= since).count();
        log.n_forgotten + old
    };
    let changed = shared.changed.subscribe();
    let begun = Instant::now();
    let state = (shared, changed, cursor, begun + limit, begun + BOOKMARK);
    let stream = futures::stream::unfold(
        state,
        move |(shared, mut changed, mut cursor, end, due)| async move {
            loop {
                changed.borrow_and_update();
                let text = take(&shared, kind, &mut cursor);
                if let Some(text) = text {
                    return Some((
                        Ok::<_, std::io::Error>(text),
                        (shared, changed, cursor, end, due),
                    ));
                }
                // Due whatever happens to objects of other kinds meanwhile.
                let woken = tokio::time::timeout_at(due.min(end), changed.changed()).await;
                let now = Instant::now();
                if now >= end || matches!(woken, Ok(Err(_))) {
                    return None;
                }
                if now >= due {
                    let version = shared.version.load(Ordering::SeqCst);
                    let text = format!(
                        "{{\"type\":\"BOOKMARK\",\"object\":{{\"kind\":\"{}\",\"apiVersion\":\"{}\",\
                     \"metadata\":{{\"resourceVersion\":\"{version}\"}}}}}}\n",
                        kind.name(),
                        kind.api_version(),
                    );
                    return Some((Ok(text), (shared, changed, cursor, end, now + BOOKMARK)));
                }
            }
        },
    );
    ([(header::CONTENT_TYPE, "application/json")], Body::from_stream(stream)).into_response()
}

/// The next events of a watch, which then are gone.
fn take(shared: &Shared, kind: Kind, cursor: &mut usize) -> Option<String> {
    let mut log = shared.log(kind);
    let begin = cursor.checked_sub(log.n_forgotten)?;
    let text: String = log.events.iter().skip(begin).take(CHUNK).map(|(_, line)| &**line).collect();
    if text.is_empty() {
        return None;
    }
    let n_new = (log.events.len() - begin).min(CHUNK);
    *cursor += n_new;
    log.events.drain(..begin + n_new);
    log.n_forgotten = *cursor;
    Some(text)
}
