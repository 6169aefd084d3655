//! The rows of the semantics table about ICMP, neighbour discovery and what keeps an isolated pod's
//! link working. On the wire of every kind of network. Needs root and the eBPF object. Must never
//! wait for something not to happen.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use netpol_common::layout::Reason;
use netpol_testkit::lab::packets::{self, Tag};
use netpol_testkit::lab::probe::At;
use netpol_testkit::lab::wire::{ARP, BROADCAST, IPV6, Wire};
use netpol_testkit::lab::wiring::route_to_pod;
use netpol_testkit::lab::{Cni, Pod, Scene};
use netpol_testkit::world::{eventually, ip};

netpol_testkit::rows! {
    both: [
        icmp_echo,
        other_protocols,
        port_unreachable,
        unrelated_errors,
        errors_about_odd_packets,
        path_mtu_under_default_deny,
        path_mtu_of_udp,
        path_mtu_beyond_the_cluster,
        neighbours_under_default_deny,
    ],
    v4: [arp],
    v6: [
        router_messages,
        multicast_listeners,
        neighbour_discovery,
        neighbour_discovery_leads_nowhere,
    ],
}

/// Two peers of `subject`: one that its rule names without ports, one with ports.
fn peers_with_and_without_ports(scene: &Scene<'_>, direction: &str) -> [Pod; 3] {
    let subject = scene.pod("subject", 1, "{app: subject}");
    let any = scene.pod("any", 2, "{role: any}");
    let some = scene.pod("some", 1, "{role: some}");
    let (types, key) = match direction {
        "ingress" => ("Ingress", "from"),
        _ => ("Egress", "to"),
    };
    let peer = |role: &str| format!("{key}: [{{podSelector: {{matchLabels: {{role: {role}}}}}}}]");
    scene.policy(
        "p",
        &format!(
            "podSelector: {{matchLabels: {{app: subject}}}}, policyTypes: [{types}], \
             {direction}: [{{{}}}, {{{}, ports: [{{port: 1, endPort: 65535}}, {{port: 1, \
             endPort: 65535, protocol: UDP}}]}}]",
            peer("any"),
            peer("some")
        ),
    );
    scene.settle();
    [subject, any, some]
}

/// Allowed by a rule without ports, denied by rules with ports however many they name.
fn icmp_echo(scene: &Scene<'_>) {
    let [subject, any, some] = peers_with_and_without_ports(scene, "ingress");
    scene.pings(&any, &subject);
    scene.ping_is_lost(&some, &subject, At::ingress(&subject));
    // What the subject asks itself is answered: its egress is open.
    scene.pings(&subject, &some);
    scene.remove_policy("p");
    drop([subject, any, some]);
    let other = scene.lab.scene("icmp-echo-out");
    let [subject, any, some] = peers_with_and_without_ports(&other, "egress");
    other.pings(&subject, &any);
    other.ping_is_lost(&subject, &some, At::egress(&subject));
    other.pings(&some, &subject);
}

/// Other IP protocols likewise.
fn other_protocols(scene: &Scene<'_>) {
    let [subject, any, some] = peers_with_and_without_ports(scene, "ingress");
    // GRE, ESP, OSPF, and one that is nothing.
    for protocol in [47, 50, 89, 253] {
        for &destination in &subject.addresses {
            let of = |from: &Pod, tag: Tag| {
                let payload = [&[0; 8][..], &tag].concat();
                packets::raw(from.address(destination), destination, protocol, payload)
            };
            let tag = packets::tag();
            scene.arrives(&any.netns, &of(&any, tag), tag, &subject);
            let tag = packets::tag();
            let at = At::ingress(&subject);
            scene.is_lost(&some.netns, &of(&some, tag), tag, &subject, at);
        }
    }
}

/// A pod that may only ask learns that nobody listens, from a pod that may only be asked.
fn port_unreachable(scene: &Scene<'_>) {
    let [asks, asked] = scene.closed_pair();
    for &address in &asked.addresses {
        let refused = || {
            let socket = UdpSocket::bind((asks.address(address), 0)).unwrap();
            socket.connect((address, 4444)).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
            let _ = socket.send(b"?");
            socket.recv(&mut [0; 8]).expect_err("nobody listens").kind()
        };
        // The kernel limits how often it says so.
        eventually("the port is unreachable", || {
            asks.netns.run(refused).unwrap() == ErrorKind::ConnectionRefused
        });
    }
}

