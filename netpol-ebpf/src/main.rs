//! The two tc programs: `netpol_ingress` sits on the tc *egress* hook of a pod's host-side
//! interface (traffic towards the pod), `netpol_egress` on its tc *ingress* hook.
//!
//! This crate only reads packets and maps; what a verdict is stands in `netpol_common::verdict`.
//! Allow is always "next program, please" (`TCX_NEXT`, `TC_ACT_UNSPEC`): netpol never ends the
//! chain for others.

#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod events;
mod frame;
mod maps;
mod slow;

use aya_ebpf::bindings::{__sk_buff, TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use netpol_common::flow;
use netpol_common::layout::Direction;
use netpol_common::verdict::{self, Maps as _};

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

/// Does nothing: the floor of every measurement. Never attached by the agent, which does not even
/// load it.
#[classifier]
pub fn netpol_nothing(_ctx: TcContext) -> i32 {
    ALLOW
}

/// The common packet of an established flow is settled here, without a helper call; everything
/// else goes to [`slow::judge`].
#[inline(always)]
fn run(skb: *mut __sk_buff, direction: Direction) -> i32 {
    let is_established = match direction {
        Direction::Ingress => is_established_ingress(skb),
        Direction::Egress => is_established_egress(skb),
    };
    if is_established { ALLOW } else { slow::judge(skb, direction as u32) }
}

/// A function of its own, so that its stack is not added to that of [`slow::judge`].
#[inline(never)]
fn is_established_ingress(skb: *mut __sk_buff) -> bool {
    is_established(skb, Direction::Ingress)
}

/// As above, for the other direction.
#[inline(never)]
fn is_established_egress(skb: *mut __sk_buff) -> bool {
    is_established(skb, Direction::Egress)
}

#[inline(always)]
fn is_established(skb: *mut __sk_buff, direction: Direction) -> bool {
    let Some(endpoint) = maps::endpoint(skb) else { return false };
    let kernel = Kernel;
    if let Some(packet) = frame::common_v4(skb, direction) {
        let key = flow::key4(&packet, endpoint.id);
        let hash = flow::hash(&key, kernel.secret());
        let clock = kernel.clock();
        return verdict::is_established(
            kernel.flows4(),
            &key,
            hash,
            &endpoint,
            direction,
            &packet,
            &clock,
        );
    }
    if let Some(packet) = frame::common_v6(skb, direction) {
        let key = flow::key6(&packet, endpoint.id);
        let hash = flow::hash(&key, kernel.secret());
        let clock = kernel.clock();
        return verdict::is_established(
            kernel.flows6(),
            &key,
            hash,
            &endpoint,
            direction,
            &packet,
            &clock,
        );
    }
    false
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
