//! netpol on a cluster, as a user installs it: an image on every node, and deploy/netpol.yaml. Takes
//! the unoptimised program unless told otherwise, since building the other takes minutes.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::cluster::Cluster;
use crate::manifests;
use crate::process::run;

/// The image that deploy/netpol.yaml names.
pub const IMAGE: &str = concat!("localhost/netpol:", env!("CARGO_PKG_VERSION"));

/// Says where a `netpol` of this checkout is, so that none is built.
const PROGRAM: &str = "NETPOL_PROGRAM";

/// The checkout's program: the one that `NETPOL_PROGRAM` names, else built in the profile `dev` if
/// it is not up to date.
///
/// # Errors
/// It cannot be built; the error has what cargo said.
pub fn program() -> Result<PathBuf> {
    if let Some(path) = env::var_os(PROGRAM).map(PathBuf::from) {
        ensure!(path.exists(), "{PROGRAM} is {}, which does not exist", path.display());
        return Ok(path);
    }
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["build", "--package", "netpol-userspace", "--bin", "netpol"]);
    command.args(["--message-format", "json"]).current_dir(workspace);
    built(&mut command, "netpol")
}

/// Builds a program with a cargo command that tells in JSON what it does. Cargo says where it put
/// it: the target directory is the user's choice.
pub(crate) fn built(command: &mut Command, name: &str) -> Result<PathBuf> {
    let messages = run(command)?;
    let executable = messages.lines().rev().find_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let is_wanted = message["target"]["name"] == name;
        message["executable"].as_str().filter(|_| is_wanted).map(PathBuf::from)
    });
    executable.with_context(|| format!("cargo built no program {name}"))
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
    let rollout =
        cluster.kubectl(&["-n", "netpol", "rollout", "status", "ds/netpol", "--timeout=240s"]);
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
