//! Parses a frame into what a verdict needs, whatever the frame looks like. The eBPF program has a
//! shorter way for the common headers; this is the complete one. It must never decide a verdict by
//! policy and never read beyond what [`Frame::load`] gives.

mod extensions;
mod icmp;
mod ip;
mod transport;

pub(crate) use extensions::hides_protocol;
pub use extensions::{Chain, follow};
pub use ip::addresses_v6;
pub use transport::{set_ports, set_tcp_flags};

use crate::layout::{Address, Direction, Reason};

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

/// What kind of packet this is for the flow table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum Kind {
    /// Belongs to a flow named by addresses, protocol and ports (ICMP echo: its id as both).
    #[default]
    Flow,
    /// PolicyVerdict on its own, never tracked (ICMP other than echo, timestamp, address mask).
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
    /// The same from a pod, or what pretends to be it: [`crate::neighbour::refuses`] judges it.
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
        0x0800 => ip::parse_v4(frame, direction, packet, inner),
        0x86dd => ip::parse_v6(frame, direction, packet, inner),
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

/// Notes the addresses by side.
#[inline(always)]
pub fn set_addresses(packet: &mut Packet, direction: Direction, source: Address, dest: Address) {
    (packet.local, packet.remote) = match direction {
        Direction::Ingress => (dest, source),
        Direction::Egress => (source, dest),
    };
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
fn word(a: u8, b: u8, c: u8, d: u8) -> u32 {
    u32::from_ne_bytes([a, b, c, d])
}
