//! Frames of all kinds from a seed: most are nearly what somebody would send. Must never know what
//! becomes of them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::generate::Rng;

use crate::hostile::attack::Attack;
use crate::hostile::frames::{
    DOT1AD, DOT1Q, MPLS, OLD_QINQ, PPPOE, RARP, group_link, link_local, solicited_node,
};
use crate::hostile::ways::pair;
use crate::lab::wire::{ARP, BROADCAST, EXPERIMENTAL, IPV4, IPV6};

/// Longer frames than this the interface does not take.
const MOST: usize = 1400;
/// Tunnels in tunnels.
const DEEPEST: usize = 3;

pub struct Maker {
    /// Stands in every payload that has room for it.
    pub token: [u8; 8],
    link: [u8; 6],
    links: Vec<[u8; 6]>,
    own4: Ipv4Addr,
    own6: Ipv6Addr,
    all4: Vec<Ipv4Addr>,
    all6: Vec<Ipv6Addr>,
}

impl Maker {
    pub fn new(attack: &Attack<'_>, rng: &mut Rng) -> Self {
        let (stage, link) = (attack.stage, attack.sender.link);
        let (own4, own6) = pair(&attack.attacker.addresses);
        let mut links = vec![attack.gateway; 8];
        links.extend(stage.others().map(|pod| pod.wire().own_address()));
        links.extend([link, BROADCAST, [0x33, 0x33, 0, 0, 0, 1], [1, 0, 0x5e, 0, 0, 0xfb]]);
        links.extend([[0x33, 0x33, 0, 0, 0, 2], [1, 0x80, 0xc2, 0, 0, 0], [2, 0, 0, 0, 0, 9]]);
        let (mut all4, mut all6) = (vec![own4; 2], vec![own6; 2]);
        for address in stage.destinations() {
            match address {
                IpAddr::V4(address) => all4.push(address),
                IpAddr::V6(address) => all6.push(address),
            }
        }
        let more = ["224.0.0.1", "224.0.0.22", "255.255.255.255", "127.0.0.1", "169.254.169.254"];
        all4.extend(more.map(|text| text.parse::<Ipv4Addr>().unwrap()));
        all4.extend(["0.0.0.0", "10.244.1.255"].map(|text| text.parse::<Ipv4Addr>().unwrap()));
        let more = ["ff02::1", "ff02::2", "ff02::16", "ff05::2", "fe80::1", "::", "::1"];
        all6.extend(more.map(|text| text.parse::<Ipv6Addr>().unwrap()));
        let pods = [&stage.free, &stage.victim];
        all6.extend(pods.map(|pod| link_local(pod.wire().own_address())));
        all6.extend([solicited_node(own6), solicited_node(pair(&stage.free.addresses).1)]);
        all6.push(link_local(link));
        Self { token: rng.bits().to_be_bytes(), link, links, own4, own6, all4, all6 }
    }

    /// A whole frame.
    pub fn frame(&self, rng: &mut Rng) -> Vec<u8> {
        self.frame_within(rng, 0)
    }

    /// Gives a frame link-layer addresses, the source mostly the right one.
    pub fn address(&self, rng: &mut Rng, frame: &mut [u8]) {
        frame[..6].copy_from_slice(&self.links[rng.below(self.links.len())]);
        frame[6..12].copy_from_slice(&self.some_link(rng));
    }

    fn frame_within(&self, rng: &mut Rng, depth: usize) -> Vec<u8> {
        let mut frame = vec![0; 12];
        self.address(rng, &mut frame);
        let (ethertype, payload) = match rng.below(20) {
            0..=2 => (ARP, self.arp(rng)),
            3..=8 => (IPV4, self.v4(rng, depth)),
            9..=17 => {
                let (packet, link) = self.v6(rng, depth);
                if let Some(link) = link {
                    frame[..6].copy_from_slice(&link);
                }
                (IPV6, packet)
            }
            18 => {
                let kinds = [RARP, MPLS, PPPOE, EXPERIMENTAL, 0x88cc, 0x6558, 0x894f, 4, 60];
                (*rng.pick(&kinds), self.payload(rng))
            }
            _ => (*rng.pick(&[IPV4, IPV6, ARP]), self.payload(rng)),
        };
        if rng.below(10) == 0 {
            for _ in 0..=rng.below(3) {
                frame.extend(rng.pick(&[DOT1Q, DOT1Q, DOT1AD, OLD_QINQ]).to_be_bytes());
                frame.extend(rng.pick(&[0_u16, 0x2000, 1, 100, 4095]).to_be_bytes());
            }
        }
        frame.extend(ethertype.to_be_bytes());
        frame.extend(payload);
        match rng.below(20) {
            0 => frame.truncate(14 + rng.below(frame.len() - 13)),
            1 => frame.extend(self.payload(rng)),
            _ => {}
        }
        frame.truncate(14 + MOST);
        frame
    }

