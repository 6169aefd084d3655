//! What is wrong with a frame before its IP header: tags, other ethertypes, link-layer addresses,
//! length. From a pod to which nothing is allowed.

use std::net::IpAddr;
use std::process::Command;

use crate::hostile::attack::Attack;
use crate::hostile::frames::{
    DOT1AD, DOT1Q, MPLS, MPLS_UPSTREAM, Marker, OLD_QINQ, PPPOE, PPPOE_DISCOVERY, RARP, TCP, UDP,
    ethertype, frame, raw, tagged, tcp, udp,
};
use crate::hostile::stage::OPEN;
use crate::hostile::ways::Way;
use crate::lab::packets;
use crate::lab::wire::{ARP, BROADCAST, EXPERIMENTAL, IPV4, IPV6};

/// The plain packet that an attack disguises.
fn plain(way: &Way) -> Vec<u8> {
    udp(way.own, way.to, (4000, 80), way.marker)
}

/// Behind the link-layer addresses: this ethertype and payload.
fn behind(ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&ethertype.to_be_bytes()[..], payload].concat()
}

/// The packet behind these tags, outermost first: ethertype and tag.
fn with_tags(way: &Way, tags: &[(u16, u16)]) -> Vec<u8> {
    let packet = plain(way);
    let mut rest = behind(ethertype(&packet), &packet);
    for (ethertype, tag) in tags.iter().rev() {
        rest = [&ethertype.to_be_bytes()[..], &tag.to_be_bytes(), &rest].concat();
    }
    rest
}

/// The plain packet, for comparison: also that is denied.
pub fn plain_packets(attack: &Attack<'_>) {
    attack.spray(plain);
    attack.is_held();
}

pub fn vlan_tags(attack: &Attack<'_>) {
    for tag in [1, 100, 4094, 4095] {
        attack.spray_frames(|way| with_tags(way, &[(DOT1Q, tag)]));
    }
    attack.is_held();
}

/// VLAN 0 says only how urgent a frame is: the kernel treats it as untagged.
pub fn priority_tags(attack: &Attack<'_>) {
    for tag in [0, 0x2000, 0xe000, 0x1000] {
        attack.spray_frames(|way| with_tags(way, &[(DOT1Q, tag)]));
        attack.spray_frames(|way| with_tags(way, &[(DOT1AD, tag)]));
    }
    attack.is_held();
}

pub fn provider_tags(attack: &Attack<'_>) {
    attack.spray_frames(|way| with_tags(way, &[(DOT1AD, 100)]));
    attack.spray_frames(|way| with_tags(way, &[(OLD_QINQ, 100)]));
    attack.is_held();
}

/// Two and more tags, so that what takes one off finds another, or the packet.
pub fn stacked_tags(attack: &Attack<'_>) {
    for (outer, inner) in [(DOT1AD, DOT1Q), (DOT1Q, DOT1Q), (DOT1Q, DOT1AD), (OLD_QINQ, DOT1Q)] {
        for tag in [0, 7] {
            attack.spray_frames(|way| with_tags(way, &[(outer, 0), (inner, tag)]));
            attack.spray_frames(|way| with_tags(way, &[(outer, 7), (inner, tag)]));
        }
    }
    attack.spray_frames(|way| with_tags(way, &[(DOT1Q, 0); 8]));
    attack.is_held();
}

/// A tag that says that an ARP message follows, and an IP packet that does.
pub fn tagged_as_arp(attack: &Attack<'_>) {
    attack.spray_frames(|way| behind(DOT1Q, &tagged(0, ARP, &plain(way))));
    attack.spray_frames(|way| behind(DOT1Q, &tagged(3, ARP, &plain(way))));
    attack.is_held();
}

