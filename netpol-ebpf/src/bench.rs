//! Programs for measurements: the real ones on a packet that is another one in each run, and ones
//! that do nothing else, to be subtracted. Must never be loaded by the agent, nor attached.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use netpol_common::layout::Direction;
use netpol_common::spread::{ADDRESS, EGRESS, FRESH, PORT, Spread};

use crate::frame::{ETHERTYPE, Linear};
use crate::{ALLOW, run};

/// Does nothing: the floor of every measurement.
#[classifier]
pub fn netpol_nothing(_ctx: TcContext) -> i32 {
    ALLOW
}

/// Changes the packet as the frame says, and does nothing else.
#[classifier]
pub fn netpol_spread_nothing(ctx: TcContext) -> i32 {
    spread(ctx.skb.skb);
    ALLOW
}

/// [`crate::netpol_ingress`] on a packet changed as the frame says.
#[classifier]
pub fn netpol_spread_ingress(ctx: TcContext) -> i32 {
    spread(ctx.skb.skb);
    run(ctx.skb.skb, Direction::Ingress)
}

/// [`crate::netpol_egress`] likewise.
#[classifier]
pub fn netpol_spread_egress(ctx: TcContext) -> i32 {
    spread(ctx.skb.skb);
    run(ctx.skb.skb, Direction::Egress)
}

/// Changes addresses and ports of an IPv4 packet without options, or an IPv6 packet without
/// extension headers. The frame itself keeps what the next run needs.
#[inline(always)]
fn spread(skb: *mut __sk_buff) {
    let linear = Linear::of(skb);
    let Some(words) = linear.at::<[u32; 3]>(0) else { return };
    let Some(ethertype) = linear.at::<u16>(ETHERTYPE) else { return };
    let mut spread = Spread::from_words(words);
    let choice = spread.choose();
    linear.put(0, spread.words());
    let is_v4 = ethertype == 0x0800u16.to_be();
    // Words are written as wide as they are read later, or the processor would have to wait until
    // the write has reached its cache.
    let (source, destination, ports) = if is_v4 { (26, 30, 34) } else { (34, 50, 54) };
    if spread.has(ADDRESS) {
        let at = if spread.has(EGRESS) { destination } else { source };
        let Some(word) = linear.at::<u32>(at) else { return };
        linear.put(at, (u32::from_be(word) & 0xff00_0000 | choice).to_be());
    }
    let Some(word) = linear.at::<u32>(ports) else { return };
    let [mut from, mut to] = [u32::from_be(word) >> 16, u32::from_be(word) & 0xffff];
    if spread.has(PORT) {
        to = u32::from(spread.port(choice));
    }
    if spread.has(FRESH) {
        from = (from + 1) & 0xffff;
    }
    linear.put(ports, (from << 16 | to).to_be());
}