/// An error about a known flow passes both ways, whoever sends it; one about a packet that was
/// never sent does not.
fn unrelated_errors(scene: &Scene<'_>) {
    let [asks, asked] = scene.closed_pair();
    let router = scene.pod("router", 2, "{}");
    for &address in &asked.addresses {
        let (own, outsider) = (asks.address(address), router.address(address));
        // What `asks` sends, and what it has not sent.
        let quoted = |port| {
            let tag = packets::tag();
            (packets::udp(own, address, (port, 81), tag), tag)
        };
        let (first, tag) = quoted(5000);
        scene.arrives(&asks.netns, &first, tag, &asked);
        for kind in error_kinds(address) {
            for (from, source, at) in
                [(&router, outsider, At::ingress(&asks)), (&asked, address, At::egress(&asked))]
            {
                let (sent, tag) = quoted(5000);
                let error = packets::error(source, own, kind, &sent);
                scene.arrives(&from.netns, &error, tag, &asks);
                let (invented, tag) = quoted(5001);
                let error = packets::error(source, own, kind, &invented);
                scene.is_lost(&from.netns, &error, tag, &asks, at);
            }
        }
        // An error is for the sender of what it quotes: elsewhere it would carry anything anywhere.
        let (sent, tag) = quoted(5000);
        let error = packets::error(address, outsider, packets::port_unreachable(address), &sent);
        scene.is_lost(&asked.netns, &error, tag, &router, At::egress(&asked));
    }
}

/// Type and code of unreachable, too big, time exceeded, parameter problem (and source quench).
fn error_kinds(family_of: IpAddr) -> Vec<(u8, u8)> {
    match family_of {
        IpAddr::V4(_) => vec![(3, 3), (3, 4), (4, 0), (11, 0), (12, 0)],
        IpAddr::V6(_) => vec![(1, 4), (2, 0), (3, 0), (4, 0)],
    }
}

/// The same for packets with options or extension headers, whose ports are behind them.
fn errors_about_odd_packets(scene: &Scene<'_>) {
    let [asks, asked] = scene.closed_pair();
    let router = scene.pod("router", 2, "{}");
    for &address in &asked.addresses {
        let (own, outsider) = (asks.address(address), router.address(address));
        let kind = packets::port_unreachable(address);
        let forms: Vec<Vec<(u8, Vec<u8>)>> = if address.is_ipv4() {
            vec![Vec::new()]
        } else {
            let kinds: [&[u8]; 5] = [
                &[packets::HOP_BY_HOP],
                &[packets::DESTINATION_OPTIONS],
                &[packets::ROUTING],
                &[packets::FRAGMENT],
                &[packets::HOP_BY_HOP, packets::ROUTING, packets::FRAGMENT],
            ];
            kinds.map(|chain| chain.iter().map(|&kind| packets::padding(kind)).collect()).into()
        };
        for (form, port) in forms.iter().zip(6000..) {
            let odd = |port| {
                let tag = packets::tag();
                let packet = packets::udp(own, address, (port, 81), tag);
                let packet = match address {
                    IpAddr::V4(_) => packets::with_options(packet, &[1; 8]),
                    IpAddr::V6(_) => packets::with_extensions(packet, form),
                };
                (packet, tag)
            };
            let (sent, tag) = odd(port);
            scene.arrives(&asks.netns, &sent, tag, &asked);
            let (sent, tag) = odd(port);
            let error = packets::error(outsider, own, kind, &sent);
            scene.arrives(&router.netns, &error, tag, &asks);
            let (invented, tag) = odd(port + 100);
            let error = packets::error(outsider, own, kind, &invented);
            scene.is_lost(&router.netns, &error, tag, &asks, At::ingress(&asks));
        }
    }
}

/// Smaller than any interface's, large enough for IPv6.
const SMALL_MTU: u32 = 1290;
const TRANSFERRED: usize = 400_000;

