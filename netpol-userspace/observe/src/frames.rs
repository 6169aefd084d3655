//! Makes frames, for traces, tests and measurements. Must never be used to understand one: that
//! is `netpol_common::packet`'s.

use std::net::IpAddr;

/// What a frame's transport layer is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Transport {
    /// TCP with these flags.
    Tcp {
        /// Source port.
        source: u16,
        /// Destination port.
        destination: u16,
        /// TCP flags, `netpol_common::packet::SYN` and so on.
        flags: u8,
    },
    /// UDP with eight bytes of payload.
    Udp {
        /// Source port.
        source: u16,
        /// Destination port.
        destination: u16,
    },
    /// SCTP with one chunk of this type.
    Sctp {
        /// Source port.
        source: u16,
        /// Destination port.
        destination: u16,
        /// Chunk type: 1 INIT, 2 INIT ACK, 0 DATA.
        chunk: u8,
    },
    /// ICMP (of the addresses' family) with this type, code and body (after the checksum).
    Icmp {
        /// Type.
        kind: u8,
        /// Code.
        code: u8,
        /// Everything after the first four bytes.
        body: Vec<u8>,
    },
    /// Anything.
    Raw {
        /// IP protocol number.
        protocol: u8,
        /// Payload.
        payload: Vec<u8>,
    },
}

impl Transport {
    /// Its IP protocol number between addresses of this family.
    fn protocol(&self, is_v6: bool) -> u8 {
        match self {
            Self::Tcp { .. } => 6,
            Self::Udp { .. } => 17,
            Self::Sctp { .. } => 132,
            Self::Icmp { .. } => {
                if is_v6 {
                    58
                } else {
                    1
                }
            }
            Self::Raw { protocol, .. } => *protocol,
        }
    }

    /// Its bytes. Checksums are left zero: nothing here is received by a stack.
    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Tcp { source, destination, flags } => {
                let mut bytes = ports(*source, *destination, 20);
                bytes[12] = 5 << 4;
                bytes[13] = *flags;
                bytes
            }
            Self::Udp { source, destination } => {
                let mut bytes = ports(*source, *destination, 16);
                bytes[5] = 16;
                bytes
            }
            Self::Sctp { source, destination, chunk } => {
                let mut bytes = ports(*source, *destination, 32);
                bytes[12] = *chunk;
                bytes[15] = 20;
                bytes
            }
            Self::Icmp { kind, code, body } => {
                let mut bytes = vec![*kind, *code, 0, 0];
                bytes.extend(body);
                bytes
            }
            Self::Raw { payload, .. } => payload.clone(),
        }
    }
}

fn ports(source: u16, destination: u16, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    bytes[..2].copy_from_slice(&source.to_be_bytes());
    bytes[2..4].copy_from_slice(&destination.to_be_bytes());
    bytes
}

/// As headers hold it.
fn length(n_bytes: usize) -> u16 {
    u16::try_from(n_bytes).expect("invariant: what is made here is short")
}

/// An IP packet without link-layer header. Both addresses are of one family.
pub fn packet(source: IpAddr, destination: IpAddr, transport: &Transport) -> Vec<u8> {
    let payload = transport.bytes();
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut bytes = vec![0u8; 20];
            bytes[0] = 0x45;
            bytes[2..4].copy_from_slice(&length(20 + payload.len()).to_be_bytes());
            bytes[8] = 64;
            bytes[9] = transport.protocol(false);
            bytes[12..16].copy_from_slice(&source.octets());
            bytes[16..20].copy_from_slice(&destination.octets());
            bytes.extend(payload);
            bytes
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let mut bytes = vec![0u8; 40];
            bytes[0] = 0x60;
            bytes[4..6].copy_from_slice(&length(payload.len()).to_be_bytes());
            bytes[6] = transport.protocol(true);
            bytes[7] = 64;
            bytes[8..24].copy_from_slice(&source.octets());
            bytes[24..40].copy_from_slice(&destination.octets());
            bytes.extend(payload);
            bytes
        }
        _ => panic!("a packet's addresses are of one family: {source} and {destination}"),
    }
}

/// A frame: Ethernet header with made-up addresses, then the packet.
pub fn frame(packet: &[u8]) -> Vec<u8> {
    let is_v6 = packet.first().is_some_and(|byte| byte >> 4 == 6);
    frame_of_type(if is_v6 { 0x86dd } else { 0x0800 }, packet)
}

/// A frame with this ethertype.
pub fn frame_of_type(ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x02, 0, 0, 0, 0, 1, 0x02, 0, 0, 0, 0, 2];
    bytes.extend(ethertype.to_be_bytes());
    bytes.extend(payload);
    bytes
}
