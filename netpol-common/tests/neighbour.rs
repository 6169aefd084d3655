//! What a pod may say to its neighbours: what its kernel says of itself, byte for byte, and nothing
//! that differs from it in one of the things that matter.

#![expect(clippy::cast_possible_truncation, reason = "small or random numbers")]
#![expect(clippy::unwrap_used, reason = "tests")]

mod support;

use netpol_common::layout::{Address, Reason};
use netpol_common::neighbour::{Speaker, refuses};
use support::Bytes;

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];
const OTHER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];
const FORGED: Option<Reason> = Some(Reason::SourceAddress);
const MALFORMED: Option<Reason> = Some(Reason::Neighbour);

/// A pod with 10.1.0.9, fd00::9 and its link-local address, in fd00::/64.
struct Pod;

impl Speaker for Pod {
    fn is_own(&self, address: &Address) -> bool {
        [v4([10, 1, 0, 9]), v6(OWN), v6(OWN_LINK)].iter().any(|own| own == address)
    }

    fn is_own_link_address(&self, address: [u8; 6]) -> bool {
        address == MAC
    }

    fn is_on_link(&self, source: &Address, destination: &Address) -> bool {
        // A node's routes take these for its own.
        let is_nowhere = [v6("::"), v6("::1")].contains(destination);
        *source == v6(OWN) && (is_nowhere || destination.words[..2] == v6(OWN).words[..2])
    }
}

const OWN: &str = "fd00::9";
const OWN_LINK: &str = "fe80::ff:fe00:9";
const NEIGHBOUR: &str = "fd00::7";
const OFF_LINK: &str = "2001:db8::10";
/// Where who has [`NEIGHBOUR`], and who has [`OWN`], is asked for.
const NEIGHBOURS_GROUP: &str = "ff02::1:ff00:7";
const OWN_GROUP: &str = "ff02::1:ff00:9";

fn bytes6(text: &str) -> [u8; 16] {
    text.parse::<std::net::Ipv6Addr>().unwrap().octets()
}

fn v4(bytes: [u8; 4]) -> Address {
    Address::v4(u32::from_ne_bytes(bytes))
}

fn v6(text: &str) -> Address {
    let bytes = bytes6(text);
    Address::v6([0, 4, 8, 12].map(|at| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap())))
}

fn judged(frame: &[u8]) -> Option<Reason> {
    refuses(&Bytes(frame), &Pod)
}

// === ARP ===

/// An ARP message for 10.1.0.7, or for itself.
fn arp(operation: u8, source: [u8; 6], sender: ([u8; 6], [u8; 4]), target: [u8; 4]) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend(source);
    frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, operation]);
    frame.extend(sender.0);
    frame.extend(sender.1);
    frame.extend([0; 6]);
    frame.extend(target);
    frame
}

const OWN4: [u8; 4] = [10, 1, 0, 9];
const OTHER4: [u8; 4] = [10, 1, 0, 7];

#[test]
fn arp_speaks_for_its_sender_alone() {
    for operation in [1, 2] {
        assert_eq!(judged(&arp(operation, MAC, (MAC, OWN4), OTHER4)), None);
        assert_eq!(judged(&arp(operation, MAC, (MAC, OWN4), OWN4)), None, "announcement");
        assert_eq!(judged(&arp(operation, MAC, (MAC, OTHER4), OWN4)), FORGED);
        assert_eq!(judged(&arp(operation, MAC, (OTHER_MAC, OWN4), OTHER4)), FORGED);
        assert_eq!(judged(&arp(operation, OTHER_MAC, (OTHER_MAC, OWN4), OTHER4)), FORGED);
        assert_eq!(judged(&arp(operation, OTHER_MAC, (MAC, OWN4), OTHER4)), FORGED);
    }
    // RFC 5227: a probe, for what is its own; there is no answer from nobody.
    assert_eq!(judged(&arp(1, MAC, (MAC, [0; 4]), OWN4)), None);
    assert_eq!(judged(&arp(1, MAC, (MAC, [0; 4]), OTHER4)), FORGED);
    assert_eq!(judged(&arp(2, MAC, (MAC, [0; 4]), OWN4)), FORGED);
}

