//! What the agent is told at its start: plain data, so that anything can start an agent. Must
//! never read the command line or the environment.

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::datapath::AttachMode;

/// The agent's choices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Name of this node, as in `spec.nodeName` of its pods.
    pub node_name: String,
    /// Where objects come from.
    pub source: SourceOptions,
    /// Directory of the pins, on a bpffs.
    pub bpffs: PathBuf,
    /// Directory of the state file and the socket.
    pub run_dir: PathBuf,
    /// Directory in which the container runtime names network namespaces.
    pub netns_dir: PathBuf,
    /// Where metrics and health are served, if at all.
    pub metrics: Option<SocketAddr>,
    /// Flows outlive the policy that allowed them.
    pub keep_established: bool,
    /// Pods may send from their own addresses only.
    pub check_source: bool,
    /// How programs are attached.
    pub attach: AttachMode,
    /// Have the programs write debug lines to the agent's log.
    pub datapath_log: bool,
}

/// Where objects come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceOptions {
    /// The API server that this kubeconfig names; without one the usual rules: `KUBECONFIG`, the
    /// home directory's, the pod's service account.
    Kubernetes {
        /// `--kubeconfig`.
        kubeconfig: Option<PathBuf>,
    },
    /// A directory of manifests.
    Manifests(PathBuf),
}
