//! Packets that pretend to belong to something: to a connection, to the node, to the pod itself.

use std::net::IpAddr;

use crate::hostile::attack::Attack;
use crate::hostile::frames::{Marker, ethertype, frame, icmp, raw, sctp, tcp, tcp_numbered, udp};
use crate::hostile::sender::Sender;
use crate::hostile::stage::OPEN;
use crate::lab::Pod;
use crate::lab::wire::{BROADCAST, IPV4, IPV6, Wire, send_packet};
use crate::world::eventually;

/// From every stranger to every victim, as many packets as `make` makes of two addresses.
fn from_strangers(attack: &Attack<'_>, make: impl Fn(IpAddr, IpAddr, Marker) -> Vec<Vec<u8>>) {
    for (victim, strangers) in attack.victims() {
        for &to in &victim.addresses {
            for stranger in strangers {
                let all = make(stranger.address(to), to, attack.marker);
                attack.is_kept_from(victim, all.len() as u64, || {
                    all.iter().for_each(|packet| send_packet(&stranger.netns, packet));
                });
            }
        }
    }
}

/// All flags to the open port and to others: a stranger is not let in by the middle of a connection.
pub fn every_tcp_flag_to_a_victim(attack: &Attack<'_>) {
    from_strangers(attack, |from, to, marker| {
        let make = |flags| tcp(from, to, (4200, OPEN), flags, marker);
        (0..=u8::MAX).map(make).collect()
    });
}

/// As if the victim had asked: answers from well-known ports.
pub fn answers_to_a_victim_that_did_not_ask(attack: &Attack<'_>) {
    from_strangers(attack, |from, to, marker| {
        let mut all = Vec::new();
        for port in [53, 80, 443, 10_250] {
            all.push(udp(from, to, (port, 40_000), marker));
            all.extend(
                [0x12, 0x10, 0x18, 0x11, 0x04, 0x14]
                    .map(|flags| tcp(from, to, (port, 40_000), flags, marker)),
            );
            all.extend(
                [2, 0, 3, 6, 7, 10, 11, 14]
                    .map(|chunk| sctp(from, to, (port, 40_000), chunk, marker)),
            );
        }
        all
    });
}

pub fn every_sctp_chunk_to_a_victim(attack: &Attack<'_>) {
    from_strangers(attack, |from, to, marker| {
        let make = |chunk| sctp(from, to, (4200, OPEN), chunk, marker);
        (0..=u8::MAX).map(make).collect()
    });
}

/// A friend's ports and addresses, but for one of them.
pub fn nearly_a_friends_flow(attack: &Attack<'_>) {
    for (victim, _) in attack.victims() {
        attack.friend_reaches(victim, |from, to, port, marker| {
            vec![udp(from, to, (4300, port), marker)]
        });
    }
    from_strangers(attack, |from, to, marker| {
        vec![
            udp(from, to, (4300, OPEN), marker),
            tcp(from, to, (4300, OPEN), 0x18, marker),
            tcp_numbered(from, to, (4300, OPEN), 0x04, [7, 7], marker),
        ]
    });
}

/// The victim may answer a friend, and nothing else: not from another port, not to another port, not
/// by another protocol, not by opening one itself where the friend's ports are used again.
pub fn a_victim_that_answers_more_than_it_was_asked(attack: &Attack<'_>) {
    let stage = attack.stage;
    for (victim, _) in attack.victims() {
        attack.friend_reaches(victim, |from, to, port, marker| {
            vec![udp(from, to, (4400, port), marker), tcp(from, to, (4400, port), 0x02, marker)]
        });
        let before = stage.n_dropped(victim);
        let mut n_sent = 0;
        for &own in &victim.addresses {
            let friend = stage.friend.address(own);
            let all = [
                udp(own, friend, (OPEN, 4401), attack.marker),
                udp(own, friend, (OPEN + 1, 4400), attack.marker),
                sctp(own, friend, (OPEN, 4400), 0, attack.marker),
                tcp(own, friend, (OPEN, 4401), 0x10, attack.marker),
                tcp(own, friend, (OPEN, 4401), 0x12, attack.marker),
                tcp(own, friend, (OPEN, 4401), 0x04, attack.marker),
                // Its own connection, by the ports of the friend's.
                tcp(own, friend, (OPEN, 4400), 0x02, attack.marker),
                tcp(own, friend, (OPEN, 4400), 0xc2, attack.marker),
                udp(own, stage.free.address(own), (OPEN, 4400), attack.marker),
                udp(own, stage.far_free.address(own), (OPEN, 4400), attack.marker),
            ];
            n_sent += all.len() as u64;
            all.iter().for_each(|packet| send_packet(&victim.netns, packet));
        }
        eventually("all of it is dropped", || stage.n_dropped(victim) >= before + n_sent);
        for pod in [&stage.friend, &stage.free, &stage.far_free] {
            attack.never_reaches(pod);
        }
    }
}

