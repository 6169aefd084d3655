//! `netpol playground` on the first things that people try: pods that declare no port, forms that
//! were not filled in, policies without pods. Needs root and the eBPF object. Must never accept
//! an empty answer.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use netpol_testkit::playground::{Playground, manifests};

const TUTORIAL: &str = include_str!("../fixtures/first/tutorial.yaml");
const SKELETON: &str = include_str!("../fixtures/first/skeleton.yaml");

/// `from to port: observed` of every probe, families alike.
fn seen(round: &Value) -> BTreeSet<String> {
    let probes = round["probes"].as_array().unwrap().iter();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    probes
        .map(|probe| {
            assert_eq!(probe["expected"], probe["observed"], "{probe}");
            let [from, to, observed] = ["from", "to", "observed"].map(|key| text(&probe[key]));
            format!("{from} to {to} {} {}: {observed}", text(&probe["protocol"]), probe["port"])
        })
        .collect()
}

fn lines(lines: &[&str]) -> BTreeSet<String> {
    lines.iter().map(|line| (*line).to_owned()).collect()
}

fn once(dir: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_netpol"));
    command.args(["playground", "--once"]).arg(dir).output().unwrap()
}

/// Asserts that it failed before anything was shown, and returns what was said.
fn refused(dir: &Path) -> String {
    let output = once(dir);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "", "{said}");
    said
}

#[test]
fn the_tutorial_shows_what_its_policy_closes() {
    let dir = manifests(TUTORIAL);
    let mut playground = Playground::start(dir.path(), &["--once"], &[]);
    let warning = "NetworkPolicy tutorial/frontend: spec.ingress[0].from[0].namespaceSelector: no \
                   namespace in these files matches (role=testers), so this peer allows nothing. \
                   Add a Namespace object with these labels, or correct the selector";
    playground.wait_for("warning", |line| {
        line.starts_with("playground: warning: ").then(|| {
            assert_eq!(line, format!("playground: warning: {warning}"));
        })
    });
    let round = playground.round();
    assert_eq!(
        seen(&round),
        lines(&[
            // A pod reaches itself whatever policies say.
            "tutorial/web to tutorial/web TCP 80: allow",
            "tutorial/web to tutorial/web TCP 9999: allow",
            "tutorial/shell to tutorial/shell TCP 9999: allow",
            // Its namespace is not labelled, and egress is denied.
            "tutorial/shell to tutorial/web TCP 80: deny",
            "tutorial/shell to tutorial/web TCP 9999: deny",
            "tutorial/web to tutorial/shell TCP 9999: deny",
        ])
    );
    assert_eq!(round["differences"], 0);
    let warnings = round["warnings"].as_array().unwrap();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert_eq!(warnings[0]["object"], "NetworkPolicy tutorial/frontend");
    assert_eq!(warnings[0]["field"], "spec.ingress[0].from[0].namespaceSelector");
    assert!(warnings[0]["message"].as_str().unwrap().contains("allows nothing"));
    assert_eq!(playground.child.wait().unwrap().code(), Some(0));
}

#[test]
fn the_matrix_of_the_tutorial_is_as_readable_as_any() {
    let output = once(manifests(TUTORIAL).path());
    let shown = String::from_utf8(output.stdout).unwrap();
    let expected = "\
namespace tutorial
             web     web       shell
  from \\ to  TCP 80  TCP 9999  TCP 9999
  web        ✓/✓     ✓/✓       ✗/✗
  shell      ✗/✗     ✗/✗       ✓/✓
";
    assert!(shown.starts_with(expected), "{shown}");
    assert!(shown.contains("No policy names TCP 9999"), "{shown}");
    assert!(
        shown.ends_with(" probes, 6 allowed, 6 blocked, 0 differences\n")
            || shown
                // One family only, where the kernel has no IPv6.
                .ends_with(" probes, 3 allowed, 3 blocked, 0 differences\n"),
        "{shown}"
    );
}

