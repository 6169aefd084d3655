//! The rows of the semantics table that say what a policy means: who, what and which pods. On the
//! wire, between real pods of two nodes, on every kind of network. Needs root and the eBPF object.
//! Must never look at compiled tables: only packets and drop counters count.

use std::net::{IpAddr, SocketAddr};

use netpol_testkit::lab::packets;
use netpol_testkit::lab::probe::{At, Protocol};
use netpol_testkit::lab::{Pod, Scene};

netpol_testkit::rows! {
    both: [
        union,
        policy_types_defaulting,
        selectors,
        host_network_pods,
        finished_pods,
        terminating_pods,
        ip_blocks,
        ports,
        named_ports,
        both_ends,
        replies,
        unselected_pods,
    ],
    v4: [ip_blocks_of_a_family],
    v6: [],
}

/// Policies add up: a rule allows where peer and port match, and one of them is enough.
fn union(scene: &Scene<'_>) {
    let server = scene.pod("server", 1, "{app: server}");
    let [friend, mate] =
        [("friend", 1), ("mate", 2)].map(|(n, node)| scene.pod(n, node, &format!("{{role: {n}}}")));
    let open = scene.pod("open", 2, "{app: open}");
    (80..83).for_each(|port| scene.serve(&server, port));
    scene.serve(&open, 80);
    let isolates = "podSelector: {matchLabels: {app: server}}";
    for (role, port) in [("friend", 80), ("mate", 81)] {
        let ports = format!("[{{port: {port}}}, {{port: {port}, protocol: UDP}}]");
        let from = format!("[{{podSelector: {{matchLabels: {{role: {role}}}}}}}]");
        scene.policy(role, &format!("{isolates}, ingress: [{{from: {from}, ports: {ports}}}]"));
    }
    // No peers at all is any peer, and no ports at all any port.
    let ports = "[{port: 82}, {port: 82, protocol: UDP}]";
    scene.policy("any", &format!("{isolates}, ingress: [{{from: [], ports: {ports}}}]"));
    scene.policy("all", "podSelector: {matchLabels: {app: open}}, ingress: [{}]");
    scene.settle();
    scene.allowed(&friend, &server, 80);
    scene.allowed(&mate, &server, 81);
    scene.denied(&friend, &server, 81, At::ingress(&server));
    scene.denied(&mate, &server, 80, At::ingress(&server));
    for client in [&friend, &mate, &open] {
        scene.allowed(client, &server, 82);
        scene.denied(client, &server, 83, At::ingress(&server));
        scene.allowed(client, &open, 80);
    }
    scene.policy("all", "podSelector: {matchLabels: {app: open}}, ingress: []");
    scene.settle();
    scene.denied(&mate, &open, 80, At::ingress(&open));
}

/// Absent, null and empty alike: Ingress always, Egress if there is an egress rule.
fn policy_types_defaulting(scene: &Scene<'_>) {
    let client = scene.pod("client", 2, "{}");
    (80..82).for_each(|port| scene.serve(&client, port));
    let rule =
        "egress: [{to: [{podSelector: {}}], ports: [{port: 80}, {port: 80, protocol: UDP}]}]";
    let forms = [("absent", ""), ("null", "policyTypes: null, "), ("empty", "policyTypes: [], ")];
    let mut pods: Vec<(Pod, &str)> = Vec::new();
    for (form, types) in forms {
        for (egress, text) in [("none", "ingress: []"), ("no-rule", "egress: []"), ("rule", rule)] {
            let name = format!("{form}-{egress}");
            let pod = scene.pod(&name, 1, &format!("{{app: {name}}}"));
            scene.serve(&pod, 80);
            scene.policy(
                &name,
                &format!("{types}podSelector: {{matchLabels: {{app: {name}}}}}, {text}"),
            );
            pods.push((pod, egress));
        }
    }
    scene.settle();
    for (pod, egress) in &pods {
        scene.denied(&client, pod, 80, At::ingress(pod));
        scene.allowed(pod, &client, 80);
        if *egress == "rule" {
            scene.denied(pod, &client, 81, At::egress(pod));
        } else {
            scene.allowed(pod, &client, 81);
        }
    }
}

