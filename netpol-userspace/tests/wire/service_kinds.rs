//! Every kind of Service through kube-proxy's real rules, nftables and iptables: a client that is
//! isolated for egress reaches all backends, none or some of them, as its policy says, and those
//! it must not reach see nothing. Needs root and the eBPF object.

use std::net::IpAddr;

use netpol_testkit::lab::Cni;
use netpol_testkit::service_lab::backend::Backend;
use netpol_testkit::service_lab::{Client, Cluster, Service, main_addresses};

netpol_testkit::on_every_network!(super::every_kind);

fn every_kind(cluster: &Cluster<'_>) {
    let shop = Shop::open(cluster);
    let fronts = fronts(&shop);
    judged_by_pods(&shop, &fronts);
    judged_by_ports(&shop, &fronts);
    another_nodes_port_is_judged_by_all_backends_alone(&shop);
    headless(&shop);
    without_endpoints(&shop);
    local_traffic_policies(&shop);
    outside_and_on_hosts(&shop);
    isolated_for_ingress(&shop, &fronts[0]);
}

/// A client on node 1 and two sorts of backends, on both nodes. What is called `http` is another
/// number on each node.
struct Shop<'a, 'lab> {
    cluster: &'a Cluster<'lab>,
    client: Client,
    good: [Backend; 2],
    bad: [Backend; 2],
}

const PORTS: &[u16] = &[8080, 8081];
const HTTP: [u16; 2] = [8080, 8081];

