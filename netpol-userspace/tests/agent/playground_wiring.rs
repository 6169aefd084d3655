//! `netpol playground` without agents, as a process: the wiring lets everything through, changes
//! are followed, and nothing stays behind. Needs root. Must never look at verdicts.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use netpol_testkit::playground::{PATIENCE, Playground, manifests, probes};

const NO_AGENTS: [&str; 1] = ["--no-agents"];

const MANIFESTS: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: server, namespace: shop}
spec:
  containers:
    - name: server
      ports:
        - {containerPort: 80}
        - {containerPort: 53, protocol: UDP}
        - {containerPort: 3868, protocol: SCTP}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: client, namespace: shop}
spec:
  replicas: 3
  template:
    spec: {containers: [{name: client, ports: [{containerPort: 8080}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: elsewhere, namespace: odd}
spec: {containers: [{name: elsewhere, ports: [{containerPort: 443}]}]}
status: {podIPs: [{ip: 172.30.0.9}, {ip: "fd99::9"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: on-host, namespace: odd}
spec:
  hostNetwork: true
  nodeName: node-2
  containers: [{name: on-host, ports: [{containerPort: 9100}]}]
---
apiVersion: v1
kind: Pod
metadata:
  name: visitor
  namespace: odd
  annotations: {netpol.dev/outside: "true", netpol.dev/address: "198.51.100.7, 2001:db8::7"}
spec: {containers: [{name: visitor, ports: [{containerPort: 443}]}]}
"#;

fn assert_all_pass(round: &Value) {
    for probe in round["probes"].as_array().unwrap() {
        assert_eq!((&probe["expected"], &probe["observed"]), (&"allow".into(), &"allow".into()));
    }
    assert_eq!(round["differences"], 0);
}

/// Asserts that no process holds one of these namespaces, and no mount of ours is visible. Threads
/// of a killed process end one by one, so this waits a little.
fn assert_gone(namespaces: &BTreeSet<PathBuf>) {
    let end = Instant::now() + PATIENCE;
    loop {
        let held: Vec<PathBuf> = fs::read_dir("/proc")
            .unwrap()
            .flatten()
            .filter_map(|process| fs::read_dir(process.path().join("task")).ok())
            .flat_map(Iterator::flatten)
            .filter(|t| {
                fs::read_link(t.path().join("ns/net")).is_ok_and(|net| namespaces.contains(&net))
            })
            .map(|task| task.path())
            .collect();
        if held.is_empty() {
            break;
        }
        assert!(Instant::now() < end, "still held by {held:?}");
        thread::sleep(Duration::from_millis(20));
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains("netpol-playground"), "{mounts}");
}

fn everything_passes(arguments: &[&str]) -> Value {
    let dir = manifests(MANIFESTS);
    let mut playground =
        Playground::start(dir.path(), &NO_AGENTS, &[arguments, &["--once"]].concat());
    let round = playground.round();
    assert_all_pass(&round);
    assert_eq!(playground.child.wait().unwrap().code(), Some(0));
    assert!(!playground.directory().exists());
    round
}

/// Seven hosts, nine ports, two families; the host outside does not probe itself.
const N_PROBES: usize = (7 * 9 - 1) * 2;

#[test]
fn a_bridge_lets_everything_through() {
    let round = everything_passes(&["--cni", "bridge"]);
    let probes = probes(&round);
    assert_eq!(probes.len(), N_PROBES);
    for expected in [
        // On one node and across nodes, to itself, both families, every protocol.
        "shop/client-1 shop/server 10.244.1.2 TCP 80",
        "shop/client-0 shop/server fd00:10:244:1::2 UDP 53",
        "shop/server shop/server 10.244.1.2 SCTP 3868",
        "odd/visitor odd/elsewhere fd99::9 TCP 443",
        "odd/on-host odd/visitor 198.51.100.7 TCP 443",
        "odd/elsewhere odd/on-host 10.250.0.2 TCP 9100",
    ] {
        assert!(probes.contains(expected), "{expected} is not in {probes:#?}");
    }
}

#[test]
fn routes_let_everything_through() {
    let round = everything_passes(&["--cni", "routed"]);
    assert_eq!(probes(&round).len(), N_PROBES);
}

#[test]
fn one_family_and_one_node_are_enough() {
    for (cni, families, address) in
        [("bridge", "ipv6", "fd00:10:244:1::2"), ("routed", "ipv4", "10.244.1.2")]
    {
        let arguments = ["--cni", cni, "--ip-families", families, "--nodes", "1"];
        let probes = probes(&everything_passes(&arguments));
        assert_eq!(probes.len(), N_PROBES / 2);
        assert!(probes.contains(&format!("shop/client-0 shop/server {address} TCP 80")));
    }
}

#[test]
fn the_bundled_examples_are_wired() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let mut playground = Playground::start(&examples, &NO_AGENTS, &["--once"]);
    let round = playground.round();
    assert_all_pass(&round);
    assert_eq!(playground.child.wait().unwrap().code(), Some(0));
}

#[test]
fn changes_are_followed_and_errors_keep_the_last_good_state() {
    for cni in ["bridge", "routed"] {
        let dir = manifests(MANIFESTS);
        let playground = Playground::start(dir.path(), &NO_AGENTS, &["--cni", cni]);
        assert_eq!(probes(&playground.round()).len(), N_PROBES);

        fs::write(dir.path().join("all.yaml"), MANIFESTS.replace("replicas: 3", "replicas: 1"))
            .unwrap();
        let fewer = playground.round();
        assert_all_pass(&fewer);
        assert!(!probes(&fewer).iter().any(|probe| probe.contains("client-1")), "{fewer}");

        fs::write(dir.path().join("bad.yaml"), "kind: [").unwrap();
        playground.wait_for("message", |line| line.contains("last good state").then_some(()));
        fs::remove_file(dir.path().join("bad.yaml")).unwrap();
        assert_eq!(probes(&playground.round()), probes(&fewer));

        // Another port on the same pod, and the address of one pod given to another.
        let swapped = MANIFESTS.replace("8080", "8081").replace("elsewhere", "heir");
        fs::write(dir.path().join("all.yaml"), swapped).unwrap();
        let round = playground.round();
        assert_all_pass(&round);
        let probes = probes(&round);
        assert!(probes.contains("shop/server odd/heir 172.30.0.9 TCP 443"), "{probes:#?}");
        assert!(probes.iter().any(|p| p.contains("shop/client-0") && p.ends_with("TCP 8081")));
        assert!(!probes.iter().any(|probe| probe.ends_with("TCP 8080")), "{probes:#?}");
    }
}

#[test]
fn signals_end_it_and_nothing_stays() {
    for signal in [Signal::INT, Signal::TERM] {
        let dir = manifests(MANIFESTS);
        let mut playground = Playground::start(dir.path(), &NO_AGENTS, &[]);
        playground.round();
        let namespaces = playground.namespaces();
        assert_eq!(namespaces.len(), 9, "two nodes, the underlay, six hosts of their own");
        assert!(playground.directory().exists());
        playground.signal(signal);
        assert_eq!(playground.child.wait().unwrap().code(), Some(0));
        assert!(!playground.directory().exists());
        assert_gone(&namespaces);
    }
}

#[test]
fn a_kill_leaves_an_empty_directory_that_the_next_start_removes() {
    let dir = manifests(MANIFESTS);
    let mut playground = Playground::start(dir.path(), &NO_AGENTS, &[]);
    playground.round();
    let namespaces = playground.namespaces();
    playground.child.kill().unwrap();
    playground.child.wait().unwrap();
    assert_gone(&namespaces);
    // Another test's start may have removed it already.
    assert_eq!(fs::read_dir(playground.directory()).map_or(0, Iterator::count), 0);
    everything_passes(&[]);
    assert!(!playground.directory().exists());
}

#[test]
fn two_at_once_do_not_disturb_each_other() {
    let dir = manifests(MANIFESTS);
    let first = Playground::start(dir.path(), &NO_AGENTS, &["--cni", "bridge"]);
    first.round();
    // The second has the same names and addresses, and cleans up when it starts and ends.
    everything_passes(&["--cni", "routed"]);
    assert!(first.directory().exists());
    let renamed = MANIFESTS.replace("name: server", "name: renamed");
    fs::write(dir.path().join("all.yaml"), renamed).unwrap();
    let round = first.round();
    assert_all_pass(&round);
    assert!(probes(&round).iter().any(|probe| probe.contains("shop/renamed")), "{round}");
}

#[test]
fn bad_manifests_are_refused_before_anything_is_set_up() {
    let dir = manifests("apiVersion: v1\nkind: Pod\nmetadata: {name: Bad_Name}\n");
    let output = Command::new(env!("CARGO_BIN_EXE_netpol"))
        .args(["playground", "--no-agents", "--once"])
        .arg(dir.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(message.contains("Bad_Name") && message.contains("all.yaml"), "{message}");
}

#[test]
fn a_child_of_a_dead_playground_does_not_start() {
    let arguments = ["playground", "--child-of", "1", "--", "playground", "--help"];
    let output = Command::new(env!("CARGO_BIN_EXE_netpol")).args(arguments).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(message.contains("playground 1 has ended"), "{message}");
    // With the right parent it becomes the other command.
    let parent = std::process::id().to_string();
    let arguments = ["playground", "--child-of", &parent, "--", "playground", "--help"];
    let output = Command::new(env!("CARGO_BIN_EXE_netpol")).args(arguments).output().unwrap();
    assert!(String::from_utf8(output.stdout).unwrap().contains("--once"));
}
