//! Fragments of every shape. From a pod to which nothing is allowed; from one that may speak to one
//! port, to get to others; and from strangers to a victim.

use std::net::IpAddr;

use crate::hostile::attack::Attack;
use crate::hostile::frames::{Marker, ethertype, frame, icmp, raw, tcp, udp};
use crate::hostile::sender::Sender;
use crate::hostile::stage::OPEN;
use crate::hostile::ways::Way;
use crate::lab::packets::{self, DESTINATION_OPTIONS, FRAGMENT, HOP_BY_HOP, ROUTING};

/// A datagram of 72 bytes of payload, with the marker in each third.
fn datagram(from: IpAddr, to: IpAddr, port: u16, marker: Marker) -> Vec<u8> {
    let mut data = vec![0; 64];
    for at in [0, 16, 40] {
        data[at..at + 16].copy_from_slice(&marker.0);
    }
    packets::udp_with(from, to, (5000, port), &data)
}

/// A number of fragments' own: each call another.
fn number() -> u32 {
    let Marker([a, b, c, d, ..]) = Marker::new();
    u32::from_be_bytes([a, b, c, d])
}

fn thirds(way: &Way) -> [Vec<u8>; 3] {
    let whole = datagram(way.own, way.to, 80, way.marker);
    let id = number();
    let piece = |from, to, more| packets::piece(&whole, id, from, to, more);
    [piece(0, 24, true), piece(24, 48, true), piece(48, 72, false)]
}

/// Sends all pieces that `make` gives, in their order, on each way.
fn spray_pieces(attack: &Attack<'_>, make: impl Fn(&Way) -> Vec<Vec<u8>>) {
    attack.spray_to(&attack.stage.destinations(), &attack.links(), |way| {
        make(way).iter().for_each(|piece| attack.fire_at(way.link, piece));
        None
    });
}

pub fn in_order(attack: &Attack<'_>) {
    spray_pieces(attack, |way| thirds(way).into());
    attack.is_held();
}

pub fn backwards(attack: &Attack<'_>) {
    spray_pieces(attack, |way| thirds(way).into_iter().rev().collect());
    attack.is_held();
}

pub fn without_the_first(attack: &Attack<'_>) {
    spray_pieces(attack, |way| thirds(way)[1..].to_vec());
    attack.is_held();
}

/// Whole packets that say that they are fragments (RFC 6946).
pub fn atomic(attack: &Attack<'_>) {
    attack.spray_v6(|way| {
        packets::with_extensions(
            datagram(way.own, way.to, 80, way.marker),
            &[packets::padding(FRAGMENT)],
        )
    });
    attack.is_held();
}

/// First fragments that end before the ports, or within them; the rest brings the marker.
pub fn tiny_first_fragments(attack: &Attack<'_>) {
    for length in [0, 8, 16] {
        spray_pieces(attack, |way| {
            let whole = datagram(way.own, way.to, 80, way.marker);
            let segment = tcp(way.own, way.to, (5000, 80), 2, way.marker);
            let (a, b) = (number(), number());
            vec![
                packets::piece(&whole, a, length, 72, false),
                packets::piece(&segment, b, length, 36, false),
            ]
        });
    }
    attack.is_held();
}

/// Each offset at which a fragment can begin, by a long way beyond the end of any packet.
pub fn every_offset(attack: &Attack<'_>) {
    let whole = |way: &Way| datagram(way.own, way.to, 80, way.marker);
    for offset in (8..=65_528_usize).step_by(488) {
        for more in [false, true] {
            attack.sweep(|way| {
                let mut piece = packets::piece(&whole(way), number(), 8, 32, more);
                if way.to.is_ipv4() {
                    let word = (offset / 8) as u16 | u16::from(more) << 13;
                    piece[6..8].copy_from_slice(&word.to_be_bytes());
                    return packets::with_options(piece, &[]);
                }
                let word = offset as u16 | u16::from(more);
                piece[42..44].copy_from_slice(&word.to_be_bytes());
                piece
            });
        }
    }
    attack.is_held();
}

/// Pieces that overlap in every way that fooled a stack: within, beyond, twice, by a hole.
pub fn overlapping(attack: &Attack<'_>) {
    let shapes: [&[(usize, usize, bool)]; 6] = [
        &[(0, 48, true), (24, 72, false)],
        &[(0, 24, true), (8, 72, false)],
        &[(0, 72, true), (24, 48, false)],
        &[(24, 72, false), (0, 48, true)],
        &[(0, 24, true), (0, 24, true), (24, 72, false)],
        &[(0, 24, true), (48, 72, false), (16, 64, true)],
    ];
    for shape in shapes {
        spray_pieces(attack, |way| {
            let (whole, id) = (datagram(way.own, way.to, 80, way.marker), number());
            let piece = |&(from, to, more): &(_, _, _)| packets::piece(&whole, id, from, to, more);
            shape.iter().map(piece).collect()
        });
    }
    attack.is_held();
}

