//! Random frames: well-formed ones of every kind that the attacks know, odd combinations of those,
//! damaged ones, and noise. Pure; a seed always makes the same frames for the same pods.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::frames::{
    self, DOT1AD, DOT1Q, Marker, advertisement, arp, discovery, group_link, link_local,
    link_option, solicitation, solicited_node,
};
use super::spec::Who;
use crate::lab::packets;
use crate::lab::wire::{ARP, BROADCAST, EXPERIMENTAL, IPV4, IPV6};

/// SplitMix64 (Steele, Lea and Flood, 2014).
pub struct Random(pub u64);

impl Random {
    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Less than `end`.
    pub fn below(&mut self, end: usize) -> usize {
        (self.word() % end as u64) as usize
    }

    /// Once in so many times.
    pub fn one_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    pub fn pick<T: Clone>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())].clone()
    }

    pub fn byte(&mut self) -> u8 {
        self.word() as u8
    }

    fn port(&mut self) -> u16 {
        match self.below(4) {
            0 => self.word() as u16,
            _ => self.pick(&[0, 53, 67, 68, 80, 443, 546, 547, 4789, 6081, 10_250]),
        }
    }

    fn bytes(&mut self, most: usize) -> Vec<u8> {
        let length = self.below(most + 1);
        (0..length).map(|_| self.byte()).collect()
    }
}

/// Who sends, to whom, by which link-layer addresses.
pub struct Place {
    pub who: Who,
    pub addresses: Vec<IpAddr>,
    pub links: Vec<[u8; 6]>,
    pub marker: Marker,
}

impl Place {
    /// A frame from link-layer header on. Most bear the marker.
    pub fn frame(&self, random: &mut Random) -> Vec<u8> {
        let mut frame = match random.below(16) {
            0 => self.arp(random),
            1..=3 => self.discovery(random),
            4 => self.report(random),
            5 => [&self.head(random, EXPERIMENTAL)[..], &random.bytes(80)].concat(),
            _ => self.packet_frame(random),
        };
        if random.one_in(3) {
            damage(&mut frame, random);
        }
        if random.one_in(50) {
            frame = random.bytes(200);
        }
        if frame.len() < 14 {
            // A packet socket takes no less.
            frame.resize(14, 0);
        }
        // Messages of the link have no room for it, unless they are forged.
        let is_talk = frame[12..14] == ARP.to_be_bytes()
            || frame.get(20).is_some_and(|next| [0, 58].contains(next));
        if !is_talk || random.one_in(4) {
            self.mark(&mut frame);
        }
        frame.truncate(1400);
        frame
    }

    fn head(&self, random: &mut Random, ethertype: u16) -> Vec<u8> {
        let to = random.pick(&self.links);
        let from = if random.one_in(12) { random.pick(&self.links) } else { self.who.link };
        frames::frame(to, from, ethertype, &[])
    }

    /// The last bytes of what is long enough, so that little can take it off again.
    fn mark(&self, frame: &mut Vec<u8>) {
        let length = frame.len();
        if length >= 14 + 20 + 8 + 16 {
            frame[length - 16..].copy_from_slice(&self.marker.0);
        } else {
            frame.extend(self.marker.0);
        }
    }

    fn address(&self, random: &mut Random, is_v4: bool) -> IpAddr {
        if random.one_in(10) {
            return if is_v4 {
                Ipv4Addr::from(random.word() as u32).into()
            } else {
                Ipv6Addr::from(u128::from(random.word()) << 64 | u128::from(random.word())).into()
            };
        }
        loop {
            let address = random.pick(&self.addresses);
            if address.is_ipv4() == is_v4 {
                return address;
            }
        }
    }

    fn packet_frame(&self, random: &mut Random) -> Vec<u8> {
        let packet = self.packet(random, 2);
        let kind = match random.below(24) {
            0 => random.pick(&[IPV4, IPV6, ARP, 0, EXPERIMENTAL, 0x8847]),
            _ => frames::ethertype(&packet),
        };
        let mut frame = self.head(random, kind);
        if random.one_in(12) {
            let tag = random.pick(&[0, 1, 0x2000, 42]);
            frame.truncate(12);
            frame.extend(random.pick(&[DOT1Q, DOT1AD, 0x9100]).to_be_bytes());
            frame.extend(frames::tagged(tag, kind, &[]));
        }
        frame.extend(packet);
        frame
    }

