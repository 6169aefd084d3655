//! What is in force survives the agent: killed, stopped, restarted with or without its memory.
//! Needs root and the eBPF object.

use std::fs;

use netpol_datapath::observe;

use netpol_testkit::world::traffic::{Attempts, Server, Stream, assert_allowed, assert_denied};
use netpol_testkit::world::{World, eventually};

/// Two servers for `role: friend`, one of which only friends talk to: what it drops is a mistake.
struct Shop {
    world: World,
    _servers: [Server; 2],
}

const QUIET: &str = "10.244.0.1:80";
const BUSY: &str = "10.244.0.2:80";
const FRIENDS: &str = "podSelector: {matchLabels: {app: server}}, policyTypes: [Ingress, Egress], \
                       ingress: [{from: [{podSelector: {matchLabels: {role: friend}}}]}]";

impl Shop {
    fn new() -> Self {
        Self::with(&[])
    }

    fn with(arguments: &[&str]) -> Self {
        let mut world = World::new();
        world.arguments = arguments.iter().map(ToString::to_string).collect();
        world.pod("quiet", "10.244.0.1", "{app: server}");
        world.pod("busy", "10.244.0.2", "{app: server}");
        world.pod("friend", "10.244.0.3", "{role: friend}");
        world.pod("stranger", "10.244.0.4", "{role: stranger}");
        world.policy("friends", FRIENDS);
        let servers = ["quiet", "busy"].map(|pod| Server::start(&world.of(pod), 80));
        Self { world, _servers: servers }
    }

    fn assert_enforced(&self) {
        let world = &self.world;
        assert_allowed(&world.of("friend"), QUIET);
        assert_allowed(&world.of("friend"), BUSY);
        assert_denied(&world.of("stranger"), BUSY);
        // Egress of the servers.
        assert_denied(&world.of("busy"), QUIET);
    }
}

fn inode(path: &std::path::Path) -> u32 {
    aya::maps::MapInfo::from_pin(path).unwrap().id()
}

/// How often agents are replaced, unless `cargo xtask test --cases` says another number.
const ROUNDS: u64 = 20;

/// One agent after the other takes over under traffic: the one before was killed, or told to stop, as
/// in an upgrade. What is denied is tried all the time, what is allowed misses nothing.
fn survives(arguments: &[&str], rounds: u64) {
    let mut shop = Shop::with(arguments);
    shop.world.start();
    shop.assert_enforced();
    let friend = shop.world.of("friend");
    let streams = [Stream::tcp(&friend, QUIET), Stream::udp(&friend, QUIET)];
    let attempts = Attempts::start(&shop.world.of("stranger"), BUSY);
    let (ids, links) = (["quiet", "busy"].map(|pod| shop.world.id(pod)), shop.world.links());
    let flows = inode(&shop.world.pins().map("FLOWS4"));
    for round in 0..rounds {
        if round % 2 == 0 {
            shop.world.kill();
        } else {
            let status = shop.world.agent.take().unwrap().terminate();
            assert!(status.success(), "{status}");
        }
        let before = shop.world.tcx("v-quiet");
        streams.iter().for_each(Stream::moves);
        attempts.go_on();
        // In some rounds the policies are not what they were.
        match round % 5 {
            2 => shop.world.policy("more", "podSelector: {}, policyTypes: [Egress], egress: [{}]"),
            3 => shop.world.remove("policy-more"),
            _ => {}
        }
        shop.world.start();
        // Filters are not listed there.
        let is_replaced = before != shop.world.tcx("v-quiet") || !arguments.is_empty();
        assert!(is_replaced, "the programs are those of before");
        streams.iter().for_each(Stream::moves);
        attempts.go_on();
        assert_eq!(["quiet", "busy"].map(|pod| shop.world.id(pod)), ids);
        assert_eq!(inode(&shop.world.pins().map("FLOWS4")), flows);
    }
    assert_eq!(shop.world.links(), links);
    let answered: Vec<u64> = streams.into_iter().map(Stream::finish).collect();
    let tried = attempts.finish();
    println!("{rounds} agents: {answered:?} messages answered, {tried} rounds of attempts in vain");
    assert_eq!(shop.world.drops("quiet"), 0, "allowed packets were dropped");
    assert!(shop.world.drops("busy") > 0, "nothing was attempted");
    shop.assert_enforced();
}

