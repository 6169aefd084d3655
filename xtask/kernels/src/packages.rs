//! Kernels as Debian packages: found, fetched, unpacked, and kept by version below netpol's cache
//! directory, and what programs need inside a machine of another processor. Must never install
//! anything, nor read or change what the host's apt has.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use netpol_cluster::progress::{Progress, watch};
use netpol_cluster::turns;
use netpol_debian::{Apt, Arch, Draft, is_kept};

use crate::{modules, tree};

/// Until 7.2 a kernel is one package, since then a package for each part.
const PARTS: [&str; 3] = ["linux-image-", "linux-binary-", "linux-modules-"];

/// A kernel that is ready to be booted.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// As `uname -r` has it.
    pub release: String,
    /// Its processor.
    pub arch: Arch,
    /// What QEMU loads.
    pub image: PathBuf,
    /// Its modules and their index, as an archive for the machine's memory.
    pub modules: PathBuf,
}

/// A kernel that is asked for: the start of its release, and which of Debian's builds.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Wanted {
    version: String,
    /// How the releases of these builds end.
    flavour: String,
}

impl Wanted {
    /// `6.1`: the kernel for virtual machines; `6.12-16k`: the one with pages of 16 KiB, which Debian
    /// has for arm64.
    fn new(arch: Arch, text: &str) -> Self {
        match text.strip_suffix(LARGE_PAGES) {
            Some(version) => {
                Self { version: version.to_owned(), flavour: format!("-{arch}{LARGE_PAGES}") }
            }
            None => Self { version: text.to_owned(), flavour: format!("-cloud-{arch}") },
        }
    }
}

/// How releases of kernels with large pages end.
pub(crate) const LARGE_PAGES: &str = "-16k";

/// The newest kernel of a version (`6.1`, `7`, `7-16k`): what is in the cache, else fetched.
///
/// # Errors
/// There is none, or it cannot be fetched: the error says what to do.
pub fn ensure_kernel(arch: Arch, version: &str) -> Result<Kernel> {
    let cache = netpol_debian::cache()?.join("kernels");
    let wanted = Wanted::new(arch, version);
    if let Some(kernel) = cached(&cache, arch, &wanted) {
        return Ok(kernel);
    }
    let turn = turns::wait(&cache.join("preparing"), "another preparation of kernels")?;
    if let Some(kernel) = cached(&cache, arch, &wanted) {
        return Ok(kernel);
    }
    fetch(&cache, arch, &wanted, &turn.progress())?;
    cached(&cache, arch, &wanted)
        .with_context(|| format!("Linux {version} was fetched and is not in {}", cache.display()))
}

/// What programs find inside a machine of another processor: Debian's packages for it, unpacked.
///
/// # Errors
/// They cannot be fetched.
pub fn ensure_tree(arch: Arch) -> Result<PathBuf> {
    let cache = netpol_debian::cache()?.join("kernels");
    let os_release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let suite = netpol_debian::suite(&os_release);
    let place = cache.join(format!("programs-{suite}-{arch}"));
    if is_kept(&place) {
        return Ok(place.join("tree"));
    }
    let turn = turns::wait(&cache.join("preparing"), "another preparation of kernels")?;
    if is_kept(&place) {
        return Ok(place.join("tree"));
    }
    let progress = turn.progress();
    let run = |command: Command, what: &str| watch(command, &progress, |_, _| what.to_owned());
    let apt = apt(
        &cache,
        &cache.join(format!("apt-{suite}-{arch}")),
        arch,
        &netpol_debian::release(suite),
    )?;
    let draft = Draft::of(&place)?;
    apt.unpack_with_all(&tree::PACKAGES, &draft.directory().join("tree"), &run)?;
    draft.finish()?;
    Ok(place.join("tree"))
}

/// The newest one in the cache.
fn cached(cache: &Path, arch: Arch, wanted: &Wanted) -> Option<Kernel> {
    let entries = fs::read_dir(cache).ok()?.flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let is_whole = |name: &String| {
        let place = cache.join(name);
        is_kept(&place) && place.join(modules::FILE).exists()
    };
    let release = newest(names.filter(is_whole), wanted)?;
    let directory = cache.join(&release);
    let (image, modules) = (directory.join("vmlinuz"), directory.join(modules::FILE));
    Some(Kernel { release, arch, image, modules })
}

