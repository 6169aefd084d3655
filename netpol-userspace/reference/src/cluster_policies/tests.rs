//! The tiers on objects as people write them, each with what upstream's documentation says.

use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::Reference;
use crate::services::{Answer, Services};
use netpol_model::Direction;

fn object<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("an object")
}

/// x/a (`app=a`), the subject, at .1 and x/b at .2; y/b at .3 in a namespace with `team=red`. All have
/// `web` at TCP 8080 and `dns` at UDP 53. A pod on the host's network at .4, which is node n1
/// (`zone=one`) too; n2 is at 192.0.2.2.
fn reference(cluster_policies: Vec<Value>, policies: Vec<NetworkPolicy>) -> Reference {
    let pod = |namespace: &str, name: &str, last: u8, on_host: bool| -> Pod {
        object(json!({
            "metadata": {"namespace": namespace, "name": name, "labels": {"app": name}},
            "spec": {"hostNetwork": on_host, "containers": [{"name": "c", "ports": [
                {"name": "web", "containerPort": 8080},
                {"name": "dns", "containerPort": 53, "protocol": "UDP"}]}]},
            "status": {"podIP": format!("10.0.0.{last}")}}))
    };
    let node = |name: &str, zone: &str, addresses: Value| -> Node {
        object(json!({"metadata": {"name": name, "labels": {"zone": zone}},
            "status": {"addresses": addresses}}))
    };
    let namespace = |name: &str, labels: Value| -> Namespace {
        object(json!({"metadata": {"name": name, "labels": labels}}))
    };
    let pods = vec![
        pod("x", "a", 1, false),
        pod("x", "b", 2, false),
        pod("y", "b", 3, false),
        pod("x", "h", 4, true),
    ];
    let nodes = vec![
        node(
            "n1",
            "one",
            json!([{"type": "InternalIP", "address": "10.0.0.4"},
            {"type": "Hostname", "address": "n1"}]),
        ),
        node(
            "n2",
            "two",
            json!([{"type": "InternalIP", "address": "192.0.2.1"},
            {"type": "ExternalIP", "address": "192.0.2.2"}]),
        ),
    ];
    let namespaces = vec![namespace("x", json!({})), namespace("y", json!({"team": "red"}))];
    Reference::new(namespaces, pods, policies).with_cluster_policies(cluster_policies, nodes)
}

/// A policy for x/a.
fn policy(name: &str, tier: &str, priority: u16, rules: Value) -> Value {
    let subject = json!({"pods": {"namespaceSelector": {}, "podSelector":
        {"matchLabels": {"app": "a"}}}});
    of_subject(name, tier, priority, &subject, &rules)
}

/// Rules are written for egress here; ingress has the same with `from`.
fn of_subject(name: &str, tier: &str, priority: u16, subject: &Value, rules: &Value) -> Value {
    let ingress: Vec<Value> = rules
        .as_array()
        .expect("a list")
        .iter()
        .map(|rule| {
            let mut rule = rule.clone();
            let fields = rule.as_object_mut().expect("fields");
            let peers = fields.remove("to").expect("peers");
            fields.insert("from".to_owned(), peers);
            rule
        })
        .collect();
    json!({"apiVersion": "policy.networking.k8s.io/v1beta1", "kind": "ClusterNetworkPolicy",
        "metadata": {"name": name}, "spec": {"tier": tier, "priority": priority,
        "subject": subject, "ingress": ingress, "egress": rules}})
}

/// A NetworkPolicy for x/a, with the directions that `spec` has.
fn network_policy(spec: Value) -> NetworkPolicy {
    let mut spec = spec;
    spec["podSelector"] = json!({"matchLabels": {"app": "a"}});
    object(json!({"metadata": {"namespace": "x", "name": "p"}, "spec": spec}))
}

fn subject(reference: &Reference) -> Pod {
    reference.pods[0].clone()
}

fn allows(reference: &Reference, direction: Direction, remote: &str, port: &str) -> bool {
    let (protocol, port) = port.split_once(':').expect("protocol:port");
    let remote = remote.parse().expect("an address");
    let protocol = protocol.parse().expect("a protocol");
    let pod = subject(reference);
    reference.allows(direction, &pod, remote, protocol, port.parse().expect("a port"))
}

