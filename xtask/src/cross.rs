//! Compiling netpol for a processor, this machine's or another: which cargo, with what it has to be
//! told. For another one the standard library is rustup's where that is installed, else Debian's,
//! with Debian's compiler: fetched and unpacked below netpol's cache directory. Must never change
//! what the host's apt or rustup has.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use netpol_debian::{Apt, Arch};

use crate::run::{self, announce};
use crate::setup::{PACKAGED_CARGO, PACKAGED_RUSTC};
use crate::workspace::Workspace;

/// Debian's package of the standard library for one processor.
const LIBRARY: &str = "libstd-rust-web-dev";
/// The package of the compiler that it belongs to.
const COMPILER: &str = "rustc-web";
/// Written when all of it is there.
const FINISHED: &str = "finished";

/// Who compiles for another processor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// The cargo that started this, whose compiler has the standard library.
    Own,
    /// Debian's, with the standard library below this directory.
    Debian(PathBuf),
}

/// Who can compile for this other processor; `None`: nobody.
pub(crate) fn way(arch: Arch) -> Option<Way> {
    let mut rustc = Command::new("rustc");
    rustc.args(["--print", "target-libdir", "--target", arch.target()]);
    let has_library = |path: String| {
        let entries = fs::read_dir(path.trim()).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name()).any(|name| is_standard_library(&name))
    };
    if run::output(rustc, "").is_ok_and(has_library) {
        return Some(Way::Own);
    }
    let place = place(arch).ok()?;
    place.join(FINISHED).exists().then(|| Way::Debian(place.join("usr")))
}

fn is_standard_library(name: &std::ffi::OsStr) -> bool {
    name.to_str().is_some_and(|name| name.starts_with("libstd-") && name.ends_with(".rlib"))
}

/// Where Debian's standard library is, of the version that the compiler has: another one's is of no
/// use to it.
fn place(arch: Arch) -> Result<PathBuf> {
    let version = compiler_version()?;
    Ok(netpol_debian::cache()?.join("rust").join(format!("{arch}-{version}")))
}

fn compiler_version() -> Result<String> {
    let mut query = Command::new("dpkg-query");
    query.args(["-W", "-f", "${Version}", COMPILER]);
    Ok(run::output(query, "run `cargo xtask setup`")?.trim().to_owned())
}

/// Fetches Debian's standard library for this processor.
pub(crate) fn fetch_library(arch: Arch) -> Result<()> {
    let place = place(arch)?;
    if place.join(FINISHED).exists() {
        return Ok(());
    }
    let os_release = fs::read_to_string("/etc/os-release").context("read /etc/os-release")?;
    let sources = netpol_debian::release(netpol_debian::suite(&os_release));
    let parent = place.parent().context("invariant: the place has a directory above it")?;
    let apt = Apt::new(&parent.join(format!("apt-{arch}")), arch, &sources)?;
    let unfinished = parent.join(format!("unfinished-{arch}"));
    let _ = fs::remove_dir_all(&unfinished);
    let version = compiler_version()?;
    apt.unpack(&[format!("{LIBRARY}={version}")], &unfinished, &|command, what| {
        announce(what);
        run::output(command, "see above")
    })
    .with_context(|| {
        format!("if there is no {version} any more, `apt-get install {COMPILER}` gets the newest")
    })?;
    fs::write(unfinished.join(FINISHED), "").context("note that the library is there")?;
    fs::rename(&unfinished, &place).with_context(|| format!("move to {}", place.display()))
}

/// A compiler that is ready for a processor.
#[derive(Clone, Debug)]
pub(crate) struct Compiler {
    /// `None`: this machine's, without being named, so that everything goes where it always goes.
    arch: Option<Arch>,
    /// Compiles for another processor than this machine's.
    way: Option<Way>,
}

impl Compiler {
    /// For this machine.
    pub(crate) fn host() -> Self {
        Self { arch: None, way: None }
    }

    /// For this processor, named also if it is this machine's: flags are then not for build scripts.
    /// What it takes has to be there: `Wanted::cross`.
    pub(crate) fn named(arch: Arch) -> Result<Self> {
        let way = if arch.is_host() {
            None
        } else {
            let missing = || format!("nothing here compiles for {}", arch.target());
            Some(way(arch).with_context(missing)?)
        };
        Ok(Self { arch: Some(arch), way })
    }

