//! Packets within packets: out of a pod to which nothing is allowed, and from strangers towards a
//! victim, by what the nodes themselves unpack.

use std::net::IpAddr;

use crate::hostile::attack::Attack;
use crate::hostile::frames::{GRE, Marker, ethertype, frame, geneve, raw, udp, vxlan, within};
use crate::hostile::ways::Way;
use crate::lab::wire::send_packet;
use crate::lab::{Between, Pod, packets};

/// What is inside: from the attacker to everyone, as the node would forward it.
fn inner(way: &Way) -> Vec<u8> {
    udp(way.own, way.to, (4000, 80), way.marker)
}

fn inner_frame(way: &Way) -> Vec<u8> {
    let packet = inner(way);
    frame([0xff; 6], [2, 0, 0, 0, 0, 9], ethertype(&packet), &packet)
}

pub fn ip_in_ip(attack: &Attack<'_>) {
    attack.spray(|way| within(way.own, way.to, &inner(way)));
    attack.spray(|way| within(way.own, way.to, &within(way.own, way.to, &inner(way))));
    attack.is_held();
}

/// The other family inside.
pub fn six_in_four_and_four_in_six(attack: &Attack<'_>) {
    let [v4, v6] = ["10.244.2.2", "fd00:10:244:2::2"].map(|text| text.parse::<IpAddr>().unwrap());
    attack.spray(|way| {
        let other = if way.to.is_ipv4() { v6 } else { v4 };
        within(way.own, way.to, &udp(other, other, (4000, 80), way.marker))
    });
    attack.is_held();
}

pub fn gre(attack: &Attack<'_>) {
    attack.spray(|way| {
        let packet = inner(way);
        let header = [&[0, 0][..], &ethertype(&packet).to_be_bytes()].concat();
        raw(way.own, way.to, GRE, &[header, packet].concat())
    });
    // With key and sequence number, a frame inside; ERSPAN; PPTP's version.
    for head in [[0x30, 0, 0x65, 0x58], [0x10, 0, 0x88, 0xbe], [0x30, 1, 0x88, 0x0b]] {
        attack.spray(|way| {
            raw(
                way.own,
                way.to,
                GRE,
                &[&head[..], &[0, 0, 0, 1, 0, 0, 0, 1], &inner_frame(way)].concat(),
            )
        });
    }
    attack.is_held();
}

/// To the nodes' own VXLAN port, with the cluster's network number and others.
pub fn vxlan_from_a_pod(attack: &Attack<'_>) {
    for network in [42, 1, 0] {
        attack.spray(|way| vxlan(way.own, way.to, network, &inner_frame(way)));
    }
    attack.is_held();
}

pub fn geneve_from_a_pod(attack: &Attack<'_>) {
    attack.spray(|way| geneve(way.own, way.to, 42, &inner_frame(way)));
    attack.is_held();
}

/// Everything else that carries packets: ESP, AH, IPComp, EtherIP, MPLS, L2TP, PIM, IP within
/// minimal encapsulation, and WireGuard's, GUE's and STT's ports.
pub fn other_tunnels(attack: &Attack<'_>) {
    for protocol in [50, 51, 108, 97, 137, 115, 103, 55, 94, 98, 99, 111] {
        attack.spray(|way| {
            raw(
                way.own,
                way.to,
                protocol,
                &[&[0x30, 0, 0, 0, 0, 0, 0, 1][..], &inner(way)].concat(),
            )
        });
    }
    for port in [51_820, 6080, 5555, 7471, 1701, 2152, 8472, 500, 4500, 3478] {
        attack.spray(|way| packets::udp_with(way.own, way.to, (port, port), &inner(way)));
    }
    attack.is_held();
}

