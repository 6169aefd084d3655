//! Tiers as packets: what ClusterNetworkPolicies take away, pass on and give, on every kind of network.
//! Needs root and the eBPF object. Must never look at compiled tables.

use netpol_testkit::lab::Scene;
use netpol_testkit::lab::probe::At;

netpol_testkit::rows! {
    both: [admin_before_all, baseline_after_all],
    v4: [],
    v6: [],
}

const CLIENT: &str = "{matchLabels: {app: client}}";

/// The port 80 of TCP and UDP.
const WEB: &str =
    "[{tcp: {destinationPort: {number: 80}}}, {udp: {destinationPort: {number: 80}}}]";

/// Accept and Deny stand above what NetworkPolicies say, and Pass leaves it to them.
fn admin_before_all(scene: &Scene<'_>) {
    let client = scene.pod("client", 1, "{app: client}");
    let server = scene.pod("server", 2, "{app: server}");
    let other = scene.pod("other", 1, "{app: other}");
    (80..83).for_each(|port| scene.serve(&server, port));
    scene.serve(&other, 80);
    let to = scene.peer("{matchLabels: {app: server}}");
    let accept = format!("{{action: Accept, to: [{to}], protocols: {WEB}}}");
    let deny = format!("{{action: Deny, to: [{to}]}}");
    scene.cluster_policy("a", "Admin", CLIENT, &format!("egress: [{accept}, {deny}]"));
    scene.settle();
    scene.allowed(&client, &server, 80);
    scene.denied(&client, &server, 81, At::egress(&client));
    scene.ping_is_lost(&client, &server, At::egress(&client));
    scene.allowed(&client, &other, 80);
    scene.pings(&client, &other);
    // A NetworkPolicy that allows what is denied, and denies what is accepted.
    let allow =
        "egress: [{to: [{podSelector: {}}], ports: [{port: 81}, {port: 81, protocol: UDP}]}]";
    scene.policy("np", &format!("podSelector: {CLIENT}, policyTypes: [Egress], {allow}"));
    scene.settle();
    scene.allowed(&client, &server, 80);
    scene.denied(&client, &server, 81, At::egress(&client));
    scene.denied(&client, &other, 80, At::egress(&client));
    let pass = format!("{{action: Pass, to: [{to}]}}");
    scene.cluster_policy("a", "Admin", CLIENT, &format!("egress: [{pass}, {deny}]"));
    scene.settle();
    scene.allowed(&client, &server, 81);
    scene.denied(&client, &server, 80, At::egress(&client));
    scene.remove_cluster_policy("a");
    scene.remove_policy("np");
    scene.settle();
    scene.allowed(&client, &server, 82);
    // What comes in, likewise.
    let from = scene.peer(CLIENT);
    let server_pods = "{matchLabels: {app: server}}";
    let rules = format!("ingress: [{{action: Deny, from: [{from}], protocols: {WEB}}}]");
    scene.cluster_policy("in", "Admin", server_pods, &rules);
    scene.settle();
    scene.denied(&client, &server, 80, At::ingress(&server));
    scene.allowed(&client, &server, 81);
    scene.allowed(&other, &server, 80);
    scene.pings(&client, &server);
    scene.remove_cluster_policy("in");
}

/// The baseline holds where no NetworkPolicy selects the pod in the direction.
fn baseline_after_all(scene: &Scene<'_>) {
    let client = scene.pod("client", 1, "{app: client}");
    let server = scene.pod("server", 2, "{app: server}");
    scene.serve(&server, 80);
    scene.serve(&client, 80);
    let all = scene.peer("{}");
    let rules = format!("egress: [{{action: Deny, to: [{all}]}}]");
    scene.cluster_policy("b", "Baseline", "{}", &rules);
    scene.settle();
    scene.denied(&client, &server, 80, At::egress(&client));
    scene.denied(&server, &client, 80, At::egress(&server));
    // For one direction only: it says nothing of the other.
    scene.policy("in", &format!("podSelector: {CLIENT}, ingress: [{{}}]"));
    scene.settle();
    scene.denied(&client, &server, 80, At::egress(&client));
    scene.policy("out", &format!("podSelector: {CLIENT}, policyTypes: [Egress], egress: [{{}}]"));
    scene.settle();
    scene.allowed(&client, &server, 80);
    scene.denied(&server, &client, 80, At::egress(&server));
    scene.remove_cluster_policy("b");
    scene.settle();
    scene.allowed(&server, &client, 80);
}