    /// An IP packet, with others in it to this depth.
    fn packet(&self, random: &mut Random, depth: usize) -> Vec<u8> {
        let is_v4 = random.one_in(2);
        let own: IpAddr = if is_v4 { self.who.v4.into() } else { self.who.v6.into() };
        let from = if random.one_in(6) { self.address(random, is_v4) } else { own };
        let to = self.address(random, is_v4);
        let ports = (random.port(), random.port());
        let packet = match random.below(9) {
            0 | 1 => packets::udp_with(from, to, ports, &random.bytes(64)),
            2 | 3 => frames::tcp(from, to, ports, random.byte(), self.marker),
            4 => frames::sctp(from, to, ports, random.byte() & 15, self.marker),
            5 => {
                let body = random.bytes(40);
                frames::icmp(from, to, (random.byte(), random.byte() & 7), &body, self.marker)
            }
            6 if depth > 0 => {
                let quoted = self.packet(random, depth - 1);
                let kinds: &[(u8, u8)] =
                    if is_v4 { &[(3, 3), (11, 0), (5, 1)] } else { &[(1, 4), (2, 0), (137, 0)] };
                packets::error(from, to, random.pick(kinds), &quoted)
            }
            7 if depth > 0 => {
                let inner = self.packet(random, depth - 1);
                match random.below(3) {
                    0 => frames::within(from, to, &inner),
                    1 => frames::vxlan(
                        from,
                        to,
                        42,
                        &frames::frame(BROADCAST, self.who.link, frames::ethertype(&inner), &inner),
                    ),
                    _ => frames::raw(
                        from,
                        to,
                        47,
                        &[&[0, 0][..], &frames::ethertype(&inner).to_be_bytes(), &inner].concat(),
                    ),
                }
            }
            _ => {
                // As long as the checksum of whatever it may be is behind.
                let mut payload = random.bytes(64);
                payload.resize(payload.len().max(20), 0);
                frames::raw(from, to, random.byte(), &payload)
            }
        };
        self.dressed(random, packet)
    }

    /// With options, extension headers, as a fragment, or as it is.
    fn dressed(&self, random: &mut Random, packet: Vec<u8>) -> Vec<u8> {
        let is_v4 = packet[0] >> 4 == 4;
        match random.below(8) {
            0 if is_v4 => {
                let mut options = random.bytes(36);
                options.resize(options.len().div_ceil(4) * 4, 1);
                packets::with_options(packet, &options)
            }
            0 | 1 if !is_v4 => {
                let length = 1 + random.below(10);
                let kinds = [0, 43, 44, 51, 60, 135, 139, 140];
                let chain: Vec<_> =
                    (0..length).map(|_| packets::padding(random.pick(&kinds))).collect();
                packets::with_extensions(packet, &chain)
            }
            2 => {
                let length = packet.len() - if is_v4 { 20 } else { 40 };
                let from = random.below(length / 8 + 1) * 8;
                let to = from + random.below(length - from + 1);
                packets::piece(&packet, random.word() as u32, from, to, random.one_in(2))
            }
            _ => packet,
        }
    }

    fn arp(&self, random: &mut Random) -> Vec<u8> {
        let v4 = |random: &mut Random| match self.address(random, true) {
            IpAddr::V4(address) => address,
            IpAddr::V6(_) => Ipv4Addr::UNSPECIFIED,
        };
        let own = if random.one_in(4) { v4(random) } else { self.who.v4 };
        let link = if random.one_in(6) { random.pick(&self.links) } else { self.who.link };
        let to = (random.pick(&self.links), v4(random));
        let mut message = arp(1 + random.below(3) as u16, (link, own), to);
        if random.one_in(4) {
            message.extend(vec![0; random.below(40)]);
        }
        [self.head(random, ARP), message].concat()
    }

    fn v6(&self, random: &mut Random) -> Ipv6Addr {
        match self.address(random, false) {
            IpAddr::V6(address) => address,
            IpAddr::V4(_) => Ipv6Addr::UNSPECIFIED,
        }
    }

