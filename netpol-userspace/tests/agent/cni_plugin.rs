//! The CNI plugin and the agent's side of it, in everything but the first packet: agents that are
//! down, hang or restart, addresses that are used again, pods that nobody knows, and runtimes that
//! talk nonsense. Needs root and the eBPF object.

use netpol_testkit::world;
use std::collections::BTreeSet;
use std::fs;
use std::thread;

use netpol_api::sandbox;
use netpol_isolation::netns;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use netpol_testkit::world::runtime::{Runtime, Sandbox, answer, call};
use netpol_testkit::world::traffic::{Server, assert_allowed, assert_denied};
use netpol_testkit::world::{World, eventually};

/// The pods of this role talk with their friends only.
const SHY: &str = "podSelector: {matchLabels: {role: shy}}, policyTypes: [Ingress, Egress], \
                   ingress: [{from: [{podSelector: {matchLabels: {role: friend}}}]}], \
                   egress: [{to: [{podSelector: {matchLabels: {role: friend}}}]}]";
/// Seconds after which the agent says what is missing, and with time to spare for its answer.
const PATIENT_TIMEOUT: u64 = 6;
/// Code 11 of the specification.
const TRY_AGAIN: u64 = 11;

fn lab() -> (World, Runtime) {
    let mut world = World::new();
    world.policy("shy", SHY);
    world.start();
    let runtime = Runtime::new(&world);
    (world, runtime)
}

/// Starts a pod of this role without a status; its address.
fn start(world: &World, runtime: &Runtime, name: &str, role: &str) -> String {
    world.declare(name, "", &format!("{{role: {role}}}"));
    runtime.start(&Sandbox::new(name)).unwrap()
}

fn refusal(error: &Value) -> &str {
    assert_eq!(error["code"], TRY_AGAIN, "{error}");
    error["msg"].as_str().unwrap()
}

/// The interface on the node that leads to the pod, by the agent's word.
fn interface(world: &World, pod: &str) -> String {
    let state = world.state();
    let views = state["endpoints"].as_array().unwrap();
    let view = views.iter().find(|view| view["pod"] == pod);
    view.unwrap_or_else(|| panic!("no {pod} in {views:?}"))["interface"].as_str().unwrap().into()
}

/// What is attached to an interface, by the names of the links.
fn programs(world: &World, interface: &str) -> Vec<String> {
    let start = format!("{}-", world.ifindex(interface));
    let links = world.links();
    links.iter().filter_map(|link| Some(link.strip_prefix(&start)?.to_owned())).collect()
}

/// A shy pod, its friend and a stranger, as they should be.
fn assert_enforced(runtime: &Runtime, shy: &str, friend: &str, stranger: &str) {
    let of = |pod: &str| runtime.netns(&Sandbox::new(pod));
    assert_allowed(&of(friend), shy);
    assert_denied(&of(stranger), shy);
}

#[test]
fn a_pod_that_no_policy_selects_starts_with_its_guard_and_no_more() {
    let (mut world, runtime) = lab();
    let address = start(&world, &runtime, "plain", "plain");
    // The plugin has waited for it.
    let name = interface(&world, "plain");
    assert_eq!(programs(&world, &name), ["guard", "shield"], "it is on a bridge");
    world.settle();
    assert_eq!(programs(&world, &name), ["guard", "shield"]);
    assert_eq!(world.state()["endpoints"][0]["ips"], json!([address]));
    runtime.check(&Sandbox::new("plain")).unwrap();
    // A policy that comes later finds it.
    world.policy("all", "podSelector: {}");
    world.settle();
    assert_eq!(programs(&world, &name), ["egress", "ingress"]);
    runtime.stop(&Sandbox::new("plain"));
    eventually("its file is gone", || sandbox::read_all(&world.run_dir()).is_empty());
}

