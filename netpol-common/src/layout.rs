//! The layout of every map, byte for byte. A change of any of these types or of a map's meaning
//! needs a new [`VERSION`], which is part of the pin path: two layouts never share a map.
//!
//! Integers are in host order unless a field says otherwise.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Layout version; maps are pinned below `<bpffs>/v<VERSION>/`.
pub const VERSION: u32 = 4;

/// Slots of the endpoint table: an array indexed by `ifindex % ENDPOINT_SLOTS`, then the
/// [`ENDPOINT_PROBES`] - 1 slots after it.
pub const ENDPOINT_SLOTS: u32 = 16_384;
/// How many neighbouring slots an interface may be found in.
pub const ENDPOINT_PROBES: u32 = 4;
/// Endpoint ids are 1..MAX_ENDPOINTS; Kubernetes' own limit is 110 pods a node by default.
pub const MAX_ENDPOINTS: u32 = 1_024;
/// Addresses with a class of their own.
pub const MAX_ADDRESSES: u32 = 524_288;
/// CIDR blocks.
pub const MAX_BLOCKS: u32 = 262_144;
/// (policy set, class) rows.
pub const MAX_ROWS: u32 = 1_048_576;
/// Intervals of all port sets together.
pub const MAX_INTERVALS: u32 = 524_288;
/// Addresses of local endpoints.
pub const MAX_OWN_ADDRESSES: u32 = 16_384;
/// Entries of the table of [`SourcePrefix`]es.
pub const MAX_SOURCE_PREFIXES: u32 = 16_384;
/// (address, protocol, port) of Services.
pub const MAX_SERVICES: u32 = 131_072;
/// Kinds of backends of all Services together.
pub const MAX_BACKENDS: u32 = 262_144;
/// First fragments remembered.
pub const MAX_FRAGMENTS: u32 = 8_192;
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
/// Bytes of the event ring buffer.
pub const EVENT_RING_BYTES: u32 = 1 << 20;

/// Map names as pinned (at most 15 bytes, the kernel's limit).
pub mod names {
    /// [`super::Endpoint`] by interface.
    pub const ENDPOINTS: &str = "ENDPOINTS";
    /// IPv4 flow buckets.
    pub const FLOWS4: &str = "FLOWS4";
    /// IPv6 flow buckets.
    pub const FLOWS6: &str = "FLOWS6";
    /// [`super::FlowUse`] by endpoint id.
    pub const FLOW_USE: &str = "FLOW_USE";
    /// [`super::ExactClass`] by [`super::Address`].
    pub const ADDRESSES: &str = "ADDRESSES";
    /// Class by block, longest prefix match.
    pub const BLOCKS: &str = "BLOCKS";
    /// [`super::Row`] by [`super::RowKey`].
    pub const ROWS: &str = "ROWS";
    /// [`super::Interval`] arena.
    pub const INTERVALS: &str = "INTERVALS";
    /// Presence of [`super::OwnAddress`].
    pub const OWN_ADDRESSES: &str = "OWN_ADDRESSES";
    /// Presence of blocks of [`super::SourcePrefix`], longest prefix match.
    pub const SOURCE_PREFIXES: &str = "SOURCE_PREFIXES";
    /// Interface of the one local endpoint that has an [`super::Address`] and stamps packets; no
    /// entry while several do.
    pub const SOURCES: &str = "SOURCES";
    /// [`super::ServiceValue`] by [`super::ServiceKey`].
    pub const SERVICES: &str = "SERVICES";
    /// [`super::Backend`] arena.
    pub const BACKENDS: &str = "BACKENDS";
    /// [`super::Speaker`] by interface.
    pub const SPEAKERS: &str = "SPEAKERS";
    /// Ports of first fragments.
    pub const FRAGMENTS: &str = "FRAGMENTS";
    /// [`super::Counters`] by endpoint id and direction.
    pub const COUNTERS: &str = "COUNTERS";
    /// [`super::Control`], one entry.
    pub const CONTROL: &str = "CONTROL";
    /// [`super::Event`] ring buffer.
    pub const EVENTS: &str = "EVENTS";
    /// Token buckets of the events.
    pub const EVENT_BUDGET: &str = "EVENT_BUDGET";
    /// All of them.
    pub const ALL: [&str; 19] = [
        ENDPOINTS,
        FLOWS4,
        FLOWS6,
        FLOW_USE,
        ADDRESSES,
        BLOCKS,
        ROWS,
        INTERVALS,
        OWN_ADDRESSES,
        SOURCE_PREFIXES,
        SOURCES,
        SERVICES,
        BACKENDS,
        SPEAKERS,
        FRAGMENTS,
        COUNTERS,
        CONTROL,
        EVENTS,
        EVENT_BUDGET,
    ];
}

