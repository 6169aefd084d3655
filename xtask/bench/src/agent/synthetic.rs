//! Synthetic clusters: what a cluster of a given size may look like, from a seed. Pure, and the
//! same seed gives the same bytes. Must never know who reads them.

use std::net::Ipv4Addr;

use fastrand::Rng;

mod json;
mod policies;
#[cfg(test)]
mod tests;

pub use json::{event, node_json, service_json, slice_json};
pub use policies::{Policy, Shape};

/// How large a cluster is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Nodes; the first one is where the agent runs.
    pub nodes: u32,
    /// Namespaces.
    pub namespaces: u32,
    /// Pods of all nodes.
    pub pods: u32,
    /// NetworkPolicies.
    pub policies: u32,
}

impl Size {
    /// What fits on one machine, a usual cluster, and the largest that Kubernetes is meant for.
    pub const SMALL: Self = Self { nodes: 2, namespaces: 10, pods: 200, policies: 20 };
    /// See [`Self::SMALL`].
    pub const MEDIUM: Self = Self { nodes: 500, namespaces: 500, pods: 10_000, policies: 1_000 };
    /// As [`Self::LARGE`], with a tenth of the pods: what a pod costs is the difference.
    pub const SPARSE: Self = Self { pods: 10_000, ..Self::LARGE };
    /// See [`Self::SMALL`].
    pub const LARGE: Self =
        Self { nodes: 5_000, namespaces: 5_000, pods: 100_000, policies: 10_000 };
}

/// Name of the node where the agent runs.
pub const LOCAL_NODE: &str = "node-0000";

/// A namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespace {
    /// Its name.
    pub name: String,
    /// Its labels, without the one that every namespace has.
    pub labels: Vec<(&'static str, String)>,
}

/// What makes pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Controller {
    /// A Deployment, through a ReplicaSet.
    Deployment,
    /// A StatefulSet.
    StatefulSet,
    /// A Job, whose pods may have ended.
    Job,
    /// A DaemonSet on the nodes' network.
    HostDaemon,
}

/// Pods that are alike.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workload {
    /// Index of its namespace.
    pub namespace: u32,
    /// Its name, and the value of its pods' label `app`.
    pub app: String,
    /// What kind of program it is.
    pub tier: &'static str,
    /// What makes its pods.
    pub controller: Controller,
    /// What tells its version from others, as in the names of its pods.
    pub hash: String,
    /// Number of its named port `http`.
    pub port: u16,
    /// Address of its Service, if it has one.
    pub service: Option<Ipv4Addr>,
}

/// A pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    /// Index of its workload.
    pub workload: u32,
    /// Tells it from every other pod of the cluster, also from those of former times.
    pub serial: u32,
    /// Its number among those of its workload.
    pub ordinal: u32,
    /// Index of its node.
    pub node: u32,
    /// Its address.
    pub address: Ipv4Addr,
    /// Value of its label `version`: what a relabelling changes.
    pub version: u32,
    /// Phase Succeeded.
    pub has_ended: bool,
    /// Whether its readiness probe succeeds.
    pub is_ready: bool,
}

/// All objects of a cluster.
#[derive(Debug, Clone, PartialEq)]
pub struct Cluster {
    /// How large it is.
    pub size: Size,
    /// Its namespaces.
    pub namespaces: Vec<Namespace>,
    /// Its workloads, by namespace.
    pub workloads: Vec<Workload>,
    /// Its pods, by workload, as an API server lists them.
    pub pods: Vec<Pod>,
    /// Its policies, by namespace.
    pub policies: Vec<Policy>,
}

/// Pods of one workload: most have few, some have many.
const REPLICAS: [u32; 12] = [1, 1, 1, 2, 2, 2, 3, 3, 3, 5, 10, 20];
const TIERS: [&str; 5] = ["web", "api", "db", "cache", "worker"];
const STAGES: [&str; 3] = ["dev", "staging", "prod"];
const PORTS: [u16; 4] = [80, 8080, 3000, 9000];
/// Teams that namespaces belong to.
pub const TEAMS: u32 = 50;
/// First address of the first node's pods; each node has 256.
const POD_ADDRESSES: u32 = 10 << 24;
/// First address of Services: outside the pods'.
const SERVICE_ADDRESSES: u32 = (172 << 24) | (16 << 16);
/// First address of pods that are made later: each gets another one (100.64.0.0/10).
const LATER_ADDRESSES: u32 = (100 << 24) | (64 << 16);

impl Cluster {
    /// The cluster of that size and seed, with `local` pods on the first node.
    pub fn generate(size: Size, local: u32, seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let namespaces: Vec<Namespace> = (0..size.namespaces).map(namespace).collect();
        let (workloads, replicas) = workloads(&mut rng, &size);
        let mut pods = pods(&mut rng, &size, &workloads, &replicas);
        place(&mut rng, &size, local, &workloads, &mut pods);
        let policies = policies::generate(&mut rng, &size, &workloads);
        Self { size, namespaces, workloads, pods, policies }
    }

