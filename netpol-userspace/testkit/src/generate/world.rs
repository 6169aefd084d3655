//! A whole random cluster: growing it, changing it event by event, asking about it, and making it
//! smaller while something stays wrong. For property tests and fuzzers.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use serde_json::{Value, json};

use super::cluster_policies;
use super::service_world::node_addresses;
use super::smaller;
use super::{self as generate, Rng};
use netpol_reference::{Reference, addresses};

/// A cluster's objects by name.
#[derive(Debug, Clone, Default)]
pub struct World {
    /// Namespaces by name. Some that objects live in are missing here.
    pub namespaces: BTreeMap<String, Namespace>,
    /// Pods by name, which is unique over all namespaces.
    pub pods: BTreeMap<String, Pod>,
    /// Policies by name, likewise.
    pub policies: BTreeMap<String, NetworkPolicy>,
    /// ClusterNetworkPolicies by name.
    pub cluster_policies: BTreeMap<String, Value>,
    /// Nodes by name.
    pub nodes: BTreeMap<String, Node>,
    size: Size,
}

/// How many objects of each kind there are at most.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Namespaces.
    pub namespaces: usize,
    /// Pods.
    pub pods: usize,
    /// Policies.
    pub policies: usize,
    /// ClusterNetworkPolicies. None, if nothing else is said.
    pub cluster_policies: usize,
    /// Nodes, likewise.
    pub nodes: usize,
}

impl Size {
    /// With no nodes and no ClusterNetworkPolicies.
    pub const fn new(namespaces: usize, pods: usize, policies: usize) -> Self {
        Self { namespaces, pods, policies, cluster_policies: 0, nodes: 0 }
    }

    /// With nodes.
    #[must_use]
    pub const fn with_nodes(self) -> Self {
        Self { nodes: 3, ..self }
    }

    /// With so many ClusterNetworkPolicies, and the nodes that these may mean.
    #[must_use]
    pub const fn with_tiers(self, cluster_policies: usize) -> Self {
        Self { cluster_policies, ..self.with_nodes() }
    }

    /// With some ClusterNetworkPolicies for every other seed.
    #[must_use]
    pub const fn with_tiers_by(self, seed: u64) -> Self {
        if seed.is_multiple_of(2) { self } else { self.with_tiers(5) }
    }
}

impl Default for Size {
    fn default() -> Self {
        Self::new(20, 100, 50)
    }
}

/// One event, as a watch reports it.
#[derive(Clone)]
pub enum Event {
    /// A namespace is new or different.
    Namespace(Namespace),
    /// A namespace is gone.
    NamespaceGone(Namespace),
    /// A pod is new or different.
    Pod(Pod),
    /// A pod is gone.
    PodGone(Pod),
    /// A policy is new or different.
    Policy(NetworkPolicy),
    /// A policy is gone.
    PolicyGone(NetworkPolicy),
    /// A ClusterNetworkPolicy is new or different.
    ClusterPolicy(Value),
    /// A ClusterNetworkPolicy is gone.
    ClusterPolicyGone(Value),
    /// A node is new or different.
    Node(Node),
    /// A node is gone.
    NodeGone(Node),
}

impl fmt::Debug for Event {
    /// One line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = match self {
            Self::Namespace(object) => json!(["put", object]),
            Self::NamespaceGone(object) => json!(["gone", object.metadata.name]),
            Self::Pod(object) => json!(["put", object]),
            Self::PodGone(object) => json!(["gone", object.metadata.name]),
            Self::Policy(object) => json!(["put", object]),
            Self::PolicyGone(object) => json!(["gone", object.metadata.name]),
            Self::ClusterPolicy(object) => json!(["put", object]),
            Self::ClusterPolicyGone(object) => json!(["gone", object["metadata"]["name"]]),
            Self::Node(object) => json!(["put", object]),
            Self::NodeGone(object) => json!(["gone", object.metadata.name]),
        };
        write!(f, "{line}")
    }
}

/// A question about one direction of one pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Probe {
    /// The other end.
    pub remote: IpAddr,
    /// IP protocol number.
    pub protocol: u8,
    /// Destination port.
    pub port: u16,
}

