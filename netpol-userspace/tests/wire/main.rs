//! Rows of the semantics table as packets between pods, nodes and the outside of a lab of two nodes, and
//! Services with what translates them.

#![expect(clippy::unwrap_used, reason = "tests")]

mod service_change;
mod service_kinds;
mod service_masquerade;
mod service_self;
mod service_untranslated;
mod wire_guard;
mod wire_icmp;
mod wire_packets;
mod wire_policies;
mod wire_sources;
mod wire_tiers;
mod wire_topologies;
