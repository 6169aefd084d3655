//! Every packet that is not plainly part of an established flow.

use aya_ebpf::bindings::__sk_buff;
use netpol_common::layout::{Direction, Reason};
use netpol_common::packet::{self, Outcome, Packet};
use netpol_common::verdict::{self, Verdict};

use crate::frame::Skb;
use crate::maps::{self, Kernel};
use crate::{ALLOW, DENY, events};

/// The verdict on `skb`, as a tc return code. A function of its own, so that it is verified once
/// and its stack is not the fast path's.
#[inline(never)]
pub fn judge(skb: *mut __sk_buff, direction: u32) -> i32 {
    let direction = if direction == 0 { Direction::Ingress } else { Direction::Egress };
    let Some(endpoint) = maps::endpoint(skb) else {
        events::count(0, direction, Reason::UnknownEndpoint);
        return DENY;
    };
    let mut packet = Packet::default();
    let mut inner = Packet::default();
    let parsed = parse(skb, direction as u32, &mut packet, &mut inner);
    if parsed == PASS {
        return ALLOW;
    }
    if parsed < PACKET {
        if endpoint.sets[direction as usize] != 0 {
            let reason = refusal_reason(parsed);
            events::note(skb, &endpoint, direction, &packet, &Verdict::drop(reason, 0));
            return DENY;
        }
        return ALLOW;
    }
    let inner_ref = if parsed == RELATED { Some(&inner) } else { None };
    // Only what this host generated itself has no interface it came in by: forwarding, bridging
    // and decapsulation all set it (net/core/dev.c: __netif_receive_skb_core).
    // SAFETY: the context pointer is valid for the run of the program.
    let is_from_node =
        matches!(direction, Direction::Ingress) && unsafe { (*skb).ingress_ifindex } == 0;
    let verdict =
        verdict::judge(&Kernel, &endpoint, direction, &mut packet, inner_ref, is_from_node);
    if verdict.is_noted {
        events::note(skb, &endpoint, direction, &packet, &verdict);
    }
    if verdict.is_allowed { ALLOW } else { DENY }
}

/// [`Outcome`] as a number: below these, the reason of a refusal.
const PACKET: u32 = 0x100;
const RELATED: u32 = 0x101;
const PASS: u32 = 0x102;

/// A function of its own to keep its buffers off the stack of [`judge`].
#[inline(never)]
fn parse(skb: *mut __sk_buff, direction: u32, packet: &mut Packet, inner: &mut Packet) -> u32 {
    let direction = if direction == 0 { Direction::Ingress } else { Direction::Egress };
    match packet::parse(&Skb(skb), direction, packet, inner) {
        Outcome::Packet => PACKET,
        Outcome::Related => RELATED,
        Outcome::Pass => PASS,
        Outcome::Refuse(reason) => reason as u32,
    }
}

/// The inverse of `reason as u32` for the reasons that parsing gives.
#[inline(always)]
const fn refusal_reason(number: u32) -> Reason {
    const TRUNCATED: u32 = Reason::Truncated as u32;
    const ETHERTYPE: u32 = Reason::Ethertype as u32;
    const EXTENSION_HEADERS: u32 = Reason::ExtensionHeaders as u32;
    const ROUTER_MESSAGE: u32 = Reason::RouterMessage as u32;
    match number {
        TRUNCATED => Reason::Truncated,
        ETHERTYPE => Reason::Ethertype,
        EXTENSION_HEADERS => Reason::ExtensionHeaders,
        ROUTER_MESSAGE => Reason::RouterMessage,
        _ => Reason::Inconsistent,
    }
}
