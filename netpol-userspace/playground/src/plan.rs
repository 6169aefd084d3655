//! Where every pod goes: its node, its addresses, and the completed manifests that the agents
//! read. Pure; must never change a pod that stays what it was, nor a policy at all.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Result, bail, ensure};
use serde_json::json;

use super::manifests::Document;
use super::pods::{self, Declared, Port};
use netpol_model::ObjectName;

/// Which address families pods get.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Families {
    /// Both.
    Dual,
    /// IPv4 only.
    Ipv4,
    /// IPv6 only.
    Ipv6,
}

impl Families {
    /// Whether addresses of the family of `address` are given out.
    pub fn include(self, address: IpAddr) -> bool {
        match self {
            Self::Dual => true,
            Self::Ipv4 => address.is_ipv4(),
            Self::Ipv6 => address.is_ipv6(),
        }
    }
}

/// What a host is to the policies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// A pod with its own network on this node (from 1).
    Pod(usize),
    /// A pod in the network of this node.
    HostNetwork(usize),
    /// No pod: an address outside the cluster.
    Outside,
}

/// Anything that opens and accepts connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// Namespace and name.
    pub id: ObjectName,
    /// Where it is.
    pub place: Place,
    /// At most one of each family.
    pub addresses: Vec<IpAddr>,
    /// Its servers: on the ports it declares, and on those that [`super::ports`] adds.
    pub ports: Vec<Port>,
    /// The one of them that no policy names and that was added to show what is closed.
    pub unnamed: Option<Port>,
    /// The example it belongs to.
    pub section: String,
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.id)
    }
}

/// Everything one reading of the manifests asks for.
#[derive(Debug, Clone)]
pub struct Layout {
    /// Hosts by example, in the order they were declared.
    pub hosts: Vec<Host>,
    /// What the agents read: completed pods, and policies and namespaces as they were written.
    pub manifest: String,
    /// Kinds that mean nothing here, with how many there were.
    pub ignored: BTreeMap<String, usize>,
}

/// Remembers who got which node and address, so that a pod that stays keeps both.
#[derive(Debug, Clone)]
pub(crate) struct Planner {
    nodes: usize,
    families: Families,
    placed: BTreeMap<ObjectName, Placed>,
    n_placed: usize,
    /// The last pod number given out on each node.
    last_index: BTreeMap<usize, usize>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Placed {
    node: usize,
    addresses: Vec<IpAddr>,
}

impl Planner {
    /// For so many nodes.
    pub fn new(nodes: usize, families: Families) -> Self {
        Self { nodes, families, placed: BTreeMap::new(), n_placed: 0, last_index: BTreeMap::new() }
    }

    /// The layout of these manifests. On an error nothing is remembered of them.
    pub fn plan(&mut self, documents: &[Document]) -> Result<Layout> {
        let mut next = self.clone();
        let layout = next.plan_all(documents)?;
        *self = next;
        Ok(layout)
    }

    fn plan_all(&mut self, documents: &[Document]) -> Result<Layout> {
        let mut declared = Vec::new();
        let mut texts = Vec::new();
        let mut ignored: BTreeMap<String, usize> = BTreeMap::new();
        for document in documents {
            match (pods::declared(document, self.nodes)?, document.kind()) {
                (Some(pods), _) => declared.extend(pods),
                (None, "Namespace" | "NetworkPolicy") => texts.push(document.text.clone()),
                (None, kind) => *ignored.entry(kind.to_owned()).or_default() += 1,
            }
        }
        refuse_duplicates(&declared)?;
        let stays: BTreeSet<&ObjectName> = declared.iter().map(|pod| &pod.id).collect();
        self.placed.retain(|id, _| stays.contains(id));
        let mut taken = self.taken(&declared);
        let mut hosts = Vec::new();
        for pod in declared {
            if pod.finished() {
                texts.push(pod.value.to_string());
                continue;
            }
            let host = self.place(&pod, &mut taken)?;
            if host.addresses.is_empty() {
                let note = "host outside without an address of the chosen family".to_owned();
                *ignored.entry(note).or_default() += 1;
                continue;
            }
            if host.place != Place::Outside {
                texts.push(completed(&pod, &host).to_string());
            }
            hosts.push(host);
        }
        refuse_shared_addresses(&hosts)?;
        Ok(Layout { hosts, manifest: texts.join("\n---\n"), ignored })
    }

    /// Addresses that must not be given to someone new.
    fn taken(&self, declared: &[Declared]) -> BTreeSet<IpAddr> {
        let asked = declared.iter().flat_map(|pod| pod.addresses.iter());
        let given = self.placed.values().flat_map(|placed| placed.addresses.iter());
        asked.chain(given).copied().collect()
    }

