//! A small HTTP server that speaks list and watch as a Kubernetes API server does: pages,
//! bookmarks, expired versions, and the ways in which it can fail. Must never know what its
//! client does with the answers.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use serde_json::{Value, json};
use tokio::sync::watch;

type Params = HashMap<String, String>;

/// One request as the server saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub resource: String,
    pub watch: bool,
    /// A list without a page size: a barrier's.
    pub whole: bool,
    /// A list of one object: how far is the server?
    pub one: bool,
    pub version: String,
    pub continued: bool,
}

#[derive(Default)]
struct Inner {
    version: u64,
    objects: BTreeMap<(String, String), Value>,
    events: Vec<(u64, String, Value)>,
    /// Watches from an older version than this have expired.
    oldest: u64,
    /// Whether an expired watch is refused by the HTTP status instead of by an event.
    expired_as_status: bool,
    /// Expire so many continue tokens.
    expired_pages: usize,
    /// Answer requests for these resources with this status: lists, watches, whole lists.
    refused: HashMap<(String, &'static str), u16>,
    /// Deliver no events of these resources.
    held: Vec<String>,
    /// Deliver broken JSON instead of the next event of this resource.
    garbled: Option<String>,
    seen: Vec<Seen>,
    /// Watches begun before this count are closed.
    closed: u64,
}

/// The server.
#[derive(Clone)]
pub struct Server {
    inner: Arc<Mutex<Inner>>,
    changed: watch::Sender<u64>,
    pub url: String,
}

impl Server {
    /// Serves on loopback until the test's runtime ends.
    pub async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (changed, _) = watch::channel(0);
        let inner = Arc::new(Mutex::new(Inner { version: 100, ..Inner::default() }));
        let server = Self { inner, changed, url };
        let app = Router::new()
            .route("/api/v1/{resource}", get(answer))
            .route("/apis/networking.k8s.io/v1/{resource}", get(answer))
            .route("/apis/discovery.k8s.io/v1/{resource}", get(answer))
            .with_state(server.clone());
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        server
    }

    /// A client of this server.
    pub fn client(&self) -> kube::Client {
        kube::Config::new(self.url.parse().unwrap()).try_into().unwrap()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    fn notify(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    /// Creates or replaces an object.
    pub fn put(&self, resource: &str, mut object: Value) {
        let mut inner = self.lock();
        inner.version += 1;
        let version = inner.version;
        object["metadata"]["resourceVersion"] = version.to_string().into();
        let name = object["metadata"]["namespace"].as_str().unwrap_or_default().to_owned()
            + "/"
            + object["metadata"]["name"].as_str().unwrap();
        let before = inner.objects.insert((resource.into(), name), object.clone());
        let kind = if before.is_some() { "MODIFIED" } else { "ADDED" };
        inner.events.push((version, resource.into(), json!({"type": kind, "object": object})));
        drop(inner);
        self.notify();
    }

    /// Deletes `namespace/name` (`/name` without a namespace).
    pub fn delete(&self, resource: &str, name: &str) {
        let mut inner = self.lock();
        inner.version += 1;
        let version = inner.version;
        let mut object = inner.objects.remove(&(resource.into(), name.into())).unwrap();
        object["metadata"]["resourceVersion"] = version.to_string().into();
        inner.events.push((version, resource.into(), json!({"type": "DELETED", "object": object})));
        drop(inner);
        self.notify();
    }

    /// Sends a bookmark of the current version (moved on by one) and returns that version.
    pub fn bookmark(&self, resource: &str) -> String {
        let mut inner = self.lock();
        inner.version += 1;
        let version = inner.version;
        let object = json!({"kind": "X", "apiVersion": "v1",
            "metadata": {"resourceVersion": version.to_string()}});
        let event = json!({"type": "BOOKMARK", "object": object});
        inner.events.push((version, resource.into(), event));
        drop(inner);
        self.notify();
        version.to_string()
    }

    /// Closes all watches.
    pub fn disconnect(&self) {
        let mut inner = self.lock();
        inner.closed = inner.seen.len() as u64;
        drop(inner);
        self.notify();
    }

    /// Forgets all events: watches that were to go on from before must list anew.
    pub fn compact(&self, as_status: bool) {
        let mut inner = self.lock();
        inner.version += 1;
        inner.oldest = inner.version;
        inner.expired_as_status = as_status;
        inner.events.clear();
    }

    /// Expires the next continue token.
    pub fn expire_page(&self) {
        self.lock().expired_pages += 1;
    }

    /// Refuses (or, with 200, no longer refuses) `list`, `watch` or `whole` requests.
    pub fn refuse(&self, resource: &str, what: &'static str, status: u16) {
        self.lock().refused.insert((resource.into(), what), status);
    }

    /// Delivers no more events of a resource, until released.
    pub fn hold(&self, resource: &str) {
        self.lock().held.push(resource.into());
    }

    /// Delivers something else than JSON instead of the next event of a resource.
    pub fn garble(&self, resource: &str) {
        self.lock().garbled = Some(resource.into());
    }

    /// Delivers all events again.
    pub fn release(&self) {
        self.lock().held.clear();
        self.notify();
    }

    /// The requests for a resource so far.
    pub fn seen(&self, resource: &str) -> Vec<Seen> {
        self.lock().seen.iter().filter(|seen| seen.resource == resource).cloned().collect()
    }

    /// Waits until the requests so far satisfy `done`.
    pub async fn until(&self, resource: &str, mut done: impl FnMut(&[Seen]) -> bool) {
        let mut changed = self.changed.subscribe();
        while !done(&self.seen(resource)) {
            changed.changed().await.unwrap();
        }
    }
}

fn status(code: u16, message: &str) -> Value {
    let reason = match code {
        403 => "Forbidden",
        410 => "Expired",
        _ => "InternalError",
    };
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code})
}

