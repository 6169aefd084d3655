//! Established flows when what allowed them goes: with `cut` the next packet is dropped,
//! whichever end sends it; with `keep` they go on and new ones are refused. And a running pod
//! that becomes isolated. TCP and UDP, both families. Needs root and the eBPF object.

use netpol_testkit::established;
use netpol_testkit::world;
use std::net::SocketAddr;

use netpol_common::layout::Reason;
use netpol_model::Direction;

use netpol_testkit::established::{End, Flow, Manifest, PORT, namespace, pod, udp_socket, v4, v6};
use netpol_testkit::world::World;
use netpol_testkit::world::traffic::assert_denied;

const SERVER: u8 = 1;
const CLIENT: u8 = 2;

const CLOSED: &str = "podSelector: {matchLabels: {app: server}}";
const FROM_CLIENT: &str = "podSelector: {matchLabels: {app: server}}, ingress: [{from: \
                           [{podSelector: {matchLabels: {role: client}}}]}]";
const FROM_TEAM: &str = "podSelector: {matchLabels: {app: server}}, ingress: [{from: \
                         [{namespaceSelector: {matchLabels: {team: a}}}]}]";
const FROM_BLOCKS: &str = "podSelector: {matchLabels: {app: server}}, ingress: [{from: [{ipBlock: \
                           {cidr: 10.244.0.0/16}}, {ipBlock: {cidr: 'fd00:244::/64'}}]}]";
const FROM_SMALLER_BLOCKS: &str = "podSelector: {matchLabels: {app: server}}, ingress: [{from: [{ipBlock: {cidr: 10.244.0.0/16, \
     except: [10.244.0.2/32]}}, {ipBlock: {cidr: 'fd00:244::/64', except: ['fd00:244::2/127']}}]}]";
const TO_WEB: &str = "podSelector: {matchLabels: {app: server}}, ingress: [{ports: [{port: web}, \
                      {port: 80, protocol: UDP}]}]";
const NO_EGRESS: &str = "podSelector: {matchLabels: {role: client}}, policyTypes: [Egress]";
const TO_SERVER: &str = "podSelector: {matchLabels: {role: client}}, policyTypes: [Egress], \
                         egress: [{to: [{podSelector: {matchLabels: {app: server}}}]}]";

/// Why a flow is no longer allowed.
struct Cause {
    name: &'static str,
    /// What allows it at first.
    before: fn(&World),
    change: fn(&World),
    /// Whose drops count then.
    judge: &'static str,
    /// It concerns UDP, too.
    udp: bool,
}

const fn cause(
    name: &'static str,
    before: fn(&World),
    change: fn(&World),
    judge: &'static str,
) -> Cause {
    Cause { name, before, change, judge, udp: true }
}

fn causes() -> Vec<Cause> {
    let allowed = |world: &World| world.policy("p", FROM_CLIENT);
    let open = |_: &World| {};
    vec![
        cause("a policy edit", allowed, |world| world.policy("p", CLOSED), "server"),
        cause(
            "a policy that turns to another port",
            allowed,
            |world| {
                let ports = "[{port: 81}, {port: 81, protocol: UDP}]";
                world.policy("p", &FROM_CLIENT.replace("}]}]", &format!("}}], ports: {ports}}}]")));
            },
            "server",
        ),
        cause(
            "another label of the peer",
            allowed,
            |world| Manifest::new("client", CLIENT, "{role: none}").write(world),
            "server",
        ),
        cause(
            "another label of the peer's namespace",
            |world| world.policy("p", FROM_TEAM),
            |world| namespace(world, "{team: b}"),
            "server",
        ),
        cause("the peer's deletion", allowed, |world| world.remove("pod-client"), "server"),
        cause(
            "the end of the last policy that allows it",
            |world| {
                world.policy("p", FROM_CLIENT);
                world.policy("q", CLOSED);
            },
            |world| world.remove("policy-p"),
            "server",
        ),
        cause(
            "a smaller block",
            |world| world.policy("p", FROM_BLOCKS),
            |world| world.policy("p", FROM_SMALLER_BLOCKS),
            "server",
        ),
        Cause {
            udp: false,
            ..cause(
                "another number of the named port",
                |world| world.policy("p", TO_WEB),
                |world| {
                    Manifest { web: 81, ..Manifest::new("server", SERVER, "{app: server}") }
                        .write(world);
                },
                "server",
            )
        },
        cause("a first policy on the server", open, |w| w.policy("p", CLOSED), "server"),
        cause("a first policy on the client", open, |w| w.policy("p", NO_EGRESS), "client"),
        cause(
            "an edit of the client's policy",
            |world| world.policy("p", TO_SERVER),
            |world| world.policy("p", NO_EGRESS),
            "client",
        ),
        cause(
            "a label of the server that makes a policy select it",
            |world| world.policy("p", &CLOSED.replace("app: server", "app: closed")),
            |world| Manifest::new("server", SERVER, "{app: closed}").write(world),
            "server",
        ),
        cause(
            "a label of the server that makes it no destination any more",
            |world| world.policy("p", TO_SERVER),
            |world| Manifest::new("server", SERVER, "{app: other}").write(world),
            "client",
        ),
    ]
}

