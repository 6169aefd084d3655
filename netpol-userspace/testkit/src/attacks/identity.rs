//! Who speaks: ARP, neighbour discovery and listener reports, which no policy is asked about, and
//! sources that are others'. From a pod to which nothing is allowed, and from one that no policy
//! selects.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::hostile::attack::Attack;
use crate::hostile::frames::{
    ALL_NODES, Marker, advertisement, arp, arp_frame, discovery, ethertype, frame, group_link,
    link_local, link_option, raw, solicitation, solicited_node, tcp, udp,
};
use crate::hostile::ways::pair;
use crate::lab::packets::{self, DESTINATION_OPTIONS, FRAGMENT, HOP_BY_HOP, ROUTING};
use crate::lab::wire::{BROADCAST, IPV6};

/// The attack by the pod that may nothing and by the one that may everything but this.
fn by_both(attack: &Attack<'_>, one: impl Fn(&Attack<'_>)) {
    for pod in [&attack.stage.attacker, &attack.stage.free] {
        let mut part = attack.by(pod);
        part.marker = Marker::new();
        part.gateway = pod.gateway();
        one(&part);
    }
}

/// Addresses of one family that are not this pod's.
fn others_v4(attack: &Attack<'_>) -> Vec<Ipv4Addr> {
    let own = attack.attacker;
    let mut all = attack.stage.destinations();
    all.extend(
        ["10.244.1.1", "169.254.1.1", "255.255.255.255", "127.0.0.1"]
            .map(|a| a.parse::<IpAddr>().unwrap()),
    );
    all.retain(|address| !own.addresses.contains(address));
    all.sort_unstable();
    all.dedup();
    all.into_iter()
        .filter_map(|address| match address {
            IpAddr::V4(address) => Some(address),
            IpAddr::V6(_) => None,
        })
        .collect()
}

fn others_v6(attack: &Attack<'_>) -> Vec<Ipv6Addr> {
    let own = attack.attacker;
    let mut all = attack.stage.destinations();
    let friend = link_local(attack.stage.friend.wire().own_address());
    all.extend(["fe80::1", "fd00:10:244:1::1", "fe80::77"].map(|a| a.parse::<IpAddr>().unwrap()));
    all.push(friend.into());
    all.retain(|address| !own.addresses.contains(address));
    all.sort_unstable();
    all.dedup();
    all.into_iter()
        .filter_map(|address| match address {
            IpAddr::V6(address) => Some(address),
            IpAddr::V4(_) => None,
        })
        .collect()
}

// === ARP ===

/// A part of an attack whose frames are known by these bytes: as many as it sends.
fn held_by_bytes(attack: &Attack<'_>, needle: &[u8], frames: &[Vec<u8>]) {
    let part = attack.by(attack.attacker);
    frames.iter().for_each(|frame| part.fire(frame));
    part.is_held_as(needle);
}

/// Requests, replies and announcements that say that another's address is here.
pub fn arp_in_the_name_of_others(attack: &Attack<'_>) {
    by_both(attack, |attack| {
        let link = attack.sender.link;
        for other in others_v4(attack) {
            let mut all = Vec::new();
            for to in attack.links() {
                for (operation, asked) in [
                    (1, [192, 0, 2, 1].into()),
                    (1, other),
                    (2, other),
                    (2, [10, 244, 1, 2].into()),
                ] {
                    let asked = ([2, 7, 7, 7, 7, 7], asked);
                    all.push(arp_frame(to, link, &arp(operation, (link, other), asked)));
                }
            }
            held_by_bytes(attack, &[&link[..], &other.octets()].concat(), &all);
        }
    });
}

