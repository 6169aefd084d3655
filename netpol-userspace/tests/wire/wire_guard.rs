//! Pods that no policy selects speak as themselves alone, from the moment that there is any policy:
//! in ARP, neighbour discovery and their frames' source too, on every kind of network. Needs root and
//! the eBPF object. Must never send a forged packet outside the lab.

use std::net::{IpAddr, Ipv6Addr};

use netpol_common::layout::Reason;
use netpol_testkit::lab::packets;
use netpol_testkit::lab::probe::At;
use netpol_testkit::lab::wire::{ARP, BROADCAST, IPV4, IPV6, Wire};
use netpol_testkit::lab::{Cni, Families, Lab, Pod, Scene, topology};
use netpol_testkit::world::eventually;

netpol_testkit::rows! {
    both: [nothing_is_said_as_another, all_else_passes, session_in_anothers_name],
    v4: [arp, asking_for_an_address],
    v6: [neighbour_discovery],
}

/// Two pods that no policy selects, and a policy about a third one.
fn free_pods(scene: &Scene<'_>) -> [Pod; 2] {
    let pods = ["one", "two"].map(|name| scene.pod(name, 1, "{}"));
    scene.policy("p", "podSelector: {matchLabels: {app: nobody}}");
    scene.settle();
    pods.iter().for_each(|pod| assert_eq!(scene.lab.programs(pod), scene.lab.guards()));
    pods
}

fn forged(pod: &Pod) -> At<'_> {
    At::egress(pod).because(Reason::SourceAddress)
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn ethertype_of(address: IpAddr) -> u16 {
    if address.is_ipv4() { IPV4 } else { IPV6 }
}

fn frame(source: [u8; 6], to: [u8; 6], ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&to[..], &source, &ethertype.to_be_bytes(), payload].concat()
}

/// Whatever the packet is, in a tag or not; and on a bridge from no other link-layer address.
fn nothing_is_said_as_another(scene: &Scene<'_>) {
    let [pod, other] = free_pods(scene);
    let target = scene.pod("target", 1, "{}");
    let gateway = pod.gateway();
    for &theirs in &other.addresses {
        let (to, ethertype) = (target.address(theirs), ethertype_of(theirs));
        let odd = |packet: Vec<u8>| match theirs {
            IpAddr::V4(_) => packets::with_options(packet, &[1; 8]),
            IpAddr::V6(_) => {
                let kinds = [packets::DESTINATION_OPTIONS, packets::FRAGMENT];
                packets::with_extensions(packet, &kinds.map(packets::padding))
            }
        };
        let udp = |tag| packets::udp(theirs, to, (4000, 80), tag);
        let forms: [&dyn Fn(packets::Tag) -> Vec<u8>; 6] = [
            &udp,
            &|tag| packets::tcp_syn(theirs, to, (4000, 80), tag),
            &|tag| packets::sctp_init(theirs, to, (4000, 80), tag),
            &|tag| packets::ping(theirs, to, 7, tag),
            &|tag| packets::raw(theirs, to, 47, tag.to_vec()),
            &|tag| odd(udp(tag)),
        ];
        for form in forms {
            let tag = packets::tag();
            scene.is_lost(&pod.netns, &form(tag), tag, &target, forged(&pod));
            let tag = packets::tag();
            let tagged = || pod.wire().send_tagged(gateway, 0, ethertype, &form(tag));
            scene.loses(1, forged(&pod), &target, &[tag], tagged);
        }
        // A tag in a tag, which a kernel would take off as well.
        let tag = packets::tag();
        let inner = [&[0, 0][..], &ethertype.to_be_bytes(), &udp(tag)].concat();
        let at = At::egress(&pod).because(Reason::Ethertype);
        scene.loses(1, at, &target, &[tag], || pod.wire().send_tagged(gateway, 0, 0x8100, &inner));
        // From its own address, but in the frame of another.
        let own = pod.address(theirs);
        let packet = packets::udp(own, to, (4000, 80), packets::tag());
        let seen = Wire::tap(&scene.lab.node(1).netns, ethertype);
        let frame = frame(other.wire().own_address(), gateway, ethertype, &packet);
        if scene.lab.topology.cni == Cni::Routed {
            // Nobody else is on the link.
            pod.wire().send(&frame);
            eventually("the node sees it", || seen.count_whole(&packet) > 0);
        } else {
            scene.drops_of(1, forged(&pod), || pod.wire().send(&frame));
            assert_eq!(seen.count_whole(&packet), 0);
        }
    }
}

