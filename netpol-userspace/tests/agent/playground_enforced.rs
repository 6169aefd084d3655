//! The playground with an agent on each node: policies stop and pass real packets, also while
//! they change. Needs root and the eBPF object. Must never be satisfied by what is not enforced.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use netpol_testkit::playground::{PATIENCE, Playground, manifests};

const PODS: &str = r"
apiVersion: v1
kind: Pod
metadata: {name: server, namespace: shop, labels: {app: server}}
spec: {containers: [{name: server, ports: [{containerPort: 80}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: near, namespace: shop, labels: {role: friend}}
spec: {nodeName: node-1, containers: [{name: client}]}
---
apiVersion: v1
kind: Pod
metadata: {name: far, namespace: shop, labels: {role: stranger}}
spec: {nodeName: node-2, containers: [{name: client}]}
";

const POLICY: &str = r"
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: friends, namespace: shop}
spec:
  podSelector: {matchLabels: {app: server}}
  ingress:
    - from: [{podSelector: {matchLabels: {role: friend}}}]
";

/// What the probes from one pod to another saw, all families and ports alike.
fn observed(round: &Value, from: &str, to: &str) -> String {
    let of_pair = |probe: &&Value| probe["from"] == from && probe["to"] == to;
    let probes: Vec<&Value> = round["probes"].as_array().unwrap().iter().filter(of_pair).collect();
    assert!(!probes.is_empty(), "no probe from {from} to {to}");
    for probe in &probes {
        assert_eq!(probe["observed"], probes[0]["observed"], "{probe}");
    }
    probes[0]["observed"].as_str().unwrap().to_owned()
}

fn assert_no_differences(round: &Value) {
    let differing: Vec<&Value> = round["probes"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|probe| probe["expected"] != probe["observed"])
        .collect();
    assert!(differing.is_empty(), "{differing:#?}");
    assert_eq!(round["differences"], 0);
}

fn examples_are_enforced(cni: &str) {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let mut playground = Playground::start(&examples, &["--once"], &["--cni", cni]);
    let round = playground.round();
    assert_no_differences(&round);
    // Both verdicts on one node and across nodes.
    let denied = observed(&round, "deny-all-beside/neighbour", "deny-all/one");
    assert_eq!(denied, "deny");
    assert_eq!(observed(&round, "deny-all/one", "deny-all/two"), "deny");
    assert_eq!(observed(&round, "three-tier/web-0", "three-tier/api-1"), "allow");
    assert_eq!(observed(&round, "three-tier/web-1", "three-tier/api-1"), "allow");
    assert_eq!(observed(&round, "three-tier/web-1", "three-tier/db-0"), "deny");
    assert_eq!(playground.child.wait().unwrap().code(), Some(0));
}

#[test]
fn the_examples_are_enforced_on_a_bridge() {
    examples_are_enforced("bridge");
}

#[test]
fn the_examples_are_enforced_on_routes() {
    examples_are_enforced("routed");
}

#[test]
fn edits_take_effect_while_it_runs() {
    let dir = manifests(PODS);
    let policy = dir.path().join("policy.yaml");
    let playground = Playground::start(dir.path(), &[], &[]);
    let expect = |near: &str, far: &str| {
        let round = playground.round();
        assert_no_differences(&round);
        assert_eq!(observed(&round, "shop/near", "shop/server"), near);
        assert_eq!(observed(&round, "shop/far", "shop/server"), far);
    };
    expect("allow", "allow");
    fs::write(&policy, POLICY).unwrap();
    expect("allow", "deny");
    // Labels of running pods.
    let relabelled =
        PODS.replace("role: friend", "role: x").replace("role: stranger", "role: friend");
    fs::write(dir.path().join("all.yaml"), relabelled).unwrap();
    expect("deny", "allow");
    // A pod that appears while the policy is in force.
    let more = PODS.replace("name: far", "name: late");
    fs::write(
        dir.path().join("all.yaml"),
        format!("{PODS}---{}", more.rsplit("---").next().unwrap()),
    )
    .unwrap();
    let round = playground.round();
    assert_no_differences(&round);
    assert_eq!(observed(&round, "shop/late", "shop/server"), "deny");
    fs::remove_file(&policy).unwrap();
    expect("allow", "allow");
}

#[test]
fn a_bad_policy_keeps_the_last_good_state() {
    let dir = manifests(&format!("{PODS}---{POLICY}"));
    let playground = Playground::start(dir.path(), &[], &[]);
    assert_no_differences(&playground.round());
    fs::write(dir.path().join("bad.yaml"), POLICY.replace("ingress:", "ingres:")).unwrap();
    playground.wait_for("message", |line| line.contains("last good state").then_some(()));
    fs::remove_file(dir.path().join("bad.yaml")).unwrap();
    let round = playground.round();
    assert_no_differences(&round);
    assert_eq!(observed(&round, "shop/far", "shop/server"), "deny");
}

fn children(pid: u32) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let lists = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    let numbers = lists.flat_map(|list| {
        list.split_whitespace().map(|pid| pid.parse().unwrap()).collect::<Vec<u32>>()
    });
    numbers.collect()
}

/// Whether the process runs (one that has ended and that nobody waited for does not).
fn runs(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with(" Z"))
}

#[test]
fn agents_end_with_a_killed_playground() {
    let dir = manifests(PODS);
    let mut playground = Playground::start(dir.path(), &[], &[]);
    playground.round();
    let agents = children(playground.child.id());
    assert_eq!(agents.len(), 2, "one agent per node");
    playground.child.kill().unwrap();
    playground.child.wait().unwrap();
    let end = Instant::now() + PATIENCE;
    while agents.iter().any(|&agent| runs(agent)) {
        assert!(Instant::now() < end, "{agents:?} still run");
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn an_agent_that_ends_ends_the_playground_with_its_log() {
    let dir = manifests(PODS);
    let mut playground = Playground::start(dir.path(), &[], &[]);
    playground.round();
    let agent = children(playground.child.id())[0];
    assert!(Command::new("kill").arg("-KILL").arg(agent.to_string()).status().unwrap().success());
    playground.wait_for("reason", |line| line.contains("the agent of node-").then_some(()));
    assert_eq!(playground.child.wait().unwrap().code(), Some(2));
}