/// The own address at another's link-layer address.
pub fn arp_that_sends_others_astray(attack: &Attack<'_>) {
    by_both(attack, |attack| {
        let (own, _) = pair(&attack.attacker.addresses);
        let link = attack.sender.link;
        let friend = attack.stage.friend.wire().own_address();
        for wrong in [friend, [2, 9, 9, 9, 9, 9], BROADCAST, [0; 6]] {
            let mut all = Vec::new();
            for to in attack.links() {
                for operation in [1, 2] {
                    all.push(arp_frame(
                        to,
                        link,
                        &arp(operation, (wrong, own), (to, [10, 244, 1, 2].into())),
                    ));
                }
            }
            held_by_bytes(attack, &[&wrong[..], &own.octets()].concat(), &all);
        }
    });
}

/// Who probes for an address means to have it: its owner would give it up (RFC 5227).
pub fn arp_probes_for_others(attack: &Attack<'_>) {
    by_both(attack, |attack| {
        let link = attack.sender.link;
        for other in others_v4(attack) {
            let message = arp(1, (link, [0; 4].into()), ([0; 6], other));
            let needle = message[8..].to_vec();
            let all: Vec<_> =
                attack.links().iter().map(|to| arp_frame(*to, link, &message)).collect();
            held_by_bytes(attack, &needle, &all);
        }
    });
}

/// Data behind the message, in what would be padding and beyond it.
pub fn arp_with_data(attack: &Attack<'_>) {
    by_both(attack, |attack| {
        let (own, _) = pair(&attack.attacker.addresses);
        let link = attack.sender.link;
        let message = arp(1, (link, own), ([0; 6], [10, 244, 1, 1].into()));
        for length in [46, 60, 200, 1200] {
            for to in attack.links() {
                let mut bytes = [&message[..], &attack.marker.0].concat();
                bytes.resize(length.max(bytes.len()), 0);
                attack.fire(&arp_frame(to, link, &bytes));
            }
        }
        attack.is_held();
    });
}

/// Another hardware, another protocol, other operations: what is not IPv4's over Ethernet carries
/// anything in its addresses.
pub fn arp_of_other_kinds(attack: &Attack<'_>) {
    by_both(attack, |attack| {
        let (own, _) = pair(&attack.attacker.addresses);
        let link = attack.sender.link;
        // What it is known by stands where the message asks.
        let [a, b, c, d, e, f, g, h, i, j, ..] = attack.marker.0;
        let to = ([a, b, c, d, e, f], [g, h, i, j].into());
        let mut all = Vec::new();
        for (at, value) in [
            (1, 6),
            (1, 0),
            (2, 0x86),
            (3, 1),
            (4, 8),
            (4, 0),
            (5, 16),
            (5, 0),
            (6, 1),
            (7, 0),
            (7, 3),
            (7, 4),
            (7, 8),
            (7, 9),
            (7, 25),
        ] {
            let mut message = arp(1, (link, own), to);
            message[at] = value;
            all.extend(attack.links().iter().map(|to| arp_frame(*to, link, &message)));
        }
        // What ends too early is none either.
        let short = arp(1, (link, own), to);
        all.extend(attack.links().iter().map(|to| arp_frame(*to, link, &short[..24])));
        held_by_bytes(attack, &attack.marker.0[..6], &all);
    });
}

// === Neighbour discovery ===

/// The groups and neighbours that discovery is sent to, each with its link-layer address, and the
/// rest of the world by way of the node.
fn listeners(attack: &Attack<'_>) -> Vec<(Ipv6Addr, [u8; 6])> {
    let mut all: Vec<(Ipv6Addr, [u8; 6])> = ["ff02::1", "ff02::2", "ff02::16"]
        .map(|group| group.parse::<Ipv6Addr>().unwrap())
        .map(|group| (group, group_link(group)))
        .into();
    for to in others_v6(attack) {
        all.push((solicited_node(to), group_link(solicited_node(to))));
        all.extend(attack.links().into_iter().map(|link| (to, link)));
    }
    all
}

fn fire_discovery(attack: &Attack<'_>, link: [u8; 6], packet: &[u8]) {
    attack.fire(&frame(link, attack.sender.link, IPV6, packet));
}

