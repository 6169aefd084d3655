//! How long a flow is remembered, and whether it was answered. Must never read a clock: the time is
//! its caller's.

use super::{FIN_LOCAL, FIN_REMOTE, HEARD, META_SHIFT, REPLIED, RESET};
use crate::packet;

/// A tick is 256 jiffies.
pub const TICK_SHIFT: u32 = 8;

/// Time in ticks from `jiffies64`.
#[inline(always)]
pub const fn tick(jiffies: u64) -> u64 {
    jiffies >> TICK_SHIFT
}

/// How long an idle flow is remembered, in ticks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Timeouts {
    /// TCP with packets in both directions, not closing.
    pub tcp_established: u64,
    /// TCP that is not (or no longer) established.
    pub tcp_other: u64,
    /// SCTP.
    pub sctp: u64,
    /// UDP.
    pub udp: u64,
    /// ICMP.
    pub icmp: u64,
    /// Everything else.
    pub other: u64,
}

/// Default idle times in seconds. TCP's are those of the kernel's connection tracking
/// (net/netfilter/nf_conntrack_proto_tcp.c); UDP is given its stream time at once, since some
/// resolvers answer late; SCTP peers send heartbeats every 30 s.
pub const TIMEOUT_SECONDS: Timeouts = Timeouts {
    tcp_established: 432_000,
    tcp_other: 120,
    sctp: 3_600,
    udp: 180,
    icmp: 30,
    other: 600,
};

impl Timeouts {
    /// The limit for a flow of `protocol` whose meta word is `meta`.
    #[inline(always)]
    const fn limit(&self, protocol: u8, meta: u64) -> u64 {
        match protocol {
            packet::TCP => {
                if meta & REPLIED != 0 && !is_closing(meta) {
                    self.tcp_established
                } else {
                    self.tcp_other
                }
            }
            packet::UDP => self.udp,
            packet::SCTP => self.sctp,
            packet::ICMP | packet::ICMPV6 => self.icmp,
            _ => self.other,
        }
    }
}

/// Whether both sides have ended the connection, or one has reset it.
#[inline(always)]
pub(super) const fn is_closing(meta: u64) -> bool {
    meta & RESET != 0 || meta & (FIN_LOCAL | FIN_REMOTE) == (FIN_LOCAL | FIN_REMOTE)
}

/// Whether a flow with this meta word was answered: something came back. Where connections have a
/// handshake, also that whoever opened it went on: else anybody could have a pod answer to forged
/// sources, and would have that many flows that count.
#[inline(always)]
pub const fn is_answered(protocol: u8, meta: u64) -> bool {
    let sign = match protocol {
        packet::TCP | packet::SCTP => HEARD,
        _ => REPLIED,
    };
    meta & sign != 0
}

/// The time now and what it means.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    /// Now, in ticks.
    pub now: u64,
    /// Idle limits.
    pub timeouts: Timeouts,
}

impl Clock {
    #[inline(always)]
    pub(super) const fn is_expired(&self, protocol: u8, meta: u64) -> bool {
        // A last-seen time in the future is another CPU's newer clock: not expired.
        self.now > (meta >> META_SHIFT) + self.timeouts.limit(protocol, meta)
    }
}
