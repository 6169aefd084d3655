//! Packets that have no flow, or whose headers do not say which: fragments, ICMP errors and what
//! cannot be read. Must never enter a flow.

use super::established::{is_older, stamp_bit};
use super::policy::is_transit_ready;
use super::tracked::judge_opened;
use super::{Arrival, Endpoint, FlowState, Judge, Maps, Verdict};
use crate::flow;
use crate::layout::{Reason, judges_own};
use crate::neighbour::is_link_local;
use crate::packet::{Kind, Packet, SCTP, TCP, UDP, asks_for_address};
use crate::ports::NO_PORTS;

/// Whether the packet has a flow by which to judge it. Fragments after the first get the ports of
/// their datagram's first one, if that is known.
#[inline(always)]
pub fn has_flow<M: Maps>(
    maps: &M,
    endpoint: &Endpoint,
    arrival: Arrival,
    packet: &mut Packet,
) -> bool {
    if packet.is_first_fragment {
        maps.remember_fragment(endpoint.id, arrival.direction, packet);
    }
    if packet.kind as u8 == Kind::Fragment as u8 {
        let ports = maps.fragment_ports(endpoint.id, arrival.direction, packet);
        if ports != 0 {
            (packet.local_port, packet.remote_port) = ((ports >> 32) as u16, (ports >> 16) as u16);
            packet.protocol = (ports >> 8) as u8;
            packet.kind = Kind::Flow;
        }
    }
    packet.kind as u8 == Kind::Flow as u8
}

/// Judges a packet that has no flow; `inner` as for [`super::judge`].
#[inline(always)]
pub fn judge_apart<J: Judge>(
    maps: &J,
    endpoint: &Endpoint,
    arrival: Arrival,
    packet: &Packet,
    inner: Option<&Packet>,
) -> Verdict {
    if let Some(reason) = refuses_source(maps, endpoint, arrival, packet) {
        return Verdict::drop(reason, 0);
    }
    // What a pod says about a packet goes to that packet's sender. Else any flow would let it
    // send anything, as the rest of an error, to anybody.
    if let Some(inner) = inner
        && (arrival.is_towards_pod() || packet.remote.is_same(&inner.remote))
    {
        let known = maps.is_related(endpoint, inner);
        if known as u32 != FlowState::Unknown as u32 {
            let is_stamped = known as u32 == FlowState::Stamped as u32
                && !arrival.is_towards_pod()
                && !arrival.is_translated;
            return Verdict { is_stamped, ..Verdict::PASS };
        }
    }
    judge_alone(maps, endpoint, arrival, packet)
}

/// Judges a packet that could not be parsed to its end, for this reason. Where no policy isolates
/// it passes like any other, and like any other only from the pod's own address if it has one.
#[inline(always)]
pub fn judge_refused<M: Maps + ?Sized>(
    maps: &M,
    endpoint: &Endpoint,
    arrival: Arrival,
    packet: &Packet,
    reason: Reason,
) -> Verdict {
    if endpoint.is_isolated(arrival.direction) {
        return Verdict::drop(reason, 0);
    }
    // Neighbours talk from link-local addresses; of other packets none or both were read.
    if packet.local.family == 0 || reason as u8 == Reason::RouterMessage as u8 {
        return Verdict::PASS;
    }
    match refuses_source(maps, endpoint, arrival, packet) {
        Some(reason) => Verdict::drop(reason, 0),
        None => Verdict::PASS,
    }
}

/// Judges a packet that belongs to no flow, and whose source is in order, by itself: ICMP that is
/// neither request nor reply, an unrelated ICMP error, a later fragment of an unknown datagram.
#[inline(always)]
fn judge_alone<M: Maps>(
    maps: &M,
    endpoint: &Endpoint,
    arrival: Arrival,
    packet: &Packet,
) -> Verdict {
    let Arrival { direction, is_from_node, is_translated, .. } = arrival;
    if is_from_node || !endpoint.is_isolated(direction) {
        return Verdict::PASS;
    }
    let class = maps.class_of(&packet.remote);
    let is_of_ports = packet.protocol == TCP || packet.protocol == UDP || packet.protocol == SCTP;
    let protocol = if is_of_ports { NO_PORTS } else { packet.protocol };
    let is_to_itself = !arrival.is_towards_pod()
        && !(is_translated && judges_own(endpoint.set(direction)))
        && !is_link_local(&packet.local)
        && maps.owns(endpoint.id, &packet.remote);
    if is_to_itself || maps.row_allows(endpoint.set(direction), class, protocol, 0) {
        // Whether it will be translated, as part of somebody's flow, cannot be told.
        let is_stamped =
            !arrival.is_towards_pod() && !is_translated && (is_to_itself || is_transit_ready(maps));
        return Verdict { is_stamped, class, ..Verdict::PASS };
    }
    let reason =
        if packet.kind as u8 == Kind::Fragment as u8 { Reason::Fragment } else { Reason::Policy };
    Verdict::drop(reason, class)
}

/// A pod may send from its own addresses only. On its way a packet may have got another one.
#[inline(always)]
pub(super) fn refuses_source<M: Maps + ?Sized>(
    maps: &M,
    endpoint: &Endpoint,
    arrival: Arrival,
    packet: &Packet,
) -> Option<Reason> {
    let is_spoofed = !arrival.is_towards_pod()
        && !arrival.is_translated
        && !is_own_source(maps, endpoint, arrival, packet);
    if is_spoofed { Some(Reason::SourceAddress) } else { None }
}

/// Whether the pod may send from the packet's address of its side.
#[inline(always)]
pub(super) fn is_own_source<M: Maps + ?Sized>(
    maps: &M,
    endpoint: &Endpoint,
    arrival: Arrival,
    packet: &Packet,
) -> bool {
    arrival.is_own_source
        || !maps.checks_source()
        || maps.owns(endpoint.id, &packet.local)
        || asks_for_address(packet)
}

/// What the table says of the flow that an ICMP error quotes, with this key: its entry's state, or 0
/// if it is not known any more.
#[inline(always)]
pub fn related_state<M: Maps + ?Sized, T: flow::Table, const KEY: usize>(
    maps: &M,
    table: &T,
    key: &flow::Key<KEY>,
    endpoint: &Endpoint,
) -> u64 {
    let hash = flow::hash(key, maps.secret());
    match flow::find(table, key, hash) {
        Some(entry)
            if !entry.is_expired(&maps.clock()) && !is_older(entry.epoch(), endpoint.born) =>
        {
            entry.state
        }
        _ => 0,
    }
}

/// Whether the flow that an ICMP error quotes, and of which the table says this, is known and still
/// allowed. Apart from looking, because in the kernel the policies are asked where little stack is
/// left.
#[inline(always)]
pub fn judge_related<M: Maps + ?Sized>(
    maps: &M,
    endpoint: &Endpoint,
    inner: &Packet,
    state: u64,
) -> FlowState {
    if state == 0 {
        return FlowState::Unknown;
    }
    if flow::epoch_of(state) == endpoint.epoch || maps.keeps_established() {
        return FlowState::of(state);
    }
    let ask = |direction| Ok(maps.judge_flow(endpoint, direction, false, inner));
    let Ok(judged) = judge_opened(state, ask) else { return FlowState::Unknown };
    if judged.is_allowed { FlowState::of(stamp_bit(judged.is_stamped)) } else { FlowState::Unknown }
}
