//! What an API server accepts of a policy although it probably is not meant. Pure; must never
//! call something wrong that an API server refuses, that is [`super::convert`]'s.

use ipnet::IpNet;
use k8s_openapi::api::networking::v1::NetworkPolicy;

use super::explain;
use super::validate::{self, Cidr};
use crate::model::{
    Cluster, Direction, NamespaceScope, Peer, Peers, Pod, Policy, PortMatch, PortRange, Ports,
    Selector, Str,
};

/// Warnings about `policy` (converted from `object`) among the pods of `cluster`.
pub fn warnings(object: &NetworkPolicy, policy: &Policy, cluster: &Cluster) -> Vec<String> {
    let mut warnings = Vec::new();
    ignored_rules(object, policy, &mut warnings);
    host_bits(object, &mut warnings);
    covered_blocks(policy, &mut warnings);
    let any_pods = cluster.all_pods().any(Pod::is_networked);
    if any_pods {
        unmatched_selectors(policy, cluster, &mut warnings);
        unknown_port_names(policy, cluster, &mut warnings);
    }
    warnings
}

/// Rules of a direction that policyTypes does not name.
fn ignored_rules(object: &NetworkPolicy, policy: &Policy, warnings: &mut Vec<String>) {
    let Some(spec) = &object.spec else { return };
    let ingress = spec.ingress.as_ref().is_some_and(|rules| !rules.is_empty());
    let egress = spec.egress.as_ref().is_some_and(|rules| !rules.is_empty());
    for (rules, direction, name) in
        [(ingress, Direction::Ingress, "Ingress"), (egress, Direction::Egress, "Egress")]
    {
        if rules && policy.rules(direction).is_none() {
            warnings.push(format!(
                "spec.{direction} has rules without effect: spec.policyTypes does not include \
                 {name}"
            ));
        }
    }
}

/// CIDRs with bits behind the mask.
fn host_bits(object: &NetworkPolicy, warnings: &mut Vec<String>) {
    let Some(spec) = &object.spec else { return };
    let ingress = spec.ingress.iter().flatten().flat_map(|rule| rule.from.iter().flatten());
    let egress = spec.egress.iter().flatten().flat_map(|rule| rule.to.iter().flatten());
    let blocks = ingress.chain(egress).filter_map(|peer| peer.ip_block.as_ref());
    for text in blocks.flat_map(|b| std::iter::once(&b.cidr).chain(b.except.iter().flatten())) {
        if let (Cidr::Valid(block), Ok(written)) = (validate::cidr(text), text.parse::<IpNet>())
            && written.addr() != block.addr()
        {
            warnings.push(format!("CIDR {text} has bits behind its mask: it means {block}"));
        }
    }
}

/// Every peer with its place in the object.
fn peers(policy: &Policy) -> impl Iterator<Item = (String, Direction, &Peer)> {
    Direction::BOTH.into_iter().flat_map(move |direction| {
        let side = if direction == Direction::Ingress { "from" } else { "to" };
        let rules = policy.rules(direction).unwrap_or_default().iter().enumerate();
        rules.flat_map(move |(rule_index, rule)| {
            let list = match &rule.peers {
                Peers::Any => &[],
                Peers::Only(list) => list.as_slice(),
            };
            list.iter().enumerate().map(move |(index, peer)| {
                (format!("spec.{direction}[{rule_index}].{side}[{index}]"), direction, peer)
            })
        })
    })
}

fn covered_blocks(policy: &Policy, warnings: &mut Vec<String>) {
    for (field, _, peer) in peers(policy) {
        if let Peer::Block(block) = peer
            && IpNet::aggregate(&block.except).contains(&block.cidr)
        {
            warnings.push(format!(
                "{field}.ipBlock matches nothing: its exceptions cover all of {}",
                block.cidr
            ));
        }
    }
}

fn unmatched_selectors(policy: &Policy, cluster: &Cluster, warnings: &mut Vec<String>) {
    if selected(policy, cluster).is_empty() {
        let what = "spec.podSelector selects no pod in these files";
        warnings.push(format!("{what} (in namespace {})", policy.id.namespace));
    }
    for (field, _, peer) in peers(policy) {
        if matches!(peer, Peer::Pods { .. }) && matching(peer, cluster).is_empty() {
            let what = explain::peer(peer);
            warnings.push(format!("{field} matches no pod in these files ({what})"));
        }
    }
}

/// Port names that no pod declares which the port would be looked up on.
fn unknown_port_names(policy: &Policy, cluster: &Cluster, warnings: &mut Vec<String>) {
    for direction in Direction::BOTH {
        for (index, rule) in policy.rules(direction).unwrap_or_default().iter().enumerate() {
            let pods: Vec<&Pod> = match (direction, &rule.peers) {
                (Direction::Ingress, _) => selected(policy, cluster),
                (_, Peers::Any) => cluster.all_pods().filter(|pod| pod.is_networked()).collect(),
                (_, Peers::Only(peers)) => {
                    peers.iter().flat_map(|peer| matching(peer, cluster)).collect()
                }
            };
            let Ports::Only(ports) = &rule.ports else { continue };
            for PortMatch { protocol, range } in ports {
                let PortRange::Named(name) = range else { continue };
                let declares = |pod: &&Pod| {
                    pod.ports.iter().any(|port| port.name == *name && port.protocol == *protocol)
                };
                if !pods.is_empty() && !pods.iter().any(declares) {
                    let whose = match direction {
                        Direction::Ingress => "none of the selected pods",
                        Direction::Egress => "none of the pods that the rule is about",
                    };
                    warnings.push(format!(
                        "spec.{direction}[{index}].ports: {whose} declares a {protocol} port \
                         named \"{name}\""
                    ));
                }
            }
        }
    }
}

