//! The state changes while traffic flows: policies, labels, namespaces; and frames that are no
//! plain packets. Needs root and the eBPF object.

use netpol_testkit::world;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpStream, UdpSocket};

use netpol_common::layout::Reason;
use netpol_model::Direction;

use netpol_testkit::world::traffic::{
    Attempts, Server, Stream, asks, assert_allowed, assert_denied, connects, send_frames,
};
use netpol_testkit::world::{NODE, World, eventually};

const SERVER: &str = "10.244.0.1:80";
const FRIENDS: &str = "podSelector: {matchLabels: {app: server}}, \
                       ingress: [{from: [{podSelector: {matchLabels: {role: friend}}}]}]";

fn shop() -> (World, Server) {
    let mut world = World::new();
    world.pod("server", "10.244.0.1", "{app: server}");
    world.pod("friend", "10.244.0.2", "{role: friend}");
    world.pod("stranger", "10.244.0.3", "{role: stranger}");
    let server = Server::start(&world.of("server"), 80);
    (world, server)
}

#[test]
fn policies_take_effect_as_they_are_written_edited_and_removed() {
    let (mut world, _server) = shop();
    world.start();
    assert_allowed(&world.of("stranger"), SERVER);
    world.policy("friends", FRIENDS);
    world.settle();
    assert_denied(&world.of("stranger"), SERVER);
    assert_allowed(&world.of("friend"), SERVER);
    world.policy("friends", &FRIENDS.replace("friend", "stranger"));
    world.settle();
    assert_allowed(&world.of("stranger"), SERVER);
    assert_denied(&world.of("friend"), SERVER);
    world.remove("policy-friends");
    world.settle();
    assert_allowed(&world.of("stranger"), SERVER);
    assert_allowed(&world.of("friend"), SERVER);
    assert_eq!(world.tcx("v-server").concat(), [0; 0]);
    assert_eq!(world.links(), [""; 0]);
}

#[test]
fn a_malformed_edit_keeps_the_last_good_policy_in_force() {
    let (mut world, _server) = shop();
    world.policy("friends", FRIENDS);
    world.start();
    let attempts = Attempts::start(&world.of("stranger"), SERVER);
    let stream = Stream::tcp(&world.of("friend"), SERVER);
    for broken in [
        FRIENDS.replace("ingress:", "ingres:"),
        FRIENDS.replace("matchLabels: {role: friend}", "matchLabels: {'not a label!': x}"),
        "]".to_owned(),
    ] {
        world.policy("friends", &broken);
        let status = world.agent.as_ref().unwrap().wait();
        let errors = status["source"]["errors"].as_array().unwrap();
        assert!(!errors.is_empty(), "{status}");
        assert!(errors.iter().any(|e| e["object"].as_str().unwrap().contains("policy-friends")));
        assert_eq!(status["ready"], false, "{status}");
        stream.moves();
        attempts.go_on();
        // Nor does a restart forget what was good.
        world.kill();
        world.start();
        let run_dir = world.run_dir().to_str().unwrap().to_owned();
        let wait = ["status", "--wait", "--run-dir", &run_dir].map(ToOwned::to_owned);
        assert_eq!(world.netpol(&wait).status.code(), Some(1), "there is an object of no use");
        stream.moves();
        attempts.go_on();
    }
    world.policy("friends", FRIENDS);
    let status = world.settle();
    assert_eq!(status["source"]["errors"].as_array().unwrap().len(), 0, "{status}");
    stream.finish();
    attempts.finish();
    assert_denied(&world.of("stranger"), SERVER);
}

