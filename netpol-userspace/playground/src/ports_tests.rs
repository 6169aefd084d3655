//! Tests of the ports that are tried. Must never touch the system.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::fs;

use serde_json::{Value, json};

use super::*;
use crate::plan::{Families, Planner};
use crate::reading::Reading;

/// What the pods, policies and namespaces mean, written to one file.
fn read(objects: &[Value]) -> Reading {
    let dir = tempfile::tempdir().unwrap();
    let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
    fs::write(dir.path().join("all.json"), list.to_string()).unwrap();
    Reading::new(dir.path(), &mut Planner::new(2, Families::Dual), true).unwrap()
}

/// `pod: PROTOCOL NUMBER, ...` of each host that is tried; the port that no policy names in
/// parentheses.
fn ports(objects: &[Value]) -> Vec<String> {
    let reading = read(objects);
    let hosts = reading.layout.hosts.iter().filter(|host| !host.ports.is_empty());
    let lines = hosts.map(|host| {
        let ports = host.ports.iter().map(|port| {
            let text = format!("{} {}", port.protocol, port.number);
            if Some(port) == host.unnamed.as_ref() { format!("({text})") } else { text }
        });
        format!("{}: {}", host.id.name, ports.collect::<Vec<_>>().join(", "))
    });
    lines.collect()
}

/// A pod in namespace `shop`, labelled `app: <name>`, with these container ports.
fn pod(name: &str, ports: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "shop", "labels": {"app": name}},
        "spec": {"containers": [{"name": "c", "ports": ports}]}})
}

fn outside(name: &str, address: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "shop",
        "annotations": {"netpol.dev/outside": "true", "netpol.dev/address": address}},
        "spec": {"containers": []}})
}

/// A policy for the pod `app`, or for all.
fn policy(app: &str, mut spec: Value) -> Value {
    spec["podSelector"] = if app.is_empty() { json!({}) } else { labelled(app) };
    let name = format!("p{}", spec.to_string().len());
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": "shop"}, "spec": spec})
}

fn labelled(app: &str) -> Value {
    json!({"matchLabels": {"app": app}})
}

fn ingress(app: &str, ports: Value) -> Value {
    policy(app, json!({"ingress": [{"ports": ports}]}))
}

fn egress(app: &str, to: Value, ports: Value) -> Value {
    policy(app, json!({"policyTypes": ["Egress"], "egress": [{"to": to, "ports": ports}]}))
}

#[test]
fn what_ingress_rules_name_is_tried_on_the_pods_they_select() {
    let objects = [
        pod("web", json!([])),
        pod("api", json!([{"containerPort": 8080}])),
        pod("client", json!([])),
        ingress("web", json!([{"port": 80}, {"port": 53, "protocol": "UDP"}])),
        ingress("api", json!([{"port": 9090}, {"port": "grpc"}])),
    ];
    // 8080 is declared and no policy names it; nothing isolates the client.
    assert_eq!(ports(&objects), ["web: TCP 80, UDP 53, (TCP 9999)", "api: TCP 8080, TCP 9090"]);
}

#[test]
fn of_a_range_the_ends_and_one_outside_are_tried() {
    let range = |first: u16, last: u16| ingress("web", json!([{"port": first, "endPort": last}]));
    let with =
        |declared: Value, policies: &[Value]| ports(&[&[pod("web", declared)], policies].concat());
    let none = json!([]);
    assert_eq!(with(none.clone(), &[range(80, 90)]), ["web: TCP 80, TCP 90, TCP 91"]);
    assert_eq!(with(none.clone(), &[range(80, 65535)]), ["web: TCP 79, TCP 80, TCP 65535"]);
    assert_eq!(with(none.clone(), &[range(7, 7)]), ["web: TCP 7, (TCP 9999)"]);
    // One port after it belongs to another rule, one before it does not.
    let next = ingress("web", json!([{"port": 91}]));
    let expected = ["web: TCP 79, TCP 80, TCP 90, TCP 91"];
    assert_eq!(with(none.clone(), &[range(80, 90), next]), expected);
    // A declared port shows it as well.
    let declared = json!([{"containerPort": 1000}]);
    assert_eq!(with(declared, &[range(80, 90)]), ["web: TCP 80, TCP 90, TCP 1000"]);
    // There is no TCP port outside, so another protocol shows what is closed.
    assert_eq!(with(none, &[range(1, 65535)]), ["web: TCP 1, TCP 65535, (UDP 9999)"]);
}

