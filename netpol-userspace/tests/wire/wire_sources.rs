//! The rows of the semantics table about who a packet is from: a pod's own addresses, its own
//! node, other nodes, itself. Nothing but netpol checks sources in these networks. Needs root and
//! the eBPF object. Must never send a forged packet outside the lab.

use netpol_testkit::world;
use std::net::{IpAddr, SocketAddr};

use netpol_common::layout::Reason;
use netpol_testkit::lab::packets;
use netpol_testkit::lab::probe::{At, Protocol};
use netpol_testkit::lab::wire::{IPV4, IPV6, Wire};
use netpol_testkit::lab::{Families, Lab, Pod, Scene, topology};

const BOTH: [Protocol; 2] = [Protocol::Udp, Protocol::Tcp];

netpol_testkit::rows! {
    both: [
        source_address,
        addresses_that_a_pod_gives_itself,
        addresses_that_are_declared_later,
        own_node,
        own_node_address_claimed_by_others,
        other_nodes,
        pod_to_own_node,
        pod_to_itself,
    ],
    v4: [],
    v6: [],
}

/// Addresses that are not this pod's: another pod's, the nodes', outside, nobody's.
fn foreign_addresses(scene: &Scene<'_>, other: &Pod) -> Vec<IpAddr> {
    let mut all = other.addresses.clone();
    all.extend(scene.lab.node_addresses(1));
    all.extend(scene.lab.node_addresses(2));
    all.extend(scene.lab.outside_addresses());
    let nobody = ["192.0.2.1", "2001:db8:ffff::1"].map(|address| address.parse().unwrap());
    all.extend(nobody.into_iter().filter(|&address| scene.lab.families.include(address)));
    all
}

/// Packets with a forged source to `to`: UDP, TCP and ping, each with its tag.
fn forgeries(source: IpAddr, to: &Pod, port: u16) -> [(Vec<u8>, packets::Tag); 3] {
    let destination = to.address(source);
    let [a, b, c] = [(); 3].map(|()| packets::tag());
    [
        (packets::udp(source, destination, (4000, port), a), a),
        (packets::tcp_syn(source, destination, (4001, port), b), b),
        (packets::ping(source, destination, 4002, c), c),
    ]
}

/// An isolated pod sends only from its own addresses, whichever direction isolates it.
fn source_address(scene: &Scene<'_>) {
    let isolated = scene.pod("isolated", 1, "{app: isolated}");
    let free = scene.pod("free", 1, "{}");
    let targets = [1, 2].map(|node| scene.pod(&format!("target-{node}"), node, "{}"));
    let selects = "podSelector: {matchLabels: {app: isolated}}";
    for spec in ["policyTypes: [Ingress]", "policyTypes: [Egress], egress: [{}]"] {
        scene.policy("isolates", &format!("{selects}, {spec}"));
        scene.settle();
        let at = At::egress(&isolated).because(Reason::SourceAddress);
        for target in &targets {
            for source in foreign_addresses(scene, &free) {
                for (packet, tag) in forgeries(source, target, 80) {
                    scene.is_lost(&isolated.netns, &packet, tag, target, at);
                }
            }
            for &source in &isolated.addresses {
                for (packet, tag) in forgeries(source, target, 80) {
                    scene.arrives(&isolated.netns, &packet, tag, target);
                }
            }
        }
    }
    // Nor does one that no policy selects, which may say whatever it likes as itself.
    let at = At::egress(&free).because(Reason::SourceAddress);
    for target in &targets {
        for source in foreign_addresses(scene, &isolated) {
            for (packet, tag) in forgeries(source, target, 80) {
                scene.is_lost(&free.netns, &packet, tag, target, at);
            }
        }
        for &source in &free.addresses {
            for (packet, tag) in forgeries(source, target, 80) {
                scene.arrives(&free.netns, &packet, tag, target);
            }
        }
    }
}

