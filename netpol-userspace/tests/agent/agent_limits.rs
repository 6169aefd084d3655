//! An agent whose tables are too small: what did not fit is closed, said and counted, across
//! restarts, until there is room. Needs root and the eBPF object.

use serde_json::Value;

use netpol_testkit::world::traffic::{Attempts, Server, assert_allowed, assert_denied, connects};
use netpol_testkit::world::{World, eventually};

const SERVER: &str = "10.244.0.1:80";

fn limited(limits: &[&str]) -> World {
    let mut world = World::new();
    let flags = limits.iter().flat_map(|limit| ["--limit".to_owned(), limit.to_string()]);
    world.arguments = flags.collect();
    world
}

/// Waits for everything to be in force as far as it fits, and insists that something does not.
fn settle_short(world: &mut World, table: &str) -> String {
    let status = world.agent.as_mut().unwrap().wait();
    assert_eq!(status["ready"], false, "{status}");
    let errors = status["datapath"]["errors"].as_array().unwrap();
    let error = errors.iter().find(|error| error["object"] == format!("table {table}"));
    let error = error.unwrap_or_else(|| panic!("nothing about {table} in {status}"));
    error["message"].as_str().unwrap().to_owned()
}

fn metric(world: &World, line: &str) -> f64 {
    let (_, text) = world.http("/metrics");
    let line = text.lines().find(|other| other.starts_with(line));
    let line = line.unwrap_or_else(|| panic!("no such metric in {text}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

/// What `netpol status` prints, and whether it says yes.
fn status_text(world: &World) -> (String, Option<i32>) {
    let run_dir = world.run_dir().to_str().unwrap().to_owned();
    let output = world.netpol(&["status".into(), "--run-dir".into(), run_dir]);
    (String::from_utf8(output.stdout).unwrap(), output.status.code())
}

fn all_but(addresses: &[&str]) -> String {
    let except: Vec<String> = addresses.iter().map(|a| format!("{a}/32")).collect();
    format!(
        "podSelector: {{matchLabels: {{app: server}}}}, ingress: [{{from: [{{ipBlock: {{cidr: \
         10.244.0.0/16, except: [{}]}}}}]}}]",
        except.join(", ")
    )
}

#[test]
fn an_exception_that_does_not_fit_lets_nobody_in_until_it_does() {
    let mut world = limited(&["addresses=2"]);
    world.pod("server", "10.244.0.1", "{app: server}");
    world.pod("friend", "10.244.0.2", "{}");
    world.pod("stranger", "10.244.0.3", "{}");
    let _server = Server::start(&world.of("server"), 80);
    world.policy("some", &all_but(&["10.244.0.3"]));
    world.start();
    let (friend, stranger) = (world.of("friend"), world.of("stranger"));
    let attempts = Attempts::start(&stranger, SERVER);
    assert_allowed(&friend, SERVER);
    // Two pods that a policy selects, which may come before the exception when a new agent writes
    // its tables.
    world.pod("role-a", "10.244.0.4", "{role: x}");
    world.pod("role-b", "10.244.0.5", "{role: x}");
    let role = "from: [{podSelector: {matchLabels: {role: x}}}]";
    world.policy(
        "more",
        &format!("podSelector: {{matchLabels: {{app: server}}}}, ingress: [{{{role}}}]"),
    );
    let message = settle_short(&mut world, "addresses");
    assert!(message.contains("no room for 1 more entry (2 of 2 used), 10.244.0."), "{message}");
    assert!(message.contains("only rules without peers apply"), "{message}");
    assert_denied(&friend, SERVER);
    let (text, code) = status_text(&world);
    assert!(text.contains("not ready: not everything could be put in force"), "{text}");
    assert!(text.contains(&format!("table addresses: {message}")), "{text}");
    assert_eq!(code, Some(1));
    assert_eq!(metric(&world, "netpol_table_overflow{table=\"addresses\"}"), 1.0);
    assert_eq!(metric(&world, "netpol_table_limit{table=\"addresses\"}"), 2.0);
    assert_eq!(world.http("/readyz").0, 503);
    // Neither while no agent runs nor when the next one takes over.
    let revision = |status: &Value| status["source"]["revision"].as_u64().unwrap();
    let before = revision(&world.agent.as_ref().unwrap().status());
    world.kill();
    attempts.go_on();
    world.start_only();
    settle_short(&mut world, "addresses");
    assert!(revision(&world.agent.as_ref().unwrap().status()) >= before);
    attempts.go_on();
    assert_denied(&friend, SERVER);
    // Room.
    world.remove("policy-more");
    world.settle();
    assert_allowed(&friend, SERVER);
    attempts.finish();
    assert_denied(&stranger, SERVER);
    assert_eq!(metric(&world, "netpol_table_overflow{table=\"addresses\"}"), 0.0);
    assert_eq!(world.http("/readyz").0, 200);
}

#[test]
fn a_pod_beyond_the_endpoint_table_is_closed_while_a_policy_selects_it() {
    const A: &str = "10.244.0.1:80";
    const B: &str = "10.244.0.2:80";
    const FRIENDS: &str = "podSelector: {matchLabels: {app: server}}, \
                           ingress: [{from: [{podSelector: {matchLabels: {role: friend}}}]}]";
    let mut world = limited(&["endpoints=1"]);
    world.pod("a", "10.244.0.1", "{app: server}");
    world.pod("b", "10.244.0.2", "{app: server}");
    world.pod("friend", "10.244.0.3", "{role: friend}");
    world.pod("stranger", "10.244.0.4", "{role: stranger}");
    let _servers = ["a", "b"].map(|pod| Server::start(&world.of(pod), 80));
    world.start();
    let (friend, stranger) = (world.of("friend"), world.of("stranger"));
    // Nobody is isolated: nothing is in anybody's way.
    assert_allowed(&stranger, B);
    world.policy("friends", FRIENDS);
    let message = settle_short(&mut world, "endpoints");
    assert!(message.contains("(1 of 1 used), pods default/b: every packet"), "{message}");
    let attempts = Attempts::start(&stranger, B);
    assert_allowed(&friend, A);
    assert_denied(&friend, B);
    world.kill();
    attempts.go_on();
    world.start_only();
    settle_short(&mut world, "endpoints");
    attempts.finish();
    // Without policies it is open like any other, and closed again with them.
    world.remove("policy-friends");
    world.settle();
    assert_allowed(&friend, B);
    assert_eq!(world.links(), [""; 0]);
    world.policy("friends", FRIENDS);
    settle_short(&mut world, "endpoints");
    let attempts = Attempts::start(&stranger, B);
    assert_denied(&friend, B);
    // The other one goes: its place is free, and not one packet of a stranger comes through.
    world.remove("pod-a");
    world.unwire("a");
    eventually("b has a place", || connects(&friend, B));
    world.settle();
    attempts.finish();
    assert_allowed(&friend, B);
    assert_denied(&stranger, B);
    assert_eq!(metric(&world, "netpol_table_overflow{table=\"endpoints\"}"), 0.0);
}

/// A pod that had no place ends while no agent runs; its interface stays, and is somebody else's.
#[test]
fn nothing_is_left_of_a_closed_pod_that_ended_unseen() {
    let mut world = limited(&["endpoints=1"]);
    world.pod("a", "10.244.0.1", "{app: server}");
    world.pod("b", "10.244.0.2", "{app: server}");
    let _server = Server::start(&world.of("b"), 80);
    world.policy("none", "podSelector: {}");
    world.start_only();
    settle_short(&mut world, "endpoints");
    assert_denied(&world.of("a"), "10.244.0.2:80");
    world.kill();
    world.remove("policy-none");
    world.remove("pod-b");
    world.start();
    assert_eq!(world.links(), [""; 0]);
    assert_eq!(world.tcx("v-b").concat(), [0; 0]);
    // The closed pod did not answer for its address either, and the node has given it up.
    eventually("the node finds the pod", || connects(&world.of("a"), "10.244.0.2:80"));
    assert_allowed(&world.of("a"), "10.244.0.2:80");
}
