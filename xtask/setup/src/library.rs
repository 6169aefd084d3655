//! Rust's standard library for another processor: rustup's where that is installed, else Debian's,
//! fetched and unpacked below netpol's cache directory. Must never change what the host's apt or
//! rustup has.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};
use netpol_debian::{Apt, Arch, Draft, is_kept};
use netpol_run as run;

/// Debian's package of the standard library for one processor.
const LIBRARY: &str = "libstd-rust-web-dev";
/// The package of the compiler that it belongs to.
const COMPILER: &str = "rustc-web";

/// Who compiles for another processor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LibrarySource {
    /// The cargo that started this, whose compiler has the standard library.
    Own,
    /// Debian's, with the standard library below this directory.
    Debian(PathBuf),
}

/// Who can compile for this other processor; `None`: nobody.
#[must_use]
pub fn way(arch: Arch) -> Option<LibrarySource> {
    let mut rustc = Command::new("rustc");
    rustc.args(["--print", "target-libdir", "--target", arch.target()]);
    let has_library = |path: String| {
        let entries = fs::read_dir(path.trim()).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name()).any(|name| is_standard_library(&name))
    };
    if run::output(rustc, "").is_ok_and(has_library) {
        return Some(LibrarySource::Own);
    }
    let place = place(arch).ok()?;
    is_kept(&place).then(|| LibrarySource::Debian(place.join("usr")))
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
    if is_kept(&place) {
        return Ok(());
    }
    let os_release = fs::read_to_string("/etc/os-release").context("read /etc/os-release")?;
    let sources = netpol_debian::release(netpol_debian::suite(&os_release));
    let parent = place.parent().context("invariant: the place has a directory above it")?;
    let apt = Apt::new(&parent.join(format!("apt-{arch}")), arch, &sources)?;
    let draft = Draft::of(&place)?;
    let version = compiler_version()?;
    apt.unpack(&[format!("{LIBRARY}={version}")], draft.directory(), &|command, what| {
        run::announce(what);
        run::output(command, "see above")
    })
    .with_context(|| {
        format!("if there is no {version} any more, `apt-get install {COMPILER}` gets the newest")
    })?;
    draft.finish()
}

/// The processor, if it is another than this machine's.
#[must_use]
pub fn other(arch: Option<Arch>) -> Option<Arch> {
    arch.filter(|arch| !arch.is_host())
}
