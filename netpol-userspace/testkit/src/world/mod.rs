//! A node of its own for each test: a network namespace with real pods behind veths, manifests,
//! and `netpol agent` as a child process in it. Everything goes when the [`World`] is dropped.
//! Must never touch the namespace the tests run in.

pub mod agent;
pub mod runtime;
pub mod traffic;

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use netpol_common::layout::{N_COUNTERS, Reason};
use netpol_datapath::{Maps, Pins, observe, programs_on};
use netpol_isolation::netns::{self, Netns};
use netpol_model::Direction;
use serde_json::Value;

use agent::Agent;

/// A hang guard: nothing is expected to take so long.
pub const PATIENCE: Duration = Duration::from_secs(240);
/// The node's own address.
pub const NODE: &str = "10.0.0.1";
/// Name of the node for the agent.
pub const NODE_NAME: &str = "node-1";

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A node with pods.
pub struct World {
    pub node: Netns,
    pub dir: tempfile::TempDir,
    pub bpffs: PathBuf,
    /// Further arguments of `netpol agent`.
    pub arguments: Vec<String>,
    /// Read the API server that this file describes instead of manifests.
    pub kubeconfig: Option<PathBuf>,
    pub agent: Option<Agent>,
    pods: Vec<String>,
    has_bridge: bool,
}

impl World {
    /// A node without pods. The agent does not run yet.
    pub fn new() -> Self {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("netpol-test-world-{}-{number}", std::process::id());
        let world = Self {
            node: Netns::create_anonymous().unwrap(),
            dir: tempfile::tempdir().unwrap(),
            bpffs: PathBuf::from("/sys/fs/bpf").join(name),
            arguments: Vec::new(),
            kubeconfig: None,
            agent: None,
            pods: Vec::new(),
            has_bridge: false,
        };
        fs::create_dir(world.manifests()).unwrap();
        fs::create_dir(world.netns_dir()).unwrap();
        world.ip(&format!("link set lo up\naddress add {NODE}/32 dev lo"));
        let forward = || fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        world.node.run(forward).unwrap();
        world
    }

    pub fn manifests(&self) -> PathBuf {
        self.dir.path().join("manifests")
    }

    pub fn netns_dir(&self) -> PathBuf {
        self.dir.path().join("netns")
    }

    pub fn run_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    pub fn pins(&self) -> Pins {
        Pins::new(&self.bpffs)
    }

    // === Pods ===

    /// A pod of namespace `default` with its interface and its manifest.
    pub fn pod(&mut self, name: &str, address: &str, labels: &str) {
        self.wire(name, address);
        self.declare(name, address, labels);
    }

    /// The namespace and interface of a pod: `v-NAME` on the node, `eth0` in the pod.
    pub fn wire(&mut self, name: &str, address: &str) {
        self.wire_at(name, address, None);
    }

    /// The same with this index for the node's side.
    pub fn wire_at(&mut self, name: &str, address: &str, ifindex: Option<u32>) {
        Netns::create(self.netns_dir(), name).unwrap();
        self.pods.push(name.to_owned());
        let file = self.netns_dir().join(name);
        let index = ifindex.map_or_else(String::new, |index| format!("index {index}"));
        self.ip(&format!(
            "link add v-{name} {index} type veth peer name eth0 netns {}\n\
             link set v-{name} up\n\
             address add 169.254.1.1/32 dev v-{name}\n\
             route replace {address}/32 dev v-{name} src {NODE}",
            file.display()
        ));
        self.ip_in(
            name,
            &format!(
                "link set lo up\n\
                 link set eth0 up\n\
                 address add {address}/32 dev eth0\n\
                 route add 169.254.1.1 dev eth0\n\
                 route add default via 169.254.1.1 src {address}"
            ),
        );
    }

    /// The namespace and interface of a pod, as a port of the bridge `br0` of the node, which is
    /// 10.245.0.254/16.
    pub fn wire_to_bridge(&mut self, name: &str, address: &str) {
        Netns::create(self.netns_dir(), name).unwrap();
        self.pods.push(name.to_owned());
        if !self.has_bridge {
            self.has_bridge = true;
            self.ip(
                "link add br0 type bridge\nlink set br0 up\naddress add 10.245.0.254/16 dev br0",
            );
        }
        let file = self.netns_dir().join(name);
        self.ip(&format!(
            "link add v-{name} type veth peer name eth0 netns {}\nlink set v-{name} master br0 up",
            file.display()
        ));
        self.ip_in(
            name,
            &format!(
                "link set lo up\nlink set eth0 up\naddress add {address}/16 dev eth0\n\
                 route add default via 10.245.0.254"
            ),
        );
    }

