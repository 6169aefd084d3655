//! The second look: stamped packets where they leave the node or enter a pod, with the destination
//! that they were translated to. Judged as what the pod that sent them sends, by the same rules
//! and in the same flow table. Must never touch a packet that is not stamped.

use aya_ebpf::bindings::__sk_buff;
use netpol_common::layout::{Direction, Reason};
use netpol_common::packet::Packet;
use netpol_common::verdict::{self, Arrival, Endpoint, Known, Maps as _, Verdict};

use crate::maps::{self, Kernel};
use crate::slow::{
    AGAIN, PACKET, PASS, RELATED, has_changed, netpol_parse, netpol_parse_raw, refusal_reason,
    until_settled,
};
use crate::{ALLOW, DENY, events, known, stamp};

/// The verdict on `skb` as a tc return code; `RAW`: the device has no link-layer header.
#[inline(always)]
pub fn run<const RAW: bool>(skb: *mut __sk_buff) -> i32 {
    if !stamp::is_on(skb) {
        return ALLOW;
    }
    let mut sender = 0;
    if let Some((ifindex, endpoint)) = stamp::sender(skb) {
        sender = ifindex;
        // Back to whoever sent it: the program there has to recognise it.
        // SAFETY: the context pointer is valid for the run of the program.
        if ifindex == unsafe { (*skb).ifindex } {
            return ALLOW;
        }
        if is_established::<RAW>(skb, &endpoint) {
            stamp::clear(skb);
            return ALLOW;
        }
    }
    until_settled(Direction::Egress, || judge::<RAW>(skb, sender))
}

/// A function of its own, so that its stack is not added to that of [`judge`].
#[inline(never)]
fn is_established<const RAW: bool>(skb: *mut __sk_buff, endpoint: &Endpoint) -> bool {
    known::<RAW>(skb, endpoint, Arrival::transit()) as u32 != Known::No as u32
}

/// `sender`: the interface of whoever stamped the packet, 0 if the stamp does not say so any more.
#[inline(never)]
fn judge<const RAW: bool>(skb: *mut __sk_buff, sender: u32) -> i32 {
    let mut packet = Packet::default();
    let mut inner = Packet::default();
    let egress = Direction::Egress as u32;
    let parsed = if RAW {
        netpol_parse_raw(skb, egress, &mut packet, &mut inner)
    } else {
        netpol_parse(skb, egress, &mut packet, &mut inner)
    };
    if parsed == PASS {
        return ALLOW;
    }
    // Then its source says so, unless that was translated too.
    let sender = if sender == 0 { interface_of(&packet) } else { sender };
    let Some(endpoint) = maps::endpoint_at(sender) else {
        events::count(0, Direction::Egress, Reason::ServiceMixed);
        return DENY;
    };
    // SAFETY: the context pointer is valid for the run of the program.
    let is_back = sender == unsafe { (*skb).ifindex };
    // The stamp stays on what goes to its sender, who has to recognise it.
    if is_back || parsed >= PACKET && owns(&endpoint, &packet) {
        return ALLOW;
    }
    let verdict = if parsed >= PACKET {
        let inner = if parsed == RELATED { Some(&inner) } else { None };
        verdict::judge(&Kernel, &endpoint, Arrival::transit(), &mut packet, inner)
    } else if endpoint.sets[Direction::Egress as usize] == 0 {
        stamp::clear(skb);
        return ALLOW;
    } else {
        Verdict::drop(refusal_reason(parsed), 0)
    };
    // As at the first look, see slow.rs.
    if has_changed(sender, &endpoint) {
        return AGAIN;
    }
    if verdict.is_noted {
        events::note(skb, &endpoint, Direction::Egress, &packet, &verdict);
    } else if verdict.has_evicted {
        events::count(endpoint.id, Direction::Egress, Reason::FlowEvicted);
    }
    if !verdict.is_allowed {
        return DENY;
    }
    stamp::clear(skb);
    ALLOW
}

/// The interface of the endpoint that the packet's source belongs to, or 0.
#[inline(never)]
fn interface_of(packet: &Packet) -> u32 {
    maps::interface_of(&packet.local).unwrap_or_default()
}

/// Whether the packet goes to the endpoint itself. A function of its own for its stack.
#[inline(never)]
fn owns(endpoint: &Endpoint, packet: &Packet) -> bool {
    Kernel.owns(endpoint.id, &packet.remote)
}
