//! Takes changes of objects into the cluster and notes what they touch. Must never settle
//! anything itself: several changes may come before that.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use super::wanted::Why;
use super::{Compiler, Dirty, engine, tiers};
use netpol_model::{Change, Cluster, ClusterPolicy, ObjectName, Peer, Pod, Str};

impl Compiler {
    /// Stores one change and notes what it touches.
    pub(super) fn note(&mut self, change: Change, dirty: &mut Dirty) {
        match change {
            Change::Pod(mut pod) => {
                self.strings.share_pod(&mut pod);
                self.apply_pod(pod.id.clone(), Change::Pod(pod), dirty);
            }
            Change::PodGone(id, uid) => {
                self.apply_pod(id.clone(), Change::PodGone(id, uid), dirty);
            }
            Change::Policy(mut policy) => {
                self.strings.share_policy(&mut policy);
                self.apply_policy(policy.id.clone(), Change::Policy(policy), dirty);
            }
            Change::PolicyGone(id) => {
                self.apply_policy(id.clone(), Change::PolicyGone(id), dirty);
            }
            Change::Namespace(namespace) => {
                let name = namespace.name.clone();
                self.apply_namespace(&name, Change::Namespace(namespace), dirty);
            }
            Change::NamespaceGone(name) => {
                self.apply_namespace(&name.clone(), Change::NamespaceGone(name), dirty);
            }
            Change::Service(service) => {
                self.apply_service(service.id.clone(), Change::Service(service));
            }
            Change::ServiceGone(id) => self.apply_service(id.clone(), Change::ServiceGone(id)),
            Change::EndpointSlice(slice) => {
                self.apply_slice(&slice.id.clone(), Change::EndpointSlice(slice));
            }
            Change::EndpointSliceGone(id) => {
                self.apply_slice(&id.clone(), Change::EndpointSliceGone(id));
            }
            Change::ClusterPolicy(mut policy) => {
                self.strings.share_cluster_policy(&mut policy);
                let name = policy.name.clone();
                self.apply_cluster_policy(&name, Change::ClusterPolicy(policy), dirty);
            }
            Change::ClusterPolicyGone(name) => {
                self.apply_cluster_policy(&name.clone(), Change::ClusterPolicyGone(name), dirty);
            }
            Change::Node(_) | Change::NodeGone(_) => {
                if self.cluster.apply(change) {
                    self.engine.services.touch_nodes(&self.cluster);
                    self.look_at_subjects_of_nodes(dirty);
                }
            }
        }
    }

    /// Stores the change of a pod and notes what it touches.
    fn apply_pod(&mut self, id: ObjectName, change: Change, dirty: &mut Dirty) {
        let before = owned_addresses(&self.cluster, &id);
        if !self.cluster.apply(change) {
            return;
        }
        let now = owned_addresses(&self.cluster, &id);
        let addresses = &mut self.engine.addresses;
        for &address in before.difference(&now) {
            if addresses.unclaim(address, &id, &self.cluster) {
                dirty.touched.blocks.push(IpNet::from(address));
            }
        }
        for &address in &now {
            if addresses.claim(address, &id, &self.cluster) {
                dirty.touched.blocks.push(IpNet::from(address));
            }
        }
        for endpoint in self.endpoints_in.get(&id.namespace).into_iter().flatten() {
            let its = &self.endpoints[endpoint];
            if its.may_be(&id) {
                self.shares.recount_endpoints(&id.namespace);
                dirty.look_at(its.home(), *endpoint, Why::Pod);
            }
        }
        // Atoms that do not exist yet will look at all pods by themselves.
        if !self.engine.atoms.is_empty() {
            dirty.touched.pods.insert(id);
        }
    }

    /// Takes the change of a policy, as it was read.
    fn apply_policy(&mut self, id: ObjectName, change: Change, dirty: &mut Dirty) {
        let now = match &change {
            Change::Policy(policy) => Some(policy),
            _ => None,
        };
        if !self.shares.note(&id, self.cluster.policy(&id), now) {
            self.store_policy(id, change, dirty);
        }
    }

