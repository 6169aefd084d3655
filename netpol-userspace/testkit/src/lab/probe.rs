//! Traffic with a known fate. An allowed probe waits patiently for its answer or arrival. A denied
//! one is counted, once, where and why it is said to be dropped, and has not arrived then: no
//! waiting for something not to happen.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::thread;
use std::time::{Duration, Instant};

use netpol_common::layout::Reason;
use netpol_isolation::netns::Netns;
use netpol_model::Direction;
use rustix::net::sockopt::Timeout;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::packets::{self, Tag};
use super::wire::send_packet;
use super::{Pod, Scene};
use crate::world::{PATIENCE, eventually};

/// TCP or UDP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    Tcp,
    Udp,
}

/// Where and why a packet is dropped.
#[derive(Clone, Copy)]
pub struct At<'a> {
    pod: &'a Pod,
    direction: Direction,
    reason: Reason,
}

impl<'a> At<'a> {
    /// On its way to this pod, because no policy allows it.
    pub fn ingress(pod: &'a Pod) -> Self {
        Self { pod, direction: Direction::Ingress, reason: Reason::Policy }
    }

    /// On its way from this pod, because no policy allows it.
    pub fn egress(pod: &'a Pod) -> Self {
        Self { pod, direction: Direction::Egress, reason: Reason::Policy }
    }

    /// For another reason.
    pub fn because(self, reason: Reason) -> Self {
        Self { reason, ..self }
    }
}

const BOTH: [Protocol; 2] = [Protocol::Udp, Protocol::Tcp];

impl Scene<'_> {
    // === Pods, TCP and UDP, all families ===

    /// TCP and UDP from one pod to a port of another get answers.
    pub fn allowed(&self, from: &Pod, to: &Pod, port: u16) {
        self.allowed_from(&from.netns, &to.addresses, port);
    }

    /// Neither TCP nor UDP gets there.
    pub fn denied(&self, from: &Pod, to: &Pod, port: u16, at: At<'_>) {
        for &address in &to.addresses {
            for protocol in BOTH {
                self.denies(&from.netns, SocketAddr::new(address, port), protocol, Some(to), at);
            }
        }
    }

    /// TCP and UDP from any namespace to a port of all these addresses get answers.
    pub fn allowed_from(&self, from: &Netns, to: &[IpAddr], port: u16) {
        for &address in to {
            for protocol in BOTH {
                self.allows(from, SocketAddr::new(address, port), protocol);
            }
        }
    }

    /// Neither TCP nor UDP from any namespace is answered, dropped there.
    pub fn denied_from(&self, from: &Netns, to: &[IpAddr], port: u16, at: At<'_>) {
        for &address in to {
            for protocol in BOTH {
                self.denies(from, SocketAddr::new(address, port), protocol, None, at);
            }
        }
    }

    // === One probe ===

    pub fn allows(&self, from: &Netns, to: SocketAddr, protocol: Protocol) {
        self.allows_as(from, any(to), to, protocol);
    }

    /// With this local address and port.
    pub fn allows_as(&self, from: &Netns, local: SocketAddr, to: SocketAddr, protocol: Protocol) {
        self.probed();
        let done = match protocol {
            Protocol::Udp => from.run(|| ask(local, to)),
            Protocol::Tcp => from.run(|| exchange(local, to)),
        };
        done.unwrap().unwrap_or_else(|error| {
            let met = self.lab.all_counters();
            panic!("{protocol:?} from {local} to {to} is not answered: {error}\n{met}")
        });
    }

    /// `receiver`: who must not see it.
    pub fn denies(
        &self,
        from: &Netns,
        to: SocketAddr,
        protocol: Protocol,
        receiver: Option<&Pod>,
        at: At<'_>,
    ) {
        self.denies_as(from, any(to), to, protocol, receiver, at);
    }

    /// With this local address and port.
    pub fn denies_as(
        &self,
        from: &Netns,
        local: SocketAddr,
        to: SocketAddr,
        protocol: Protocol,
        receiver: Option<&Pod>,
        at: At<'_>,
    ) {
        self.probed();
        // Its recording starts before the probe.
        let wire = receiver.map(Pod::wire);
        let before = self.count(at);
        let what = format!("{protocol:?} to {to}");
        match protocol {
            Protocol::Udp => {
                let tag = packets::tag();
                let socket = from.run(|| udp_to(local, to)).unwrap();
                socket.send(&tag).unwrap();
                self.is_dropped(&what, before, at, || {
                    socket.recv(&mut [0; 8]).is_ok()
                        || wire.is_some_and(|wire| wire.count(&tag) > 0)
                });
            }
            Protocol::Tcp => {
                let socket = from.run(|| connecting(local, to)).unwrap();
                self.is_dropped(&what, before, at, || {
                    rustix::net::getpeername(&socket).is_ok_and(|peer| peer.is_some())
                });
            }
        }
    }

    fn count(&self, at: At<'_>) -> u64 {
        self.lab.counted(at.pod, at.direction, at.reason)
    }

    /// Waits until a packet is counted at `at`, and insists that it has not passed.
    fn is_dropped(
        &self,
        what: &str,
        before: u64,
        at: At<'_>,
        mut has_passed: impl FnMut() -> bool,
    ) {
        let end = Instant::now() + PATIENCE;
        loop {
            assert!(!has_passed(), "{what} passes");
            if self.count(at) > before {
                return;
            }
            let At { pod, direction, reason } = at;
            assert!(
                Instant::now() < end,
                "{what} neither passes nor is counted at {} {direction:?} {reason:?}: {:?}",
                pod.name,
                self.lab.counters(pod, direction)
            );
            thread::sleep(Duration::from_millis(2));
        }
    }

    // === Packets with their own headers ===

    /// This packet, which holds the tag, comes out at the pod.
    pub fn arrives(&self, from: &Netns, packet: &[u8], tag: Tag, to: &Pod) {
        self.all_arrive(from, &[packet.to_vec()], &[tag], to);
    }

    /// These packets are sent, and everything tagged comes out at the pod.
    pub fn all_arrive(&self, from: &Netns, packets: &[Vec<u8>], tags: &[Tag], to: &Pod) {
        self.probed();
        let wire = to.wire();
        packets.iter().for_each(|packet| send_packet(from, packet));
        let what = format!("{} receives what was sent", to.name);
        let end = Instant::now() + PATIENCE;
        while !tags.iter().all(|tag| wire.count(tag) > 0) {
            assert!(Instant::now() < end, "never: {what}\n{}", self.lab.all_counters());
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// This packet is dropped there and does not come out at the pod.
    pub fn is_lost(&self, from: &Netns, packet: &[u8], tag: Tag, to: &Pod, at: At<'_>) {
        self.probed();
        let wire = to.wire();
        let before = self.count(at);
        send_packet(from, packet);
        self.is_dropped("the packet", before, at, || wire.count(&tag) > 0);
    }

    /// What `send` sends is dropped there, by this many packets.
    pub fn drops_of(&self, packets: u64, at: At<'_>, send: impl FnOnce()) {
        self.loses(packets, at, at.pod, &[], send);
    }

    /// The same, and nothing of what is tagged comes out at this pod until then.
    pub fn loses(&self, packets: u64, at: At<'_>, to: &Pod, tags: &[Tag], send: impl FnOnce()) {
        self.probed();
        let before = self.count(at);
        send();
        let has_passed = || tags.iter().any(|tag| to.wire().count(tag) > 0);
        self.is_dropped("what was sent", before + packets - 1, at, has_passed);
    }

    /// Sends this many bytes each way over a connection from one namespace to an address of another.
    pub fn transfer(&self, from: &Netns, to: &Netns, address: SocketAddr, length: usize) {
        self.probed();
        let listener = to.run(|| TcpListener::bind(address).unwrap()).unwrap();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream.set_write_timeout(Some(PATIENCE)).unwrap();
            let mut bytes = vec![0; length];
            stream.read_exact(&mut bytes).expect("the whole arrives");
            stream.write_all(&bytes).expect("the answer leaves");
        });
        let mut stream = from.run(|| connect(any(address), address)).unwrap().unwrap();
        let sent: Vec<u8> = (0..length).map(|number| number as u8).collect();
        stream.write_all(&sent).expect("the whole leaves");
        let mut received = vec![0; length];
        stream.read_exact(&mut received).expect("the answer arrives");
        assert!(sent == received, "the bytes of a TCP connection are changed");
        server.join().unwrap();
    }

    /// An echo request is answered, in each family.
    pub fn pings(&self, from: &Pod, to: &Pod) {
        for &destination in &to.addresses {
            let (source, tag) = (from.address(destination), packets::tag());
            self.probed();
            send_packet(&from.netns, &packets::ping(source, destination, 77, tag));
            eventually("the echo request is answered", || from.wire().count(&tag) > 0);
        }
    }

    /// An echo request is dropped there.
    pub fn ping_is_lost(&self, from: &Pod, to: &Pod, at: At<'_>) {
        for &destination in &to.addresses {
            let (source, tag) = (from.address(destination), packets::tag());
            self.is_lost(&from.netns, &packets::ping(source, destination, 78, tag), tag, to, at);
        }
    }
}

