//! What first fragments told of their datagrams' ports. Must never be asked about another
//! endpoint's.

use netpol_common::layout::{self, Direction, FragmentKey, FragmentPorts};
use netpol_common::packet::Packet;

use super::FRAGMENTS;

/// [`Maps::remember_fragment`], apart for its stack.
#[inline(never)]
pub(super) fn remember_fragment(endpoint: u16, direction: Direction, packet: &Packet) {
    let ports = layout::fragment_ports(packet.protocol, packet.local_port, packet.remote_port);
    // A failure costs the later fragments' ports; they are then judged without.
    let _ = FRAGMENTS.insert(fragment_key(endpoint, direction, packet), ports, 0);
}

/// [`Maps::fragment_ports`], apart for its stack; 0: unknown.
#[inline(never)]
pub(super) fn fragment_ports(
    endpoint: u16,
    direction: Direction,
    packet: &Packet,
) -> FragmentPorts {
    // SAFETY: one 64-bit load of a value written whole.
    match unsafe { FRAGMENTS.get(fragment_key(endpoint, direction, packet)) } {
        Some(ports) => *ports,
        None => 0,
    }
}

#[inline(always)]
fn fragment_key(endpoint: u16, direction: Direction, packet: &Packet) -> FragmentKey {
    FragmentKey {
        local: packet.local,
        remote: packet.remote,
        id: packet.fragment_id,
        endpoint,
        protocol: if packet.local.family == 6 { 0 } else { packet.protocol },
        direction: direction as u8,
    }
}
