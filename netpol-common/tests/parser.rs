//! The packet parser against frames that are whole, cut, altered, or wrapped in every header
//! that may stand before the transport's.

#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "small or random numbers"
)]

mod support;

use netpol_common::layout::{Address, Direction, Reason};
use netpol_common::packet::{
    ACK, ICMP, ICMPV6, Kind, LINK_HEADER, Outcome, Packet, RST, SCTP, SYN, TCP, UDP, parse,
};
use proptest::prelude::*;
use support::{Bytes, v4, v6};

const LINK: usize = LINK_HEADER as usize;
const IN: Direction = Direction::Ingress;
const OUT: Direction = Direction::Egress;
const TRUNCATED: Outcome = Outcome::Refuse(Reason::Truncated);

fn parsed(frame: &[u8], direction: Direction) -> (Outcome, Packet, Packet) {
    let (mut packet, mut inner) = (Packet::default(), Packet::default());
    let outcome = parse(&Bytes(frame), direction, &mut packet, &mut inner);
    (outcome, packet, inner)
}

fn outcome(frame: &[u8]) -> Outcome {
    parsed(frame, OUT).0
}

fn of_type(ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2][..], &ethertype.to_be_bytes(), payload].concat()
}

/// 10.1.0.1 to 10.2.0.2 with these options (a multiple of four bytes).
fn packet4(protocol: u8, options: &[u8], payload: &[u8]) -> Vec<u8> {
    let header_length = 20 + options.len();
    let mut bytes = [0; 20];
    bytes[0] = 0x40 | (header_length / 4) as u8;
    bytes[2..4].copy_from_slice(&((header_length + payload.len()) as u16).to_be_bytes());
    bytes[8] = 64;
    bytes[9] = protocol;
    bytes[12..16].copy_from_slice(&[10, 1, 0, 1]);
    bytes[16..20].copy_from_slice(&[10, 2, 0, 2]);
    [&bytes[..], options, payload].concat()
}

/// fd00:0:0:1::1 and so on, as [`v6`] makes them, with these extension headers before `next`.
fn packet6(extensions: &[(u8, Vec<u8>)], next: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 40];
    bytes[0] = 0x60;
    bytes[7] = 64;
    for (at, address) in [(8, v6(1, 1)), (24, v6(2, 2))] {
        for (chunk, word) in bytes[at..at + 16].chunks_exact_mut(4).zip(address.words) {
            chunk.copy_from_slice(&word.to_ne_bytes());
        }
    }
    let kinds: Vec<u8> = extensions.iter().map(|(kind, _)| *kind).chain([next]).collect();
    bytes[6] = kinds[0];
    for ((_, header), following) in extensions.iter().zip(&kinds[1..]) {
        bytes.push(*following);
        bytes.extend(&header[1..]);
    }
    bytes.extend(payload);
    let length = (bytes.len() - 40) as u16;
    bytes[4..6].copy_from_slice(&length.to_be_bytes());
    bytes
}

fn frame4(protocol: u8, payload: &[u8]) -> Vec<u8> {
    of_type(0x0800, &packet4(protocol, &[], payload))
}

fn frame6(extensions: &[(u8, Vec<u8>)], next: u8, payload: &[u8]) -> Vec<u8> {
    of_type(0x86dd, &packet6(extensions, next, payload))
}

fn ports(source: u16, destination: u16, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    bytes[..2].copy_from_slice(&source.to_be_bytes());
    bytes[2..4].copy_from_slice(&destination.to_be_bytes());
    bytes
}

fn tcp(flags: u8) -> Vec<u8> {
    let mut bytes = ports(1000, 80, 20);
    (bytes[12], bytes[13]) = (0x50, flags);
    bytes
}

fn udp() -> Vec<u8> {
    ports(1000, 53, 12)
}

fn sctp(chunk: u8) -> Vec<u8> {
    let mut bytes = ports(1000, 99, 28);
    bytes[12] = chunk;
    bytes
}

fn icmp(kind: u8, body: &[u8]) -> Vec<u8> {
    [&[kind, 0, 0, 0], body].concat()
}

