//! Random ClusterNetworkPolicies and nodes, as JSON: mostly such as today's API server admits, some with
//! fields of a version to come. Small alphabets, so that rules overlap and priorities are equal.

use std::collections::BTreeSet;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Node, NodeAddress, NodeStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Map, Value, json};

use super::{KEYS, NAMESPACE_KEYS, PORT_NAMES, PORTS, Rng, address, labels, selector, splice};

const NODE_KEYS: [&str; 2] = ["zone", "pool"];
const PRIORITIES: [u16; 5] = [0, 1, 1, 7, 1000];
const ACTIONS: [&str; 3] = ["Accept", "Deny", "Pass"];
const PROTOCOLS: [&str; 3] = ["tcp", "udp", "sctp"];
/// Rules of a direction at most.
const RULES: usize = 4;

/// An address for a Service or a node: seldom one that pods have too.
pub(super) fn outer_address(rng: &mut Rng, v6: bool) -> IpAddr {
    if rng.chance(10) {
        return address(rng, v6);
    }
    let low = u16::try_from(rng.below(6)).unwrap_or(0);
    match v6 {
        false => IpAddr::from([10, 0, 200, u8::try_from(low).unwrap_or(0)]),
        true => IpAddr::from([0xfd00, 0, 0, 0x96, 0, 0, 0, low]),
    }
}

/// A node with random labels and addresses.
pub fn node(rng: &mut Rng, name: &str) -> Node {
    let addresses = (0..1 + rng.below(2))
        .map(|_| {
            let v6 = rng.chance(30);
            NodeAddress {
                type_: (*rng.pick(&["InternalIP", "InternalIP", "ExternalIP", "Hostname"]))
                    .to_owned(),
                address: outer_address(rng, v6).to_string(),
            }
        })
        .collect();
    let labels = labels(rng, &NODE_KEYS);
    Node {
        metadata: ObjectMeta { name: Some(name.to_owned()), labels, ..ObjectMeta::default() },
        status: Some(NodeStatus { addresses: Some(addresses), ..NodeStatus::default() }),
        ..Node::default()
    }
}

/// Gives a node other labels, or other addresses.
pub fn change_node(rng: &mut Rng, node: &mut Node) {
    let new = self::node(rng, "");
    match rng.chance(50) {
        true => node.metadata.labels = new.metadata.labels,
        false => node.status = new.status,
    }
}

/// A policy of that name.
pub fn cluster_policy(rng: &mut Rng, n_namespaces: usize, name: &str) -> Value {
    let mut spec = json!({
        "tier": if rng.chance(60) { "Admin" } else { "Baseline" },
        "priority": *rng.pick(&PRIORITIES),
        "subject": subject(rng, n_namespaces),
    });
    for direction in ["ingress", "egress"] {
        let rules = rng.up_to(RULES, |rng| rule(rng, direction, n_namespaces));
        if !rules.is_empty() || rng.chance(50) {
            spec[direction] = rules.into();
        }
    }
    json!({
        "apiVersion": "policy.networking.k8s.io/v1beta1",
        "kind": "ClusterNetworkPolicy",
        "metadata": {"name": name},
        "spec": spec,
    })
}

/// Changes one thing in a policy: whom it is about, when it is asked, or a rule or where it stands.
pub fn edit_cluster_policy(rng: &mut Rng, n_namespaces: usize, policy: &mut Value) {
    let spec = &mut policy["spec"];
    match rng.below(10) {
        0 => spec["subject"] = subject(rng, n_namespaces),
        1 => spec["priority"] = (*rng.pick(&PRIORITIES)).into(),
        2 => {
            let is_admin = spec["tier"] == "Admin";
            spec["tier"] = if is_admin { "Baseline" } else { "Admin" }.into();
        }
        _ => {
            let direction = *rng.pick(&["ingress", "egress"]);
            let mut rules = spec[direction].as_array().cloned().unwrap_or_default();
            edit_rules(rng, direction, n_namespaces, &mut rules);
            spec[direction] = rules.into();
        }
    }
}

fn edit_rules(rng: &mut Rng, direction: &str, n_namespaces: usize, rules: &mut Vec<Value>) {
    let n = rules.len();
    match rng.below(8) {
        0..3 if n > 0 => rules[rng.below(n)] = rule(rng, direction, n_namespaces),
        3 if n > 0 => drop(rules.remove(rng.below(n))),
        4 if n > 1 => rules.swap(rng.below(n), rng.below(n)),
        5..7 if n > 0 => {
            let rule = &mut rules[rng.below(n)];
            // Domain names can only be accepted.
            if !rule.to_string().contains("domainNames") {
                rule["action"] = (*rng.pick(&ACTIONS)).into();
            }
        }
        _ if n < RULES => rules.insert(rng.below(n + 1), rule(rng, direction, n_namespaces)),
        _ => rules.reverse(),
    }
}