#[test]
fn arp_holds_nothing_else() {
    let whole = arp(1, MAC, (MAC, OWN4), OTHER4);
    assert_eq!(whole.len(), 42);
    for length in 0..42 {
        assert_eq!(judged(&whole[..length]), MALFORMED, "{length} bytes");
    }
    for padding in 0..=18 {
        let mut frame = whole.clone();
        frame.resize(42 + padding, 0);
        assert_eq!(judged(&frame), None, "{padding} bytes of padding");
        for at in 42..frame.len() {
            let mut marked = frame.clone();
            marked[at] = 1;
            assert_eq!(judged(&marked), MALFORMED, "data at {at} of {}", frame.len());
        }
    }
    for length in [61, 62, 100, 1214] {
        let mut frame = whole.clone();
        frame.resize(length, 0);
        assert_eq!(judged(&frame), MALFORMED, "{length} bytes");
    }
    // Hardware, protocol, their lengths, and what is neither request nor reply.
    for (at, byte) in [(15, 6), (16, 0x86), (18, 8), (19, 16), (20, 1), (21, 0), (21, 3), (21, 8)] {
        let mut frame = whole.clone();
        frame[at] = byte;
        assert_eq!(judged(&frame), MALFORMED, "{byte} at {at}");
    }
}

// === Neighbour discovery ===

const SOURCE_OPTION: [u8; 8] = [1, 1, 2, 0, 0, 0, 0, 9];
const TARGET_OPTION: [u8; 8] = [2, 1, 2, 0, 0, 0, 0, 9];
const OTHERS_OPTION: [u8; 8] = [1, 1, 2, 0, 0, 0, 0, 7];
const NONCE: [u8; 8] = [14, 1, 1, 2, 3, 4, 5, 6];

/// An IPv6 packet in its frame, with this next header and hop limit.
fn frame6(source: &str, destination: &str, next: u8, hop_limit: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = [0x33, 0x33, 0, 0, 0, 1].to_vec();
    frame.extend(MAC);
    frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
    frame.extend((payload.len() as u16).to_be_bytes());
    frame.extend([next, hop_limit]);
    frame.extend(bytes6(source));
    frame.extend(bytes6(destination));
    frame.extend(payload);
    frame
}

fn message(kind: u8, target: Option<&str>, options: &[[u8; 8]]) -> Vec<u8> {
    let mut body = vec![kind, 0, 0x12, 0x34, 0, 0, 0, 0];
    body.extend(target.map(bytes6).into_iter().flatten());
    body.extend(options.concat());
    body
}

fn sent(source: &str, destination: &str, message: &[u8]) -> Option<Reason> {
    judged(&frame6(source, destination, 58, 255, message))
}

#[test]
fn solicitations_of_the_kernel_pass() {
    let asks = |target: &str| message(135, Some(target), &[SOURCE_OPTION]);
    for own in [OWN, OWN_LINK] {
        // Resolution, and the unicast probe of whether a neighbour is still there.
        assert_eq!(sent(own, NEIGHBOURS_GROUP, &asks(NEIGHBOUR)), None);
        assert_eq!(sent(own, "fe80::1", &message(135, Some("fe80::1"), &[])), None);
    }
    assert_eq!(sent(OWN, NEIGHBOUR, &message(135, Some(NEIGHBOUR), &[])), None);
    // Detection of duplicates, with the nonce of RFC 7527 and without.
    for options in [&[][..], &[NONCE]] {
        assert_eq!(sent("::", OWN_GROUP, &message(135, Some(OWN), options)), None);
        let group = "ff02::1:ff00:9";
        assert_eq!(sent("::", group, &message(135, Some(OWN_LINK), options)), None);
    }
    for options in [&[][..], &[SOURCE_OPTION]] {
        assert_eq!(sent(OWN_LINK, "ff02::2", &message(133, None, options)), None);
    }
    assert_eq!(sent("::", "ff02::2", &message(133, None, &[])), None);
}

#[test]
fn advertisements_of_the_kernel_pass() {
    for target in [OWN, OWN_LINK] {
        let mut says = message(136, Some(target), &[TARGET_OPTION]);
        // Solicited, override; a pod that forwards says that it is a router.
        for flags in [0, 0x20, 0x40, 0x60, 0xe0] {
            says[4] = flags;
            for destination in ["ff02::1", "fe80::1", NEIGHBOUR] {
                assert_eq!(sent(OWN, destination, &says), None);
            }
            assert_eq!(sent(OWN_LINK, "fe80::1", &says), None);
        }
        assert_eq!(sent(OWN, NEIGHBOUR, &message(136, Some(target), &[])), None);
    }
}

