//! Who speaks on which interface: an entry for each endpoint, isolated or not, that the programs
//! read where somebody's word must be its own. Must never say of an endpoint what nobody declared.

use std::collections::HashSet;
use std::mem::offset_of;
use std::net::{IpAddr, Ipv6Addr};

use netpol_common::layout;
use netpol_common::neighbour::link_word;

use super::keys::address_of;
use super::mapped::{Mapped, word_at};
use super::own_addresses::own4;
use super::writer::{self, Datapath, Endpoint, identity_word, slots};
use netpol_compile::EndpointId;

/// Word indices of [`layout::Speaker`].
pub(super) const IDENTITY: usize = word_at(offset_of!(layout::Speaker, identity));
const OWN4: usize = word_at(offset_of!(layout::Speaker, own4));
const OWN6: usize = word_at(offset_of!(layout::Speaker, own6));
const LINK_LOCAL: usize = word_at(offset_of!(layout::Speaker, link_local));
const LINK: usize = word_at(offset_of!(layout::Speaker, link));
const ROUTED_BY: usize = word_at(offset_of!(layout::Speaker, routed_by));

/// How an endpoint's interface is linked to the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Link {
    /// Its own link-layer address, if it is known; a group's if it must not have any.
    pub address: Option<[u8; 6]>,
    /// Its own link-local address: a source and a target of neighbour discovery.
    pub link_local: Option<Ipv6Addr>,
    /// Others share the link: every frame's source is checked.
    pub is_shared: bool,
    /// The interface by which the node routes what comes in, if it does.
    pub routed_by: Option<u32>,
}

impl Link {
    /// [`layout::Endpoint::link`].
    pub(super) fn frames_from(&self) -> u64 {
        if self.is_shared { self.address.map_or(0, link_word) } else { 0 }
    }
}

impl Datapath {
    /// Says how an endpoint's interface is linked to the node. Until then nothing is known of it.
    pub fn set_link(&mut self, id: EndpointId, link: Link) {
        let Some(endpoint) = self.endpoints.get_mut(&id) else { return };
        // An earlier agent may have left another word there.
        if let Some(slot) = endpoint.slot {
            self.maps.endpoints.store(slot, writer::LINK, link.frames_from());
        }
        if endpoint.link == link {
            return;
        }
        endpoint.link = link;
        if let Some(slot) = endpoint.speaker {
            store_link(&self.maps.speakers, slot, &link);
        }
    }

    /// The link-layer addresses of interfaces, by ifindex, that an earlier agent has written.
    pub fn link_addresses(&self) -> Vec<(u32, [u8; 6])> {
        let table = &self.maps.speakers;
        let entries = (0..table.len()).map(|slot| (table.load(slot, IDENTITY), slot));
        let known = entries.filter(|&(identity, _)| identity != 0);
        known
            .filter_map(|(identity, slot)| {
                let [a, b, c, d, e, f, _, _] = table.load(slot, LINK).to_le_bytes();
                let address = [a, b, c, d, e, f];
                (address != [0; 6] && address[0] & 1 == 0)
                    .then_some(((identity >> 32) as u32, address))
            })
            .collect()
    }

    /// Writes the entry of an endpoint that has none yet, if there is room for one.
    pub(super) fn add_speaker(&mut self, id: EndpointId) {
        let may_have_entry = self.has_entry(id);
        let Some(endpoint) = self.endpoints.get_mut(&id) else { return };
        if endpoint.speaker.is_some() || !may_have_entry {
            return;
        }
        let table = &self.maps.speakers;
        let ifindex = endpoint.ifindex;
        let holds = |slot: &usize| (table.load(*slot, IDENTITY) >> 32) as u32 == ifindex;
        let is_free = |slot: &usize| table.load(*slot, IDENTITY) == 0;
        let slot = slots(ifindex).find(holds).or_else(|| slots(ifindex).find(is_free));
        let Some(slot) = slot else { return };
        let identity = identity_word(ifindex, id);
        if table.load(slot, IDENTITY) != identity {
            clear_slot(table, slot);
            store_link(table, slot, &endpoint.link);
        }
        store_addresses(table, slot, &endpoint.addresses);
        table.store(slot, IDENTITY, identity);
        endpoint.speaker = Some(slot);
    }

    /// Takes the entry of an endpoint away. Its programs are gone by then.
    pub(super) fn remove_speaker(&mut self, id: EndpointId) {
        if let Some(endpoint) = self.endpoints.get_mut(&id)
            && let Some(slot) = endpoint.speaker.take()
        {
            clear_slot(&self.maps.speakers, slot);
        }
    }

    /// Takes entries away that an earlier agent left and that are nobody's.
    pub(super) fn remove_unknown_speakers(&self) {
        let known: HashSet<usize> =
            self.endpoints.values().filter_map(|endpoint| endpoint.speaker).collect();
        let table = &self.maps.speakers;
        for slot in (0..table.len()).filter(|slot| !known.contains(slot)) {
            let identity = table.load(slot, IDENTITY);
            if identity != 0 {
                self.attachments.detach_unknown_guard((identity >> 32) as u32);
                clear_slot(table, slot);
            }
        }
    }
}

/// Notes these addresses of an endpoint in its entry, if it has one.
pub(super) fn note_addresses(
    table: &Mapped,
    endpoint: &Endpoint,
    addresses: impl IntoIterator<Item = IpAddr>,
) {
    if let Some(slot) = endpoint.speaker {
        store_addresses(table, slot, &addresses.into_iter().collect());
    }
}

fn store_addresses(table: &Mapped, slot: usize, addresses: &HashSet<IpAddr>) {
    table.store(slot, OWN4, own4(addresses));
    let first = addresses.iter().filter(|address| address.is_ipv6()).min();
    store_address(table, slot, OWN6, first.copied());
}

fn store_link(table: &Mapped, slot: usize, link: &Link) {
    let address = link.address.map_or(0, link_word);
    let shared = if link.is_shared { layout::LINK_SHARED } else { 0 };
    table.store(slot, LINK, address | shared);
    table.store(slot, ROUTED_BY, link.routed_by.unwrap_or_default().into());
    store_address(table, slot, LINK_LOCAL, link.link_local.map(IpAddr::V6));
}

/// Two words of an IPv6 address: what reads the first half of one never finds the second half of
/// another.
fn store_address(table: &Mapped, slot: usize, at: usize, address: Option<IpAddr>) {
    let words = address.map_or([0; 2], |address| {
        let layout::Address { words: [a, b, c, d], .. } = address_of(address);
        [two(a, b), two(c, d)]
    });
    if [0, 1].map(|word| table.load(slot, at + word)) != words {
        table.store(slot, at, 0);
        table.store(slot, at + 1, words[1]);
        table.store(slot, at, words[0]);
    }
}

/// The word that these two are in memory.
fn two(first: u32, second: u32) -> u64 {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&first.to_ne_bytes());
    bytes[4..].copy_from_slice(&second.to_ne_bytes());
    u64::from_ne_bytes(bytes)
}

fn clear_slot(table: &Mapped, slot: usize) {
    for word in 0..size_of::<layout::Speaker>() / 8 {
        table.store(slot, word, 0);
    }
}