/// An extension header of 8 bytes and more (`units` of 8 beyond the first).
fn extension(kind: u8, units: u8) -> (u8, Vec<u8>) {
    let mut header = vec![0; 8 + usize::from(units) * 8];
    header[1] = units;
    (kind, header)
}

fn authentication(words: u8) -> (u8, Vec<u8>) {
    let mut header = vec![0; (usize::from(words) + 2) * 4];
    header[1] = words;
    (51, header)
}

/// `offset` in units of eight bytes.
fn fragment6(offset: u16, more: bool) -> (u8, Vec<u8>) {
    let mut header = vec![44, 0, 0, 0, 0, 0, 0, 77];
    header[2..4].copy_from_slice(&(offset << 3 | u16::from(more)).to_be_bytes());
    (44, header)
}

fn fragment4(offset: u16, more: bool, payload: &[u8]) -> Vec<u8> {
    let mut frame = frame4(UDP, payload);
    frame[LINK + 4..LINK + 6].copy_from_slice(&[0x12, 0x34]);
    let word = offset | if more { 0x2000 } else { 0 };
    frame[LINK + 6..LINK + 8].copy_from_slice(&word.to_be_bytes());
    frame
}

/// An ICMP error, by 10.1.0.1 or its IPv6 sibling, about a packet it had received.
fn error4(quoted: &[u8]) -> Vec<u8> {
    frame4(ICMP, &icmp(3, &[&[0; 4], quoted].concat()))
}

fn error6(quoted: &[u8]) -> Vec<u8> {
    frame6(&[], ICMPV6, &icmp(1, &[&[0; 4], quoted].concat()))
}

/// Frames of every kind that parse, with the length up to which they are needed.
fn whole_frames() -> Vec<Vec<u8>> {
    let mut frames = vec![
        frame4(TCP, &tcp(SYN)),
        frame4(UDP, &udp()),
        frame4(SCTP, &sctp(1)),
        frame4(ICMP, &icmp(8, &[1, 2, 0, 1])),
        frame4(ICMP, &icmp(5, &[0; 8])),
        frame4(47, &[0; 8]),
        of_type(0x0800, &packet4(TCP, &[1; 4], &tcp(ACK))),
        of_type(0x0800, &packet4(UDP, &[1; 40], &udp())),
        error4(&packet4(TCP, &[], &tcp(ACK))),
        fragment4(0, true, &udp()),
        fragment4(20, false, &udp()),
        frame6(&[], TCP, &tcp(SYN)),
        frame6(&[], UDP, &udp()),
        frame6(&[], SCTP, &sctp(0)),
        frame6(&[], ICMPV6, &icmp(128, &[1, 2, 0, 1])),
        frame6(&[], 59, &[]),
        error6(&packet6(&[], UDP, &udp())),
        frame6(&[fragment6(0, true)], UDP, &udp()),
        frame6(&[fragment6(9, true)], UDP, &udp()),
    ];
    for kinds in [vec![0], vec![0, 60, 43, 60], vec![60, 135, 139, 140]] {
        let extensions: Vec<_> = kinds.iter().map(|&kind| extension(kind, kind % 3)).collect();
        frames.push(frame6(&extensions, TCP, &tcp(SYN)));
    }
    frames.push(frame6(&[authentication(4), extension(60, 0)], UDP, &udp()));
    frames
}

/// Bytes of the transport header that has to be there. `None`: the protocol has none that counts.
fn transport_length(packet: &Packet) -> Option<usize> {
    let is_v6 = packet.local.family == 6;
    match packet.protocol {
        TCP => Some(20),
        UDP => Some(8),
        SCTP => Some(13),
        ICMP if !is_v6 => Some(8),
        ICMPV6 if is_v6 => Some(4),
        _ => None,
    }
}

