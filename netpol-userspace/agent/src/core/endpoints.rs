//! Which interfaces are enforced as which pods: from what discovery and the source say to numbered
//! endpoints of the compiler and the datapath. Must never take programs off an interface that may
//! still be that of a pod that they are for.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ops::RangeInclusive;
use std::time::SystemTime;

use tokio::time::{Duration, Instant};

use super::Core;
use crate::memory;
use crate::numbers::Key;
use netpol_api::state::{ObjectError, State};
use netpol_compile::EndpointId;
use netpol_datapath::{Datapath, DatapathError, EndpointFailure};
use netpol_endpoint::{Endpoint, Evidence, Finding, Holder, Pinned, Routes, Snapshot, match_pods};
use netpol_model::{ObjectName, Pod, Uid};

/// How long a pod that policies select may have an address, or run, and no interface that is known
/// to be its, and an interface be undecided, before the node is not ready because of that. An
/// interface exists before the status of its pod, and is found some milliseconds after it.
const PATIENCE: Duration = Duration::from_secs(5);

/// Seconds by which the clocks of the node and of the API server may differ, and by which an
/// interface may be seen later than the status of its pod.
const SLACK: i64 = 5;
/// Seconds by which the agent may hear of a pod later than the kubelet, which makes its interface.
const LAG: i64 = 60;

/// What is known of whose the interfaces are.
pub(super) struct Holders {
    /// What an earlier agent knew, for the first matching: a pod must not shed its policies by
    /// changing its addresses while no agent looks.
    remembered: Vec<Endpoint>,
    /// What it enforced and nobody remembers.
    pinned: Vec<Pinned>,
    /// The endpoints' pods as they were last seen while they ran, by uid.
    pods: BTreeMap<Uid, Pod>,
    /// Which of them the compiler was told an endpoint may be.
    told: BTreeMap<EndpointId, Vec<Uid>>,
    /// Pods of this node that have had an interface.
    placed: BTreeSet<Uid>,
    /// When pods came to this node, in seconds since the epoch.
    arrived: BTreeMap<Uid, i64>,
    /// Those that have not had an interface yet, and when theirs must have come up.
    awaited: BTreeMap<Uid, RangeInclusive<i64>>,
    routes: Option<Routes>,
    /// Since when there is something that must not last.
    troubles: BTreeMap<Trouble, Instant>,
    /// When one of them will have lasted too long.
    pub deadline: Option<Instant>,
}

/// Something that must not last.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Trouble {
    /// A pod that ought to have an interface.
    Pod(ObjectName),
    /// An interface that is enforced, and of which it is not known whose it is.
    Interface(u32),
}

impl Trouble {
    fn of(finding: &Finding) -> Option<Self> {
        match finding {
            Finding::PodWithoutInterface { pod, .. }
            | Finding::PodWithoutAddress { pod, is_running: true } => Some(Self::Pod(pod.clone())),
            Finding::Undecided { ifindex, .. } | Finding::Unknown { ifindex, .. } => {
                Some(Self::Interface(*ifindex))
            }
            _ => None,
        }
    }
}

impl Holders {
    /// From what an earlier agent left.
    pub fn adopt(
        earlier: Option<&State>,
        snapshot: &Snapshot,
        place: &str,
        datapath: &Datapath,
    ) -> Self {
        let memory = earlier.map_or_else(memory::Memory::default, |state| {
            memory::read(state, &snapshot.interfaces, place, |i| datapath.is_enforced(i))
        });
        let forgotten = snapshot.interfaces.iter().filter(|interface| {
            !memory.interfaces.contains(&interface.incarnation)
                && datapath.is_enforced(interface.ifindex)
        });
        let pinned = forgotten.map(|interface| Pinned {
            incarnation: interface.incarnation,
            addresses: datapath.enforced_addresses(interface.ifindex),
        });
        let placed = earlier.into_iter().flat_map(|state| &state.placed);
        let placed = placed.map(|uid| uid.as_str().into());
        let arrived = earlier.into_iter().flat_map(|state| &state.arrived);
        let routes = Routes::open().inspect_err(|error| {
            tracing::warn!(%error, "cannot ask for routes: pods are told by their addresses alone");
        });
        Self {
            pinned: pinned.collect(),
            placed: placed.collect(),
            arrived: arrived.map(|(uid, at)| (uid.as_str().into(), *at)).collect(),
            remembered: memory.endpoints,
            pods: memory.pods,
            told: BTreeMap::new(),
            awaited: BTreeMap::new(),
            routes: routes.ok(),
            troubles: BTreeMap::new(),
            deadline: None,
        }
    }