#[test]
fn what_the_warning_advises_opens_the_port_and_no_other() {
    let dir = manifests(TUTORIAL);
    let playground = Playground::start(dir.path(), &[], &[]);
    assert!(seen(&playground.round()).contains("tutorial/shell to tutorial/web TCP 80: deny"));
    let namespace = "apiVersion: v1\nkind: Namespace\n\
                     metadata: {name: tutorial, labels: {role: testers}}\n";
    fs::write(dir.path().join("namespace.yaml"), namespace).unwrap();
    let round = playground.round();
    let after = seen(&round);
    assert!(after.contains("tutorial/shell to tutorial/web TCP 80: allow"), "{after:?}");
    assert!(after.contains("tutorial/shell to tutorial/web TCP 9999: deny"), "{after:?}");
    assert!(after.contains("tutorial/web to tutorial/shell TCP 9999: deny"), "{after:?}");
    assert_eq!(round["warnings"].as_array().unwrap().len(), 0);
    // Servers follow the ports that the policy names, those that stay keep running.
    let range = TUTORIAL.replace("port: 80}", "port: 80, endPort: 90}");
    fs::write(dir.path().join("all.yaml"), range).unwrap();
    let ranged = seen(&playground.round());
    let web = ranged.iter().filter(|line| line.starts_with("tutorial/shell to tutorial/web"));
    assert_eq!(
        web.cloned().collect::<BTreeSet<_>>(),
        lines(&[
            "tutorial/shell to tutorial/web TCP 80: allow",
            "tutorial/shell to tutorial/web TCP 90: allow",
            "tutorial/shell to tutorial/web TCP 91: deny",
        ])
    );
}

#[test]
fn a_form_without_pods_fails_with_the_reason() {
    let dir = manifests(SKELETON);
    let said = refused(dir.path());
    for part in [
        "warning: NetworkPolicy default/fill-me-in: spec.podSelector: is left empty, which selects \
         every pod of namespace default",
        "warning: NetworkPolicy default/fill-me-in: spec.ingress[0]: names neither peers (`from`) \
         nor `ports`, which allows everything",
        "warning: NetworkPolicy default/fill-me-in: spec.egress[0]: names neither peers (`to`)",
        "netpol: nothing to try: ",
        "declares no pods that run. Add the Pods",
    ] {
        assert!(said.contains(part), "{part}\nnot in\n{said}");
    }
    assert!(said.contains(dir.path().to_str().unwrap()), "{said}");
}

#[test]
fn a_form_that_is_applied_as_it_is_opens_the_pods() {
    let pods = TUTORIAL.split("---").take(2).collect::<Vec<_>>().join("---");
    let dir = manifests(&format!("{}---\n{SKELETON}", pods.replace("tutorial", "default")));
    let mut playground = Playground::start(dir.path(), &["--once"], &[]);
    let round = playground.round();
    let seen = seen(&round);
    assert!(seen.contains("default/shell to default/web TCP 9999: allow"), "{seen:?}");
    assert!(seen.iter().all(|line| line.ends_with(": allow")), "{seen:?}");
    assert_eq!(round["warnings"].as_array().unwrap().len(), 3);
    assert_eq!(playground.child.wait().unwrap().code(), Some(0));
}

#[test]
fn pods_that_have_no_port_to_try_fail_with_the_reason() {
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: agent}\n\
               spec: {hostNetwork: true, containers: [{name: a, image: a}]}\n";
    let said = refused(manifests(pod).path());
    assert!(said.contains("nothing to try: no pod in "), "{said}");
    assert!(said.contains("Declare a containerPort"), "{said}");
}

#[test]
fn without_pods_a_running_playground_keeps_what_it_has() {
    let dir = manifests(TUTORIAL);
    let playground = Playground::start(dir.path(), &[], &[]);
    let before = seen(&playground.round());
    fs::write(dir.path().join("all.yaml"), SKELETON).unwrap();
    playground.wait_for("message", |line| line.contains("nothing to try").then_some(()));
    fs::write(dir.path().join("all.yaml"), TUTORIAL).unwrap();
    assert_eq!(seen(&playground.round()), before);
}