#[test]
fn without_an_agent_no_pod_starts_until_there_is_one() {
    let (mut world, mut runtime) = lab();
    world.kill();
    world.declare("shy", "", "{role: shy}");
    runtime.netpol()["timeout"] = 1.into();
    let shy = Sandbox::new("shy");
    let error = runtime.start(&shy).unwrap_err();
    assert!(refusal(&error).contains("no agent listens"), "{error}");
    assert!(refusal(&error).contains("default/shy"), "{error}");
    // The runtime cleans up, agent or not, and tries again.
    runtime.stop(&shy);
    runtime.netpol()["timeout"] = 60.into();
    let again = shy.again(1);
    let address = thread::scope(|scope| {
        let starting = scope.spawn(|| runtime.start(&again));
        world.start_only();
        starting.join().unwrap().unwrap()
    });
    world.settle();
    let views = world.state()["endpoints"].clone();
    assert_eq!((&views[0]["pod"], &views[0]["ips"]), (&json!("shy"), &json!([address])));
    assert_eq!(views.as_array().unwrap().len(), 1);
}

#[test]
fn pods_may_be_let_start_without_an_agent_that_then_knows_them() {
    let (mut world, mut runtime) = lab();
    let friend = start(&world, &runtime, "friend", "friend");
    start(&world, &runtime, "stranger", "stranger");
    let _server = Server::start(&runtime.netns(&Sandbox::new("friend")), 80);
    world.kill();
    runtime.netpol()["timeout"] = 1.into();
    runtime.netpol()["on-unreachable"] = "allow".into();
    let shy = start(&world, &runtime, "shy", "shy");
    let _shy_server = Server::start(&runtime.netns(&Sandbox::new("shy")), 80);
    // No status says where it is: the plugin has written it down.
    let status = world.start();
    let notes = status["datapath"]["notes"].to_string();
    assert!(notes.contains("default/shy was started before its policies"), "{notes}");
    assert_enforced(&runtime, &format!("{shy}:80"), "friend", "stranger");
    assert_allowed(&runtime.netns(&Sandbox::new("shy")), &format!("{friend}:80"));
}

#[test]
fn a_hung_agent_does_not_hang_the_runtime() {
    let (world, mut runtime) = lab();
    let pid = Pid::from_raw(world.agent.as_ref().unwrap().pid().cast_signed()).unwrap();
    kill_process(pid, Signal::STOP).unwrap();
    world.declare("shy", "", "{role: shy}");
    runtime.netpol()["timeout"] = 1.into();
    let shy = Sandbox::new("shy");
    let error = runtime.start(&shy).unwrap_err();
    assert!(refusal(&error).contains("did not answer within 1 s"), "{error}");
    runtime.stop(&shy);
    kill_process(pid, Signal::CONT).unwrap();
    runtime.netpol()["timeout"] = 60.into();
    runtime.start(&shy.again(1)).unwrap();
    assert_eq!(world.tcx(&interface(&world, "shy")).each_ref().map(Vec::len), [1, 1]);
}

/// Between ADD and the pod's status, which never comes here.
#[test]
fn a_new_agent_knows_what_the_one_before_was_told() {
    let (mut world, runtime) = lab();
    let shy = start(&world, &runtime, "shy", "shy");
    for pod in ["friend", "stranger"] {
        start(&world, &runtime, pod, pod);
    }
    let _server = Server::start(&runtime.netns(&Sandbox::new("shy")), 80);
    let to = format!("{shy}:80");
    assert_enforced(&runtime, &to, "friend", "stranger");
    for forget in [false, true] {
        world.kill();
        assert_enforced(&runtime, &to, "friend", "stranger");
        if forget {
            fs::remove_file(world.run_dir().join("state.json")).unwrap();
        }
        world.start();
        assert_eq!(world.state()["endpoints"].as_array().unwrap().len(), 3);
        assert_enforced(&runtime, &to, "friend", "stranger");
    }
    world.declare("shy", &shy, "{role: shy}");
    world.settle();
    assert_enforced(&runtime, &to, "friend", "stranger");
}

