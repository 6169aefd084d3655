//! Frames that no honest stack makes. Pure; must never be used to understand one.

use std::hash::{BuildHasher as _, RandomState};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::lab::packets;
use crate::lab::wire::{ARP, IPV4, IPV6};

/// Ethertypes of VLAN tags: IEEE 802.1Q, 802.1ad, and what was used before that.
pub const DOT1Q: u16 = 0x8100;
pub const DOT1AD: u16 = 0x88a8;
pub const OLD_QINQ: u16 = 0x9100;
/// MPLS, and MPLS with an upstream-assigned label (RFC 5332).
pub const MPLS: u16 = 0x8847;
pub const MPLS_UPSTREAM: u16 = 0x8848;
/// PPPoE (RFC 2516).
pub const PPPOE_DISCOVERY: u16 = 0x8863;
pub const PPPOE: u16 = 0x8864;
/// `ETH_P_802_2` of linux/if_ether.h: a length instead of an ethertype.
pub const LLC: u16 = 4;
pub const RARP: u16 = 0x8035;
/// IP protocol numbers.
pub const ICMP: u8 = 1;
pub const IGMP: u8 = 2;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const GRE: u8 = 47;
pub const ICMPV6: u8 = 58;
pub const NOTHING: u8 = 59;
pub const SCTP: u8 = 132;
/// All IPv6 nodes of the link, as a link-layer address.
pub const ALL_NODES: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];

/// Sixteen bytes that stand nowhere else.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Marker(pub [u8; 16]);

impl Marker {
    pub fn new() -> Self {
        // Every state has keys of its own, the first of a thread from the operating system.
        let word = || RandomState::new().hash_one(0).to_be_bytes();
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&word());
        bytes[8..].copy_from_slice(&word());
        Self(bytes)
    }
}

/// A whole frame.
pub fn frame(to: [u8; 6], from: [u8; 6], ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&to[..], &from, &ethertype.to_be_bytes(), payload].concat()
}

/// The ethertype that an IP packet belongs to.
pub fn ethertype(packet: &[u8]) -> u16 {
    if packet[0] >> 4 == 4 { IPV4 } else { IPV6 }
}

/// A tag (or any header of four bytes) with this identifier in front of what has this ethertype.
pub fn tagged(identifier: u16, ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&identifier.to_be_bytes()[..], &ethertype.to_be_bytes(), payload].concat()
}

/// A UDP packet that carries the marker.
pub fn udp(from: IpAddr, to: IpAddr, ports: (u16, u16), marker: Marker) -> Vec<u8> {
    packets::udp_with(from, to, ports, &marker.0)
}

/// A TCP segment with these flags, and the marker as its data.
pub fn tcp(from: IpAddr, to: IpAddr, ports: (u16, u16), flags: u8, marker: Marker) -> Vec<u8> {
    tcp_numbered(from, to, ports, flags, [1, 1], marker)
}