/// The highest of these releases that is wanted.
fn newest(releases: impl Iterator<Item = String>, wanted: &Wanted) -> Option<String> {
    let is_it = |release: &String| {
        let rest = release.strip_prefix(&wanted.version);
        rest.is_some_and(|rest| rest.starts_with(['.', '-'])) && release.ends_with(&wanted.flavour)
    };
    releases.filter(is_it).max_by_key(|release| numbers(release))
}

/// `6.1.0-50+deb12` as `[6, 1, 0, 50, 12]`.
fn numbers(release: &str) -> Vec<u32> {
    let parts = release.split(|c: char| !c.is_ascii_digit()).filter(|part| !part.is_empty());
    parts.map(|part| part.parse().unwrap_or(0)).collect()
}

fn apt(cache: &Path, state: &Path, arch: Arch, sources: &[netpol_debian::Source]) -> Result<Apt> {
    Apt::new(state, arch, sources).with_context(|| {
        format!(
            "kernels are fetched as Debian's packages. Where apt is not to be had, copy the directory \
             {} from a machine that has it (`cargo xtask test kernels --prepare` makes it there)",
            cache.display()
        )
    })
}

fn fetch(cache: &Path, arch: Arch, wanted: &Wanted, progress: &Progress) -> Result<()> {
    ensure!(netpol_run::on_path("xz").next().is_some(), "xz is not here: apt-get install xz-utils");
    let run = |command: Command, what: &str| watch(command, progress, |_, _| what.to_owned());
    let apt = apt(cache, &cache.join(format!("apt-{arch}")), arch, &netpol_debian::kernels())?;
    let names = apt.names("linux-", &run)?;
    let releases = names.iter().filter_map(|name| name.strip_prefix(PARTS[0]));
    let Some(release) = newest(releases.map(str::to_owned), wanted) else {
        bail!(
            "Debian has no kernel {} ({}*{} in the releases that are looked at): those that it has \
             are listed by `apt-cache pkgnames` on such sources",
            wanted.version,
            PARTS[0],
            wanted.flavour
        );
    };
    let parts = PARTS.map(|part| format!("{part}{release}"));
    let parts: Vec<String> = parts.into_iter().filter(|part| names.contains(part)).collect();
    let draft = Draft::of(&cache.join(&release))?;
    let tree = draft.directory().join("tree");
    apt.unpack(&parts, &tree, &run)?;
    progress.say(&format!("making Linux {release} ready"));
    let places = [
        tree.join(format!("boot/vmlinuz-{release}")),
        tree.join(format!("usr/lib/modules/{release}/vmlinuz")),
    ];
    let image = places.iter().find(|path| path.exists());
    let image = image.with_context(|| format!("the packages of {release} have no vmlinuz"))?;
    fs::copy(image, draft.directory().join("vmlinuz")).context("copy the kernel")?;
    modules::pack(&tree, &release, &draft.directory().join(modules::FILE))?;
    fs::remove_dir_all(&tree).context("remove what was unpacked")?;
    draft.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_release_of_a_version_and_processor_is_chosen() {
        let all = [
            "6.1.0-9-cloud-amd64",
            "6.1.0-50-cloud-amd64",
            "6.12.117+deb13-cloud-amd64",
            "6.1.0-51-amd64",
            "7.2.13+deb14-cloud-amd64",
            "7.3.4+deb13-cloud-amd64",
            "6.1.0-57-cloud-arm64",
            "7.3.4+deb13-arm64-16k",
        ];
        let newest = |arch: Arch, version: &str| {
            let wanted = Wanted::new(arch, version);
            newest(all.iter().map(|name| (*name).to_owned()), &wanted)
        };
        assert_eq!(newest(Arch::Amd64, "6.1").as_deref(), Some(all[1]));
        assert_eq!(newest(Arch::Amd64, "6.12").as_deref(), Some(all[2]));
        assert_eq!(newest(Arch::Amd64, "7").as_deref(), Some(all[5]));
        assert_eq!(newest(Arch::Amd64, "7.2").as_deref(), Some(all[4]));
        assert_eq!(newest(Arch::Amd64, "5.15"), None);
        assert_eq!(newest(Arch::Arm64, "6.1").as_deref(), Some(all[6]));
        assert_eq!(newest(Arch::Arm64, "7-16k").as_deref(), Some(all[7]));
        assert_eq!(newest(Arch::Arm64, "6.12"), None);
        assert_eq!(newest(Arch::Amd64, "7-16k"), None);
    }
}
