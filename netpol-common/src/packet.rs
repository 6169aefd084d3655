//! Parses a frame into what a verdict needs, whatever the frame looks like. The eBPF program has
//! a shorter way for the common headers; this is the complete one. It must never decide a verdict
//! by policy and never read beyond what [`Frame::load`] gives.

use crate::layout::{Address, Direction, Reason};
use crate::neighbour;

/// A frame from its link-layer header on.
pub trait Frame {
    /// The `N` bytes at `offset`, or `None` if the frame ends before.
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]>;
    /// Frame length in bytes.
    fn length(&self) -> u32;
    /// Whether a VLAN tag stands in the packet's metadata rather than in the frame.
    fn has_vlan_tag(&self) -> bool;

    /// [`follow`] in this frame. (The kernel's is a function that is verified on its own, so that
    /// the paths through it are not multiplied and its stack is its own. So is the next one.)
    fn follow(&self, next: u8, offset: u32, end: u32) -> Chain
    where
        Self: Sized,
    {
        follow(self, next, offset, end)
    }

    /// [`addresses_v6`] in this frame.
    fn addresses_v6(&self, direction: Direction, offset: u32, packet: &mut Packet) -> bool
    where
        Self: Sized,
    {
        addresses_v6(self, direction, offset, packet)
    }
}

/// A frame up to the end of its IP packet: what follows is padding.
struct Until<'a, F> {
    frame: &'a F,
    end: u32,
}

impl<F: Frame> Frame for Until<'_, F> {
    #[inline(always)]
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        if offset + N as u32 > self.end { None } else { self.frame.load(offset) }
    }

    #[inline(always)]
    fn length(&self) -> u32 {
        self.end
    }

    #[inline(always)]
    fn has_vlan_tag(&self) -> bool {
        self.frame.has_vlan_tag()
    }

    #[inline(always)]
    fn follow(&self, next: u8, offset: u32, end: u32) -> Chain {
        self.frame.follow(next, offset, if end < self.end { end } else { self.end })
    }

    #[inline(always)]
    fn addresses_v6(&self, direction: Direction, offset: u32, packet: &mut Packet) -> bool {
        offset + 40 <= self.end && self.frame.addresses_v6(direction, offset, packet)
    }
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
    /// An ICMP error; [`parse`] says what it is about, if that could be read.
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
    /// The packet was filled in; it is an ICMP error and the inner one was too.
    Related,
    /// Passes always: ARP, neighbour discovery, multicast listener discovery, towards a pod.
    Pass,
    /// The same from a pod, or what pretends to be it: [`neighbour::refuses`] judges it.
    Neighbour,
    /// Cannot be judged: dropped for isolated endpoints.
    Refuse(Reason),
}

/// Parses `frame`, seen by an endpoint in `direction`, into `packet`; for an ICMP error also the
/// packet that it is about into `inner` (from the same endpoint's view).
#[inline(always)]
pub fn parse<F: Frame>(
    frame: &F,
    direction: Direction,
    packet: &mut Packet,
    inner: &mut Packet,
) -> Outcome {
    if frame.has_vlan_tag() {
        return Outcome::Refuse(Reason::Ethertype);
    }
    parse_in_tag(frame, direction, packet, inner)
}

/// [`parse`], whether the frame has a VLAN tag or not.
#[inline(always)]
pub fn parse_in_tag<F: Frame>(
    frame: &F,
    direction: Direction,
    packet: &mut Packet,
    inner: &mut Packet,
) -> Outcome {
    let Some(ethertype) = frame.load::<2>(12) else {
        return Outcome::Refuse(Reason::Truncated);
    };
    match u16::from_be_bytes(ethertype) {
        0x0800 => parse_v4(frame, direction, packet, inner),
        0x86dd => parse_v6(frame, direction, packet, inner),
        0x0806 => neighbourly(direction),
        _ => Outcome::Refuse(Reason::Ethertype),
    }
}

