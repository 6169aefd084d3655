//! Packets as bytes, with right lengths and checksums where the kernel looks at them. Pure; must
//! never be used to understand a packet.

use std::net::IpAddr;

use netpol_observe::frames::{self, Transport};

use super::unique;

/// TCP SYN.
const SYN: u8 = 0x02;
/// Length of an IPv4 header without options.
const V4: usize = 20;
/// Length of an IPv6 header.
const V6: usize = 40;
/// IPv6 extension headers.
pub const HOP_BY_HOP: u8 = 0;
pub const ROUTING: u8 = 43;
pub const FRAGMENT: u8 = 44;
pub const AUTHENTICATION: u8 = 51;
pub const DESTINATION_OPTIONS: u8 = 60;

/// Eight bytes that no other packet of this process holds.
pub type Tag = [u8; 8];

/// A new tag.
pub fn tag() -> Tag {
    let [a, b, c, d] = unique().to_be_bytes();
    [b't', b'a', b'g', b':', a, b, c, d]
}

/// A UDP packet that holds this tag.
pub fn udp(source: IpAddr, destination: IpAddr, ports: (u16, u16), tag: Tag) -> Vec<u8> {
    udp_with(source, destination, ports, &tag)
}

/// A UDP packet with this payload.
pub fn udp_with(
    source: IpAddr,
    destination: IpAddr,
    (from, to): (u16, u16),
    data: &[u8],
) -> Vec<u8> {
    let mut payload = Vec::from(from.to_be_bytes());
    payload.extend(to.to_be_bytes());
    payload.extend((8 + data.len() as u16).to_be_bytes());
    payload.extend([0, 0]);
    payload.extend(data);
    raw(source, destination, 17, payload)
}

/// A TCP SYN that holds this tag in its sequence and acknowledgement numbers.
pub fn tcp_syn(source: IpAddr, destination: IpAddr, (from, to): (u16, u16), tag: Tag) -> Vec<u8> {
    let transport = Transport::Tcp { source: from, destination: to, flags: SYN };
    tagged(source, destination, &transport, 4, tag)
}

/// An SCTP INIT that holds this tag.
pub fn sctp_init(source: IpAddr, destination: IpAddr, (from, to): (u16, u16), tag: Tag) -> Vec<u8> {
    let transport = Transport::Sctp { source: from, destination: to, chunk: 1 };
    tagged(source, destination, &transport, 20, tag)
}

/// An echo request that holds this tag.
pub fn ping(source: IpAddr, destination: IpAddr, id: u16, tag: Tag) -> Vec<u8> {
    let mut body = Vec::from(id.to_be_bytes());
    body.extend([0, 1]);
    body.extend(tag);
    let kind = if source.is_ipv4() { 8 } else { 128 };
    icmp(source, destination, kind, 0, body)
}

/// Any ICMP message of the addresses' family; `body` is what follows the checksum.
pub fn icmp(source: IpAddr, destination: IpAddr, kind: u8, code: u8, body: Vec<u8>) -> Vec<u8> {
    complete(frames::packet(source, destination, &Transport::Icmp { kind, code, body }))
}

/// A packet of this protocol.
pub fn raw(source: IpAddr, destination: IpAddr, protocol: u8, payload: Vec<u8>) -> Vec<u8> {
    complete(frames::packet(source, destination, &Transport::Raw { protocol, payload }))
}

fn tagged(
    source: IpAddr,
    destination: IpAddr,
    transport: &Transport,
    at: usize,
    tag: Tag,
) -> Vec<u8> {
    let mut packet = frames::packet(source, destination, transport);
    let at = at + if source.is_ipv4() { V4 } else { V6 };
    packet[at..at + tag.len()].copy_from_slice(&tag);
    complete(packet)
}

/// An ICMP error of this type and code about `quoted`, in whole.
pub fn error(
    source: IpAddr,
    destination: IpAddr,
    (kind, code): (u8, u8),
    quoted: &[u8],
) -> Vec<u8> {
    let mut body = vec![0; 4];
    body.extend(quoted);
    icmp(source, destination, kind, code, body)
}

/// "Port unreachable" of this family, type and code.
pub fn port_unreachable(family_of: IpAddr) -> (u8, u8) {
    if family_of.is_ipv4() { (3, 3) } else { (1, 4) }
}

/// An IPv6 packet with this hop limit.
pub fn with_hop_limit(mut packet: Vec<u8>, hop_limit: u8) -> Vec<u8> {
    packet[7] = hop_limit;
    packet
}

/// An IPv4 packet with these options (a multiple of four bytes) in its header.
pub fn with_options(mut packet: Vec<u8>, options: &[u8]) -> Vec<u8> {
    assert_eq!((packet[0], options.len() % 4), (0x45, 0));
    packet[0] = 0x45 + options.len() as u8 / 4;
    packet.splice(V4..V4, options.iter().copied());
    set_total(&mut packet);
    packet
}

