//! The agent: wires sources, compiler, endpoint discovery and datapath together.
//!
//! One task owns all of the state and handles one event at a time; everything else only sends to
//! it. Nothing is removed from the kernel before every source has synced.

pub mod state;

mod options;

pub use options::{Options, SourceOptions};
