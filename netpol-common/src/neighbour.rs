//! What keeps a link working: ARP (RFC 826, RFC 5227), neighbour discovery (RFC 4861, RFC 4862) and
//! multicast listener reports (RFC 2710, RFC 3810). No policy is asked about it, so a pod may say
//! exactly what they need, of itself alone, and to whom no router forwards it: whatever else looked
//! like it would be a way out for anything. Must never ask a policy.

use crate::layout::{Address, Reason};
use crate::packet::{Frame, ICMPV6, LINK_HEADER};

/// Who speaks on an interface, as far as it is declared.
pub trait Speaker {
    /// Whether it may speak as this address: one of its own, or its link-local one.
    fn is_own(&self, address: &Address) -> bool;
    /// Whether this may be its link-layer address, in the order of the wire.
    fn is_own_link_address(&self, address: [u8; 6]) -> bool;
    /// Whether what it sends to this IPv6 unicast address, which is not link-local, stays on its
    /// link: by the node's own routing no router forwards it.
    fn is_on_link(&self, source: &Address, destination: &Address) -> bool;
    /// Whether the frame is for the node, as far as that is known, which as a router would forward it
    /// to this unicast address on the same link.
    fn is_routed(&self, _destination: &Address) -> bool {
        false
    }
}

/// Length of an ARP message for IPv4 over Ethernet, with its link-layer header.
const ARP_LENGTH: u32 = 42;
/// Up to here it may be padded: the shortest Ethernet frame, without its checksum.
const SHORTEST_FRAME: u32 = 60;
/// Where the IPv6 payload stands.
const PAYLOAD: u32 = LINK_HEADER + 40;
/// Where the IPv6 addresses stand, and the target of a message of neighbour discovery.
const SOURCE: u32 = LINK_HEADER + 8;
const DESTINATION: u32 = LINK_HEADER + 24;
const TARGET: u32 = PAYLOAD + 8;
/// Records of one listener report that are read; 72 fit into 1,500 bytes.
const MAX_RECORDS: u16 = 128;

const MALFORMED: Option<Reason> = Some(Reason::Neighbour);
const FORGED: Option<Reason> = Some(Reason::SourceAddress);

/// What a frame is that keeps a link working.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Talk {
    /// ARP.
    Arp,
    /// Neighbour discovery, if it stands where it has to.
    Discovery,
    /// A report of multicast listeners likewise.
    Report,
    /// What no neighbour says.
    Other,
}

/// What the frame is.
#[inline(always)]
pub fn talk<F: Frame>(frame: &F) -> Talk {
    match frame.load::<2>(12) {
        Some([0x08, 0x06]) => Talk::Arp,
        Some([0x86, 0xdd]) => match frame.load::<1>(LINK_HEADER + 6) {
            Some([ICMPV6]) => Talk::Discovery,
            Some([0]) => Talk::Report,
            _ => Talk::Other,
        },
        _ => Talk::Other,
    }
}

/// Why a frame of this kind from a pod must not pass; `None`: it passes. (In the kernel its parts
/// are functions of their own.)
#[inline(always)]
pub fn refuses<F: Frame, S: Speaker>(frame: &F, speaker: &S) -> Option<Reason> {
    match talk(frame) {
        Talk::Arp => refuses_arp(frame, speaker),
        Talk::Discovery => refuses_discovery(frame, speaker),
        Talk::Report => refuses_report(frame, speaker),
        Talk::Other => MALFORMED,
    }
}

