//! The rows of the semantics table about packets that are not plain: options, extension headers,
//! fragments, VLAN tags, other ethertypes, headers that end too early. On the wire of every kind
//! of network. Needs root and the eBPF object. Must never rely on a stack to accept what it sends.

use netpol_testkit::world;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::process::Command;

use netpol_common::layout::Reason;
use netpol_observe::frames::{self, Transport};
use netpol_testkit::lab::packets::{
    self, AUTHENTICATION, DESTINATION_OPTIONS, FRAGMENT, HOP_BY_HOP, ROUTING, Tag,
};
use netpol_testkit::lab::probe::At;
use netpol_testkit::lab::wire::{BROADCAST, EXPERIMENTAL, IPV4, IPV6, Wire, send_packet};
use netpol_testkit::lab::{Cni, Families, Lab, Pod, Scene, topology};
use netpol_testkit::world::eventually;

netpol_testkit::rows! {
    both: [
        fragments_in_order,
        large_datagrams,
        fragments_made_anew,
        fragments_out_of_order,
        fragments_where_ports_do_not_matter,
        overlapping_fragments,
        vlan_tags,
        other_ethertypes,
        truncated_headers,
    ],
    v4: [ipv4_options],
    v6: [ipv6_extension_headers, ipv6_extension_headers_without_end],
}

/// UDP port 80, the one that is allowed.
const OPEN: &str = "ports: [{port: 80, protocol: UDP}]";

/// A pod that may only be asked on port 80 and one that may only ask there, neither the other's
/// peer by policy alone; and one that no policy selects.
struct Cast {
    asked: Pod,
    asks: Pod,
    free: Pod,
}

impl Cast {
    fn new(scene: &Scene<'_>) -> Self {
        let asked = scene.pod("asked", 1, "{app: asked}");
        let asks = scene.pod("asks", 2, "{app: asks}");
        let free = scene.pod("free", 2, "{}");
        let both = "policyTypes: [Ingress, Egress]";
        let selects = |app: &str| format!("podSelector: {{matchLabels: {{app: {app}}}}}");
        scene.policy("asked", &format!("{}, {both}, ingress: [{{{OPEN}}}]", selects("asked")));
        scene.policy("asks", &format!("{}, {both}, egress: [{{{OPEN}}}]", selects("asks")));
        scene.settle();
        Self { asked, asks, free }
    }

    /// Addresses of each family: asked, asks, free.
    fn addresses(&self) -> impl Iterator<Item = [IpAddr; 3]> {
        let of = |&address| [address, self.asks.address(address), self.free.address(address)];
        self.asked.addresses.iter().map(of)
    }
}

/// A form of packet is judged by its ports like a plain one, at both ends.
fn is_judged_by_ports(scene: &Scene<'_>, cast: &Cast, form: &dyn Fn(Vec<u8>) -> Vec<u8>, v4: bool) {
    for [asked, asks, free] in cast.addresses().filter(|[asked, ..]| asked.is_ipv4() == v4) {
        let packet = |source, destination, port| {
            let tag = packets::tag();
            let from = 4000 + u16::from(tag[7]);
            (form(packets::udp(source, destination, (from, port), tag)), tag)
        };
        for (from, source) in [(&cast.free, free), (&cast.asks, asks)] {
            let (open, tag) = packet(source, asked, 80);
            scene.arrives(&from.netns, &open, tag, &cast.asked);
        }
        let (closed, tag) = packet(free, asked, 81);
        let at = At::ingress(&cast.asked);
        scene.is_lost(&cast.free.netns, &closed, tag, &cast.asked, at);
        let (open, tag) = packet(asks, free, 80);
        scene.arrives(&cast.asks.netns, &open, tag, &cast.free);
        let (closed, tag) = packet(asks, free, 81);
        scene.is_lost(&cast.asks.netns, &closed, tag, &cast.free, At::egress(&cast.asks));
    }
}

/// The ports stand behind the options, wherever those end.
fn ipv4_options(scene: &Scene<'_>) {
    let cast = Cast::new(scene);
    let nothing = vec![1; 4];
    // Record route with room for one address, and an end of the list.
    let record = vec![7, 7, 4, 0, 0, 0, 0, 0];
    let most = vec![1; 40];
    for options in [nothing, record, most] {
        let form = |packet| packets::with_options(packet, &options);
        is_judged_by_ports(scene, &cast, &form, true);
    }
}