    /// Routes may have changed.
    pub fn forget_routes(&mut self) {
        if let Some(routes) = &mut self.routes {
            routes.forget();
        }
    }

    /// Whether something is not as it should be, for however long.
    pub fn has_troubles(&self) -> bool {
        !self.troubles.is_empty()
    }

    /// The pods as they were last seen.
    pub fn pods(&self) -> &BTreeMap<Uid, Pod> {
        &self.pods
    }

    /// The pods that an endpoint may be.
    fn of(endpoint: &Endpoint) -> Vec<Uid> {
        match &endpoint.holder {
            Holder::Current | Holder::Former => vec![endpoint.uid.clone()],
            Holder::OneOf(uids) => uids.clone(),
            Holder::Unknown => Vec::new(),
        }
    }

    /// Notes when pods were first heard of that ought to have an interface.
    fn await_pods(&mut self, pods: &[&Pod]) {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let now = now.as_secs().cast_signed();
        let uids: BTreeSet<&Uid> = pods.iter().map(|pod| &pod.uid).collect();
        self.placed.retain(|uid| uids.contains(uid));
        self.awaited.retain(|uid, _| uids.contains(uid));
        self.arrived.retain(|uid, _| uids.contains(uid));
        for pod in pods {
            let arrived = *self.arrived.entry(pod.uid.clone()).or_insert(now);
            if !pod.addresses.is_empty() && !self.placed.contains(&pod.uid) {
                // It was made after its pod, and before the pod's status had its address.
                let first = (pod.created - SLACK).max(arrived - LAG);
                self.awaited.entry(pod.uid.clone()).or_insert(first..=now + SLACK);
            }
        }
    }

    /// The uids of pods that have had an interface.
    pub fn placed(&self) -> impl Iterator<Item = &Uid> {
        self.placed.iter()
    }

    /// When pods came to this node, by uid.
    pub fn arrived(&self) -> impl Iterator<Item = (&Uid, i64)> {
        self.arrived.iter().map(|(uid, at)| (uid, *at))
    }

    /// Takes in what a matching has found.
    fn note(&mut self, endpoints: &[Endpoint], findings: &[Finding], pods: &[&Pod]) {
        let wanted: BTreeSet<Uid> = endpoints.iter().flat_map(Self::of).collect();
        for pod in pods.iter().filter(|pod| wanted.contains(&pod.uid)) {
            if pod.is_networked() {
                self.pods.insert(pod.uid.clone(), (*pod).clone());
            } else {
                // It was never seen otherwise, and runs all the same.
                let running = || Pod { finished: false, ..(*pod).clone() };
                self.pods.entry(pod.uid.clone()).or_insert_with(running);
            }
        }
        self.pods.retain(|uid, _| wanted.contains(uid));
        for endpoint in endpoints.iter().filter(|e| !e.uid.is_empty() && !e.is_supposed) {
            self.placed.insert(endpoint.uid.clone());
            self.awaited.remove(&endpoint.uid);
            self.pinned.retain(|pinned| pinned.incarnation != endpoint.incarnation);
        }
        let now = Instant::now();
        let troubles: BTreeSet<Trouble> = findings.iter().filter_map(Trouble::of).collect();
        self.troubles.retain(|trouble, _| troubles.contains(trouble));
        for trouble in troubles {
            self.troubles.entry(trouble).or_insert(now);
        }
    }
}

