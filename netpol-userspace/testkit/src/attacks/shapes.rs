//! What is odd about an IP packet: its protocol, options, extension headers, checksums, addresses.
//! From a pod to which nothing is allowed.

use std::net::{IpAddr, Ipv6Addr};

use crate::hostile::attack::Attack;
use crate::hostile::frames::{
    ALL_NODES, IGMP, NOTHING, SCTP, UDP, ethertype, extension, frame, group_link, raw, sctp, tcp,
    udp,
};
use crate::hostile::ways::Way;
use crate::lab::packets::{
    self, AUTHENTICATION, DESTINATION_OPTIONS, FRAGMENT, HOP_BY_HOP, ROUTING,
};
use crate::lab::wire::BROADCAST;

fn plain(way: &Way) -> Vec<u8> {
    udp(way.own, way.to, (4000, 80), way.marker)
}

fn v6(text: &str) -> IpAddr {
    IpAddr::V6(text.parse().unwrap())
}

/// All 256 protocol numbers (in IPv6 also those of extension headers, which are then malformed).
pub fn every_protocol(attack: &Attack<'_>) {
    for protocol in 0..=u8::MAX {
        attack.sweep(|way| {
            let payload = [&[0; 24][..], &way.marker.0].concat();
            raw(way.own, way.to, protocol, &payload)
        });
    }
    attack.is_held();
}

/// All flags of TCP that there are, eight bits of them.
pub fn every_tcp_flag(attack: &Attack<'_>) {
    for flags in 0..=u8::MAX {
        attack.sweep(|way| tcp(way.own, way.to, (4000, 80), flags, way.marker));
    }
    attack.is_held();
}

/// As if the attacker answered: a connection that nobody opened, by its middle and its end.
pub fn forged_tcp_answers(attack: &Attack<'_>) {
    for flags in [0x12, 0x10, 0x11, 0x18, 0x04, 0x14, 0x19, 0x52] {
        attack.spray(|way| tcp(way.own, way.to, (80, 40_000), flags, way.marker));
    }
    attack.is_held();
}

pub fn every_sctp_chunk(attack: &Attack<'_>) {
    for chunk in 0..=u8::MAX {
        attack.sweep(|way| sctp(way.own, way.to, (4000, 80), chunk, way.marker));
    }
    attack.is_held();
}

/// Ports at which somebody may listen that no policy spares: none, DNS, DHCP, BGP, kubelet, BFD,
/// VXLAN.
pub fn ports_of_note(attack: &Attack<'_>) {
    for port in [0, 1, 53, 67, 68, 123, 179, 443, 546, 547, 3784, 4789, 6081, 6443, 8472, 10_250] {
        for from in [port, 53, 40_000] {
            attack.sweep(|way| udp(way.own, way.to, (from, port), way.marker));
            attack.sweep(|way| tcp(way.own, way.to, (from, port), 2, way.marker));
        }
    }
    attack.is_held();
}

/// Traffic class, hop limit, DF and the reserved bit mean nothing to a policy.
pub fn every_service_class_and_hop_limit(attack: &Attack<'_>) {
    for value in 0..=u8::MAX {
        attack.sweep(|way| {
            let mut packet = plain(way);
            if packet[0] >> 4 == 4 {
                packet[1] = value;
                packet[6] = value & 0xc0;
                packet[8] = value;
                packets::with_options(packet, &[])
            } else {
                packet[0] |= value >> 4;
                packet[1] = value << 4;
                packet[7] = value;
                packet
            }
        });
    }
    attack.is_held();
}

pub fn wrong_checksums(attack: &Attack<'_>) {
    attack.spray(|way| {
        let mut packet = plain(way);
        let at = if packet[0] >> 4 == 4 { 10 } else { 46 };
        packet[at] ^= 0x55;
        packet
    });
    attack.is_held();
}

