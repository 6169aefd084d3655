//! The endpoints by their interfaces, `ENDPOINTS`, and how a packet that one of them sent says so.
//! Must never say what a policy set allows.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::Address;

/// Slots of the endpoint table: an array indexed by `ifindex % ENDPOINT_SLOTS`, then the
/// [`ENDPOINT_PROBES`] - 1 slots after it.
pub const ENDPOINT_SLOTS: u32 = 16_384;
/// How many neighbouring slots an interface may be found in.
pub const ENDPOINT_PROBES: u32 = 4;
/// Endpoint ids are 1..MAX_ENDPOINTS; Kubernetes' own limit is 110 pods a node by default.
pub const MAX_ENDPOINTS: u32 = 1_024;

/// One interface with a program attached. Written by the agent through an mmap with one store
/// per 64-bit field, read by the programs likewise.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Endpoint {
    /// `ifindex << 32 | endpoint id`; zero: the slot is free. Written last, cleared first.
    pub identity: u64,
    /// Epoch and policy sets in one word, see [`policy_word`]: one store switches them.
    pub policy: u64,
    /// Flows judged before this epoch belong to an earlier owner of the id and are void.
    pub born: u64,
    /// One of its own IPv4 addresses, see [`own4`], so that most packets' sources need no
    /// look into the table of all ([`OwnAddress`](super::OwnAddress)); zero: ask that.
    pub own4: u64,
    /// Where others share the link, the link-layer address that every frame of its must come from,
    /// as of [`link_word`](crate::neighbour::link_word); zero: none in particular.
    pub link: u64,
    /// Room to grow to a cache line.
    pub reserved: [u64; 3],
}

/// The bit of a policy set's number that says that what an endpoint with it sends to itself by way of
/// a Service is judged like anything else: ClusterNetworkPolicies are about that, NetworkPolicies
/// are not.
pub const JUDGES_OWN: u16 = 0x8000;

/// Whether a policy set's number has [`JUDGES_OWN`].
#[inline(always)]
pub const fn judges_own(set: u16) -> bool {
    set & JUDGES_OWN != 0
}

/// Marks a [`Endpoint::policy`] as written: a zeroed word must not mean "not isolated".
pub const POLICY_VALID: u64 = 1 << 63;

/// Packs epoch (31 bits) and policy sets (16 bits each; 0 = not isolated in that direction).
#[inline(always)]
pub const fn policy_word(epoch: u32, ingress: u16, egress: u16) -> u64 {
    POLICY_VALID | ((epoch & EPOCH_MASK) as u64) << 32 | (ingress as u64) << 16 | egress as u64
}

/// An IPv4 address as in [`Endpoint::own4`], in network byte order in memory; zero for others, and
/// for the one that nobody has.
#[inline(always)]
pub const fn own4(address: &Address) -> u32 {
    if address.family == 4 { address.words[0] } else { 0 }
}

/// Epochs have 31 bits and are compared modulo that.
pub const EPOCH_MASK: u32 = 0x7fff_ffff;

/// The bit of a packet's mark that says that it is stamped, unless the agent is told another one:
/// kube-proxy has 0x4000 and 0x8000, portmap 0x2000, Calico 0xffff0000, Cilium 0x0f00. The kernel
/// clears the mark of a packet that comes out of a pod, so that none can set it. Which endpoint
/// sent the packet is in its `tc_index`, by [`stamp_index`].
pub const STAMP_MARK: u32 = 0x1000;

/// The `tc_index` of a packet stamped by the endpoint in this slot of the endpoint table; never
/// zero, which is what it is otherwise.
#[inline(always)]
pub const fn stamp_index(slot: u32) -> u32 {
    slot + 1
}

/// The inverse of [`stamp_index`].
#[inline(always)]
pub const fn stamped_slot(index: u32) -> Option<u32> {
    index.checked_sub(1)
}

const _: () = {
    assert!(size_of::<Endpoint>() == 64);
    assert!(ENDPOINT_SLOTS.is_power_of_two());
    assert!(stamp_index(ENDPOINT_SLOTS + ENDPOINT_PROBES - 1) <= u16::MAX as u32);
};
