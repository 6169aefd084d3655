//! The evaluator on manifests as people write them, each with what the documentation says.

use super::*;

fn pod(text: &str) -> Pod {
    serde_json::from_str(text).expect("a pod")
}

/// A pod of one line: namespace, name, labels (`a=b,c=d`), address.
fn simple_pod(namespace: &str, name: &str, labels: &str, address: &str) -> Pod {
    let labels: Vec<String> = labels
        .split(',')
        .filter_map(|label| label.split_once('='))
        .map(|(key, value)| format!("{key:?}: {value:?}"))
        .collect();
    pod(&format!(
        r#"{{"metadata": {{"namespace": "{namespace}", "name": "{name}",
            "labels": {{{}}}}}, "status": {{"podIP": "{address}"}},
            "spec": {{"containers": [{{"name": "c", "ports":
                [{{"name": "web", "containerPort": 8080}},
                 {{"name": "dns", "containerPort": 53, "protocol": "UDP"}}]}}]}}}}"#,
        labels.join(", ")
    ))
}

fn policy(spec: &str) -> NetworkPolicy {
    let text = format!(r#"{{"metadata": {{"namespace": "x", "name": "p"}}, "spec": {spec}}}"#);
    serde_json::from_str(&text).expect("a policy")
}

struct Scene {
    reference: Reference,
    subject: Pod,
}

/// The subject x/a at 10.0.0.1, its neighbour x/b at .2, y/b at .3 in a namespace labelled
/// team=red, z/b at .4 in a namespace without an object.
fn scene(specs: &[&str]) -> Scene {
    let namespace = |name: &str, labels: &str| -> Namespace {
        let text = format!(r#"{{"metadata": {{"name": "{name}", "labels": {{{labels}}}}}}}"#);
        serde_json::from_str(&text).expect("a namespace")
    };
    let subject = simple_pod("x", "a", "app=a", "10.0.0.1");
    let pods = vec![
        subject.clone(),
        simple_pod("x", "b", "app=b", "10.0.0.2"),
        simple_pod("y", "b", "app=b", "10.0.0.3"),
        simple_pod("z", "b", "app=b,tier=", "10.0.0.4"),
    ];
    let namespaces = vec![namespace("x", ""), namespace("y", r#""team": "red""#)];
    let policies = specs.iter().map(|spec| policy(spec)).collect();
    Scene { reference: Reference::new(namespaces, pods, policies), subject }
}

impl Scene {
    fn allows(&self, direction: Direction, remote: &str, protocol: u8, port: u16) -> bool {
        let remote = remote.parse().expect("an address");
        self.reference.allows(direction, &self.subject, remote, protocol, port)
    }

    /// The last parts of the addresses 10.0.0.2 to .5 that may connect to TCP 80.
    fn admitted(&self) -> String {
        let may = |last: &u8| self.allows(Direction::Ingress, &format!("10.0.0.{last}"), 6, 80);
        (2..=5).filter(may).map(|last| last.to_string()).collect()
    }
}

#[test]
fn ingress_by_peer() {
    let cases = [
        // Missing and empty lists of rules allow nothing.
        ("{}", ""),
        (r#"{"ingress": []}"#, ""),
        // A rule without peers allows all.
        (r#"{"ingress": [{}]}"#, "2345"),
        (r#"{"ingress": [{"from": []}]}"#, "2345"),
        // An item without content matches nothing.
        (r#"{"ingress": [{"from": [{}]}]}"#, ""),
        // podSelector alone: the policy's namespace. An empty one: all pods there.
        (r#"{"ingress": [{"from": [{"podSelector": {}}]}]}"#, "2"),
        (r#"{"ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "b"}}}]}]}"#, "2"),
        // namespaceSelector alone: all pods there; an empty one: of all namespaces, but not
        // addresses that are no pod's.
        (r#"{"ingress": [{"from": [{"namespaceSelector": {}}]}]}"#, "234"),
        (
            r#"{"ingress": [{"from": [{"namespaceSelector": {"matchLabels": {"team": "red"}}}]}]}"#,
            "3",
        ),
        (
            r#"{"ingress": [{"from": [{"namespaceSelector": {"matchLabels":
                {"kubernetes.io/metadata.name": "z"}}}]}]}"#,
            "4",
        ),
        // Both in one item: and. In two items: or.
        (
            r#"{"ingress": [{"from": [{"namespaceSelector": {"matchLabels": {"team": "red"}},
                "podSelector": {"matchLabels": {"app": "a"}}}]}]}"#,
            "",
        ),
        (
            r#"{"ingress": [{"from": [{"namespaceSelector": {"matchLabels": {"team": "red"}}},
                {"podSelector": {"matchLabels": {"app": "b"}}}]}]}"#,
            "23",
        ),
        // NotIn and DoesNotExist match what has no such label; an empty value is a value.
        (
            r#"{"ingress": [{"from": [{"namespaceSelector": {"matchExpressions":
                [{"key": "team", "operator": "NotIn", "values": ["red"]}]}}]}]}"#,
            "24",
        ),
        (
            r#"{"ingress": [{"from": [{"namespaceSelector": {}, "podSelector":
                {"matchExpressions": [{"key": "tier", "operator": "DoesNotExist"}]}}]}]}"#,
            "23",
        ),
        (
            r#"{"ingress": [{"from": [{"namespaceSelector": {}, "podSelector":
                {"matchLabels": {"tier": ""}}}]}]}"#,
            "4",
        ),
        // Blocks match pods and all else; host bits do not count; an except takes from its own
        // block only.
        (r#"{"ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.7/29"}}]}]}"#, "2345"),
        (
            r#"{"ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/29",
                "except": ["10.0.0.2/31"]}}]}]}"#,
            "45",
        ),
        (
            r#"{"ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/29",
                "except": ["10.0.0.2/31"]}}, {"ipBlock": {"cidr": "10.0.0.3/32"}}]}]}"#,
            "345",
        ),
        (r#"{"ingress": [{"from": [{"ipBlock": {"cidr": "::/0"}}]}]}"#, ""),
        // About egress only, or about other pods: not isolated.
        (r#"{"policyTypes": ["Egress"]}"#, "2345"),
        (r#"{"podSelector": {"matchLabels": {"app": "b"}}}"#, "2345"),
    ];
    for (spec, expected) in cases {
        assert_eq!(scene(&[spec]).admitted(), expected, "{spec}");
    }
}

#[test]
fn policies_add_up() {
    let deny = "{}";
    let neighbours = r#"{"ingress": [{"from": [{"podSelector": {}}]}]}"#;
    let red = r#"{"ingress": [{"from": [{"namespaceSelector":
        {"matchLabels": {"team": "red"}}}]}]}"#;
    assert_eq!(scene(&[]).admitted(), "2345");
    assert_eq!(scene(&[neighbours, deny]).admitted(), "2");
    assert_eq!(scene(&[deny, red, neighbours]).admitted(), "23");
}

