//! The tc programs: `netpol_ingress` sits on the tc *egress* hook of an isolated pod's host-side
//! interface (traffic towards the pod), `netpol_egress` on its tc *ingress* hook. `netpol_transit`
//! sits on the tc egress hook of every interface by which packets can leave, while pods send to
//! Services that cannot be judged before translation.
//!
//! This crate only reads packets and maps; what a verdict is stands in `netpol_common::verdict`.
//! Allow is always "next program, please" (`TCX_NEXT`, `TC_ACT_UNSPEC`): netpol never ends the
//! chain for others.

#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod bench;
mod events;
mod frame;
mod maps;
mod slow;
mod stamp;
mod transit;

use aya_ebpf::bindings::{__sk_buff, TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use netpol_common::flow;
use netpol_common::layout::Direction;
use netpol_common::verdict::{self, Arrival, Endpoint, Known, Maps as _};

use crate::maps::Kernel;

/// Lets other programs and the stack go on.
const ALLOW: i32 = TC_ACT_UNSPEC;
/// Drops the packet.
const DENY: i32 = TC_ACT_SHOT;

/// Traffic towards the pod.
#[classifier]
pub fn netpol_ingress(ctx: TcContext) -> i32 {
    run(ctx.skb.skb, Direction::Ingress)
}

/// Traffic from the pod.
#[classifier]
pub fn netpol_egress(ctx: TcContext) -> i32 {
    run(ctx.skb.skb, Direction::Egress)
}

/// Traffic on its way to anywhere.
#[classifier]
pub fn netpol_transit(ctx: TcContext) -> i32 {
    transit::run::<false>(ctx.skb.skb)
}

/// The same on devices whose packets have no link-layer header, such as WireGuard's.
#[classifier]
pub fn netpol_transit_raw(ctx: TcContext) -> i32 {
    transit::run::<true>(ctx.skb.skb)
}

/// The common packet of an established flow is settled here, without a helper call; everything
/// else goes to [`slow::judge`].
#[inline(always)]
fn run(skb: *mut __sk_buff, direction: Direction) -> i32 {
    let known = match direction {
        Direction::Ingress => is_established_ingress(skb),
        Direction::Egress => is_established_egress(skb),
    };
    if known == Known::Yes as u32 {
        return ALLOW;
    }
    if known == Known::Stamped as u32 {
        return if stamp::put(skb) { ALLOW } else { DENY };
    }
    if known == NOBODY {
        return slow::refuse(skb, direction as u32);
    }
    slow::judge(skb, direction as u32)
}

/// Beside the values of [`Known`]: the interface belongs to no known endpoint.
const NOBODY: u32 = u32::MAX;

/// A function of its own, so that its stack is not added to that of [`slow::judge`].
#[inline(never)]
fn is_established_ingress(skb: *mut __sk_buff) -> u32 {
    is_established(skb, Arrival::ingress(false))
}

/// As above, for the other direction.
#[inline(never)]
fn is_established_egress(skb: *mut __sk_buff) -> u32 {
    is_established(skb, Arrival::egress())
}

#[inline(always)]
fn is_established(skb: *mut __sk_buff, arrival: Arrival) -> u32 {
    let Some(endpoint) = maps::endpoint(skb) else { return NOBODY };
    known::<false>(skb, &endpoint, arrival) as u32
}

/// What the flow table knows of a common packet, without a helper call; `RAW`: the device has no
/// link-layer header.
#[inline(always)]
fn known<const RAW: bool>(skb: *mut __sk_buff, endpoint: &Endpoint, arrival: Arrival) -> Known {
    let kernel = Kernel;
    if let Some(packet) = frame::common_v4::<RAW>(skb, arrival.direction) {
        let key = flow::key4(&packet, endpoint.id);
        let hash = flow::hash(&key, kernel.secret());
        let (table, clock) = (kernel.flows4(), kernel.clock());
        return verdict::is_established(table, &key, hash, endpoint, arrival, &packet, &clock);
    }
    if let Some(packet) = frame::common_v6::<RAW>(skb, arrival.direction) {
        let key = flow::key6(&packet, endpoint.id);
        let hash = flow::hash(&key, kernel.secret());
        let (table, clock) = (kernel.flows6(), kernel.clock());
        return verdict::is_established(table, &key, hash, endpoint, arrival, &packet, &clock);
    }
    Known::No
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The licence the kernel checks for GPL-only helpers.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
