//! ICMP for IPv4 (RFC 792) and IPv6 (RFC 4443), and what an error quotes. Must never read of that
//! beyond the end of the packet that quotes it.

use super::ip::{FRAGMENT_OFFSET, addresses_v4, fragment_v4, length_v4};
use super::{
    Chain, Frame, ICMP, ICMPV6, Kind, LINK_HEADER, Outcome, Packet, SCTP, TCP, TRUNCATED, UDP,
    set_addresses, set_ports,
};
use crate::layout::{Direction, Reason};
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
            echo(packet, is_request, u16::from_be_bytes([header[4], header[5]]))
        }
        // Destination unreachable, source quench, time exceeded, parameter problem.
        3 | 4 | 11 | 12 => {
            let quote = Until { frame, end };
            error(packet, || quoted_v4(&quote, opposite(direction), offset + 8, inner))
        }
        _ => other(packet),
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
            echo(packet, header[0] == 128, u16::from_be_bytes(id))
        }
        1..=4 => {
            let quote = Until { frame, end };
            error(packet, || quoted_v6(&quote, opposite(direction), offset + 8, inner))
        }
        _ => other(packet),
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

/// A request or a reply with this id.
#[inline(always)]
fn echo(packet: &mut Packet, is_request: bool, id: u16) -> Outcome {
    set_id(packet, id);
    packet.is_opening = is_request;
    packet.is_answer = !is_request;
    Outcome::Packet
}

/// An error; `read`: reads what it quotes, and says whether it could.
#[inline(always)]
fn error(packet: &mut Packet, read: impl FnOnce() -> bool) -> Outcome {
    packet.kind = Kind::Error;
    if read() { Outcome::Related } else { Outcome::Packet }
}

/// Neither: it is judged on its own.
#[inline(always)]
const fn other(packet: &mut Packet) -> Outcome {
    packet.kind = Kind::Stateless;
    Outcome::Packet
}

#[inline(always)]
const fn set_id(packet: &mut Packet, id: u16) {
    packet.local_port = id;
    packet.remote_port = id;
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

/// Reads the start of the packet that an ICMP error quotes. That packet went the other way, which
/// is `direction`: its source is on the error's destination side.
#[inline(always)]
fn quoted_v4<F: Frame>(frame: &F, direction: Direction, offset: u32, inner: &mut Packet) -> bool {
    let Some(header) = frame.load::<20>(offset) else { return false };
    let Some(length) = length_v4(&header) else { return false };
    if offset + length > frame.length() || fragment_v4(&header) & FRAGMENT_OFFSET != 0 {
        return false;
    }
    let (source, destination) = addresses_v4(&header);
    set_addresses(inner, direction, source, destination);
    inner.protocol = header[9];
    quoted_ports(frame, direction, offset + length, inner)
}

#[inline(always)]
fn quoted_v6<F: Frame>(frame: &F, direction: Direction, offset: u32, inner: &mut Packet) -> bool {
    let Some(header) = frame.load::<8>(offset) else { return false };
    if header[0] >> 4 != 6 || !frame.addresses_v6(direction, offset, inner) {
        return false;
    }
    // A large datagram that met a small link is quoted as its first fragment.
    let chain = frame.follow(header[6], offset + 40, frame.length());
    inner.protocol = chain.next();
    chain.end() == Chain::TRANSPORT && quoted_ports(frame, direction, chain.offset(), inner)
}

#[inline(always)]
fn quoted_ports<F: Frame>(
    frame: &F,
    direction: Direction,
    offset: u32,
    inner: &mut Packet,
) -> bool {
    let icmp = if inner.local.family == 6 { ICMPV6 } else { ICMP };
    match inner.protocol {
        TCP | UDP | SCTP => {
            let Some(ports) = frame.load::<4>(offset) else { return false };
            set_ports(inner, direction, ports);
        }
        protocol if protocol == icmp => {
            let Some(header) = frame.load::<6>(offset) else { return false };
            // Never an error about an error.
            if !matches!(header[0], 0 | 8 | 13 | 14 | 17 | 18 | 128 | 129) {
                return false;
            }
            set_id(inner, u16::from_be_bytes([header[4], header[5]]));
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
