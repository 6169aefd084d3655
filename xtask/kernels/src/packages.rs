//! Kernels as Debian packages: found, fetched, unpacked, and kept by version below netpol's cache
//! directory. Everything apt needs is there, too: must never install anything, nor read or change
//! what the host's apt has.

use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use netpol_cluster::progress::{Progress, watch};
use netpol_cluster::{binaries, process, turns};

use crate::modules;

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// Where Debian's releases are, unless `NETPOL_DEBIAN_MIRROR` says otherwise.
const MIRROR: &str = "http://deb.debian.org/debian";
/// The releases with kernels that nodes have, and their later kernels.
const SUITES: [&str; 6] =
    ["bullseye", "bookworm", "bookworm-backports", "trixie", "trixie-backports", "sid"];
/// How Debian calls its kernels for virtual machines.
const FLAVOUR: &str = "-cloud-amd64";
/// Until 7.2 a kernel is one package, since then a package for each part.
const PARTS: [&str; 3] = ["linux-image-", "linux-binary-", "linux-modules-"];
/// Lists of packages are good for so long.
const FRESH: Duration = Duration::from_secs(3600);
/// Written last.
const FINISHED: &str = "finished";

/// A kernel that is ready to be booted.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// As `uname -r` has it.
    pub release: String,
    /// What QEMU loads.
    pub image: PathBuf,
    /// Its modules and their index, as an archive for the machine's memory.
    pub modules: PathBuf,
}

/// The newest kernel of a version (`6.1`, `7`): what is in the cache, else fetched.
///
/// # Errors
/// There is none, or it cannot be fetched: the error says what to do.
pub fn ensure_kernel(version: &str) -> Result<Kernel> {
    let cache = binaries::cache()?.join("kernels");
    if let Some(kernel) = cached(&cache, version) {
        return Ok(kernel);
    }
    ensure!(
        env::consts::ARCH == "x86_64",
        "the kernels are those for x86-64, and so have to be the tests: this machine is {}",
        env::consts::ARCH
    );
    let turn = turns::wait(&cache.join("preparing"), "another preparation of kernels")?;
    if let Some(kernel) = cached(&cache, version) {
        return Ok(kernel);
    }
    Apt::new(&cache, turn.progress())?.fetch(version)?;
    cached(&cache, version)
        .with_context(|| format!("Linux {version} was fetched and is not in {}", cache.display()))
}

/// The newest one in the cache.
fn cached(cache: &Path, version: &str) -> Option<Kernel> {
    let entries = fs::read_dir(cache).ok()?.flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let is_whole = |name: &String| cache.join(name).join(FINISHED).exists();
    let release = newest(names.filter(is_whole), version)?;
    let directory = cache.join(&release);
    let (image, modules) = (directory.join("vmlinuz"), directory.join("modules.cpio"));
    Some(Kernel { release, image, modules })
}

/// The highest of these releases that has this version.
fn newest(releases: impl Iterator<Item = String>, version: &str) -> Option<String> {
    let is_it = |release: &String| {
        let rest = release.strip_prefix(version);
        rest.is_some_and(|rest| rest.starts_with(['.', '-'])) && release.ends_with(FLAVOUR)
    };
    releases.filter(is_it).max_by_key(|release| numbers(release))
}

/// `6.1.0-50+deb12` as `[6, 1, 0, 50, 12]`.
fn numbers(release: &str) -> Vec<u32> {
    let parts = release.split(|c: char| !c.is_ascii_digit()).filter(|part| !part.is_empty());
    parts.map(|part| part.parse().unwrap_or(0)).collect()
}

struct Apt {
    cache: PathBuf,
    state: PathBuf,
    progress: Progress,
}

impl Apt {
    fn new(cache: &Path, progress: Progress) -> Result<Self> {
        for (program, package) in
            [("apt-get", "apt"), ("apt-cache", "apt"), ("dpkg-deb", "dpkg"), ("xz", "xz-utils")]
        {
            ensure!(
                process::on_path(program).next().is_some(),
                "kernels are fetched as Debian's packages, by {program} (package {package}), which is \
                 not here. Where apt is not to be had, copy the directory {} from a machine that has \
                 it (`cargo xtask test kernels --prepare` makes it there)",
                cache.display()
            );
        }
        ensure!(
            Path::new(KEYRING).exists(),
            "{KEYRING} is not here, by which packages are known to be Debian's: \
             apt-get install debian-archive-keyring"
        );
        let state = cache.join("apt");
        let apt = Self { cache: cache.to_owned(), state, progress };
        apt.configure()?;
        Ok(apt)
    }

    fn configure(&self) -> Result<()> {
        for part in ["lists/partial", "archives/partial"] {
            let path = self.state.join(part);
            fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
        }
        let mirror = env::var("NETPOL_DEBIAN_MIRROR").unwrap_or_else(|_| MIRROR.to_owned());
        let sources: String = SUITES
            .iter()
            .map(|suite| format!("deb [arch=amd64 signed-by={KEYRING}] {mirror} {suite} main\n"))
            .collect();
        let at = self.state.display();
        let configuration = format!(
            "Dir::Etc::sourcelist \"{at}/sources.list\";\nDir::Etc::sourceparts \"/dev/null\";\n\
             Dir::State \"{at}\";\nDir::State::status \"{at}/status\";\nDir::Cache \"{at}\";\n\
             APT::Architecture \"amd64\";\nAPT::Sandbox::User \"root\";\n\
             Acquire::Languages \"none\";\nAcquire::Retries \"3\";\n\
             Acquire::IndexTargets::deb::DEP-11::DefaultEnabled \"false\";\n"
        );
        for (name, text) in
            [("sources.list", sources), ("apt.conf", configuration), ("status", String::new())]
        {
            let path = self.state.join(name);
            fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        }
        Ok(())
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("APT_CONFIG", self.state.join("apt.conf")).env("LC_ALL", "C");
        command.current_dir(self.state.join("archives"));
        command
    }

