//! SCTP by real sockets, between two nodes. Runs inside other kernels alone (`cargo xtask test
//! kernels`), since not every machine's kernel has SCTP. Needs root and the eBPF object.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::thread::{self, JoinHandle};

use netpol_common::layout::Reason;
use netpol_isolation::netns::Netns;
use netpol_model::Direction;
use netpol_testkit::lab::probe::At;
use netpol_testkit::lab::{Families, Lab, Pod, Scene, Topology, topology};
use netpol_testkit::world::{PATIENCE, eventually};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto};

const PORT: u16 = 3868;
const SCTP_ONLY: &str = "ports: [{port: 3868, protocol: SCTP}]";

/// A socket of one association; std's streams read and write it like any other.
fn socket(local: SocketAddr) -> OwnedFd {
    let family = if local.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let kind = (SocketType::STREAM, SocketFlags::CLOEXEC, Some(ipproto::SCTP));
    let socket = match rustix::net::socket_with(family, kind.0, kind.1, kind.2) {
        Err(Errno::PROTONOSUPPORT | Errno::NOPROTOOPT) => {
            panic!("missing feature: sctp: this kernel has no SCTP sockets")
        }
        result => result.unwrap(),
    };
    rustix::net::bind(&socket, &local).unwrap();
    for which in [Timeout::Recv, Timeout::Send] {
        set_socket_timeout(&socket, which, Some(PATIENCE)).unwrap();
    }
    socket
}

/// Answers one association, until that ends.
fn echo(netns: &Netns, local: SocketAddr) -> JoinHandle<()> {
    let listener = netns
        .run(|| {
            let socket = socket(local);
            rustix::net::listen(&socket, 8).unwrap();
            TcpListener::from(socket)
        })
        .unwrap();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut buffer = vec![0; 1 << 16];
        while let Ok(length @ 1..) = stream.read(&mut buffer) {
            if stream.write_all(&buffer[..length]).is_err() {
                break;
            }
        }
    })
}

fn associate(netns: &Netns, local: SocketAddr, to: SocketAddr) -> TcpStream {
    let connect = || {
        let socket = socket(local);
        rustix::net::connect(&socket, &to).unwrap_or_else(|error| panic!("to {to}: {error}"));
        TcpStream::from(socket)
    };
    netns.run(connect).unwrap()
}

/// A message there and back.
fn exchange(stream: &mut TcpStream, length: usize) {
    let sent: Vec<u8> = (0..length).map(|number| number as u8).collect();
    stream.write_all(&sent).unwrap();
    let mut received = vec![0; length];
    stream.read_exact(&mut received).expect("the message comes back");
    assert!(sent == received, "a message was changed");
}

/// An attempt that is dropped there.
fn is_denied(scene: &Scene<'_>, from: &Pod, to: SocketAddr, at: (&Pod, Direction)) {
    let count = || scene.lab.counted(at.0, at.1, Reason::Policy);
    let before = count();
    let attempt = || {
        let socket = socket((from.address(to.ip()), 0).into());
        rustix::io::ioctl_fionbio(&socket, true).unwrap();
        let _ = rustix::net::connect(&socket, &to);
        socket
    };
    let socket = from.netns.run(attempt).unwrap();
    eventually("the first packet is counted", || count() > before);
    assert!(rustix::net::getpeername(&socket).is_err(), "an association that is not allowed");
}

/// Server and client on different nodes, both isolated both ways, with SCTP allowed on one port.
fn pair(scene: &Scene<'_>) -> [Pod; 2] {
    let [asks, asked] = scene.closed_pair();
    scene.policy(
        "asked",
        &format!(
            "podSelector: {{matchLabels: {{app: asked}}}}, policyTypes: [Ingress, Egress], \
             ingress: [{{from: [{{podSelector: {{matchLabels: {{app: asks}}}}}}], {SCTP_ONLY}}}]"
        ),
    );
    scene.settle();
    [asks, asked]
}

