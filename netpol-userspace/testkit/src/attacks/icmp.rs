//! ICMP of every type, alone and about flows that are known, that are somebody else's, and that
//! never were.

use std::net::IpAddr;

use crate::hostile::attack::Attack;
use crate::hostile::frames::{Marker, icmp, tcp, udp};
use crate::hostile::stage::OPEN;
use crate::hostile::ways::Way;
use crate::lab::packets;
use crate::lab::wire::{IPV4, IPV6, Wire, send_packet};
use crate::world::eventually;

/// Types that report an error about a packet.
fn error_kinds(is_v4: bool) -> &'static [(u8, u8)] {
    if is_v4 {
        &[(3, 0), (3, 1), (3, 3), (3, 4), (4, 0), (11, 0), (11, 1), (12, 0)]
    } else {
        &[(1, 0), (1, 4), (2, 0), (3, 0), (4, 0), (4, 1)]
    }
}

/// Each of the 256 types with a few codes, about nothing. (Neighbour discovery has attacks of its
/// own: here its hop limit is wrong.)
pub fn every_type(attack: &Attack<'_>) {
    for kind in 0..=u8::MAX {
        for code in [0, 1, 4, 255] {
            attack.sweep(|way| icmp(way.own, way.to, (kind, code), &[0; 4], way.marker));
        }
    }
    attack.is_held();
}

/// The same with bodies as long as those types' own.
pub fn every_type_with_a_body(attack: &Attack<'_>) {
    for kind in 0..=u8::MAX {
        attack.sweep(|way| icmp(way.own, way.to, (kind, 0), &[0; 36], way.marker));
    }
    attack.is_held();
}

/// IPv4's within IPv6 and the other way round.
pub fn of_the_other_family(attack: &Attack<'_>) {
    for kind in [0, 3, 8, 128, 135, 136, 143] {
        attack.spray(|way| {
            let protocol = if way.to.is_ipv4() { 58 } else { 1 };
            let message = [&[kind, 0, 0, 0][..], &[0; 4], &way.marker.0].concat();
            crate::hostile::frames::raw(way.own, way.to, protocol, &message)
        });
    }
    attack.is_held();
}

/// A packet that such an error may claim to be about.
fn invented(way: &Way, swapped: bool, protocol: u8) -> Vec<u8> {
    let (from, to) = if swapped { (way.own, way.to) } else { (way.to, way.own) };
    match protocol {
        6 => tcp(from, to, (40_000, 80), 0x10, way.marker),
        17 => udp(from, to, (40_000, 80), way.marker),
        _ => {
            let kind = if way.to.is_ipv4() { (8, 0) } else { (128, 0) };
            icmp(from, to, kind, &[0, 7, 0, 1], way.marker)
        }
    }
}

/// Errors about packets that nobody sent, to those who are said to have sent them.
pub fn errors_about_nothing(attack: &Attack<'_>) {
    for swapped in [false, true] {
        for protocol in [6, 17, 1] {
            for index in 0..8 {
                attack.sweep(|way| {
                    let kinds = error_kinds(way.to.is_ipv4());
                    let kind = kinds[index % kinds.len()];
                    packets::error(way.own, way.to, kind, &invented(way, swapped, protocol))
                });
            }
        }
    }
    attack.is_held();
}

/// Errors about errors, and about redirects and solicitations.
pub fn errors_about_errors(attack: &Attack<'_>) {
    attack.spray(|way| {
        let first = invented(way, false, 17);
        let kind = packets::port_unreachable(way.to);
        let second = packets::error(way.to, way.own, kind, &first);
        packets::error(way.own, way.to, kind, &second)
    });
    attack.is_held();
}

/// Redirects (of both families) to whom they could send astray: with a quote, in place of the gateway.
pub fn redirects(attack: &Attack<'_>) {
    attack.spray(|way| {
        let quote = invented(way, false, 17);
        match (way.to, way.own) {
            (IpAddr::V4(_), IpAddr::V4(own)) => {
                icmp(way.own, way.to, (5, 1), &[&own.octets()[..], &quote].concat(), way.marker)
            }
            (IpAddr::V6(to), IpAddr::V6(own)) => {
                let body = [&[0; 4][..], &own.octets(), &to.octets(), &quote].concat();
                packets::with_hop_limit(icmp(way.own, way.to, (137, 0), &body, way.marker), 255)
            }
            _ => panic!("addresses of one family"),
        }
    });
    attack.is_held();
}

