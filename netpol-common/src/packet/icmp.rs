//! ICMP for IPv4 (RFC 792) and IPv6 (RFC 4443), and what an error quotes. Must never read of that
//! beyond the end of the packet that quotes it.

use super::{
    Chain, Frame, ICMP, ICMPV6, Kind, LINK_HEADER, Outcome, Packet, SCTP, TCP, TRUNCATED, UDP,
    set_addresses, set_ports, word,
};
use crate::layout::{Address, Direction, Reason};
use crate::neighbour;

#[inline(always)]
pub(super) fn icmp_v4<F: Frame>(
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
pub(super) fn icmp_v6<F: Frame>(
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

#[inline(always)]
fn set_echo(packet: &mut Packet, is_request: bool, id: u16) {
    packet.local_port = id;
    packet.remote_port = id;
    packet.is_opening = is_request;
    packet.is_answer = !is_request;
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
