//! `cargo xtask bench`: what netpol costs, measured on one machine, in namespaces of its own, next
//! to the kernel without it and to the ways of its peers. Rounds are interleaved, and figures are
//! differences and ratios within one run: those of one machine mean nothing on another.
//!
//! A subject is a function that gives a [`report::Report`]. It runs as the first process of
//! namespaces of its own (`isolation.rs`), where it may leave everything lying about but must
//! never write to standard output: there the report goes to the process outside, which shows it.
//!
//! Nothing here is a test, and no test may be made of a time.

#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "sizes that the benchmark chooses, and figures"
)]

pub mod agent;
pub mod datapath;
pub mod isolation;
pub mod latency;
pub mod load;
pub mod machine;
mod manifests;
pub mod program;
pub mod progress;
pub mod render;
pub mod report;
pub mod sample;
pub mod system;
pub mod tiers;

/// How a subject is run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Options {
    /// Fewer rounds and smaller sizes: shows that it works, too short to conclude much from.
    pub is_quick: bool,
}
