//! Random Kubernetes objects for property tests and fuzzers: valid ones, from alphabets so small
//! that much matches, overlaps and clashes. Deterministic for a seed. Must never produce what an
//! API server refuses.

pub mod cluster_policies;
pub mod service_world;
mod smaller;
pub mod world;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use k8s_openapi::api::core::v1::{
    Container, ContainerPort, Namespace, Pod, PodIP, PodSpec, PodStatus,
};
use k8s_openapi::api::networking::v1::{
    IPBlock, NetworkPolicy, NetworkPolicyEgressRule, NetworkPolicyIngressRule, NetworkPolicyPeer,
    NetworkPolicyPort, NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{
    LabelSelector, LabelSelectorRequirement, ObjectMeta, Time,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use k8s_openapi::jiff::Timestamp;

/// A small fast generator of random numbers (SplitMix64), equal on all machines.
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    /// The sequence of this seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `n`, which must not be 0.
    pub fn below(&mut self, n: usize) -> usize {
        // The bias for small n is far below what a test could notice.
        usize::try_from(self.bits() % n as u64).unwrap_or(0)
    }

    /// True in `percent` of a hundred cases.
    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    /// One of the items, of which there must be one.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }

    /// Up to `most` of what `make` makes.
    fn up_to<T>(&mut self, most: usize, mut make: impl FnMut(&mut Self) -> T) -> Vec<T> {
        let n = self.below(most + 1);
        (0..n).map(|_| make(self)).collect()
    }
}

const KEYS: [&str; 3] = ["app", "tier", "zone"];
const VALUES: [&str; 4] = ["a", "b", "c", ""];
const NAMESPACE_KEYS: [&str; 2] = ["team", "env"];
const PORT_NAMES: [&str; 3] = ["web", "dns", "alt"];
const PROTOCOLS: [&str; 3] = ["TCP", "UDP", "SCTP"];
/// Port numbers that rules, ranges and containers use.
pub const PORTS: [u16; 10] = [1, 53, 79, 80, 81, 443, 8080, 8081, 65534, 65535];

/// The name of the namespace of that number.
pub fn namespace_name(index: usize) -> String {
    format!("ns{index}")
}

/// An address as pods have them: few enough to be shared and to lie in many blocks.
pub fn address(rng: &mut Rng, v6: bool) -> IpAddr {
    let (high, low) = (rng.below(3), rng.below(48));
    let (high, low) = (u16::try_from(high).unwrap_or(0), u16::try_from(low).unwrap_or(0));
    match v6 {
        false => {
            IpAddr::V4(Ipv4Addr::from_bits((10 << 24) + (u32::from(high) << 8) + u32::from(low)))
        }
        true => IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, high, 0, 0, 0, low)),
    }
}

/// A namespace with random labels.
pub fn namespace(rng: &mut Rng, index: usize) -> Namespace {
    let labels = labels(rng, &NAMESPACE_KEYS);
    let name = Some(namespace_name(index));
    Namespace {
        metadata: ObjectMeta { name, labels, ..ObjectMeta::default() },
        ..Namespace::default()
    }
}

/// A pod in one of `n_namespaces` namespaces.
pub fn pod(rng: &mut Rng, n_namespaces: usize, name: &str) -> Pod {
    let metadata = ObjectMeta {
        name: Some(name.to_owned()),
        namespace: Some(namespace_name(rng.below(n_namespaces))),
        labels: labels(rng, &KEYS),
        uid: Some(format!("uid-{name}-{}", rng.below(1000))),
        creation_timestamp: created(rng),
        ..ObjectMeta::default()
    };
    let mut pod = Pod { metadata, spec: Some(PodSpec::default()), ..Pod::default() };
    refresh_pod_spec(rng, &mut pod);
    refresh_pod_status(rng, &mut pod);
    pod
}

fn created(rng: &mut Rng) -> Option<Time> {
    let seconds = i64::try_from(rng.below(4)).unwrap_or(0);
    (seconds > 0).then(|| Time(Timestamp::from_second(seconds).unwrap_or(Timestamp::UNIX_EPOCH)))
}

/// Gives a pod other labels.
pub fn relabel_pod(rng: &mut Rng, pod: &mut Pod) {
    pod.metadata.labels = labels(rng, &KEYS);
}

/// Gives a pod other containers.
pub fn refresh_pod_spec(rng: &mut Rng, pod: &mut Pod) {
    let mut containers = rng.up_to(2, container);
    containers.push(container(rng));
    for (index, container) in containers.iter_mut().enumerate() {
        container.name = format!("c{index}");
    }
    let init_containers = rng.chance(20).then(|| {
        let mut init = container(rng);
        init.name = "init".to_owned();
        init.restart_policy = rng.chance(50).then(|| "Always".to_owned());
        vec![init]
    });
    pod.spec = Some(PodSpec {
        containers,
        init_containers,
        host_network: if rng.chance(50) { Some(rng.chance(12)) } else { None },
        ..PodSpec::default()
    });
}