/// The guard looks at nothing else: not at ports, at protocols, or at what it does not know.
fn all_else_passes(scene: &Scene<'_>) {
    let [pod, other] = free_pods(scene);
    let far = scene.pod("far", 2, "{}");
    scene.serve(&pod, 80);
    for to in [&other, &far] {
        scene.serve(to, 80);
        scene.allowed(&pod, to, 80);
        scene.allowed(to, &pod, 80);
        scene.pings(&pod, to);
        for &own in &pod.addresses {
            for protocol in [47, 50, 89, 253] {
                let tag = packets::tag();
                let payload = [&[0; 8][..], &tag].concat();
                let packet = packets::raw(own, to.address(own), protocol, payload);
                scene.arrives(&pod.netns, &packet, tag, to);
            }
        }
    }
    let seen = Wire::tap(&scene.lab.node(1).netns, 0x88b5);
    let tag = packets::tag();
    pod.wire().send_as(BROADCAST, 0x88b5, &tag);
    eventually("another protocol is seen", || seen.count(&tag) > 0);
    assert_eq!(scene.lab.drops(&pod), 0);
}

/// A pod that takes an allowed one's address, and tells everybody so by ARP or neighbour discovery,
/// gets nothing of what that may.
fn session_in_anothers_name(scene: &Scene<'_>) {
    let server = scene.pod("server", 1, "{app: server}");
    let client = scene.pod("client", 1, "{app: client}");
    let thief = scene.pod("thief", 1, "{}");
    scene.serve(&server, 80);
    scene.policy(
        "p",
        "podSelector: {matchLabels: {app: server}}, \
         ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]",
    );
    scene.settle();
    scene.allowed(&client, &server, 80);
    for &stolen in &client.addresses {
        let length = if stolen.is_ipv4() { "/32" } else { "/128 nodad" };
        thief.ip(&format!("addr add {stolen}{length} dev eth0"));
        let own = thief.wire().own_address();
        let said = match stolen {
            IpAddr::V4(_) => arp_message(2, own, &octets(stolen), &octets(server.address(stolen))),
            IpAddr::V6(_) => {
                let all_nodes = "ff02::1".parse().unwrap();
                advertisement(thief.address(stolen), all_nodes, stolen, Some(own))
            }
        };
        let ethertype = if stolen.is_ipv4() { ARP } else { IPV6 };
        for _ in 0..5 {
            let say = || thief.wire().send_as(BROADCAST, ethertype, &said);
            scene.drops_of(1, forged(&thief), say);
        }
        let syn_tag = packets::tag();
        let syn = packets::tcp_syn(stolen, server.address(stolen), (4000, 80), syn_tag);
        scene.is_lost(&thief.netns, &syn, syn_tag, &server, forged(&thief));
        // And whose it is goes on.
        scene.allowed_from(&client.netns, &[server.address(stolen)], 80);
        thief.ip(&format!(
            "addr del {stolen}{} dev eth0",
            if stolen.is_ipv4() { "/32" } else { "/128" }
        ));
    }
}

/// An ARP message of IPv4 over Ethernet.
fn arp_message(operation: u8, link: [u8; 6], address: &[u8], target: &[u8]) -> Vec<u8> {
    [&[0, 1, 8, 0, 6, 4, 0, operation][..], &link, address, &[0; 6], target].concat()
}

fn arp(scene: &Scene<'_>) {
    let [pod, other] = free_pods(scene);
    let v4 = |pod: &Pod| octets(pod.addresses.iter().copied().find(IpAddr::is_ipv4).unwrap());
    let (own, others) = (pod.wire().own_address(), other.wire().own_address());
    let (address, theirs) = (v4(&pod), v4(&other));
    let seen = Wire::tap(&scene.lab.node(1).netns, ARP);
    for message in [
        arp_message(1, own, &address, &packets::tag()[4..]),
        arp_message(2, own, &address, &packets::tag()[4..]),
        // RFC 5227: a probe and an announcement.
        arp_message(1, own, &[0; 4], &address),
        arp_message(1, own, &address, &address),
    ] {
        pod.wire().send_as(BROADCAST, ARP, &message);
        eventually("the node sees the message", || seen.count_whole(&message) > 0);
    }
    for operation in [1, 2] {
        for (source, link, sender) in [
            (own, own, &theirs),
            (own, others, &address),
            (others, others, &address),
            (others, others, &theirs),
        ] {
            let message = arp_message(operation, link, sender, &packets::tag()[4..]);
            let frame = frame(source, BROADCAST, ARP, &message);
            scene.drops_of(1, forged(&pod), || pod.wire().send(&frame));
            assert_eq!(seen.count_whole(&message), 0);
        }
    }
    let at = At::egress(&pod).because(Reason::Neighbour);
    scene.drops_of(1, at, || pod.wire().send_as(BROADCAST, ARP, &packets::tag().repeat(100)));
}

