//! Asks the running agent through its socket. Must never change anything, but that the CNI plugin
//! tells the agent what the container runtime does.

use std::io::ErrorKind;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};

use crate::questions::{DecidingRule, End, Opening, Owner, Question};
use crate::sandbox::{Answer, CniRequest};
use crate::state::{Status, socket_path};

/// How long an agent may take to answer what needs no waiting.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// Pause between attempts to reach an agent that is not there yet.
const RETRY: Duration = Duration::from_millis(50);
/// No answer is that large: refuses to fill memory with what some other program sends.
const MAX_ANSWER_BYTES: usize = 64 << 20;

/// The outcome of waiting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Waited {
    /// Everything written before the question is in force.
    InForce(Status),
    /// Time is up; the agent's status, if one answered.
    TimeIsUp(Option<Status>),
}

/// How many ends one request asks about.
const ENDS_AT_ONCE: usize = 8_192;

/// The running agent's status, `None` if no agent listens.
pub fn status(run_dir: &Path) -> Result<Option<Status>> {
    block_on(request(run_dir, Method::GET, "/status", Vec::new()))
}

/// The running agent's answer to a question, `None` if no agent listens.
pub fn ask<T: DeserializeOwned>(run_dir: &Path, question: &Question) -> Result<Option<T>> {
    block_on(ask_async(run_dir, question))
}

/// Likewise.
pub(crate) async fn ask_async<T: DeserializeOwned>(
    run_dir: &Path,
    question: &Question,
) -> Result<Option<T>> {
    request(run_dir, Method::POST, "/ask", serde_json::to_vec(question)?).await
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Unanswered {
    /// No agent listens.
    #[error("the agent does not run")]
    NoAgent,
    /// One does, or may, and cannot be asked.
    #[error("{0:#}")]
    Failed(anyhow::Error),
}

/// An answer, or why there is none.
///
/// # Errors
/// The reason.
pub fn answered<T>(asked: Result<Option<T>>) -> Result<T, Unanswered> {
    asked.map_err(Unanswered::Failed)?.ok_or(Unanswered::NoAgent)
}

/// Who is at some ends, `None` if no agent listens.
pub fn owners(run_dir: &Path, ends: &[End]) -> Result<Option<Vec<Owner>>> {
    block_on(owners_async(run_dir, ends))
}

/// Likewise.
pub async fn owners_async(run_dir: &Path, ends: &[End]) -> Result<Option<Vec<Owner>>> {
    let mut owners = Vec::with_capacity(ends.len());
    for some in ends.chunks(ENDS_AT_ONCE) {
        let question = Question::Ends { ends: some.to_vec() };
        match ask_async::<Vec<Owner>>(run_dir, &question).await? {
            Some(answer) if answer.len() == some.len() => owners.extend(answer),
            Some(_) => bail!("{}: it answered something else", agent_at(&socket_path(run_dir))),
            None => return Ok(None),
        }
    }
    Ok(Some(owners))
}

/// The rules that decide on each of these, `None` if no agent listens.
pub async fn deciding_async(
    run_dir: &Path,
    openings: Vec<Opening>,
) -> Result<Option<Vec<Vec<DecidingRule>>>> {
    ask_async(run_dir, &Question::Deciding { openings }).await
}

/// `None` if no agent listens, which who may not ask cannot know.
async fn connect(socket: &Path) -> Result<Option<UnixStream>> {
    match UnixStream::connect(socket).await {
        Ok(stream) => Ok(Some(stream)),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            Err(error).with_context(|| agent_at(socket))
        }
        Err(_) => Ok(None),
    }
}

async fn request<T: DeserializeOwned>(
    run_dir: &Path,
    method: Method,
    path: &str,
    body: Vec<u8>,
) -> Result<Option<T>> {
    let socket = socket_path(run_dir);
    let Some(stream) = connect(&socket).await? else { return Ok(None) };
    let answer = timeout(ANSWER_LIMIT, exchange(stream, method, path, body)).await;
    let answer = answer.context("no answer in time").flatten();
    let (code, bytes) = answer.with_context(|| agent_at(&socket))?;
    if code != StatusCode::OK {
        bail!("{}: it answered {code}", agent_at(&socket));
    }
    Ok(Some(parse(code, &bytes).with_context(|| agent_at(&socket))?))
}

/// Waits until everything written before the call is in force. An agent that starts, or starts
/// again, meanwhile is asked too.
pub fn wait(run_dir: &Path, limit: Duration) -> Result<Waited> {
    let socket = socket_path(run_dir);
    let begun = Instant::now();
    block_on(async {
        loop {
            let left = limit.saturating_sub(begun.elapsed());
            if let Some(waited) = wait_once(&socket, left).await? {
                return Ok(waited);
            }
            if begun.elapsed() >= limit {
                return Ok(Waited::TimeIsUp(None));
            }
            sleep(RETRY.min(limit.saturating_sub(begun.elapsed()))).await;
        }
    })
}