pub fn mpls(attack: &Attack<'_>) {
    // Labels 0 and 2 say that IP follows; the last one has its bottom bit set.
    for label in [0_u32, 2, 3, 16, 100] {
        for kind in [MPLS, MPLS_UPSTREAM] {
            let entry = (label << 12 | 0x140).to_be_bytes();
            attack.spray_frames(|way| behind(kind, &[&entry[..], &plain(way)].concat()));
        }
    }
    let stack = [[0, 0, 0x10, 64], [0, 0, 0x21, 64]].concat();
    attack.spray_frames(|way| behind(MPLS, &[&stack[..], &plain(way)].concat()));
    attack.is_held();
}

pub fn pppoe(attack: &Attack<'_>) {
    for kind in [PPPOE, PPPOE_DISCOVERY] {
        attack.spray_frames(|way| {
            let packet = plain(way);
            let protocol: u16 = if packet[0] >> 4 == 4 { 0x21 } else { 0x57 };
            let mut session = vec![0x11, 0, 0, 1];
            session.extend((packet.len() as u16 + 2).to_be_bytes());
            session.extend(protocol.to_be_bytes());
            session.extend(packet);
            behind(kind, &session)
        });
    }
    attack.is_held();
}

/// A length in place of an ethertype: LLC, SNAP with an IP packet, and Novell's raw frames.
pub fn lengths_for_ethertypes(attack: &Attack<'_>) {
    let with_length = |rest: Vec<u8>| behind(rest.len() as u16, &rest);
    attack.spray_frames(|way| with_length([&[0x06, 0x06, 3][..], &plain(way)].concat()));
    attack.spray_frames(|way| {
        let packet = plain(way);
        let kind = ethertype(&packet).to_be_bytes();
        with_length([&[0xaa, 0xaa, 3, 0, 0, 0][..], &kind, &packet].concat())
    });
    attack.spray_frames(|way| with_length([&[0xff, 0xff][..], &plain(way)].concat()));
    attack.spray_frames(|way| with_length([&[0x42, 0x42, 3, 0, 0][..], &way.marker.0].concat()));
    attack.is_held();
}

/// Link-layer addresses that no bridge forwards, and its neighbours read: STP, pause, LLDP.
pub fn reserved_groups(attack: &Attack<'_>) {
    for last in 0..=15 {
        let group = [1, 0x80, 0xc2, 0, 0, last];
        for kind in [0x8808_u16, 0x88cc, 0x888e, 0x8809, 0x88f7, 38] {
            attack.fire(&frame(group, attack.sender.link, kind, &attack.marker.0));
        }
        attack.spray_to(&attack.stage.main_destinations(), &[group], |way| Some(plain(way)));
    }
    attack.is_held();
}

