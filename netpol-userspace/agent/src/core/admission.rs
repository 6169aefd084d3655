//! What the CNI plugin tells the agent, and when a new pod may start: when its Pod object is known
//! and everything known of it is in force. Must never admit on hope; what is not in force when the
//! plugin's time is up is refused with the reason.

use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::{Core, INTERFACE_PATIENCE};
use crate::numbers::Key;
use crate::sandboxes::Standing;
use crate::serve::PluginRequest;
use netpol_api::sandbox::{self, Answer, Attachment, CniRequest, Sandbox};
use netpol_endpoint::Endpoint;
use netpol_model::{Change, Pod};

/// Pods that wait to be admitted.
#[derive(Debug, Default)]
pub(super) struct Admissions {
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
    /// When the first of those that wait has waited long enough.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.waiting.iter().map(|waiting| waiting.deadline).min()
    }

    /// Whether there is something for [`Self::answer`].
    pub(super) fn has_answers(&self) -> bool {
        !self.answers.is_empty()
    }

    /// Sends the answers.
    pub(super) fn answer(&mut self) {
        for (reply, answer) in self.answers.drain(..) {
            // Who asked may have given up.
            let _ = reply.send(answer);
        }
    }

    fn reply(&mut self, reply: oneshot::Sender<Answer>, outcome: Result<(), String>) {
        let is_done = outcome.is_ok();
        self.answers.push((reply, Answer { is_done, message: outcome.err().unwrap_or_default() }));
    }
}

impl Core {
    /// A request of the CNI plugin.
    pub fn handle_plugin(&mut self, PluginRequest { request, deadline, reply }: PluginRequest) {
        match request {
            CniRequest::Add { sandbox } => {
                let attachment = sandbox.attachment();
                tracing::debug!(pod = %sandbox.name(), container = sandbox.container, "told of");
                self.sandboxes.add(*sandbox);
                self.sandboxes.find_interfaces(&self.snapshot.interfaces);
                if self.sandboxes.standing(&attachment) == Standing::NoInterface {
                    self.watcher.rescan();
                }
                self.note_sandboxes();
                self.wait(Some(attachment), deadline, reply);
            }
            CniRequest::Check { attachment } => self.wait(Some(attachment), deadline, reply),
            CniRequest::Status => self.wait(None, deadline, reply),
            CniRequest::Delete { attachment } => {
                self.end_sandboxes(&[attachment]);
                self.admissions.reply(reply, Ok(()));
            }
            CniRequest::Collect { network, attachments } => {
                let over = self.sandboxes.not_among(&network, &attachments);
                self.end_sandboxes(&over);
                self.admissions.reply(reply, Ok(()));
            }
        }
    }

    fn wait(
        &mut self,
        attachment: Option<Attachment>,
        deadline: Instant,
        reply: oneshot::Sender<Answer>,
    ) {
        let since = Instant::now();
        self.admissions.waiting.push(Waiting { attachment, since, deadline, reply });
    }

    fn end_sandboxes(&mut self, attachments: &[Attachment]) {
        for attachment in attachments {
            self.sandboxes.end(attachment);
        }
        if !attachments.is_empty() {
            self.note_sandboxes();
            self.prune_sandboxes();
        }
    }

    /// The pods whose addresses are not what sandboxes say.
    pub(super) fn outdated_pods(&mut self) -> Vec<Pod> {
        let claimants = |address| self.compiler.pods_at(address);
        self.sandboxes.outdated(self.compiler.cluster(), claimants)
    }

    /// The sandboxes are others than before: so may be pods' addresses, and whose interfaces are.
    fn note_sandboxes(&mut self) {
        if !self.is_synced {
            return;
        }
        let outdated = self.outdated_pods();
        self.compiler.take_in(outdated.into_iter().map(Change::Pod));
        self.rematch();
        self.note_speakers();
    }

    /// The interfaces are others than before, or the sandboxes.
    pub(super) fn note_interfaces(&mut self) {
        if self.sandboxes.find_interfaces(&self.snapshot.interfaces) {
            self.note_sandboxes();
        }
    }

    /// Gives a pod of a change the addresses that it has in truth.
    pub(super) fn amend(&mut self, change: &mut Change) {
        match change {
            Change::Pod(pod) => {
                // What does not count is not kept either: there are many pods.
                if !self.speaking.trust.is_some() || !self.may_be_local(pod) {
                    pod.annotations = None;
                }
                self.sandboxes.amend(pod);
            }
            Change::PodGone(id, uid) => {
                let pod = self.compiler.cluster().pod(id);
                // The late delete of a predecessor is none.
                if pod.is_none_or(|pod| uid.as_ref().is_none_or(|uid| *uid == pod.uid)) {
                    self.sandboxes.forget_pod(id);
                }
            }
            _ => {}
        }
    }

    /// Forgets sandboxes without further consequences, and their files.
    pub(super) fn prune_sandboxes(&mut self) {
        if !self.is_synced {
            return;
        }
        for attachment in self.sandboxes.prune(self.compiler.cluster()) {
            if let Err(error) = sandbox::remove(&self.run_dir, &attachment) {
                tracing::warn!(container = attachment.container, %error, "cannot remove its file");
            }
        }
    }