    /// Something, with the token in it.
    fn payload(&self, rng: &mut Rng) -> Vec<u8> {
        let lengths = [0, 1, 8, 16, 20, 60, 200, 1200];
        let mut bytes = self.token.to_vec();
        bytes.resize(8 + rng.pick(&lengths), rng.bits() as u8);
        bytes
    }

    // === ARP ===

    fn arp(&self, rng: &mut Rng) -> Vec<u8> {
        let mut message = vec![0, 1, 8, 0, 6, 4, 0];
        message.push(*rng.pick(&[1, 1, 2, 2, 0, 3, 8]));
        message.extend(self.some_link(rng));
        message.extend(self.source4(rng).octets());
        message.extend(rng.pick(&[[0; 6], BROADCAST, self.link]));
        message.extend(rng.pick(&self.all4).octets());
        if rng.below(4) == 0 {
            let length = *rng.pick(&[46, 60, 100]);
            message.resize(length, 0);
        }
        if rng.below(8) == 0 {
            message.extend(self.payload(rng));
        }
        message
    }

    fn some_link(&self, rng: &mut Rng) -> [u8; 6] {
        if rng.chance(80) { self.link } else { *rng.pick(&self.links) }
    }

    fn source4(&self, rng: &mut Rng) -> Ipv4Addr {
        if rng.chance(80) { self.own4 } else { *rng.pick(&self.all4) }
    }

    // === IPv4 ===