const TRUNCATED: Outcome = Outcome::Refuse(Reason::Truncated);

#[inline(always)]
const fn neighbourly(direction: Direction) -> Outcome {
    match direction {
        Direction::Ingress => Outcome::Pass,
        Direction::Egress => Outcome::Neighbour,
    }
}

#[inline(always)]
fn parse_v4<F: Frame>(
    frame: &F,
    direction: Direction,
    packet: &mut Packet,
    inner: &mut Packet,
) -> Outcome {
    let Some(header) = frame.load::<20>(LINK_HEADER) else { return TRUNCATED };
    let header_length = u32::from(header[0] & 0x0f) * 4;
    if header[0] >> 4 != 4 || header_length < 20 {
        return TRUNCATED;
    }
    // A total length of 0 is how Linux marks a GSO packet above 64 KiB (include/linux/ip.h: iph_totlen).
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
    transport(frame, direction, LINK_HEADER + header_length, end, packet, inner)
}

#[inline(always)]
fn parse_v6<F: Frame>(
    frame: &F,
    direction: Direction,
    packet: &mut Packet,
    inner: &mut Packet,
) -> Outcome {
    let Some(header) = frame.load::<8>(LINK_HEADER) else { return TRUNCATED };
    if header[0] >> 4 != 6 {
        return TRUNCATED;
    }
    // A payload length of 0 is a jumbogram (RFC 2675) or a GSO packet above 64 KiB.
    let payload = u32::from(u16::from_be_bytes([header[4], header[5]]));
    let end = if payload == 0 { frame.length() } else { LINK_HEADER + 40 + payload };
    if end > frame.length() || !frame.addresses_v6(direction, LINK_HEADER, packet) {
        return TRUNCATED;
    }
    let chain = frame.follow(header[6], LINK_HEADER + 40, end);
    packet.protocol = chain.next();
    packet.has_fragment_header = chain.has_fragment_header();
    if chain.is_first_fragment() || chain.end() == Chain::LATER_FRAGMENT {
        packet.fragment_id = chain.fragment_id();
        packet.is_first_fragment = chain.is_first_fragment();
    }
    match chain.end() {
        Chain::TRANSPORT => transport(frame, direction, chain.offset(), end, packet, inner),
        Chain::LATER_FRAGMENT => {
            packet.kind = Kind::Fragment;
            Outcome::Packet
        }
        Chain::TRUNCATED => TRUNCATED,
        _ => Outcome::Refuse(Reason::ExtensionHeaders),
    }
}

/// Notes the addresses of the IPv6 header at `offset`; whether they are there.
#[inline(always)]
pub fn addresses_v6<F: Frame>(
    frame: &F,
    direction: Direction,
    offset: u32,
    packet: &mut Packet,
) -> bool {
    let Packet { local, remote, .. } = packet;
    let (source, destination) = match direction {
        Direction::Ingress => (remote, local),
        Direction::Egress => (local, remote),
    };
    // One after the other, for the kernel's stack, and the last first: both or none are noted.
    let Some(bytes) = frame.load(offset + 24) else { return false };
    *destination = v6_address(&bytes);
    let Some(bytes) = frame.load(offset + 8) else { return false };
    *source = v6_address(&bytes);
    true
}

/// Where a chain of IPv6 extension headers leads, in one word: the fragment identification as in
/// memory, the offset behind the chain, the next header there, and how the chain ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chain(pub u64);

impl Chain {
    const TRUNCATED: u8 = 0;
    /// It leads to the transport header.
    const TRANSPORT: u8 = 1;
    /// It ends in the header of a fragment other than the first.
    const LATER_FRAGMENT: u8 = 2;
    /// It goes on for too long.
    const ENDLESS: u8 = 3;
    /// Beside the end: it holds the header of a first fragment.
    const FIRST_FRAGMENT: u64 = 0x80;
    /// Likewise: it holds a fragment header at all.
    const FRAGMENT_HEADER: u64 = 0x40;

