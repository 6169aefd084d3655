//! Services, their EndpointSlices and the nodes that Services are reached through. Must never
//! hold how a Service balances its load: a verdict cannot depend on that. (By whom a packet is seen
//! to come from it can, so what is said of traffic on one node alone is here, for who asks.)

use std::net::IpAddr;

use super::{Labels, ObjectName, Protocol, Str};

/// A Service that has addresses of its own. A headless or ExternalName Service has neither
/// addresses nor ports here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Namespace and name.
    pub id: ObjectName,
    /// `spec.clusterIPs`, of one family or of both.
    pub cluster_ips: Vec<IpAddr>,
    /// `spec.externalIPs`, and the load balancer's addresses that nodes translate themselves.
    pub external: Vec<IpAddr>,
    /// Its ports.
    pub ports: Vec<ServicePort>,
    /// Who translates packets to it.
    pub proxy: Proxy,
    /// `externalTrafficPolicy: Local`: what comes from outside stays on the node that it comes to,
    /// and keeps its source.
    pub is_external_local: bool,
    /// `internalTrafficPolicy: Local`: what goes to a cluster IP stays on the sender's node.
    pub is_internal_local: bool,
    /// `metadata.creationTimestamp` in seconds since the epoch, 0 if unknown. Of two Services that
    /// claim one address and port the older has it (ties: the smaller `namespace/name`).
    pub created: i64,
}

/// Who translates packets to a Service, and who heeds a slice of endpoints, as their labels say.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Proxy {
    /// kube-proxy, or whatever is there in its place.
    #[default]
    Usual,
    /// One of this name (label `service.kubernetes.io/service-proxy-name`, which may be empty).
    Named(Str),
    /// Nobody (label `service.kubernetes.io/headless`).
    Nobody,
}

impl Proxy {
    /// Whether the proxy of this name handles it; `None`: kube-proxy, which has no name.
    pub fn is_handled_by(&self, proxy: Option<&str>) -> bool {
        match self {
            Self::Usual => proxy.is_none(),
            Self::Named(name) => proxy == Some(name),
            Self::Nobody => false,
        }
    }
}

/// One port of a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePort {
    /// Its name, empty if it has none. EndpointSlices refer to it.
    pub name: Str,
    /// Its protocol.
    pub protocol: Protocol,
    /// The port on the Service's own addresses.
    pub port: u16,
    /// The port on every node's addresses, if there is one.
    pub node_port: Option<u16>,
}

/// IPv4 or IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AddressFamily {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl AddressFamily {
    /// The family of an address.
    pub fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
}

/// Some of a Service's backends, all of one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointSlice {
    /// Namespace and name.
    pub id: ObjectName,
    /// The Service it belongs to, in its own namespace (label `kubernetes.io/service-name`); empty
    /// if to none.
    pub service: Str,
    /// Whose Service's it is.
    pub proxy: Proxy,
    /// The family of all its addresses.
    pub family: AddressFamily,
    /// The ports that all its endpoints have.
    pub ports: Vec<SlicePort>,
    /// The backends.
    pub endpoints: Vec<SliceEndpoint>,
}

/// One port of the endpoints of a slice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlicePort {
    /// The name of the Service's port, empty if that has none.
    pub name: Str,
    /// Its protocol.
    pub protocol: Protocol,
    /// Where packets arrive: the number that a target port has been resolved to.
    pub port: u16,
}

/// One backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SliceEndpoint {
    /// Its address: of one with several a client may use any, so each is one.
    pub address: IpAddr,
    /// Condition `ready`; unknown means ready.
    pub ready: bool,
    /// Condition `serving`; unknown means as ready.
    pub serving: bool,
}

/// A node and its addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: Str,
    /// Its labels, by which ClusterNetworkPolicies mean nodes.
    pub labels: Labels,
    /// Its `InternalIP` and `ExternalIP` addresses, on which node ports are reached and which
    /// rules about nodes mean.
    pub addresses: Vec<IpAddr>,
}