    /// Answers those whose pods are in force, and those whose time is up.
    pub fn answer_admissions(&mut self) {
        let now = Instant::now();
        for waiting in std::mem::take(&mut self.admissions.waiting) {
            let outcome = match &waiting.attachment {
                Some(attachment) => self.is_admissible(attachment, now - waiting.since),
                None => self.is_able(),
            };
            match outcome {
                Err(why) if now >= waiting.deadline => {
                    tracing::warn!(why, "cannot confirm to the CNI plugin what it waits for");
                    self.admissions.reply(waiting.reply, Err(why));
                }
                Err(_) if waiting.reply.is_closed() => {}
                Err(_) => self.admissions.waiting.push(waiting),
                Ok(()) => self.admissions.reply(waiting.reply, Ok(())),
            }
        }
    }

    /// Whether new pods can be judged at all.
    fn is_able(&self) -> Result<(), String> {
        if !self.is_synced {
            return Err(format!(
                "the agent has not read everything from its source ({}) yet",
                self.source_kind
            ));
        }
        if !self.is_reconciled {
            let why = self.failures.values().next().cloned().unwrap_or_default();
            return Err(format!("the agent cannot write its tables: {why}"));
        }
        Ok(())
    }

    /// Whether everything known about a sandbox's pod is in force, or what is missing.
    fn is_admissible(&self, attachment: &Attachment, waited: Duration) -> Result<(), String> {
        self.is_able()?;
        let sandbox = self.sandboxes.get(attachment).ok_or_else(|| {
            format!(
                "the agent knows no {} of sandbox {}",
                attachment.interface, attachment.container
            )
        })?;
        let name = sandbox.name();
        let pod = self.compiler.cluster().pod(&name).ok_or_else(|| {
            format!("the agent's source ({}) has no Pod {name} yet", self.source_kind)
        })?;
        if !sandbox.is_of(pod) {
            return Err(format!(
                "the agent's source ({}) has a Pod {name} with uid {}, and not yet the one with \
                 uid {}",
                self.source_kind, pod.uid, sandbox.uid
            ));
        }
        if self.is_compiling(pod) {
            return Err(format!(
                "policies or pods of namespace {} have been read that are not in force yet",
                name.namespace
            ));
        }
        if !self.compiler.is_isolated(pod) {
            return self.is_guarded(sandbox, waited);
        }
        self.is_enforced(sandbox, pod)
    }

    /// Whether who speaks is checked, if that is wanted, where nothing else is. No pod waits for long
    /// for its interface to be found because of that alone.
    fn is_guarded(&self, sandbox: &Sandbox, waited: Duration) -> Result<(), String> {
        let name = sandbox.name();
        match self.sandboxes.standing(&sandbox.attachment()) {
            _ if sandbox.pair.is_none() || !self.datapath.wants_guards() => Ok(()),
            Standing::Interface(incarnation) if self.awaits_guard(incarnation) => Err(format!(
                "the guard of Pod {name}, which no policy selects, is not attached yet"
            )),
            Standing::NoInterface if waited < INTERFACE_PATIENCE => {
                Err(format!("the agent has not found the interface of Pod {name} yet"))
            }
            _ => Ok(()),
        }
    }

    /// Whether what isolates a pod is in force at this interface.
    fn is_enforced(&self, sandbox: &Sandbox, pod: &Pod) -> Result<(), String> {
        let Some(pair) = sandbox.pair else {
            return Err(format!(
                "policies select Pod {}, but its {} is no veth or netkit device, so there is no \
                 interface of this node to enforce them at",
                pod.id, sandbox.interface
            ));
        };
        let Standing::Interface(incarnation) = self.sandboxes.standing(&sandbox.attachment())
        else {
            return Err(format!(
                "the agent finds no veth or netkit interface {} that leads to {} of Pod {}; it has \
                 to run in the network namespace that the pods' interfaces are in",
                pair.ifindex, sandbox.interface, pod.id
            ));
        };
        let is_its = |e: &&Endpoint| e.incarnation == incarnation && e.uid == pod.uid;
        let endpoint = self.endpoints.iter().find(is_its).ok_or_else(|| {
            format!(
                "interface {} leads to Pod {}, which is not a networked pod of node {}",
                pair.ifindex, pod.id, self.node_name
            )
        })?;
        let id = self.numbers.get(&Key::of(endpoint)).ok_or_else(|| {
            format!("there is no room for another endpoint, so Pod {} cannot be enforced", pod.id)
        })?;
        match self.failures.get(&Some(id)) {
            Some(failure) => Err(format!("Pod {}: {failure}", pod.id)),
            None => Ok(()),
        }
    }

    /// Says which pods started without us.
    pub(super) fn unconfirmed(&self) -> impl Iterator<Item = String> {
        self.sandboxes.live().filter(|sandbox| sandbox.is_unconfirmed).map(|sandbox| {
            format!(
                "pod {} was started before its policies were confirmed to be in force, as \
                 \"on-unreachable\": \"allow\" asks for",
                sandbox.name()
            )
        })
    }
}
