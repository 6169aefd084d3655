//! Random Services and EndpointSlices beside a random cluster, and what happens to them.
//! For property tests and fuzzers. Deterministic for a seed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{
    LoadBalancerIngress, LoadBalancerStatus, Node, Service, ServicePort, ServiceSpec, ServiceStatus,
};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use serde_json::json;

use super::{self as generate, Rng};
use netpol_reference::services::Services;

use super::cluster_policies::outer_address;
use super::world::{Probe, World};

const PORT_NAMES: [&str; 3] = ["", "web", "dns"];
const PROTOCOLS: [&str; 3] = ["TCP", "TCP", "UDP"];
const N_NAMESPACES: usize = 2;
/// The proxy that some of the labels name.
pub const PROXY: &str = "mine";

/// Services and what they consist of, by name.
#[derive(Debug, Clone, Default)]
pub struct ServiceWorld {
    /// Services by name, which is unique over all namespaces.
    pub services: BTreeMap<String, Service>,
    /// Slices by name, likewise.
    pub slices: BTreeMap<String, EndpointSlice>,
    /// The addresses of this node.
    pub here: BTreeSet<IpAddr>,
    /// The name of this node's proxy, if it is not kube-proxy.
    pub proxy: Option<String>,
}

/// One event, as a watch reports it.
#[derive(Clone)]
pub enum ServiceEvent {
    /// A Service is new or different.
    Service(Service),
    /// A Service is gone.
    ServiceGone(Service),
    /// A slice is new or different.
    Slice(EndpointSlice),
    /// A slice is gone.
    SliceGone(EndpointSlice),
}

impl fmt::Debug for ServiceEvent {
    /// One line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = match self {
            Self::Service(object) => json!(["put", object]),
            Self::ServiceGone(object) => json!(["gone", object.metadata.name]),
            Self::Slice(object) => json!(["put", object]),
            Self::SliceGone(object) => json!(["gone", object.metadata.name]),
        };
        write!(f, "{line}")
    }
}

impl ServiceWorld {
    /// Something happens, to one of up to `n_services` Services. Backends are mostly at one of the
    /// addresses in `pods`.
    pub fn step(&mut self, rng: &mut Rng, n_services: usize, pods: &[IpAddr]) -> ServiceEvent {
        let number = rng.below(n_services);
        let event = match rng.below(9) {
            0..3 => {
                let name = format!("service{number}");
                match self.services.get(&name) {
                    Some(old) if rng.chance(30) => ServiceEvent::ServiceGone(old.clone()),
                    old => ServiceEvent::Service(service(rng, old, number)),
                }
            }
            _ => {
                let name = format!("slice{}", rng.below(2 * n_services));
                match self.slices.get(&name) {
                    Some(old) if rng.chance(20) => ServiceEvent::SliceGone(old.clone()),
                    old => ServiceEvent::Slice(slice(rng, old, &name, number, pods)),
                }
            }
        };
        self.apply(&event);
        event
    }

    /// Takes an event into account.
    pub fn apply(&mut self, event: &ServiceEvent) {
        match event.clone() {
            ServiceEvent::Service(object) => {
                self.services.insert(name_of(&object.metadata), object);
            }
            ServiceEvent::ServiceGone(object) => {
                self.services.remove(&name_of(&object.metadata));
            }
            ServiceEvent::Slice(object) => {
                self.slices.insert(name_of(&object.metadata), object);
            }
            ServiceEvent::SliceGone(object) => {
                self.slices.remove(&name_of(&object.metadata));
            }
        }
    }

    /// This node gets other addresses: some of nodes and Services, some that backends have.
    pub fn change_here(&mut self, rng: &mut Rng) {
        let v6 = rng.chance(30);
        self.here = (0..rng.below(6))
            .map(|_| match rng.chance(50) {
                true => outer_address(rng, v6),
                false => generate::address(rng, v6),
            })
            .collect();
    }

    /// The evaluator for it in a cluster.
    pub fn reference(&self, world: &World) -> Services {
        Services {
            services: self.services.values().cloned().collect(),
            slices: self.slices.values().cloned().collect(),
            nodes: world.nodes.values().cloned().collect(),
            here: self.here.clone(),
            proxy: self.proxy.clone(),
        }
    }

