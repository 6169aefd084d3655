//! Frames of all kinds between a pod and a few peers, valid and not, from a seed. It must not
//! know what becomes of them.

use std::net::IpAddr;

use netpol_observe::frames::{Transport, frame, frame_of_type, packet};

use crate::support::Random;

/// Ports that the frames use: few, so that frames meet each other's flows.
pub const PORTS: [u16; 5] = [53, 80, 1000, 1001, 65_535];

const LINK: usize = 14;

/// Who speaks to whom.
pub struct Ends {
    /// The pod's addresses.
    pub pod: [IpAddr; 2],
    /// Other addresses, of both families.
    pub peers: Vec<IpAddr>,
    /// An address of each family that is nobody's here.
    pub strangers: [IpAddr; 2],
}

/// Makes frames; remembers some to refer to them in ICMP errors.
pub struct Generator {
    ends: Ends,
    /// Plain packets, and whether they went to the pod.
    sent: Vec<(bool, Vec<u8>)>,
}

impl Generator {
    pub fn new(ends: Ends) -> Self {
        Self { ends, sent: Vec::new() }
    }

    /// A frame towards the pod (or from it), most often one that is as it should be.
    pub fn frame(&mut self, random: &mut Random, is_to_pod: bool) -> Vec<u8> {
        let mut bytes = match random.below(24) {
            0 => frame_of_type(0x0806, &[0; 28]),
            1 => {
                let ethertype = random.pick(&[0x8100, 0x88cc, 0x0026, 0x0800, 0x86dd]);
                frame_of_type(ethertype, &self.packet(random, is_to_pod))
            }
            2..=4 => frame(&self.error(random, is_to_pod)),
            _ => {
                let packet = match self.follow_up(random, is_to_pod) {
                    Some(packet) if !random.one_in(3) => packet,
                    _ => self.packet(random, is_to_pod),
                };
                self.remember(random, is_to_pod, &packet);
                frame(&self.wrapped(random, packet))
            }
        };
        if random.one_in(4) {
            damage(random, &mut bytes);
        }
        // The kernel runs programs on nothing shorter than the IP header that is announced.
        let least = if bytes[12..14] == [0x86, 0xdd] { LINK + 40 } else { LINK + 20 };
        if bytes.len() < least {
            bytes.resize(least, 0);
        }
        bytes
    }

    fn remember(&mut self, random: &mut Random, is_to_pod: bool, packet: &[u8]) {
        let packet = (is_to_pod, packet.to_vec());
        if self.sent.len() < 8 {
            self.sent.push(packet);
        } else {
            self.sent[random.below(8) as usize] = packet;
        }
    }

    /// Another packet of a flow that was begun, from either end.
    fn follow_up(&self, random: &mut Random, is_to_pod: bool) -> Option<Vec<u8>> {
        if self.sent.is_empty() {
            return None;
        }
        let (went_to_pod, mut bytes) = random.pick(&self.sent);
        let header = if bytes[0] >> 4 == 6 { 40 } else { 20 };
        let protocol = if header == 40 { bytes[6] } else { bytes[9] };
        if went_to_pod != is_to_pod {
            let (first, length) = if header == 40 { (8, 16) } else { (12, 4) };
            let (sources, rest) = bytes[first..].split_at_mut(length);
            sources.swap_with_slice(&mut rest[..length]);
        }
        match protocol {
            _ if bytes.len() < header + 8 => return Some(bytes),
            6 | 17 | 132 if went_to_pod != is_to_pod => {
                let (source, rest) = bytes[header..].split_at_mut(2);
                source.swap_with_slice(&mut rest[..2]);
            }
            1 if went_to_pod != is_to_pod => bytes[header] ^= 8,
            58 if went_to_pod != is_to_pod => bytes[header] ^= 1,
            _ => {}
        }
        if protocol == 6 && random.one_in(2) {
            bytes[header + 13] = random.pick(&[0x02, 0x12, 0x10, 0x10, 0x10, 0x11, 0x04]);
        }
        Some(bytes)
    }

    fn addresses(&self, random: &mut Random, is_to_pod: bool) -> (IpAddr, IpAddr) {
        let peer = match random.below(30) {
            0 => self.ends.pod[0],
            1 => self.ends.pod[1],
            _ => random.pick(&self.ends.peers),
        };
        let family = usize::from(peer.is_ipv6());
        let pod =
            if random.one_in(25) { self.ends.strangers[family] } else { self.ends.pod[family] };
        if is_to_pod { (peer, pod) } else { (pod, peer) }
    }

    fn packet(&self, random: &mut Random, is_to_pod: bool) -> Vec<u8> {
        let (source, destination) = self.addresses(random, is_to_pod);
        let mut bytes = packet(source, destination, &transport(random, source.is_ipv6()));
        if source.is_ipv6() && random.one_in(4) {
            bytes[7] = random.pick(&[0, 1, 64, 255]);
        }
        bytes
    }

    /// An ICMP error about a packet that went the other way, or about anything.
    fn error(&self, random: &mut Random, is_to_pod: bool) -> Vec<u8> {
        let about = if self.sent.is_empty() || random.one_in(8) {
            self.packet(random, !is_to_pod)
        } else {
            random.pick(&self.sent).1
        };
        let is_v6 = about[0] >> 4 == 6;
        let about = if random.one_in(4) { self.wrapped(random, about) } else { about };
        let (mut source, mut destination) = self.addresses(random, is_to_pod);
        while source.is_ipv6() != is_v6 {
            (source, destination) = self.addresses(random, is_to_pod);
        }
        if random.one_in(2) {
            let quoted_source = address_in(&about, is_v6);
            (source, destination) =
                if is_to_pod { (source, destination) } else { (source, quoted_source) };
        }
        let kept = random.below(about.len() as u64 + 1) as usize;
        let kept = if random.one_in(3) { kept } else { about.len() };
        let kinds: &[u8] = if is_v6 { &[1, 2, 3, 4, 5] } else { &[3, 4, 5, 11, 12] };
        let body = [&[0, 0, 5, 0], &about[..kept]].concat();
        packet(source, destination, &Transport::Icmp { kind: random.pick(kinds), code: 0, body })
    }

