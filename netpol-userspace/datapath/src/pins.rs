//! Where things are pinned, and who may write there.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use netpol_common::layout;
use rustix::fs::{Mode, OFlags, fstatfs, open, statfs};
use rustix::mount::{MountFlags, mount};

use super::error::{DatapathError, io_error};
use crate::lock::Lock;

const BPF_FS_MAGIC: u64 = 0xcafe_4a11;
const DEFAULT_MOUNT: &str = "/sys/fs/bpf";

/// The pin directories below `--bpffs`.
#[derive(Debug, Clone)]
pub struct Pins {
    /// What was given as `--bpffs`.
    pub bpffs: PathBuf,
    root: PathBuf,
}

impl Pins {
    /// The directories of this layout version below `bpffs`.
    pub fn new(bpffs: impl Into<PathBuf>) -> Self {
        let bpffs = bpffs.into();
        let root = reachable(&bpffs).join(format!("v{}", layout::VERSION));
        Self { bpffs, root }
    }

    /// Pin of a map.
    pub fn map(&self, name: &str) -> PathBuf {
        self.root.join("maps").join(name)
    }

    /// Pin of a program.
    pub fn program(&self, name: &str) -> PathBuf {
        self.root.join("programs").join(name)
    }

    /// Directory of the TCX links.
    pub fn links(&self) -> PathBuf {
        self.root.join("links")
    }

    /// Whether anything is pinned.
    pub fn exist(&self) -> bool {
        self.map(layout::names::CONTROL).exists()
    }

    /// Makes the directories, mounting bpffs where there is none.
    pub fn create(&self) -> Result<(), DatapathError> {
        ensure_bpffs(&reachable(&self.bpffs))?;
        for directory in ["maps", "programs", "links"] {
            let path = self.root.join(directory);
            fs::create_dir_all(&path)
                .map_err(io_error(format!("create directory {}", path.display())))?;
        }
        Ok(())
    }

    /// Refuses a place that is on no bpffs yet, for those that must not mount one.
    pub fn require_bpffs(&self) -> Result<(), DatapathError> {
        let directory = reachable(&self.bpffs);
        if is_bpffs(nearest(&directory)) {
            return Ok(());
        }
        let at = mount_point(&directory);
        Err(DatapathError::Io {
            what: format!(
                "use {} without mounting it (--mount-bpffs off): mount it on the node, `mount -t \
                 bpf bpf {1}`, where it outlives the agent's container; systemd does it at boot, \
                 other init systems by a line in /etc/fstab: `bpf {1} bpf defaults 0 0`",
                self.bpffs.display(),
                at.display()
            ),
            source: io::Error::other("there is no bpffs"),
        })
    }

    /// Takes the directory for one writer; released when the value is dropped.
    pub fn lock(&self) -> Result<Lock, DatapathError> {
        let file = File::open(&self.root)
            .map_err(io_error(format!("open directory {}", self.root.display())))?;
        Lock::take(file)
            .map_err(io_error(format!("lock directory {}", self.root.display())))?
            .ok_or_else(|| DatapathError::Busy { bpffs: self.bpffs.clone() })
    }

    /// What agents of other layout versions have pinned.
    pub(crate) fn of_other_versions(&self) -> Result<Vec<Self>, DatapathError> {
        let others = versions(&reachable(&self.bpffs))?.into_iter();
        let others = others.filter(|root| *root != self.root);
        Ok(others.map(|root| Self { bpffs: self.bpffs.clone(), root }).collect())
    }

    /// Removes every pin of this layout version.
    pub fn remove(&self) -> Result<usize, DatapathError> {
        remove_version(&self.root)
    }

    /// Removes every pin, of all layout versions. Links go first, so that no interface is left
    /// with a program whose maps nobody can reach.
    pub fn remove_all(&self) -> Result<usize, DatapathError> {
        let mut removed = 0;
        for version in versions(&reachable(&self.bpffs))? {
            removed += remove_version(&version)?;
        }
        // The directory itself may be a mount point or be used by others.
        let _ = fs::remove_dir(reachable(&self.bpffs));
        Ok(removed)
    }
}

fn remove_version(version: &Path) -> Result<usize, DatapathError> {
    let mut removed = 0;
    for directory in ["links", "programs", "maps"] {
        removed += remove_files(&version.join(directory))?;
    }
    remove_dir(version)?;
    Ok(removed)
}

