//! `cargo xtask bench`: what netpol costs, measured on one machine, in namespaces of its own, next
//! to the kernel without it and to the ways of its peers. Rounds are interleaved, and figures are
//! differences and ratios within one run: those of one machine mean nothing on another.
//!
//! Nothing here is a test, and no test may be made of a time.

pub mod datapath;
pub mod progress;
pub mod report;
pub mod sample;
pub mod system;

/// How a subject is run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Options {
    /// Fewer rounds and smaller sizes: shows that it works, too short to conclude much from.
    pub is_quick: bool,
}