/// Solicitations and advertisements with data in options, behind options, and in place of them.
pub fn discovery_with_data(attack: &Attack<'_>) {
    by_both(attack, |attack| {
        let (_, own) = pair(&attack.attacker.addresses);
        let data = attack.marker.0;
        let options = [
            data.to_vec(),
            [&[1, 3][..], &[0; 6], &data].concat(),
            [&[200, 3][..], &[0; 6], &data].concat(),
            [&[14, 3][..], &[0; 6], &data].concat(),
            [&link_option(1, attack.sender.link)[..], &data].concat(),
            [&[5, 1, 0, 0, 0, 0, 5, 0xdc][..], &data].concat(),
            [&[1, 0][..], &[0; 6], &data].concat(),
        ];
        for (to, link) in listeners(attack) {
            for options in &options {
                for (kind, body) in [
                    (133, [&[0; 4][..], options].concat()),
                    (135, solicitation(to, options)),
                    (136, advertisement(own, options)),
                ] {
                    fire_discovery(attack, link, &discovery(own, to, kind, &body));
                }
            }
        }
        attack.is_held();
    });
}

/// Solicitations without fault but for whom they are for: a router would forward them. What they
/// ask for is sixteen bytes of anything.
pub fn discovery_beyond_the_link(attack: &Attack<'_>) {
    by_both(attack, |attack| {
        let (_, own) = pair(&attack.attacker.addresses);
        let stage = attack.stage;
        let mut target = attack.marker.0;
        target[0] = 0x20;
        let mut all: Vec<IpAddr> = stage.far_free.addresses.clone();
        all.extend(stage.lab.outside_addresses());
        all.extend(stage.lab.node_addresses(2));
        all.extend(
            ["2001:db8::99", "64:ff9b::1", "ff05::2", "ff0e::1", "ff02::fb"]
                .map(|a| a.parse::<IpAddr>().unwrap()),
        );
        let mut frames = Vec::new();
        for to in all {
            let IpAddr::V6(to) = to else { continue };
            for link in attack.links() {
                let packet = discovery(own, to, 135, &solicitation(target.into(), &[]));
                frames.push(frame(link, attack.sender.link, IPV6, &packet));
            }
        }
        held_by_bytes(attack, &target, &frames);
    });
}

/// To neighbours by way of the node, which would forward it as a router; and routers are asked by
/// their group or a link-local address alone.
pub fn discovery_by_way_of_the_router(attack: &Attack<'_>) {
    let stage = attack.stage;
    let neighbours = [&stage.free, &stage.friend, &stage.victim];
    for pod in neighbours {
        // So that the node knows whom it would forward it to.
        let to = pair(&pod.addresses).1;
        let knows = || std::net::UdpSocket::bind("[::]:0").unwrap().send_to(b"?", (to, 9));
        stage.lab.node(1).netns.run(knows).unwrap().unwrap();
    }
    attack.is_heard();
    by_both(attack, |attack| {
        let (_, own) = pair(&attack.attacker.addresses);
        let link = attack.sender.link;
        let mut target = Marker::new().0;
        target[0] = 0x20;
        let (mut asked, mut others) = (Vec::new(), Vec::new());
        for pod in neighbours.into_iter().filter(|pod| pod.name != attack.attacker.name) {
            let to = pair(&pod.addresses).1;
            let asks = discovery(own, to, 135, &solicitation(target.into(), &[]));
            asked.push(frame(attack.gateway, link, IPV6, &asks));
            let says = discovery(own, to, 136, &advertisement(own, &link_option(2, link)));
            others.push(frame(attack.gateway, link, IPV6, &says));
            for to_link in [attack.gateway, pod.wire().own_address()] {
                let asks = discovery(own, to, 133, &[&[0; 4][..], &link_option(1, link)].concat());
                others.push(frame(to_link, link, IPV6, &asks));
            }
        }
        held_by_bytes(attack, &target, &asked);
        let part = attack.by(attack.attacker);
        others.iter().for_each(|frame| part.fire(frame));
        part.is_held_in_part();
    });
}

