//! kube-proxy's translation, for tests: from the manifests of Services and EndpointSlices to the
//! rules that kube-proxy 1.3x writes in its nftables and in its iptables mode, applied in one
//! transaction in a node's namespace. Chains, maps, marks, rule order and the choice of backends
//! are kube-proxy's; chain names carry another hash. Not here: session affinity, source ranges,
//! topology hints, health check ports.
//!
//! ```text
//! mod kube_proxy;
//! let mut proxy = KubeProxy::new(&netns, Mode::Nftables, Config { .. });
//! proxy.apply(service_yaml);     // replaces the object of that kind and name
//! proxy.apply(slice_yaml);
//! proxy.sync();                  // in force from here
//! ```
//!
//! Must never run a command outside the namespace it was given, nor ask netpol what it thinks.

mod iptables;
mod nftables;
mod ports;

use std::collections::BTreeMap;
use std::hash::{Hash as _, Hasher as _};
use std::io::Write as _;
use std::net::IpAddr;
use std::process::{Command, Output, Stdio};

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use netpol_isolation::netns::Netns;

pub use ports::Port;

/// The bit by which kube-proxy marks what it will masquerade.
pub const MASQUERADE_MARK: &str = "0x4000";

/// How it writes its rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Nftables,
    Iptables,
}

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

/// What kube-proxy is told about the cluster and its node.
#[derive(Debug, Clone)]
pub struct Config {
    pub node_name: String,
    /// The node's primary addresses, which node ports are on.
    pub node_addresses: Vec<IpAddr>,
    /// `clusterCIDR`: where pods are, by family; what comes from elsewhere is masqueraded.
    pub pod_cidrs: [&'static str; 2],
    /// `masqueradeAll`.
    pub masquerade_all: bool,
}

impl Config {
    fn pod_cidr(&self, family: Family) -> &'static str {
        self.pod_cidrs[family as usize]
    }
}

/// One node's kube-proxy.
pub struct KubeProxy<'a> {
    netns: &'a Netns,
    mode: Mode,
    pub config: Config,
    services: BTreeMap<(String, String), core::Service>,
    slices: BTreeMap<(String, String), discovery::EndpointSlice>,
    /// Chains of the last sync, by family, which have to go if they are not needed any more.
    chains: [Vec<String>; 2],
}

impl<'a> KubeProxy<'a> {
    pub fn new(netns: &'a Netns, mode: Mode, config: Config) -> Self {
        let proxy = Self {
            netns,
            mode,
            config,
            services: BTreeMap::new(),
            slices: BTreeMap::new(),
            chains: [Vec::new(), Vec::new()],
        };
        if mode == Mode::Iptables {
            for family in Family::ALL {
                run(netns, iptables::restore(family), &iptables::jumps());
            }
        }
        proxy
    }

    /// Adds or replaces the Services and EndpointSlices of a YAML stream.
    pub fn apply(&mut self, yaml: &str) {
        for (kind, value) in documents(yaml) {
            match kind.as_str() {
                "Service" => {
                    let service: core::Service = serde_json::from_value(value).unwrap();
                    self.services.insert(name_of(&service.metadata), service);
                }
                "EndpointSlice" => {
                    let slice: discovery::EndpointSlice = serde_json::from_value(value).unwrap();
                    self.slices.insert(name_of(&slice.metadata), slice);
                }
                other => panic!("kube-proxy does not watch a {other}"),
            }
        }
    }

    /// Forgets the Services and EndpointSlices of a YAML stream.
    pub fn delete(&mut self, yaml: &str) {
        for (kind, value) in documents(yaml) {
            let metadata = serde_json::from_value(value["metadata"].clone()).unwrap();
            match kind.as_str() {
                "Service" => drop(self.services.remove(&name_of(&metadata))),
                "EndpointSlice" => drop(self.slices.remove(&name_of(&metadata))),
                other => panic!("kube-proxy does not watch a {other}"),
            }
        }
    }

