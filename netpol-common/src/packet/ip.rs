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