impl World {
    /// A full cluster of that size.
    pub fn random(rng: &mut Rng, size: Size) -> Self {
        let mut world = Self { size, ..Self::default() };
        for index in 0..size.namespaces {
            if rng.chance(90) {
                let namespace = generate::namespace(rng, index);
                world.namespaces.insert(generate::namespace_name(index), namespace);
            }
        }
        for index in 0..size.pods {
            let name = format!("pod{index}");
            world.pods.insert(name.clone(), generate::pod(rng, size.namespaces, &name));
        }
        for index in 0..size.policies {
            let name = format!("policy{index}");
            world.policies.insert(name.clone(), generate::policy(rng, size.namespaces, &name));
        }
        for index in 0..size.cluster_policies {
            let name = format!("cluster{index}");
            let policy = cluster_policies::cluster_policy(rng, size.namespaces, &name);
            world.cluster_policies.insert(name, policy);
        }
        for index in 0..size.nodes {
            let name = format!("node{index}");
            world.nodes.insert(name.clone(), cluster_policies::node(rng, &name));
        }
        world
    }

    /// An empty cluster that events may fill up to that size.
    pub fn empty(size: Size) -> Self {
        Self { size, ..Self::default() }
    }

    /// The evaluator for it.
    pub fn reference(&self) -> Reference {
        Reference::new(
            self.namespaces.values().cloned().collect(),
            self.pods.values().cloned().collect(),
            self.policies.values().cloned().collect(),
        )
        .with_cluster_policies(
            self.cluster_policies.values().cloned().collect(),
            self.nodes.values().cloned().collect(),
        )
    }

    /// Something happens. An object never moves to another namespace under its name: it is gone
    /// first.
    pub fn step(&mut self, rng: &mut Rng) -> Event {
        let n_of_tiers = if self.size.cluster_policies > 0 { 10 } else { 0 };
        let n_of_nodes = if self.size.nodes > 0 { 2 } else { 0 };
        let event = match rng.below(20 + n_of_tiers + n_of_nodes) {
            0..10 => self.pod_event(rng),
            10..18 => self.policy_event(rng),
            18..20 => self.namespace_event(rng),
            n if n < 20 + n_of_tiers => self.cluster_policy_event(rng),
            _ => self.node_event(rng),
        };
        self.apply(&event);
        event
    }

    /// Takes an event into account.
    pub fn apply(&mut self, event: &Event) {
        match event.clone() {
            Event::Namespace(object) => {
                self.namespaces.insert(name_of(&object.metadata), object);
            }
            Event::NamespaceGone(object) => {
                self.namespaces.remove(&name_of(&object.metadata));
            }
            Event::Pod(object) => {
                self.pods.insert(name_of(&object.metadata), object);
            }
            Event::PodGone(object) => {
                self.pods.remove(&name_of(&object.metadata));
            }
            Event::Policy(object) => {
                self.policies.insert(name_of(&object.metadata), object);
            }
            Event::PolicyGone(object) => {
                self.policies.remove(&name_of(&object.metadata));
            }
            Event::ClusterPolicy(object) => {
                self.cluster_policies.insert(name_of_value(&object), object);
            }
            Event::ClusterPolicyGone(object) => {
                self.cluster_policies.remove(&name_of_value(&object));
            }
            Event::Node(object) => {
                self.nodes.insert(name_of(&object.metadata), object);
            }
            Event::NodeGone(object) => {
                self.nodes.remove(&name_of(&object.metadata));
            }
        }
    }

    fn pod_event(&self, rng: &mut Rng) -> Event {
        let name = format!("pod{}", rng.below(self.size.pods));
        let Some(old) = self.pods.get(&name) else {
            return Event::Pod(generate::pod(rng, self.size.namespaces, &name));
        };
        let mut pod = old.clone();
        match rng.below(10) {
            0 => return Event::PodGone(pod),
            7 => {
                // Deleted and made again, and the watch saw only the end of it.
                let namespace = pod.metadata.namespace.take();
                pod = generate::pod(rng, self.size.namespaces, &name);
                pod.metadata.namespace = namespace;
            }
            1..3 => generate::relabel_pod(rng, &mut pod),
            3..5 => generate::refresh_pod_status(rng, &mut pod),
            8.. => {
                let others: Vec<&String> = self.pods.keys().collect();
                return self.hand_over(rng, &name, &others);
            }
            _ => generate::refresh_pod_spec(rng, &mut pod),
        }
        Event::Pod(pod)
    }

