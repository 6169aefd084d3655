//! Every packet that is not plainly part of an established flow: what is done about it, one step
//! after another. What the steps are made of is in [`crate::parse`] and [`crate::global`]. Must
//! never judge by anything but what `netpol_common::verdict` says.

use core::mem::MaybeUninit;

use aya_ebpf::bindings::__sk_buff;
use netpol_common::layout::{self, Direction, Reason};
use netpol_common::neighbour::is_link_local;
use netpol_common::packet::Packet;
use netpol_common::verdict::{self, Arrival, Endpoint, Verdict};

use crate::global::{arrival_word, direction_of, netpol_refused};
use crate::maps::{self, Kernel};
use crate::parse::{NEIGHBOUR, PACKET, PASS, RELATED, netpol_parse, refusal_reason};
use crate::shield::is_astray;
use crate::{ALLOW, DENY, PacketContext, events, stamp};

/// How often a packet is judged at most because its endpoint's policies changed meanwhile. Each
/// time takes about a microsecond, and a change much more.
const MOST_TIMES: u32 = 4;

/// Not a tc return code: the endpoint's policies changed while the packet was judged by them.
pub const AGAIN: i32 = 0x100;

/// What [`Verdict::pack`] never gives: not a verdict yet, or one with which nothing is left to do.
const NO_VERDICT: u64 = 1 << 24;
/// The packet was read, and has a flow by which to judge it.
pub const FLOW: u64 = NO_VERDICT;
/// It was read, and is for neighbours.
pub const TALK: u64 = NO_VERDICT | 1;
/// It passes as it is.
pub const PASSED: u64 = NO_VERDICT | 2;
/// It is dropped, and was counted.
pub const DROPPED: u64 = NO_VERDICT | 3;

/// What there is to do about a packet one after the other, each a function of its own.
pub struct Steps<Read, Judge, Talk, Settle> {
    /// Reads it to its end; [`FLOW`] and [`TALK`] say whose it then is.
    pub read: Read,
    /// The verdict on one that has a flow.
    pub judge: Judge,
    /// What becomes of one that is for neighbours, as a tc return code.
    pub talk: Talk,
    /// Does what a verdict says: a tc return code, or [`AGAIN`].
    pub settle: Settle,
}

/// The verdict, as a tc return code, on a packet that is in `seen` already (`is_read`) or is read
/// first. One step comes after another rather than one calls the next, so that their stacks do not
/// add up: a verdict is 64 bits, a frame up to a third of all the stack there is.
#[inline(always)]
pub fn judge(
    direction: Direction,
    mut is_read: bool,
    seen: &mut MaybeUninit<PacketContext>,
    steps: Steps<
        impl Fn(&mut MaybeUninit<PacketContext>) -> u64,
        impl Fn(&PacketContext) -> u64,
        impl Fn(&PacketContext) -> i32,
        impl Fn(&PacketContext, u64) -> i32,
    >,
) -> i32 {
    let mut times = 0;
    while times < MOST_TIMES {
        let mut word = if is_read { FLOW } else { (steps.read)(seen) };
        if word == FLOW {
            // SAFETY: whoever says so has written it.
            word = (steps.judge)(unsafe { seen.assume_init_ref() });
        }
        if word == PASSED {
            return ALLOW;
        }
        if word == DROPPED {
            return DENY;
        }
        // SAFETY: as above, and so has whoever gave a verdict.
        let seen = unsafe { seen.assume_init_ref() };
        if word == TALK {
            return (steps.talk)(seen);
        }
        let code = (steps.settle)(seen, apply_verdict(seen, word));
        if code != AGAIN {
            return code;
        }
        is_read = false;
        times += 1;
    }
    events::count(0, direction, Reason::Inconsistent);
    DENY
}

/// Whether the entry of the endpoint with this interface is another one now.
#[inline(always)]
pub fn has_changed(ifindex: u32, endpoint: &Endpoint) -> bool {
    maps::endpoint_at(ifindex).is_some_and(|now| now != *endpoint)
}

/// Reads the packet to its end, and judges one that has no flow.
#[inline(never)]
pub fn read(skb: *mut __sk_buff, direction: u32, seen: &mut MaybeUninit<PacketContext>) -> u64 {
    // SAFETY: the context pointer is valid for the run of the program.
    let ifindex = unsafe { (*skb).ifindex };
    let Some(endpoint) = maps::endpoint_at(ifindex) else {
        events::count(0, direction_of(direction), Reason::UnknownEndpoint);
        return DROPPED;
    };
    let mut inner = Packet::default();
    let seen = seen.write(PacketContext { ifindex, endpoint, packet: Packet::default() });
    let parsed = netpol_parse(skb, direction, &mut seen.packet, &mut inner);
    if parsed == NEIGHBOUR {
        return TALK;
    }
    let PacketContext { endpoint, packet, .. } = seen;
    let verdict = if direction == Direction::Ingress as u32 && is_astray(skb, packet) {
        Verdict::drop(Reason::DestinationAddress, 0)
    } else if parsed == PASS {
        return PASSED;
    } else if parsed < PACKET {
        let arrival = arrival_of_packet(skb, direction_of(direction), packet);
        let arrival = Arrival { is_from_node: false, ..arrival };
        return netpol_refused(endpoint, arrival_word(arrival), packet, parsed);
    } else {
        let arrival = arrival_of_packet(skb, direction_of(direction), packet);
        if verdict::has_flow(&Kernel, endpoint, arrival, packet) {
            return FLOW;
        }
        let inner = if parsed == RELATED { Some(&inner) } else { None };
        verdict::judge_apart(&Kernel, endpoint, arrival, packet, inner)
    };
    verdict.pack()
}

