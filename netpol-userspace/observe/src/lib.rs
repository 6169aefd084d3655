//! Answers about what is in force on this node: from the state file, which has the names, and the
//! pinned maps, which have the numbers. Both outlive the agent.
//!
//! Everything here is data; `cli` turns it into text. Must never change what is enforced.

#![forbid(unsafe_code)]

pub mod drops;
pub mod endpoints;
pub mod events;
pub mod flows;
pub mod frames;
pub mod metrics;
pub mod names;
pub mod node;
pub mod policies;
pub mod protocol;
pub mod proxy;
pub mod rules;
pub mod services;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod trace;