/// From, or about, an address that is another's: of pods, of the gateway, of the node.
pub fn discovery_in_the_name_of_others(attack: &Attack<'_>) {
    by_both(attack, |attack| {
        let (_, own) = pair(&attack.attacker.addresses);
        let link = attack.sender.link;
        for other in others_v6(attack) {
            let needle = [&other.octets()[..], &link_option(2, link)].concat();
            let mut frames = Vec::new();
            let gateway = (stage_gateway(attack), attack.gateway);
            for (to, link_to) in [("ff02::1".parse().unwrap(), ALL_NODES), gateway] {
                for from in [own, other, link_local(link)] {
                    let body = advertisement(other, &link_option(2, link));
                    frames.push(frame(link_to, link, IPV6, &discovery(from, to, 136, &body)));
                }
            }
            held_by_bytes(attack, &needle, &frames);
        }
    });
}

/// An address of the gateway on the pod's link.
fn stage_gateway(attack: &Attack<'_>) -> Ipv6Addr {
    let text = if attack.stage.is_bridged() { "fd00:10:244:1::1" } else { "fe80::1" };
    text.parse().unwrap()
}

/// Solicitations, whose source a neighbour notes down, in the name of others.
pub fn solicitations_in_the_name_of_others(attack: &Attack<'_>) {
    by_both(attack, |attack| {
        let link = attack.sender.link;
        for other in others_v6(attack) {
            let mut target = Marker::new().0;
            target[0] = 0x20;
            let mut frames = Vec::new();
            for (to, link_to) in
                [("ff02::1".parse().unwrap(), ALL_NODES), (stage_gateway(attack), attack.gateway)]
            {
                let body = solicitation(target.into(), &link_option(1, link));
                frames.push(frame(link_to, link, IPV6, &discovery(other, to, 135, &body)));
            }
            held_by_bytes(attack, &target, &frames);
        }
    });
}

/// The own address at another's link-layer address.
pub fn discovery_that_sends_others_astray(attack: &Attack<'_>) {
    by_both(attack, |attack| {
        let (_, own) = pair(&attack.attacker.addresses);
        let link = attack.sender.link;
        let wrong = attack.stage.friend.wire().own_address();
        let mut target = Marker::new().0;
        target[0] = 0x20;
        let to: Ipv6Addr = "ff02::1".parse().unwrap();
        let asks = discovery(own, to, 135, &solicitation(target.into(), &link_option(1, wrong)));
        held_by_bytes(attack, &target, &[frame(ALL_NODES, link, IPV6, &asks)]);
        let says = discovery(own, to, 136, &advertisement(own, &link_option(2, wrong)));
        let needle = [&own.octets()[..], &link_option(2, wrong)].concat();
        held_by_bytes(attack, &needle, &[frame(ALL_NODES, link, IPV6, &says)]);
    });
}

/// Duplicate address detection for what somebody has: it would give it up (RFC 4862).
pub fn duplicate_addresses(attack: &Attack<'_>) {
    by_both(attack, |attack| {
        let link = attack.sender.link;
        for other in others_v6(attack) {
            let nonce = [&[14, 1][..], &Marker::new().0[..6]].concat();
            let to = solicited_node(other);
            let packet = discovery(Ipv6Addr::UNSPECIFIED, to, 135, &solicitation(other, &nonce));
            let needle = [&other.octets()[..], &nonce].concat();
            held_by_bytes(attack, &needle, &[frame(group_link(to), link, IPV6, &packet)]);
        }
    });
}

