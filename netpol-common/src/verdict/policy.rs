//! What the policies say: of a flow in the direction that it was opened in, of a class, of a Service.
//! Must never look at the flow table.

use super::{Endpoint, Maps, Policies, PolicyVerdict};
use crate::layout::{
    Address, BlockKey, Direction, SERVICES_INCOMPLETE, ServiceKey, TRANSIT_READY, judges_own,
};
use crate::neighbour::is_link_local;
use crate::packet::Packet;
use crate::ports;
use crate::service::ToService;

#[inline(always)]
pub(super) fn is_transit_ready<M: Maps + ?Sized>(maps: &M) -> bool {
    maps.flags() & TRANSIT_READY != 0
}

/// What the policies say of a flow opened in `direction`.
#[inline(always)]
pub fn judge_flow<M: Maps + ?Sized>(
    maps: &M,
    endpoint: &Endpoint,
    direction: Direction,
    is_translated: bool,
    packet: &Packet,
) -> PolicyVerdict {
    let to_service = ask_service(maps, endpoint, direction, is_translated, packet);
    judge_flow_to(maps, endpoint, direction, is_translated, packet, to_service)
}

// In parts, since in the kernel there is little stack left where they are called from.

/// The first part of [`judge_flow`]: what the policies say of the Service that the packet is for.
#[inline(always)]
pub fn ask_service<M: Maps + ?Sized>(
    maps: &M,
    endpoint: &Endpoint,
    direction: Direction,
    is_translated: bool,
    packet: &Packet,
) -> ToService {
    let set = endpoint.set(direction);
    if direction as u8 != Direction::Egress as u8 || set == 0 && is_translated {
        return ToService::None;
    }
    let key = ServiceKey {
        address: packet.remote,
        port: packet.remote_port,
        protocol: packet.protocol,
        reserved: 0,
    };
    maps.judge_service(set, endpoint.id, &key)
}

/// The rest of it.
#[inline(always)]
pub fn judge_flow_to<M: Maps + ?Sized>(
    maps: &M,
    endpoint: &Endpoint,
    direction: Direction,
    is_translated: bool,
    packet: &Packet,
    to_service: ToService,
) -> PolicyVerdict {
    let set = endpoint.set(direction);
    let is_egress = direction as u8 == Direction::Egress as u8;
    if let Some(judged) = judge_service(maps, set, is_translated, to_service) {
        return judged;
    }
    // A pod always reaches itself, and knows what comes back by its own stamp: by the address alone
    // anybody could pass for it. (That the two are the same says it of nearly all such packets
    // without asking the table for all others.)
    let to_itself = PolicyVerdict { is_stamped: !is_translated, ..PolicyVerdict::ALLOWED };
    // (From its link-local address it could be answered there, which nobody looks at on a link.)
    let is_judged = is_translated && judges_own(set);
    let is_to_itself = || {
        is_egress
            && !is_judged
            && !is_link_local(&packet.local)
            && maps.owns(endpoint.id, &packet.remote)
    };
    if packet.remote.is_same(&packet.local) && is_to_itself() {
        return to_itself;
    }
    if set == 0 {
        return PolicyVerdict::ALLOWED;
    }
    let port = if is_egress { packet.remote_port } else { packet.local_port };
    let class = maps.class_of(&packet.remote);
    let is_allowed = maps.row_allows(set, class, packet.protocol, port);
    if !is_allowed && is_to_itself() {
        return PolicyVerdict { class, ..to_itself };
    }
    if is_allowed && is_egress && !is_translated && maps.flags() & SERVICES_INCOMPLETE != 0 {
        // It may be a Service after all.
        return PolicyVerdict { class, ..PolicyVerdict::stamped_if(is_transit_ready(maps)) };
    }
    PolicyVerdict { is_allowed, class, ..PolicyVerdict::DENIED }
}

/// What the policies say of a flow to a Service, if they need not look at the address.
#[inline(always)]
fn judge_service<M: Maps + ?Sized>(
    maps: &M,
    set: u16,
    is_translated: bool,
    to_service: ToService,
) -> Option<PolicyVerdict> {
    match to_service {
        ToService::None => None,
        // Whoever translates it is another node, and none of those that it knows is denied.
        ToService::AllowedElsewhere | ToService::OwnElsewhere if is_translated => {
            Some(PolicyVerdict::ALLOWED)
        }
        // Nobody has translated it, and it is on its way to this very address, whoever stands
        // behind it by what is said of the Service: anybody may make a Service of any address.
        ToService::Allowed | ToService::Own | ToService::Empty if is_translated => None,
        ToService::Mixed if is_translated => Some(PolicyVerdict::UNDECIDABLE),
        ToService::Own | ToService::OwnElsewhere if set == 0 => Some(PolicyVerdict::STAMPED),
        // Whoever is not isolated is stamped to be recognised by itself, and for nothing else.
        _ if set == 0 => None,
        ToService::Undecidable => Some(PolicyVerdict::UNDECIDABLE),
        ToService::Denied => Some(PolicyVerdict::DENIED),
        // Who it will be is decided elsewhere, also where all are allowed that are known here:
        // whoever translates may know of others, may go on with those that are gone, and may not
        // translate at all.
        _ => Some(PolicyVerdict::stamped_if(is_transit_ready(maps))),
    }
}

/// The class of an address: its own, else that of the longest block around it, else 0.
#[inline(always)]
pub fn class_of<P: Policies>(maps: &P, address: &Address) -> u32 {
    let key = BlockKey::of(address);
    // Twice, because an element that is being reused says so by a wrong echo.
    let mut attempt = 0;
    while attempt < 2 {
        match maps.exact_class(&key) {
            None => break,
            Some(exact) if (exact >> 32) as u32 == address.echo() => return exact as u32,
            Some(_) => attempt += 1,
        }
    }
    maps.block_class(&key).unwrap_or_default()
}

/// Whether `set` allows this protocol and destination port for `class`.
#[inline(always)]
pub fn row_allows<P: Policies>(maps: &P, set: u16, class: u32, protocol: u8, port: u16) -> bool {
    if let Some(row) = maps.row(set, class) {
        return ports::allows(maps, &row, protocol, port);
    }
    match maps.row(set, 0) {
        Some(row) => ports::allows(maps, &row, protocol, port),
        None => false,
    }
}
