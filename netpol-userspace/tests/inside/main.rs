//! What this machine's kernel may lack. Runs inside other kernels only: `cargo xtask test kernels`.

#![expect(clippy::unwrap_used, reason = "tests")]
#![expect(clippy::cast_possible_truncation, reason = "small or random numbers")]

mod inside_loss;
mod inside_sctp;
