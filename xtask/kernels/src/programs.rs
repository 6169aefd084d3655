//! What the tests' machine has in memory besides a kernel's modules: the test programs, `netpol`,
//! what they run, and the libraries of all that, at the places that they have here. Must never
//! leave out a library that the program loader of this machine names.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use netpol_cluster::process;
use netpol_debian::Arch;

use crate::archive::Archive;
use crate::tree;

/// Where `netpol` is inside.
pub const NETPOL: &str = "/usr/bin/netpol";
/// What runs a program with variables of its own inside.
pub const ENV: &str = "/bin/env";
/// Where test programs are inside.
const TESTS: &str = "/tests";
/// The variable that tells where this build's test programs are, with colons between them.
pub const VARIABLE: &str = "NETPOL_TEST_PROGRAMS";

/// Programs that tests run, each with its package.
const TOOLS: [(&str, &str); 16] = [
    ("ip", "iproute2"),
    ("tc", "iproute2"),
    ("bridge", "iproute2"),
    ("wg", "wireguard-tools"),
    ("nft", "nftables"),
    ("iptables", "iptables"),
    ("iptables-restore", "iptables"),
    ("ip6tables", "iptables"),
    ("ip6tables-restore", "iptables"),
    ("conntrack", "conntrack"),
    ("ipset", "ipset"),
    ("python3", "python3-minimal"),
    ("unshare", "util-linux"),
    ("timeout", "coreutils"),
    ("sleep", "coreutils"),
    ("kill", "procps"),
];
/// What busybox is inside, by these names.
const APPLETS: [&str; 13] = [
    "sh", "env", "cat", "ls", "mount", "umount", "modprobe", "insmod", "ps", "dmesg", "true",
    "sysctl", "stty",
];

/// The test programs of this build by name, from what `cargo xtask` says.
///
/// # Errors
/// It does not say, or not all are there.
pub fn tests(wanted: &[&str]) -> Result<Vec<(String, PathBuf)>> {
    let said = env::var_os(VARIABLE).with_context(|| {
        format!("{VARIABLE} is not set: `cargo xtask test kernels` builds the programs and sets it")
    })?;
    let known: Vec<(String, PathBuf)> = env::split_paths(&said)
        .filter_map(|path| Some((netpol_needs::test_program(&path)?.to_owned(), path)))
        .collect();
    let find = |name: &&str| {
        let found = known.iter().find(|(known, path)| known == name && path.exists());
        found.cloned().with_context(|| format!("the test program {name} is not built"))
    };
    wanted.iter().map(find).collect()
}

/// Where a test program is inside.
#[must_use]
pub fn place(test: &str) -> String {
    format!("{TESTS}/{test}")
}

/// What a machine's memory is made of.
#[derive(Clone, Copy, Debug)]
pub struct Contents<'a> {
    /// The machine's first process.
    pub first: &'a Path,
    /// The program `netpol`.
    pub netpol: &'a Path,
    /// The test programs, by name.
    pub tests: &'a [(String, PathBuf)],
    /// What else there is.
    pub more: &'a [Item],
    /// Another processor than this machine's, and Debian's packages for it, unpacked: its programs
    /// and libraries are not to be had from this machine.
    pub other: Option<(Arch, &'a Path)>,
}

/// Something in a machine's memory besides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// A program of this machine, with its package.
    Tool(&'static str, &'static str),
    /// A program that is at this place inside, with its libraries; without what only debuggers need.
    Program(PathBuf, PathBuf),
    /// A copy of a file, as it is.
    File(PathBuf, PathBuf),
    /// A file that can be executed.
    Script(&'static str, String),
    /// A directory.
    Directory(PathBuf),
}

/// Packs all of it.
///
/// # Errors
/// Something is missing, named with its package, or cannot be read or written.
pub fn pack(contents: &Contents<'_>, into: &Path) -> Result<()> {
    let Contents { first, netpol, tests, more, other } = *contents;
    let archive = Archive::create(into)?;
    let mut tree = Tree { archive, libraries: BTreeSet::new(), other: other.map(|other| other.0) };
    if let Some((_, packages)) = other {
        tree::pack(&mut tree.archive, packages)?;
    }
    let stripped = tempfile::tempdir().context("a temporary directory")?;
    tree.stripped(Path::new("/init"), first, stripped.path())?;
    tree.stripped(Path::new(NETPOL), netpol, stripped.path())?;
    // Tests know the program by the place where cargo has put it.
    tree.archive.link(netpol, NETPOL)?;
    for (name, path) in tests {
        tree.stripped(Path::new(&place(name)), path, stripped.path())?;
    }
    if other.is_none() {
        tree.of_this_machine()?;
    }
    for item in more {
        tree.item(item, stripped.path())?;
    }
    for name in APPLETS {
        tree.archive.link(&Path::new("/bin").join(name), "/bin/busybox")?;
    }
    // The kernel looks for it there.
    tree.archive.link(Path::new("/sbin/modprobe"), "/bin/busybox")?;
    for (path, text) in [
        ("/etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n"),
        ("/etc/group", "root:x:0:\nnogroup:x:65534:\n"),
        ("/etc/hosts", "127.0.0.1 localhost\n::1 localhost\n"),
    ] {
        tree.archive.bytes(Path::new(path), 0o644, text.as_bytes())?;
    }
    for path in ["/root", "/proc", "/sys", "/dev", "/run", "/tmp", "/var/run", "/etc/netns"] {
        tree.archive.directory(Path::new(path))?;
    }
    tree.archive.finish().map(drop)
}