/// Each kind of option, of each length that fits, also those that lie about it.
pub fn every_ipv4_option(attack: &Attack<'_>) {
    for kind in 0..=u8::MAX {
        for length in [0, 1, 2, 3, 4, 8, 40, 41, 255] {
            let mut options = vec![kind, length, 4, 0, 0, 0, 0, 0];
            if length > 8 {
                options.resize(40, 0);
            }
            let links = [attack.gateway];
            attack.spray_to(&attack.stage.main_destinations(), &links, |way| {
                way.to.is_ipv4().then(|| packets::with_options(plain(way), &options))
            });
        }
    }
    attack.is_held();
}

/// Loose and strict source routes by way of, and to, everyone.
pub fn ipv4_source_routes(attack: &Attack<'_>) {
    let by_way_of = attack.stage.destinations();
    for kind in [0x83, 0x89] {
        for hop in &by_way_of {
            let IpAddr::V4(hop) = hop else { continue };
            let route = [&[kind, 11, 4][..], &hop.octets(), &hop.octets(), &[0]].concat();
            attack.spray_v4(|way| packets::with_options(plain(way), &route));
        }
    }
    attack.is_held();
}

pub fn router_alert(attack: &Attack<'_>) {
    attack.spray_v4(|way| packets::with_options(plain(way), &[0x94, 4, 0, 0]));
    attack.spray_v6(|way| {
        packets::with_extensions(plain(way), &[(HOP_BY_HOP, vec![0, 0, 5, 2, 0, 0, 1, 0])])
    });
    attack.is_held();
}

/// Every extension header, alone, twice, and before every other one.
pub fn extension_headers(attack: &Attack<'_>) {
    const KINDS: [u8; 8] =
        [HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, DESTINATION_OPTIONS, 135, 139, 140];
    for first in KINDS {
        attack.spray_v6(|way| packets::with_extensions(plain(way), &[packets::padding(first)]));
        for second in KINDS {
            let both = [first, second].map(packets::padding);
            attack.spray_v6(|way| packets::with_extensions(plain(way), &both));
        }
    }
    attack.is_held();
}

/// Chains of all lengths that fit into a packet: whoever gives up gives no way.
pub fn long_chains_of_extension_headers(attack: &Attack<'_>) {
    for length in [3, 7, 8, 9, 16, 17, 64, 150] {
        for kind in [DESTINATION_OPTIONS, HOP_BY_HOP, AUTHENTICATION, ROUTING, FRAGMENT] {
            let chain = vec![packets::padding(kind); length];
            attack.spray_v6(|way| packets::with_extensions(plain(way), &chain));
        }
    }
    attack.is_held();
}

/// Headers as long as they can be, so that what follows is far behind.
pub fn long_extension_headers(attack: &Attack<'_>) {
    for units in [2, 16, 64, 120] {
        let header = extension(DESTINATION_OPTIONS, vec![0; units * 8]);
        attack.spray_v6(|way| packets::with_extensions(plain(way), std::slice::from_ref(&header)));
    }
    attack.is_held();
}

/// Headers that end behind the packet, and packets that end within them.
pub fn endless_extension_headers(attack: &Attack<'_>) {
    for kind in [HOP_BY_HOP, DESTINATION_OPTIONS, ROUTING, AUTHENTICATION, 135] {
        for units in [3, 5, 100, 255] {
            attack.spray_v6(|way| {
                let mut header = packets::padding(kind);
                header.1[1] = units;
                packets::with_extensions(plain(way), &[header])
            });
        }
    }
    attack.is_held();
}

/// Routing headers by way of, and to, everyone: types 0, 2, 3 and segment routing.
pub fn ipv6_source_routes(attack: &Attack<'_>) {
    let by_way_of = attack.stage.destinations();
    for kind in [0, 2, 3, 4] {
        for hop in &by_way_of {
            let IpAddr::V6(hop) = hop else { continue };
            let header = [&[0, 2, kind, 1, 0, 0, 0, 0][..], &hop.octets()].concat();
            let route = (ROUTING, header);
            attack
                .spray_v6(|way| packets::with_extensions(plain(way), std::slice::from_ref(&route)));
        }
    }
    attack.is_held();
}

