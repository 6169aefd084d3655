//! What follows for the other parts when one has changed. Must never have anything put in force before
//! everything that exists was read.

use netpol_api::sandbox::{self, Attachment};
use netpol_compile::{Plan, Step};
use netpol_model::{Change, Pod};

use super::Core;

impl Core {
    // === Enforcement ===

    /// Puts a plan in force.
    pub(super) fn apply(&mut self, plan: &Plan) {
        if !self.enforcement.is_reconciled() || plan.is_empty() {
            // Before the first reconciliation the maps are an earlier agent's.
            return;
        }
        if plan.iter().any(|step| matches!(step, Step::AddRow(..))) {
            self.write_ahead();
        }
        self.enforcement.apply(plan, &self.endpoints);
        self.is_dirty = true;
    }

    /// Makes the maps equal to the compiler's tables.
    pub(super) fn reconcile(&mut self) {
        // All numbers, since until it succeeds what is published names only those written before.
        self.state_file.outdate_endpoints();
        self.write_ahead();
        self.enforcement.reconcile(&self.compilation.compiler().tables(), &self.endpoints);
        self.is_dirty = true;
    }

    /// Has people know what is in force now, and since when something is not; and who waits for it.
    pub(super) fn update_progress(&mut self) {
        if !self.source.is_synced() {
            return;
        }
        self.is_dirty |= self.compilation.update_since();
        if !self.compilation.is_behind() {
            self.is_dirty |= self.source.set_applied();
        }
        self.answer_waits();
    }

    /// Waits are answered when what was read before them is in force; with pods that policies select
    /// and that have no interface there is more patience.
    pub(super) fn answer_waits(&mut self) {
        if !self.waits.has_passed() || !self.source.is_synced() {
            return;
        }
        // Guards that are pending are always put on soon, and this is called then.
        let is_unsettled = self.enforcement.has_pending_guards()
            || self.endpoints.has_young_troubles(self.compilation.compiler());
        if !is_unsettled {
            self.waits.update(&mut self.compilation, self.endpoints.lacks_interfaces());
        }
    }

    // === Interfaces and endpoints ===

    /// Has the datapath know which interfaces packets leave by, and the compiler which addresses
    /// they do not leave for.
    pub(super) fn update_node(&mut self) {
        let snapshot = self.endpoints.snapshot();
        self.enforcement.set_exits(&snapshot.exits, &self.endpoints);
        if self.source.is_synced() {
            let own = snapshot.own_addresses.clone();
            self.compilation.compiler_mut().enqueue_node_addresses(own);
        }
    }

    /// Brings the endpoints in line with the interfaces and pods of this moment.
    pub(super) fn rematch(&mut self) {
        let cluster = self.compilation.cluster();
        let claims = self.sandboxes.claims(cluster);
        if let Some(before) = self.endpoints.rematch(cluster, &claims) {
            self.state_file.outdate_endpoints();
            let Self { compilation, enforcement, endpoints, sandboxes, speakers, .. } = self;
            // Before anything else: an interface may have become another pod's.
            speakers.update_prefixes(endpoints, enforcement);
            endpoints.replace(&before, sandboxes, compilation.compiler_mut(), enforcement);
            speakers.update_links(endpoints, sandboxes, enforcement);
        }
        self.is_dirty = true;
        self.answer_waits();
    }

    /// What is declared for the endpoints may have changed though they are the same.
    pub(super) fn update_speakers(&mut self) {
        self.speakers.update(&self.endpoints, &self.sandboxes, &mut self.enforcement);
    }

    /// Has the datapath know which pods forward for others.
    pub(super) fn update_prefixes(&mut self) {
        self.speakers.update_prefixes(&self.endpoints, &mut self.enforcement);
    }

    /// Whether there are to be guards follows from the policies.
    pub(super) fn update_guards(&mut self) {
        self.speakers.update_guards(self.compilation.cluster(), &mut self.enforcement);
    }

    // === Sandboxes ===

    /// Gives a pod of a change the addresses that it has in truth.
    pub(super) fn amend(&mut self, change: &mut Change) {
        match change {
            Change::Pod(pod) => {
                // What does not count is not kept either: there are many pods.
                if !self.speakers.has_trust() || !self.endpoints.may_be_local(pod) {
                    pod.annotations = None;
                }
                self.sandboxes.amend(pod);
            }
            Change::PodGone(id, uid) => {
                let pod = self.compilation.cluster().pod(id);
                // The late delete of a predecessor is none.
                if pod.is_none_or(|pod| uid.as_ref().is_none_or(|uid| *uid == pod.uid)) {
                    self.sandboxes.forget_pod(id);
                }
            }
            _ => {}
        }
    }

    /// Gives the pods whose addresses are not what sandboxes say those that they have in truth.
    pub(super) fn amend_outdated(&mut self) {
        let compiler = self.compilation.compiler();
        let claimants = |address| compiler.pods_at(address);
        let outdated: Vec<Pod> = self.sandboxes.outdated(compiler.cluster(), claimants);
        self.compilation.add_at_once(outdated.into_iter().map(Change::Pod));
    }

    /// The sandboxes are others than before: so may be pods' addresses, and whose interfaces are.
    pub(super) fn update_sandboxes(&mut self) {
        if !self.source.is_synced() {
            return;
        }
        self.amend_outdated();
        self.rematch();
        self.update_speakers();
    }

    pub(super) fn end_sandboxes(&mut self, attachments: &[Attachment]) {
        for attachment in attachments {
            self.sandboxes.end(attachment);
        }
        if !attachments.is_empty() {
            self.update_sandboxes();
            self.prune_sandboxes();
        }
    }

    /// Forgets sandboxes without further consequences, and their files.
    pub(super) fn prune_sandboxes(&mut self) {
        if !self.source.is_synced() {
            return;
        }
        for attachment in self.sandboxes.prune(self.compilation.cluster()) {
            if let Err(error) = sandbox::remove(self.state_file.run_dir(), &attachment) {
                tracing::warn!(container = attachment.container, %error, "cannot remove its file");
            }
        }
    }
}
