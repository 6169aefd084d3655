//! ClusterNetworkPolicies (`policy.networking.k8s.io`), as the comments on upstream's Go types word
//! them, on the objects themselves. Like the rest of the evaluator it must never share code with
//! what it is compared with, nor be made faster or cleverer.
//!
//! Decisions of netpol's own: of policies of one tier with equal priorities that with the smaller
//! name is asked first; a node's addresses are its internal and external ones; domain names are
//! not understood. A policy of an unknown tier, or with a subject of which nothing is known, says
//! nothing.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use serde::Deserialize;

use super::{Reference, declares, labels, protocol_name, range, selects, services, takes_part};
use netpol_model::Direction;

/// One object, with the fields that upstream's types have. Others are not seen.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct ClusterPolicy {
    metadata: ObjectMeta,
    spec: Spec,
}

#[derive(Debug, Clone, Deserialize)]
struct Spec {
    tier: String,
    priority: i64,
    subject: Subject,
    #[serde(default)]
    ingress: Vec<Rule>,
    #[serde(default)]
    egress: Vec<Rule>,
}

#[derive(Debug, Clone, Deserialize)]
struct Subject {
    namespaces: Option<LabelSelector>,
    pods: Option<NamespacedPod>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct NamespacedPod {
    // If empty, it selects all namespaces; it is optional.
    #[serde(default)]
    namespace_selector: LabelSelector,
    pod_selector: LabelSelector,
}

/// A rule of either direction.
#[derive(Debug, Clone, Deserialize)]
struct Rule {
    action: String,
    #[serde(default)]
    from: Vec<Peer>,
    #[serde(default)]
    to: Vec<Peer>,
    #[serde(default)]
    protocols: Vec<Protocol>,
}

/// A peer of either direction.
#[derive(Debug, Clone, Deserialize)]
struct Peer {
    namespaces: Option<LabelSelector>,
    pods: Option<NamespacedPod>,
    nodes: Option<LabelSelector>,
    networks: Option<Vec<String>>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Protocol {
    tcp: Option<Transport>,
    udp: Option<Transport>,
    sctp: Option<Transport>,
    destination_named_port: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Transport {
    destination_port: Option<Port>,
}

#[derive(Debug, Clone, Deserialize)]
struct Port {
    number: Option<i32>,
    range: Option<PortRange>,
}

#[derive(Debug, Clone, Deserialize)]
struct PortRange {
    start: i32,
    end: i32,
}

/// What a tier has decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Decision {
    Accept,
    Deny,
    /// Nothing: no rule matches, or one that passes it on.
    None,
}

/// A packet that opens something, as a pod's policies see it.
#[derive(Clone, Copy)]
pub(super) struct Opening<'a> {
    pub direction: Direction,
    pub pod: &'a Pod,
    pub remote: IpAddr,
    pub protocol: u8,
    pub dest_port: u16,
}

impl Reference {
    /// What the policies of a tier, `Admin` or `Baseline`, say. Those with a lower priority value
    /// are checked first, the rules of each in the order in which they are written, and the first
    /// one that matches decides.
    pub(super) fn tier(&self, tier: &str, opening: Opening<'_>) -> Decision {
        for policy in self.policies_of_tier(tier, opening.direction, opening.pod) {
            for rule in policy.rules(opening.direction) {
                match self.rule(rule, opening) {
                    None => {}
                    Some("Accept") => return Decision::Accept,
                    Some("Deny") => return Decision::Deny,
                    // Skips all further rules of the tier.
                    Some(_) => return Decision::None,
                }
            }
        }
        Decision::None
    }

    /// Whether a policy of a tier has anything to say of the pod in this direction.
    pub(super) fn is_in_tier(&self, tier: &str, direction: Direction, pod: &Pod) -> bool {
        !self.policies_of_tier(tier, direction, pod).is_empty()
    }

    /// Those that select the pod and have rules for the direction, in the order in which they are
    /// asked. Policies without rules for a direction do not affect it.
    fn policies_of_tier(&self, tier: &str, direction: Direction, pod: &Pod) -> Vec<&ClusterPolicy> {
        let all = self.cluster_policies.iter();
        let mut found: Vec<&ClusterPolicy> = all
            .filter(|policy| policy.spec.tier == tier)
            .filter(|policy| !policy.rules(direction).is_empty())
            .filter(|policy| self.is_subject(&policy.spec.subject, pod))
            .collect();
        found.sort_by_key(|policy| (policy.spec.priority, policy.metadata.name.clone()));
        found
    }

    /// Pods on the host's network are not included in the selection.
    fn is_subject(&self, subject: &Subject, pod: &Pod) -> bool {
        if let Some(namespaces) = &self.subject_namespaces {
            let then = Self { namespaces: namespaces.clone(), ..Self::default() };
            return then.is_subject(subject, pod);
        }
        match subject {
            Subject { namespaces: Some(selector), .. } => self.is_in_namespaces(selector, pod),
            Subject { pods: Some(pods), .. } => self.is_one_of(pods, pod),
            Subject { .. } => false,
        }
    }