/// Gives a pod other addresses and another phase.
pub fn refresh_pod_status(rng: &mut Rng, pod: &mut Pod) {
    let (v4, v6) = (rng.chance(90), rng.chance(40));
    let mut pod_ips: Vec<PodIP> = Vec::new();
    for v6 in [v4.then_some(false), v6.then_some(true)].into_iter().flatten() {
        pod_ips.push(PodIP { ip: address(rng, v6).to_string() });
    }
    let phase =
        *rng.pick(&["Running", "Running", "Running", "Running", "Pending", "Succeeded", "Failed"]);
    pod.status = Some(PodStatus {
        phase: Some(phase.to_owned()),
        pod_ip: pod_ips.first().map(|address| address.ip.clone()),
        pod_ips: rng.chance(95).then_some(pod_ips),
        ..PodStatus::default()
    });
}

/// Gives a pod these addresses, at most one of a family, while it runs.
pub fn set_pod_addresses(pod: &mut Pod, addresses: &[IpAddr]) {
    let pod_ips = addresses.iter().map(|address| PodIP { ip: address.to_string() });
    pod.status = Some(PodStatus {
        phase: Some("Running".to_owned()),
        pod_ip: addresses.first().map(IpAddr::to_string),
        pod_ips: Some(pod_ips.collect()),
        ..PodStatus::default()
    });
}

fn container(rng: &mut Rng) -> Container {
    let ports = rng.up_to(3, |rng| ContainerPort {
        name: rng.chance(80).then(|| (*rng.pick(&PORT_NAMES)).to_owned()),
        protocol: protocol(rng),
        container_port: i32::from(*rng.pick(&PORTS)),
        ..ContainerPort::default()
    });
    Container { ports: Some(ports), ..Container::default() }
}

fn labels(rng: &mut Rng, keys: &[&str]) -> Option<BTreeMap<String, String>> {
    let list = rng.up_to(keys.len() + 1, |rng| {
        ((*rng.pick(keys)).to_owned(), (*rng.pick(&VALUES)).to_owned())
    });
    if list.is_empty() && rng.chance(50) { None } else { Some(list.into_iter().collect()) }
}

/// A policy in one of `n_namespaces` namespaces.
pub fn policy(rng: &mut Rng, n_namespaces: usize, name: &str) -> NetworkPolicy {
    let metadata = ObjectMeta {
        name: Some(name.to_owned()),
        namespace: Some(namespace_name(rng.below(n_namespaces))),
        ..ObjectMeta::default()
    };
    NetworkPolicy { metadata, spec: Some(policy_spec(rng, n_namespaces)) }
}

/// What a policy says.
pub fn policy_spec(rng: &mut Rng, n_namespaces: usize) -> NetworkPolicySpec {
    let pod_selector = match rng.below(10) {
        0 => None,
        1..4 => Some(LabelSelector::default()),
        _ => Some(selector(rng, &KEYS, n_namespaces)),
    };
    let ingress = rng.up_to(3, |rng| NetworkPolicyIngressRule {
        from: list(rng, |rng| peer(rng, n_namespaces)),
        ports: list(rng, port),
    });
    let egress = rng.up_to(3, |rng| NetworkPolicyEgressRule {
        to: list(rng, |rng| peer(rng, n_namespaces)),
        ports: list(rng, port),
    });
    let types = |names: &[&str]| Some(names.iter().map(|name| (*name).to_owned()).collect());
    NetworkPolicySpec {
        pod_selector,
        ingress: (!ingress.is_empty() || rng.chance(50)).then_some(ingress),
        egress: (!egress.is_empty() || rng.chance(50)).then_some(egress),
        policy_types: match rng.below(6) {
            0 => None,
            1 => types(&[]),
            2 => types(&["Ingress"]),
            3 => types(&["Egress"]),
            _ => types(&["Ingress", "Egress"]),
        },
    }
}

/// Missing, empty, or with a few items.
fn list<T>(rng: &mut Rng, make: impl FnMut(&mut Rng) -> T) -> Option<Vec<T>> {
    match rng.below(8) {
        0 => None,
        1 => Some(Vec::new()),
        _ => Some(rng.up_to(3, make)),
    }
}

fn peer(rng: &mut Rng, n_namespaces: usize) -> NetworkPolicyPeer {
    let mut peer = NetworkPolicyPeer::default();
    match rng.below(8) {
        0..3 => peer.ip_block = Some(block(rng)),
        3..5 => peer.pod_selector = Some(selector(rng, &KEYS, n_namespaces)),
        5 => peer.namespace_selector = Some(selector(rng, &NAMESPACE_KEYS, n_namespaces)),
        _ => {
            peer.pod_selector = Some(selector(rng, &KEYS, n_namespaces));
            peer.namespace_selector = Some(selector(rng, &NAMESPACE_KEYS, n_namespaces));
        }
    }
    peer
}

