//! The endpoints of this node, isolated or not: whose interface is whose, and what the programs may
//! read of it. Knows of programs only what the entries say to them.
//!
//! Invariants: an endpoint's entry is complete before its identity is written; what leaves the table
//! of own addresses leaves the entry before.

mod addresses;
mod usage;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use netpol_compile::{EndpointId, EndpointSets, SetId};
use netpol_endpoint::{PodNetns, sockets};

use super::attachments::Guarding;
use super::control::ControlEntry;
use super::counters::CounterTable;
use super::endpoint_map::{EndpointMap, EntryWords};
use super::error::DatapathError;
use super::flow_tables::FlowTables;
use super::limits::Limits;
use super::mapped::Mapped;
use super::own_addresses::{OwnAddressMap, own4};
use super::sources::SourceTable;
use super::speakers::{Link, SpeakerMap};

/// No policy selects the pod, in neither direction.
pub(crate) const NO_SETS: EndpointSets = EndpointSets { ingress: SetId::NONE, egress: SetId::NONE };

/// A local endpoint as the datapath knows it.
#[derive(Debug, Clone)]
struct LocalEndpoint {
    ifindex: u32,
    /// Its slot in the map of entries, once it is written there.
    slot: Option<usize>,
    sets: EndpointSets,
    epoch: u32,
    /// Flows of earlier epochs belong to an earlier owner of the id.
    born: u32,
    /// Where the pod's sockets can be read, if anywhere.
    netns: Option<PodNetns>,
    /// Its addresses in the map.
    addresses: HashSet<IpAddr>,
    /// Addresses for which there is no room.
    other_addresses: Vec<IpAddr>,
    /// It has no entry although it is isolated, so the programs drop everything.
    is_closed: bool,
    /// Its slot in the map of speakers, once it is written there.
    speaker: Option<usize>,
    link: Link,
    /// The declared addresses are this interface's, not only another one's of the same pod.
    is_main: bool,
    /// It has had declared addresses.
    was_declared: bool,
}

impl LocalEndpoint {
    fn is_isolated(&self) -> bool {
        self.slot.is_some() || self.is_closed
    }

    /// What guard it may have. It may if no policy selects it, and what it may speak as is declared
    /// and written down, or was once: who has lost all addresses speaks as nobody.
    fn guarding(&self) -> Guarding {
        let may_have_guard = self.sets == NO_SETS
            && !self.is_closed
            && self.is_main
            && self.speaker.is_some()
            && (!self.addresses.is_empty() || self.was_declared);
        match may_have_guard {
            false => Guarding::None,
            true if self.link.is_shared => Guarding::WithShield,
            true => Guarding::Guard,
        }
    }

    fn addresses(&self) -> Vec<IpAddr> {
        self.addresses.iter().copied().collect()
    }
}

/// What giving an endpoint its policy sets has done to its entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EntryChange {
    /// It is new.
    Added,
    /// It was there, and says other sets now.
    Changed,
    /// There is no room for it.
    NoRoom,
}

/// The endpoints of this node. Owns the maps of their entries, of who speaks where, of own addresses,
/// of sources and of counters. Must never attach or detach anything, nor give an id or an
/// address to whom nobody has given it.
pub(crate) struct EndpointTable {
    entries: EndpointMap,
    speakers: SpeakerMap,
    own_addresses: OwnAddressMap,
    sources: SourceTable,
    counters: CounterTable,
    limits: Limits,
    /// Pods that no policy selects are to have a guard.
    wants_guards: bool,
    known: BTreeMap<EndpointId, LocalEndpoint>,
}

impl EndpointTable {
    /// Nobody is known yet; the maps may have what an earlier agent has left.
    pub(crate) fn new(
        entries: EndpointMap,
        speakers: SpeakerMap,
        own_addresses: OwnAddressMap,
        sources: SourceTable,
        counters: CounterTable,
        limits: Limits,
    ) -> Self {
        let (wants_guards, known) = (false, BTreeMap::new());
        Self { entries, speakers, own_addresses, sources, counters, limits, wants_guards, known }
    }

    /// The maps of entries and of speakers.
    pub(crate) fn maps(&self) -> [&Arc<Mapped>; 2] {
        [self.entries.map(), self.speakers.map()]
    }

