//! Parses a frame into what a verdict needs, whatever the frame looks like. The eBPF program has
//! a shorter way for the common headers; this is the complete one. It must never decide a verdict
//! by policy and never read beyond what [`Frame::load`] gives.

use crate::layout::{Address, Direction, Reason};

/// A frame from its link-layer header on.
pub trait Frame {
    /// The `N` bytes at `offset`, or `None` if the frame ends before.
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]>;
    /// Frame length in bytes.
    fn length(&self) -> u32;
    /// Whether a VLAN tag stands in the packet's metadata rather than in the frame.
    fn has_vlan_tag(&self) -> bool;
}

/// Ethernet header length.
pub const LINK_HEADER: u32 = 14;
/// TCP.
pub const TCP: u8 = 6;
/// UDP.
pub const UDP: u8 = 17;
/// ICMP for IPv4.
pub const ICMP: u8 = 1;
/// ICMP for IPv6.
pub const ICMPV6: u8 = 58;
/// SCTP.
pub const SCTP: u8 = 132;

/// TCP FIN.
pub const FIN: u8 = 0x01;
/// TCP SYN.
pub const SYN: u8 = 0x02;
/// TCP RST.
pub const RST: u8 = 0x04;
/// TCP ACK.
pub const ACK: u8 = 0x10;

/// Number of IPv6 extension headers followed before giving up.
const MAX_EXTENSION_HEADERS: usize = 8;

/// What kind of packet this is for the flow table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum Kind {
    /// Belongs to a flow named by addresses, protocol and ports (ICMP echo: its id as both).
    #[default]
    Flow,
    /// Judged on its own, never tracked (ICMP other than echo, timestamp, address mask).
    Stateless,
    /// An ICMP error; [`parse_quoted`] tells which packet it is about.
    Error,
    /// A fragment other than the first: its ports are unknown.
    Fragment,
}

/// A packet from an endpoint's view.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Packet {
    /// The endpoint's side.
    pub local: Address,
    /// The other side.
    pub remote: Address,
    /// Fragment identification (network order in memory), if it is one.
    pub fragment_id: u32,
    /// Port or ICMP id of the endpoint's side.
    pub local_port: u16,
    /// Port or ICMP id of the other side.
    pub remote_port: u16,
    /// IP protocol (IPv6: the last next header).
    pub protocol: u8,
    /// TCP flags or ICMP type.
    pub detail: u8,
    /// ICMP code.
    pub code: u8,
    /// See [`Kind`].
    pub kind: Kind,
    /// The first of several fragments.
    pub is_first_fragment: bool,
    /// Can only open a flow: TCP SYN without ACK, SCTP INIT, ICMP request.
    pub is_opening: bool,
    /// Cannot open a flow: TCP SYN+ACK or RST, SCTP INIT ACK, ICMP reply.
    pub is_answer: bool,
    /// IPv6 with a fragment header, even if it is a whole packet (RFC 6946).
    pub has_fragment_header: bool,
}

/// Result of [`parse`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The packet was filled in.
    Packet,
    /// The packet was filled in; it is an ICMP error, and what it quotes begins at this offset:
    /// see [`parse_quoted`].
    Error(u32),
    /// Passes always: ARP, neighbour discovery, multicast listener discovery.
    Pass,
    /// Cannot be judged: dropped for isolated endpoints.
    Refuse(Reason),
}

/// Parses `frame`, seen by an endpoint in `direction`, into `packet`.
#[inline(always)]
pub fn parse<F: Frame>(frame: &F, direction: Direction, packet: &mut Packet) -> Outcome {
    if frame.has_vlan_tag() {
        return Outcome::Refuse(Reason::Ethertype);
    }
    let Some(ethertype) = frame.load::<2>(12) else {
        return Outcome::Refuse(Reason::Truncated);
    };
    match u16::from_be_bytes(ethertype) {
        0x0800 => parse_v4(frame, direction, packet),
        0x86dd => parse_v6(frame, direction, packet),
        0x0806 => Outcome::Pass,
        _ => Outcome::Refuse(Reason::Ethertype),
    }
}