/// The pods' nodes learn a smaller MTU on the last hop to each of these pods.
fn narrow(scene: &Scene<'_>, pods: &[&Pod]) {
    for pod in pods {
        for &address in &pod.addresses {
            let route = route_to_pod(scene.lab, pod, address);
            let script = format!("route replace {route} mtu lock {SMALL_MTU}");
            ip(&scene.lab.node(pod.node).netns, &script);
        }
    }
}

fn learnt_mtu(pod: &Pod, address: IpAddr) -> bool {
    pod.learnt_mtu(address) == Some(SMALL_MTU)
}

/// A transfer in both directions meets a smaller MTU behind the first hop. It stops for ever if
/// the error that says so does not get back into the isolated pod.
fn path_mtu_under_default_deny(scene: &Scene<'_>) {
    let [asks, asked] = scene.closed_pair();
    narrow(scene, &[&asks, &asked]);
    for &address in &asked.addresses {
        let own = asks.address(address);
        assert!(!learnt_mtu(&asks, address) && !learnt_mtu(&asked, own));
        scene.transfer(&asks.netns, &asked.netns, SocketAddr::new(address, 80), TRANSFERRED);
        assert!(learnt_mtu(&asks, address), "no packet was too big on the way there");
        assert!(learnt_mtu(&asked, own), "no packet was too big on the way back");
        scene.denied(&asked, &asks, 80, At::egress(&asked));
    }
}

/// A datagram that is too big for the way is answered by an error, and the next one gets there in
/// fragments.
fn path_mtu_of_udp(scene: &Scene<'_>) {
    let [asks, asked] = scene.closed_pair();
    scene.serve(&asked, 80);
    narrow(scene, &[&asked]);
    let datagram = vec![7; 1380];
    for &address in &asked.addresses {
        let is_answered = || {
            let socket = UdpSocket::bind((asks.address(address), 0)).unwrap();
            socket.connect((address, 80)).unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
            let _ = socket.send(&datagram);
            socket.recv(&mut [0; 2048]).is_ok_and(|length| length == datagram.len())
        };
        // Linux puts IPv6 fragments together on a bridge with netfilter and then routes the whole,
        // which is too big again: without any policy as well, no such datagram gets through.
        let carries_fragments = scene.lab.topology.cni != Cni::Bridge || address.is_ipv4();
        assert!(!learnt_mtu(&asks, address));
        eventually("the error arrives and the next datagram is answered", || {
            let is_answered = asks.netns.run(is_answered).unwrap();
            learnt_mtu(&asks, address) && (is_answered || !carries_fragments)
        });
        scene.denied(&asked, &asks, 80, At::egress(&asked));
    }
}

/// The narrow link is beyond the nodes: a router outside sends the error.
fn path_mtu_beyond_the_cluster(scene: &Scene<'_>) {
    let pod = scene.pod("pod", 1, "{app: pod}");
    let outside = &scene.lab.outside;
    let blocks: Vec<String> = scene
        .lab
        .outside_addresses()
        .iter()
        .map(|a| format!("{{ipBlock: {{cidr: \"{a}/{}\"}}}}", if a.is_ipv4() { 32 } else { 128 }))
        .collect();
    let to = blocks.join(", ");
    scene.policy(
        "p",
        &format!("podSelector: {{}}, policyTypes: [Ingress, Egress], egress: [{{to: [{to}]}}]"),
    );
    scene.settle();
    for address in scene.lab.outside_addresses() {
        let route = format!("route replace {address} dev out0 mtu lock {SMALL_MTU}");
        ip(&scene.lab.underlay, &route);
        scene.transfer(&pod.netns, outside, SocketAddr::new(address, 4080), TRANSFERRED);
        assert!(learnt_mtu(&pod, address), "no packet was too big");
    }
    scene.denied_from(outside, &pod.addresses, 80, At::ingress(&pod));
}