fn to_value(selector: &impl serde::Serialize) -> Value {
    serde_json::to_value(selector).expect("invariant: selectors can be written")
}

fn namespaces(rng: &mut Rng, n_namespaces: usize) -> Value {
    match rng.chance(35) {
        true => json!({}),
        false => to_value(&selector(rng, &NAMESPACE_KEYS, n_namespaces)),
    }
}

fn pods(rng: &mut Rng, n_namespaces: usize) -> Value {
    let mut pods = json!({ "podSelector": to_value(&selector(rng, &KEYS, n_namespaces)) });
    // Absent it means all of them.
    if !rng.chance(15) {
        pods["namespaceSelector"] = namespaces(rng, n_namespaces);
    }
    pods
}

fn subject(rng: &mut Rng, n_namespaces: usize) -> Value {
    match rng.chance(45) {
        true => json!({"namespaces": namespaces(rng, n_namespaces)}),
        false => json!({"pods": pods(rng, n_namespaces)}),
    }
}

fn rule(rng: &mut Rng, direction: &str, n_namespaces: usize) -> Value {
    let mut rule = json!({"action": *rng.pick(&ACTIONS)});
    if rng.chance(10) {
        rule["name"] = format!("rule{}", rng.below(100)).into();
    }
    let n_protocols = if rng.chance(40) { 0 } else { 1 + rng.below(3) };
    let mut protocols: Vec<Value> = (0..n_protocols).map(|_| protocol(rng)).collect();
    let has_names = protocols.iter().any(|protocol| protocol.get("destinationNamedPort").is_some());
    let n_peers = 1 + rng.below(3);
    let mut peers: Vec<Value> = (0..n_peers)
        .map(|_| match rng.below(6) {
            // Not where there are names of ports.
            0..2 if direction == "egress" && !has_names => networks(rng),
            2 if direction == "egress" && !has_names => {
                json!({"nodes": to_value(&selector(rng, &NODE_KEYS, n_namespaces))})
            }
            0 | 3 => json!({"namespaces": namespaces(rng, n_namespaces)}),
            _ => json!({"pods": pods(rng, n_namespaces)}),
        })
        .collect();
    match rng.below(50) {
        // What an API server of a later version would admit.
        0 => peers.push(json!({"someday": {"everywhere": true}})),
        1 => protocols.push(json!({"quic": {"destinationPort": {"number": 443}}})),
        2 => protocols.push(json!({"tcp": {"flags": ["syn"]}})),
        3 => protocols.push(json!({"udp": {"destinationPort": {"set": "web"}}})),
        4 => rule["action"] = "Log".into(),
        5..7 if direction == "egress" && !has_names => {
            rule["action"] = "Accept".into();
            peers.push(json!({"domainNames": ["*.example.com"]}));
        }
        _ => {}
    }
    rule[if direction == "ingress" { "from" } else { "to" }] = peers.into();
    if !protocols.is_empty() {
        rule["protocols"] = protocols.into();
    }
    rule
}

fn protocol(rng: &mut Rng) -> Value {
    if rng.chance(25) {
        return json!({"destinationNamedPort": *rng.pick(&PORT_NAMES)});
    }
    let start = *rng.pick(&PORTS);
    let end = start.saturating_add(*rng.pick(&[1, 2, 30, 8000, 65535]));
    let port = match start < end && rng.chance(30) {
        true => json!({"range": {"start": start, "end": end}}),
        false => json!({"number": start}),
    };
    let mut protocol = Map::new();
    let name = if rng.chance(60) { "tcp" } else { *rng.pick(&PROTOCOLS) };
    protocol.insert(name.to_owned(), json!({"destinationPort": port}));
    protocol.into()
}

/// Blocks around addresses that pods, nodes or Services have, and what is everywhere.
fn networks(rng: &mut Rng) -> Value {
    let n = 1 + rng.below(2);
    let networks: BTreeSet<String> = (0..n).map(|_| network(rng)).collect();
    json!({"networks": networks})
}

fn network(rng: &mut Rng) -> String {
    let v6 = rng.chance(30);
    let lengths: &[u8] = match v6 {
        false => &[0, 8, 16, 23, 24, 26, 28, 30, 31, 32, 32],
        true => &[0, 8, 63, 64, 96, 122, 124, 127, 128],
    };
    let length = *rng.pick(lengths);
    let base = if rng.chance(25) { outer_address(rng, v6) } else { address(rng, v6) };
    let zero = if v6 { IpAddr::from([0_u16; 8]) } else { IpAddr::from([0; 4]) };
    // An API server of before would let other bits be set.
    let base = if rng.chance(4) { base } else { splice(base, zero, length) };
    format!("{base}/{length}")
}