/// podSelector alone is the policy's namespace, with a namespaceSelector both must match; every
/// operator; an empty selector is everyone.
fn selectors(scene: &Scene<'_>) {
    let other = scene.lab.scene("selectors-other");
    let server = scene.pod("server", 1, "{app: server}");
    let x = scene.pod("x", 2, "{role: x}");
    let plain = scene.pod("plain", 1, "{}");
    let other_x = other.pod("x", 1, "{role: x}");
    let other_z = other.pod("other", 2, "{role: w}");
    let others = "namespaceSelector: {matchLabels: {name: selectors-other}}";
    let expression = |text: &str| {
        format!(
            "namespaceSelector: {{}}, podSelector: {{matchExpressions: [{{key: role, {text}}}]}}"
        )
    };
    let cases: [(String, &[&Pod]); 8] = [
        ("podSelector: {matchLabels: {role: x}}".into(), &[&x]),
        (others.into(), &[&other_x, &other_z]),
        (format!("{others}, podSelector: {{matchLabels: {{role: x}}}}"), &[&other_x]),
        (expression("operator: In, values: [x, z]"), &[&x, &other_x]),
        (expression("operator: NotIn, values: [x]"), &[&plain, &other_z]),
        (expression("operator: Exists"), &[&x, &other_x, &other_z]),
        (expression("operator: DoesNotExist"), &[&plain]),
        ("podSelector: {}".into(), &[&x, &plain]),
    ];
    let mut rules = Vec::new();
    for (port, (peer, _)) in (80..).zip(&cases) {
        scene.serve(&server, port);
        let ports = format!("[{{port: {port}}}, {{port: {port}, protocol: UDP}}]");
        rules.push(format!("{{from: [{{{peer}}}], ports: {ports}}}"));
    }
    let ingress = rules.join(", ");
    scene.policy(
        "p",
        &format!("podSelector: {{matchLabels: {{app: server}}}}, ingress: [{ingress}]"),
    );
    scene.settle();
    for (port, (_, may)) in (80..).zip(&cases) {
        for client in [&x, &plain, &other_x, &other_z] {
            if may.iter().any(|pod| std::ptr::eq(*pod, client)) {
                scene.allowed(client, &server, port);
            } else {
                scene.denied(client, &server, port, At::ingress(&server));
            }
        }
    }
}

/// A pod in its node's network is node traffic: no selector matches it, and none isolates it.
fn host_network_pods(scene: &Scene<'_>) {
    const PORT: u16 = 9101;
    let lab = scene.lab;
    let server = scene.pod("server", 1, "{app: server}");
    let peer = scene.pod("peer", 2, "{role: peer}");
    scene.serve(&server, 80);
    let addresses: Vec<IpAddr> = main_addresses(scene, 2);
    for &address in &addresses {
        scene.serve_at(&lab.node(2).netns, SocketAddr::new(address, PORT));
    }
    let spec = "hostNetwork: true, containers: [{name: c}]";
    scene.declare_at("on-host", 2, &addresses, "{role: peer}", spec, "Running", "uid: on-host");
    scene.policy("all", "podSelector: {}, ingress: [{from: [{podSelector: {}}]}]");
    scene.settle();
    scene.allowed(&peer, &server, 80);
    scene.denied_from(&lab.node(2).netns, &server.addresses, 80, At::ingress(&server));
    // The policy selects it, and names everyone in the namespace; outside is not of them.
    scene.allowed_from(&peer.netns, &addresses, PORT);
    scene.allowed_from(&lab.outside, &addresses, PORT);
    scene.denied_from(&lab.outside, &server.addresses, 80, At::ingress(&server));
}

/// The node's first address of each family.
fn main_addresses(scene: &Scene<'_>, node: usize) -> Vec<IpAddr> {
    let all = scene.lab.node_addresses(node);
    let first = |v4| all.iter().copied().find(|address: &IpAddr| address.is_ipv4() == v4);
    [first(true), first(false)].into_iter().flatten().collect()
}

