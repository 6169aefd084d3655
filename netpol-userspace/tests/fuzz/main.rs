//! Random clusters, frames and edits on the loaded programs, against the slow evaluator, another parser and
//! the same code in userspace. A run of all tests has a few cases; `cargo xtask test fuzz` has more.

#![expect(clippy::unwrap_used, reason = "tests")]
#![expect(clippy::cast_possible_truncation, reason = "small or random numbers")]

mod change_flood;
mod datapath_differential;
mod datapath_fuzz;
mod datapath_raw;