/// The ports stand behind the extension headers, whatever those are.
fn ipv6_extension_headers(scene: &Scene<'_>) {
    let cast = Cast::new(scene);
    let chains: [&[u8]; 7] = [
        &[AUTHENTICATION],
        &[HOP_BY_HOP],
        &[DESTINATION_OPTIONS],
        &[ROUTING],
        &[FRAGMENT],
        &[HOP_BY_HOP, DESTINATION_OPTIONS, ROUTING, FRAGMENT, DESTINATION_OPTIONS],
        &[DESTINATION_OPTIONS; 7],
    ];
    for chain in chains {
        let headers: Vec<_> = chain.iter().map(|&kind| packets::padding(kind)).collect();
        let form = |packet| packets::with_extensions(packet, &headers);
        is_judged_by_ports(scene, &cast, &form, false);
    }
}

/// A chain that is not followed to its end is dropped, with a reason of its own.
fn ipv6_extension_headers_without_end(scene: &Scene<'_>) {
    let cast = Cast::new(scene);
    let headers = vec![packets::padding(DESTINATION_OPTIONS); 9];
    for [asked, asks, free] in cast.addresses().filter(|[asked, ..]| asked.is_ipv6()) {
        let long = |source, destination| {
            let tag = packets::tag();
            let packet = packets::udp(source, destination, (4000, 80), tag);
            (packets::with_extensions(packet, &headers), tag)
        };
        let (packet, tag) = long(free, asked);
        let at = At::ingress(&cast.asked).because(Reason::ExtensionHeaders);
        scene.is_lost(&cast.free.netns, &packet, tag, &cast.asked, at);
        let (packet, tag) = long(asks, free);
        let at = At::egress(&cast.asks).because(Reason::ExtensionHeaders);
        scene.is_lost(&cast.asks.netns, &packet, tag, &cast.free, at);
        let other = scene.lab.scene("without-end");
        let bystander = other.pod("bystander", 1, "{}");
        let (packet, tag) = long(free, bystander.address(free));
        scene.arrives(&cast.free.netns, &packet, tag, &bystander);
    }
}

/// A UDP datagram in three fragments with a tag in each.
fn three_fragments(source: IpAddr, destination: IpAddr, port: u16) -> (Vec<Vec<u8>>, Vec<Tag>) {
    let tags = [(); 3].map(|()| packets::tag());
    // The first eight bytes of the payload are the UDP header.
    let mut data = vec![0; 40 * 3 - 8];
    for (number, tag) in tags.iter().enumerate() {
        let at = 40 * number + 8;
        data[at..at + 8].copy_from_slice(tag);
    }
    let from = 5000 + u16::from(tags[0][7]);
    let packet = packets::udp_with(source, destination, (from, port), &data);
    (packets::fragments(&packet, &[40, 80]), tags.to_vec())
}

/// The first fragment's ports serve the rest, allowed or not.
fn fragments_in_order(scene: &Scene<'_>) {
    let cast = Cast::new(scene);
    for [asked, asks, free] in cast.addresses() {
        for (from, source, to, destination) in [
            (&cast.free, free, &cast.asked, asked),
            (&cast.asks, asks, &cast.free, free),
            (&cast.asks, asks, &cast.asked, asked),
        ] {
            let (fragments, tags) = three_fragments(source, destination, 80);
            scene.all_arrive(&from.netns, &fragments, &tags, to);
        }
        let (fragments, tags) = three_fragments(asks, free, 81);
        let send = || fragments.iter().for_each(|f| send_packet(&cast.asks.netns, f));
        scene.drops_of(3, At::egress(&cast.asks), send);
        assert!(tags.iter().all(|tag| cast.free.wire().count(tag) == 0));
        let (fragments, tags) = three_fragments(free, asked, 81);
        let send = || fragments.iter().for_each(|f| send_packet(&cast.free.netns, f));
        // Netfilter may have put them together on their way.
        let n_packets = if scene.lab.topology.cni == Cni::Bridge { 1 } else { 3 };
        scene.drops_of(n_packets, At::ingress(&cast.asked), send);
        // What comes later on the same way shows that nothing of them is still under way.
        let (fragments, later) = three_fragments(free, asked, 80);
        scene.all_arrive(&cast.free.netns, &fragments, &later, &cast.asked);
        assert!(tags.iter().all(|tag| cast.asked.wire().count(tag) == 0));
    }
}

