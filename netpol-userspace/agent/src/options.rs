//! The agent's options, after parsing.

use std::net::SocketAddr;
use std::path::PathBuf;

use tokio::sync::watch;

use super::annotations::Trust;
use netpol_api::counters::AgentCounters;
use netpol_api::installation::Report;
use netpol_api::state::{State, Status};
use netpol_datapath::{AttachMode, Limits, Maps};
use netpol_source::Watch;

/// What `netpol agent` runs with.
#[derive(Debug, Clone)]
pub struct Options {
    /// This node's name.
    pub node_name: String,
    /// Read objects from the API server that this file describes.
    pub kubeconfig: Option<PathBuf>,
    /// Read objects from the files in this directory instead.
    pub manifests: Option<PathBuf>,
    /// Where maps, programs and links are pinned.
    pub bpffs: PathBuf,
    /// A bpffs is mounted there if there is none.
    pub mount_bpffs: bool,
    /// Where state file and socket are.
    pub run_dir: PathBuf,
    /// Where the container runtime names network namespaces.
    pub netns_dir: PathBuf,
    /// Where metrics and health are served, if at all.
    pub metrics_address: Option<SocketAddr>,
    /// Flows outlive the policy that allowed them.
    pub keep_established: bool,
    /// The proxy that translates packets to Services on this node: that of Services which say so
    /// by their label; `None`: kube-proxy, or one like it.
    pub service_proxy: Option<String>,
    /// How programs are attached.
    pub attach: AttachMode,
    /// The kernel may be asked to hurry while programs are attached.
    pub expedite: bool,
    /// Which pods may send from their own addresses only.
    pub source_check: SourceCheck,
    /// Which annotations of pods say from where they may send.
    pub trust: Trust,
    /// The bit of packets' marks that the programs may use.
    pub mark_bit: u32,
    /// How much the tables may hold.
    pub limits: Limits,
    /// Bytes of memory that compiling one namespace's policies may take.
    pub max_namespace_memory: u64,
    /// Buckets for all endpoints of the IPv4 and IPv6 flow tables.
    pub flow_buckets: [u32; 2],
    /// Show the programs' debug lines.
    pub datapath_log: bool,
}

/// Which pods' sources are checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceCheck {
    /// Those of all pods, as soon as there is any policy.
    All,
    /// Those of pods that a policy selects.
    Isolated,
    /// Nobody's.
    Off,
}

/// What is known, as the text that Prometheus reads. Observers make it: the agent must not know them.
pub type Metrics = fn(&Maps, &Status, &State, &AgentCounters, &[Watch]) -> String;

/// Starts whatever keeps the CNI plugin installed.
pub type Installer = Box<dyn FnOnce() -> std::io::Result<watch::Receiver<Report>> + Send>;
