//! `cargo xtask conformance`: upstream's NetworkPolicy end-to-end suites against netpol on a real
//! cluster. Only forwards to the package `netpol-cluster`, as `cargo xtask cluster` does.

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Result;
use netpol_needs::Need;
use netpol_run::Workspace;

use crate::cluster;

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
    if !has("--help") && !has("-h") && !has("--output") {
        arguments.extend(["--output".into(), workspace.target().join("conformance").into()]);
    }
    let is_legacy = words().any(|word| {
        let suite = word.strip_prefix("--suite=").unwrap_or(word);
        suite == "legacy" || suite == "all"
    });
    let more: &[Need] = if is_legacy { &[Need::LegacySuite] } else { &[] };
    cluster::forward(workspace, &arguments, more)
}