const REMOTES: [&str; 6] =
    ["10.0.0.2", "10.0.0.3", "10.0.0.4", "192.0.2.1", "192.0.2.2", "fd00::1"];

/// The last parts of the addresses to which TCP 80 is denied.
fn denied(reference: &Reference, direction: Direction) -> String {
    let denied = REMOTES.iter().filter(|remote| !allows(reference, direction, remote, "6:80"));
    let denied = denied.map(|remote| match remote.strip_prefix("10.0.0.") {
        Some(last) => last.to_owned(),
        None => (*remote).to_owned(),
    });
    denied.collect::<Vec<_>>().join(" ")
}

fn everyone() -> Value {
    json!({"namespaces": {}})
}

fn red() -> Value {
    json!({"namespaces": {"matchLabels": {"team": "red"}}})
}

#[test]
fn peers_by_kind() {
    let both = [
        (everyone(), "2 3"),
        (red(), "3"),
        (json!({"namespaces": {"matchLabels": {"kubernetes.io/metadata.name": "x"}}}), "2"),
        (
            json!({"pods": {"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "b"}}}}),
            "2 3",
        ),
        (
            json!({"pods": {"namespaceSelector": {"matchLabels": {"team": "red"}},
                "podSelector": {"matchLabels": {"app": "a"}}}}),
            "",
        ),
        // A pod on the host's network is none.
        (
            json!({"pods": {"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "h"}}}}),
            "",
        ),
    ];
    for (peer, expected) in both {
        let rules = json!([{"action": "Deny", "to": [peer.clone()]}]);
        let reference = reference(vec![policy("p", "Admin", 1, rules)], Vec::new());
        for direction in Direction::BOTH {
            assert_eq!(denied(&reference, direction), expected, "{direction} {peer}");
        }
    }
    let of_egress = [
        (json!({"networks": ["10.0.0.2/31"]}), "2 3"),
        (json!({"networks": ["10.0.0.4/32", "192.0.2.0/24"]}), "4 192.0.2.1 192.0.2.2"),
        (json!({"networks": ["::/0"]}), "fd00::1"),
        (json!({"nodes": {}}), "4 192.0.2.1 192.0.2.2"),
        (json!({"nodes": {"matchLabels": {"zone": "two"}}}), "192.0.2.1 192.0.2.2"),
    ];
    for (peer, expected) in of_egress {
        let rules = json!([{"action": "Deny", "to": [peer.clone()]}]);
        let reference = reference(vec![policy("p", "Admin", 1, rules)], Vec::new());
        assert_eq!(denied(&reference, Direction::Egress), expected, "{peer}");
    }
}

#[test]
fn the_first_rule_that_matches_decides() {
    let rule = |action: &str, peer: Value| json!([{"action": action, "to": [peer]}]);
    let deny_all = || rule("Deny", everyone());
    let accept_red = || rule("Accept", red());
    let cases = [
        // The lower priority value first.
        (vec![("z", 1, accept_red()), ("a", 2, deny_all())], "2"),
        (vec![("a", 2, accept_red()), ("z", 1, deny_all())], "2 3"),
        // Of equal ones by name, not by when they came.
        (vec![("b", 1, deny_all()), ("a", 1, accept_red())], "2"),
        (vec![("a", 1, deny_all()), ("b", 1, accept_red())], "2 3"),
        // In one policy by their places.
        (vec![("a", 1, json!([accept_red()[0], deny_all()[0]]))], "2"),
        (vec![("a", 1, json!([deny_all()[0], accept_red()[0]]))], "2 3"),
        // Pass leaves the tier.
        (vec![("a", 1, rule("Pass", red())), ("b", 2, deny_all())], "2"),
        (vec![("a", 1, json!([rule("Pass", red())[0], deny_all()[0]]))], "2"),
    ];
    for tier in ["Admin", "Baseline"] {
        for (policies, expected) in &cases {
            let all = policies
                .iter()
                .map(|(name, priority, rules)| policy(name, tier, *priority, rules.clone()));
            let reference = reference(all.collect(), Vec::new());
            for direction in Direction::BOTH {
                assert_eq!(denied(&reference, direction), *expected, "{tier} {policies:?}");
            }
        }
    }
}

#[test]
fn network_policies_come_between_the_tiers() {
    let deny_all = json!([{"action": "Deny", "to": [everyone()]}]);
    let admin = |action: &str| {
        let rules = json!([{"action": action, "to": [red()]}]);
        policy("admin", "Admin", 5, rules)
    };
    let baseline = policy("base", "Baseline", 0, deny_all);
    let nobody = || network_policy(json!({"policyTypes": ["Ingress", "Egress"]}));
    let anybody = || network_policy(json!({"ingress": [{}], "egress": [{}]}));
    let all = "2 3 4 192.0.2.1 192.0.2.2 fd00::1";
    let but_red = "2 4 192.0.2.1 192.0.2.2 fd00::1";
    let cases: [(Vec<Value>, Vec<NetworkPolicy>, &str); 9] = [
        (vec![admin("Accept")], vec![nobody()], but_red),
        (vec![admin("Deny")], vec![anybody()], "3"),
        (vec![admin("Pass")], vec![nobody()], all),
        (vec![admin("Pass"), baseline.clone()], vec![anybody()], ""),
        (vec![admin("Pass"), baseline.clone()], Vec::new(), "2 3"),
        (vec![admin("Accept"), baseline.clone()], Vec::new(), "2"),
        (vec![baseline.clone()], vec![nobody()], all),
        (vec![baseline.clone()], vec![anybody()], ""),
        (vec![baseline], Vec::new(), "2 3"),
    ];
    for (tiers, policies, expected) in cases {
        let reference = reference(tiers.clone(), policies.clone());
        for direction in Direction::BOTH {
            assert_eq!(denied(&reference, direction), expected, "{tiers:?} {policies:?}");
        }
    }
}

#[test]
fn each_direction_is_its_own() {
    let deny_all = json!([{"action": "Deny", "to": [everyone()]}]);
    let both = policy("base", "Baseline", 0, deny_all);
    // A NetworkPolicy isolates for one direction: the other one is left to the baseline.
    let ingress = network_policy(json!({"ingress": [{}]}));
    let scene = reference(vec![both.clone()], vec![ingress]);
    assert_eq!(Direction::BOTH.map(|d| denied(&scene, d)), ["", "2 3"]);
    let pod = subject(&scene);
    assert_eq!(Direction::BOTH.map(|d| scene.isolated(d, &pod)), [true, false]);
    assert_eq!(Direction::BOTH.map(|d| scene.is_judged(d, &pod)), [true, true]);
    // A policy without rules for a direction says nothing of it.
    let mut one_way = both;
    one_way["spec"].as_object_mut().expect("fields").remove("egress");
    let scene = reference(vec![one_way], Vec::new());
    assert_eq!(Direction::BOTH.map(|d| denied(&scene, d)), ["2 3", ""]);
    assert_eq!(Direction::BOTH.map(|d| scene.is_judged(d, &pod)), [true, false]);
}

#[test]
fn protocols_and_ports() {
    let samples = [
        "6:53", "6:80", "6:81", "6:82", "6:8080", "17:53", "17:80", "132:80", "1:0", "47:0", "58:0",
    ];
    let cases = [
        (None, "6:53 6:80 6:81 6:82 6:8080 17:53 17:80 132:80 1:0 47:0 58:0"),
        (Some(json!([{"tcp": {"destinationPort": {"number": 80}}}])), "6:80"),
        (Some(json!([{"udp": {"destinationPort": {"number": 80}}}])), "17:80"),
        (Some(json!([{"sctp": {"destinationPort": {"number": 80}}}])), "132:80"),
        (
            Some(json!([{"tcp": {"destinationPort": {"range": {"start": 80, "end": 81}}}}])),
            "6:80 6:81",
        ),
        (
            Some(json!([{"tcp": {"destinationPort": {"number": 81}}},
                {"udp": {"destinationPort": {"range": {"start": 1, "end": 65535}}}}])),
            "6:81 17:53 17:80",
        ),
        // A name, whatever its protocol.
        (Some(json!([{"destinationNamedPort": "web"}])), "6:8080"),
        (Some(json!([{"destinationNamedPort": "dns"}])), "17:53"),
        (Some(json!([{"destinationNamedPort": "other"}])), ""),
    ];
    for (protocols, expected) in cases {
        let mut rule = json!({"action": "Deny", "to": [everyone()]});
        if let Some(protocols) = &protocols {
            rule["protocols"] = protocols.clone();
        }
        let reference = reference(vec![policy("p", "Admin", 0, json!([rule]))], Vec::new());
        for direction in Direction::BOTH {
            let denied: Vec<&str> = samples
                .into_iter()
                .filter(|sample| !allows(&reference, direction, "10.0.0.2", sample))
                .collect();
            assert_eq!(denied.join(" "), expected, "{direction} {protocols:?}");
        }
    }
}

#[test]
fn everything_is_every_protocol_to_every_port() {
    let accept = json!({"action": "Accept", "to": [everyone()]});
    let deny = |port: u16| {
        json!({"action": "Deny", "to": [everyone()],
            "protocols": [{"udp": {"destinationPort": {"number": port}}}]})
    };
    let all = json!({"action": "Deny", "to": [everyone()]});
    let everything = |rules: Value| {
        let reference = reference(vec![policy("p", "Admin", 0, rules)], Vec::new());
        let remote = "10.0.0.2".parse().expect("an address");
        reference.allows_all(Direction::Egress, &subject(&reference), remote)
    };
    assert!(everything(json!([accept, all])));
    assert!(!everything(json!([all])));
    for port in [1, 7777, 65535] {
        assert!(!everything(json!([deny(port)])), "{port}");
        assert!(everything(json!([accept, deny(port)])), "{port}");
    }
}

#[test]
fn what_is_not_understood_fails_closed() {
    let known = || everyone();
    let unknown = [
        json!({"to": [{"someday": {}}]}),
        json!({"to": [known(), {"someday": {}}]}),
        json!({"to": [{}]}),
        json!({"to": [{"domainNames": ["example.com"]}]}),
        json!({"to": [known()], "protocols": [{"someday": {}}]}),
        json!({"to": [known()], "protocols": [{"tcp": {"someday": 1}}]}),
        json!({"to": [known()], "protocols": [{"tcp": {"destinationPort": {"someday": 1}}}]}),
        json!({"to": [known()], "protocols": [{"udp": {"destinationPort": {"number": 1}}}, {}]}),
    ];
    let all = "2 3 4 192.0.2.1 192.0.2.2 fd00::1";
    for rule in unknown {
        for (action, expected) in [("Accept", "2 3"), ("Deny", all), ("Pass", all)] {
            let mut rule = rule.clone();
            rule["action"] = action.into();
            // What follows it is not forgotten.
            let rules = json!([rule, {"action": "Deny", "to": [known()]}]);
            let reference = reference(vec![policy("p", "Admin", 0, rules)], Vec::new());
            for direction in Direction::BOTH {
                assert_eq!(denied(&reference, direction), expected, "{action} {rule}");
            }
        }
    }
    let rules = json!([{"action": "Someday", "to": [{"networks": ["203.0.113.0/24"]}]}]);
    let reference = reference(vec![policy("p", "Baseline", 0, rules)], Vec::new());
    assert_eq!(Direction::BOTH.map(|d| denied(&reference, d)), [all, all]);
    assert!(!allows(&reference, Direction::Egress, "10.0.0.2", "1:0"), "of every protocol");
}

#[test]
fn whom_a_policy_is_about() {
    let deny = json!([{"action": "Deny", "to": [everyone()]}]);
    let cases = [
        (json!({"namespaces": {}}), true),
        (json!({"namespaces": {"matchLabels": {"team": "red"}}}), false),
        (json!({"pods": {"namespaceSelector": {}, "podSelector": {}}}), true),
        (
            json!({"pods": {"namespaceSelector": {"matchLabels": {"team": "red"}},
                "podSelector": {"matchLabels": {"app": "a"}}}}),
            false,
        ),
        (
            json!({"pods": {"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "b"}}}}),
            false,
        ),
        (json!({"someday": {}}), false),
    ];
    for (subject_of, expected) in cases {
        let policies = vec![of_subject("p", "Admin", 0, &subject_of, &deny)];
        let reference = reference(policies, Vec::new());
        let pod = subject(&reference);
        assert_eq!(reference.is_judged(Direction::Ingress, &pod), expected, "{subject_of}");
        assert_eq!(denied(&reference, Direction::Ingress), if expected { "2 3" } else { "" });
        // Pods on the host's network never are.
        assert!(!reference.is_judged(Direction::Ingress, &reference.pods[3]));
    }
    let policies = vec![policy("p", "Someday", 0, deny)];
    assert_eq!(denied(&reference(policies, Vec::new()), Direction::Egress), "");
}

#[test]
fn networks_match_icmp_and_pods() {
    let rules = json!([{"action": "Deny", "to": [{"networks": ["10.0.0.0/24"]}]}]);
    let reference = reference(vec![policy("p", "Admin", 0, rules)], Vec::new());
    for sample in ["6:80", "17:1", "1:0"] {
        assert!(!allows(&reference, Direction::Egress, "10.0.0.2", sample), "{sample}");
        assert!(allows(&reference, Direction::Egress, "10.0.1.2", sample), "{sample}");
    }
}

fn services(backends: &[&str]) -> Services {
    let endpoints: Vec<Value> = backends.iter().map(|a| json!({"addresses": [a]})).collect();
    let slice: EndpointSlice = object(json!({"metadata": {"namespace": "x", "name": "web-1",
            "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4", "ports": [{"port": 8080}], "endpoints": endpoints}));
    let service = object(json!({"metadata": {"namespace": "x", "name": "web"},
        "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 80}]}}));
    Services { services: vec![service], slices: vec![slice], ..Services::default() }
}

#[test]
fn to_itself_directly_or_through_a_service() {
    let deny = |port: u16| {
        json!([{"action": "Deny", "to": [everyone()],
            "protocols": [{"tcp": {"destinationPort": {"number": port}}}]}])
    };
    let through = |reference: &Reference, backends: &[&str]| {
        let to = "10.96.0.1".parse().expect("an address");
        services(backends).egress(reference, &subject(reference), to, 6, 80)
    };
    let nobody = || network_policy(json!({"policyTypes": ["Ingress", "Egress"]}));
    for tier in ["Admin", "Baseline"] {
        let scene = reference(vec![policy("p", tier, 0, deny(8080))], Vec::new());
        assert!(allows(&scene, Direction::Egress, "10.0.0.1", "6:8080"), "it does not leave");
        assert!(!allows(&scene, Direction::Ingress, "10.0.0.1", "6:8080"), "anybody could come");
        assert_eq!(through(&scene, &["10.0.0.1"]), Answer::No);
        assert_eq!(through(&scene, &["10.0.0.1", "10.0.0.4"]), Answer::Depends);
        assert_eq!(through(&scene, &["10.0.0.4"]), Answer::Yes);
        assert_eq!(through(&scene, &["10.0.0.2", "10.0.0.3"]), Answer::No);
        // Another port.
        let scene = reference(vec![policy("p", tier, 0, deny(80))], Vec::new());
        assert_eq!(through(&scene, &["10.0.0.1"]), Answer::Depends);
    }
    // To NetworkPolicies it is exempt, and what they allow is not the baseline's any more.
    let cases = [("Admin", Answer::No), ("Baseline", Answer::Depends)];
    for (tier, expected) in cases {
        let scene = reference(vec![policy("p", tier, 0, deny(8080))], vec![nobody()]);
        assert_eq!(through(&scene, &["10.0.0.1"]), expected);
        assert_eq!(through(&scene, &["10.0.0.2"]), Answer::No);
    }
    // What nobody translates is exempt from nothing.
    let scene = reference(vec![policy("p", "Admin", 0, deny(8080))], Vec::new());
    let to = "10.96.0.1".parse().expect("an address");
    let leaves = |backends: &[&str]| {
        services(backends).leaves_untranslated(&scene, &subject(&scene), to, 6, 80)
    };
    assert_eq!([leaves(&["10.0.0.1"]), leaves(&["10.0.0.4"])], [false, true]);
}
