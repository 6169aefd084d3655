//! Whether watches work: kube's watcher tells when one fails, but not when one is accepted again,
//! so the answers of the API server are looked at on their way. Must never change a request.

use std::task::{Context, Poll};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use hyper::{Request, Response, Uri};
use kube::Client;
use kube::client::Body;
use kube::core::Status;
use kube::runtime::watcher;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::seen::Kind;

/// A client that does what `client` does, and tells of each watch that was accepted.
pub fn observe(client: Client) -> (Client, UnboundedReceiver<Kind>) {
    let (accepted, receiver) = unbounded_channel();
    let namespace = client.default_namespace().to_owned();
    (Client::new(Observer { client, accepted }, namespace), receiver)
}

struct Observer {
    client: Client,
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
        let kind = watched(request.uri());
        async move {
            let response = client.send(request).await?;
            if let (Some(kind), true) = (kind, response.status().is_success()) {
                // Nobody listens when the source is stopping.
                let _ = accepted.send(kind);
            }
            Ok(response)
        }
        .boxed()
    }
}

fn watched(uri: &Uri) -> Option<Kind> {
    let watch = uri.query()?.split('&').any(|pair| matches!(pair, "watch=true" | "watch=1"));
    let resource = uri.path().rsplit('/').next()?;
    Kind::ALL.into_iter().find(|kind| watch && kind.resource() == resource)
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

/// Whether the server refuses to go on from where the watch ended. The watcher would ask again
/// and again.
pub fn is_refused_resume(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::WatchStartFailed(kube::Error::Api(status)) if status.code == 410)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn watches_are_recognised_by_their_uri() {
        let table = [
            ("/api/v1/pods?&watch=true&timeoutSeconds=290", Some(Kind::Pod)),
            ("/api/v1/namespaces?watch=1", Some(Kind::Namespace)),
            ("/apis/networking.k8s.io/v1/networkpolicies?x=y&watch=true", Some(Kind::Policy)),
            ("/api/v1/pods?limit=500", None),
            ("/api/v1/pods", None),
            ("/api/v1/nodes?watch=true", Some(Kind::Node)),
            ("/apis/discovery.k8s.io/v1/endpointslices?watch=true", Some(Kind::EndpointSlice)),
            ("/api/v1/secrets?watch=true", None),
        ];
        for (uri, kind) in table {
            assert_eq!(watched(&uri.parse().expect("a URI")), kind, "{uri}");
        }
    }
}
