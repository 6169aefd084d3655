//! `cargo xtask image`: a static release binary, and an image archive around it, without Docker.
//!
//! The archive itself is written by the program netpol-image, so that xtask needs none of what that
//! takes.

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::{Context, Result};
use netpol_arguments::image::Args;
use netpol_debian::Arch;
use netpol_run::{self as run, Workspace};
use netpol_setup::{Wanted, other};

use crate::build;

pub(crate) fn command(workspace: &Workspace, args: &Args, words: &[OsString]) -> Result<ExitCode> {
    let arch = args.arch.or_else(Arch::host);
    let arch =
        arch.context("no images are made for this machine; choose a processor with --arch")?;
    let _object =
        build::object_for(workspace, &Wanted { cross: other(Some(arch)), ..Wanted::build() })?;
    let binary = build::static_netpol(workspace, arch)?;
    // The caller's directory stays the one that names of files are relative to.
    let mut command = build::package(workspace, "netpol-image");
    command.args(["--", "--binary"]).arg(binary);
    if args.output.is_none() {
        let file = format!("netpol-{}.tar", arch.name());
        command.arg("--output").arg(workspace.target().join(file));
    }
    command.args(words);
    run::visible(command, "fix the error above")?;
    Ok(ExitCode::SUCCESS)
}