    /// The same in a frame with so many more bytes in front.
    #[inline(always)]
    pub const fn shifted(self, by: u32) -> Self {
        let offset = (self.offset() + by) as u64 & 0xffff;
        Self(self.0 & !(0xffff << 16) | offset << 16)
    }

    #[inline(always)]
    const fn new(end: u8, next: u8, offset: u32, fragment: u64) -> Self {
        Self(fragment | (offset as u64 & 0xffff) << 16 | (next as u64) << 8 | end as u64)
    }

    #[inline(always)]
    const fn end(self) -> u8 {
        self.0 as u8 & 0x3f
    }

    #[inline(always)]
    const fn is_first_fragment(self) -> bool {
        self.0 & Self::FIRST_FRAGMENT != 0
    }

    #[inline(always)]
    const fn has_fragment_header(self) -> bool {
        self.0 & Self::FRAGMENT_HEADER != 0
    }

    #[inline(always)]
    const fn next(self) -> u8 {
        (self.0 >> 8) as u8
    }

    /// At most two chains of eight headers of 2 KiB each stand before it: 16 bits are enough.
    #[inline(always)]
    const fn offset(self) -> u32 {
        (self.0 >> 16) as u32 & 0xffff
    }

    #[inline(always)]
    const fn fragment_id(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

/// Follows the extension headers from the one of type `next` at `offset`, in a packet that ends at
/// `end`.
#[inline(always)]
pub fn follow<F: Frame>(frame: &F, mut next: u8, mut offset: u32, end: u32) -> Chain {
    let mut fragment = 0;
    for _ in 0..MAX_EXTENSION_HEADERS {
        if next == 44 {
            let Some(header) = frame.load::<8>(offset) else {
                return Chain::new(Chain::TRUNCATED, 0, 0, 0);
            };
            next = header[0];
            offset += 8;
            let position = u16::from_be_bytes([header[2], header[3]]);
            // Offset 0 without "more" is an atomic fragment (RFC 6946): a whole packet.
            if position & 0xfff9 != 0 {
                let id = word(header[4], header[5], header[6], header[7]);
                let is_first = position & 0xfff8 == 0;
                fragment = (id as u64) << 32 | if is_first { Chain::FIRST_FRAGMENT } else { 0 };
            }
            fragment |= Chain::FRAGMENT_HEADER;
            if position & 0xfff8 != 0 && offset <= end {
                return Chain::new(Chain::LATER_FRAGMENT, next, offset, fragment);
            }
        } else if is_extension(next) {
            let Some([following, length]) = frame.load::<2>(offset) else {
                return Chain::new(Chain::TRUNCATED, 0, 0, 0);
            };
            let length = u32::from(length);
            // The authentication header counts 32-bit words, minus 2 (RFC 4302).
            offset += if next == 51 { (length + 2) * 4 } else { (length + 1) * 8 };
            next = following;
        } else {
            return Chain::new(Chain::TRANSPORT, next, offset, fragment);
        }
        if offset > end {
            return Chain::new(Chain::TRUNCATED, 0, 0, 0);
        }
    }
    Chain::new(Chain::ENDLESS, 0, 0, 0)
}

/// Whether an IPv6 next header value names an extension header that tells its own length:
/// hop-by-hop options, routing, authentication, destination options, mobility, HIP, shim6.
#[inline(always)]
const fn is_extension(next: u8) -> bool {
    matches!(next, 0 | 43 | 51 | 60 | 135 | 139 | 140)
}

#[inline(always)]
fn transport<F: Frame>(
    frame: &F,
    direction: Direction,
    offset: u32,
    end: u32,
    packet: &mut Packet,
    inner: &mut Packet,
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
        ICMP if !is_v6 => return icmp_v4(frame, direction, offset, end, packet, inner),
        ICMPV6 if is_v6 => return icmp_v6(frame, direction, offset, end, packet, inner),
        _ => {}
    }
    Outcome::Packet
}

#[inline(always)]
fn icmp_v4<F: Frame>(
    frame: &F,
    direction: Direction,
    offset: u32,
    end: u32,
    packet: &mut Packet,
    inner: &mut Packet,
) -> Outcome {
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
            if inner_v4(&Until { frame, end }, direction, offset + 8, inner) {
                Outcome::Related
            } else {
                Outcome::Packet
            }
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
    inner: &mut Packet,
) -> Outcome {
    if offset + 4 > end {
        return TRUNCATED;
    }
    let Some(header) = frame.load::<2>(offset) else { return TRUNCATED };
    packet.detail = header[0];
    packet.code = header[1];
    let is_egress = direction as u8 == Direction::Egress as u8;
    match header[0] {
        // Multicast listener discovery (RFC 2710, RFC 3810), router solicitation, neighbour
        // solicitation and advertisement (RFC 4861). Towards a pod: what a router has forwarded
        // has a smaller hop limit, or not such a source.
        131..=133 | 135 | 136 | 143 if is_egress => Outcome::Neighbour,
        130 if is_egress => Outcome::Refuse(Reason::RouterMessage),
        130..=132 | 143 if has_hop_limit(frame, 1) && is_of_link(packet) => Outcome::Pass,
        133 | 135 | 136 if has_hop_limit(frame, 255) => Outcome::Pass,
        // Router advertisement and redirect, and asking for listeners above: to a pod they are the
        // network's business, from a pod they are an attack.
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
            if inner_v6(&Until { frame, end }, direction, offset + 8, inner) {
                Outcome::Related
            } else {
                Outcome::Packet
            }
        }
        _ => {
            packet.kind = Kind::Stateless;
            Outcome::Packet
        }
    }
}

