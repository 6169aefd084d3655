//! Whose an interface is: pods that may configure their interfaces and show addresses that are not
//! theirs, or none, before anybody has looked, or while nobody remembers. Needs root and the eBPF
//! object.

use std::fs;

use serde_json::Value;

use netpol_testkit::world::traffic::{Server, assert_allowed, assert_denied};
use netpol_testkit::world::{World, eventually};

/// Nothing may leave these pods, nor reach them.
const QUIET: &str = "podSelector: {matchLabels: {app: quiet}}, policyTypes: [Ingress, Egress]";
const OPEN: &str = "10.244.0.4:80";

/// An open pod with a server and a policy for quiet ones.
fn world() -> (World, Server) {
    let mut world = World::new();
    world.pod("open", "10.244.0.4", "{app: open}");
    world.policy("quiet", QUIET);
    let server = Server::start(&world.of("open"), 80);
    (world, server)
}

/// Takes a pod's address off its interface and gives it another one.
fn renumber(world: &World, pod: &str, from: &str, to: &str) {
    world.ip_in(
        pod,
        &format!(
            "address del {from}/32 dev eth0\naddress add {to}/32 dev eth0\n\
             route replace 169.254.1.1 dev eth0\n\
             route replace default via 169.254.1.1 src {to}"
        ),
    );
}

/// The endpoint of an interface.
fn endpoint(world: &World, interface: &str) -> Option<Value> {
    let state = world.state();
    let views = state["endpoints"].as_array().unwrap();
    views.iter().find(|view| view["interface"] == interface).cloned()
}

/// No policy is enforced there. There may be a guard, and on a link that is shared a shield.
fn assert_open(world: &World, interface: &str) {
    let ifindex = world.ifindex(interface);
    let of_policies = ["ingress", "egress"].map(|program| format!("{ifindex}-{program}"));
    let links = world.links();
    assert!(
        !links.iter().any(|link| of_policies.contains(link)),
        "{interface} is not open: {links:?}"
    );
}

fn assert_closed(world: &World, pod: &str) {
    let interface = format!("v-{pod}");
    assert_eq!(world.tcx(&interface).map(|ids| ids.len()), [1, 1], "{interface} is open");
    assert_denied(&world.of(pod), OPEN);
}

/// `netpol status --wait`: the exit code and what it says.
fn waits(world: &World) -> (Option<i32>, String) {
    let run_dir = world.run_dir().to_str().unwrap().to_owned();
    let line = ["status", "--wait", "--timeout", "60s", "--run-dir", &run_dir].map(str::to_owned);
    let output = world.netpol(&line);
    (output.status.code(), String::from_utf8(output.stdout).unwrap())
}

#[test]
fn a_pod_that_renumbers_while_everything_is_lost_is_the_pod_that_it_was() {
    let (mut world, _server) = world();
    world.pod("quiet", "10.244.0.1", "{app: quiet}");
    world.start();
    assert_closed(&world, "quiet");
    // To an address that nobody has, and to that of a pod that no policy selects.
    let mut address = "10.244.0.1";
    for other in ["10.244.0.99", "10.244.0.4"] {
        world.kill();
        fs::remove_dir_all(world.run_dir()).unwrap();
        renumber(&world, "quiet", address, other);
        // Routed as it was, and by a node that knows nothing.
        world.ip("route del 10.244.0.1/32");
        world.start();
        address = other;
        assert_closed(&world, "quiet");
        let view = endpoint(&world, "v-quiet").unwrap();
        assert_eq!((&view["pod"], &view["ips"][0]), (&"quiet".into(), &"10.244.0.1".into()));
        assert_open(&world, "v-open");
        world.ip("route replace 10.244.0.1/32 dev v-quiet");
    }
}

/// The same by clsact filters, which are not pinned.
#[test]
fn a_pod_that_renumbers_while_everything_is_lost_with_clsact() {
    let (mut world, _server) = world();
    world.arguments = vec!["--attach".into(), "clsact".into()];
    world.pod("quiet", "10.244.0.1", "{app: quiet}");
    world.start();
    world.kill();
    fs::remove_dir_all(world.run_dir()).unwrap();
    renumber(&world, "quiet", "10.244.0.1", "10.244.0.99");
    world.ip("route del 10.244.0.1/32");
    world.start();
    assert_denied(&world.of("quiet"), OPEN);
    assert_eq!(endpoint(&world, "v-quiet").unwrap()["pod"], "quiet");
}

/// The node's route leads to it, whatever it shows.
#[test]
fn a_pod_that_renumbers_before_it_is_known_is_found_by_the_nodes_route() {
    let (mut world, _server) = world();
    world.start();
    for (number, other) in ["10.244.0.99", "10.244.0.4"].iter().enumerate() {
        let (name, address) = (format!("quiet-{number}"), format!("10.244.0.1{number}"));
        world.wire(&name, &address);
        renumber(&world, &name, &address, other);
        world.declare(&name, &address, "{app: quiet}");
        world.settle();
        assert_closed(&world, &name);
        assert_eq!(endpoint(&world, &format!("v-{name}")).unwrap()["pod"], name);
    }
    assert_eq!(endpoint(&world, "v-open").unwrap()["pod"], "open");
    assert_open(&world, "v-open");
    // The one that it posed as is not disturbed.
    world.wire("client", "10.244.0.5");
    assert_allowed(&world.of("client"), OPEN);
}