/// Addresses are resolved, and resolved again, though nothing but one port is allowed.
fn neighbours_under_default_deny(scene: &Scene<'_>) {
    let server = scene.pod("server", 1, "{app: server}");
    let clients = [1, 2].map(|node| scene.pod(&format!("client-{node}"), node, "{app: client}"));
    let stranger = scene.pod("stranger", 1, "{}");
    scene.serve(&server, 80);
    let ports = "ports: [{port: 80}, {port: 80, protocol: UDP}]";
    scene.policy("closed", "podSelector: {}, policyTypes: [Ingress, Egress]");
    scene.policy(
        "in",
        &format!("podSelector: {{matchLabels: {{app: server}}}}, ingress: [{{{ports}}}]"),
    );
    scene.policy(
        "out",
        &format!(
            "podSelector: {{matchLabels: {{app: client}}}}, policyTypes: [Egress], \
             egress: [{{{ports}}}]"
        ),
    );
    scene.settle();
    for _ in 0..2 {
        for client in &clients {
            for pod in [client, &server] {
                pod.ip("neigh flush all");
                ip(&scene.lab.node(pod.node).netns, &format!("neigh flush dev {}", pod.interface));
            }
            scene.allowed(client, &server, 80);
        }
        scene.denied(&stranger, &server, 80, At::egress(&stranger));
    }
}

/// A pod without any allowed traffic, one without policies, and what their node sees of them.
fn silent_and_free(scene: &Scene<'_>, ethertype: u16) -> ([Pod; 2], Wire) {
    let silent = scene.pod("silent", 1, "{app: silent}");
    let free = scene.pod("free", 1, "{}");
    scene.policy("p", "podSelector: {matchLabels: {app: silent}}, policyTypes: [Ingress, Egress]");
    scene.settle();
    let seen = Wire::tap(&scene.lab.node(1).netns, ethertype);
    ([silent, free], seen)
}

/// ARP of a pod has its own addresses and holds nothing else; what is for it passes, and what only
/// looks like ARP (RARP) does not.
fn arp(scene: &Scene<'_>) {
    let ([silent, free], seen) = silent_and_free(scene, ARP);
    let towards = Wire::towards(&scene.lab.node(1).netns, &silent);
    let v4 = |pod: &Pod| pod.addresses.iter().copied().find(IpAddr::is_ipv4).unwrap();
    let (own, others) = (silent.wire().own_address(), free.wire().own_address());
    let (address, theirs) = (octets(v4(&silent)), octets(v4(&free)));
    let nobody = || packets::tag()[4..].to_vec();
    let passes = |message: &[u8]| {
        silent.wire().send_as(BROADCAST, ARP, message);
        eventually("the node sees the message", || seen.count_whole(message) > 0);
    };
    let request = arp_message(1, own, &address, &nobody());
    passes(&request);
    passes(&[&arp_message(1, own, &address, &nobody())[..], &[0; 18]].concat());
    passes(&arp_message(2, own, &address, &nobody()));
    passes(&arp_message(1, own, &[0; 4], &address));
    towards.send_as(BROADCAST, ARP, &[&request[..], &[1; 60]].concat());
    eventually("the pod sees what is for it", || silent.wire().count(&request) > 0);

    let is_lost = |reason, source: [u8; 6], message: &[u8]| {
        let frame = [&BROADCAST[..], &source, &ARP.to_be_bytes(), message].concat();
        let at = At::egress(&silent).because(reason);
        scene.drops_of(1, at, || silent.wire().send(&frame));
        assert_eq!(seen.count(message), 0, "{message:02x?}");
    };
    for operation in [1, 2] {
        let forged = |link, address: &[u8]| arp_message(operation, link, address, &nobody());
        is_lost(Reason::SourceAddress, own, &forged(own, &theirs));
        is_lost(Reason::SourceAddress, own, &forged(others, &address));
        is_lost(Reason::SourceAddress, others, &forged(others, &address));
    }
    let leak = packets::tag();
    let long = [&arp_message(1, own, &address, &nobody())[..], &leak, &[0; 1200]].concat();
    is_lost(Reason::Neighbour, own, &long);
    is_lost(
        Reason::Neighbour,
        own,
        &[&arp_message(1, own, &address, &nobody())[..], &leak].concat(),
    );
    is_lost(Reason::Neighbour, own, &leak.repeat(150));
    let at = At::egress(&silent).because(Reason::Ethertype);
    scene.drops_of(1, at, || silent.wire().send_as(BROADCAST, 0x8035, &request));
    let at = At::ingress(&silent).because(Reason::Ethertype);
    scene.drops_of(1, at, || towards.send_as(BROADCAST, 0x8035, &request));
}