/// Packets to a victim from a stranger within others, which its own stack would have to unpack.
pub fn tunnels_into_a_victim(attack: &Attack<'_>) {
    for (victim, strangers) in attack.victims() {
        for stranger in strangers {
            for &to in &victim.addresses {
                let from = stranger.address(to);
                let inside = udp(attack.stage.friend.address(to), to, (4000, 80), attack.marker);
                let gre_header = [&[0, 0][..], &ethertype(&inside).to_be_bytes()].concat();
                let whole = frame([0xff; 6], [2, 0, 0, 0, 0, 9], ethertype(&inside), &inside);
                let all = [
                    within(from, to, &inside),
                    raw(from, to, GRE, &[gre_header, inside.clone()].concat()),
                    vxlan(from, to, 42, &whole),
                    geneve(from, to, 42, &whole),
                    raw(from, to, 50, &inside),
                ];
                let n = all.len() as u64;
                attack.is_kept_from(victim, n, || {
                    all.iter().for_each(|packet| send_packet(&stranger.netns, packet));
                });
            }
        }
    }
}

/// The host outside, and a pod, make a node unpack what they send to its VXLAN port. Where it comes
/// from inside is what counts then; and nobody is the node for having come by it.
pub fn vxlan_into_a_victim(attack: &Attack<'_>) {
    let stage = attack.stage;
    if stage.lab.topology.between != Between::Overlay {
        // No node listens. What is sent there ends there.
        return vxlan_to_a_node_that_does_not_listen(attack);
    }
    for (victim, node) in [(&stage.victim, 1), (&stage.far_victim, 2)] {
        let to_node = stage.lab.node_addresses(node)[0];
        for &to in &victim.addresses {
            let inside = forged_for(attack, victim, to);
            let whole: Vec<Vec<u8>> = inside
                .iter()
                .map(|packet| {
                    let bytes = frame(
                        device_address(attack, node),
                        [2, 0, 0, 0, 0, 9],
                        ethertype(packet),
                        packet,
                    );
                    vxlan(stage.lab.outside_addresses()[0], to_node, 42, &bytes)
                })
                .collect();
            // As it comes by the tunnel: what may pass does, or the ones that may not prove nothing.
            let allowed = Marker::new();
            let packet = udp(stage.friend.address(to), to, (4000, 80), allowed);
            let bytes = frame(
                device_address(attack, node),
                [2, 0, 0, 0, 0, 9],
                ethertype(&packet),
                &packet,
            );
            attack.is_kept_from(victim, whole.len() as u64, || {
                whole.iter().for_each(|packet| send_packet(&stage.lab.outside, packet));
            });
            send_packet(
                &stage.lab.outside,
                &vxlan(stage.lab.outside_addresses()[0], to_node, 42, &bytes),
            );
            let place = stage.observers.place(&victim.name);
            crate::world::eventually("the tunnel leads to the victim", || {
                stage.observers.count(place, &allowed.0) > 0
            });
        }
    }
}

/// To the victim from strangers, from each address of its own node, and from its node's gateway.
fn forged_for(attack: &Attack<'_>, victim: &Pod, to: IpAddr) -> Vec<Vec<u8>> {
    let stage = attack.stage;
    let mut sources = stage.lab.node_addresses(victim.node);
    sources.extend(stage.lab.outside_addresses());
    sources.extend([&stage.free, &stage.far_free].map(|pod| pod.address(to)));
    sources.retain(|source| source.is_ipv4() == to.is_ipv4());
    sources.iter().map(|&source| udp(source, to, (4000, 80), attack.marker)).collect()
}

/// The link-layer address of a node's VXLAN device: what is for others goes no further.
fn device_address(attack: &Attack<'_>, node: usize) -> [u8; 6] {
    let show = ["-j", "link", "show", crate::lab::tunnel::DEVICE];
    let show = || std::process::Command::new("ip").args(show).output();
    let output = attack.stage.lab.node(node).netns.run(show).unwrap().unwrap();
    let links: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    crate::lab::wire::link_address(links[0]["address"].as_str().unwrap())
}

fn vxlan_to_a_node_that_does_not_listen(attack: &Attack<'_>) {
    let stage = attack.stage;
    for (victim, node) in [(&stage.victim, 1), (&stage.far_victim, 2)] {
        for &to in &victim.addresses {
            for packet in forged_for(attack, victim, to) {
                let bytes = frame([0xff; 6], [2, 0, 0, 0, 0, 9], ethertype(&packet), &packet);
                let to_node = stage.lab.node_addresses(node)[0];
                let outer = vxlan(stage.lab.outside_addresses()[0], to_node, 42, &bytes);
                send_packet(&stage.lab.outside, &outer);
            }
        }
        attack.never_reaches(victim);
    }
}