/// Judges a packet that has a flow.
#[inline(never)]
pub fn judge_flow(skb: *mut __sk_buff, direction: u32, seen: &PacketContext) -> u64 {
    let direction = direction_of(direction);
    let verdict = if direction as u8 == Direction::Ingress as u8 && is_astray(skb, &seen.packet) {
        Verdict::drop(Reason::DestinationAddress, 0)
    } else {
        let arrival = arrival_of_packet(skb, direction, &seen.packet);
        verdict::judge_tracked(&Kernel, &seen.endpoint, arrival, &seen.packet)
    };
    verdict.pack()
}

/// Does what is to be done with what a pod says to its neighbours; `reason`: [`PASS`] or the number of
/// a reason.
#[inline(never)]
pub fn finish_neighbour(skb: *mut __sk_buff, seen: &PacketContext, reason: u32) -> i32 {
    if reason == PASS {
        return ALLOW;
    }
    let verdict = Verdict::drop(refusal_reason(reason), 0);
    events::note(skb, &seen.endpoint, Direction::Egress, &seen.packet, &verdict);
    DENY
}

#[inline(always)]
fn arrival_of_packet(skb: *mut __sk_buff, direction: Direction, packet: &Packet) -> Arrival {
    match direction {
        // What the pod sent to itself through a Service may come from a node's address, but
        // bears its stamp.
        Direction::Ingress => Arrival::ingress(
            is_generated_here(skb, packet.has_fragment_header)
                || stamp::is_own(skb, &packet.remote),
        ),
        Direction::Egress => {
            // SAFETY: the context pointer is valid for the run of the program.
            let ifindex = unsafe { (*skb).ifindex };
            let own = maps::own4(ifindex);
            let is_own_source = own != 0 && own == layout::own4(&packet.local)
                || is_link_local(&packet.local) && maps::is_link_local_of(ifindex, &packet.local)
                || maps::may_forward(ifindex, &packet.local);
            Arrival { is_own_source, ..Arrival::egress() }
        }
    }
}

/// Does what the verdict says, if it still holds.
#[inline(never)]
pub fn settle(skb: *mut __sk_buff, direction: u32, seen: &PacketContext, verdict: u64) -> i32 {
    let (direction, verdict) = (direction_of(direction), Verdict::unpack(verdict));
    // Rows are complete for the policy sets that are in use. A packet that was held up while its
    // endpoint got others may have met classes that its own sets know nothing of.
    if has_changed(seen.ifindex, &seen.endpoint) {
        return AGAIN;
    }
    if verdict.is_noted {
        events::note(skb, &seen.endpoint, direction, &seen.packet, &verdict);
    } else if verdict.has_evicted {
        events::count(seen.endpoint.id, direction, Reason::FlowEvicted);
    }
    // A packet that cannot be stamped must not pass for one that need not be.
    if verdict.is_allowed && (!verdict.is_stamped || stamp::put(skb)) { ALLOW } else { DENY }
}

/// Enters the packet's flow, or notes what became of it; the verdict and what that did to others.
#[inline(never)]
fn apply_verdict(seen: &PacketContext, verdict: u64) -> u64 {
    verdict::apply_verdict(&Kernel, &seen.endpoint, &seen.packet, Verdict::unpack(verdict)).pack()
}

/// Drops a packet, whatever it is, and says so: for one on an interface of no known endpoint, and
/// for one whose frame is not its pod's.
#[inline(never)]
pub fn refuse(
    skb: *mut __sk_buff,
    direction: u32,
    reason: u32,
    seen: &mut MaybeUninit<PacketContext>,
) -> i32 {
    // SAFETY: the context pointer is valid for the run of the program.
    let ifindex = unsafe { (*skb).ifindex };
    let endpoint = maps::endpoint_at(ifindex).unwrap_or(Endpoint::NOBODY);
    let seen = seen.write(PacketContext { ifindex, endpoint, packet: Packet::default() });
    let mut inner = Packet::default();
    // Who sent what to whom is all that is wanted of it.
    let _ = netpol_parse(skb, direction, &mut seen.packet, &mut inner);
    let verdict = Verdict::drop(refusal_reason(reason), 0);
    events::note(skb, &seen.endpoint, direction_of(direction), &seen.packet, &verdict);
    DENY
}

/// Whether this host generated the packet itself. Only then it has no interface that it came in
/// by: forwarding, bridging and decapsulation all set it (net/core/dev.c:
/// __netif_receive_skb_core). The one exception: when the kernel cuts a forwarded IPv6 packet
/// anew, even into one piece, what it makes forgets where it came from (net/ipv6/ip6_output.c:
/// ip6_copy_metadata); but what it cuts for a socket of this host still belongs to the socket.
#[inline(always)]
fn is_generated_here(skb: *mut __sk_buff, has_fragment_header: bool) -> bool {
    // SAFETY: the context pointer is valid for the run of the program.
    let has_come_in = unsafe { (*skb).ingress_ifindex } != 0;
    !has_come_in && (!has_fragment_header || stamp::has_socket(skb))
}