pub fn reverse_arp(attack: &Attack<'_>) {
    attack.spray_frames(|way| {
        let message =
            [0, 1, 8, 0, 6, 4, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        behind(RARP, &[&message[..], &[0; 2], &way.marker.0].concat())
    });
    attack.is_held();
}

/// Each of the 65,533 ethertypes that pods do not speak.
pub fn every_other_ethertype(attack: &Attack<'_>) {
    let link = attack.sender.link;
    for kind in (0..=u16::MAX).filter(|kind| ![IPV4, IPV6, ARP].contains(kind)) {
        // What stands first may be taken for a tag.
        let payload = [&[0; 4][..], &attack.marker.0].concat();
        attack.fire(&frame(BROADCAST, link, kind, &payload));
    }
    attack.is_held();
}

/// An IP packet under the ethertype of the other family, or of nothing.
pub fn wrong_ethertypes(attack: &Attack<'_>) {
    attack.spray_frames(|way| {
        let packet = plain(way);
        let other = if ethertype(&packet) == IPV4 { IPV6 } else { IPV4 };
        behind(other, &packet)
    });
    attack.spray_frames(|way| behind(EXPERIMENTAL, &plain(way)));
    attack.spray_frames(|way| behind(0, &plain(way)));
    attack.is_held();
}

/// Any version in the first four bits, any header length in the next.
pub fn wrong_versions(attack: &Attack<'_>) {
    for first in 0..=u8::MAX {
        attack.spray_to(&attack.stage.main_destinations(), &[attack.gateway], |way| {
            let mut packet = plain(way);
            let kind = ethertype(&packet);
            packet[0] = first;
            // By hand, as the version is no guide to the ethertype.
            let link = attack.sender.link;
            attack.fire(&frame(way.link, link, kind, &packet));
            None
        });
    }
    attack.is_held();
}

/// Behind the end of its packet a frame may have anything: padding that carries data.
pub fn data_behind_the_packet(attack: &Attack<'_>) {
    attack.spray(|way| {
        let mut packet = plain(way);
        packet.extend(way.marker.0.repeat(8));
        packet
    });
    attack.is_held();
}

/// Headers that say more or less than there is.
pub fn wrong_lengths(attack: &Attack<'_>) {
    for length in [0, 1, 19, 20, 21, 27, 28, 29, 0x7fff, 0xffff_u16] {
        attack.sweep(|way| {
            let mut packet = plain(way);
            let at = if packet[0] >> 4 == 4 { 2 } else { 4 };
            packet[at..at + 2].copy_from_slice(&length.to_be_bytes());
            packet
        });
    }
    attack.is_held();
}

/// Sources that are others', or nobody's: of the gateway, of another pod, a group, all, none.
pub fn forged_link_addresses(attack: &Attack<'_>) {
    let stage = attack.stage;
    let mut sources = attack.links();
    sources.extend([[0; 6], [1, 0, 0x5e, 0, 0, 1], [0x33, 0x33, 0, 0, 0, 1], [2, 0, 0, 0, 0, 9]]);
    for source in sources {
        for way in attack.links() {
            for to in stage.main_destinations() {
                let packet = udp(attack.attacker.address(to), to, (4000, 80), attack.marker);
                attack.fire(&frame(way, source, ethertype(&packet), &packet));
            }
        }
    }
    attack.is_held();
}

/// What a policy allows comes from the pod's own link-layer address all the same: else a bridge would
/// bring here what is for another. In a flow that is known, too.
pub fn forged_link_addresses_of_a_friend(attack: &Attack<'_>) {
    let stage = attack.stage;
    for (victim, _) in attack.victims() {
        attack.friend_reaches(victim, |from, to, port, marker| {
            vec![udp(from, to, (4980, port), marker)]
        });
    }
    let mut part = attack.by(&stage.friend);
    part.gateway = stage.friend.gateway();
    let others = [&stage.free, &stage.victim, &stage.attacker];
    let mut sources: Vec<[u8; 6]> = others.iter().map(|pod| pod.wire().own_address()).collect();
    sources.extend([part.gateway, [2, 0, 0, 0, 0, 9], [0; 6]]);
    for (victim, _) in attack.victims() {
        for &to in &victim.addresses {
            let own = part.attacker.address(to);
            for port in [4980, 4981] {
                let packet = udp(own, to, (port, OPEN), part.marker);
                for &source in &sources {
                    part.fire(&frame(part.gateway, source, ethertype(&packet), &packet));
                }
            }
        }
    }
    // A routed link has two ends, and nobody else who could be meant.
    if stage.is_bridged() {
        part.is_held();
    } else {
        part.reaches(&stage.victim);
    }
}

/// Link-layer addresses by which others than who is meant get a frame on a bridge: theirs, all, and
/// one that nobody has, which a bridge sends everywhere.
fn detours(attack: &Attack<'_>) -> Vec<[u8; 6]> {
    let stage = attack.stage;
    let others = [&stage.free, &stage.victim, &stage.friend, &stage.attacker];
    let mut all: Vec<[u8; 6]> = others.iter().map(|pod| pod.wire().own_address()).collect();
    all.extend([BROADCAST, [1, 0, 0x5e, 0, 0, 1], [2, 0, 0, 0, 0, 9]]);
    all
}

/// The packets that are tried by each of the detours.
fn diverted(from: IpAddr, to: IpAddr, port: u16, marker: Marker) -> Vec<Vec<u8>> {
    let plain = udp(from, to, (4990, port), marker);
    let odd = match to {
        IpAddr::V4(_) => packets::with_options(plain.clone(), &[1; 4]),
        IpAddr::V6(_) => packets::with_extensions(
            plain.clone(),
            &[packets::padding(packets::DESTINATION_OPTIONS)],
        ),
    };
    vec![plain, odd, tcp(from, to, (4991, port), 2, marker), udp(from, to, (4992, port), marker)]
}

/// A pod may always reach itself. What it sends there by another's link-layer address, in a new flow
/// and in one that is known, gets to nobody else.
pub fn to_itself_by_the_way_of_others(attack: &Attack<'_>) {
    let stage = attack.stage;
    let scene = stage.lab.scene(&format!("itself-{}", attack.number()));
    // Isolated, but not against what comes in.
    let bystander = scene.pod("bystander", 1, "{app: bystander}");
    scene.policy("out", "podSelector: {}, policyTypes: [Egress]");
    scene.settle();
    let mut links = detours(attack);
    links.push(bystander.wire().own_address());
    for &own in &attack.attacker.addresses {
        let known = diverted(own, own, OPEN, Marker::new());
        known.iter().for_each(|packet| attack.fire_at(attack.gateway, packet));
        for &link in &links {
            for packet in diverted(own, own, OPEN, attack.marker) {
                attack.fire_at(link, &packet);
            }
        }
    }
    stage.others().into_iter().for_each(|pod| attack.never_reaches(pod));
    assert_eq!(bystander.wire().count(&attack.marker.0), 0);
}

/// The same of what a friend may send to a victim: it gets to no third pod.
pub fn to_a_friend_by_the_way_of_others(attack: &Attack<'_>) {
    let stage = attack.stage;
    let scene = stage.lab.scene(&format!("friend-{}", attack.number()));
    let bystander = scene.pod("bystander", 1, "{app: bystander}");
    scene.policy("out", "podSelector: {}, policyTypes: [Egress]");
    scene.settle();
    for (victim, _) in attack.victims() {
        attack.friend_reaches(victim, diverted);
    }
    let part = attack.by(&stage.friend);
    let mut links = detours(&part);
    links.push(bystander.wire().own_address());
    let victims = attack.victims().map(|(victim, _)| victim);
    for &to in victims.iter().flat_map(|victim| &victim.addresses) {
        for &link in &links {
            for packet in diverted(part.attacker.address(to), to, OPEN, part.marker) {
                part.fire_at(link, &packet);
            }
        }
    }
    for pod in [&stage.free, &stage.far_free] {
        part.never_reaches(pod);
    }
    assert_eq!(bystander.wire().count(&part.marker.0), 0);
}

/// Every frame from another link-layer address: no bridge learns what its pod may not send.
pub fn flood_of_link_addresses(attack: &Attack<'_>) {
    let stage = attack.stage;
    let to = stage.main_destinations()[0];
    let packet = udp(attack.attacker.address(to), to, (4000, 80), attack.marker);
    for number in 0..5000_u16 {
        let [high, low] = number.to_be_bytes();
        let source = [0x06, 0xba, 0xdd, 0xad, high, low];
        attack.fire(&frame(attack.gateway, source, ethertype(&packet), &packet));
    }
    attack.is_held();
    if stage.is_bridged() {
        let known = || Command::new("bridge").args(["fdb", "show"]).output().unwrap();
        let output = stage.lab.node(1).netns.run(known).unwrap();
        let known = String::from_utf8(output.stdout).unwrap();
        assert!(known.contains("dev veth"), "the bridge has learnt nobody's address");
        assert!(!known.contains("06:ba:dd:ad"), "the bridge learns from what is dropped");
    }
}

/// Every length that a frame of the interface can have, of every family's header.
pub fn every_length(attack: &Attack<'_>) {
    let stage = attack.stage;
    let gateway = attack.gateway;
    for to in stage.main_destinations() {
        let own = attack.attacker.address(to);
        let mut whole = udp(own, to, (4000, 80), attack.marker);
        let header = whole.len() - attack.marker.0.len();
        whole.splice(header..header, vec![0; 1400 - whole.len()]);
        let kind = ethertype(&whole);
        // The marker stands first, so that a frame that is cut off can be told.
        whole[header..header + 16].copy_from_slice(&attack.marker.0);
        for length in (header + 16..=whole.len()).step_by(7) {
            attack.fire(&frame(gateway, attack.sender.link, kind, &whole[..length]));
        }
    }
    attack.is_held();
}

/// A pod may let its interface take more than the network does; the node's end does not.
pub fn jumbo_frames(attack: &Attack<'_>) {
    let stage = attack.stage;
    let mtu = crate::lab::wiring::pod_mtu(&stage.lab);
    attack.attacker.ip("link set eth0 mtu 9000");
    let large = |to, length: usize| {
        let own = attack.attacker.address(to);
        let mut data = attack.marker.0.to_vec();
        data.resize(length, 7);
        packets::udp_with(own, to, (4000, 80), &data)
    };
    for to in stage.destinations() {
        for link in attack.links() {
            // The most that the other end takes: the kernel drops what is longer between the two.
            attack.fire_at(link, &large(to, mtu as usize - 48));
            let packet = large(to, 8900);
            attack.sender.send(&frame(link, attack.sender.link, ethertype(&packet), &packet));
        }
    }
    attack.attacker.ip(&format!("link set eth0 mtu {mtu}"));
    attack.is_held();
}

/// One frame that the kernel would cut into many: a packet socket can say so (`PACKET_VNET_HDR`).
pub fn segmentation_offload(attack: &Attack<'_>) {
    let stage = attack.stage;
    let mut frames = Vec::new();
    for to in stage.main_destinations() {
        let own = attack.attacker.address(to);
        for protocol in [TCP, UDP] {
            let packet = large(own, to, protocol, &attack.marker.0.repeat(400));
            let link = attack.sender.link;
            let whole = frame(attack.gateway, link, ethertype(&packet), &packet);
            frames.push(offload(to.is_ipv4(), protocol, &whole));
        }
    }
    attack.fire_offloaded(&frames);
    attack.is_held();
}

/// TCP or UDP with far more data than a frame holds.
fn large(from: IpAddr, to: IpAddr, protocol: u8, data: &[u8]) -> Vec<u8> {
    if protocol == UDP {
        return packets::udp_with(from, to, (4000, 80), data);
    }
    let ports = [4000_u16.to_be_bytes(), 80_u16.to_be_bytes()].concat();
    let rest = [0, 0, 0, 1, 0, 0, 0, 1, 5 << 4, 0x10, 0xff, 0xff, 0, 0, 0, 0];
    raw(from, to, TCP, &[&ports[..], &rest, data].concat())
}

/// The frame behind the header that tells a packet socket how to cut it (`virtio_net_hdr` of
/// linux/virtio_net.h).
fn offload(is_v4: bool, protocol: u8, whole: &[u8]) -> Vec<u8> {
    let start: u16 = if is_v4 { 34 } else { 54 };
    let (kind, length, checksum): (u8, u16, u16) = match (protocol, is_v4) {
        (TCP, true) => (1, 20, 16),
        (TCP, false) => (4, 20, 16),
        _ => (5, 8, 6),
    };
    let mut bytes = vec![1, kind];
    for word in [start + length, 1000, start, checksum] {
        bytes.extend(word.to_ne_bytes());
    }
    bytes.extend(whole);
    bytes
}