/// ARP has its sender's own address, or none in a probe for what is its own.
#[inline(always)]
pub fn refuses_arp<F: Frame, S: Speaker>(frame: &F, speaker: &S) -> Option<Reason> {
    let Some([0, 1, 8, 0, 6, 4, 0, operation]) = frame.load::<8>(LINK_HEADER) else {
        return MALFORMED;
    };
    let (Some(address), Some(target)) = (address4(frame, 28), address4(frame, 38)) else {
        return MALFORMED;
    };
    if !matches!(operation, 1 | 2) || has_unclean_padding(frame, ARP_LENGTH) {
        return MALFORMED;
    }
    if !is_own_link_address(frame, speaker, 22) {
        return FORGED;
    }
    // Who probes for an address means to have it: others that probe for it would give it up.
    let is_own = if address.words[0] == 0 {
        operation == 1 && speaker.is_own(&target)
    } else {
        speaker.is_own(&address)
    };
    if is_own { None } else { FORGED }
}

/// Whether the frame goes on behind `end` with anything but zeros, or for too long.
#[inline(always)]
fn has_unclean_padding<F: Frame>(frame: &F, end: u32) -> bool {
    let length = frame.length();
    if length > SHORTEST_FRAME {
        return true;
    }
    let mut at = end;
    while at < SHORTEST_FRAME {
        if at < length
            && let Some([byte]) = frame.load::<1>(at)
            && byte != 0
        {
            return true;
        }
        at += 1;
    }
    false
}

/// Router and neighbour solicitations and advertisements, by RFC 4861, sections 6.1.1 and 7.1.
///
/// (What is read is read in small pieces: the kernel's stack has no room for more.)
#[inline(always)]
pub fn refuses_discovery<F: Frame, S: Speaker>(frame: &F, speaker: &S) -> Option<Reason> {
    let Some([kind, code]) = frame.load::<2>(PAYLOAD) else { return MALFORMED };
    let Some([mut flags, a, b, c]) = frame.load::<4>(PAYLOAD + 4) else { return MALFORMED };
    // R, S and O of an advertisement; the rest is reserved.
    if kind == NEIGHBOUR_ADVERTISEMENT {
        flags &= 0x1f;
    }
    if code != 0 || flags | a | b | c != 0 || !ends_well(frame, 255) {
        return MALFORMED;
    }
    let options = if kind == ROUTER_SOLICITATION { PAYLOAD + 8 } else { TARGET + 16 };
    let (Some(source), Some(destination)) = (address6(frame, SOURCE), address6(frame, DESTINATION))
    else {
        return MALFORMED;
    };
    let is_anonymous = is_unspecified(&source);
    if let reason @ Some(_) = refuses_options(frame, speaker, kind, is_anonymous, options) {
        return reason;
    }
    if !is_anonymous && !speaker.is_own(&source) {
        return FORGED;
    }
    match kind {
        ROUTER_SOLICITATION => {}
        NEIGHBOUR_SOLICITATION | NEIGHBOUR_ADVERTISEMENT => {
            let Some(target) = address6(frame, TARGET) else { return MALFORMED };
            if is_multicast(&target) {
                return MALFORMED;
            }
            // Of whom it is said, or what will be its own unless somebody else has it. Others who
            // are about to have that would give it up.
            if kind == NEIGHBOUR_ADVERTISEMENT || is_anonymous {
                if !speaker.is_own(&target) {
                    return FORGED;
                }
                if is_anonymous && !is_group_of(&destination, &target) {
                    return MALFORMED;
                }
            }
            if is_anonymous && kind == NEIGHBOUR_ADVERTISEMENT {
                return MALFORMED;
            }
        }
        _ => return MALFORMED,
    }
    let stays = if is_multicast(&destination) {
        is_all_nodes_or_routers(&destination) || is_group_of(&destination, &destination)
    } else {
        // Routers are asked by their link-local addresses, if not all at once.
        let is_on_link = is_link_local(&destination)
            || !is_anonymous
                && kind != ROUTER_SOLICITATION
                && !is_nowhere(&destination)
                && speaker.is_on_link(&source, &destination);
        is_on_link && !speaker.is_routed(&destination)
    };
    if stays { None } else { MALFORMED }
}

const ROUTER_SOLICITATION: u8 = 133;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;

