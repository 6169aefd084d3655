//! `cargo xtask image`: a static release binary, and an image archive around it, without Docker.
//!
//! The archive itself is written by the crate netpol-image, so that xtask needs none of what that
//! takes.

use std::env;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::build;
use crate::run::{self, Stage};
use crate::toolchain::{Cross, Wanted};
use crate::workspace::Workspace;

/// Options of `image`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Where to write the archive [default: netpol-ARCH.tar in the target directory]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// The processor that it is for [default: this machine's]
    #[arg(long, value_enum)]
    arch: Option<Arch>,
    /// The image's name, with registry and tag; may be repeated
    #[arg(long = "tag", value_name = "NAME", default_value = DEFAULT_NAME)]
    tags: Vec<String>,
}

/// The name that deploy/ uses.
const DEFAULT_NAME: &str = concat!("localhost/netpol:", env!("CARGO_PKG_VERSION"));

/// Go's and the image format's names.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Arch {
    /// x86_64
    Amd64,
    /// aarch64
    Arm64,
}

impl Arch {
    fn host() -> Result<Self> {
        match env::consts::ARCH {
            "x86_64" => Ok(Self::Amd64),
            "aarch64" => Ok(Self::Arm64),
            other => anyhow::bail!("no images are made for {other}; choose one with --arch"),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// As rustc calls it. Always named, also for the host: flags are then not for build scripts.
    fn target(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64-unknown-linux-gnu",
            Self::Arm64 => "aarch64-unknown-linux-gnu",
        }
    }

    /// What it takes to compile for it on another processor.
    fn cross(self) -> Cross {
        let package = match self {
            Self::Amd64 => "gcc-x86-64-linux-gnu",
            Self::Arm64 => "gcc-aarch64-linux-gnu",
        };
        Cross { target: self.target(), compiler: self.compiler(), package }
    }

    /// The cross compiler, as Debian calls it.
    fn compiler(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64-linux-gnu-gcc",
            Self::Arm64 => "aarch64-linux-gnu-gcc",
        }
    }
}

pub(crate) fn command(workspace: &Workspace, args: &Args) -> Result<ExitCode> {
    let host = Arch::host();
    let arch = match args.arch {
        Some(arch) => arch,
        None => host.as_ref().copied().map_err(|error| anyhow::anyhow!("{error}"))?,
    };
    let is_cross = host.ok() != Some(arch);
    let cross = is_cross.then(|| arch.cross());
    let _object = build::object_for(workspace, &Wanted { cross, ..Wanted::build() })?;
    let binary = static_binary(workspace, arch, is_cross)?;
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
fn static_binary(workspace: &Workspace, arch: Arch, is_cross: bool) -> Result<PathBuf> {
    let stage = Stage::start(format!("building netpol for {} (minutes)", arch.target()));
    let mut command = run::cargo();
    command.current_dir(workspace.root()).args(["build", "--release", "--target", arch.target()]);
    command.args(["--package", "netpol-userspace", "--bin", "netpol"]);
    command.env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static");
    if is_cross {
        let upper = arch.target().replace('-', "_").to_uppercase();
        command.env(format!("CARGO_TARGET_{upper}_LINKER"), arch.compiler());
        command.env(format!("CC_{}", arch.target().replace('-', "_")), arch.compiler());
    }
    run::visible(command, "fix the error above")?;
    stage.done();
    Ok(workspace.netpol(&format!("{}/release", arch.target())))
}
