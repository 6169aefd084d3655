//! What a suite needs besides a cluster with netpol: for the older one an image with a shell, and
//! afterwards what the agents said. Must not touch what is tested.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use netpol_image::Entry;

use crate::{Cluster, images};

/// The name by which the older tests know agnhost.
const OLD_AGNHOST: &str = "registry.k8s.io/e2e-test-images/agnhost:2.47";
/// A shell that needs no libraries (package busybox-static).
const BUSYBOX: &str = "/bin/busybox";

/// The older tests start their clients in a shell, which agnhost's own image has and ours has not.
pub(super) fn shell_image(cluster: &Cluster) -> Result<()> {
    ensure!(Path::new(BUSYBOX).exists(), "{BUSYBOX} is missing: install busybox-static");
    let mut image = images::agnhost(OLD_AGNHOST)?;
    image.entries.push(Entry::program("/bin/busybox", BUSYBOX));
    let names = ["/bin/sh", "/bin/seq", "/bin/sleep"];
    image.entries.extend(names.map(|name| Entry::symlink(name, "busybox")));
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
