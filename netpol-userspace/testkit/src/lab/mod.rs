//! Two nodes of a cluster, an outside host and the network between them, each a network namespace,
//! with a real `netpol agent` on each node and one directory of manifests for both.
//!
//! ```text
//! mod lab; mod world;                       // the test file declares both
//! let lab = Lab::new(topology::OVERLAY, Families::Dual);
//! let scene = lab.scene("shop");            // a Kubernetes namespace of its own
//! let web = scene.pod("web", 1, "{app: web}");     // on node 1, with an interface and a manifest
//! let db = scene.pod("db", 2, "{app: db}");
//! scene.serve(&db, 5432);                   // TCP and UDP echo, both families
//! scene.policy("db", "podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress]");
//! scene.settle();                           // in force on both nodes
//! scene.denied(&web, &db, 5432, At::ingress(&db));   // dropped there, counted there, seen nowhere
//! ```
//!
//! Scenes share a lab without disturbing each other, also at the same time. A dropped scene takes
//! its pods and policies with it, a dropped lab everything else. Must never touch the namespace
//! the tests run in.

pub mod packets;
pub mod probe;
mod rows;
pub mod scene;
pub mod shared;
pub mod tunnel;
pub mod wire;
pub mod wiring;

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use aya::programs::{ProgramInfo, TcAttachType, loaded_programs};
use netpol_common::layout::{N_COUNTERS, Reason};
use netpol_datapath::{FlowUse, Maps, Pins, observe, programs_on};
use netpol_isolation::netns::{self, Netns};
use netpol_model::Direction;

use crate::world::agent::Agent;
use crate::world::write_manifest;
pub use scene::{Pod, Scene};

/// How pods are connected to their node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cni {
    /// Veths on a bridge `cbr0` that has the gateway address, as kubenet does, and the node's
    /// netfilter sees bridged packets and tracks connections, as kube-proxy wants it.
    Bridge,
    /// The same, and what is bridged never meets netfilter.
    BridgeWithoutNetfilter,
    /// A route to each pod's veth and a link-local gateway, as Calico does.
    Routed,
}

/// How pods reach those on the other node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Between {
    /// By a route to the other node.
    Direct,
    /// Through a tunnel, with a smaller MTU: VXLAN, or what `tunnel.rs` is told.
    Overlay,
}

/// A kind of cluster network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Topology {
    pub cni: Cni,
    pub between: Between,
}

/// The ones worth testing.
pub mod topology {
    use super::{Between, Cni, Topology};
    pub const BRIDGE: Topology = Topology { cni: Cni::Bridge, between: Between::Direct };
    pub const BRIDGE_WITHOUT_NETFILTER: Topology =
        Topology { cni: Cni::BridgeWithoutNetfilter, between: Between::Direct };
    pub const ROUTED: Topology = Topology { cni: Cni::Routed, between: Between::Direct };
    pub const OVERLAY: Topology = Topology { cni: Cni::Bridge, between: Between::Overlay };
    pub const ROUTED_OVERLAY: Topology = Topology { cni: Cni::Routed, between: Between::Overlay };
}

/// Which addresses nodes and pods have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Families {
    V4,
    V6,
    Dual,
}

impl Families {
    pub fn include(self, address: IpAddr) -> bool {
        match self {
            Self::V4 => address.is_ipv4(),
            Self::V6 => address.is_ipv6(),
            Self::Dual => true,
        }
    }
}

/// Where the namespaces that are no pods have their names.
const SPACES: &str = "spaces";

/// A node and its agent.
pub struct Node {
    pub name: String,
    pub netns: Netns,
    pub pins: Pins,
    pub run_dir: PathBuf,
    /// Where its pods' namespaces have their names.
    pub netns_dir: PathBuf,
    pub agent: Option<Agent>,
    maps: Option<Maps>,
    /// The last pod number given out: part of its pods' addresses.
    last_pod: AtomicU32,
}

impl Node {
    fn create(dir: &Path, number: usize) -> Self {
        let bpffs = format!("netpol-test-lab-{}-{}-{number}", std::process::id(), unique());
        let netns_dir = dir.join(format!("netns-{number}"));
        fs::create_dir(&netns_dir).unwrap();
        Self {
            name: format!("node-{number}"),
            netns: Netns::create(dir.join(SPACES), &format!("node-{number}")).unwrap(),
            pins: Pins::new(PathBuf::from("/sys/fs/bpf").join(bpffs)),
            run_dir: dir.join(format!("run-{number}")),
            netns_dir,
            agent: None,
            maps: None,
            // 1 is the gateway's.
            last_pod: AtomicU32::new(1),
        }
    }