#[test]
fn policy_types_by_default() {
    let cases = [
        ("{}", true, false),
        (r#"{"policyTypes": []}"#, true, false),
        (r#"{"egress": []}"#, true, false),
        (r#"{"egress": [{}]}"#, true, true),
        (r#"{"policyTypes": [], "egress": [{}]}"#, true, true),
        (r#"{"policyTypes": ["Ingress"], "egress": [{}]}"#, true, false),
        (r#"{"policyTypes": ["Egress"], "ingress": [{}]}"#, false, true),
        (r#"{"policyTypes": ["Egress", "Ingress"]}"#, true, true),
    ];
    for (spec, ingress, egress) in cases {
        let Scene { reference, subject } = scene(&[spec]);
        let isolated = Direction::BOTH.map(|direction| reference.isolated(direction, &subject));
        assert_eq!(isolated, [ingress, egress], "{spec}");
    }
}

#[test]
fn ports_and_protocols() {
    const SAMPLES: [(u8, u16); 9] =
        [(6, 53), (6, 80), (6, 81), (6, 8080), (17, 53), (17, 80), (132, 80), (1, 0), (47, 0)];
    let cases = [
        ("[]", "all"),
        ("[{}]", "6:53 6:80 6:81 6:8080"),
        (r#"[{"protocol": "UDP"}]"#, "17:53 17:80"),
        (r#"[{"port": 80}]"#, "6:80"),
        (r#"[{"port": 80, "protocol": "SCTP"}]"#, "132:80"),
        (r#"[{"port": 80, "endPort": 81}]"#, "6:80 6:81"),
        (r#"[{"port": 53, "protocol": "UDP"}, {"port": 80}]"#, "6:80 17:53"),
        // Name and protocol must both match.
        (r#"[{"port": "web"}]"#, "6:8080"),
        (r#"[{"port": "dns"}]"#, ""),
        (r#"[{"port": "dns", "protocol": "UDP"}]"#, "17:53"),
        (r#"[{"port": "other"}]"#, ""),
    ];
    for (ports, expected) in cases {
        for (direction, spec) in [
            (Direction::Ingress, format!(r#"{{"ingress": [{{"ports": {ports}}}]}}"#)),
            (Direction::Egress, format!(r#"{{"egress": [{{"ports": {ports}}}]}}"#)),
        ] {
            let scene = scene(&[&spec]);
            let allowed: Vec<String> = SAMPLES
                .iter()
                .filter(|(protocol, port)| scene.allows(direction, "10.0.0.2", *protocol, *port))
                .map(|(protocol, port)| format!("{protocol}:{port}"))
                .collect();
            let all = allowed.len() == SAMPLES.len();
            let allowed = if all { "all".to_owned() } else { allowed.join(" ") };
            assert_eq!(allowed, expected, "{direction} {ports}");
        }
    }
}

#[test]
fn a_named_port_is_the_destinations() {
    let egress = scene(&[r#"{"egress": [{"ports": [{"port": "web"}]}]}"#]);
    assert!(egress.allows(Direction::Egress, "10.0.0.3", 6, 8080));
    assert!(!egress.allows(Direction::Egress, "10.0.0.9", 6, 8080), "no pod has that address");
    let ingress = scene(&[r#"{"ingress": [{"ports": [{"port": "web"}]}]}"#]);
    assert!(ingress.allows(Direction::Ingress, "10.0.0.9", 6, 8080));
}

#[test]
fn a_pod_reaches_itself() {
    let scene = scene(&[r#"{"policyTypes": ["Ingress", "Egress"]}"#]);
    assert!(scene.allows(Direction::Egress, "10.0.0.1", 6, 80));
    assert!(!scene.allows(Direction::Ingress, "10.0.0.1", 6, 80), "who only has its address");
}

#[test]
fn the_younger_of_two_pods_has_the_address() {
    let born = |name: &str, label: &str, second: u8| {
        let mut pod = simple_pod("x", name, label, "10.0.0.2");
        pod.metadata.creation_timestamp =
            serde_json::from_str(&format!("\"2026-01-01T00:00:0{second}Z\"")).expect("a time");
        pod
    };
    let spec = r#"{"ingress": [{"from": [{"podSelector": {"matchLabels": {"is": "new"}}}]}]}"#;
    let subject = simple_pod("x", "a", "", "10.0.0.1");
    for (first, second, expected) in [(1, 2, true), (2, 1, false), (1, 1, false)] {
        let pods = vec![subject.clone(), born("b", "is=old", first), born("c", "is=new", second)];
        let reference = Reference::new(Vec::new(), pods, vec![policy(spec)]);
        let remote = "10.0.0.2".parse().expect("an address");
        assert_eq!(reference.allows(Direction::Ingress, &subject, remote, 6, 80), expected);
    }
}

#[test]
fn pods_of_the_host_network_and_finished_pods_take_no_part() {
    for extra in [
        r#""spec": {"hostNetwork": true, "containers": []}, "status": {"podIP": "10.0.0.2"}"#,
        r#""status": {"podIP": "10.0.0.2", "phase": "Succeeded"}"#,
        r#""status": {"podIP": "10.0.0.2", "phase": "Failed"}"#,
    ] {
        let text = format!(r#"{{"metadata": {{"namespace": "x", "name": "h"}}, {extra}}}"#);
        let (host, subject) = (pod(&text), simple_pod("x", "a", "", "10.0.0.1"));
        let pods = vec![subject.clone(), host.clone()];
        let spec = r#"{"ingress": [{"from": [{"podSelector": {}}]}]}"#;
        let reference = Reference::new(Vec::new(), pods, vec![policy(spec)]);
        assert!(!reference.isolated(Direction::Ingress, &host), "{extra}");
        let remote = "10.0.0.2".parse().expect("an address");
        assert!(!reference.allows(Direction::Ingress, &subject, remote, 6, 80), "{extra}");
    }
}

#[test]
fn a_connection_needs_both_ends() {
    let Scene { reference, subject } = scene(&[
        r#"{"podSelector": {"matchLabels": {"app": "a"}}, "egress": [{"ports": [{"port": 80}]}],
            "policyTypes": ["Egress"]}"#,
        r#"{"podSelector": {"matchLabels": {"app": "b"}},
            "ingress": [{"ports": [{"port": 81}]}]}"#,
    ]);
    let server = simple_pod("x", "b", "app=b", "10.0.0.2");
    let outcome = |port| {
        let address = "10.0.0.2".parse().expect("an address");
        let Outcome { egress, ingress } = reference.connection(&subject, &server, address, 6, port);
        (egress, ingress)
    };
    assert_eq!(
        [outcome(80), outcome(81), outcome(82)],
        [(true, false), (false, true), (false, false)]
    );
}
