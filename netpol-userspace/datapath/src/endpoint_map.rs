//! The endpoints' entries, by which the programs find who an interface is of. Must never fill an entry
//! in otherwise than word by word, its identity last, nor clear it otherwise than that first.

use std::mem::offset_of;
use std::sync::Arc;

use netpol_common::layout::{self, EPOCH_MASK};
use netpol_compile::{EndpointId, EndpointSets, SetId};

use super::mapped::{Mapped, word_at};

pub(crate) const IDENTITY: usize = word_at(offset_of!(layout::Endpoint, identity));
const POLICY: usize = word_at(offset_of!(layout::Endpoint, policy));
const BORN: usize = word_at(offset_of!(layout::Endpoint, born));
const OWN4: usize = word_at(offset_of!(layout::Endpoint, own4));
const LINK: usize = word_at(offset_of!(layout::Endpoint, link));

/// The map of entries. Owns it, and knows of each only its words.
#[derive(Debug, Clone)]
pub(crate) struct EndpointMap(Arc<Mapped>);

/// What an entry says of whom it judges how.
#[derive(Debug, Clone, Copy)]
pub(crate) struct EntryWords {
    /// Its policy sets.
    pub(crate) sets: EndpointSets,
    /// Its flows' epoch.
    pub(crate) epoch: u32,
    /// Flows of earlier epochs belong to an earlier owner of the id.
    pub(crate) born: u32,
}

impl EndpointMap {
    /// The entries in this map.
    pub(crate) fn new(map: Arc<Mapped>) -> Self {
        Self(map)
    }

    /// The map.
    pub(crate) fn map(&self) -> &Arc<Mapped> {
        &self.0
    }

    /// Slot, interface and id of all entries.
    pub(crate) fn identities(&self) -> impl Iterator<Item = (usize, u32, EndpointId)> {
        identities(&self.0)
    }

    /// The slot that holds this endpoint.
    pub(crate) fn find(&self, ifindex: u32, id: EndpointId) -> Option<usize> {
        let wanted = identity_word(ifindex, id);
        slots(ifindex).find(|&slot| self.0.load(slot, IDENTITY) == wanted)
    }

    /// A free slot for this interface.
    pub(crate) fn find_free(&self, ifindex: u32) -> Option<usize> {
        slots(ifindex).find(|&slot| self.0.load(slot, IDENTITY) == 0)
    }

    /// What an entry says.
    pub(crate) fn judged(&self, slot: usize) -> EntryWords {
        judged(&self.0, slot)
    }

    /// The epoch before which flows are an earlier owner's.
    pub(crate) fn set_born(&self, slot: usize, born: u32) {
        self.0.store(slot, BORN, u64::from(born));
    }

    /// The IPv4 address that is the endpoint's own without a look into the table; 0: none.
    pub(crate) fn set_own4(&self, slot: usize, own4: u64) {
        self.0.store(slot, OWN4, own4);
    }

    /// The link-layer address that frames must come from; 0: any.
    pub(crate) fn set_link(&self, slot: usize, link: u64) {
        self.0.store(slot, LINK, link);
    }

    /// Epoch and policy sets, in one store.
    pub(crate) fn set_policy(&self, slot: usize, epoch: u32, sets: EndpointSets) {
        let word = layout::policy_word(epoch, sets.ingress.0, sets.egress.0);
        self.0.store(slot, POLICY, word);
    }

    /// From here on the programs find the entry.
    pub(crate) fn set_identity(&self, slot: usize, ifindex: u32, id: EndpointId) {
        self.0.store(slot, IDENTITY, identity_word(ifindex, id));
    }

    /// An earlier release has left this word as it was, whosever the entry became. Its programs
    /// do not read it; these do as soon as they are attached, and zero lets them ask the table.
    pub(crate) fn clear_all_own4(&self) {
        for slot in 0..self.0.len() {
            self.0.store(slot, OWN4, 0);
        }
    }

    /// Frees a slot.
    pub(crate) fn clear(&self, slot: usize) {
        for word in [IDENTITY, POLICY, BORN, OWN4, LINK] {
            self.0.store(slot, word, 0);
        }
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

/// What the entry in this slot of the map says.
#[expect(clippy::cast_possible_truncation, reason = "parts of words")]
pub(crate) fn judged(map: &Mapped, slot: usize) -> EntryWords {
    let policy = map.load(slot, POLICY);
    EntryWords {
        sets: EndpointSets { ingress: SetId((policy >> 16) as u16), egress: SetId(policy as u16) },
        epoch: (policy >> 32) as u32 & EPOCH_MASK,
        born: map.load(slot, BORN) as u32,
    }
}

/// The link-layer address that an interface's entry says frames must come from.
pub(crate) fn link_of(map: &Mapped, ifindex: u32) -> Option<u64> {
    let has = |slot: &usize| parts_of(map.load(*slot, IDENTITY)).0 == ifindex;
    slots(ifindex).find(has).map(|slot| map.load(slot, LINK))
}

/// The slots an interface may be found in.
pub(crate) fn slots(ifindex: u32) -> impl Iterator<Item = usize> {
    let first = (ifindex & (layout::ENDPOINT_SLOTS - 1)) as usize;
    first..first + layout::ENDPOINT_PROBES as usize
}

/// The word that says whose an entry is.
pub(crate) const fn identity_word(ifindex: u32, id: EndpointId) -> u64 {
    (ifindex as u64) << 32 | id.0 as u64
}

/// Interface and id of such a word.
#[expect(clippy::cast_possible_truncation, reason = "parts of a word")]
pub(crate) const fn parts_of(identity: u64) -> (u32, EndpointId) {
    ((identity >> 32) as u32, EndpointId(identity as u16))
}
