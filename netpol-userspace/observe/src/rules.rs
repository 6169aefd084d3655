//! What one endpoint may do, and by whose word.

use std::net::IpAddr;

use serde::Serialize;

use super::drops::{self, Drops};
use netpol_api::state::{ClusterRule, DirectionView, EndpointView, Rule, is_zero};
use netpol_datapath::{DatapathError, Maps};
use netpol_model::Direction;

/// What passes whatever the policies say.
pub(crate) const ALWAYS_ALLOWED: [&str; 4] = [
    "replies to connections that are allowed, and ICMP errors about them",
    "connections that this node itself opens to the pod",
    "connections of the pod to itself",
    "ARP and IPv6 neighbour discovery",
];

/// An endpoint's rules.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Rules {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub pod: String,
    /// The pod's addresses.
    pub ips: Vec<IpAddr>,
    /// Name of the host-side interface.
    pub interface: String,
    /// Ingress.
    pub ingress: Side,
    /// Egress.
    pub egress: Side,
    /// What passes whatever the policies say.
    pub always_allowed: &'static [&'static str],
}

/// One direction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Side {
    /// Whether any NetworkPolicy isolates it; if none does, everything is allowed that
    /// ClusterNetworkPolicies do not deny.
    pub isolated: bool,
    /// Those that do.
    pub policies: Vec<String>,
    /// What they allow.
    pub allowed: Vec<Rule>,
    /// The rules of ClusterNetworkPolicies that are asked, in their order: those of the Admin tier
    /// before NetworkPolicies.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cluster_rules: Vec<ClusterRule>,
    /// How many peers of rules are not among them, since there are very many.
    #[serde(skip_serializing_if = "is_zero")]
    pub untold: usize,
    /// Packets dropped by reason; absent if the maps cannot be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drops: Option<Drops>,
}

/// The rules of `endpoint`, with counters if there are maps.
pub fn of(endpoint: &EndpointView, maps: Option<&Maps>) -> Result<Rules, DatapathError> {
    let side = |view: &DirectionView, direction| -> Result<_, DatapathError> {
        Ok(Side {
            isolated: view.isolated,
            policies: view.policies().to_vec(),
            allowed: view.rules().to_vec(),
            cluster_rules: view.cluster_rules().to_vec(),
            untold: view.isolation.untold,
            drops: maps.map(|maps| drops::of_endpoint(maps, endpoint.id, direction)).transpose()?,
        })
    };
    Ok(Rules {
        namespace: endpoint.namespace.clone(),
        pod: endpoint.pod.clone(),
        ips: endpoint.ips.clone(),
        interface: endpoint.interface.clone(),
        ingress: side(&endpoint.ingress, Direction::Ingress)?,
        egress: side(&endpoint.egress, Direction::Egress)?,
        always_allowed: &ALWAYS_ALLOWED,
    })
}