#[test]
fn nothing_is_said_in_the_name_of_others() {
    let asks = message(135, Some(NEIGHBOUR), &[]);
    let says = message(136, Some(OWN), &[]);
    for source in [NEIGHBOUR, "fe80::1", OFF_LINK, "::1", "ff02::1"] {
        assert_eq!(sent(source, "ff02::1", &says), FORGED, "{source}");
        assert_eq!(sent(source, NEIGHBOURS_GROUP, &asks), FORGED, "{source}");
        assert_eq!(sent(source, "ff02::2", &message(133, None, &[])), FORGED, "{source}");
        let for_others = message(136, Some(source), &[TARGET_OPTION]);
        let expected = if source == "ff02::1" { MALFORMED } else { FORGED };
        assert_eq!(sent(OWN, "ff02::1", &for_others), expected, "{source}");
    }
    assert_eq!(sent("::", "ff02::1", &says), MALFORMED);
    // Whoever is about to have that address would not dare to.
    assert_eq!(sent("::", NEIGHBOURS_GROUP, &asks), FORGED);
    assert_eq!(
        sent(OWN, NEIGHBOURS_GROUP, &message(135, Some(NEIGHBOUR), &[OTHERS_OPTION])),
        FORGED
    );
    let mut option = TARGET_OPTION;
    option[7] = 7;
    assert_eq!(sent(OWN, "ff02::1", &message(136, Some(OWN), &[option])), FORGED);
    assert_eq!(sent(OWN, "ff02::2", &message(133, None, &[OTHERS_OPTION])), FORGED);
}

#[test]
fn nothing_goes_where_a_router_would_forward_it() {
    for message in
        [message(133, None, &[]), message(135, Some(NEIGHBOUR), &[]), message(136, Some(OWN), &[])]
    {
        for destination in [OFF_LINK, "ff05::2", "ff0e::1", "ff02::16", "ff02::fb", "::", "::1"] {
            assert_eq!(sent(OWN, destination, &message), MALFORMED, "{destination}");
        }
        assert_eq!(sent(OWN_LINK, OFF_LINK, &message), MALFORMED);
        for hop_limit in [0, 1, 64, 254] {
            let frame = frame6(OWN, "ff02::1", 58, hop_limit, &message);
            assert_eq!(judged(&frame), MALFORMED, "hop limit {hop_limit}");
        }
    }
    // Anonymously only a duplicate is looked for, in the group of its address.
    for destination in ["ff02::1", "ff02::2", NEIGHBOURS_GROUP, "fe80::1", OWN] {
        assert_eq!(sent("::", destination, &message(135, Some(OWN), &[])), MALFORMED);
    }
    assert_eq!(sent("::", OFF_LINK, &message(133, None, &[])), MALFORMED);
}