/// Where the transport header of a frame begins and the IP packet ends, found independently of
/// the parser; `None` if they cannot be.
fn extent(frame: &[u8]) -> Option<(usize, usize)> {
    let at = |index: usize| frame.get(index).copied().map(usize::from);
    let length = |index: usize| Some(at(index)? << 8 | at(index + 1)?);
    if frame.get(12..14)? == [0x08, 0x00] {
        let total = length(LINK + 2)?;
        let end = if total == 0 { frame.len() } else { LINK + total };
        return Some((LINK + (at(LINK)? & 15) * 4, end));
    }
    let payload = length(LINK + 4)?;
    let end = if payload == 0 { frame.len() } else { LINK + 40 + payload };
    let (mut next, mut offset) = (at(LINK + 6)?, LINK + 40);
    while [0, 43, 44, 51, 60, 135, 139, 140].contains(&next) {
        let size = match next {
            44 => 8,
            51 => (at(offset + 1)? + 2) * 4,
            _ => (at(offset + 1)? + 1) * 8,
        };
        if next == 44 && length(offset + 2)? & 0xfff8 != 0 {
            return Some((offset + size, end));
        }
        next = at(offset)?;
        offset += size;
    }
    Some((offset, end))
}

/// Whatever the frame: a packet is one only if all its headers are inside of it.
fn assert_sound(frame: &[u8]) {
    for direction in [IN, OUT] {
        let (outcome, packet, inner) = parsed(frame, direction);
        if !matches!(outcome, Outcome::Packet | Outcome::Related) {
            continue;
        }
        if outcome == Outcome::Related {
            assert_eq!((packet.kind, inner.kind), (Kind::Error, Kind::Flow));
            assert_eq!(inner.local.family, packet.local.family);
        }
        let (start, end) = extent(frame).expect("a packet's headers can be followed");
        let needed =
            if packet.kind == Kind::Fragment { 0 } else { transport_length(&packet).unwrap_or(0) };
        assert!(end <= frame.len(), "{packet:?} of {frame:02x?}");
        assert!(start + needed <= end, "{packet:?} ends at {end}: {frame:02x?}");
        assert!(!(packet.is_opening && packet.is_answer), "{packet:?}");
        assert_eq!(packet.local.family, packet.remote.family);
        assert!(packet.local.family == 6 || packet.local.words[1..] == [0; 3]);
        if packet.kind != Kind::Flow {
            assert!(!packet.is_opening && !packet.is_answer, "{packet:?}");
        }
    }
}

#[test]
fn headers_say_who_speaks_to_whom() {
    for (frame, [local, remote]) in [
        (frame4(TCP, &tcp(SYN)), [v4([10, 1, 0, 1]), v4([10, 2, 0, 2])]),
        (frame6(&[], TCP, &tcp(SYN)), [v6(1, 1), v6(2, 2)]),
    ] {
        let expected = Packet {
            local,
            remote,
            local_port: 1000,
            remote_port: 80,
            protocol: TCP,
            detail: SYN,
            is_opening: true,
            ..Packet::default()
        };
        assert_eq!(parsed(&frame, OUT), (Outcome::Packet, expected, Packet::default()));
    }
}

#[test]
fn the_other_end_sees_the_same_packet_mirrored() {
    for frame in whole_frames() {
        let (outcome, sent, sent_inner) = parsed(&frame, OUT);
        let (outcome_in, received, received_inner) = parsed(&frame, IN);
        assert_eq!(outcome, outcome_in);
        let mirrored = |packet: Packet| Packet {
            local: packet.remote,
            remote: packet.local,
            local_port: packet.remote_port,
            remote_port: packet.local_port,
            ..packet
        };
        assert_eq!(received, mirrored(sent), "{frame:02x?}");
        assert_eq!(received_inner, mirrored(sent_inner), "{frame:02x?}");
    }
}

#[test]
fn a_frame_cut_anywhere_is_refused() {
    for frame in whole_frames() {
        assert!(!matches!(outcome(&frame), Outcome::Refuse(_)), "{frame:02x?}");
        for length in 0..frame.len() {
            // The IP length says more than is there.
            assert_eq!(outcome(&frame[..length]), TRUNCATED, "{length} of {frame:02x?}");
        }
        // Padding behind the packet changes nothing.
        let padded = [&frame[..], &[0xff; 30]].concat();
        assert_eq!(parsed(&padded, IN), parsed(&frame, IN));
    }
}

