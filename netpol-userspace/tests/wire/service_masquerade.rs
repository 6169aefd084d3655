//! Service traffic whose source kube-proxy replaces by an address of the node (`masqueradeAll`,
//! node ports): the sender's egress policies hold exactly, and a backend that is isolated for
//! ingress sees a forwarded packet of its node, which is nobody's exemption. `netpol trace` says
//! so. Needs root and the eBPF object.

use std::net::IpAddr;

use netpol_testkit::kube_proxy::Mode;
use netpol_testkit::lab::{Families, Lab, Topology, topology};
use netpol_testkit::service_lab::backend::Backend;
use netpol_testkit::service_lab::{Client, Cluster, main_addresses};

struct Shop<'a, 'lab> {
    cluster: &'a Cluster<'lab>,
    /// On node 1.
    client: Client,
    /// On node 1 and on node 2.
    good: [Backend; 2],
    bad: Backend,
    service: Vec<IpAddr>,
}

const ALL_MASQUERADED: bool = true;

fn masqueraded(topology: Topology, families: Families, mode: Mode) {
    let lab = Lab::new(topology, families);
    let cluster = Cluster::with(&lab, "shop", mode, ALL_MASQUERADED);
    let backend = |name, node, tier| {
        cluster.backend(name, node, &format!("{{app: web, tier: {tier}}}"), &[8080])
    };
    let good = [backend("good-1", 1, "good"), backend("good-2", 2, "good")];
    let bad = backend("bad", 1, "bad");
    let client = cluster.client("client", 1, "{app: client}");
    let service = cluster.service("web").port(80, 8080).node_ports(30080);
    let service = service.to(&good[0], &[8080]).to(&good[1], &[8080]).to(&bad, &[8080]);
    cluster.put(&service);
    let service = service.cluster_ips;
    let shop = Shop { cluster: &cluster, client, good, bad, service };
    egress_is_exact(&shop);
    ingress_fails_closed(&shop);
}

fn egress_is_exact(shop: &Shop<'_, '_>) {
    let Shop { cluster, client, good: [near, far], bad, service } = shop;
    cluster.scene.policy(
        "client",
        "podSelector: {matchLabels: {app: client}}, policyTypes: [Egress], \
         egress: [{to: [{podSelector: {matchLabels: {tier: good}}}]}]",
    );
    cluster.settle();
    cluster.expect_at(client, service, 80, &[near, far], &[bad]);
    let node = main_addresses(cluster.lab, 1);
    cluster.expect_at(client, &node, 30080, &[near, far], &[bad]);
    cluster.expect_traces(client, &node, 30080, &[near, far], &[bad]);
    cluster.scene.remove_policy("client");
    cluster.settle();
    cluster.expect_at(client, service, 80, &[near, far, bad], &[]);
}

/// Backends that admit the client only, or nobody, drop what comes masqueraded, also on the node
/// itself: it is forwarded. A block with the node's addresses admits it.
fn ingress_fails_closed(shop: &Shop<'_, '_>) {
    let Shop { cluster, client, good: [near, far], bad, service } = shop;
    let node = main_addresses(cluster.lab, 1);
    let other = main_addresses(cluster.lab, 2);
    let admit = |rules: &str| {
        cluster.scene.policy(
            "web",
            &format!(
                "podSelector: {{matchLabels: {{app: web}}}}, policyTypes: [Ingress], \
                 ingress: [{rules}]"
            ),
        );
        cluster.settle();
    };
    for rules in ["", "{from: [{podSelector: {matchLabels: {app: client}}}]}"] {
        admit(rules);
        for (addresses, port) in [(service, 80), (&node, 30080), (&other, 30080)] {
            eprintln!("--- ingress {rules:?}, {addresses:?} {port}");
            cluster.expect_at(client, addresses, port, &[], &[near, far, bad]);
            // That kube-proxy masquerades all (cluster IPs, too), nobody can know.
            if port != 80 {
                cluster.expect_traces(client, addresses, port, &[], &[near, far, bad]);
            }
        }
    }
    admit("{from: [{ipBlock: {cidr: 0.0.0.0/0}}, {ipBlock: {cidr: '::/0'}}]}");
    cluster.expect_at(client, service, 80, &[near, far, bad], &[]);
    for addresses in [&node, &other] {
        cluster.expect_at(client, addresses, 30080, &[near, far, bad], &[]);
        cluster.expect_traces(client, addresses, 30080, &[near, far, bad], &[]);
    }
    by_the_nodes_own_address(shop, &admit);
    cluster.scene.remove_policy("web");
}

/// Who admits one address of a node has to mean the one that the kernel takes: of the interface that
/// leads to the backend.
fn by_the_nodes_own_address(shop: &Shop<'_, '_>, admit: &dyn Fn(&str)) {
    let Shop { cluster, client, good: [near, far], bad, .. } = shop;
    let node = main_addresses(cluster.lab, 1);
    let blocks = |addresses: &[IpAddr]| {
        let block = |address: &IpAddr| {
            let bits = if address.is_ipv4() { 32 } else { 128 };
            format!("{{ipBlock: {{cidr: '{address}/{bits}'}}}}")
        };
        let blocks: Vec<String> = addresses.iter().map(block).collect();
        format!("{{from: [{}]}}", blocks.join(", "))
    };
    // To the near ones the bridge leads, if there is one; to the far one the node's main interface
    // or a tunnel, which is the node's, and which the other node does not know.
    if cluster.lab.topology == topology::BRIDGE {
        let gateways = cluster.addresses("10.244.1.1", "fd00:10:244:1::1");
        admit(&blocks(&gateways));
        cluster.expect_at(client, &node, 30080, &[near, bad], &[far]);
        cluster.expect_traces(client, &node, 30080, &[near, bad], &[far]);
        admit(&blocks(&node));
        cluster.expect_at(client, &node, 30080, &[far], &[near, bad]);
        cluster.expect_traces(client, &node, 30080, &[far], &[near, bad]);
    }
}

#[test]
fn bridge_nftables() {
    masqueraded(topology::BRIDGE, Families::Dual, Mode::Nftables);
}

#[test]
fn bridge_without_netfilter_iptables() {
    masqueraded(topology::BRIDGE_WITHOUT_NETFILTER, Families::Dual, Mode::Iptables);
}

#[test]
fn routed_nftables() {
    masqueraded(topology::ROUTED, Families::V6, Mode::Nftables);
}

#[test]
fn overlay_iptables() {
    masqueraded(topology::OVERLAY, Families::Dual, Mode::Iptables);
}