#[test]
fn discovery_holds_nothing_else() {
    let kinds = [
        ("ff02::2", message(133, None, &[SOURCE_OPTION])),
        (NEIGHBOURS_GROUP, message(135, Some(NEIGHBOUR), &[SOURCE_OPTION, NONCE])),
        ("ff02::1", message(136, Some(OWN), &[TARGET_OPTION])),
    ];
    for (destination, whole) in kinds {
        let kind = whole[0];
        assert_eq!(sent(OWN, destination, &whole), None, "{kind}");
        let frame = frame6(OWN, destination, 58, 255, &whole);
        // Behind the packet, and in it.
        for extra in 1..40 {
            let padded = [&frame[..], &vec![0; extra]].concat();
            assert_eq!(judged(&padded), MALFORMED, "{kind} with a trailer of {extra}");
            let longer = [&whole[..], &vec![0; extra]].concat();
            assert_eq!(sent(OWN, destination, &longer), MALFORMED, "{kind} longer by {extra}");
        }
        for length in 0..frame.len() {
            assert_eq!(judged(&frame[..length]), MALFORMED, "{kind} cut to {length}");
        }
        for extra in [SOURCE_OPTION, TARGET_OPTION, NONCE, [5, 1, 0, 0, 0, 0, 5, 220], [0; 8]] {
            let longer = [&whole[..], &extra].concat();
            assert_eq!(sent(OWN, destination, &longer), MALFORMED, "{kind} with {extra:?}");
        }
        let mut coded = whole.clone();
        coded[1] = 1;
        assert_eq!(sent(OWN, destination, &coded), MALFORMED, "{kind} with a code");
        let reserved = if kind == 136 { 5..8 } else { 4..8 };
        for at in reserved {
            let mut marked = whole.clone();
            marked[at] = 1;
            assert_eq!(sent(OWN, destination, &marked), MALFORMED, "{kind} with data at {at}");
        }
    }
    let asks = |option| message(135, Some(NEIGHBOUR), &[option]);
    for option in [TARGET_OPTION, [1, 2, 0, 0, 0, 0, 0, 0], [14, 2, 0, 0, 0, 0, 0, 0], [25; 8]] {
        assert_eq!(sent(OWN, NEIGHBOURS_GROUP, &asks(option)), MALFORMED, "{option:?}");
    }
    assert_eq!(sent("::", OWN_GROUP, &message(135, Some(OWN), &[SOURCE_OPTION])), MALFORMED);
    assert_eq!(sent(OWN, NEIGHBOURS_GROUP, &message(135, Some("ff02::1"), &[])), MALFORMED);
}

#[test]
fn discovery_stands_behind_no_other_header() {
    let says = message(136, Some(OWN), &[]);
    assert_eq!(sent(OWN, "ff02::1", &says), None);
    for next in [0, 43, 44, 51, 60, 135] {
        let header = [58, 0, 1, 4, 0, 0, 0, 0];
        let frame = frame6(OWN, "ff02::1", next, 255, &[&header[..], &says].concat());
        assert_eq!(judged(&frame), MALFORMED, "{next}");
    }
}

// === Listener reports ===

const ALERT: [u8; 8] = [58, 0, 5, 2, 0, 0, 1, 0];
const GROUP: &str = "ff02::1:ff00:9";

fn report(kind: u8, body: &[u8]) -> Vec<u8> {
    [&ALERT[..], &[kind, 0, 0x12, 0x34], body].concat()
}

/// A report of RFC 3810 about these groups.
fn records(groups: &[&str]) -> Vec<u8> {
    let mut body = vec![0, 0, 0, groups.len() as u8];
    for group in groups {
        body.extend([4, 0, 0, 0]);
        body.extend(bytes6(group));
    }
    report(143, &body)
}

fn single(kind: u8, group: &str) -> Vec<u8> {
    report(kind, &[&[0; 4][..], &bytes6(group)].concat())
}

fn reported(source: &str, destination: &str, payload: &[u8]) -> Option<Reason> {
    judged(&frame6(source, destination, 0, 1, payload))
}

#[test]
fn reports_of_the_kernel_pass() {
    for source in ["::", OWN_LINK] {
        for groups in [&[GROUP][..], &[GROUP, "ff02::fb", "ff05::1:3"], &["ff02::fb"; 72]] {
            assert_eq!(reported(source, "ff02::16", &records(groups)), None);
        }
        assert_eq!(reported(source, GROUP, &single(131, GROUP)), None);
        assert_eq!(reported(source, "ff02::2", &single(132, GROUP)), None);
    }
    let mut padded_first = records(&[GROUP]);
    padded_first[..8].copy_from_slice(&[58, 0, 1, 0, 5, 2, 0, 0]);
    assert_eq!(reported(OWN_LINK, "ff02::16", &padded_first), None);
    // Sources of a group (RFC 3810, section 5.2.8).
    let mut with_sources = vec![0, 0, 0, 1, 1, 0, 0, 2];
    with_sources.extend([GROUP, NEIGHBOUR, OFF_LINK].map(bytes6).concat());
    assert_eq!(reported(OWN_LINK, "ff02::16", &report(143, &with_sources)), None);
}

