//! The store: what all sources together say exists now. Must never compile or decide anything.

use std::collections::BTreeMap;

use rustc_hash::FxHashMap;

use super::{
    ByName, Change, ClusterPolicy, EndpointSlice, Named, Namespace, Node, ObjectName, Pod, Policy,
    Service, Str,
};

/// Objects by namespace, then name.
pub(crate) type ByNamespace<T> = FxHashMap<Str, ByName<T>>;

/// Every known object, by name. A namespace that is only referred to has no entry here.
#[derive(Debug, Clone, Default)]
pub struct Cluster {
    /// Namespaces by name.
    pub namespaces: FxHashMap<Str, Namespace>,
    /// Pods by namespace, then name.
    pub pods: ByNamespace<Pod>,
    /// Policies by namespace, then name.
    pub policies: ByNamespace<Policy>,
    /// ClusterNetworkPolicies by name.
    pub cluster_policies: BTreeMap<Str, ClusterPolicy>,
    /// Services by namespace, then name.
    pub services: ByNamespace<Service>,
    /// EndpointSlices by namespace, then name.
    pub slices: ByNamespace<EndpointSlice>,
    /// Nodes by name.
    pub nodes: FxHashMap<Str, Node>,
}

impl Cluster {
    /// The pod of that name.
    pub fn pod(&self, id: &ObjectName) -> Option<&Pod> {
        self.pods.get(&id.namespace)?.get(&id.name)
    }

    /// The policy of that name.
    pub fn policy(&self, id: &ObjectName) -> Option<&Policy> {
        self.policies.get(&id.namespace)?.get(&id.name)
    }

    /// The Service of that name.
    pub fn service(&self, id: &ObjectName) -> Option<&Service> {
        self.services.get(&id.namespace)?.get(&id.name)
    }

    /// The EndpointSlice of that name.
    pub fn slice(&self, id: &ObjectName) -> Option<&EndpointSlice> {
        self.slices.get(&id.namespace)?.get(&id.name)
    }

    /// All pods.
    pub fn all_pods(&self) -> impl Iterator<Item = &Pod> {
        self.pods.values().flat_map(ByName::values).map(|object| &**object)
    }

    /// All policies.
    pub fn all_policies(&self) -> impl Iterator<Item = &Policy> {
        self.policies.values().flat_map(ByName::values).map(|object| &**object)
    }

    /// Stores one change. Returns whether anything differs from before.
    pub fn apply(&mut self, change: Change) -> bool {
        match change {
            Change::Namespace(namespace) => {
                self.namespaces.insert(namespace.name.clone(), namespace.clone()).as_ref()
                    != Some(&namespace)
            }
            Change::NamespaceGone(name) => self.namespaces.remove(&name).is_some(),
            Change::Pod(pod) => put(&mut self.pods, pod.id.namespace.clone(), pod),
            Change::PodGone(id, uid) => {
                if let (Some(uid), Some(pod)) = (&uid, self.pod(&id))
                    && pod.uid != *uid
                {
                    return false;
                }
                take(&mut self.pods, &id)
            }
            Change::Policy(policy) => put(&mut self.policies, policy.id.namespace.clone(), policy),
            Change::PolicyGone(id) => take(&mut self.policies, &id),
            Change::ClusterPolicy(policy) => {
                self.cluster_policies.insert(policy.name.clone(), policy.clone()).as_ref()
                    != Some(&policy)
            }
            Change::ClusterPolicyGone(name) => self.cluster_policies.remove(&name).is_some(),
            Change::Service(service) => {
                put(&mut self.services, service.id.namespace.clone(), service)
            }
            Change::ServiceGone(id) => take(&mut self.services, &id),
            Change::EndpointSlice(slice) => {
                put(&mut self.slices, slice.id.namespace.clone(), slice)
            }
            Change::EndpointSliceGone(id) => take(&mut self.slices, &id),
            Change::Node(node) => {
                self.nodes.insert(node.name.clone(), node.clone()).as_ref() != Some(&node)
            }
            Change::NodeGone(name) => self.nodes.remove(&name).is_some(),
        }
    }
}

fn put<T: Named + PartialEq>(store: &mut ByNamespace<T>, namespace: Str, object: T) -> bool {
    store.entry(namespace).or_default().put(object)
}

fn take<T: Named>(store: &mut ByNamespace<T>, id: &ObjectName) -> bool {
    let Some(by_name) = store.get_mut(&id.namespace) else { return false };
    let found = by_name.take(&id.name);
    if by_name.is_empty() {
        store.remove(&id.namespace);
    }
    found
}
