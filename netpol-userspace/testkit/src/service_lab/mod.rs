//! A lab with kube-proxy on both nodes: Services, backends that say who they are, and clients
//! whose connections all have a known fate.
//!
//! ```text
//! mod kube_proxy; mod lab; mod service_lab; mod world;
//! let lab = Lab::new(topology::OVERLAY, Families::Dual);
//! let cluster = Cluster::new(&lab, "shop", Mode::Nftables);
//! let good = cluster.backend("good", 2, "{tier: good}", &[8080]);
//! let bad = cluster.backend("bad", 1, "{tier: bad}", &[8080]);
//! let client = cluster.client("client", 1, "{app: client}");
//! cluster.put(&cluster.service("web").port(80, 8080).to(&good, &[8080]).to(&bad, &[8080]));
//! cluster.scene.policy("client", "..");
//! cluster.settle();                                  // netpol and kube-proxy know all of it
//! cluster.expect(&client, service_address, Protocol::Tcp, &[&good], &[&bad]);
//! ```
//!
//! Must never touch the namespace the tests run in.

pub mod backend;
pub mod service;
pub mod stream;
pub mod suite;
pub mod traces;
pub mod volley;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use netpol_common::layout::Reason;
use netpol_model::Direction;

use crate::kube_proxy::{Config, KubeProxy, Mode};
use crate::lab::{Cni, Lab, Pod, Scene};
use crate::world::{PATIENCE, eventually};
use backend::Backend;
pub use service::Service;
pub use volley::Protocol;
use volley::{Ports, Shot};

/// How many are started at once.
const VOLLEY: usize = 8;
/// After so many, a backend that never answered never will: with three of them the chance to miss
/// one by accident is below 1 in 10^15.
const ENOUGH: usize = 100;

/// Somebody who connects.
#[derive(Clone)]
pub struct Client {
    pub pod: Arc<Pod>,
}

/// The lab, one namespace in it, and the two nodes' kube-proxies.
pub struct Cluster<'a> {
    pub lab: &'a Lab,
    pub scene: Scene<'a>,
    pub mode: Mode,
    proxies: RefCell<[KubeProxy<'a>; 2]>,
    last_service: Cell<u16>,
    pub ports: Ports,
}

impl<'a> Cluster<'a> {
    pub fn new(lab: &'a Lab, name: &str, mode: Mode) -> Self {
        Self::with(lab, name, mode, false)
    }

    /// With `masqueradeAll` where it says so, and where kube-proxy does not work without: on a
    /// bridge whose packets do not meet netfilter, answers of the same node would not be
    /// translated back.
    pub fn with(lab: &'a Lab, name: &str, mode: Mode, masquerade_all: bool) -> Self {
        let needed = lab.topology.cni == Cni::BridgeWithoutNetfilter;
        let proxy = |number: usize| {
            let config = Config {
                node_name: lab.node(number).name.clone(),
                node_addresses: main_addresses(lab, number),
                pod_cidrs: ["10.244.0.0/16", "fd00:10:244::/48"],
                masquerade_all: masquerade_all || needed,
            };
            KubeProxy::new(&lab.node(number).netns, mode, config)
        };
        let cluster = Self {
            lab,
            scene: lab.scene(name),
            mode,
            proxies: RefCell::new([1, 2].map(proxy)),
            last_service: Cell::new(0),
            ports: Ports::new(),
        };
        for number in [1, 2] {
            cluster.declare_node(number);
        }
        cluster
    }

    fn declare_node(&self, number: usize) {
        let name = &self.lab.node(number).name;
        let addresses: Vec<String> = main_addresses(self.lab, number)
            .iter()
            .map(|address| format!("{{type: InternalIP, address: \"{address}\"}}"))
            .collect();
        self.scene.write(
            name,
            &format!(
                "apiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\n\
                 status: {{addresses: [{}]}}\n",
                addresses.join(", ")
            ),
        );
    }

    // === Who is there ===

    /// A pod that answers on these ports.
    pub fn backend(&self, name: &str, node: usize, labels: &str, ports: &[u16]) -> Backend {
        self.backend_pod(name, node, labels, "", ports).1
    }

