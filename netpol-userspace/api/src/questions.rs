//! What can be asked of a running agent about the cluster, at `POST /ask` of its socket: names
//! that are too many for the state file, and which policies allow something. Plain data.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// A question. The comment says of which type the answer is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "about", rename_all = "kebab-case")]
pub enum Question {
    /// Who is there? A list of [`Owner`]s, one for each.
    Ends {
        /// The addresses.
        ends: Vec<End>,
    },
    /// A pod of the cluster by name: [`PodInfo`] or null.
    Pod {
        /// `namespace/name`.
        name: String,
    },
    /// A Service by name: [`ServiceInfo`] or null.
    Service {
        /// `namespace/name`.
        name: String,
    },
    /// Every Service that has addresses: a list of [`ServiceInfo`]s, sorted.
    Services,
    /// The addresses of a node: a list.
    Node {
        /// Its name.
        name: String,
    },
    /// Which rules decide on these, in the order in which they are asked: for each a list of
    /// [`DecidingRule`]s, of which the last one is not passed on, unless nothing else is said.
    Deciding {
        /// The packets.
        openings: Vec<Opening>,
    },
    /// Which policies of a local endpoint have a rule that allows this: a list of
    /// `namespace/name`.
    Allowing {
        /// The endpoint's number.
        endpoint: u16,
        /// Towards the endpoint, not from it.
        is_ingress: bool,
        /// The other end.
        remote: IpAddr,
        /// IP protocol number.
        protocol: u8,
        /// Destination port.
        port: u16,
    },
}

/// The first packet of a connection of a local endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Opening {
    /// The endpoint's number.
    pub endpoint: u16,
    /// Towards the endpoint, not from it.
    pub is_ingress: bool,
    /// The other end.
    pub remote: IpAddr,
    /// IP protocol number.
    pub protocol: u8,
    /// Destination port.
    pub port: u16,
}

/// A rule that has a part in what becomes of a packet. Field names are relied on from outside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DecidingRule {
    /// `Admin`, `NetworkPolicy` or `Baseline`.
    pub tier: String,
    /// The policy, of the NetworkPolicy tier as `namespace/name`.
    pub policy: String,
    /// The rule by its place, such as `egress[0]`; `null`: the policy has none that allows it.
    pub rule: Option<String>,
    /// What its author calls it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The policy's priority; `null` for a NetworkPolicy.
    pub priority: Option<u16>,
    /// `Accept`, `Deny` or `Pass`.
    pub action: String,
}

/// The tier of NetworkPolicies, beside those that ClusterNetworkPolicies name.
pub const NETWORK_POLICY_TIER: &str = "NetworkPolicy";

impl DecidingRule {
    /// Whether a ClusterNetworkPolicy says it.
    pub fn is_of_cluster(&self) -> bool {
        self.tier != NETWORK_POLICY_TIER
    }

    /// Whether it leaves the decision to a later tier.
    pub fn is_pass(&self) -> bool {
        self.action == "Pass"
    }

    /// `ClusterNetworkPolicy base, rule egress[0] "dns", Baseline tier, priority 5`.
    pub fn describe(&self) -> String {
        let rule = self.rule.as_ref().map(|rule| format!(", rule {rule}")).unwrap_or_default();
        let name = self.name.as_ref().map(|name| format!(" {name:?}")).unwrap_or_default();
        match self.priority {
            Some(priority) => format!(
                "ClusterNetworkPolicy {}{rule}{name}, {} tier, priority {priority}",
                self.policy, self.tier
            ),
            None => format!("{}{rule}", self.policy),
        }
    }
}

/// An address and what is wanted there. Protocol and port tell Services of one address apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct End {
    /// The address.
    pub ip: IpAddr,
    /// IP protocol number, 0 if there is none.
    pub protocol: u8,
    /// The port, 0 if there is none.
    pub port: u16,
}

/// Who has an address; nothing is set if nobody is known to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// `namespace/name` of the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// `namespace/name` of the Service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// The node, if it is a node's address or a pod's of another node. Of this node also what is on
    /// its interfaces and not in its object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
}

/// A pod, on whichever node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodInfo {
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    /// Its node, once it has one.
    pub node: Option<String>,
    /// It has the network of its node and no addresses of its own.
    pub host_network: bool,
    /// It has ended and owns no address any more.
    pub finished: bool,
    /// Its named ports.
    pub ports: Vec<NamedPort>,
}

/// A port with a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedPort {
    /// The name.
    pub name: String,
    /// IP protocol number.
    pub protocol: u8,
    /// The number.
    pub port: u16,
}

/// A Service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceInfo {
    /// `namespace/name`.
    pub name: String,
    /// Its named ports, as they are on its own addresses.
    pub ports: Vec<NamedPort>,
    /// Those of its own addresses that are no cluster IPs.
    #[serde(default)]
    pub external: Vec<IpAddr>,
    /// `externalTrafficPolicy: Local`.
    #[serde(default)]
    pub is_external_local: bool,
    /// `internalTrafficPolicy: Local`.
    #[serde(default)]
    pub is_internal_local: bool,
    /// Where it is reached and where that leads, by port and family.
    pub fronts: Vec<FrontInfo>,
}

/// Addresses of a Service that lead to the same backends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FrontInfo {
    /// Those that are the Service's own: cluster, external and load balancer addresses.
    pub own: Vec<End>,
    /// Those of nodes.
    pub on_nodes: Vec<End>,
    /// The backends in use.
    pub backends: Vec<BackendInfo>,
}

/// One place where packets to a Service may end up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendInfo {
    /// Its address.
    pub ip: IpAddr,
    /// The port there.
    pub port: u16,
    /// Whose address it is.
    #[serde(flatten)]
    pub owner: Owner,
}
