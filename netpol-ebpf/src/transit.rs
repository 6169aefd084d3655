//! The second look: stamped packets where they leave the node or enter a pod, with the destination
//! that they were translated to. PolicyVerdict as what the pod that sent them sends, by the same rules
//! and in the same flow table. Must never touch a packet that is not stamped.

use core::mem::MaybeUninit;

use aya_ebpf::bindings::__sk_buff;
use netpol_common::layout::{self, Direction, Reason};
use netpol_common::packet::Packet;
use netpol_common::verdict::{self, Arrival, Endpoint, FlowState, Maps as _, Verdict};

use crate::maps::{self, Kernel};
use crate::parse::{
    NEIGHBOUR, PACKET, PASS, RELATED, netpol_parse, netpol_parse_raw, refusal_reason,
};
use crate::slow::{self, AGAIN, DROPPED, FLOW, PASSED, Steps, has_changed};
use crate::{ALLOW, DENY, PLAIN, PacketContext, events, known, stamp};

/// The verdict on `skb` as a tc return code; `RAW`: the device has no link-layer header.
#[inline(always)]
pub fn run<const RAW: bool>(skb: *mut __sk_buff) -> i32 {
    if !stamp::is_on(skb) {
        return ALLOW;
    }
    let mut seen = MaybeUninit::uninit();
    let mut sender = 0;
    let mut is_read = false;
    if let Some((ifindex, endpoint)) = stamp::sender(skb) {
        sender = ifindex;
        if is_back(skb, ifindex) && !judges_own(&endpoint) {
            return ALLOW;
        }
        let known = look::<RAW>(skb, ifindex, &endpoint, &mut seen);
        if known == FlowState::Allowed as u32 || known == FlowState::Stamped as u32 {
            return pass(skb, ifindex);
        }
        is_read = known == PLAIN;
    }
    slow::judge(
        Direction::Egress,
        is_read,
        &mut seen,
        Steps {
            read: |seen: &mut _| read::<RAW>(skb, sender, seen),
            judge: |seen: &_| judge_flow(seen),
            talk: |_: &_| DENY,
            settle: |seen: &_, verdict| settle(skb, seen, verdict),
        },
    )
}

/// A function of its own, so that its stack is not added to that of judging.
#[inline(never)]
fn look<const RAW: bool>(
    skb: *mut __sk_buff,
    ifindex: u32,
    endpoint: &Endpoint,
    seen: &mut MaybeUninit<PacketContext>,
) -> u32 {
    known::<RAW>(skb, ifindex, *endpoint, Arrival::transit(), seen)
}

/// Reads the packet to its end, and judges one that has no flow. `sender`: the interface of whoever
/// stamped the packet, 0 if the stamp does not say so any more.
#[inline(never)]
fn read<const RAW: bool>(
    skb: *mut __sk_buff,
    sender: u32,
    seen: &mut MaybeUninit<PacketContext>,
) -> u64 {
    let mut inner = Packet::default();
    let (ifindex, endpoint) = (sender, Endpoint::NOBODY);
    let seen = seen.write(PacketContext { ifindex, endpoint, packet: Packet::default() });
    let egress = Direction::Egress as u32;
    let parsed = if RAW {
        netpol_parse_raw(skb, egress, &mut seen.packet, &mut inner)
    } else {
        netpol_parse(skb, egress, &mut seen.packet, &mut inner)
    };
    if parsed == PASS {
        return PASSED;
    }
    // Then its source says so, unless that was translated too.
    if sender == 0 {
        seen.ifindex = interface_of(&seen.packet);
    }
    let Some(endpoint) = maps::endpoint_at(seen.ifindex) else {
        events::count(0, Direction::Egress, Reason::ServiceMixed);
        return DROPPED;
    };
    seen.endpoint = endpoint;
    if is_back(skb, seen.ifindex) && !judges_own(&endpoint) {
        return PASSED;
    }
    // Nothing of the kind is ever stamped.
    let parsed = if parsed == NEIGHBOUR { Reason::Neighbour as u32 } else { parsed };
    if parsed < PACKET {
        if seen.endpoint.sets[Direction::Egress as usize] == 0 {
            stamp::clear(skb);
            return PASSED;
        }
        return Verdict::drop(refusal_reason(parsed), 0).pack();
    }
    let PacketContext { endpoint, packet, .. } = seen;
    if verdict::has_flow(&Kernel, endpoint, Arrival::transit(), packet) {
        return FLOW;
    }
    if owns(endpoint, packet) {
        return PASSED;
    }
    let inner = if parsed == RELATED { Some(&inner) } else { None };
    verdict::judge_apart(&Kernel, endpoint, Arrival::transit(), packet, inner).pack()
}

/// Judges a packet that has a flow.
#[inline(never)]
fn judge_flow(seen: &PacketContext) -> u64 {
    let PacketContext { endpoint, packet, .. } = seen;
    // As above.
    if owns(endpoint, packet) {
        return PASSED;
    }
    verdict::judge_tracked(&Kernel, endpoint, Arrival::transit(), packet).pack()
}

/// Does what the verdict says, if it still holds.
#[inline(never)]
fn settle(skb: *mut __sk_buff, seen: &PacketContext, verdict: u64) -> i32 {
    let verdict = Verdict::unpack(verdict);
    // As at the first look, see slow.rs.
    if has_changed(seen.ifindex, &seen.endpoint) {
        return AGAIN;
    }
    if verdict.is_noted {
        events::note(skb, &seen.endpoint, Direction::Egress, &seen.packet, &verdict);
    } else if verdict.has_evicted {
        events::count(seen.endpoint.id, Direction::Egress, Reason::FlowEvicted);
    }
    if !verdict.is_allowed {
        return DENY;
    }
    pass(skb, seen.ifindex)
}

/// Lets the packet pass. The stamp stays on what goes to its sender, who has to recognise it.
#[inline(always)]
fn pass(skb: *mut __sk_buff, sender: u32) -> i32 {
    if !is_back(skb, sender) {
        stamp::clear(skb);
    }
    ALLOW
}

/// Whether the packet is about to leave by the interface of whoever sent it.
#[inline(always)]
fn is_back(skb: *mut __sk_buff, sender: u32) -> bool {
    // SAFETY: the context pointer is valid for the run of the program.
    sender == unsafe { (*skb).ifindex }
}

/// Whether what it sends to itself by way of a Service is judged.
#[inline(always)]
fn judges_own(endpoint: &Endpoint) -> bool {
    layout::judges_own(endpoint.sets[Direction::Egress as usize])
}

/// The interface of the endpoint that the packet's source belongs to, or 0.
#[inline(never)]
fn interface_of(packet: &Packet) -> u32 {
    maps::interface_of(&packet.local).unwrap_or_default()
}

/// Whether the packet goes to the endpoint itself, and is not judged. A function of its own for its
/// stack.
#[inline(never)]
fn owns(endpoint: &Endpoint, packet: &Packet) -> bool {
    !judges_own(endpoint) && Kernel.owns(endpoint.id, &packet.remote)
}