/// `--source-check isolated`: pods that no policy selects are left alone.
#[test]
fn source_check_isolated() {
    for topology in [topology::BRIDGE, topology::ROUTED] {
        let lab = Lab::with_arguments(topology, Families::Dual, &["--source-check", "isolated"]);
        let scene = lab.scene("isolated");
        let isolated = scene.pod("isolated", 1, "{app: isolated}");
        let free = scene.pod("free", 1, "{}");
        let target = scene.pod("target", 2, "{}");
        scene.policy("isolates", "podSelector: {matchLabels: {app: isolated}}");
        scene.settle();
        assert_eq!(lab.programs(&free), [""; 0]);
        let at = At::egress(&isolated).because(Reason::SourceAddress);
        for source in foreign_addresses(&scene, &target) {
            for (packet, tag) in forgeries(source, &target, 80) {
                scene.is_lost(&isolated.netns, &packet, tag, &target, at);
            }
            for (packet, tag) in forgeries(source, &target, 80) {
                scene.arrives(&free.netns, &packet, tag, &target);
            }
        }
    }
}

/// `--source-check off`: the same packets pass, and policy still holds.
#[test]
fn source_check_off() {
    let arguments = ["--source-check", "off"];
    for topology in [topology::BRIDGE, topology::ROUTED] {
        let lab = Lab::with_arguments(topology, Families::Dual, &arguments);
        let scene = lab.scene("unchecked");
        let isolated = scene.pod("isolated", 1, "{app: isolated}");
        let target = scene.pod("target", 2, "{}");
        let ports = "[{port: 80}, {port: 80, protocol: UDP}]";
        scene.policy(
            "isolates",
            &format!(
                "podSelector: {{matchLabels: {{app: isolated}}}}, policyTypes: [Ingress, Egress], \
                 egress: [{{ports: {ports}}}]"
            ),
        );
        scene.settle();
        for source in foreign_addresses(&scene, &target) {
            let [udp, tcp, ping] = forgeries(source, &target, 80);
            for (packet, tag) in [udp, tcp] {
                scene.arrives(&isolated.netns, &packet, tag, &target);
            }
            let [udp, tcp, _] = forgeries(source, &target, 81);
            for (packet, tag) in [ping, udp, tcp] {
                scene.is_lost(&isolated.netns, &packet, tag, &target, At::egress(&isolated));
            }
        }
    }
}

/// An address that a pod gives itself is not its own: neither may it send from there, nor is what it
/// sends there a packet to itself.
fn addresses_that_a_pod_gives_itself(scene: &Scene<'_>) {
    let closed = scene.pod("closed", 1, "{app: closed}");
    let free = scene.pod("free", 1, "{}");
    let target = scene.pod("target", 2, "{}");
    scene.policy("p", "podSelector: {matchLabels: {app: closed}}, policyTypes: [Ingress, Egress]");
    scene.settle();
    let agent = scene.lab.node(1).agent.as_ref().unwrap();
    for address in scene.lab.outside_addresses() {
        let length = if address.is_ipv4() { "/32" } else { "/128 nodad" };
        for pod in [&closed, &free] {
            let (to, tag) = (target.address(address), packets::tag());
            pod.ip(&format!("addr add {address}{length} dev eth0"));
            world::eventually("the agent has seen it, and names it", || {
                let status = agent.wait();
                let notes = status["datapath"]["notes"].as_array().unwrap().clone();
                let names = |note: &&serde_json::Value| {
                    let note = note.as_str().unwrap();
                    note.contains(&address.to_string()) && note.contains(&format!("/{} ", pod.name))
                };
                notes.iter().any(|note| names(&note))
            });
            let forged = packets::udp(address, to, (4000, 80), tag);
            let at = At::egress(pod).because(Reason::SourceAddress);
            scene.is_lost(&pod.netns, &forged, tag, &target, at);
        }
        // The pod's own stack would keep it on loopback.
        let tag = packets::tag();
        let packet = packets::udp(closed.address(address), address, (4000, 80), tag);
        let ethertype = if address.is_ipv4() { IPV4 } else { IPV6 };
        scene.drops_of(1, At::egress(&closed), || {
            closed.wire().send_as(closed.gateway(), ethertype, &packet);
        });
        let tag = packets::tag();
        let packet = packets::udp(free.address(address), address, (4000, 80), tag);
        let outside = Wire::tap(&scene.lab.outside, ethertype);
        free.wire().send_as(free.gateway(), ethertype, &packet);
        world::eventually("that of the free pod gets there", || outside.count(&tag) > 0);
    }
}