/// A node has asked the attacker, which may answer. About that flow it may report errors, to the node
/// alone.
pub fn errors_about_a_flow_of_the_node(attack: &Attack<'_>) {
    let stage = attack.stage;
    for &own in &attack.attacker.addresses {
        let node =
            *stage.lab.node_addresses(1).iter().find(|a| a.is_ipv4() == own.is_ipv4()).unwrap();
        let asked = Marker::new();
        let ethertype = if own.is_ipv4() { IPV4 } else { IPV6 };
        let wire = Wire::tap(&attack.attacker.netns, ethertype);
        send_packet(&stage.lab.node(1).netns, &udp(node, own, (40_077, 7), asked));
        eventually("the attacker is asked", || wire.count(&asked.0) > 0);
        let question = udp(node, own, (40_077, 7), attack.marker);
        let others = stage.destinations();
        let others: Vec<IpAddr> =
            others.into_iter().filter(|to| to.is_ipv4() == own.is_ipv4() && *to != node).collect();
        for &kind in error_kinds(own.is_ipv4()) {
            attack.spray_to(&others, &attack.links(), |way| {
                Some(packets::error(way.own, way.to, kind, &question))
            });
        }
    }
    attack.is_held();
}

/// From strangers to a victim: every type about nothing.
pub fn every_type_to_a_victim(attack: &Attack<'_>) {
    for (victim, strangers) in attack.victims() {
        for stranger in strangers {
            for &to in &victim.addresses {
                let from = stranger.address(to);
                // What only routers and neighbours say may be dropped where it is sent.
                attack.is_kept_from(victim, 240, || {
                    for kind in 0..=u8::MAX {
                        let packet = icmp(from, to, (kind, 0), &[0; 24], attack.marker);
                        send_packet(&stranger.netns, &packet);
                    }
                });
            }
        }
    }
}

/// From strangers to a victim: errors about packets that it never sent, in its own name and others'.
pub fn errors_about_nothing_to_a_victim(attack: &Attack<'_>) {
    for (victim, strangers) in attack.victims() {
        for stranger in strangers {
            for &to in &victim.addresses {
                let from = stranger.address(to);
                let way = Way { own: from, to, link: [0; 6], marker: attack.marker };
                let mut all = Vec::new();
                for &kind in error_kinds(to.is_ipv4()) {
                    for (swapped, protocol) in
                        [(false, 6), (true, 6), (false, 17), (true, 17), (false, 1)]
                    {
                        all.push(packets::error(
                            from,
                            to,
                            kind,
                            &invented(&way, swapped, protocol),
                        ));
                    }
                }
                attack.is_kept_from(victim, all.len() as u64, || {
                    all.iter().for_each(|packet| send_packet(&stranger.netns, packet));
                });
            }
        }
    }
}

/// From strangers to a victim: about a flow that it has with its friend, but the wrong way round, of
/// another protocol, of another port.
pub fn errors_about_nearly_a_flow_to_a_victim(attack: &Attack<'_>) {
    for (victim, strangers) in attack.victims() {
        for &to in &victim.addresses {
            let friend = attack.stage.friend.address(to);
            attack.friend_reaches(victim, |from, to, port, marker| {
                vec![udp(from, to, (4100, port), marker)]
            });
            let nearly = [
                udp(friend, to, (4100, OPEN), attack.marker),
                udp(to, friend, (OPEN, 4101), attack.marker),
                tcp(to, friend, (OPEN, 4100), 0x10, attack.marker),
                udp(to, strangers[0].address(to), (OPEN, 4100), attack.marker),
            ];
            for stranger in strangers {
                let kind = packets::port_unreachable(to);
                attack.is_kept_from(victim, nearly.len() as u64, || {
                    for quoted in &nearly {
                        let packet = packets::error(stranger.address(to), to, kind, quoted);
                        send_packet(&stranger.netns, &packet);
                    }
                });
            }
        }
    }
}
