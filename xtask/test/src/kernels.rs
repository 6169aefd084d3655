//! `cargo xtask test kernels`: the tests inside other kernels. Builds the test programs and tells
//! where they are; fetching kernels and running machines is `xtask/kernels`'.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result, bail};
use netpol_arguments::test::{Args, Scope};
use netpol_build::{self as build, Compiler, package};
use netpol_debian::Arch;
use netpol_needs::Need;
use netpol_run::{self as run, Stage, Workspace};
use netpol_setup::{Wanted, other};

use crate::selection::Selection;

/// The variable by which `xtask/kernels` hears where the test programs are.
const VARIABLE: &str = "NETPOL_TEST_PROGRAMS";

pub(crate) fn command(workspace: &Workspace, args: &Args, words: &[OsString]) -> Result<ExitCode> {
    let built = match other(args.arch) {
        Some(arch) => for_another(workspace, words, arch)?,
        None => for_this(workspace)?,
    };
    let mut command = package(workspace, "netpol-kernels");
    command.arg("--").env("NETPOL_PROGRAM", built.netpol);
    command.env(VARIABLE, built.programs);
    if let Some(first) = built.first {
        command.arg("--first").arg(first);
    }
    let status = command.args(words).stdin(Stdio::null()).status().context("cannot start cargo")?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}

/// What runs inside.
struct Built {
    netpol: PathBuf,
    /// The test programs, with colons between them.
    programs: OsString,
    /// A machine's first process; `None`: the program that starts the machines.
    first: Option<PathBuf>,
}

fn for_this(workspace: &Workspace) -> Result<Built> {
    let mut selection =
        Selection { scope: Scope::Kernels, package: None, filter: None, has_library: true };
    let _object = build::object_for(workspace, &Wanted::with(selection.possible_needs()))?;
    selection.package = Some("netpol-userspace".to_owned());
    build(workspace, &selection)?;
    let programs = programs(workspace, &selection)?;
    Ok(Built { netpol: build::netpol(workspace, false)?, programs, first: None })
}

/// The same for another processor's machines: only the programs that are going to be run, which are
/// compiled from the beginning, all in one go, so that everything is compiled once.
fn for_another(workspace: &Workspace, words: &[OsString], arch: Arch) -> Result<Built> {
    let wanted = Wanted { cross: Some(arch), ..Wanted::with([Need::Kernels]) };
    let _object = build::object_for(workspace, &wanted)?;
    let mut list = package(workspace, "netpol-kernels");
    list.args(["--", "--list"]).args(words);
    let names = run::output(list, "fix the error above")?;
    let compiler = Compiler::named(arch)?;
    let cargo_test = || {
        let mut command = compiler.cargo("test", &[]);
        command.current_dir(workspace.root()).arg("--no-run");
        command.args(["--package", "netpol-userspace", "--package", "netpol-kernels"]);
        // With the last one the program is built that it tests, which runs first inside.
        for name in names.lines().chain(["kernels"]) {
            command.args(["--test", name]);
        }
        command
    };
    let stage = Stage::start(format!(
        "building the test programs for {} (usually 6 min the first time)",
        arch.target()
    ));
    run::visible(cargo_test(), "fix the error above")?;
    stage.done();
    let directory = compiler.target(workspace, "debug");
    Ok(Built {
        netpol: directory.join("netpol"),
        programs: executables(workspace, cargo_test())?,
        first: Some(directory.join("netpol-kernels")),
    })
}

fn build(workspace: &Workspace, selection: &Selection) -> Result<()> {
    let stage = Stage::start("building the test programs (usually 4 min the first time)");
    let mut command = selection.cargo_test(workspace);
    command.arg("--no-run");
    run::visible(command, "fix the error above")?;
    stage.done();
    Ok(())
}

/// Makes ready what the kernels take that every run of all tests boots. The program that fetches
/// them is built with its tests.
pub(crate) fn prepare(workspace: &Workspace, selection: &Selection) -> Result<()> {
    if selection.package.is_some() {
        build(workspace, &selection.in_kernels())?;
    }
    let mut command = Command::new(workspace.target().join("debug/netpol-kernels"));
    command.args(["--prepare", "--quick"]).stdout(Stdio::null());
    run::visible(command, "see above")
}

/// Tells a run of the tests where the programs are that run inside, which have been built.
pub(crate) fn tell(
    command: &mut Command,
    workspace: &Workspace,
    selection: &Selection,
) -> Result<()> {
    command.env(VARIABLE, programs(workspace, &selection.in_kernels())?);
    Ok(())
}

/// Where the test programs are, with colons between them.
fn programs(workspace: &Workspace, selection: &Selection) -> Result<OsString> {
    let mut command = selection.cargo_test(workspace);
    command.arg("--no-run");
    executables(workspace, command)
}

/// Those of such a command.
fn executables(workspace: &Workspace, mut command: Command) -> Result<OsString> {
    command.env("CARGO_TERM_COLOR", "never").stdin(Stdio::null());
    let shown = run::display(&command);
    let output = command.output().with_context(|| format!("cannot start `{shown}`"))?;
    let text = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        bail!("`{shown}` failed ({}):\n{text}", output.status);
    }
    let paths = text.lines().filter_map(executable).map(|path| workspace.root().join(path));
    let paths: Vec<PathBuf> = paths.collect();
    std::env::join_paths(paths).context("a colon in the path of the target directory")
}

/// The file that cargo names: `Executable tests/x.rs (target/debug/deps/x-0123456789abcdef)`.
fn executable(line: &str) -> Option<&Path> {
    let rest = line.trim_start().strip_prefix("Executable ")?;
    let (_, path) = rest.strip_suffix(')')?.rsplit_once('(')?;
    Some(Path::new(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_where_cargo_says() {
        let line = "  Executable tests/wire_icmp.rs (target/debug/deps/wire_icmp-0123456789abcdef)";
        let path = Path::new("target/debug/deps/wire_icmp-0123456789abcdef");
        assert_eq!(executable(line), Some(path));
        assert_eq!(executable("    Finished `test` profile"), None);
    }
}
