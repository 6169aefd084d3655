//! A datapath of its own for each test: a network namespace with one pod interface, a pin
//! directory, and the loaded programs, run frame by frame.

use std::net::IpAddr;
use std::ops::Range;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::generate::world::World;
use ipnet::IpNet;
use netpol_common::layout::{N_COUNTERS, Reason};
use netpol_compile::{
    Backend, ClassId, EndpointId, EndpointSets, PortSet, Row, ServiceKey, SetId, Step,
};
use netpol_datapath::run::{Place, run};
use netpol_datapath::{AttachMode, Datapath, LoadOptions, Maps, Pins, observe};
use netpol_isolation::netns::Netns;
use netpol_model::{Direction, Protocol};
use netpol_observe::frames::{Transport, frame, packet};

pub mod changes;
pub mod cluster;

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A number that `cargo xtask test` gives its tests, as `--seed` and `--cases`.
pub fn from_environment(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is not a number: {text}")))
}

/// Where a fuzzer begins: with the seed that is asked for, else, in a run of a length that somebody
/// asked for, with one that nobody has tried. Printed, so that any run can be repeated.
pub fn first_seed() -> u64 {
    let seed = from_environment("NETPOL_SEED")
        .unwrap_or_else(|| if std::env::var_os("NETPOL_CASES").is_some() { new_seed() } else { 1 });
    println!("NETPOL_SEED={seed}");
    seed
}

/// The seeds that somebody asked for, as many as there are cases; else these.
pub fn seeds(usual: Range<u64>) -> Range<u64> {
    let Some(n) = from_environment("NETPOL_CASES") else { return usual };
    let first = from_environment("NETPOL_SEED").unwrap_or_else(new_seed);
    println!("NETPOL_SEED={first} NETPOL_CASES={n}");
    first..first + n
}

/// Verdicts compared by this process: in clusters without ClusterNetworkPolicies, and with some.
static COMPARED: [AtomicU64; 2] = [AtomicU64::new(0), AtomicU64::new(0)];

/// Counts a verdict that was compared with the evaluator's.
pub fn count_verdict(world: &World) {
    let kind = usize::from(!world.cluster_policies.is_empty());
    COMPARED[kind].fetch_add(1, Ordering::Relaxed);
}

/// Says how many there were, for people.
pub fn print_verdicts() {
    let [without, with] = COMPARED.each_ref().map(|count| count.load(Ordering::Relaxed));
    println!("verdicts compared: {without} without tiers, {with} with tiers");
}

/// A seed that no run has begun with before. Runs that begin a moment apart have no case in common.
pub fn new_seed() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    u64::try_from(since.as_millis()).unwrap() * 1_000
}

/// A directory name below bpffs that no other test has.
pub fn unique_bpffs() -> PathBuf {
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    PathBuf::from(format!("/sys/fs/bpf/netpol-test-{}-{number}", std::process::id()))
}

/// Removes the pins at the end, also of a test that fails.
pub struct Cleanup(pub Pins);

impl Drop for Cleanup {
    fn drop(&mut self) {
        let _ = self.0.remove_all();
    }
}

/// The pod under test.
pub const POD: &str = "10.1.0.1";
/// Its IPv6 address.
pub const POD6: &str = "fd00:1::1";
/// Its endpoint id.
pub const ID: EndpointId = EndpointId(7);

/// Runs `test` in a namespace of its own, where `pod0` is the pod's host-side interface and
/// `other0` another one.
pub fn in_node(test: impl FnOnce() + Send) {
    let node = Netns::create_anonymous().unwrap();
    node.run(|| {
        for line in [
            "link set lo up",
            "link add pod0 type veth peer name pod1",
            "link add other0 type veth peer name other1",
            // What the kernel would say by itself from a link-local address is not the tests'.
            "link set pod0 addrgenmode none",
            "link set pod1 addrgenmode none",
            "link set pod0 up",
            "link set pod1 up",
        ] {
            ip(line);
        }
        test();
    })
    .unwrap();
}

/// Runs `ip` and insists on success.
pub fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// The index of an interface of the calling thread's namespace.
pub fn ifindex(name: &str) -> u32 {
    let any =
        rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)
            .unwrap();
    rustix::net::netdevice::name_to_index(&any, name).unwrap()
}

/// A datapath with the pod as its one endpoint.
pub struct Rig {
    pub datapath: Datapath,
    pub maps: Maps,
    pub ifindex: u32,
    pub other_ifindex: u32,
    pub cleanup: Cleanup,
}

impl Rig {
    pub fn new() -> Self {
        Self::with(&LoadOptions::default(), AttachMode::Auto)
    }

