//! Where things are in the checkout. Knows paths, runs nothing.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The checkout and cargo's target directory for it.
pub struct Workspace {
    root: PathBuf,
    target: PathBuf,
}

impl Workspace {
    /// The workspace this program was built in, even when called from a subdirectory of it.
    ///
    /// # Errors
    /// It is gone.
    pub fn locate() -> Result<Self> {
        let manifest_dir = env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        let root = root_of(&manifest_dir)
            .with_context(|| format!("no checkout has {}", manifest_dir.display()))?;
        let executable = env::current_exe().context("cannot tell where this was built")?;
        let target = target_dir_of(&executable).unwrap_or_else(|| root.join("target"));
        Ok(Self { root, target })
    }

    /// The checkout's top directory.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where everything that is built goes.
    #[must_use]
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// The crate that is built for the kernel, outside the cargo workspace.
    #[must_use]
    pub fn ebpf_crate(&self) -> PathBuf {
        self.root.join("netpol-ebpf")
    }

    /// The eBPF crate's own target directory: apart from the workspace's, so that the two
    /// compilers neither wait for each other's lock nor invalidate each other's builds.
    #[must_use]
    pub fn ebpf_target(&self) -> PathBuf {
        self.target.join("ebpf")
    }

    /// Where the finished object is put; netpol-userspace/datapath/build.rs looks for it here.
    #[must_use]
    pub fn ebpf_object(&self) -> PathBuf {
        self.target.join("bpfel-unknown-none/release/netpol-ebpf")
    }

    /// The directory that shows bpf-linker the one LLVM library it is to load.
    #[must_use]
    pub fn llvm_dir(&self) -> PathBuf {
        self.target.join("ebpf-llvm")
    }

    /// The binary `netpol` of a profile's directory (`debug` or `release`).
    #[must_use]
    pub fn netpol(&self, profile_dir: &str) -> PathBuf {
        self.target.join(profile_dir).join("netpol")
    }
}

/// Only the workspace's top directory has a lock file, of all that have a package of it below them.
fn root_of(package: &Path) -> Option<PathBuf> {
    package.ancestors().find(|dir| dir.join("Cargo.lock").exists()).map(PathBuf::from)
}

/// Cargo marks its target directory with CACHEDIR.TAG. Looking for the mark honours every way
/// in which the directory can be configured.
fn target_dir_of(executable: &Path) -> Option<PathBuf> {
    executable.ancestors().skip(1).find(|dir| dir.join("CACHEDIR.TAG").exists()).map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checkout_is_found_from_the_test_binary() {
        let workspace = Workspace::locate().expect("a workspace");
        assert!(workspace.root().join("netpol-common/Cargo.toml").exists());
        assert!(workspace.ebpf_object().starts_with(&workspace.target));
        assert!(workspace.target.join("CACHEDIR.TAG").exists());
    }
}