fn selected<'a>(policy: &Policy, cluster: &'a Cluster) -> Vec<&'a Pod> {
    in_namespace(cluster, &policy.id.namespace, &policy.pods)
}

fn in_namespace<'a>(cluster: &'a Cluster, namespace: &Str, pods: &Selector) -> Vec<&'a Pod> {
    let all = cluster.pods.get(namespace).into_iter().flat_map(|pods| pods.values());
    let all = all.map(|pod| &**pod);
    all.filter(|pod| pod.is_networked() && pods.matches(&pod.labels)).collect()
}

fn matching<'a>(peer: &Peer, cluster: &'a Cluster) -> Vec<&'a Pod> {
    match peer {
        Peer::Pods { namespaces: NamespaceScope::Named(name), pods } => {
            in_namespace(cluster, name, pods)
        }
        Peer::Pods { namespaces: NamespaceScope::Matching(selector), pods } => {
            let namespaces = cluster.namespaces.values();
            namespaces
                .filter(|namespace| selector.matches(&namespace.labels))
                .flat_map(|namespace| in_namespace(cluster, &namespace.name, pods))
                .collect()
        }
        Peer::Block(block) => {
            let holds = |address| {
                block.cidr.contains(address) && !block.except.iter().any(|e| e.contains(address))
            };
            let pods = cluster.all_pods().filter(|pod| pod.is_networked());
            pods.filter(|pod| pod.addresses.iter().any(holds)).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use serde_json::{Value, json};

    use super::*;
    use crate::model::Change;
    use crate::source::convert;

    fn cluster() -> Cluster {
        let mut cluster = Cluster::default();
        let pod = json!({"metadata": {"name": "w", "namespace": "shop", "labels": {"app": "web"}},
            "spec": {"containers": [{"name": "c", "ports": [
                {"name": "http", "containerPort": 80}]}]}, "status": {"podIP": "10.0.0.1"}});
        cluster.apply(Change::Pod(convert::pod(&serde_json::from_value(pod).unwrap()).0));
        let labels = [("team".to_owned(), "a".to_owned())];
        let labels = labels.iter().map(|(k, v)| (k, v));
        cluster.apply(Change::Namespace(convert::named_namespace("shop", labels)));
        cluster
    }

    fn check(spec: Value, cluster: &Cluster) -> Vec<String> {
        let object = json!({"metadata": {"name": "p", "namespace": "shop"}, "spec": spec});
        let object = serde_json::from_value(object).unwrap();
        warnings(&object, &convert::policy(&object).unwrap(), cluster)
    }

    #[test]
    fn what_is_probably_not_meant_is_named() {
        let web = json!({"matchLabels": {"app": "web"}});
        let from = |peer: Value| json!({"ingress": [{"from": [peer]}]});
        let block =
            |cidr: &str, except: Value| from(json!({"ipBlock": {"cidr": cidr, "except": except}}));
        let table = [
            (json!({"podSelector": web}), None),
            (
                json!({"podSelector": {"matchLabels": {"app": "db"}}}),
                Some("spec.podSelector selects no pod"),
            ),
            (from(json!({"podSelector": web})), None),
            (
                from(json!({"podSelector": {"matchLabels": {"x": "y"}}})),
                Some(
                    "spec.ingress[0].from[0] matches no pod in these files (pods x=y in namespace shop)",
                ),
            ),
            (from(json!({"namespaceSelector": {"matchLabels": {"team": "a"}}})), None),
            (
                from(json!({"namespaceSelector": {"matchLabels": {"team": "b"}}})),
                Some("matches no pod"),
            ),
            (json!({"ingress": [{"ports": [{"port": "http"}]}]}), None),
            (
                json!({"ingress": [{"ports": [{"port": "https"}]}]}),
                Some("none of the selected pods declares a TCP port named \"https\""),
            ),
            (
                json!({"ingress": [{"ports": [{"port": "http", "protocol": "UDP"}]}]}),
                Some("UDP port named \"http\""),
            ),
            (
                json!({"egress": [{"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}], "ports": [{"port": "dns"}]}]}),
                Some("none of the pods that the rule is about"),
            ),
            (
                json!({"egress": [{"to": [{"ipBlock": {"cidr": "11.0.0.0/8"}}], "ports": [{"port": "dns"}]}]}),
                None,
            ),
            (
                json!({"policyTypes": ["Egress"], "ingress": [{}]}),
                Some(
                    "spec.ingress has rules without effect: spec.policyTypes does not include Ingress",
                ),
            ),
            (
                json!({"policyTypes": ["Ingress"], "egress": [{}]}),
                Some("spec.egress has rules without effect"),
            ),
            (block("10.0.0.0/8", json!(["10.0.0.0/9"])), None),
            (
                block("10.0.0.0/8", json!(["10.0.0.0/9", "10.128.0.0/9"])),
                Some("its exceptions cover all of 10.0.0.0/8"),
            ),
            (
                block("10.1.2.3/8", json!([])),
                Some("CIDR 10.1.2.3/8 has bits behind its mask: it means 10.0.0.0/8"),
            ),
        ];
        let cluster = cluster();
        for (spec, expected) in table {
            let found = check(spec.clone(), &cluster);
            match expected {
                None => assert!(found.is_empty(), "{spec}: {found:?}"),
                Some(text) => {
                    assert!(found.len() == 1 && found[0].contains(text), "{spec}: {found:?}");
                }
            }
        }
    }

    #[test]
    fn without_pods_nothing_is_said_about_selectors() {
        let spec = json!({"podSelector": {"matchLabels": {"a": "b"}},
            "ingress": [{"from": [{"podSelector": {"matchLabels": {"x": "y"}}}],
                "ports": [{"port": "http"}]}]});
        assert!(check(spec, &Cluster::default()).is_empty());
    }
}