/// An ARP message of IPv4 over Ethernet.
fn arp_message(operation: u8, link: [u8; 6], address: &[u8], target: &[u8]) -> Vec<u8> {
    [&[0, 1, 8, 0, 6, 4, 0, operation][..], &link, address, &[0; 6], target].concat()
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

const ALL_NODES: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];

/// An ICMPv6 message between link-local addresses, with its tag at the end.
fn link_message(kind: u8, destination: &str, hop_limit: u8, body: &[u8]) -> (Vec<u8>, Tag) {
    let (source, destination) = ("fe80::77".parse().unwrap(), destination.parse().unwrap());
    let tag = packets::tag();
    let packet = packets::icmp(source, destination, kind, 0, [body, &tag].concat());
    (packets::with_hop_limit(packet, hop_limit), tag)
}

/// Router advertisements and redirects come from the network, never from a pod.
fn router_messages(scene: &Scene<'_>) {
    let ([silent, free], seen) = silent_and_free(scene, IPV6);
    let towards = Wire::towards(&scene.lab.node(1).netns, &silent);
    for (kind, body) in [(134, vec![0; 12]), (137, vec![0; 36])] {
        let (packet, _) = link_message(kind, "ff02::1", 255, &body);
        let at = At::egress(&silent).because(Reason::RouterMessage);
        scene.drops_of(1, at, || silent.wire().send_as(ALL_NODES, IPV6, &packet));
        let at = At::egress(&free).because(Reason::RouterMessage);
        scene.drops_of(1, at, || free.wire().send_as(ALL_NODES, IPV6, &packet));
        assert_eq!(seen.count_whole(&packet), 0);
        let (packet, tag) = link_message(kind, "ff02::1", 255, &body);
        towards.send_as(ALL_NODES, IPV6, &packet);
        eventually("that of the network is seen", || silent.wire().count(&tag) > 0);
        // A forwarded one is forged.
        let (packet, _) = link_message(kind, "ff02::1", 254, &body);
        let at = At::ingress(&silent).because(Reason::RouterMessage);
        scene.drops_of(1, at, || towards.send_as(ALL_NODES, IPV6, &packet));
    }
}

fn v6_of(pod: &Pod) -> IpAddr {
    pod.addresses.iter().copied().find(IpAddr::is_ipv6).unwrap()
}

/// The link-local address that the kernel makes of `eth0`'s link-layer address.
fn link_local(pod: &Pod) -> IpAddr {
    let [a, b, c, d, e, f] = pod.wire().own_address();
    let bytes = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f];
    IpAddr::from(bytes)
}

/// The group in which `address` is asked for.
fn solicited_node(address: IpAddr) -> IpAddr {
    let mut bytes = "ff02::1:ff00:0".parse::<std::net::Ipv6Addr>().unwrap().octets();
    bytes[13..].copy_from_slice(&octets(address)[13..]);
    IpAddr::from(bytes)
}

/// A message of neighbour discovery about this target.
fn discovery(source: IpAddr, destination: IpAddr, kind: u8, target: IpAddr) -> Vec<u8> {
    let body = if kind == 133 { vec![0; 4] } else { [&[0; 4][..], &octets(target)].concat() };
    packets::with_hop_limit(packets::icmp(source, destination, kind, 0, body), 255)
}