/// Whether the frame ends with its IPv6 packet, which has this hop limit.
#[inline(always)]
fn ends_well<F: Frame>(frame: &F, hop_limit: u8) -> bool {
    let Some([high, low, _, limit]) = frame.load::<4>(LINK_HEADER + 4) else { return false };
    limit == hop_limit && frame.length() == PAYLOAD + u16::from_be_bytes([high, low]) as u32
}

/// At most the sender's link-layer address, where it has an address, and in solicitations the nonce
/// of RFC 7527, which Linux sends; `at`: where the options begin.
#[inline(always)]
fn refuses_options<F: Frame, S: Speaker>(
    frame: &F,
    speaker: &S,
    kind: u8,
    is_anonymous: bool,
    mut at: u32,
) -> Option<Reason> {
    let length = frame.length();
    let address_option = if kind == NEIGHBOUR_ADVERTISEMENT { 2 } else { 1 };
    let (mut has_address, mut has_nonce) = (false, false);
    let mut count = 0;
    while count < 2 && at < length {
        let Some([option, 1]) = frame.load::<2>(at) else { return MALFORMED };
        if option == address_option && !has_address && !is_anonymous {
            has_address = true;
            if !is_own_link_address(frame, speaker, at + 2) {
                return FORGED;
            }
        } else if option == 14 && !has_nonce && kind == NEIGHBOUR_SOLICITATION {
            has_nonce = true;
        } else {
            return MALFORMED;
        }
        at += 8;
        count += 1;
    }
    if at == length { None } else { MALFORMED }
}

/// Whether the link-layer address that stands there is the one that the frame came from, and the
/// sender's own.
#[inline(always)]
fn is_own_link_address<F: Frame, S: Speaker>(frame: &F, speaker: &S, at: u32) -> bool {
    let (Some(said), Some(source)) = (frame.load::<6>(at), frame.load::<6>(6)) else {
        return false;
    };
    // As words: the eBPF programs would call `memcmp`.
    link_word(said) == link_word(source) && speaker.is_own_link_address(said)
}

/// Listener reports, as RFC 2710 and RFC 3810 have them: by the link, and no router reads more of
/// them than which groups are wanted.
#[inline(always)]
pub fn refuses_report<F: Frame, S: Speaker>(frame: &F, speaker: &S) -> Option<Reason> {
    const MESSAGE: u32 = PAYLOAD + 8;
    const RECORDS: u32 = MESSAGE + 8;
    let (Some(head), Some(message)) = (frame.load::<8>(PAYLOAD), frame.load::<8>(MESSAGE)) else {
        return MALFORMED;
    };
    // ICMPv6 is next and this header has eight bytes: the router alert and two bytes of padding.
    let is_alert =
        matches!(head, [ICMPV6, 0, 5, 2, 0, 0, 0 | 1, 0] | [ICMPV6, 0, 0 | 1, 0, 5, 2, 0, 0]);
    if !is_alert || !ends_well(frame, 1) {
        return MALFORMED;
    }
    let (Some(source), Some(destination)) = (address6(frame, SOURCE), address6(frame, DESTINATION))
    else {
        return MALFORMED;
    };
    if !is_unspecified(&source) {
        if !is_link_local(&source) {
            return MALFORMED;
        }
        if !speaker.is_own(&source) {
            return FORGED;
        }
    }
    let is_clean = match message {
        [131 | 132, 0, _, _, 0, 0, 0, 0] => {
            let Some(group) = address6(frame, RECORDS) else { return MALFORMED };
            let to = if message[0] == 131 {
                destination.is_same(&group)
            } else {
                is_routers(&destination, 2)
            };
            frame.length() == RECORDS + 16 && is_multicast(&group) && to
        }
        [143, 0, _, _, 0, 0, high, low] => {
            is_routers(&destination, 0x16)
                && has_clean_records(frame, RECORDS, u16::from_be_bytes([high, low]))
        }
        _ => false,
    };
    if is_clean { None } else { MALFORMED }
}