    pub fn with(options: &LoadOptions, mode: AttachMode) -> Self {
        let pins = Pins::new(unique_bpffs());
        let cleanup = Cleanup(pins.clone());
        let mut datapath = Datapath::open(&pins, options, mode).unwrap_or_else(|e| panic!("{e}"));
        let ifindex = ifindex("pod0");
        let addresses: [IpAddr; 2] = [POD.parse().unwrap(), POD6.parse().unwrap()];
        datapath.add_endpoint(ID, ifindex, addresses).unwrap();
        let maps = Maps::open(&pins, false).unwrap();
        Self { datapath, maps, ifindex, other_ifindex: self::ifindex("other0"), cleanup }
    }

    pub fn apply(&mut self, steps: &[Step]) {
        let failures = self.datapath.apply(steps);
        assert!(failures.is_empty(), "{failures:?}");
    }

    /// Isolates the pod by these sets (0: not).
    pub fn isolate(&mut self, ingress: u16, egress: u16) {
        let sets = EndpointSets { ingress: SetId(ingress), egress: SetId(egress) };
        self.apply(&[Step::SetEndpoint(ID, sets)]);
    }

    /// `block` gets this class.
    pub fn class(&mut self, block: &str, class: u32) {
        let block: IpNet =
            block.parse().or_else(|_| block.parse::<IpAddr>().map(IpNet::from)).unwrap();
        self.apply(&[Step::SetClass(block, ClassId(class))]);
    }

    /// The set allows everything for the class.
    pub fn allow_all(&mut self, set: u16, class: u32) {
        self.apply(&[Step::AddRow(SetId(set), ClassId(class), Row::All)]);
    }

    /// The set allows these TCP, UDP and SCTP intervals for the class.
    pub fn allow_ports(&mut self, set: u16, class: u32, intervals: [Vec<(u16, u16)>; 3]) {
        let ports = Row::Ports(Arc::new(PortSet { intervals }));
        self.apply(&[Step::AddRow(SetId(set), ClassId(class), ports)]);
    }

    /// Packets to this address and TCP port are judged by these (class, port) kinds of backends.
    pub fn service(&mut self, address: &str, port: u16, kinds: &[(u32, u16)]) {
        let key = ServiceKey { address: address.parse().unwrap(), protocol: Protocol::Tcp, port };
        let backend = |&(class, port)| Backend::at(ClassId(class), port);
        self.apply(&[Step::SetService(key, kinds.iter().map(backend).collect())]);
    }

    /// Every flow is judged anew.
    pub fn rejudge(&mut self) {
        self.apply(&[Step::Rejudge(vec![ID])]);
    }

    /// Whether this frame passes towards (ingress) or from (egress) the pod.
    pub fn passes_frame(&mut self, direction: Direction, frame: &[u8]) -> bool {
        let ingress_ifindex = match direction {
            Direction::Ingress => self.other_ifindex,
            Direction::Egress => self.ifindex,
        };
        self.passes_at(direction, frame, Place { ifindex: self.ifindex, ingress_ifindex })
    }

    pub fn passes_at(&mut self, direction: Direction, frame: &[u8], place: Place) -> bool {
        let name = match direction {
            Direction::Ingress => "netpol_ingress",
            Direction::Egress => "netpol_egress",
        };
        let program = self.datapath.programs().program(name).unwrap();
        run(program, frame, place, 1).unwrap().is_allowed
    }

    /// Whether a packet from `remote` to the pod passes.
    pub fn comes_in(&mut self, remote: &str, transport: &Transport) -> bool {
        let (remote, pod) = self.ends(remote);
        self.passes_frame(Direction::Ingress, &frame(&packet(remote, pod, transport)))
    }

    /// Whether a packet from the pod to `remote` passes.
    pub fn goes_out(&mut self, remote: &str, transport: &Transport) -> bool {
        let (remote, pod) = self.ends(remote);
        self.passes_frame(Direction::Egress, &frame(&packet(pod, remote, transport)))
    }

    fn ends(&self, remote: &str) -> (IpAddr, IpAddr) {
        let remote: IpAddr = remote.parse().unwrap();
        let pod = if remote.is_ipv4() { POD } else { POD6 };
        (remote, pod.parse().unwrap())
    }

    /// How many packets were counted for a reason.
    pub fn counted(&self, direction: Direction, reason: Reason) -> u64 {
        self.counters(direction)[reason as usize]
    }

    pub fn counters(&self, direction: Direction) -> [u64; N_COUNTERS] {
        observe::counters(&self.maps, ID.0, direction).unwrap()
    }
}

pub fn syn(source: u16, destination: u16) -> Transport {
    Transport::Tcp { source, destination, flags: 0x02 }
}

pub fn syn_ack(source: u16, destination: u16) -> Transport {
    Transport::Tcp { source, destination, flags: 0x12 }
}

pub fn ack(source: u16, destination: u16) -> Transport {
    Transport::Tcp { source, destination, flags: 0x10 }
}

pub fn udp(source: u16, destination: u16) -> Transport {
    Transport::Udp { source, destination }
}