/// On a bridge no route says which port it is: the pod that is known keeps its name, and what is
/// left is the pod that is missing.
#[test]
fn a_pod_that_poses_as_another_on_a_bridge_is_not_that_one() {
    let mut world = World::new();
    world.policy("quiet", QUIET);
    world.wire_to_bridge("open", "10.245.0.4");
    world.declare("open", "10.245.0.4", "{app: open}");
    let _server = Server::start(&world.of("open"), 80);
    world.start();
    world.wire_to_bridge("quiet", "10.245.0.4");
    eventually("it is seen", || {
        let notes = world.agent.as_ref().unwrap().status()["datapath"]["notes"].to_string();
        notes.contains("v-quiet")
    });
    world.declare("quiet", "10.245.0.1", "{app: quiet}");
    world.settle();
    assert_eq!(endpoint(&world, "v-quiet").unwrap()["pod"], "quiet");
    assert_eq!(endpoint(&world, "v-open").unwrap()["pod"], "open");
    assert_eq!(world.tcx("v-quiet").map(|ids| ids.len()), [1, 1]);
    assert_open(&world, "v-open");
}

/// A pod's object may be here before its interface is, and another pod's interface before the object
/// of that. Then the one seems to be the other's: only until there is a better candidate.
#[test]
fn a_pod_that_is_declared_before_its_interface_is_there_gets_that_and_no_other() {
    let mut world = World::new();
    world.policy("quiet", QUIET);
    world.wire_to_bridge("other", "10.245.0.9");
    world.declare("other", "10.245.0.9", "{app: other}");
    let _server = Server::start(&world.of("other"), 80);
    world.start();
    for round in 0..2 {
        world.wire_to_bridge("open", "10.245.0.4");
        world.declare("quiet", "10.245.0.1", "{app: quiet}");
        eventually("the interface is taken for the pod's", || {
            endpoint(&world, "v-open").is_some_and(|endpoint| endpoint["pod"] == "quiet")
        });
        assert_denied(&world.of("open"), "10.245.0.9:80");
        if round == 1 {
            // What an agent has supposed binds no other.
            world.kill();
            world.start_only();
        }
        world.wire_to_bridge("quiet", "10.245.0.1");
        world.declare("open", "10.245.0.4", "{app: open}");
        world.settle();
        for pod in ["quiet", "open"] {
            assert_eq!(endpoint(&world, &format!("v-{pod}")).unwrap()["pod"], pod, "{round}");
        }
        assert_denied(&world.of("quiet"), "10.245.0.9:80");
        assert_allowed(&world.of("open"), "10.245.0.9:80");
        for pod in ["quiet", "open"] {
            world.remove(&format!("pod-{pod}"));
            world.unwire(pod);
        }
        world.settle();
    }
}

/// Two interfaces on a bridge with the address of an open pod, and a quiet pod that is neither to
/// be seen.
fn undecided() -> (World, Server) {
    let mut world = World::new();
    world.policy("quiet", QUIET);
    for name in ["one", "two"] {
        world.wire_to_bridge(name, "10.245.0.4");
    }
    world.wire_to_bridge("other", "10.245.0.9");
    let server = Server::start(&world.of("other"), 80);
    world.declare("open", "10.245.0.4", "{app: open}");
    world.declare("quiet", "10.245.0.1", "{app: quiet}");
    world.declare("other", "10.245.0.9", "{app: other}");
    world.start_only();
    (world, server)
}

fn assert_undecided(world: &World) {
    assert_eq!(waits(world).0, Some(1));
    for name in ["one", "two"] {
        assert_eq!(world.tcx(&format!("v-{name}")).map(|ids| ids.len()), [1, 1]);
        assert_denied(&world.of(name), "10.245.0.9:80");
    }
    // It is nobody else's fault.
    assert_eq!(world.http("/readyz").0, 200);
}

/// Nobody knows which of two it is: neither may do more than both, and that is told.
#[test]
fn what_cannot_be_decided_is_as_closed_as_the_strictest_that_it_could_be() {
    let (mut world, _server) = undecided();
    let (code, said) = waits(&world);
    assert_eq!(code, Some(1), "{said}");
    for word in ["not ready", "v-one, v-two", "10.245.0.4", "default/quiet"] {
        assert!(said.contains(word), "no {word} in {said}");
    }
    assert_undecided(&world);
    world.kill();
    world.start_only();
    assert_undecided(&world);
    // Once one of them is out of the way, the other one can be told.
    world.unwire("one");
    world.remove("pod-quiet");
    let (code, said) = waits(&world);
    assert_eq!(code, Some(0), "{said}");
    assert_open(&world, "v-two");
    assert_eq!(endpoint(&world, "v-two").unwrap()["pod"], "open");
}