impl Core {
    /// Brings the endpoints in line with the interfaces and pods of this moment.
    pub(super) fn rematch(&mut self) {
        let cluster = self.compiler.cluster();
        let pods: Vec<&Pod> = self.local_pods.iter().filter_map(|id| cluster.pod(id)).collect();
        let remembered = std::mem::take(&mut self.holders.remembered);
        let previous = if remembered.is_empty() { &self.endpoints } else { &remembered };
        self.holders.await_pods(&pods);
        let is_sure = |pod: &Pod| {
            let mut its = previous.iter().filter(|endpoint| endpoint.uid == pod.uid);
            its.any(|endpoint| endpoint.holder == Holder::Current && !endpoint.is_by_address)
        };
        let unsure = pods.iter().filter(|pod| pod.is_networked() && !is_sure(pod));
        let unsure = unsure.flat_map(|pod| pod.addresses.iter().copied());
        let routes = self.holders.routes.as_mut().map(|routes| routes.to(unsure));
        let claims = self.sandboxes.claims(cluster);
        let evidence = Evidence {
            interfaces: &self.snapshot.interfaces,
            node_name: &self.node_name,
            previous,
            claims: &claims,
            pinned: &self.holders.pinned,
            routes: &routes.unwrap_or_default(),
            awaited: &self.holders.awaited,
        };
        let matching = match_pods(pods.iter().copied(), &evidence);
        self.watcher.report(&matching);
        self.holders.note(&matching.endpoints, &matching.findings, &pods);
        self.findings = matching.findings;
        if matching.endpoints != self.endpoints {
            let before = std::mem::replace(&mut self.endpoints, matching.endpoints);
            self.are_endpoints_written = false;
            self.replace_endpoints(&before);
        }
        self.note_troubles();
        self.is_dirty = true;
        self.settle_waits();
    }

    fn replace_endpoints(&mut self, before: &[Endpoint]) {
        // Before anything else: an interface may have become another pod's.
        self.note_prefixes();
        let keys: HashSet<Key> = self.endpoints.iter().map(Key::of).collect();
        for old in before.iter().filter(|endpoint| !keys.contains(&Key::of(endpoint))) {
            let is_same =
                |e: &&Endpoint| (e.ifindex, e.incarnation) == (old.ifindex, old.incarnation);
            match self.endpoints.iter().find(is_same).cloned() {
                Some(new) => self.hand_over(old, &new),
                None => self.drop_endpoint(&Key::of(old)),
            }
        }
        self.promote_endpoints();
        for index in 0..self.endpoints.len() {
            self.add_endpoint(index);
        }
        self.note_links();
    }

    /// An endpoint's interface is gone.
    fn drop_endpoint(&mut self, key: &Key) {
        let Some(id) = self.numbers.release(key) else { return };
        self.failures.remove(&Some(id));
        self.holders.told.remove(&id);
        // The kernel's entry first: the compiler's steps for it then find nothing to do.
        if let Err(error) = self.datapath.remove_endpoint(id) {
            self.note_failure(EndpointFailure { endpoint: None, error });
        }
        self.compiler.take_out_endpoint(id);
    }

    /// An interface is another pod's than it was thought to be. What is attached stays, closed
    /// until the new entry is complete.
    fn hand_over(&mut self, old: &Endpoint, new: &Endpoint) {
        let Some(old_id) = self.numbers.get(&Key::of(old)) else { return };
        let Some(id) = self.numbers.assign(Key::of(new)) else {
            // Closed is what is left. It is tried again when there is room.
            return self.note_failure(no_number(new));
        };
        tracing::info!(
            interface = new.interface,
            before = %old.pod,
            now = %new.pod,
            "an interface is another pod's"
        );
        self.numbers.release(&Key::of(old));
        self.failures.remove(&Some(old_id));
        self.holders.told.remove(&old_id);
        if let Err(error) = self.datapath.hand_over(old_id, id) {
            self.note_failure(EndpointFailure { endpoint: Some(id), error });
        }
        self.set_addresses(id, new);
        self.tell_holders(id, new);
        self.compiler.take_out_endpoint(old_id);
    }

    /// Endpoints that the endpoint table had no room for move into it, as far as it has now. One
    /// that is closed stays so until its new entry is complete.
    pub(super) fn promote_endpoints(&mut self) {
        while let Some((old, new)) = self.numbers.promote() {
            self.failures.remove(&Some(old));
            self.holders.told.remove(&old);
            if let Err(error) = self.datapath.renumber(old, new) {
                self.note_failure(EndpointFailure { endpoint: Some(new), error });
            }
            let endpoint =
                self.endpoints.iter().find(|e| self.numbers.get(&Key::of(e)) == Some(new));
            if let Some(endpoint) = endpoint.cloned() {
                self.tell_holders(new, &endpoint);
            }
            self.compiler.take_out_endpoint(old);
        }
    }

