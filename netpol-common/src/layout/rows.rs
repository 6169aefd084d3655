//! What a policy set allows for a class: `ROWS`, and the arena `INTERVALS` that they point into.
//! Must never say which set or class is whose.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// (policy set, class) rows.
pub const MAX_ROWS: u32 = 1_048_576;
/// Intervals of all port sets together.
pub const MAX_INTERVALS: u32 = 524_288;

/// Key of a verdict row.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct RowKey {
    /// Policy set, 1..65535.
    pub set: u32,
    /// Class; 0 is the row that holds for every class without one of its own.
    pub class: u32,
}

/// What a policy set allows for a class.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Row {
    /// [`ROW_ALL`], [`ROW_PORTS`] or [`ROW_PORTS_AND_OTHERS`]; anything else allows nothing.
    pub kind: u16,
    /// Number of intervals for TCP, UDP and SCTP.
    pub counts: [u16; 3],
    /// Index of the first TCP interval in the arena; UDP's and then SCTP's follow.
    pub offset: u32,
    /// Zero.
    pub reserved: u32,
}

/// Everything is allowed: all protocols and ports.
pub const ROW_ALL: u16 = 1;
/// What the intervals say is allowed.
pub const ROW_PORTS: u16 = 2;
/// What the intervals say is allowed, and every protocol that has no ports here.
pub const ROW_PORTS_AND_OTHERS: u16 = 3;

/// One interval of a port set; intervals of a set are sorted by first port and disjoint.
pub type Interval = u64;

/// Interval verdict bits: allow.
pub const INTERVAL_ALLOW: u64 = 1;

/// Packs an interval: first port, last port (inclusive), verdict.
#[inline(always)]
pub const fn interval(first: u16, last: u16, verdict: u64) -> Interval {
    (first as u64) << 32 | (last as u64) << 16 | verdict
}

/// First port of an interval.
#[inline(always)]
pub const fn interval_first(interval: Interval) -> u16 {
    (interval >> 32) as u16
}

/// Last port of an interval.
#[inline(always)]
pub const fn interval_last(interval: Interval) -> u16 {
    (interval >> 16) as u16
}

const _: () = {
    assert!(size_of::<RowKey>() == 8);
    assert!(size_of::<Row>() == 16);
};
