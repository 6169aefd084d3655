//! The cluster as NetworkPolicy sees it: plain types and one store, nothing else.
//!
//! Everything a verdict may depend on is here and nothing a verdict cannot depend on. This
//! module must never know tokio, kube, aya, files or sockets: sources turn what they read into
//! [`Change`]s, the compiler reads the result.

#![forbid(unsafe_code)]

mod addresses;
pub mod cluster;
pub mod cluster_policy;
pub mod matching;
mod named;
pub mod policy;
pub mod selector;
pub mod service;
mod strings;
mod uid;

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use addresses::Addresses;
pub use cluster::Cluster;
pub use cluster_policy::{Action, ClusterPolicy, ClusterRule, Subject, Tier};
pub use named::{ByName, Named};
pub use policy::{IpBlock, NamespaceScope, Peer, Peers, Policy, PortMatch, PortRange, Ports, Rule};
pub use selector::{Labels, Operator, Requirement, Selector};
pub use service::{
    AddressFamily, EndpointSlice, Node, Proxy, Service, ServicePort, SliceEndpoint, SlicePort,
};
pub use strings::{Pool, Shared, Strings};
pub use uid::Uid;

/// A shared immutable string: names and labels are repeated thousands of times in a cluster.
pub type Str = Arc<str>;

/// `namespace/name` of a namespaced object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName {
    /// The object's namespace.
    pub namespace: Str,
    /// The object's name.
    pub name: Str,
}

impl ObjectName {
    /// The name of the object `name` in `namespace`.
    pub fn new(namespace: impl Into<Str>, name: impl Into<Str>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Traffic direction, always from the pod's view.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// Towards the pod.
    Ingress,
    /// From the pod.
    Egress,
}

impl Direction {
    /// Both directions, ingress first.
    pub const BOTH: [Self; 2] = [Self::Ingress, Self::Egress];

    /// `ingress` or `egress`, the words of the Kubernetes API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A transport protocol that NetworkPolicy can name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// IP protocol 6.
    Tcp,
    /// IP protocol 17.
    Udp,
    /// IP protocol 132.
    Sctp,
}

impl Protocol {
    /// All of them, in the order of the datapath's port sets.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Sctp];

    /// The IP protocol number (RFC 5237 registry).
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

    /// The protocol with this IP protocol number.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|protocol| protocol.number() == number)
    }

    /// `TCP`, `UDP` or `SCTP`, as the Kubernetes API spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A namespace and its labels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespace {
    /// Its name.
    pub name: Str,
    /// Its labels, `kubernetes.io/metadata.name` included.
    pub labels: Labels,
}

/// One declared container port that has a name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamedPort {
    /// The name a policy refers to.
    pub name: Str,
    /// Its protocol; a name matches only together with it.
    pub protocol: Protocol,
    /// The number on this pod.
    pub port: u16,
}

/// What a pod's annotations say of its addresses, as it was written by whoever may write pods.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AddressAnnotations {
    /// [`NETWORK_STATUS`]: a list in JSON, see the Network Plumbing Working Group's de-facto standard.
    pub network_status: Option<Str>,
    /// [`SOURCE_PREFIXES`]: blocks, separated by commas or white space.
    pub source_prefixes: Option<Str>,
}

impl AddressAnnotations {
    /// Nothing, if there are none.
    pub fn of(network_status: Option<Str>, source_prefixes: Option<Str>) -> Option<Box<Self>> {
        let is_some = network_status.is_some() || source_prefixes.is_some();
        is_some.then(|| Box::new(Self { network_status, source_prefixes }))
    }
}

/// The annotation in which Multus tells which interfaces and addresses a pod has got.
pub const NETWORK_STATUS: &str = "k8s.v1.cni.cncf.io/network-status";

/// The annotation that says which blocks a pod forwards for.
pub const SOURCE_PREFIXES: &str = "netpol.dev/source-prefixes";

/// What a verdict can depend on of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    /// Namespace and name.
    pub id: ObjectName,
    /// `metadata.uid`; for file sources without one, a value derived from namespace and name.
    pub uid: Uid,
    /// Its labels.
    pub labels: Labels,
    /// `spec.nodeName`, if scheduled.
    pub node: Option<Str>,
    /// `status.podIPs`, IPv4-mapped forms refused.
    pub addresses: Addresses,
    /// `spec.hostNetwork`: such a pod matches no selector and is no endpoint.
    pub host_network: bool,
    /// Phase Succeeded or Failed: the pod owns no address any more.
    pub finished: bool,
    /// Phase Running: it must have an interface on its node. No verdict depends on it.
    pub running: bool,
    /// Named container ports (`containers` and restartable `initContainers`).
    pub ports: Arc<[NamedPort]>,
    /// What its annotations say that an agent may be told to believe; of pods of this node, if so.
    pub annotations: Option<Box<AddressAnnotations>>,
    /// `metadata.creationTimestamp` in seconds since the epoch, 0 if unknown. Of two pods that
    /// claim one address the younger has it (ties: the smaller `namespace/name`).
    pub created: i64,
}

impl Pod {
    /// Whether the pod takes part in policy: has its own network and has not finished.
    pub fn is_networked(&self) -> bool {
        !self.host_network && !self.finished
    }
}

/// One change of one object, as a source reports it. Applying the same change twice is harmless.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A namespace was created or changed.
    Namespace(Namespace),
    /// A namespace is gone.
    NamespaceGone(Str),
    /// A pod was created or changed.
    Pod(Pod),
    /// A pod is gone. The uid, where known, keeps a late delete from removing a successor.
    PodGone(ObjectName, Option<Uid>),
    /// A policy was created or changed.
    Policy(Policy),
    /// A policy is gone.
    PolicyGone(ObjectName),
    /// A ClusterNetworkPolicy was created or changed.
    ClusterPolicy(ClusterPolicy),
    /// A ClusterNetworkPolicy is gone.
    ClusterPolicyGone(Str),
    /// A Service was created or changed.
    Service(Service),
    /// A Service is gone.
    ServiceGone(ObjectName),
    /// An EndpointSlice was created or changed.
    EndpointSlice(EndpointSlice),
    /// An EndpointSlice is gone.
    EndpointSliceGone(ObjectName),
    /// A node was created or changed.
    Node(Node),
    /// A node is gone.
    NodeGone(Str),
}

impl Change {
    /// The name of the object, if it is in a namespace and exists.
    pub fn name_mut(&mut self) -> Option<&mut ObjectName> {
        match self {
            Self::Pod(pod) => Some(&mut pod.id),
            Self::Policy(policy) => Some(&mut policy.id),
            Self::Service(service) => Some(&mut service.id),
            Self::EndpointSlice(slice) => Some(&mut slice.id),
            _ => None,
        }
    }
}