/// Succeeded and failed pods own no address any more: they are no peers. What runs there all the
/// same stays isolated for as long as it has its interface.
fn finished_pods(scene: &Scene<'_>) {
    let server = scene.pod("server", 1, "{app: server}");
    scene.serve(&server, 80);
    let jobs =
        [("done", 1), ("broken", 2)].map(|(name, node)| scene.pod(name, node, "{role: job}"));
    jobs.iter().for_each(|job| scene.serve(job, 80));
    let jobs_only = "ingress: [{from: [{podSelector: {matchLabels: {role: job}}}]}]";
    scene.policy("server", &format!("podSelector: {{matchLabels: {{app: server}}}}, {jobs_only}"));
    scene.policy("jobs", "podSelector: {matchLabels: {role: job}}");
    scene.settle();
    for job in &jobs {
        scene.allowed(job, &server, 80);
        scene.denied(&server, job, 80, At::ingress(job));
    }
    for (job, phase) in jobs.iter().zip(["Succeeded", "Failed"]) {
        scene.declare_as(job, "{role: job}", "containers: [{name: c}]", phase, "");
    }
    scene.settle();
    for job in &jobs {
        scene.denied(job, &server, 80, At::ingress(&server));
        scene.denied(&server, job, 80, At::ingress(job));
    }
}

/// A pod that is being deleted stays isolated and stays a peer until it ends.
fn terminating_pods(scene: &Scene<'_>) {
    let server = scene.pod("server", 1, "{app: server}");
    let going = scene.pod("going", 2, "{role: going}");
    let stranger = scene.pod("stranger", 2, "{}");
    [&server, &going].iter().for_each(|pod| scene.serve(pod, 80));
    let going_only = "ingress: [{from: [{podSelector: {matchLabels: {role: going}}}]}]";
    scene.policy("server", &format!("podSelector: {{matchLabels: {{app: server}}}}, {going_only}"));
    scene.policy("going", "podSelector: {matchLabels: {role: going}}");
    let deletion = "deletionTimestamp: \"2026-01-01T00:00:00Z\", deletionGracePeriodSeconds: 600";
    for metadata in ["", deletion] {
        scene.declare_as(&going, "{role: going}", "containers: [{name: c}]", "Running", metadata);
        scene.settle();
        scene.allowed(&going, &server, 80);
        scene.denied(&stranger, &server, 80, At::ingress(&server));
        scene.denied(&stranger, &going, 80, At::ingress(&going));
    }
    // When its object is gone, whoever still sends from its address is nobody. What runs there all
    // the same stays isolated for as long as it has its interface.
    scene.remove("pod-going");
    scene.settle();
    scene.denied(&going, &server, 80, At::ingress(&server));
    scene.denied(&stranger, &going, 80, At::ingress(&going));
}

/// Blocks of both families, from a function of the family's number (4 or 6).
fn blocks(scene: &Scene<'_>, of: impl Fn(usize) -> Option<String>) -> String {
    let has = |v4| scene.lab.node_addresses(1).iter().any(|address| address.is_ipv4() == v4);
    let families = [(0, has(true)), (1, has(false))];
    let list = families.into_iter().filter(|&(_, is_there)| is_there);
    list.filter_map(|(family, _)| of(family)).collect::<Vec<_>>().join(", ")
}