fn selector(rng: &mut Rng, keys: &[&str], n_namespaces: usize) -> LabelSelector {
    if rng.chance(10) {
        return LabelSelector::default();
    }
    let match_labels = match rng.below(3) {
        0 => None,
        1 => Some(BTreeMap::new()),
        _ => labels(rng, keys).map(|labels| labels.into_iter().take(1).collect()),
    };
    let match_expressions = match rng.below(3) {
        0 => None,
        _ => Some(rng.up_to(2, |rng| requirement(rng, keys, n_namespaces))),
    };
    LabelSelector { match_labels, match_expressions }
}

fn requirement(rng: &mut Rng, keys: &[&str], n_namespaces: usize) -> LabelSelectorRequirement {
    let by_name = keys == NAMESPACE_KEYS && rng.chance(25);
    let (key, operator) = match by_name {
        true => ("kubernetes.io/metadata.name", *rng.pick(&["In", "NotIn"])),
        false => (*rng.pick(keys), *rng.pick(&["In", "NotIn", "Exists", "DoesNotExist"])),
    };
    let mut values = Vec::new();
    if matches!(operator, "In" | "NotIn") {
        let n = 1 + rng.below(3);
        values.extend((0..n).map(|_| match by_name {
            true => namespace_name(rng.below(n_namespaces)),
            false => (*rng.pick(&VALUES)).to_owned(),
        }));
    }
    LabelSelectorRequirement {
        key: key.to_owned(),
        operator: operator.to_owned(),
        values: (!values.is_empty() || rng.chance(50)).then_some(values),
    }
}

/// A block around addresses that pods have, with parts excepted.
fn block(rng: &mut Rng) -> IPBlock {
    let v6 = rng.chance(30);
    let lengths: &[u8] = match v6 {
        false => &[0, 8, 16, 23, 24, 26, 27, 28, 30, 31, 32],
        true => &[0, 8, 63, 64, 96, 122, 124, 127, 128],
    };
    let (base, length) = (address(rng, v6), *rng.pick(lengths));
    let inner = |rng: &mut Rng| {
        let longer: Vec<u8> = lengths.iter().copied().filter(|&other| other > length).collect();
        if longer.is_empty() {
            return None;
        }
        let inner_length = *rng.pick(&longer);
        let within = splice(base, address(rng, v6), length);
        Some(cidr(rng, within, inner_length))
    };
    let except: Vec<String> = rng.up_to(3, inner).into_iter().flatten().collect();
    IPBlock {
        cidr: cidr(rng, base, length),
        except: (!except.is_empty() || rng.chance(50)).then_some(except),
    }
}

/// The first `length` bits of `high` and the rest of `low`.
fn splice(high: IpAddr, low: IpAddr, length: u8) -> IpAddr {
    match (high, low) {
        (IpAddr::V4(high), IpAddr::V4(low)) => {
            let mask = u32::MAX.checked_shr(u32::from(length)).unwrap_or(0);
            Ipv4Addr::from_bits(high.to_bits() & !mask | low.to_bits() & mask).into()
        }
        (IpAddr::V6(high), IpAddr::V6(low)) => {
            let mask = u128::MAX.checked_shr(u32::from(length)).unwrap_or(0);
            Ipv6Addr::from_bits(high.to_bits() & !mask | low.to_bits() & mask).into()
        }
        _ => high,
    }
}

/// A block as text, sometimes with bits set that do not count.
fn cidr(rng: &mut Rng, base: IpAddr, length: u8) -> String {
    let zero = match base {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let base = if rng.chance(15) { base } else { splice(base, zero, length) };
    format!("{base}/{length}")
}

fn protocol(rng: &mut Rng) -> Option<String> {
    rng.chance(70).then(|| (*rng.pick(&PROTOCOLS)).to_owned())
}

fn port(rng: &mut Rng) -> NetworkPolicyPort {
    let first = i32::from(*rng.pick(&PORTS));
    let (port, end_port) = match rng.below(10) {
        0 => (None, None),
        1..5 => (Some(IntOrString::String((*rng.pick(&PORT_NAMES)).to_owned())), None),
        5..7 => {
            let span = *rng.pick(&[0, 1, 2, 30, 8000, 70000]);
            (Some(IntOrString::Int(first)), Some((first + span).min(65535)))
        }
        _ => (Some(IntOrString::Int(first)), None),
    };
    NetworkPolicyPort { protocol: protocol(rng), port, end_port }
}