    /// Whether an endpoint with this id may have an entry.
    pub(crate) fn may_have_entry(&self, id: EndpointId) -> bool {
        (1..=self.limits.endpoints).contains(&u32::from(id.0))
    }

    /// All ids.
    pub(crate) fn ids(&self) -> impl Iterator<Item = EndpointId> {
        self.known.keys().copied()
    }

    /// Whether there is such an endpoint.
    pub(crate) fn contains(&self, id: EndpointId) -> bool {
        self.known.contains_key(&id)
    }

    /// Whether an endpoint has this interface.
    pub(crate) fn has_interface(&self, ifindex: u32) -> bool {
        self.known.values().any(|endpoint| endpoint.ifindex == ifindex)
    }

    /// The endpoints with these interfaces.
    pub(crate) fn on_interfaces(&self, ifindexes: &BTreeSet<u32>) -> Vec<EndpointId> {
        self.ids_where(|endpoint| ifindexes.contains(&endpoint.ifindex))
    }

    /// Ids and interfaces of those that are isolated, with an entry or without.
    pub(crate) fn isolated(&self) -> impl Iterator<Item = (EndpointId, u32)> {
        let isolated = self.known.iter().filter(|(_, endpoint)| endpoint.is_isolated());
        isolated.map(|(&id, endpoint)| (id, endpoint.ifindex))
    }

    /// Interfaces of those that have an entry.
    pub(crate) fn with_entry(&self) -> impl Iterator<Item = u32> {
        let with_entry = self.known.values().filter(|endpoint| endpoint.slot.is_some());
        with_entry.map(|endpoint| endpoint.ifindex)
    }

    /// Those that are isolated and have no entry, with the sets that they should have there.
    pub(crate) fn closed(&self) -> Vec<(EndpointId, EndpointSets)> {
        let closed = self.known.iter().filter(|(_, endpoint)| endpoint.is_closed);
        closed.map(|(&id, endpoint)| (id, endpoint.sets)).collect()
    }

    /// Whether a policy selects some endpoint's egress.
    pub(crate) fn isolates_egress(&self) -> bool {
        self.known.values().any(|endpoint| endpoint.sets.egress != SetId::NONE)
    }

    /// Whether pods that no policy selects are to have a guard.
    pub(crate) fn want_guards(&mut self, is_wanted: bool) {
        self.wants_guards = is_wanted;
    }

    /// As [`Self::want_guards`] was told.
    pub(crate) fn wants_guards(&self) -> bool {
        self.wants_guards
    }

    /// What guard an endpoint is to have.
    pub(crate) fn guarding(&self, id: EndpointId) -> Guarding {
        let endpoint = self.known.get(&id).filter(|_| self.wants_guards);
        endpoint.map_or(Guarding::None, LocalEndpoint::guarding)
    }

    /// Makes an endpoint known, as an earlier agent has left it if it has.
    pub(crate) fn add(
        &mut self,
        id: EndpointId,
        ifindex: u32,
        control: &ControlEntry,
        flows: &FlowTables,
    ) -> Result<(), DatapathError> {
        let slot = self.entries.find(ifindex, id);
        let endpoint = self.make(id, ifindex, slot, control, flows)?;
        if slot.is_some() {
            self.sources.adopt(&endpoint.addresses(), ifindex);
        }
        self.known.insert(id, endpoint);
        Ok(())
    }

    fn make(
        &mut self,
        id: EndpointId,
        ifindex: u32,
        slot: Option<usize>,
        control: &ControlEntry,
        flows: &FlowTables,
    ) -> Result<LocalEndpoint, DatapathError> {
        let mut endpoint = LocalEndpoint {
            ifindex,
            slot,
            sets: NO_SETS,
            epoch: 0,
            born: 0,
            netns: None,
            addresses: HashSet::new(),
            other_addresses: Vec::new(),
            is_closed: false,
            speaker: None,
            link: Link::default(),
            is_main: true,
            was_declared: false,
        };
        if let Some(slot) = slot {
            let EntryWords { sets, epoch, born } = self.entries.judged(slot);
            (endpoint.sets, endpoint.epoch, endpoint.born) = (sets, epoch, born);
            endpoint.addresses = self.own_addresses.of(id);
            return Ok(endpoint);
        }
        endpoint.born = control.next_epoch();
        // Seeded flows carry the first epoch and are judged again in this one.
        endpoint.epoch = control.next_epoch();
        if self.may_have_entry(id) {
            self.counters.clear(id)?;
            flows.clear_losses(id);
        }
        Ok(endpoint)
    }