/// By address, pods included; except takes from its own block only; host bits are masked.
fn ip_blocks(scene: &Scene<'_>) {
    let server = scene.pod("server", 1, "{app: server}");
    let [a, b] = ["a", "b"].map(|name| scene.pod(name, 1, "{}"));
    let [c, d] = ["c", "d"].map(|name| scene.pod(name, 2, "{}"));
    let outside = &scene.lab.outside;
    let own = |pod: &Pod, family: usize| {
        let address = pod.addresses.iter().find(|address| usize::from(address.is_ipv6()) == family);
        format!("{}/{}", address.unwrap(), [32, 128][family])
    };
    let block = |cidr: &str| format!("{{ipBlock: {{cidr: \"{cidr}\"}}}}");
    let except = |cidr: &str, except: &str| {
        format!("{{ipBlock: {{cidr: \"{cidr}\", except: [\"{except}\"]}}}}")
    };
    let subnet = |node: usize, family: usize| {
        [format!("10.244.{node}.0/24"), format!("fd00:10:244:{node}::/64")][family].clone()
    };
    let cluster = ["10.244.0.0/16", "fd00:10:244::/48"];
    let with_host_bits = ["10.244.1.77/24", "fd00:10:244:1::77:7/64"];
    let [world, beyond] = [["198.51.100.0/24", "2001:db8::/32"], ["0.0.0.0/0", "::/0"]];
    // Port, peers, and which of a, b, c, d and the host outside they allow.
    let cases: [(String, [bool; 5]); 7] = [
        (blocks(scene, |f| Some(block(&own(&a, f)))), [true, false, false, false, false]),
        (
            blocks(scene, |f| Some(except(&subnet(1, f), &own(&a, f)))),
            [false, true, false, false, false],
        ),
        (
            // c is taken out of one block and named by another: the union counts.
            blocks(scene, |f| {
                let named = block(&own(&c, f));
                Some(format!("{}, {named}", except(cluster[f], &subnet(2, f))))
            }),
            [true, true, true, false, false],
        ),
        (blocks(scene, |f| Some(block(with_host_bits[f]))), [true, true, false, false, false]),
        (blocks(scene, |f| Some(block(world[f]))), [false, false, false, false, true]),
        (
            blocks(scene, |f| Some(except(beyond[f], cluster[f]))),
            [false, false, false, false, true],
        ),
        (blocks(scene, |f| Some(block(beyond[f]))), [true; 5]),
    ];
    let mut rules = Vec::new();
    for (port, (peers, _)) in (80..).zip(&cases) {
        scene.serve(&server, port);
        let ports = format!("[{{port: {port}}}, {{port: {port}, protocol: UDP}}]");
        rules.push(format!("{{from: [{peers}], ports: {ports}}}"));
    }
    let ingress = rules.join(", ");
    scene.policy(
        "p",
        &format!("podSelector: {{matchLabels: {{app: server}}}}, ingress: [{ingress}]"),
    );
    scene.settle();
    let clients = [&a.netns, &b.netns, &c.netns, &d.netns, outside];
    for (port, (_, may)) in (80..).zip(&cases) {
        for (client, may) in clients.iter().zip(may) {
            if *may {
                scene.allowed_from(client, &server.addresses, port);
            } else {
                scene.denied_from(client, &server.addresses, port, At::ingress(&server));
            }
        }
    }
}

/// 0.0.0.0/0 is IPv4 and nothing of IPv6, in both directions.
fn ip_blocks_of_a_family(scene: &Scene<'_>) {
    let server = scene.pod("server", 1, "{app: server}");
    let client = scene.pod("client", 2, "{app: client}");
    [&server, &client].iter().for_each(|pod| scene.serve(pod, 80));
    let everyone = "[{ipBlock: {cidr: 0.0.0.0/0}}]";
    scene.policy(
        "v4",
        &format!(
            "podSelector: {{matchLabels: {{app: server}}}}, policyTypes: [Ingress, Egress], \
             ingress: [{{from: {everyone}}}], egress: [{{to: {everyone}}}]"
        ),
    );
    scene.settle();
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        for &address in &server.addresses {
            let (to, back) = (SocketAddr::new(address, 80), client.address(address));
            if address.is_ipv4() {
                scene.allows(&client.netns, to, protocol);
                scene.allows(&server.netns, SocketAddr::new(back, 80), protocol);
            } else {
                let at = At::ingress(&server);
                scene.denies(&client.netns, to, protocol, Some(&server), at);
                let (to, at) = (SocketAddr::new(back, 80), At::egress(&server));
                scene.denies(&server.netns, to, protocol, Some(&client), at);
            }
        }
    }
    scene.policy("v4", "podSelector: {matchLabels: {app: server}}, ingress: []");
    scene.settle();
    scene.denied(&client, &server, 80, At::ingress(&server));
}