/// A pod speaks of itself to its link; what is for it passes, but what was forwarded.
fn neighbour_discovery(scene: &Scene<'_>) {
    let ([silent, free], seen) = silent_and_free(scene, IPV6);
    let towards = Wire::towards(&scene.lab.node(1).netns, &silent);
    let all_nodes: IpAddr = "ff02::1".parse().unwrap();
    // Addresses that nobody has, so that the kernel says nothing about them by itself.
    let nobody = || {
        let mut bytes = "fe80::".parse::<std::net::Ipv6Addr>().unwrap().octets();
        bytes[8..].copy_from_slice(&packets::tag());
        IpAddr::from(bytes)
    };
    let passes = |packet: &[u8]| {
        silent.wire().send_as(ALL_NODES, IPV6, packet);
        eventually("the node sees it", || seen.count_whole(packet) > 0);
    };
    for own in [v6_of(&silent), link_local(&silent)] {
        let target = nobody();
        passes(&discovery(own, solicited_node(target), 135, target));
        passes(&discovery(own, target, 135, target));
        passes(&discovery(own, all_nodes, 136, own));
        passes(&discovery(own, nobody(), 136, own));
        passes(&discovery(own, "ff02::2".parse().unwrap(), 133, own));
        passes(&discovery("::".parse().unwrap(), solicited_node(own), 135, own));
    }
    for (kind, body) in [(133, vec![0; 4]), (135, vec![0; 20]), (136, vec![0; 20])] {
        let (packet, tag) = link_message(kind, "ff02::1", 255, &body);
        towards.send_as(ALL_NODES, IPV6, &packet);
        eventually("the pod sees it", || silent.wire().count(&tag) > 0);
    }
    // In the name of others.
    for forged in [v6_of(&free), link_local(&free), "fe80::1".parse().unwrap()] {
        let own = v6_of(&silent);
        let (said, asked) = (discovery(own, all_nodes, 136, forged), nobody());
        for packet in [
            said,
            discovery(forged, all_nodes, 136, own),
            discovery(forged, solicited_node(asked), 135, asked),
            discovery("::".parse().unwrap(), solicited_node(forged), 135, forged),
        ] {
            let at = At::egress(&silent).because(Reason::SourceAddress);
            scene.drops_of(1, at, || silent.wire().send_as(ALL_NODES, IPV6, &packet));
            assert_eq!(seen.count_whole(&packet), 0);
        }
    }
}

/// Neighbour discovery is no way out: not to where a router forwards it, and with nothing else in it.
fn neighbour_discovery_leads_nowhere(scene: &Scene<'_>) {
    let ([silent, free], seen) = silent_and_free(scene, IPV6);
    let own = v6_of(&silent);
    let gateway = silent.gateway();
    let outside = scene.lab.outside_addresses().into_iter().find(IpAddr::is_ipv6).unwrap();
    let far = scene.pod("far", 2, "{}");
    let is_lost = |packet: &[u8]| {
        let at = At::egress(&silent).because(Reason::Neighbour);
        scene.drops_of(1, at, || silent.wire().send_as(gateway, IPV6, packet));
        assert_eq!(seen.count_whole(packet), 0);
    };
    for kind in [133, 135, 136] {
        for destination in [outside, v6_of(&far), scene.lab.node_addresses(2)[0]] {
            if destination.is_ipv6() {
                is_lost(&discovery(own, destination, kind, own));
            }
        }
        let on_link = discovery(own, "ff02::1".parse().unwrap(), kind, own);
        is_lost(&packets::with_hop_limit(on_link.clone(), 64));
        for header in [packets::HOP_BY_HOP, packets::DESTINATION_OPTIONS, packets::FRAGMENT] {
            let chain = [packets::padding(header)];
            is_lost(&packets::with_extensions(on_link.clone(), &chain));
        }
        // The first of several fragments.
        let more = [(packets::FRAGMENT, vec![0, 0, 0, 1, 1, 2, 3, 4])];
        is_lost(&packets::with_extensions(on_link.clone(), &more));
        let mut body = vec![0; 4];
        body.extend(octets(own));
        body.extend(packets::tag().repeat(100));
        let long = packets::icmp(own, "ff02::1".parse().unwrap(), kind, 0, body);
        is_lost(&packets::with_hop_limit(long, 255));
        is_lost(&[&on_link[..], &packets::tag()].concat());
    }
    // The node, and another pod of the same bridge, are asked whether they are still there.
    for destination in scene.lab.node_addresses(1).into_iter().filter(IpAddr::is_ipv6) {
        let packet = discovery(own, destination, 135, destination);
        silent.wire().send_as(gateway, IPV6, &packet);
        eventually("the node sees it", || seen.count_whole(&packet) > 0);
    }
    let near = v6_of(&free);
    let packet = discovery(own, near, 135, near);
    if scene.lab.topology.cni == Cni::Routed {
        is_lost(&packet);
    } else {
        silent.wire().send_as(free.wire().own_address(), IPV6, &packet);
        eventually("the pod sees it", || free.wire().count_whole(&packet) > 0);
    }
}