    /// Forgets an endpoint.
    pub(crate) fn forget(&mut self, id: EndpointId) {
        self.known.remove(&id);
    }

    /// An endpoint without an entry gets another id. Returns the addresses that it is to be given.
    pub(crate) fn renumber(
        &mut self,
        [old, new]: [EndpointId; 2],
        control: &ControlEntry,
        flows: &FlowTables,
    ) -> Result<Vec<IpAddr>, DatapathError> {
        let Some(endpoint) = self.known.remove(&old) else { return Ok(Vec::new()) };
        let fresh = self.make(new, endpoint.ifindex, None, control, flows)?;
        let LocalEndpoint { netns, link, is_main, was_declared, other_addresses, .. } = endpoint;
        self.known.insert(new, LocalEndpoint { netns, link, is_main, was_declared, ..fresh });
        Ok(other_addresses)
    }

    /// Takes an endpoint's entry away, so that nothing passes on its interface. Returns whether it
    /// was isolated.
    pub(crate) fn close(&mut self, id: EndpointId) -> bool {
        let Some(endpoint) = self.known.get_mut(&id) else { return false };
        let is_isolated = endpoint.is_isolated();
        if let Some(slot) = endpoint.slot.take() {
            self.entries.clear(slot);
            self.sources.remove(&endpoint.addresses(), endpoint.ifindex);
        }
        is_isolated
    }

    /// The interface of an endpoint whose entry is gone is another one's.
    pub(crate) fn hand_over(
        &mut self,
        [old, new]: [EndpointId; 2],
        is_closed: bool,
        control: &ControlEntry,
        flows: &FlowTables,
    ) -> Result<(), DatapathError> {
        let Some(endpoint) = self.known.remove(&old) else { return Ok(()) };
        let fresh = self.make(new, endpoint.ifindex, None, control, flows)?;
        let LocalEndpoint { sets, netns, link, is_main, .. } = endpoint;
        self.known.insert(new, LocalEndpoint { sets, netns, is_closed, link, is_main, ..fresh });
        Ok(())
    }

    /// Gives an endpoint its policy sets, in its entry; the policy word in one store. `None`: there
    /// is no such endpoint.
    pub(crate) fn set_sets(
        &mut self,
        id: EndpointId,
        sets: EndpointSets,
        flows: &FlowTables,
    ) -> Option<EntryChange> {
        let may_have_entry = self.may_have_entry(id);
        let endpoint = self.known.get_mut(&id)?;
        endpoint.sets = sets;
        endpoint.is_closed = false;
        if let Some(slot) = endpoint.slot {
            self.entries.set_policy(slot, endpoint.epoch, sets);
            return Some(EntryChange::Changed);
        }
        let free = self.entries.find_free(endpoint.ifindex);
        let Some(slot) = free.filter(|_| may_have_entry) else {
            endpoint.is_closed = true;
            return Some(EntryChange::NoRoom);
        };
        // Whatever the flow table holds under this id is an earlier endpoint's.
        self.entries.set_born(slot, endpoint.born);
        flows.set_born(id, endpoint.born);
        self.entries.set_own4(slot, own4(&endpoint.addresses));
        self.entries.set_link(slot, endpoint.link.frames_from());
        self.entries.set_policy(slot, endpoint.epoch, sets);
        endpoint.slot = Some(slot);
        let (ifindex, addresses) = (endpoint.ifindex, endpoint.addresses());
        self.divide(flows);
        self.entries.set_identity(slot, ifindex, id);
        self.sources.add(&addresses, ifindex);
        Some(EntryChange::Added)
    }