/// Fragments of what is no datagram: of an echo request, of an error, of nothing known.
pub fn of_other_protocols(attack: &Attack<'_>) {
    spray_pieces(attack, |way| {
        let kind = if way.to.is_ipv4() { (8, 0) } else { (128, 0) };
        let quoted = udp(way.to, way.own, (80, 5000), way.marker);
        let wholes = [
            icmp(way.own, way.to, kind, &[0; 24], way.marker),
            packets::error(way.own, way.to, packets::port_unreachable(way.to), &quoted),
            raw(way.own, way.to, 253, &[&[0; 24][..], &way.marker.0].concat()),
        ];
        wholes
            .iter()
            .map(|whole| {
                let header = if way.to.is_ipv4() { 20 } else { 40 };
                packets::piece(whole, number(), 24, whole.len() - header, false)
            })
            .collect()
    });
    attack.is_held();
}

/// Fragment headers within fragments, and behind and before every other extension header.
pub fn within_extension_headers(attack: &Attack<'_>) {
    for kinds in [
        &[FRAGMENT, FRAGMENT][..],
        &[HOP_BY_HOP, FRAGMENT],
        &[FRAGMENT, HOP_BY_HOP],
        &[ROUTING, FRAGMENT, DESTINATION_OPTIONS],
        &[FRAGMENT, ROUTING, FRAGMENT],
    ] {
        for position in [0_u16, 1, 8, 9, 0xfff8] {
            let chain: Vec<(u8, Vec<u8>)> = kinds
                .iter()
                .map(|&kind| {
                    let mut header = packets::padding(kind);
                    if kind == FRAGMENT {
                        header.1[2..4].copy_from_slice(&position.to_be_bytes());
                    }
                    header
                })
                .collect();
            attack.spray_v6(|way| {
                packets::with_extensions(datagram(way.own, way.to, 80, way.marker), &chain)
            });
        }
    }
    attack.is_held();
}

/// Who may speak to one port of the victim tries to speak to another: by a second first fragment, by
/// one that covers the ports, by the number of a datagram that was allowed.
pub fn from_an_open_port_to_another(attack: &Attack<'_>) {
    let stage = attack.stage;
    let friend = Sender::of(&stage.friend);
    let link = |to: IpAddr, pod: &crate::lab::Pod| {
        let _ = to;
        if stage.is_bridged() && pod.node == 1 {
            pod.wire().own_address()
        } else {
            stage.friend.gateway()
        }
    };
    for to_pod in [&stage.victim, &stage.free, &stage.far_victim] {
        for &to in &to_pod.addresses {
            let own = stage.friend.address(to);
            let send = |packet: &[u8]| {
                friend.send(&frame(link(to, to_pod), friend.link, ethertype(packet), packet));
            };
            let open = datagram(own, to, OPEN, Marker::new());
            let closed = datagram(own, to, OPEN + 1, attack.marker);
            let id = number();
            send(&packets::piece(&open, id, 0, 24, true));
            // The ports of the second decide about it and what follows it.
            send(&packets::piece(&closed, id, 0, 24, true));
            send(&packets::piece(&closed, id, 24, 72, false));
            let id = number();
            send(&packets::piece(&closed, id, 24, 72, false));
            send(&packets::piece(&closed, id, 0, 24, true));
            // The victim's friend may send to its open port alone, nobody to the free pod.
            if !std::ptr::eq(to_pod, &raw const stage.free) {
                continue;
            }
            send(&packets::piece(&datagram(own, to, OPEN, attack.marker), number(), 0, 72, false));
        }
        attack.never_reaches(to_pod);
    }
}

/// A stranger's fragments with the number of a friend's datagram do not become part of it.
pub fn into_a_friends_datagram(attack: &Attack<'_>) {
    for (victim, strangers) in attack.victims() {
        for &to in &victim.addresses {
            let id = number();
            let friend = attack.stage.friend.address(to);
            let open = datagram(friend, to, OPEN, Marker::new());
            let first = packets::piece(&open, id, 0, 24, true);
            crate::lab::wire::send_packet(&attack.stage.friend.netns, &first);
            for stranger in strangers {
                let own = datagram(stranger.address(to), to, OPEN, attack.marker);
                let rest = packets::piece(&own, id, 24, 72, false);
                crate::lab::wire::send_packet(&stranger.netns, &rest);
            }
        }
        attack.never_reaches(victim);
    }
}

/// Fragments of strangers to a victim, in every order.
pub fn to_a_victim(attack: &Attack<'_>) {
    for (victim, strangers) in attack.victims() {
        for stranger in strangers {
            for &to in &victim.addresses {
                for order in [[0, 1, 2], [2, 1, 0], [1, 0, 2], [1, 2, 0]] {
                    let way =
                        Way { own: stranger.address(to), to, link: [0; 6], marker: attack.marker };
                    let pieces = thirds(&way);
                    for index in order {
                        crate::lab::wire::send_packet(&stranger.netns, &pieces[index]);
                    }
                }
            }
        }
        attack.never_reaches(victim);
    }
}
