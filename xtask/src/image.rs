//! `cargo xtask image`: a static release binary, and an image archive around it, without Docker.
//!
//! The archive itself is written by the crate netpol-image, so that xtask needs none of what that
//! takes.

use std::env;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use netpol_debian::Arch;

use crate::build;
use crate::cross::{self, Compiler};
use crate::run::{self, Stage};
use crate::toolchain::Wanted;
use crate::workspace::Workspace;

/// Options of `image`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Where to write the archive [default: netpol-ARCH.tar in the target directory]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// The processor that it is for, amd64 or arm64 [default: this machine's]
    #[arg(long)]
    arch: Option<Arch>,
    /// The image's name, with registry and tag; may be repeated
    #[arg(long = "tag", value_name = "NAME", default_value = DEFAULT_NAME)]
    tags: Vec<String>,
}

/// The name that deploy/ uses.
const DEFAULT_NAME: &str = concat!("localhost/netpol:", env!("CARGO_PKG_VERSION"));

pub(crate) fn command(workspace: &Workspace, args: &Args) -> Result<ExitCode> {
    let arch = args.arch.or_else(Arch::host);
    let arch =
        arch.context("no images are made for this machine; choose a processor with --arch")?;
    let cross = cross::other(Some(arch));
    let _object = build::object_for(workspace, &Wanted { cross, ..Wanted::build() })?;
    let binary = static_binary(workspace, arch)?;
    let output = match &args.output {
        Some(output) => env::current_dir().context("the working directory is gone")?.join(output),
        None => workspace.target().join(format!("netpol-{}.tar", arch.name())),
    };
    let mut command = run::cargo();
    command.current_dir(workspace.root());
    command.args(["run", "--quiet", "--package", "netpol-image", "--", "--arch", arch.name()]);
    command.arg("--binary").arg(binary).arg("--output").arg(output);
    for tag in &args.tags {
        command.args(["--tag", tag]);
    }
    run::visible(command, "fix the error above")?;
    Ok(ExitCode::SUCCESS)
}

/// glibc has the resolver's usual parts inside since 2.34, so that a static binary looks up names
/// like any other; it runs in an empty image, and on nodes of any distribution.
fn static_binary(workspace: &Workspace, arch: Arch) -> Result<PathBuf> {
    let stage = Stage::start(format!("building netpol for {} (minutes)", arch.target()));
    let compiler = Compiler::named(arch)?;
    let mut command = compiler.cargo("build", &["-Ctarget-feature=+crt-static"]);
    command.current_dir(workspace.root()).arg("--release");
    command.args(["--package", "netpol-userspace", "--bin", "netpol"]);
    run::visible(command, "fix the error above")?;
    stage.done();
    Ok(compiler.target(workspace, "release").join("netpol"))
}