/// An IPv6 packet with these extension headers (type and bytes, the first of which names the
/// following header and is filled in).
pub fn with_extensions(mut packet: Vec<u8>, extensions: &[(u8, Vec<u8>)]) -> Vec<u8> {
    let mut next = packet[6];
    for (kind, bytes) in extensions.iter().rev() {
        let mut bytes = bytes.clone();
        bytes[0] = next;
        packet.splice(V6..V6, bytes);
        next = *kind;
    }
    packet[6] = next;
    set_total(&mut packet);
    packet
}

/// Hop-by-hop or destination options that say nothing, a routing header without addresses, an
/// authentication header without a value, or the fragment header of what is no fragment (RFC 6946).
pub fn padding(kind: u8) -> (u8, Vec<u8>) {
    match kind {
        ROUTING | FRAGMENT | AUTHENTICATION => (kind, vec![0; 8]),
        // PadN over the six bytes.
        _ => (kind, vec![0, 0, 1, 4, 0, 0, 0, 0]),
    }
}

/// Cuts a packet's payload at these multiples of eight, into fragments in order.
pub fn fragments(packet: &[u8], cuts: &[usize]) -> Vec<Vec<u8>> {
    let header = if packet[0] >> 4 == 4 { V4 } else { V6 };
    let payload = &packet[header..];
    let mut edges = vec![0];
    edges.extend(cuts);
    edges.push(payload.len());
    let pieces = edges.windows(2).map(|edge| (edge[0], edge[1]));
    let id = unique();
    pieces.map(|(from, to)| piece(packet, id, from, to, to < payload.len())).collect()
}

/// The fragment of `packet` with the payload's bytes `from..to`.
pub fn piece(packet: &[u8], id: u32, from: usize, to: usize, more: bool) -> Vec<u8> {
    assert_eq!(from % 8, 0);
    if packet[0] >> 4 == 4 {
        let mut fragment = packet[..V4].to_vec();
        fragment.extend(&packet[V4 + from..V4 + to]);
        fragment[4..6].copy_from_slice(&(id as u16).to_be_bytes());
        let word = (from / 8) as u16 | u16::from(more) << 13;
        fragment[6..8].copy_from_slice(&word.to_be_bytes());
        set_total(&mut fragment);
        return fragment;
    }
    let mut fragment = packet[..V6].to_vec();
    fragment.extend(&packet[V6 + from..V6 + to]);
    let mut header = vec![0, 0];
    header.extend((from as u16 | u16::from(more)).to_be_bytes());
    header.extend(id.to_be_bytes());
    with_extensions(fragment, &[(FRAGMENT, header)])
}

/// Sets lengths and, for IPv4, the header's checksum.
fn set_total(packet: &mut [u8]) {
    let length = packet.len();
    if packet[0] >> 4 == 4 {
        packet[2..4].copy_from_slice(&(length as u16).to_be_bytes());
        let header = usize::from(packet[0] & 15) * 4;
        packet[10..12].fill(0);
        let sum = checksum(&packet[..header], 0);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
    } else {
        packet[4..6].copy_from_slice(&((length - V6) as u16).to_be_bytes());
    }
}

/// Fills in the checksums of a packet without options and extension headers.
fn complete(mut packet: Vec<u8>) -> Vec<u8> {
    set_total(&mut packet);
    let is_v4 = packet[0] >> 4 == 4;
    let (header, protocol) = if is_v4 { (V4, packet[9]) } else { (V6, packet[6]) };
    let at = match protocol {
        1 | 58 => header + 2,
        6 => header + 16,
        17 => header + 6,
        _ => return packet,
    };
    // Addresses, length and protocol count as well (RFC 768, RFC 8200 8.1), but for ICMPv4.
    let addresses = if is_v4 { &packet[12..20] } else { &packet[8..40] };
    let pseudo = match protocol {
        1 => 0,
        _ => sum(addresses) + u32::from(protocol) + (packet.len() - header) as u32,
    };
    packet[at..at + 2].fill(0);
    let value = checksum(&packet[header..], pseudo);
    // UDP: zero means none.
    let value = if value == 0 && protocol == 17 { u16::MAX } else { value };
    packet[at..at + 2].copy_from_slice(&value.to_be_bytes());
    packet
}

fn sum(bytes: &[u8]) -> u32 {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
    bytes.chunks(2).map(word).sum()
}

/// The Internet checksum (RFC 1071).
fn checksum(bytes: &[u8], start: u32) -> u16 {
    let mut total = sum(bytes) + start;
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    !(total as u16)
}