    /// The packet with options, extension headers or as a fragment.
    fn wrapped(&self, random: &mut Random, packet: Vec<u8>) -> Vec<u8> {
        if !random.one_in(3) {
            return packet;
        }
        if packet[0] >> 4 == 6 { with_extensions(random, &packet) } else { as_v4(random, packet) }
    }
}

/// The source address of a packet.
fn address_in(packet: &[u8], is_v6: bool) -> IpAddr {
    if is_v6 {
        let bytes: [u8; 16] = packet[8..24].try_into().expect("an IPv6 header");
        IpAddr::from(bytes)
    } else {
        let bytes: [u8; 4] = packet[12..16].try_into().expect("an IPv4 header");
        IpAddr::from(bytes)
    }
}

fn transport(random: &mut Random, is_v6: bool) -> Transport {
    let (source, destination) = (random.pick(&PORTS), random.pick(&PORTS));
    match random.below(14) {
        0..=4 => {
            let usual = random.pick(&[0x02, 0x12, 0x10, 0x18, 0x11, 0x04, 0x14]);
            let flags = if random.one_in(10) { random.next() as u8 } else { usual };
            Transport::Tcp { source, destination, flags }
        }
        5..=8 => Transport::Udp { source, destination },
        9 => Transport::Sctp { source, destination, chunk: random.below(4) as u8 },
        10 | 11 => {
            let kinds: &[u8] = if is_v6 { &[128, 129] } else { &[8, 0, 13, 14] };
            icmp(random, kinds)
        }
        12 => {
            let v6 = [130, 131, 132, 133, 134, 135, 136, 137, 143, 139, 200, 0];
            let v4 = [5, 9, 10, 15, 17, 18, 30, 200];
            icmp(random, if is_v6 { &v6 } else { &v4 })
        }
        _ => Transport::Raw {
            protocol: random.pick(&[1, 2, 4, 41, 47, 50, 51, 58, 59, 112, 255]),
            payload: vec![0; random.below(30) as usize],
        },
    }
}

fn icmp(random: &mut Random, kinds: &[u8]) -> Transport {
    let id = random.below(3) as u8;
    let mut body = vec![0, id, 0, 1];
    body.extend(vec![0; random.below(20) as usize]);
    Transport::Icmp { kind: random.pick(kinds), code: 0, body }
}

/// IPv4 with options, as a fragment, or both.
fn as_v4(random: &mut Random, mut bytes: Vec<u8>) -> Vec<u8> {
    if random.one_in(2) {
        let words = 1 + random.below(10) as usize;
        bytes[0] += words as u8;
        bytes.splice(20..20, vec![1; words * 4]);
        let total = bytes.len() as u16;
        bytes[2..4].copy_from_slice(&total.to_be_bytes());
    }
    if random.one_in(2) {
        bytes[5] = random.below(3) as u8;
        let flags = random.pick(&[0x2000u16, 0x2000, 0x4000, 0x8000, 0]);
        let offset = random.pick(&[0u16, 0, 1, 185, 0x1fff]);
        bytes[6..8].copy_from_slice(&(flags | offset).to_be_bytes());
    }
    bytes
}

/// IPv6 with extension headers, fragment headers among them.
fn with_extensions(random: &mut Random, packet: &[u8]) -> Vec<u8> {
    let many = if random.one_in(8) { 10 } else { 3 };
    let kinds: Vec<u8> = (0..1 + random.below(many))
        .map(|_| random.pick(&[0, 43, 44, 44, 51, 60, 60, 135, 139, 140]))
        .collect();
    let mut bytes = packet[..40].to_vec();
    bytes[6] = kinds[0];
    for (index, kind) in kinds.iter().enumerate() {
        let next = kinds.get(index + 1).copied().unwrap_or(packet[6]);
        let units = random.below(3) as u8;
        let mut header = match kind {
            44 => vec![0; 8],
            51 => vec![0; (usize::from(units) + 2) * 4],
            _ => vec![0; (usize::from(units) + 1) * 8],
        };
        (header[0], header[1]) = (next, units);
        if *kind == 44 {
            let position = random.pick(&[0u16, 1, 1, 8, 9, 0xfff8]);
            header[2..4].copy_from_slice(&position.to_be_bytes());
            header[7] = random.below(3) as u8;
        }
        bytes.extend(header);
    }
    bytes.extend(&packet[40..]);
    let length = (bytes.len() - 40) as u16;
    bytes[4..6].copy_from_slice(&length.to_be_bytes());
    bytes
}

/// Changes a few bytes behind the link-layer addresses, cuts the end off or adds to it.
fn damage(random: &mut Random, bytes: &mut Vec<u8>) {
    for _ in 0..random.below(4) {
        let last = if random.one_in(2) { bytes.len().min(LINK + 24) } else { bytes.len() };
        let index = 12 + random.below(last as u64 - 12) as usize;
        bytes[index] = match random.below(3) {
            0 => bytes[index] ^ 1 << random.below(8),
            1 => random.pick(&[0, 1, 5, 6, 17, 44, 255]),
            _ => random.next() as u8,
        };
    }
    match random.below(4) {
        0 => bytes.truncate(LINK + random.below((bytes.len() - LINK) as u64 + 1) as usize),
        1 => bytes.extend(vec![0xff; random.below(40) as usize]),
        _ => {}
    }
}
