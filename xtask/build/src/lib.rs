//! `cargo xtask build`: the eBPF object, then the binary `netpol` that embeds it; and what other
//! commands have built. Must never start what it built.

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::Result;
use netpol_debian::Arch;
use netpol_run::{self as run, Stage, Workspace, announce};
use netpol_setup::{self as setup, Wanted, other};

mod compiler;
pub mod ebpf;

pub use compiler::Compiler;

/// Options of `build`.
#[derive(clap::Args)]
pub struct Args {
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

/// Builds what was asked for, and prints where it is.
///
/// # Errors
/// Something is missing to build it, or it does not compile.
pub fn command(workspace: &Workspace, args: &Args) -> Result<ExitCode> {
    let built = if args.ebpf_only {
        object(workspace)?
    } else {
        let cross = other(args.arch);
        let _object = object_for(workspace, &Wanted { cross, ..Wanted::build() })?;
        netpol_by(&Compiler::of(args.arch)?, workspace, args.release)?
    };
    run::say(built.display());
    Ok(ExitCode::SUCCESS)
}

/// Sets up what is missing to build, and builds the eBPF object.
///
/// # Errors
/// As above.
pub fn object(workspace: &Workspace) -> Result<PathBuf> {
    object_for(workspace, &Wanted::build())
}

/// The same for a command that needs more than to build: all of it is set up first.
///
/// # Errors
/// As above.
pub fn object_for(workspace: &Workspace, wanted: &Wanted) -> Result<PathBuf> {
    let toolchain = setup::ensure(wanted)?;
    let stage = Stage::start("building the eBPF object");
    let object = ebpf::build(workspace, toolchain)?;
    stage.done();
    let size = std::fs::metadata(&object).map_or(0, |data| data.len());
    announce(format_args!("{} ({size} bytes)", object.display()));
    Ok(object)
}

/// Builds the binary around an object that is already there.
///
/// # Errors
/// As above.
pub fn netpol(workspace: &Workspace, release: bool) -> Result<PathBuf> {
    netpol_by(&Compiler::host(), workspace, release)
}

/// The same with this compiler.
///
/// # Errors
/// As above.
pub fn netpol_by(compiler: &Compiler, workspace: &Workspace, release: bool) -> Result<PathBuf> {
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

/// The optimised one that needs no library. glibc has the resolver's usual parts inside since 2.34, so
/// that a static binary looks up names like any other; it runs in an empty image, and on nodes of any
/// distribution.
///
/// # Errors
/// As above.
pub fn static_netpol(workspace: &Workspace, arch: Arch) -> Result<PathBuf> {
    let stage = Stage::start(format!("building netpol for {} (minutes)", arch.target()));
    let compiler = Compiler::named(arch)?;
    let mut command = compiler.cargo("build", &["-Ctarget-feature=+crt-static"]);
    command.current_dir(workspace.root()).arg("--release");
    command.args(["--package", "netpol-userspace", "--bin", "netpol"]);
    run::visible(command, "fix the error above")?;
    stage.done();
    Ok(compiler.target(workspace, "release").join("netpol"))
}

/// What the pods of the scenarios run, static, so that it is an image by itself.
///
/// # Errors
/// It does not compile.
pub fn traffic(workspace: &Workspace) -> Result<PathBuf> {
    let stage = Stage::start("building what pods run");
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let mut command = run::cargo();
    command.current_dir(workspace.root());
    command.args(["rustc", "-p", "netpol-traffic", "--bin", "traffic", "--target", &target]);
    command.args(["--", "-C", "target-feature=+crt-static", "-C", "strip=symbols"]);
    run::visible(command, "fix the error above")?;
    stage.done();
    Ok(workspace.target().join(target).join("debug/traffic"))
}

/// `cargo run` of a package, which goes on with `--bin` or `--`. It is for what `cargo xtask` itself
/// must not be linked with.
#[must_use]
pub fn package(workspace: &Workspace, name: &str) -> Command {
    let mut command = run::cargo();
    command.args(["run", "--quiet", "--manifest-path"]).arg(workspace.root().join("Cargo.toml"));
    command.args(["--package", name]);
    command
}