/// A number, a range with both its ends, a protocol; an empty port is every TCP port.
fn ports(scene: &Scene<'_>) {
    let server = scene.pod("server", 1, "{app: server}");
    let every = scene.pod("every", 2, "{app: every}");
    let client = scene.pod("client", 2, "{}");
    scene.policy(
        "some",
        "podSelector: {matchLabels: {app: server}}, ingress: [{ports: [{port: 80}, {port: 81, \
         protocol: UDP}, {port: 90, endPort: 92}, {port: 3868, protocol: SCTP}]}]",
    );
    scene.policy("tcp", "podSelector: {matchLabels: {app: every}}, ingress: [{ports: [{}]}]");
    [80, 81, 90, 91, 92].iter().for_each(|&port| scene.serve(&server, port));
    [1, 80, 65_535].iter().for_each(|&port| scene.serve(&every, port));
    scene.settle();
    let tries = |to: &Pod, port: u16, protocol, is_allowed| {
        for &address in &to.addresses {
            let target = SocketAddr::new(address, port);
            if is_allowed {
                scene.allows(&client.netns, target, protocol);
            } else {
                scene.denies(&client.netns, target, protocol, Some(to), At::ingress(to));
            }
        }
    };
    let on_tcp = [80, 90, 91, 92];
    for port in [79, 80, 81, 82, 89, 90, 91, 92, 93, 3868] {
        tries(&server, port, Protocol::Tcp, on_tcp.contains(&port));
        tries(&server, port, Protocol::Udp, port == 81);
        sctp(scene, &client, &server, port, port == 3868);
    }
    for port in [1, 80, 65_535] {
        tries(&every, port, Protocol::Tcp, true);
        tries(&every, port, Protocol::Udp, false);
        sctp(scene, &client, &every, port, false);
    }
}

/// An SCTP INIT arrives, or is dropped on its way in.
fn sctp(scene: &Scene<'_>, from: &Pod, to: &Pod, port: u16, is_allowed: bool) {
    for &destination in &to.addresses {
        let (source, tag) = (from.address(destination), packets::tag());
        let init = packets::sctp_init(source, destination, (40_000 + port % 20_000, port), tag);
        if is_allowed {
            scene.arrives(&from.netns, &init, tag, to);
        } else {
            scene.is_lost(&from.netns, &init, tag, to, At::ingress(to));
        }
    }
}

/// A name is looked up on the destination, by protocol and name, and may be another number there.
fn named_ports(scene: &Scene<'_>) {
    let client = scene.pod("client", 1, "{app: client}");
    let stranger = scene.pod("stranger", 2, "{}");
    let declared = |number| {
        format!(
            "[{{name: web, containerPort: {number}}}, \
             {{name: web-udp, containerPort: {number}, protocol: UDP}}, \
             {{name: dns, containerPort: 53, protocol: UDP}}]"
        )
    };
    let servers = [("one", 1, 8080), ("two", 2, 9090)].map(|(name, node, number)| {
        scene.pod_with_ports(name, node, "{app: server}", &declared(number))
    });
    for server in &servers {
        [53, 8080, 9090].iter().for_each(|&port| scene.serve(server, port));
    }
    // The name dns belongs to a UDP port: by TCP it means nothing.
    let ports = "[{port: web}, {port: web-udp, protocol: UDP}, {port: dns, protocol: TCP}]";
    scene.policy(
        "out",
        &format!(
            "podSelector: {{matchLabels: {{app: client}}}}, policyTypes: [Egress], \
             egress: [{{ports: {ports}}}]"
        ),
    );
    scene.settle();
    for (server, [own, others]) in servers.iter().zip([[8080, 9090], [9090, 8080]]) {
        scene.allowed(&client, server, own);
        scene.denied(&client, server, others, At::egress(&client));
        scene.denied(&client, server, 53, At::egress(&client));
    }
    scene.remove_policy("out");
    scene.policy(
        "in",
        &format!("podSelector: {{matchLabels: {{app: server}}}}, ingress: [{{ports: {ports}}}]"),
    );
    scene.settle();
    for (server, [own, others]) in servers.iter().zip([[8080, 9090], [9090, 8080]]) {
        scene.allowed(&stranger, server, own);
        scene.denied(&stranger, server, others, At::ingress(server));
        scene.denied(&stranger, server, 53, At::ingress(server));
    }
}

