//! `cargo xtask bench`: measurements that anyone can repeat, as ratios within one run.

use std::process::ExitCode;

use anyhow::Result;

use crate::run::{self, Stage};
use crate::workspace::Workspace;
use crate::{build, capabilities};

/// Options of `bench`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// What to measure
    #[arg(value_enum, default_value_t = Subject::Datapath)]
    subject: Subject,
    /// With `latency`: JSON instead of a table
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Subject {
    /// Nanoseconds per packet of the loaded programs, next to one that does nothing
    Datapath,
    /// Time from a policy file's write to the first packet judged by it
    Latency,
}

pub(crate) fn command(workspace: &Workspace, args: &Args) -> Result<ExitCode> {
    let _object = build::object(workspace)?;
    capabilities::require()?;
    let stage = Stage::start("measuring (a minute)");
    let mut command = run::cargo();
    command.current_dir(workspace.root()).arg("bench");
    match args.subject {
        // The kernel's part is what is measured; optimising userspace would only take longer.
        Subject::Datapath => command.args(["--profile", "dev"]),
        Subject::Latency => command.args(["--profile", "release"]),
    };
    command.args(["--package", "netpol-userspace", "--bench"]);
    command.arg(match args.subject {
        Subject::Datapath => "datapath",
        Subject::Latency => "latency",
    });
    if args.json {
        command.env("NETPOL_JSON", "1");
    }
    run::visible(command, "it needs root and a quiet machine")?;
    stage.done();
    Ok(ExitCode::SUCCESS)
}
