//! Reads the maps for people: endpoints, flows, classes, counters. Must never write.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use netpol_common::flow::{
    self, Clock, KEY4, KEY6, OPENED_BY_NODE, OPENED_BY_REMOTE, OPENED_UNSEEN, OPENER, Slot,
};
use netpol_common::layout::{Address, EPOCH_MASK, N_COUNTERS, Reason};

pub use super::clock::clock;
use super::clock::jiffies_per_second;
use super::endpoint_map::{self, EntryWords};
use super::error::DatapathError;
pub use super::keys::ip_of;
use super::maps::Maps;
use super::{class_table, speakers};
use netpol_compile::ClassId;
use netpol_model::Direction;

/// One tracked connection of an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flow {
    /// Endpoint id.
    pub endpoint: u16,
    /// IP protocol.
    pub protocol: u8,
    /// The endpoint's side.
    pub local: IpAddr,
    /// Its port, or the ICMP id.
    pub local_port: u16,
    /// The other side.
    pub remote: IpAddr,
    /// Its port, or the ICMP id.
    pub remote_port: u16,
    /// Ingress: the other side opened it; `None`: nobody saw who did.
    pub opened: Option<Direction>,
    /// This node opened it.
    pub is_from_node: bool,
    /// Packets went both ways.
    pub is_replied: bool,
    /// TCP: closed by both sides or reset.
    pub is_closing: bool,
    /// Seconds since the last packet.
    pub idle_seconds: u64,
    /// The epoch it was last judged in.
    pub epoch: u32,
}

/// An endpoint's entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EndpointEntry {
    /// Interface it is found by.
    pub ifindex: u32,
    /// Its id.
    pub id: u16,
    /// Ingress policy set, 0 if not isolated.
    pub ingress: u16,
    /// Egress policy set, 0 if not isolated.
    pub egress: u16,
    /// Its flows' epoch.
    pub epoch: u32,
    /// Flows judged before this epoch are an earlier owner's of the id.
    pub born: u32,
}

/// Endpoints with programs attached.
pub fn endpoints(maps: &Maps) -> Vec<EndpointEntry> {
    let entries = endpoint_map::identities(&maps.endpoints).map(|(slot, ifindex, id)| {
        let EntryWords { sets, epoch, born } = endpoint_map::judged(&maps.endpoints, slot);
        EndpointEntry {
            ifindex,
            id: id.0,
            ingress: sets.ingress.0,
            egress: sets.egress.0,
            epoch,
            born: born & EPOCH_MASK,
        }
    });
    entries.collect()
}

/// Interfaces and ids of all known endpoints, isolated or not.
pub fn speakers(maps: &Maps) -> Vec<(u32, u16)> {
    speakers::identities(&maps.speakers).map(|(_, ifindex, id)| (ifindex, id.0)).collect()
}

/// The link-layer address that every frame of the endpoint with this interface must come from, if
/// any.
pub(crate) fn link_source(maps: &Maps, ifindex: u32) -> Option<[u8; 6]> {
    let link = endpoint_map::link_of(&maps.endpoints, ifindex)?;
    let [a, b, c, d, e, f, _, _] = link.to_le_bytes();
    Some([a, b, c, d, e, f]).filter(|address| *address != [0; 6])
}

/// Every flow that has not expired.
pub fn flows(maps: &Maps) -> Vec<Flow> {
    let clock = clock();
    let mut list = Vec::new();
    let live4 = maps.table4().slots::<KEY4>().filter(|slot| !slot.is_expired(&clock));
    list.extend(live4.map(|slot| flow_of(&slot, 4, &clock)));
    let live6 = maps.table6().slots::<KEY6>().filter(|slot| !slot.is_expired(&clock));
    list.extend(live6.map(|slot| flow_of(&slot, 6, &clock)));
    list
}

fn flow_of<const KEY: usize>(slot: &Slot<KEY>, family: u32, clock: &Clock) -> Flow {
    let [local, remote] = slot.addresses().map(|words| ip_of(&Address { family, words }));
    let closed = slot.meta & (flow::FIN_LOCAL | flow::FIN_REMOTE);
    Flow {
        endpoint: slot.endpoint(),
        protocol: slot.protocol(),
        local,
        local_port: slot.local_port(),
        remote,
        remote_port: slot.remote_port(),
        opened: match slot.state & OPENER {
            OPENED_BY_REMOTE | OPENED_BY_NODE => Some(Direction::Ingress),
            OPENED_UNSEEN => None,
            _ => Some(Direction::Egress),
        },
        is_from_node: slot.state & OPENER == OPENED_BY_NODE,
        is_replied: slot.meta & flow::REPLIED != 0,
        is_closing: slot.meta & flow::RESET != 0 || closed == flow::FIN_LOCAL | flow::FIN_REMOTE,
        idle_seconds: (clock.now.saturating_sub(slot.last_seen()) << flow::TICK_SHIFT)
            / jiffies_per_second(),
        epoch: slot.epoch(),
    }
}

/// All address blocks with their classes.
pub fn classes(maps: &Maps) -> Result<BTreeMap<IpNet, ClassId>, DatapathError> {
    class_table::read(&maps.addresses, &maps.blocks)
}

/// `(endpoint id, address)` of all local endpoints.
pub fn own_addresses(maps: &Maps) -> impl Iterator<Item = (u16, IpAddr)> {
    maps.own_addresses.all().map(|(id, address)| (id.0, address))
}

/// An endpoint's counters of one direction, summed over processors, by [`Reason`].
pub fn counters(
    maps: &Maps,
    endpoint: u16,
    direction: Direction,
) -> Result<[u64; N_COUNTERS], DatapathError> {
    maps.counters.sum(endpoint, direction)
}

/// Packets dropped, of a set of counters.
pub fn drops(counters: &[u64; N_COUNTERS]) -> u64 {
    Reason::ALL.iter().filter(|r| r.is_drop()).map(|&r| counters[r as usize]).sum()
}
