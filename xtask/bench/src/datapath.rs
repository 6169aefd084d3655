//! Nanoseconds per packet of the loaded programs (BPF_PROG_TEST_RUN), next to a program that does
//! nothing. Must never be loaded with programs that the agent loads too.

use anyhow::{Result, bail};

use crate::Options;
use crate::report::Report;

/// Measures.
pub fn run(_options: &Options) -> Result<Report> {
    bail!("being moved here from netpol-userspace/benches; nothing is measured yet")
}
