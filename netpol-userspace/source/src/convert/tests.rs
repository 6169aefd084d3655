//! Tables for the conversion: objects as people write them -> model or problems.
#![expect(clippy::unwrap_used, reason = "tests")]

use serde_json::{Value, json};

use super::*;
use netpol_model::{
    IpBlock, NamespaceScope, Operator, Peer, Peers, Policy, PortMatch, PortRange, Ports,
    Requirement, Rule, Selector,
};

fn object(spec: Value) -> k8s_openapi::api::networking::v1::NetworkPolicy {
    serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "shop"}, "spec": spec}))
        .unwrap()
}

fn ok(spec: Value) -> Policy {
    policy(&object(spec.clone())).unwrap_or_else(|problems| panic!("{spec}: {problems:?}"))
}

fn ingress_rule(rule: Value) -> Rule {
    ok(json!({"ingress": [rule]})).ingress.unwrap().remove(0)
}

fn is(key: &str, value: &str) -> Selector {
    Selector::new([Requirement { key: key.into(), operator: Operator::In(vec![value.into()]) }])
}

#[test]
fn policy_types_are_defaulted_as_the_api_server_does() {
    let rule = || Rule { peers: Peers::Any, ports: Ports::Any };
    let table = [
        (json!({}), Some(vec![]), None),
        (json!(null), Some(vec![]), None),
        (json!({"policyTypes": null, "ingress": null, "egress": null}), Some(vec![]), None),
        (json!({"policyTypes": []}), Some(vec![]), None),
        (json!({"ingress": []}), Some(vec![]), None),
        (json!({"egress": []}), Some(vec![]), None),
        (json!({"egress": [{}]}), Some(vec![]), Some(vec![rule()])),
        (json!({"policyTypes": ["Egress"]}), None, Some(vec![])),
        (json!({"policyTypes": ["Egress"], "ingress": [{}]}), None, Some(vec![])),
        (json!({"policyTypes": ["Ingress"], "egress": [{}]}), Some(vec![]), None),
        (json!({"policyTypes": ["Ingress", "Egress"]}), Some(vec![]), Some(vec![])),
        (json!({"policyTypes": ["Egress", "Egress"]}), None, Some(vec![])),
        (json!({"ingress": [{}]}), Some(vec![rule()]), None),
    ];
    for (spec, ingress, egress) in table {
        let policy = ok(spec.clone());
        assert_eq!((policy.ingress, policy.egress), (ingress, egress), "{spec}");
        assert!(policy.pods.is_everything(), "{spec}: a missing podSelector selects all pods");
        assert_eq!(policy.id, ObjectName::new("shop", "web"));
    }
}

#[test]
fn null_and_empty_lists_do_not_restrict() {
    for rule in [json!({}), json!({"from": null, "ports": null}), json!({"from": [], "ports": []})]
    {
        assert_eq!(
            ingress_rule(rule.clone()),
            Rule { peers: Peers::Any, ports: Ports::Any },
            "{rule}"
        );
    }
}

#[test]
fn ports_are_read() {
    let table = [
        (json!({}), Protocol::Tcp, PortRange::All),
        (json!({"protocol": null, "port": null}), Protocol::Tcp, PortRange::All),
        (json!({"protocol": "UDP"}), Protocol::Udp, PortRange::All),
        (json!({"port": 80}), Protocol::Tcp, PortRange::Numbers(80, 80)),
        (json!({"port": 80, "endPort": 80}), Protocol::Tcp, PortRange::Numbers(80, 80)),
        (
            json!({"protocol": "SCTP", "port": 1, "endPort": 65535}),
            Protocol::Sctp,
            PortRange::Numbers(1, 65535),
        ),
        (json!({"port": "http"}), Protocol::Tcp, PortRange::Named("http".into())),
    ];
    for (port, protocol, range) in table {
        let rule = ingress_rule(json!({"ports": [port]}));
        assert_eq!(rule.ports, Ports::Only(vec![PortMatch { protocol, range }]), "{port}");
    }
}