/// Datagrams that need fragments, from real sockets: both ways where a policy or being the pod's
/// own node allows them, and none where not.
fn large_datagrams(scene: &Scene<'_>) {
    let cast = Cast::new(scene);
    let near = scene.pod("near", 1, "{}");
    scene.serve(&cast.asked, 80);
    scene.serve(&cast.asked, 81);
    let node = &scene.lab.node(1).netns;
    for [asked, ..] in cast.addresses() {
        for (port, may) in [(80, vec![&near.netns, node, &cast.free.netns]), (81, vec![node])] {
            for from in may {
                // Linux puts IPv6 fragments together on a bridge with netfilter and does not cut
                // what it then routes: without any policy as well, nothing gets through there.
                let is_routed = std::ptr::eq(from, &raw const cast.free.netns);
                if !(is_routed && scene.lab.topology.cni == Cni::Bridge && asked.is_ipv6()) {
                    let answer = from.run(|| ask_at_length(asked, port)).unwrap();
                    assert_eq!(answer.unwrap(), LARGE, "port {port} of {asked}");
                }
            }
        }
        // Dropped whole: what arrives is dropped first fragment first.
        scene.drops_of(1, At::ingress(&cast.asked), || {
            near.netns.run(|| send_at_length(asked, 81)).unwrap();
        });
    }
}

/// More than two packets.
const LARGE: usize = 4000;

fn send_at_length(to: IpAddr, port: u16) -> UdpSocket {
    let any: IpAddr = match to {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).unwrap();
    socket.connect((to, port)).unwrap();
    socket.send(&[9; LARGE]).unwrap();
    socket
}

/// More than once: where the sender changes its processor between two fragments, the later one may
/// overtake the first, and is dropped then.
fn ask_at_length(to: IpAddr, port: u16) -> std::io::Result<usize> {
    let mut answer = Err(std::io::ErrorKind::TimedOut.into());
    for _ in 0..5 {
        let socket = send_at_length(to, port);
        socket.set_read_timeout(Some(world::PATIENCE / 20))?;
        answer = socket.recv(&mut [0; 2 * LARGE]);
        if answer.is_ok() {
            break;
        }
    }
    answer
}

/// Fragments that the node has put together and cut anew are still not the node's own packets: on
/// a bridge that floods them, each port gets a copy of its own.
fn fragments_made_anew(scene: &Scene<'_>) {
    let cast = Cast::new(scene);
    let near = scene.pod("near", 1, "{}");
    let gateway = near.gateway();
    for [asked, _, free] in cast.addresses() {
        let ethertype = if asked.is_ipv4() { IPV4 } else { IPV6 };
        let to = if scene.lab.topology.cni == Cni::Routed { gateway } else { BROADCAST };
        let flood = |fragments: &[Vec<u8>]| {
            fragments.iter().for_each(|f| near.wire().send_as(to, ethertype, f));
        };
        let (fragments, tags) = three_fragments(near.address(free), asked, 81);
        scene.loses(1, At::ingress(&cast.asked), &cast.asked, &tags, || flood(&fragments));
        let (fragments, later) = three_fragments(near.address(free), asked, 80);
        flood(&fragments);
        let wire = cast.asked.wire();
        eventually("the allowed ones arrive", || later.iter().all(|tag| wire.count(tag) > 0));
        assert!(tags.iter().all(|tag| wire.count(tag) == 0));
    }
}

/// Nor do they lose what tells that they have to be judged again, where they leave the node to a
/// backend: a Service of which only one backend is allowed, sent to the other one. For the tunnel
/// the kernel has to make the fragments anew.
#[test]
fn fragments_to_a_service() {
    // One of its own: translation makes the node put fragments together.
    let lab = Lab::new(topology::ROUTED_OVERLAY, Families::Dual);
    let scene = &lab.scene("fragments-to-a-service");
    let client = scene.pod("client", 1, "{app: client}");
    let [good, bad] = ["good", "bad"].map(|name| {
        let pod = scene.pod(name, 2, &format!("{{app: {name}}}"));
        scene.serve(&pod, 80);
        pod
    });
    scene.policy(
        "client",
        "podSelector: {matchLabels: {app: client}}, policyTypes: [Egress], \
         egress: [{to: [{podSelector: {matchLabels: {app: good}}}]}]",
    );
    for &address in &good.addresses {
        let [service, family] = match address {
            IpAddr::V4(_) => ["10.96.7.7", "IPv4"],
            IpAddr::V6(_) => ["fd00:10:96::77", "IPv6"],
        };
        let backends =
            [&good, &bad].map(|pod| format!("{{addresses: [\"{}\"]}}", pod.address(address)));
        write_service(scene, &family.to_lowercase(), service, family, &backends.join(", "));
        let service: IpAddr = service.parse().unwrap();
        for (backend, is_allowed) in [(&good, true), (&bad, false)] {
            translate(scene, service, backend.address(address));
            scene.settle();
            if is_allowed {
                let answer = client.netns.run(|| ask_at_length(service, 80)).unwrap();
                assert_eq!(answer.unwrap(), LARGE, "{service} by way of {}", backend.name);
                continue;
            }
            let (fragments, tags) = three_fragments(client.address(address), service, 80);
            let send = || fragments.iter().for_each(|f| send_packet(&client.netns, f));
            scene.loses(1, At::egress(&client), &bad, &tags, send);
        }
    }
}

