//! What a packet is, in the words of its headers, and the bytes that say so. A description is made
//! first and encoded then, so that nobody has to parse a packet to know what it is. Must never
//! know what becomes of one.

use std::fmt;
use std::net::IpAddr;

use netpol_observe::frames::{self, Transport, frame, frame_of_type};

/// A frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// An IP packet.
    Ip(Packet),
    /// ARP.
    Arp,
    /// An IP packet behind a VLAN tag.
    Tagged(Packet),
    /// Something with another ethertype.
    Other(u16),
}

/// An IP packet. Both addresses are of one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub body: Body,
    /// IPv4: that many 32-bit words of options.
    pub options: u8,
    /// IPv6: extension headers in front of a fragment header.
    pub extensions: Vec<u8>,
    pub part: Part,
    /// IPv6: extension headers behind a fragment header.
    pub inner_extensions: Vec<u8>,
    pub hop_limit: u8,
}

/// How much of a datagram it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Whole,
    /// IPv6: with a fragment header all the same.
    Atomic,
    /// The first fragment of the datagram with this identification.
    First(u16),
    /// Another one, so many units of 8 bytes into it.
    Later(u16, u16),
}

/// What the packet carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    Tcp {
        source: u16,
        destination: u16,
        flags: u8,
    },
    Udp {
        source: u16,
        destination: u16,
    },
    Sctp {
        source: u16,
        destination: u16,
        chunk: u8,
    },
    /// ICMP with this type and an identifier.
    Echo {
        kind: u8,
        id: u16,
    },
    /// Other ICMP.
    Icmp {
        kind: u8,
        code: u8,
    },
    /// An ICMP error that quotes the first bytes of a packet.
    Error {
        kind: u8,
        about: Box<Packet>,
        quoted: Quoted,
    },
    /// Another protocol.
    Other(u8),
}

/// How much an ICMP error quotes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quoted {
    All,
    /// All headers and 8 bytes, as the oldest standard has it.
    HeadersAnd8,
    /// Less than the addresses.
    TooLittle,
}

pub const SYN: u8 = 0x02;
pub const SYN_ACK: u8 = 0x12;
pub const ACK: u8 = 0x10;
pub const FIN_ACK: u8 = 0x11;
pub const RST: u8 = 0x04;

impl Packet {
    /// One without anything special.
    pub fn plain(source: IpAddr, destination: IpAddr, body: Body) -> Self {
        Self {
            source,
            destination,
            body,
            options: 0,
            extensions: Vec::new(),
            part: Part::Whole,
            inner_extensions: Vec::new(),
            hop_limit: 64,
        }
    }

    pub fn is_v6(&self) -> bool {
        self.source.is_ipv6()
    }

    /// Its IP protocol number.
    pub fn protocol(&self) -> u8 {
        match self.body {
            Body::Tcp { .. } => 6,
            Body::Udp { .. } => 17,
            Body::Sctp { .. } => 132,
            Body::Echo { .. } | Body::Icmp { .. } | Body::Error { .. } => {
                if self.is_v6() {
                    58
                } else {
                    1
                }
            }
            Body::Other(protocol) => protocol,
        }
    }

    /// How many IPv6 extension headers stand in it.
    pub fn n_extensions(&self) -> usize {
        let behind = match self.part {
            Part::Later(..) => 0,
            _ => self.inner_extensions.len(),
        };
        let n = self.extensions.len() + usize::from(self.part != Part::Whole) + behind;
        if self.is_v6() { n } else { 0 }
    }

    /// Source and destination port; of ICMP with an identifier, that as both.
    pub fn ports(&self) -> (u16, u16) {
        match self.body {
            Body::Tcp { source, destination, .. }
            | Body::Udp { source, destination }
            | Body::Sctp { source, destination, .. } => (source, destination),
            Body::Echo { id, .. } => (id, id),
            _ => (0, 0),
        }
    }