impl<'a, 'lab> Shop<'a, 'lab> {
    fn open(cluster: &'a Cluster<'lab>) -> Self {
        let pod = |name, node: usize, tier| {
            let labels = format!("{{app: web, tier: {tier}}}");
            let number = HTTP[node - 1];
            let named = ["TCP", "UDP"].map(|protocol| {
                let name = if protocol == "TCP" { "http" } else { "http-u" };
                format!("{{name: {name}, protocol: {protocol}, containerPort: {number}}}")
            });
            let named = format!("[{}]", named.join(", "));
            cluster.backend_pod(name, node, &labels, &named, PORTS).1
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

    fn on_node(&self, node: usize) -> Vec<&Backend> {
        self.all().into_iter().filter(|backend| backend.node == Some(node)).collect()
    }

    /// This is all that the client may send to.
    fn may(&self, rules: &str) {
        eprintln!("--- {rules}");
        self.cluster.scene.policy(
            "client",
            &format!(
                "podSelector: {{matchLabels: {{app: client}}}}, policyTypes: [Egress], \
                 egress: [{rules}]"
            ),
        );
        self.cluster.settle();
    }

    /// A Service with all backends of the shop at these targets.
    fn with_all(&self, mut service: Service, targets: &[u16]) -> Service {
        for backend in self.all() {
            service.add(backend, targets, "ready: true");
        }
        self.cluster.put(&service);
        service
    }

    fn expect_traces(&self, front: &Front, may: &[&Backend], must_not: &[&Backend]) {
        self.cluster.expect_traces(&self.client, &front.addresses, front.port, may, must_not);
    }

    fn expect(&self, front: &Front, may: &[&Backend], must_not: &[&Backend]) {
        eprintln!("    {}: {} may, {} must not", front.kind, may.len(), must_not.len());
        self.cluster.expect_at(&self.client, &front.addresses, front.port, may, must_not);
    }
}

/// Where a Service is reached.
struct Front {
    kind: &'static str,
    addresses: Vec<IpAddr>,
    port: u16,
}

/// All the ways to the shop's backends at 8080, and one to 8081.
fn fronts(shop: &Shop<'_, '_>) -> Vec<Front> {
    let cluster = shop.cluster;
    let mut fronts = Vec::new();
    let mut front = |kind, addresses: &[IpAddr], port| {
        fronts.push(Front { kind, addresses: addresses.to_vec(), port });
    };
    let web = shop.with_all(cluster.service("web").port(80, 8080).port(81, 8081), &[8080, 8081]);
    front("cluster IP", &web.cluster_ips, 80);
    front("second port", &web.cluster_ips, 81);
    let same = shop.with_all(cluster.service("same").port(8080, 8080), &[8080]);
    front("targetPort == port", &same.cluster_ips, 8080);
    let addresses = cluster.addresses("198.51.100.80", "2001:db8::80");
    let external = cluster.service("external").port(80, 8080).external(addresses);
    let external = shop.with_all(external, &[8080]);
    front("external IP", &external.external_ips, 80);
    let addresses = cluster.addresses("203.0.113.80", "2001:db8:1::80");
    let balanced = cluster.service("balanced").port(80, 8080).node_ports(30081);
    let balanced = shop.with_all(balanced.balancer(addresses), &[8080]);
    front("load balancer", &balanced.balancer_ips, 80);
    front("node port", &main_addresses(cluster.lab, 1), 30081);
    named(shop);
    fronts
}

/// A Service with a selector and a named target port: netpol derives its backends from the pods.
fn named(shop: &Shop<'_, '_>) -> Service {
    let (cluster, mut service) = (shop.cluster, shop.cluster.service("named"));
    service = service.selecting("{app: web}").port_named(80, "http", "http-u");
    for backend in shop.all() {
        let number = HTTP[backend.node.unwrap() - 1];
        service.add(backend, &[number], "ready: true");
    }
    cluster.put(&service);
    service
}

fn named_front(shop: &Shop<'_, '_>) -> Front {
    Front { kind: "named target port", addresses: named(shop).cluster_ips, port: 80 }
}

fn judged_by_pods(shop: &Shop<'_, '_>, fronts: &[Front]) {
    let named = named_front(shop);
    for (tier, may, must_not) in [
        ("{app: web}", shop.all(), vec![]),
        ("{tier: other}", vec![], shop.all()),
        ("{tier: good}", shop.good.iter().collect(), shop.bad.iter().collect()),
    ] {
        shop.may(&format!("{{to: [{{podSelector: {{matchLabels: {tier}}}}}]}}"));
        for front in fronts.iter().chain([&named]) {
            shop.expect(front, &may, &must_not);
        }
    }
    // A Service's address is nobody's: what a block says of it says nothing of the backends.
    shop.may("{to: [{ipBlock: {cidr: 10.96.0.0/16}}, {ipBlock: {cidr: 'fd00:10:96::/48'}}]}");
    shop.expect(&fronts[0], &[], &shop.all());
}

fn judged_by_ports(shop: &Shop<'_, '_>, fronts: &[Front]) {
    let named = named_front(shop);
    let ports = |ports: &str| {
        let both = ["TCP", "UDP"].map(|protocol| {
            let name =
                if protocol == "UDP" { ports.replace("http", "http-u") } else { ports.into() };
            format!("{{port: {name}, protocol: {protocol}}}")
        });
        shop.may(&format!(
            "{{to: [{{podSelector: {{matchLabels: {{app: web}}}}}}], ports: [{}]}}",
            both.join(", ")
        ));
    };
    let by_kind = |kind| fronts.iter().find(|front| front.kind == kind).unwrap();
    ports("8080");
    shop.expect(by_kind("cluster IP"), &shop.all(), &[]);
    shop.expect(by_kind("second port"), &[], &shop.all());
    shop.expect(&named, &shop.on_node(1), &shop.on_node(2));
    ports("http");
    shop.expect(&named, &shop.all(), &[]);
    shop.expect(by_kind("cluster IP"), &shop.on_node(1), &shop.on_node(2));
    // The Service's own port is nobody's.
    ports("80");
    shop.expect(by_kind("cluster IP"), &[], &shop.all());
    shop.expect(&named, &[], &shop.all());
}

/// The other node translates, where nobody knows this client: all backends or none.
fn another_nodes_port_is_judged_by_all_backends_alone(shop: &Shop<'_, '_>) {
    let addresses = main_addresses(shop.cluster.lab, 2);
    let blocks: Vec<String> = addresses
        .iter()
        .map(|address| {
            let bits = if address.is_ipv4() { 32 } else { 128 };
            format!("{{ipBlock: {{cidr: '{address}/{bits}'}}}}")
        })
        .collect();
    let front = Front { kind: "another node's port", addresses, port: 30081 };
    let pods = |labels: &str| format!("{{podSelector: {{matchLabels: {labels}}}}}");
    shop.may(&format!("{{to: [{}]}}", pods("{app: web}")));
    shop.expect(&front, &shop.all(), &[]);
    // Also where the node's own address is allowed: a node port is the Service's.
    for node in ["", &format!(", {}", blocks.join(", "))] {
        for tier in ["{tier: good}", "{tier: other}"] {
            shop.may(&format!("{{to: [{}{node}]}}", pods(tier)));
            shop.expect(&front, &[], &shop.all());
        }
    }
}

/// Without a cluster IP there is nothing to translate: who resolves its name gets pods.
fn headless(shop: &Shop<'_, '_>) {
    let service = Service::new("headless", Vec::new()).port(8080, 8080);
    shop.with_all(service, &[8080]);
    shop.may("{to: [{podSelector: {matchLabels: {tier: good}}}]}");
    for backend in shop.all() {
        let addresses = backend.addresses.clone();
        let front = Front { kind: "headless", addresses, port: 8080 };
        if backend.name.starts_with("good") {
            shop.expect(&front, &[backend], &[]);
        } else {
            shop.expect(&front, &[], &[backend]);
        }
    }
}

/// Nobody is there: kube-proxy refuses, and netpol lets nobody else answer.
fn without_endpoints(shop: &Shop<'_, '_>) {
    let service = shop.cluster.service("nobody").port(80, 8080);
    shop.cluster.put(&service);
    for tier in ["{app: web}", "{tier: other}"] {
        shop.may(&format!("{{to: [{{podSelector: {{matchLabels: {tier}}}}}]}}"));
        shop.cluster.expect_nobody(&shop.client, &service.cluster_ips, 80);
    }
}

/// Only backends of the client's node: a part of those that the Service has.
fn local_traffic_policies(shop: &Shop<'_, '_>) {
    let service = shop.cluster.service("local").port(80, 8080).with("internalTrafficPolicy: Local");
    let service = shop.with_all(service, &[8080]);
    let addresses = shop.cluster.addresses("203.0.113.81", "2001:db8:1::81");
    let balanced = shop.cluster.service("balanced-local").port(80, 8080).node_ports(30085);
    let balanced = balanced.balancer(addresses).with("externalTrafficPolicy: Local");
    let balanced = shop.with_all(balanced, &[8080]);
    let front =
        |kind, addresses: &[IpAddr]| Front { kind, addresses: addresses.to_vec(), port: 80 };
    let internal = front("internalTrafficPolicy: Local", &service.cluster_ips);
    let external = front("externalTrafficPolicy: Local", &balanced.balancer_ips);
    shop.may("{to: [{podSelector: {matchLabels: {app: web}}}]}");
    shop.expect(&internal, &shop.on_node(1), &[]);
    shop.expect_traces(&internal, &shop.on_node(1), &[]);
    // For a pod the load balancer's address is as good as the cluster IP. (Where kube-proxy needs
    // to masquerade, it does not for these.)
    let works = shop.cluster.lab.topology.cni != Cni::BridgeWithoutNetfilter;
    if works {
        shop.expect(&external, &shop.all(), &[]);
        shop.expect_traces(&external, &shop.all(), &[]);
    }
    shop.may("{to: [{podSelector: {matchLabels: {tier: good}}}]}");
    shop.expect(&internal, &[&shop.good[0]], &[&shop.bad[0]]);
    shop.expect_traces(&internal, &[&shop.good[0]], &[&shop.bad[0]]);
    if works {
        shop.expect(&external, &[&shop.good[0], &shop.good[1]], &[&shop.bad[0], &shop.bad[1]]);
    }
    // Where the source is kept, the client is admitted; where it is not, nobody is.
    if works {
        local_policies_keep_the_source(shop, &external);
    }
}

fn local_policies_keep_the_source(shop: &Shop<'_, '_>, external: &Front) {
    shop.may("{to: [{podSelector: {matchLabels: {app: web}}}]}");
    let addresses = shop.cluster.addresses("203.0.113.80", "2001:db8:1::80");
    let masqueraded = Front { kind: "load balancer", addresses, port: 80 };
    shop.cluster.scene.policy(
        "local",
        "podSelector: {matchLabels: {tier: bad}}, policyTypes: [Ingress], \
         ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]",
    );
    shop.cluster.settle();
    shop.expect(external, &shop.all(), &[]);
    shop.expect_traces(external, &shop.all(), &[]);
    let (good, bad) = (shop.good.iter().collect::<Vec<_>>(), shop.bad.iter().collect::<Vec<_>>());
    shop.expect(&masqueraded, &good, &bad);
    shop.expect_traces(&masqueraded, &good, &bad);
    shop.cluster.scene.remove_policy("local");
    shop.cluster.settle();
}

/// Backends that are no pods: hosts outside, and nodes.
fn outside_and_on_hosts(shop: &Shop<'_, '_>) {
    let cluster = shop.cluster;
    let outside = cluster.outside_backend("outside", &[9090]);
    let hosts = [1, 2].map(|node| cluster.host_backend(&format!("host-{node}"), node, &[9091]));
    let good = &shop.good[0];
    let service = |name: &str, others: &[(&Backend, u16)]| {
        let mut service = cluster.service(name).port(80, 8080).to(good, &[8080]);
        for (backend, port) in others {
            service.add(backend, &[*port], "ready: true");
        }
        cluster.put(&service);
        Front { kind: "backends that are no pods", addresses: service.cluster_ips, port: 80 }
    };
    let with_outside = service("with-outside", &[(&outside, 9090)]);
    let with_hosts = service("with-hosts", &[(&hosts[0], 9091), (&hosts[1], 9091)]);
    let with_other_host = service("with-other-host", &[(&hosts[1], 9091)]);
    let to_good = "{podSelector: {matchLabels: {tier: good}}}";
    let blocks = |addresses: &[IpAddr]| -> String {
        addresses
            .iter()
            .map(|address| {
                let bits = if address.is_ipv4() { 32 } else { 128 };
                format!(", {{ipBlock: {{cidr: '{address}/{bits}'}}}}")
            })
            .collect()
    };
    shop.may(&format!("{{to: [{to_good}]}}"));
    shop.expect(&with_outside, &[good], &[&outside]);
    shop.expect(&with_other_host, &[good], &[&hosts[1]]);
    // A denied backend on this very node is delivered where nobody looks again: so all of it is
    // denied.
    shop.expect(&with_hosts, &[], &[good, &hosts[0], &hosts[1]]);
    shop.may(&format!("{{to: [{to_good}{}]}}", blocks(&outside.addresses)));
    shop.expect(&with_outside, &[good, &outside], &[]);
    shop.may(&format!("{{to: [{to_good}{}]}}", blocks(&hosts[0].addresses)));
    shop.expect(&with_hosts, &[good, &hosts[0]], &[&hosts[1]]);
    let both = [hosts[0].addresses.clone(), hosts[1].addresses.clone()].concat();
    shop.may(&format!("{{to: [{to_good}{}]}}", blocks(&both)));
    shop.expect(&with_hosts, &[good, &hosts[0], &hosts[1]], &[]);
    shop.may("{to: [{podSelector: {matchLabels: {tier: other}}}]}");
    for front in [&with_outside, &with_hosts, &with_other_host] {
        shop.expect(front, &[], &[good, &outside, &hosts[0], &hosts[1]]);
    }
}

/// Backends that choose their clients see these by their own address, also through a Service.
fn isolated_for_ingress(shop: &Shop<'_, '_>, front: &Front) {
    if shop.cluster.lab.topology.cni == Cni::BridgeWithoutNetfilter {
        // There kube-proxy masquerades everything: see the tests of that.
        return;
    }
    let admit = |who: &str| {
        shop.cluster.scene.policy(
            "web",
            &format!(
                "podSelector: {{matchLabels: {{tier: bad}}}}, policyTypes: [Ingress], ingress: \
                 [{{from: [{{podSelector: {{matchLabels: {{app: {who}}}}}}}], \
                 ports: [{{port: 8080}}, {{port: 8080, protocol: UDP}}]}}]"
            ),
        );
        shop.cluster.settle();
    };
    shop.may("{to: [{podSelector: {matchLabels: {app: web}}}]}");
    admit("other");
    shop.expect(front, &[&shop.good[0], &shop.good[1]], &[&shop.bad[0], &shop.bad[1]]);
    admit("client");
    shop.expect(front, &shop.all(), &[]);
}