#[test]
fn agents_that_are_replaced_leave_no_gap_and_cut_nothing() {
    let said = std::env::var("NETPOL_CASES").ok();
    survives(&[], said.map_or(ROUNDS, |text| text.parse().unwrap()));
}

#[test]
fn agents_that_are_replaced_leave_no_gap_and_cut_nothing_with_clsact() {
    survives(&["--attach", "clsact"], 5);
}

#[test]
fn a_restart_replaces_the_programs_in_their_links() {
    let mut shop = Shop::new();
    shop.world.start();
    // The second one has the guard of those that no policy selects.
    for (interface, programs) in [("v-quiet", [1, 1]), ("v-stranger", [1, 0])] {
        let before = shop.world.tcx(interface);
        assert_eq!(before.each_ref().map(Vec::len), programs);
        shop.world.kill();
        assert_eq!(shop.world.tcx(interface), before);
        shop.world.start();
        let after = shop.world.tcx(interface);
        assert_eq!(after.each_ref().map(Vec::len), programs);
        assert_ne!(after, before);
    }
}

fn cleans_up(arguments: &[&str]) {
    let mut shop = Shop::with(arguments);
    shop.world.start();
    let status = shop.world.agent.take().unwrap().terminate();
    assert!(status.success(), "{status}");
    assert!(!shop.world.run_dir().join("agent.sock").exists());
    shop.assert_enforced();
    let output = shop.world.clean_up();
    assert!(output.status.success(), "{output:?}");
    // At once: what lingers would drop, its maps being gone.
    for interface in ["v-quiet", "v-stranger"] {
        assert_eq!(shop.world.tcx(interface).concat(), [0; 0]);
        for hook in ["ingress", "egress"] {
            let filters = shop.world.tc(&format!("filter show dev {interface} {hook}"));
            assert!(!filters.contains("netpol"), "{filters}");
        }
    }
    assert!(!shop.world.bpffs.exists());
    assert_allowed(&shop.world.of("stranger"), BUSY);
    assert_allowed(&shop.world.of("busy"), QUIET);
}

#[test]
fn a_stopped_agent_leaves_enforcement_until_it_is_cleaned_up() {
    cleans_up(&[]);
}

#[test]
fn a_stopped_agent_leaves_clsact_filters_until_they_are_cleaned_up() {
    cleans_up(&["--attach", "clsact"]);
}

/// Who may send as whom must be as on a node that was never restarted.
fn own_addresses(world: &World) -> Vec<(u16, String)> {
    let maps = world.maps();
    let mut list: Vec<(u16, String)> = observe::own_addresses(&maps)
        .filter(|(_, address)| address.is_ipv4())
        .map(|(id, address)| (id, address.to_string()))
        .collect();
    list.sort();
    list
}

fn expected_own_addresses(world: &World, pods: &[(&str, &str)]) -> Vec<(u16, String)> {
    let mut list: Vec<_> =
        pods.iter().map(|(pod, address)| (world.id(pod), (*address).to_owned())).collect();
    list.sort();
    list
}

