//! A policy in plain sentences. Pure; must never say more or less than the policy means.

use netpol_model::{
    Direction, NamespaceScope, Operator, Peer, Peers, Policy, PortMatch, PortRange, Ports, Rule,
    Selector,
};

use super::convert::NAMESPACE_NAME_LABEL;

/// What the policy selects, then what it means for each direction.
pub fn sentences(policy: &Policy) -> Vec<String> {
    let namespace = &policy.id.namespace;
    let pods = pods(&policy.pods);
    let mut sentences = vec![format!("Selects {pods} in namespace {namespace}.")];
    sentences.extend(Direction::BOTH.map(|way| direction(way, policy.rules(way))));
    sentences
}

fn direction(direction: Direction, rules: Option<&[Rule]>) -> String {
    let (name, word) = match direction {
        Direction::Ingress => ("Ingress", "from"),
        Direction::Egress => ("Egress", "to"),
    };
    let Some(rules) = rules else { return format!("{name}: not restricted.") };
    let everything = Rule { peers: Peers::Any, ports: Ports::Any };
    if rules.contains(&everything) {
        return format!("{name}: everything is allowed.");
    }
    if rules.is_empty() {
        return format!("{name}: everything is denied.");
    }
    let rules: Vec<String> = rules.iter().map(|rule| allowed(word, rule)).collect();
    format!("{name}: only {}; everything else is denied.", rules.join(", and "))
}

fn allowed(word: &str, rule: &Rule) -> String {
    let peers = match &rule.peers {
        Peers::Any => "anywhere".to_owned(),
        Peers::Only(peers) if peers.is_empty() => "nowhere".to_owned(),
        Peers::Only(peers) => join(peers.iter().map(peer), "or"),
    };
    let ports = match &rule.ports {
        Ports::Any => "any port".to_owned(),
        Ports::Only(ports) if ports.is_empty() => "no port".to_owned(),
        Ports::Only(ports) => join(ports.iter().map(port), "and"),
    };
    format!("{word} {peers} on {ports}")
}

/// A peer, e.g. `pods app=web in namespace shop`.
pub fn peer(peer: &Peer) -> String {
    match peer {
        Peer::Pods { namespaces, pods: selector } => {
            format!("{} in {}", pods(selector), namespaces_words(namespaces))
        }
        Peer::Block(block) => {
            let cidr = match block.cidr.to_string().as_str() {
                "0.0.0.0/0" => "any IPv4 address".to_owned(),
                "::/0" => "any IPv6 address".to_owned(),
                cidr => format!("addresses {cidr}"),
            };
            match &block.except[..] {
                [] => cidr,
                except => format!("{cidr} except {}", join(except.iter(), "and")),
            }
        }
    }
}

/// Pods by a selector, e.g. `pods app=web`.
pub fn pods(selector: &Selector) -> String {
    match selector.is_everything() {
        true => "all pods".to_owned(),
        false => format!("pods {selector}"),
    }
}

fn namespaces_words(scope: &NamespaceScope) -> String {
    let selector = match scope {
        NamespaceScope::Named(name) => return format!("namespace {name}"),
        NamespaceScope::Matching(selector) if selector.is_everything() => {
            return "all namespaces".to_owned();
        }
        NamespaceScope::Matching(selector) => selector,
    };
    // The usual way to name namespaces.
    if let [requirement] = selector.requirements()
        && let Operator::In(names) = &requirement.operator
        && &*requirement.key == NAMESPACE_NAME_LABEL
    {
        let plural = if names.len() == 1 { "" } else { "s" };
        return format!("namespace{plural} {}", join(names.iter(), "and"));
    }
    format!("namespaces {selector}")
}

fn port(port: &PortMatch) -> String {
    match &port.range {
        PortRange::All => format!("every {} port", port.protocol),
        PortRange::Named(name) => format!("the {} port named \"{name}\"", port.protocol),
        PortRange::Numbers(..) => port.to_string(),
    }
}

fn join(items: impl Iterator<Item = impl ToString>, last: &str) -> String {
    let mut items: Vec<String> = items.map(|item| item.to_string()).collect();
    match items.pop() {
        Some(end) if items.is_empty() => end,
        Some(end) => format!("{} {last} {end}", items.join(", ")),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use serde_json::{Value, json};

    use super::*;
    use crate::convert;

    fn explain(spec: Value) -> String {
        let object = json!({"metadata": {"name": "p", "namespace": "shop"}, "spec": spec});
        let policy = convert::policy(&serde_json::from_value(object).unwrap()).unwrap();
        sentences(&policy).join(" ")
    }

    #[test]
    fn policies_are_explained() {
        let web = json!({"matchLabels": {"app": "web"}});
        let table = [
            (
                json!({}),
                "Selects all pods in namespace shop. Ingress: everything is denied. Egress: not \
                 restricted.",
            ),
            (
                json!({"podSelector": web, "policyTypes": ["Ingress", "Egress"], "ingress": [{}]}),
                "Selects pods app=web in namespace shop. Ingress: everything is allowed. Egress: \
                 everything is denied.",
            ),
            (
                json!({"ingress": [{"from": [{"podSelector": web}], "ports": [{"port": 80}]}]}),
                "Selects all pods in namespace shop. Ingress: only from pods app=web in \
                 namespace shop on TCP 80; everything else is denied. Egress: not restricted.",
            ),
            (
                json!({"policyTypes": ["Egress"], "egress": [
                    {"to": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.0.0.0/8"]}}]},
                    {"ports": [{"port": 53, "protocol": "UDP"}, {"port": 53},
                        {"port": 80, "endPort": 90}, {"port": "http"}, {"protocol": "SCTP"}]}]}),
                "Selects all pods in namespace shop. Ingress: not restricted. Egress: only to \
                 any IPv4 address except 10.0.0.0/8 on any port, and to anywhere on UDP 53, TCP \
                 53, TCP 80-90, the TCP port named \"http\" and every SCTP port; everything else \
                 is denied.",
            ),
            (
                json!({"ingress": [{"from": [
                    {"namespaceSelector": {}},
                    {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "x"}},
                        "podSelector": {"matchExpressions": [
                            {"key": "a", "operator": "In", "values": ["b", "c"]},
                            {"key": "d", "operator": "DoesNotExist"}]}},
                    {"namespaceSelector": {"matchLabels": {"team": "a"}}},
                    {"ipBlock": {"cidr": "fd00::/8"}}]}]}),
                "Selects all pods in namespace shop. Ingress: only from all pods in all \
                 namespaces, pods a in (b,c),!d in namespace x, all pods in namespaces team=a or \
                 addresses fd00::/8 on any port; everything else is denied. Egress: not \
                 restricted.",
            ),
        ];
        for (spec, expected) in table {
            assert_eq!(explain(spec.clone()), expected, "{spec}");
        }
    }
}
