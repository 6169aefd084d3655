//! The parts of the fuzzer on the wire: frames, and what others may see of them.

#![expect(clippy::unwrap_used, reason = "tests")]

pub mod judge;
pub mod make;