/// Whether the frame ends with this many records of a listener report, without further data.
#[inline(always)]
fn has_clean_records<F: Frame>(frame: &F, mut at: u32, count: u16) -> bool {
    let length = frame.length();
    if count > MAX_RECORDS {
        return false;
    }
    let mut index = 0;
    while index < MAX_RECORDS {
        if index == count {
            return at == length;
        }
        let Some([1..=6, 0, high, low, 0xff]) = frame.load::<5>(at) else { return false };
        at += 20 + 16 * u16::from_be_bytes([high, low]) as u32;
        if at > length {
            return false;
        }
        index += 1;
    }
    at == length
}

/// Whether both are in one /64, the size of an IPv6 link (RFC 4291, section 2.5.4): what counts as
/// on the link where the node's routing has no say.
#[inline(always)]
pub const fn is_same_subnet(a: &Address, b: &Address) -> bool {
    a.family == b.family && a.words[0] == b.words[0] && a.words[1] == b.words[1]
}

/// Whether this is `::`.
#[inline(always)]
pub const fn is_unspecified(address: &Address) -> bool {
    let words = &address.words;
    address.family == 6 && words[0] | words[1] | words[2] | words[3] == 0
}

/// Whether this is in `::/64`: nobody's, a host's own, or one of IPv4. A node's routes take some of
/// them for its own.
#[inline(always)]
const fn is_nowhere(address: &Address) -> bool {
    address.words[0] | address.words[1] == 0
}

/// Whether this is in `fe80::/10`, from and to which no router forwards.
#[inline(always)]
pub const fn is_link_local(address: &Address) -> bool {
    address.family == 6 && u32::from_be(address.words[0]) >> 22 == 0xfe80 >> 6
}

/// Whether this is an IPv6 multicast group.
#[inline(always)]
pub const fn is_multicast(address: &Address) -> bool {
    address.family == 6 && u32::from_be(address.words[0]) >> 24 == 0xff
}

#[inline(always)]
const fn is_all_nodes_or_routers(address: &Address) -> bool {
    is_routers(address, 1) || is_routers(address, 2)
}

/// Whether this is the group of the link with so small a number: 1 all nodes, 2 all routers, 22
/// routers that listen to reports.
#[inline(always)]
const fn is_routers(address: &Address, number: u32) -> bool {
    let words = &address.words;
    u32::from_be(words[0]) == 0xff02_0000
        && words[1] | words[2] == 0
        && u32::from_be(words[3]) == number
}

/// Whether `group` is the one in which who has `address` is asked for, of `ff02::1:ff00:0/104`.
#[inline(always)]
const fn is_group_of(group: &Address, address: &Address) -> bool {
    let words = &group.words;
    u32::from_be(words[0]) == 0xff02_0000
        && words[1] == 0
        && u32::from_be(words[2]) == 1
        && u32::from_be(words[3]) == 0xff00_0000 | u32::from_be(address.words[3]) & 0x00ff_ffff
}

/// A link-layer address as a word: its first byte is the lowest.
#[inline(always)]
pub const fn link_word(address: [u8; 6]) -> u64 {
    let [a, b, c, d, e, f] = address;
    u64::from_le_bytes([a, b, c, d, e, f, 0, 0])
}

#[inline(always)]
fn address4<F: Frame>(frame: &F, at: u32) -> Option<Address> {
    Some(Address::v4(u32::from_ne_bytes(frame.load::<4>(at)?)))
}

#[inline(always)]
fn address6<F: Frame>(frame: &F, at: u32) -> Option<Address> {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = frame.load::<16>(at)?;
    let word = u32::from_ne_bytes;
    Some(Address::v6([
        word([a, b, c, d]),
        word([e, f, g, h]),
        word([i, j, k, l]),
        word([m, n, o, p]),
    ]))
}
