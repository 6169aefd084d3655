//! Placeholder replaced by the first commit of its owner.

pub mod check;