/// Parses what an ICMP error seen in `direction` quotes at `offset` into `inner`, from the same
/// endpoint's view; returns whether that names a flow.
#[inline(always)]
pub fn parse_quoted<F: Frame>(
    frame: &F,
    direction: Direction,
    is_v6: bool,
    offset: u32,
    inner: &mut Packet,
) -> bool {
    if is_v6 {
        inner_v6(frame, direction, offset, inner)
    } else {
        inner_v4(frame, direction, offset, inner)
    }
}

const TRUNCATED: Outcome = Outcome::Refuse(Reason::Truncated);

#[inline(always)]
fn parse_v4<F: Frame>(frame: &F, direction: Direction, packet: &mut Packet) -> Outcome {
    let Some(header) = frame.load::<20>(LINK_HEADER) else { return TRUNCATED };
    let header_length = u32::from(header[0] & 0x0f) * 4;
    if header[0] >> 4 != 4 || header_length < 20 {
        return TRUNCATED;
    }
    // A total length of 0 is how Linux marks a GSO packet above 64 KiB (net/ipv4: iph_totlen).
    let total = u32::from(u16::from_be_bytes([header[2], header[3]]));
    let end = if total == 0 { frame.length() } else { LINK_HEADER + total };
    if end > frame.length() || end < LINK_HEADER + header_length {
        return TRUNCATED;
    }
    let source = Address::v4(word(header[12], header[13], header[14], header[15]));
    let destination = Address::v4(word(header[16], header[17], header[18], header[19]));
    set_addresses(packet, direction, source, destination);
    packet.protocol = header[9];
    let fragment = u16::from_be_bytes([header[6], header[7]]);
    let is_later_fragment = fragment & 0x1fff != 0;
    if fragment & 0x3fff != 0 {
        packet.fragment_id = word(0, 0, header[4], header[5]);
        packet.is_first_fragment = !is_later_fragment;
    }
    if is_later_fragment {
        packet.kind = Kind::Fragment;
        return Outcome::Packet;
    }
    transport(frame, direction, LINK_HEADER + header_length, end, packet)
}

#[inline(always)]
fn parse_v6<F: Frame>(frame: &F, direction: Direction, packet: &mut Packet) -> Outcome {
    let Some(header) = frame.load::<8>(LINK_HEADER) else { return TRUNCATED };
    if header[0] >> 4 != 6 || !load_v6_addresses(frame, direction, LINK_HEADER, packet) {
        return TRUNCATED;
    }
    // A payload length of 0 is a jumbogram (RFC 2675) or a GSO packet above 64 KiB.
    let payload = u32::from(u16::from_be_bytes([header[4], header[5]]));
    let end = if payload == 0 { frame.length() } else { LINK_HEADER + 40 + payload };
    if end > frame.length() {
        return TRUNCATED;
    }
    let found = extensions(frame, header[6], LINK_HEADER + 40, end);
    if found & CUT_OFF != 0 {
        return TRUNCATED;
    }
    if found & ENDLESS != 0 {
        return Outcome::Refuse(Reason::ExtensionHeaders);
    }
    packet.protocol = found as u8;
    packet.has_fragment_header = found & FRAGMENT_HEADER != 0;
    packet.is_first_fragment = found & FIRST_FRAGMENT != 0;
    packet.fragment_id = (found >> 32) as u32;
    if found & LATER_FRAGMENT != 0 {
        packet.kind = Kind::Fragment;
        return Outcome::Packet;
    }
    transport(frame, direction, extensions_end(found), end, packet)
}

/// What [`extensions`] found, beside the protocol in the lowest byte, where it begins (see
/// [`extensions_end`]) and a fragment's id in the upper half.
const CUT_OFF: u64 = 1 << 8;
const ENDLESS: u64 = 1 << 9;
const FRAGMENT_HEADER: u64 = 1 << 10;
const FIRST_FRAGMENT: u64 = 1 << 11;
const LATER_FRAGMENT: u64 = 1 << 12;