#[test]
fn peers_are_read() {
    let own = || NamespaceScope::Named("shop".into());
    let table = [
        (
            json!({"podSelector": {}}),
            Peer::Pods { namespaces: own(), pods: Selector::everything() },
        ),
        (
            json!({"podSelector": {"matchLabels": {"app": "a"}}}),
            Peer::Pods { namespaces: own(), pods: is("app", "a") },
        ),
        (
            json!({"namespaceSelector": {}}),
            Peer::Pods {
                namespaces: NamespaceScope::Matching(Selector::everything()),
                pods: Selector::everything(),
            },
        ),
        (
            json!({"namespaceSelector": {"matchLabels": {"n": ""}}, "podSelector": {
                "matchExpressions": [{"key": "app", "operator": "In", "values": ["a"]}]}}),
            Peer::Pods { namespaces: NamespaceScope::Matching(is("n", "")), pods: is("app", "a") },
        ),
        (
            json!({"ipBlock": {"cidr": "10.1.2.3/8",
                "except": ["10.9.0.1/16", "10.1.0.0/16", "10.9.0.0/16"]}}),
            Peer::Block(IpBlock {
                cidr: "10.0.0.0/8".parse().unwrap(),
                except: vec!["10.1.0.0/16".parse().unwrap(), "10.9.0.0/16".parse().unwrap()],
            }),
        ),
        (
            json!({"ipBlock": {"cidr": "2001:db8::/32", "except": null}}),
            Peer::Block(IpBlock { cidr: "2001:db8::/32".parse().unwrap(), except: vec![] }),
        ),
    ];
    for (peer, expected) in table {
        let rule = ingress_rule(json!({"from": [peer]}));
        assert_eq!(rule.peers, Peers::Only([expected].into()), "{peer}");
    }
}

/// Each bad spec, where the first problem is, and words of its message.
#[expect(clippy::too_many_lines, reason = "a table")]
fn bad_specs() -> Vec<(Value, &'static str, &'static str)> {
    let from = |peer: Value| json!({"ingress": [{"from": [peer]}]});
    let port = |port: Value| json!({"egress": [{"ports": [{}, port]}]});
    let block = |cidr: &str, except: Value| {
        json!({"ingress": [{}, {"from": [{"podSelector": {}},
            {"ipBlock": {"cidr": cidr, "except": except}}]}]})
    };
    let expression = |e: Value| json!({"podSelector": {"matchExpressions": [e]}});
    let cidr = "spec.ingress[1].from[1].ipBlock.cidr";
    let except = "spec.ingress[1].from[1].ipBlock.except[0]";
    let peer = "spec.ingress[0].from[0]";
    vec![
        (from(json!({})), peer, "Required value: must specify a peer"),
        (
            from(json!({"podSelector": {}, "ipBlock": {"cidr": "10.0.0.0/8"}})),
            peer,
            "Forbidden: may not specify both ipBlock and another peer",
        ),
        (
            from(json!({"namespaceSelector": {}, "ipBlock": {"cidr": "10.0.0.0/8"}})),
            peer,
            "Forbidden: may not specify both ipBlock and another peer",
        ),
        (block("", json!([])), cidr, "Required value"),
        (block("10.0.0.0", json!([])), cidr, "must be a valid CIDR value"),
        (block("10.0.0.0/33", json!([])), cidr, "must be a valid CIDR value"),
        (block("10.0.0.0/8", json!(["10.0.0.0/8"])), except, "must be a strict subset of `cidr`"),
        (block("10.0.0.0/8", json!(["11.0.0.0/9"])), except, "must be a strict subset of `cidr`"),
        (block("10.0.0.0/8", json!(["0.0.0.0/0"])), except, "must be a strict subset of `cidr`"),
        (block("10.0.0.0/8", json!(["fd00::/16"])), except, "must be a strict subset of `cidr`"),
        (block("10.0.0.0/8", json!(["10.x/16"])), except, "must be a valid CIDR value"),
        (port(json!({"port": 0})), "spec.egress[0].ports[1].port", "between 1 and 65535"),
        (port(json!({"port": 65536})), "spec.egress[0].ports[1].port", "between 1 and 65535"),
        (port(json!({"port": -1})), "spec.egress[0].ports[1].port", "between 1 and 65535"),
        (
            port(json!({"port": 80, "endPort": 79})),
            "spec.egress[0].ports[1].endPort",
            "Invalid value: 79: must be greater than or equal to `port`",
        ),
        (
            port(json!({"port": 80, "endPort": 65536})),
            "spec.egress[0].ports[1].endPort",
            "between 1 and 65535",
        ),
        (
            port(json!({"port": "http", "endPort": 81})),
            "spec.egress[0].ports[1].endPort",
            "may not be specified when `port` is non-numeric",
        ),
        (
            port(json!({"endPort": 81})),
            "spec.egress[0].ports[1].endPort",
            "may not be specified when `port` is not specified",
        ),
        (port(json!({"port": "80"})), "spec.egress[0].ports[1].port", "at least one letter"),
        (port(json!({"port": "HTTP"})), "spec.egress[0].ports[1].port", "alpha-numeric"),
        (
            port(json!({"protocol": "tcp"})),
            "spec.egress[0].ports[1].protocol",
            "Unsupported value: \"tcp\": supported values: \"SCTP\", \"TCP\", \"UDP\"",
        ),
        (port(json!({"protocol": ""})), "spec.egress[0].ports[1].protocol", "Unsupported value"),
        (
            json!({"podSelector": {"matchLabels": {"a b": "c"}}}),
            "spec.podSelector.matchLabels",
            "name part must consist",
        ),
        (
            json!({"podSelector": {"matchLabels": {"a": "b c"}}}),
            "spec.podSelector.matchLabels",
            "a valid label must be an empty string",
        ),
        (
            expression(json!({"key": "a", "operator": "in", "values": ["b"]})),
            "spec.podSelector.matchExpressions[0].operator",
            "Invalid value: \"in\": not a valid selector operator",
        ),
        (
            expression(json!({"key": "a", "operator": "NotIn"})),
            "spec.podSelector.matchExpressions[0].values",
            "Required value: must be specified when `operator` is 'In' or 'NotIn'",
        ),
        (
            expression(json!({"key": "a", "operator": "Exists", "values": ["b"]})),
            "spec.podSelector.matchExpressions[0].values",
            "Forbidden: may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
        ),
        (
            expression(json!({"operator": "Exists"})),
            "spec.podSelector.matchExpressions[0].key",
            "name part must be non-empty",
        ),
        (
            expression(json!({"key": "a", "operator": "In", "values": ["ok", "-"]})),
            "spec.podSelector.matchExpressions[0].values[1]",
            "a valid label must be an empty string",
        ),
        (
            json!({"policyTypes": ["ingress"]}),
            "spec.policyTypes[0]",
            "Unsupported value: \"ingress\": supported values: \"Egress\", \"Ingress\"",
        ),
        (
            json!({"policyTypes": ["Ingress", "Egress", "Ingress"]}),
            "spec.policyTypes",
            "may not specify more than two policyTypes",
        ),
    ]
}

