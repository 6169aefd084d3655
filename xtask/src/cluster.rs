//! `cargo xtask cluster`: a real Kubernetes cluster on this machine. Only forwards to the package
//! `netpol-cluster`, whose dependencies `cargo xtask` itself must not have.

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::{Context as _, Result};

use crate::workspace::Workspace;
use crate::{build, run, setup};

/// Options of `cluster`, all of them the package's own.
#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Args {
    /// up, down, status, kubeconfig, kubectl, node, ...; `--help` lists them
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

/// The commands that put netpol's images on a cluster.
const INSTALLING: [&str; 4] = ["conformance", "deploy", "load-image", "scenarios"];

pub(crate) fn command(workspace: &Workspace, args: &Args) -> Result<ExitCode> {
    if args.arguments.iter().any(|word| word == "up" || word == "scenarios") {
        setup::ensure_for_tests()?;
    }
    forward(workspace, &args.arguments)
}

/// Runs the package's program.
pub(crate) fn forward(workspace: &Workspace, arguments: &[OsString]) -> Result<ExitCode> {
    // The package uses netpol's own code, which holds the object. What installs netpol must not
    // install that of an earlier state; all others, such as `kubectl`, stay quick and quiet.
    let installs = arguments.iter().any(|word| INSTALLING.iter().any(|name| word == name));
    if installs || !workspace.ebpf_object().exists() {
        build::object(workspace)?;
    }
    let mut command = run::cargo();
    command
        .args(["run", "--quiet", "--manifest-path"])
        .arg(workspace.root().join("Cargo.toml"))
        .args(["--package", "netpol-cluster", "--"])
        .args(arguments);
    let status = command.status().context("cannot start cargo")?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}
