//! Whether a watch may go on where it ended. After etcd was restored from a backup, resource
//! versions go back, and an API server accepts a watch from a version that is yet to come: it
//! stays silent until that version is reached, however much changes meanwhile. So a watch that
//! did not end in an orderly way asks first how far the server is. Must never doubt a watch that
//! follows a list or runs out: thousands of agents would ask for nothing.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use hyper::header::ACCEPT;
use hyper::{Request, Response, StatusCode, Uri};
use kube::Client;
use kube::client::Body;
use kube::core::Status;
use serde::Deserialize;

use super::object::{Kind, N_KINDS, parse_version};

/// API servers end a watch after the 290 s that it asks for.
const ORDERLY: Duration = Duration::from_secs(280);

/// What the next watch of a kind follows.
#[derive(Debug, Clone, Copy, Default)]
enum Before {
    /// A list that was just read.
    Listed,
    /// A watch that was accepted then.
    Accepted(Instant),
    /// A watch that was refused, or is being asked for.
    #[default]
    Unknown,
}

/// What each kind's next watch follows.
#[derive(Debug, Default)]
pub(crate) struct Resumes([Mutex<Before>; N_KINDS]);

impl Resumes {
    /// A list, or a page of one, was read.
    pub fn listed(&self, kind: Kind) {
        self.set(kind, Before::Listed);
    }

    /// A watch was accepted.
    pub fn accepted(&self, kind: Kind) {
        self.set(kind, Before::Accepted(Instant::now()));
    }

    /// A watch is about to be asked for: whether it must be doubted that the server has come as
    /// far as where it begins.
    pub(crate) fn is_doubtful(&self, kind: Kind) -> bool {
        match self.set(kind, Before::Unknown) {
            Before::Listed => false,
            Before::Accepted(then) => then.elapsed() < ORDERLY,
            Before::Unknown => true,
        }
    }

    fn set(&self, kind: Kind, before: Before) -> Before {
        // Nobody panics while holding it.
        let mut current = self.0[kind as usize].lock().expect("invariant: no panic under a lock");
        std::mem::replace(&mut current, before)
    }
}

#[derive(Deserialize)]
struct List {
    metadata: ListMetadata,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ListMetadata {
    resource_version: String,
}

/// Whether the server is not as far as `version`. What it does not say is no reason to doubt it:
/// the watch itself will tell.
pub async fn is_behind(client: &Client, watch: &Uri, version: &str) -> bool {
    let version = parse_version(Some(version));
    if version == 0 {
        return false;
    }
    // No resourceVersion asks for the most recent state; of the objects only one, and only its
    // metadata.
    let request = Request::get(format!("{}?limit=1", watch.path()))
        .header(ACCEPT, "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1")
        .body(Vec::new());
    let Ok(request) = request else { return false };
    match client.request::<List>(request).await {
        Ok(list) => {
            let reached = parse_version(Some(&list.metadata.resource_version));
            reached != 0 && reached < version
        }
        Err(error) => {
            tracing::debug!(path = watch.path(), %error, "cannot ask how far the server is");
            false
        }
    }
}

/// The answer that a server would give which knew that it has gone back: list anew.
pub fn gone() -> Response<Body> {
    let status = Status::failure("the API server is behind what was read from it", "Gone")
        .with_code(StatusCode::GONE.as_u16());
    let body = serde_json::to_vec(&status).expect("invariant: a status is JSON");
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = StatusCode::GONE;
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_ended_out_of_turn_is_doubted() {
        let resumes = Resumes::default();
        resumes.listed(Kind::Pod);
        assert!(!resumes.is_doubtful(Kind::Pod), "after a list");
        assert!(resumes.is_doubtful(Kind::Pod), "that watch was refused");
        resumes.accepted(Kind::Pod);
        assert!(resumes.is_doubtful(Kind::Pod), "it ended at once");
        let long_ago = Instant::now().checked_sub(ORDERLY).expect("a clock that has run");
        resumes.set(Kind::Pod, Before::Accepted(long_ago));
        assert!(!resumes.is_doubtful(Kind::Pod), "it ran out");
        assert!(resumes.is_doubtful(Kind::Pod), "and the next one was refused");
        assert!(resumes.is_doubtful(Kind::Policy), "nothing is known of it");
    }
}
