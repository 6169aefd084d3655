//! The parts of the fuzzer on the wire: frames, and what others may see of them.

pub mod judge;
pub mod make;