    /// The action of a rule that matches. What fails closed is a rule that matches nothing if it
    /// would accept, and one that denies all if it would do anything else.
    fn rule<'a>(&self, rule: &'a Rule, opening: Opening<'_>) -> Option<&'a str> {
        let peers = match opening.direction {
            Direction::Ingress => &rule.from,
            Direction::Egress => &rule.to,
        };
        let is_known = matches!(rule.action.as_str(), "Accept" | "Deny" | "Pass")
            && !peers.is_empty()
            && peers.iter().all(|peer| peer.is_known(opening.direction))
            && rule.protocols.iter().all(Protocol::is_known);
        if !is_known {
            return (rule.action != "Accept").then_some("Deny");
        }
        let matches = peers.iter().any(|peer| self.cluster_peer_matches(peer, opening.remote))
            && self.protocols_match(&rule.protocols, opening);
        matches.then_some(rule.action.as_str())
    }

    /// Networks and nodes are matched by address, whoever has it; namespaces and pods mean pods
    /// that have a network of their own.
    fn cluster_peer_matches(&self, peer: &Peer, remote: IpAddr) -> bool {
        match peer {
            Peer { networks: Some(networks), .. } => {
                networks.iter().any(|network| range::contains(network, remote))
            }
            Peer { nodes: Some(selector), .. } => self.nodes.iter().any(|node| {
                let labels = node.metadata.labels.clone().unwrap_or_default();
                labels::matches(selector, &labels)
                    && services::node_addresses(node).contains(&remote)
            }),
            Peer { namespaces: Some(selector), .. } => {
                self.pod_at(remote).is_some_and(|pod| self.is_in_namespaces(selector, pod))
            }
            Peer { pods: Some(pods), .. } => {
                self.pod_at(remote).is_some_and(|pod| self.is_one_of(pods, pod))
            }
            Peer { .. } => false,
        }
    }

    /// All pods within a set of namespaces.
    fn is_in_namespaces(&self, selector: &LabelSelector, pod: &Pod) -> bool {
        takes_part(pod) && self.namespace_selected(selector, &pod.metadata)
    }

    /// Some pods in a set of namespaces.
    fn is_one_of(&self, pods: &NamespacedPod, pod: &Pod) -> bool {
        self.is_in_namespaces(&pods.namespace_selector, pod)
            && selects(&pods.pod_selector, &pod.metadata)
    }

    /// If unspecified, protocol-specific attributes are not used to match traffic.
    fn protocols_match(&self, protocols: &[Protocol], opening: Opening<'_>) -> bool {
        if protocols.is_empty() {
            return true;
        }
        let Some(name) = protocol_name(opening.protocol) else { return false };
        let number = i32::from(opening.dest_port);
        let destination = match opening.direction {
            Direction::Ingress => Some(opening.pod),
            Direction::Egress => self.pod_at(opening.remote),
        };
        protocols.iter().any(|protocol| match &protocol.destination_named_port {
            // By name, whatever its protocol is.
            Some(wanted) => destination.is_some_and(|pod| declares(pod, wanted, name, number)),
            None => protocol.transport(name).is_some_and(|transport| transport.matches(number)),
        })
    }

    /// Every number of a port in a rule.
    pub(super) fn cluster_policy_ports(&self) -> Vec<i32> {
        let policies = self.cluster_policies.iter();
        let rules =
            policies.flat_map(|policy| policy.spec.ingress.iter().chain(&policy.spec.egress));
        let mut found = Vec::new();
        for protocol in rules.flat_map(|rule| &rule.protocols) {
            for transport in [&protocol.tcp, &protocol.udp, &protocol.sctp].into_iter().flatten() {
                let Some(port) = &transport.destination_port else { continue };
                found.extend(port.number);
                found.extend(port.range.iter().flat_map(|range| [range.start, range.end]));
            }
        }
        found
    }

    /// The objects as they are read. What lacks a required field is not there at all.
    pub(super) fn read_cluster_policies(objects: Vec<serde_json::Value>) -> Vec<ClusterPolicy> {
        let read = |object| serde_json::from_value(object).ok();
        objects.into_iter().filter_map(read).collect()
    }
}

impl ClusterPolicy {
    fn rules(&self, direction: Direction) -> &[Rule] {
        match direction {
            Direction::Ingress => &self.spec.ingress,
            Direction::Egress => &self.spec.egress,
        }
    }
}

impl Peer {
    /// If no field is set, the object is of a version with an unknown one. Networks and nodes are
    /// peers of egress rules only; a domain name is not understood in any.
    fn is_known(&self, direction: Direction) -> bool {
        let of_egress = self.nodes.is_some() || self.networks.is_some();
        self.namespaces.is_some()
            || self.pods.is_some()
            || of_egress && direction == Direction::Egress
    }
}

impl Protocol {
    fn is_known(&self) -> bool {
        let transports = [&self.tcp, &self.udp, &self.sctp];
        self.destination_named_port.is_some()
            || transports.into_iter().flatten().any(Transport::is_known)
    }

    fn transport(&self, name: &str) -> Option<&Transport> {
        match name {
            "TCP" => self.tcp.as_ref(),
            "UDP" => self.udp.as_ref(),
            _ => self.sctp.as_ref(),
        }
    }
}

impl Transport {
    fn is_known(&self) -> bool {
        let port = self.destination_port.as_ref();
        port.is_some_and(|port| port.number.is_some() || port.range.is_some())
    }

    /// The number, or the range with both ends included.
    fn matches(&self, number: i32) -> bool {
        match &self.destination_port {
            Some(Port { number: Some(only), .. }) => *only == number,
            Some(Port { range: Some(range), .. }) => range.start <= number && number <= range.end,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests;