    fn add_endpoint(&mut self, index: usize) {
        let endpoint = self.endpoints[index].clone();
        let key = Key::of(&endpoint);
        let known = self.numbers.get(&key);
        let Some(id) = known.or_else(|| self.numbers.assign(key)) else {
            return self.note_failure(no_number(&endpoint));
        };
        self.set_addresses(id, &endpoint);
        let interface = self.snapshot.interfaces.iter().find(|i| i.ifindex == endpoint.ifindex);
        self.datapath.set_netns(id, interface.and_then(|interface| interface.netns.clone()));
        self.are_endpoints_written &= known.is_some();
        self.tell_holders(id, &endpoint);
    }

    fn set_addresses(&mut self, id: EndpointId, endpoint: &Endpoint) {
        let addresses = self.declared(endpoint);
        if let Err(error) = self.datapath.add_endpoint(id, endpoint.ifindex, addresses) {
            self.note_failure(EndpointFailure { endpoint: Some(id), error });
        }
    }

    /// Tells the compiler which pods an endpoint may be, unless it knows.
    fn tell_holders(&mut self, id: EndpointId, endpoint: &Endpoint) {
        let uids = Holders::of(endpoint);
        if self.holders.told.get(&id) == Some(&uids) {
            return;
        }
        let pods = uids.iter().filter_map(|uid| self.holders.pods.get(uid)).cloned();
        let mut pods: Vec<Pod> = pods.collect();
        if pods.len() < uids.len() {
            // It may be one of which nothing is known.
            pods.clear();
        }
        self.holders.told.insert(id, uids);
        self.compiler.take_in_holders(id, endpoint.pod.clone(), pods);
    }

    // === What must not last ===

    /// What has lasted too long: pods that policies select without an interface, and interfaces
    /// that are closed because nobody knows whose they are.
    pub(super) fn is_lost(&self, finding: &Finding) -> bool {
        let Some(trouble) = Trouble::of(finding) else { return false };
        let since = self.holders.troubles.get(&trouble);
        since.is_some_and(|since| since.elapsed() >= PATIENCE) && self.is_serious(&trouble)
    }

    fn is_serious(&self, trouble: &Trouble) -> bool {
        match trouble {
            Trouble::Pod(id) => {
                let pod = self.compiler.cluster().pod(id);
                pod.is_some_and(|pod| self.compiler.is_isolated(pod))
            }
            Trouble::Interface(ifindex) => {
                let mut its = self.numbered_endpoints().filter(|(_, e)| e.ifindex == *ifindex);
                its.any(|(id, _)| self.compiler.is_restricted(id))
            }
        }
    }

    /// Whether anything may still turn out to last too long.
    pub(super) fn has_young_troubles(&self) -> bool {
        let mut young =
            self.holders.troubles.iter().filter(|(_, since)| since.elapsed() < PATIENCE);
        young.any(|(trouble, _)| self.is_serious(trouble))
    }

    /// Sets the time at which the next trouble will have lasted too long.
    pub(super) fn note_troubles(&mut self) {
        let deadlines = self.holders.troubles.values().map(|since| *since + PATIENCE);
        let now = Instant::now();
        self.holders.deadline = deadlines.filter(|deadline| *deadline > now).min();
    }

    /// What people should know of findings: what is wrong, and what is merely so.
    pub(super) fn tell_findings(&self, errors: &mut Vec<ObjectError>, notes: &mut Vec<String>) {
        for finding in &self.findings {
            let object = match finding {
                Finding::PodWithoutInterface { pod, .. }
                | Finding::AddressOfTwoPods { loser: pod, .. }
                | Finding::AddressOnTwoInterfaces { pod, .. } => format!("Pod {pod}"),
                Finding::PodWithoutAddress { pod, .. } if self.is_lost(finding) => {
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
