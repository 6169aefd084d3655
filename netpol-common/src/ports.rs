//! Looks a destination port up in a port set. Must never allow what no interval says.

use crate::layout::{
    INTERVAL_ALLOW, Interval, ROW_ALL, ROW_PORTS, ROW_PORTS_AND_OTHERS, Row, interval_first,
    interval_last,
};
use crate::packet::{SCTP, TCP, UDP};

/// The arena of intervals.
pub trait Intervals {
    /// The interval at `index` of the arena.
    fn interval(&self, index: u32) -> Option<Interval>;
}

/// In place of the protocol of a packet of TCP, UDP or SCTP whose ports are not known: only what
/// allows everything allows it. (A reserved number.)
pub const NO_PORTS: u8 = 255;

/// A port set has at most 32,768 disjoint, non-adjacent intervals per protocol.
const SEARCH_STEPS: u32 = 16;

/// Whether `row` allows a packet of `protocol` to destination port `port`. ICMP and other
/// protocols without ports are allowed by [`ROW_ALL`] and [`ROW_PORTS_AND_OTHERS`] only.
#[inline(always)]
pub fn allows<I: Intervals>(arena: &I, row: &Row, protocol: u8, port: u16) -> bool {
    if row.kind == ROW_ALL {
        return true;
    }
    if row.kind & !1 != ROW_PORTS {
        return false;
    }
    let [tcp, udp, sctp] = row.counts;
    let (start, count) = match protocol {
        TCP => (row.offset, tcp),
        UDP => (row.offset + u32::from(tcp), udp),
        SCTP => (row.offset + u32::from(tcp) + u32::from(udp), sctp),
        _ => return row.kind == ROW_PORTS_AND_OTHERS && protocol != NO_PORTS,
    };
    search(arena, start, u32::from(count), port)
}

/// Binary search. The number of steps depends on the count alone, not on what is found, which
/// keeps the verifier's states few.
#[inline(always)]
fn search<I: Intervals>(arena: &I, start: u32, count: u32, port: u16) -> bool {
    if count == 0 {
        return false;
    }
    let mut base = start;
    let mut left = count;
    let mut step = 0;
    while step < SEARCH_STEPS && left > 1 {
        let half = left / 2;
        let Some(middle) = arena.interval(base + half) else { return false };
        if interval_first(middle) <= port {
            base += half;
        }
        left -= half;
        step += 1;
    }
    let Some(found) = arena.interval(base) else { return false };
    interval_first(found) <= port
        && port <= interval_last(found)
        && found & 0xffff == INTERVAL_ALLOW
}
