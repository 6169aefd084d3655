//! Other people's tc programs and filters beside ours, in both ways of attaching, and those who
//! take ours off. Needs root and the eBPF object.

use netpol_testkit::world;
use std::os::fd::AsRawFd as _;

use aya::programs::links::{FdLink, LinkOrder, PinnedLink};
use aya::programs::tc::{SchedClassifierLink, TcAttachOptions};
use aya::programs::{MultiProgLink as _, ProgramInfo, TcAttachType};
use netpol_datapath::{LoadOptions, Pins, Programs};

use netpol_testkit::world::traffic::{Server, Stream, assert_allowed, assert_denied};
use netpol_testkit::world::{World, eventually};

const SERVER: &str = "10.244.0.1:80";
const FRIENDS: &str = "podSelector: {matchLabels: {app: server}}, policyTypes: [Ingress, Egress], \
                       ingress: [{from: [{podSelector: {matchLabels: {role: friend}}}]}]";

fn shop(attach: &str) -> (World, Server) {
    let mut world = World::new();
    world.arguments = vec!["--attach".into(), attach.into()];
    world.pod("server", "10.244.0.1", "{app: server}");
    world.pod("friend", "10.244.0.2", "{role: friend}");
    world.pod("stranger", "10.244.0.3", "{role: stranger}");
    world.policy("friends", FRIENDS);
    let server = Server::start(&world.of("server"), 80);
    (world, server)
}

fn assert_enforced(world: &World) {
    assert_allowed(&world.of("friend"), SERVER);
    assert_denied(&world.of("stranger"), SERVER);
}

/// A filter of someone else that looks at every packet and lets the next filter go on.
fn look(world: &World, hook: &str, priority: u32, protocol: &str) {
    world.tc(&format!(
        "filter add dev v-server {hook} pref {priority} protocol {protocol} u32 match u32 0 0 \
         action mirred egress mirror dev sink0 continue"
    ));
}

/// The clsact qdisc of someone else, and an interface that swallows copies of packets.
fn prepare(world: &World) {
    world.ip("link add sink0 type veth peer name sink1\nlink set sink0 up");
    world.tc("qdisc add dev v-server clsact");
}

/// Packets counted by the first action of the filter with this priority.
fn counted(world: &World, hook: &str, priority: u64) -> u64 {
    let text = world.tc(&format!("-s -j filter show dev v-server {hook}"));
    let filters: serde_json::Value = serde_json::from_str(&text).unwrap();
    let is_it = |filter: &&serde_json::Value| {
        filter["pref"] == priority && filter["options"]["actions"][0].is_object()
    };
    let filter = filters.as_array().unwrap().iter().find(is_it).unwrap();
    filter["options"]["actions"][0]["stats"]["packets"].as_u64().unwrap()
}

#[test]
fn both_ways_of_attaching_enforce_the_same() {
    for attach in ["tcx", "clsact", "auto"] {
        let (mut world, _server) = shop(attach);
        world.start();
        assert_enforced(&world);
        let filters = world.tc("filter show dev v-server ingress");
        assert_eq!(filters.contains("netpol_egress"), attach == "clsact", "{filters}");
        let n_programs = if attach == "clsact" { 0 } else { 2 };
        assert_eq!(world.tcx("v-server").concat().len(), n_programs);
    }
}

#[test]
fn filters_of_others_behind_ours_see_what_we_allow_and_only_that() {
    for attach in ["tcx", "clsact"] {
        let (mut world, _server) = shop(attach);
        prepare(&world);
        look(&world, "ingress", 20, "ip");
        look(&world, "egress", 20, "ip");
        world.start();
        assert_allowed(&world.of("friend"), SERVER);
        assert!(counted(&world, "egress", 20) > 0, "{attach}: what is allowed was not handed on");
        assert!(counted(&world, "ingress", 20) > 0, "{attach}: what is allowed was not handed on");
        let before = counted(&world, "egress", 20);
        assert_denied(&world.of("stranger"), SERVER);
        assert_eq!(counted(&world, "egress", 20), before, "{attach}: denied packets went on");
        // One that drops is obeyed too.
        world.tc("filter add dev v-server egress pref 30 protocol ip u32 match u32 0 0 \
             action mirred egress redirect dev sink0");
        assert_denied(&world.of("friend"), SERVER);
        world.tc("filter del dev v-server egress pref 30");
        assert_enforced(&world);
        // Ours go, theirs stay.
        world.kill();
        assert!(world.clean_up().status.success());
        let filters = world.tc("filter show dev v-server egress");
        assert!(filters.contains("pref 20") && !filters.contains("netpol"), "{filters}");
    }
}

