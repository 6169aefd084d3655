//! Floods on the wire, from a pod and from outside, of far more flows than the table holds: 1,000
//! idle flows of another pod, isolated both ways, are all still there, and each late answer gets to
//! it. Needs root and the eBPF object.
//!
//! `NETPOL_CASES` is how many seconds each flood takes.

use netpol_testkit::world;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use netpol_model::Direction;
use netpol_testkit::generate::Rng;
use netpol_testkit::lab::packets;
use netpol_testkit::lab::wire::{IPV4, Wire};
use netpol_testkit::lab::{Families, Lab, Pod, Scene, topology};
use rustix::process::{Resource, getrlimit, setrlimit};

/// Seconds that CI floods.
const SECONDS: u64 = 3;
/// Idle flows of each protocol.
const IDLE: usize = 500;
/// What the table holds, and how many packets a flood has at least.
const MOST_FLOWS: &str = "16384";
const LEAST: u64 = 100_000;

/// The pod with idle flows, and the other ends of these.
struct Quiet {
    pod: Pod,
    udp: UdpSocket,
    asked: Vec<SocketAddr>,
    accepted: Vec<TcpStream>,
    streams: Vec<TcpStream>,
    sockets: Vec<UdpSocket>,
}

impl Quiet {
    fn new(scene: &Scene<'_>) -> Self {
        let server = scene.pod("server", 2, "{app: server}");
        let pod = scene.pod("quiet", 1, "{app: quiet}");
        scene.policy(
            "quiet",
            "podSelector: {matchLabels: {app: quiet}}, policyTypes: [Ingress, Egress], \
             egress: [{to: [{podSelector: {matchLabels: {app: server}}}]}]",
        );
        scene.settle();
        let to = SocketAddr::new(v4(&server).into(), 80);
        let listener = server.netns.run(|| TcpListener::bind(to)).unwrap().unwrap();
        let udp = server.netns.run(|| UdpSocket::bind(to)).unwrap().unwrap();
        udp.set_read_timeout(Some(world::PATIENCE)).unwrap();
        let (mut accepted, mut asked) = (Vec::new(), Vec::new());
        let (mut streams, mut sockets) = (Vec::new(), Vec::new());
        for _ in 0..IDLE {
            streams.push(pod.netns.run(|| TcpStream::connect(to)).unwrap().unwrap());
            accepted.push(listener.accept().unwrap().0);
            let socket = pod.netns.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap().unwrap();
            socket.send_to(b"?", to).unwrap();
            let from = udp.recv_from(&mut [0; 8]).unwrap().1;
            // Answered once, so that it has a claim to its room.
            udp.send_to(b"!", from).unwrap();
            socket.set_read_timeout(Some(world::PATIENCE)).unwrap();
            socket.recv(&mut [0; 8]).unwrap();
            asked.push(from);
            sockets.push(socket);
        }
        Self { pod, udp, asked, accepted, streams, sockets }
    }

    /// Sends a late answer in each, and returns how many never come.
    fn n_lost(&mut self) -> usize {
        self.accepted.iter_mut().for_each(|stream| stream.write_all(b"late").unwrap());
        for to in &self.asked {
            self.udp.send_to(b"late", to).unwrap();
        }
        let patience = Some(Duration::from_secs(5));
        let mut n_lost = 0;
        for stream in &mut self.streams {
            stream.set_read_timeout(patience).unwrap();
            n_lost += usize::from(stream.read_exact(&mut [0; 4]).is_err());
        }
        for socket in &self.sockets {
            socket.set_read_timeout(patience).unwrap();
            n_lost += usize::from(socket.recv(&mut [0; 8]).is_err());
        }
        n_lost
    }
}

fn v4(pod: &Pod) -> Ipv4Addr {
    let mut all = pod.addresses.iter();
    all.find_map(|address| match address {
        IpAddr::V4(address) => Some(*address),
        IpAddr::V6(_) => None,
    })
    .unwrap()
}

fn seconds() -> u64 {
    let text = std::env::var("NETPOL_CASES").ok();
    text.map_or(SECONDS, |text| text.parse().unwrap())
}