/// Where the payload begins behind the extension headers: before the 64th KiB, as eight headers
/// have 16 KiB at most.
#[inline(always)]
const fn extensions_end(found: u64) -> u32 {
    (found >> 16) as u16 as u32
}

/// Follows the extension headers from `first` at `offset` to the payload, or to a fragment that
/// is not its datagram's first. One word, and a function apart: the programs' stack is short.
#[inline(never)]
fn extensions<F: Frame>(frame: &F, first: u8, mut offset: u32, end: u32) -> u64 {
    let (mut next, mut found) = (first, 0);
    for _ in 0..MAX_EXTENSION_HEADERS {
        if !is_extension_header(next) {
            return found | u64::from(offset) << 16 | u64::from(next);
        }
        // Eight bytes is the length of the shortest.
        let Some(header) = frame.load::<8>(offset) else { return CUT_OFF };
        offset += extension_length(next, header[1]);
        if offset > end {
            return CUT_OFF;
        }
        if next == 44 {
            let position = u16::from_be_bytes([header[2], header[3]]);
            found = FRAGMENT_HEADER;
            // Offset 0 without "more" is an atomic fragment (RFC 6946): a whole packet.
            if position & 0xfff9 != 0 {
                found |= u64::from(word(header[4], header[5], header[6], header[7])) << 32;
                if position & 0xfff8 != 0 {
                    return found | LATER_FRAGMENT | u64::from(header[0]);
                }
                found |= FIRST_FRAGMENT;
            }
        }
        next = header[0];
    }
    ENDLESS
}

/// Whether another header follows this one, as RFC 8200 has it.
#[inline(always)]
const fn is_extension_header(kind: u8) -> bool {
    // Hop-by-hop options, routing, fragment, authentication, destination options, mobility, HIP,
    // shim6.
    matches!(kind, 0 | 43 | 44 | 51 | 60 | 135 | 139 | 140)
}

/// Length of an extension header from its second byte.
#[inline(always)]
const fn extension_length(kind: u8, length: u8) -> u32 {
    match kind {
        44 => 8,
        // It counts 32-bit words, minus 2 (RFC 4302).
        51 => (length as u32 + 2) * 4,
        _ => (length as u32 + 1) * 8,
    }
}

#[inline(always)]
fn transport<F: Frame>(
    frame: &F,
    direction: Direction,
    offset: u32,
    end: u32,
    packet: &mut Packet,
) -> Outcome {
    let is_v6 = packet.local.family == 6;
    match packet.protocol {
        TCP => {
            if offset + 20 > end {
                return TRUNCATED;
            }
            let Some(header) = frame.load::<14>(offset) else { return TRUNCATED };
            set_ports(packet, direction, [header[0], header[1], header[2], header[3]]);
            set_tcp_flags(packet, header[13]);
        }
        UDP => {
            if offset + 8 > end {
                return TRUNCATED;
            }
            let Some(header) = frame.load::<4>(offset) else { return TRUNCATED };
            set_ports(packet, direction, header);
        }
        SCTP => {
            // The first fragment of a message always holds the common header and a chunk type.
            if offset + 13 > end {
                return TRUNCATED;
            }
            let Some(header) = frame.load::<13>(offset) else { return TRUNCATED };
            set_ports(packet, direction, [header[0], header[1], header[2], header[3]]);
            packet.detail = header[12];
            packet.is_opening = header[12] == 1;
            packet.is_answer = header[12] == 2;
        }
        ICMP if !is_v6 => return icmp_v4(frame, offset, end, packet),
        ICMPV6 if is_v6 => return icmp_v6(frame, direction, offset, end, packet),
        _ => {}
    }
    Outcome::Packet
}

