//! What an API server has to list: a synthetic cluster, and some objects by hand. Must never
//! change while it is served.

use std::sync::Arc;

use serde_json::Value;

use super::synthetic::{Cluster, Workload, node_json, service_json, slice_json};

/// The kinds of objects that agents read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Namespaces.
    Namespace,
    /// Pods.
    Pod,
    /// NetworkPolicies.
    Policy,
    /// Services.
    Service,
    /// EndpointSlices.
    EndpointSlice,
    /// Nodes.
    Node,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Namespace, Self::Pod, Self::Policy, Self::Service, Self::EndpointSlice, Self::Node];

    /// As in URLs.
    pub fn resource(self) -> &'static str {
        match self {
            Self::Namespace => "namespaces",
            Self::Pod => "pods",
            Self::Policy => "networkpolicies",
            Self::Service => "services",
            Self::EndpointSlice => "endpointslices",
            Self::Node => "nodes",
        }
    }

    /// As in objects.
    pub fn name(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::Pod => "Pod",
            Self::Policy => "NetworkPolicy",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Node => "Node",
        }
    }

    /// As in objects.
    pub fn api_version(self) -> &'static str {
        match self {
            Self::Policy => "networking.k8s.io/v1",
            Self::EndpointSlice => "discovery.k8s.io/v1",
            _ => "v1",
        }
    }
}

/// A cluster with some objects more.
#[derive(Clone)]
pub struct Objects {
    cluster: Arc<Cluster>,
    more: Arc<Vec<(Kind, Value)>>,
    /// Indices of the workloads that have Services.
    services: Arc<[usize]>,
    /// Where the pods of each workload begin, and the end.
    pods_of: Arc<[usize]>,
}

impl Objects {
    /// These objects.
    pub fn new(cluster: Arc<Cluster>, more: Vec<(Kind, Value)>) -> Self {
        let workloads = cluster.workloads.iter().enumerate();
        let services = workloads.filter(|(_, workload)| workload.service.is_some());
        let services = services.map(|(index, _)| index).collect();
        let begin = |index| cluster.pods.partition_point(|pod| (pod.workload as usize) < index);
        let pods_of = (0..=cluster.workloads.len()).map(begin).collect();
        Self { cluster, more: Arc::new(more), services, pods_of }
    }

    /// The cluster.
    pub fn cluster(&self) -> &Arc<Cluster> {
        &self.cluster
    }

    /// How many there are of a kind.
    pub fn len(&self, kind: Kind) -> usize {
        self.len_of_cluster(kind) + self.more(kind).count()
    }

    fn len_of_cluster(&self, kind: Kind) -> usize {
        match kind {
            Kind::Namespace => self.cluster.namespaces.len(),
            Kind::Pod => self.cluster.pods.len(),
            Kind::Policy => self.cluster.policies.len(),
            Kind::Service | Kind::EndpointSlice => self.services.len(),
            Kind::Node => self.cluster.size.nodes as usize,
        }
    }

    fn more(&self, kind: Kind) -> impl Iterator<Item = &Value> {
        self.more.iter().filter(move |(of, _)| *of == kind).map(|(_, object)| object)
    }

    /// Appends an object by its kind and its number.
    pub fn write(&self, kind: Kind, index: usize, version: u64, out: &mut String) {
        let cluster = &*self.cluster;
        let object = match (index.checked_sub(self.len_of_cluster(kind)), kind) {
            (Some(index), _) => self.more(kind).nth(index).map(|object| {
                let mut object = object.clone();
                object["metadata"]["resourceVersion"] = version.to_string().into();
                object
            }),
            (None, Kind::Pod) => {
                return cluster.pod_json(&cluster.pods[index], version, out);
            }
            (None, Kind::Namespace) => Some(cluster.namespaces[index].json(version)),
            (None, Kind::Policy) => {
                let policy = &cluster.policies[index];
                let namespace = &cluster.namespaces[policy.namespace as usize].name;
                Some(policy.json(namespace, version))
            }
            (None, Kind::Service) => service_json(cluster, self.workload(index), version),
            (None, Kind::EndpointSlice) => {
                let number = self.services[index];
                let pods = &cluster.pods[self.pods_of[number]..self.pods_of[number + 1]];
                slice_json(cluster, self.workload(index), pods, version)
            }
            (None, Kind::Node) => Some(node_json(index as u32, version)),
        };
        let text = object.map(|object| object.to_string());
        out.push_str(&text.expect("invariant: every number below the length is an object's"));
    }

    fn workload(&self, index: usize) -> &Workload {
        &self.cluster.workloads[self.services[index]]
    }
}