    fn maps(&self) -> &Maps {
        self.maps.as_ref().expect("the agent has been started")
    }
}

/// The whole of it.
pub struct Lab {
    pub topology: Topology,
    pub families: Families,
    nodes: [Node; 2],
    /// The switch between the nodes, and the router to the outside host.
    pub underlay: Netns,
    /// A host outside the cluster.
    pub outside: Netns,
    dir: tempfile::TempDir,
    arguments: Vec<String>,
}

impl Lab {
    /// Both nodes wired and both agents in force.
    pub fn new(topology: Topology, families: Families) -> Self {
        Self::with_arguments(topology, families, &[])
    }

    /// The same with further arguments for the agents.
    pub fn with_arguments(topology: Topology, families: Families, arguments: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut lab = Self {
            topology,
            families,
            nodes: [1, 2].map(|number| Node::create(dir.path(), number)),
            underlay: Netns::create(dir.path().join(SPACES), "underlay").unwrap(),
            outside: Netns::create(dir.path().join(SPACES), "outside").unwrap(),
            dir,
            arguments: arguments.iter().map(|&argument| argument.to_owned()).collect(),
        };
        fs::create_dir(lab.manifests()).unwrap();
        wiring::connect(&lab);
        for number in [1, 2] {
            lab.start_agent(number);
        }
        lab.settle();
        for node in &mut lab.nodes {
            node.maps = Some(Maps::open(&node.pins, false).unwrap());
        }
        lab
    }

    /// Node 1 or 2.
    pub fn node(&self, number: usize) -> &Node {
        &self.nodes[number - 1]
    }

    /// The addresses of a node, its main ones first, then its others: of the overlay, the bridge
    /// and loopback.
    pub fn node_addresses(&self, number: usize) -> Vec<IpAddr> {
        wiring::node_addresses(self, number)
    }

    /// The outside host's addresses.
    pub fn outside_addresses(&self) -> Vec<IpAddr> {
        self.of_families(wiring::OUTSIDE)
    }

    /// The link-layer address by which the outside host sends to the cluster.
    pub fn outside_gateway(&self) -> [u8; 6] {
        let show = || Command::new("ip").args(["-j", "link", "show", "out0"]).output().unwrap();
        let output = self.underlay.run(show).unwrap();
        let links: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        wire::link_address(links[0]["address"].as_str().unwrap())
    }