#[inline(always)]
fn icmp_v4<F: Frame>(frame: &F, offset: u32, end: u32, packet: &mut Packet) -> Outcome {
    if offset + 8 > end {
        return TRUNCATED;
    }
    let Some(header) = frame.load::<6>(offset) else { return TRUNCATED };
    packet.detail = header[0];
    packet.code = header[1];
    match header[0] {
        // Echo, timestamp and address mask: request and reply carry an id.
        0 | 8 | 13 | 14 | 17 | 18 => {
            let is_request = matches!(header[0], 8 | 13 | 17);
            set_echo(packet, is_request, u16::from_be_bytes([header[4], header[5]]));
            Outcome::Packet
        }
        // Destination unreachable, source quench, time exceeded, parameter problem.
        3 | 4 | 11 | 12 => {
            packet.kind = Kind::Error;
            Outcome::Error(offset + 8)
        }
        _ => {
            packet.kind = Kind::Stateless;
            Outcome::Packet
        }
    }
}

#[inline(always)]
fn icmp_v6<F: Frame>(
    frame: &F,
    direction: Direction,
    offset: u32,
    end: u32,
    packet: &mut Packet,
) -> Outcome {
    if offset + 4 > end {
        return TRUNCATED;
    }
    let Some(header) = frame.load::<2>(offset) else { return TRUNCATED };
    packet.detail = header[0];
    packet.code = header[1];
    match header[0] {
        // Multicast listener discovery (RFC 2710, RFC 3810: no router forwards it); router
        // solicitation, neighbour solicitation and advertisement (RFC 4861: forwarded ones have
        // a smaller hop limit).
        130..=132 | 143 if has_hop_limit(frame, 1) => Outcome::Pass,
        133 | 135 | 136 if has_hop_limit(frame, 255) => Outcome::Pass,
        // Router advertisement and redirect: to a pod they are the network's business, from a
        // pod they are an attack.
        134 | 137 => match direction {
            Direction::Ingress if has_hop_limit(frame, 255) => Outcome::Pass,
            _ => Outcome::Refuse(Reason::RouterMessage),
        },
        128 | 129 => {
            if offset + 8 > end {
                return TRUNCATED;
            }
            let Some(id) = frame.load::<2>(offset + 4) else { return TRUNCATED };
            set_echo(packet, header[0] == 128, u16::from_be_bytes(id));
            Outcome::Packet
        }
        1..=4 => {
            packet.kind = Kind::Error;
            Outcome::Error(offset + 8)
        }
        _ => {
            packet.kind = Kind::Stateless;
            Outcome::Packet
        }
    }
}

#[inline(always)]
fn has_hop_limit<F: Frame>(frame: &F, hop_limit: u8) -> bool {
    frame.load::<1>(LINK_HEADER + 7) == Some([hop_limit])
}

/// Reads the start of the packet that an ICMP error quotes. That packet went the other way, so
/// its source is this error's destination side.
#[inline(always)]
fn inner_v4<F: Frame>(frame: &F, direction: Direction, offset: u32, inner: &mut Packet) -> bool {
    let Some(header) = frame.load::<20>(offset) else { return false };
    let header_length = u32::from(header[0] & 0x0f) * 4;
    let fragment = u16::from_be_bytes([header[6], header[7]]);
    if header[0] >> 4 != 4 || header_length < 20 || fragment & 0x1fff != 0 {
        return false;
    }
    let source = Address::v4(word(header[12], header[13], header[14], header[15]));
    let destination = Address::v4(word(header[16], header[17], header[18], header[19]));
    set_addresses(inner, opposite(direction), source, destination);
    inner.protocol = header[9];
    inner_ports(frame, direction, offset + header_length, inner)
}

