//! The store: what all sources together say exists now. Must never compile or decide anything.

use std::collections::BTreeMap;

use rustc_hash::FxHashMap;

use super::{Change, EndpointSlice, Namespace, Node, ObjectName, Pod, Policy, Service, Str};

/// Objects by namespace, then name. Most namespaces have few of a kind, for which a map would keep
/// the room of eleven.
pub type ByNamespace<T> = FxHashMap<Str, BTreeMap<Str, Box<T>>>;

/// Every known object, by name. A namespace that is only referred to has no entry here.
#[derive(Debug, Clone, Default)]
pub struct Cluster {
    /// Namespaces by name.
    pub namespaces: FxHashMap<Str, Namespace>,
    /// Pods by namespace, then name.
    pub pods: ByNamespace<Pod>,
    /// Policies by namespace, then name.
    pub policies: ByNamespace<Policy>,
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
        self.pods.get(&id.namespace)?.get(&id.name).map(|object| &**object)
    }

    /// The policy of that name.
    pub fn policy(&self, id: &ObjectName) -> Option<&Policy> {
        self.policies.get(&id.namespace)?.get(&id.name).map(|object| &**object)
    }

    /// The Service of that name.
    pub fn service(&self, id: &ObjectName) -> Option<&Service> {
        self.services.get(&id.namespace)?.get(&id.name).map(|object| &**object)
    }

    /// The EndpointSlice of that name.
    pub fn slice(&self, id: &ObjectName) -> Option<&EndpointSlice> {
        self.slices.get(&id.namespace)?.get(&id.name).map(|object| &**object)
    }

    /// All pods.
    pub fn all_pods(&self) -> impl Iterator<Item = &Pod> {
        self.pods.values().flat_map(BTreeMap::values).map(|object| &**object)
    }

    /// All policies.
    pub fn all_policies(&self) -> impl Iterator<Item = &Policy> {
        self.policies.values().flat_map(BTreeMap::values).map(|object| &**object)
    }

    /// Stores one change. Returns whether anything differs from before.
    pub fn apply(&mut self, change: Change) -> bool {
        match change {
            Change::Namespace(namespace) => {
                self.namespaces.insert(namespace.name.clone(), namespace.clone()).as_ref()
                    != Some(&namespace)
            }
            Change::NamespaceGone(name) => self.namespaces.remove(&name).is_some(),
            Change::Pod(pod) => put(&mut self.pods, &pod.id.clone(), pod),
            Change::PodGone(id, uid) => {
                if let (Some(uid), Some(pod)) = (&uid, self.pod(&id))
                    && pod.uid != *uid
                {
                    return false;
                }
                take(&mut self.pods, &id)
            }
            Change::Policy(policy) => put(&mut self.policies, &policy.id.clone(), policy),
            Change::PolicyGone(id) => take(&mut self.policies, &id),
            Change::Service(service) => put(&mut self.services, &service.id.clone(), service),
            Change::ServiceGone(id) => take(&mut self.services, &id),
            Change::EndpointSlice(slice) => put(&mut self.slices, &slice.id.clone(), slice),
            Change::EndpointSliceGone(id) => take(&mut self.slices, &id),
            Change::Node(node) => {
                self.nodes.insert(node.name.clone(), node.clone()).as_ref() != Some(&node)
            }
            Change::NodeGone(name) => self.nodes.remove(&name).is_some(),
        }
    }
}

fn put<T: PartialEq>(store: &mut ByNamespace<T>, id: &ObjectName, object: T) -> bool {
    let by_name = store.entry(id.namespace.clone()).or_default();
    match by_name.get_mut(&id.name) {
        Some(known) if **known == object => return false,
        Some(known) => **known = object,
        None => {
            by_name.insert(id.name.clone(), Box::new(object));
        }
    }
    true
}

fn take<T>(store: &mut ByNamespace<T>, id: &ObjectName) -> bool {
    let Some(by_name) = store.get_mut(&id.namespace) else { return false };
    let found = by_name.remove(&id.name).is_some();
    if by_name.is_empty() {
        store.remove(&id.namespace);
    }
    found
}
