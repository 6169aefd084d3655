//! A namespace that writes more than can be compiled in a moment: nobody else waits for it, the
//! status says what is under way, and the agent can be stopped. Needs root and the eBPF object.

use std::fmt::Write as _;
use std::thread;
use std::time::{Duration, Instant};

use netpol_testkit::world::traffic::{Server, assert_allowed, assert_denied, connects};
use netpol_testkit::world::{NODE_NAME, PATIENCE, World, eventually};
use serde_json::Value;

const SERVER: &str = "10.244.0.1:80";
const BULK: &str = "10.244.0.9:80";

/// Pods `server`, `friend` and `stranger` of namespace `default`, and `bulk` of namespace `bulk`.
fn node() -> (World, [Server; 2]) {
    let mut world = World::new();
    world.pod("server", "10.244.0.1", "{app: server}");
    world.pod("friend", "10.244.0.2", "{role: friend}");
    world.pod("stranger", "10.244.0.3", "{role: stranger}");
    world.wire("bulk", "10.244.0.9");
    world.write(
        "pod-bulk",
        &format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: bulk, namespace: bulk, uid: uid-bulk}}\n\
             spec: {{nodeName: {NODE_NAME}, containers: [{{name: c}}]}}\n\
             status: {{podIP: 10.244.0.9, podIPs: [{{ip: 10.244.0.9}}], phase: Running}}\n"
        ),
    );
    world.policy("friends", &from("friend"));
    let servers =
        [("server", 80), ("bulk", 80)].map(|(pod, port)| Server::start(&world.of(pod), port));
    (world, servers)
}

fn from(role: &str) -> String {
    format!(
        "podSelector: {{matchLabels: {{app: server}}}}, \
         ingress: [{{from: [{{podSelector: {{matchLabels: {{role: {role}}}}}}}]}}]"
    )
}

