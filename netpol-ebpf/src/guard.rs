//! The guard of a pod that no policy selects: it checks who speaks, and nothing else. Must never ask
//! a policy, nor look at the flow table.

use aya_ebpf::bindings::__sk_buff;
use netpol_common::layout::{Direction, LINK_ADDRESS, LINK_SHARED, Reason};
use netpol_common::neighbour::link_word;
use netpol_common::packet::{Frame as _, LINK_HEADER, Packet, SCTP, TCP, UDP, asks_for_address};
use netpol_common::verdict::{Endpoint, Verdict};

use crate::frame::{ETHERTYPE, Linear, Skb};
use crate::maps::Speaker;
use crate::neighbour::{self, speaks_as};
use crate::parse::{IN_TAG, NEIGHBOUR, PACKET, PASS, netpol_parse, refusal_reason};
use crate::{ALLOW, DENY, events};

/// Whether the packet may pass, as a tc return code.
#[inline(always)]
pub fn run(skb: *mut __sk_buff) -> i32 {
    // SAFETY: the context pointer is valid for the run of the program.
    let Some(speaker) = Speaker::on(unsafe { (*skb).ifindex }) else { return refuse(skb) };
    if is_plainly_own(skb, speaker) == Some(true) {
        return ALLOW;
    }
    let mut packet = Packet::default();
    let mut code = look(skb, speaker, &mut packet);
    if code == NEIGHBOUR {
        code = neighbour::judge(skb);
    }
    if code == PASS { ALLOW } else { tell(skb, speaker, &packet, code) }
}

/// Whether a packet that its source and protocol suffice for is the pod's own; `None`: it is another
/// one, or not read so easily.
#[inline(always)]
fn is_plainly_own(skb: *mut __sk_buff, speaker: Speaker) -> Option<bool> {
    let linear = Linear::of(skb);
    let link = speaker.link();
    if link & LINK_SHARED != 0 && link & LINK_ADDRESS != linear.link_source()? {
        return None;
    }
    let ethertype = linear.ethertype()?;
    if ethertype == 0x0800u16.to_be() {
        return Some(speaker.is_own4(linear.source4()?));
    }
    if ethertype != 0x86ddu16.to_be() {
        return None;
    }
    // Behind other headers there may be what neighbours say.
    let is_plain = matches!(linear.at::<u8>(14 + 6)?, TCP | UDP | SCTP);
    Some(is_plain && speaker.is_own6(linear.source6()?))
}

/// Reads the packet to its end: [`PASS`], [`NEIGHBOUR`], or the number of a reason to drop it.
#[inline(never)]
fn look(skb: *mut __sk_buff, speaker: Speaker, packet: &mut Packet) -> u32 {
    let frame = Skb(skb);
    let link = speaker.link();
    let Some(source) = frame.load::<6>(6) else { return Reason::Truncated as u32 };
    if link & LINK_SHARED != 0
        && link & LINK_ADDRESS != 0
        && link & LINK_ADDRESS != link_word(source)
    {
        return Reason::SourceAddress as u32;
    }
    match frame.load::<2>(ETHERTYPE as u32) {
        Some([0x08, 0x00 | 0x06] | [0x86, 0xdd] | [0x81, 0x00] | [0x88, 0xa8]) => {}
        // It is of another protocol, in which nobody here has an address. A tag in a tag is none,
        // and cannot be read: some kernels would take both off.
        _ => return PASS,
    }
    let mut inner = Packet::default();
    let parsed = netpol_parse(skb, Direction::Egress as u32 | IN_TAG, packet, &mut inner);
    // What cannot be read may be anybody's; or it may be what neighbours say, behind more headers
    // than are read here, if it has the hop limit that they insist on.
    if parsed == NEIGHBOUR
        || parsed == Reason::RouterMessage as u32
        || parsed < PACKET && (packet.local.family == 0 || has_neighbours_limit(&frame, packet))
    {
        return parsed;
    }
    if speaks_as(speaker, &packet.local) || asks_for_address(packet) {
        return PASS;
    }
    Reason::SourceAddress as u32
}

#[inline(always)]
fn has_neighbours_limit(frame: &Skb, packet: &Packet) -> bool {
    packet.local.family == 6 && matches!(frame.load::<1>(LINK_HEADER + 7), Some([255]) | None)
}

/// Counts what is dropped, and reports it if anybody listens.
#[inline(never)]
fn tell(skb: *mut __sk_buff, speaker: Speaker, packet: &Packet, reason: u32) -> i32 {
    let endpoint = Endpoint { id: speaker.id(), ..Endpoint::NOBODY };
    let verdict = Verdict::drop(refusal_reason(reason), 0);
    events::note(skb, &endpoint, Direction::Egress, packet, &verdict);
    DENY
}

/// Fails closed on an interface of which nobody knows who speaks there.
#[inline(never)]
fn refuse(skb: *mut __sk_buff) -> i32 {
    let verdict = Verdict::drop(Reason::UnknownEndpoint, 0);
    events::note(skb, &Endpoint::NOBODY, Direction::Egress, &Packet::default(), &verdict);
    DENY
}