    /// No policy selects an endpoint any more; its entry stays until [`Self::release`]. Returns
    /// whether one did.
    pub(crate) fn clear_sets(&mut self, id: EndpointId) -> bool {
        let Some(endpoint) = self.known.get_mut(&id) else { return false };
        if std::mem::replace(&mut endpoint.sets, NO_SETS) == NO_SETS {
            return false;
        }
        endpoint.is_closed = false;
        true
    }

    /// Clears the entry of an endpoint whose programs are off, but keeps it known.
    pub(crate) fn release(&mut self, id: EndpointId, control: &ControlEntry, flows: &FlowTables) {
        let Some(endpoint) = self.known.get_mut(&id) else { return };
        endpoint.is_closed = false;
        endpoint.sets = NO_SETS;
        if let Some(slot) = endpoint.slot.take() {
            self.entries.clear(slot);
            flows.clear_share(id);
            self.sources.remove(&endpoint.addresses(), endpoint.ifindex);
            self.divide(flows);
        }
        // What flows do from now on is not seen: should the pod be isolated again, what is in the
        // table is void and its sockets tell.
        let (born, epoch) = (control.next_epoch(), control.next_epoch());
        if let Some(endpoint) = self.known.get_mut(&id) {
            (endpoint.born, endpoint.epoch) = (born, epoch);
        }
    }

    /// Gives every endpoint with an entry an equal share of the flow tables.
    fn divide(&self, flows: &FlowTables) {
        flows.divide(&self.ids_where(|endpoint| endpoint.slot.is_some()));
    }

    /// Every flow of these endpoints is of an earlier epoch than this, so judged again.
    pub(crate) fn set_epoch(&mut self, ids: &[EndpointId], epoch: u32) {
        for id in ids {
            let Some(endpoint) = self.known.get_mut(id) else { continue };
            endpoint.epoch = epoch;
            if let Some(slot) = endpoint.slot {
                self.entries.set_policy(slot, epoch, endpoint.sets);
            }
        }
    }

    /// An earlier agent knew that its addresses were declared.
    pub(crate) fn set_declared(&mut self, id: EndpointId) {
        if let Some(endpoint) = self.known.get_mut(&id) {
            endpoint.was_declared = true;
        }
    }

    /// Whether the declared addresses are this interface's.
    pub(crate) fn set_main(&mut self, id: EndpointId, is_main: bool) {
        if let Some(endpoint) = self.known.get_mut(&id) {
            endpoint.is_main = is_main;
        }
    }

    /// Where an endpoint's sockets can be read.
    pub(crate) fn set_netns(&mut self, id: EndpointId, netns: Option<PodNetns>) {
        if let Some(endpoint) = self.known.get_mut(&id) {
            endpoint.netns = netns;
        }
    }

    /// How an endpoint's interface is linked to the node.
    pub(crate) fn set_link(&mut self, id: EndpointId, link: Link) {
        let Some(endpoint) = self.known.get_mut(&id) else { return };
        // An earlier agent may have left another word there.
        if let Some(slot) = endpoint.slot {
            self.entries.set_link(slot, link.frames_from());
        }
        if endpoint.link == link {
            return;
        }
        endpoint.link = link;
        if let Some(slot) = endpoint.speaker {
            self.speakers.set_link(slot, &link);
        }
    }

    /// The connections that an endpoint's sockets have, and the epoch before which flows are
    /// somebody else's; `None`: they cannot be read.
    pub(crate) fn connections(&self, id: EndpointId) -> Option<(Vec<sockets::Connection>, u32)> {
        let endpoint = self.known.get(&id)?;
        let netns = endpoint.netns.as_ref()?;
        match netns.open().and_then(|netns| sockets::connections(&netns)) {
            Ok(mut connections) => {
                connections.retain(|connection| endpoint.addresses.contains(&connection.local));
                Some((connections, endpoint.born))
            }
            // A pod that is just ending.
            Err(error) => {
                tracing::debug!(%error, "cannot read a pod's connections");
                None
            }
        }
    }

    fn ids_where(&self, is_wanted: impl Fn(&LocalEndpoint) -> bool) -> Vec<EndpointId> {
        let wanted = self.known.iter().filter(|(_, endpoint)| is_wanted(endpoint));
        wanted.map(|(&id, _)| id).collect()
    }
}
