//! JobOwner an endpoint is, as far as that is known, and which policy sets follow.
//!
//! A pod is judged as it was last seen for as long as its interface exists: its object may say
//! that it has ended, or be gone, while it runs. Policies are those of now. Must never give an
//! endpoint more than each of the pods may that it could be.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::wanted::Why;
use super::{Compiler, EndpointId, EndpointSets, Plan, planning};
use netpol_model::{Cluster, ObjectName, Pod, Str};

/// A local endpoint.
#[derive(Debug)]
pub(super) struct CompiledEndpoint {
    pub name: ObjectName,
    /// It is the pod of that name, whichever that is and whatever its object says.
    follows_name: bool,
    /// The pods that it may be, as last seen.
    pub pods: Vec<Pod>,
    /// Its pod is known, has an object, and has not ended by that.
    is_current: bool,
    pub sets: EndpointSets,
    /// Whether a plan has told its sets.
    pub announced: bool,
}

impl CompiledEndpoint {
    /// Of a name, or of those pods.
    fn new(name: ObjectName, pods: Option<Vec<Pod>>) -> Self {
        Self {
            name,
            follows_name: pods.is_none(),
            pods: pods.unwrap_or_default(),
            is_current: false,
            sets: planning::NOT_ISOLATED,
            announced: false,
        }
    }

    /// Brings what is known of its pods up to date. Returns whether the same policies say the same
    /// of them as before.
    pub fn refresh(&mut self, cluster: &Cluster) -> bool {
        let mut is_same = true;
        let mut replace = |pod: &mut Pod, now: &Pod| {
            is_same &= pod.id.namespace == now.id.namespace
                && pod.labels == now.labels
                && pod.ports == now.ports
                && pod.is_networked() == now.is_networked();
            if pod != now {
                *pod = now.clone();
            }
        };
        if self.follows_name {
            if let Some(now) = cluster.pod(&self.name) {
                match self.pods.first_mut() {
                    Some(pod) => replace(pod, now),
                    None => {
                        self.pods = vec![now.clone()];
                        is_same = false;
                    }
                }
            }
            self.is_current = self.pods.iter().any(Pod::is_networked);
            return is_same;
        }
        let is_only = self.pods.len() == 1;
        self.is_current = false;
        for pod in &mut self.pods {
            let now = cluster.pod(&pod.id);
            if let Some(now) = now.filter(|now| now.uid == pod.uid && now.is_networked()) {
                replace(pod, now);
                self.is_current = is_only;
            }
        }
        is_same
    }

    /// Nobody knows what it could be.
    pub fn is_unknown(&self) -> bool {
        self.pods.is_empty() && !self.follows_name
    }

    /// Where a Service leads to it.
    pub fn addresses(&self) -> &[IpAddr] {
        let pod = self.pods.first().filter(|_| self.is_current);
        pod.map(|pod| &*pod.addresses).unwrap_or_default()
    }

    /// The pods that it may be by this cluster.
    pub(crate) fn pods_now<'a>(&'a self, cluster: &'a Cluster) -> impl Iterator<Item = &'a Pod> {
        let named = cluster.pod(&self.name).filter(|_| self.follows_name);
        let last_seen = self.pods.iter().filter(move |_| named.is_none());
        named.into_iter().chain(last_seen)
    }

    /// Likewise, as they will be judged: what the cluster says of them counts before
    /// [`CompiledEndpoint::refresh`] too.
    pub(crate) fn pods_soon<'a>(&'a self, cluster: &'a Cluster) -> impl Iterator<Item = &'a Pod> {
        self.pods_now(cluster).map(|pod| {
            let now = cluster.pod(&pod.id);
            now.filter(|now| now.uid == pod.uid && now.is_networked()).unwrap_or(pod)
        })
    }

    /// Whether a change of the pod `id` concerns it.
    pub fn may_be(&self, id: &ObjectName) -> bool {
        self.name == *id || self.pods.iter().any(|pod| pod.id == *id)
    }

