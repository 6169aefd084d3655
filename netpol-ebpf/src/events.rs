//! Counters and events. Counting is exact; events are limited and written only when someone
//! reads them.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::bpf_ktime_get_boot_ns;
use aya_ebpf::programs::TcContext;
use aya_log_ebpf::debug;
use netpol_common::layout::{self, Direction, EVENTS_PER_TICK, Event, Reason};
use netpol_common::packet::Packet;
use netpol_common::verdict::{Endpoint, Verdict};

use crate::maps::{self, CONTROL, COUNTERS, EVENT_BUDGET, EVENTS};

/// Adds one to a counter of an endpoint (0: packets of no known endpoint).
#[inline(always)]
pub fn count(endpoint: u16, direction: Direction, reason: Reason) {
    let index = layout::counter_index(u32::from(endpoint), direction);
    if let Some(counters) = COUNTERS.get_ptr_mut(index) {
        // The verifier does not know that a Reason is below N_COUNTERS, and the compiler, which
        // does, would leave the mask out if it saw where the number comes from.
        let index = core::hint::black_box(reason as usize) & (layout::N_COUNTERS - 1);
        // SAFETY: the value is this CPU's own and the index is masked.
        unsafe { *(&raw mut (*counters).packets).cast::<u64>().add(index) += 1 };
    }
}

/// Counts a verdict, and reports it if anybody listens.
#[inline(always)]
pub fn note(
    skb: *mut __sk_buff,
    endpoint: &Endpoint,
    direction: Direction,
    packet: &Packet,
    verdict: &Verdict,
) {
    if !verdict.is_allowed {
        log_drop(skb, endpoint, verdict);
    }
    count(endpoint.id, direction, verdict.reason);
    if verdict.has_evicted {
        count(endpoint.id, direction, Reason::FlowEvicted);
    }
    let until = listened_until(verdict);
    if until != 0 {
        report(skb, endpoint, direction, packet, verdict);
    }
}

/// A function of its own to keep its stack apart.
#[inline(never)]
fn log_drop(skb: *mut __sk_buff, endpoint: &Endpoint, verdict: &Verdict) {
    debug!(&TcContext::new(skb), "drop: endpoint {} reason {}", endpoint.id, verdict.reason as u8);
}

/// Writes an event, if somebody still listens. Apart likewise.
#[inline(never)]
fn report(
    skb: *mut __sk_buff,
    endpoint: &Endpoint,
    direction: Direction,
    packet: &Packet,
    verdict: &Verdict,
) {
    let now = maps::now();
    if listened_until(verdict) < now {
        return;
    }
    if !has_budget(now) || !write(skb, endpoint, direction, packet, verdict) {
        count(endpoint.id, direction, Reason::EventLost);
    }
}

/// The last tick in which somebody reads events of such verdicts; 0: nobody does.
#[inline(always)]
fn listened_until(verdict: &Verdict) -> u64 {
    let Some(control) = CONTROL.get(0) else { return 0 };
    if verdict.is_allowed { control.listen_flows_until } else { control.listen_drops_until }
}

#[inline(always)]
fn has_budget(now: u64) -> bool {
    let Some(budget) = EVENT_BUDGET.get_ptr_mut(0) else { return false };
    // SAFETY: the value is this CPU's own.
    unsafe {
        if (*budget).tick != now {
            (*budget).tick = now;
            (*budget).tokens = EVENTS_PER_TICK;
        }
        if (*budget).tokens == 0 {
            return false;
        }
        (*budget).tokens -= 1;
    }
    true
}

#[inline(always)]
fn write(
    skb: *mut __sk_buff,
    endpoint: &Endpoint,
    direction: Direction,
    packet: &Packet,
    verdict: &Verdict,
) -> bool {
    let Some(mut entry) = EVENTS.reserve::<Event>(0) else { return false };
    // SAFETY: the context pointer is valid for the run of the program; the helper has no
    // arguments.
    let (ifindex, length, time) = unsafe { ((*skb).ifindex, (*skb).len, bpf_ktime_get_boot_ns()) };
    entry.write(Event {
        time,
        local: packet.local,
        remote: packet.remote,
        ifindex,
        length,
        set: u32::from(endpoint.sets[direction as usize]),
        class: verdict.class,
        local_port: packet.local_port,
        remote_port: packet.remote_port,
        endpoint: endpoint.id,
        protocol: packet.protocol,
        direction: direction as u8,
        reason: verdict.reason as u8,
        detail: packet.detail,
        code: packet.code,
        reserved: [0; 5],
    });
    entry.submit(0);
    true
}
