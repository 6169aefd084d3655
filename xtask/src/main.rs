//! `cargo xtask`: every command a person or CI needs to build, show and test netpol.
//!
//! Only says which there are, and starts them. What they do is in crates of their own below this
//! directory: libraries, or, where that takes more than a first build should wait for, programs that
//! are built when they are asked for; for those there is a file here each, which has made ready what
//! they need. Nothing here is part of the product: netpol must build and run the same when somebody
//! types the commands by hand, so every command that is run can be printed.

use std::env;
use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use netpol_run::Workspace;
use {netpol_arguments as arguments, netpol_build as build, netpol_capabilities as capabilities};
use {netpol_check as check, netpol_fresh as fresh, netpol_setup as setup, netpol_test as test};

mod bench;
mod build_and_run;
mod cluster;
mod conformance;
mod image;
mod manifests;

/// Build, demonstrate and test netpol.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install the packages that building, tests and benchmarks need and this machine lacks
    Setup(setup::Args),
    /// Build the eBPF object and the binary `netpol` around it
    Build(build::Args),
    /// Set up, build, and show policies at work: the playground, or the agent on a cluster
    BuildAndRun(build_and_run::Args),
    /// A container image of netpol, as an archive for `ctr`, `docker`, `podman` and `skopeo`
    Image(arguments::image::Args),
    /// Write deploy/netpol.yaml anew, from deploy/base
    Manifests,
    /// Run every test: unit, property, datapath, network namespaces, documentation
    Test(arguments::test::Args),
    /// Both commands of the README on a machine that has nothing yet, made for it
    Fresh(fresh::Args),
    /// Measure, as ratios within one run
    Bench(arguments::bench::Args),
    /// A real Kubernetes cluster in namespaces of this machine: up, down, status, kubectl, ...
    Cluster(cluster::Args),
    /// Upstream's NetworkPolicy end-to-end suites against netpol on a real cluster
    Conformance(conformance::Args),
    /// Formatting, clippy, rustdoc and the repository's own rules
    Check(check::Args),
    /// The repository's own rules only (part of `check` and of `test`)
    Tidy,
    /// Whether this machine and user can run the tests; names what is missing
    Capabilities(capabilities::Args),
    /// Lines per crate and module
    Lines,
}

fn main() -> ExitCode {
    match dispatch(Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Exit code 1 means "the answer is no" (a test failed, a rule is broken), 2 that the question
/// could not be asked.
fn dispatch(cli: Cli) -> Result<ExitCode> {
    let workspace = Workspace::locate()?;
    let workspace = &workspace;
    // As they were written after the command's name, which is the first one.
    let words: Vec<OsString> = env::args_os().skip(2).collect();
    match cli.command {
        Command::Setup(args) => setup::command(&args),
        Command::Build(args) => build::command(workspace, &args),
        Command::BuildAndRun(args) => build_and_run::command(workspace, &args),
        Command::Image(args) => image::command(workspace, &args, &words),
        Command::Manifests => manifests::command(workspace),
        Command::Test(args) => test::command(workspace, &args, &words),
        Command::Fresh(args) => fresh::command(workspace, &args),
        Command::Bench(args) => bench::command(workspace, &args, &words),
        Command::Cluster(args) => cluster::command(workspace, &args),
        Command::Conformance(args) => conformance::command(workspace, &args),
        Command::Check(args) => check::command(workspace, &args),
        Command::Tidy => check::tidy::command(workspace),
        Command::Capabilities(args) => capabilities::command(&args),
        Command::Lines => check::lines::command(workspace),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn nothing_may_stand_before_a_commands_name() {
        Cli::command().debug_assert();
        assert_eq!(Cli::command().get_arguments().count(), 0, "the words passed on begin after it");
    }
}