    /// The namespace of a workload.
    pub fn namespace_of(&self, workload: &Workload) -> &str {
        &self.namespaces[workload.namespace as usize].name
    }

    /// The workload of a pod.
    pub fn workload_of(&self, pod: &Pod) -> &Workload {
        &self.workloads[pod.workload as usize]
    }

    /// Pods of the node where the agent runs that have a network of their own.
    pub fn local_pods(&self) -> impl Iterator<Item = &Pod> {
        self.pods.iter().filter(|pod| pod.node == 0 && self.is_networked(pod))
    }

    /// Whether policies can be about it.
    pub fn is_networked(&self, pod: &Pod) -> bool {
        !pod.has_ended && self.workload_of(pod).controller != Controller::HostDaemon
    }
}

/// Name of the node with that index.
pub fn node_name(index: u32) -> String {
    format!("node-{index:04}")
}

/// Address of the node with that index.
pub fn node_address(index: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits((192 << 24) | (168 << 16) | (index + 1))
}

/// Name of the namespace with that index.
pub fn namespace_name(index: u32) -> String {
    format!("team-{:02}-{}-{index:04}", index % TEAMS, STAGES[index as usize % STAGES.len()])
}

fn namespace(index: u32) -> Namespace {
    let mut labels = vec![
        ("team", format!("team-{:02}", index % TEAMS)),
        ("stage", STAGES[index as usize % STAGES.len()].to_owned()),
    ];
    if index.is_multiple_of(3) {
        labels.push(("pod-security.kubernetes.io/enforce", "baseline".to_owned()));
    }
    Namespace { name: namespace_name(index), labels }
}

/// The workloads by namespace, and how many pods each has: together as many as the cluster has.
fn workloads(rng: &mut Rng, size: &Size) -> (Vec<Workload>, Vec<u32>) {
    let mut drawn: Vec<(u32, u32)> = Vec::new();
    let mut left = size.pods;
    while left > 0 {
        // Every namespace has something; beyond that, a few have much.
        let number = drawn.len() as u32;
        let skewed = (rng.f64() * rng.f64() * f64::from(size.namespaces)) as u32;
        let namespace = if number < size.namespaces { number } else { skewed };
        let replicas = REPLICAS[rng.usize(..REPLICAS.len())].min(left);
        drawn.push((namespace, replicas));
        left -= replicas;
    }
    drawn.sort_by_key(|(namespace, _)| *namespace);
    let make = |(index, (namespace, _)): (usize, &(u32, u32))| Workload {
        namespace: *namespace,
        app: format!("{}-{index:05}", ["shop", "pay", "mail", "search", "auth"][rng.usize(..5)]),
        tier: TIERS[rng.usize(..TIERS.len())],
        controller: match rng.u32(..100) {
            0..75 => Controller::Deployment,
            75..88 => Controller::StatefulSet,
            88..96 => Controller::Job,
            _ => Controller::HostDaemon,
        },
        hash: format!("{:010x}", rng.u64(..1 << 40)),
        port: PORTS[rng.usize(..PORTS.len())],
        service: rng.bool().then(|| Ipv4Addr::from_bits(SERVICE_ADDRESSES + 1 + index as u32)),
    };
    let workloads = drawn.iter().enumerate().map(make).collect();
    (workloads, drawn.into_iter().map(|(_, replicas)| replicas).collect())
}

fn pods(rng: &mut Rng, size: &Size, workloads: &[Workload], replicas: &[u32]) -> Vec<Pod> {
    let mut pods = Vec::with_capacity(size.pods as usize);
    for (index, (workload, replicas)) in workloads.iter().zip(replicas).enumerate() {
        for ordinal in 0..*replicas {
            pods.push(Pod {
                workload: index as u32,
                serial: pods.len() as u32,
                ordinal,
                node: 1 + rng.u32(..size.nodes - 1),
                address: Ipv4Addr::UNSPECIFIED,
                version: 1,
                has_ended: workload.controller == Controller::Job && rng.bool(),
                is_ready: true,
            });
        }
    }
    pods
}

