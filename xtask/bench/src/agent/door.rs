//! A pod that lets in, or does not, a pod of another node, and the ways in which that may change:
//! what shows by packets when an event is in force. Must never be one of the synthetic objects,
//! which say nothing about it.

use std::net::Ipv4Addr;

use serde_json::{Value, json};

use super::objects::Kind;
use super::synthetic::{LOCAL_NODE, node_name};

/// Address of the pod, on the agent's node.
pub const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 250);
/// Address of the other pod, which is on another node as far as objects say.
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 200, 0, 1);
const NAMESPACE: &str = "door";

/// What changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Edit {
    /// The client's labels.
    Relabel,
    /// Whether the client exists.
    Exist,
    /// The labels of its namespace.
    Namespace,
    /// Whom the policy lets in.
    Policy,
}

impl Edit {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Policy, Self::Exist, Self::Relabel, Self::Namespace];

    /// For tables, what opens and what closes.
    pub fn names(self) -> [&'static str; 2] {
        match self {
            Self::Relabel => ["pod relabelled, allowed", "pod relabelled, denied"],
            Self::Exist => ["pod added", "pod deleted"],
            Self::Namespace => ["namespace relabelled, allowed", "namespace relabelled, denied"],
            Self::Policy => ["policy edited, allows", "policy edited, denies"],
        }
    }

    /// The event that opens the door, or closes it: its kind, its type and the object.
    pub fn event(self, opens: bool) -> (Kind, &'static str, Value) {
        let who = if opens { "guest" } else { "stranger" };
        match self {
            Self::Relabel => (Kind::Pod, "MODIFIED", client(who)),
            Self::Exist => (Kind::Pod, if opens { "ADDED" } else { "DELETED" }, client("guest")),
            Self::Namespace => {
                let named = if opens { "open" } else { "shut" };
                (Kind::Namespace, "MODIFIED", namespace("away", named))
            }
            Self::Policy => {
                (Kind::Policy, "MODIFIED", policy(if opens { "guest" } else { "nobody" }))
            }
        }
    }
}

/// Everything at the beginning: the door is open.
pub fn objects() -> Vec<(Kind, Value)> {
    vec![
        (Kind::Namespace, namespace(NAMESPACE, "open")),
        (Kind::Namespace, namespace("away", "open")),
        (Kind::Pod, pod(NAMESPACE, "server", "server", SERVER, LOCAL_NODE)),
        (Kind::Pod, client("guest")),
        (Kind::Policy, policy("guest")),
    ]
}

fn namespace(name: &str, door: &str) -> Value {
    json!({"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": name, "uid": name,
        "labels": {"door": door, "kubernetes.io/metadata.name": name}}})
}

fn client(who: &str) -> Value {
    pod("away", "client", who, CLIENT, &node_name(1))
}

fn pod(namespace: &str, name: &str, who: &str, address: Ipv4Addr, node: &str) -> Value {
    json!({"kind": "Pod", "apiVersion": "v1",
        "metadata": {"name": name, "namespace": namespace, "uid": format!("door-{name}"),
            "creationTimestamp": "2026-01-02T03:04:05Z", "labels": {"who": who}},
        "spec": {"nodeName": node, "containers": [{"name": "c"}]},
        "status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]}})
}

/// Lets in the pods of that label from namespaces whose label says open.
fn policy(who: &str) -> Value {
    let peer = json!({"namespaceSelector": {"matchLabels": {"door": "open"}},
        "podSelector": {"matchLabels": {"who": who}}});
    json!({"kind": "NetworkPolicy", "apiVersion": "networking.k8s.io/v1",
        "metadata": {"name": "door", "namespace": NAMESPACE, "uid": "door"},
        "spec": {"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{"from": [peer]}]}})
}
