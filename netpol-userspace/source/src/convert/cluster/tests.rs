//! Tables for ClusterNetworkPolicies: what is understood, and what fails closed.
#![expect(clippy::unwrap_used, reason = "tests")]

use serde_json::{Value, json};

use super::*;
use netpol_model::{Operator, Requirement};

fn object(spec: Value) -> ClusterNetworkPolicy {
    serde_json::from_value(json!({"metadata": {"name": "web"}, "spec": spec})).unwrap()
}

fn with(field: &str, rule: &Value) -> ClusterNetworkPolicy {
    let mut spec = json!({"tier": "Admin", "priority": 7, "subject": {"namespaces": {}}});
    spec[field] = json!([rule]);
    object(spec)
}

/// The rule of an egress rule as an API server sent it, and the problems' fields.
fn stored(rule: &Value) -> (ClusterRule, Vec<String>) {
    let (mut policy, problems) = cluster_policy(&with("egress", rule)).unwrap();
    (policy.egress.remove(0), problems.into_iter().map(|problem| problem.field).collect())
}

fn is(key: &str, value: &str) -> Selector {
    Selector::new([Requirement { key: key.into(), operator: Operator::In(vec![value.into()]) }])
}

fn pods(namespaces: Selector, pods: Selector) -> Peer {
    Peer::Pods { namespaces: NamespaceScope::Matching(namespaces), pods }
}

fn block(text: &str) -> Peer {
    Peer::Block(IpBlock { cidr: text.parse().unwrap(), except: Vec::new() })
}

#[test]
fn every_field_is_read() {
    let spec = json!({
        "tier": "Baseline",
        "priority": 1000,
        "subject": {"pods": {
            "namespaceSelector": {"matchLabels": {"team": "a"}},
            "podSelector": {"matchLabels": {"app": "web"}},
        }},
        "ingress": [{"name": "in", "action": "Pass", "from": [{"namespaces": {}}]}],
        "egress": [{
            "action": "Accept",
            "to": [
                {"nodes": {"matchLabels": {"zone": "x"}}},
                {"networks": ["10.0.0.0/8", "fd00::/8"]},
                {"pods": {"podSelector": {"matchLabels": {"app": "db"}}}},
            ],
            "protocols": [
                {"tcp": {"destinationPort": {"number": 80}}},
                {"udp": {"destinationPort": {"range": {"start": 1, "end": 65535}}}},
                {"sctp": {"destinationPort": {"number": 9}}},
            ],
        }],
    });
    let object = object(spec);
    let expected = ClusterPolicy {
        name: "web".into(),
        tier: Tier::Baseline,
        priority: 1000,
        subject: Subject { namespaces: is("team", "a"), pods: is("app", "web") },
        ingress: vec![ClusterRule {
            name: Some("in".into()),
            action: Action::Pass,
            peers: Peers::Only(vec![pods(Selector::everything(), Selector::everything())].into()),
            ports: Ports::Any,
        }],
        egress: vec![ClusterRule {
            name: None,
            action: Action::Accept,
            peers: Peers::Only(
                vec![
                    Peer::Nodes(is("zone", "x")),
                    block("10.0.0.0/8"),
                    block("fd00::/8"),
                    pods(Selector::everything(), is("app", "db")),
                ]
                .into(),
            ),
            ports: Ports::Only(vec![
                PortMatch { protocol: Protocol::Tcp, range: PortRange::Numbers(80, 80) },
                PortMatch { protocol: Protocol::Udp, range: PortRange::Numbers(1, 65535) },
                PortMatch { protocol: Protocol::Sctp, range: PortRange::Numbers(9, 9) },
            ]),
        }],
    };
    assert_eq!(cluster_policy(&object), Ok((expected.clone(), vec![])));
    assert_eq!(checked_cluster_policy(&object), Ok((expected, vec![])));
    let again = serde_json::to_value(&object).unwrap();
    assert_eq!(serde_json::from_value::<ClusterNetworkPolicy>(again).unwrap(), object);
}

#[test]
fn a_named_port_is_one_of_every_protocol() {
    let to = json!([{"namespaces": {}}]);
    let rule = json!({"action": "Deny", "to": to, "protocols": [{"destinationNamedPort": "web"}]});
    let (rule, problems) = stored(&rule);
    let each = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp]
        .map(|protocol| PortMatch { protocol, range: PortRange::Named("web".into()) });
    assert_eq!((rule.ports, problems), (Ports::Only(each.into()), vec![]));
}

