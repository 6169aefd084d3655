//! The BPF side of userspace: loads programs, pins them, keeps the maps equal to the compiler's
//! result, and reads them for observers.
//!
//! This is the only place in userspace that knows aya and the only one with `unsafe`. It must
//! never decide what the maps should say, and never delete anything because it does not know it:
//! removal happens only on an explicit step, or in [`Datapath::reconcile`] after every source has
//! synced.

mod arena;
mod attach;
mod attachments;
mod class_table;
mod classes;
pub mod cleanup;
mod control;
mod counters;
mod datapath;
mod endpoint_map;
mod endpoint_table;
mod error;
pub mod evaluate;
pub mod features;
mod filters;
pub mod flow_size;
mod flow_tables;
pub mod grace;
mod keys;
mod limits;
mod load;
pub mod lock;
mod mapped;
mod maps;
pub mod monitor;
pub mod observe;
mod own_addresses;
mod pins;
mod plan;
mod prefixes;
pub mod probe;
mod reconcile;
mod resize;
mod rows;
pub mod run;
pub mod scratch;
mod seed;
mod services;
mod sources;
mod speakers;
mod transit;
mod usage;
mod versions;

pub use attach::{AttachMode, Part, programs_on};
pub use datapath::Datapath;
pub use error::{DatapathError, EndpointFailure};
pub use flow_tables::{FlowTable, FlowUse};
pub use limits::{Limits, Overflow, TableUse};
pub use load::{LoadOptions, OBJECT, Programs};
pub use maps::Maps;
pub use pins::Pins;
pub use reconcile::NumbersInMaps;
pub use speakers::Link;
