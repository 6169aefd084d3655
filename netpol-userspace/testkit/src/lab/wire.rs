//! Frames and raw packets, sent and recorded inside a namespace. Must never judge them.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::num::NonZeroU32;
use std::os::fd::OwnedFd;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use netpol_isolation::netns::Netns;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketAddrAny, SocketFlags, SocketType,
};

use super::{Pod, packets};
use crate::world::eventually;

/// `ETH_P_ALL` of linux/if_ether.h: every frame, before anything can drop it.
pub const EVERYTHING: u16 = 3;
/// `IPPROTO_RAW`: the packet brings its own IP header.
const HEADER_INCLUDED: u32 = 255;
/// An ethertype for experiments (IEEE 802).
pub const EXPERIMENTAL: u16 = 0x88b5;

/// Ethertype of a VLAN tag (IEEE 802.1Q).
const VLAN: u16 = 0x8100;
/// Ethertypes of what pods speak.
pub const IPV4: u16 = 0x0800;
pub const ARP: u16 = 0x0806;
pub const IPV6: u16 = 0x86dd;
/// All stations.
pub const BROADCAST: [u8; 6] = [0xff; 6];

/// What passes through a namespace: a packet socket and a thread that writes down what it sees.
pub struct Wire {
    socket: Arc<OwnedFd>,
    frames: Arc<Mutex<Vec<Vec<u8>>>>,
    /// How to name `eth0` to the socket.
    interface: Option<SocketAddrAny>,
    /// The link-layer address of `eth0`.
    own: [u8; 6],
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Wire {
    /// Records what comes and goes at `eth0` of this namespace, and can send there.
    pub fn open(netns: &Netns) -> Self {
        let mut wire = Self::record(netns, EVERYTHING);
        (wire.interface, wire.own) = wire.learn(netns);
        let (socket, frames, stop) = (wire.socket.clone(), wire.frames.clone(), wire.stop.clone());
        wire.thread = Some(thread::spawn(move || record(&socket, &frames, &stop)));
        wire
    }

    /// The node's end of a pod's interface: what is sent here goes towards the pod. Records
    /// nothing. Frames get the node's link-layer address that the pod sees.
    pub fn towards(node: &Netns, pod: &Pod) -> Self {
        let mut wire = Self::record(node, EVERYTHING);
        let tag = packets::tag();
        pod.wire().send_as(BROADCAST, EXPERIMENTAL, &tag);
        let mut buffer = vec![0; 2048];
        eventually("the node sees the pod's frame", || {
            // The first place it comes to, even if a bridge hands it on, is the pod's interface.
            match rustix::net::recvfrom(&wire.socket, &mut buffer, RecvFlags::empty()) {
                Ok((_, length, address)) if buffer[14..length].starts_with(&tag) => {
                    wire.interface = address;
                    true
                }
                _ => false,
            }
        });
        wire
    }

    /// Records the frames of one ethertype that come to this namespace, on any interface: only
    /// those that no program on its way has dropped.
    pub fn tap(netns: &Netns, ethertype: u16) -> Self {
        let mut wire = Self::record(netns, ethertype);
        let (socket, frames, stop) = (wire.socket.clone(), wire.frames.clone(), wire.stop.clone());
        wire.thread = Some(thread::spawn(move || record(&socket, &frames, &stop)));
        wire
    }

    fn record(netns: &Netns, ethertype: u16) -> Self {
        Self {
            socket: Arc::new(netns.run(|| packet_socket(ethertype)).unwrap()),
            frames: Arc::default(),
            interface: None,
            own: [0; 6],
            stop: Arc::default(),
            thread: None,
        }
    }

    /// rustix knows no packet addresses, but hands on those that the kernel makes: a frame that
    /// leaves by `eth0` brings the address of that interface. (Frames on loopback have no source.)
    fn learn(&self, netns: &Netns) -> (Option<SocketAddrAny>, [u8; 6]) {
        let own = own_address(netns);
        let mut found = (None, own);
        eventually("a frame leaves by eth0", || {
            poke(netns);
            let mut buffer = vec![0; 2048];
            while let Ok((_, length, address)) =
                rustix::net::recvfrom(&self.socket, &mut buffer, RecvFlags::DONTWAIT)
            {
                if length >= 14 && buffer[6..12] == own {
                    found.0 = address;
                    return true;
                }
            }
            false
        });
        found
    }

    /// Sends this frame, from its link-layer header on. A program that drops it on its way out,
    /// in this very namespace, makes the kernel say that there is no buffer space.
    pub fn send(&self, frame: &[u8]) {
        match rustix::net::sendto(&self.socket, frame, SendFlags::empty(), self.interface()) {
            Ok(_) | Err(Errno::NOBUFS) => {}
            Err(error) => panic!("cannot send a frame: {error}"),
        }
    }

    /// Sends this from the interface's own link-layer address.
    pub fn send_as(&self, destination: [u8; 6], ethertype: u16, payload: &[u8]) {
        let mut frame = destination.to_vec();
        frame.extend(self.own);
        frame.extend(ethertype.to_be_bytes());
        frame.extend(payload);
        self.send(&frame);
    }

    /// The same with a VLAN tag.
    pub fn send_tagged(&self, destination: [u8; 6], vlan: u16, ethertype: u16, payload: &[u8]) {
        let mut inner = Vec::from(vlan.to_be_bytes());
        inner.extend(ethertype.to_be_bytes());
        inner.extend(payload);
        self.send_as(destination, VLAN, &inner);
    }

    /// How to name `eth0` to a packet socket of this namespace.
    pub fn interface(&self) -> &SocketAddrAny {
        self.interface.as_ref().expect("the wire of an interface")
    }

    /// Records no more, and forgets what it has recorded.
    pub fn deafen(&self) {
        self.stop.store(true, Ordering::Relaxed);
        self.frames.lock().unwrap().clear();
    }

    /// The link-layer address of `eth0`.
    pub fn own_address(&self) -> [u8; 6] {
        self.own
    }

    /// What came in so far, in order: everything that does not have this end's source address.
    pub fn received(&self) -> Vec<Vec<u8>> {
        let frames = self.frames.lock().unwrap();
        frames.iter().filter(|frame| frame[6..12] != self.own).cloned().collect()
    }

    /// How many frames came in that hold these bytes.
    pub fn count(&self, tag: &[u8]) -> usize {
        let holds = |frame: &Vec<u8>| frame.windows(tag.len()).any(|window| window == tag);
        self.received().iter().filter(|frame| holds(frame)).count()
    }

    /// How many frames came in that hold exactly this after their link-layer header.
    pub fn count_whole(&self, payload: &[u8]) -> usize {
        self.received().iter().filter(|frame| &frame[14..] == payload).count()
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn record(socket: &OwnedFd, frames: &Mutex<Vec<Vec<u8>>>, stop: &AtomicBool) {
    let mut buffer = vec![0; 1 << 16];
    while !stop.load(Ordering::Relaxed) {
        // Ends by itself after a while (see [`packet_socket`]), to look at `stop`.
        if let Ok((length, _)) = rustix::net::recv(socket, &mut buffer, RecvFlags::empty()) {
            frames.lock().unwrap().push(buffer[..length].to_vec());
        }
    }
}

pub fn packet_socket(ethertype: u16) -> OwnedFd {
    // The protocol number is in network byte order here, in the low half.
    let protocol = NonZeroU32::new(u32::from(ethertype.to_be())).map(Protocol::from_raw);
    let family = AddressFamily::PACKET;
    let socket =
        rustix::net::socket_with(family, SocketType::RAW, SocketFlags::CLOEXEC, protocol).unwrap();
    let period = Some(Duration::from_millis(20));
    let which = rustix::net::sockopt::Timeout::Recv;
    rustix::net::sockopt::set_socket_timeout(&socket, which, period).unwrap();
    socket
}

/// Makes the namespace send something by `eth0`.
fn poke(netns: &Netns) {
    let send = || {
        for (local, remote) in [("0.0.0.0:0", "203.0.113.9:9"), ("[::]:0", "[2001:db8::9]:9")] {
            // One of the families may not be there.
            if let Ok(socket) = UdpSocket::bind(local) {
                let _ = socket.send_to(&[0; 4], remote);
            }
        }
    };
    netns.run(send).unwrap();
}

/// The link-layer address of `eth0`.
fn own_address(netns: &Netns) -> [u8; 6] {
    let run = || Command::new("ip").args(["-j", "link", "show", "eth0"]).output().unwrap();
    let output = netns.run(run).unwrap();
    let links: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let text = links[0]["address"].as_str().unwrap();
    link_address(text)
}

/// A link-layer address from its usual form.
pub fn link_address(text: &str) -> [u8; 6] {
    let bytes = text.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap());
    bytes.collect::<Vec<u8>>().try_into().unwrap()
}

/// Sends an IP packet with its own header (and, for IPv6, extension headers) from a namespace,
/// routed by its destination; the header's source may be anything.
pub fn send_packet(netns: &Netns, packet: &[u8]) {
    let destination = destination(packet);
    let family = if destination.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let send = || {
        let protocol = NonZeroU32::new(HEADER_INCLUDED).map(Protocol::from_raw);
        let socket =
            rustix::net::socket_with(family, SocketType::RAW, SocketFlags::CLOEXEC, protocol);
        let to = SocketAddr::new(destination, 0);
        rustix::net::sendto(socket.unwrap(), packet, SendFlags::empty(), &to)
    };
    let sent = netns.run(send).unwrap();
    sent.unwrap_or_else(|error| panic!("cannot send a packet to {destination}: {error}"));
}

fn destination(packet: &[u8]) -> IpAddr {
    if packet[0] >> 4 == 4 {
        IpAddr::from(<[u8; 4]>::try_from(&packet[16..20]).unwrap())
    } else {
        IpAddr::from(<[u8; 16]>::try_from(&packet[24..40]).unwrap())
    }
}