    /// An address changes hands: the pod `name`, which must exist, has the addresses of one of
    /// `others` now, or one of them beside its own, or none any more. Whether and when the other
    /// one loses them is not said: who gets an address and who loses it is heard of in any order.
    pub fn hand_over(&self, rng: &mut Rng, name: &str, others: &[&String]) -> Event {
        let mut pod = self.pods[name].clone();
        let others = others.iter().filter(|other| other.as_str() != name);
        let others: Vec<Vec<IpAddr>> = others
            .filter_map(|other| self.pods.get(other.as_str()).map(addresses))
            .filter(|addresses| !addresses.is_empty())
            .collect();
        let mut all = match rng.below(4) {
            0 => Vec::new(),
            _ if others.is_empty() => Vec::new(),
            1 => {
                let one = rng.pick(&others).clone();
                let one = *rng.pick(&one);
                let mut all = addresses(&pod);
                all.retain(|address| address.is_ipv4() != one.is_ipv4());
                all.push(one);
                all
            }
            _ => rng.pick(&others).clone(),
        };
        all.sort_unstable();
        generate::set_pod_addresses(&mut pod, &all);
        Event::Pod(pod)
    }

    fn policy_event(&self, rng: &mut Rng) -> Event {
        let name = format!("policy{}", rng.below(self.size.policies));
        let Some(old) = self.policies.get(&name) else {
            return Event::Policy(generate::policy(rng, self.size.namespaces, &name));
        };
        if rng.chance(25) {
            return Event::PolicyGone(old.clone());
        }
        let spec = Some(generate::policy_spec(rng, self.size.namespaces));
        Event::Policy(NetworkPolicy { metadata: old.metadata.clone(), spec })
    }

    fn cluster_policy_event(&self, rng: &mut Rng) -> Event {
        let name = format!("cluster{}", rng.below(self.size.cluster_policies));
        let n_namespaces = self.size.namespaces;
        match self.cluster_policies.get(&name) {
            Some(old) if rng.chance(20) => Event::ClusterPolicyGone(old.clone()),
            Some(old) if rng.chance(80) => {
                let mut policy = old.clone();
                cluster_policies::edit_cluster_policy(rng, n_namespaces, &mut policy);
                Event::ClusterPolicy(policy)
            }
            _ => Event::ClusterPolicy(cluster_policies::cluster_policy(rng, n_namespaces, &name)),
        }
    }

    fn node_event(&self, rng: &mut Rng) -> Event {
        let name = format!("node{}", rng.below(self.size.nodes));
        match self.nodes.get(&name) {
            Some(old) if rng.chance(30) => Event::NodeGone(old.clone()),
            Some(old) => {
                let mut node = old.clone();
                cluster_policies::change_node(rng, &mut node);
                Event::Node(node)
            }
            None => Event::Node(cluster_policies::node(rng, &name)),
        }
    }

    fn namespace_event(&self, rng: &mut Rng) -> Event {
        let index = rng.below(self.size.namespaces);
        match self.namespaces.get(&generate::namespace_name(index)) {
            Some(old) if rng.chance(30) => Event::NamespaceGone(old.clone()),
            _ => Event::Namespace(generate::namespace(rng, index)),
        }
    }

    /// Every address that could make a difference: those of pods, the first and last of every
    /// block, network and except, those of nodes, the neighbours of all these, and some at random.
    pub fn remotes(&self, rng: &mut Rng) -> Vec<IpAddr> {
        let mut found: BTreeSet<IpAddr> = self.pods.values().flat_map(addresses).collect();
        for policy in self.policies.values() {
            let Some(spec) = &policy.spec else { continue };
            let from = spec.ingress.iter().flatten().flat_map(|rule| rule.from.iter().flatten());
            let to = spec.egress.iter().flatten().flat_map(|rule| rule.to.iter().flatten());
            for block in from.chain(to).filter_map(|peer| peer.ip_block.as_ref()) {
                for text in std::iter::once(&block.cidr).chain(block.except.iter().flatten()) {
                    found.extend(edges(text).into_iter().flatten());
                }
            }
        }
        for policy in self.cluster_policies.values() {
            let rules = policy["spec"]["egress"].as_array();
            let peers = rules.into_iter().flatten().filter_map(|rule| rule["to"].as_array());
            let networks = peers.flatten().filter_map(|peer| peer["networks"].as_array());
            let texts = networks.flatten().filter_map(Value::as_str);
            found.extend(texts.filter_map(edges).flatten());
        }
        found.extend(self.nodes.values().flat_map(node_addresses));
        let near: Vec<IpAddr> = found.iter().flat_map(|&a| [moved(a, 1), moved(a, -1)]).collect();
        found.extend(near);
        found.extend((0..8).map(|_| generate::address(rng, false)));
        found.extend((0..8).map(|_| generate::address(rng, true)));
        found.insert(Ipv4Addr::from_bits(u32::try_from(rng.bits() >> 32).unwrap_or(0)).into());
        found.into_iter().collect()
    }