#[test]
fn an_ip_length_that_ends_before_the_transport_header_is_refused() {
    for frame in whole_frames() {
        let (is_v6, longest) = (frame[12] == 0x86, frame.len() - LINK);
        let at = LINK + if is_v6 { 4 } else { 2 };
        let base = if is_v6 { 40 } else { 0 };
        for length in 1..longest - base {
            let mut shorter = frame.clone();
            shorter[at..at + 2].copy_from_slice(&(length as u16).to_be_bytes());
            assert_sound(&shorter);
        }
        let mut longer = frame.clone();
        longer[at..at + 2].copy_from_slice(&((longest - base + 1) as u16).to_be_bytes());
        assert_eq!(outcome(&longer), TRUNCATED);
    }
}

#[test]
fn a_length_of_zero_means_up_to_the_end_of_the_frame() {
    for (mut frame, at) in [(frame4(TCP, &tcp(SYN)), 2), (frame6(&[], TCP, &tcp(SYN)), 4)] {
        let whole = parsed(&frame, OUT);
        frame[LINK + at..LINK + at + 2].fill(0);
        assert_eq!(parsed(&frame, OUT), whole);
        assert_eq!(outcome(&frame[..frame.len() - 1]), TRUNCATED);
    }
}

#[test]
fn ipv4_header_lengths_are_believed_only_within_the_packet() {
    let frame = frame4(TCP, &tcp(SYN));
    for words in 0..16u8 {
        let mut altered = frame.clone();
        altered[LINK] = 0x40 | words;
        assert_eq!(outcome(&altered) == Outcome::Packet, words == 5, "{words} words");
    }
    for version in (0..16u8).filter(|&version| version != 4) {
        let mut altered = frame.clone();
        altered[LINK] = version << 4 | 5;
        assert_eq!(outcome(&altered), TRUNCATED, "version {version}");
    }
    // Also where no transport header is looked for.
    let mut gre = frame4(47, &[0; 8]);
    gre[LINK] = 0x4f;
    assert_eq!(outcome(&gre), TRUNCATED);
    let mut later = fragment4(20, false, &udp());
    later[LINK + 2..LINK + 4].copy_from_slice(&[0, 19]);
    assert_eq!(outcome(&later), TRUNCATED);
}

#[test]
fn tcp_flags_tell_what_may_open_a_connection() {
    for flags in 0..=255u8 {
        let (_, packet, _) = parsed(&frame4(TCP, &tcp(flags)), OUT);
        let (syn, ack, rst) = (flags & SYN != 0, flags & ACK != 0, flags & RST != 0);
        assert_eq!(packet.is_opening, syn && !ack && !rst, "{flags:#x}");
        assert_eq!(packet.is_answer, rst || syn && ack, "{flags:#x}");
        assert_eq!(packet.detail, flags);
    }
}

#[test]
fn icmp_requests_and_replies_name_their_flow_by_id() {
    for (request, reply, frame) in [
        (8, 0, frame4 as fn(u8, &[u8]) -> Vec<u8>),
        (13, 14, frame4),
        (17, 18, frame4),
        (128, 129, |_, payload| frame6(&[], ICMPV6, payload)),
    ] {
        for (kind, is_request) in [(request, true), (reply, false)] {
            let (outcome, packet, _) = parsed(&frame(ICMP, &icmp(kind, &[0x12, 0x34, 0, 1])), OUT);
            assert_eq!((outcome, packet.kind), (Outcome::Packet, Kind::Flow));
            assert_eq!((packet.local_port, packet.remote_port), (0x1234, 0x1234));
            assert_eq!((packet.is_opening, packet.is_answer), (is_request, !is_request));
        }
    }
    let (_, packet, _) = parsed(&frame4(ICMP, &icmp(5, &[0; 4])), OUT);
    assert_eq!(packet.kind, Kind::Stateless, "a redirect");
}

