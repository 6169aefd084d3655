//! Whether watches work: kube's watcher tells when one fails, but not when one is accepted again,
//! so the answers of the API server are looked at on their way. Must never change a request.

use std::sync::Arc;
use std::task::{Context, Poll};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use hyper::{Request, Response, Uri};
use kube::Client;
use kube::client::Body;
use kube::core::Status;
use kube::runtime::watcher;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::resume::{self, Resumes};
use super::seen::Kind;

/// A client that does what `client` does, and tells of each watch that was accepted. It does not
/// ask for a watch that would stay silent (see [`resume`]).
pub fn observe(client: Client) -> (Client, UnboundedReceiver<Kind>) {
    let (accepted, receiver) = unbounded_channel();
    let namespace = client.default_namespace().to_owned();
    let observer = Observer { client, accepted, resumes: Arc::default() };
    (Client::new(observer, namespace), receiver)
}

struct Observer {
    client: Client,
    resumes: Arc<Resumes>,
    accepted: UnboundedSender<Kind>,
}

impl tower_service::Service<Request<Body>> for Observer {
    type Response = Response<Body>;
    type Error = kube::Error;
    type Future = BoxFuture<'static, Result<Response<Body>, kube::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), kube::Error>> {
        // `Client::send` waits until it is ready.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (client, accepted) = (self.client.clone(), self.accepted.clone());
        let resumes = self.resumes.clone();
        let asked = asked(request.uri());
        async move {
            let Some((kind, from)) = asked else { return client.send(request).await };
            if let Some(from) = &from
                && resumes.is_doubtful(kind)
                && resume::is_behind(&client, request.uri(), from).await
            {
                let resource = kind.resource();
                tracing::warn!(
                    resource,
                    "the API server has gone back, as after etcd was restored: listing again"
                );
                return Ok(resume::gone());
            }
            let response = client.send(request).await?;
            if response.status().is_success() {
                if from.is_some() {
                    resumes.accepted(kind);
                    // Nobody listens when the source is stopping.
                    let _ = accepted.send(kind);
                } else {
                    resumes.listed(kind);
                }
            }
            Ok(response)
        }
        .boxed()
    }
}

/// What is listed, or watched from which version.
fn asked(uri: &Uri) -> Option<(Kind, Option<String>)> {
    let resource = uri.path().rsplit('/').next()?;
    let kind = Kind::ALL.into_iter().find(|kind| kind.resource() == resource)?;
    let pairs = || uri.query().unwrap_or_default().split('&');
    let is_watch = pairs().any(|pair| matches!(pair, "watch=true" | "watch=1"));
    let version = pairs().find_map(|pair| pair.strip_prefix("resourceVersion="));
    Some((kind, is_watch.then(|| version.unwrap_or_default().to_owned())))
}

/// What to tell of an error; `None` for what happens in every long life of a watch.
pub fn explain(kind: Kind, error: &watcher::Error) -> Option<String> {
    let message = match error {
        watcher::Error::InitialListFailed(error) => explain_request(kind, "list", error)?,
        watcher::Error::WatchStartFailed(error) => explain_request(kind, "watch", error)?,
        watcher::Error::WatchError(status) => explain_status(kind, "watch", status)?,
        watcher::Error::WatchFailed(kube::Error::SerdeError(error)) => {
            format!("an event cannot be read: {error}")
        }
        watcher::Error::WatchFailed(kube::Error::Api(status)) => {
            explain_status(kind, "watch", status)?
        }
        watcher::Error::WatchFailed(error) => {
            // It is begun again at once; if that fails there is more to tell.
            tracing::debug!(resource = kind.resource(), %error, "a watch ended");
            return None;
        }
        watcher::Error::NoResourceVersion => "an answer has no resourceVersion".to_owned(),
    };
    Some(match kind.without().filter(|_| is_forbidden(error)) {
        Some(effect) => format!(
            "{message}; policies are enforced without them: {effect}; those known before stay, \
             retrying"
        ),
        None => format!("{message}; what is in force stays, retrying"),
    })
}

/// Whether the API server does not let this be listed, or does not know it.
pub fn is_forbidden(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::InitialListFailed(error) if is_forbidden_request(error))
}

/// Likewise, of a single request.
pub fn is_forbidden_request(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if matches!(status.code, 403 | 404))
}

fn explain_request(kind: Kind, verb: &str, error: &kube::Error) -> Option<String> {
    match error {
        kube::Error::Api(status) => explain_status(kind, verb, status),
        kube::Error::SerdeError(error) => Some(format!("an answer cannot be read: {error}")),
        error => Some(format!("cannot reach the API server: {}", chain(error))),
    }
}

fn explain_status(kind: Kind, verb: &str, status: &Status) -> Option<String> {
    let (resource, text) = (kind.resource(), &status.message);
    match status.code {
        410 => {
            tracing::debug!(resource, text, "a watch is too old, listing again");
            None
        }
        403 => Some(format!(
            "forbidden: {text} (the agent's role must allow it to list and watch {resource})"
        )),
        401 => Some(format!("unauthorized: {text} (check the agent's credentials)")),
        code => Some(format!("the API server refused to {verb}: {code} {text}")),
    }
}

/// An error with its causes, which kube's transport errors keep to themselves.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}

/// Whether only a new list can tell what there is, which the watcher would not make by itself: the
/// server refuses to go on from where the watch ended, or an event could not be read and so is
/// lost.
pub fn needs_new_list(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::WatchStartFailed(kube::Error::Api(status)) => status.code == 410,
        watcher::Error::WatchFailed(kube::Error::SerdeError(_)) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_watches_are_recognised_by_their_uri() {
        let table = [
            (
                "/api/v1/pods?&watch=true&timeoutSeconds=290&resourceVersion=7",
                Some((Kind::Pod, Some("7"))),
            ),
            ("/api/v1/namespaces?watch=1", Some((Kind::Namespace, Some("")))),
            (
                "/apis/networking.k8s.io/v1/networkpolicies?resourceVersion=12&watch=true",
                Some((Kind::Policy, Some("12"))),
            ),
            ("/api/v1/pods?limit=500", Some((Kind::Pod, None))),
            ("/api/v1/pods", Some((Kind::Pod, None))),
            ("/api/v1/nodes?watch=true", Some((Kind::Node, Some("")))),
            (
                "/apis/discovery.k8s.io/v1/endpointslices?watch=true",
                Some((Kind::EndpointSlice, Some(""))),
            ),
            ("/api/v1/secrets?watch=true", None),
        ];
        for (uri, expected) in table {
            let found = asked(&uri.parse().expect("a URI"));
            let found = found.as_ref().map(|(kind, from)| (*kind, from.as_deref()));
            assert_eq!(found, expected, "{uri}");
        }
    }
}
