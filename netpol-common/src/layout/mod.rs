//! The layout of every map, byte for byte. A change of any of these types or of a map's meaning
//! needs a new [`VERSION`], which is part of the pin path: two layouts never share a map.
//!
//! Integers are in host order unless a field says otherwise.

mod addresses;
mod control;
mod endpoints;
mod events;
mod flows;
pub mod names;
mod reason;
mod rows;
mod services;
mod speakers;

pub use addresses::{
    Address, BlockKey, ExactClass, FAMILY_BITS, MAX_ADDRESSES, MAX_BLOCKS, exact_class,
};
pub use control::{Control, HAS_SOURCE_PREFIXES, SERVICES_INCOMPLETE, TRANSIT_READY};
pub use endpoints::{
    ENDPOINT_PROBES, ENDPOINT_SLOTS, EPOCH_MASK, Endpoint, JUDGES_OWN, MAX_ENDPOINTS, POLICY_VALID,
    STAMP_MARK, judges_own, own4, policy_word, stamp_index, stamped_slot,
};
pub use events::{
    Counters, EVENT_RING_BYTES, EVENTS_PER_TICK, Event, EventBudget, N_COUNTERS, counter_index,
};
pub use flows::{
    FLOW4_BUCKETS, FLOW6_BUCKETS, FlowUse, FragmentKey, FragmentPorts, MAX_FLOW_BUCKETS,
    MAX_FRAGMENTS, common_buckets, flow_map_entries, fragment_ports, reserve_buckets,
};
pub use reason::Reason;
pub use rows::{
    INTERVAL_ALLOW, Interval, MAX_INTERVALS, MAX_ROWS, ROW_ALL, ROW_PORTS, ROW_PORTS_AND_OTHERS,
    Row, RowKey, interval, interval_first, interval_last,
};
pub use services::{
    BACKEND_ELSEWHERE, BACKEND_ENDPOINT, BACKEND_ON_NODE, Backend, MAX_BACKENDS, MAX_SERVICES,
    ServiceKey, ServiceValue, backend, backend_class, backend_endpoint, backend_port,
    service_value,
};
pub use speakers::{
    LINK_ADDRESS, LINK_SHARED, MAX_OWN_ADDRESSES, MAX_SOURCE_PREFIXES, OwnAddress,
    SOURCE_PREFIX_BITS, SourcePrefix, Speaker,
};

/// Layout version; maps are pinned below `<bpffs>/v<VERSION>/`.
pub const VERSION: u32 = 4;

/// Traffic direction from the pod's view, as map index and event field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Direction {
    /// Towards the pod: tc egress hook of the host-side interface.
    Ingress = 0,
    /// From the pod: tc ingress hook of the host-side interface.
    Egress = 1,
}
