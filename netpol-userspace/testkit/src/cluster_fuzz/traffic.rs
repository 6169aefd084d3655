//! Random packets of all kinds between the pods of a random cluster: such that open flows, such
//! that belong to flows of before, errors about them, fragments in any order, and odd ones. Must
//! never know what becomes of them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::generate::Rng;
use crate::generate::service_world::ServiceWorld;
use crate::generate::world::{Probe, World};
use netpol_model::Direction;

use super::packets::{ACK, Body, FIN_ACK, Frame, Packet, Part, Quoted, RST, SYN, SYN_ACK};

/// A packet that was sent, to come back to.
struct Sent {
    pod: String,
    direction: Direction,
    packet: Packet,
}

/// Makes frames for one cluster.
pub struct Traffic {
    sent: Vec<Sent>,
    /// A client port or ICMP id that no packet of this cluster had before.
    next_port: u16,
    next_datagram: u16,
}

/// Whom the pods may speak to.
pub struct Surroundings<'a> {
    pub world: &'a World,
    pub services: &'a ServiceWorld,
    /// Addresses that make a difference.
    pub remotes: &'a [IpAddr],
}

/// How many packets are remembered.
const N_REMEMBERED: usize = 60;

/// A frame, and whether this node made it.
pub struct Made {
    pub frame: Frame,
    pub is_from_node: bool,
}

impl Traffic {
    pub fn new() -> Self {
        Self { sent: Vec::new(), next_port: 20_000, next_datagram: 0 }
    }

    /// A frame towards the pod with these addresses, or from it.
    pub fn frame(
        &mut self,
        rng: &mut Rng,
        pod: &str,
        own: &[IpAddr],
        direction: Direction,
        surroundings: &Surroundings<'_>,
    ) -> Made {
        let is_from_node = direction == Direction::Ingress && rng.chance(6);
        let packet = match rng.below(20) {
            0 => None,
            1..9 => self.follow_up(rng, pod, direction),
            _ => None,
        };
        let packet = packet.unwrap_or_else(|| {
            let packet = self.opening(rng, own, direction, surroundings);
            self.dress(rng, packet)
        });
        if has_flow(&packet) {
            self.remember(rng, pod, direction, &packet);
        }
        let frame = match rng.below(60) {
            0 => Frame::Arp,
            1 => Frame::Tagged(packet),
            2 => Frame::Other(*rng.pick(&[0x88cc, 0x0026, 0x8847, 0x8863, 0x8100, 0x0842])),
            _ => Frame::Ip(packet),
        };
        Made { frame, is_from_node }
    }

    fn remember(&mut self, rng: &mut Rng, pod: &str, direction: Direction, packet: &Packet) {
        let sent = Sent { pod: pod.to_owned(), direction, packet: packet.clone() };
        if self.sent.len() < N_REMEMBERED {
            self.sent.push(sent);
        } else {
            let index = rng.below(N_REMEMBERED);
            self.sent[index] = sent;
        }
    }

    /// A packet of a flow of its own, or none.
    fn opening(
        &mut self,
        rng: &mut Rng,
        own: &[IpAddr],
        direction: Direction,
        surroundings: &Surroundings<'_>,
    ) -> Packet {
        let to_service = match direction {
            Direction::Egress if rng.chance(30) => {
                surroundings.services.probe(rng, surroundings.world)
            }
            _ => None,
        };
        let probe = to_service
            .unwrap_or_else(|| surroundings.world.probes(rng, surroundings.remotes, 1)[0]);
        let local = own_address(rng, own, probe.remote.is_ipv6());
        let (source, destination) = match direction {
            Direction::Ingress => (probe.remote, local),
            Direction::Egress => (local, probe.remote),
        };
        let body = self.body(rng, &probe);
        let mut packet = Packet::plain(source, destination, body);
        if matches!(packet.body, Body::Icmp { .. }) {
            packet.hop_limit = *rng.pick(&[1, 255, 255, 64]);
        }
        packet
    }