/// DHCP, before the pod knows its address; nothing else from nobody.
fn asking_for_an_address(scene: &Scene<'_>) {
    let [pod, _] = free_pods(scene);
    let seen = Wire::tap(&scene.lab.node(1).netns, IPV4);
    let [nobody, everybody]: [IpAddr; 2] =
        ["0.0.0.0", "255.255.255.255"].map(|a| a.parse().unwrap());
    let asks = packets::udp(nobody, everybody, (68, 67), packets::tag());
    pod.wire().send_as(BROADCAST, IPV4, &asks);
    eventually("the node sees the question", || seen.count_whole(&asks) > 0);
    let target = scene.pod("target", 1, "{}");
    let v4 = target.addresses.iter().copied().find(IpAddr::is_ipv4).unwrap();
    for packet in [
        packets::udp(nobody, everybody, (68, 68), packets::tag()),
        packets::udp(nobody, everybody, (1068, 67), packets::tag()),
        packets::udp(nobody, v4, (68, 67), packets::tag()),
        packets::tcp_syn(nobody, everybody, (68, 67), packets::tag()),
    ] {
        scene.drops_of(1, forged(&pod), || pod.wire().send_as(BROADCAST, IPV4, &packet));
        assert_eq!(seen.count_whole(&packet), 0);
    }
}

const ALL_NODES: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];

fn with_body(source: IpAddr, destination: IpAddr, kind: u8, body: Vec<u8>) -> Vec<u8> {
    packets::with_hop_limit(packets::icmp(source, destination, kind, 0, body), 255)
}

fn advertisement(
    source: IpAddr,
    destination: IpAddr,
    target: IpAddr,
    link: Option<[u8; 6]>,
) -> Vec<u8> {
    let option = link.map(|link| [&[2, 1][..], &link].concat()).unwrap_or_default();
    let body = [&[0x20, 0, 0, 0][..], &octets(target), &option].concat();
    with_body(source, destination, 136, body)
}

fn neighbour_discovery(scene: &Scene<'_>) {
    let [pod, other] = free_pods(scene);
    let v6 = |pod: &Pod| pod.addresses.iter().copied().find(IpAddr::is_ipv6).unwrap();
    let (own, theirs) = (v6(&pod), v6(&other));
    let seen = Wire::tap(&scene.lab.node(1).netns, IPV6);
    let group = |address: IpAddr| {
        let mut bytes = "ff02::1:ff00:0".parse::<Ipv6Addr>().unwrap().octets();
        bytes[13..].copy_from_slice(&octets(address)[13..]);
        IpAddr::from(bytes)
    };
    let all_nodes: IpAddr = "ff02::1".parse().unwrap();
    let nobody: IpAddr = "::".parse().unwrap();
    let asks = |source, target| {
        let body = [&[0; 4][..], &octets(target)].concat();
        with_body(source, group(target), 135, body)
    };
    let link = pod.wire().own_address();
    // Itself, to all; and detection of duplicates of its own address.
    for packet in [advertisement(own, all_nodes, own, Some(link)), asks(nobody, own)] {
        pod.wire().send_as(ALL_NODES, IPV6, &packet);
        eventually("the node sees it", || seen.count_whole(&packet) > 0);
    }
    for packet in [
        advertisement(own, all_nodes, theirs, Some(link)),
        advertisement(theirs, all_nodes, own, Some(link)),
        advertisement(own, all_nodes, own, Some(other.wire().own_address())),
        asks(nobody, theirs),
        asks(theirs, own),
    ] {
        scene.drops_of(1, forged(&pod), || pod.wire().send_as(ALL_NODES, IPV6, &packet));
        assert_eq!(seen.count_whole(&packet), 0);
        // The kernel of a neighbour would understand it behind other headers, too.
        let chain = vec![packets::padding(packets::DESTINATION_OPTIONS); 9];
        for length in [1, 9] {
            let hidden = packets::with_extensions(packet.clone(), &chain[..length]);
            let reason = if length == 1 { Reason::Neighbour } else { Reason::ExtensionHeaders };
            let at = At::egress(&pod).because(reason);
            scene.drops_of(1, at, || pod.wire().send_as(ALL_NODES, IPV6, &hidden));
            assert_eq!(seen.count_whole(&hidden), 0);
        }
    }
    for kind in [130, 134, 137] {
        let packet = with_body(own, all_nodes, kind, vec![0; 36]);
        let at = At::egress(&pod).because(Reason::RouterMessage);
        scene.drops_of(1, at, || pod.wire().send_as(ALL_NODES, IPV6, &packet));
        assert_eq!(seen.count_whole(&packet), 0);
    }
}

