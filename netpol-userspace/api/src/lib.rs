//! What the agent and those who ask it say to each other: the state file, questions and answers,
//! counters, what the CNI plugin tells, and a client for the agent's socket. Plain data but for that
//! client. Must never decide anything.

#![forbid(unsafe_code)]

pub mod client;
pub mod counters;
pub mod decision;
pub mod installation;
pub mod questions;
pub mod sandbox;
pub mod state;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
