//! What is known of whose the interfaces are beside what they look like: what an earlier agent knew,
//! when pods came, which have had an interface, and what they were like while they ran. Must never
//! forget a pod that an interface may still be of.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::RangeInclusive;

use crate::{memory, unix_time};
use netpol_api::state::State;
use netpol_compile::EndpointId;
use netpol_datapath::Datapath;
use netpol_endpoint::{Endpoint, Holder, Pinned, Route, Routes, Snapshot};
use netpol_model::{Pod, Uid};

/// Seconds by which the clocks of the node and of the API server may differ, and by which an
/// interface may be seen later than the status of its pod.
const SLACK: i64 = 5;
/// Seconds by which the agent may hear of a pod later than the kubelet, which makes its interface.
const LAG: i64 = 60;

/// What is known of whose the interfaces are.
pub(crate) struct Holders {
    /// What an earlier agent knew, for the first matching: a pod must not shed its policies by
    /// changing its addresses while no agent looks.
    remembered: Vec<Endpoint>,
    /// What it enforced and nobody remembers.
    pinned: Vec<Pinned>,
    /// The endpoints' pods as they were last seen while they ran, by uid.
    pods: BTreeMap<Uid, Pod>,
    /// Which of them the compiler has as those that an endpoint may be.
    compiled: BTreeMap<EndpointId, Vec<Uid>>,
    /// Pods of this node that have had an interface.
    placed: BTreeSet<Uid>,
    /// When pods came to this node, in seconds since the epoch.
    arrived: BTreeMap<Uid, i64>,
    /// Those that have not had an interface yet, and when theirs must have come up.
    awaited: BTreeMap<Uid, RangeInclusive<i64>>,
    routes: Option<Routes>,
}

impl Holders {
    /// From what an earlier agent left.
    pub(crate) fn adopt(
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
            compiled: BTreeMap::new(),
            awaited: BTreeMap::new(),
            routes: routes.ok(),
        }
    }

    // === Evidence ===

    /// What an earlier agent knew, once.
    pub(super) fn take_remembered(&mut self) -> Vec<Endpoint> {
        std::mem::take(&mut self.remembered)
    }

    /// What an earlier agent enforced and nobody remembers.
    pub(super) fn pinned(&self) -> &[Pinned] {
        &self.pinned
    }

    /// Pods that have not had an interface yet, and when theirs must have come up.
    pub(super) fn awaited(&self) -> &BTreeMap<Uid, RangeInclusive<i64>> {
        &self.awaited
    }

    /// Where the node sends what is for these addresses.
    pub(super) fn routes_to(
        &mut self,
        addresses: impl Iterator<Item = IpAddr>,
    ) -> BTreeMap<IpAddr, Route> {
        self.routes.as_mut().map(|routes| routes.to(addresses)).unwrap_or_default()
    }

    /// Routes may have changed.
    pub(crate) fn forget_routes(&mut self) {
        if let Some(routes) = &mut self.routes {
            routes.forget();
        }
    }

    /// Records when pods were first heard of that ought to have an interface.
    pub(super) fn await_pods(&mut self, pods: &[&Pod]) {
        let now = unix_time();
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

    /// Records what a matching has found.
    pub(super) fn record(&mut self, endpoints: &[Endpoint], pods: &[&Pod]) {
        let wanted: BTreeSet<Uid> = endpoints.iter().flat_map(possible).collect();
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
    }

    // === What the compiler has ===

    /// The pods that an endpoint may be, unless the compiler has them. None if one of them may be one
    /// of which nothing is known.
    pub(super) fn uncompiled(&mut self, id: EndpointId, endpoint: &Endpoint) -> Option<Vec<Pod>> {
        let uids = possible(endpoint);
        if self.compiled.get(&id) == Some(&uids) {
            return None;
        }
        let pods = uids.iter().filter_map(|uid| self.pods.get(uid)).cloned();
        let mut pods: Vec<Pod> = pods.collect();
        if pods.len() < uids.len() {
            pods.clear();
        }
        self.compiled.insert(id, uids);
        Some(pods)
    }

    /// An endpoint has this number no more.
    pub(super) fn forget(&mut self, id: EndpointId) {
        self.compiled.remove(&id);
    }

    // === For people, and for the next agent ===

    /// The pods as they were last seen.
    pub(crate) fn pods(&self) -> &BTreeMap<Uid, Pod> {
        &self.pods
    }

    /// The uids of pods that have had an interface.
    pub(crate) fn placed(&self) -> impl Iterator<Item = &Uid> {
        self.placed.iter()
    }

    /// When pods came to this node, by uid.
    pub(crate) fn arrived(&self) -> impl Iterator<Item = (&Uid, i64)> {
        self.arrived.iter().map(|(uid, at)| (uid, *at))
    }
}

/// The pods that an endpoint may be.
fn possible(endpoint: &Endpoint) -> Vec<Uid> {
    match &endpoint.holder {
        Holder::Current | Holder::Former => vec![endpoint.uid.clone()],
        Holder::OneOf(uids) => uids.clone(),
        Holder::Unknown => Vec::new(),
    }
}