    /// The namespace whose policies decide, as far as one does.
    pub fn home(&self) -> &Str {
        match self.pods.as_slice() {
            [pod] => &pod.id.namespace,
            _ => &self.name.namespace,
        }
    }

    fn namespaces(&self) -> BTreeSet<Str> {
        let names = self.pods.iter().map(|pod| &pod.id.namespace);
        names.chain([&self.name.namespace]).cloned().collect()
    }
}

impl Compiler {
    /// From now on this endpoint is the interface of that pod. Before the pod is known, no policy
    /// can select it and the endpoint is not isolated: make endpoints of known pods only.
    pub fn set_endpoint(&mut self, id: EndpointId, pod: ObjectName) -> Plan {
        self.set_endpoints([(id, pod)])
    }

    /// Likewise for many endpoints at once, which is cheaper than one by one.
    pub fn set_endpoints(
        &mut self,
        endpoints: impl IntoIterator<Item = (EndpointId, ObjectName)>,
    ) -> Plan {
        self.put_endpoints(endpoints.into_iter().map(|(id, name)| (id, name, None)));
        self.settle()
    }

    /// From now on this endpoint is the interface of one of these pods, given as they were last
    /// seen. What comes of one with the same uid is followed, but not its end: the endpoint is
    /// judged by what was there before. If there are several, it may do nothing that the policies
    /// of one of them forbid; if there are none, nothing at all.
    pub fn set_holders(&mut self, id: EndpointId, name: ObjectName, pods: Vec<Pod>) -> Plan {
        self.enqueue_holders(id, name, pods);
        self.settle()
    }

    /// Likewise, as with [`Compiler::enqueue`].
    pub fn enqueue_holders(&mut self, id: EndpointId, name: ObjectName, pods: Vec<Pod>) {
        self.put_endpoints([(id, name, Some(pods))]);
    }

    fn put_endpoints(
        &mut self,
        endpoints: impl IntoIterator<Item = (EndpointId, ObjectName, Option<Vec<Pod>>)>,
    ) {
        for (id, name, pods) in endpoints {
            let mut endpoint = CompiledEndpoint::new(name, pods);
            if let Some(old) = self.endpoints.remove(&id) {
                self.unlist_endpoint(id, &old);
                self.forget_work(id);
                (endpoint.sets, endpoint.announced) = (old.sets, old.announced);
            }
            for namespace in endpoint.namespaces() {
                self.shares.recount_endpoints(&namespace);
                self.endpoints_in.entry(namespace).or_default().insert(id);
            }
            self.taken_in.look_at(endpoint.home(), id, Why::Anything);
            self.endpoints.insert(id, endpoint);
        }
    }

    /// Whatever is under way for an endpoint is of no use any more.
    fn forget_work(&mut self, id: EndpointId) {
        self.taken_in.forget(id);
        for set in self.jobs.values_mut().flat_map(|job| job.forget(id)) {
            self.engine.sets.release(set);
        }
    }

    /// The endpoint is gone: call this after the datapath stopped using it, because the plan
    /// removes the rows that only it needed.
    pub fn remove_endpoint(&mut self, id: EndpointId) -> Plan {
        self.enqueue_endpoint_removal(id);
        self.settle()
    }

    /// Likewise, as with [`Compiler::enqueue`].
    pub fn enqueue_endpoint_removal(&mut self, id: EndpointId) {
        let Some(endpoint) = self.endpoints.remove(&id) else { return };
        self.unlist_endpoint(id, &endpoint);
        self.forget_work(id);
        self.unnumbered.remove(&id);
        self.engine.services.set_addresses(id, Vec::new());
        self.engine.sets.release(endpoint.sets.ingress);
        self.engine.sets.release(endpoint.sets.egress);
    }

    fn unlist_endpoint(&mut self, id: EndpointId, endpoint: &CompiledEndpoint) {
        for namespace in endpoint.namespaces() {
            self.shares.recount_endpoints(&namespace);
            if let Some(ids) = self.endpoints_in.get_mut(&namespace) {
                ids.remove(&id);
                if ids.is_empty() {
                    self.endpoints_in.remove(&namespace);
                }
            }
        }
    }
}