#[test]
fn icmp_of_the_other_family_is_just_a_protocol() {
    for (frame, protocol) in [
        (frame4(ICMPV6, &icmp(135, &[0; 8])), ICMPV6),
        (frame6(&[], ICMP, &icmp(8, &[0; 8])), ICMP),
    ] {
        let (outcome, packet, _) = parsed(&frame, OUT);
        assert_eq!(
            (outcome, packet.protocol, packet.kind),
            (Outcome::Packet, protocol, Kind::Flow)
        );
        assert_eq!((packet.local_port, packet.is_opening), (0, false));
    }
}

#[test]
fn errors_name_the_packet_they_are_about() {
    let big = |extensions: &[(u8, Vec<u8>)], payload: &[u8]| {
        let mut quoted = packet6(extensions, UDP, payload);
        quoted[4..6].copy_from_slice(&[0x05, 0xdc]);
        quoted
    };
    let mut cut = packet4(UDP, &[], &udp());
    cut[2..4].copy_from_slice(&[0x05, 0xdc]);
    cut.truncate(28);
    for (frame, protocol, ports) in [
        (error4(&cut), UDP, (53, 1000)),
        (error4(&packet4(TCP, &[1; 8], &tcp(ACK)[..8])), TCP, (80, 1000)),
        (error4(&packet4(ICMP, &[], &icmp(8, &[0, 9, 0, 1]))), ICMP, (9, 9)),
        (error4(&packet4(47, &[], &[])), 47, (0, 0)),
        (error6(&big(&[], &udp()[..8])), UDP, (53, 1000)),
        (error6(&big(&[fragment6(0, true)], &udp()[..8])), UDP, (53, 1000)),
        (error6(&big(&[extension(0, 1), extension(43, 0)], &udp()[..8])), UDP, (53, 1000)),
        (error6(&big(&[authentication(3), fragment6(0, true)], &udp()[..8])), UDP, (53, 1000)),
        (error6(&big(&vec![extension(60, 0); 7], &udp()[..8])), UDP, (53, 1000)),
        (error6(&packet6(&[], ICMPV6, &icmp(129, &[0, 9, 0, 1]))), ICMPV6, (9, 9)),
        (error6(&packet6(&[extension(0, 0), extension(60, 1)], TCP, &tcp(ACK))), TCP, (80, 1000)),
        (error6(&packet6(&[authentication(4)], UDP, &udp())), UDP, (53, 1000)),
        (
            error6(&big(&[extension(60, 0), fragment6(0, true), extension(60, 2)], &udp())),
            UDP,
            (53, 1000),
        ),
        // ICMP of the other family is a protocol like any other, whatever it begins with.
        (error4(&packet4(ICMPV6, &[], &icmp(135, &[0; 8]))), ICMPV6, (0, 0)),
        (error6(&packet6(&[], ICMP, &icmp(8, &[0, 9, 0, 1]))), ICMP, (0, 0)),
    ] {
        // The quoted packet came to who sends the error.
        let (outcome, packet, inner) = parsed(&frame, OUT);
        assert_eq!((outcome, packet.kind), (Outcome::Related, Kind::Error), "{frame:02x?}");
        assert_eq!(inner.protocol, protocol);
        assert_eq!((inner.local_port, inner.remote_port), ports, "{frame:02x?}");
        let is_v6 = packet.local.family == 6;
        let (a, b): (Address, Address) =
            if is_v6 { (v6(1, 1), v6(2, 2)) } else { (v4([10, 1, 0, 1]), v4([10, 2, 0, 2])) };
        assert_eq!((inner.local, inner.remote), (b, a), "quoted as sent by {a:?}");
        assert_eq!(inner.kind, Kind::Flow);
    }
}

