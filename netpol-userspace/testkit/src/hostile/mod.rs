//! Attackers on a lab of two nodes: pods with raw sockets, and a stranger outside. What they send
//! bears a marker, and observers at every other pod, at both nodes, between them and outside look
//! for it. Must never let an attack pass because nobody looked: each one ends with frames that may
//! pass, and that every observer has to see.

pub mod attack;
pub mod frames;
pub mod observers;
pub mod rows;
pub mod sender;
pub mod stage;
pub mod ways;
