//! An address that goes from an allowed pod to a denied one at once: nothing of the first pod's
//! rights and flows is the second's, and the second's own policies hold. Needs root and the eBPF
//! object.

use netpol_testkit::established;
use std::net::{IpAddr, SocketAddr, UdpSocket};

use netpol_common::layout::Reason;
use netpol_isolation::netns::Netns;
use netpol_model::Direction;
use netpol_testkit::established::{Manifest, PORT, pod, udp_socket, v4, v6, wire};
use netpol_testkit::world::traffic::{Server, assert_allowed, bound};
use netpol_testkit::world::{World, eventually};

const SERVER: u8 = 1;
const FRIEND: u8 = 2;
const STRANGER: u8 = 3;
/// The address that changes hands.
const SHARED: u8 = 9;
/// The client's ports of the flows that outlive their pod. (A socket of both families has its
/// port in both.)
const CLIENT_PORTS: [u16; 2] = [40_404, 40_406];
const ROUNDS: usize = 6;

/// Isolates `app: server` and admits what has the label `role: friend`.
const FRIENDS: &str = "podSelector: {matchLabels: {app: server}}, ingress: [{from: [{podSelector: \
                       {matchLabels: {role: friend}}}]}]";

fn shop() -> World {
    let mut world = established::world();
    pod(&mut world, "server", SERVER, "{app: server}");
    pod(&mut world, "friend", FRIEND, "{role: friend}");
    pod(&mut world, "stranger", STRANGER, "{role: stranger}");
    world.policy("friends", FRIENDS);
    world.start();
    world
}

fn both(number: u8) -> [SocketAddr; 2] {
    [v4(number), v6(number)].map(|address: IpAddr| SocketAddr::new(address, PORT))
}

/// A server's end by UDP, in each family.
fn listen(netns: &Netns, number: u8) -> [UdpSocket; 2] {
    both(number).map(|address| {
        let socket = netns.run(|| bound(|| UdpSocket::bind(address))).unwrap();
        socket.set_nonblocking(true).unwrap();
        socket
    })
}

/// Clients in each family, from always the same port.
fn clients(netns: &Netns, server: u8) -> [UdpSocket; 2] {
    both(server).map(|to| udp_socket(netns, to, CLIENT_PORTS[usize::from(to.is_ipv6())]))
}

/// Insists that a message of each client comes back.
fn assert_exchange(clients: &[UdpSocket; 2], servers: &[UdpSocket; 2], what: &str) {
    for (client, server) in clients.iter().zip(servers) {
        let mut buffer = [0; 8];
        let mut from = None;
        eventually(&format!("{what}: the question arrives"), || {
            client.send(b"?").unwrap();
            from = server.recv_from(&mut buffer).ok();
            from.is_some()
        });
        server.send_to(b"!", from.unwrap().1).unwrap();
        eventually(&format!("{what}: the answer arrives"), || client.recv(&mut buffer).is_ok());
        while server.recv(&mut buffer).is_ok() {}
    }
}

/// Insists that nothing of the clients gets through, counted at `pod`.
fn assert_dead(world: &World, pod: &str, clients: &[UdpSocket; 2], servers: &[UdpSocket; 2]) {
    let dropped = || {
        [Reason::Policy, Reason::PolicyCut]
            .map(|reason| world.counted(pod, Direction::Ingress, reason))
            .iter()
            .sum::<u64>()
    };
    for (client, server) in clients.iter().zip(servers) {
        let mut buffer = [0; 8];
        while server.recv(&mut buffer).is_ok() {}
        let before = dropped();
        // More than once: the kernel may lose one while it looks for who has the address now.
        eventually("the old flow's packet is dropped", || {
            client.send(b"!").unwrap();
            dropped() > before
        });
        assert!(
            server.recv(&mut buffer).is_err(),
            "a packet got through by its predecessor's flow"
        );
    }
}

/// Takes a pod away, manifest and interface in either order.
fn end(world: &mut World, name: &str, round: usize) {
    if round.is_multiple_of(2) {
        world.remove(&format!("pod-{name}"));
        world.unwire(name);
    } else {
        world.unwire(name);
        world.remove(&format!("pod-{name}"));
    }
}

/// Brings a pod, likewise.
fn begin(world: &mut World, manifest: &Manifest<'_>, round: usize) {
    if round.is_multiple_of(3) {
        manifest.write(world);
    }
    wire(world, manifest.name, manifest.number);
    manifest.write(world);
}