/// Router advertisements and redirects, with everything that they can bring.
pub fn router_messages(attack: &Attack<'_>) {
    let stage = attack.stage;
    let (_, own) = pair(&stage.attacker.addresses);
    for (to, link) in listeners(attack) {
        for from in [own, link_local(attack.sender.link), "fe80::1".parse().unwrap()] {
            let advertised =
                [&[64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0][..], &attack.marker.0].concat();
            fire_discovery(attack, link, &discovery(from, to, 134, &advertised));
            let redirect = [&[0; 4][..], &own.octets(), &to.octets(), &attack.marker.0].concat();
            fire_discovery(attack, link, &discovery(from, to, 137, &redirect));
        }
    }
    attack.is_held();
}

/// Behind extension headers and in fragments nothing is discovery.
pub fn discovery_behind_extension_headers(attack: &Attack<'_>) {
    by_both(attack, |attack| {
        let (_, own) = pair(&attack.attacker.addresses);
        for (to, link) in listeners(attack) {
            for kind in [HOP_BY_HOP, DESTINATION_OPTIONS, ROUTING, FRAGMENT] {
                let whole = discovery(own, to, 136, &advertisement(to, &attack.marker.0));
                let packet = packets::with_extensions(whole, &[packets::padding(kind)]);
                fire_discovery(attack, link, &packet);
            }
            let whole = discovery(own, to, 135, &solicitation(to, &attack.marker.0));
            let mut first = packets::piece(&whole, 77, 0, 40, true);
            first[40..42].copy_from_slice(&[58, 0]);
            fire_discovery(attack, link, &first);
        }
        // The pod that may everything may send what is none.
        if attack.attacker.name == attack.stage.attacker.name {
            attack.is_held();
        }
    });
}

/// What comes from further away has a smaller hop limit: from here as well.
pub fn discovery_with_another_hop_limit(attack: &Attack<'_>) {
    let (_, own) = pair(&attack.attacker.addresses);
    for hops in [0, 1, 64, 254] {
        for (to, link) in listeners(attack) {
            for kind in [133, 135, 136] {
                let body = advertisement(own, &attack.marker.0);
                let packet = packets::with_hop_limit(discovery(own, to, kind, &body), hops);
                fire_discovery(attack, link, &packet);
            }
        }
    }
    attack.is_held();
}

/// Listener reports for others, to others, with more than the groups that are wanted.
pub fn listener_reports(attack: &Attack<'_>) {
    let stage = attack.stage;
    let (_, own) = pair(&stage.attacker.addresses);
    let link = link_local(attack.sender.link);
    let alert = (HOP_BY_HOP, vec![0, 0, 5, 2, 0, 0, 1, 0]);
    let report = |from: Ipv6Addr, to: Ipv6Addr, kind, hops, headers: &[(u8, Vec<u8>)]| {
        let body = [&[0; 4][..], &attack.marker.0, &[0; 8], &attack.marker.0].concat();
        let packet = packets::icmp(from.into(), to.into(), kind, 0, body);
        packets::with_extensions(packets::with_hop_limit(packet, hops), headers)
    };
    let one = std::slice::from_ref(&alert);
    let two = [alert.clone(), alert.clone()];
    // A group is nobody's source, but what a report goes to, seen from the other end.
    let others = ["fe80::77", "ff02::16"].map(|text| text.parse::<Ipv6Addr>().unwrap());
    let more = [alert.clone(), packets::padding(DESTINATION_OPTIONS)];
    for kind in [130, 131, 132, 143, 151, 152, 153] {
        for (to, link_to) in listeners(attack) {
            for from in [own, link, Ipv6Addr::UNSPECIFIED, others[0], others[1]] {
                for headers in [one, &[], &two, &more] {
                    for hops in [1, 64] {
                        let packet = report(from, to, kind, hops, headers);
                        attack.fire(&frame(link_to, attack.sender.link, IPV6, &packet));
                    }
                }
            }
        }
    }
    attack.is_held();
}

// === Sources ===

