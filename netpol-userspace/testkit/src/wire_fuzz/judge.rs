//! What others may see of a pod to which nothing is allowed: ARP and neighbour discovery about
//! itself, listener reports, and at its node what it sends to itself. Must never share code with
//! the programs.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::hostile::attack::Attack;
use crate::hostile::frames::link_local;
use crate::hostile::observers::holds;
use crate::hostile::ways::pair;

/// Why a frame may be seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lawful {
    Arp,
    Discovery,
    /// The same that the node has forwarded, to a neighbour of which it knew nothing yet: who gets it
    /// ignores it.
    Forwarded,
    Report,
    ToItself,
}

pub struct Judge {
    token: [u8; 8],
    link: [u8; 6],
    v4: Ipv4Addr,
    v6: Ipv6Addr,
    local: Ipv6Addr,
    /// Places on the pod's own node.
    near: Vec<String>,
    is_bridged: bool,
    /// The addresses of the pod's node, which are on its link.
    of_node: Vec<IpAddr>,
}

impl Judge {
    pub fn new(attack: &Attack<'_>, token: [u8; 8]) -> Self {
        let (stage, link) = (attack.stage, attack.sender.link);
        let (v4, v6) = pair(&attack.attacker.addresses);
        let near = [&stage.victim, &stage.friend, &stage.free].map(|pod| pod.name.clone());
        Self {
            token,
            link,
            v4,
            v6,
            local: link_local(link),
            near: near.into(),
            is_bridged: stage.is_bridged(),
            of_node: stage.lab.node_addresses(1),
        }
    }

    /// Whether the frame is the pod's, or made of one.
    pub fn is_of_attacker(&self, frame: &[u8]) -> bool {
        holds(frame, &self.token)
            || frame.get(6..12) == Some(&self.link)
            || source(frame).is_some_and(|source| self.is_own(source))
    }

    fn is_own(&self, address: IpAddr) -> bool {
        [IpAddr::V4(self.v4), self.v6.into(), self.local.into()].contains(&address)
    }

    /// Whether a frame may pass at all, as far as its first bytes say; more than may.
    pub fn may_pass(&self, frame: &[u8]) -> bool {
        match frame.get(12..14) {
            Some([0x08, 0x06]) => true,
            Some([0x86, 0xdd]) => matches!(frame.get(20), Some(0 | 58)) || self.is_to_itself(frame),
            _ => self.is_to_itself(frame),
        }
    }

    /// Why this frame of the pod's may be seen there; `None`: it must not.
    pub fn lawful(&self, place: &str, frame: &[u8]) -> Option<Lawful> {
        let is_behind = place.starts_with("node 1, behind");
        if !is_behind && !self.near.iter().any(|near| near == place) {
            return None;
        }
        if is_behind && self.is_to_itself(frame) {
            return Some(Lawful::ToItself);
        }
        // (Of a routed link the other end is the node alone.)
        let is_from_it = !self.is_bridged || frame.get(6..12)? == self.link;
        match frame.get(12..14)? {
            [0x86, 0xdd] if !is_from_it => match frame.get(20..22)? {
                [58, 254] => self.is_discovery(frame).then_some(Lawful::Forwarded),
                _ => None,
            },
            _ if !is_from_it => None,
            [0x08, 0x06] => self.is_arp(frame).then_some(Lawful::Arp),
            [0x86, 0xdd] => match frame.get(20..22)? {
                [58, 255] => self.is_discovery(frame).then_some(Lawful::Discovery),
                [0, 1] => self.is_report(frame).then_some(Lawful::Report),
                _ => None,
            },
            _ => None,
        }
    }

    fn is_to_itself(&self, frame: &[u8]) -> bool {
        let (Some(source), Some(to)) = (source(frame), destination(frame)) else { return false };
        let own = if source.is_ipv4() { IpAddr::V4(self.v4) } else { self.v6.into() };
        to == own && self.is_own(source)
    }

    fn is_arp(&self, frame: &[u8]) -> bool {
        let Some((message, padding)) = frame.split_at_checked(42) else { return false };
        let sender = &message[28..32];
        let is_probe = message[21] == 1 && sender == [0; 4] && message[38..42] == self.v4.octets();
        message[14..21] == [0, 1, 8, 0, 6, 4, 0]
            && matches!(message[21], 1 | 2)
            && message[22..28] == self.link
            && (is_probe || sender == self.v4.octets())
            && frame.len() <= 60
            && padding.iter().all(|byte| *byte == 0)
    }

    fn is_discovery(&self, frame: &[u8]) -> bool {
        let (Some(IpAddr::V6(from)), Some(IpAddr::V6(to))) = (source(frame), destination(frame))
        else {
            return false;
        };
        // A message, the sender's link-layer address and a nonce.
        let most = match frame.get(54) {
            Some(133) => 54 + 8 + 8,
            _ => 54 + 24 + 8 + 8,
        };
        let target = frame.get(62..78).and_then(|bytes| <[u8; 16]>::try_from(bytes).ok());
        let target = target.map(Ipv6Addr::from);
        let is_own = |address: Ipv6Addr| [self.v6, self.local].contains(&address);
        let is_about_itself = match frame.get(54..56) {
            Some([133, 0]) => true,
            Some([135, 0]) => !from.is_unspecified() || target.is_some_and(is_own),
            Some([136, 0]) => !from.is_unspecified() && target.is_some_and(is_own),
            _ => false,
        };
        let is_on_link = to.octets()[..2] == [0xff, 2]
            || to.is_unicast_link_local()
            || to == self.v6
            || self.of_node.contains(&to.into())
            || self.is_bridged && to.octets()[..8] == self.v6.octets()[..8];
        frame.len() <= most
            && is_about_itself
            && is_on_link
            && (from.is_unspecified() || is_own(from))
    }

    fn is_report(&self, frame: &[u8]) -> bool {
        let (Some(IpAddr::V6(from)), Some(IpAddr::V6(to))) = (source(frame), destination(frame))
        else {
            return false;
        };
        (from == self.local || from.is_unspecified())
            && to.is_multicast()
            && frame.get(54) == Some(&58)
            && matches!(frame.get(62), Some(131 | 132 | 143))
    }
}

fn source(frame: &[u8]) -> Option<IpAddr> {
    address(frame, 26, 22)
}

fn destination(frame: &[u8]) -> Option<IpAddr> {
    address(frame, 30, 38)
}

fn address(frame: &[u8], v4: usize, v6: usize) -> Option<IpAddr> {
    match frame.get(12..14)? {
        [0x08, 0x00] => Some(<[u8; 4]>::try_from(frame.get(v4..v4 + 4)?).ok()?.into()),
        [0x86, 0xdd] => Some(<[u8; 16]>::try_from(frame.get(v6..v6 + 16)?).ok()?.into()),
        _ => None,
    }
}
