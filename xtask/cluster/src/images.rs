//! The images that a cluster has without a registry, from the programs that were built.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use netpol_image::{Entry, Image};

use crate::binaries;
use crate::machine::Machine;
use crate::process::run;

/// What holds a pod's namespaces.
pub const PAUSE: &str = "registry.k8s.io/pause:3.10.2";
/// Servers and clients, under the name by which upstream's tests know it.
pub const AGNHOST: &str = "registry.k8s.io/e2e-test-images/agnhost:2.63.0";

/// The archive of the image that every node has, under both names: it pauses unless told otherwise.
pub(crate) fn archive(directory: &Path) -> Result<PathBuf> {
    fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
    let path = directory.join("agnhost.tar");
    if !path.exists() {
        let mut image = agnhost(AGNHOST)?;
        image.names.push(PAUSE.to_owned());
        image.write(&path)?;
    }
    Ok(path)
}

/// An image of agnhost that pauses unless told otherwise.
pub(crate) fn agnhost(name: &str) -> Result<Image> {
    let mut image = Image::of_program(name, "agnhost", binaries::ensure(binaries::AGNHOST)?);
    image.entries.push(Entry::directory("/tmp", 0o1777));
    image.command.push("pause".to_owned());
    image.environment.push("PATH=/usr/sbin:/usr/bin:/sbin:/bin:/".to_owned());
    Ok(image)
}

/// Gives a node the images of an archive.
pub(crate) fn import(machine: &Machine, archive: &Path) -> Result<()> {
    let mut command = machine.command("ctr");
    command.args(["--namespace", "k8s.io", "images", "import"]).arg(archive);
    run(&mut command).map(drop)
}
