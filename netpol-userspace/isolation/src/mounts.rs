//! The playground's own mount namespace and directory: everything it makes lives there and goes
//! with its last process. Must never mount, or create anything but an empty directory, where
//! another process can see it.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use rustix::process::{Resource, Rlimit};
use rustix::thread::UnshareFlags;

/// Where the mount points of running playgrounds are: one empty directory each.
pub const BASE: &str = "/run/netpol-playground";

/// A private directory, seen by this process and its children alone.
#[derive(Debug)]
pub struct PrivateDir {
    path: PathBuf,
    /// Says "in use" to other playgrounds that look for leftovers, for as long as we live.
    _lock: File,
}

impl PrivateDir {
    /// Moves this process into a mount namespace of its own and mounts an empty directory there.
    /// Must be called before the process has a second thread, or those would stay behind.
    pub fn enter() -> Result<Self> {
        raise_file_limit();
        remove_leftovers();
        let (path, lock) = claim()?;
        let this = Self { path, _lock: lock };
        this.mount().with_context(
            || "cannot set up a private mount namespace: run as root (or with CAP_SYS_ADMIN)",
        )?;
        Ok(this)
    }

    fn mount(&self) -> Result<()> {
        // SAFETY: unshare is unsafe because of `FILES` alone; a new mount namespace leaves file
        // descriptors as they are.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }?;
        let private = MountPropagationFlags::REC | MountPropagationFlags::PRIVATE;
        rustix::mount::mount_change("/", private)?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        rustix::mount::mount("netpol-playground", &self.path, "tmpfs", flags, None)
            .with_context(|| format!("cannot mount a tmpfs on {}", self.path.display()))?;
        Ok(())
    }

    /// Mounts a file system for pinned BPF objects of this playground alone.
    pub fn mount_bpffs(&self) -> Result<()> {
        let path = self.bpffs();
        fs::create_dir_all(&path)?;
        rustix::mount::mount("bpf", &path, "bpf", MountFlags::empty(), None)
            .with_context(|| format!("cannot mount bpffs on {}", path.display()))?;
        Ok(())
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The bpffs, with one directory per node.
    pub fn bpffs(&self) -> PathBuf {
        self.path.join("bpf")
    }

    /// Bind mounts of the network namespaces, as /run/netns on a node.
    pub fn netns(&self) -> PathBuf {
        self.path.join("netns")
    }

    /// The manifests that the agents read.
    pub fn manifests(&self) -> PathBuf {
        self.path.join("manifests")
    }

    /// The run directory of one node's agent.
    pub fn run(&self, node: &str) -> PathBuf {
        self.path.join("run").join(node)
    }

    /// The log of one node's agent.
    pub fn log(&self, node: &str) -> PathBuf {
        self.path.join(format!("{node}.log"))
    }
}

impl Drop for PrivateDir {
    /// What stays if this does not run (a crash, SIGKILL) is one empty directory, which the next
    /// start removes.
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.path, UnmountFlags::DETACH);
        let _ = fs::remove_dir(&self.path);
        let _ = fs::remove_dir(BASE);
    }
}

/// Creates and locks a directory of our own under [`BASE`].
fn claim() -> Result<(PathBuf, File)> {
    let path = Path::new(BASE).join(std::process::id().to_string());
    // Another playground that ends may remove a directory between our steps: start over then.
    for _ in 0..100 {
        fs::create_dir_all(&path)
            .with_context(|| format!("cannot create {}: run as root", path.display()))?;
        if let Some(lock) = lock(&path)? {
            return Ok((path, lock));
        }
    }
    anyhow::bail!("{} is in use by a process that is not this one", path.display())
}

/// Locks the directory, unless someone holds it or it was replaced meanwhile.
fn lock(path: &Path) -> io::Result<Option<File>> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => return Ok(None),
        other => other?,
    }
    let still_there = fs::metadata(path).is_ok_and(|now| {
        file.metadata().is_ok_and(|locked| (now.dev(), now.ino()) == (locked.dev(), locked.ino()))
    });
    Ok(still_there.then_some(file))
}

/// Removes the empty directories of playgrounds that no longer run. A directory that is in use is
/// locked, and must not be removed: that would take the mount out of its owner's namespace.
fn remove_leftovers() {
    for entry in fs::read_dir(BASE).into_iter().flatten().flatten() {
        if let Ok(Some(_held_until_removed)) = lock(&entry.path()) {
            let _ = fs::remove_dir(entry.path());
        }
    }
}

/// Every probe and every server is a socket; the usual soft limit of 1024 is too low.
fn raise_file_limit() {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let _ = rustix::process::setrlimit(Resource::Nofile, raised);
}
