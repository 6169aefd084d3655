//! Map names as pinned (at most 15 bytes, the kernel's limit). Must never change while
//! [`super::VERSION`] stays.

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
