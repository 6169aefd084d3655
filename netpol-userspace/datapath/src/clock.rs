//! The programs' clock, by which flows and leases end. Pure but for asking the kernel what time it is.

use netpol_common::flow::{self, Clock, TIMEOUT_SECONDS, Timeouts};
use rustix::time::{ClockId, clock_getres, clock_gettime};

/// Now, in the programs' ticks, and the default idle limits. The kernel starts its jiffies five
/// minutes before they wrap 32 bits (include/linux/jiffies.h: INITIAL_JIFFIES).
pub fn clock() -> Clock {
    let uptime = clock_gettime(ClockId::Monotonic);
    let hz = jiffies_per_second();
    let nanoseconds =
        uptime.tv_sec.cast_unsigned() * 1_000_000_000 + uptime.tv_nsec.cast_unsigned();
    let jiffies = (1 << 32) - 300 * hz + nanoseconds / (1_000_000_000 / hz);
    let t = TIMEOUT_SECONDS;
    Clock {
        now: flow::tick(jiffies),
        timeouts: Timeouts {
            tcp_established: seconds_to_ticks(t.tcp_established),
            tcp_other: seconds_to_ticks(t.tcp_other),
            sctp: seconds_to_ticks(t.sctp),
            udp: seconds_to_ticks(t.udp),
            icmp: seconds_to_ticks(t.icmp),
            other: seconds_to_ticks(t.other),
        },
    }
}

/// The kernel's tick rate: the coarse clock advances once per jiffy.
pub(crate) fn jiffies_per_second() -> u64 {
    let resolution = clock_getres(ClockId::MonotonicCoarse);
    1_000_000_000 / u64::try_from(resolution.tv_nsec).unwrap_or(4_000_000).max(1)
}

/// How long an idle flow is remembered.
pub(crate) fn timeouts_in_ticks() -> [u64; 6] {
    let Timeouts { tcp_established, tcp_other, sctp, udp, icmp, other } = TIMEOUT_SECONDS;
    [tcp_established, tcp_other, sctp, udp, icmp, other].map(seconds_to_ticks)
}

/// Rounded up, so that no flow is forgotten early.
pub(crate) fn seconds_to_ticks(seconds: u64) -> u64 {
    (seconds * jiffies_per_second()).div_ceil(1 << flow::TICK_SHIFT)
}