/// No guard before an address is declared, and one that is declared later counts from then on.
fn addresses_that_are_declared_later(scene: &Scene<'_>) {
    let target = scene.pod("target", 2, "{}");
    scene.policy(
        "p",
        "podSelector: {matchLabels: {app: closed}}, egress: [{}], policyTypes: [Egress]",
    );
    for labels in ["{}", "{app: closed}"] {
        let name = if labels == "{}" { "free" } else { "closed" };
        let pod = scene.wire(name, 1);
        scene.settle();
        for &source in &pod.addresses {
            for (packet, tag) in forgeries(source, &target, 80) {
                scene.arrives(&pod.netns, &packet, tag, &target);
            }
        }
        let declare = |addresses: &[IpAddr]| {
            let (node, uid) = (pod.node, format!("uid: later-{name}"));
            let spec = "containers: [{name: c}]";
            scene.declare_at(name, node, addresses, labels, spec, "Running", &uid);
            scene.settle();
        };
        declare(&pod.addresses[..1]);
        let at = At::egress(&pod).because(Reason::SourceAddress);
        for &source in &pod.addresses[1..] {
            for (packet, tag) in forgeries(source, &target, 80) {
                scene.is_lost(&pod.netns, &packet, tag, &target, at);
            }
        }
        declare(&pod.addresses);
        for &source in &pod.addresses {
            for (packet, tag) in forgeries(source, &target, 80) {
                scene.arrives(&pod.netns, &packet, tag, &target);
            }
        }
    }
}

/// What the pod's node itself sends always passes, from whichever of its addresses; what another
/// node sends does not.
fn own_node(scene: &Scene<'_>) {
    let pod = scene.pod("pod", 1, "{}");
    scene.serve(&pod, 80);
    scene.policy("closed", "podSelector: {}, policyTypes: [Ingress, Egress]");
    scene.settle();
    for (node, is_own) in [(1, true), (2, false)] {
        let netns = &scene.lab.node(node).netns;
        for source in scene.lab.node_addresses(node) {
            let (local, to) = ((source, 0).into(), (pod.address(source), 80).into());
            for protocol in BOTH {
                if is_own {
                    scene.allows_as(netns, local, to, protocol);
                } else {
                    scene.denies_as(netns, local, to, protocol, Some(&pod), At::ingress(&pod));
                }
            }
        }
    }
}

/// A packet that merely has the node's address comes from another pod, another node or outside:
/// it is judged, also when it looks like a part of what the node has opened.
fn own_node_address_claimed_by_others(scene: &Scene<'_>) {
    let victim = scene.pod("victim", 1, "{app: victim}");
    scene.serve(&victim, 80);
    let [near, far] = [1, 2].map(|node| scene.pod(&format!("free-{node}"), node, "{}"));
    scene.policy(
        "closed",
        "podSelector: {matchLabels: {app: victim}}, policyTypes: [Ingress, Egress]",
    );
    scene.settle();
    let node = &scene.lab.node(1).netns;
    let (forged, arrived) =
        (|pod| At::egress(pod).because(Reason::SourceAddress), At::ingress(&victim));
    let forgers = [
        (&near.netns, forged(&near)),
        (&far.netns, forged(&far)),
        (&scene.lab.node(2).netns, arrived),
        (&scene.lab.outside, arrived),
    ];
    for source in scene.lab.node_addresses(1) {
        let local = SocketAddr::new(source, 4000);
        let target = SocketAddr::new(victim.address(source), 80);
        for round in 0..2 {
            for (forger, at) in forgers {
                for (packet, tag) in forgeries(source, &victim, 80) {
                    scene.is_lost(forger, &packet, tag, &victim, at);
                }
            }
            // The second round is about a flow that the node has opened.
            if round == 0 {
                scene.allows_as(node, local, target, Protocol::Udp);
            }
        }
        scene.allows_as(node, local, target, Protocol::Udp);
    }
}