#[test]
fn errors_about_what_names_no_flow_are_related_to_nothing() {
    let mut later = packet4(UDP, &[], &udp());
    later[7] = 20;
    let mut short_header = packet4(UDP, &[], &udp());
    short_header[0] = 0x44;
    for frame in [
        error4(&[]),
        error4(&later),
        error4(&short_header),
        error4(&packet4(UDP, &[], &udp())[..23]),
        error4(&packet4(47, &[1; 8], &[])[..24]),
        error4(&packet4(ICMP, &[], &icmp(3, &[0; 8]))),
        error4(&packet6(&[], UDP, &udp())),
        error6(&packet6(&[], UDP, &udp())[..43]),
        error6(&packet6(&[fragment6(3, false)], UDP, &udp())),
        error6(&packet6(&[extension(60, 0), fragment6(3, false)], UDP, &udp())),
        error6(&packet6(&[extension(60, 0)], UDP, &udp())[..43]),
        error6(&packet6(&[extension(60, 3)], UDP, &udp())[..60]),
        error6(&packet6(&[extension(60, 3)], 47, &[])[..60]),
        error6(&packet6(&[fragment6(0, true)], 47, &[])[..46]),
        error6(&packet6(&vec![extension(60, 0); 8], UDP, &udp())),
        error6(&packet6(&[], ICMPV6, &icmp(2, &[0; 8]))),
    ] {
        let (outcome, packet, _) = parsed(&frame, OUT);
        assert_eq!((outcome, packet.kind), (Outcome::Packet, Kind::Error), "{frame:02x?}");
    }
}

#[test]
fn an_error_quotes_nothing_behind_its_own_end() {
    for (mut frame, quoted) in [
        (error4(&packet4(UDP, &[], &udp()[..8])), 28),
        (error6(&packet6(&[extension(60, 0)], UDP, &udp()[..8])), 56),
    ] {
        assert_eq!(outcome(&frame), Outcome::Related);
        let (at, header) = if frame[LINK] == 0x60 { (LINK + 4, 0) } else { (LINK + 2, 20) };
        // The ports stand there, but as padding.
        for length in [quoted - 8, quoted - 5, 20, 0] {
            let length = header + 8 + length as u16;
            frame[at..at + 2].copy_from_slice(&length.to_be_bytes());
            assert_eq!(outcome(&frame), Outcome::Packet, "{frame:02x?}");
        }
    }
}

#[test]
fn extension_headers_are_followed_by_their_own_units() {
    for extensions in [
        vec![extension(0, 0)],
        vec![extension(60, 3), extension(43, 0)],
        vec![authentication(1), extension(60, 0)],
        vec![authentication(0)],
        vec![authentication(7)],
        (0..7).map(|_| extension(60, 0)).collect(),
    ] {
        let frame = frame6(&extensions, TCP, &tcp(SYN));
        let (outcome, packet, _) = parsed(&frame, OUT);
        assert_eq!((outcome, packet.remote_port), (Outcome::Packet, 80), "{extensions:?}");
    }
    for count in [8, 9, 20] {
        let endless: Vec<_> = (0..count).map(|_| extension(60, 0)).collect();
        let refused = Outcome::Refuse(Reason::ExtensionHeaders);
        assert_eq!(outcome(&frame6(&endless, TCP, &tcp(SYN))), refused, "{count}");
    }
    let mut beyond = frame6(&[extension(60, 0)], TCP, &tcp(SYN));
    beyond[LINK + 41] = 200;
    assert_eq!(outcome(&beyond), TRUNCATED);
}