    fn v4(&self, rng: &mut Rng, depth: usize) -> Vec<u8> {
        let (from, to) = (self.source4(rng), *rng.pick(&self.all4));
        let ends = Ends { from: from.into(), to: to.into() };
        let (protocol, payload) = self.transport(rng, &ends, depth);
        let options = if rng.below(4) == 0 { options4(rng) } else { Vec::new() };
        let length = 20 + options.len();
        let mut packet = vec![0x40 | (length / 4) as u8, rng.bits() as u8];
        packet.extend(((length + payload.len()) as u16).to_be_bytes());
        packet.extend((rng.bits() as u16).to_be_bytes());
        packet.extend(fragment_word4(rng).to_be_bytes());
        packet.extend([*rng.pick(&[64, 64, 255, 1, 0]), protocol, 0, 0]);
        packet.extend(from.octets());
        packet.extend(to.octets());
        packet.extend(options);
        if rng.chance(95) {
            let sum = checksum(&[&packet]);
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        packet.extend(payload);
        packet
    }

    // === IPv6 ===

    /// A packet, and the link-layer address of the group that it is for.
    fn v6(&self, rng: &mut Rng, depth: usize) -> (Vec<u8>, Option<[u8; 6]>) {
        let from = match rng.below(10) {
            0..=6 => self.own6,
            7 => link_local(self.link),
            _ => *rng.pick(&self.all6),
        };
        let to = *rng.pick(&self.all6);
        let ends = Ends { from: from.into(), to: to.into() };
        let (mut next, mut payload) = match rng.below(10) {
            0..=3 => (58, self.neighbourly(rng, &ends)),
            _ => self.transport(rng, &ends, depth),
        };
        let mut hops = *rng.pick(&[64, 255, 255, 1, 0, 254]);
        if matches!(payload.first(), Some(131 | 132 | 143)) && rng.chance(70) {
            payload.splice(0..0, [next, 0, 5, 2, 0, 0, 1, 0]);
            (next, hops) = (0, 1);
        } else if rng.below(3) == 0 {
            for _ in 0..=*rng.pick(&[0, 0, 1, 2, 3, 5, 9]) {
                (next, payload) = self.extended(rng, next, payload);
            }
        }
        let mut packet = vec![0x60 | rng.below(16) as u8, rng.bits() as u8, 0, 0];
        packet.extend((payload.len() as u16).to_be_bytes());
        packet.extend([next, hops]);
        packet.extend(from.octets());
        packet.extend(to.octets());
        packet.extend(payload);
        let link = (to.is_multicast() && rng.chance(80)).then(|| group_link(to));
        (packet, link)
    }

    /// What neighbours and listeners say, or nearly.
    fn neighbourly(&self, rng: &mut Rng, ends: &Ends) -> Vec<u8> {
        let kind = *rng.pick(&[133, 135, 136, 133, 135, 136, 134, 137, 130, 131, 132, 143]);
        let target = if rng.chance(60) { self.own6 } else { *rng.pick(&self.all6) };
        let mut message = vec![kind, u8::from(rng.below(20) == 0), 0, 0];
        let flags = if kind == 136 { *rng.pick(&[0, 0x20, 0x60, 0xe0]) } else { 0 };
        message.extend([flags, 0, 0, 0]);
        match kind {
            133 => {}
            134 => message.extend([0; 8]),
            143 => {
                message[7] = 1;
                message.extend([*rng.pick(&[1, 2, 3, 4, 5, 6, 7]), 0, 0, 0]);
                message.extend(rng.pick(&self.all6).octets());
            }
            137 => message.extend([target.octets(), rng.pick(&self.all6).octets()].concat()),
            _ => message.extend(target.octets()),
        }
        for _ in 0..*rng.pick(&[0, 1, 1, 1, 2, 3]) {
            match rng.below(6) {
                0..=2 => {
                    let option = if kind == 136 { 2 } else { 1 };
                    message.extend([option, 1]);
                    message.extend(self.some_link(rng));
                }
                3 => message.extend([&[14, 1][..], &self.token[..6]].concat()),
                4 => message.extend([&[rng.bits() as u8, 2][..], &[0; 6], &self.token].concat()),
                _ => message.extend(self.payload(rng)),
            }
        }
        complete(ends, 58, message, 2)
    }

    /// One more extension header in front.
    fn extended(&self, rng: &mut Rng, next: u8, payload: Vec<u8>) -> (u8, Vec<u8>) {
        let kind = *rng.pick(&[0, 43, 43, 44, 44, 51, 60, 60, 135, 139, 140]);
        let mut header = match kind {
            44 => {
                let position = *rng.pick(&[0, 0, 1, 8, 9, 0xfff8, 0x0100]);
                let [high, low] = u16::to_be_bytes(position);
                let mut header = vec![next, 0, high, low];
                header.extend((rng.bits() as u32).to_be_bytes());
                header
            }
            43 => {
                let n = rng.below(3);
                let left = *rng.pick(&[0, n as u8, 1, 255]);
                let mut header = vec![next, 2 * n as u8, *rng.pick(&[0, 2, 3, 4]), left];
                header.extend([n.saturating_sub(1) as u8, 0, 0, 0]);
                (0..n).for_each(|_| header.extend(rng.pick(&self.all6).octets()));
                header
            }
            51 => vec![next, *rng.pick(&[0, 1, 4]), 0, 0, 0, 0, 0, 1, 0, 0, 0, 1],
            _ => {
                let option = *rng.pick(&[1, 5, 0xc2, 0xc9, 0x3e, 0x8a, 0]);
                vec![next, 0, option, 4, 0, 0, 0, 0]
            }
        };
        if !matches!(kind, 43 | 44 | 51) && rng.below(4) == 0 {
            header[1] = 1;
            header.extend(self.token);
        }
        header.extend(payload);
        (kind, header)
    }

    // === Above ===

    fn transport(&self, rng: &mut Rng, ends: &Ends, depth: usize) -> (u8, Vec<u8>) {
        let is_v6 = ends.to.is_ipv6();
        match rng.below(20) {
            0..=3 => (6, self.tcp(rng, ends)),
            4..=8 => (17, self.udp(rng, ends, depth)),
            9 | 10 => {
                let chunk = rng.below(16) as u8;
                let mut packet = self.ports(rng);
                packet.extend([0, 0, 0, 1, 0, 0, 0, 0, chunk, 0, 0, 20]);
                packet.extend(self.payload(rng));
                (132, packet)
            }
            11..=13 => {
                let kind = if rng.chance(60) {
                    *rng.pick(&[0, 3, 4, 5, 8, 11, 12, 13, 17, 1, 2, 128, 129])
                } else {
                    rng.bits() as u8
                };
                let mut message = vec![kind, rng.below(16) as u8, 0, 0, 0, 0, 0, 0];
                if rng.below(2) == 0 && depth < DEEPEST {
                    message.extend(self.packet(rng, DEEPEST));
                }
                message.extend(self.payload(rng));
                let protocol = if is_v6 { 58 } else { 1 };
                (protocol, complete(ends, protocol, message, 2))
            }
            14 if depth < DEEPEST => {
                let kinds = [IPV4, IPV6, 0x6558, ARP, 0x88be];
                let kind = *rng.pick(&kinds);
                let mut packet = vec![*rng.pick(&[0, 0x20, 0x80]), *rng.pick(&[0, 1])];
                packet.extend(kind.to_be_bytes());
                if packet[0] != 0 {
                    packet.extend([0; 4]);
                }
                packet.extend(if kind == 0x6558 {
                    self.frame_within(rng, depth + 1)
                } else {
                    self.packet(rng, depth + 1)
                });
                (47, packet)
            }
            15 | 16 if depth < DEEPEST => {
                let inner = self.packet(rng, depth + 1);
                let protocol = if inner[0] >> 4 == 4 { 4 } else { 41 };
                (protocol, inner)
            }
            17 => (2, [&[*rng.pick(&[0x11, 0x16, 0x22, 0x17]), 0, 0, 0][..], &self.token].concat()),
            18 => (*rng.pick(&[50, 51, 59, 103, 112, 89, 88, 115]), self.payload(rng)),
            _ => (rng.bits() as u8, self.payload(rng)),
        }
    }

    fn packet(&self, rng: &mut Rng, depth: usize) -> Vec<u8> {
        if rng.chance(50) { self.v4(rng, depth) } else { self.v6(rng, depth).0 }
    }

    fn ports(&self, rng: &mut Rng) -> Vec<u8> {
        let ports = [80, 53, 67, 68, 546, 547, 443, 4789, 6081, 5353, 500, 0, 65_535];
        let [from, to] = [0; 2].map(|_: u16| *rng.pick(&ports));
        [u16::to_be_bytes(from), u16::to_be_bytes(to)].concat()
    }

    fn tcp(&self, rng: &mut Rng, ends: &Ends) -> Vec<u8> {
        let mut segment = self.ports(rng);
        segment.extend(rng.bits().to_be_bytes());
        let words = *rng.pick(&[5, 5, 5, 6, 15, 0]);
        segment.extend([words << 4, rng.bits() as u8, 0xff, 0xff, 0, 0, 0, 0]);
        segment.extend(self.payload(rng));
        complete(ends, 6, segment, 16)
    }

    fn udp(&self, rng: &mut Rng, ends: &Ends, depth: usize) -> Vec<u8> {
        let mut packet = self.ports(rng);
        let data = match rng.below(4) {
            0 if depth < DEEPEST => {
                let (port, mut data) = match rng.below(2) {
                    0 => (4789_u16, vec![8, 0, 0, 0, 0, 0, rng.bits() as u8, 0]),
                    _ => (6081, vec![0, 0, 0x65, 0x58, 0, 0, 1, 0]),
                };
                packet[2..4].copy_from_slice(&port.to_be_bytes());
                data.extend(self.frame_within(rng, depth + 1));
                data
            }
            _ => self.payload(rng),
        };
        let length = if rng.chance(90) { 8 + data.len() as u16 } else { rng.bits() as u16 };
        packet.extend(length.to_be_bytes());
        packet.extend([0, 0]);
        packet.extend(data);
        complete(ends, 17, packet, 6)
    }
}

/// Who speaks to whom, for checksums.
struct Ends {
    from: IpAddr,
    to: IpAddr,
}

fn options4(rng: &mut Rng) -> Vec<u8> {
    let address = [10, 244, 1, rng.below(12) as u8];
    match rng.below(7) {
        0 => vec![1; 4],
        1 => vec![148, 4, 0, 0],
        2 => [&[7, 7, 4][..], &address, &[0]].concat(),
        3 => [&[131, 7, 4][..], &address, &[0]].concat(),
        4 => [&[137, 7, 4][..], &address, &[0]].concat(),
        5 => vec![68, 8, 5, 0, 0, 0, 0, 0],
        _ => rng.bits().to_be_bytes().into(),
    }
}

fn fragment_word4(rng: &mut Rng) -> u16 {
    match rng.below(10) {
        0 => 0x2000,
        1 => 0x2001,
        2 => rng.below(64) as u16,
        3 => rng.bits() as u16,
        4 => 0x4000,
        _ => 0,
    }
}

/// Fills in the checksum at `at`.
fn complete(ends: &Ends, protocol: u8, mut payload: Vec<u8>, at: usize) -> Vec<u8> {
    if payload.len() < at + 2 {
        return payload;
    }
    let mut pseudo = Vec::new();
    match (ends.from, ends.to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            pseudo.extend([from.octets(), to.octets()].concat());
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            pseudo.extend([from.octets(), to.octets()].concat());
        }
        _ => {}
    }
    pseudo.extend((payload.len() as u32).to_be_bytes());
    pseudo.extend([0, 0, 0, protocol]);
    let pseudo = if protocol == 1 { &[][..] } else { &pseudo };
    let sum = checksum(&[pseudo, &payload]);
    payload[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    payload
}

/// The Internet checksum (RFC 1071) of parts of even length, but for the last.
fn checksum(parts: &[&[u8]]) -> u16 {
    let mut total = 0_u32;
    for pair in parts.iter().flat_map(|part| part.chunks(2)) {
        total += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
    }
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    !(total as u16)
}