/// So many policies of namespace `bulk` of a thousand blocks each, the last of which is the one of
/// `friend`, read together.
fn flood(world: &World, n_policies: usize) {
    let mut text = String::new();
    for number in 0..n_policies {
        let last = if number + 1 == n_policies { "10.244.0.2/32" } else { "10.99.0.0/24" };
        let blocks = (0..1_000).map(|i| {
            let block = number * 1_000 + i;
            format!("20.{}.{}.{}/30", block >> 14 & 255, block >> 6 & 255, (block & 63) * 4)
        });
        let peers: Vec<String> = blocks
            .chain([last.to_owned()])
            .map(|block| format!(r#"{{"ipBlock": {{"cidr": "{block}"}}}}"#))
            .collect();
        let separator = if number == 0 { "" } else { ", " };
        write!(
            text,
            r#"{separator}{{"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
                "metadata": {{"name": "bulk-{number}", "namespace": "bulk"}},
                "spec": {{"podSelector": {{}}, "ingress": [{{"from": [{}]}}]}}}}"#,
            peers.join(", ")
        )
        .unwrap();
    }
    let list = format!(r#"{{"apiVersion": "v1", "kind": "List", "items": [{text}]}}"#);
    let draft = world.manifests().join(".flood");
    std::fs::write(&draft, list).unwrap();
    std::fs::rename(draft, world.manifests().join("flood.json")).unwrap();
}

/// What the status says of what is compiled for namespace `bulk`.
fn under_way(world: &World) -> Option<Value> {
    let status = world.agent.as_ref().unwrap().status();
    let compiling = status["datapath"]["compiling"].as_array().cloned().unwrap_or_default();
    let bulk = compiling.into_iter().find(|view| view["namespace"] == "bulk");
    assert!(bulk.is_none() || status["ready"] == false, "{status}");
    bulk
}

/// Waits, without a pause that something short could end in.
fn soon(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < end, "never came true: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn nobody_waits_for_what_one_namespace_writes() {
    let (mut world, _servers) = node();
    world.start();
    flood(&world, 80);
    soon("the flood is being compiled", || {
        under_way(&world).is_some_and(|bulk| bulk["done"].as_u64() > Some(0))
    });
    let said = world.netpol(&["status".into(), "--run-dir".into(), path(&world)]);
    let text = String::from_utf8(said.stdout).unwrap();
    assert!(text.contains("compiling: policies and pods of namespace bulk, "), "{text}");
    assert!(text.starts_with("not ready: "), "{text}");
    assert_eq!(said.status.code(), Some(1));
    assert_eq!(world.http("/readyz").0, 200, "a tenant stops no rollout");
    assert!(world.http("/metrics").1.contains("netpol_ready 0"));
    // Somebody else's edit, a pod's label, a new pod and a deletion.
    let mut n_meanwhile = 0;
    let mut meanwhile = |what: &str| {
        assert!(under_way(&world).is_some(), "{what} waited for the flood");
        n_meanwhile += 1;
    };
    let (stranger, friend) = (world.of("stranger"), world.of("friend"));
    world.policy("friends", &from("stranger"));
    soon("the edit is in force", || connects(&stranger, SERVER) && !connects(&friend, SERVER));
    meanwhile("an edit");
    world.declare("stranger", "10.244.0.3", "{role: none}");
    soon("the label is", || !connects(&stranger, SERVER));
    meanwhile("a label");
    world.remove("policy-friends");
    soon("the deletion is", || connects(&stranger, SERVER));
    meanwhile("a deletion");
    assert_eq!(n_meanwhile, 3);
    let status = world.settle();
    assert_eq!(status["ready"], true, "{status}");
    assert_eq!(under_way(&world), None);
    assert_allowed(&friend, BULK);
    assert_denied(&stranger, BULK);
}

/// Blocks of namespace `default` that are no other's.
fn own_blocks() -> String {
    let blocks = (0..30).map(|n| format!("{{ipBlock: {{cidr: 40.0.{n}.0/24}}}}"));
    let friend = "{ipBlock: {cidr: 10.244.0.2/31}}".to_owned();
    let peers: Vec<String> = blocks.chain([friend]).collect();
    format!(
        "podSelector: {{matchLabels: {{app: server}}}}, ingress: [{{from: [{}]}}]",
        peers.join(", ")
    )
}

/// What the status says of an object.
fn said_of(status: &Value, object: &str) -> Option<String> {
    let errors = status["datapath"]["errors"].as_array().unwrap();
    let error = errors.iter().find(|error| error["object"] == object)?;
    Some(error["message"].as_str().unwrap().to_owned())
}

#[test]
fn a_namespace_that_wants_too_much_goes_without_and_nobody_else_does() {
    for (option, value, hint) in [
        ("--limit", "blocks=1600", "--limit blocks=N"),
        ("--max-namespace-memory", "4Mi", "--max-namespace-memory"),
    ] {
        let (mut world, _servers) = node();
        world.arguments = vec![option.into(), value.into()];
        world.start();
        flood(&world, 3);
        eventually("there is too much", || {
            said_of(&world.agent.as_ref().unwrap().status(), "NetworkPolicy bulk/bulk-1").is_some()
        });
        // Who comes last has all of it.
        world.policy("friends", &own_blocks());
        let (stranger, friend) = (world.of("stranger"), world.of("friend"));
        for is_restarted in [false, true] {
            if is_restarted {
                world.kill();
                world.start_only();
            }
            let status = world.agent.as_mut().unwrap().wait();
            assert_eq!(status["ready"], false, "{status}");
            let message = said_of(&status, "NetworkPolicy bulk/bulk-2").unwrap();
            assert!(message.starts_with("1 of its 1 rules are left out"), "{message}");
            assert!(message.contains(hint), "{message}");
            assert_eq!(said_of(&status, "NetworkPolicy bulk/bulk-0"), None, "it fits");
            assert_eq!(said_of(&status, "NetworkPolicy default/friends"), None);
            assert_eq!(world.http("/readyz").0, 200, "a tenant stops no rollout");
            let metrics = world.http("/metrics").1;
            assert!(metrics.contains("netpol_left_out_rules{namespace=\"bulk\"} 2"), "{metrics}");
            assert!(metrics.contains("netpol_table_overflow{table=\"blocks\"} 0"), "{metrics}");
            assert_allowed(&friend, SERVER);
            // The rule that allows it is left out; the pod is isolated all the same.
            assert_denied(&friend, BULK);
            assert_denied(&stranger, BULK);
        }
        std::fs::remove_file(world.manifests().join("flood.json")).unwrap();
        let status = world.settle();
        assert_eq!(status["ready"], true, "{status}");
        assert_allowed(&stranger, BULK);
    }
}

#[test]
fn a_pod_that_comes_meanwhile_has_its_policies() {
    let (mut world, _servers) = node();
    world.start();
    flood(&world, 80);
    soon("the flood is being compiled", || under_way(&world).is_some());
    world.pod("late", "10.244.0.4", "{app: server}");
    let _late = Server::start(&world.of("late"), 80);
    let late = "10.244.0.4:80";
    let (stranger, friend) = (world.of("stranger"), world.of("friend"));
    soon("it is isolated", || !connects(&stranger, late));
    soon("its friends may", || connects(&friend, late));
    assert!(under_way(&world).is_some(), "it waited for the flood");
    world.settle();
    assert_denied(&stranger, late);
}

#[test]
fn an_agent_that_is_compiling_ends_when_it_is_told_to_and_the_next_one_goes_on() {
    let (mut world, _servers) = node();
    world.start();
    let friend = world.of("friend");
    flood(&world, 40);
    soon("the flood is being compiled", || {
        under_way(&world).is_some_and(|bulk| bulk["done"].as_u64() > Some(0))
    });
    let agent = world.agent.take().unwrap();
    assert!(agent.terminate().success());
    let unfinished = ["state.json.new", "agent.sock"].map(|name| world.run_dir().join(name));
    assert!(unfinished.iter().all(|path| !path.exists()), "something is half written");
    // As before: not isolated.
    assert_allowed(&world.of("stranger"), BULK);
    assert_denied(&world.of("stranger"), SERVER);
    // Killed in the middle of the first compilation, and told to end in it.
    world.start_only();
    eventually("it listens", || world.run_dir().join("agent.sock").exists());
    world.kill();
    std::fs::remove_file(world.run_dir().join("agent.sock")).unwrap();
    world.start_only();
    eventually("it listens", || world.run_dir().join("agent.sock").exists());
    let agent = world.agent.take().unwrap();
    assert!(agent.terminate().success());
    let status = world.start();
    assert_eq!(status["ready"], true, "{status}");
    assert_allowed(&friend, BULK);
    assert_denied(&world.of("stranger"), BULK);
    assert_denied(&world.of("stranger"), SERVER);
}

fn path(world: &World) -> String {
    world.run_dir().to_str().unwrap().to_owned()
}