#[test]
fn what_the_api_server_refuses_is_refused_with_its_field() {
    for (spec, field, message) in bad_specs() {
        let problems = policy(&object(spec.clone())).expect_err(&spec.to_string());
        assert_eq!(problems[0].field, field, "{spec}: {problems:?}");
        assert!(problems[0].message.contains(message), "{spec}: {problems:?}");
    }
}

#[test]
fn all_problems_of_a_policy_are_named_at_once() {
    let spec = json!({"podSelector": {"matchLabels": {"/": "-"}}, "policyTypes": ["X"],
        "ingress": [{"from": [{}], "ports": [{"port": 0, "endPort": -5, "protocol": "X"}]}]});
    let problems = policy(&object(spec)).unwrap_err();
    let fields: Vec<&str> = problems.iter().map(|p| p.field.as_str()).collect();
    for field in [
        "spec.podSelector.matchLabels",
        "spec.ingress[0].ports[0].protocol",
        "spec.ingress[0].ports[0].port",
        "spec.ingress[0].ports[0].endPort",
        "spec.ingress[0].from[0]",
        "spec.policyTypes[0]",
    ] {
        assert!(fields.contains(&field), "{field} missing in {fields:?}");
    }
}

#[test]
fn names_are_checked() {
    let table = [
        (json!({}), "metadata.name", "Required value"),
        (json!({"name": "Web"}), "metadata.name", "RFC 1123 subdomain"),
        (json!({"name": "a", "namespace": "x.y"}), "metadata.namespace", "must not contain dots"),
        (json!({"name": "a", "labels": {"x": "y z"}}), "metadata.labels", "a valid label"),
    ];
    for (metadata, field, message) in table {
        let object = serde_json::from_value(json!({"metadata": metadata})).unwrap();
        let problems = policy(&object).unwrap_err();
        assert_eq!(problems[0].field, field, "{metadata}");
        assert!(problems[0].message.contains(message), "{metadata}: {problems:?}");
    }
    let namespace = serde_json::from_value(json!({"metadata": {"name": "a.b"}})).unwrap();
    assert_eq!(namespace_problems(&namespace)[0].field, "metadata.name");
}