/// `None` if no agent listens, or it ended before it answered.
async fn wait_once(socket: &Path, left: Duration) -> Result<Option<Waited>> {
    let Some(stream) = connect(socket).await? else { return Ok(None) };
    let path = format!("/wait?timeout_ms={}", left.as_millis());
    let answer = exchange(stream, Method::POST, &path, Vec::new());
    let answer = timeout(left + ANSWER_LIMIT, answer).await;
    let status = |code, bytes: &[u8]| parse(code, bytes).with_context(|| agent_at(socket));
    match answer.with_context(|| format!("{}: no answer in time", agent_at(socket)))? {
        Ok((code @ StatusCode::OK, bytes)) => Ok(Some(Waited::InForce(status(code, &bytes)?))),
        Ok((code @ StatusCode::GATEWAY_TIMEOUT, bytes)) => {
            Ok(Some(Waited::TimeIsUp(Some(status(code, &bytes)?))))
        }
        Ok((code, _)) => bail!("{}: it answered {code}", agent_at(socket)),
        Err(error) if error.downcast_ref::<hyper::Error>().is_some() => Ok(None),
        Err(error) => Err(error.context(agent_at(socket))),
    }
}

/// Sends the agent a request of the CNI plugin, and waits for its answer so long at most. An agent
/// that starts, or starts again, meanwhile gets it too, if there is time to wait for it.
pub fn request_cni(
    run_dir: &Path,
    request: &CniRequest,
    limit: Duration,
    is_patient: bool,
) -> Result<Answer> {
    let socket = socket_path(run_dir);
    let begun = Instant::now();
    let body = serde_json::to_vec(request)?;
    block_on(async {
        loop {
            let left = limit.saturating_sub(begun.elapsed());
            if let Some(answer) = request_cni_once(&socket, &body, left).await? {
                return Ok(answer);
            }
            if !is_patient || begun.elapsed() >= limit {
                bail!("no agent listens at {}", socket.display());
            }
            sleep(RETRY.min(limit.saturating_sub(begun.elapsed()))).await;
        }
    })
}

/// `None` if no agent listens, or it ended before it answered.
async fn request_cni_once(socket: &Path, body: &[u8], left: Duration) -> Result<Option<Answer>> {
    let Ok(stream) = UnixStream::connect(socket).await else { return Ok(None) };
    // It shall have time to say what is missing.
    let path = format!("/cni?timeout_ms={}", left.mul_f32(0.8).as_millis());
    let exchange = exchange(stream, Method::POST, &path, body.to_vec());
    let Ok(exchanged) = timeout(left, exchange).await else {
        bail!(
            "the agent at {} did not answer within {} s",
            socket.display(),
            left.as_secs_f32().ceil()
        );
    };
    match exchanged {
        Ok((code @ StatusCode::OK, bytes)) => {
            Ok(Some(parse(code, &bytes).with_context(|| agent_at(socket))?))
        }
        Ok((StatusCode::SERVICE_UNAVAILABLE, _)) => Ok(None),
        Ok((code, _)) => bail!(
            "{}: it answered {code}; is it of the same version as the plugin?",
            agent_at(socket)
        ),
        Err(error) if error.downcast_ref::<hyper::Error>().is_some() => Ok(None),
        Err(error) => Err(error.context(agent_at(socket))),
    }
}

fn agent_at(socket: &Path) -> String {
    format!("cannot ask the agent at {}", socket.display())
}

/// One request on a connection of its own.
async fn exchange(
    stream: UnixStream,
    method: Method,
    path: &str,
    body: Vec<u8>,
) -> Result<(StatusCode, Bytes)> {
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "netpol")
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(body)))?;
    // Dropping the sender at the end of it lets the connection end.
    let exchange = async move {
        let mut sender = sender;
        let response = sender.send_request(request).await?;
        let code = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES).collect().await;
        let body = body.map_err(|error| match error.downcast::<hyper::Error>() {
            Ok(error) => anyhow::Error::from(*error),
            Err(error) => anyhow::anyhow!("{error}"),
        })?;
        anyhow::Ok((code, body.to_bytes()))
    };
    // The connection makes progress only while it is polled; if it fails, the exchange says why.
    let (_, exchanged) = tokio::join!(connection, exchange);
    exchanged
}

fn parse<T: DeserializeOwned>(code: StatusCode, body: &[u8]) -> Result<T> {
    serde_json::from_slice(body).with_context(|| {
        let text = String::from_utf8_lossy(body);
        format!("it answered {code}: {}", text.trim().chars().take(200).collect::<String>())
    })
}

fn block_on<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("cannot start the runtime")?.block_on(future)
}
