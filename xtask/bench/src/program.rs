//! The program `netpol` of this checkout. Must never be one that is older than the sources.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

/// Says where a `netpol` of this checkout is, so that none is built.
const PROGRAM: &str = "NETPOL_PROGRAM";

/// The one that `NETPOL_PROGRAM` names, else built in the profile of this program if it is not up
/// to date.
///
/// # Errors
/// It cannot be built.
pub fn netpol() -> Result<PathBuf> {
    if let Some(path) = env::var_os(PROGRAM).map(PathBuf::from) {
        ensure!(path.exists(), "{PROGRAM} is {}, which does not exist", path.display());
        return Ok(path);
    }
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["build", "--quiet", "--package", "netpol-userspace", "--bin", "netpol"]);
    if !cfg!(debug_assertions) {
        command.arg("--release");
    }
    command.args(["--message-format", "json"]);
    command.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."));
    let output = command.stderr(std::process::Stdio::inherit()).output().context("run cargo")?;
    ensure!(output.status.success(), "cargo could not build netpol; it said why above");
    // Cargo says where it put it: the target directory is the user's choice.
    let messages = String::from_utf8_lossy(&output.stdout).into_owned();
    let program = messages.lines().rev().find_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let is_netpol = message["target"]["name"] == "netpol";
        message["executable"].as_str().filter(|_| is_netpol).map(PathBuf::from)
    });
    program.context("cargo built no program netpol")
}
