//! apt with a configuration of its own: sources, lists, state and processor are below one directory.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use crate::Arch;

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// Where Debian's releases are, unless `NETPOL_DEBIAN_MIRROR` says otherwise.
const MIRROR: &str = "http://deb.debian.org/debian";
/// The releases with kernels that nodes have, and their later kernels.
const WITH_KERNELS: [&str; 6] =
    ["bullseye", "bookworm", "bookworm-backports", "trixie", "trixie-backports", "sid"];
/// The release whose packages are taken where this machine is no Debian.
const DEFAULT_SUITE: &str = "trixie";
/// Lists of packages are good for so long.
const FRESH: Duration = Duration::from_secs(3600);
/// What it takes, each program with its package.
const PROGRAMS: [(&str, &str); 3] =
    [("apt-get", "apt"), ("apt-cache", "apt"), ("dpkg-deb", "dpkg")];
/// Runs a command for a person who waits: the second word says what it does. Returns what it
/// printed.
pub type Run<'a> = &'a dyn Fn(Command, &str) -> Result<String>;

/// A list of packages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    mirror: String,
    suite: String,
}

fn mirror() -> String {
    env::var("NETPOL_DEBIAN_MIRROR").unwrap_or_else(|_| MIRROR.to_owned())
}

/// Where kernels are, of all releases.
#[must_use]
pub fn kernels() -> Vec<Source> {
    WITH_KERNELS.map(|suite| Source { mirror: mirror(), suite: suite.to_owned() }).into()
}

/// A release with its updates.
#[must_use]
pub fn release(suite: &str) -> Vec<Source> {
    let mirror = mirror();
    let of = |mirror: &str, suite: String| Source { mirror: mirror.to_owned(), suite };
    if suite == "sid" {
        return vec![of(&mirror, suite.to_owned())];
    }
    let security = format!("{}-security", mirror.trim_end_matches('/'));
    vec![
        of(&mirror, suite.to_owned()),
        of(&mirror, format!("{suite}-updates")),
        of(&security, format!("{suite}-security")),
    ]
}

/// The release that this machine is, as /etc/os-release says it: what is compiled here runs with its
/// libraries.
#[must_use]
pub fn suite(os_release: &str) -> &str {
    let value = |name: &str| {
        let line = os_release.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        line.map(|value| value.trim_matches('"'))
    };
    if value("ID") != Some("debian") {
        return DEFAULT_SUITE;
    }
    // What becomes the next release has a name and no number.
    match (value("VERSION_ID"), value("VERSION_CODENAME")) {
        (Some(_), Some(name)) => name,
        _ => "sid",
    }
}

/// Packages for one processor.
pub struct Apt {
    state: PathBuf,
    arch: Arch,
}

impl Apt {
    /// Makes ready to fetch; all that apt keeps is in `state`.
    ///
    /// # Errors
    /// apt is not here, or its configuration cannot be written.
    pub fn new(state: &Path, arch: Arch, sources: &[Source]) -> Result<Self> {
        for (program, package) in PROGRAMS {
            ensure!(
                netpol_run::on_path(program).next().is_some(),
                "Debian's packages are fetched by {program} (package {package}), which is not here"
            );
        }
        ensure!(
            Path::new(KEYRING).exists(),
            "{KEYRING} is not here, by which packages are known to be Debian's: \
             apt-get install debian-archive-keyring"
        );
        for part in ["lists/partial", "archives/partial"] {
            create(&state.join(part))?;
        }
        for (name, text) in [
            ("sources.list", sources_list(arch, sources)),
            ("apt.conf", configuration(arch, state)),
            ("status", String::new()),
        ] {
            let path = state.join(name);
            fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        }
        Ok(Self { state: state.to_owned(), arch })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("APT_CONFIG", self.state.join("apt.conf")).env("LC_ALL", "C");
        command.env("DEBIAN_FRONTEND", "noninteractive");
        command
    }

    /// The names of packages that begin so.
    ///
    /// # Errors
    /// The lists cannot be read.
    pub fn names(&self, start: &str, run: Run<'_>) -> Result<Vec<String>> {
        self.update(run)?;
        let mut command = self.command("apt-cache");
        command.args(["pkgnames", start]);
        let printed = run(command, "looking at Debian's lists of packages")?;
        Ok(printed.lines().map(str::to_owned).collect())
    }

    /// Reads the lists anew, unless that was just done.
    fn update(&self, run: Run<'_>) -> Result<()> {
        let note = self.state.join("updated");
        let age = fs::metadata(&note).and_then(|data| data.modified());
        let age = age.ok().and_then(|time| time.elapsed().ok());
        if age.is_some_and(|age| age < FRESH) {
            return Ok(());
        }
        let mut update = self.command("apt-get");
        update.arg("update");
        run(update, &format!("reading Debian's lists of packages for {}", self.arch))
            .map_err(offline)?;
        fs::write(&note, "").with_context(|| format!("write {}", note.display()))
    }