    /// Stores the change of a policy and notes the endpoints that it did or does select.
    pub(super) fn store_policy(&mut self, id: ObjectName, change: Change, dirty: &mut Dirty) {
        let here = self.endpoints_in.get(&id.namespace);
        if here.is_none() {
            // Counted anew when it has endpoints again.
            self.mentions.remove(&id.namespace);
            self.cluster.apply(change);
            return;
        }
        let before = self.cluster.policy(&id).cloned();
        if !self.cluster.apply(change) {
            return;
        }
        let now = self.cluster.policy(&id);
        if let Some(mentions) = self.mentions.get_mut(&id.namespace) {
            before.iter().for_each(|policy| mentions.remove(policy));
            now.into_iter().for_each(|policy| mentions.add(policy));
        }
        for endpoint in here.into_iter().flatten() {
            let selects = |pod: &Pod| before.iter().chain(now).any(|p| p.pods.matches(&pod.labels));
            let its = &self.endpoints[endpoint];
            if its.pods_now(&self.cluster).any(selects) {
                dirty.look_at(its.home(), *endpoint, Why::Policy);
            }
        }
        // Also if it selects none now: a pod may have had other labels in between.
        let dirt = dirty.of(&id.namespace);
        dirt.policies.entry(id).or_insert(before);
    }

    /// Stores the change of a ClusterNetworkPolicy and notes the endpoints that it was or is about.
    fn apply_cluster_policy(&mut self, name: &Str, change: Change, dirty: &mut Dirty) {
        let before = self.cluster.cluster_policies.get(name).cloned();
        if !self.cluster.apply(change) {
            return;
        }
        self.cluster_sets.forget();
        let now = self.cluster.cluster_policies.get(name);
        let both: Vec<&ClusterPolicy> = before.iter().chain(now).collect();
        self.look_at_subjects(&both, dirty);
    }

    /// What rules about nodes mean has changed.
    fn look_at_subjects_of_nodes(&mut self, dirty: &mut Dirty) {
        self.cluster_sets.forget();
        let names_nodes = |policy: &&ClusterPolicy| {
            let rules = policy.ingress.iter().chain(&policy.egress);
            let mut peers = rules.flat_map(|rule| rule.peers.named());
            peers.any(|peer| matches!(peer, Peer::Nodes(_)))
        };
        let policies = self.cluster.cluster_policies.values().filter(names_nodes);
        self.look_at_subjects(&policies.collect::<Vec<_>>(), dirty);
    }

    fn look_at_subjects(&self, policies: &[&ClusterPolicy], dirty: &mut Dirty) {
        for (id, endpoint) in &self.endpoints {
            let is_meant = |pod: &Pod| {
                policies.iter().any(|policy| tiers::is_subject(&self.cluster, policy, pod))
            };
            if endpoint.pods_now(&self.cluster).any(is_meant) {
                dirty.look_at(endpoint.home(), *id, Why::Anything);
            }
        }
    }

    /// Stores the change of a Service and notes that it changed.
    fn apply_service(&mut self, id: ObjectName, change: Change) {
        if self.cluster.apply(change) {
            self.engine.services.touch(id);
        }
    }

    /// Stores the change of an EndpointSlice and notes the Services that it did or does belong to.
    fn apply_slice(&mut self, id: &ObjectName, change: Change) {
        let before = self.cluster.slice(id).cloned();
        if self.cluster.apply(change) {
            self.engine.services.touch_slice(before.as_ref(), self.cluster.slice(id));
        }
    }

    /// Stores the change of a namespace and notes its pods.
    fn apply_namespace(&mut self, name: &Str, change: Change, dirty: &mut Dirty) {
        let before = engine::namespace_labels(&self.cluster, name).into_owned();
        self.cluster.apply(change);
        let is_same = before == *engine::namespace_labels(&self.cluster, name);
        if !is_same && !self.cluster.cluster_policies.is_empty() {
            // Other policies may be about its pods.
            for id in self.endpoints_in.get(name).into_iter().flatten() {
                dirty.look_at(self.endpoints[id].home(), *id, Why::Anything);
            }
        }
        // Atoms that do not exist yet will look at all pods by themselves.
        if is_same || self.engine.atoms.is_empty() {
            return;
        }
        let pods = self.cluster.pods.get(name).into_iter().flat_map(|pods| pods.values());
        dirty.touched.pods.extend(pods.map(|pod| pod.id.clone()));
    }
}

/// The addresses that a pod claims.
fn owned_addresses(cluster: &Cluster, id: &ObjectName) -> BTreeSet<IpAddr> {
    let pod = cluster.pod(id).filter(|pod| pod.is_networked());
    pod.into_iter().flat_map(|pod| pod.addresses.iter().copied()).collect()
}
