//! Services that nobody translates: what a pod sends to an address is judged by that address, as
//! long as it carries it where it leaves the node, whatever Service somebody has made of it. Needs
//! root and the eBPF object.

use netpol_testkit::service_lab::Cluster;

netpol_testkit::on_networks! { super::an_outside_address_is_opened_by_no_service,
    bridge: BRIDGE, Dual;
    routed: ROUTED, V6;
    overlay: OVERLAY, V4;
}

const FRIEND: &str = "{to: [{podSelector: {matchLabels: {app: friend}}}]}";

/// Somebody makes a Service of an outside host's address, with a backend that the client may
/// reach.
fn an_outside_address_is_opened_by_no_service(cluster: &Cluster<'_>) {
    let outside = cluster.outside_backend("outside", &[80]);
    let friend = cluster.backend("friend", 2, "{app: friend}", &[8080]);
    let client = cluster.client("client", 1, "{app: client}");
    let may = |rules: &str| {
        eprintln!("--- {rules}");
        cluster.scene.policy(
            "client",
            &format!(
                "podSelector: {{matchLabels: {{app: client}}}}, policyTypes: [Egress], \
                 egress: [{rules}]"
            ),
        );
        cluster.settle();
    };
    let expect = |may: &[_], must_not: &[_]| {
        cluster.expect_at(&client, &outside.addresses, 80, may, must_not);
    };
    may(FRIEND);
    expect(&[], &[&outside, &friend]);
    let trap = cluster.service("trap").port(80, 8080).external(outside.addresses.clone());
    let trap = trap.to(&friend, &[8080]);
    let labelled = |label| trap.clone().labelled(label);
    let foreign = labelled("service.kubernetes.io/service-proxy-name: another");
    let headless = labelled("service.kubernetes.io/headless: ''");

    // The proxy has not heard of it, or does not handle it.
    for service in [&trap, &foreign, &headless] {
        cluster.tell_netpol(service);
        cluster.settle();
        expect(&[], &[&outside, &friend]);
    }
    // It is an address like any other, also to those who may reach it.
    let blocks: Vec<String> = outside
        .addresses
        .iter()
        .map(|address| format!("{{ipBlock: {{cidr: '{}'}}}}", ipnet::IpNet::from(*address)))
        .collect();
    may(&format!("{FRIEND}, {{to: [{}]}}", blocks.join(", ")));
    for service in [&trap, &foreign, &headless] {
        cluster.tell_netpol(service);
        cluster.settle();
        expect(&[&outside], &[]);
    }
    may(&format!("{{to: [{}]}}", blocks.join(", ")));
    cluster.tell_netpol(&foreign);
    cluster.settle();
    expect(&[&outside], &[]);

    // Translated it goes to who stands behind it.
    may(FRIEND);
    cluster.put(&trap);
    cluster.settle();
    expect(&[&friend], &[]);
}