/// A home address option says that another one has sent it (RFC 6275).
pub fn home_addresses(attack: &Attack<'_>) {
    let IpAddr::V6(home) = attack.stage.friend.address(attack.attacker.addresses[1]) else {
        panic!("the second address is of IPv6");
    };
    let options = [&[0, 0, 1, 2, 0, 0, 201, 16][..], &home.octets()].concat();
    let header = extension(DESTINATION_OPTIONS, options);
    attack.spray_v6(|way| packets::with_extensions(plain(way), std::slice::from_ref(&header)));
    attack.is_held();
}

/// Data behind "no next header" (RFC 8200, section 4.7), which a stack ignores and a socket reads.
pub fn no_next_header(attack: &Attack<'_>) {
    let data = |way: &Way| raw(way.own, way.to, NOTHING, &way.marker.0);
    attack.spray(data);
    attack.spray_v6(|way| packets::with_extensions(data(way), &[packets::padding(HOP_BY_HOP)]));
    attack.is_held();
}

/// A length of none, with and without the option that says the real one (RFC 2675).
pub fn jumbograms(attack: &Attack<'_>) {
    attack.spray_v6(|way| {
        let mut packet = plain(way);
        packet[4..6].fill(0);
        packet
    });
    attack.spray_v6(|way| {
        let packet = plain(way);
        let length = packet.len() as u32 - 40 + 8;
        let option = [&[0, 0, 0xc2, 4][..], &length.to_be_bytes()].concat();
        let mut packet = packets::with_extensions(packet, &[(HOP_BY_HOP, option)]);
        packet[4..6].fill(0);
        packet
    });
    attack.is_held();
}

/// Addresses that are none of anybody: this host, loopback, link-local, mapped, embedded, reserved.
pub fn special_destinations(attack: &Attack<'_>) {
    let stage = attack.stage;
    let mut all: Vec<IpAddr> = [
        "0.0.0.0",
        "127.0.0.1",
        "127.9.9.9",
        "169.254.169.254",
        "169.254.1.1",
        "240.0.0.1",
        "255.255.255.254",
        "100.64.0.1",
        "192.88.99.1",
        "0.0.0.1",
    ]
    .map(|address| address.parse().unwrap())
    .into();
    let others = stage.free.addresses.iter().filter_map(|address| match address {
        IpAddr::V4(address) => Some(address.octets()),
        IpAddr::V6(_) => None,
    });
    for [a, b, c, d] in others {
        let [high, low] = [u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])];
        for (head, tail) in [([0, 0, 0, 0, 0, 0xffff], [high, low]), ([0; 6], [high, low])] {
            let [p, q, r, s, t, u] = head;
            all.push(Ipv6Addr::new(p, q, r, s, t, u, tail[0], tail[1]).into());
        }
        all.push(Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, high, low).into());
        all.push(Ipv6Addr::new(0x2002, high, low, 0, 0, 0, 0, 1).into());
        all.push(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0x5efe, high, low).into());
    }
    all.extend(
        ["::", "::1", "fe80::1", "fe80::77", "fec0::1", "fd00:10:244:1::", "100::1"].map(v6),
    );
    for kind in [UDP, SCTP, 253] {
        attack.spray_to(&all, &attack.links(), |way| {
            let payload = [&[0x0f, 0xa0, 0, 80, 0, 24, 0, 0][..], &[0; 8], &way.marker.0].concat();
            Some(raw(way.own, way.to, kind, &payload))
        });
    }
    attack.is_held();
}