fn forgets(forget: impl FnOnce(&World)) {
    let mut shop = Shop::new();
    shop.world.start();
    shop.assert_enforced();
    shop.world.kill();
    let attempts = Attempts::start(&shop.world.of("stranger"), BUSY);
    forget(&shop.world);
    // Whatever the numbers meant, they now mean something else.
    shop.world.policy(
        "aaa",
        "podSelector: {matchLabels: {role: stranger}}, ingress: [{ports: [{port: 1}]}]",
    );
    shop.world.unwire("friend");
    shop.world.wire("friend", "10.244.0.3");
    shop.world.start();
    attempts.finish();
    shop.assert_enforced();
    let pods = [
        ("quiet", "10.244.0.1"),
        ("busy", "10.244.0.2"),
        ("friend", "10.244.0.3"),
        ("stranger", "10.244.0.4"),
    ];
    assert_eq!(own_addresses(&shop.world), expected_own_addresses(&shop.world, &pods));
    let maps = shop.world.maps();
    assert_eq!(observe::endpoints(&maps).len(), 3);
}

#[test]
fn a_lost_run_directory_is_recovered_from() {
    forgets(|world| fs::remove_dir_all(world.run_dir()).unwrap());
}

#[test]
fn a_corrupt_state_file_is_recovered_from() {
    forgets(|world| fs::write(world.run_dir().join("state.json"), "{\"version\":1,").unwrap());
}

#[test]
fn a_state_file_of_another_version_is_recovered_from() {
    forgets(|world| {
        let path = world.run_dir().join("state.json");
        let text = fs::read_to_string(&path).unwrap();
        let mut state: serde_json::Value = serde_json::from_str(&text).unwrap();
        state["version"] = 999_999.into();
        fs::write(&path, state.to_string()).unwrap();
    });
}

/// Endpoints that no policy selects have numbers that are only in the state file: what the maps
/// hold under them must not become another pod's.
#[test]
fn nobody_may_send_as_a_pod_that_had_its_number_before_a_restart() {
    let mut world = World::new();
    for number in 1..=4 {
        let pod = format!("pod-{number}");
        world.pod(&pod, &format!("10.244.0.{number}"), "{app: any}");
    }
    world.start();
    world.kill();
    world.unwire("pod-1");
    world.remove("pod-pod-1");
    world.policy("all", "podSelector: {}, policyTypes: [Egress], egress: [{}]");
    world.start();
    let pods = [("pod-2", "10.244.0.2"), ("pod-3", "10.244.0.3"), ("pod-4", "10.244.0.4")];
    assert_eq!(own_addresses(&world), expected_own_addresses(&world, &pods));
}

/// Killed before it could write down which endpoint has which number.
#[test]
fn an_endpoint_that_the_state_file_does_not_know_keeps_its_number_to_itself() {
    let mut shop = Shop::new();
    shop.world.start();
    let path = shop.world.run_dir().join("state.json");
    shop.world.kill();
    let text = fs::read_to_string(&path).unwrap();
    let mut state: serde_json::Value = serde_json::from_str(&text).unwrap();
    state["endpoints"].as_array_mut().unwrap().retain(|view| view["pod"] == "stranger");
    fs::write(&path, state.to_string()).unwrap();
    shop.world.start();
    shop.assert_enforced();
    let pods = [
        ("quiet", "10.244.0.1"),
        ("busy", "10.244.0.2"),
        ("friend", "10.244.0.3"),
        ("stranger", "10.244.0.4"),
    ];
    assert_eq!(own_addresses(&shop.world), expected_own_addresses(&shop.world, &pods));
}

/// A pod that may configure its interface takes its address off while no agent looks.
#[test]
fn a_pod_cannot_shed_its_policies_by_dropping_its_address() {
    let mut shop = Shop::new();
    shop.world.start();
    shop.world.kill();
    shop.world.ip_in("busy", "address del 10.244.0.2/32 dev eth0");
    shop.world.start_only();
    eventually("the agent is synced", || {
        shop.world.log().matches("synced: all policies").count() == 2
    });
    assert_eq!(shop.world.tcx("v-busy").map(|ids| ids.len()), [1, 1]);
    shop.world.ip_in(
        "busy",
        "address add 10.244.0.2/32 dev eth0\nroute replace 169.254.1.1 dev eth0\n\
         route replace default via 169.254.1.1 src 10.244.0.2",
    );
    shop.world.settle();
    shop.assert_enforced();
}
