//! What a pod to which no policy allows anything may send all the same, in the words of the RFCs:
//! what keeps its link working. Written without a look at netpol's own code, and slowly. Must never
//! allow what it does not understand.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::frames::{link_local, solicited_node};
use crate::lab::wire::{ARP, IPV6};

/// Who sends.
#[derive(Clone, Debug)]
pub struct Who {
    pub link: [u8; 6],
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
    /// Addresses of its node, which takes for itself what is sent there.
    pub node: Vec<Ipv6Addr>,
}

impl Who {
    fn has(&self, address: Ipv6Addr) -> bool {
        address == self.v6 || address == link_local(self.link)
    }

    /// Whether the frame tells by an address that this pod has sent it.
    pub fn has_sent(&self, frame: &[u8]) -> bool {
        let Some((head, packet)) = frame.split_at_checked(14) else { return false };
        let from_v4 =
            packet.len() >= 20 && head[12..] == [8, 0] && packet[12..16] == self.v4.octets();
        let from_v6 = packet.len() >= 40
            && head[12..] == [0x86, 0xdd]
            && [self.v6, link_local(self.link)].iter().any(|own| packet[8..24] == own.octets());
        head[6..12] == self.link || from_v4 || from_v6
    }
}

/// Whether nothing forbids this frame from `who`, whom no policy allows anything.
pub fn may_pass(frame: &[u8], who: &Who) -> bool {
    let Some((head, payload)) = frame.split_at_checked(14) else { return false };
    match u16::from_be_bytes([head[12], head[13]]) {
        ARP => is_arp(&head[6..12], payload, who),
        IPV6 => is_from_neighbour(&head[6..12], payload, who),
        _ => false,
    }
}

/// RFC 826 over Ethernet and IPv4, and the probe of RFC 5227.
fn is_arp(source: &[u8], message: &[u8], who: &Who) -> bool {
    let Some((arp, padding)) = message.split_at_checked(28) else { return false };
    let sender = Ipv4Addr::from(<[u8; 4]>::try_from(&arp[14..18]).unwrap());
    let is_request = arp[7] == 1;
    arp[..7] == [0, 1, 8, 0, 6, 4, 0]
        && (is_request || arp[7] == 2)
        && source == who.link
        && arp[8..14] == who.link
        && (sender == who.v4 || is_request && sender.is_unspecified())
        && message.len() <= 46
        && padding.iter().all(|byte| *byte == 0)
}

fn v6_at(packet: &[u8], at: usize) -> Ipv6Addr {
    Ipv6Addr::from(<[u8; 16]>::try_from(&packet[at..at + 16]).unwrap())
}

/// Neighbour discovery (RFC 4861) and listener reports (RFC 2710, RFC 3810).
fn is_from_neighbour(source: &[u8], packet: &[u8], who: &Who) -> bool {
    let Some((header, payload)) = packet.split_at_checked(40) else { return false };
    if header[0] >> 4 != 6
        || usize::from(u16::from_be_bytes([header[4], header[5]])) != payload.len()
    {
        return false;
    }
    let [from, to] = [v6_at(header, 8), v6_at(header, 24)];
    if !(from.is_unspecified() || who.has(from)) {
        return false;
    }
    match (header[6], header[7]) {
        (58, 255) => is_discovery(source, payload, [from, to], who),
        (0, 1) => is_report(payload, [from, to]),
        _ => false,
    }
}

fn is_discovery(source: &[u8], message: &[u8], [from, to]: [Ipv6Addr; 2], who: &Who) -> bool {
    let fixed = match message.first() {
        Some(133) => 8,
        Some(135 | 136) => 24,
        _ => return false,
    };
    if message.len() < fixed || message[1] != 0 || !stays_on_the_link(to, who) {
        return false;
    }
    let (kind, options) = (message[0], &message[fixed..]);
    let target = (fixed == 24).then(|| v6_at(message, 8));
    let has_right_target = match (kind, target) {
        (135, Some(target)) if from.is_unspecified() => {
            who.has(target) && to == solicited_node(target)
        }
        (135, Some(target)) => !target.is_multicast(),
        (136, Some(target)) => who.has(target) && !from.is_unspecified(),
        _ => true,
    };
    has_right_target && has_right_options(kind, source, from, options, who)
}

/// To whom no router forwards it: a neighbour, the node, or a group that only neighbours are in.
fn stays_on_the_link(to: Ipv6Addr, who: &Who) -> bool {
    let groups = ["ff02::1", "ff02::2"].map(|group| group.parse::<Ipv6Addr>().unwrap());
    let is_same_subnet = to.segments()[..4] == who.v6.segments()[..4];
    groups.contains(&to)
        || to.is_multicast() && to == solicited_node(to)
        || to.is_unicast_link_local()
        || is_same_subnet
        || who.node.contains(&to)
}

/// Sections 4.1, 4.3 and 4.4: the sender's link-layer address, unless it has no address; and the
/// nonce of RFC 7527.
fn has_right_options(
    kind: u8,
    source: &[u8],
    from: Ipv6Addr,
    mut options: &[u8],
    who: &Who,
) -> bool {
    let mut n_nonces = 0;
    while !options.is_empty() {
        let Some((option, rest)) = options.split_at_checked(8) else { return false };
        let own_option = if kind == 136 { [2, 1] } else { [1, 1] };
        if option[..2] == own_option {
            if from.is_unspecified() || option[2..] != who.link || source != who.link {
                return false;
            }
        } else if option[..2] == [14, 1] && kind == 135 && n_nonces == 0 {
            n_nonces += 1;
        } else {
            return false;
        }
        options = rest;
    }
    true
}

/// Behind one hop-by-hop header with the router alert, to routers or to the group itself.
fn is_report(payload: &[u8], [from, to]: [Ipv6Addr; 2]) -> bool {
    let Some((header, message)) = payload.split_at_checked(8) else { return false };
    let alert = [5, 2, 0, 0];
    if header[..2] != [58, 0] || !(header[2..6] == alert || header[4..8] == alert) {
        return false;
    }
    if !(from.is_unspecified() || from.is_unicast_link_local()) || message.len() < 8 {
        return false;
    }
    let group = |text: &str| to == text.parse::<Ipv6Addr>().unwrap();
    match message[0] {
        131 if message.len() == 24 => to == v6_at(message, 8) && to.is_multicast(),
        132 if message.len() == 24 => group("ff02::2"),
        143 => group("ff02::16") && has_whole_records(message),
        _ => false,
    }
}

/// RFC 3810, section 5.2: as many records as it says, with as many sources as they say, and no more.
fn has_whole_records(message: &[u8]) -> bool {
    let mut rest = &message[8..];
    for _ in 0..u16::from_be_bytes([message[6], message[7]]) {
        let Some([_, auxiliary, high, low, ..]) = rest.first_chunk::<20>() else { return false };
        let length =
            20 + usize::from(u16::from_be_bytes([*high, *low])) * 16 + usize::from(*auxiliary) * 4;
        let Some((_, after)) = rest.split_at_checked(length) else { return false };
        rest = after;
    }
    rest.is_empty()
}

/// The pair of addresses of one pod.
pub fn pair(addresses: &[IpAddr]) -> (Ipv4Addr, Ipv6Addr) {
    let (mut v4, mut v6) = (Ipv4Addr::UNSPECIFIED, Ipv6Addr::UNSPECIFIED);
    for address in addresses {
        match address {
            IpAddr::V4(address) => v4 = *address,
            IpAddr::V6(address) => v6 = *address,
        }
    }
    (v4, v6)
}
