//! Compiling netpol for a processor, this machine's or another: which cargo, with what it has to be
//! told. For another one the standard library is rustup's where that is installed, else Debian's,
//! with Debian's compiler. Must never install anything: what it takes has to be there.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use netpol_debian::Arch;
use netpol_run::{self as run, Workspace};
use netpol_setup::{LibrarySource, PACKAGED_CARGO, PACKAGED_RUSTC, other, way};

/// A compiler that is ready for a processor.
#[derive(Clone, Debug)]
pub struct Compiler {
    /// `None`: this machine's, without being named, so that everything goes where it always goes.
    arch: Option<Arch>,
    /// Compiles for another processor than this machine's.
    way: Option<LibrarySource>,
}

impl Compiler {
    /// For this machine.
    #[must_use]
    pub fn host() -> Self {
        Self { arch: None, way: None }
    }

    /// For this processor, named also if it is this machine's: flags are then not for build scripts.
    /// What it takes has to be there: `Wanted::cross`.
    ///
    /// # Errors
    /// It is not.
    pub fn named(arch: Arch) -> Result<Self> {
        let way = if arch.is_host() {
            None
        } else {
            let missing = || format!("nothing here compiles for {}", arch.target());
            Some(way(arch).with_context(missing)?)
        };
        Ok(Self { arch: Some(arch), way })
    }

    /// For this processor, or this machine if it is the same or none.
    ///
    /// # Errors
    /// As above.
    pub fn of(arch: Option<Arch>) -> Result<Self> {
        match other(arch) {
            Some(arch) => Self::named(arch),
            None => Ok(Self::host()),
        }
    }

    /// `cargo SUBCOMMAND`, with these flags for what is compiled for the processor.
    #[must_use]
    pub fn cargo(&self, subcommand: &str, flags: &[&str]) -> Command {
        let mut command = match &self.way {
            Some(LibrarySource::Debian(_)) => {
                let mut command = Command::new(PACKAGED_CARGO);
                run::scrub(&mut command, run::selects_toolchain);
                command.env("CARGO", PACKAGED_CARGO).env("RUSTC", PACKAGED_RUSTC);
                command
            }
            _ => run::cargo(),
        };
        command.arg(subcommand);
        let mut flags: Vec<OsString> = flags.iter().map(OsString::from).collect();
        if let Some(LibrarySource::Debian(root)) = &self.way {
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
    #[must_use]
    pub fn directory(&self, profile: &str) -> PathBuf {
        let above = self.arch.map_or("", Arch::target);
        Path::new(above).join(profile)
    }

    /// Everything that it builds goes below this.
    #[must_use]
    pub fn target(&self, workspace: &Workspace, profile: &str) -> PathBuf {
        workspace.target().join(self.directory(profile))
    }
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
        let way = Some(LibrarySource::Debian(PathBuf::from("/library/usr")));
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
