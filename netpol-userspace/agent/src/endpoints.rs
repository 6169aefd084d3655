//! Which interfaces are enforced as which pods: from what discovery and the source say to numbered
//! endpoints of the compiler and the datapath. Must never take programs off an interface that may
//! still be that of a pod that they are for.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use tokio::time::Instant;

use crate::enforcement::{Enforcement, Names};
use crate::numbers::{Key, Numbers};
use crate::sandboxes::Sandboxes;
use netpol_api::state::ObjectError;
use netpol_compile::{Compiler, EndpointId};
use netpol_datapath::{DatapathError, EndpointFailure};
use netpol_endpoint::{
    Claim, Endpoint, Evidence, Finding, Holder, Interface, Snapshot, Watcher, match_pods,
};
use netpol_model::{Change, Cluster, ObjectName, Pod};

mod holders;
mod troubles;

pub(crate) use self::holders::Holders;
use self::troubles::{Trouble, Troubles};

/// The endpoints of this node.
pub(crate) struct Endpoints {
    node_name: String,
    watcher: Watcher,
    snapshot: Arc<Snapshot>,
    /// Pods that may be on this node.
    local_pods: BTreeSet<ObjectName>,
    list: Vec<Endpoint>,
    numbers: Numbers,
    holders: Holders,
    findings: Vec<Finding>,
    troubles: Troubles,
}

impl Names for Endpoints {
    fn name(&self, id: EndpointId) -> String {
        self.numbered()
            .find(|(other, _)| *other == id)
            .map_or_else(|| format!("endpoint {}", id.0), |(_, e)| e.pod.to_string())
    }
}

impl Endpoints {
    /// None yet, with what is known of those that an earlier agent had.
    pub(crate) fn new(
        node_name: String,
        watcher: Watcher,
        snapshot: Arc<Snapshot>,
        numbers: Numbers,
        holders: Holders,
    ) -> Self {
        Self {
            node_name,
            watcher,
            snapshot,
            local_pods: BTreeSet::new(),
            list: Vec::new(),
            numbers,
            holders,
            findings: Vec::new(),
            troubles: Troubles::default(),
        }
    }

    // === What there is ===

    /// This node's name.
    pub(crate) fn node_name(&self) -> &str {
        &self.node_name
    }

    /// The interfaces of now.
    pub(crate) fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// All endpoints.
    pub(crate) fn list(&self) -> &[Endpoint] {
        &self.list
    }

    /// Those that have a number.
    pub(crate) fn numbered(&self) -> impl Iterator<Item = (EndpointId, &Endpoint)> {
        self.list.iter().filter_map(|endpoint| Some((self.number_of(endpoint)?, endpoint)))
    }

    /// Their numbers.
    pub(crate) fn ids(&self) -> impl Iterator<Item = EndpointId> {
        self.numbered().map(|(id, _)| id)
    }

    /// The number of an endpoint.
    pub(crate) fn number_of(&self, endpoint: &Endpoint) -> Option<EndpointId> {
        self.numbers.get(&Key::of(endpoint))
    }

    /// The interface of an endpoint.
    pub(crate) fn interface_of(&self, endpoint: &Endpoint) -> Option<&Interface> {
        self.snapshot.interfaces.iter().find(|i| i.ifindex == endpoint.ifindex)
    }

    /// What is known of whose the interfaces are.
    pub(crate) fn holders(&self) -> &Holders {
        &self.holders
    }

    /// Whether a pod has no interface that ought to have one.
    pub(crate) fn lacks_interfaces(&self) -> bool {
        self.findings.iter().any(|finding| matches!(finding, Finding::PodWithoutInterface { .. }))
    }

    // === What has changed ===

    /// The interfaces are these now. Returns whether the kernel has lost filters since the last ones.
    pub(crate) fn set_snapshot(&mut self, snapshot: Arc<Snapshot>) -> bool {
        let before = std::mem::replace(&mut self.snapshot, snapshot);
        before.n_filter_losses != self.snapshot.n_filter_losses
    }

    /// Has discovery look for interfaces now.
    pub(crate) fn rescan(&self) {
        self.watcher.rescan();
    }

    /// Routes may have changed.
    pub(crate) fn forget_routes(&mut self) {
        self.holders.forget_routes();
    }

    /// Keeps the list of pods that may be on this node. Returns whether this one may be.
    pub(crate) fn update_local(&mut self, change: &Change) -> bool {
        match change {
            Change::Pod(pod) => {
                let was_local = self.local_pods.contains(&pod.id);
                if self.may_be_local(pod) {
                    self.local_pods.insert(pod.id.clone());
                    return true;
                }
                self.local_pods.remove(&pod.id);
                was_local
            }
            Change::PodGone(id, _) => self.local_pods.remove(id),
            _ => false,
        }
    }

