//! What is told of an error of a watch: what was refused, what to do about it, and what it means for
//! enforcement. Must never call that an error which happens in every long life of a watch.

use kube::core::Status;
use kube::runtime::watcher;

use super::object::Kind;

/// What to tell of an error; `None` for what happens in every long life of a watch.
pub fn explain(kind: Kind, error: &watcher::Error, is_synced: bool) -> Option<String> {
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
    let effect = match kind.without().filter(|_| is_forbidden(error)) {
        Some(effect) => {
            format!("policies are enforced without them: {effect}; those known before stay")
        }
        None if is_synced => "what is in force stays".to_owned(),
        None => format!(
            "until the {} are read, what an earlier agent left in force stays, and nothing new is \
             put in force",
            kind.resource()
        ),
    };
    Some(format!("{message}; {effect}; retrying"))
}

/// What to tell of a kind that is only there in versions that are not understood.
pub(crate) fn not_understood(kind: Kind, versions: &[String]) -> String {
    let (group, resource, versions) = (kind.group(), kind.resource(), versions.join(", "));
    let effect = kind.without().unwrap_or("nothing of them is in force");
    format!(
        "the API server has {resource} of {group} only in {versions}, which this netpol does not \
         understand: {effect}; those known before stay; retrying"
    )
}

/// Whether the API server does not let this be listed, or does not know it.
pub(crate) fn is_forbidden(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::InitialListFailed(error) if is_forbidden_request(error))
}

/// Likewise, of a single request.
pub(crate) fn is_forbidden_request(error: &kube::Error) -> bool {
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
            "forbidden: {text} (the agent's ClusterRole needs {{apiGroups: [\"{}\"], resources: \
             [{resource}], verbs: [list, watch]}})",
            kind.group()
        )),
        401 => Some(format!(
            "unauthorized: {text} (the agent's token or certificate is not, or no longer, valid)"
        )),
        404 => Some(format!("the API server does not know {resource}: {text}")),
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
pub(crate) fn needs_new_list(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::WatchStartFailed(kube::Error::Api(status)) => status.code == 410,
        watcher::Error::WatchFailed(kube::Error::SerdeError(_)) => true,
        _ => false,
    }
}