/// Whether a packet towards a pod was sent to a group by somebody on the link.
#[inline(always)]
const fn is_of_link(packet: &Packet) -> bool {
    neighbour::is_multicast(&packet.local)
        && (neighbour::is_link_local(&packet.remote) || neighbour::is_unspecified(&packet.remote))
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
    if header[0] >> 4 != 4
        || header_length < 20
        || offset + header_length > frame.length()
        || fragment & 0x1fff != 0
    {
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
    if header[0] >> 4 != 6 || !frame.addresses_v6(opposite(direction), offset, inner) {
        return false;
    }
    // A large datagram that met a small link is quoted as its first fragment.
    let chain = frame.follow(header[6], offset + 40, frame.length());
    inner.protocol = chain.next();
    chain.end() == Chain::TRANSPORT && inner_ports(frame, direction, chain.offset(), inner)
}

#[inline(always)]
fn inner_ports<F: Frame>(frame: &F, direction: Direction, offset: u32, inner: &mut Packet) -> bool {
    let icmp = if inner.local.family == 6 { ICMPV6 } else { ICMP };
    match inner.protocol {
        TCP | UDP | SCTP => {
            let Some(ports) = frame.load::<4>(offset) else { return false };
            set_ports(inner, opposite(direction), ports);
        }
        protocol if protocol == icmp => {
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

/// Whether a pod without an address asks for one: DHCP, from 0.0.0.0 port 68 to port 67 of the
/// link (RFC 2131, section 4.1).
#[inline(always)]
pub const fn asks_for_address(packet: &Packet) -> bool {
    packet.local.family == 4
        && packet.local.words[0] == 0
        && packet.remote.words[0] == u32::MAX
        && packet.protocol == UDP
        && packet.kind as u8 == Kind::Flow as u8
        && packet.local_port == 68
        && packet.remote_port == 67
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

#[inline(always)]
fn v6_address(bytes: &[u8; 16]) -> Address {
    Address::v6([
        word(bytes[0], bytes[1], bytes[2], bytes[3]),
        word(bytes[4], bytes[5], bytes[6], bytes[7]),
        word(bytes[8], bytes[9], bytes[10], bytes[11]),
        word(bytes[12], bytes[13], bytes[14], bytes[15]),
    ])
}