/// Who may only ask is not asked by those it asks, nor by others.
pub fn a_friend_that_is_asked_in_return(attack: &Attack<'_>) {
    let stage = attack.stage;
    for (victim, strangers) in attack.victims() {
        for &from in &victim.addresses {
            let to = stage.friend.address(from);
            for sender in [victim, strangers[0], strangers[1]] {
                let source = sender.address(to);
                for packet in [
                    udp(source, to, (9, 9), attack.marker),
                    tcp(source, to, (OPEN, 9), 0x02, attack.marker),
                    tcp(source, to, (OPEN, 9), 0x12, attack.marker),
                ] {
                    send_packet(&sender.netns, &packet);
                }
            }
        }
    }
    attack.never_reaches(&stage.friend);
}

/// From outside, and from strangers: in the name of the victim's own node, by each of its addresses.
pub fn in_the_name_of_the_node(attack: &Attack<'_>) {
    let stage = attack.stage;
    for (victim, _) in attack.victims() {
        for source in stage.lab.node_addresses(victim.node) {
            let to = victim.address(source);
            for packet in [
                udp(source, to, (4500, OPEN), attack.marker),
                tcp(source, to, (4500, OPEN), 0x02, attack.marker),
                tcp(source, to, (4500, OPEN), 0x10, attack.marker),
            ] {
                for netns in [&stage.lab.outside, &stage.lab.node(3 - victim.node).netns] {
                    send_packet(netns, &packet);
                }
                for pod in [&stage.free, &stage.far_free] {
                    send_packet(&pod.netns, &packet);
                }
            }
        }
        attack.never_reaches(victim);
    }
}

/// From outside, from the other node and from strangers: in the name of the victim itself.
pub fn in_the_name_of_the_victim(attack: &Attack<'_>) {
    let stage = attack.stage;
    let marker = attack.marker;
    for (victim, _) in attack.victims() {
        for &own in &victim.addresses {
            let echo = if own.is_ipv4() { 8 } else { 128 };
            let mut all = vec![
                udp(own, own, (4500, OPEN), marker),
                udp(own, own, (OPEN, OPEN), marker),
                sctp(own, own, (4500, OPEN), 1, marker),
                raw(own, own, 253, &marker.0),
                icmp(own, own, (echo, 0), &[0; 4], marker),
                icmp(own, own, (200, 0), &[0; 4], marker),
            ];
            all.extend(
                [0x02, 0x10, 0x12, 0x04].map(|flags| tcp(own, own, (4500, OPEN), flags, marker)),
            );
            // On their way to the victim no guard is on them: each is counted there.
            attack.is_kept_from(victim, 2 * all.len() as u64, || {
                for netns in [&stage.lab.outside, &stage.lab.node(3 - victim.node).netns] {
                    all.iter().for_each(|packet| send_packet(netns, packet));
                }
            });
            for pod in [&stage.free, &stage.far_free] {
                all.iter().for_each(|packet| send_packet(&pod.netns, packet));
            }
        }
        attack.never_reaches(victim);
    }
}

/// Once the node has asked the victim: in that very flow, from elsewhere.
pub fn in_a_flow_of_the_node(attack: &Attack<'_>) {
    let stage = attack.stage;
    for (victim, _) in attack.victims() {
        for source in stage.lab.node_addresses(victim.node) {
            let to = victim.address(source);
            let asked = Marker::new();
            let node = &stage.lab.node(victim.node).netns;
            send_packet(node, &udp(source, to, (4600, OPEN), asked));
            eventually("the node asks", || victim.wire().count(&asked.0) > 0);
            let forged = udp(source, to, (4600, OPEN), attack.marker);
            for netns in [&stage.lab.outside, &stage.free.netns, &stage.far_free.netns] {
                send_packet(netns, &forged);
            }
        }
        attack.never_reaches(victim);
    }
}

/// What others say to each other does not reach the attacker, not even what a bridge floods.
pub fn overhearing(attack: &Attack<'_>) {
    let stage = attack.stage;
    let flush = |pod: &Pod| {
        if stage.is_bridged() {
            let script = format!("link set {} type bridge_slave fdb_flush", pod.interface);
            crate::world::ip(&stage.lab.node(1).netns, &script);
        }
    };
    let wires = [IPV4, IPV6].map(|ethertype| Wire::tap(&attack.attacker.netns, ethertype));
    let friend = Sender::of(&stage.friend);
    for &to in &stage.victim.addresses {
        let own = stage.friend.address(to);
        let packet = udp(own, to, (5000, OPEN), attack.marker);
        let link = match stage.is_bridged() {
            true => stage.victim.wire().own_address(),
            false => stage.friend.gateway(),
        };
        for link in [link, BROADCAST, [2, 0, 0, 0, 0, 9]] {
            flush(&stage.victim);
            friend.send(&frame(link, friend.link, ethertype(&packet), &packet));
        }
    }
    attack.reaches(&stage.victim);
    attack.is_heard();
    let overheard = wires.iter().map(|wire| wire.count(&attack.marker.0)).sum::<usize>();
    assert_eq!(overheard, 0, "packets of others that the attacker gets");
}
