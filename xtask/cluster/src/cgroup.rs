//! The control groups that the nodes' pods are in: made before a kubelet wants them, removed after
//! its machine has ended. Must never touch a group that is not the cluster's.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::process::wait_for;

const MOUNTS: &str = "/sys/fs/cgroup";

/// The hierarchies of this host: one in version 2, one per controller in version 1.
fn hierarchies() -> Result<Vec<PathBuf>> {
    let root = Path::new(MOUNTS);
    if root.join("cgroup.controllers").exists() {
        return Ok(vec![root.to_owned()]);
    }
    let mut all = Vec::new();
    for entry in fs::read_dir(root).with_context(|| format!("read directory {MOUNTS}"))? {
        let path = entry?.path();
        // Links are other names of hierarchies that are listed anyway.
        if path.is_dir() && !path.is_symlink() && path.join("cgroup.procs").exists() {
            all.push(path);
        }
    }
    Ok(all)
}

/// Makes the group `name`, with those above it, in every hierarchy.
pub(crate) fn create(name: &str) -> Result<()> {
    for hierarchy in hierarchies()? {
        let mut group = hierarchy;
        for part in Path::new(name.trim_start_matches('/')) {
            let parent = group.clone();
            group.push(part);
            if !group.exists() {
                enable_controllers(&parent)?;
                // Not create_dir: another node's thread may be making it too.
                fs::create_dir_all(&group)
                    .with_context(|| format!("create {}", group.display()))?;
            }
            inherit(&parent, &group)?;
        }
    }
    Ok(())
}

/// In version 2, a group has only the controllers that its parent gives it.
fn enable_controllers(parent: &Path) -> Result<()> {
    let Ok(controllers) = fs::read_to_string(parent.join("cgroup.controllers")) else {
        return Ok(());
    };
    let wanted: Vec<String> =
        controllers.split_ascii_whitespace().map(|name| format!("+{name}")).collect();
    let file = parent.join("cgroup.subtree_control");
    fs::write(&file, wanted.join(" ")).with_context(|| format!("write {}", file.display()))
}

/// In version 1, a new group of the cpuset controller may use nothing until it is told.
fn inherit(parent: &Path, group: &Path) -> Result<()> {
    for name in ["cpuset.cpus", "cpuset.mems"] {
        let (from, to) = (parent.join(name), group.join(name));
        if to.exists() && !group.join("cgroup.controllers").exists() {
            fs::write(&to, fs::read(&from)?).with_context(|| format!("write {}", to.display()))?;
        }
    }
    Ok(())
}

/// Removes the group `name` and all below it; the processes in them may still be ending.
pub(crate) fn remove(name: &str) -> Result<()> {
    for hierarchy in hierarchies()? {
        let group = hierarchy.join(name.trim_start_matches('/'));
        let what = format!("the processes in {} to end", group.display());
        wait_for(&what, Duration::from_secs(30), || Ok(remove_tree(&group).is_ok()))?;
    }
    Ok(())
}

/// Groups are directories whose files cannot be removed one by one.
fn remove_tree(group: &Path) -> std::io::Result<()> {
    let entries = match fs::read_dir(group) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    match fs::remove_dir(group) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}