#[test]
fn fragments_are_first_later_or_none_at_all() {
    for (first, later) in [
        (fragment4(0, true, &udp()), fragment4(5, true, &udp())),
        (fragment4(0, true, &udp()), fragment4(5, false, &udp())),
        (frame6(&[fragment6(0, true)], UDP, &udp()), frame6(&[fragment6(5, true)], UDP, &udp())),
        (frame6(&[fragment6(0, true)], UDP, &udp()), frame6(&[fragment6(5, false)], UDP, &udp())),
    ] {
        let (outcome, first, _) = parsed(&first, OUT);
        assert_eq!(
            (outcome, first.kind, first.is_first_fragment),
            (Outcome::Packet, Kind::Flow, true)
        );
        assert_eq!(first.remote_port, 53);
        let (outcome, later, _) = parsed(&later, OUT);
        assert_eq!((outcome, later.kind), (Outcome::Packet, Kind::Fragment));
        assert!(!later.is_first_fragment);
        assert_eq!((later.remote_port, later.protocol), (0, UDP));
        assert_eq!(first.fragment_id, later.fragment_id);
        assert_ne!(first.fragment_id, 0);
    }
    let (outcome, atomic, _) = parsed(&frame6(&[fragment6(0, false)], UDP, &udp()), OUT);
    assert_eq!(
        (outcome, atomic.kind, atomic.is_first_fragment),
        (Outcome::Packet, Kind::Flow, false)
    );
    assert_eq!((atomic.remote_port, atomic.has_fragment_header), (53, true));
    // "Don't fragment" is no fragment.
    let (_, whole, _) = parsed(&fragment4(0x4000, false, &udp()), OUT);
    assert_eq!((whole.kind, whole.is_first_fragment, whole.remote_port), (Kind::Flow, false, 53));
    // A first fragment without the whole transport header could hide it in the second.
    assert_eq!(outcome_of_first(&tcp(SYN)[..16]), TRUNCATED);
}

fn outcome_of_first(payload: &[u8]) -> Outcome {
    outcome(&frame6(&[fragment6(0, true)], TCP, payload))
}

#[test]
fn a_fragment_header_behind_the_packets_end_is_refused() {
    let mut frame = frame6(&[extension(60, 0), fragment6(5, true)], UDP, &udp());
    frame[LINK + 4..LINK + 6].copy_from_slice(&8u16.to_be_bytes());
    assert_eq!(outcome(&frame), TRUNCATED);
}

#[test]
fn what_only_neighbours_say_to_each_other_is_told_apart() {
    let frame = |kind: u8, hop_limit: u8| {
        let mut frame = frame6(&[], ICMPV6, &icmp(kind, &[0; 20]));
        frame[LINK + 7] = hop_limit;
        frame
    };
    for kind in [133, 135, 136] {
        assert_eq!(parsed(&frame(kind, 255), IN).0, Outcome::Pass, "{kind}");
        for hop_limit in [0, 1, 64, 254] {
            assert_eq!(parsed(&frame(kind, hop_limit), IN).0, Outcome::Packet, "{kind}");
        }
    }
    // RFC 2710, RFC 3810: a hop limit of 1, from the link to a group. Anything else has been
    // forwarded, or is meant to be.
    let on_link = |mut frame: Vec<u8>, source: u16, destination: u8| {
        frame[LINK + 8..][..2].copy_from_slice(&source.to_be_bytes());
        frame[LINK + 24] = destination;
        frame
    };
    for kind in [130, 131, 132, 143] {
        assert_eq!(parsed(&frame(kind, 1), IN).0, Outcome::Packet, "{kind}");
        for (source, destination, passes) in
            [(0xfe80, 0xff, true), (0xfe80, 0xfd, false), (0xfd00, 0xff, false)]
        {
            let outcome = parsed(&on_link(frame(kind, 1), source, destination), IN).0;
            assert_eq!(outcome == Outcome::Pass, passes, "{kind} {source:x} {destination:x}");
        }
        for hop_limit in [0, 2, 64, 255] {
            let frame = on_link(frame(kind, hop_limit), 0xfe80, 0xff);
            assert_eq!(parsed(&frame, IN).0, Outcome::Packet, "{kind} {hop_limit}");
        }
    }
    // A group is nobody's source. A pod that uses one makes it look like the other direction.
    for kind in [130, 134, 137] {
        for hop_limit in [1, 255] {
            let mut frame = on_link(frame(kind, hop_limit), 0xff02, 0xfe);
            frame[LINK + 25] = 0x80;
            assert_eq!(outcome(&frame), Outcome::Refuse(Reason::RouterMessage), "{kind}");
        }
    }
    // From a pod all of it is looked at once more, whatever stands before it.
    for kind in [131, 132, 133, 135, 136, 143] {
        for hop_limit in [0, 1, 64, 255] {
            assert_eq!(outcome(&frame(kind, hop_limit)), Outcome::Neighbour, "{kind}");
        }
        for kinds in [vec![0], vec![60], vec![0, 60, 43, 60]] {
            let extensions: Vec<_> = kinds.iter().map(|&kind| extension(kind, 0)).collect();
            let frame = frame6(&extensions, ICMPV6, &icmp(kind, &[0; 20]));
            assert_eq!(outcome(&frame), Outcome::Neighbour, "{kind} behind {kinds:?}");
        }
        let frame = frame6(&[fragment6(0, true)], ICMPV6, &icmp(kind, &[0; 20]));
        assert_eq!(outcome(&frame), Outcome::Neighbour, "{kind} in a fragment");
    }
    for kind in [134, 137] {
        assert_eq!(parsed(&frame(kind, 255), IN).0, Outcome::Pass);
        assert_eq!(parsed(&frame(kind, 64), IN).0, Outcome::Refuse(Reason::RouterMessage));
    }
    for kind in [130, 134, 137] {
        assert_eq!(outcome(&frame(kind, 255)), Outcome::Refuse(Reason::RouterMessage));
        assert_eq!(outcome(&frame(kind, 1)), Outcome::Refuse(Reason::RouterMessage));
    }
    assert_eq!(parsed(&of_type(0x0806, &[0; 28]), IN).0, Outcome::Pass);
    assert_eq!(outcome(&of_type(0x0806, &[0; 28])), Outcome::Neighbour);
}

