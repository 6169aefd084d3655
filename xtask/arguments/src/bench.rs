//! The arguments of `cargo xtask bench`, which netpol-bench carries out.

use std::path::PathBuf;

/// Options of `bench`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// What to measure
    #[arg(value_enum, default_value_t = Subject::Datapath)]
    pub subject: Subject,
    /// Fewer rounds and smaller sizes: too short to conclude much from
    #[arg(long)]
    pub quick: bool,
    /// Write what was found to this file (`-`: standard output, and the tables to standard error)
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Draw the curves into this directory, as SVG
    #[arg(long, value_name = "DIR")]
    pub plot: Option<PathBuf>,
}

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Subject {
    /// Nanoseconds per packet of the loaded programs, next to one that does nothing
    Datapath,
    /// Throughput and latency between two pods, next to other ways to filter
    System,
    /// Time, memory and map writes of the agent, on synthetic clusters
    Agent,
    /// Time from a policy file's write to the first packet judged by it
    Latency,
    /// What one namespace with very many rules, blocks or selectors costs itself and others
    Load,
    /// What a hundred ClusterNetworkPolicies cost the compiler
    Tiers,
}

impl Subject {
    /// As it is written on a command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Datapath => "datapath",
            Self::System => "system",
            Self::Agent => "agent",
            Self::Latency => "latency",
            Self::Load => "load",
            Self::Tiers => "tiers",
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum as _;

    use super::*;

    #[test]
    fn a_subject_is_written_as_it_is_read() {
        for subject in Subject::value_variants() {
            assert_eq!(Subject::from_str(subject.name(), false), Ok(*subject));
        }
    }
}