fn associations_are_judged(topology: Topology) {
    let lab = Lab::new(topology, Families::Dual);
    let scene = lab.scene("sctp");
    let [asks, asked] = pair(&scene);
    for &address in &asked.addresses {
        let own = asks.address(address);
        let server = echo(&asked.netns, (address, PORT).into());
        let mut stream = associate(&asks.netns, (own, 0).into(), (address, PORT).into());
        // More than fits into a packet.
        [1, 1000, 40_000].into_iter().for_each(|length| exchange(&mut stream, length));
        // Another port, another protocol, and the other way.
        is_denied(&scene, &asks, (address, PORT + 1).into(), (&asked, Direction::Ingress));
        scene.denied(&asks, &asked, PORT, At::ingress(&asked));
        is_denied(&scene, &asked, (own, PORT).into(), (&asked, Direction::Egress));
        exchange(&mut stream, 1000);
        drop(stream);
        server.join().unwrap();
    }
}

#[test]
fn associations_are_judged_where_pods_are_routed() {
    associations_are_judged(topology::ROUTED);
}

#[test]
fn associations_are_judged_on_a_bridge() {
    associations_are_judged(topology::BRIDGE);
}

/// One that lasts is cut when its policy goes, and goes on when it comes back.
#[test]
fn an_association_follows_the_policies() {
    let lab = Lab::new(topology::ROUTED, Families::V4);
    let scene = lab.scene("sctp");
    let [asks, asked] = pair(&scene);
    let address = asked.addresses[0];
    let _server = echo(&asked.netns, (address, PORT).into());
    let local = (asks.address(address), 0).into();
    let mut stream = associate(&asks.netns, local, (address, PORT).into());
    exchange(&mut stream, 1000);
    let both = "podSelector: {matchLabels: {app: asked}}, policyTypes: [Ingress, Egress]";
    scene.policy("asked", both);
    scene.settle();
    let dropped = lab.counted(&asked, Direction::Ingress, Reason::PolicyCut);
    stream.write_all(&[7; 100]).unwrap();
    eventually("the next packet is dropped", || {
        lab.counted(&asked, Direction::Ingress, Reason::PolicyCut) > dropped
    });
    scene.policy("asked", &format!("{both}, ingress: [{{{SCTP_ONLY}}}]"));
    scene.settle();
    // What was dropped is sent again.
    let mut received = [0; 100];
    stream.read_exact(&mut received).expect("the message comes back");
    assert_eq!(received, [7; 100]);
    exchange(&mut stream, 1000);
}

/// Both ends have two addresses, of either family, and tell them to each other: all are judged
/// alike, so the association goes on by the other ones when the first lead nowhere.
#[test]
fn an_association_of_several_addresses_goes_on_by_the_others() {
    let lab = Lab::new(topology::ROUTED, Families::Dual);
    let scene = lab.scene("sctp");
    let [asks, asked] = pair(&scene);
    let any: IpAddr = Ipv6Addr::UNSPECIFIED.into();
    let _server = echo(&asked.netns, (any, PORT).into());
    let v6 = asked.addresses.iter().find(|address| address.is_ipv6()).unwrap();
    // The first timeout of a path is a second, and the fifth in a row gives it up. And whoever has
    // a global address, as fd00::/8 are to SCTP, says nothing of private ones.
    for netns in [&asks.netns, &asked.netns] {
        for (name, value) in [
            ("path_max_retrans", "1"),
            ("rto_max", "1000"),
            ("rto_min", "200"),
            ("addr_scope_policy", "0"),
        ] {
            let path = format!("/proc/sys/net/sctp/{name}");
            netns.run(|| std::fs::write(&path, value)).unwrap().unwrap();
        }
    }
    let mut stream = associate(&asks.netns, (any, 0).into(), (*v6, PORT).into());
    exchange(&mut stream, 1000);
    // Where the first path led.
    asks.ip(&format!("route add blackhole {v6}"));
    exchange(&mut stream, 1000);
    let dropped = [(&asks, Direction::Egress), (&asked, Direction::Ingress)];
    let dropped = dropped.map(|(pod, way)| lab.counted(pod, way, Reason::Policy));
    assert_eq!(dropped, [0, 0], "a packet of the association was dropped");
}
