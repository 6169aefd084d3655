//! Whether watches work: kube's watcher tells when one fails, but not when one is accepted again,
//! so the answers of the API server are looked at on their way. Must never change a request, nor
//! keep one back but a watch that would stay silent.

use std::sync::Arc;
use std::task::{Context, Poll};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use hyper::{Request, Response, Uri};
use kube::Client;
use kube::client::Body;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::object::Kind;
use super::resume::{self, Resumes};

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
