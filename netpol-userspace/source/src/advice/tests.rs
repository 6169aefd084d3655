//! Every warning, by what calls it forth and by what does not.
#![expect(clippy::unwrap_used, reason = "tests")]

use serde_json::{Value, json};

use super::*;
use crate::parse::{self, Object};
use crate::{convert, schema};
use netpol_model::Change;

fn pod(namespace: &str, name: &str, spec: Value) -> Change {
    let pod = json!({"metadata": {"name": name, "namespace": namespace, "labels": {"app": name}},
        "spec": spec, "status": {"podIP": "10.0.0.1"}});
    Change::Pod(convert::pod(&serde_json::from_value(pod).unwrap()).0)
}

fn cluster() -> Cluster {
    let mut cluster = Cluster::default();
    let ports = json!([{"name": "http", "containerPort": 80}]);
    cluster.apply(pod("shop", "web", json!({"containers": [{"name": "c", "ports": ports}]})));
    cluster.apply(pod("ops", "monitor", json!({"containers": []})));
    cluster.apply(pod("shop", "node-agent", json!({"hostNetwork": true, "containers": []})));
    for (name, team) in [("shop", "a"), ("ops", "ops"), ("empty", "none")] {
        let labels = [("team".to_owned(), team.to_owned())];
        let labels = labels.iter().map(|(k, v)| (k, v));
        cluster.apply(Change::Namespace(convert::named_namespace(name, labels)));
    }
    cluster
}

fn warned(spec: &Value, cluster: &Cluster, known: Scope) -> Vec<String> {
    let mut object = json!({"metadata": {"name": "p", "namespace": "shop"}, "spec": spec});
    let left_empty = schema::left_empty(&object);
    let problems = schema::check(schema::NETWORK_POLICY, schema::Unknown::Refused, &mut object);
    assert_eq!(problems, [], "{spec}");
    let object = serde_json::from_value(object).unwrap();
    let policy = &convert::policy(&object).unwrap();
    let subject = Subject { object: &object, left_empty: &left_empty, policy };
    warnings(subject, cluster, known).iter().map(ToString::to_string).collect()
}

/// Asserts for each spec the one warning that starts and goes on so, or none.
fn check(table: impl IntoIterator<Item = (Value, Option<(&'static str, &'static str)>)>) {
    let cluster = cluster();
    for (spec, expected) in table {
        for known in [Scope::Cluster, Scope::SomeFiles] {
            let found = warned(&spec, &cluster, known);
            let Some((field, text)) = expected else {
                assert!(found.is_empty(), "{spec}: {found:?}");
                continue;
            };
            let [only] = &found[..] else { panic!("{spec}: {found:?}") };
            assert!(only.starts_with(&format!("{field}: ")), "{spec}: {only}");
            assert!(only.contains(text), "{spec}: {only}");
        }
    }
}

fn from(peer: Value) -> Value {
    json!({"ingress": [{"from": [peer]}]})
}

fn labelled(key: &str, value: &str) -> Value {
    json!({"matchLabels": {key: value}})
}

#[test]
fn rules_left_empty_open_everything() {
    let everything = "allows everything";
    check([
        (json!({"ingress": [{}]}), Some(("spec.ingress[0]", everything))),
        (
            json!({"ingress": [{"from": null, "ports": null}]}),
            Some(("spec.ingress[0]", everything)),
        ),
        (json!({"ingress": [{"from": [], "ports": []}]}), Some(("spec.ingress[0]", everything))),
        (json!({"ingress": [null]}), Some(("spec.ingress[0]", everything))),
        (
            json!({"policyTypes": ["Egress"], "egress": [{"ports": [{"port": 1}]}, {"to": []}]}),
            Some(("spec.egress[1]", "the selected pods are open for egress")),
        ),
        (
            json!({"ingress": [{"from": [], "ports": [{"port": 80}]}]}),
            Some(("spec.ingress[0].from", "means from anywhere, not from nobody")),
        ),
        (
            json!({"egress": [{"to": null, "ports": [{"port": 53}]}]}),
            Some(("spec.egress[0].to", "leave `to` out")),
        ),
        (
            json!({"ingress": [{"from": [{"podSelector": {}}], "ports": null}]}),
            Some(("spec.ingress[0].ports", "every port and protocol, not none")),
        ),
        // As it is written where it is meant.
        (json!({"ingress": [{"ports": [{"port": 80}]}]}), None),
        (json!({"ingress": [{"from": [{"podSelector": {}}]}]}), None),
        (json!({"ingress": []}), None),
        (json!({"podSelector": null}), Some(("spec.podSelector", "every pod of namespace shop"))),
        (
            json!({"podSelector": {"matchLabels": null}}),
            Some(("spec.podSelector", "write `podSelector: {}`")),
        ),
        (json!({"podSelector": {}}), None),
    ]);
}