/// A pod ends and another one gets its address while the first one's status still has it.
#[test]
fn an_address_that_is_used_again_is_the_new_pods_alone() {
    let (mut world, mut runtime) = lab();
    let shy = start(&world, &runtime, "shy", "shy");
    let to = format!("{shy}:80");
    let _server = Server::start(&runtime.netns(&Sandbox::new("shy")), 80);
    let bridge = &mut runtime.conflist["plugins"][0]["ipam"]["ranges"][0][0];
    // From now on one address is all there is.
    bridge["rangeStart"] = "10.244.1.77".into();
    bridge["rangeEnd"] = "10.244.1.77".into();
    let mut last: Option<Sandbox> = None;
    for (round, role) in ["friend", "stranger", "friend", "stranger"].iter().enumerate() {
        if let Some(last) = last {
            runtime.stop(&last);
        }
        let name = format!("{role}-{round}");
        let address = start(&world, &runtime, &name, role);
        assert_eq!(address, "10.244.1.77");
        let sandbox = Sandbox::new(&name);
        match *role {
            "friend" => assert_allowed(&runtime.netns(&sandbox), &to),
            _ => assert_denied(&runtime.netns(&sandbox), &to),
        }
        // It stays declared, with its address.
        world.declare(&name, &address, &format!("{{role: {role}}}"));
        world.settle();
        last = Some(sandbox);
    }
}

/// The runtime's DEL is lost: netpol finds out by itself.
#[test]
fn a_sandbox_that_vanishes_without_a_word_is_over() {
    let (mut world, runtime) = lab();
    start(&world, &runtime, "shy", "shy");
    world.settle();
    netns::delete(world.netns_dir(), "sandbox-shy").unwrap();
    eventually("the endpoint is gone", || {
        world.state()["endpoints"].as_array().unwrap().is_empty()
    });
    world.remove("pod-shy");
    eventually("its file is gone", || sandbox::read_all(&world.run_dir()).is_empty());
    // And while there is no agent.
    start(&world, &runtime, "other", "shy");
    world.kill();
    netns::delete(world.netns_dir(), "sandbox-other").unwrap();
    world.remove("pod-other");
    world.start();
    assert!(world.state()["endpoints"].as_array().unwrap().is_empty());
    // A runtime that collects garbage names what there is.
    runtime.ask_netpol("GC", &json!({"cni.dev/valid-attachments": []})).unwrap();
    eventually("its file is gone", || sandbox::read_all(&world.run_dir()).is_empty());
}

#[test]
fn a_deleted_pod_is_enforced_until_its_interface_is_gone() {
    let (mut world, runtime) = lab();
    let shy = start(&world, &runtime, "shy", "shy");
    start(&world, &runtime, "stranger", "stranger");
    let _server = Server::start(&runtime.netns(&Sandbox::new("shy")), 80);
    world.remove("pod-shy");
    world.settle();
    assert_denied(&runtime.netns(&Sandbox::new("stranger")), &format!("{shy}:80"));
    assert!(world.drops("shy") > 0);
}

#[test]
fn a_pod_that_is_not_known_does_not_start() {
    let (mut world, mut runtime) = lab();
    runtime.netpol()["timeout"] = PATIENT_TIMEOUT.into();
    let shy = Sandbox::new("shy");
    let error = runtime.start(&shy).unwrap_err();
    assert!(refusal(&error).contains("has no Pod default/shy"), "{error}");
    runtime.stop(&shy);
    // Its predecessor is known.
    world.declare_as("shy", "", "{role: friend}", "uid-before");
    world.settle();
    let error = runtime.start(&shy.again(1)).unwrap_err();
    assert!(refusal(&error).contains("with uid uid-before"), "{error}");
    runtime.stop(&shy.again(1));
    // It waits for the one it means.
    runtime.netpol()["timeout"] = 60.into();
    let again = shy.again(2);
    thread::scope(|scope| {
        let starting = scope.spawn(|| runtime.start(&again));
        eventually("it is told of", || !sandbox::read_all(&world.run_dir()).is_empty());
        world.declare("shy", "", "{role: shy}");
        starting.join().unwrap().unwrap();
    });
    assert_eq!(world.tcx(&interface(&world, "shy")).each_ref().map(Vec::len), [1, 1]);
}

