//! Programs that check what cargo does not: dependencies and workflows. Those that this machine lacks are
//! built once, from their registry, below the user's cache. Must never change what is installed.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use netpol_run::{self as run, Stage, Workspace, find_program};

const CARGO_DENY: &str = "0.20.2";
const ACTIONLINT: &str = "v1.7.12";

/// Where workflows are.
const WORKFLOWS: &str = ".github/workflows";

/// Holds the dependencies of both workspaces to deny.toml, but for advisories, whose database not every
/// machine can fetch.
///
/// # Errors
/// They are not in order, named above; or there is no `cargo-deny` and none can be built.
pub(crate) fn dependencies(workspace: &Workspace) -> Result<()> {
    let program = cargo_deny()?;
    let mut result = Ok(());
    for directory in [workspace.root().to_path_buf(), workspace.ebpf_crate()] {
        let mut command = Command::new(&program);
        command.current_dir(&directory).args(["--log-level", "error", "--config"]);
        command.arg(workspace.root().join("deny.toml")).arg("check");
        command.args(["bans", "licenses", "sources"]);
        result = result.and(run::visible(command, "see deny.toml"));
    }
    result
}

/// Lints the workflows of the forge.
///
/// # Errors
/// The same.
pub(crate) fn workflows(workspace: &Workspace) -> Result<()> {
    let program = actionlint()?;
    let mut files = Vec::new();
    let directory = workspace.root().join(WORKFLOWS);
    for entry in std::fs::read_dir(&directory).with_context(|| directory.display().to_string())? {
        files.push(entry.context("read a directory")?.path());
    }
    let mut command = Command::new(program);
    command.current_dir(workspace.root()).args(files);
    run::visible(command, "fix the workflow")
}

fn cargo_deny() -> Result<PathBuf> {
    let [root, program] = place("cargo-deny", CARGO_DENY)?;
    if let Some(found) = there_is("cargo-deny", &program) {
        return Ok(found);
    }
    let stage = Stage::start(format!("building cargo-deny {CARGO_DENY} (once, usually 4 min)"));
    let mut command = run::cargo();
    command.current_dir("/").args(["install", "cargo-deny", "--locked", "--version", CARGO_DENY]);
    // Optimising takes most of the time and pays for nothing here.
    command.args(["--config", "profile.release.opt-level=0"]).arg("--root").arg(root);
    run::visible(command, "or install cargo-deny in another way")?;
    stage.done();
    Ok(program)
}

fn actionlint() -> Result<PathBuf> {
    let [root, program] = place("actionlint", ACTIONLINT)?;
    if let Some(found) = there_is("actionlint", &program) {
        return Ok(found);
    }
    let usual = Path::new("/usr/local/go/bin/go");
    let go = find_program("go").or_else(|| usual.is_file().then(|| usual.to_path_buf()));
    let go = go.context("actionlint is built with Go, and there is none: install golang-go")?;
    let stage = Stage::start(format!("building actionlint {ACTIONLINT} (once)"));
    let mut command = Command::new(go);
    command.current_dir("/").env("GOBIN", root.join("bin")).arg("install");
    command.arg(format!("github.com/rhysd/actionlint/cmd/actionlint@{ACTIONLINT}"));
    run::visible(command, "or install actionlint in another way")?;
    stage.done();
    Ok(program)
}

/// The directory for a release of a program of ours, and where the program is in it.
fn place(name: &str, version: &str) -> Result<[PathBuf; 2]> {
    let root = netpol_debian::cache()?.join(format!("{name}-{version}"));
    Ok([root.clone(), root.join("bin").join(name)])
}

/// Ours, or one that the machine has.
fn there_is(name: &str, ours: &Path) -> Option<PathBuf> {
    if ours.is_file() { Some(ours.to_path_buf()) } else { find_program(name) }
}