    /// The manifest of a pod.
    pub fn declare(&self, name: &str, address: &str, labels: &str) {
        self.declare_as(name, address, labels, &format!("uid-{name}"));
    }

    pub fn declare_as(&self, name: &str, address: &str, labels: &str, uid: &str) {
        let status = match address {
            "" => "phase: Pending".to_owned(),
            _ => format!("podIP: {address}, podIPs: [{{ip: {address}}}], phase: Running"),
        };
        self.write(
            &format!("pod-{name}"),
            &format!(
                "apiVersion: v1\nkind: Pod\n\
                 metadata: {{name: {name}, namespace: default, uid: {uid}, labels: {labels}}}\n\
                 spec: {{nodeName: {NODE_NAME}, containers: [{{name: c}}]}}\n\
                 status: {{{status}}}\n"
            ),
        );
    }

    /// Takes the pod's interface and namespace away.
    pub fn unwire(&mut self, name: &str) {
        self.ip(&format!("link del v-{name}"));
        netns::delete(self.netns_dir(), name).unwrap();
        self.pods.retain(|pod| pod != name);
    }

    /// The pod's namespace.
    pub fn of(&self, pod: &str) -> Netns {
        Netns::open(self.netns_dir().join(pod)).unwrap()
    }

    // === Manifests ===

    /// Writes NAME.yaml in one step.
    pub fn write(&self, name: &str, text: &str) {
        write_manifest(&self.manifests(), name, text);
    }

    pub fn remove(&self, name: &str) {
        fs::remove_file(self.manifests().join(format!("{name}.yaml"))).unwrap();
    }

    /// A policy of namespace `default` with this spec, in YAML flow style.
    pub fn policy(&self, name: &str, spec: &str) {
        self.write(
            &format!("policy-{name}"),
            &format!(
                "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
                 metadata: {{name: {name}, namespace: default}}\nspec: {{{spec}}}\n"
            ),
        );
    }

    // === Agent ===

    /// The arguments of `netpol COMMAND` that say where.
    pub fn command_line(&self) -> Vec<String> {
        let path = |path: PathBuf| path.to_str().unwrap().to_owned();
        let mut line = vec!["agent".to_owned()];
        let objects = match &self.kubeconfig {
            Some(file) => ("--kubeconfig", path(file.clone())),
            None => ("--manifests", path(self.manifests())),
        };
        for (flag, value) in [
            ("--node-name", NODE_NAME.to_owned()),
            objects,
            ("--bpffs", path(self.bpffs.clone())),
            ("--run-dir", path(self.run_dir())),
            ("--netns-dir", path(self.netns_dir())),
        ] {
            line.extend([flag.to_owned(), value]);
        }
        line.extend(self.arguments.iter().cloned());
        line
    }

    /// Starts the agent and waits until everything written is in force.
    pub fn start(&mut self) -> Value {
        self.start_only();
        self.settle()
    }

    /// Starts the agent.
    pub fn start_only(&mut self) {
        assert!(self.agent.is_none(), "one agent runs already");
        let log = self.dir.path().join("agent.log");
        self.agent = Some(Agent::start(&self.node, &self.command_line(), &self.run_dir(), log));
    }

    /// Runs `netpol` with these arguments on the node, until it ends.
    pub fn netpol(&self, arguments: &[String]) -> Output {
        self.node.run(|| Command::new(crate::program()).args(arguments).output().unwrap()).unwrap()
    }

    /// `netpol cleanup`.
    pub fn clean_up(&self) -> Output {
        self.netpol(&["cleanup".into(), "--bpffs".into(), self.bpffs.to_str().unwrap().into()])
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.agent.take().unwrap().kill();
    }

    /// Waits until everything written before is in force, and insists that it is, but for what the
    /// status names as of no use.
    pub fn settle(&mut self) -> Value {
        let status = self.agent.as_ref().unwrap().wait();
        let is_unused = |of: &str| !status[of]["errors"].as_array().unwrap().is_empty();
        let is_applied = status["source"]["revision"] == status["datapath"]["applied_revision"];
        let is_rest_in_force = is_unused("source") && is_applied && !is_unused("datapath");
        assert!(status["ready"] == true || is_rest_in_force, "{status}\n{}", self.log());
        status
    }

    /// `GET /state`.
    pub fn state(&self) -> Value {
        self.agent.as_ref().unwrap().get("/state")
    }

