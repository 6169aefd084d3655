//! When a new pod may start, which the CNI plugin waits for: when its Pod object is known and
//! everything known of it is in force. Must never admit on hope; what is not in force when the
//! plugin's time is up is refused with the reason.

use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::overview::Overview;
use crate::sandboxes::Standing;
use crate::waits::INTERFACE_PATIENCE;
use netpol_api::sandbox::{Answer, Attachment, Sandbox};
use netpol_endpoint::Endpoint;
use netpol_model::Pod;

/// Pods that wait to be admitted.
#[derive(Debug, Default)]
pub(crate) struct Admissions {
    waiting: Vec<Waiting>,
    answers: Vec<(oneshot::Sender<Answer>, Answer)>,
}

#[derive(Debug)]
struct Waiting {
    /// For this one to be in force, or for any to be possible.
    attachment: Option<Attachment>,
    since: Instant,
    deadline: Instant,
    reply: oneshot::Sender<Answer>,
}

impl Admissions {
    /// The plugin waits until that deadline for an attachment to be in force, or for any to be
    /// possible.
    pub(crate) fn add(
        &mut self,
        attachment: Option<Attachment>,
        deadline: Instant,
        reply: oneshot::Sender<Answer>,
    ) {
        let since = Instant::now();
        self.waiting.push(Waiting { attachment, since, deadline, reply });
    }

    /// Readies an answer.
    pub(crate) fn reply(&mut self, reply: oneshot::Sender<Answer>, outcome: Result<(), String>) {
        let is_done = outcome.is_ok();
        self.answers.push((reply, Answer { is_done, message: outcome.err().unwrap_or_default() }));
    }

    /// Readies the answers of those whose pods are in force, and of those whose time is up.
    pub(crate) fn update(&mut self, overview: &Overview<'_>) {
        let now = Instant::now();
        for waiting in std::mem::take(&mut self.waiting) {
            let outcome = match &waiting.attachment {
                Some(attachment) => is_admissible(overview, attachment, now - waiting.since),
                None => is_able(overview),
            };
            match outcome {
                Err(why) if now >= waiting.deadline => {
                    tracing::warn!(why, "cannot confirm to the CNI plugin what it waits for");
                    self.reply(waiting.reply, Err(why));
                }
                Err(_) if waiting.reply.is_closed() => {}
                Err(_) => self.waiting.push(waiting),
                Ok(()) => self.reply(waiting.reply, Ok(())),
            }
        }
    }

    /// When the first of those that wait has waited long enough.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.waiting.iter().map(|waiting| waiting.deadline).min()
    }

    /// Whether there is something for [`Self::send_answers`].
    pub(crate) fn has_answers(&self) -> bool {
        !self.answers.is_empty()
    }

    /// Sends the answers.
    pub(crate) fn send_answers(&mut self) {
        for (reply, answer) in self.answers.drain(..) {
            // Who asked may have given up.
            let _ = reply.send(answer);
        }
    }
}

/// Whether new pods can be judged at all.
fn is_able(overview: &Overview<'_>) -> Result<(), String> {
    if !overview.source.is_synced() {
        return Err(format!(
            "the agent has not read everything from its source ({}) yet",
            overview.source.kind()
        ));
    }
    if !overview.enforcement.is_reconciled() {
        let why = overview.enforcement.first_failure().unwrap_or_default();
        return Err(format!("the agent cannot write its tables: {why}"));
    }
    Ok(())
}

/// Whether everything known about a sandbox's pod is in force, or what is missing.
fn is_admissible(
    overview: &Overview<'_>,
    attachment: &Attachment,
    waited: Duration,
) -> Result<(), String> {
    is_able(overview)?;
    let sandbox = overview.sandboxes.get(attachment).ok_or_else(|| {
        format!("the agent knows no {} of sandbox {}", attachment.interface, attachment.container)
    })?;
    let name = sandbox.name();
    let kind = overview.source.kind();
    let pod = overview
        .compilation
        .cluster()
        .pod(&name)
        .ok_or_else(|| format!("the agent's source ({kind}) has no Pod {name} yet"))?;
    if !sandbox.is_of(pod) {
        return Err(format!(
            "the agent's source ({kind}) has a Pod {name} with uid {}, and not yet the one with \
             uid {}",
            pod.uid, sandbox.uid
        ));
    }
    if overview.compilation.is_compiling(pod) {
        return Err(format!(
            "policies or pods of namespace {} have been read that are not in force yet",
            name.namespace
        ));
    }
    if !overview.compilation.compiler().is_isolated(pod) {
        return is_guarded(overview, sandbox, waited);
    }
    is_enforced(overview, sandbox, pod)
}

/// Whether who speaks is checked, if that is wanted, where nothing else is. No pod waits for long
/// for its interface to be found because of that alone.
fn is_guarded(overview: &Overview<'_>, sandbox: &Sandbox, waited: Duration) -> Result<(), String> {
    let name = sandbox.name();
    match overview.sandboxes.standing(&sandbox.attachment()) {
        _ if sandbox.pair.is_none() || !overview.enforcement.datapath().wants_guards() => Ok(()),
        Standing::Interface(incarnation) if awaits_guard(overview, incarnation) => {
            Err(format!("the guard of Pod {name}, which no policy selects, is not attached yet"))
        }
        Standing::NoInterface if waited < INTERFACE_PATIENCE => {
            Err(format!("the agent has not found the interface of Pod {name} yet"))
        }
        _ => Ok(()),
    }
}

/// Whether who speaks on this interface is still to be guarded.
fn awaits_guard(overview: &Overview<'_>, incarnation: u64) -> bool {
    let endpoints = overview.endpoints;
    let endpoint = endpoints.list().iter().find(|e| e.incarnation == incarnation);
    let id = endpoint.and_then(|endpoint| endpoints.number_of(endpoint));
    id.is_some_and(|id| overview.enforcement.datapath().is_guard_pending(id))
}

/// Whether what isolates a pod is in force at this interface.
fn is_enforced(overview: &Overview<'_>, sandbox: &Sandbox, pod: &Pod) -> Result<(), String> {
    let Some(pair) = sandbox.pair else {
        return Err(format!(
            "policies select Pod {}, but its {} is no veth or netkit device, so there is no \
             interface of this node to enforce them at",
            pod.id, sandbox.interface
        ));
    };
    let standing = overview.sandboxes.standing(&sandbox.attachment());
    let Standing::Interface(incarnation) = standing else {
        return Err(format!(
            "the agent finds no veth or netkit interface {} that leads to {} of Pod {}; it has \
             to run in the network namespace that the pods' interfaces are in",
            pair.ifindex, sandbox.interface, pod.id
        ));
    };
    let endpoints = overview.endpoints;
    let is_its = |e: &&Endpoint| e.incarnation == incarnation && e.uid == pod.uid;
    let endpoint = endpoints.list().iter().find(is_its).ok_or_else(|| {
        format!(
            "interface {} leads to Pod {}, which is not a networked pod of node {}",
            pair.ifindex,
            pod.id,
            endpoints.node_name()
        )
    })?;
    let id = endpoints.number_of(endpoint).ok_or_else(|| {
        format!("there is no room for another endpoint, so Pod {} cannot be enforced", pod.id)
    })?;
    match overview.enforcement.failure_of(id) {
        Some(failure) => Err(format!("Pod {}: {failure}", pod.id)),
        None => Ok(()),
    }
}
