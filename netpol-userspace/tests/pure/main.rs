//! What needs no privileges: the compiler, sources, the command line. Must never touch the kernel.

#![expect(clippy::unwrap_used, reason = "tests")]
#![expect(clippy::cast_possible_truncation, reason = "small or random numbers")]

mod cli_usage;
mod compile_explain;
mod compile_holders;
mod compile_jobs;
mod compile_plans;
mod compile_random;
mod compile_scale;
mod compile_semantics;
mod compile_services;
mod compile_shares;
mod compile_slices;
mod compile_tiers;
mod datapath_stack;
mod source_kubernetes;
mod source_manifests;
