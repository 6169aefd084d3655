//! Attackers with raw sockets, tenants and strangers. What is promised against whom is in SECURITY.md.

#![expect(clippy::unwrap_used, reason = "tests")]
#![expect(clippy::cast_possible_truncation, reason = "small or random numbers")]

mod hostile_attacks;
mod hostile_flood;
mod hostile_fuzz;
