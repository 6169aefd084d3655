//! `cargo xtask bench`: measurements that anyone can repeat, as ratios within one run. What is
//! measured and how it is shown is in `xtask/bench`; here it is only built and started.
//!
//! At the end this process becomes that program, so that Ctrl-C and signals reach it and nobody
//! else, its exit code is the command's, and no parent returns to the prompt while it cleans up.

use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use netpol_needs::Need;

use crate::run::{self, announce};
use crate::toolchain::Wanted;
use crate::workspace::Workspace;
use crate::{build, capabilities, cluster, setup};

/// Options of `bench`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// What to measure
    #[arg(value_enum, default_value_t = Subject::Datapath)]
    subject: Subject,
    /// Fewer rounds and smaller sizes: too short to conclude much from
    #[arg(long)]
    quick: bool,
    /// Write what was found to this file (`-`: standard output, and the tables to standard error)
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw the curves into this directory, as SVG
    #[arg(long, value_name = "DIR")]
    plot: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Subject {
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
}

impl Subject {
    fn name(self) -> &'static str {
        match self {
            Self::Datapath => "datapath",
            Self::System => "system",
            Self::Agent => "agent",
            Self::Latency => "latency",
            Self::Load => "load",
        }
    }

    /// Of `datapath` the kernel's part is what is measured; optimising userspace would only take
    /// longer.
    fn is_optimised(self) -> bool {
        self != Self::Datapath
    }

    /// What is measured beside netpol.
    fn needs(self) -> &'static [Need] {
        if self == Self::System { &[Need::Translation] } else { &[] }
    }

    /// Whether the program `netpol` itself is run.
    fn has_agent(self) -> bool {
        matches!(self, Self::Agent | Self::Latency | Self::Load)
    }
}

pub(crate) fn command(workspace: &Workspace, args: &Args) -> Result<ExitCode> {
    // Before anything is built, which takes minutes.
    if !setup::is_root() {
        bail!(
            "measuring loads eBPF programs and makes network namespaces, which only root may do; \
             nothing was built or measured. Run it as root: sudo -E cargo xtask bench {}",
            args.subject.name()
        );
    }
    let needs = args.subject.needs();
    let _object = build::object_for(workspace, &Wanted::with(needs.iter().copied()))?;
    capabilities::require(needs)?;
    let netpol = match args.subject.has_agent() {
        true => Some(build::netpol(workspace, args.subject.is_optimised())?),
        false => None,
    };
    // The caller's directory stays the one that names of files are relative to.
    let mut command = cluster::package(workspace, "netpol-bench");
    if args.subject.is_optimised() {
        command.arg("--release");
    }
    if let Some(program) = netpol {
        command.env("NETPOL_PROGRAM", program);
    }
    command.args(["--", args.subject.name()]);
    if args.quick {
        command.arg("--quick");
    }
    if let Some(file) = &args.json {
        command.arg("--json").arg(file);
    }
    if let Some(directory) = &args.plot {
        command.arg("--plot").arg(directory);
    }
    announce(format_args!("building and measuring: {}", args.subject.name()));
    let error = command.exec();
    Err(error).with_context(|| format!("cannot start `{}`", run::display(&command)))
}