#[test]
fn a_peer_with_the_address_of_an_allowed_one_gets_nothing_of_it() {
    let mut world = shop();
    let servers = listen(&world.of("server"), SERVER);
    for round in 0..ROUNDS {
        let (old, new) = (format!("old-{round}"), format!("new-{round}"));
        begin(
            &mut world,
            &Manifest { uid: &old, ..Manifest::new(&old, SHARED, "{role: friend}") },
            0,
        );
        world.settle();
        assert_exchange(&clients(&world.of(&old), SERVER), &servers, "the first pod");
        end(&mut world, &old, round);
        let successor = Manifest { uid: &new, ..Manifest::new(&new, SHARED, "{role: stranger}") };
        begin(&mut world, &successor, round);
        world.settle();
        assert_dead(&world, "server", &clients(&world.of(&new), SERVER), &servers);
        // Nor does the server's side revive it.
        let froms = [(v4(SHARED), CLIENT_PORTS[0]), (v6(SHARED), CLIENT_PORTS[1])];
        for (server, from) in servers.iter().zip(froms) {
            let before = world.counted("server", Direction::Egress, Reason::PolicyCut);
            eventually("the answer of the old flow is dropped", || {
                server.send_to(b"!", from).unwrap();
                world.counted("server", Direction::Egress, Reason::PolicyCut) > before
            });
        }
        end(&mut world, &new, round);
    }
}

/// The old pod is deleted and the new one there before the agent looks once: the same file says
/// so in one step, the interface stays (as with a pod that is made again in its sandbox), or is
/// another one.
#[test]
fn a_successor_seen_at_once_is_another_pod() {
    let mut world = shop();
    let servers = listen(&world.of("server"), SERVER);
    wire(&mut world, "heir", SHARED);
    for round in 0..ROUNDS {
        let (old, new) = (format!("old-{round}"), format!("new-{round}"));
        Manifest { uid: &old, ..Manifest::new("heir", SHARED, "{role: friend}") }.write(&world);
        world.settle();
        assert_exchange(&clients(&world.of("heir"), SERVER), &servers, "the first pod");
        if round.is_multiple_of(2) {
            world.unwire("heir");
            wire(&mut world, "heir", SHARED);
        }
        Manifest { uid: &new, ..Manifest::new("heir", SHARED, "{role: stranger}") }.write(&world);
        world.settle();
        assert_dead(&world, "server", &clients(&world.of("heir"), SERVER), &servers);
    }
}

/// As the subject of policies: what was allowed to the first pod with the address is not to the
/// second, whose own policies hold from the first packet after they are in force.
#[test]
fn a_subject_with_the_address_of_another_has_its_own_policies() {
    let mut world = shop();
    world.policy(
        "strangers",
        "podSelector: {matchLabels: {app: heir}}, ingress: [{from: [{podSelector: {matchLabels: \
         {role: stranger}}}]}]",
    );
    for round in 0..ROUNDS {
        let (old, new) = (format!("old-{round}"), format!("new-{round}"));
        begin(
            &mut world,
            &Manifest { uid: &old, ..Manifest::new(&old, SHARED, "{app: server}") },
            0,
        );
        world.settle();
        let friend = clients(&world.of("friend"), SHARED);
        {
            let servers = listen(&world.of(&old), SHARED);
            assert_exchange(&friend, &servers, "the first pod");
        }
        end(&mut world, &old, round);
        let successor = Manifest { uid: &new, ..Manifest::new(&new, SHARED, "{app: heir}") };
        begin(&mut world, &successor, round);
        world.settle();
        {
            let servers = listen(&world.of(&new), SHARED);
            assert_dead(&world, &new, &friend, &servers);
            let stranger = clients(&world.of("stranger"), SHARED);
            assert_exchange(&stranger, &servers, "the second pod and its own friend");
        }
        let _server = Server::start(&world.of(&new), PORT);
        assert_allowed(&world.of("stranger"), &format!("{}:{PORT}", v4(SHARED)));
        end(&mut world, &new, round);
    }
}

/// The same for pods of another node, of which only addresses are known here.
#[test]
fn a_remote_peer_with_the_address_of_an_allowed_one_gets_nothing_of_it() {
    let mut world = shop();
    let servers = listen(&world.of("server"), SERVER);
    // Where the other node's pods come from.
    wire(&mut world, "uplink", SHARED);
    for round in 0..ROUNDS {
        let (old, new) = (format!("old-{round}"), format!("new-{round}"));
        let remote = |name, labels| Manifest {
            uid: name,
            node: "node-2",
            ..Manifest::new(name, SHARED, labels)
        };
        remote(&old, "{role: friend}").write(&world);
        world.settle();
        let sockets = clients(&world.of("uplink"), SERVER);
        assert_exchange(&sockets, &servers, "the first pod");
        if round.is_multiple_of(2) {
            world.remove(&format!("pod-{old}"));
            remote(&new, "{role: stranger}").write(&world);
        } else {
            // The watch may tell them the other way round.
            remote(&new, "{role: stranger}").write(&world);
            world.remove(&format!("pod-{old}"));
        }
        world.settle();
        assert_dead(&world, "server", &sockets, &servers);
        world.remove(&format!("pod-{new}"));
    }
}