    fn fresh_port(&mut self) -> u16 {
        self.next_port = self.next_port.checked_add(1).unwrap_or(20_000);
        self.next_port
    }

    fn body(&mut self, rng: &mut Rng, probe: &Probe) -> Body {
        let (source, destination) = (self.fresh_port(), probe.port);
        let is_v6 = probe.remote.is_ipv6();
        match (probe.protocol, is_v6) {
            (6, _) => {
                let usual = *rng.pick(&[SYN, SYN, SYN, SYN, ACK, SYN_ACK, RST, FIN_ACK]);
                let flags = if rng.chance(5) { rng.bits() as u8 } else { usual };
                Body::Tcp { source, destination, flags }
            }
            (17, _) => Body::Udp { source, destination },
            (132, _) => Body::Sctp { source, destination, chunk: *rng.pick(&[1, 1, 1, 0, 2, 10]) },
            (1, false) | (58, true) if rng.chance(60) => {
                let kinds: &[u8] = if is_v6 { &[128, 128, 129] } else { &[8, 8, 0, 13, 14, 17] };
                Body::Echo { kind: *rng.pick(kinds), id: source }
            }
            (1, false) => Body::Icmp { kind: *rng.pick(&OTHER_ICMP4), code: 0 },
            (58, true) => Body::Icmp { kind: *rng.pick(&OTHER_ICMP6), code: 0 },
            (protocol, _) => Body::Other(match rng.below(4) {
                0 => *rng.pick(if is_v6 { &OTHER6 } else { &OTHER4 }),
                _ => protocol,
            }),
        }
    }

    /// Options, extension headers, fragments: most packets have none of them.
    fn dress(&mut self, rng: &mut Rng, mut packet: Packet) -> Packet {
        if !rng.chance(30) {
            return packet;
        }
        let may_fragment = has_flow(&packet) && !matches!(packet.body, Body::Error { .. });
        if packet.is_v6() {
            let most = if rng.chance(10) { 10 } else { 3 };
            packet.extensions = extensions(rng, most);
        } else if rng.chance(60) {
            packet.options = 1 + rng.below(10) as u8;
        }
        if may_fragment && rng.chance(50) {
            self.next_datagram += 1;
            let id = self.next_datagram;
            packet.part = match rng.below(4) {
                0 => Part::Atomic,
                1 => Part::Later(id, 1 + rng.below(180) as u16),
                _ => Part::First(id),
            };
            if packet.is_v6() && rng.chance(30) {
                packet.inner_extensions = extensions(rng, 2);
            }
        }
        packet
    }

    /// Something that belongs to a packet of before.
    fn follow_up(&mut self, rng: &mut Rng, pod: &str, direction: Direction) -> Option<Packet> {
        let mine: Vec<&Sent> = self.sent.iter().filter(|sent| sent.pod == pod).collect();
        if mine.is_empty() {
            return None;
        }
        let sent = *rng.pick(&mine);
        let (before, is_same_way) = (sent.packet.clone(), sent.direction == direction);
        if rng.chance(25) {
            return Some(self.error(rng, before, is_same_way));
        }
        if let (true, Part::First(id)) = (is_same_way, before.part)
            && rng.chance(60)
        {
            // Another fragment of the datagram; its headers in front of the fragment header are
            // the same, and what would be ports are others.
            let mut later = before;
            later.part = Part::Later(id, 1 + rng.below(180) as u16);
            return Some(later);
        }
        if let (true, Part::Later(id, _)) = (is_same_way, before.part)
            && rng.chance(60)
        {
            // The first fragment comes after it.
            return Some(Packet { part: Part::First(id), ..before });
        }
        let before = before.undressed();
        let packet = if is_same_way { before } else { reversed(before) };
        let packet = Packet { body: continued(rng, packet.body, is_same_way), ..packet };
        Some(if rng.chance(20) { self.dress(rng, packet) } else { packet })
    }