/// Groups of the link, the site and the world, each by its own link-layer address and by others.
pub fn multicast(attack: &Attack<'_>) {
    let groups: Vec<IpAddr> = [
        "224.0.0.1",
        "224.0.0.2",
        "224.0.0.22",
        "224.0.0.251",
        "239.1.2.3",
        "232.1.1.1",
        "ff01::1",
        "ff02::1",
        "ff02::2",
        "ff02::16",
        "ff02::fb",
        "ff02::1:2",
        "ff05::2",
        "ff05::1:3",
        "ff08::1",
        "ff0e::1",
        "ff32::8000:1",
    ]
    .map(|address| address.parse().unwrap())
    .into();
    for &group in &groups {
        let link = match group {
            IpAddr::V4(group) => {
                let [_, b, c, d] = group.octets();
                [1, 0, 0x5e, b & 0x7f, c, d]
            }
            IpAddr::V6(group) => group_link(group),
        };
        let links = [&attack.links()[..], &[link, ALL_NODES]].concat();
        for hops in [1, 64, 255] {
            attack.spray_to(&[group], &links, |way| Some(with_hops(plain(way), hops)));
        }
    }
    attack.is_held();
}

fn with_hops(mut packet: Vec<u8>, hops: u8) -> Vec<u8> {
    if packet[0] >> 4 == 4 {
        packet[8] = hops;
        return packets::with_options(packet, &[]);
    }
    packets::with_hop_limit(packet, hops)
}

/// All stations, of this network and of the pods' subnets.
pub fn broadcast(attack: &Attack<'_>) {
    let all: Vec<IpAddr> = [
        "255.255.255.255",
        "10.244.1.255",
        "10.244.2.255",
        "10.244.1.0",
        "172.18.0.255",
        "198.51.100.255",
    ]
    .map(|address| address.parse().unwrap())
    .into();
    attack.spray_to(&all, &attack.links(), |way| Some(plain(way)));
    attack.spray_to(&all, &[BROADCAST], |way| {
        Some(crate::hostile::frames::icmp(way.own, way.to, (8, 0), &[0, 1, 0, 1], way.marker))
    });
    attack.is_held();
}

/// Messages of group management: no router between the pod and its node listens to them.
pub fn igmp(attack: &Attack<'_>) {
    let stage = attack.stage;
    let groups = ["224.0.0.1", "224.0.0.2", "224.0.0.22", "224.0.0.13", "239.1.2.3"];
    let mut all: Vec<IpAddr> = groups.map(|address| address.parse().unwrap()).into();
    all.extend(stage.main_destinations().iter().filter(|address| address.is_ipv4()));
    for kind in 0..=u8::MAX {
        attack.spray_to(&all, &[BROADCAST, [1, 0, 0x5e, 0, 0, 1]], |way| {
            let message = [&[kind, 0, 0, 0, 239, 1, 2, 3][..], &way.marker.0].concat();
            let packet = raw(way.own, way.to, IGMP, &message);
            Some(packets::with_options(with_hops(packet, 1), &[0x94, 4, 0, 0]))
        });
    }
    attack.is_held();
}

/// From addresses that are not the attacker's, to everyone: of each other pod, the nodes, the world,
/// a group, loopback, nobody.
pub fn forged_sources(attack: &Attack<'_>) {
    let stage = attack.stage;
    let mut sources = stage.destinations();
    let special = [
        "0.0.0.0",
        "127.0.0.1",
        "255.255.255.255",
        "224.0.0.1",
        "169.254.1.1",
        "::",
        "::1",
        "fe80::1",
        "ff02::1",
        "::ffff:10.244.1.2",
    ];
    sources.extend(special.map(|address| address.parse::<IpAddr>().unwrap()));
    for &to in &stage.main_destinations() {
        for &from in sources.iter().filter(|from| from.is_ipv4() == to.is_ipv4()) {
            for link in attack.links() {
                for packet in [
                    udp(from, to, (4000, 80), attack.marker),
                    tcp(from, to, (4000, 80), 0x02, attack.marker),
                    tcp(from, to, (80, 4000), 0x10, attack.marker),
                ] {
                    attack.fire(&frame(link, attack.sender.link, ethertype(&packet), &packet));
                }
            }
        }
    }
    attack.is_held();
}

/// To an address from that same address, of somebody else.
pub fn land(attack: &Attack<'_>) {
    attack.spray(|way| tcp(way.to, way.to, (80, 80), 0x02, way.marker));
    attack.spray(|way| udp(way.to, way.to, (80, 80), way.marker));
    attack.is_held();
}