    /// The same packet to another destination and port.
    pub fn translated(&self, destination: IpAddr, port: u16) -> Self {
        let mut body = self.body.clone();
        if let Body::Tcp { destination, .. }
        | Body::Udp { destination, .. }
        | Body::Sctp { destination, .. } = &mut body
        {
            *destination = port;
        }
        Self { destination, body, ..self.clone() }
    }

    /// The same packet without options, extension headers and fragmentation.
    pub fn undressed(&self) -> Self {
        let plain = Self::plain(self.source, self.destination, self.body.clone());
        Self { hop_limit: self.hop_limit, ..plain }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let plain = frames::packet(self.source, self.destination, &self.transport());
        if self.is_v6() { self.dress_v6(&plain) } else { self.dress_v4(plain) }
    }

    /// Length of everything in front of the transport header.
    fn header_length(&self) -> usize {
        let mut bare = self.clone();
        bare.body = Body::Other(255);
        bare.bytes().len() - OTHER_LENGTH
    }

    fn transport(&self) -> Transport {
        match &self.body {
            &Body::Tcp { source, destination, flags } => {
                Transport::Tcp { source, destination, flags }
            }
            &Body::Udp { source, destination } => Transport::Udp { source, destination },
            &Body::Sctp { source, destination, chunk } => {
                Transport::Sctp { source, destination, chunk }
            }
            &Body::Echo { kind, id } => {
                let [high, low] = id.to_be_bytes();
                Transport::Icmp { kind, code: 0, body: vec![high, low, 0, 1, 0, 0, 0, 0] }
            }
            // Nothing that a neighbour would say.
            &Body::Icmp { kind, code } => Transport::Icmp { kind, code, body: vec![1; 20] },
            Body::Error { kind, about, quoted } => {
                let mut bytes = about.bytes();
                match quoted {
                    Quoted::All => {}
                    Quoted::HeadersAnd8 => bytes.truncate(about.header_length() + 8),
                    Quoted::TooLittle => bytes.truncate(10),
                }
                let body = [vec![0, 0, 5, 0], bytes].concat();
                Transport::Icmp { kind: *kind, code: 0, body }
            }
            &Body::Other(protocol) => {
                Transport::Raw { protocol, payload: vec![0x35; OTHER_LENGTH] }
            }
        }
    }

    fn dress_v4(&self, mut bytes: Vec<u8>) -> Vec<u8> {
        bytes[8] = self.hop_limit;
        let (id, more, offset) = match self.part {
            Part::Whole | Part::Atomic => (0, 0, 0),
            Part::First(id) => (id, 0x2000, 0),
            Part::Later(id, offset) => (id, 0, offset),
        };
        bytes[4..6].copy_from_slice(&id.to_be_bytes());
        bytes[6..8].copy_from_slice(&(more | offset).to_be_bytes());
        let words = self.options;
        bytes[0] += words;
        bytes.splice(20..20, vec![1; usize::from(words) * 4]);
        let total = u16::try_from(bytes.len()).unwrap();
        bytes[2..4].copy_from_slice(&total.to_be_bytes());
        bytes
    }

    /// The chain of extension headers with the fragment header in its place.
    fn chain(&self) -> Vec<u8> {
        let fragment = if self.part == Part::Whole { None } else { Some(FRAGMENT) };
        let chain = self.extensions.iter().copied().chain(fragment);
        chain.chain(self.inner_extensions.iter().copied()).collect()
    }

    fn dress_v6(&self, plain: &[u8]) -> Vec<u8> {
        let chain = self.chain();
        let is_later = matches!(self.part, Part::Later(..));
        let mut bytes = plain[..40].to_vec();
        bytes[6] = chain.first().copied().unwrap_or(plain[6]);
        bytes[7] = self.hop_limit;
        for (index, &kind) in chain.iter().enumerate() {
            let next = chain.get(index + 1).copied().unwrap_or(plain[6]);
            bytes.extend(self.extension(kind, next));
            if kind == FRAGMENT && is_later {
                // What stood behind it is in the first fragment.
                break;
            }
        }
        bytes.extend(&plain[40..]);
        let length = u16::try_from(bytes.len() - 40).unwrap();
        bytes[4..6].copy_from_slice(&length.to_be_bytes());
        bytes
    }