fn failure(code: u16, message: &str) -> Response {
    let code_ = StatusCode::from_u16(code).unwrap();
    (code_, axum::Json(status(code, message))).into_response()
}

async fn answer(
    State(server): State<Server>,
    Path(resource): Path<String>,
    Query(params): Query<Params>,
) -> Response {
    let text = |key: &str| params.get(key).cloned().unwrap_or_default();
    let watching = text("watch") == "true";
    let seen = Seen {
        resource: resource.clone(),
        watch: watching,
        whole: !watching && !params.contains_key("limit"),
        one: text("limit") == "1",
        version: text("resourceVersion"),
        continued: params.contains_key("continue"),
    };
    let what = match (watching, seen.whole) {
        (true, _) => "watch",
        (false, true) => "whole",
        (false, false) => "list",
    };
    let (refused, number) = {
        let mut inner = server.lock();
        inner.seen.push(seen);
        let refused = inner.refused.get(&(resource.clone(), what)).copied();
        (refused, inner.seen.len() as u64)
    };
    server.notify();
    match refused.filter(|code| *code != 200) {
        Some(0) => "{\"broken".into_response(),
        Some(code) => failure(code, &format!("{resource} is forbidden: User \"x\" cannot {what}")),
        None if watching => watch_response(server, resource, &text("resourceVersion"), number),
        None => list_response(&server, &resource, &params),
    }
}

fn list_response(server: &Server, resource: &str, params: &Params) -> Response {
    let mut inner = server.lock();
    let (mut version, mut offset) = (inner.version, 0);
    if let Some(token) = params.get("continue") {
        if inner.expired_pages > 0 {
            inner.expired_pages -= 1;
            return failure(410, "The provided continue parameter is too old");
        }
        let (at, from) = token.split_once(':').unwrap();
        (version, offset) = (at.parse().unwrap(), from.parse().unwrap());
    }
    let node = params.get("fieldSelector").map(|s| s.strip_prefix("spec.nodeName=").unwrap());
    let all = inner.objects.iter().filter(|((of, _), _)| of == resource);
    let all: Vec<&Value> = all
        .map(|(_, object)| object)
        .filter(|object| node.is_none_or(|node| object["spec"]["nodeName"] == node))
        .collect();
    let limit = params.get("limit").map_or(usize::MAX, |limit| limit.parse().unwrap());
    let items: Vec<&Value> = all.iter().skip(offset).take(limit).copied().collect();
    let mut metadata = json!({"resourceVersion": version.to_string()});
    if offset + items.len() < all.len() {
        metadata["continue"] = format!("{version}:{}", offset + items.len()).into();
    }
    axum::Json(json!({"kind": "List", "apiVersion": "v1", "metadata": metadata, "items": items}))
        .into_response()
}

fn watch_response(server: Server, resource: String, version: &str, number: u64) -> Response {
    let version: u64 = version.parse().unwrap();
    {
        let inner = server.lock();
        if version < inner.oldest && inner.expired_as_status {
            return failure(410, "too old resource version");
        }
    }
    let changed = server.changed.subscribe();
    let state = (server, changed, version, false);
    let stream = futures::stream::unfold(state, move |(server, mut changed, mut at, over)| {
        let resource = resource.clone();
        async move {
            if over {
                return None;
            }
            loop {
                changed.borrow_and_update();
                let (mut text, mut over) = (String::new(), false);
                {
                    let mut inner = server.lock();
                    if inner.closed >= number {
                        return None;
                    }
                    if at < inner.oldest {
                        let error = status(410, "too old resource version");
                        text = format!("{}\n", json!({"type": "ERROR", "object": error}));
                        over = true;
                    } else if !inner.held.contains(&resource) {
                        let since = at;
                        let new =
                            inner.events.iter().filter(|(v, of, _)| *v > since && *of == resource);
                        for (version, _, event) in new {
                            text += &format!("{event}\n");
                            at = *version;
                        }
                        if !text.is_empty() && inner.garbled.as_ref() == Some(&resource) {
                            inner.garbled = None;
                            text = "{\"type\": !}\n".to_owned();
                        }
                    }
                }
                if !text.is_empty() {
                    let chunk = Ok::<_, std::io::Error>(text);
                    return Some((chunk, (server, changed, at, over)));
                }
                changed.changed().await.unwrap();
            }
        }
    });
    Body::from_stream(stream).into_response()
}