/// Directories that a user's PATH may lack.
fn administrators(name: &str) -> impl Iterator<Item = PathBuf> {
    let places = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"];
    places.map(|place| Path::new(place).join(name)).into_iter().filter(|path| path.is_file())
}

/// Of a package, not a person's own, which may be a script for something that is not inside.
fn is_system(path: &Path) -> bool {
    ["/usr/bin", "/usr/sbin", "/bin", "/sbin"]
        .iter()
        .any(|place| path.parent() == Some(Path::new(place)))
}

struct Tree {
    archive: Archive<std::io::BufWriter<fs::File>>,
    libraries: BTreeSet<PathBuf>,
    /// Programs are not this machine's.
    other: Option<Arch>,
}

impl Tree {
    /// The programs that tests run, as they are here.
    fn of_this_machine(&mut self) -> Result<()> {
        for (name, package) in TOOLS {
            self.tool(name, package)?;
        }
        self.archive
            .copy(Path::new("/bin/busybox"), Path::new("/bin/busybox"))
            .context("the static busybox is the machine's shell: apt-get install busybox-static")?;
        self.extensions()?;
        self.python()
    }

    fn tool(&mut self, name: &str, package: &str) -> Result<()> {
        let found =
            netpol_run::on_path(name).chain(administrators(name)).find(|path| is_system(path));
        let Some(path) = found else { bail!("{name} is not here: apt-get install {package}") };
        self.program(&path, &path)?;
        self.archive.link(&Path::new("/usr/bin").join(name), &path.to_string_lossy())
    }

    fn item(&mut self, item: &Item, directory: &Path) -> Result<()> {
        match item {
            Item::Tool(name, package) => self.tool(name, package),
            Item::Program(to, from) => self.stripped(to, from, directory),
            Item::File(to, from) => self.archive.copy(to, from),
            Item::Script(to, text) => self.archive.bytes(Path::new(to), 0o755, text.as_bytes()),
            Item::Directory(path) => self.archive.directory(path),
        }
    }

    /// A program without what only debuggers need, which is most of it.
    fn stripped(&mut self, to: &Path, from: &Path, directory: &Path) -> Result<()> {
        let small = directory.join("stripped");
        let (strip, package) = match self.other {
            Some(arch) => (arch.tool("strip"), arch.compiler_packages()[0]),
            None => ("strip".to_owned(), "binutils"),
        };
        process::run(Command::new(&strip).arg("--strip-debug").arg("-o").arg(&small).arg(from))
            .with_context(|| format!("{strip} (package {package}) makes test programs small"))?;
        self.archive.copy(to, &small)?;
        // Another processor's libraries are those of its packages.
        if self.other.is_none() { self.libraries_of(from) } else { Ok(()) }
    }

    fn program(&mut self, to: &Path, from: &Path) -> Result<()> {
        self.archive.copy(to, from)?;
        self.libraries_of(from)
    }

    /// What the loader of this machine loads with it.
    fn libraries_of(&mut self, program: &Path) -> Result<()> {
        let output = process::output(Command::new("ldd").arg(program))?;
        // A static program has none, which is told as a failure.
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            ensure!(!line.contains("not found"), "{}: {}", program.display(), line.trim());
            let path = line.split_whitespace().find(|word| word.starts_with('/'));
            let Some(path) = path.map(PathBuf::from) else { continue };
            if self.libraries.insert(path.clone()) {
                self.archive.copy(&path, &path)?;
            }
        }
        Ok(())
    }

    /// iptables' and nft's parts that are loaded by name.
    fn extensions(&mut self) -> Result<()> {
        let library = Path::new("/usr/lib").join(format!("{}-linux-gnu", env::consts::ARCH));
        for directory in [library.join("xtables")] {
            let entries = fs::read_dir(&directory)
                .with_context(|| format!("list {} (package iptables)", directory.display()))?;
            for path in entries.flatten().map(|entry| entry.path()) {
                self.program(&path, &path)?;
            }
        }
        Ok(())
    }

    /// The modules of Python that the tests' scripts import.
    fn python(&mut self) -> Result<()> {
        let script = "import socket, sys, struct, time, os, select, encodings.ascii, \
                      encodings.latin_1, encodings.idna\n\
                      for m in list(sys.modules.values()):\n    \
                      f = getattr(m, '__file__', None) or getattr(m, '__cached__', None)\n    \
                      if f: print(f)";
        let files = process::run(Command::new("/usr/bin/python3").args(["-I", "-c", script]))
            .context("Python is needed: apt-get install python3-minimal")?;
        for file in files.lines().map(Path::new) {
            self.archive.copy(file, file)?;
            if file.extension().is_some_and(|extension| extension == "so") {
                self.libraries_of(file)?;
            }
        }
        Ok(())
    }
}