    fn fetch(&self, version: &str) -> Result<()> {
        self.update()?;
        let mut names = self.command("apt-cache");
        let names = process::run(names.args(["pkgnames", "linux-"]))?;
        let names: Vec<&str> = names.lines().collect();
        let releases = names.iter().filter_map(|name| name.strip_prefix(PARTS[0]));
        let Some(release) = newest(releases.map(str::to_owned), version) else {
            bail!(
                "Debian has no kernel {version} ({}*{FLAVOUR} in {}): those that it has are listed \
                 by `apt-cache pkgnames` on such sources",
                PARTS[0],
                SUITES.join(", ")
            );
        };
        let parts = PARTS.map(|part| format!("{part}{release}"));
        let parts: Vec<&String> =
            parts.iter().filter(|part| names.contains(&part.as_str())).collect();
        let mut download = self.command("apt-get");
        download.arg("download").args(&parts);
        watch(download, &self.progress, |_, _| format!("fetching Linux {release}"))
            .map_err(offline)?;
        let archives = self.archives(&parts)?;
        self.unpack(&release, &archives)?;
        for archive in archives {
            let _ = fs::remove_file(archive);
        }
        Ok(())
    }

    /// Reads the lists anew, unless that was just done for another kernel.
    fn update(&self) -> Result<()> {
        let note = self.state.join("updated");
        let age = fs::metadata(&note).and_then(|data| data.modified());
        let age = age.ok().and_then(|time| time.elapsed().ok());
        if age.is_some_and(|age| age < FRESH) {
            return Ok(());
        }
        let mut update = self.command("apt-get");
        update.arg("update");
        watch(update, &self.progress, |_, _| "reading Debian's lists of packages".to_owned())
            .map_err(offline)?;
        fs::write(&note, "").with_context(|| format!("write {}", note.display()))
    }

    /// The packages' files.
    fn archives(&self, parts: &[&String]) -> Result<Vec<PathBuf>> {
        let directory = self.state.join("archives");
        let entries = fs::read_dir(&directory).context("list the fetched packages")?.flatten();
        let is_wanted = |path: &PathBuf| {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            parts.iter().any(|part| {
                name.strip_prefix(part.as_str()).is_some_and(|rest| rest.starts_with('_'))
            })
        };
        let found: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(is_wanted).collect();
        ensure!(
            found.len() >= parts.len(),
            "apt-get fetched {} of {} packages",
            found.len(),
            parts.len()
        );
        Ok(found)
    }

    fn unpack(&self, release: &str, archives: &[PathBuf]) -> Result<()> {
        self.progress.say(&format!("unpacking Linux {release}"));
        let unfinished = self.cache.join(format!("unfinished-{release}"));
        let _ = fs::remove_dir_all(&unfinished);
        let tree = unfinished.join("tree");
        fs::create_dir_all(&tree).with_context(|| format!("create {}", tree.display()))?;
        for archive in archives {
            process::run(Command::new("dpkg-deb").arg("-x").arg(archive).arg(&tree))?;
        }
        let places = [
            tree.join(format!("boot/vmlinuz-{release}")),
            tree.join(format!("usr/lib/modules/{release}/vmlinuz")),
        ];
        let image = places.iter().find(|path| path.exists());
        let image = image.with_context(|| format!("the packages of {release} have no vmlinuz"))?;
        fs::copy(image, unfinished.join("vmlinuz")).context("copy the kernel")?;
        modules::pack(&tree, release, &unfinished.join("modules.cpio"))?;
        fs::remove_dir_all(&tree).context("remove what was unpacked")?;
        // Others than root boot it, too.
        fs::set_permissions(&unfinished, fs::Permissions::from_mode(0o755))?;
        fs::write(unfinished.join(FINISHED), "")?;
        let place = self.cache.join(release);
        let _ = fs::remove_dir_all(&place);
        fs::rename(&unfinished, &place).with_context(|| format!("move to {}", place.display()))
    }
}

fn offline(error: anyhow::Error) -> anyhow::Error {
    error.context(
        "Debian's packages cannot be fetched: is there a network? NETPOL_DEBIAN_MIRROR names another \
         mirror. What was fetched is kept: run the same command again",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_release_of_a_version_is_chosen() {
        let all = [
            "6.1.0-9-cloud-amd64",
            "6.1.0-50-cloud-amd64",
            "6.12.117+deb13-cloud-amd64",
            "6.1.0-51-amd64",
            "7.2.13+deb14-cloud-amd64",
            "7.3.4+deb13-cloud-amd64",
        ];
        let newest = |version: &str| newest(all.iter().map(|name| (*name).to_owned()), version);
        assert_eq!(newest("6.1").as_deref(), Some(all[1]));
        assert_eq!(newest("6.12").as_deref(), Some(all[2]));
        assert_eq!(newest("7").as_deref(), Some(all[5]));
        assert_eq!(newest("7.2").as_deref(), Some(all[4]));
        assert_eq!(newest("5.15"), None);
    }
}
