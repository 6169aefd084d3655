//! netpol on a cluster, as a user installs it: an image on every node, and deploy/netpol.yaml. Takes
//! the unoptimised program unless told otherwise, since building the other takes minutes.

use std::env;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::cluster::Cluster;
use crate::manifests;
use crate::process::timeout;

/// The image that deploy/netpol.yaml names.
pub const IMAGE: &str = concat!("localhost/netpol:", env!("CARGO_PKG_VERSION"));

/// Says where the `netpol` of this checkout is; `cargo xtask` builds it and sets this.
const PROGRAM: &str = "NETPOL_PROGRAM";

/// The checkout's program: the one that `NETPOL_PROGRAM` names.
///
/// # Errors
/// It is not set, or names nothing.
pub fn program() -> Result<PathBuf> {
    given(PROGRAM)
}

/// A program that `cargo xtask` has built and names in this variable. Nothing is built here, where
/// somebody already waits for it.
pub(crate) fn given(variable: &str) -> Result<PathBuf> {
    let path = env::var_os(variable).map(PathBuf::from).with_context(|| {
        format!("{variable} is not set: start this by `cargo xtask`, which builds what it names")
    })?;
    ensure!(path.exists(), "{variable} is {}, which does not exist", path.display());
    Ok(path)
}

/// Gives every node an image of this program.
///
/// # Errors
/// The image cannot be made, or containerd refuses it.
pub fn load(cluster: &Cluster, program: &Path) -> Result<()> {
    let archive = cluster.directory().join("images/netpol.tar");
    netpol_image::netpol(program, vec![IMAGE.to_owned()])?.write(&archive)?;
    cluster.load_image(&archive)
}

/// Whether pods start only when their policies are in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plugin {
    /// The CNI plugin sees to it.
    Installed,
    /// There is a moment in which new pods are not enforced yet.
    None,
}

/// Installs netpol, and waits until every node enforces policies.
///
/// # Errors
/// kubectl fails, or an agent does not become ready; the error has what its pod says.
pub fn install(cluster: &Cluster, program: &Path, plugin: Plugin) -> Result<()> {
    load(cluster, program)?;
    let get = ["get", "daemonset", "-A", "-l", "app.kubernetes.io/name=netpol", "-o", "name"];
    let runs_already = !cluster.kubectl(&get)?.is_empty();
    let (option, manifest) = match plugin {
        Plugin::None => ("-f", manifests::file()),
        Plugin::Installed => ("-k", manifests::deploy().join("with-cni")),
    };
    let manifest =
        manifest.canonicalize().with_context(|| format!("find {}", manifest.display()))?;
    cluster.kubectl(&["apply", option, &manifest.to_string_lossy()])?;
    if runs_already {
        // The image's name is the same, so that nothing else makes the agents take the new one.
        cluster.kubectl(&["-n", "netpol", "rollout", "restart", "ds/netpol"])?;
    }
    let timeout = timeout(Duration::from_secs(240));
    let rollout = cluster.kubectl(&["-n", "netpol", "rollout", "status", "ds/netpol", &timeout]);
    rollout.map(drop).map_err(|error| error.context(why_not(cluster)))?;
    let ready = "jsonpath={.status.numberReady}";
    let ready = cluster.kubectl(&["-n", "netpol", "get", "ds", "netpol", "-o", ready])?;
    ensure!(ready == cluster.nodes().len().to_string(), "{ready} agents are ready, not all");
    Ok(())
}

/// What the agents' pods and the API server say about them.
fn why_not(cluster: &Cluster) -> String {
    let questions: [&[&str]; 2] = [
        &["-n", "netpol", "describe", "pods"],
        &["-n", "netpol", "logs", "--all-pods", "--tail=20", "ds/netpol"],
    ];
    let answers = questions.map(|words| match cluster.kubectl(words) {
        Ok(text) => text,
        Err(error) => format!("{error:#}"),
    });
    format!("the agents do not become ready\n{}", answers.join("\n"))
}
