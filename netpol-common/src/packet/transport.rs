//! TCP, UDP and SCTP: ports, and what says who opens a flow. Must never read beyond the header that
//! a first fragment has to hold.

use super::icmp::{icmp_v4, icmp_v6};
use super::{ACK, Frame, ICMP, ICMPV6, Outcome, Packet, RST, SCTP, SYN, TCP, TRUNCATED, UDP};
use crate::layout::Direction;

#[inline(always)]
pub(super) fn transport<F: Frame>(
    frame: &F,
    direction: Direction,
    offset: u32,
    end: u32,
    packet: &mut Packet,
    inner: &mut Packet,
) -> Outcome {
    let is_v6 = packet.local.family == 6;
    match packet.protocol {
        TCP => {
            if offset + 20 > end {
                return TRUNCATED;
            }
            let Some(header) = frame.load::<14>(offset) else { return TRUNCATED };
            set_ports(packet, direction, [header[0], header[1], header[2], header[3]]);
            set_tcp_flags(packet, header[13]);
        }
        UDP => {
            if offset + 8 > end {
                return TRUNCATED;
            }
            let Some(header) = frame.load::<4>(offset) else { return TRUNCATED };
            set_ports(packet, direction, header);
        }
        SCTP => {
            // The first fragment of a message always holds the common header and a chunk type.
            if offset + 13 > end {
                return TRUNCATED;
            }
            let Some(header) = frame.load::<13>(offset) else { return TRUNCATED };
            set_ports(packet, direction, [header[0], header[1], header[2], header[3]]);
            packet.detail = header[12];
            packet.is_opening = header[12] == 1;
            packet.is_answer = header[12] == 2;
        }
        ICMP if !is_v6 => return icmp_v4(frame, direction, offset, end, packet, inner),
        ICMPV6 if is_v6 => return icmp_v6(frame, direction, offset, end, packet, inner),
        _ => {}
    }
    Outcome::Packet
}

/// `ports` are the first four bytes of a TCP, UDP or SCTP header.
#[inline(always)]
pub fn set_ports(packet: &mut Packet, direction: Direction, ports: [u8; 4]) {
    let source = u16::from_be_bytes([ports[0], ports[1]]);
    let destination = u16::from_be_bytes([ports[2], ports[3]]);
    (packet.local_port, packet.remote_port) = match direction {
        Direction::Ingress => (destination, source),
        Direction::Egress => (source, destination),
    };
}

/// Notes what the TCP flags say about opening a flow.
#[inline(always)]
pub fn set_tcp_flags(packet: &mut Packet, flags: u8) {
    packet.detail = flags;
    packet.is_opening = flags & (SYN | ACK | RST) == SYN;
    packet.is_answer = flags & (SYN | ACK) == SYN | ACK || flags & RST != 0;
}