/// The same with these sequence and acknowledgement numbers.
pub fn tcp_numbered(
    from: IpAddr,
    to: IpAddr,
    ports: (u16, u16),
    flags: u8,
    [sequence, acknowledged]: [u32; 2],
    marker: Marker,
) -> Vec<u8> {
    let mut segment = [ports.0.to_be_bytes(), ports.1.to_be_bytes()].concat();
    segment.extend(sequence.to_be_bytes());
    segment.extend(acknowledged.to_be_bytes());
    segment.extend([5 << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
    segment.extend(marker.0);
    packets::raw(from, to, TCP, segment)
}

/// An SCTP packet with one chunk of this type, which carries the marker.
pub fn sctp(from: IpAddr, to: IpAddr, ports: (u16, u16), chunk: u8, marker: Marker) -> Vec<u8> {
    let mut packet = [ports.0.to_be_bytes(), ports.1.to_be_bytes()].concat();
    packet.extend([0, 0, 0, 1, 0, 0, 0, 0, chunk, 0, 0, 20]);
    packet.extend(marker.0);
    packets::raw(from, to, SCTP, packet)
}

/// An ICMP message of the addresses' family whose body begins with `body` and ends with the marker.
pub fn icmp(from: IpAddr, to: IpAddr, kind: (u8, u8), body: &[u8], marker: Marker) -> Vec<u8> {
    packets::icmp(from, to, kind.0, kind.1, [body, &marker.0].concat())
}

/// Any IP packet.
pub fn raw(from: IpAddr, to: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    packets::raw(from, to, protocol, payload.to_vec())
}

/// An ARP message; `from` and `to` are pairs of link-layer and IPv4 address.
pub fn arp(operation: u16, from: ([u8; 6], Ipv4Addr), to: ([u8; 6], Ipv4Addr)) -> Vec<u8> {
    let mut message = vec![0, 1, 8, 0, 6, 4];
    message.extend(operation.to_be_bytes());
    for (link, address) in [from, to] {
        message.extend(link);
        message.extend(address.octets());
    }
    message
}

/// A frame that brings an ARP message.
pub fn arp_frame(to: [u8; 6], from: [u8; 6], message: &[u8]) -> Vec<u8> {
    frame(to, from, ARP, message)
}

/// A message of neighbour discovery (or any of ICMPv6 with hop limit 255).
pub fn discovery(from: Ipv6Addr, to: Ipv6Addr, kind: u8, body: &[u8]) -> Vec<u8> {
    let packet = packets::icmp(from.into(), to.into(), kind, 0, body.to_vec());
    packets::with_hop_limit(packet, 255)
}

/// A neighbour solicitation's body for this target, with its options.
pub fn solicitation(target: Ipv6Addr, options: &[u8]) -> Vec<u8> {
    [&[0; 4][..], &target.octets(), options].concat()
}

/// A neighbour advertisement's body: solicited and overriding.
pub fn advertisement(target: Ipv6Addr, options: &[u8]) -> Vec<u8> {
    [&[0x60, 0, 0, 0][..], &target.octets(), options].concat()
}

/// The link-layer address option: 1 source, 2 target.
pub fn link_option(kind: u8, address: [u8; 6]) -> Vec<u8> {
    [&[kind, 1][..], &address].concat()
}

/// The group in which the owner of an address is asked for (RFC 4291, section 2.7.1).
pub fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = address.octets();
    Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c])
}

/// The link-layer address of an IPv6 group (RFC 2464, section 7).
pub fn group_link(group: Ipv6Addr) -> [u8; 6] {
    let [.., a, b, c, d] = group.octets();
    [0x33, 0x33, a, b, c, d]
}

/// The link-local address that the kernel makes from a link-layer address (RFC 4291, appendix A).
pub fn link_local([a, b, c, d, e, f]: [u8; 6]) -> Ipv6Addr {
    Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}

/// An extension header of eight bytes per unit: the type and the bytes, whose first two are filled
/// in.
pub fn extension(kind: u8, mut bytes: Vec<u8>) -> (u8, Vec<u8>) {
    assert_eq!(bytes.len() % 8, 0);
    bytes[1] = (bytes.len() / 8 - 1) as u8;
    (kind, bytes)
}

/// The IPv6 or IPv4 packet within an IP packet of the other's or the same family.
pub fn within(from: IpAddr, to: IpAddr, inner: &[u8]) -> Vec<u8> {
    let protocol = if inner[0] >> 4 == 4 { 4 } else { 41 };
    raw(from, to, protocol, inner)
}

/// A VXLAN packet (RFC 7348) with this network identifier that brings a frame.
pub fn vxlan(from: IpAddr, to: IpAddr, network: u32, inner: &[u8]) -> Vec<u8> {
    let mut data = vec![8, 0, 0, 0];
    data.extend((network << 8).to_be_bytes());
    data.extend(inner);
    packets::udp_with(from, to, (40_000, 4789), &data)
}

/// A Geneve packet (RFC 8926) that brings a frame.
pub fn geneve(from: IpAddr, to: IpAddr, network: u32, inner: &[u8]) -> Vec<u8> {
    let mut data = vec![0, 0, 0x65, 0x58];
    data.extend((network << 8).to_be_bytes());
    data.extend(inner);
    packets::udp_with(from, to, (40_000, 6081), &data)
}
