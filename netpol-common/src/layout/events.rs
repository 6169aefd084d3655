//! What is counted, `COUNTERS`, and what is reported, `EVENTS` and `EVENT_BUDGET`. Must never
//! change a verdict.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{Address, Direction};

/// Number of counters per endpoint and direction.
pub const N_COUNTERS: usize = 16;

/// Per-CPU counters of one endpoint and direction, indexed by [`Reason`](super::Reason).
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Counters {
    /// Packets by reason.
    pub packets: [u64; N_COUNTERS],
}

/// Index of an endpoint's counters.
#[inline(always)]
pub const fn counter_index(endpoint: u32, direction: Direction) -> u32 {
    endpoint * 2 + direction as u32
}

/// Bytes of the event ring buffer.
pub const EVENT_RING_BYTES: u32 = 1 << 20;

/// What happened to a packet.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Event {
    /// `bpf_ktime_get_boot_ns`: nanoseconds since boot, suspend included.
    pub time: u64,
    /// Address of the endpoint's side.
    pub local: Address,
    /// Address of the other side.
    pub remote: Address,
    /// Interface the program ran on.
    pub ifindex: u32,
    /// Packet length in bytes with link-layer header.
    pub length: u32,
    /// Policy set that was asked, 0 if none.
    pub set: u32,
    /// Class of the remote address, if it was looked up.
    pub class: u32,
    /// Port (or ICMP id) of the endpoint's side.
    pub local_port: u16,
    /// Port (or ICMP id) of the other side.
    pub remote_port: u16,
    /// Endpoint id.
    pub endpoint: u16,
    /// IP protocol.
    pub protocol: u8,
    /// [`Direction`].
    pub direction: u8,
    /// [`Reason`](super::Reason).
    pub reason: u8,
    /// TCP flags, or ICMP type.
    pub detail: u8,
    /// ICMP code, else zero.
    pub code: u8,
    /// Zero.
    pub reserved: [u8; 5],
}

/// Per-CPU token bucket of the events.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct EventBudget {
    /// Tick of the last refill.
    pub tick: u64,
    /// Events that may still be written in this tick.
    pub tokens: u64,
}

/// Events per tick (about a quarter of a second to a second) and CPU.
pub const EVENTS_PER_TICK: u64 = 1_024;

const _: () = {
    assert!(size_of::<Counters>() == 128);
    assert!(size_of::<Event>() == 80);
    assert!(size_of::<EventBudget>() == 16);
};
