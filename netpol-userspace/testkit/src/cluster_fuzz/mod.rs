//! The parts of the cluster fuzzer: what packets are, what they should come to, the node that
//! they are tried on, and how a failure becomes small enough to be read.

pub mod model;
pub mod node;
pub mod packets;
pub mod script;
pub mod shrink;
pub mod traffic;