fn versions(bpffs: &Path) -> Result<Vec<PathBuf>, DatapathError> {
    let entries = match fs::read_dir(bpffs) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(io_error(format!("read {}", bpffs.display()))(error)),
    };
    Ok(entries
        .flatten()
        .filter(|entry| {
            let name = entry.file_name();
            name.to_str()
                .and_then(|name| name.strip_prefix('v'))
                .is_some_and(|rest| rest.parse::<u32>().is_ok())
        })
        .map(|entry| entry.path())
        .collect())
}

fn remove_files(directory: &Path) -> Result<usize, DatapathError> {
    let Ok(entries) = fs::read_dir(directory) else { return Ok(0) };
    let mut removed = 0;
    for entry in entries.flatten() {
        fs::remove_file(entry.path())
            .map_err(io_error(format!("remove {}", entry.path().display())))?;
        removed += 1;
    }
    remove_dir(directory)?;
    Ok(removed)
}

fn remove_dir(directory: &Path) -> Result<(), DatapathError> {
    match fs::remove_dir(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(io_error(format!("remove {}", directory.display()))(error))
        }
        _ => Ok(()),
    }
}

/// The path by which `bpffs` is reached from here. `ip netns exec` puts a fresh /sys over the
/// host's, in a mount namespace that ends with the command: what was pinned on a bpffs mounted
/// there would be gone with it, and enforcement too. The one that whoever started us sees is
/// reached through a descriptor.
fn reachable(bpffs: &Path) -> PathBuf {
    static OUTER: OnceLock<Option<OwnedFd>> = OnceLock::new();
    let Ok(below) = bpffs.strip_prefix(DEFAULT_MOUNT) else { return bpffs.to_owned() };
    if is_bpffs(Path::new(DEFAULT_MOUNT)) {
        return bpffs.to_owned();
    }
    match OUTER.get_or_init(outer_bpffs) {
        Some(outer) => Path::new("/proc/self/fd").join(outer.as_raw_fd().to_string()).join(below),
        None => bpffs.to_owned(),
    }
}

/// The bpffs that the first process has at the usual place, else the nearest process that we
/// descend from.
fn outer_bpffs() -> Option<OwnedFd> {
    let ancestors = std::iter::successors(parent("self"), |process| parent(process));
    std::iter::once("1".to_owned()).chain(ancestors).find_map(|process| {
        let path = format!("/proc/{process}/root{DEFAULT_MOUNT}");
        let directory = open(path, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).ok()?;
        fstatfs(&directory)
            .is_ok_and(|stat| stat.f_type.cast_unsigned() == BPF_FS_MAGIC)
            .then_some(directory)
    })
}

/// The parent of a process, `None` for the first one.
fn parent(process: &str) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().to_owned();
    (parent != "0").then_some(parent)
}

/// Whether a mount made here is seen by the rest of the machine.
fn is_host_mount_namespace() -> bool {
    let namespace = |process: &str| fs::read_link(format!("/proc/{process}/ns/mnt"));
    match (namespace("self"), namespace("1")) {
        (Ok(ours), Ok(first)) => ours == first,
        // Nothing is known of the first process: a container, whose mounts are its own affair.
        _ => true,
    }
}

/// Makes `directory` be on a bpffs: below /sys/fs/bpf that one is mounted if it is not, elsewhere
/// a new one is mounted on the directory itself.
fn ensure_bpffs(directory: &Path) -> Result<(), DatapathError> {
    let at = mount_point(directory);
    if !is_bpffs(nearest(directory)) {
        fs::create_dir_all(at).map_err(io_error(format!("create directory {}", at.display())))?;
        mount("bpf", at, "bpf", MountFlags::empty(), None).map_err(|error| DatapathError::Io {
            what: format!(
                "mount bpffs on {0} (do it by hand: `mount -t bpf bpf {0}`; in a container, mount it on the host and give the container that)",
                at.display()
            ),
            source: error.into(),
        })?;
        if is_host_mount_namespace() {
            tracing::info!(path = %at.display(), "mounted bpffs");
        } else {
            tracing::warn!(
                path = %at.display(),
                "mounted bpffs in a mount namespace that is not the host's: enforcement will end \
                 with the last process in it; mount it on the host before"
            );
        }
    }
    fs::create_dir_all(directory)
        .map_err(io_error(format!("create directory {}", directory.display())))
}

/// Where a bpffs for this directory is mounted.
fn mount_point(directory: &Path) -> &Path {
    if directory.starts_with(DEFAULT_MOUNT) { Path::new(DEFAULT_MOUNT) } else { directory }
}

/// The directory itself or its nearest parent that exists.
fn nearest(directory: &Path) -> &Path {
    directory.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"))
}

fn is_bpffs(path: &Path) -> bool {
    statfs(path).is_ok_and(|stat| stat.f_type.cast_unsigned() == BPF_FS_MAGIC)
}
