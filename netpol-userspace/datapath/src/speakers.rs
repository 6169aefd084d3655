//! Who speaks on which interface: an entry for each endpoint, isolated or not, that the programs
//! read where somebody's word must be its own. Must never say of an endpoint what nobody declared.

use std::collections::HashSet;
use std::mem::offset_of;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use netpol_common::layout;
use netpol_common::neighbour::link_word;
use netpol_compile::EndpointId;

use super::endpoint_map::{identity_word, parts_of, slots};
use super::keys::address_of;
use super::mapped::{Mapped, word_at};
use super::own_addresses::own4;

/// Word indices of [`layout::Speaker`].
const IDENTITY: usize = word_at(offset_of!(layout::Speaker, identity));
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
    pub(crate) fn frames_from(&self) -> u64 {
        if self.is_shared { self.address.map_or(0, link_word) } else { 0 }
    }
}

/// The entries of who speaks where. Owns their map, and knows of each only its words.
#[derive(Debug, Clone)]
pub(crate) struct SpeakerMap(Arc<Mapped>);

impl SpeakerMap {
    /// The entries in this map.
    pub(crate) fn new(map: Arc<Mapped>) -> Self {
        Self(map)
    }

    /// The map.
    pub(crate) fn map(&self) -> &Arc<Mapped> {
        &self.0
    }

    /// Interfaces and ids of all entries.
    pub(crate) fn identities(&self) -> Vec<(u32, EndpointId)> {
        identities(&self.0).map(|(_, ifindex, id)| (ifindex, id)).collect()
    }

    /// The link-layer addresses of interfaces, by ifindex.
    pub(crate) fn link_addresses(&self) -> Vec<(u32, [u8; 6])> {
        let known = identities(&self.0).filter_map(|(slot, ifindex, _)| {
            let [a, b, c, d, e, f, _, _] = self.0.load(slot, LINK).to_le_bytes();
            let address = [a, b, c, d, e, f];
            (address != [0; 6] && address[0] & 1 == 0).then_some((ifindex, address))
        });
        known.collect()
    }

    /// Writes an endpoint's entry. Returns its slot, if there is room.
    pub(crate) fn add(
        &self,
        ifindex: u32,
        id: EndpointId,
        link: &Link,
        addresses: &HashSet<IpAddr>,
    ) -> Option<usize> {
        let holds = |slot: &usize| (self.0.load(*slot, IDENTITY) >> 32) as u32 == ifindex;
        let is_free = |slot: &usize| self.0.load(*slot, IDENTITY) == 0;
        let slot = slots(ifindex).find(holds).or_else(|| slots(ifindex).find(is_free))?;
        let identity = identity_word(ifindex, id);
        if self.0.load(slot, IDENTITY) != identity {
            self.clear(slot);
            self.set_link(slot, link);
        }
        self.set_addresses(slot, addresses);
        self.0.store(slot, IDENTITY, identity);
        Some(slot)
    }

    /// Writes the first of an endpoint's addresses of each family.
    pub(crate) fn set_addresses(&self, slot: usize, addresses: &HashSet<IpAddr>) {
        self.0.store(slot, OWN4, own4(addresses));
        let first = addresses.iter().filter(|address| address.is_ipv6()).min();
        self.store_address(slot, OWN6, first.copied());
    }

    /// Writes how an endpoint is linked to the node.
    pub(crate) fn set_link(&self, slot: usize, link: &Link) {
        let address = link.address.map_or(0, link_word);
        let shared = if link.is_shared { layout::LINK_SHARED } else { 0 };
        self.0.store(slot, LINK, address | shared);
        self.0.store(slot, ROUTED_BY, link.routed_by.unwrap_or_default().into());
        self.store_address(slot, LINK_LOCAL, link.link_local.map(IpAddr::V6));
    }

    /// Two words of an IPv6 address: what reads the first half of one never finds the second half of
    /// another.
    fn store_address(&self, slot: usize, at: usize, address: Option<IpAddr>) {
        let words = address.map_or([0; 2], |address| {
            let layout::Address { words: [a, b, c, d], .. } = address_of(address);
            [two(a, b), two(c, d)]
        });
        if [0, 1].map(|word| self.0.load(slot, at + word)) != words {
            self.0.store(slot, at, 0);
            self.0.store(slot, at + 1, words[1]);
            self.0.store(slot, at, words[0]);
        }
    }

    /// Frees a slot.
    pub(crate) fn clear(&self, slot: usize) {
        for word in 0..size_of::<layout::Speaker>() / 8 {
            self.0.store(slot, word, 0);
        }
    }

    /// Slots and interfaces of the entries in other slots than these.
    pub(crate) fn other_than(&self, known: &HashSet<usize>) -> Vec<(usize, u32)> {
        let others = identities(&self.0).filter(|(slot, ..)| !known.contains(slot));
        others.map(|(slot, ifindex, _)| (slot, ifindex)).collect()
    }
}

/// Slot, interface and id of all entries in this map.
pub(crate) fn identities(map: &Mapped) -> impl Iterator<Item = (usize, u32, EndpointId)> {
    (0..map.len()).filter_map(|slot| {
        let identity = map.load(slot, IDENTITY);
        let (ifindex, id) = parts_of(identity);
        (identity != 0).then_some((slot, ifindex, id))
    })
}

/// The word that these two are in memory.
fn two(first: u32, second: u32) -> u64 {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&first.to_ne_bytes());
    bytes[4..].copy_from_slice(&second.to_ne_bytes());
    u64::from_ne_bytes(bytes)
}