/// Puts `local` pods, from all over the cluster, on the first node, and gives every pod the next
/// address of its node, or its node's own.
fn place(rng: &mut Rng, size: &Size, local: u32, workloads: &[Workload], pods: &mut [Pod]) {
    let controller = |pod: &Pod| workloads[pod.workload as usize].controller;
    let is_networked = |pod: &Pod| !pod.has_ended && controller(pod) != Controller::HostDaemon;
    let mut candidates: Vec<usize> =
        (0..pods.len()).filter(|&index| is_networked(&pods[index])).collect();
    rng.shuffle(&mut candidates);
    for index in candidates.into_iter().take(local as usize) {
        pods[index].node = 0;
    }
    // What ends on a node keeps its address in its status, and so takes one here too.
    let mut next = vec![2; size.nodes as usize];
    for pod in pods {
        let host = controller(pod) == Controller::HostDaemon;
        // A node has room for 254; who finds none goes to the next.
        while !host && next[pod.node as usize] > 255 {
            pod.node = 1 + pod.node % (size.nodes - 1);
        }
        pod.address = if host {
            node_address(pod.node)
        } else {
            let number = &mut next[pod.node as usize];
            *number += 1;
            Ipv4Addr::from_bits(POD_ADDRESSES + (pod.node << 8) + *number - 1)
        };
    }
}

/// Pods as they come and go, after the first list.
#[derive(Debug, Clone)]
pub struct Life {
    rng: Rng,
    pods: Vec<Pod>,
    n_made: u32,
}

/// What happened to a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Happened {
    /// It was created and scheduled, and has its address.
    Added,
    /// Its labels or its status changed.
    Changed,
    /// It is gone.
    Deleted,
}

impl Life {
    /// Of the pods of a cluster that are not on the agent's node.
    pub fn of(cluster: &Cluster, seed: u64) -> Self {
        let is_remote = |pod: &&Pod| pod.node != 0 && cluster.is_networked(pod);
        let pods = cluster.pods.iter().filter(is_remote).cloned().collect();
        Self { rng: Rng::with_seed(seed), pods, n_made: 0 }
    }

    /// A pod's readiness changes.
    pub fn flicker(&mut self) -> (Happened, Pod) {
        let index = self.rng.usize(..self.pods.len());
        let pod = &mut self.pods[index];
        pod.is_ready = !pod.is_ready;
        (Happened::Changed, pod.clone())
    }

    /// A pod gets another label.
    pub fn relabel(&mut self) -> (Happened, Pod) {
        let index = self.rng.usize(..self.pods.len());
        let pod = &mut self.pods[index];
        pod.version += 1;
        (Happened::Changed, pod.clone())
    }

    /// A pod of the same workload, with another name and address, takes the place of another: it
    /// comes, becomes ready, and the old one goes.
    pub fn replace(&mut self) -> [(Happened, Pod); 4] {
        let index = self.rng.usize(..self.pods.len());
        let old = self.pods[index].clone();
        self.n_made += 1;
        let serial = (1 << 24) + self.n_made;
        let address = Ipv4Addr::from_bits(LATER_ADDRESSES + self.n_made % (1 << 22));
        let new = Pod { serial, address, is_ready: false, version: 1, ..old.clone() };
        let ready = Pod { is_ready: true, ..new.clone() };
        let ending = Pod { is_ready: false, ..old.clone() };
        self.pods[index] = ready.clone();
        [
            (Happened::Added, new),
            (Happened::Changed, ready),
            (Happened::Changed, ending),
            (Happened::Deleted, old),
        ]
    }
}

/// Changes of namespaces and policies that may matter on the agent's node.
#[derive(Debug, Clone)]
pub struct Edits<'a> {
    rng: Rng,
    cluster: &'a Cluster,
    /// Indices of the policies of namespaces that have pods there.
    policies: Vec<usize>,
}

impl<'a> Edits<'a> {
    /// Of that cluster.
    pub fn of(cluster: &'a Cluster, seed: u64) -> Self {
        let local: std::collections::BTreeSet<u32> =
            cluster.local_pods().map(|pod| cluster.workload_of(pod).namespace).collect();
        let policies = cluster.policies.iter().enumerate();
        let policies = policies.filter(|(_, policy)| local.contains(&policy.namespace));
        let policies = policies.map(|(index, _)| index).collect();
        Self { rng: Rng::with_seed(seed), cluster, policies }
    }

    /// A namespace that goes to another team.
    pub fn relabelled_namespace(&mut self) -> serde_json::Value {
        let index = self.rng.usize(..self.cluster.namespaces.len());
        let mut namespace = self.cluster.namespaces[index].clone();
        for (key, value) in &mut namespace.labels {
            if *key == "team" {
                *value = format!("team-{:02}", self.rng.u32(..TEAMS));
            }
        }
        namespace.json(1)
    }

    /// A policy of a namespace with local pods that gets another port or other peers: those of
    /// another policy.
    pub fn edited_policy(&mut self) -> serde_json::Value {
        let cluster = self.cluster;
        let mut pick = || &cluster.policies[self.policies[self.rng.usize(..self.policies.len())]];
        let (policy, other) = (pick(), pick());
        let edited = Policy { spec: other.spec.clone(), ..policy.clone() };
        edited.json(&cluster.namespaces[policy.namespace as usize].name, 1)
    }
}