    /// What the agents have logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("agent.log")).unwrap_or_default()
    }

    /// `GET PATH` where the agent serves metrics and health: the code and the text.
    pub fn http(&self, path: &str) -> (u16, String) {
        let get = || {
            let mut socket = TcpStream::connect("127.0.0.1:9642").unwrap();
            write!(socket, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
            let mut answer = String::new();
            socket.read_to_string(&mut answer).unwrap();
            answer
        };
        let answer = self.node.run(get).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split_whitespace().nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    // === Looking ===

    pub fn maps(&self) -> Maps {
        Maps::open(&self.pins(), false).unwrap()
    }

    /// The number of a pod's endpoint.
    pub fn id(&self, pod: &str) -> u16 {
        let state = self.state();
        let endpoints = state["endpoints"].as_array().unwrap();
        let view = endpoints.iter().find(|view| view["pod"] == pod);
        let view = view.unwrap_or_else(|| panic!("no endpoint of {pod} in {endpoints:#?}"));
        view["id"].as_u64().unwrap().try_into().unwrap()
    }

    /// How many packets of a pod were dropped, by all reasons and in both directions.
    pub fn drops(&self, pod: &str) -> u64 {
        let (maps, id) = (self.maps(), self.id(pod));
        [Direction::Ingress, Direction::Egress]
            .map(|direction| observe::drops(&observe::counters(&maps, id, direction).unwrap()))
            .iter()
            .sum()
    }

    pub fn counted(&self, pod: &str, direction: Direction, reason: Reason) -> u64 {
        let counters: [u64; N_COUNTERS] =
            observe::counters(&self.maps(), self.id(pod), direction).unwrap();
        counters[reason as usize]
    }

    /// Ids of the programs on an interface of the node, as agents attach them by default, ingress hook
    /// first.
    pub fn tcx(&self, interface: &str) -> [Vec<u32>; 2] {
        use aya::programs::TcAttachType;
        let query = |hook| programs_on(interface, hook).unwrap();
        let hooks = || [TcAttachType::Ingress, TcAttachType::Egress].map(query);
        self.node.run(hooks).unwrap()
    }

    /// Names of the pinned links.
    pub fn links(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.pins().links()) else { return Vec::new() };
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    pub fn ifindex(&self, interface: &str) -> u32 {
        use rustix::net::{AddressFamily, SocketType, netdevice::name_to_index, socket};
        let index = || {
            let any = socket(AddressFamily::INET, SocketType::DGRAM, None).unwrap();
            name_to_index(&any, interface).unwrap()
        };
        self.node.run(index).unwrap()
    }

    // === Tools ===

    /// Runs lines of `ip` on the node.
    pub fn ip(&self, script: &str) {
        ip(&self.node, script);
    }

    /// Runs lines of `ip` in a pod.
    pub fn ip_in(&self, pod: &str, script: &str) {
        ip(&self.of(pod), script);
    }

    /// Runs `tc` on the node, insists on success and returns what it says.
    pub fn tc(&self, arguments: &str) -> String {
        let run = || Command::new("tc").args(arguments.split_whitespace()).output().unwrap();
        let output = self.node.run(run).unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "tc {arguments}: {said}");
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("=== agent log ===\n{}", self.log());
        }
        self.agent = None;
        for pod in &self.pods {
            let _ = netns::delete(self.netns_dir(), pod);
        }
        let _ = self.node.run(|| self.pins().remove_all().map(drop));
        if self.bpffs.starts_with(self.dir.path()) {
            // What the agent has mounted.
            let _ = rustix::mount::unmount(&self.bpffs, rustix::mount::UnmountFlags::DETACH);
        }
    }
}

/// Runs lines of `ip` in this namespace.
pub fn ip(netns: &Netns, script: &str) {
    let run = || {
        let mut ip =
            Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().unwrap();
        ip.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
        ip.wait().unwrap()
    };
    assert!(netns.run(run).unwrap().success(), "ip failed on:\n{script}");
}

/// Writes NAME.yaml in the directory in one step.
pub fn write_manifest(dir: &Path, name: &str, text: &str) {
    let draft = dir.join(format!(".{name}.new"));
    fs::write(&draft, text).unwrap();
    fs::rename(draft, dir.join(format!("{name}.yaml"))).unwrap();
}

/// Waits for `condition`.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < end, "never came true: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// An address in 10.244.0.0/16 by number.
pub fn address(number: u32) -> String {
    Ipv4Addr::from(0x0af4_0000 + number).to_string()
}