/// What was closed for a reason that nobody remembers is not opened for want of one.
#[test]
fn what_could_not_be_decided_stays_closed_when_that_is_forgotten() {
    let (mut world, _server) = undecided();
    assert_undecided(&world);
    world.kill();
    fs::remove_dir_all(world.run_dir()).unwrap();
    world.remove("pod-quiet");
    world.start_only();
    assert_undecided(&world);
    let (_, said) = waits(&world);
    assert!(said.contains("v-one") && said.contains("nobody knows"), "{said}");
}

/// A pod that takes its own interface away is red, and nobody else is suspected to be it.
#[test]
fn a_pod_that_has_lost_its_interface_closes_nobody_elses() {
    let mut world = World::new();
    world.policy("quiet", QUIET);
    for (name, address) in
        [("quiet", "10.245.0.1"), ("open", "10.245.0.4"), ("other", "10.245.0.9")]
    {
        world.wire_to_bridge(name, address);
        world.declare(name, address, &format!("{{app: {name}}}"));
    }
    let _server = Server::start(&world.of("open"), 80);
    world.start();
    world.ip_in("quiet", "link del eth0");
    // The kernel tells of it in its own time.
    eventually("the end of the interface is seen", || waits(&world).0 == Some(1));
    for _ in 0..2 {
        let (code, said) = waits(&world);
        assert!(code == Some(1) && said.contains("Pod default/quiet"), "{said}");
        assert!(!said.contains("interface v-"), "{said}");
        assert_allowed(&world.of("other"), "10.245.0.4:80");
        assert_open(&world, "v-open");
        world.kill();
        world.start_only();
    }
}

#[test]
fn a_selected_pod_without_an_interface_is_red_and_named() {
    let (mut world, _server) = world();
    world.start();
    assert_eq!(waits(&world).0, Some(0));
    // No policy selects it.
    world.declare("ghost", "10.244.0.98", "{app: ghost}");
    let (code, said) = waits(&world);
    assert!(code == Some(0) && said.contains("default/ghost"), "{said}");
    for status in
        ["podIP: 10.244.0.99, podIPs: [{ip: 10.244.0.99}], phase: Running", "phase: Running"]
    {
        world.declare("ghost", "10.244.0.98", "{app: ghost}");
        assert_eq!(waits(&world).0, Some(0));
        world.write(
            "pod-ghost",
            &format!(
                "apiVersion: v1\nkind: Pod\n\
                 metadata: {{name: ghost, namespace: default, uid: u, labels: {{app: quiet}}}}\n\
                 spec: {{nodeName: node-1, containers: [{{name: c}}]}}\nstatus: {{{status}}}\n"
            ),
        );
        let (code, said) = waits(&world);
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains("Pod default/ghost") && said.contains("not ready"), "{said}");
        assert_eq!(world.agent.as_ref().unwrap().status()["ready"], false);
        // One tenant's pod stops no rollout.
        assert_eq!(world.http("/readyz").0, 200);
        assert!(world.http("/metrics").1.contains("netpol_ready 0"));
    }
    world.remove("pod-ghost");
    assert_eq!(waits(&world).0, Some(0));
    assert_eq!(world.agent.as_ref().unwrap().status()["ready"], true);
}

#[test]
fn what_is_done_to_an_interface_does_not_end_its_enforcement() {
    let (mut world, _server) = world();
    world.pod("quiet", "10.244.0.1", "{app: quiet}");
    world.start();
    assert_closed(&world, "quiet");
    let programs = world.tcx("v-quiet");
    // By the pod.
    world.ip_in("quiet", "link set eth0 down\nlink set eth0 name eth7\nlink set eth7 up");
    world.ip_in("quiet", "link set eth7 address 02:00:00:00:00:77");
    world.settle();
    assert_eq!(world.tcx("v-quiet"), programs);
    // To a namespace that it has made, with the address of another pod.
    netpol_isolation::netns::Netns::create(world.netns_dir(), "hideout").unwrap();
    let hideout = world.netns_dir().join("hideout");
    world.ip_in("quiet", &format!("link set eth7 netns {} name eth0", hideout.display()));
    world.ip_in(
        "hideout",
        "link set eth0 up\naddress add 10.244.0.4/32 dev eth0\n\
         route add 169.254.1.1 dev eth0\nroute add default via 169.254.1.1 src 10.244.0.4",
    );
    world.settle();
    let moved = |world: &World| {
        assert_eq!(endpoint(world, "v-quiet").unwrap()["pod"], "quiet");
        assert_eq!(world.tcx("v-quiet").map(|ids| ids.len()), [1, 1]);
        assert_denied(&world.of("hideout"), OPEN);
    };
    moved(&world);
    world.kill();
    world.start();
    moved(&world);
    // By the node, which gives it another name while no agent looks.
    world.kill();
    world.ip("link set v-quiet down\nlink set v-quiet name renamed\nlink set renamed up");
    world.start_only();
    waits(&world);
    assert_eq!(endpoint(&world, "renamed").unwrap()["pod"], "quiet");
    assert_eq!(world.tcx("renamed").map(|ids| ids.len()), [1, 1]);
    world.ip("link set renamed down\nlink set renamed name v-quiet");
    netpol_isolation::netns::delete(world.netns_dir(), "hideout").unwrap();
}