/// A flow that works, then a change after which it must not.
fn cuts(change: impl FnOnce(&World)) {
    let (mut world, _server) = shop();
    world.write(
        "namespace",
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: default, labels: {team: a}}\n",
    );
    world.policy(
        "friends",
        "podSelector: {matchLabels: {app: server}}, ingress: [{from: [{podSelector: \
         {matchLabels: {role: friend}}, namespaceSelector: {matchLabels: {team: a}}}]}]",
    );
    world.start();
    let friend = world.of("friend");
    let mut tcp = friend.run(|| TcpStream::connect(SERVER).unwrap()).unwrap();
    let udp = friend.run(|| UdpSocket::bind("0.0.0.0:0").unwrap()).unwrap();
    udp.connect(SERVER).unwrap();
    udp.set_read_timeout(Some(world::PATIENCE)).unwrap();
    let mut answer = [0; 8];
    tcp.write_all(b"x").unwrap();
    tcp.read_exact(&mut answer[..1]).unwrap();
    udp.send(b"x").unwrap();
    udp.recv(&mut answer).unwrap();
    change(&world);
    world.settle();
    let before = world.drops("server");
    let limit = Some(std::time::Duration::from_millis(300));
    tcp.set_read_timeout(limit).unwrap();
    udp.set_read_timeout(limit).unwrap();
    tcp.write_all(b"x").unwrap();
    udp.send(b"x").unwrap();
    assert!(tcp.read(&mut answer).is_err(), "the connection goes on");
    assert!(udp.recv(&mut answer).is_err(), "the UDP flow goes on");
    assert!(world.drops("server") >= before + 2, "nothing was dropped");
    assert_denied(&friend, SERVER);
}

#[test]
fn a_changed_label_of_a_peer_cuts_its_established_flows() {
    cuts(|world| world.declare("friend", "10.244.0.2", "{role: was-friend}"));
}

#[test]
fn a_changed_label_of_a_namespace_cuts_established_flows() {
    cuts(|world| {
        world.write(
            "namespace",
            "apiVersion: v1\nkind: Namespace\nmetadata: {name: default, labels: {team: b}}\n",
        );
    });
}

#[test]
fn a_tightened_policy_cuts_established_flows() {
    cuts(|world| world.policy("friends", "podSelector: {matchLabels: {app: server}}"));
}

/// Isolated and not, again and again: never a packet lost while not isolated, and nothing left.
#[test]
fn isolation_comes_and_goes_without_a_trace() {
    for attach in ["tcx", "clsact"] {
        let (mut world, _server) = shop();
        world.arguments = vec!["--attach".into(), attach.into()];
        world.start();
        // The kernel itself drops what is under way on an interface that gets its first clsact
        // qdisc (net/sched/sch_api.c: qdisc_graft); netpol leaves it there.
        world.policy("friends", FRIENDS);
        world.settle();
        world.remove("policy-friends");
        world.settle();
        // Allowed in both states, so every packet must pass at any time.
        let friend = world.of("friend");
        let streams = [Stream::udp(&friend, SERVER), Stream::tcp(&friend, SERVER)];
        for _ in 0..15 {
            world.policy("friends", FRIENDS);
            world.settle();
            streams.iter().for_each(Stream::moves);
            assert!(!asks(&world.of("stranger"), SERVER));
            world.remove("policy-friends");
            world.settle();
            assert!(connects(&world.of("stranger"), SERVER));
            assert_eq!(world.tcx("v-server").concat(), [0; 0]);
            let filters = world.tc("filter show dev v-server egress");
            assert!(!filters.contains("netpol"), "{filters}");
        }
        for stream in streams {
            stream.finish();
        }
    }
}

fn frame(ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend([2, 0, 0, 0, 0, 9]);
    frame.extend(ethertype.to_be_bytes());
    frame.extend(payload);
    frame
}

/// Packets the node's side of a pod has received and handed on, by a counting filter behind ours.
fn packets_seen(world: &World, interface: &str) -> u64 {
    let text = world.tc(&format!("-s -j filter show dev {interface} ingress"));
    let filters: serde_json::Value = serde_json::from_str(&text).unwrap();
    let action = filters
        .as_array()
        .unwrap()
        .iter()
        .find_map(|filter| filter["options"]["actions"].get(0))
        .unwrap();
    action["stats"]["packets"].as_u64().unwrap()
}