#[test]
fn every_port_of_a_protocol_is_one_port() {
    let all = ingress("web", json!([{"protocol": "UDP"}]));
    let udp = json!([{"containerPort": 53, "protocol": "UDP"}]);
    assert_eq!(ports(&[pod("web", json!([])), all.clone()]), ["web: UDP 9999, (TCP 9999)"]);
    assert_eq!(ports(&[pod("web", udp), all]), ["web: UDP 53, (TCP 9999)"]);
}

#[test]
fn the_unnamed_port_is_one_that_no_policy_names() {
    let all = ingress("web", json!([{"port": 9000, "endPort": 9999}, {"port": 8999}]));
    assert_eq!(
        ports(&[pod("web", json!([])), all]),
        ["web: TCP 8999, TCP 9000, TCP 9999, TCP 10000"]
    );
    let only = ingress("web", json!([{"port": 9999}]));
    assert_eq!(ports(&[pod("web", json!([])), only]), ["web: TCP 9999, (TCP 9998)"]);
    let every = json!([{"protocol": "TCP"}, {"protocol": "UDP"}, {"protocol": "SCTP"}]);
    let every = ports(&[pod("web", json!([])), ingress("web", every)]);
    assert_eq!(every, ["web: TCP 9999, UDP 9999, SCTP 9999"], "nothing is closed");
}

#[test]
fn names_mean_what_pods_declare() {
    let named = json!([{"name": "http", "containerPort": 8080}]);
    let objects = [pod("web", named), ingress("web", json!([{"port": "http"}]))];
    assert_eq!(ports(&objects), ["web: TCP 8080, (TCP 9999)"]);
}

#[test]
fn what_egress_rules_name_is_tried_where_it_goes() {
    let db = json!([{"podSelector": labelled("db")}]);
    let to_db = egress("web", db, json!([{"port": 5432}]));
    let pods = |declared: Value| [pod("web", json!([])), pod("db", declared)];
    let with =
        |pods: &[Value], policy: &Value| ports(&[pods, std::slice::from_ref(policy)].concat());
    assert_eq!(with(&pods(json!([])), &to_db), ["db: TCP 5432, (TCP 9999)"]);
    let declared = json!([{"containerPort": 5432}, {"containerPort": 9100}]);
    assert_eq!(with(&pods(declared), &to_db), ["db: TCP 5432, TCP 9100"]);
    let mut standby = pod("standby", json!([]));
    standby["metadata"]["labels"]["app"] = json!("db");
    let two = [&pods(json!([]))[..], &[standby]].concat();
    assert_eq!(with(&two, &to_db), ["db: TCP 5432, (TCP 9999)", "standby: TCP 5432"]);
    // A block means hosts outside, and pods by their addresses.
    let block = json!([{"ipBlock": {"cidr": "203.0.113.0/24"}}]);
    let hosts = [pod("web", json!([])), outside("in", "203.0.113.9"), outside("not", "192.0.2.1")];
    let range = egress("web", block, json!([{"port": 80, "endPort": 90}]));
    assert_eq!(with(&hosts, &range), ["in: TCP 80, TCP 90, TCP 91"]);
}

