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
    ready("cargo-deny", CARGO_DENY, "usually 4 min", |root| {
        let mut command = run::cargo();
        command.args(["install", "cargo-deny", "--locked", "--version", CARGO_DENY]);
        // Optimising takes most of the time and pays for nothing here.
        command.args(["--config", "profile.release.opt-level=0"]).arg("--root").arg(root);
        Ok(command)
    })
}

fn actionlint() -> Result<PathBuf> {
    ready("actionlint", ACTIONLINT, "a minute", |root| {
        let go = netpol_run::gos().next();
        let go = go.context("actionlint is built with Go, and there is none: install golang-go")?;
        let mut command = Command::new(go);
        command.env("GOBIN", root.join("bin")).arg("install");
        command.arg(format!("github.com/rhysd/actionlint/cmd/actionlint@{ACTIONLINT}"));
        Ok(command)
    })
}

/// Ours of this release, or one that the machine has, else ours once `install` has put it into the `bin`
/// of a directory.
fn ready(
    name: &str,
    version: &str,
    time: &str,
    install: impl FnOnce(&Path) -> Result<Command>,
) -> Result<PathBuf> {
    let root = netpol_debian::cache()?.join(format!("{name}-{version}"));
    let ours = root.join("bin").join(name);
    if ours.is_file() {
        return Ok(ours);
    }
    if let Some(installed) = find_program(name) {
        return Ok(installed);
    }
    let mut command = install(&root)?;
    let stage = Stage::start(format!("building {name} {version} (once, {time})"));
    command.current_dir("/");
    run::visible(command, &format!("or install {name} in another way"))?;
    stage.done();
    Ok(ours)
}
