//! Services: `SERVICES`, and the arena `BACKENDS` that they point into. Must never say which
//! backend is chosen.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::Address;

/// (address, protocol, port) of Services.
pub const MAX_SERVICES: u32 = 131_072;
/// Kinds of backends of all Services together.
pub const MAX_BACKENDS: u32 = 262_144;

/// Key of a Service: where packets to it go before translation.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct ServiceKey {
    /// Destination address.
    pub address: Address,
    /// Destination port.
    pub port: u16,
    /// IP protocol.
    pub protocol: u8,
    /// Zero.
    pub reserved: u8,
}

impl ServiceKey {
    /// Folds the key to 16 bits, see [`service_value`].
    #[inline(always)]
    pub const fn echo(&self) -> u16 {
        let word = self.address.echo() ^ ((self.port as u32) << 16 | self.protocol as u32);
        (word ^ word >> 16) as u16
    }
}

/// Where a Service's backends stand: `offset << 32 | count << 16 | echo of the key`. The echo, as
/// for [`ExactClass`](super::ExactClass), shows a hash element that is being reused.
pub type ServiceValue = u64;

/// Packs a [`ServiceValue`].
#[inline(always)]
pub const fn service_value(key: &ServiceKey, offset: u32, count: u16) -> ServiceValue {
    (offset as u64) << 32 | (count as u64) << 16 | key.echo() as u64
}

/// A kind of backend: `class << 32 | port << 16 | 1`, with [`BACKEND_ON_NODE`] where that holds;
/// or a local endpoint that is one: `endpoint id << 32 | BACKEND_ENDPOINT | 1`; or
/// `BACKEND_ELSEWHERE | 1`.
pub type Backend = u64;

/// The backend is the node itself: packets to it leave by no interface.
pub const BACKEND_ON_NODE: u64 = 2;
/// The word names a local endpoint. (The kind that it is of stands beside it.)
pub const BACKEND_ENDPOINT: u64 = 4;

/// The word is no backend: another node has the Service's address and translates, so that packets
/// to it leave this node as they are (a node port of another node).
pub const BACKEND_ELSEWHERE: u64 = 8;

/// Packs a [`Backend`].
#[inline(always)]
pub const fn backend(class: u32, port: u16, is_on_node: bool) -> Backend {
    let on_node = if is_on_node { BACKEND_ON_NODE } else { 0 };
    (class as u64) << 32 | (port as u64) << 16 | on_node | 1
}

/// Packs a [`Backend`] that names an endpoint.
#[inline(always)]
pub const fn backend_endpoint(id: u16) -> Backend {
    (id as u64) << 32 | BACKEND_ENDPOINT | 1
}

/// Class, or endpoint id, of a [`Backend`].
#[inline(always)]
pub const fn backend_class(backend: Backend) -> u32 {
    (backend >> 32) as u32
}

/// Port of a [`Backend`].
#[inline(always)]
pub const fn backend_port(backend: Backend) -> u16 {
    (backend >> 16) as u16
}

const _: () = assert!(size_of::<ServiceKey>() == 24);