#[test]
fn reports_go_to_routers_of_the_link_only() {
    let three = [
        (records(&[GROUP]), "ff02::16"),
        (single(131, GROUP), GROUP),
        (single(132, GROUP), "ff02::2"),
    ];
    for (payload, destination) in three {
        assert_eq!(reported(OWN_LINK, destination, &payload), None);
        for other in [OFF_LINK, NEIGHBOUR, "fe80::1", "ff02::1", "ff05::16", "ff0e::1"] {
            assert_eq!(reported(OWN_LINK, other, &payload), MALFORMED, "{other}");
        }
        for hop_limit in [0, 2, 64, 255] {
            let frame = frame6(OWN_LINK, destination, 0, hop_limit, &payload);
            assert_eq!(judged(&frame), MALFORMED, "hop limit {hop_limit}");
        }
        for source in ["fe80::1", "fe80::7"] {
            assert_eq!(reported(source, destination, &payload), FORGED, "{source}");
        }
        for source in [OWN, OFF_LINK] {
            assert_eq!(reported(source, destination, &payload), MALFORMED, "{source}");
        }
    }
    // A group that is none leads anywhere.
    assert_eq!(reported(OWN_LINK, OFF_LINK, &single(131, OFF_LINK)), MALFORMED);
}

#[test]
fn reports_hold_nothing_else() {
    let whole = records(&[GROUP, "ff02::fb"]);
    let frame = frame6(OWN_LINK, "ff02::16", 0, 1, &whole);
    assert_eq!(judged(&frame), None);
    for length in 0..frame.len() {
        assert_eq!(judged(&frame[..length]), MALFORMED, "cut to {length}");
    }
    for extra in 1..30 {
        assert_eq!(judged(&[&frame[..], &vec![0; extra]].concat()), MALFORMED, "trailer {extra}");
        let longer = [&whole[..], &vec![0; extra]].concat();
        assert_eq!(reported(OWN_LINK, "ff02::16", &longer), MALFORMED, "longer by {extra}");
    }
    // The router alert and nothing else before; code, reserved fields, record type, auxiliary data
    // and group; more sources and records than there are.
    let bytes =
        [(0, 60), (1, 1), (2, 6), (3, 4), (4, 1), (5, 1), (6, 3), (7, 1), (9, 1), (12, 1), (13, 1)];
    for (at, byte) in
        bytes.into_iter().chain([(15, 1), (15, 3), (16, 0), (16, 7), (17, 1), (19, 1), (20, 0xfe)])
    {
        let mut marked = whole.clone();
        marked[at] = byte;
        assert_eq!(reported(OWN_LINK, "ff02::16", &marked), MALFORMED, "{byte} at {at}");
    }
    assert_eq!(reported(OWN_LINK, "ff02::16", &records(&[OFF_LINK])), MALFORMED);
    for (payload, destination) in [(single(131, GROUP), GROUP), (single(132, GROUP), "ff02::2")] {
        let longer = [&payload[..], &[0; 8]].concat();
        assert_eq!(reported(OWN_LINK, destination, &longer), MALFORMED);
        assert_eq!(reported(OWN_LINK, destination, &payload[..28]), MALFORMED);
    }
    // Of the kinds that have a place behind a router alert these are all that a pod sends.
    for kind in [0, 1, 128, 130, 133, 135, 136, 137, 255] {
        assert_eq!(reported(OWN_LINK, "ff02::16", &single(kind, GROUP)), MALFORMED, "{kind}");
    }
    // Behind two of them, or another header.
    let twice = [&[0][..], &ALERT[1..], &whole].concat();
    assert_eq!(reported(OWN_LINK, "ff02::16", &twice), MALFORMED);
    let frame = frame6(OWN_LINK, "ff02::16", 60, 1, &whole);
    assert_eq!(judged(&frame), MALFORMED);
}

#[test]
fn whatever_is_of_another_kind_is_refused() {
    for next in [6, 17, 44, 59, 132] {
        assert_eq!(judged(&frame6(OWN, "ff02::1", next, 255, &[0; 24])), MALFORMED, "{next}");
    }
    let mut frame = frame6(OWN, "ff02::1", 58, 255, &message(136, Some(OWN), &[]));
    frame[13] = 0;
    assert_eq!(judged(&frame), MALFORMED);
    assert_eq!(judged(&[]), MALFORMED);
    for kind in [0, 1, 128, 129, 130, 134, 137, 143, 255] {
        assert!(sent(OWN, "ff02::1", &message(kind, Some(OWN), &[])).is_some(), "{kind}");
    }
}
