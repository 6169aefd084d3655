//! netpol's own test programs inside real kernels: Debian's packages, booted by QEMU with nothing
//! but what the tests need in memory. Must never install a kernel, change the host's sources of
//! packages, or touch the host's network.

pub mod archive;
pub mod conformance;
pub mod frames;
pub mod guest;
pub mod machine;
pub mod matrix;
pub mod modules;
pub mod packages;
pub mod programs;
pub mod report;
pub mod results;
pub mod run;
mod tree;
mod turns;
