//! Reading a packet to its end, by `netpol_common::packet`, in functions that the verifier checks
//! on their own. Must never decide a verdict.

use aya_ebpf::bindings::__sk_buff;
use netpol_common::layout::Reason;
use netpol_common::packet::{self, Frame, Outcome, Packet};

use crate::frame::{RawSkb, Skb};
use crate::global::direction_of;

/// [`Outcome`] as a number: below these, the reason of a refusal.
pub const PACKET: u32 = 0x100;
/// What an ICMP error is about was filled in, too.
pub const RELATED: u32 = 0x101;
/// It passes always.
pub const PASS: u32 = 0x102;
/// It is [`crate::neighbour`]'s to judge.
pub const NEIGHBOUR: u32 = 0x103;

/// Added to the direction for [`netpol_parse`]: a VLAN tag does not matter.
pub const IN_TAG: u32 = 2;

/// [`packet::parse`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn netpol_parse(
    skb: *mut __sk_buff,
    direction: u32,
    packet: *mut Packet,
    inner: *mut Packet,
) -> u32 {
    parse(&Skb(skb), direction, packet, inner)
}

/// [`packet::parse`] on a device without link-layer header.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn netpol_parse_raw(
    skb: *mut __sk_buff,
    direction: u32,
    packet: *mut Packet,
    inner: *mut Packet,
) -> u32 {
    parse(&RawSkb(skb), direction, packet, inner)
}

#[inline(always)]
fn parse(frame: &impl Frame, direction: u32, packet: *mut Packet, inner: *mut Packet) -> u32 {
    // SAFETY: the verifier lets only null or a writable Packet through, and the caller's two are
    // different.
    let (Some(packet), Some(inner)) = (unsafe { (packet.as_mut(), inner.as_mut()) }) else {
        return Reason::Inconsistent as u32;
    };
    if direction & IN_TAG == 0 && frame.has_vlan_tag() {
        return Reason::Ethertype as u32;
    }
    outcome_word(packet::parse_in_tag(frame, direction_of(direction & 1), packet, inner))
}

#[inline(always)]
fn outcome_word(outcome: Outcome) -> u32 {
    match outcome {
        Outcome::Packet => PACKET,
        Outcome::Related => RELATED,
        Outcome::Pass => PASS,
        Outcome::Neighbour => NEIGHBOUR,
        Outcome::Refuse(reason) => reason as u32,
    }
}

/// The inverse of `reason as u32` for the reasons that parsing gives.
#[inline(always)]
pub fn refusal_reason(number: u32) -> Reason {
    Reason::from_number(number as u8).unwrap_or(Reason::Inconsistent)
}