/// One reading of what older API servers took, whether it is in a file or stored.
#[test]
fn sloppy_blocks_mean_the_same_in_a_file_and_on_a_server() {
    for (cidr, except) in [
        ("10.0.0.0/8", "10.1.0.0/16"),
        ("10.9.9.9/8", "10.1.9.9/16"),
        ("010.0.0.0/8", "10.01.0.0/016"),
        ("::ffff:10.0.0.0/104", "::ffff:10.1.0.0/112"),
        ("10.0.0.0/8", "::ffff:10.1.0.0/112"),
    ] {
        let block = json!({"cidr": cidr, "except": [except]});
        let object = object(json!({"ingress": [{"from": [{"ipBlock": block}]}]}));
        let expected = IpBlock {
            cidr: "10.0.0.0/8".parse().unwrap(),
            except: vec!["10.1.0.0/16".parse().unwrap()],
        };
        let expected =
            Rule { peers: Peers::Only([Peer::Block(expected)].into()), ports: Ports::Any };
        let (stored, problems) = stored_policy(&object).unwrap();
        assert_eq!(problems, [], "{cidr}");
        assert_eq!(stored.ingress, Some(vec![expected]), "{cidr}");
        assert_eq!(policy(&object).unwrap(), stored, "{cidr}");
    }
}

#[test]
fn a_stored_policy_keeps_isolating_and_never_opens_more() {
    // Kept from before an upgrade: understood, no problem.
    let spec = json!({"ingress": [{"from": [{"ipBlock": {"cidr": "010.0.0.0/8"}}]}]});
    let (policy, problems) = stored_policy(&object(spec)).unwrap();
    let block = IpBlock { cidr: "10.0.0.0/8".parse().unwrap(), except: vec![] };
    assert_eq!(problems, []);
    assert_eq!(
        policy.ingress,
        Some(vec![Rule { peers: Peers::Only([Peer::Block(block)].into()), ports: Ports::Any }])
    );
    // A peer of a kind this version does not know arrives as an empty one; a block with an
    // exception that is not understood must not be opened without it.
    let spec = json!({"ingress": [{"from": [
        {}, {"ipBlock": {"cidr": "10.0.0.0/8", "except": ["?"]}}], "ports": [{"protocol": "X"}]}]});
    let (policy, problems) = stored_policy(&object(spec)).unwrap();
    assert_eq!(problems.len(), 3, "{problems:?}");
    assert_eq!(
        policy.ingress,
        Some(vec![Rule { peers: Peers::Only([].into()), ports: Ports::Only(vec![]) }])
    );
    let spec = json!({"podSelector": {"matchExpressions": [{"key": "a", "operator": "Near"}]}});
    assert_eq!(stored_policy(&object(spec)).unwrap_err().len(), 1);
}

#[test]
fn namespaces_carry_their_name_as_a_label() {
    let object = serde_json::from_value(json!({"metadata": {"name": "shop",
        "labels": {"team": "a", "kubernetes.io/metadata.name": "forged"}}}))
    .unwrap();
    let namespace = namespace(&object);
    assert_eq!(&*namespace.name, "shop");
    assert_eq!(
        namespace.labels,
        [("team", "a"), (NAMESPACE_NAME_LABEL, "shop")].into_iter().collect()
    );
}

fn a_pod(value: Value) -> (Pod, Vec<Problem>) {
    pod(&serde_json::from_value(value).unwrap())
}

