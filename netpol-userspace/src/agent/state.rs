//! What the agent tells: the JSON of `<run-dir>/state.json` and of the socket
//! `<run-dir>/agent.sock`. Plain data; field names of [`Status`] and [`EndpointView`] are relied
//! on from outside.
//!
//! The socket speaks HTTP/1.1: `GET /status` and `GET /state` answer at once with [`Status`] and
//! [`State`]; `POST /wait?timeout_ms=N` answers with [`Status`] when everything written before
//! the request is in force, or with status 504 and [`Status`] when time is up; `POST /ask` answers
//! a [`super::questions::Question`], `POST /cni?timeout_ms=N` what the CNI plugin tells
//! ([`super::sandbox::Told`]).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::questions::NamedPort;
use crate::compile::ids::Ids;

/// Version of [`State`]; a file of another version is not read.
pub const VERSION: u32 = 1;

/// Directory of the state file and the socket, unless another one is given.
pub const RUN_DIR: &str = "/run/netpol";

/// Path of the state file.
pub fn state_path(run_dir: &Path) -> PathBuf {
    run_dir.join("state.json")
}

/// Path of the agent's socket.
pub fn socket_path(run_dir: &Path) -> PathBuf {
    run_dir.join("agent.sock")
}

/// Everything about this node that is not in the maps. Rewritten, atomically, before endpoints are
/// enforced and after anything a person could see has changed; new numbers are in the
/// [journal](super::journal) before they are used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// [`VERSION`].
    pub version: u32,
    /// The node's name.
    pub node: String,
    /// The agent's process id.
    pub pid: u32,
    /// `--bpffs` of the agent.
    pub bpffs: PathBuf,
    /// Summary.
    pub status: Status,
    /// Local endpoints, sorted by namespace and name.
    pub endpoints: Vec<EndpointView>,
    /// Names of the classes in use, by number.
    pub classes: BTreeMap<u32, Vec<String>>,
    /// Numbers in use and what they stand for, for the next agent.
    pub ids: Ids,
    /// Whose the interfaces are, for the next agent, whatever becomes of the pods' objects.
    #[serde(default)]
    pub remembered: Vec<Remembered>,
    /// The uids of pods that have had an interface.
    #[serde(default)]
    pub placed: Vec<String>,
    /// When pods came to this node, by uid, in seconds since the epoch.
    #[serde(default)]
    pub arrived: BTreeMap<String, i64>,
    /// The boot and the network namespace in which interfaces have these numbers.
    #[serde(default)]
    pub place: String,
}

/// Whose an interface is, and what is to be known of that pod to judge it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remembered {
    /// Its index.
    pub ifindex: u32,
    /// Its name.
    pub interface: String,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub pod: String,
    /// The pod's uid, empty if it could not be decided.
    pub uid: String,
    /// The addresses by which it is known.
    pub addresses: Vec<IpAddr>,
    /// Nothing but the addresses that it showed has told whose it is.
    pub is_by_address: bool,
    /// When the interface was first seen, in seconds since the epoch.
    #[serde(default)]
    pub appeared: i64,
    /// The pod should not have it any more.
    pub is_former: bool,
    /// The pod's labels.
    pub labels: BTreeMap<String, String>,
    /// The pod's named ports.
    pub ports: Vec<NamedPort>,
    /// When the pod was created, in seconds since the epoch.
    pub created: i64,
}

/// Summary of the node's state.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Everything read so far is in force.
    pub ready: bool,
    /// Where objects come from.
    pub source: SourceStatus,
    /// What is enforced.
    pub datapath: DatapathStatus,
}

/// The source's side.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceStatus {
    /// `manifests` or `kubernetes`.
    pub kind: String,
    /// Everything that existed at the start has been read.
    pub synced: bool,
    /// Counts changes read. Goes on from where the last agent ended, so it never goes back.
    pub revision: u64,
    /// Objects that cannot be used, sorted, and errors of the source itself.
    pub errors: Vec<ObjectError>,
    /// What is watched; nothing if objects come from files.
    #[serde(default)]
    pub watches: Vec<WatchView>,
}

/// What is watched of an API server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchView {
    /// As in roles: `pods`.
    pub resource: String,
    /// It has been read completely once, or may not be read and can be done without.
    pub synced: bool,
    /// Objects known.
    pub objects: usize,
}

/// One thing that is wrong with an object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ObjectError {
    /// Such as `NetworkPolicy shop/web (web.yaml)`.
    pub object: String,
    /// What is wrong and what it means.
    pub message: String,
}

/// The kernel's side.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatapathStatus {
    /// Local endpoints found, isolated or not.
    pub endpoints: usize,
    /// Those that no policy selects and that have a guard, which checks who speaks.
    #[serde(default)]
    pub guarded: usize,
    /// The source revision that is in force.
    pub applied_revision: u64,
    /// `tcx` or `clsact`.
    #[serde(default)]
    pub attach: String,
    /// What could not be put in force, and what discovery found odd.
    #[serde(default)]
    pub errors: Vec<ObjectError>,
    /// How full the tables are.
    #[serde(default)]
    pub tables: Vec<TableView>,
    /// Observations that need no action, such as interfaces that belong to no pod.
    #[serde(default)]
    pub notes: Vec<String>,
    /// What has been read and is not in force yet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub compiling: Vec<CompilingView>,
}

/// Work that is under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CompilingView {
    /// The namespace whose policies or pods they are; empty: it is no one's alone.
    pub namespace: String,
    /// Policies of it that were read and wait for what was read before.
    pub waiting: usize,
    /// Steps done of what is being compiled.
    pub done: usize,
    /// Of how many, as far as is known.
    pub all: usize,
    /// Since when, in seconds since the epoch.
    pub since: i64,
}

/// How full one table is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableView {
    /// Its name, as in metrics.
    pub table: String,
    /// Entries in use.
    pub used: u64,
    /// Entries there is room for.
    pub limit: u64,
    /// Entries that did not fit.
    pub left_out: u64,
}

/// One local endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointView {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub pod: String,
    /// The pod's uid.
    pub uid: String,
    /// Name of the host-side interface.
    pub interface: String,
    /// Its index in the node's namespace.
    pub ifindex: u32,
    /// The pod's addresses.
    pub ips: Vec<IpAddr>,
    /// Its number in the maps.
    pub id: u16,
    /// Ingress.
    pub ingress: DirectionView,
    /// Egress.
    pub egress: DirectionView,
}

/// One direction of an endpoint.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirectionView {
    /// Whether any policy isolates it.
    pub isolated: bool,
    /// The policies that do, as `namespace/name`, sorted.
    pub policies: Vec<String>,
    /// What they allow.
    #[serde(default)]
    pub rules: Vec<Rule>,
    /// Its policy set in the maps, 0 if not isolated.
    #[serde(default)]
    pub set: u16,
}

/// Something that is allowed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// The other end, in words.
    pub peer: String,
    /// Protocols and ports, in words.
    pub ports: String,
    /// The policies that say so.
    pub policies: Vec<String>,
}