#[test]
fn filters_of_others_in_front_of_ours_keep_working() {
    for attach in ["tcx", "clsact"] {
        let (mut world, _server) = shop(attach);
        prepare(&world);
        // The very priority that we would like, of another kind and protocol.
        look(&world, "egress", 1, "ip");
        look(&world, "ingress", 1, "all");
        world.start();
        assert_enforced(&world);
        assert!(counted(&world, "egress", 1) > 0, "{attach}");
        assert!(counted(&world, "ingress", 1) > 0, "{attach}");
        // Also across a restart, which must not add a second one of ours.
        world.kill();
        world.start();
        assert_enforced(&world);
        let filters = world.tc("filter show dev v-server egress");
        let n_ours = filters.matches("netpol_ingress direct-action").count();
        assert_eq!(n_ours, usize::from(attach == "clsact"), "{filters}");
    }
}

/// A TCX program of someone else (ours under other pins, whose maps know no endpoint: it drops
/// all) behind ours: allowed packets reach it.
#[test]
fn tcx_programs_of_others_behind_ours_see_what_we_allow() {
    let (mut world, _server) = shop("tcx");
    world.start();
    assert_enforced(&world);
    let other = Pins::new(format!("{}-other", world.bpffs.display()));
    other.create().unwrap();
    let mut programs = Programs::load(&other, &LoadOptions::default()).unwrap();
    let hook = TcAttachType::Egress;
    let program = programs.program("netpol_ingress").unwrap();
    let attach = || {
        let order = TcAttachOptions::TcxOrder(LinkOrder::last());
        program.attach_with_options("v-server", hook, order).unwrap()
    };
    let id = world.node.run(attach).unwrap();
    let ids = world.tcx("v-server");
    let ours = ProgramInfo::from_pin(world.pins().program("netpol_ingress")).unwrap().id();
    let is_obeyed = !world::traffic::asks(&world.of("friend"), SERVER);
    program.detach(id).unwrap();
    other.remove_all().unwrap();
    assert_eq!((ids[1].len(), ids[1][0]), (2, ours), "ours is not the first");
    assert!(is_obeyed, "the program behind ours never ran");
    assert_enforced(&world);
}

/// BPF_LINK_DETACH on a pinned link.
fn detach(link: &std::path::Path) {
    const BPF_LINK_DETACH: i64 = 34;
    let link = FdLink::from(PinnedLink::from_pin(link).unwrap());
    let link = SchedClassifierLink::try_from(link).unwrap();
    let fd = link.fd().unwrap().as_raw_fd().cast_unsigned();
    // SAFETY: the kernel reads the four bytes given and writes nothing.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_LINK_DETACH, &raw const fd, size_of::<u32>()) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

#[test]
fn programs_that_someone_takes_off_are_put_back() {
    for attach in ["tcx", "clsact"] {
        let (mut world, _server) = shop(attach);
        // Guards of other pods would be told of as well.
        world.arguments.extend(["--source-check", "isolated"].map(str::to_owned));
        world.start();
        let stream = Stream::tcp(&world.of("friend"), SERVER);
        let both = |world: &World| match attach {
            "tcx" => world.tcx("v-server").concat().len() == 2,
            _ => ["ingress", "egress"].iter().all(|hook| {
                let filters = world.tc(&format!("filter show dev v-server {hook}"));
                filters.matches("netpol").count() == 1
                    || filters.matches("direct-action").count() == 1
            }),
        };
        assert!(both(&world));
        for round in 1..=2 {
            match (attach, round) {
                ("tcx", 1) => {
                    detach(&world.pins().links().join(&world.links()[0]));
                }
                ("tcx", _) => {
                    for link in world.links() {
                        std::fs::remove_file(world.pins().links().join(link)).unwrap();
                    }
                }
                (_, 1) => drop(world.tc("filter del dev v-server egress")),
                _ => drop(world.tc("qdisc del dev v-server clsact")),
            }
            let said = "had been taken off its interface";
            eventually("it is told", || world.log().matches(said).count() == round);
            assert!(both(&world), "they are not back");
            assert_enforced(&world);
        }
        assert_eq!(world.agent.as_ref().unwrap().status()["ready"], true);
        stream.finish();
    }
}