#[test]
fn a_direction_without_effect_is_named() {
    let types = "write `policyTypes: [Ingress, Egress]`";
    check([
        (json!({"ingress": [], "egress": []}), Some(("spec.egress", types))),
        (json!({"egress": null}), Some(("spec.egress", types))),
        (json!({"policyTypes": [], "egress": []}), Some(("spec.egress", types))),
        (
            json!({"policyTypes": ["Ingress"], "egress": []}),
            Some(("spec.egress", "add Egress to spec.policyTypes")),
        ),
        (
            json!({"policyTypes": ["Egress"], "ingress": []}),
            Some(("spec.ingress", "does not restrict ingress")),
        ),
        (json!({"policyTypes": ["Ingress", "Egress"], "egress": []}), None),
        (json!({"policyTypes": ["Egress"], "egress": null}), None),
        (
            json!({"policyTypes": ["Egress"], "ingress": [{}]}),
            Some(("spec.ingress", "has rules without effect: spec.policyTypes does not include")),
        ),
        (
            json!({"policyTypes": ["Ingress"], "egress": [{}]}),
            Some(("spec.egress", "Add Egress to spec.policyTypes, or remove spec.egress")),
        ),
    ]);
}

#[test]
fn blocks_that_mean_something_else_are_named() {
    let block = |cidr: &str, except: Value| json!({"egress": [{"to": [{"ipBlock": {"cidr": cidr, "except": except}}]}]});
    check([
        (block("10.0.0.0/8", json!(["10.0.0.0/9"])), None),
        (
            block("10.0.0.0/8", json!(["10.0.0.0/9", "10.128.0.0/9"])),
            Some(("spec.egress[0].to[0].ipBlock", "its exceptions cover all of 10.0.0.0/8")),
        ),
        (
            block("10.1.2.3/8", json!([])),
            Some((
                "spec.egress[0].to[0].ipBlock.cidr",
                "CIDR 10.1.2.3/8 has bits behind its mask: it means 10.0.0.0/8",
            )),
        ),
        (
            block("010.1.0.0/8", json!([])),
            Some((
                "spec.egress[0].to[0].ipBlock.cidr",
                "CIDR 010.1.0.0/8 must not have leading 0s in IP, for which strict API servers \
                 refuse the policy: it means 10.0.0.0/8 here",
            )),
        ),
        (
            block("::ffff:10.0.0.0/104", json!([])),
            Some((
                "spec.egress[0].to[0].ipBlock.cidr",
                "IPv4-mapped IPv6 address, for which strict API servers refuse the policy: it \
                 means 10.0.0.0/8 here",
            )),
        ),
        (
            block("10.0.0.0/8", json!(["10.1.0.0/16", "10.2.3.4/16"])),
            Some(("spec.egress[0].to[0].ipBlock.except[1]", "10.2.3.4/32 for the one address")),
        ),
    ]);
}

#[test]
fn selectors_that_match_no_pod_are_named() {
    let selects = |selector: Value| json!({"podSelector": selector});
    check([
        (selects(labelled("app", "web")), None),
        (
            selects(labelled("app", "db")),
            Some(("spec.podSelector", "selects no pod in these files (pods app=db in namespace")),
        ),
        (
            selects(labelled("app", "monitor")),
            Some(("spec.podSelector", "namespace ops has such pods: correct metadata.namespace")),
        ),
        (
            selects(labelled("app", "node-agent")),
            Some(("spec.podSelector", "shop/node-agent has such labels, but is on its node's")),
        ),
        (from(json!({"podSelector": labelled("app", "web")})), None),
        (
            from(json!({"podSelector": labelled("x", "y")})),
            Some(("spec.ingress[0].from[0].podSelector", "(pods x=y in namespace shop)")),
        ),
        (
            from(json!({"podSelector": labelled("app", "monitor")})),
            Some(("spec.ingress[0].from[0].podSelector", "add a namespaceSelector to this peer")),
        ),
        (
            from(json!({"podSelector": labelled("app", "node-agent")})),
            Some(("spec.ingress[0].from[0].podSelector", "is on its node's network")),
        ),
        (from(json!({"namespaceSelector": labelled("team", "a")})), None),
        (
            from(json!({"namespaceSelector": labelled("team", "b")})),
            Some((
                "spec.ingress[0].from[0].namespaceSelector",
                "no namespace in these files matches (team=b), so this peer allows nothing",
            )),
        ),
        (
            from(json!({"namespaceSelector": labelled("team", "none")})),
            Some(("spec.ingress[0].from[0].namespaceSelector", "matches no pod")),
        ),
        (
            json!({"egress": [{"to": [{"podSelector": {}}, {"namespaceSelector":
                labelled("team", "a"), "podSelector": labelled("x", "y")}]}]}),
            Some(("spec.egress[0].to[1].podSelector", "(pods x=y in namespaces team=a)")),
        ),
    ]);
}

