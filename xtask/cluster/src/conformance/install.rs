//! What a cluster needs before a suite runs on it: netpol as its DaemonSet, and for the older suite
//! an image with a shell. Everything as a person would do it: `kubectl apply` of deploy/.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use netpol_image::{Entry, Image, host_architecture};

use crate::process::wait_for;
use crate::{Cluster, binaries};

/// The name by which the older tests know agnhost.
const OLD_AGNHOST: &str = "registry.k8s.io/e2e-test-images/agnhost:2.47";
/// A shell that needs no libraries (package busybox-static).
const BUSYBOX: &str = "/bin/busybox";

/// Deploys netpol and waits until it enforces on every node.
pub(super) fn netpol(cluster: &Cluster, image: &Path) -> Result<()> {
    let image = std::path::absolute(image)?;
    ensure!(image.exists(), "{} is missing; `cargo xtask image` writes it", image.display());
    cluster.load_image(&image)?;
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/netpol.yaml");
    cluster.kubectl(&["apply", "-f", &manifest.to_string_lossy()])?;
    let wanted = cluster.nodes().len().to_string();
    wait_for("netpol to be ready on every node", Duration::from_secs(300), || {
        let path = "jsonpath={.status.numberReady}";
        let ready = cluster.kubectl(&["-n", "netpol", "get", "ds", "netpol", "-o", path])?;
        Ok(ready == wanted)
    })
    .with_context(|| cluster.kubectl(&["-n", "netpol", "describe", "pods"]).unwrap_or_default())?;
    eprintln!("==> netpol is ready on {wanted} nodes");
    Ok(())
}

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

/// Keeps what the agents said, for a failure to be understood after the cluster is gone.
pub(super) fn collect_logs(cluster: &Cluster, output: &Path, name: &str) -> Result<()> {
    let pods = ["-n", "netpol", "logs", "-l", "app.kubernetes.io/name=netpol"];
    let log = cluster.kubectl(&[&pods[..], &["--prefix", "--tail", "-1"]].concat())?;
    let path = output.join(format!("agents-{name}.log"));
    fs::write(&path, log).with_context(|| format!("write {}", path.display()))
}