    fn extension(&self, kind: u8, next: u8) -> Vec<u8> {
        match kind {
            FRAGMENT => {
                let (id, position) = match self.part {
                    Part::Whole | Part::Atomic => (7, 0),
                    Part::First(id) => (id, 1),
                    Part::Later(id, offset) => (id, offset << 3),
                };
                let ([a, b], [c, d]) = (u16::to_be_bytes(position), id.to_be_bytes());
                vec![next, 0, a, b, 0, 0, c, d]
            }
            // The authentication header counts in words of 4 bytes, and 2 less.
            51 => [vec![next, 2], vec![0; 14]].concat(),
            // Options that are padding, of 16 bytes in all.
            _ => vec![next, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        }
    }
}

const FRAGMENT: u8 = 44;
const OTHER_LENGTH: usize = 16;

impl Frame {
    pub fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Ip(packet) => frame(&packet.bytes()),
            Self::Arp => frame_of_type(0x0806, &[0; 28]),
            Self::Tagged(packet) => {
                let plain = frame(&packet.bytes());
                let tag = [0x81, 0x00, 0x00, 0x05];
                [&plain[..12], &tag, &plain[12..]].concat()
            }
            Self::Other(ethertype) => frame_of_type(*ethertype, &[0; 46]),
        }
    }

    pub fn packet(&self) -> Option<&Packet> {
        match self {
            Self::Ip(packet) | Self::Tagged(packet) => Some(packet),
            _ => None,
        }
    }
}

impl fmt::Display for Frame {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(packet) => packet.fmt(out),
            Self::Arp => out.write_str("ARP"),
            Self::Tagged(packet) => write!(out, "VLAN tag, {packet}"),
            Self::Other(ethertype) => write!(out, "ethertype 0x{ethertype:04x}"),
        }
    }
}

impl fmt::Display for Packet {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} -> {}, {}", self.source, self.destination, self.body)?;
        if self.options > 0 {
            write!(out, ", {} bytes of options", self.options * 4)?;
        }
        if !self.extensions.is_empty() {
            write!(out, ", extension headers {:?}", self.extensions)?;
        }
        match self.part {
            Part::Whole => {}
            Part::Atomic => write!(out, ", atomic fragment")?,
            Part::First(id) => write!(out, ", first fragment of datagram {id}")?,
            Part::Later(id, offset) => {
                let bytes = u32::from(offset) * 8;
                write!(out, ", fragment at byte {bytes} of datagram {id}")?;
            }
        }
        if !self.inner_extensions.is_empty() {
            write!(out, ", behind the fragment header {:?}", self.inner_extensions)?;
        }
        write!(out, ", hop limit {}", self.hop_limit)
    }
}

impl fmt::Display for Body {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { source, destination, flags } => {
                write!(out, "TCP {source} -> {destination} flags 0x{flags:02x}")
            }
            Self::Udp { source, destination } => write!(out, "UDP {source} -> {destination}"),
            Self::Sctp { source, destination, chunk } => {
                write!(out, "SCTP {source} -> {destination} chunk {chunk}")
            }
            Self::Echo { kind, id } => write!(out, "ICMP type {kind} id {id}"),
            Self::Icmp { kind, code } => write!(out, "ICMP type {kind} code {code}"),
            Self::Error { kind, about, quoted } => {
                write!(out, "ICMP error type {kind} quoting ({about}, {quoted:?})")
            }
            Self::Other(protocol) => write!(out, "protocol {protocol}"),
        }
    }
}