#[test]
fn frames_that_are_no_packets_pass_only_from_pods_that_no_policy_isolates() {
    let (mut world, _server) = shop();
    world.tc("qdisc add dev v-friend clsact");
    world.ip("link add sink0 type veth peer name sink1\nlink set sink0 up");
    world.tc("filter add dev v-friend ingress pref 10 protocol all u32 match u32 0 0 \
         action mirred egress mirror dev sink0 continue");
    world.policy(
        "isolated",
        "podSelector: {matchLabels: {app: server}}, policyTypes: [Ingress, Egress], egress: [{}]",
    );
    world.start();
    let frames = [
        (frame(0x88b5, &[0; 50]), Reason::Ethertype),
        (frame(0x0800, &[0x45, 0, 0, 60]), Reason::Truncated),
        (frame(0x86dd, &[0x60, 0, 0, 0, 0]), Reason::Truncated),
    ];
    for (frame, reason) in frames {
        let dropped = || world.counted("server", Direction::Egress, reason);
        let before = dropped();
        send_frames(&world.of("server"), &frame, 1);
        eventually("the frame is counted as dropped", || dropped() == before + 1);
        let seen = packets_seen(&world, "v-friend");
        send_frames(&world.of("friend"), &frame, 1);
        eventually("the frame passes", || packets_seen(&world, "v-friend") > seen);
    }
}

#[test]
fn the_nodes_own_processes_reach_isolated_pods_and_nobody_else_does_by_their_address() {
    let (mut world, _server) = shop();
    // Else the pod that poses as the node would be stopped by its own guard.
    world.arguments = ["--source-check", "isolated"].map(str::to_owned).into();
    world.policy("none", "podSelector: {}, policyTypes: [Ingress, Egress]");
    world.start();
    assert_allowed(&world.node, SERVER);
    assert_denied(&world.of("friend"), SERVER);
    // The other pod takes the node's address as its source. It is not isolated for egress, so
    // that only its victim can stop it.
    world.policy("none", "podSelector: {matchLabels: {app: server}}");
    world.settle();
    world.ip_in("stranger", &format!("address add {NODE}/32 dev lo"));
    // A node that checks nothing itself.
    for (file, value) in
        [("all/rp_filter", "0"), ("v-stranger/rp_filter", "0"), ("v-stranger/accept_local", "1")]
    {
        let path = format!("/proc/sys/net/ipv4/conf/{file}");
        world.node.run(|| fs::write(path, value).unwrap()).unwrap();
    }
    let before = world.drops("server");
    world
        .of("stranger")
        .run(|| {
            let socket = UdpSocket::bind((NODE, 0)).unwrap();
            socket.send_to(b"?", SERVER).unwrap();
        })
        .unwrap();
    eventually("the forged packet is dropped at its victim", || {
        world.drops("server") == before + 1
    });
}

#[test]
fn a_pod_that_becomes_isolated_keeps_what_it_opened_and_loses_what_is_forbidden() {
    let (mut world, _server) = shop();
    let _elsewhere = Server::start(&world.of("stranger"), 90);
    world.start();
    let own = Stream::tcp(&world.of("server"), "10.244.0.3:90");
    let own_udp = Stream::udp(&world.of("server"), "10.244.0.3:90");
    let friend = Stream::tcp(&world.of("friend"), SERVER);
    let stranger = Stream::tcp(&world.of("stranger"), SERVER);
    // Ingress only: the server's answers to the stranger leave by an open direction and must not
    // make the stranger's connection one of the server's own.
    world.policy("friends", FRIENDS);
    world.settle();
    eventually("the stranger's connection stops", || {
        let before = stranger.answered();
        std::thread::sleep(std::time::Duration::from_millis(300));
        stranger.answered() == before
    });
    assert!(world.counted("server", Direction::Ingress, Reason::PolicyCut) > 0);
    for stream in [&own, &own_udp, &friend] {
        stream.moves();
    }
    assert_denied(&world.of("stranger"), SERVER);
    world.remove("policy-friends");
    world.settle();
    for stream in [own, own_udp, friend, stranger] {
        stream.finish();
    }
}
