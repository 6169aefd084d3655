//! What a frame says, read with another parser than the programs' (etherparse), and as strictly
//! as a receiver might: a length is believed only if it fits. Must never share code with
//! `netpol_common::packet`.

use std::net::IpAddr;

use etherparse::{
    IpAuthHeaderSlice, Ipv4HeaderSlice, Ipv6FragmentHeaderSlice, Ipv6HeaderSlice,
    Ipv6RawExtHeaderSlice, LaxIpSlice, TcpHeaderSlice, UdpHeaderSlice, ip_number,
};

/// A frame, as far as its verdict goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Meaning {
    Arp,
    Ip(Headers),
    /// Nothing that an isolated pod may send or receive; with the source address, if that much
    /// can be read.
    Garbage(Option<IpAddr>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Headers {
    pub source: IpAddr,
    pub destination: IpAddr,
    /// Of a later fragment of an IPv6 datagram: whatever its fragment header says.
    pub protocol: u8,
    pub hop_limit: u8,
    pub part: Part,
    pub transport: Transport,
    /// Every length is exactly as it should be, and no header is of a kind that a sender would
    /// not put there.
    pub is_plain: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Whole,
    First(u32),
    Later(u32),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Transport {
    /// Source and destination, and whether the packet can only open or only answer.
    Ports { source: u16, destination: u16, opens: bool, answers: bool },
    /// ICMP with an identifier.
    Echo { id: u16, opens: bool },
    /// Other ICMP.
    Icmp { kind: u8 },
    /// An ICMP error and the flow that it quotes, if it names one: protocol, source, destination.
    Error(Option<Quoted>),
    /// Another protocol, or a later fragment.
    Opaque,
}

/// A flow as its sender put it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quoted {
    pub protocol: u8,
    pub source: (IpAddr, u16),
    pub destination: (IpAddr, u16),
}

pub fn read(frame: &[u8]) -> Meaning {
    let Some((link, packet)) = frame.split_at_checked(14) else {
        return Meaning::Garbage(None);
    };
    match [link[12], link[13]] {
        [0x08, 0x06] => Meaning::Arp,
        [0x08, 0x00] => read_v4(packet).unwrap_or(Meaning::Garbage(None)),
        [0x86, 0xdd] => read_v6(packet).unwrap_or(Meaning::Garbage(None)),
        _ => Meaning::Garbage(None),
    }
}

fn read_v4(packet: &[u8]) -> Option<Meaning> {
    let header = Ipv4HeaderSlice::from_slice(packet).ok()?;
    // Zero stands for a large packet that the kernel itself put together.
    let length = match header.total_len() {
        0 => packet.len(),
        length => usize::from(length),
    };
    let payload = packet.get(header.slice().len()..length)?;
    let id = u32::from(header.identification());
    let part = match (header.fragments_offset().value(), header.more_fragments()) {
        (0, false) => Part::Whole,
        (0, true) => Part::First(id),
        _ => Part::Later(id),
    };
    let protocol = header.protocol().0;
    let source = header.source_addr().into();
    let Some(transport) = transport(protocol, false, part, payload) else {
        return Some(Meaning::Garbage(Some(source)));
    };
    Some(Meaning::Ip(Headers {
        source,
        destination: header.destination_addr().into(),
        protocol,
        hop_limit: header.ttl(),
        part,
        transport,
        is_plain: header.total_len() != 0,
    }))
}

fn read_v6(packet: &[u8]) -> Option<Meaning> {
    let header = Ipv6HeaderSlice::from_slice(packet).ok()?;
    let length = match header.payload_length() {
        0 => packet.len(),
        length => 40 + usize::from(length),
    };
    let rest = packet.get(40..length)?;
    let headers = Headers {
        source: header.source_addr().into(),
        destination: header.destination_addr().into(),
        protocol: header.next_header().0,
        hop_limit: header.hop_limit(),
        part: Part::Whole,
        transport: Transport::Opaque,
        is_plain: header.payload_length() != 0,
    };
    let source = headers.source;
    Some(follow(headers, rest).map_or(Meaning::Garbage(Some(source)), Meaning::Ip))
}

/// Follows the extension headers to what they stand in front of.
fn follow(mut headers: Headers, mut rest: &[u8]) -> Option<Headers> {
    let mut n_headers = 0;
    loop {
        let (next, size) = match ip_number_of(headers.protocol) {
            Extension::Fragment => {
                let fragment = Ipv6FragmentHeaderSlice::from_slice(rest).ok()?;
                let id = fragment.identification();
                if fragment.is_fragmenting_payload() {
                    headers.is_plain &= headers.part == Part::Whole;
                    let is_first = fragment.fragment_offset().value() == 0;
                    headers.part = if is_first { Part::First(id) } else { Part::Later(id) };
                }
                (fragment.next_header(), fragment.slice().len())
            }
            Extension::Authentication => {
                // One of no length is nonsense, but its extent is clear.
                headers.is_plain &= rest.get(1) != Some(&0);
                match IpAuthHeaderSlice::from_slice(rest) {
                    Ok(header) => (header.next_header(), header.slice().len()),
                    Err(_) if rest.len() >= 8 && rest[1] == 0 => (rest[0].into(), 8),
                    Err(_) => return None,
                }
            }
            Extension::Options => {
                let options = Ipv6RawExtHeaderSlice::from_slice(rest).ok()?;
                (options.next_header(), options.slice().len())
            }
            Extension::None => break,
        };
        n_headers += 1;
        headers.protocol = next.0;
        rest = &rest[size..];
        if matches!(headers.part, Part::Later(_)) {
            headers.is_plain &= n_headers <= 8;
            return Some(headers);
        }
    }
    headers.is_plain &= n_headers < 8;
    headers.transport = transport(headers.protocol, true, headers.part, rest)?;
    Some(headers)
}

enum Extension {
    Fragment,
    Authentication,
    Options,
    None,
}

fn ip_number_of(protocol: u8) -> Extension {
    match protocol.into() {
        ip_number::IPV6_FRAG => Extension::Fragment,
        ip_number::AUTH => Extension::Authentication,
        number if Ipv6RawExtHeaderSlice::header_type_supported(number) => Extension::Options,
        _ => Extension::None,
    }
}

/// `None` if the payload is not what the protocol says.
fn transport(protocol: u8, is_v6: bool, part: Part, payload: &[u8]) -> Option<Transport> {
    if matches!(part, Part::Later(_)) {
        return Some(Transport::Opaque);
    }
    let word = |at: usize| Some(u16::from_be_bytes([*payload.get(at)?, *payload.get(at + 1)?]));
    Some(match (protocol, is_v6) {
        (6, _) => {
            // A data offset that is wrong is the receiver's to find: ports and flags stand before
            // it.
            let flags = *payload.get(13).filter(|_| payload.len() >= 20)?;
            if let Ok(header) = TcpHeaderSlice::from_slice(payload) {
                assert_eq!((header.syn(), header.rst()), (flags & 2 != 0, flags & 4 != 0));
                assert_eq!(Some(header.destination_port()), word(2));
            }
            Transport::Ports {
                source: word(0)?,
                destination: word(2)?,
                opens: flags & 0x16 == 0x02,
                answers: flags & 0x12 == 0x12 || flags & 0x04 != 0,
            }
        }
        (17, _) => {
            let header = UdpHeaderSlice::from_slice(payload).ok()?;
            Transport::Ports {
                source: header.source_port(),
                destination: header.destination_port(),
                opens: false,
                answers: false,
            }
        }
        (132, _) => {
            let chunk = *payload.get(12)?;
            let (opens, answers) = (chunk == 1, chunk == 2);
            Transport::Ports { source: word(0)?, destination: word(2)?, opens, answers }
        }
        (1, false) => icmp_v4(*payload.first()?, word(4)?, payload.get(8..)?),
        (58, true) => icmp_v6(*payload.first().filter(|_| payload.len() >= 4)?, payload)?,
        _ => Transport::Opaque,
    })
}

fn icmp_v4(kind: u8, id: u16, quoted: &[u8]) -> Transport {
    match kind {
        8 | 13 | 17 => Transport::Echo { id, opens: true },
        0 | 14 | 18 => Transport::Echo { id, opens: false },
        3 | 4 | 11 | 12 => Transport::Error(quote(quoted)),
        _ => Transport::Icmp { kind },
    }
}

fn icmp_v6(kind: u8, payload: &[u8]) -> Option<Transport> {
    Some(match kind {
        128 | 129 => {
            let id = payload.get(4..8)?;
            Transport::Echo { id: u16::from_be_bytes([id[0], id[1]]), opens: kind == 128 }
        }
        1..=4 => Transport::Error(payload.get(8..).and_then(quote)),
        _ => Transport::Icmp { kind },
    })
}

/// The flow that the beginning of a packet belongs to. Lengths in it are those of the whole.
fn quote(packet: &[u8]) -> Option<Quoted> {
    let (slice, _) = LaxIpSlice::from_slice(packet).ok()?;
    let is_v6 = slice.ipv6().is_some();
    let (protocol, payload) = if is_v6 {
        behind_extensions(packet)?
    } else {
        let header = Ipv4HeaderSlice::from_slice(packet).ok()?;
        if header.fragments_offset().value() != 0 {
            return None;
        }
        (header.protocol().0, packet.get(header.slice().len()..)?)
    };
    let word = |at: usize| Some(u16::from_be_bytes([*payload.get(at)?, *payload.get(at + 1)?]));
    let (source, destination) = match (protocol, is_v6) {
        (6 | 17 | 132, _) => (word(0)?, word(2)?),
        (1, false) if matches!(payload.first()?, 0 | 8 | 13 | 14 | 17 | 18) => (word(4)?, word(4)?),
        (58, true) if matches!(payload.first()?, 128 | 129) => (word(4)?, word(4)?),
        (1, false) | (58, true) => return None,
        _ => (0, 0),
    };
    Some(Quoted {
        protocol,
        source: (slice.source_addr(), source),
        destination: (slice.destination_addr(), destination),
    })
}

/// The last next header of a packet that may be cut off, and what follows it.
fn behind_extensions(packet: &[u8]) -> Option<(u8, &[u8])> {
    let header = Ipv6HeaderSlice::from_slice(packet).ok()?;
    let (mut next, mut rest) = (header.next_header(), packet.get(40..)?);
    loop {
        let size = match ip_number_of(next.0) {
            Extension::Fragment => {
                let fragment = Ipv6FragmentHeaderSlice::from_slice(rest).ok()?;
                if fragment.fragment_offset().value() != 0 {
                    return None;
                }
                next = fragment.next_header();
                8
            }
            Extension::Authentication | Extension::Options if rest.len() < 8 => return None,
            Extension::Authentication => {
                let size = (usize::from(rest[1]) + 2) * 4;
                next = rest[0].into();
                size
            }
            Extension::Options => {
                let options = Ipv6RawExtHeaderSlice::from_slice(rest).ok()?;
                next = options.next_header();
                options.slice().len()
            }
            Extension::None => return Some((next.0, rest)),
        };
        rest = rest.get(size..)?;
    }
}