    /// Whether a pod may be on this node.
    pub(crate) fn may_be_local(&self, pod: &Pod) -> bool {
        pod.node.as_deref().is_none_or(|node| node == self.node_name)
    }

    /// Matches the interfaces and pods of this moment. Returns the endpoints before, if they were
    /// others: [`Self::replace`] then has the consequences.
    pub(crate) fn rematch(&mut self, cluster: &Cluster, claims: &[Claim]) -> Option<Vec<Endpoint>> {
        let pods: Vec<&Pod> = self.local_pods.iter().filter_map(|id| cluster.pod(id)).collect();
        let remembered = self.holders.take_remembered();
        let previous = if remembered.is_empty() { &self.list } else { &remembered };
        self.holders.await_pods(&pods);
        let is_sure = |pod: &Pod| {
            let mut its = previous.iter().filter(|endpoint| endpoint.uid == pod.uid);
            its.any(|endpoint| endpoint.holder == Holder::Current && !endpoint.is_by_address)
        };
        let unsure = pods.iter().filter(|pod| pod.is_networked() && !is_sure(pod));
        let unsure = unsure.flat_map(|pod| pod.addresses.iter().copied());
        let routes = self.holders.routes_to(unsure);
        let evidence = Evidence {
            interfaces: &self.snapshot.interfaces,
            node_name: &self.node_name,
            previous,
            claims,
            pinned: self.holders.pinned(),
            routes: &routes,
            awaited: self.holders.awaited(),
        };
        let matching = match_pods(pods.iter().copied(), &evidence);
        self.watcher.report(&matching);
        self.holders.record(&matching.endpoints, &pods);
        self.troubles.record(&matching.findings, Instant::now());
        self.findings = matching.findings;
        let is_other = matching.endpoints != self.list;
        is_other.then(|| std::mem::replace(&mut self.list, matching.endpoints))
    }

    // === What follows for compiler and datapath ===

    /// Enforces the endpoints of now in place of those before.
    pub(crate) fn replace(
        &mut self,
        before: &[Endpoint],
        sandboxes: &Sandboxes,
        compiler: &mut Compiler,
        enforcement: &mut Enforcement,
    ) {
        let keys: HashSet<Key> = self.list.iter().map(Key::of).collect();
        for old in before.iter().filter(|endpoint| !keys.contains(&Key::of(endpoint))) {
            let is_same =
                |e: &&Endpoint| (e.ifindex, e.incarnation) == (old.ifindex, old.incarnation);
            match self.list.iter().find(is_same).cloned() {
                Some(new) => self.hand_over(old, &new, sandboxes, compiler, enforcement),
                None => self.remove(&Key::of(old), compiler, enforcement),
            }
        }
        self.promote(compiler, enforcement);
        for endpoint in self.list.clone() {
            self.add(&endpoint, sandboxes, compiler, enforcement);
        }
    }

    /// An endpoint's interface is gone.
    fn remove(&mut self, key: &Key, compiler: &mut Compiler, enforcement: &mut Enforcement) {
        let Some(id) = self.numbers.release(key) else { return };
        self.holders.forget(id);
        enforcement.remove_endpoint(id, compiler, self);
    }

    /// An interface is another pod's than it was thought to be. What is attached stays, closed
    /// until the new entry is complete.
    fn hand_over(
        &mut self,
        old: &Endpoint,
        new: &Endpoint,
        sandboxes: &Sandboxes,
        compiler: &mut Compiler,
        enforcement: &mut Enforcement,
    ) {
        let Some(old_id) = self.number_of(old) else { return };
        let Some(id) = self.numbers.assign(Key::of(new)) else {
            // Closed is what is left. It is tried again when there is room.
            return enforcement.record_failure(no_number(new), self);
        };
        tracing::info!(
            interface = new.interface,
            before = %old.pod,
            now = %new.pod,
            "an interface is another pod's"
        );
        self.numbers.release(&Key::of(old));
        self.holders.forget(old_id);
        enforcement.hand_over(old_id, id, self);
        enforcement.set_addresses(id, new.ifindex, sandboxes.declared_for(new), self);
        self.set_holders(id, new, compiler);
        compiler.enqueue_endpoint_removal(old_id);
    }

    /// Endpoints that the endpoint table had no room for move into it, as far as it has now. One
    /// that is closed stays so until its new entry is complete.
    fn promote(&mut self, compiler: &mut Compiler, enforcement: &mut Enforcement) {
        while let Some((old, new)) = self.numbers.promote() {
            self.holders.forget(old);
            enforcement.renumber(old, new, self);
            let endpoint = self.list.iter().find(|e| self.number_of(e) == Some(new));
            if let Some(endpoint) = endpoint.cloned() {
                self.set_holders(new, &endpoint, compiler);
            }
            compiler.enqueue_endpoint_removal(old);
        }
    }