fn any(family_of: SocketAddr) -> SocketAddr {
    let address: IpAddr = match family_of {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    (address, 0).into()
}

/// A UDP socket that talks to this address alone and does not wait.
fn udp_to(local: SocketAddr, to: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind(local).unwrap();
    socket.connect(to).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket
}

/// A question that gets its answer; one packet, as nothing loses any here.
fn ask(local: SocketAddr, to: SocketAddr) -> std::io::Result<()> {
    let socket = udp_to(local, to);
    socket.set_nonblocking(false)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send(&packets::tag())?;
    socket.recv(&mut [0; 8]).map(drop)
}

fn exchange(local: SocketAddr, to: SocketAddr) -> std::io::Result<()> {
    let mut stream = connect(local, to)?;
    stream.write_all(b"x")?;
    stream.read_exact(&mut [0])
}

/// A connection, patiently.
fn connect(local: SocketAddr, to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = tcp_socket(local, SocketFlags::CLOEXEC);
    let patience = Some(PATIENCE);
    for which in [Timeout::Recv, Timeout::Send] {
        rustix::net::sockopt::set_socket_timeout(&socket, which, patience)?;
    }
    rustix::net::connect(&socket, &to)?;
    Ok(socket.into())
}

/// A connection that has been started and that nobody waits for.
fn connecting(local: SocketAddr, to: SocketAddr) -> OwnedFd {
    let socket = tcp_socket(local, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK);
    match rustix::net::connect(&socket, &to) {
        Ok(()) | Err(rustix::io::Errno::INPROGRESS) => socket,
        Err(error) => panic!("cannot connect to {to}: {error}"),
    }
}

fn tcp_socket(local: SocketAddr, flags: SocketFlags) -> OwnedFd {
    let family = if local.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None).unwrap();
    rustix::net::bind(&socket, &local).unwrap();
    socket
}