/// The first address of each family is what a policy would name.
fn main_addresses(scene: &Scene<'_>, node: usize) -> Vec<IpAddr> {
    let all = scene.lab.node_addresses(node);
    let first = |v4| all.iter().copied().find(|address: &IpAddr| address.is_ipv4() == v4);
    [first(true), first(false)].into_iter().flatten().collect()
}

fn blocks(addresses: &[IpAddr]) -> String {
    let block = |address: &IpAddr| {
        let length = if address.is_ipv4() { 32 } else { 128 };
        format!("{{ipBlock: {{cidr: \"{address}/{length}\"}}}}")
    };
    addresses.iter().map(block).collect::<Vec<_>>().join(", ")
}

/// Another node's addresses are addresses like any other: what a block names may come in.
fn other_nodes(scene: &Scene<'_>) {
    let pod = scene.pod("pod", 1, "{}");
    scene.serve(&pod, 80);
    let named = main_addresses(scene, 2);
    scene.policy("named", &format!("podSelector: {{}}, ingress: [{{from: [{}]}}]", blocks(&named)));
    scene.settle();
    let netns = &scene.lab.node(2).netns;
    for source in scene.lab.node_addresses(2) {
        let (local, to) = ((source, 0).into(), (pod.address(source), 80).into());
        for protocol in BOTH {
            if named.contains(&source) {
                scene.allows_as(netns, local, to, protocol);
            } else {
                scene.denies_as(netns, local, to, protocol, Some(&pod), At::ingress(&pod));
            }
        }
    }
}

/// Towards its own node a pod is subject to its egress policies.
fn pod_to_own_node(scene: &Scene<'_>) {
    const PORT: u16 = 9102;
    let pod = scene.pod("pod", 1, "{app: pod}");
    let free = scene.pod("free", 1, "{}");
    let node = &scene.lab.node(1).netns;
    let all = scene.lab.node_addresses(1);
    let named = main_addresses(scene, 1);
    all.iter().for_each(|&address| scene.serve_at(node, SocketAddr::new(address, PORT)));
    for (rules, open) in
        [(String::new(), &[][..]), (format!("{{to: [{}]}}", blocks(&named)), &named)]
    {
        let spec = "podSelector: {matchLabels: {app: pod}}, policyTypes: [Ingress, Egress]";
        scene.policy("egress", &format!("{spec}, egress: [{rules}]"));
        scene.settle();
        for address in &all {
            scene.allowed_from(&free.netns, &[*address], PORT);
            if open.contains(address) {
                scene.allowed_from(&pod.netns, &[*address], PORT);
            } else {
                scene.denied_from(&pod.netns, &[*address], PORT, At::egress(&pod));
            }
        }
    }
}

/// What a pod sends to itself by way of its node passes both ways; what another sends does not.
fn pod_to_itself(scene: &Scene<'_>) {
    let pod = scene.pod("pod", 1, "{app: pod}");
    let other = scene.pod("other", 1, "{}");
    scene
        .policy("closed", "podSelector: {matchLabels: {app: pod}}, policyTypes: [Ingress, Egress]");
    scene.settle();
    for &own in &pod.addresses {
        let ethertype = if own.is_ipv4() { IPV4 } else { IPV6 };
        for (packet, tag) in forgeries(own, &pod, 80) {
            // The pod's own stack would keep it on loopback.
            pod.wire().send_as(pod.gateway(), ethertype, &packet);
            world::eventually("it comes back to the pod", || pod.wire().count(&tag) > 0);
        }
        for (packet, tag) in forgeries(other.address(own), &pod, 80) {
            scene.is_lost(&other.netns, &packet, tag, &pod, At::ingress(&pod));
        }
    }
}
