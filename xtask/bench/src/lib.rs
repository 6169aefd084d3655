//! `cargo xtask bench`: what netpol costs, measured on one machine, in namespaces of its own, next
//! to the kernel without it and to the ways of its peers. Rounds are interleaved, and figures are
//! differences and ratios within one run: those of one machine mean nothing on another.
//!
//! Nothing here is a test, and no test may be made of a time.

pub mod report;
pub mod sample;
