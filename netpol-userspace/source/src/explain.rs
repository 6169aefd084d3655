//! A policy in plain sentences. Pure; must never say more or less than the policy means.

use netpol_model::{
    Action, ClusterPolicy, ClusterRule, Direction, NamespaceScope, Operator, Peer, Peers, Policy,
    PortMatch, PortRange, Ports, Rule, Selector, Subject,
};

use super::convert::NAMESPACE_NAME_LABEL;

/// How many rules, peers, ports and exceptions are named of very many.
const SOME: usize = 10;

/// What the policy selects, then what it means for each direction.
pub fn sentences(policy: &Policy) -> Vec<String> {
    told(policy, usize::MAX)
}

/// The same, where of very many rules, peers or ports some are named and the others counted.
pub fn short_sentences(policy: &Policy) -> Vec<String> {
    told(policy, SOME)
}

fn told(policy: &Policy, most: usize) -> Vec<String> {
    let namespace = &policy.id.namespace;
    let pods = pods(&policy.pods);
    let mut sentences = vec![format!("Selects {pods} in namespace {namespace}.")];
    sentences.extend(Direction::BOTH.map(|way| direction(way, policy.rules(way), most)));
    sentences
}

/// What a ClusterNetworkPolicy is about, then what each rule of it does.
pub fn cluster_sentences(policy: &ClusterPolicy) -> Vec<String> {
    let Subject { namespaces, pods: selector } = &policy.subject;
    let scope = namespaces_words(&NamespaceScope::Matching(namespaces.clone()));
    let mut sentences = vec![format!(
        "{} tier, priority {}: about {} in {scope}.",
        policy.tier,
        policy.priority,
        pods(selector)
    )];
    for direction in Direction::BOTH {
        let rules = policy.rules(direction);
        let (name, word) = match direction {
            Direction::Ingress => ("Ingress", "from"),
            Direction::Egress => ("Egress", "to"),
        };
        if rules.is_empty() {
            sentences.push(format!("{name}: nothing is said."));
            continue;
        }
        let rules: Vec<String> = rules.iter().map(|rule| ruling(word, rule)).collect();
        sentences.push(format!("{name}: {}.", rules.join("; then ")));
    }
    sentences
}

/// One rule, e.g. `denied to addresses 169.254.169.254/32 on any port`.
fn ruling(word: &str, rule: &ClusterRule) -> String {
    let plain = Rule { peers: rule.peers.clone(), ports: rule.ports.clone() };
    if plain.peers == Peers::Only([].into()) {
        return "a rule that accepts nothing, as it holds what netpol does not enforce".to_owned();
    }
    let what = allowed(word, &plain, SOME);
    match rule.action {
        Action::Accept => format!("accepted {what}"),
        Action::Deny => format!("denied {what}"),
        Action::Pass => format!("left to the next tier {what}"),
    }
}

fn direction(direction: Direction, rules: Option<&[Rule]>, most: usize) -> String {
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
    let (named, n_others) = some(rules, most);
    let mut rules: Vec<String> = named.iter().map(|rule| allowed(word, rule, most)).collect();
    if n_others > 0 {
        rules.push(format!("what {n_others} more rules say"));
    }
    format!("{name}: only {}; everything else is denied.", rules.join(", and "))
}

/// Those that are named, and how many are not. Nothing is cut to say `1 more`.
fn some<T>(all: &[T], most: usize) -> (&[T], usize) {
    match all.len() {
        n if n <= most.saturating_add(1) => (all, 0),
        n => (&all[..most], n - most),
    }
}

fn allowed(word: &str, rule: &Rule, most: usize) -> String {
    let peers = match &rule.peers {
        Peers::Any => "anywhere".to_owned(),
        Peers::Only(peers) if peers.is_empty() => "nowhere".to_owned(),
        Peers::Only(peers) => {
            let (named, n_others) = some(peers, most);
            join(named.iter().map(|peer| peer_of(peer, most)), n_others, "or")
        }
    };
    let ports = match &rule.ports {
        Ports::Any => "any port".to_owned(),
        Ports::Only(ports) if ports.is_empty() => "no port".to_owned(),
        Ports::Only(ports) => {
            let (named, n_others) = some(ports, most);
            join(named.iter().map(port), n_others, "and")
        }
    };
    format!("{word} {peers} on {ports}")
}

/// A peer, e.g. `pods app=web in namespace shop`.
pub fn peer(peer: &Peer) -> String {
    peer_of(peer, usize::MAX)
}

fn peer_of(peer: &Peer, most: usize) -> String {
    match peer {
        Peer::Pods { namespaces, pods: selector } => {
            format!("{} in {}", pods(selector), namespaces_words(namespaces))
        }
        Peer::Nodes(selector) => match selector.is_everything() {
            true => "all nodes".to_owned(),
            false => format!("nodes {selector}"),
        },
        Peer::Block(block) => {
            let cidr = match block.cidr.to_string().as_str() {
                "0.0.0.0/0" => "any IPv4 address".to_owned(),
                "::/0" => "any IPv6 address".to_owned(),
                cidr => format!("addresses {cidr}"),
            };
            match &block.except[..] {
                [] => cidr,
                except => {
                    let (named, n_others) = some(except, most);
                    format!("{cidr} except {}", join(named.iter(), n_others, "and"))
                }
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
        return format!("namespace{plural} {}", join(names.iter(), 0, "and"));
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

/// `a, b and c`, or `a, b and 7 more`.
fn join(items: impl Iterator<Item = impl ToString>, n_others: usize, last: &str) -> String {
    let mut items: Vec<String> = items.map(|item| item.to_string()).collect();
    if n_others > 0 {
        items.push(format!("{n_others} more"));
    }
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

    #[test]
    fn of_very_many_some_are_named_and_the_others_counted() {
        let ports: Vec<Value> = (1..=300).map(|port| json!({"port": port})).collect();
        let peers: Vec<Value> =
            (1..=12).map(|n| json!({"ipBlock": {"cidr": format!("10.0.{n}.0/24")}})).collect();
        let rules: Vec<Value> = (0..40).map(|_| json!({"from": peers, "ports": ports})).collect();
        let object = json!({"metadata": {"name": "p"}, "spec": {"ingress": rules}});
        let policy = convert::policy(&serde_json::from_value(object).unwrap()).unwrap();
        let short = short_sentences(&policy).join(" ");
        assert!(short.contains(", addresses 10.0.10.0/24 or 2 more on TCP 1, TCP 2, "), "{short}");
        assert!(short.contains(", TCP 10 and 290 more, and from addresses"), "{short}");
        assert!(short.contains(", and what 30 more rules say; everything else"), "{short}");
        let all = sentences(&policy).join(" ");
        assert!(all.contains("TCP 299 and TCP 300") && !all.contains("more"), "{all}");
        // One that is left is named like the others.
        let of = |n: u16| {
            let ports: Vec<Value> = (1..=n).map(|port| json!({"port": port})).collect();
            json!({"metadata": {"name": "p"}, "spec": {"ingress": [{"ports": ports}]}})
        };
        let policy = convert::policy(&serde_json::from_value(of(11)).unwrap()).unwrap();
        assert_eq!(short_sentences(&policy), sentences(&policy));
    }
}
