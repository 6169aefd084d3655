//! A pod calls its own Service: it reaches itself whatever isolates it, and others only as its
//! policies say. kube-proxy masquerades what comes back to its sender, so the pod sees an address
//! of the node. Needs root and the eBPF object.

use netpol_testkit::service_lab::Cluster;

netpol_testkit::on_every_network!(super::a_pod_reaches_itself);

fn a_pod_reaches_itself(cluster: &Cluster<'_>) {
    let (me, self_backend) = cluster.backend_pod("me", 1, "{app: web, who: me}", "[]", &[8080]);
    let near = cluster.backend("near", 1, "{app: web, tier: near}", &[8080]);
    let far = cluster.backend("far", 2, "{app: web, tier: far}", &[8080]);
    let addresses = cluster.addresses("203.0.113.90", "2001:db8:1::90");
    let sole = cluster.service("sole").port(80, 8080).to(&self_backend, &[8080]);
    let sole = sole.external(addresses);
    let several = cluster.service("several").port(80, 8080).selecting("{app: web}");
    let several = several.to(&self_backend, &[8080]).to(&near, &[8080]).to(&far, &[8080]);
    cluster.put(&sole);
    cluster.put(&several);
    let others = [&near, &far];
    for types in ["Ingress", "Egress", "Ingress, Egress"] {
        eprintln!("--- isolated for {types}");
        let is_egress = types.contains("Egress");
        isolate(cluster, types, "");
        cluster.expect_at(&me, &sole.cluster_ips, 80, &[&self_backend], &[]);
        cluster.expect_at(&me, &sole.external_ips, 80, &[&self_backend], &[]);
        cluster.expect_traces(&me, &sole.cluster_ips, 80, &[&self_backend], &[]);
        cluster.expect_traces(&me, &sole.external_ips, 80, &[&self_backend], &[]);
        if is_egress {
            cluster.expect_at(&me, &several.cluster_ips, 80, &[&self_backend], &others);
            cluster.expect_traces(&me, &several.cluster_ips, 80, &[&self_backend], &others);
        } else {
            let all = [&self_backend, &near, &far];
            cluster.expect_at(&me, &several.cluster_ips, 80, &all, &[]);
        }
    }
    // One of the others is allowed.
    isolate(
        cluster,
        "Ingress, Egress",
        ", egress: [{to: [{podSelector: {matchLabels: {tier: far}}}]}]",
    );
    cluster.expect_at(&me, &several.cluster_ips, 80, &[&self_backend, &far], &[&near]);
    // That it reaches itself lets nobody else in.
    isolate(cluster, "Ingress", "");
    let stranger = cluster.client("stranger", 1, "{app: stranger}");
    let distant = cluster.client("distant", 2, "{app: stranger}");
    cluster.settle();
    for client in [&stranger, &distant] {
        cluster.expect_at(client, &sole.cluster_ips, 80, &[], &[&self_backend]);
        cluster.expect_at(client, &several.cluster_ips, 80, &others, &[&self_backend]);
    }
}

fn isolate(cluster: &Cluster<'_>, types: &str, rules: &str) {
    let spec = format!("podSelector: {{matchLabels: {{who: me}}}}, policyTypes: [{types}]{rules}");
    cluster.scene.policy("me", &spec);
    cluster.settle();
}