    /// A question about an address of a Service or a node, or one close by; `None` without any.
    pub fn probe(&self, rng: &mut Rng, world: &World) -> Option<Probe> {
        let mut places: BTreeSet<(IpAddr, u16)> = BTreeSet::new();
        let nodes: Vec<IpAddr> = world.nodes.values().flat_map(node_addresses).collect();
        for spec in self.services.values().filter_map(|service| service.spec.as_ref()) {
            let ips = spec.cluster_ips.iter().chain(&spec.external_ips).flatten();
            let ips: Vec<IpAddr> = ips.filter_map(|text| text.parse().ok()).collect();
            for port in spec.ports.iter().flatten() {
                let number = |n: i32| u16::try_from(n).unwrap_or(0);
                places.extend(ips.iter().map(|&ip| (ip, number(port.port))));
                let node_port = port.node_port.map(number);
                places
                    .extend(node_port.into_iter().flat_map(|n| nodes.iter().map(move |&a| (a, n))));
            }
        }
        for service in self.services.values() {
            let balancer = service.status.as_ref().and_then(|s| s.load_balancer.as_ref());
            let ingress = balancer.iter().flat_map(|b| b.ingress.iter().flatten());
            let ips = ingress.filter_map(|i| i.ip.as_ref()?.parse().ok());
            places.extend(ips.map(|ip| (ip, *rng.pick(&generate::PORTS))));
        }
        let places: Vec<(IpAddr, u16)> = places.into_iter().collect();
        if places.is_empty() {
            return None;
        }
        let (remote, port) = *rng.pick(&places);
        let port = if rng.chance(90) { port } else { port.wrapping_add(1) };
        Some(Probe { remote, protocol: *rng.pick(&[6, 6, 6, 17, 17, 1]), port })
    }
}

fn name_of(metadata: &ObjectMeta) -> String {
    metadata.name.clone().unwrap_or_default()
}

pub(super) fn node_addresses(node: &Node) -> impl Iterator<Item = IpAddr> + '_ {
    let addresses = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
    addresses.filter_map(|address| address.address.parse().ok())
}

fn texts(rng: &mut Rng, most: usize) -> Option<Vec<String>> {
    let n = rng.below(most + 1);
    (n > 0).then(|| {
        (0..n)
            .map(|_| {
                let v6 = rng.chance(30);
                outer_address(rng, v6).to_string()
            })
            .collect()
    })
}

fn service(rng: &mut Rng, old: Option<&Service>, number: usize) -> Service {
    let seconds = i64::try_from(rng.below(3)).unwrap_or(0);
    let time = Timestamp::from_second(seconds).unwrap_or(Timestamp::UNIX_EPOCH);
    let mut metadata = old.map_or_else(
        || ObjectMeta {
            name: Some(format!("service{number}")),
            namespace: Some(generate::namespace_name(number % N_NAMESPACES)),
            creation_timestamp: (seconds > 0).then_some(Time(time)),
            ..ObjectMeta::default()
        },
        |old| old.metadata.clone(),
    );
    let labels = rng.chance(15).then(|| BTreeMap::from([proxy_label(rng)]));
    metadata.labels = labels;
    let families = *rng.pick(&[&[false][..], &[false, true], &[true], &[true, false]]);
    let mut ips: Vec<String> =
        families.iter().map(|&v6| outer_address(rng, v6).to_string()).collect();
    if rng.chance(10) {
        ips = vec!["None".to_owned()];
    }
    let mut seen = BTreeSet::new();
    let ports: Vec<ServicePort> = PORT_NAMES[..1 + rng.below(3)]
        .iter()
        .map(|name| ServicePort {
            name: (!name.is_empty()).then(|| (*name).to_owned()),
            port: *rng.pick(&[53, 80, 81, 443]),
            protocol: rng.chance(30).then(|| (*rng.pick(&PROTOCOLS)).to_owned()),
            node_port: rng.chance(40).then(|| 30000 + i32::try_from(rng.below(3)).unwrap_or(0)),
            ..ServicePort::default()
        })
        .filter(|port| seen.insert((port.port, port.protocol.clone().unwrap_or("TCP".into()))))
        .collect();
    let mut node_ports = BTreeSet::new();
    let ports = ports
        .into_iter()
        .map(|mut port| {
            let protocol = port.protocol.clone().unwrap_or("TCP".into());
            port.node_port = port.node_port.filter(|n| node_ports.insert((*n, protocol)));
            port
        })
        .collect();
    Service {
        metadata,
        spec: Some(ServiceSpec {
            cluster_ip: ips.first().cloned(),
            cluster_ips: Some(ips),
            external_ips: texts(rng, 1),
            ports: Some(ports),
            ..ServiceSpec::default()
        }),
        status: Some(ServiceStatus {
            load_balancer: Some(LoadBalancerStatus {
                ingress: texts(rng, 1).map(|ips| {
                    let ingress = |ip| LoadBalancerIngress {
                        ip: Some(ip),
                        ip_mode: rng.chance(40).then(|| (*rng.pick(&["VIP", "Proxy"])).to_owned()),
                        ..LoadBalancerIngress::default()
                    };
                    ips.into_iter().map(ingress).collect()
                }),
            }),
            ..ServiceStatus::default()
        }),
    }
}

