//! How large the flow tables are, `FLOWS4` and `FLOWS6`, and what an endpoint has of them,
//! `FLOW_USE`. What a bucket holds is [`crate::flow`]'s. Also what is remembered of first
//! fragments, `FRAGMENTS`. Must never say what a flow is allowed.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{Address, MAX_ENDPOINTS};

/// IPv4 flow table buckets by default, a power of two.
pub const FLOW4_BUCKETS: u32 = 32_768;
/// IPv6 flow table buckets by default, a power of two.
pub const FLOW6_BUCKETS: u32 = 16_384;
/// Largest allowed bucket count: the hash has this many independent bits for each choice.
pub const MAX_FLOW_BUCKETS: u32 = 1 << 18;

/// Buckets that each endpoint has for itself, a power of two, in a flow table of this many buckets
/// for all, also a power of two: together half as many again.
pub const fn reserve_buckets(common: u32) -> u32 {
    let buckets = common / (2 * MAX_ENDPOINTS);
    if buckets == 0 { 1 } else { buckets }
}

/// Entries of the map of a flow table with this many buckets for all. Each endpoint's own ones
/// follow, in the order of their ids.
pub const fn flow_map_entries(common: u32) -> u32 {
    common + MAX_ENDPOINTS * reserve_buckets(common)
}

/// The inverse of [`flow_map_entries`]; `None`: no flow table has so many.
pub const fn common_buckets(entries: u32) -> Option<u32> {
    let mut common = 1;
    while common <= MAX_FLOW_BUCKETS {
        if flow_map_entries(common) == entries {
            return Some(common);
        }
        common *= 2;
    }
    None
}

/// What an endpoint has of the flow tables, by address family: index 0 is IPv4, 1 is IPv6. The
/// programs and the agent add to the counts atomically, so that they are exact; shares and `born`
/// are the agent's.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct FlowUse {
    /// Slots with a flow of this endpoint, expired ones included.
    pub held: [u64; 2],
    /// Those of them whose flow was answered.
    pub answered: [u64; 2],
    /// Up to how many of either are its own: flows beyond make room for endpoints that have less.
    /// Zero: there is no such endpoint, and what is left of it makes room for everybody.
    pub share: [u64; 2],
    /// As [`Endpoint::born`](super::Endpoint::born).
    pub born: u64,
    /// Live flows of this endpoint that made room for its own.
    pub displaced: u64,
    /// Live flows of this endpoint that made room for other endpoints'.
    pub given: u64,
    /// Flows of this endpoint that found no room, each packet of them counted.
    pub refused: u64,
    /// Room to grow to two cache lines.
    pub reserved: [u64; 6],
}

/// First fragments remembered.
pub const MAX_FRAGMENTS: u32 = 8_192;

/// Key of a remembered first fragment. The endpoint and direction keep one pod from naming the
/// ports of another one's packet.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct FragmentKey {
    /// Packet source and destination as local and remote.
    pub local: Address,
    /// The other end.
    pub remote: Address,
    /// Identification of the datagram, as on the wire.
    pub id: u32,
    /// Endpoint id.
    pub endpoint: u16,
    /// IPv4: its protocol. Zero for IPv6, which tells datagrams apart without it: only the first
    /// fragment says what stands behind the fragment header (RFC 8200, section 4.5).
    pub protocol: u8,
    /// [`Direction`](super::Direction).
    pub direction: u8,
}

/// What a first fragment told: `local port << 32 | remote port << 16 | protocol << 8 | 1`.
pub type FragmentPorts = u64;

/// Packs [`FragmentPorts`].
#[inline(always)]
pub const fn fragment_ports(protocol: u8, local: u16, remote: u16) -> FragmentPorts {
    (local as u64) << 32 | (remote as u64) << 16 | (protocol as u64) << 8 | 1
}

const _: () = {
    assert!(size_of::<FlowUse>() == 128);
    assert!(size_of::<FragmentKey>() == 48);
    assert!(FLOW4_BUCKETS.is_power_of_two() && FLOW6_BUCKETS.is_power_of_two());
};