/// A Service of one family and its slice.
fn write_service(scene: &Scene<'_>, name: &str, address: &str, family: &str, backends: &str) {
    let namespace = &scene.namespace;
    scene.write(
        name,
        &format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
             spec: {{clusterIP: \"{address}\", clusterIPs: [\"{address}\"], ipFamilies: [{family}], \
             ports: [{{port: 80, protocol: UDP}}]}}\n---\n\
             apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
             metadata: {{name: {name}, namespace: {namespace}, \
             labels: {{kubernetes.io/service-name: {name}}}}}\naddressType: {family}\n\
             endpoints: [{backends}]\nports: [{{port: 80, protocol: UDP}}]\n"
        ),
    );
}

/// The client's node sends what goes to this address and UDP port 80 to a backend.
fn translate(scene: &Scene<'_>, service: IpAddr, backend: IpAddr) {
    let family = if service.is_ipv4() { "ip" } else { "ip6" };
    let rules = format!(
        "add table {family} fragments; delete table {family} fragments; \
         table {family} fragments {{ chain c {{ type nat hook prerouting priority dstnat; \
         {family} daddr {service} udp dport 80 dnat to {backend}; }}; }}"
    );
    let nft = || Command::new("nft").arg(rules).output().expect("nft: install nftables");
    let output = scene.lab.node(1).netns.run(nft).unwrap();
    assert!(output.status.success(), "nft: {}", String::from_utf8_lossy(&output.stderr));
}

/// A fragment that overtakes the first waits for no one: where ports matter it is dropped, with a
/// reason of its own, and when the first has come, the rest passes.
fn fragments_out_of_order(scene: &Scene<'_>) {
    let cast = Cast::new(scene);
    for [asked, asks, free] in cast.addresses() {
        let (fragments, tags) = three_fragments(asks, free, 80);
        let [first, second, third] = &fragments[..] else { panic!("three") };
        for early in [third, second] {
            let at = At::egress(&cast.asks).because(Reason::Fragment);
            scene.drops_of(1, at, || send_packet(&cast.asks.netns, early));
        }
        let again = [first.clone(), third.clone(), second.clone()];
        scene.all_arrive(&cast.asks.netns, &again, &tags, &cast.free);
        // Never because of the first fragment of another datagram.
        let (fragments, _) = three_fragments(asks, free, 80);
        let at = At::egress(&cast.asks).because(Reason::Fragment);
        scene.drops_of(1, at, || send_packet(&cast.asks.netns, &fragments[1]));
        // Towards a pod likewise, unless netfilter has put them together and in order before.
        let (fragments, tags) = three_fragments(free, asked, 80);
        let [first, second, third] = &fragments[..] else { panic!("three") };
        let backwards = [third.clone(), second.clone(), first.clone()];
        if scene.lab.topology.cni == Cni::Bridge {
            scene.all_arrive(&cast.free.netns, &backwards, &tags, &cast.asked);
            continue;
        }
        let at = At::ingress(&cast.asked).because(Reason::Fragment);
        let send = || backwards.iter().for_each(|f| send_packet(&cast.free.netns, f));
        scene.drops_of(2, at, send);
        let wire = cast.asked.wire();
        eventually("the first arrives", || wire.count(&tags[0]) == 1);
        assert_eq!([wire.count(&tags[1]), wire.count(&tags[2])], [0, 0]);
    }
}

/// Between addresses where everything or nothing is allowed, the order means nothing.
fn fragments_where_ports_do_not_matter(scene: &Scene<'_>) {
    let asked = scene.pod("asked", 1, "{app: asked}");
    let friend = scene.pod("friend", 2, "{app: friend}");
    let stranger = scene.pod("stranger", 2, "{}");
    scene.policy(
        "friends",
        "podSelector: {matchLabels: {app: asked}}, policyTypes: [Ingress, Egress], \
         ingress: [{from: [{podSelector: {matchLabels: {app: friend}}}]}], \
         egress: [{to: [{podSelector: {matchLabels: {app: friend}}}]}]",
    );
    scene.settle();
    for &address in &asked.addresses {
        let (own, other) = (friend.address(address), stranger.address(address));
        for (from, source, to, destination) in
            [(&friend, own, &asked, address), (&asked, address, &friend, own)]
        {
            let (mut fragments, tags) = three_fragments(source, destination, 4242);
            fragments.reverse();
            scene.all_arrive(&from.netns, &fragments, &tags, to);
        }
        let (mut fragments, tags) = three_fragments(address, other, 4242);
        fragments.reverse();
        let at = At::egress(&asked).because(Reason::Fragment);
        scene.drops_of(2, at, || {
            fragments.iter().for_each(|f| send_packet(&asked.netns, f));
        });
        assert!(tags.iter().all(|tag| stranger.wire().count(tag) == 0));
    }
}

/// A second first fragment is judged by its own ports, and what follows by the last one: however
/// a stack puts them together, nothing for a forbidden port gets through.
fn overlapping_fragments(scene: &Scene<'_>) {
    let cast = Cast::new(scene);
    for [_, asks, free] in cast.addresses() {
        let mut tags = [(); 4].map(|()| packets::tag());
        tags.sort_unstable();
        let part = |port, tag: &Tag| {
            let data = [&[0; 8][..], tag, &[0; 16]].concat();
            packets::udp_with(asks, free, (6000, port), &data)
        };
        let id = u32::from_be_bytes(*tags[0].last_chunk().unwrap());
        let send = |packet: &[u8]| send_packet(&cast.asks.netns, packet);
        let at = At::egress(&cast.asks);
        // To the open port, then over it to the closed one, and the rest of that.
        let open = packets::piece(&part(80, &tags[0]), id, 0, 24, true);
        scene.drops_of(1, at, || {
            send(&open);
            send(&packets::piece(&part(81, &tags[1]), id, 0, 24, true));
        });
        scene.drops_of(1, at, || send(&packets::piece(&part(81, &tags[2]), id, 8, 32, false)));
        // A first fragment too short to tell its ports.
        let short = packets::piece(&part(80, &tags[3]), id + 1, 0, 0, true);
        scene.drops_of(1, at.because(Reason::Truncated), || send(&short));
        assert!(tags[1..].iter().all(|tag| cast.free.wire().count(tag) == 0));
    }
}

/// An isolated pod, one that is not, and how to send towards both from their node.
fn isolated_and_free(scene: &Scene<'_>) -> [(Pod, Wire); 2] {
    let isolated = scene.pod("isolated", 1, "{app: isolated}");
    let free = scene.pod("free", 1, "{}");
    // Everything is allowed that a policy can allow.
    scene.policy(
        "all",
        "podSelector: {matchLabels: {app: isolated}}, policyTypes: [Ingress, Egress], \
         ingress: [{}], egress: [{}]",
    );
    scene.settle();
    let node = &scene.lab.node(1).netns;
    [isolated, free].map(|pod| {
        let towards = Wire::towards(node, &pod);
        (pod, towards)
    })
}

/// Dropped both ways for an isolated pod, with a reason; untouched for any other.
fn vlan_tags(scene: &Scene<'_>) {
    let [(isolated, to_isolated), (free, to_free)] = isolated_and_free(scene);
    for (address, ethertype) in
        isolated.addresses.iter().map(|a| (*a, if a.is_ipv4() { IPV4 } else { IPV6 }))
    {
        let seen = Wire::tap(&scene.lab.node(1).netns, ethertype);
        let tag = packets::tag();
        let packet = packets::udp(address, free.address(address), (4000, 80), tag);
        let [out, into] = [At::egress(&isolated), At::ingress(&isolated)];
        scene.drops_of(1, out.because(Reason::Ethertype), || {
            isolated.wire().send_tagged(BROADCAST, 100, ethertype, &packet);
        });
        assert_eq!(seen.count(&tag), 0);
        scene.drops_of(1, into.because(Reason::Ethertype), || {
            to_isolated.send_tagged(BROADCAST, 100, ethertype, &packet);
        });
        assert_eq!(isolated.wire().count(&tag), 0);
        let own = packets::udp(free.address(address), address, (4000, 80), tag);
        free.wire().send_tagged(BROADCAST, 100, ethertype, &own);
        eventually("the free pod's is seen", || seen.count(&tag) > 0);
        let tag = packets::tag();
        let packet = packets::udp(address, free.address(address), (4000, 80), tag);
        to_free.send_tagged(BROADCAST, 100, ethertype, &packet);
        eventually("the free pod sees it", || free.wire().count(&tag) > 0);
    }
}

/// Likewise.
fn other_ethertypes(scene: &Scene<'_>) {
    let [(isolated, to_isolated), (free, to_free)] = isolated_and_free(scene);
    let seen = Wire::tap(&scene.lab.node(1).netns, EXPERIMENTAL);
    let tag = packets::tag();
    let at = At::egress(&isolated).because(Reason::Ethertype);
    scene.drops_of(1, at, || isolated.wire().send_as(BROADCAST, EXPERIMENTAL, &tag));
    assert_eq!(seen.count(&tag), 0);
    let at = At::ingress(&isolated).because(Reason::Ethertype);
    scene.drops_of(1, at, || to_isolated.send_as(BROADCAST, EXPERIMENTAL, &tag));
    assert_eq!(isolated.wire().count(&tag), 0);
    free.wire().send_as(BROADCAST, EXPERIMENTAL, &tag);
    eventually("the free pod's is seen", || seen.count(&tag) > 0);
    let tag = packets::tag();
    to_free.send_as(BROADCAST, EXPERIMENTAL, &tag);
    eventually("the free pod sees it", || free.wire().count(&tag) > 0);
}

/// Likewise, though everything is allowed.
fn truncated_headers(scene: &Scene<'_>) {
    let [(isolated, to_isolated), (free, to_free)] = isolated_and_free(scene);
    // For all of a link: on a shared one a pod gets nothing that is for another.
    let ends = |addresses: [&str; 2]| addresses.map(|address| address.parse::<IpAddr>().unwrap());
    let v4 = ends(["192.0.2.1", "255.255.255.255"]);
    let v6 = ends(["2001:db8::1", "ff02::1"]);
    let cut = |[from, to]: [IpAddr; 2], protocol, length| {
        let payload = vec![7; length];
        frames::packet(from, to, &Transport::Raw { protocol, payload })
    };
    let mut too_long = cut(v4, 17, 8);
    too_long[3] += 1;
    let mut short_header = cut(v4, 17, 8);
    short_header[0] = 0x44;
    let mut too_long_v6 = cut(v6, 17, 8);
    too_long_v6[5] += 1;
    let endless =
        packets::with_extensions(cut(v6, 17, 8), &[(HOP_BY_HOP, vec![0, 9, 1, 4, 0, 0, 0, 0])]);
    let packets = [
        (IPV4, vec![0x45, 0, 0, 60]),
        (IPV4, too_long),
        (IPV4, short_header),
        (IPV4, cut(v6, 17, 8)),
        (IPV4, cut(v4, 6, 19)),
        (IPV4, cut(v4, 17, 7)),
        (IPV4, cut(v4, 132, 12)),
        (IPV4, cut(v4, 1, 7)),
        (IPV6, vec![0x60, 0, 0, 0, 0]),
        (IPV6, too_long_v6),
        (IPV6, cut(v4, 17, 28)),
        (IPV6, cut(v6, 6, 19)),
        (IPV6, cut(v6, 58, 3)),
        (IPV6, endless),
    ];
    for (ethertype, packet) in packets {
        let [out, into] = [At::egress(&isolated), At::ingress(&isolated)];
        scene.drops_of(1, out.because(Reason::Truncated), || {
            isolated.wire().send_as(BROADCAST, ethertype, &packet);
        });
        scene.drops_of(1, into.because(Reason::Truncated), || {
            to_isolated.send_as(BROADCAST, ethertype, &packet);
        });
        assert_eq!(isolated.wire().count_whole(&packet), 0);
        to_free.send_as(BROADCAST, ethertype, &packet);
        eventually("the free pod sees it", || free.wire().count_whole(&packet) > 0);
    }
}