    fn source(&self, random: &mut Random) -> Ipv6Addr {
        let own = [self.who.v6, link_local(self.who.link), Ipv6Addr::UNSPECIFIED];
        if random.one_in(5) { self.v6(random) } else { random.pick(&own) }
    }

    fn discovery(&self, random: &mut Random) -> Vec<u8> {
        let from = self.source(random);
        let target = if random.one_in(2) { self.source(random) } else { self.v6(random) };
        let all = ["ff02::1", "ff02::2", "fe80::1"].map(|text| text.parse().unwrap());
        let to = match random.below(4) {
            0 => self.v6(random),
            1 => random.pick(&all),
            _ => solicited_node(target),
        };
        let mut options = Vec::new();
        for _ in 0..random.below(3) {
            let link = if random.one_in(4) { random.pick(&self.links) } else { self.who.link };
            options.extend(match random.below(4) {
                0 => link_option(1, link),
                1 => link_option(2, link),
                2 => [&[14, 1][..], &(random.word().to_be_bytes()[..6])].concat(),
                _ => [
                    &[random.byte(), 1 + random.byte() % 2][..],
                    &(random.word().to_be_bytes()[..6]),
                ]
                .concat(),
            });
        }
        let packet = match random.below(4) {
            0 => discovery(from, to, 133, &[&[0; 4][..], &options].concat()),
            1 => discovery(from, to, 136, &advertisement(target, &options)),
            2 => discovery(from, to, 135, &solicitation(target, &options)),
            _ => discovery(from, to, 130 + random.byte() % 20, &solicitation(target, &options)),
        };
        let packet = if random.one_in(6) { self.dressed(random, packet) } else { packet };
        let mut frame = self.head(random, IPV6);
        if to.is_multicast() && !random.one_in(4) {
            frame[..6].copy_from_slice(&group_link(to));
        }
        frame.extend(packet);
        frame
    }

    fn report(&self, random: &mut Random) -> Vec<u8> {
        let from = self.source(random);
        let groups = ["ff02::1", "ff02::2", "ff02::16", "ff02::fb", "ff0e::1"];
        let groups = groups.map(|text| text.parse::<Ipv6Addr>().unwrap());
        let (to, group) = (random.pick(&groups), random.pick(&groups));
        let kind = random.pick(&[130, 131, 132, 143, 143, 151, 153]);
        let body = if kind == 143 {
            let mut body = vec![0, 0, 0, random.byte() % 3];
            for _ in 0..random.below(3) {
                body.extend([1 + random.byte() % 6, 0, 0, 0]);
                body.extend(group.octets());
            }
            body
        } else {
            [&[0; 4][..], &group.octets()].concat()
        };
        let packet = packets::icmp(from.into(), to.into(), kind, 0, body);
        let packet = packets::with_hop_limit(packet, random.pick(&[1, 1, 1, 64, 255]));
        let alert = (0, vec![0, 0, 5, 2, 0, 0, 1, 0]);
        let packet = packets::with_extensions(packet, &[alert]);
        let packet = if random.one_in(6) { self.dressed(random, packet) } else { packet };
        let mut frame = self.head(random, IPV6);
        frame[..6].copy_from_slice(&group_link(to));
        frame.extend(packet);
        frame
    }
}

/// Some bits, bytes or the end are not what they were.
fn damage(frame: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..=random.below(4) {
        let length = frame.len();
        match random.below(8) {
            0 => frame.truncate(random.below(length + 1)),
            1 => frame.extend(random.bytes(40)),
            2 if length > 14 => {
                let at = 14 + random.below(length - 14);
                frame.insert(at, random.byte());
            }
            3 if length > 14 => {
                frame.remove(14 + random.below(length - 14));
            }
            // Most of what matters is at the beginning.
            4 | 5 if length > 14 => {
                let at = 12 + random.below(length.min(80) - 12);
                frame[at] = random.byte();
            }
            _ if length > 14 => {
                let at = 12 + random.below(length.min(80) - 12);
                frame[at] ^= 1 << random.below(8);
            }
            _ => {}
        }
    }
}