#[test]
fn port_names_that_no_pod_has_are_named() {
    let port = |port: Value| json!({"ingress": [{"ports": [port]}]});
    let to = |cidr: &str| json!([{"ipBlock": {"cidr": cidr}}]);
    check([
        (port(json!({"port": "http"})), None),
        (
            json!({"ingress": [{"ports": [{"port": 1}, {"port": "https"}]}]}),
            Some((
                "spec.ingress[0].ports[1].port",
                "none of the selected pods declares a TCP port named \"https\"",
            )),
        ),
        (
            port(json!({"port": "http", "protocol": "UDP"})),
            Some(("spec.ingress[0].ports[0].port", "It is a TCP port there")),
        ),
        (
            json!({"egress": [{"to": to("10.0.0.0/8"), "ports": [{"port": "dns"}]}]}),
            Some(("spec.egress[0].ports[0].port", "none of the pods that the rule is about")),
        ),
        (
            json!({"egress": [{"ports": [{"port": "dns"}]}]}),
            Some(("spec.egress[0].ports[0].port", "containerPort: NUMBER")),
        ),
        (json!({"egress": [{"ports": [{"port": "http"}]}]}), None),
        (json!({"egress": [{"to": to("11.0.0.0/8"), "ports": [{"port": "dns"}]}]}), None),
    ]);
}

#[test]
fn without_pods_nothing_is_said_about_selectors() {
    let spec = json!({"podSelector": labelled("a", "b"),
        "ingress": [{"from": [{"podSelector": labelled("x", "y")}], "ports": [{"port": "http"}]}]});
    for known in [Scope::Cluster, Scope::SomeFiles] {
        assert_eq!(warned(&spec, &Cluster::default(), known), [""; 0]);
    }
}

#[test]
fn namespaces_that_the_files_say_nothing_of_may_be_elsewhere() {
    let peer = |name: &str| {
        json!({"namespaceSelector": labelled("kubernetes.io/metadata.name", name),
            "podSelector": labelled("k8s-app", "kube-dns")})
    };
    let (dns, cluster) = (from(peer("kube-system")), cluster());
    assert_eq!(warned(&dns, &cluster, Scope::SomeFiles), [""; 0]);
    let whole = warned(&dns, &cluster, Scope::Cluster);
    assert!(whole[0].contains("no namespace in these files matches"), "{whole:?}");
    assert!(!whole[0].contains("defined elsewhere"), "{whole:?}");
    assert!(whole[0].ends_with("Add the pods there that are meant, or correct the name"));
    let there = warned(&from(peer("ops")), &cluster, Scope::SomeFiles);
    assert!(there[0].contains("(fine if they are defined elsewhere)"), "{there:?}");
}

/// The warnings about each policy of a file, as `object: warning`.
fn of_file(text: &str) -> Vec<String> {
    let contents = parse::file("a.yaml", text, parse::Originals::Kept);
    let mut cluster = Cluster::default();
    for entry in &contents.entries {
        assert_eq!(entry.problems, []);
        if let Some(Object::Pod(_, pod, _)) = &entry.object {
            cluster.apply(Change::Pod(pod.clone()));
            let namespace = convert::named_namespace(&pod.id.namespace, []);
            cluster.apply(Change::Namespace(namespace));
        }
    }
    let mut found = Vec::new();
    for entry in &contents.entries {
        if let Some(Object::Policy(Some(object), policy)) = &entry.object {
            let subject = Subject { object, left_empty: &entry.left_empty, policy };
            let warnings = warnings(subject, &cluster, Scope::Cluster);
            found.extend(warnings.iter().map(|warning| format!("{}: {warning}", entry.title)));
        }
    }
    found
}

#[test]
fn the_first_tries_of_people_are_understood() {
    let tutorial = of_file(include_str!("../../../tests/fixtures/first/tutorial.yaml"));
    assert_eq!(
        tutorial,
        ["NetworkPolicy tutorial/frontend: spec.ingress[0].from[0].namespaceSelector: no \
          namespace in these files matches (role=testers), so this peer allows nothing. Add a \
          Namespace object with these labels, or correct the selector"]
    );
    let skeleton = of_file(include_str!("../../../tests/fixtures/first/skeleton.yaml"));
    let fields = ["spec.podSelector", "spec.ingress[0]", "spec.egress[0]"];
    assert_eq!(skeleton.len(), fields.len(), "{skeleton:?}");
    for (warning, field) in skeleton.iter().zip(fields) {
        let start = format!("NetworkPolicy default/fill-me-in: {field}: ");
        assert!(warning.starts_with(&start), "{warning}");
    }
    assert!(skeleton[1].contains("open for ingress") && skeleton[2].contains("open for egress"));
}