/// Traffic direction from the pod's view, as map index and event field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Direction {
    /// Towards the pod: tc egress hook of the host-side interface.
    Ingress = 0,
    /// From the pod: tc ingress hook of the host-side interface.
    Egress = 1,
}

/// An IP address as a map key: the family (4 or 6) and four 32-bit words in network byte order
/// as they stand in memory. An IPv4 address is the first word, the others are zero. The family
/// comes first so that `::/0` does not contain IPv4.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Address {
    /// 4 or 6.
    pub family: u32,
    /// Network byte order in memory.
    pub words: [u32; 4],
}

impl Address {
    /// The IPv4 address with these four bytes in network order.
    #[inline(always)]
    pub const fn v4(word: u32) -> Self {
        Self { family: 4, words: [word, 0, 0, 0] }
    }

    /// The IPv6 address with these words in network byte order.
    #[inline(always)]
    pub const fn v6(words: [u32; 4]) -> Self {
        Self { family: 6, words }
    }

    /// Equality without a call to `memcmp`, which the eBPF programs would make of `==`.
    #[inline(always)]
    pub const fn is_same(&self, other: &Self) -> bool {
        let (a, b) = (&self.words, &other.words);
        let difference = (a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2]) | (a[3] ^ b[3]);
        self.family == other.family && difference == 0
    }

    /// Folds the address to 32 bits; exact for IPv4. See [`ExactClass`].
    #[inline(always)]
    pub const fn echo(&self) -> u32 {
        self.words[0] ^ self.words[1] ^ self.words[2] ^ self.words[3]
    }
}

/// Bits of [`Address`] before the address itself, to be added to a prefix length.
pub const FAMILY_BITS: u32 = 32;

/// An address with how many of its bits a block has, as the table of blocks wants it. An address that
/// is looked for has all of them, and is the key of the exact table as well: so the programs, which
/// may not look for what is not on their stack, have it there once.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct BlockKey {
    /// Bits of `address` that count, from its start.
    pub bits: u32,
    /// The address.
    pub address: Address,
}

impl BlockKey {
    /// To look for an address.
    #[inline(always)]
    pub const fn of(address: &Address) -> Self {
        Self { bits: FAMILY_BITS + 128, address: *address }
    }
}

/// Value of the exact address table: class in the low half, [`Address::echo`] of its key in the
/// high half. The kernel may reuse a hash element while a program still reads it; the echo, read
/// in the same load as the class, shows whose class it is.
pub type ExactClass = u64;

/// Packs an [`ExactClass`].
#[inline(always)]
pub const fn exact_class(address: &Address, class: u32) -> ExactClass {
    ((address.echo() as u64) << 32) | class as u64
}

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
    /// look into the table of all ([`OwnAddress`]); zero: ask that.
    pub own4: u64,
    /// Where others share the link, the link-layer address that every frame of its must come from,
    /// as of [`link_word`](crate::neighbour::link_word); zero: none in particular.
    pub link: u64,
    /// Room to grow to a cache line.
    pub reserved: [u64; 3],
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
    /// As [`Endpoint::born`].
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
    /// As [`Endpoint::identity`].
    pub identity: u64,
    /// As [`Endpoint::own4`].
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
    /// [`ROW_ALL`] or [`ROW_PORTS`]; anything else allows nothing.
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

/// One interval of a port set; intervals of a set are sorted by first port and disjoint.
pub type Interval = u64;

/// Interval verdict bits: allow. (Deny intervals of admin tiers will be another value.)
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
/// for [`ExactClass`], shows a hash element that is being reused.
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
    /// [`Direction`].
    pub direction: u8,
}

/// What a first fragment told: `local port << 32 | remote port << 16 | protocol << 8 | 1`.
pub type FragmentPorts = u64;

/// Packs [`FragmentPorts`].
#[inline(always)]
pub const fn fragment_ports(protocol: u8, local: u16, remote: u16) -> FragmentPorts {
    (local as u64) << 32 | (remote as u64) << 16 | (protocol as u64) << 8 | 1
}

/// Number of counters per endpoint and direction.
pub const N_COUNTERS: usize = 16;

/// Per-CPU counters of one endpoint and direction, indexed by [`Reason`].
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

