//! What a namespace may write that is much: by kind and size, the same each time. Pure. Must never
//! be about another namespace's pods.

use std::net::Ipv4Addr;

use fastrand::Rng;
use serde_json::{Value, json};

use crate::manifests;

/// The namespace that writes.
pub(super) const NAMESPACE: &str = "tenant";
/// First address of the blocks that policies name: nobody is there.
const FIRST_BLOCK: u32 = 20 << 24;
/// First address of Services.
const FIRST_SERVICE: u32 = (172 << 24) | (16 << 16);

/// What there is much of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Policies,
    Blocks,
    Ports,
    Ranges,
    Nested,
    Excepts,
    Selectors,
    Values,
    Services,
    Slices,
    Pods,
    Large,
}

impl Kind {
    pub const ALL: [Self; 12] = [
        Self::Policies,
        Self::Blocks,
        Self::Ports,
        Self::Ranges,
        Self::Nested,
        Self::Excepts,
        Self::Selectors,
        Self::Values,
        Self::Services,
        Self::Slices,
        Self::Pods,
        Self::Large,
    ];

    /// What is counted.
    pub fn name(self) -> &'static str {
        match self {
            Self::Policies => "policies, each with a block and a port of its own",
            Self::Blocks => "policies of 1,000 blocks",
            Self::Ports => "policies of 100 blocks and 100 ports",
            Self::Ranges => "policies of a block and a port range, which overlap",
            Self::Nested => "policies of 100 blocks that nest and overlap",
            Self::Excepts => "policies of 100 blocks with an exception each",
            Self::Selectors => "policies, each with a peer by label and a port of its own",
            Self::Values => "policies with a peer of 5,000 label values",
            Self::Services => "Services of 100 ports, for pods isolated for egress",
            Self::Slices => "EndpointSlices of 1,000 addresses, of as many Services",
            Self::Pods => "pods elsewhere that come at once, among 100 policies by label",
            Self::Large => "pods elsewhere with 1 MiB of annotations",
        }
    }

    /// The most that is written.
    pub fn whole(self) -> u32 {
        match self {
            Self::Policies | Self::Selectors | Self::Pods => 10_000,
            Self::Blocks => 260,
            Self::Ports | Self::Slices | Self::Large => 100,
            Self::Ranges | Self::Services => 1_000,
            Self::Nested | Self::Excepts => 400,
            Self::Values => 50,
        }
    }

    /// So many of them.
    pub fn objects(self, n: u32) -> Vec<Value> {
        match self {
            Self::Policies => each(n, |i| rule(vec![block(i, 30)], &json!([{"port": 1 + i}]))),
            Self::Blocks => each(n, |i| {
                rule((0..1_000).map(|j| block(i * 1_000 + j, 30)).collect(), &json!([]))
            }),
            Self::Ports => each(n, |i| {
                let ports: Vec<Value> =
                    (0..100).map(|j| json!({"port": 1 + i * 100 + j})).collect();
                rule((0..100).map(|j| block(i * 100 + j, 30)).collect(), &json!(ports))
            }),
            Self::Ranges => each(n, |i| {
                rule(vec![block(i, 30)], &json!([{"port": 1 + i * 10, "endPort": 2_000 + i * 10}]))
            }),
            Self::Nested => each(n, |i| {
                let mut rng = Rng::with_seed(u64::from(i));
                let any = |_| {
                    let length = rng.u8(12..=30);
                    let mask = u32::MAX << (32 - length);
                    let address = (FIRST_BLOCK | rng.u32(..1 << 24)) & mask;
                    json!({"ipBlock": {"cidr": format!("{}/{length}", Ipv4Addr::from(address))}})
                };
                rule((0..100).map(any).collect(), &json!([]))
            }),
            Self::Excepts => each(n, |i| {
                let with_except = |j: u32| {
                    let address = FIRST_BLOCK + ((i * 100 + j) << 8);
                    let except = format!("{}/28", Ipv4Addr::from(address + 64));
                    let cidr = format!("{}/24", Ipv4Addr::from(address));
                    json!({"ipBlock": {"cidr": cidr, "except": [except]}})
                };
                rule((0..100).map(with_except).collect(), &json!([]))
            }),
            Self::Selectors => each(n, |i| {
                let labels = json!({"matchLabels": {"n": format!("n{i}")}});
                rule(vec![json!({"podSelector": labels})], &json!([{"port": 1 + i}]))
            }),
            Self::Values => each(n, |i| {
                let values: Vec<String> = (0..5_000).map(|j| format!("n{i}-{j}")).collect();
                let among = json!({"key": "n", "operator": "In", "values": values});
                let pods = json!({"podSelector": {"matchExpressions": [among]}});
                rule(vec![pods], &json!([]))
            }),
            Self::Services => services(n),
            Self::Slices => slices(n),
            Self::Pods => {
                let by_label = each(100, |i| {
                    let labels = json!({"matchLabels": {"n": format!("n{i}")}});
                    rule(vec![json!({"podSelector": labels})], &json!([]))
                });
                by_label.into_iter().chain((0..n).map(|i| pod_elsewhere(i, 0))).collect()
            }
            Self::Large => (0..n).map(|i| pod_elsewhere(i, 1 << 20)).collect(),
        }
    }
}