#[test]
fn a_rule_about_everybody_adds_one_destination() {
    let dns = |app: &str| egress(app, json!([]), json!([{"port": 53, "protocol": "UDP"}]));
    let pods = ["a", "b", "c"].map(|name| pod(name, json!([])));
    let with = |pods: &[Value], policy: Value| ports(&[pods, &[policy]].concat());
    assert_eq!(with(&pods, dns("a")), ["b: UDP 53, (TCP 9999)"]);
    // Each of them has another one that it reaches.
    let all = with(&pods, dns(""));
    assert_eq!(all, ["a: UDP 53, (TCP 9999)", "b: UDP 53, (TCP 9999)"]);
    // The same for all pods of a namespace.
    let everybody = json!([{"podSelector": {}}]);
    let same = egress("a", everybody, json!([{"port": 53, "protocol": "UDP"}]));
    assert_eq!(with(&pods, same), ["b: UDP 53, (TCP 9999)"]);
    // Where one has the port, that one shows it.
    let server = pod("dns", json!([{"containerPort": 53, "protocol": "UDP"}]));
    let all = [&pods[..], &[server]].concat();
    assert_eq!(with(&all, dns("a")), ["dns: UDP 53, (TCP 9999)"]);
    // The server is isolated, too: what it does not reach is seen on one other.
    assert_eq!(with(&all, dns("")), ["a: (TCP 9999)", "dns: UDP 53, (TCP 9999)"]);
}

#[test]
fn of_replicas_one_shows_what_is_closed() {
    let workload = json!({"apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "web", "namespace": "shop"}, "spec": {"replicas": 3,
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": []}}}});
    let objects = [workload, ingress("web", json!([{"port": 80}]))];
    assert_eq!(ports(&objects), ["web-0: TCP 80, (TCP 9999)", "web-1: TCP 80", "web-2: TCP 80"]);
}

#[test]
fn egress_is_seen_on_somebody() {
    let deny = policy("a", json!({"policyTypes": ["Egress"]}));
    let (a, b) = (pod("a", json!([])), pod("b", json!([])));
    let serving = |name: &str| pod(name, json!([{"containerPort": 80}]));
    let shown = ["a: (TCP 9999)", "b: (TCP 9999)"];
    assert_eq!(ports(&[a.clone(), b.clone(), deny.clone()]), shown);
    // With a port of its own it has still nobody else to reach.
    assert_eq!(ports(&[serving("a"), b, deny.clone()]), ["a: TCP 80", "b: (TCP 9999)"]);
    assert_eq!(ports(&[a, serving("b"), deny]), ["b: TCP 80"]);
}

#[test]
fn pods_without_policies_are_tried_on_one_port() {
    let objects = [pod("a", json!([])), pod("b", json!([]))];
    assert_eq!(ports(&objects), ["a: (TCP 9999)", "b: (TCP 9999)"]);
    assert_eq!(
        ports(&[pod("a", json!([{"containerPort": 1}])), pod("b", json!([]))]),
        ["a: TCP 1"]
    );
}

#[test]
fn a_pod_on_the_nodes_network_gets_no_port() {
    let mut on_host = pod("agent", json!([]));
    on_host["spec"]["hostNetwork"] = json!(true);
    let block = json!([{"ipBlock": {"cidr": "10.250.0.0/16"}}]);
    let objects = [pod("a", json!([])), on_host, egress("a", block, json!([{"port": 9100}]))];
    assert_eq!(ports(&objects), ["a: (TCP 9999)"]);
}

#[test]
fn what_is_too_much_is_left_out_and_said() {
    let many: Vec<Value> = (1..=20).map(|number| json!({"port": number * 10})).collect();
    let objects = [pod("web", json!([{"containerPort": 5}])), ingress("web", json!(many))];
    let reading = read(&objects);
    assert_eq!(reading.layout.hosts[0].ports.len(), 1 + MAX_ADDED);
    assert_eq!(reading.notes.len(), 1);
    assert!(reading.notes[0].starts_with("shop/web: 4 more ports"), "{:?}", reading.notes);
}

#[test]
fn a_reading_without_anything_to_try_is_refused_with_what_to_do() {
    let dir = std::path::Path::new("DIR");
    let refused = |objects: &[Value]| read(objects).refuse_nothing(dir).unwrap_err().to_string();
    let none = refused(&[ingress("", json!([{"port": 80}])), outside("x", "192.0.2.1")]);
    assert!(none.contains("DIR declares no pods") && none.contains("Add the Pods"), "{none}");
    let mut on_host = pod("agent", json!([]));
    on_host["spec"]["hostNetwork"] = json!(true);
    let portless = refused(&[on_host]);
    assert!(portless.contains("Declare a containerPort"), "{portless}");
    read(&[pod("a", json!([]))]).refuse_nothing(dir).unwrap();
}
