//! What there is of endpoints and what has no room, and what an earlier agent has left of others. Must
//! never write but to clear what is nobody's.

use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;

use netpol_compile::{EndpointId, EndpointSets, SetId};
use netpol_model::Direction;

use super::EndpointTable;
use crate::error::DatapathError;
use crate::limits::{N_EXAMPLES, Overflow};
use crate::pinned::CounterWords;

impl EndpointTable {
    /// How many endpoints may have an entry, and how many addresses all have.
    pub(crate) fn used(&self) -> (usize, usize) {
        let n_endpoints = self.ids().filter(|id| self.may_have_entry(*id)).count();
        (n_endpoints, self.known.values().map(|endpoint| endpoint.addresses.len()).sum())
    }

    /// Those that use one of these sets.
    pub(crate) fn with_sets(&self, sets: &BTreeSet<SetId>) -> Vec<EndpointId> {
        self.ids_where(|endpoint| {
            sets.contains(&endpoint.sets.ingress) || sets.contains(&endpoint.sets.egress)
        })
    }

    /// Isolated endpoints without an entry.
    pub(crate) fn overflow(&self) -> Option<Overflow> {
        let endpoints = self.ids_where(|endpoint| endpoint.is_closed);
        (!endpoints.is_empty()).then(|| Overflow {
            is_error: true,
            n_left_out: endpoints.len() as u64,
            examples: Vec::new(),
            endpoints,
            consequence: "every packet from and to these pods is dropped, the node's included",
            remedy: "move pods to other nodes",
        })
    }

    /// Addresses that are not in the table of own addresses.
    pub(crate) fn address_overflow(&self) -> Option<Overflow> {
        let mut endpoints = self.ids_where(|endpoint| !endpoint.other_addresses.is_empty());
        endpoints.retain(|id| self.may_have_entry(*id));
        let left_out = endpoints.iter().map(|id| &self.known[id].other_addresses);
        let left_out: Vec<_> = left_out.flatten().collect();
        // Any pod can give itself more addresses: that is no fault of the node.
        (!left_out.is_empty()).then(|| Overflow {
            is_error: false,
            n_left_out: left_out.len() as u64,
            examples: left_out.iter().take(N_EXAMPLES).map(ToString::to_string).collect(),
            endpoints,
            consequence: "what these pods send from them is dropped while a policy isolates them",
            remedy: "give the pods fewer addresses",
        })
    }

    /// The addresses of the endpoint that an earlier agent enforced on the interface, sorted.
    pub(crate) fn enforced_addresses(&self, ifindex: u32) -> Vec<IpAddr> {
        let speakers = self.speakers.identities();
        let speaker = speakers.into_iter().find(|(of, _)| *of == ifindex).map(|(_, id)| id);
        let id = speaker.or_else(|| {
            // Of several, which only an earlier release may have left, the last.
            let mut entries = self.entries.identities().filter(|(_, of, _)| *of == ifindex);
            entries.by_ref().last().map(|(_, _, id)| id)
        });
        let addresses = id.map(|id| self.own_addresses.of(id)).into_iter().flatten();
        let mut addresses: Vec<IpAddr> = addresses.collect();
        addresses.sort_unstable();
        addresses
    }

    /// Entries that an earlier agent left and that are nobody's.
    pub(crate) fn unknown_entries(&self) -> Vec<(usize, u32, EndpointId)> {
        let known: BTreeSet<usize> = self.known.values().filter_map(|e| e.slot).collect();
        self.entries.identities().filter(|(slot, ..)| !known.contains(slot)).collect()
    }

    /// Slots and interfaces of speakers that an earlier agent left and that are nobody's.
    pub(crate) fn unknown_speakers(&self) -> Vec<(usize, u32)> {
        let known: HashSet<usize> = self.known.values().filter_map(|e| e.speaker).collect();
        self.speakers.other_than(&known)
    }

    /// Frees the slot of one of [`Self::unknown_entries`], whose programs are off.
    pub(crate) fn clear_unknown_entry(&self, slot: usize) {
        self.entries.clear(slot);
    }

    /// Frees the slot of one of [`Self::unknown_speakers`], whose guard is off.
    pub(crate) fn clear_unknown_speaker(&self, slot: usize) {
        self.speakers.clear(slot);
    }

    /// Interfaces and ids of all entries, also of endpoints that nobody has added.
    pub(crate) fn in_entries(&self) -> impl Iterator<Item = (u32, EndpointId)> {
        self.entries.identities().map(|(_, ifindex, id)| (ifindex, id))
    }

    /// The policy sets of all entries, likewise.
    pub(crate) fn sets_in_entries(&self) -> impl Iterator<Item = EndpointSets> {
        self.entries.identities().map(|(slot, ..)| self.entries.judged(slot).sets)
    }

    /// The link-layer addresses of interfaces, by ifindex, likewise of all speakers.
    pub(crate) fn link_addresses(&self) -> Vec<(u32, [u8; 6])> {
        self.speakers.link_addresses()
    }

    /// An endpoint's counters of one direction.
    pub(crate) fn counters(
        &self,
        id: EndpointId,
        direction: Direction,
    ) -> Result<CounterWords, DatapathError> {
        self.counters.sum(id.0, direction)
    }
}
