//! HTTP on the agent's socket (status, state, waiting, questions) and on the metrics address (metrics and
//! health). Reads published states; must never touch the agent's own data.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use axum::Router;
use axum::extract::{Query, State as Shared};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use serde::Deserialize;
use serde_json::Value;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use super::options::Metrics;
use super::options::Options;
use super::view;
use netpol_api::counters::AgentCounters;
use netpol_api::questions::Question;
use netpol_api::sandbox::{Answer, CniRequest};
use netpol_api::state::{State, Status, socket_path};
use netpol_datapath::Maps;
use netpol_source::Watches;

/// A request that is answered when everything written before it is in force.
pub(crate) struct WaitRequest {
    /// Where the answer goes.
    pub(crate) reply: oneshot::Sender<()>,
}

/// A question to the agent itself.
pub(crate) struct QuestionRequest {
    /// What is asked.
    pub(crate) question: Question,
    /// Where the answer goes.
    pub(crate) reply: oneshot::Sender<Value>,
}

/// A request of the CNI plugin.
pub(crate) struct PluginRequest {
    /// What it is.
    pub(crate) request: CniRequest,
    /// Until when an answer is of use.
    pub(crate) deadline: Instant,
    /// Where the answer goes.
    pub(crate) reply: oneshot::Sender<Answer>,
}

/// Where the agent takes requests.
#[derive(Clone)]
pub(crate) struct Requests {
    /// Waits.
    pub(crate) waits: mpsc::Sender<WaitRequest>,
    /// Questions.
    pub(crate) questions: mpsc::Sender<QuestionRequest>,
    /// Those of the CNI plugin.
    pub(crate) plugin: mpsc::Sender<PluginRequest>,
}

/// What handlers see.
#[derive(Clone)]
struct Context {
    state: watch::Receiver<Arc<Published>>,
    requests: Requests,
    maps: Arc<Maps>,
    metrics: Metrics,
}

/// A state with the counters of its moment.
pub(crate) struct Published {
    /// The status of this moment.
    pub(crate) status: Status,
    /// The state, whose explanations may be of a while ago.
    pub(crate) state: Arc<State>,
    /// Everything is in force but what some pod or interface keeps from it.
    pub(crate) is_able: bool,
    /// Nothing is missing of what was read, but for what is being put in force.
    pub(crate) is_whole: bool,
    /// Counters of the agent itself.
    pub(crate) counters: AgentCounters,
    /// How the source is doing, not only at this moment.
    pub(crate) watches: Watches,
}

impl Published {
    /// The status, with the watches as they are now: what one has read changes nothing else if
    /// there was nothing to read.
    fn status(&self) -> Status {
        let mut status = self.status.clone();
        status.source.watches = view::watches(&self.watches.read());
        status
    }

    /// The status for who has waited until what was written before is in force. What is being put
    /// in force was written later: others may always write something.
    fn status_after_wait(&self) -> Status {
        Status { ready: self.is_whole, ..self.status() }
    }
}

/// Starts the servers. Errors that end one arrive at the returned receiver; the text says what is
/// not served, if anything.
pub(crate) fn start(
    options: &Options,
    maps: Maps,
    state: watch::Receiver<Arc<Published>>,
    requests: Requests,
    metrics: Metrics,
) -> Result<(mpsc::Receiver<anyhow::Error>, Option<String>)> {
    let (failed_tx, failed) = mpsc::channel(2);
    let context = Context { state, requests, maps: Arc::new(maps), metrics };

    let path = socket_path(&options.run_dir);
    let socket =
        UnixListener::bind(&path).with_context(|| format!("listen on {}", path.display()))?;
    let control = Router::new()
        .route("/status", get(status))
        .route("/state", get(whole_state))
        .route("/wait", post(wait))
        .route("/ask", post(ask))
        .route("/cni", post(cni))
        .with_state(context.clone());
    let failed_control = failed_tx.clone();
    tokio::spawn(async move {
        let result = axum::serve(socket, control).await.context("serve the agent's socket");
        report(failed_control, result).await;
    });

    let mut note = None;
    if let Some(address) = options.metrics_address {
        match listen(address) {
            Ok(listener) => {
                let observers = Router::new()
                    .route("/metrics", get(metrics_text))
                    .route("/healthz", get(|| async { "ok\n" }))
                    .route("/readyz", get(readyz))
                    .with_state(context);
                tokio::spawn(async move {
                    let result = axum::serve(listener, observers).await.context("serve metrics");
                    report(failed_tx, result).await;
                });
            }
            // Enforcement must not depend on somebody else's port.
            Err(error) => {
                let text = format!(
                    "no metrics and health are served: cannot listen on {address}: {error}; \
                     choose another --metrics-address, or `off`"
                );
                tracing::error!("{text}");
                note = Some(text);
            }
        }
    }
    Ok((failed, note))
}

fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

async fn report(failed: mpsc::Sender<anyhow::Error>, result: Result<()>) {
    if let Err(error) = result {
        // Nobody listening means that the agent is ending anyway.
        let _ = failed.send(error).await;
    }
}

async fn status(Shared(context): Shared<Context>) -> Response {
    let published = context.state.borrow().clone();
    Json(published.status()).into_response()
}

async fn whole_state(Shared(context): Shared<Context>) -> Response {
    let published = context.state.borrow().clone();
    let status = published.status();
    Json(State { status, ..State::clone(&published.state) }).into_response()
}

/// Query of `POST /wait`.
#[derive(Deserialize)]
struct WaitQuery {
    #[serde(default = "default_timeout")]
    timeout_ms: u64,
}

fn default_timeout() -> u64 {
    30_000
}

async fn wait(Shared(context): Shared<Context>, Query(query): Query<WaitQuery>) -> Response {
    let (reply, answered) = oneshot::channel();
    let is_in_force = async {
        context.requests.waits.send(WaitRequest { reply }).await.ok()?;
        answered.await.ok()
    };
    let limit = Duration::from_millis(query.timeout_ms);
    let is_in_time = matches!(tokio::time::timeout(limit, is_in_force).await, Ok(Some(())));
    let published = context.state.borrow().clone();
    if is_in_time {
        return Json(published.status_after_wait()).into_response();
    }
    (StatusCode::GATEWAY_TIMEOUT, Json(published.status())).into_response()
}

async fn ask(Shared(context): Shared<Context>, Json(question): Json<Question>) -> Response {
    let (reply, answered) = oneshot::channel();
    if context.requests.questions.send(QuestionRequest { question, reply }).await.is_err() {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    match answered.await {
        Ok(answer) => Json(answer).into_response(),
        Err(_ending) => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    }
}

async fn cni(
    Shared(context): Shared<Context>,
    Query(query): Query<WaitQuery>,
    Json(request): Json<CniRequest>,
) -> Response {
    let (reply, answered) = oneshot::channel();
    let deadline = Instant::now() + Duration::from_millis(query.timeout_ms);
    let request = PluginRequest { request, deadline, reply };
    if context.requests.plugin.send(request).await.is_err() {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    match answered.await {
        Ok(answer) => Json(answer).into_response(),
        Err(_ending) => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    }
}

async fn readyz(Shared(context): Shared<Context>) -> Response {
    let published = context.state.borrow().clone();
    // One tenant's pod stops no rollout.
    if published.is_able {
        return "ready\n".into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, Json(published.status())).into_response()
}

async fn metrics_text(Shared(context): Shared<Context>) -> Response {
    let published = context.state.borrow().clone();
    let watches = published.watches.read();
    let text = {
        let Published { status, state, counters, .. } = &*published;
        (context.metrics)(&context.maps, status, state, counters, &watches)
    };
    ([("content-type", "application/openmetrics-text; version=1.0.0; charset=utf-8")], text)
        .into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_waited_is_told_ready_whatever_others_have_written_since() {
        let mut published = Published {
            status: Status::default(),
            state: Arc::default(),
            is_able: true,
            is_whole: true,
            counters: AgentCounters::default(),
            watches: Watches::default(),
        };
        // Something is being compiled, so not everything that was read is in force.
        assert!(!published.status().ready && published.status_after_wait().ready);
        // An object cannot be used.
        published.is_whole = false;
        assert!(!published.status_after_wait().ready);
    }
}