#[test]
fn twenty_pods_start_at_once() {
    let (mut world, runtime) = lab();
    let names: Vec<String> = (0..20).map(|number| format!("shy-{number}")).collect();
    for name in &names {
        world.declare(name, "", "{role: shy}");
    }
    let addresses: BTreeSet<String> = thread::scope(|scope| {
        let start = |name: &String| runtime.start(&Sandbox::new(name)).unwrap();
        let starting: Vec<_> = names.iter().map(|name| scope.spawn(move || start(name))).collect();
        starting.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(addresses.len(), 20);
    world.settle();
    for name in &names {
        assert_eq!(world.tcx(&interface(&world, name)).each_ref().map(Vec::len), [1, 1]);
        runtime.check(&Sandbox::new(name)).unwrap();
    }
    thread::scope(|scope| {
        for name in &names {
            scope.spawn(|| runtime.stop(&Sandbox::new(name)));
        }
    });
    eventually("all are gone", || world.state()["endpoints"].as_array().unwrap().is_empty());
}

#[test]
fn check_and_status_tell_the_truth() {
    let (mut world, mut runtime) = lab();
    let shy = Sandbox::new("shy");
    start(&world, &runtime, "shy", "shy");
    runtime.check(&shy).unwrap();
    runtime.ask_netpol("STATUS", &json!({})).unwrap();
    let version = runtime.ask_netpol("VERSION", &json!({})).unwrap();
    assert!(version["supportedVersions"].as_array().unwrap().contains(&json!("1.1.0")));
    runtime.netpol()["timeout"] = 1.into();
    let nobody = runtime.check(&Sandbox::new("nobody")).unwrap_err();
    assert_eq!(nobody["code"], 7, "no result of a chain: {nobody}");
    world.kill();
    assert!(refusal(&runtime.check(&shy).unwrap_err()).contains("no agent listens"));
    let down = runtime.ask_netpol("STATUS", &json!({})).unwrap_err();
    assert_eq!(down["code"], 50, "{down}");
    runtime.netpol()["on-unreachable"] = "allow".into();
    runtime.ask_netpol("STATUS", &json!({})).unwrap();
    runtime.check(&shy).unwrap();
}

#[test]
fn what_makes_no_sense_is_refused_with_a_code_and_a_reason() {
    let (world, _runtime) = lab();
    let program = std::path::Path::new(env!("CARGO_BIN_EXE_netpol"));
    let netns = netns::Netns::create(world.netns_dir(), "sandbox-empty").unwrap();
    let path = world.netns_dir().join("sandbox-empty");
    let (path, gone) = (path.to_str().unwrap(), "/does/not/exist");
    let config = json!({
        "cniVersion": "1.0.0", "name": "lab", "type": "netpol", "run-dir": world.run_dir(),
        "timeout": PATIENT_TIMEOUT, "prevResult": {"cniVersion": "1.0.0", "ips": []}
    });
    let without = |key: &str| {
        let mut config = config.clone();
        config.as_object_mut().unwrap().remove(key);
        config
    };
    let pod = "K8S_POD_NAMESPACE=default;K8S_POD_NAME=shy;K8S_POD_UID=u";
    let run = |text: &str, changes: &[(&str, &str)]| {
        let mut environment = vec![
            ("CNI_COMMAND", "ADD"),
            ("CNI_CONTAINERID", "c"),
            ("CNI_NETNS", path),
            ("CNI_IFNAME", "lo"),
            ("CNI_ARGS", pod),
        ];
        for &(key, value) in changes {
            environment.retain(|(name, _)| *name != key);
            environment.push((key, value));
        }
        answer(program, &call(&world.node, program, &environment, text.as_bytes()))
    };
    for (text, changes, code, word) in [
        ("{", &[][..], 6, "JSON"),
        ("", &[], 6, "JSON"),
        (&*without("prevResult").to_string(), &[], 7, "prevResult"),
        (&*without("cniVersion").to_string(), &[], 1, "cniVersion"),
        (&*config.to_string(), &[("CNI_NETNS", gone)], 5, "CNI_NETNS"),
        (&*config.to_string(), &[("CNI_NETNS", "")], 4, "CNI_NETNS"),
        (&*config.to_string(), &[("CNI_IFNAME", "eth0")], 5, "eth0"),
        (&*config.to_string(), &[("CNI_IFNAME", "a/b")], 4, "CNI_IFNAME"),
        (&*config.to_string(), &[("CNI_CONTAINERID", "../c")], 4, "CNI_CONTAINERID"),
        (&*config.to_string(), &[("CNI_ARGS", "x")], 4, "CNI_ARGS"),
        (&*config.to_string(), &[("CNI_COMMAND", "EXPLODE")], 4, "EXPLODE"),
        (&*config.to_string(), &[], TRY_AGAIN, "has no Pod default/shy"),
    ] {
        let error = run(text, changes).unwrap_err();
        assert_eq!(error["code"], code, "{error}");
        assert!(error["msg"].as_str().unwrap().contains(word), "{error}");
    }
    // What Kubernetes has not started is none of our business.
    let result = run(&config.to_string(), &[("CNI_ARGS", "")]).unwrap();
    assert_eq!(result, config["prevResult"]);
    // DEL of what nobody knows, as the specification wants it, and of a namespace that is gone.
    let delete = [("CNI_COMMAND", "DEL"), ("CNI_NETNS", gone), ("CNI_CONTAINERID", "unknown")];
    run(&config.to_string(), &delete).unwrap();
    drop(netns);
}

/// An interface of its own, with no other end on the node that a program could be put on.
#[test]
fn a_pod_that_cannot_be_enforced_starts_only_if_no_policy_selects_it() {
    let (world, mut runtime) = lab();
    runtime.netpol()["timeout"] = PATIENT_TIMEOUT.into();
    let netpol = runtime.netpol().clone();
    runtime.conflist["plugins"] = json!([netpol]);
    let result = json!({"cniVersion": "1.0.0", "ips": [{"address": "10.244.1.9/24"}]});
    runtime.netpol()["prevResult"] = result;
    let start = |name: &str, role: &str| {
        world.declare(name, "", &format!("{{role: {role}}}"));
        let sandbox = Sandbox::new(name);
        let netns = netns::Netns::create(world.netns_dir(), &sandbox.id).unwrap();
        world::ip(&netns, "link add eth0 type bridge\nlink set eth0 up");
        runtime.add(&sandbox)
    };
    assert_eq!(start("plain", "plain").unwrap(), "10.244.1.9");
    let error = start("shy", "shy").unwrap_err();
    assert!(refusal(&error).contains("no veth or netkit"), "{error}");
}

#[test]
fn the_agent_keeps_the_plugin_in_the_configuration_of_others() {
    let mut world = World::new();
    let (conf, bin) = (world.dir.path().join("net.d"), world.dir.path().join("cni-bin"));
    let text = |path: &std::path::Path| path.to_str().unwrap().to_owned();
    world.arguments =
        vec!["--cni-conf-dir".into(), text(&conf), "--cni-bin-dir".into(), text(&bin)];
    let status = world.start();
    eventually("it says what it waits for", || {
        let notes = world.agent.as_ref().unwrap().status()["datapath"]["notes"].to_string();
        notes.contains("has no network configuration yet")
    });
    assert_eq!(status["ready"], true);
    let file = conf.join("10-net.conflist");
    let list = r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"bridge"}]}"#;
    let is_installed = || fs::read_to_string(&file).is_ok_and(|text| text.contains("netpol"));
    // The network's own agent writes it, and writes it again.
    for _ in 0..5 {
        fs::write(&file, list).unwrap();
        eventually("netpol is in it", is_installed);
    }
    fs::write(&file, "{").unwrap();
    let errors = || world.agent.as_ref().unwrap().status()["datapath"]["errors"].to_string();
    eventually("it says what is wrong", || errors().contains("10-net.conflist as it is"));
    assert_eq!(fs::read_to_string(&file).unwrap(), "{");
    fs::write(&file, list).unwrap();
    eventually("netpol is in it", is_installed);
    eventually("nothing is wrong any more", || errors() == "[]");
    // Ending the agent leaves it; it is taken out explicitly.
    world.kill();
    assert!(is_installed() && bin.join("netpol").exists());
    let places = ["--conf-dir".to_owned(), text(&conf), "--bin-dir".to_owned(), text(&bin)];
    let uninstall = [vec!["cni".to_owned(), "uninstall".to_owned()], places.to_vec()].concat();
    assert!(world.netpol(&uninstall).status.success());
    assert!(!is_installed() && !bin.join("netpol").exists());
    let install = [vec!["cni".to_owned(), "install".to_owned()], places.to_vec()].concat();
    assert!(world.netpol(&install).status.success());
    assert!(is_installed() && bin.join("netpol").exists());
}
