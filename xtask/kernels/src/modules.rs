//! A kernel's modules as an archive for a machine's memory: those of networks, cryptography and
//! libraries, unpacked, with the index by which `modprobe` finds them. Must never take one of
//! another kernel.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};
use netpol_cluster::process;

use crate::archive::Archive;

/// Directories of modules that tests may need; the rest is drivers of real devices.
const WANTED: [&str; 6] = [
    "kernel/net",
    // What containers' file systems are made of.
    "kernel/fs/overlayfs",
    "kernel/lib",
    "kernel/crypto",
    "kernel/arch/x86/crypto",
    "kernel/arch/arm64/crypto",
];
/// Drivers of what exists in software only: files and directories below `kernel/drivers/net`.
const DEVICES: [&str; 18] = [
    "veth",
    "vxlan",
    "dummy",
    "bareudp",
    "geneve",
    "gtp",
    "ifb",
    "ipvlan",
    "macvlan",
    "macsec",
    "netkit",
    "tun",
    "vrf",
    "wireguard",
    "bonding",
    "team",
    "nlmon",
    "amt",
];

/// The archive's name; another one where something else is packed.
pub(crate) const FILE: &str = "modules-2.cpio";

/// Packs those of an unpacked kernel.
pub(crate) fn pack(tree: &Path, release: &str, into: &Path) -> Result<()> {
    let places = ["usr/lib/modules", "lib/modules"].map(|place| tree.join(place).join(release));
    let from = places.iter().find(|place| place.join("kernel").exists());
    let from = from.with_context(|| format!("the packages of {release} have no modules"))?;
    let staged = tree.join("staged");
    let index = Path::new("lib/modules").join(release);
    for module in found(from)? {
        let relative = module.strip_prefix(from).context("a module's place")?;
        let to = staged.join(&index).join(relative.with_extension(extension(relative)));
        fs::create_dir_all(to.parent().context("a module's directory")?)?;
        unpack(&module, &to)?;
    }
    for name in ["modules.builtin", "modules.builtin.modinfo", "modules.order"] {
        if from.join(name).exists() {
            fs::copy(from.join(name), staged.join(&index).join(name))?;
        }
    }
    let mut depmod = Command::new("busybox");
    process::run(depmod.args(["depmod", "-b"]).arg(&staged).arg(release))?;
    let mut archive = Archive::create(into)?;
    let mut rest = vec![staged.clone()];
    while let Some(directory) = rest.pop() {
        for path in entries(&directory)? {
            if path.is_dir() {
                rest.push(path);
            } else {
                archive.copy(path.strip_prefix(&staged).context("a place")?, &path)?;
            }
        }
    }
    archive.finish().map(drop)
}

fn entries(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries =
        fs::read_dir(directory).with_context(|| format!("list {}", directory.display()))?;
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    Ok(paths)
}

/// `ko` for `x.ko` and `x.ko.xz`: what stays in place of the last extension.
fn extension(path: &Path) -> &'static str {
    if path.extension().is_some_and(|extension| extension == "ko") { "ko" } else { "" }
}

/// The wanted modules.
fn found(from: &Path) -> Result<Vec<PathBuf>> {
    let devices = from.join("kernel/drivers/net");
    let is_device = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        DEVICES.contains(&name.split('.').next().unwrap_or_default())
    };
    let mut rest: Vec<PathBuf> = WANTED.iter().map(|place| from.join(place)).collect();
    if devices.is_dir() {
        rest.extend(entries(&devices)?.into_iter().filter(is_device));
    }
    let mut modules = Vec::new();
    while let Some(path) = rest.pop() {
        if path.is_dir() {
            rest.extend(entries(&path)?);
        } else if path
            .to_str()
            .is_some_and(|name| name.ends_with(".ko") || name.ends_with(".ko.xz"))
        {
            modules.push(path);
        }
    }
    Ok(modules)
}

fn unpack(from: &Path, to: &Path) -> Result<()> {
    if extension(from) == "ko" {
        fs::copy(from, to).with_context(|| format!("copy {}", from.display()))?;
        return Ok(());
    }
    let file = fs::File::create(to).with_context(|| format!("create {}", to.display()))?;
    let mut command = Command::new("xz");
    let status = command.arg("-dc").arg(from).stdin(Stdio::null()).stdout(file).status();
    let status = status.context("start xz")?;
    anyhow::ensure!(status.success(), "xz cannot unpack {} ({status})", from.display());
    Ok(())
}