/// What leaves one isolated pod for another needs a policy at each end.
fn both_ends(scene: &Scene<'_>) {
    let from = scene.pod("from", 1, "{app: from}");
    let to = [1, 2].map(|node| scene.pod(&format!("to-{node}"), node, "{app: to}"));
    to.iter().for_each(|pod| scene.serve(pod, 80));
    let sender = |rules: &str| {
        let spec = "podSelector: {matchLabels: {app: from}}, policyTypes: [Egress]";
        scene.policy("sender", &format!("{spec}, egress: [{rules}]"));
    };
    let receiver = |rules: &str| {
        let spec = "podSelector: {matchLabels: {app: to}}, policyTypes: [Ingress]";
        scene.policy("receiver", &format!("{spec}, ingress: [{rules}]"));
    };
    let yes_out = "{to: [{podSelector: {matchLabels: {app: to}}}]}";
    let yes_in = "{from: [{podSelector: {matchLabels: {app: from}}}]}";
    for (out, into) in [("", ""), ("", yes_in), (yes_out, ""), (yes_out, yes_in)] {
        sender(out);
        receiver(into);
        scene.settle();
        for to in &to {
            match (out.is_empty(), into.is_empty()) {
                (true, _) => scene.denied(&from, to, 80, At::egress(&from)),
                (false, true) => scene.denied(&from, to, 80, At::ingress(to)),
                (false, false) => scene.allowed(&from, to, 80),
            }
        }
    }
}

/// Answers pass though nothing may be opened that way.
fn replies(scene: &Scene<'_>) {
    let client = scene.pod("client", 1, "{app: client}");
    let servers = [1, 2].map(|node| scene.pod(&format!("server-{node}"), node, "{app: server}"));
    scene.serve(&client, 80);
    servers.iter().for_each(|server| scene.serve(server, 80));
    let both = "policyTypes: [Ingress, Egress]";
    scene.policy(
        "client",
        &format!(
            "podSelector: {{matchLabels: {{app: client}}}}, {both}, \
             egress: [{{to: [{{podSelector: {{matchLabels: {{app: server}}}}}}]}}]"
        ),
    );
    scene.policy(
        "server",
        &format!(
            "podSelector: {{matchLabels: {{app: server}}}}, {both}, \
             ingress: [{{from: [{{podSelector: {{matchLabels: {{app: client}}}}}}]}}]"
        ),
    );
    scene.settle();
    for server in &servers {
        scene.allowed(&client, server, 80);
        scene.denied(server, &client, 80, At::egress(server));
    }
    // With its own egress open, it is the client that stays closed.
    scene.policy(
        "server",
        "podSelector: {matchLabels: {app: server}}, \
         ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]",
    );
    scene.settle();
    for server in &servers {
        scene.allowed(&client, server, 80);
        scene.denied(server, &client, 80, At::ingress(&client));
    }
}

/// Where no policy selects a pod, nothing of netpol is in its way but the guard.
fn unselected_pods(scene: &Scene<'_>) {
    let pods = [1, 2].map(|node| scene.pod(&format!("pod-{node}"), node, "{app: pod}"));
    let client = scene.pod("client", 1, "{}");
    pods.iter().for_each(|pod| scene.serve(pod, 80));
    for round in 0..2 {
        scene.settle();
        for pod in &pods {
            scene.allowed(&client, pod, 80);
            // Other scenes of the lab may have policies, and guards come one by one.
            let programs = scene.lab.programs(pod);
            let is_guard = |program: &String| scene.lab.guards().contains(&program.as_str());
            assert!(programs.iter().all(is_guard), "round {round}: {} has {programs:?}", pod.name);
        }
        scene.policy("p", "podSelector: {matchLabels: {app: pod}}");
        scene.settle();
        for pod in &pods {
            scene.denied(&client, pod, 80, At::ingress(pod));
            let programs = scene.lab.programs(pod);
            assert_eq!(
                programs,
                ["netpol_egress", "netpol_ingress"],
                "round {round}: {}",
                pod.name
            );
        }
        assert_eq!(scene.lab.programs(&client), scene.lab.guards());
        scene.remove_policy("p");
    }
}