    /// A Kubernetes namespace with this name, labelled `name: NAME`.
    pub fn scene(&self, name: &str) -> Scene<'_> {
        Scene::new(self, name)
    }

    fn spaces(&self) -> PathBuf {
        self.dir.path().join(SPACES)
    }

    // === Agents ===

    pub fn manifests(&self) -> PathBuf {
        self.dir.path().join("manifests")
    }

    /// Starts a node's agent without waiting for it.
    pub fn start_agent(&mut self, number: usize) {
        let (manifests, arguments) = (self.manifests(), self.arguments.clone());
        let log = self.dir.path().join(format!("agent-{number}.log"));
        let node = &mut self.nodes[number - 1];
        let path = |path: &PathBuf| path.to_str().unwrap().to_owned();
        let mut line = vec!["agent".to_owned()];
        for (flag, value) in [
            ("--node-name", node.name.clone()),
            ("--manifests", path(&manifests)),
            ("--bpffs", path(&node.pins.bpffs)),
            ("--run-dir", path(&node.run_dir)),
            ("--netns-dir", path(&node.netns_dir)),
        ] {
            line.extend([flag.to_owned(), value]);
        }
        line.extend(arguments);
        node.agent = Some(Agent::start(&node.netns, &line, &node.run_dir, log));
    }

    /// Waits until everything written before is in force on both nodes, and insists that nothing
    /// of it was refused.
    pub fn settle(&self) {
        thread::scope(|scope| {
            for node in &self.nodes {
                scope.spawn(|| {
                    let status = node.agent.as_ref().expect("the agent runs").wait();
                    let is_clean = status["source"]["errors"].as_array().unwrap().is_empty();
                    assert!(status["ready"] == true && is_clean, "{}: {status}", node.name);
                });
            }
        });
    }

    /// What a node's agent has logged.
    pub fn log(&self, number: usize) -> String {
        let path = self.dir.path().join(format!("agent-{number}.log"));
        fs::read_to_string(path).unwrap_or_default()
    }

    /// Writes NAME.yaml in one step.
    pub fn write(&self, name: &str, text: &str) {
        write_manifest(&self.manifests(), name, text);
    }

    pub fn remove(&self, name: &str) {
        fs::remove_file(self.manifests().join(format!("{name}.yaml"))).unwrap();
    }

    // === Looking ===

    /// A pod's packets by reason in one direction; zeros if no program is attached.
    pub fn counters(&self, pod: &Pod, direction: Direction) -> [u64; N_COUNTERS] {
        let maps = self.node(pod.node).maps();
        let speakers = observe::speakers(maps);
        let entry = speakers.iter().find(|(ifindex, _)| *ifindex == pod.ifindex);
        let read = |id| observe::counters(maps, id, direction).unwrap();
        entry.map_or([0; N_COUNTERS], |&(_, id)| read(id))
    }

    /// How many of a pod's packets were dropped for this reason.
    pub fn counted(&self, pod: &Pod, direction: Direction, reason: Reason) -> u64 {
        self.counters(pod, direction)[reason as usize]
    }

    /// How many of a pod's packets were dropped, by all reasons and in both directions.
    pub fn drops(&self, pod: &Pod) -> u64 {
        [Direction::Ingress, Direction::Egress]
            .map(|direction| observe::drops(&self.counters(pod, direction)))
            .iter()
            .sum()
    }

    /// What every endpoint's packets have met so far, for who has to find out where one was lost.
    pub fn all_counters(&self) -> String {
        let mut told = String::new();
        for node in &self.nodes {
            let maps = node.maps();
            for (ifindex, id) in observe::speakers(maps) {
                for direction in [Direction::Ingress, Direction::Egress] {
                    let counters = observe::counters(maps, id, direction).unwrap();
                    let met =
                        Reason::ALL.map(|reason| (reason.as_str(), counters[reason as usize]));
                    let met: Vec<_> = met.iter().filter(|(_, n_packets)| *n_packets > 0).collect();
                    told += &format!("{} {ifindex} #{id} {direction}: {met:?}\n", node.name);
                }
            }
        }
        told
    }

    /// What a pod has of its node's flow tables.
    pub fn flow_use(&self, pod: &Pod) -> FlowUse {
        let maps = self.node(pod.node).maps();
        let speakers = observe::speakers(maps);
        let entry = speakers.iter().find(|(ifindex, _)| *ifindex == pod.ifindex);
        maps.flow_use(entry.expect("the pod is known").1)
    }

    /// Names of the programs at the node's end of a pod's interface: of its ingress hook, then of its
    /// egress hook.
    pub fn programs(&self, pod: &Pod) -> Vec<String> {
        let query = |hook| programs_on(&pod.interface, hook).unwrap();
        let both = || [TcAttachType::Ingress, TcAttachType::Egress].map(query);
        let ids = self.node(pod.node).netns.run(both).unwrap().concat();
        let known: Vec<ProgramInfo> = loaded_programs().flatten().collect();
        let name = |id| {
            let program = known.iter().find(|program| program.id() == id);
            program.and_then(|program| program.name_as_str()).unwrap_or_default().to_owned()
        };
        ids.into_iter().map(name).collect()
    }

    /// Those of a pod that no policy selects, while there is any policy.
    pub fn guards(&self) -> &'static [&'static str] {
        if self.topology.cni == Cni::Routed {
            &["netpol_guard"]
        } else {
            &["netpol_guard", "netpol_shield"]
        }
    }

    /// Those of the two addresses that this lab's families have.
    fn of_families(&self, pair: [&str; 2]) -> Vec<IpAddr> {
        let parsed = pair.map(|address| address.parse::<IpAddr>().unwrap());
        parsed.into_iter().filter(|&address| self.families.include(address)).collect()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for (number, node) in (1..).zip(&mut self.nodes) {
            if thread::panicking() {
                let path = self.dir.path().join(format!("agent-{number}.log"));
                eprintln!(
                    "=== {} ===\n{}",
                    node.name,
                    fs::read_to_string(path).unwrap_or_default()
                );
            }
            node.agent = None;
            node.maps = None;
            delete_all(&node.netns_dir);
            let _ = node.netns.run(|| node.pins.remove_all().map(drop));
        }
        delete_all(&self.spaces());
    }
}

/// Takes away the names of the namespaces in `dir`.
fn delete_all(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let _ = netns::delete(dir, &entry.file_name().to_string_lossy());
    }
}

/// A number that no one else in this process gets.
fn unique() -> u32 {
    static NUMBER: AtomicU32 = AtomicU32::new(1);
    NUMBER.fetch_add(1, Ordering::Relaxed)
}