#[test]
fn a_rule_with_something_unknown_fails_closed_and_is_refused_in_a_file() {
    let known = json!({"namespaces": {}});
    let tcp = |port: Value| json!([{"tcp": {"destinationPort": port}}]);
    let table = [
        (json!({"to": [known, {}]}), "to[1]"),
        (json!({"to": [known, {"services": {}}]}), "to[1]"),
        (json!({"to": [{"namespaces": {}, "nodes": {}}]}), "to[0]"),
        (json!({"to": []}), "to"),
        (json!({}), "to"),
        (json!({"to": [{"networks": []}]}), "to[0].networks"),
        (json!({"to": [{"networks": ["10.0.0.0/8", "x"]}]}), "to[0].networks[1]"),
        (json!({"to": [{"pods": {"namespaceSelector": {}}}]}), "to[0].pods.podSelector"),
        (
            json!({"to": [{"nodes": {"matchExpressions": [{"key": "a", "operator": "Gt"}]}}]}),
            "to[0].nodes.matchExpressions[0].operator",
        ),
        (json!({"to": [known], "protocols": []}), "protocols"),
        (json!({"to": [known], "protocols": [{}]}), "protocols[0]"),
        (json!({"to": [known], "protocols": [{"icmp": {}}]}), "protocols[0]"),
        (json!({"to": [known], "protocols": [{"tcp": {}}]}), "protocols[0].tcp.destinationPort"),
        (json!({"to": [known], "protocols": tcp(json!({}))}), "protocols[0].tcp.destinationPort"),
        (
            json!({"to": [known], "protocols": tcp(json!({"number": 0}))}),
            "protocols[0].tcp.destinationPort.number",
        ),
        (
            json!({"to": [known], "protocols": tcp(json!({"range": {"start": 9, "end": 8}}))}),
            "protocols[0].tcp.destinationPort.range",
        ),
        (
            json!({"to": [{"networks": ["10.0.0.0/8"]}],
                   "protocols": [{"destinationNamedPort": "web"}]}),
            "",
        ),
    ];
    for (mut rule, field) in table {
        let path = format!("spec.egress[0].{field}");
        let path = path.trim_end_matches('.');
        for (action, becomes, peers) in [
            ("Accept", Action::Accept, Peers::Only(Vec::new().into())),
            ("Deny", Action::Deny, Peers::Any),
            ("Pass", Action::Deny, Peers::Any),
            ("Log", Action::Deny, Peers::Any),
        ] {
            rule["action"] = json!(action);
            let (found, problems) = stored(&rule);
            assert_eq!((found.action, found.peers), (becomes, peers), "{rule}");
            assert_eq!(found.ports, Ports::Any, "{rule}");
            assert!(problems.iter().any(|problem| problem == path), "{rule}: {problems:?}");
            let refused = checked_cluster_policy(&with("egress", &rule)).unwrap_err();
            assert!(refused.iter().any(|problem| problem.field == path), "{rule}: {refused:?}");
        }
    }
}

#[test]
fn domain_names_are_valid_with_accept_and_not_enforced() {
    let rule = |action: &str| json!({"action": action, "to": [{"domainNames": ["*.example.com"]}]});
    let (policy, notes) = checked_cluster_policy(&with("egress", &rule("Accept"))).unwrap();
    assert_eq!(policy.egress[0].peers, Peers::Only(Vec::new().into()));
    assert_eq!(notes.len(), 1, "{notes:?}");
    for action in ["Deny", "Pass"] {
        let (found, _) = stored(&rule(action));
        assert_eq!((found.action, found.peers), (Action::Deny, Peers::Any));
        assert!(checked_cluster_policy(&with("egress", &rule(action))).is_err());
    }
    let twice = json!({"action": "Accept", "to": [{"domainNames": ["a.example", "a.example"]}]});
    let refused = checked_cluster_policy(&with("egress", &twice)).unwrap_err();
    assert_eq!(refused[0].field, "spec.egress[0].to[0].domainNames[1]");
    for (name, valid) in [
        ("example.com", true),
        ("example.com.", true),
        ("a_b.example.com", true),
        ("com", false),
        ("*", false),
        ("a.*.com", false),
        ("a..com", false),
        ("-a.com", false),
        ("example.c_m", false),
    ] {
        assert_eq!(is_domain_name(name), valid, "{name}");
    }
}

#[test]
fn what_older_servers_let_in_is_used_and_named() {
    let to = json!([{"networks": ["10.1.2.3/8"]}]);
    let (rule, problems) = stored(&json!({"action": "Accept", "to": to}));
    assert_eq!(rule.peers, Peers::Only(vec![block("10.0.0.0/8")].into()));
    assert_eq!(problems, ["spec.egress[0].to[0].networks[0]"]);
    assert!(
        checked_cluster_policy(&with("egress", &json!({"action": "Accept", "to": to}))).is_err()
    );

    let many = json!({"action": "Accept", "to": vec![json!({"namespaces": {}}); 26]});
    let (rule, problems) = stored(&many);
    assert_eq!((rule.peers.count(), problems), (26, vec!["spec.egress[0].to".to_owned()]));
    assert!(checked_cluster_policy(&with("egress", &many)).is_err());
}

#[test]
fn an_object_without_a_known_tier_priority_or_subject_is_refused() {
    let good = json!({"tier": "Admin", "priority": 0, "subject": {"namespaces": {}}});
    assert!(cluster_policy(&object(good.clone())).is_ok());
    for (field, value, path) in [
        ("tier", json!("Tenant"), "spec.tier"),
        ("tier", Value::Null, "spec.tier"),
        ("priority", Value::Null, "spec.priority"),
        ("subject", json!({}), "spec.subject"),
        ("subject", json!({"serviceAccounts": {}}), "spec.subject"),
        ("subject", Value::Null, "spec.subject"),
    ] {
        let mut spec = good.clone();
        spec[field] = value;
        for problems in
            [cluster_policy(&object(spec.clone())), checked_cluster_policy(&object(spec))]
        {
            let problems = problems.unwrap_err();
            assert_eq!(problems[0].field, path, "{problems:?}");
        }
    }
    let mut far = good;
    far["priority"] = json!(1001);
    let (policy, problems) = cluster_policy(&object(far.clone())).unwrap();
    assert_eq!((policy.priority, problems.len()), (1000, 1));
    assert!(checked_cluster_policy(&object(far)).is_err());
}