#[test]
fn a_pod_is_read_in_full() {
    let (pod, problems) = a_pod(json!({
        "metadata": {"name": "web-1", "namespace": "shop", "uid": "u-1", "labels": {"app": "web"},
            "creationTimestamp": "2026-01-02T03:04:05Z"},
        "spec": {"nodeName": "n1",
            "containers": [
                {"name": "a", "ports": [{"name": "http", "containerPort": 8080},
                    {"containerPort": 9}, {"name": "dns", "containerPort": 53, "protocol": "UDP"}]},
                {"name": "b", "ports": [{"name": "http", "containerPort": 8081},
                    {"name": "http", "containerPort": 8080}]}],
            "initContainers": [
                {"name": "i", "ports": [{"name": "init", "containerPort": 1}]},
                {"name": "s", "restartPolicy": "Always",
                    "ports": [{"name": "side", "containerPort": 2}]}]},
        "status": {"phase": "Running", "podIP": "10.0.0.9",
            "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]}}));
    let port = |name: &str, protocol, port| NamedPort { name: name.into(), protocol, port };
    assert_eq!(problems, []);
    assert_eq!(
        pod,
        Pod {
            id: ObjectName::new("shop", "web-1"),
            uid: "u-1".into(),
            labels: [("app", "web")].into_iter().collect(),
            node: Some("n1".into()),
            addresses: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()].into(),
            host_network: false,
            finished: false,
            running: true,
            ports: [
                port("dns", Protocol::Udp, 53),
                port("http", Protocol::Tcp, 8080),
                port("http", Protocol::Tcp, 8081),
                port("side", Protocol::Tcp, 2),
            ]
            .into(),
            annotations: None,
            created: 1_767_323_045,
        }
    );
}

#[test]
fn a_pod_with_little_in_it_is_fine() {
    let (pod, problems) = a_pod(json!({"metadata": {"name": "p"}}));
    assert_eq!(problems, []);
    assert_eq!((pod.uid.to_string().as_str(), pod.created), ("default/p", 0));
    assert_eq!((pod.node, pod.addresses.len(), pod.host_network), (None, 0, false));
}

#[test]
fn pod_addresses_and_phases() {
    let table = [
        (json!({"podIP": "10.0.0.1"}), vec!["10.0.0.1"], false, None),
        (json!({"podIP": "", "podIPs": []}), vec![], false, None),
        (json!({"phase": "Succeeded", "podIP": "10.0.0.1"}), vec!["10.0.0.1"], true, None),
        (json!({"phase": "Failed"}), vec![], true, None),
        (
            json!({"podIPs": [{"ip": "10.0.0.1"}, {"ip": "10.0.0.1"}]}),
            vec!["10.0.0.1"],
            false,
            None,
        ),
        (
            json!({"podIPs": [{"ip": "10.0.0.300"}, {"ip": "10.0.0.2"}], "podIP": "10.0.0.300"}),
            vec!["10.0.0.2"],
            false,
            Some("status.podIPs[0].ip"),
        ),
        (json!({"podIP": "::ffff:10.0.0.1"}), vec![], false, Some("status.podIP")),
        (json!({"podIP": "010.0.0.1"}), vec![], false, Some("status.podIP")),
    ];
    for (status, addresses, finished, problem) in table {
        let (pod, problems) = a_pod(json!({"metadata": {"name": "p"}, "status": status}));
        let found: Vec<String> = pod.addresses.iter().map(ToString::to_string).collect();
        assert_eq!(found, addresses, "{status}");
        assert_eq!(pod.finished, finished, "{status}");
        assert_eq!(problems.first().map(|p| p.field.as_str()), problem, "{status}");
    }
}

#[test]
fn bad_container_ports_are_named_and_left_out() {
    let table = [
        (json!({"name": "Http", "containerPort": 80}), "spec.containers[0].ports[0].name"),
        (json!({"name": "http", "containerPort": 0}), "spec.containers[0].ports[0].containerPort"),
        (json!({"containerPort": 70000}), "spec.containers[0].ports[0].containerPort"),
        (
            json!({"name": "http", "containerPort": 80, "protocol": "udp"}),
            "spec.containers[0].ports[0].protocol",
        ),
    ];
    for (port, field) in table {
        let (pod, problems) = a_pod(json!({"metadata": {"name": "p"},
            "spec": {"containers": [{"name": "c", "ports": [port]}]}}));
        assert_eq!(*pod.ports, [], "{port}");
        assert_eq!(problems.iter().map(|p| p.field.as_str()).collect::<Vec<_>>(), [field]);
    }
}
