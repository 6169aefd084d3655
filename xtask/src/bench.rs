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
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Subject {
    /// Nanoseconds per packet of the loaded programs, next to one that does nothing
    Datapath,
}

pub(crate) fn command(workspace: &Workspace, args: &Args) -> Result<ExitCode> {
    let _object = build::object(workspace)?;
    capabilities::require()?;
    let Subject::Datapath = args.subject;
    let stage = Stage::start("measuring (half a minute)");
    let mut command = run::cargo();
    command.current_dir(workspace.root());
    // The kernel's part is what is measured; optimising userspace would only take longer.
    command.args(["bench", "--profile", "dev", "--package", "netpol-userspace"]);
    command.args(["--bench", "datapath"]);
    run::visible(command, "it needs root and a quiet machine")?;
    stage.done();
    Ok(ExitCode::SUCCESS)
}