    fn place(&mut self, pod: &Declared, taken: &mut BTreeSet<IpAddr>) -> Result<Host> {
        let host = |place, addresses| Host {
            id: pod.id.clone(),
            place,
            addresses,
            ports: pod.ports.clone(),
            unnamed: None,
            section: pod.section.clone(),
        };
        let own: Vec<IpAddr> =
            pod.addresses.iter().copied().filter(|&a| self.families.include(a)).collect();
        if pod.outside {
            return Ok(host(Place::Outside, own));
        }
        let known = self.placed.get(&pod.id).cloned();
        let asked = pod.node_name().and_then(|name| self.node_number(name));
        let node = asked.or(known.as_ref().map(|known| known.node)).unwrap_or_else(|| {
            self.n_placed += 1;
            (self.n_placed - 1) % self.nodes + 1
        });
        if pod.host_network() {
            let addresses = self.of_families(node_addresses(node));
            self.placed.insert(pod.id.clone(), Placed { node, addresses: Vec::new() });
            return Ok(host(Place::HostNetwork(node), addresses));
        }
        let addresses = match known {
            _ if !own.is_empty() => own,
            Some(known) if known.node == node && !known.addresses.is_empty() => known.addresses,
            _ => self.assign(node, taken)?,
        };
        self.placed.insert(pod.id.clone(), Placed { node, addresses: addresses.clone() });
        Ok(host(Place::Pod(node), addresses))
    }

    /// The next free address, going round: an address is not given out again at once, as its
    /// neighbours may still remember whose it was.
    fn assign(&mut self, node: usize, taken: &mut BTreeSet<IpAddr>) -> Result<Vec<IpAddr>> {
        let last = self.last_index.get(&node).copied().unwrap_or(1);
        for index in (last + 1..=254).chain(2..=last) {
            let pair = self.of_families(pod_addresses(node, index));
            if !pair.iter().any(|address| taken.contains(address)) {
                taken.extend(pair.iter().copied());
                self.last_index.insert(node, index);
                return Ok(pair);
            }
        }
        bail!("node-{node} has no free pod address left (253 pods): give more --nodes")
    }

    fn of_families(&self, pair: [IpAddr; 2]) -> Vec<IpAddr> {
        pair.into_iter().filter(|&address| self.families.include(address)).collect()
    }

    fn node_number(&self, name: &str) -> Option<usize> {
        let number = name.strip_prefix("node-")?.parse().ok()?;
        (1..=self.nodes).contains(&number).then_some(number)
    }
}

/// `node-1`: also the name of its namespace.
pub fn node_name(node: usize) -> String {
    format!("node-{node}")
}

/// The addresses of a node, IPv4 first. Node 254 is the router to the outside.
pub fn node_addresses(node: usize) -> [IpAddr; 2] {
    [
        Ipv4Addr::new(10, 250, 0, byte(node)).into(),
        Ipv6Addr::new(0xfd00, 0x10, 0x250, 0, 0, 0, 0, byte(node).into()).into(),
    ]
}

/// The addresses of a node's pod number `index`. Number 1 is the node's own (its gateway).
pub fn pod_addresses(node: usize, index: usize) -> [IpAddr; 2] {
    let (node, index) = (byte(node), byte(index));
    [
        Ipv4Addr::new(10, 244, node, index).into(),
        Ipv6Addr::new(0xfd00, 0x10, 0x244, node.into(), 0, 0, 0, index.into()).into(),
    ]
}

/// Whether `address` lies in the node's pod subnet (a /24 or a /64).
pub(crate) fn in_pod_subnet(node: usize, address: IpAddr) -> bool {
    match (address, pod_addresses(node, 0)) {
        (IpAddr::V4(address), [IpAddr::V4(net), _]) => address.octets()[..3] == net.octets()[..3],
        (IpAddr::V6(address), [_, IpAddr::V6(net)]) => {
            address.segments()[..4] == net.segments()[..4]
        }
        _ => false,
    }
}

fn byte(number: usize) -> u8 {
    u8::try_from(number).expect("invariant: at most 253 nodes, 254 pods on each")
}

/// The pod as its node's kubelet would report it.
fn completed(pod: &Declared, host: &Host) -> serde_json::Value {
    let (Place::Pod(node) | Place::HostNetwork(node)) = host.place else {
        return pod.value.clone();
    };
    let mut value = pod.value.clone();
    for field in ["metadata", "spec", "status"] {
        if !value[field].is_object() {
            value[field] = json!({});
        }
    }
    value["metadata"]["namespace"] = json!(host.id.namespace);
    value["spec"]["nodeName"] = json!(node_name(node));
    let ips: Vec<_> = host.addresses.iter().map(|address| json!({"ip": address})).collect();
    value["status"]["phase"] = json!("Running");
    value["status"]["hostIP"] = json!(node_addresses(node)[0]);
    value["status"]["podIP"] = ips.first().map_or(json!(null), |first| first["ip"].clone());
    value["status"]["podIPs"] = json!(ips);
    value
}

fn refuse_duplicates(declared: &[Declared]) -> Result<()> {
    let mut seen = BTreeSet::new();
    for pod in declared {
        ensure!(seen.insert(&pod.id), "pod {} is declared twice", pod.id);
    }
    Ok(())
}

/// Real packets can have one owner of an address only; and a pod has one of each family.
fn refuse_shared_addresses(hosts: &[Host]) -> Result<()> {
    let mut owners: BTreeMap<IpAddr, &Host> = BTreeMap::new();
    for host in hosts {
        let n_ipv4 = host.addresses.iter().filter(|address| address.is_ipv4()).count();
        ensure!(
            n_ipv4 <= 1 && host.addresses.len() - n_ipv4 <= 1,
            "{host} has more than one address of a family: give one IPv4 and one IPv6 address"
        );
        if matches!(host.place, Place::HostNetwork(_)) {
            continue;
        }
        for &address in &host.addresses {
            if let Some(other) = owners.insert(address, host) {
                bail!("{other} and {host} have the same address {address}: give each its own");
            }
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
