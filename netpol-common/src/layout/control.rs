//! What the agent tells all programs at once, `CONTROL`. Must never be written by a program.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// One entry, written by userspace through an mmap.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Control {
    /// Drop events are written until this [`tick`](crate::flow::tick); 0: nobody reads.
    pub listen_drops_until: u64,
    /// New-flow events likewise.
    pub listen_flows_until: u64,
    /// Key of the flow table's hash; fixed for the life of the tables.
    pub secret: [u64; 2],
    /// The highest epoch given out, so that a restarted agent goes on above it.
    pub epoch: u64,
    /// [`TRANSIT_READY`], [`SERVICES_INCOMPLETE`] and [`HAS_SOURCE_PREFIXES`].
    pub flags: u64,
    /// Room.
    pub reserved: [u64; 2],
}

/// [`Control::flags`]: every interface by which packets leave judges stamped ones again.
pub const TRANSIT_READY: u64 = 1;
/// [`Control::flags`]: there are Services that did not fit into the tables.
pub const SERVICES_INCOMPLETE: u64 = 2;
/// [`Control::flags`]: some pod may send from more than its own addresses, see
/// [`SourcePrefix`](super::SourcePrefix).
pub const HAS_SOURCE_PREFIXES: u64 = 4;

const _: () = assert!(size_of::<Control>() == 64);