/// Guards come with the first policy of the cluster and go with the last one.
#[test]
fn guards_are_there_while_there_is_any_policy() {
    for topology in [topology::BRIDGE, topology::ROUTED] {
        let lab = Lab::new(topology, Families::Dual);
        let scene = lab.scene("guards");
        let pods = [("a", 1), ("b", 1), ("c", 2)];
        let pods = pods.map(|(name, node)| scene.pod(name, node, "{app: pod}"));
        let all_have = |expected: &[&str]| {
            pods.iter().for_each(|pod| assert_eq!(lab.programs(pod), expected, "{}", pod.name));
        };
        scene.settle();
        all_have(&[]);
        for _ in 0..2 {
            scene.policy("p", "podSelector: {matchLabels: {app: nobody}}");
            scene.settle();
            all_have(lab.guards());
            scene.policy("q", "podSelector: {}");
            scene.settle();
            all_have(&["netpol_egress", "netpol_ingress"]);
            scene.remove_policy("q");
            scene.settle();
            all_have(lab.guards());
            scene.remove_policy("p");
            // One of the cluster is a policy too: who could speak as another would be meant by it.
            let nobody = "{matchLabels: {app: nobody}}";
            let deny = "egress: [{action: Deny, to: [{nodes: {}}]}]";
            scene.cluster_policy("c", "Admin", nobody, deny);
            scene.settle();
            all_have(lab.guards());
            scene.cluster_policy("c", "Admin", "{}", deny);
            scene.settle();
            pods.iter().for_each(|pod| {
                assert!(lab.programs(pod).contains(&"netpol_egress".to_owned()), "{}", pod.name);
            });
            scene.remove_cluster_policy("c");
            scene.settle();
            all_have(&[]);
        }
    }
}

/// What pods forward for others passes as far as their annotations say it, if the agent was told to
/// believe these: of a pod that no policy selects, and of an isolated one.
#[test]
fn pods_that_forward_for_others_by_their_annotation() {
    const BLOCKS: [&str; 2] = ["10.99.0.0/16", "fd00:99::/64"];
    let inside = ["10.99.1.2", "fd00:99::2"].map(|text| text.parse::<IpAddr>().unwrap());
    let beyond = ["10.98.1.2", "fd00:98::2"].map(|text| text.parse::<IpAddr>().unwrap());
    let extra = ["192.0.2.77", "2001:db8::77"].map(|text| text.parse::<IpAddr>().unwrap());
    let status = r#"[{\"name\": \"net1\", \"ips\": [\"192.0.2.77\", \"2001:db8::77\"]}]"#;
    let annotations = format!(
        "annotations: {{netpol.dev/source-prefixes: '{}', \
         k8s.v1.cni.cncf.io/network-status: \"{status}\"}}",
        BLOCKS.join(" ")
    );
    let trusted = ["--trust-annotations", "source-prefixes,network-status"];
    for (topology, arguments) in [
        (topology::BRIDGE, &trusted[..]),
        (topology::ROUTED, &trusted[..]),
        (topology::ROUTED, &[]),
    ] {
        let is_trusted = !arguments.is_empty();
        let lab = Lab::with_arguments(topology, Families::Dual, arguments);
        let scene = lab.scene("forwarders");
        let free = scene.pod("free", 1, "{}");
        let isolated = scene.pod("isolated", 1, "{app: isolated}");
        let target = scene.pod("target", 1, "{}");
        let spec = "containers: [{name: c}]";
        let declare = |annotations: &str| {
            scene.declare_as(&free, "{}", spec, "Running", annotations);
            scene.declare_as(&isolated, "{app: isolated}", spec, "Running", annotations);
        };
        let selects = "podSelector: {matchLabels: {app: isolated}}";
        scene.policy("p", &format!("{selects}, policyTypes: [Ingress, Egress], egress: [{{}}]"));
        let sends = |pod: &Pod, from: IpAddr, passes: bool| {
            let tag = packets::tag();
            let to = if pod.name == target.name { &free } else { &target };
            let packet = packets::udp(from, to.address(from), (4000, 80), tag);
            if passes {
                scene.arrives(&pod.netns, &packet, tag, to);
            } else {
                scene.is_lost(&pod.netns, &packet, tag, to, forged(pod));
            }
        };
        for says_so in [true, false, true] {
            declare(if says_so { &annotations } else { "" });
            scene.settle();
            for pod in [&free, &isolated] {
                for from in inside.into_iter().chain(extra) {
                    sends(pod, from, says_so && is_trusted);
                }
                for from in beyond {
                    sends(pod, from, false);
                }
            }
            sends(&target, inside[0], false);
        }
    }
}