/// From each address that is not its own, to everyone: the pod that no policy selects does not pass
/// for one that a policy names.
pub fn forged_sources_of_a_free_pod(attack: &Attack<'_>) {
    let stage = attack.stage;
    let free = &stage.free;
    let mut part = attack.by(free);
    part.gateway = free.gateway();
    let mut sources: Vec<IpAddr> = others_v4(&part).into_iter().map(IpAddr::V4).collect();
    sources.extend(others_v6(&part).into_iter().map(IpAddr::V6));
    let mut destinations = stage.destinations();
    destinations.push(stage.attacker.addresses[0]);
    for to in destinations {
        for &from in sources.iter().filter(|from| from.is_ipv4() == to.is_ipv4()) {
            for packet in [
                udp(from, to, (4000, 80), part.marker),
                tcp(from, to, (4000, 80), 0x02, part.marker),
                tcp(from, to, (4000, 80), 0x04, part.marker),
                raw(from, to, 253, &part.marker.0),
            ] {
                part.fire_at(part.gateway, &packet);
            }
        }
    }
    part.is_held();
}

/// The friend's flow is cut by nobody: resets and ends of connections in its name, and the victim's.
pub fn forged_ends_of_a_connection(attack: &Attack<'_>) {
    let stage = attack.stage;
    for (victim, _) in attack.victims() {
        attack.friend_reaches(victim, |from, to, port, marker| {
            vec![tcp(from, to, (4950, port), 0x02, marker), udp(from, to, (4950, port), marker)]
        });
        let mut part = attack.by(&stage.free);
        part.marker = Marker::new();
        part.gateway = stage.free.gateway();
        for &to in &victim.addresses {
            let friend = stage.friend.address(to);
            for flags in [0x04, 0x14, 0x11, 0x01, 0x18, 0x12] {
                part.fire_at(part.gateway, &tcp(friend, to, (4950, 80), flags, part.marker));
                part.fire_at(part.gateway, &tcp(to, friend, (80, 4950), flags, part.marker));
            }
        }
        part.is_held();
    }
}

/// On a bridge a frame's source says whose it is as well.
pub fn forged_link_addresses_of_a_free_pod(attack: &Attack<'_>) {
    let stage = attack.stage;
    let mut part = attack.by(&stage.free);
    part.gateway = stage.free.gateway();
    let mut sources = vec![stage.attacker.wire().own_address(), part.gateway, [2, 0, 0, 0, 0, 9]];
    sources.push(stage.victim.wire().own_address());
    for to in stage.main_destinations() {
        let packet = udp(part.attacker.address(to), to, (4000, 80), part.marker);
        for &source in &sources {
            part.fire(&frame(part.gateway, source, ethertype(&packet), &packet));
        }
    }
    // A routed link has two ends, and nobody else who could be meant.
    if stage.is_bridged() {
        part.is_held();
    } else {
        part.reaches(&stage.far_free);
    }
}

/// What keeps a link working passes all the same: what is dropped above is dropped for what it says.
pub fn what_a_link_needs_passes(attack: &Attack<'_>) {
    by_both(attack, |attack| {
        let (v4, v6) = pair(&attack.attacker.addresses);
        let link = attack.sender.link;
        let [a, b, c, d, e, f, g, h, ..] = attack.marker.0;
        let request = arp(1, (link, v4), ([0; 6], [a, b, c, d].into()));
        let target = Ipv6Addr::from([0xfd, 0, a, b, c, d, e, f, g, h, 1, 2, 3, 4, 5, 6]);
        let asks = discovery(
            v6,
            solicited_node(target),
            135,
            &solicitation(target, &link_option(1, link)),
        );
        let reply = arp(2, (link, v4), (attack.gateway, [e, f, g, h].into()));
        for (frame, needle) in [
            (arp_frame(BROADCAST, link, &request), request[14..].to_vec()),
            (arp_frame(attack.gateway, link, &reply), reply[14..].to_vec()),
            (
                frame(group_link(solicited_node(target)), link, IPV6, &asks),
                target.octets().to_vec(),
            ),
        ] {
            attack.sender.send(&frame);
            attack.passes(&needle);
        }
    });
}
