//! What comes to a pod by a link that others share, and is not for it: who sends a frame chooses the
//! link-layer address that it is for, or sends it to all, whatever address of a friend or of its own
//! the packet in it is for. So each pod of such a link gets only what is for its own addresses, a
//! group, or all of its subnet. Must never ask a policy, nor look at the flow table.

use aya_ebpf::bindings::__sk_buff;
use netpol_common::layout::{Address, Direction, LINK_SHARED, Reason};
use netpol_common::neighbour::{is_link_local, is_multicast};
use netpol_common::packet::{Frame as _, LINK_HEADER, Packet};
use netpol_common::verdict::{Endpoint, Maps as _, Verdict};

use crate::frame::{ETHERTYPE, Linear, Skb};
use crate::maps::{Kernel, Speaker};
use crate::neighbour::{is_of_node, speaks_as};
use crate::parse::netpol_parse;
use crate::{ALLOW, DENY, events};

/// Whether the packet may pass to a pod that no policy selects, as a tc return code.
#[inline(always)]
pub fn run(skb: *mut __sk_buff) -> i32 {
    // SAFETY: the context pointer is valid for the run of the program.
    let Some(speaker) = Speaker::on(unsafe { (*skb).ifindex }) else { return refuse(skb, 0) };
    if is_plainly_for(skb, speaker) || is_for_all_we_read(skb, speaker) {
        return ALLOW;
    }
    refuse(skb, speaker.id().into())
}

/// Whether the destination is the one that most packets have.
#[inline(always)]
fn is_plainly_for(skb: *mut __sk_buff, speaker: Speaker) -> bool {
    let linear = Linear::of(skb);
    let ethertype = linear.ethertype();
    if ethertype == Some(0x0800u16.to_be()) {
        return linear.destination4().is_some_and(|to| speaker.is_own4(to));
    }
    ethertype == Some(0x86ddu16.to_be())
        && linear.destination6().is_some_and(|to| speaker.is_own6(to))
}

/// Reads the destination in full. What is not IP, or cannot be read, is for whoever gets it: no
/// policy selects this pod, and one that a policy selects cannot send such a thing.
#[inline(never)]
fn is_for_all_we_read(skb: *mut __sk_buff, speaker: Speaker) -> bool {
    let frame = Skb(skb);
    let version = frame.load::<1>(LINK_HEADER).map_or(0, |[first]| first >> 4);
    let to = match (frame.load::<2>(ETHERTYPE as u32), version) {
        (Some([0x08, 0x00]), 4) => {
            let Some(to) = frame.load::<4>(LINK_HEADER + 16) else { return true };
            Address::v4(u32::from_ne_bytes(to))
        }
        (Some([0x86, 0xdd]), 6) => {
            let mut packet = Packet::default();
            if !frame.addresses_v6(Direction::Ingress, LINK_HEADER, &mut packet) {
                return true;
            }
            packet.local
        }
        _ => return true,
    };
    is_for(skb, speaker, &to)
}

/// Whether a packet towards a pod that a policy selects came by a link that others share, and is
/// for none of those that it may be for. A function of its own for its stack.
#[inline(never)]
pub fn is_astray(skb: *mut __sk_buff, packet: &Packet) -> bool {
    // SAFETY: the context pointer is valid for the run of the program.
    let Some(speaker) = Speaker::on(unsafe { (*skb).ifindex }) else { return false };
    packet.local.family != 0
        && speaker.link() & LINK_SHARED != 0
        && Kernel.checks_source()
        && !is_for(skb, speaker, &packet.local)
}

#[inline(always)]
fn is_for(skb: *mut __sk_buff, speaker: Speaker, to: &Address) -> bool {
    if to.family == 6 {
        return is_multicast(to) || is_link_local(to) || speaks_as(speaker, to);
    }
    let word = u32::from_be(to.words[0]);
    word >> 28 == 0xe
        || word == u32::MAX
        || speaks_as(speaker, to)
        // What is for all of a subnet is for all of its link.
        || matches!(Skb(skb).load::<1>(0), Some([first]) if first & 1 != 0)
            && is_of_node(skb, speaker.routed_by(), to)
}

/// Counts what is dropped, and reports it if anybody listens.
#[inline(never)]
fn refuse(skb: *mut __sk_buff, id: u32) -> i32 {
    let (mut packet, mut inner) = (Packet::default(), Packet::default());
    let _ = netpol_parse(skb, Direction::Ingress as u32, &mut packet, &mut inner);
    // Nobody knows who it is that is on this interface.
    let reason = if id == 0 { Reason::UnknownEndpoint } else { Reason::DestinationAddress };
    let endpoint = Endpoint { id: id as u16, ..Endpoint::NOBODY };
    events::note(skb, &endpoint, Direction::Ingress, &packet, &Verdict::drop(reason, 0));
    DENY
}