    /// The same, with the pod, whose container has these ports, in YAML flow style.
    pub fn backend_pod(
        &self,
        name: &str,
        node: usize,
        labels: &str,
        named: &str,
        ports: &[u16],
    ) -> (Client, Backend) {
        let pod = match named {
            "" => self.scene.pod(name, node, labels),
            named => self.scene.pod_with_ports(name, node, labels, named),
        };
        let mut backend = Backend::start(name, &pod.netns, true, &pod.addresses, Some(node), ports);
        let pod = Arc::new(pod);
        backend.pod = Some(pod.clone());
        (Client { pod }, backend)
    }

    /// A hostNetwork pod that answers on these ports.
    pub fn host_backend(&self, name: &str, node: usize, ports: &[u16]) -> Backend {
        let addresses = main_addresses(self.lab, node);
        let spec = "hostNetwork: true, containers: [{name: c}]";
        let uid = format!("uid: uid-{}-{name}", self.scene.namespace);
        self.scene.declare_at(name, node, &addresses, "{app: web}", spec, "Running", &uid);
        Backend::start(name, &self.lab.node(node).netns, false, &addresses, Some(node), ports)
    }

    /// A server outside the cluster.
    pub fn outside_backend(&self, name: &str, ports: &[u16]) -> Backend {
        let addresses = self.lab.outside_addresses();
        Backend::start(name, &self.lab.outside, true, &addresses, None, ports)
    }

    pub fn client(&self, name: &str, node: usize, labels: &str) -> Client {
        Client { pod: Arc::new(self.scene.pod(name, node, labels)) }
    }

    // === Services ===

    /// A Service with cluster IPs that no other has.
    pub fn service(&self, name: &str) -> Service {
        let number = self.last_service.get() + 1;
        self.last_service.set(number);
        Service::new(
            name,
            self.addresses(&format!("10.96.0.{number}"), &format!("fd00:10:96::{number:x}")),
        )
    }

    /// Those of the two that the lab's families have.
    pub fn addresses(&self, v4: &str, v6: &str) -> Vec<IpAddr> {
        let both = [v4, v6].map(|text| text.parse::<IpAddr>().unwrap());
        both.into_iter().filter(|&address| self.lab.families.include(address)).collect()
    }

    /// Tells netpol of a Service, new or changed.
    pub fn tell_netpol(&self, service: &Service) {
        let namespace = &self.scene.namespace;
        let mut text = service.manifest(namespace);
        let slices = service.slices(namespace);
        if !service.has_selector() && !slices.is_empty() {
            text += &format!("---\n{slices}");
        }
        self.scene.write(&format!("service-{}", service.name), &text);
    }

    /// Tells both nodes' kube-proxies, and waits until they have acted.
    pub fn tell_kube_proxy(&self, service: &Service) {
        let namespace = &self.scene.namespace;
        for proxy in self.proxies.borrow_mut().iter_mut() {
            proxy.replace(&service.manifest(namespace), &service.slices(namespace));
            proxy.sync();
        }
    }

    /// Tells everybody.
    pub fn put(&self, service: &Service) {
        self.tell_netpol(service);
        self.tell_kube_proxy(service);
    }

    /// kube-proxy's care for UDP when an endpoint has gone.
    pub fn forget_udp(&self, service: &Service, gone: &Backend) {
        for proxy in self.proxies.borrow().iter() {
            for &address in &service.cluster_ips {
                for &backend in gone.addresses.iter().filter(|b| b.is_ipv4() == address.is_ipv4()) {
                    proxy.forget_udp(address, backend);
                }
            }
        }
    }

    /// Waits until netpol enforces everything written.
    pub fn settle(&self) {
        self.scene.settle();
    }

    // === Connections ===