#[test]
fn other_ethertypes_and_tags_are_refused() {
    for ethertype in [0, 0x0026, 0x8035, 0x8100, 0x88a8, 0x88cc, 0x86dc, 0xffff] {
        let frame = of_type(ethertype, &packet4(TCP, &[], &tcp(SYN)));
        assert_eq!(outcome(&frame), Outcome::Refuse(Reason::Ethertype), "{ethertype:#x}");
    }
    struct Tagged(Vec<u8>);
    impl netpol_common::packet::Frame for Tagged {
        fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
            Bytes(&self.0).load(offset)
        }
        fn length(&self) -> u32 {
            self.0.len() as u32
        }
        fn has_vlan_tag(&self) -> bool {
            true
        }
    }
    let tagged = Tagged(frame4(TCP, &tcp(SYN)));
    let (mut packet, mut inner) = (Packet::default(), Packet::default());
    let outcome = parse(&tagged, OUT, &mut packet, &mut inner);
    assert_eq!(outcome, Outcome::Refuse(Reason::Ethertype));
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 20_000,
        failure_persistence: None,
        max_shrink_iters: 2_000,
        ..ProptestConfig::default()
    })]

    #[test]
    fn no_altered_or_cut_frame_yields_more_than_is_in_it(
        which in any::<prop::sample::Index>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        headers in prop::collection::vec((12usize..60, any::<u8>()), 0..4),
        length in any::<prop::sample::Index>(),
        is_cut: bool,
        padding in 0usize..40,
    ) {
        let mut frame = which.get(&whole_frames()).clone();
        for (at, byte) in changes {
            let at = at.index(frame.len());
            frame[at] = byte;
        }
        for (at, byte) in headers {
            if let Some(old) = frame.get_mut(at) {
                *old = byte;
            }
        }
        frame.extend(vec![6; padding]);
        if is_cut {
            frame.truncate(length.index(frame.len() + 1));
        }
        assert_sound(&frame);
    }

    #[test]
    fn no_random_bytes_yield_more_than_is_in_them(
        bytes in prop::collection::vec(any::<u8>(), 0..120),
        ethertype in prop::sample::select(vec![0x0800u16, 0x86dd]),
        version in prop::sample::select(vec![0x45u8, 0x46, 0x4f, 0x60]),
    ) {
        let mut frame = of_type(ethertype, &bytes);
        if frame.len() > LINK {
            frame[LINK] = version;
        }
        assert_sound(&frame);
    }
}
