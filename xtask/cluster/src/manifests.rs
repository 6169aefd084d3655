//! The manifests in deploy/: rendered by kubectl's kustomize from the directories there, and the
//! one file of it that is committed for those who have only `kubectl apply -f`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::binaries;

/// Says in the generated file what it is; kustomize drops the comments of its input.
const HEADER: &str = "\
# netpol on every node. Written by `cargo xtask manifests` from deploy/base, where the reasons
# stand; edit that, or use it with kustomize (see deploy/README.md).
# Put an image of netpol where the nodes find it under the name below (`cargo xtask image`), then:
#   kubectl apply -f deploy/netpol.yaml
#   kubectl -n netpol exec ds/netpol -- netpol status
";

/// The directory deploy/ of this checkout.
pub fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy")
}

/// The generated file.
pub fn file() -> PathBuf {
    deploy().join("netpol.yaml")
}

/// What kustomize makes of a directory.
///
/// # Errors
/// There is no kubectl and it cannot be built, or it refuses the directory.
pub fn render(directory: &Path) -> Result<String> {
    let kubectl = binaries::find(binaries::KUBECTL)?;
    let output = Command::new(&kubectl)
        .arg("kustomize")
        .arg(directory)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("start {}", kubectl.display()))?;
    if !output.status.success() {
        bail!(
            "kustomize refuses {}:\n{}",
            directory.display(),
            String::from_utf8_lossy(&output.stderr).trim_end()
        );
    }
    String::from_utf8(output.stdout).context("kustomize's output is no text")
}

/// What the generated file has to hold.
///
/// # Errors
/// As of [`render`].
pub fn generated() -> Result<String> {
    Ok(format!("{HEADER}{}", render(&deploy().join("base"))?))
}

/// Writes the generated file anew.
///
/// # Errors
/// As of [`render`], or the file cannot be written.
pub fn write() -> Result<PathBuf> {
    let path = file();
    fs::write(&path, generated()?).with_context(|| format!("write {}", path.display()))?;
    Ok(path)
}
