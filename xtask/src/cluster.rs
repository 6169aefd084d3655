//! `cargo xtask cluster`: a real Kubernetes cluster on this machine. Only forwards to the package
//! `netpol-cluster`, whose dependencies `cargo xtask` itself must not have, after everything that
//! its command needs has been installed and built.

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use netpol_needs::Need;
use netpol_run::Workspace;
use netpol_setup::Wanted;

use crate::{build, setup};

/// Options of `cluster`, all of them the package's own.
#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Args {
    /// up, down, status, kubeconfig, kubectl, node, ...; `--help` lists them
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

/// What one of the package's commands needs.
struct Action {
    name: &'static str,
    needs: &'static [Need],
    /// It puts netpol's images on a cluster, which must not be those of an earlier state.
    installs: bool,
    /// Its pods run the program `traffic`.
    has_traffic: bool,
}

/// All others, such as `kubectl`, use a cluster that is there, and stay quick and quiet.
const ACTIONS: [Action; 5] = [
    Action { name: "up", needs: &[Need::Nodes], installs: false, has_traffic: false },
    Action { name: "build", needs: &[Need::ControlPlane], installs: false, has_traffic: false },
    Action { name: "deploy", needs: &[], installs: true, has_traffic: false },
    Action {
        name: "scenarios",
        needs: &[Need::Nodes, Need::Dns],
        installs: true,
        has_traffic: true,
    },
    Action {
        name: "conformance",
        needs: &[Need::Nodes, Need::Suite],
        installs: true,
        has_traffic: false,
    },
];

pub(crate) fn command(workspace: &Workspace, args: &Args) -> Result<ExitCode> {
    forward(workspace, &args.arguments, &[])
}

/// Runs the package's program, after all that it needs, and `more`, is there.
pub(crate) fn forward(
    workspace: &Workspace,
    arguments: &[OsString],
    more: &[Need],
) -> Result<ExitCode> {
    let action = action(arguments);
    let mut command = build::package(workspace, "netpol-cluster");
    command.arg("--").args(arguments);
    if let Some(action) = action {
        let needs = action.needs.iter().chain(more).copied();
        setup::ensure(&Wanted::with(needs))?;
    }
    let installs = action.is_some_and(|action| action.installs);
    // The package uses netpol's own code, which holds the object.
    if installs || !workspace.ebpf_object().exists() {
        build::object(workspace)?;
    }
    if installs {
        command.env("NETPOL_PROGRAM", build::netpol(workspace, false)?);
    }
    if action.is_some_and(|action| action.has_traffic) {
        command.env("NETPOL_TRAFFIC", build::traffic(workspace)?);
    }
    let status = command.status().context("cannot start cargo")?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}

/// The command that is meant, unless only its help is asked for.
fn action(arguments: &[OsString]) -> Option<&'static Action> {
    let words = || arguments.iter().filter_map(|word| word.to_str());
    // What follows is for a program on the cluster.
    let own = || words().take_while(|word| *word != "--");
    if own().any(|word| word == "--help" || word == "-h") {
        return None;
    }
    let mut is_value = false;
    let name = own().find(|word| {
        let is_command = !is_value && !word.starts_with('-');
        is_value = *word == "--name";
        is_command
    })?;
    ACTIONS.iter().find(|action| action.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(line: &str) -> Option<&'static str> {
        let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        action(&words).map(|action| action.name)
    }

    #[test]
    fn the_command_is_found_among_options_and_what_others_are_given() {
        assert_eq!(name("up --nodes 3"), Some("up"));
        assert_eq!(name("--name up status"), None);
        assert_eq!(name("--name=x --no-prepare up"), Some("up"));
        assert_eq!(name("kubectl -- get pods up"), None);
        assert_eq!(name("kubectl up"), None);
        assert_eq!(name("up --help"), None);
    }
}
