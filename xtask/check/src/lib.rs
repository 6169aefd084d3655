//! `cargo xtask check`: formatting, lints, documentation, dependencies, workflows and the repository's
//! own rules.
//!
//! Every part runs, so that one run shows everything there is to fix.

use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Result, anyhow};
use netpol_build::{self as build, ebpf};
use netpol_run::{self as run, Stage, Workspace, announce};
use netpol_setup::{self as setup, PACKAGED_CLIPPY, Toolchain};

pub mod lines;
mod references;
mod source;
pub mod tidy;
mod tools;

/// Options of `check`.
#[derive(clap::Args)]
pub struct Args {
    /// Correct what can be corrected: formatting
    #[arg(long)]
    fix: bool,
}

/// Checks everything, and prints what is not in order.
///
/// # Errors
/// The eBPF object cannot be built.
pub fn command(workspace: &Workspace, args: &Args) -> Result<ExitCode> {
    // The userspace crate embeds the object, so it has to be there for clippy too.
    let _object = build::object(workspace)?;
    let toolchain = setup::toolchain();
    let mut failed = Vec::new();
    let mut part = |name: &str, work: &mut dyn FnMut() -> Result<()>| {
        let stage = Stage::start(name);
        if let Err(error) = work() {
            eprintln!("error: {error:#}");
            failed.push(name.to_owned());
        }
        stage.done();
    };
    part("formatting", &mut || format(workspace, args.fix));
    part("the repository's rules", &mut || repository_rules(workspace));
    part("clippy", &mut || clippy(workspace));
    part("clippy for the eBPF crate", &mut || ebpf_clippy(workspace, toolchain));
    part("documentation", &mut || documentation(workspace));
    part("dependencies", &mut || tools::dependencies(workspace));
    part("workflows", &mut || tools::workflows(workspace));
    if failed.is_empty() {
        announce("everything is in order");
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("error: not in order: {}", failed.join(", "));
    Ok(ExitCode::FAILURE)
}

fn workspace_cargo(workspace: &Workspace) -> Command {
    let mut command = run::cargo();
    command.current_dir(workspace.root());
    command
}

fn format(workspace: &Workspace, fix: bool) -> Result<()> {
    let crates = [workspace.root().to_path_buf(), workspace.ebpf_crate()];
    let mut result = Ok(());
    for dir in crates {
        let mut command = run::cargo();
        command.current_dir(dir).args(["fmt", "--all"]);
        if !fix {
            command.arg("--check");
        }
        result = result.and(run::visible(command, "`cargo xtask check --fix` corrects it"));
    }
    result
}

fn repository_rules(workspace: &Workspace) -> Result<()> {
    if tidy::command(workspace)? == ExitCode::SUCCESS {
        return Ok(());
    }
    Err(anyhow!("see the list above"))
}

fn clippy(workspace: &Workspace) -> Result<()> {
    // Cargo does not count among all targets what runs inside other kernels alone.
    for targets in [["--all-targets"].as_slice(), &["--test", "inside"]] {
        let mut command = workspace_cargo(workspace);
        command.args(["clippy", "--workspace"]).args(targets).args(["--", "--deny", "warnings"]);
        run::visible(command, "fix the lints above, or `#[expect]` one with a reason")?;
    }
    Ok(())
}

fn ebpf_clippy(workspace: &Workspace, toolchain: Toolchain) -> Result<()> {
    if !has_clippy(toolchain) {
        announce(
            "clippy for the eBPF crate: left out, its compiler has none here (Debian: `apt-get \
             install rust-web-clippy`, rustup: `rustup +nightly component add clippy`)",
        );
        return Ok(());
    }
    let mut command = ebpf::cargo(workspace, toolchain, "clippy")?;
    command.args(["--release", "--", "--deny", "warnings"]);
    run::visible(command, "fix the lints above, or `#[expect]` one with a reason")
}

fn has_clippy(toolchain: Toolchain) -> bool {
    match toolchain {
        Toolchain::Packaged => Path::new(PACKAGED_CLIPPY).exists(),
        Toolchain::Nightly => {
            let mut command = Command::new("rustup");
            command.args(["run", "nightly", "cargo", "clippy", "--version"]);
            run::output(command, "").is_ok()
        }
    }
}

fn documentation(workspace: &Workspace) -> Result<()> {
    let mut command = workspace_cargo(workspace);
    command.args(["doc", "--workspace", "--no-deps", "--document-private-items"]);
    // Private items are documented too, so links to them lead somewhere.
    command.env("RUSTDOCFLAGS", "--deny warnings --allow rustdoc::private_intra_doc_links");
    run::visible(command, "fix the documentation named above")
}
