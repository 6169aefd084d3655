//! `cargo xtask build`: the eBPF object, then the binary `netpol` that embeds it.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use netpol_debian::Arch;

use crate::cross::{self, Compiler};
use crate::run::{self, Stage, announce};
use crate::toolchain::Wanted;
use crate::workspace::Workspace;
use crate::{ebpf, setup};

/// Options of `build`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Optimise for speed and size; takes several times as long
    #[arg(long)]
    release: bool,
    /// Stop after the eBPF object
    #[arg(long)]
    ebpf_only: bool,
    /// The processor that it is for, amd64 or arm64 [default: this machine's]
    #[arg(long, conflicts_with = "ebpf_only")]
    arch: Option<Arch>,
}

pub(crate) fn command(workspace: &Workspace, args: &Args) -> Result<ExitCode> {
    let built = if args.ebpf_only {
        object(workspace)?
    } else {
        let cross = cross::other(args.arch);
        let _object = object_for(workspace, &Wanted { cross, ..Wanted::build() })?;
        netpol_by(&Compiler::of(args.arch)?, workspace, args.release)?
    };
    run::say(built.display());
    Ok(ExitCode::SUCCESS)
}

/// Sets up what is missing to build, and builds the eBPF object.
pub(crate) fn object(workspace: &Workspace) -> Result<PathBuf> {
    object_for(workspace, &Wanted::build())
}

/// The same for a command that needs more than to build: all of it is set up first.
pub(crate) fn object_for(workspace: &Workspace, wanted: &Wanted) -> Result<PathBuf> {
    let toolchain = setup::ensure(wanted)?;
    let stage = Stage::start("building the eBPF object");
    let object = ebpf::build(workspace, toolchain)?;
    stage.done();
    let size = std::fs::metadata(&object).map_or(0, |data| data.len());
    announce(format_args!("{} ({size} bytes)", object.display()));
    Ok(object)
}

/// Builds the binary around an object that is already there.
pub(crate) fn netpol(workspace: &Workspace, release: bool) -> Result<PathBuf> {
    netpol_by(&Compiler::host(), workspace, release)
}

/// The same with this compiler.
pub(crate) fn netpol_by(
    compiler: &Compiler,
    workspace: &Workspace,
    release: bool,
) -> Result<PathBuf> {
    let usual =
        if release { "usually 4 min the first time" } else { "usually 1 min the first time" };
    let stage = Stage::start(format!("building netpol ({usual})"));
    let mut command = compiler.cargo("build", &[]);
    command.current_dir(workspace.root());
    command.args(["--package", "netpol-userspace", "--bin", "netpol"]);
    if release {
        command.arg("--release");
    }
    run::visible(command, "fix the error above")?;
    stage.done();
    Ok(compiler.target(workspace, if release { "release" } else { "debug" }).join("netpol"))
}