/// A label that says whose the object is: this node's proxy has no name or the first of these.
fn proxy_label(rng: &mut Rng) -> (String, String) {
    let (key, value) = *rng.pick(&[
        ("service.kubernetes.io/service-proxy-name", PROXY),
        ("service.kubernetes.io/service-proxy-name", "another"),
        ("service.kubernetes.io/service-proxy-name", ""),
        ("service.kubernetes.io/headless", ""),
    ]);
    (key.to_owned(), value.to_owned())
}

fn slice(
    rng: &mut Rng,
    old: Option<&EndpointSlice>,
    name: &str,
    service: usize,
    pods: &[IpAddr],
) -> EndpointSlice {
    let mut metadata = old.map_or_else(
        || ObjectMeta {
            name: Some(name.to_owned()),
            // Seldom not that of the Service.
            namespace: Some(generate::namespace_name(if rng.chance(90) {
                service % N_NAMESPACES
            } else {
                rng.below(N_NAMESPACES)
            })),
            ..ObjectMeta::default()
        },
        |old| old.metadata.clone(),
    );
    if metadata.labels.is_none() || rng.chance(15) {
        let label = ("kubernetes.io/service-name".to_owned(), format!("service{service}"));
        metadata.labels = rng.chance(95).then(|| BTreeMap::from([label]));
        if rng.chance(8) {
            metadata.labels.get_or_insert_default().extend([proxy_label(rng)]);
        }
    }
    let v6 = rng.chance(30);
    let ports = PORT_NAMES[..1 + rng.below(3)]
        .iter()
        .map(|name| EndpointPort {
            name: (!name.is_empty()).then(|| (*name).to_owned()),
            port: rng.chance(95).then(|| *rng.pick(&[53, 80, 81, 443])),
            protocol: rng.chance(30).then(|| (*rng.pick(&PROTOCOLS)).to_owned()),
            ..EndpointPort::default()
        })
        .collect();
    let pods: Vec<IpAddr> = pods.iter().copied().filter(|ip| ip.is_ipv6() == v6).collect();
    let endpoints = (0..rng.below(5))
        .map(|_| Endpoint {
            addresses: vec![match pods.is_empty() || rng.chance(20) {
                true => generate::address(rng, v6).to_string(),
                false => rng.pick(&pods).to_string(),
            }],
            conditions: rng.chance(40).then(|| EndpointConditions {
                ready: (!rng.chance(20)).then(|| rng.chance(50)),
                serving: (!rng.chance(30)).then(|| rng.chance(70)),
                terminating: None,
            }),
            ..Endpoint::default()
        })
        .collect();
    EndpointSlice {
        metadata,
        address_type: if v6 { "IPv6" } else { "IPv4" }.to_owned(),
        ports: Some(ports),
        endpoints,
    }
}