    /// An ICMP error about a packet, sent by whoever may send one.
    fn error(&mut self, rng: &mut Rng, about: Packet, is_same_way: bool) -> Packet {
        // An error in the direction of the packet itself is about its answer.
        let about = if is_same_way { reversed(about) } else { about };
        let is_v6 = about.is_v6();
        let kinds: &[u8] = if is_v6 { &[1, 2, 3, 4] } else { &[3, 4, 11, 12] };
        let router = if is_v6 { "2001:db8::1" } else { "192.0.2.1" };
        let router = router.parse().expect("an address");
        let is_about_ours = about.source;
        let sender = if rng.chance(50) { about.destination } else { router };
        let destination = if rng.chance(90) { is_about_ours } else { router };
        let quoted = *rng.pick(&[
            Quoted::All,
            Quoted::All,
            Quoted::HeadersAnd8,
            Quoted::HeadersAnd8,
            Quoted::TooLittle,
        ]);
        let kind = *rng.pick(kinds);
        let body = Body::Error { kind, about: Box::new(about), quoted };
        let packet = Packet::plain(sender, destination, body);
        if rng.chance(20) { self.dress(rng, packet) } else { packet }
    }
}

const OTHER_ICMP4: [u8; 8] = [5, 9, 10, 15, 16, 30, 40, 255];
const OTHER_ICMP6: [u8; 13] = [130, 131, 132, 133, 134, 135, 136, 137, 143, 0, 139, 200, 255];
const OTHER4: [u8; 8] = [0, 2, 4, 41, 50, 51, 58, 255];
const OTHER6: [u8; 7] = [1, 2, 4, 41, 50, 59, 255];

fn has_flow(packet: &Packet) -> bool {
    !matches!(packet.body, Body::Icmp { .. } | Body::Error { .. })
}

fn extensions(rng: &mut Rng, most: usize) -> Vec<u8> {
    let n = rng.below(most + 1);
    (0..n).map(|_| *rng.pick(&[0, 43, 51, 60, 60, 135, 139, 140])).collect()
}

/// The pod's address of the family, now and then a stranger's.
fn own_address(rng: &mut Rng, own: &[IpAddr], is_v6: bool) -> IpAddr {
    let stranger = if is_v6 {
        IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x77))
    } else {
        IpAddr::V4(Ipv4Addr::new(10, 77, 7, 7))
    };
    let found = own.iter().copied().find(|address| address.is_ipv6() == is_v6);
    if rng.chance(5) { stranger } else { found.unwrap_or(stranger) }
}

fn reversed(packet: Packet) -> Packet {
    let body = match packet.body {
        Body::Tcp { source, destination, flags } => {
            Body::Tcp { source: destination, destination: source, flags }
        }
        Body::Udp { source, destination } => Body::Udp { source: destination, destination: source },
        Body::Sctp { source, destination, chunk } => {
            Body::Sctp { source: destination, destination: source, chunk }
        }
        body => body,
    };
    Packet { source: packet.destination, destination: packet.source, body, ..packet }
}

/// What comes next in a connection.
fn continued(rng: &mut Rng, body: Body, is_same_way: bool) -> Body {
    match body {
        Body::Tcp { source, destination, .. } => {
            let flags: &[u8] = match is_same_way {
                true => &[ACK, ACK, FIN_ACK, SYN, RST],
                false => &[SYN_ACK, SYN_ACK, ACK, ACK, FIN_ACK, RST, SYN],
            };
            Body::Tcp { source, destination, flags: *rng.pick(flags) }
        }
        Body::Sctp { source, destination, .. } => {
            let chunks: &[u8] = if is_same_way { &[1, 0, 10] } else { &[2, 2, 0, 11, 1] };
            Body::Sctp { source, destination, chunk: *rng.pick(chunks) }
        }
        Body::Echo { kind, id } if !is_same_way && rng.chance(85) => {
            let kind = match kind {
                8 => 0,
                0 => 8,
                13 => 14,
                14 => 13,
                17 => 18,
                18 => 17,
                128 => 129,
                _ => 128,
            };
            Body::Echo { kind, id }
        }
        body => body,
    }
}