/// A report about one group as RFC 3810 has it, or RFC 2710.
fn report(source: IpAddr, destination: IpAddr, kind: u8, group: IpAddr) -> Vec<u8> {
    let head: &[u8] = if kind == 143 { &[0, 0, 0, 1, 4, 0, 0, 0] } else { &[0; 4] };
    let body = [head, &octets(group)].concat();
    packets::with_hop_limit(packets::icmp(source, destination, kind, 0, body), 1)
}

/// Reports pass to the link, with the router alert that they come with, and queries to the pod.
fn multicast_listeners(scene: &Scene<'_>) {
    let ([silent, free], seen) = silent_and_free(scene, IPV6);
    let towards = Wire::towards(&scene.lab.node(1).netns, &silent);
    let alert = (packets::HOP_BY_HOP, vec![0, 0, 5, 2, 0, 0, 1, 0]);
    let with_alert = |packet| packets::with_extensions(packet, std::slice::from_ref(&alert));
    let group = [0x33, 0x33, 0, 0, 0, 0x16];
    let is_lost = |reason, packet: &[u8]| {
        let at = At::egress(&silent).because(reason);
        scene.drops_of(1, at, || silent.wire().send_as(group, IPV6, packet));
        assert_eq!(seen.count_whole(packet), 0);
    };
    let outside = scene.lab.outside_addresses().into_iter().find(IpAddr::is_ipv6).unwrap();
    for (kind, to) in [(131, None), (132, Some("ff02::2")), (143, Some("ff02::16"))] {
        let mut bytes = "ff02::".parse::<std::net::Ipv6Addr>().unwrap().octets();
        bytes[8..].copy_from_slice(&packets::tag());
        let wanted = IpAddr::from(bytes);
        let to = to.map_or(wanted, |to| to.parse().unwrap());
        for source in [link_local(&silent), "::".parse().unwrap()] {
            let packet = with_alert(report(source, to, kind, wanted));
            silent.wire().send_as(group, IPV6, &packet);
            eventually("the node sees it", || seen.count_whole(&packet) > 0);
        }
        let own = link_local(&silent);
        let forged = with_alert(report(link_local(&free), to, kind, wanted));
        is_lost(Reason::SourceAddress, &forged);
        for packet in [
            report(own, to, kind, wanted),
            with_alert(with_alert(report(own, to, kind, wanted))),
            with_alert(report(own, outside, kind, wanted)),
            with_alert(report(own, to, kind, outside)),
            with_alert(report(v6_of(&silent), to, kind, wanted)),
            with_alert(packets::with_hop_limit(report(own, to, kind, wanted), 64)),
            [&with_alert(report(own, to, kind, wanted))[..], &packets::tag()].concat(),
        ] {
            is_lost(Reason::Neighbour, &packet);
        }
    }
    for kind in [130, 131, 132, 143] {
        let (packet, tag) = link_message(kind, "ff02::1", 1, &[0; 20]);
        towards.send_as(ALL_NODES, IPV6, &with_alert(packet));
        eventually("the pod sees it", || silent.wire().count(&tag) > 0);
        // From afar to a pod itself, with a hop limit that has just run out.
        let sent = |to: &Pod| {
            let tag = packets::tag();
            let body = [&[0; 20][..], &tag].concat();
            let packet = packets::icmp(outside, v6_of(to), kind, 0, body);
            (packets::with_hop_limit(packet, 3), tag)
        };
        let (packet, tag) = sent(&free);
        scene.arrives(&scene.lab.outside, &packet, tag, &free);
        let holds = |frame: &Vec<u8>| frame.ends_with(&tag) && frame[21] == 1;
        assert!(free.wire().received().iter().any(holds), "two routers are on the way");
        let (packet, tag) = sent(&silent);
        scene.is_lost(&scene.lab.outside, &packet, tag, &silent, At::ingress(&silent));
    }
    let (query, _) = link_message(130, "ff02::1", 1, &[0; 20]);
    is_lost(Reason::RouterMessage, &with_alert(query));
}
