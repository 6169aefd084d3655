//! The images that a cluster has without a registry, from the programs that were built.

use std::fs;
use std::hash::{Hash as _, Hasher as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use netpol_image::{Entry, Image};
use netpol_needs::Need;

use crate::binaries::{self, Program};
use crate::machine::Machine;
use crate::process::run;

/// What holds a pod's namespaces.
pub const PAUSE: &str = "registry.k8s.io/pause:3.10.2";
/// Servers and clients, under the name by which upstream's tests know it.
pub const AGNHOST: &str = "registry.k8s.io/e2e-test-images/agnhost:2.63.0";

/// Changes with what is put into the archive besides the program.
const FORM: u32 = 1;

/// Makes the archive that every node has ready, if it is needed.
pub(crate) fn prepare(needs: &[Need]) -> Result<()> {
    if !needs.contains(&Need::Nodes) || path()?.exists() {
        return Ok(());
    }
    let mut image = agnhost(AGNHOST, binaries::AGNHOST)?;
    image.names.push(PAUSE.to_owned());
    image.write(&path()?)
}

/// The archive of the image that every node has, under both names: it pauses unless told otherwise.
pub(crate) fn archive() -> Result<PathBuf> {
    let path = path()?;
    ensure!(
        path.exists(),
        "the image of nodes is not ready ({}): `cargo xtask cluster build` makes it",
        path.display()
    );
    Ok(path)
}

fn path() -> Result<PathBuf> {
    // A given program may be another one tomorrow.
    let program = binaries::find(binaries::AGNHOST)?;
    let data = fs::metadata(&program).with_context(|| format!("look at {}", program.display()))?;
    let mut hasher = rustc_hash::FxHasher::default();
    (FORM, program, data.len(), data.mtime(), data.mtime_nsec()).hash(&mut hasher);
    Ok(binaries::cache()?.join("images").join(format!("agnhost-{:016x}.tar", hasher.finish())))
}

/// An image of agnhost that pauses unless told otherwise.
pub(crate) fn agnhost(name: &str, program: Program) -> Result<Image> {
    let mut image = Image::of_program(name, "agnhost", binaries::find(program)?);
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