    /// Fetches these packages (`name` or `name=version`) and unpacks them into `tree`.
    ///
    /// # Errors
    /// One cannot be had, or not be unpacked.
    pub fn unpack(&self, packages: &[String], tree: &Path, run: Run<'_>) -> Result<()> {
        self.update(run)?;
        let place = self.empty("archives")?;
        let mut download = self.command("apt-get");
        download.arg("download").args(packages).current_dir(&place);
        run(download, &format!("fetching {}", packages.join(", "))).map_err(offline)?;
        self.unpack_all(&place, tree, packages.len())
    }

    /// The same with all that they depend on: where they run, but for what an installation would do
    /// besides. Directories are as the packages have them, with /bin and /lib beside those in /usr.
    ///
    /// # Errors
    /// As above.
    pub fn unpack_with_all(&self, packages: &[&str], tree: &Path, run: Run<'_>) -> Result<()> {
        self.update(run)?;
        let place = self.empty("archives")?;
        let mut download = self.command("apt-get");
        download.args(["install", "--download-only", "--yes", "--no-install-recommends"]);
        download.args(packages);
        run(download, &format!("fetching {} for {}", packages.join(", "), self.arch))
            .map_err(offline)?;
        self.unpack_all(&place, tree, packages.len())
    }

    /// A directory of the state, with nothing in it of an earlier run.
    fn empty(&self, name: &str) -> Result<PathBuf> {
        let place = self.state.join(name);
        let _ = fs::remove_dir_all(&place);
        create(&place.join("partial"))?;
        Ok(place)
    }

    fn unpack_all(&self, place: &Path, tree: &Path, least: usize) -> Result<()> {
        let entries = fs::read_dir(place).context("list the fetched packages")?.flatten();
        let is_package = |path: &PathBuf| path.extension().is_some_and(|end| end == "deb");
        let mut archives: Vec<PathBuf> =
            entries.map(|entry| entry.path()).filter(is_package).collect();
        archives.sort();
        ensure!(archives.len() >= least, "apt-get fetched {} of {least} packages", archives.len());
        create(tree)?;
        for archive in &archives {
            let mut command = Command::new("dpkg-deb");
            let output = command.arg("-x").arg(archive).arg(tree).output();
            let output = output.context("start dpkg-deb")?;
            if !output.status.success() {
                let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
                bail!("dpkg-deb cannot unpack {}: {text}", archive.display());
            }
            let _ = fs::remove_file(archive);
        }
        Ok(())
    }
}

fn create(path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("create {}", path.display()))
}

fn sources_list(arch: Arch, sources: &[Source]) -> String {
    let line = |source: &Source| {
        let Source { mirror, suite } = source;
        format!("deb [arch={arch} signed-by={KEYRING}] {mirror} {suite} main\n")
    };
    sources.iter().map(line).collect()
}

fn configuration(arch: Arch, state: &Path) -> String {
    let at = state.display();
    format!(
        "Dir::Etc::sourcelist \"{at}/sources.list\";\nDir::Etc::sourceparts \"/dev/null\";\n\
         Dir::State \"{at}\";\nDir::State::status \"{at}/status\";\nDir::Cache \"{at}\";\n\
         Dir::Log \"{at}\";\nAPT::Architecture \"{arch}\";\nAPT::Architectures {{ \"{arch}\"; }};\n\
         APT::Sandbox::User \"root\";\n\
         Acquire::Languages \"none\";\nAcquire::Retries \"3\";\n\
         Acquire::IndexTargets::deb::DEP-11::DefaultEnabled \"false\";\n"
    )
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
    fn what_is_compiled_here_runs_with_the_libraries_of_this_release() {
        let bookworm = "ID=debian\nVERSION_ID=\"12\"\nVERSION_CODENAME=bookworm\n";
        assert_eq!(suite(bookworm), "bookworm");
        assert_eq!(suite("ID=debian\nVERSION_CODENAME=forky\n"), "sid");
        assert_eq!(suite("ID=ubuntu\nVERSION_ID=\"24.04\"\nVERSION_CODENAME=noble\n"), "trixie");
        assert_eq!(suite(""), "trixie");
    }

    #[test]
    fn a_release_comes_with_its_updates_and_one_processor_only() {
        let text = sources_list(Arch::Arm64, &release("bookworm"));
        assert_eq!(text.lines().count(), 3);
        assert!(text.lines().all(|line| line.contains("[arch=arm64 signed-by=")), "{text}");
        assert!(text.contains("-security bookworm-security main"), "{text}");
        assert_eq!(release("sid").len(), 1);
        assert!(kernels().iter().any(|source| source.suite == "bookworm-backports"));
    }

    #[test]
    fn everything_that_apt_keeps_is_in_its_own_directory() {
        let text = configuration(Arch::Arm64, Path::new("/x/y"));
        for name in ["Dir::State", "Dir::State::status", "Dir::Cache", "Dir::Etc::sourcelist"] {
            let line = text.lines().find(|line| line.starts_with(&format!("{name} ")));
            assert!(line.is_some_and(|line| line.contains("\"/x/y")), "{name}: {text}");
        }
        assert!(text.contains("APT::Architecture \"arm64\";"));
    }
}
