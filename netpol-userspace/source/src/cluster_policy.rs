//! ClusterNetworkPolicy (`policy.networking.k8s.io`, v1beta1 and v1alpha2, which have one schema) as
//! it is written. Every field may be absent, so that an object that a newer server let in can be
//! read; a peer of a kind that is not known here has no field at all. Must never judge.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use serde::{Deserialize, Serialize};

/// The group of the kind.
pub const GROUP: &str = "policy.networking.k8s.io";
/// The versions that are understood, the newer first.
pub const VERSIONS: [&str; 2] = ["v1beta1", "v1alpha2"];
/// The kind.
pub const KIND: &str = "ClusterNetworkPolicy";
/// Its name in an API server's paths.
pub const PLURAL: &str = "clusternetworkpolicies";

/// The whole object, without its status.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ClusterNetworkPolicy {
    /// The name counts; the kind is in no namespace.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// What it says.
    #[serde(default)]
    pub spec: Option<ClusterNetworkPolicySpec>,
}

/// What a policy says.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClusterNetworkPolicySpec {
    /// `Admin` or `Baseline`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tier: Option<String>,
    /// 0 to 1000, the lower first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<i64>,
    /// The pods that it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subject: Option<PodsPeer>,
    /// Rules for what comes in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ingress: Option<Vec<IngressRule>>,
    /// Rules for what goes out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub egress: Option<Vec<EgressRule>>,
}

/// Pods, in one of two ways: a subject, or a peer of an ingress rule.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodsPeer {
    /// All pods of these namespaces.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespaces: Option<LabelSelector>,
    /// Some pods of some namespaces.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pods: Option<NamespacedPod>,
}

/// Some pods of some namespaces.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NamespacedPod {
    /// Which namespaces.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace_selector: Option<LabelSelector>,
    /// Which pods there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod_selector: Option<LabelSelector>,
}

/// One rule for what comes in.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct IngressRule {
    /// What its author calls it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// `Accept`, `Deny` or `Pass`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub action: Option<String>,
    /// Whom it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<Vec<PodsPeer>>,
    /// Which protocols and ports; absent means everything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocols: Option<Vec<ProtocolMatch>>,
}

/// One rule for what goes out.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EgressRule {
    /// What its author calls it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// `Accept`, `Deny` or `Pass`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub action: Option<String>,
    /// Whom it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<Vec<EgressPeer>>,
    /// Which protocols and ports; absent means everything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocols: Option<Vec<ProtocolMatch>>,
}

/// A peer of an egress rule: one of these.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EgressPeer {
    /// All pods of these namespaces.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespaces: Option<LabelSelector>,
    /// Some pods of some namespaces.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pods: Option<NamespacedPod>,
    /// These nodes' addresses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nodes: Option<LabelSelector>,
    /// Blocks of addresses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub networks: Option<Vec<String>>,
    /// Names in the DNS; not enforced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domain_names: Option<Vec<String>>,
}

/// A protocol and its ports: one of these.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ProtocolMatch {
    /// TCP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp: Option<DestinationPort>,
    /// UDP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub udp: Option<DestinationPort>,
    /// SCTP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sctp: Option<DestinationPort>,
    /// A port of the destination pod, of whatever protocol, by its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination_named_port: Option<String>,
}

/// What a protocol is narrowed to.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DestinationPort {
    /// The ports.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination_port: Option<Port>,
}

/// A port or a range: one of these.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Port {
    /// One port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub number: Option<i32>,
    /// Several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub range: Option<Range>,
}

/// From the first to the last port.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Range {
    /// The first.
    pub start: i32,
    /// The last.
    pub end: i32,
}