    /// `n` questions about these addresses.
    pub fn probes(&self, rng: &mut Rng, remotes: &[IpAddr], n: usize) -> Vec<Probe> {
        let probe = |rng: &mut Rng| {
            let near = *rng.pick(&generate::PORTS);
            let port = match rng.below(8) {
                0 => near.wrapping_add(1),
                1 => near.wrapping_sub(1),
                2 => u16::try_from(rng.bits() >> 48).unwrap_or(0),
                _ => near,
            };
            let protocol = *rng.pick(&[6, 6, 6, 17, 17, 132, 1, 58, 47]);
            Probe { remote: *rng.pick(remotes), protocol, port }
        };
        (0..n).map(|_| probe(rng)).collect()
    }

    /// Smaller clusters, those that are much smaller first.
    pub fn smaller(&self) -> Vec<Self> {
        let mut found = Vec::new();
        let lengths = [self.policies.len(), self.pods.len(), self.namespaces.len()];
        let others = [self.cluster_policies.len(), self.nodes.len()];
        let longest = lengths.into_iter().chain(others).max().unwrap_or(0);
        let mut n_left_out = longest.next_power_of_two();
        while n_left_out > 0 {
            for some in chunks(&self.policies, n_left_out) {
                found.push(Self { policies: some, ..self.clone() });
            }
            for some in chunks(&self.cluster_policies, n_left_out) {
                found.push(Self { cluster_policies: some, ..self.clone() });
            }
            for some in chunks(&self.nodes, n_left_out) {
                found.push(Self { nodes: some, ..self.clone() });
            }
            for some in chunks(&self.pods, n_left_out) {
                found.push(Self { pods: some, ..self.clone() });
            }
            for some in chunks(&self.namespaces, n_left_out) {
                found.push(Self { namespaces: some, ..self.clone() });
            }
            n_left_out /= 2;
        }
        for (name, policy) in &self.policies {
            for smaller in smaller::policies(policy) {
                let mut world = self.clone();
                world.policies.insert(name.clone(), smaller);
                found.push(world);
            }
        }
        for (name, policy) in &self.cluster_policies {
            for smaller in smaller::cluster_policies(policy) {
                let mut world = self.clone();
                world.cluster_policies.insert(name.clone(), smaller);
                found.push(world);
            }
        }
        for (name, pod) in &self.pods {
            for smaller in smaller::pods(pod) {
                let mut world = self.clone();
                world.pods.insert(name.clone(), smaller);
                found.push(world);
            }
        }
        for (name, namespace) in &self.namespaces {
            for smaller in smaller::namespaces(namespace) {
                let mut world = self.clone();
                world.namespaces.insert(name.clone(), smaller);
                found.push(world);
            }
        }
        found
    }
}

/// The map without its first `n` entries, without the next `n`, and so on.
fn chunks<T: Clone>(map: &BTreeMap<String, T>, n: usize) -> Vec<BTreeMap<String, T>> {
    let without = |start: usize| {
        let kept = map.iter().enumerate().filter(|(at, _)| !(start..start + n).contains(at));
        kept.map(|(_, (name, object))| (name.clone(), object.clone())).collect()
    };
    if n > map.len() { Vec::new() } else { (0..map.len()).step_by(n).map(without).collect() }
}

fn name_of(metadata: &ObjectMeta) -> String {
    metadata.name.clone().unwrap_or_default()
}

fn name_of_value(object: &Value) -> String {
    object["metadata"]["name"].as_str().unwrap_or_default().to_owned()
}

/// The first and the last address of a block.
fn edges(text: &str) -> Option<[IpAddr; 2]> {
    let (base, length) = text.split_once('/')?;
    let length: u32 = length.parse().ok()?;
    Some(match base.parse().ok()? {
        IpAddr::V4(base) => {
            let mask = u32::MAX.checked_shr(length).unwrap_or(0);
            let (first, last) = (base.to_bits() & !mask, base.to_bits() | mask);
            [Ipv4Addr::from_bits(first).into(), Ipv4Addr::from_bits(last).into()]
        }
        IpAddr::V6(base) => {
            let mask = u128::MAX.checked_shr(length).unwrap_or(0);
            let (first, last) = (base.to_bits() & !mask, base.to_bits() | mask);
            [Ipv6Addr::from_bits(first).into(), Ipv6Addr::from_bits(last).into()]
        }
    })
}

/// The address this many further on.
fn moved(address: IpAddr, by: i8) -> IpAddr {
    match address {
        IpAddr::V4(address) => {
            Ipv4Addr::from_bits(address.to_bits().wrapping_add_signed(by.into())).into()
        }
        IpAddr::V6(address) => {
            Ipv6Addr::from_bits(address.to_bits().wrapping_add_signed(by.into())).into()
        }
    }
}