/// Sends frames that `make` makes of random numbers until the time is over, and no fewer than fill
/// the table several times; how many.
fn flood(wire: &Wire, to: [u8; 6], mut make: impl FnMut(&mut Rng) -> Vec<u8>) -> u64 {
    let (mut rng, mut n_sent) = (Rng::new(1), 0);
    let end = Instant::now() + Duration::from_secs(seconds());
    wire.deafen();
    while Instant::now() < end || n_sent < LEAST {
        for _ in 0..100 {
            wire.send_as(to, IPV4, &make(&mut rng));
        }
        n_sent += 100;
    }
    n_sent
}

/// A SYN or a datagram between these, to and from ports that change.
fn packet(rng: &mut Rng, from: Ipv4Addr, to: Ipv4Addr) -> Vec<u8> {
    let bits = rng.bits();
    let ports = (1024 + (bits >> 20) as u16 % 60_000, 1 + (bits >> 40) as u16 % 60_000);
    let (from, to): (IpAddr, IpAddr) = (from.into(), to.into());
    if bits & 1 == 0 {
        packets::tcp_syn(from, to, ports, [7; 8])
    } else {
        packets::udp(from, to, ports, [7; 8])
    }
}

fn with_room_for_sockets() {
    let limit = getrlimit(Resource::Nofile);
    let raised = rustix::process::Rlimit { current: limit.maximum, ..limit };
    setrlimit(Resource::Nofile, raised).unwrap();
}

fn lab() -> Lab {
    with_room_for_sockets();
    let arguments = ["--flow-table-size", MOST_FLOWS];
    Lab::with_arguments(topology::ROUTED, Families::V4, &arguments)
}

/// The quiet pod has lost nothing, whatever the flooded or flooding one holds.
fn nothing_is_lost(name: &str, lab: &Lab, quiet: &mut Quiet, flooded: &Pod, n_sent: u64) {
    let uses = [&quiet.pod, flooded].map(|pod| lab.flow_use(pod));
    let n_lost = quiet.n_lost();
    println!(
        "{name}: {n_sent} packets in {} s; of {} idle flows {} made room and {n_lost} answers were \
         lost; the other pod displaced {} of its own flows, and {} found no room",
        seconds(),
        2 * IDLE,
        uses[0].given + uses[0].displaced,
        uses[1].displaced,
        uses[1].refused
    );
    let table: u64 = MOST_FLOWS.parse().unwrap();
    assert!(uses[1].displaced + uses[1].refused > table, "the table was not full: {:?}", uses[1]);
    assert_eq!((uses[0].given, uses[0].displaced, uses[0].refused), (0, 0, 0));
    assert_eq!(n_lost, 0);
    let drops = lab.counters(&quiet.pod, Direction::Ingress);
    assert_eq!(netpol_datapath::observe::drops(&drops), 0);
}

#[test]
fn by_a_pod() {
    let lab = lab();
    let scene = lab.scene("by-a-pod");
    let mut quiet = Quiet::new(&scene);
    let pod = scene.pod("flood", 1, "{app: flood}");
    scene.policy(
        "flood",
        "podSelector: {matchLabels: {app: flood}}, policyTypes: [Ingress, Egress], egress: [{}]",
    );
    scene.settle();
    let (own, gateway) = (v4(&pod), pod.gateway());
    let n_sent = flood(pod.wire(), gateway, |rng| {
        let to = Ipv4Addr::from(0x0a63_0000 | rng.bits() as u32 & 0xffff);
        packet(rng, own, to)
    });
    nothing_is_lost("by a pod", &lab, &mut quiet, &pod, n_sent);
}

#[test]
fn from_outside() {
    let lab = lab();
    let scene = lab.scene("from-outside");
    let mut quiet = Quiet::new(&scene);
    let pod = scene.pod("open", 1, "{app: open}");
    scene.policy(
        "open",
        "podSelector: {matchLabels: {app: open}}, policyTypes: [Ingress, Egress], ingress: [{}]",
    );
    scene.settle();
    let (to, wire) = (v4(&pod), Wire::open(&lab.outside));
    let router = lab.outside_gateway();
    let n_sent = flood(&wire, router, |rng| {
        let from = Ipv4Addr::from(0x0b00_0000 | rng.bits() as u32 & 0xff_ffff);
        packet(rng, from, to)
    });
    nothing_is_lost("from outside", &lab, &mut quiet, &pod, n_sent);
}