    /// Connects again and again until every backend that may answer has answered, and insists:
    /// every connection is answered by one that may, or goes to one that must not and is dropped
    /// and counted once; those that must not never receive anything.
    pub fn expect(
        &self,
        from: &Client,
        to: SocketAddr,
        protocol: Protocol,
        may: &[&Backend],
        must_not: &[&Backend],
    ) -> Tally {
        let what = format!("{} {protocol:?} {} -> {to}", self.describe(), from.pod.name);
        let heard: Vec<u64> = must_not.iter().map(|backend| backend.heard()).collect();
        let mut missing: BTreeSet<&str> = may.iter().map(|b| b.name.as_str()).collect();
        let mut tally = Tally::default();
        while !missing.is_empty() || (!must_not.is_empty() && tally.dropped == 0) {
            assert!(tally.fired < ENOUGH, "{what}: never answered: {missing:?}, {tally:?}");
            self.volley(&what, from, to, protocol, may, must_not, &mut tally);
            missing.retain(|name| !tally.answered.contains_key(*name));
        }
        for (backend, before) in must_not.iter().zip(heard) {
            let now = backend.heard();
            assert_eq!(now, before, "{what}: {} has received something", backend.name);
        }
        tally
    }

    /// The same for both protocols and every address.
    pub fn expect_at(
        &self,
        from: &Client,
        addresses: &[IpAddr],
        port: u16,
        may: &[&Backend],
        must_not: &[&Backend],
    ) {
        for &address in addresses {
            for protocol in Protocol::BOTH {
                self.expect(from, SocketAddr::new(address, port), protocol, may, must_not);
            }
        }
    }

    /// Nobody answers there: a connection is refused, or dropped and counted. (One only: the
    /// kernel refuses so many in a second.)
    pub fn expect_nobody(&self, from: &Client, addresses: &[IpAddr], port: u16) {
        for &address in addresses {
            for protocol in Protocol::BOTH {
                let to = SocketAddr::new(address, port);
                let before = self.drops(std::slice::from_ref(&from.pod));
                let mut shots = volley::fire(&from.pod.netns, &self.ports, to, protocol, 1);
                eventually("the connection is refused or dropped", || {
                    shots.iter_mut().for_each(Shot::poll);
                    shots[0].outcome.is_some()
                        || self.drops(std::slice::from_ref(&from.pod)) > before
                });
                let outcome = &shots[0].outcome;
                assert!(!matches!(outcome, Some(Ok(_))), "{to}: {outcome:?}");
            }
        }
    }

    fn describe(&self) -> String {
        format!("{:?} {:?} {}", self.mode, self.lab.topology, self.scene.namespace)
    }

    #[expect(clippy::too_many_arguments, reason = "a part of expect()")]
    fn volley(
        &self,
        what: &str,
        from: &Client,
        to: SocketAddr,
        protocol: Protocol,
        may: &[&Backend],
        must_not: &[&Backend],
        tally: &mut Tally,
    ) {
        let pods = judges(from, may, must_not);
        let before = self.drops(&pods);
        let mut shots = volley::fire(&from.pod.netns, &self.ports, to, protocol, VOLLEY);
        let end = Instant::now() + PATIENCE;
        let dropped = loop {
            shots.iter_mut().for_each(Shot::poll);
            let answered = shots.iter().filter(|shot| shot.outcome.is_some()).count();
            let dropped = usize::try_from(self.drops(&pods) - before).unwrap();
            if answered + dropped >= VOLLEY
                && (may.is_empty() || !self.still_coming(from, to, protocol, &shots, may))
            {
                break dropped;
            }
            assert!(
                Instant::now() < end,
                "{what}: {answered} answered and {dropped} counted as dropped of {VOLLEY}\n{}",
                self.tracked(from, to, protocol)
            );
            std::thread::sleep(Duration::from_millis(2));
        };
        let mut answered = 0;
        for shot in &shots {
            match &shot.outcome {
                None => {}
                Some(Ok(name)) => {
                    let known = may.iter().any(|backend| backend.name == *name);
                    assert!(known, "{what}: answered by {name}");
                    *tally.answered.entry(name.clone()).or_default() += 1;
                    answered += 1;
                }
                Some(Err(error)) => panic!("{what}: {error}"),
            }
        }
        if must_not.is_empty() || protocol == Protocol::Udp {
            // A TCP connection tries more than once.
            let tracked = || self.tracked(from, to, protocol);
            let counters = self.lab.counters(&from.pod, Direction::Egress);
            let tracked = || format!("{counters:?}\n{}", tracked());
            let seen = answered + dropped;
            assert_eq!(seen, VOLLEY, "{what}: {answered} answers, {dropped} drops\n{}", tracked());
        }
        shots.iter().for_each(Shot::end);
        tally.fired += VOLLEY;
        tally.dropped += VOLLEY - answered;
    }