/// Why a packet got its verdict; index into [`Counters`] and field of [`Event`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Reason {
    /// Allowed: a new flow was judged and admitted.
    NewFlow = 0,
    /// No policy allows it.
    Policy = 1,
    /// The flow was allowed once and no longer is.
    PolicyCut = 2,
    /// The pod sent from an address that is not its own.
    SourceAddress = 3,
    /// A fragment whose first fragment was not seen, where the ports decide.
    Fragment = 4,
    /// The headers end too early or contradict each other.
    Truncated = 5,
    /// An ethertype other than IPv4, IPv6 and ARP, or a VLAN tag.
    Ethertype = 6,
    /// IPv6 extension headers that cannot be followed.
    ExtensionHeaders = 7,
    /// Router advertisement, redirect or query for listeners sent by a pod.
    RouterMessage = 8,
    /// A program is attached but the endpoint is not known: fails closed.
    UnknownEndpoint = 9,
    /// A map says something impossible: fails closed.
    Inconsistent = 10,
    /// A Service some of whose backends are allowed and some are not, and which one it will be, or
    /// is, nobody can see: it fails closed.
    ServiceMixed = 13,
    /// ARP, neighbour discovery or a listener report from a pod that says more than these need, or
    /// goes to where a router would forward it.
    Neighbour = 14,
    /// It came by a link that others share, and is for an address that is not the pod's.
    DestinationAddress = 15,
    /// Not a verdict: a live flow made room for another one.
    FlowEvicted = 11,
    /// Not a verdict: an event was not written (rate limit or full ring).
    EventLost = 12,
}

impl Reason {
    /// All reasons, in the order of their numbers.
    pub const ALL: [Self; 16] = [
        Self::NewFlow,
        Self::Policy,
        Self::PolicyCut,
        Self::SourceAddress,
        Self::Fragment,
        Self::Truncated,
        Self::Ethertype,
        Self::ExtensionHeaders,
        Self::RouterMessage,
        Self::UnknownEndpoint,
        Self::Inconsistent,
        Self::FlowEvicted,
        Self::EventLost,
        Self::ServiceMixed,
        Self::Neighbour,
        Self::DestinationAddress,
    ];

    /// The reason with this number.
    #[inline(always)]
    pub const fn from_number(number: u8) -> Option<Self> {
        // A match rather than a table: the eBPF programs have no pointers to static data.
        Some(match number {
            0 => Self::NewFlow,
            1 => Self::Policy,
            2 => Self::PolicyCut,
            3 => Self::SourceAddress,
            4 => Self::Fragment,
            5 => Self::Truncated,
            6 => Self::Ethertype,
            7 => Self::ExtensionHeaders,
            8 => Self::RouterMessage,
            9 => Self::UnknownEndpoint,
            10 => Self::Inconsistent,
            11 => Self::FlowEvicted,
            12 => Self::EventLost,
            13 => Self::ServiceMixed,
            14 => Self::Neighbour,
            15 => Self::DestinationAddress,
            _ => return None,
        })
    }

    /// A short stable word, used in metrics and JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NewFlow => "new-flow",
            Self::Policy => "policy",
            Self::PolicyCut => "policy-cut",
            Self::SourceAddress => "source-address",
            Self::Fragment => "fragment",
            Self::Truncated => "truncated",
            Self::Ethertype => "ethertype",
            Self::ExtensionHeaders => "extension-headers",
            Self::RouterMessage => "router-message",
            Self::UnknownEndpoint => "unknown-endpoint",
            Self::Inconsistent => "inconsistent",
            Self::FlowEvicted => "flow-evicted",
            Self::EventLost => "event-lost",
            Self::ServiceMixed => "service-mixed",
            Self::Neighbour => "neighbour",
            Self::DestinationAddress => "destination-address",
        }
    }

    /// Whether packets counted here were dropped.
    pub const fn is_drop(self) -> bool {
        !matches!(self, Self::NewFlow | Self::FlowEvicted | Self::EventLost)
    }
}

/// One entry, written by userspace through an mmap.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Control {
    /// Drop events are written until this tick (see [`flow::tick`](crate::flow::tick)); 0: nobody reads.
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
/// [`Control::flags`]: some pod may send from more than its own addresses ([`SourcePrefix`]).
pub const HAS_SOURCE_PREFIXES: u64 = 4;

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
    /// [`Reason`].
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
    assert!(size_of::<Address>() == 20);
    assert!(size_of::<Endpoint>() == 64);
    assert!(size_of::<Speaker>() == 64);
    assert!(size_of::<FlowUse>() == 128);
    assert!(size_of::<OwnAddress>() == 24);
    assert!(size_of::<SourcePrefix>() == 24);
    assert!(size_of::<RowKey>() == 8);
    assert!(size_of::<ServiceKey>() == 24);
    assert!(size_of::<Row>() == 16);
    assert!(size_of::<FragmentKey>() == 48);
    assert!(size_of::<Counters>() == 128);
    assert!(size_of::<Control>() == 64);
    assert!(size_of::<Event>() == 80);
    assert!(size_of::<EventBudget>() == 16);
    assert!(ENDPOINT_SLOTS.is_power_of_two());
    assert!(stamp_index(ENDPOINT_SLOTS + ENDPOINT_PROBES - 1) <= u16::MAX as u32);
    assert!(FLOW4_BUCKETS.is_power_of_two() && FLOW6_BUCKETS.is_power_of_two());
};
