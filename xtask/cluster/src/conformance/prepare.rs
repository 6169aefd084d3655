//! What a suite needs besides a cluster with netpol: for the older one an image with a shell, and
//! afterwards what the agents said. Must not touch what is tested.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use netpol_image::{Entry, Image, host_architecture};

use crate::{Cluster, binaries};

/// The name by which the older tests know agnhost.
const OLD_AGNHOST: &str = "registry.k8s.io/e2e-test-images/agnhost:2.47";
/// A shell that needs no libraries (package busybox-static).
const BUSYBOX: &str = "/bin/busybox";

/// The older tests start their clients in a shell, which agnhost's own image has and ours has not.
pub(super) fn shell_image(cluster: &Cluster) -> Result<()> {
    ensure!(Path::new(BUSYBOX).exists(), "{BUSYBOX} is missing: install busybox-static");
    let image = Image {
        names: vec![OLD_AGNHOST.to_owned()],
        architecture: host_architecture().to_owned(),
        entries: vec![
            Entry::program("/agnhost", binaries::ensure(binaries::AGNHOST)?),
            Entry::program("/bin/busybox", BUSYBOX),
            Entry::symlink("/bin/sh", "busybox"),
            Entry::symlink("/bin/seq", "busybox"),
            Entry::symlink("/bin/sleep", "busybox"),
            Entry::directory("/tmp", 0o1777),
        ],
        entrypoint: vec!["/agnhost".to_owned()],
        command: vec!["pause".to_owned()],
        environment: vec!["PATH=/usr/sbin:/usr/bin:/sbin:/bin:/".to_owned()],
        ..Image::default()
    };
    let archive = cluster.directory().join("images/agnhost-shell.tar");
    image.write(&archive)?;
    cluster.load_image(&archive)
}

/// How often agents have been started again after they ended by themselves.
pub(super) fn restarts(cluster: &Cluster) -> Result<u64> {
    let path = "jsonpath={.items[*].status.containerStatuses[*].restartCount}";
    let pods = ["-n", "netpol", "get", "pods", "-l", "app.kubernetes.io/name=netpol", "-o", path];
    let counts = cluster.kubectl(&pods)?;
    let counts: Result<Vec<u64>, _> = counts.split_whitespace().map(str::parse).collect();
    Ok(counts.context("understand how often agents were restarted")?.iter().sum())
}

/// Keeps what the agents said, for a failure to be understood after the cluster is gone.
pub(super) fn collect_logs(cluster: &Cluster, output: &Path, name: &str) -> Result<()> {
    let pods = ["-n", "netpol", "logs", "-l", "app.kubernetes.io/name=netpol"];
    let log = cluster.kubectl(&[&pods[..], &["--prefix", "--tail", "-1"]].concat())?;
    let path = output.join(format!("agents-{name}.log"));
    fs::write(&path, log).with_context(|| format!("write {}", path.display()))
}
