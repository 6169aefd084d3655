//! `cargo xtask conformance`: upstream's NetworkPolicy and ClusterNetworkPolicy suites against netpol on a
//! real cluster. Only forwards to the package `netpol-cluster`, as `cargo xtask cluster` does.

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use netpol_needs::Need;
use netpol_run::{self as run, Workspace};
use netpol_setup::Wanted;

use crate::{build, cluster, setup};

/// Options of `conformance`, all of them the package's own.
#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Args {
    /// --proxy-mode, --suite, --focus, --parallel, --keep, ...; `--help` explains them
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

pub(crate) fn command(workspace: &Workspace, args: &Args) -> Result<ExitCode> {
    let words = || args.arguments.iter().filter_map(|word| word.to_str());
    let has = |option: &str| {
        words().any(|word| {
            word.strip_prefix(option).is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
        })
    };
    let mut arguments: Vec<OsString> = vec!["conformance".into()];
    arguments.extend(args.arguments.iter().cloned());
    let is_help = has("--help") || has("-h");
    if !is_help && !has("--output") {
        arguments.extend(["--output".into(), workspace.target().join("conformance").into()]);
    }
    if !is_help && has("--kernel") {
        return in_kernel(workspace, &arguments);
    }
    cluster::forward(workspace, &arguments, more(words()))
}

/// The same inside a virtual machine, which `netpol-kernels` starts.
fn in_kernel(workspace: &Workspace, arguments: &[OsString]) -> Result<ExitCode> {
    setup::ensure(&Wanted::with([Need::Kernels, Need::Nodes, Need::TierSuite]))?;
    build::object(workspace)?;
    let netpol = build::netpol(workspace, false)?;
    let mut program = run::cargo();
    program.current_dir(workspace.root()).args(["build", "--package", "netpol-cluster", "--bins"]);
    run::visible(program, "fix the error above")?;
    let mut command = build::package(workspace, "netpol-kernels");
    command.arg("--").args(arguments).env("NETPOL_PROGRAM", netpol);
    command.env("NETPOL_CLUSTER", workspace.target().join("debug/netpol-cluster"));
    let status = command.status().context("cannot start cargo")?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}

/// What the suites need that are asked for, besides what the usual one does.
fn more<'a>(words: impl Iterator<Item = &'a str>) -> &'static [Need] {
    let suites = words.map(|word| word.strip_prefix("--suite=").unwrap_or(word));
    let needs = suites.filter_map(|suite| match suite {
        "legacy" => Some(&[Need::LegacySuite][..]),
        "cluster-network-policy" => Some(&[Need::TierSuite][..]),
        "all" => Some(&[Need::LegacySuite, Need::TierSuite][..]),
        _ => None,
    });
    needs.last().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_suite_needs_is_known_before_its_program_is_built() {
        let of = |line: &'static str| more(line.split(' '));
        assert_eq!(of("--suite cluster-network-policy --keep"), [Need::TierSuite]);
        assert_eq!(of("--suite=all"), [Need::LegacySuite, Need::TierSuite]);
        assert!(of("--proxy-mode both").is_empty());
    }
}
