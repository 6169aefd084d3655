//! Just enough SCTP to tell whether it gets through: INIT and INIT ACK on raw sockets, since the
//! kernel may have no SCTP (RFC 9260). Pure; must never keep an association.

/// IP protocol 132.
pub const PROTOCOL: u8 = 132;

const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
const ABORT: u8 = 6;
const COMMON_HEADER: usize = 12;

/// What a packet says, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A request to open an association, with its initiate tag.
    Init(u32),
    /// The answer to one.
    InitAck,
    /// A refusal.
    Abort,
}

/// A packet with one chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    /// Source port.
    pub source: u16,
    /// Destination port.
    pub destination: u16,
    /// The verification tag.
    pub tag: u32,
    /// Its first chunk.
    pub kind: Kind,
}

impl Packet {
    /// The bytes after the IP header.
    pub fn to_bytes(self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(48);
        bytes.extend(self.source.to_be_bytes());
        bytes.extend(self.destination.to_be_bytes());
        bytes.extend(self.tag.to_be_bytes());
        bytes.extend([0; 4]);
        match self.kind {
            Kind::Init(tag) => init_chunk(&mut bytes, INIT, tag, &[]),
            // State Cookie parameter (type 7) of four bytes: mandatory in INIT ACK.
            Kind::InitAck => init_chunk(&mut bytes, INIT_ACK, 1, &[0, 7, 0, 8, 1, 2, 3, 4]),
            Kind::Abort => bytes.extend([ABORT, 0, 0, 4]),
        }
        let checksum = crc32c(&bytes);
        bytes[8..12].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// Reads a packet; `None` if it is cut off, damaged or begins with another chunk.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let checksum = u32::from_le_bytes(bytes.get(8..12)?.try_into().ok()?);
        let mut unsigned = bytes.to_vec();
        unsigned[8..12].fill(0);
        if crc32c(&unsigned) != checksum {
            return None;
        }
        let chunk = bytes.get(COMMON_HEADER..)?;
        let kind = match *chunk.first()? {
            INIT => Kind::Init(be32(chunk.get(4..8)?)?),
            INIT_ACK => Kind::InitAck,
            ABORT => Kind::Abort,
            _ => return None,
        };
        Some(Self {
            source: u16::from_be_bytes(bytes[0..2].try_into().ok()?),
            destination: u16::from_be_bytes(bytes[2..4].try_into().ok()?),
            tag: be32(&bytes[4..8])?,
            kind,
        })
    }
}

/// The payload of what a raw socket received: IPv4 sockets get the IP header too.
pub(crate) fn without_ip_header(bytes: &[u8], ipv4: bool) -> Option<&[u8]> {
    if !ipv4 {
        return Some(bytes);
    }
    let length = usize::from(bytes.first()? & 0x0f) * 4;
    bytes.get(length..)
}

fn init_chunk(bytes: &mut Vec<u8>, kind: u8, tag: u32, parameters: &[u8]) {
    let length = 20 + u16::try_from(parameters.len()).expect("invariant: a few bytes");
    bytes.extend([kind, 0]);
    bytes.extend(length.to_be_bytes());
    bytes.extend(tag.to_be_bytes());
    bytes.extend(65_536_u32.to_be_bytes());
    // One stream each way, and the first transmission sequence number.
    bytes.extend([0, 1, 0, 1, 0, 0, 0, 1]);
    bytes.extend(parameters);
}

fn be32(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.try_into().ok()?))
}

/// CRC-32C (Castagnoli), bit by bit: packets are rare and short.
fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for &byte in bytes {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            let low = crc & 1;
            crc >>= 1;
            if low == 1 {
                crc ^= 0x82f6_3b78;
            }
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn the_checksum_is_castagnoli() {
        // The check value of the CRC catalogue, and RFC 3720 B.4 (32 bytes of zeros).
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
    }

    #[test]
    fn packets_survive_and_damage_is_seen() {
        for kind in [Kind::Init(77), Kind::InitAck, Kind::Abort] {
            let packet = Packet { source: 40_000, destination: 9_999, tag: 5, kind };
            let bytes = packet.to_bytes();
            assert_eq!(bytes.len() % 4, 0);
            assert_eq!(Packet::parse(&bytes), Some(packet));
            for length in 0..bytes.len() {
                assert_eq!(Packet::parse(&bytes[..length]), None);
            }
            let mut damaged = bytes;
            damaged[3] ^= 1;
            assert_eq!(Packet::parse(&damaged), None);
        }
    }

    #[test]
    fn ip_headers_are_skipped() {
        let mut bytes = vec![0x46; 24];
        bytes.push(9);
        assert_eq!(without_ip_header(&bytes, true).unwrap(), [9]);
        assert_eq!(without_ip_header(&bytes, false).unwrap().len(), 25);
        assert_eq!(without_ip_header(&[], true), None);
        assert_eq!(without_ip_header(&[0x4f, 0], true), None);
    }
}
