//! The common case, a packet of a flow that is known, and what the flow table's bits say. Must never
//! ask the policies: what they have not settled is somebody else's.

use super::{Arrival, Endpoint, FlowState};
use crate::flow::{self, Clock, Entry, OPENED_BY_NODE, OPENED_BY_REMOTE, OPENER, STAMPED};
use crate::layout::{Direction, EPOCH_MASK};
use crate::packet::{FIN, Packet, SCTP, TCP};

/// Whether the common case holds: a packet of a flow that was judged in the current epoch and
/// does not try to open it. Notes that it was seen.
#[inline(always)]
pub fn is_established<T: flow::Table, const KEY: usize>(
    table: &T,
    key: &flow::Key<KEY>,
    hash: u64,
    endpoint: &Endpoint,
    arrival: Arrival,
    packet: &Packet,
    clock: &Clock,
) -> FlowState {
    // Who opens a flow a second time matters, and whether it is the node is not known here.
    if packet.is_opening {
        return FlowState::Unknown;
    }
    let Some(entry) = flow::find(table, key, hash) else { return FlowState::Unknown };
    // Nor, towards the pod, whether a packet of a flow that the node opened is the node's.
    let may_pose = is_nodes(entry.state) && arrival.is_towards_pod();
    if entry.epoch() != endpoint.epoch || entry.is_expired(clock) || may_pose {
        return FlowState::Unknown;
    }
    // What was to be translated has not been.
    if arrival.is_translated && entry.state & STAMPED != 0 {
        return FlowState::Unknown;
    }
    // What an answered flow has a claim to is settled elsewhere, once.
    if note(&entry, arrival, packet, clock) {
        return FlowState::Unknown;
    }
    if arrival.is_towards_pod() { FlowState::Allowed } else { FlowState::of(entry.state) }
}

/// Notes that the flow was seen, and what the packet says of it. Whether it is its first answer.
#[inline(always)]
pub(super) fn note<B: flow::Bucket>(
    entry: &Entry<B>,
    arrival: Arrival,
    packet: &Packet,
    clock: &Clock,
) -> bool {
    let mut bits = flow::packet_bits(packet, !arrival.is_towards_pod(), entry.state);
    if arrival.is_translated {
        bits |= translated_bits(packet);
    }
    entry.touch(clock.now, bits, packet.is_opening);
    entry.is_first_answer(packet.protocol, bits, packet.is_opening)
}

/// What a packet of the pod's tells of the answers, which come back untranslated and are noted in
/// the flow to the Service.
#[inline(always)]
const fn translated_bits(packet: &Packet) -> u64 {
    let mut bits = 0;
    if packet.protocol == TCP {
        if !packet.is_opening {
            bits |= flow::REPLIED | flow::HEARD;
        }
        if packet.detail & FIN != 0 {
            bits |= flow::FIN_REMOTE;
        }
    }
    bits
}

/// Whether the node opened the flow.
#[inline(always)]
pub(super) const fn is_nodes(state: u64) -> bool {
    state & OPENER == OPENED_BY_NODE
}

/// Whether the pod opened the flow, or may have.
#[inline(always)]
pub(super) const fn may_be_pods(state: u64) -> bool {
    state & OPENED_BY_REMOTE == 0
}

/// [`STAMPED`] where that is so.
#[inline(always)]
pub(super) const fn stamp_bit(is_stamped: bool) -> u64 {
    if is_stamped { STAMPED } else { 0 }
}

/// The state bits of a flow that is opened in this direction.
#[inline(always)]
pub(super) const fn opener_bits(direction: Direction, is_from_node: bool) -> u64 {
    match direction {
        Direction::Ingress if is_from_node => OPENED_BY_NODE,
        Direction::Ingress => OPENED_BY_REMOTE,
        Direction::Egress => 0,
    }
}

/// Whether this packet starts a connection, even where one with the same ports is known. (A ping
/// is one flow although each of its requests could open it.)
#[inline(always)]
pub(super) const fn starts_over(packet: &Packet) -> bool {
    packet.is_opening && has_opening(packet)
}

/// Whether this packet belongs to a connection that another packet must have opened.
#[inline(always)]
pub(super) const fn is_midway(packet: &Packet) -> bool {
    !packet.is_opening && has_opening(packet)
}

#[inline(always)]
const fn has_opening(packet: &Packet) -> bool {
    matches!(packet.protocol, TCP | SCTP)
}

/// The epoch of a flow whose packets leave untranslated and must not: it is older than any flow of
/// the endpoint, so that nothing that comes in passes for an answer to it. So far behind, no
/// epoch is given out while an endpoint lives.
#[inline(always)]
pub(super) const fn barred_epoch(endpoint: &Endpoint) -> u32 {
    endpoint.born.wrapping_sub(EPOCH_MASK / 4) & EPOCH_MASK
}

/// Whether epoch `a` came before `b`, modulo their range.
#[inline(always)]
pub(super) const fn is_older(a: u32, b: u32) -> bool {
    a.wrapping_sub(b) & EPOCH_MASK > EPOCH_MASK / 2
}