#[inline(always)]
fn inner_v6<F: Frame>(frame: &F, direction: Direction, offset: u32, inner: &mut Packet) -> bool {
    let Some(header) = frame.load::<8>(offset) else { return false };
    if header[0] >> 4 != 6 || !load_v6_addresses(frame, opposite(direction), offset, inner) {
        return false;
    }
    // A large datagram that met a small link is quoted as its first fragment.
    let found = extensions(frame, header[6], offset + 40, frame.length());
    if found & (CUT_OFF | ENDLESS | LATER_FRAGMENT) != 0 {
        return false;
    }
    inner.protocol = found as u8;
    inner_ports(frame, direction, extensions_end(found), inner)
}

#[inline(always)]
fn inner_ports<F: Frame>(frame: &F, direction: Direction, offset: u32, inner: &mut Packet) -> bool {
    match inner.protocol {
        TCP | UDP | SCTP => {
            let Some(ports) = frame.load::<4>(offset) else { return false };
            set_ports(inner, opposite(direction), ports);
        }
        ICMP | ICMPV6 => {
            let Some(header) = frame.load::<6>(offset) else { return false };
            // Never an error about an error.
            if !matches!(header[0], 0 | 8 | 13 | 14 | 17 | 18 | 128 | 129) {
                return false;
            }
            let id = u16::from_be_bytes([header[4], header[5]]);
            inner.local_port = id;
            inner.remote_port = id;
        }
        _ => {}
    }
    true
}

#[inline(always)]
const fn opposite(direction: Direction) -> Direction {
    match direction {
        Direction::Ingress => Direction::Egress,
        Direction::Egress => Direction::Ingress,
    }
}

/// Notes the addresses by side.
#[inline(always)]
pub fn set_addresses(packet: &mut Packet, direction: Direction, source: Address, dest: Address) {
    (packet.local, packet.remote) = match direction {
        Direction::Ingress => (dest, source),
        Direction::Egress => (source, dest),
    };
}

/// `ports` are the first four bytes of a TCP, UDP or SCTP header.
#[inline(always)]
pub fn set_ports(packet: &mut Packet, direction: Direction, ports: [u8; 4]) {
    let source = u16::from_be_bytes([ports[0], ports[1]]);
    let destination = u16::from_be_bytes([ports[2], ports[3]]);
    (packet.local_port, packet.remote_port) = match direction {
        Direction::Ingress => (destination, source),
        Direction::Egress => (source, destination),
    };
}

/// Notes what the TCP flags say about opening a flow.
#[inline(always)]
pub fn set_tcp_flags(packet: &mut Packet, flags: u8) {
    packet.detail = flags;
    packet.is_opening = flags & (SYN | ACK | RST) == SYN;
    packet.is_answer = flags & (SYN | ACK) == SYN | ACK || flags & RST != 0;
}

#[inline(always)]
fn set_echo(packet: &mut Packet, is_request: bool, id: u16) {
    packet.local_port = id;
    packet.remote_port = id;
    packet.is_opening = is_request;
    packet.is_answer = !is_request;
}

#[inline(always)]
fn word(a: u8, b: u8, c: u8, d: u8) -> u32 {
    u32::from_ne_bytes([a, b, c, d])
}

/// Notes the addresses of the IPv6 header at `offset`, if it is all there. One after the other:
/// the programs' stack is short.
#[inline(always)]
fn load_v6_addresses<F: Frame>(
    frame: &F,
    direction: Direction,
    offset: u32,
    packet: &mut Packet,
) -> bool {
    let Some(source) = load_v6_address(frame, offset + 8) else { return false };
    match direction {
        Direction::Ingress => packet.remote = source,
        Direction::Egress => packet.local = source,
    }
    let Some(destination) = load_v6_address(frame, offset + 24) else { return false };
    match direction {
        Direction::Ingress => packet.local = destination,
        Direction::Egress => packet.remote = destination,
    }
    true
}

#[inline(always)]
fn load_v6_address<F: Frame>(frame: &F, offset: u32) -> Option<Address> {
    let bytes = frame.load::<16>(offset)?;
    let at = |at: usize| word(bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]);
    Some(Address::v6([at(0), at(4), at(8), at(12)]))
}