    /// How many packets that began something were dropped at these pods' interfaces. (Not those
    /// of earlier connections that a change of policy has cut.)
    pub fn drops(&self, pods: &[Arc<Pod>]) -> u64 {
        let count = |pod: &Arc<Pod>, direction| {
            let counters = self.lab.counters(pod, direction);
            counters[Reason::Policy as usize] + counters[Reason::ServiceMixed as usize]
        };
        let both = |pod| count(pod, Direction::Ingress) + count(pod, Direction::Egress);
        pods.iter().map(both).sum()
    }

    /// A connection that has been translated to a backend that may answer, and has not yet.
    fn still_coming(
        &self,
        from: &Client,
        to: SocketAddr,
        protocol: Protocol,
        shots: &[Shot],
        may: &[&Backend],
    ) -> bool {
        if shots.iter().all(|shot| shot.outcome.is_some()) {
            return false;
        }
        let chosen = chosen(&self.tracked(from, to, protocol));
        shots.iter().filter(|shot| shot.outcome.is_none()).any(|shot| {
            let target = chosen.get(&shot.local.port());
            target.is_some_and(|target| may.iter().any(|b| b.addresses.contains(target)))
        })
    }

    /// What the client's node tracks of its connections to an address.
    fn tracked(&self, from: &Client, to: SocketAddr, protocol: Protocol) -> String {
        let family = if to.is_ipv4() { "ipv4" } else { "ipv6" };
        let (address, port) = (to.ip().to_string(), to.port().to_string());
        let source = from.pod.address(to.ip()).to_string();
        let list = || {
            Command::new("conntrack")
                .args(["-L", "-f", family, "-p", protocol.name(), "--orig-dst", &address])
                .args(["--orig-src", &source, "--orig-port-dst", &port])
                .output()
                .expect("conntrack: run `cargo xtask setup`")
        };
        let output = self.lab.node(from.pod.node).netns.run(list).unwrap();
        String::from_utf8(output.stdout).unwrap()
    }
}

/// The pods at whose interfaces a connection may be dropped.
fn judges(from: &Client, may: &[&Backend], must_not: &[&Backend]) -> Vec<Arc<Pod>> {
    let mut pods = vec![from.pod.clone()];
    for pod in may.iter().chain(must_not).filter_map(|backend| backend.pod.clone()) {
        if pods.iter().all(|other| other.ifindex != pod.ifindex || other.node != pod.node) {
            pods.push(pod);
        }
    }
    pods
}

impl Drop for Cluster<'_> {
    fn drop(&mut self) {
        // For the record, with --nocapture.
        eprintln!("{}: {} connections", self.describe(), self.ports.used());
    }
}

/// What became of some connections.
#[derive(Debug, Default)]
pub struct Tally {
    pub fired: usize,
    /// By name of the backend.
    pub answered: BTreeMap<String, usize>,
    pub dropped: usize,
}

/// To whom connections were translated, by the client's port: `src=` of the other direction.
fn chosen(tracked: &str) -> BTreeMap<u16, IpAddr> {
    let values = |line: &'_ str, key: &str| -> Vec<String> {
        let words = line.split_whitespace().filter_map(|word| word.strip_prefix(key));
        words.map(str::to_owned).collect()
    };
    let entry = |line: &str| {
        let port = values(line, "sport=").first()?.parse().ok()?;
        Some((port, values(line, "src=").get(1)?.parse().ok()?))
    };
    tracked.lines().filter_map(entry).collect()
}

/// A node's primary addresses.
pub fn main_addresses(lab: &Lab, number: usize) -> Vec<IpAddr> {
    let mut addresses = lab.node_addresses(number);
    let all = addresses.clone();
    addresses.retain(|address| {
        all.iter().find(|other| other.is_ipv4() == address.is_ipv4()) == Some(address)
    });
    addresses
}
