//! Every kind of Service through kube-proxy's real rules, nftables and iptables: a client that is
//! isolated for egress reaches all backends, none or some of them, as its policy says. Needs root
//! and the eBPF object.
#![expect(clippy::unwrap_used, reason = "tests")]

mod kube_proxy;
mod lab;
mod service_lab;
mod world;

use std::net::IpAddr;

use kube_proxy::Mode;
use lab::{Families, Lab, Topology, topology};
use service_lab::backend::Backend;
use service_lab::{Client, Cluster, Service, main_addresses};

/// A client and two sorts of backends, on both nodes.
struct Shop<'a, 'lab> {
    cluster: &'a Cluster<'lab>,
    client: Client,
    good: [Backend; 2],
    bad: [Backend; 2],
}

const PORTS: &[u16] = &[8080, 8081];

impl<'a, 'lab> Shop<'a, 'lab> {
    fn open(cluster: &'a Cluster<'lab>) -> Self {
        let pod = |name, node, tier| {
            cluster.backend(name, node, &format!("{{app: web, tier: {tier}}}"), PORTS)
        };
        Self {
            cluster,
            client: cluster.client("client", 1, "{app: client}"),
            good: [pod("good-1", 1, "good"), pod("good-2", 2, "good")],
            bad: [pod("bad-1", 1, "bad"), pod("bad-2", 2, "bad")],
        }
    }

    fn all(&self) -> Vec<&Backend> {
        self.good.iter().chain(&self.bad).collect()
    }

    fn may(&self, peers: &str) {
        self.cluster.scene.policy(
            "client",
            &format!(
                "podSelector: {{matchLabels: {{app: client}}}}, policyTypes: [Egress], \
                 egress: [{{to: [{peers}]}}]"
            ),
        );
        self.cluster.settle();
    }

    /// All three policies on all of these addresses and ports, whose backends are all of the shop.
    fn try_all_policies(&self, addresses: &[IpAddr], ports: &[u16]) {
        for (peers, may, must_not) in [
            ("{podSelector: {matchLabels: {app: web}}}", self.all(), vec![]),
            ("{podSelector: {matchLabels: {tier: other}}}", vec![], self.all()),
            (
                "{podSelector: {matchLabels: {tier: good}}}",
                self.good.iter().collect(),
                self.bad.iter().collect(),
            ),
        ] {
            self.may(peers);
            for &port in ports {
                self.cluster.expect_at(&self.client, addresses, port, &may, &must_not);
            }
        }
    }

    fn service(&self, name: &str) -> Service {
        self.cluster.service(name)
    }

    /// With all backends of the shop at this target.
    fn with_all(&self, mut service: Service, targets: &[u16]) -> Service {
        for backend in self.all() {
            service.add(backend, targets, "ready: true");
        }
        self.cluster.put(&service);
        service
    }
}

fn cluster_ip(shop: &Shop<'_, '_>) {
    let service = shop.service("web").port(80, 8080);
    let service = shop.with_all(service, &[8080]);
    shop.try_all_policies(&service.cluster_ips, &[80]);
}

fn smoke(topology: Topology, families: Families, mode: Mode) {
    let lab = Lab::new(topology, families);
    let cluster = Cluster::new(&lab, "shop", mode);
    let shop = Shop::open(&cluster);
    cluster_ip(&shop);
    let _ = main_addresses(&lab, 1);
}

#[test]
fn nft_bridge() {
    smoke(topology::BRIDGE, Families::Dual, Mode::Nftables);
}
#[test]
fn ipt_overlay() {
    smoke(topology::ROUTED_OVERLAY, Families::V4, Mode::Iptables);
}
