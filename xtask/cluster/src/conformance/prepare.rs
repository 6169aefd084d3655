//! What a suite needs besides a cluster with netpol: for some of them an image with a shell and the
//! API's definition, and afterwards what the agents said. Must not touch what is tested.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use netpol_image::{Entry, Image};

use crate::binaries::{self, Program};
use crate::process::timeout;
use crate::{Cluster, images};

/// The name by which the older tests know agnhost.
const OLD_AGNHOST: &str = "registry.k8s.io/e2e-test-images/agnhost:2.47";
/// The name by which the ClusterNetworkPolicy tests know it.
const TIER_AGNHOST: &str = "registry.k8s.io/e2e-test-images/agnhost:2.45";
/// Those tests start every server by bash.
const BASH: &str = "#!/bin/sh\nexec /bin/sh \"$@\"\n";
/// The same on a kernel without SCTP sockets, where the servers of that protocol would end at once,
/// and the pods would never be ready.
const BASH_WITHOUT_SCTP: &str = "#!/bin/sh\n\
    case \"$*\" in *\"/agnhost porter\"*) exec /agnhost pause;; esac\n\
    exec /bin/sh \"$@\"\n";
/// A shell that needs no libraries (package busybox-static).
const BUSYBOX: &str = "/bin/busybox";

/// The older tests start their clients in a shell, which agnhost's own image has and ours has not.
pub(super) fn shell_image(cluster: &Cluster) -> Result<()> {
    let image = with_shell(OLD_AGNHOST, binaries::AGNHOST)?;
    load(cluster, &image, "agnhost-shell")
}

/// The image of the ClusterNetworkPolicy tests: agnhost and bash. Without SCTP sockets it is a
/// stand-in whose SCTP servers idle.
pub(super) fn tier_image(cluster: &Cluster, has_sctp: bool) -> Result<()> {
    let mut image = with_shell(TIER_AGNHOST, binaries::TIER_AGNHOST)?;
    let script = if has_sctp { BASH } else { BASH_WITHOUT_SCTP };
    image.entries.push(Entry { mode: 0o755, ..Entry::text("/bin/bash", script) });
    load(cluster, &image, "agnhost-bash")
}

/// Installs ClusterNetworkPolicy's definition, and waits until the API server serves it.
pub(super) fn tier_definition(cluster: &Cluster, definition: Program) -> Result<()> {
    let file = binaries::find(definition)?;
    // What an earlier run of another channel has left must not merge with this.
    cluster.kubectl(&[
        "apply",
        "--server-side",
        "--force-conflicts",
        "-f",
        &file.to_string_lossy(),
    ])?;
    let name = "crd/clusternetworkpolicies.policy.networking.k8s.io";
    let timeout = timeout(Duration::from_secs(120));
    cluster.kubectl(&["wait", "--for", "condition=established", &timeout, name]).map(drop)
}

fn with_shell(name: &str, program: Program) -> Result<Image> {
    ensure!(Path::new(BUSYBOX).exists(), "{BUSYBOX} is missing: install busybox-static");
    let mut image = images::agnhost(name, program)?;
    image.entries.push(Entry::program("/bin/busybox", BUSYBOX));
    let names = ["/bin/sh", "/bin/seq", "/bin/sleep"];
    image.entries.extend(names.map(|name| Entry::symlink(name, "busybox")));
    Ok(image)
}

fn load(cluster: &Cluster, image: &Image, file: &str) -> Result<()> {
    let archive = cluster.directory().join("images").join(format!("{file}.tar"));
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
