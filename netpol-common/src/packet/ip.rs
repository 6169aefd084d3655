//! The headers of IPv4 and IPv6. Must never look for ports in a fragment other than the first.

use super::transport::transport;
use super::{Chain, Frame, Kind, LINK_HEADER, Outcome, Packet, TRUNCATED, set_addresses, word};
use crate::layout::{Address, Direction, Reason};

#[inline(always)]
pub(super) fn parse_v4<F: Frame>(
    frame: &F,
    direction: Direction,
    packet: &mut Packet,
    inner: &mut Packet,
) -> Outcome {
    let Some(header) = frame.load::<20>(LINK_HEADER) else { return TRUNCATED };
    let Some(header_length) = length_v4(&header) else { return TRUNCATED };
    // A total length of 0 is how Linux marks a GSO packet above 64 KiB (include/linux/ip.h:
    // iph_totlen).
    let total = u32::from(u16::from_be_bytes([header[2], header[3]]));
    let end = if total == 0 { frame.length() } else { LINK_HEADER + total };
    if end > frame.length() || end < LINK_HEADER + header_length {
        return TRUNCATED;
    }
    let (source, destination) = addresses_v4(&header);
    set_addresses(packet, direction, source, destination);
    packet.protocol = header[9];
    let fragment = fragment_v4(&header);
    let is_later_fragment = fragment & FRAGMENT_OFFSET != 0;
    if fragment & (MORE_FRAGMENTS | FRAGMENT_OFFSET) != 0 {
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
pub(super) fn parse_v6<F: Frame>(
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

/// The length of an IPv4 header; `None`: it is none.
#[inline(always)]
pub(super) fn length_v4(header: &[u8; 20]) -> Option<u32> {
    let length = u32::from(header[0] & 0x0f) * 4;
    if header[0] >> 4 != 4 || length < 20 { None } else { Some(length) }
}

/// What an IPv4 header says of fragments.
#[inline(always)]
pub(super) fn fragment_v4(header: &[u8; 20]) -> u16 {
    u16::from_be_bytes([header[6], header[7]])
}

/// The bit of [`fragment_v4`] that says that more fragments follow.
const MORE_FRAGMENTS: u16 = 0x2000;
/// The bits of [`fragment_v4`] that say where a fragment belongs; zero: it is the first.
pub(super) const FRAGMENT_OFFSET: u16 = 0x1fff;

/// Source and destination of an IPv4 header.
#[inline(always)]
pub(super) fn addresses_v4(header: &[u8; 20]) -> (Address, Address) {
    let source = word(header[12], header[13], header[14], header[15]);
    let destination = word(header[16], header[17], header[18], header[19]);
    (Address::v4(source), Address::v4(destination))
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

#[inline(always)]
fn v6_address(bytes: &[u8; 16]) -> Address {
    Address::v6([
        word(bytes[0], bytes[1], bytes[2], bytes[3]),
        word(bytes[4], bytes[5], bytes[6], bytes[7]),
        word(bytes[8], bytes[9], bytes[10], bytes[11]),
        word(bytes[12], bytes[13], bytes[14], bytes[15]),
    ])
}
