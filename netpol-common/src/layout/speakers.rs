//! Who may speak as whom: `OWN_ADDRESSES`, `SOURCE_PREFIXES` and `SPEAKERS`. Must never say to
//! whom.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{Address, FAMILY_BITS};

/// Addresses of local endpoints.
pub const MAX_OWN_ADDRESSES: u32 = 16_384;
/// Entries of the table of [`SourcePrefix`]es.
pub const MAX_SOURCE_PREFIXES: u32 = 16_384;

/// An address that belongs to an endpoint: packets from others are spoofed.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct OwnAddress {
    /// Endpoint id.
    pub endpoint: u32,
    /// The address.
    pub address: Address,
}

/// An address that a pod may send from though it is not its own: it forwards for others. Key of a
/// trie whose prefixes are [`SOURCE_PREFIX_BITS`] and those of the address.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct SourcePrefix {
    /// The pod's interface on the node.
    pub ifindex: u32,
    /// The address.
    pub address: Address,
}

/// Bits of a [`SourcePrefix`] before those of the address.
pub const SOURCE_PREFIX_BITS: u32 = 32 + FAMILY_BITS;

/// Who speaks on an interface, as far as it is declared: of every endpoint that is known, isolated
/// or not. In the slots of the endpoint table, and written and read in the same way. What is here
/// need not be looked up in the table of all own addresses ([`OwnAddress`]).
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Speaker {
    /// As [`Endpoint::identity`](super::Endpoint::identity).
    pub identity: u64,
    /// As [`Endpoint::own4`](super::Endpoint::own4).
    pub own4: u64,
    /// One of its own IPv6 addresses, network byte order in memory; zero: ask the table.
    pub own6: [u64; 2],
    /// The interface's link-local IPv6 address, likewise; zero: it has none. A source and a target
    /// of neighbour discovery, never the pod itself.
    pub link_local: [u64; 2],
    /// Its link-layer address as of [`link_word`](crate::neighbour::link_word), zero if it is not
    /// known, and [`LINK_SHARED`].
    pub link: u64,
    /// The interface that the node routes by what comes in here: the interface itself, or the
    /// bridge that it is a port of. Zero: another switch's port, of which the node's routing knows
    /// nothing.
    pub routed_by: u64,
}

/// [`Speaker::link`]: others share the link, so every frame's source is checked.
pub const LINK_SHARED: u64 = 1 << 63;
/// [`Speaker::link`]: the link-layer address.
pub const LINK_ADDRESS: u64 = (1 << 48) - 1;

const _: () = {
    assert!(size_of::<OwnAddress>() == 24);
    assert!(size_of::<SourcePrefix>() == 24);
    assert!(size_of::<Speaker>() == 64);
};