    /// Numbers that an earlier agent left and nobody has claimed are free: the maps hold them no more.
    pub(crate) fn forget_adopted(
        &mut self,
        compiler: &mut Compiler,
        enforcement: &mut Enforcement,
    ) {
        self.numbers.forget_adopted();
        self.promote(compiler, enforcement);
    }

    fn add(
        &mut self,
        endpoint: &Endpoint,
        sandboxes: &Sandboxes,
        compiler: &mut Compiler,
        enforcement: &mut Enforcement,
    ) {
        let numbered = self.number_of(endpoint);
        let Some(id) = numbered.or_else(|| self.numbers.assign(Key::of(endpoint))) else {
            return enforcement.record_failure(no_number(endpoint), self);
        };
        enforcement.set_addresses(id, endpoint.ifindex, sandboxes.declared_for(endpoint), self);
        let interface = self.interface_of(endpoint);
        enforcement.set_netns(id, interface.and_then(|interface| interface.netns.clone()));
        self.set_holders(id, endpoint, compiler);
    }

    /// Gives the compiler the pods that an endpoint may be, unless it has them.
    fn set_holders(&mut self, id: EndpointId, endpoint: &Endpoint, compiler: &mut Compiler) {
        if let Some(pods) = self.holders.uncompiled(id, endpoint) {
            compiler.enqueue_holders(id, endpoint.pod.clone(), pods);
        }
    }

    // === What must not last ===

    /// When something will have lasted too long.
    pub(crate) fn trouble_deadline(&self) -> Option<Instant> {
        self.troubles.deadline()
    }

    /// Looks at what has lasted too long by now. Returns whether the deadline for that had passed.
    pub(crate) fn update_troubles(&mut self) -> bool {
        let now = Instant::now();
        let is_due = self.troubles.deadline().is_some_and(|deadline| deadline <= now);
        self.troubles.schedule(now);
        is_due
    }

    /// Whether something is not as it should be, for however long.
    pub(crate) fn has_troubles(&self) -> bool {
        self.troubles.is_any()
    }

    /// Whether anything may still turn out to last too long.
    pub(crate) fn has_young_troubles(&self, compiler: &Compiler) -> bool {
        self.troubles.young(Instant::now()).any(|trouble| self.is_serious(trouble, compiler))
    }

    /// Whether anything has lasted too long: a pod that policies select without an interface, or an
    /// interface that is closed because nobody knows whose it is.
    pub(crate) fn has_lost(&self, compiler: &Compiler) -> bool {
        self.findings.iter().any(|finding| self.is_lost(finding, compiler))
    }

    fn is_lost(&self, finding: &Finding, compiler: &Compiler) -> bool {
        let lasting = self.troubles.lasting(finding, Instant::now());
        lasting.is_some_and(|trouble| self.is_serious(&trouble, compiler))
    }

    fn is_serious(&self, trouble: &Trouble, compiler: &Compiler) -> bool {
        match trouble {
            Trouble::Pod(id) => {
                let pod = compiler.cluster().pod(id);
                pod.is_some_and(|pod| compiler.is_isolated(pod))
            }
            Trouble::Interface(ifindex) => {
                let mut its = self.numbered().filter(|(_, e)| e.ifindex == *ifindex);
                its.any(|(id, _)| compiler.is_restricted(id))
            }
        }
    }

    /// What people should know of findings: what is wrong, and what is merely so.
    pub(crate) fn add_findings(
        &self,
        compiler: &Compiler,
        errors: &mut Vec<ObjectError>,
        notes: &mut Vec<String>,
    ) {
        for finding in &self.findings {
            let object = match finding {
                Finding::PodWithoutInterface { pod, .. }
                | Finding::AddressOfTwoPods { loser: pod, .. }
                | Finding::AddressOnTwoInterfaces { pod, .. } => format!("Pod {pod}"),
                Finding::PodWithoutAddress { pod, .. } if self.is_lost(finding, compiler) => {
                    format!("Pod {pod}")
                }
                Finding::Undecided { interface, .. } | Finding::Unknown { interface, .. } => {
                    format!("interface {interface}")
                }
                Finding::PodWithoutAddress { .. }
                | Finding::InterfaceWithoutPod { .. }
                | Finding::LeftOver { .. } => {
                    notes.push(finding.to_string());
                    continue;
                }
            };
            errors.push(ObjectError { object, message: finding.to_string() });
        }
    }
}

fn no_number(endpoint: &Endpoint) -> EndpointFailure {
    EndpointFailure {
        endpoint: None,
        error: DatapathError::Missing(format!(
            "there is no number left for pod {}, whose policies are not enforced",
            endpoint.pod
        )),
    }
}