    /// For this processor, or this machine if it is the same or none.
    pub(crate) fn of(arch: Option<Arch>) -> Result<Self> {
        match other(arch) {
            Some(arch) => Self::named(arch),
            None => Ok(Self::host()),
        }
    }

    /// `cargo SUBCOMMAND`, with these flags for what is compiled for the processor.
    pub(crate) fn cargo(&self, subcommand: &str, flags: &[&str]) -> Command {
        let mut command = match &self.way {
            Some(Way::Debian(_)) => {
                let mut command = Command::new(PACKAGED_CARGO);
                run::scrub(&mut command, run::selects_toolchain);
                command.env("CARGO", PACKAGED_CARGO).env("RUSTC", PACKAGED_RUSTC);
                command
            }
            _ => run::cargo(),
        };
        command.arg(subcommand);
        let mut flags: Vec<OsString> = flags.iter().map(OsString::from).collect();
        if let Some(Way::Debian(root)) = &self.way {
            flags.push("--sysroot".into());
            flags.push(root.into());
        }
        if let Some(arch) = self.arch {
            command.args(["--target", arch.target()]);
            if self.way.is_some() {
                let (variable, compiler) = (arch.variable(), arch.tool("gcc"));
                let linker = format!("CARGO_TARGET_{}_LINKER", variable.to_uppercase());
                command.env(linker, &compiler).env(format!("CC_{variable}"), &compiler);
            }
        }
        if !flags.is_empty() {
            command.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}".as_ref()));
        }
        command
    }

    /// The directory of what is built, below the target directory.
    pub(crate) fn directory(&self, profile: &str) -> PathBuf {
        let above = self.arch.map_or("", Arch::target);
        Path::new(above).join(profile)
    }

    /// Everything that it builds goes below this.
    pub(crate) fn target(&self, workspace: &Workspace, profile: &str) -> PathBuf {
        workspace.target().join(self.directory(profile))
    }
}

/// The processor, if it is another than this machine's.
pub(crate) fn other(arch: Option<Arch>) -> Option<Arch> {
    arch.filter(|arch| !arch.is_host())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(command: &Command, name: &str) -> Option<String> {
        let value = command.get_envs().find(|(key, _)| *key == name)?.1?;
        Some(value.to_string_lossy().into_owned())
    }

    #[test]
    fn debians_compiler_is_told_where_the_library_and_the_linker_are() {
        let way = Some(Way::Debian(PathBuf::from("/library/usr")));
        let compiler = Compiler { arch: Some(Arch::Arm64), way };
        let command = compiler.cargo("build", &["-Ctarget-feature=+crt-static"]);
        assert_eq!(command.get_program(), PACKAGED_CARGO);
        let words: Vec<_> = command.get_args().collect();
        assert_eq!(words, ["build", "--target", "aarch64-unknown-linux-gnu"]);
        assert_eq!(environment(&command, "RUSTC").as_deref(), Some(PACKAGED_RUSTC));
        assert_eq!(
            environment(&command, "CARGO_ENCODED_RUSTFLAGS").as_deref(),
            Some("-Ctarget-feature=+crt-static\u{1f}--sysroot\u{1f}/library/usr")
        );
        for name in
            ["CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", "CC_aarch64_unknown_linux_gnu"]
        {
            let value = environment(&command, name);
            assert_eq!(value.as_deref(), Some("aarch64-linux-gnu-gcc"), "{name}");
        }
        assert_eq!(compiler.directory("debug"), Path::new("aarch64-unknown-linux-gnu/debug"));
    }

    #[test]
    fn this_machines_own_is_told_nothing() {
        let command = Compiler::host().cargo("build", &[]);
        assert_eq!(command.get_args().collect::<Vec<_>>(), ["build"]);
        assert_eq!(environment(&command, "CARGO_ENCODED_RUSTFLAGS"), None);
        assert_eq!(Compiler::host().directory("debug"), Path::new("debug"));
        assert_eq!(other(Arch::host()), None);
        let named = Compiler { arch: Some(Arch::Amd64), way: None };
        assert_eq!(named.cargo("build", &[]).get_args().count(), 3);
    }
}