    /// A Service as it is now, with all its EndpointSlices.
    pub fn replace(&mut self, service: &str, slices: &str) {
        let (_, value) = documents(service).remove(0);
        let object: core::Service = serde_json::from_value(value).unwrap();
        let (namespace, name) = name_of(&object.metadata);
        self.slices.retain(|_, slice| {
            let labels = slice.metadata.labels.as_ref().unwrap();
            name_of(&slice.metadata).0 != namespace
                || labels.get("kubernetes.io/service-name") != Some(&name)
        });
        self.apply(service);
        self.apply(slices);
    }

    /// What is translated for packets of one family.
    pub fn ports(&self, family: Family) -> Vec<Port> {
        let slices: Vec<&discovery::EndpointSlice> = self.slices.values().collect();
        let services = self.services.values();
        services.flat_map(|service| ports::of(service, &slices, family, &self.config)).collect()
    }

    /// Brings the node's rules up to date, in one transaction for each family.
    pub fn sync(&mut self) {
        for family in Family::ALL {
            let ports = self.ports(family);
            let before = &self.chains[family as usize];
            let (command, rules) = match self.mode {
                Mode::Nftables => (vec!["nft", "-f", "-"], {
                    nftables::rules(family, &ports, &self.config, before)
                }),
                Mode::Iptables => (iptables::restore(family), {
                    iptables::rules(family, &ports, &self.config, before)
                }),
            };
            run(self.netns, command, &rules.text);
            self.chains[family as usize] = rules.chains;
        }
    }

    /// Deletes the tracked UDP connections to an address that led to a backend which is gone, as
    /// kube-proxy does after a sync. What was deleted is the answer.
    pub fn forget_udp(&self, service: IpAddr, backend: IpAddr) -> bool {
        let family = if service.is_ipv4() { "ipv4" } else { "ipv6" };
        let (service, backend) = (service.to_string(), backend.to_string());
        let arguments =
            ["-D", "-f", family, "-p", "udp", "--orig-dst", &service, "--reply-src", &backend];
        let delete = || Command::new("conntrack").args(arguments).output().unwrap();
        // It fails if there is none.
        self.netns.run(delete).unwrap().status.success()
    }
}

/// What to feed to the tool, and the Services' own chains in it.
struct Rules {
    text: String,
    chains: Vec<String>,
}

/// A line of rules at a time.
#[derive(Default)]
struct Lines(String);

impl Lines {
    fn add(&mut self, line: impl AsRef<str>) {
        self.0.push_str(line.as_ref());
        self.0.push('\n');
    }
}

/// A stand-in for kube-proxy's hashes, as stable and as collision-free among a few names.
fn hash(parts: &[&str], length: usize) -> String {
    let mut text = String::new();
    for round in 0u8..2 {
        let mut hasher = std::hash::DefaultHasher::new();
        (round, parts).hash(&mut hasher);
        text += &format!("{:013}", hasher.finish() % 10u64.pow(13));
    }
    // Base 32 in kube-proxy: letters as well.
    text.bytes().take(length).map(|digit| char::from(digit - b'0' + b'A')).collect()
}

fn name_of(
    metadata: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
) -> (String, String) {
    let namespace = metadata.namespace.clone().unwrap_or_else(|| "default".to_owned());
    (namespace, metadata.name.clone().unwrap())
}

fn documents(yaml: &str) -> Vec<(String, serde_json::Value)> {
    let parts = yaml.split("---\n").filter(|part| !part.trim().is_empty());
    parts
        .map(|part| {
            let value: serde_json::Value = serde_saphyr::from_str(part).unwrap();
            (value["kind"].as_str().unwrap().to_owned(), value)
        })
        .collect()
}

fn run(netns: &Netns, command: Vec<&'static str>, input: &str) {
    let feed = || -> Output {
        let mut child = Command::new(command[0])
            .args(&command[1..])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}; run `cargo xtask setup`", command[0]));
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    };
    let output = netns.run(feed).unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {said}\n{input}", command.join(" "));
}
