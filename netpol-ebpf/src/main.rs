//! The tc programs: `netpol_ingress` sits on the tc *egress* hook of an isolated pod's host-side
//! interface (traffic towards the pod), `netpol_egress` on its tc *ingress* hook. `netpol_transit`
//! sits on the tc egress hook of every interface by which packets can leave, while pods send to
//! Services that cannot be judged before translation. `netpol_guard` sits on the tc ingress hook of the
//! pods that no policy selects, and `netpol_shield` on the tc egress hook of those of them that share
//! their link with others.
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
mod global;
mod guard;
mod maps;
mod neighbour;
mod parse;
mod shield;
mod slow;
mod stamp;
mod transit;

use core::mem::MaybeUninit;

use aya_ebpf::bindings::{__sk_buff, TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use netpol_common::flow;
use netpol_common::layout::{Direction, Reason};
use netpol_common::packet::Packet;
use netpol_common::verdict::{self, Arrival, Endpoint, FlowState, Maps as _};

use crate::frame::Linear;
use crate::maps::Kernel;
use crate::slow::Steps;

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

/// Traffic from a pod that no policy selects.
#[classifier]
pub fn netpol_guard(ctx: TcContext) -> i32 {
    guard::run(ctx.skb.skb)
}

/// Traffic towards a pod that no policy selects, on a link that others share.
#[classifier]
pub fn netpol_shield(ctx: TcContext) -> i32 {
    shield::run(ctx.skb.skb)
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

/// The common packet of an established flow is settled here, without a helper call. One of a flow
/// that is not known goes to [`slow`] with what was read of it, if it is as plain; everything else
/// is read there first.
#[inline(always)]
fn run(skb: *mut __sk_buff, direction: Direction) -> i32 {
    let mut seen = MaybeUninit::uninit();
    let known = match direction {
        Direction::Ingress => look_ingress(skb, &mut seen),
        Direction::Egress => look_egress(skb, &mut seen),
    };
    if known == FlowState::Allowed as u32 {
        return ALLOW;
    }
    if known == FlowState::Stamped as u32 {
        return if stamp::put(skb) { ALLOW } else { DENY };
    }
    if known == NOBODY {
        return slow::refuse(skb, direction as u32, Reason::UnknownEndpoint as u32, &mut seen);
    }
    if known == FORGED {
        return slow::refuse(skb, direction as u32, Reason::SourceAddress as u32, &mut seen);
    }
    slow::judge(
        direction,
        known == PLAIN,
        &mut seen,
        Steps {
            read: |seen: &mut _| slow::read(skb, direction as u32, seen),
            judge: |seen: &_| slow::judge_flow(skb, direction as u32, seen),
            // Towards a pod it passes.
            talk: |seen: &_| match direction {
                Direction::Ingress => DENY,
                Direction::Egress => slow::finish_neighbour(skb, seen, neighbour::judge(skb)),
            },
            settle: |seen: &_, verdict| slow::settle(skb, direction as u32, seen, verdict),
        },
    )
}

/// A packet and the endpoint that it is of.
pub struct PacketContext {
    /// The interface of the endpoint.
    pub ifindex: u32,
    /// The endpoint.
    pub endpoint: Endpoint,
    /// The packet.
    pub packet: Packet,
}

/// Beside the values of [`FlowState`]: the interface belongs to no known endpoint.
const NOBODY: u32 = u32::MAX;
/// Likewise: the frame came from a link-layer address that is not the pod's.
const FORGED: u32 = u32::MAX - 1;
/// Likewise: nothing is known of the packet's flow, and the packet was read.
const PLAIN: u32 = 0x100;

/// A function of its own, so that its stack is not added to that of judging.
#[inline(never)]
fn look_ingress(skb: *mut __sk_buff, seen: &mut MaybeUninit<PacketContext>) -> u32 {
    // SAFETY: the context pointer is valid for the run of the program.
    let ifindex = unsafe { (*skb).ifindex };
    let Some(endpoint) = maps::endpoint_at(ifindex) else { return NOBODY };
    known::<false>(skb, ifindex, endpoint, Arrival::ingress(false), seen)
}

/// As above, for the other direction. Here every frame of the pod's comes by, so here its source is
/// looked at, whatever else it is.
#[inline(never)]
fn look_egress(skb: *mut __sk_buff, seen: &mut MaybeUninit<PacketContext>) -> u32 {
    // SAFETY: the context pointer is valid for the run of the program.
    let ifindex = unsafe { (*skb).ifindex };
    let Some((endpoint, link)) = maps::endpoint_and_link(ifindex) else { return NOBODY };
    if link != 0 && Linear::of(skb).link_source() != Some(link) && Kernel.checks_source() {
        return FORGED;
    }
    known::<false>(skb, ifindex, endpoint, Arrival::egress(), seen)
}

/// What the flow table knows of a common packet, without a helper call: a value of [`FlowState`], or
/// [`PLAIN`], and then the packet is in `seen`. `RAW`: the device has no link-layer header.
#[inline(always)]
fn known<const RAW: bool>(
    skb: *mut __sk_buff,
    ifindex: u32,
    endpoint: Endpoint,
    arrival: Arrival,
    seen: &mut MaybeUninit<PacketContext>,
) -> u32 {
    let kernel = Kernel;
    let (known, packet) = if let Some(packet) = frame::common_v4::<RAW>(skb, arrival.direction) {
        let key = flow::key4(&packet, endpoint.id);
        let hash = flow::hash(&key, kernel.secret());
        let (table, clock) = (kernel.flows4(), kernel.clock());
        let known = verdict::is_established(table, &key, hash, &endpoint, arrival, &packet, &clock);
        if known as u32 == FlowState::Unknown as u32 {
            flow::fetch::<_, { flow::KEY4 }>(kernel.flows4(), hash);
        }
        (known, packet)
    } else if let Some(packet) = frame::common_v6::<RAW>(skb, arrival.direction) {
        let key = flow::key6(&packet, endpoint.id);
        let hash = flow::hash(&key, kernel.secret());
        let (table, clock) = (kernel.flows6(), kernel.clock());
        let known = verdict::is_established(table, &key, hash, &endpoint, arrival, &packet, &clock);
        if known as u32 == FlowState::Unknown as u32 {
            flow::fetch::<_, { flow::KEY6 }>(kernel.flows6(), hash);
        }
        (known, packet)
    } else {
        return FlowState::Unknown as u32;
    };
    if known as u32 != FlowState::Unknown as u32 {
        return known as u32;
    }
    seen.write(PacketContext { ifindex, endpoint, packet });
    PLAIN
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
