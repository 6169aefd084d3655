//! The BPF side of userspace: loads programs, pins them, keeps the maps equal to the compiler's
//! result, and reads them for observers.
//!
//! This is the only place in userspace that knows aya and the only one with `unsafe`. It must
//! never decide what the maps should say, and never delete anything because it does not know it:
//! removal happens only on an explicit step, or in [`Datapath::reconcile`] after every source has
//! synced.
//!
//! Each table owns its maps and the account of what is in them; what one needs of another it is
//! handed. [`Datapath`] holds them all and does what is about several: a plan's steps
//! (`datapath/plan.rs`), and after a restart what makes the maps equal to the compiler's tables
//! (`datapath/reconcile.rs`).
//!
//! | table | maps |
//! |---|---|
//! | `EndpointTable` | entries, speakers, own addresses, sources, counters |
//! | `ClassTable` | addresses, blocks |
//! | `RowTable` | rows, intervals |
//! | `ServiceTable` | Services, backends |
//! | `PrefixTable` | source prefixes |
//! | `FlowTables` | IPv4 flows, IPv6 flows, accounts |
//! | `ControlEntry` | control |
//! | `Attachments` | none: programs, links and filters, and what is on which endpoint's interface |
//! | `TransitHooks` | none: which exits have their transit program |

#![warn(unreachable_pub)]

mod arena;
mod attach;
mod attachments;
mod class_table;
mod classes;
pub mod cleanup;
mod clock;
mod clsact;
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
mod pinned;
mod pins;
mod prefixes;
mod probe;
mod resize;
mod rows;
pub mod run;
pub mod scratch;
mod seed;
mod services;
mod sources;
mod speakers;
mod tcx;
mod transit;
mod versions;

pub use attach::{AttachMode, Part, programs_on};
pub use datapath::{Datapath, NumbersInMaps};
pub use error::{DatapathError, EndpointFailure};
pub use flow_tables::{FlowTable, FlowUse};
pub use limits::{Limits, Overflow, TableUse};
pub use load::{LoadOptions, OBJECT, Programs};
pub use maps::Maps;
pub use pins::Pins;
pub use speakers::Link;