/// Policies about all pods of the namespace.
fn each(n: u32, ingress: impl Fn(u32) -> Value) -> Vec<Value> {
    let policy = |i| {
        let spec = json!({"podSelector": {}, "ingress": [ingress(i)]});
        manifests::policy(NAMESPACE, &format!("bulk-{i:05}"), &spec)
    };
    (0..n).map(policy).collect()
}

fn rule(from: Vec<Value>, ports: &Value) -> Value {
    json!({"from": from, "ports": ports})
}

/// The block of that number and length, beside the others of the length.
fn block(number: u32, length: u8) -> Value {
    let address = Ipv4Addr::from(FIRST_BLOCK + (number << (32 - length)));
    json!({"ipBlock": {"cidr": format!("{address}/{length}")}})
}

/// A pod of the tenant's on another node, with so many bytes of annotations.
fn pod_elsewhere(number: u32, n_bytes: usize) -> Value {
    let name = format!("elsewhere-{number}");
    let address = Ipv4Addr::from(FIRST_BLOCK + 1 + number);
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": name, "namespace": NAMESPACE, "uid": name,
            "labels": {"n": format!("n{}", number % 200)},
            "annotations": {"text": "x".repeat(n_bytes)},
        },
        "spec": {"nodeName": "elsewhere", "containers": [{"name": "c"}]},
        "status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]},
    })
}

/// A policy that isolates for egress, so that Services matter.
fn egress() -> Value {
    let egress = json!([{"to": [block(0, 16)]}]);
    let spec = json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": egress});
    manifests::policy(NAMESPACE, "bulk-egress", &spec)
}

/// Services of one port, each with a slice of as many addresses as one may have.
fn slices(n: u32) -> Vec<Value> {
    let of = |i| service(i, || vec![json!({"port": 80})], 1_000);
    std::iter::once(egress()).chain((0..n).flat_map(of)).collect()
}

fn services(n: u32) -> Vec<Value> {
    let ports = || -> Vec<Value> {
        (0..100).map(|j| json!({"name": format!("p{j}"), "port": 1_000 + j})).collect()
    };
    std::iter::once(egress()).chain((0..n).flat_map(|i| service(i, ports, 2))).collect()
}

/// The Service of that number, and the slice with so many addresses of its own.
fn service(number: u32, ports: impl Fn() -> Vec<Value>, n_addresses: u32) -> [Value; 2] {
    let name = format!("bulk-{number:04}");
    let address = Ipv4Addr::from(FIRST_SERVICE + 1 + number);
    let first = FIRST_BLOCK + 1 + number * n_addresses;
    let backends = (first..first + n_addresses).map(Ipv4Addr::from);
    let endpoints: Vec<Value> = backends.map(|address| json!({"addresses": [address]})).collect();
    let service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "clusterIP": address, "clusterIPs": [address], "ports": ports(),
            "selector": {"app": name},
        },
    });
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": name, "namespace": NAMESPACE, "labels": {"kubernetes.io/service-name": name},
        },
        "addressType": "IPv4", "endpoints": endpoints, "ports": ports(),
    });
    [service, slice]
}