fn shop(arguments: &[&str]) -> World {
    let mut world = established::world();
    world.arguments = arguments.iter().map(|&argument| argument.to_owned()).collect();
    pod(&mut world, "server", SERVER, "{app: server}");
    pod(&mut world, "client", CLIENT, "{role: client}");
    namespace(&world, "{team: a}");
    world.start();
    world
}

/// Everything as it was before the first cause.
fn restore(world: &mut World) {
    for policy in ["p", "q"] {
        let file = world.manifests().join(format!("policy-{policy}.yaml"));
        if file.exists() {
            world.remove(&format!("policy-{policy}"));
        }
    }
    Manifest::new("server", SERVER, "{app: server}").write(world);
    Manifest::new("client", CLIENT, "{role: client}").write(world);
    namespace(world, "{team: a}");
    world.settle();
}

/// The flows of a cause, known to work.
fn flows(world: &mut World, cause: &Cause) -> Vec<Flow> {
    restore(world);
    (cause.before)(world);
    world.settle();
    let mut flows = Flow::all(&world.of("client"), &world.of("server"), SERVER);
    if !cause.udp {
        flows.retain(|flow| flow.name.starts_with("TCP"));
    }
    flows.iter().for_each(|flow| flow.assert_passes("allowed at first"));
    flows
}

fn cut_drops(world: &World, pod: &str) -> u64 {
    let counted = |direction| world.counted(pod, direction, Reason::PolicyCut);
    Direction::BOTH.map(counted).iter().sum()
}

#[test]
fn cut_drops_the_next_packet_of_a_flow_whatever_has_ended_it_and_whichever_end_sends() {
    let mut world = shop(&[]);
    for cause in causes() {
        let flows = flows(&mut world, &cause);
        (cause.change)(&world);
        world.settle();
        for (index, flow) in flows.iter().enumerate() {
            // The first packet after the change is each end's in turn.
            let first = if index % 2 == 0 { End::Client } else { End::Server };
            let second = if index % 2 == 0 { End::Server } else { End::Client };
            for end in [first, second, first] {
                flow.assert_dropped(end, cause.name, || cut_drops(&world, cause.judge));
            }
        }
        // What is allowed again goes on.
        restore(&mut world);
        flows.iter().for_each(|flow| flow.assert_passes(&format!("again after {}", cause.name)));
    }
}

#[test]
fn keep_lets_flows_go_on_whatever_has_ended_their_permission_and_refuses_new_ones() {
    let mut world = shop(&["--established", "keep"]);
    for cause in causes() {
        let flows = flows(&mut world, &cause);
        (cause.change)(&world);
        world.settle();
        flows.iter().for_each(|flow| flow.assert_passes(cause.name));
        // New ones, while the old ones go on.
        let server = world.of("server");
        for address in [v4(SERVER), v6(SERVER)].into_iter().filter(|_| cause.udp) {
            let to = SocketAddr::new(address, PORT);
            let before = world.drops(cause.judge);
            let socket = udp_socket(&world.of("client"), to, 0);
            socket.send(b"new").unwrap();
            let what = format!("a new flow to {to} is dropped after {}", cause.name);
            world::eventually(&what, || world.drops(cause.judge) > before);
        }
        drop(server);
        flows.iter().for_each(|flow| flow.assert_passes(cause.name));
        drop(flows);
        if cause.udp {
            let _server = world::traffic::Server::start(&world.of("server"), PORT);
            assert_denied(&world.of("client"), &format!("{}:{PORT}", v4(SERVER)));
        }
    }
}

/// What it opened goes on, what was opened to it and is forbidden is cut: by all of its sockets,
/// TCP and connected UDP, of both families.
#[test]
fn a_pod_that_becomes_isolated_is_known_by_its_sockets() {
    let mut world = shop(&[]);
    pod(&mut world, "friend", 3, "{role: friend}");
    pod(&mut world, "elsewhere", 4, "{role: elsewhere}");
    world.settle();
    let of = |pod: &str| world.of(pod);
    let own = Flow::all(&of("server"), &of("elsewhere"), 4);
    let friends = Flow::all(&of("friend"), &of("server"), SERVER);
    // The port of the connection must be free again for the next listener; UDP keeps it.
    let strangers = [v4(SERVER), v6(SERVER)].map(|a| Flow::tcp(&of("client"), &of("server"), a));
    for round in 0..3 {
        world.policy("p", &FROM_CLIENT.replace("client", "friend"));
        world.settle();
        for (index, flow) in strangers.iter().enumerate() {
            let ends = if index == 0 { End::BOTH } else { [End::Server, End::Client] };
            for end in ends {
                flow.assert_dropped(end, "a stranger's", || cut_drops(&world, "server"));
            }
        }
        for flow in own.iter().chain(&friends) {
            flow.assert_passes(&format!("isolated for the {round}. time"));
        }
        world.remove("policy-p");
        world.settle();
        for flow in own.iter().chain(&friends).chain(&strangers) {
            flow.assert_passes("not isolated any more");
        }
    }
}
