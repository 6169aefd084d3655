//! `cargo xtask`: every command a person or CI needs to build, show and test netpol.
//!
//! One file per subcommand; what several of them share is in `run`, `workspace`, `toolchain`
//! and `source`. Nothing here is part of the product: netpol must build and run the same when
//! somebody types the commands by hand, so every command that is run can be printed.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use workspace::Workspace;

mod bench;
mod build;
mod build_and_run;
mod capabilities;
mod check;
mod cluster;
mod conformance;
mod cross;
mod ebpf;
mod fresh;
mod image;
mod kernels;
mod lines;
mod manifests;
mod neighbours;
mod probe;
mod references;
mod run;
mod selection;
mod setup;
mod source;
mod summary;
mod test;
mod tidy;
mod toolchain;
mod workspace;

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
    Image(image::Args),
    /// Write deploy/netpol.yaml anew, from deploy/base
    Manifests,
    /// Run every test: unit, property, datapath, network namespaces, documentation
    Test(test::Args),
    /// Both commands of the README on a machine that has nothing yet, made for it
    Fresh(fresh::Args),
    /// Measure, as ratios within one run
    Bench(bench::Args),
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
    match cli.command {
        Command::Setup(args) => setup::command(workspace, &args),
        Command::Build(args) => build::command(workspace, &args),
        Command::BuildAndRun(args) => build_and_run::command(workspace, &args),
        Command::Image(args) => image::command(workspace, &args),
        Command::Manifests => manifests::command(workspace),
        Command::Test(args) => test::command(workspace, &args),
        Command::Fresh(args) => fresh::command(workspace, &args),
        Command::Bench(args) => bench::command(workspace, &args),
        Command::Cluster(args) => cluster::command(workspace, &args),
        Command::Conformance(args) => conformance::command(workspace, &args),
        Command::Check(args) => check::command(workspace, &args),
        Command::Tidy => tidy::command(workspace),
        Command::Capabilities(args) => capabilities::command(&args),
        Command::Lines => lines::command(workspace),
    }
}
