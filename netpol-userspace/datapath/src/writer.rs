//! Writes the compiler's steps into the maps and keeps the programs attached to exactly the
//! endpoints that a policy isolates.
//!
//! Invariants: a row is complete before its set or class is used; an endpoint's entry is complete
//! before its programs are attached, and goes only after they are detached; nothing a packet in
//! flight may still read is reused before a grace period ([`Datapath::collect_garbage`]).

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::mem::offset_of;
use std::net::IpAddr;
use std::sync::Arc;

use aya::maps::PerCpuValues;
use ipnet::IpNet;
use netpol_common::layout::{
    self, EPOCH_MASK, HAS_SOURCE_PREFIXES, SERVICES_INCOMPLETE, TRANSIT_READY, names,
};

use super::attach::{AttachMode, Attacher, Part};
use super::attachments::{Attachments, Guarding};
use super::class_table::ClassTable;
use super::error::{DatapathError, EndpointFailure, bpf_error, io_error};
use super::features;
use super::flow_tables::FlowTables;
use super::grace::grace_period;
use super::limits::Limits;
use super::load::{LoadOptions, Programs};
use super::mapped::word_at;
use super::maps::{CounterWords, Maps, limits_within};
use super::own_addresses::own4;
use super::pins::Pins;
use super::prefixes::PrefixTable;
use super::resize::SetAside;
use super::rows::{Pair, RowTable};
use super::services::ServiceTable;
use super::sources::SourceTable;
use super::speakers::Link;
use super::transit::TransitHooks;
use crate::lock::Lock;
use netpol_compile::{Backend, EndpointId, EndpointSets, Row, ServiceKey, SetId, Step};
use netpol_endpoint::{Exit, PodNetns, sockets};

/// Word indices of [`layout::Endpoint`].
pub(super) const IDENTITY: usize = word_at(offset_of!(layout::Endpoint, identity));
pub(super) const POLICY: usize = word_at(offset_of!(layout::Endpoint, policy));
pub(super) const BORN: usize = word_at(offset_of!(layout::Endpoint, born));
pub(super) const OWN4: usize = word_at(offset_of!(layout::Endpoint, own4));
pub(super) const LINK: usize = word_at(offset_of!(layout::Endpoint, link));

/// Whether this machine's processors may do a load before one that comes earlier in the program.
const IS_WEAKLY_ORDERED: bool = !cfg!(any(target_arch = "x86_64", target_arch = "x86"));

/// A local endpoint as the datapath knows it.
#[derive(Debug, Clone)]
pub(super) struct Endpoint {
    pub(super) ifindex: u32,
    /// Index in the endpoints map, once it is written there.
    pub(super) slot: Option<usize>,
    pub(super) sets: EndpointSets,
    pub(super) epoch: u32,
    /// Flows of earlier epochs belong to an earlier owner of the id.
    pub(super) born: u32,
    /// Where the pod's sockets can be read, if anywhere.
    pub(super) netns: Option<PodNetns>,
    /// Its addresses in the map.
    pub(super) addresses: HashSet<IpAddr>,
    /// Addresses for which there is no room.
    pub(super) other_addresses: Vec<IpAddr>,
    /// It has no entry although it is isolated, so the programs drop everything.
    pub(super) is_closed: bool,
    /// Index in the speakers map, once it is written there.
    pub(super) speaker: Option<usize>,
    pub(super) link: Link,
    /// The declared addresses are this interface's, not only another one's of the same pod.
    pub(super) is_main: bool,
    /// It has had declared addresses.
    pub(super) was_declared: bool,
}

impl Endpoint {
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
}

/// The agent's side of the maps. One per pin directory.
pub struct Datapath {
    pub(super) maps: Maps,
    pub(super) flows: FlowTables,
    pub(super) attachments: Attachments,
    pub(super) services: ServiceTable,
    pub(super) limits: Limits,
    pub(super) classes: ClassTable,
    pub(super) rows: RowTable,
    pub(super) endpoints: BTreeMap<EndpointId, Endpoint>,
    pub(super) transit: TransitHooks,
    pub(super) sources: SourceTable,
    /// Pods that no policy selects are to have a guard.
    wants_guards: bool,
    lacks: Vec<String>,
    pub(super) prefixes: PrefixTable,
    _lock: Lock,
}

const NO_SETS: EndpointSets = EndpointSets { ingress: SetId::NONE, egress: SetId::NONE };

impl Datapath {
    /// Opens the pin directory as its only writer, loads this build's programs and switches the
    /// links that are there to them. Enforcement of an earlier agent goes on meanwhile.
    pub fn open(
        pins: &Pins,
        options: &LoadOptions,
        mode: AttachMode,
    ) -> Result<Self, DatapathError> {
        super::probe::require_capabilities()?;
        let lacks = features::require()?;
        if mode == AttachMode::Tcx {
            features::require_tcx()?;
        }
        pins.create()?;
        let lock = pins.lock()?;
        let set_aside = SetAside::prepare(pins, options)?;
        let mut programs = Programs::load(pins, options)?;
        let maps = Maps::open(pins, true)?;
        let flows = maps.flow_tables.clone();
        if let Some(tables) = &set_aside {
            tables.copy(&flows);
        }
        let transit = TransitHooks::adopt(maps.control.has_flag(TRANSIT_READY));
        // An earlier release has left this word as it was, whosever the entry became. Its programs
        // do not read it; these do as soon as they are attached, and zero lets them ask the table.
        for slot in 0..maps.endpoints.len() {
            maps.endpoints.store(slot, OWN4, 0);
        }
        let attacher = Attacher::new(mode, pins);
        attacher.adopt(&mut programs)?;
        programs.pin(pins)?;
        if let Some(tables) = set_aside {
            tables.finish(&flows)?;
        }
        let attachments = Attachments::new(programs, attacher)?;
        let limits = limits_within(pins, options.limits)?;
        let has_endpoints = adopted(&maps).next().is_some();
        let sources = SourceTable::open(pins, has_endpoints)?;
        Ok(Self {
            limits,
            classes: ClassTable::open(pins, &limits)?,
            services: ServiceTable::open(pins, &limits)?,
            maps,
            flows,
            attachments,
            rows: RowTable::open(pins, &limits)?,
            endpoints: BTreeMap::new(),
            transit,
            sources,
            wants_guards: false,
            lacks,
            prefixes: PrefixTable::open(pins)?,
            _lock: lock,
        })
    }

    /// The programs, for their figures.
    pub fn programs(&mut self) -> &mut Programs {
        self.attachments.programs()
    }

    /// The maps once more, for who reads them beside this.
    pub fn maps(&self, pins: &Pins) -> Result<Maps, DatapathError> {
        self.maps.open_again(pins)
    }

    /// How much the tables hold, as they are.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// What the kernel lacks that netpol does without, in sentences.
    pub fn lacks(&self) -> &[String] {
        &self.lacks
    }

    /// `tcx` or `clsact`.
    pub fn attach_mode(&self) -> &'static str {
        self.attachments.mode()
    }

    /// Ids of endpoints that an earlier agent left in force, by ifindex.
    pub fn adopted(&self) -> HashMap<u32, EndpointId> {
        adopted(&self.maps).collect()
    }

    /// Whether an earlier agent enforced an endpoint on the interface, which is the same since.
    pub fn is_enforced(&self, ifindex: u32) -> bool {
        self.attachments.is_enforced(ifindex)
    }

    /// The addresses of the endpoint that an earlier agent enforced on the interface.
    pub fn enforced_addresses(&self, ifindex: u32) -> Vec<IpAddr> {
        let speakers = super::observe::speakers(&self.maps).into_iter();
        let speaker =
            speakers.filter(|(of, _)| *of == ifindex).map(|(_, id)| EndpointId(id)).next();
        let id = speaker.or_else(|| self.adopted().get(&ifindex).copied());
        let mut addresses: Vec<IpAddr> =
            id.map(|id| self.own_addresses(id)).into_iter().flatten().collect();
        addresses.sort_unstable();
        addresses
    }

    /// Makes an endpoint known (not isolated yet): its addresses, and counters at zero. An
    /// endpoint that an earlier agent left in force under the same id and interface is taken over
    /// as it is. One whose id is beyond the endpoint table's limit will have no entry there: as
    /// soon as it is isolated, nothing passes from or to it.
    pub fn add_endpoint(
        &mut self,
        id: EndpointId,
        ifindex: u32,
        addresses: impl IntoIterator<Item = IpAddr>,
    ) -> Result<(), DatapathError> {
        if !self.endpoints.contains_key(&id) {
            let slot = self.find_slot(ifindex, id);
            let endpoint = self.new_endpoint(id, ifindex, slot)?;
            if slot.is_some() {
                let addresses: Vec<IpAddr> = endpoint.addresses.iter().copied().collect();
                self.sources.adopt(&addresses, ifindex);
            }
            self.endpoints.insert(id, endpoint);
            self.attachments.add(id, ifindex);
        }
        let result = self.set_addresses(id, addresses);
        self.add_speaker(id);
        if self.attachments.adopt_guard(id)
            && let Some(endpoint) = self.endpoints.get_mut(&id)
        {
            endpoint.was_declared = true;
        }
        result
    }

    /// Says whether what an endpoint may speak as is declared for its interface, so that it may
    /// have a guard. (Further interfaces of a pod may have none.)
    pub fn set_main(&mut self, id: EndpointId, is_main: bool) {
        if let Some(endpoint) = self.endpoints.get_mut(&id) {
            endpoint.is_main = is_main;
        }
    }

    /// The endpoint gets an id within the endpoint table's limit; whatever is attached stays.
    /// Its policy sets are to be given next.
    pub fn renumber(&mut self, old: EndpointId, new: EndpointId) -> Result<(), DatapathError> {
        let Some(endpoint) = self.endpoints.remove(&old) else { return Ok(()) };
        let attachment = self.attachments.forget(old).unwrap_or_default();
        let fresh = self.new_endpoint(new, endpoint.ifindex, None)?;
        let Endpoint { netns, link, is_main, was_declared, .. } = endpoint;
        self.endpoints.insert(new, Endpoint { netns, link, is_main, was_declared, ..fresh });
        self.attachments.take_over(new, attachment);
        let result = self.set_addresses(new, endpoint.other_addresses);
        self.add_speaker(new);
        result
    }

    /// The interface is another endpoint from now on. Whatever is attached stays, and nothing
    /// passes until its policy sets are given, which is to be done next.
    pub fn hand_over(&mut self, old: EndpointId, new: EndpointId) -> Result<(), DatapathError> {
        let Some(endpoint) = self.endpoints.get_mut(&old) else { return Ok(()) };
        let is_closed = endpoint.slot.is_some() || endpoint.is_closed;
        if let Some(slot) = endpoint.slot.take() {
            clear_slot(&self.maps.endpoints, slot);
            let addresses: Vec<IpAddr> = endpoint.addresses.iter().copied().collect();
            let ifindex = endpoint.ifindex;
            self.sources.remove(&addresses, ifindex);
        }
        self.remove_speaker(old);
        self.set_addresses(old, [])?;
        let Some(endpoint) = self.endpoints.remove(&old) else { return Ok(()) };
        let attachment = self.attachments.forget(old).unwrap_or_default();
        let fresh = self.new_endpoint(new, endpoint.ifindex, None)?;
        let Endpoint { sets, netns, link, is_main, .. } = endpoint;
        self.endpoints.insert(new, Endpoint { sets, netns, link, is_main, is_closed, ..fresh });
        self.attachments.take_over(new, attachment);
        self.add_speaker(new);
        Ok(())
    }

    /// Says where an endpoint's sockets can be read: connections that are older than the programs
    /// on its interface are then known by who opened them.
    pub fn set_netns(&mut self, id: EndpointId, netns: Option<PodNetns>) {
        if let Some(endpoint) = self.endpoints.get_mut(&id) {
            endpoint.netns = netns;
        }
    }

    fn new_endpoint(
        &mut self,
        id: EndpointId,
        ifindex: u32,
        slot: Option<usize>,
    ) -> Result<Endpoint, DatapathError> {
        let mut endpoint = Endpoint {
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
            let policy = self.maps.endpoints.load(slot, POLICY);
            endpoint.epoch = (policy >> 32) as u32 & EPOCH_MASK;
            endpoint.sets = EndpointSets {
                ingress: SetId((policy >> 16) as u16),
                egress: SetId(policy as u16),
            };
            endpoint.born = self.maps.endpoints.load(slot, BORN) as u32;
            endpoint.addresses = self.own_addresses(id);
        } else {
            endpoint.born = self.maps.control.next_epoch();
            // Seeded flows carry the first epoch and are judged again in this one.
            endpoint.epoch = self.maps.control.next_epoch();
            if self.has_entry(id) {
                self.clear_counters(id)?;
                self.flows.clear_losses(id);
            }
        }
        Ok(endpoint)
    }

    /// The slot that already holds this endpoint.
    fn find_slot(&self, ifindex: u32, id: EndpointId) -> Option<usize> {
        let wanted = identity_word(ifindex, id);
        slots(ifindex).find(|&slot| self.maps.endpoints.load(slot, IDENTITY) == wanted)
    }

    /// Takes an endpoint out: programs off first, then its entry.
    pub fn remove_endpoint(&mut self, id: EndpointId) -> Result<(), DatapathError> {
        self.release_endpoint(id);
        self.attachments.detach_guard(id);
        self.remove_speaker(id);
        self.set_addresses(id, [])?;
        self.endpoints.remove(&id);
        self.attachments.forget(id);
        self.detach_unneeded_transit();
        Ok(())
    }

    /// Detaches and clears the map entry, but keeps the endpoint known.
    fn release_endpoint(&mut self, id: EndpointId) {
        let Some(endpoint) = self.endpoints.get_mut(&id) else { return };
        self.attachments.detach(id);
        endpoint.is_closed = false;
        endpoint.sets = NO_SETS;
        if let Some(slot) = endpoint.slot.take() {
            clear_slot(&self.maps.endpoints, slot);
            self.flows.clear_share(id);
            let addresses: Vec<IpAddr> = endpoint.addresses.iter().copied().collect();
            let ifindex = endpoint.ifindex;
            self.sources.remove(&addresses, ifindex);
            self.divide_flow_tables();
        }
        // What flows do from now on is not seen: should the pod be isolated again, what is in the
        // table is void and its sockets tell.
        let (born, epoch) = (self.maps.control.next_epoch(), self.maps.control.next_epoch());
        if let Some(endpoint) = self.endpoints.get_mut(&id) {
            (endpoint.born, endpoint.epoch) = (born, epoch);
        }
    }

    /// Carries out the steps in order. A failure concerns what it names; the other steps are
    /// done all the same. What does not fit into its table is no failure: see [`Self::tables`].
    pub fn apply(&mut self, plan: &[Step]) -> Vec<EndpointFailure> {
        let mut failures = self.prepare_transit(plan);
        for step in plan {
            if let Err(failure) = self.apply_step(step) {
                failures.push(failure);
            }
        }
        if let Err(error) = self.retry() {
            failures.push(EndpointFailure { endpoint: None, error });
        }
        self.detach_unneeded_transit();
        failures
    }

    pub(super) fn apply_step(&mut self, step: &Step) -> Result<(), EndpointFailure> {
        let general = |error| EndpointFailure { endpoint: None, error };
        match step {
            Step::AddRow(set, class, row) => self.add_row((*set, *class), row).map_err(general),
            Step::SetClass(block, class) => self.classes.set(block, *class).map_err(general),
            Step::ClearClass(block) => self.classes.clear(block).map_err(general),
            Step::SetService(key, backends) => self.set_service(key, backends).map_err(general),
            Step::ClearService(key) => self.clear_service(key).map_err(general),
            Step::SetEndpoint(id, sets) => self
                .set_endpoint(*id, *sets)
                .map_err(|error| EndpointFailure { endpoint: Some(*id), error }),
            Step::Rejudge(ids) => {
                self.rejudge(ids);
                Ok(())
            }
            Step::RemoveRow(set, class) => {
                self.rows.discard((*set, *class));
                Ok(())
            }
        }
    }

    /// Adds a row. One that does not fit is left out; an error has nothing to do with room.
    fn add_row(&mut self, pair: Pair, row: &Row) -> Result<(), DatapathError> {
        let mut added = self.rows.add(pair, row);
        // Reclaiming waits for packets in flight: worth it only when room runs out.
        if matches!(added, Err(DatapathError::Full { .. })) && self.has_garbage() {
            self.collect_garbage()?;
            added = self.rows.add(pair, row);
        }
        let Err(error) = added else { return Ok(()) };
        self.rows.leave_out(pair, row)?;
        match error {
            DatapathError::Full { .. } => Ok(()),
            other => Err(other),
        }
    }

    /// Packets to this Service are judged by these backends from now on. If they do not fit, the
    /// programs are told that there are Services which they do not know; that is no failure, see
    /// [`Self::tables`].
    fn set_service(
        &mut self,
        key: &ServiceKey,
        backends: &Arc<[Backend]>,
    ) -> Result<(), DatapathError> {
        if self.services.is_beyond(key) {
            return self.leave_out_service(key, backends);
        }
        if !self.services.place(key, backends)? {
            // Reclaiming waits for packets in flight: worth it only when room runs out.
            self.collect_garbage()?;
            if !self.services.place(key, backends)? {
                // What stands there is not true any more.
                return self.leave_out_service(key, backends);
            }
        }
        self.update_incomplete();
        Ok(())
    }

    /// The programs know that there are Services which they do not know before this is one of them.
    fn leave_out_service(
        &mut self,
        key: &ServiceKey,
        backends: &Arc<[Backend]>,
    ) -> Result<(), DatapathError> {
        self.services.leave_out(key, backends);
        self.update_incomplete();
        self.services.take_out(key)
    }

    fn clear_service(&mut self, key: &ServiceKey) -> Result<(), DatapathError> {
        self.services.clear(key)?;
        self.update_incomplete();
        Ok(())
    }

    fn retry_services(&mut self) -> Result<(), DatapathError> {
        self.services.retry()?;
        self.update_incomplete();
        Ok(())
    }

    /// These Services go without a place from now on, and no others if they fit.
    pub fn leave_out_services(
        &mut self,
        beyond: BTreeSet<ServiceKey>,
    ) -> Result<(), DatapathError> {
        let placed = self.services.placed(&beyond);
        for (key, backends) in &placed {
            self.leave_out_service(key, backends)?;
        }
        if !placed.is_empty() {
            self.rejudge_all();
        }
        self.services.set_beyond(beyond);
        self.collect_garbage()?;
        self.retry_services()
    }

    /// These blocks, by interface, and no others may be the sources of what pods forward.
    pub fn set_source_prefixes(
        &mut self,
        wanted: BTreeSet<(u32, IpNet)>,
    ) -> Result<(), DatapathError> {
        let (lost, removed) = self.prefixes.keep_only(&wanted);
        // Flows from there are forged by now.
        let concerned = self.endpoints.iter().filter(|(_, e)| lost.contains(&e.ifindex));
        let concerned: Vec<EndpointId> = concerned.map(|(&id, _)| id).collect();
        if !concerned.is_empty() {
            self.rejudge(&concerned);
        }
        if !wanted.is_empty() {
            self.maps.control.set_flag(HAS_SOURCE_PREFIXES, true);
        }
        let added = self.prefixes.add(&wanted);
        if self.prefixes.len() == 0 {
            self.maps.control.set_flag(HAS_SOURCE_PREFIXES, false);
        }
        added.and(removed)
    }

    /// Whether there are Services without a place.
    pub fn is_short_of_services(&self) -> bool {
        self.services.is_incomplete()
    }

    /// Those that go without a place since their namespaces want more than their share.
    pub fn left_out_services(&self) -> impl Iterator<Item = &ServiceKey> {
        self.services.left_out()
    }

    /// Tries again what did not fit, as far as there is room now.
    pub fn retry(&mut self) -> Result<(), DatapathError> {
        self.rows.retry()?;
        self.classes.retry()?;
        self.retry_services()?;
        self.sources.retry()?;
        let closed = self.endpoints.iter().filter(|(_, endpoint)| endpoint.is_closed);
        let closed: Vec<_> = closed.map(|(&id, endpoint)| (id, endpoint.sets)).collect();
        for (id, sets) in closed {
            if self.has_entry(id) {
                self.set_endpoint(id, sets)?;
            }
        }
        self.retry_addresses()
    }

    fn set_endpoint(&mut self, id: EndpointId, sets: EndpointSets) -> Result<(), DatapathError> {
        if sets == NO_SETS {
            if let Some(endpoint) = self.endpoints.get_mut(&id)
                && std::mem::replace(&mut endpoint.sets, NO_SETS) != NO_SETS
            {
                // Before the programs, which check the same, come off.
                endpoint.is_closed = false;
                let guarded = self.update_guard(id);
                self.release_endpoint(id);
                return guarded;
            }
            self.release_endpoint(id);
            return Ok(());
        }
        let Some(endpoint) = self.endpoints.get_mut(&id) else { return Ok(()) };
        endpoint.sets = sets;
        let is_new = endpoint.slot.is_none();
        let is_closed = !self.write_endpoint(id);
        if let Some(endpoint) = self.endpoints.get_mut(&id) {
            endpoint.is_closed = is_closed;
        }
        // Without an entry the programs drop everything: what a policy selects must not be open.
        if !is_new || is_closed {
            self.attachments.attach(id)?;
            self.attachments.detach_guard(id);
            return Ok(());
        }
        // Before the programs, so that none of these flows is new to them; and after them, for
        // those that were opened meanwhile.
        self.seed(id);
        self.attachments.attach(id)?;
        self.seed(id);
        self.attachments.detach_guard(id);
        Ok(())
    }

    /// Enters the endpoint's connections into the flow table, to be judged at their next packet.
    fn seed(&self, id: EndpointId) {
        let Some(endpoint) = self.endpoints.get(&id) else { return };
        let Some(netns) = &endpoint.netns else { return };
        match netns.open().and_then(|netns| sockets::connections(&netns)) {
            Ok(connections) => {
                let own = |c: &&sockets::Connection| endpoint.addresses.contains(&c.local);
                let connections: Vec<_> = connections.iter().filter(own).copied().collect();
                super::seed::seed(&self.flows, id, &connections, endpoint.born);
            }
            // A pod that is just ending.
            Err(error) => tracing::debug!(%error, "cannot read a pod's connections"),
        }
    }

    /// Writes the endpoint's entry; the policy word in one store. Returns whether there is room
    /// for it.
    fn write_endpoint(&mut self, id: EndpointId) -> bool {
        let may_have_entry = self.has_entry(id);
        let Some(endpoint) = self.endpoints.get_mut(&id) else { return true };
        let EndpointSets { ingress, egress } = endpoint.sets;
        let word = layout::policy_word(endpoint.epoch, ingress.0, egress.0);
        let table = &self.maps.endpoints;
        if let Some(slot) = endpoint.slot {
            table.store(slot, POLICY, word);
            return true;
        }
        let mut free = slots(endpoint.ifindex).filter(|&slot| table.load(slot, IDENTITY) == 0);
        let Some(slot) = free.next().filter(|_| may_have_entry) else { return false };
        // Whatever the flow table holds under this id is an earlier endpoint's.
        table.store(slot, BORN, u64::from(endpoint.born));
        self.flows.set_born(id, endpoint.born);
        table.store(slot, OWN4, own4(&endpoint.addresses));
        table.store(slot, LINK, endpoint.link.frames_from());
        table.store(slot, POLICY, word);
        endpoint.slot = Some(slot);
        let ifindex = endpoint.ifindex;
        let addresses: Vec<IpAddr> = endpoint.addresses.iter().copied().collect();
        self.divide_flow_tables();
        self.maps.endpoints.store(slot, IDENTITY, identity_word(ifindex, id));
        self.sources.add(&addresses, ifindex);
        true
    }

    /// Gives every endpoint with an entry an equal share of the flow tables.
    fn divide_flow_tables(&self) {
        let with_entry = self.endpoints.iter().filter(|(_, endpoint)| endpoint.slot.is_some());
        let ids: Vec<EndpointId> = with_entry.map(|(id, _)| *id).collect();
        self.flows.divide(&ids);
    }

    /// Makes every flow of these endpoints be judged again at its next packet.
    pub(super) fn rejudge(&mut self, ids: &[EndpointId]) {
        if IS_WEAKLY_ORDERED {
            // A program could have read an address's old class before the new epoch, and enter what
            // it made of it as judged in that. The kernel always has this call.
            let _ = grace_period();
        }
        let epoch = self.maps.control.next_epoch();
        for id in ids {
            let Some(endpoint) = self.endpoints.get_mut(id) else { continue };
            endpoint.epoch = epoch;
            if let Some(slot) = endpoint.slot {
                let EndpointSets { ingress, egress } = endpoint.sets;
                let word = layout::policy_word(epoch, ingress.0, egress.0);
                self.maps.endpoints.store(slot, POLICY, word);
            }
        }
    }

    /// Checks that the programs still are where they were put, on some interfaces, and puts back what
    /// is missing. Returns the endpoints that had to be repaired, and failures.
    pub fn verify_attachments(
        &mut self,
        part: Part,
        is_thorough: bool,
    ) -> (Vec<EndpointId>, Vec<EndpointFailure>) {
        let (endpoints, wants_guards) = (&self.endpoints, self.wants_guards);
        let wanted = |id| {
            let endpoint = endpoints.get(&id).filter(|_| wants_guards);
            endpoint.map_or(Guarding::None, Endpoint::guarding)
        };
        let (mut repaired, mut failures) =
            self.attachments.verify_guards(wanted, part, is_thorough);
        let isolated = self
            .endpoints
            .iter()
            .filter(|(_, endpoint)| endpoint.slot.is_some() || endpoint.is_closed)
            .filter(|(_, endpoint)| part.has(endpoint.ifindex))
            .map(|(&id, _)| id);
        let (more_repaired, more_failures) = self.attachments.verify(isolated);
        repaired.extend(more_repaired);
        failures.extend(more_failures);
        (repaired, failures)
    }

    /// These are the interfaces by which packets leave this network namespace.
    pub fn set_exits(&mut self, exits: &[Exit]) -> Vec<EndpointFailure> {
        let is_news = self.transit.set_exits(exits);
        if is_news && self.transit.is_wanted() { self.attach_transit() } else { Vec::new() }
    }

    /// Before a plan: whoever will send to Services that are not settled needs the transit programs
    /// by then.
    fn prepare_transit(&mut self, plan: &[Step]) -> Vec<EndpointFailure> {
        let isolates = |step: &Step| {
            matches!(step, Step::SetEndpoint(id, sets)
                if sets.egress != SetId::NONE && self.endpoints.contains_key(id))
        };
        let serves = |step: &Step| matches!(step, Step::SetService(..));
        let will_isolate = self.isolates_egress() || plan.iter().any(isolates);
        let will_serve = self.services.has_any() || plan.iter().any(serves);
        let is_needed = will_isolate && will_serve;
        if !is_needed || self.transit.is_wanted() && self.maps.control.has_flag(TRANSIT_READY) {
            return Vec::new();
        }
        self.transit.want();
        self.attach_transit()
    }

    /// After a plan: takes the transit programs off when nobody needs them any more.
    fn detach_unneeded_transit(&mut self) {
        let is_needed = self.isolates_egress() && self.services.has_any();
        if is_needed || !self.transit.may_be_attached() {
            return;
        }
        self.set_transit_ready(false);
        self.transit.detach(&self.attachments);
    }

    /// Periodic: puts back what somebody took off, on some interfaces. Returns how many had to be.
    pub fn verify_transit(&mut self, part: Part) -> (usize, Vec<EndpointFailure>) {
        if !self.transit.is_wanted() {
            return (0, Vec::new());
        }
        let missing = self.transit.verify(part, &mut self.attachments);
        if missing == 0 && self.maps.control.has_flag(TRANSIT_READY) {
            return (0, Vec::new());
        }
        (missing, self.attach_transit())
    }

    /// Puts the transit programs on every exit that lacks them, and says whether all have them.
    fn attach_transit(&mut self) -> Vec<EndpointFailure> {
        let Some(failures) = self.transit.attach(&mut self.attachments) else { return Vec::new() };
        self.set_transit_ready(failures.is_empty());
        failures
    }

    fn set_transit_ready(&mut self, is_ready: bool) {
        let was_ready = self.maps.control.has_flag(TRANSIT_READY);
        self.maps.control.set_flag(TRANSIT_READY, is_ready);
        if was_ready && !is_ready {
            // What passed on condition that it is judged again.
            self.rejudge_all();
        }
    }

    /// Says to the programs whether there are Services that they do not know.
    fn update_incomplete(&mut self) {
        let is_incomplete = self.services.is_incomplete();
        if is_incomplete != self.maps.control.has_flag(SERVICES_INCOMPLETE) {
            self.maps.control.set_flag(SERVICES_INCOMPLETE, is_incomplete);
            self.rejudge_all();
        }
    }

    fn rejudge_all(&mut self) {
        let ids: Vec<EndpointId> = self.endpoints.keys().copied().collect();
        self.rejudge(&ids);
    }

    fn isolates_egress(&self) -> bool {
        self.endpoints.values().any(|endpoint| endpoint.sets.egress != SetId::NONE)
    }

    /// Whether pods that no policy selects get a guard.
    pub fn want_guards(&mut self, is_wanted: bool) {
        self.wants_guards = is_wanted;
    }

    /// As [`Self::want_guards`] was told.
    pub fn wants_guards(&self) -> bool {
        self.wants_guards
    }

    /// How many endpoints have one.
    pub fn guarded(&self) -> usize {
        self.attachments.guarded()
    }

    /// Whether an earlier agent, or this one, has put one on the interface.
    pub fn was_guarded(&self, ifindex: u32) -> bool {
        self.attachments.was_guarded(ifindex)
    }

    /// Whether some program checks who speaks on an endpoint's interface.
    pub fn checks_speaker(&self, id: EndpointId) -> bool {
        self.attachments.checks_speaker(id)
    }

    /// Whether an endpoint's guard is still to be put on or taken off.
    pub fn is_guard_pending(&self, id: EndpointId) -> bool {
        self.attachments.is_guard_pending(id, self.guarding(id))
    }

    /// Whether some guard is still to be put on or taken off.
    pub fn has_pending_guards(&self) -> bool {
        self.endpoints.keys().any(|id| self.is_guard_pending(*id))
    }

    /// Puts one guard on that is missing, or takes one off. Returns the endpoint, if there was any.
    pub fn update_next_guard(&mut self) -> Option<(EndpointId, Result<(), DatapathError>)> {
        let id = self.endpoints.keys().copied().find(|id| self.is_guard_pending(*id))?;
        Some((id, self.update_guard(id)))
    }

    fn update_guard(&mut self, id: EndpointId) -> Result<(), DatapathError> {
        self.attachments.update_guard(id, self.guarding(id))
    }

    /// What guard an endpoint is to have.
    fn guarding(&self, id: EndpointId) -> Guarding {
        let endpoint = self.endpoints.get(&id).filter(|_| self.wants_guards);
        endpoint.map_or(Guarding::None, Endpoint::guarding)
    }

    /// Whether [`Self::collect_garbage`] has anything to do.
    pub fn has_garbage(&self) -> bool {
        self.rows.has_garbage() || self.services.has_garbage()
    }

    /// Removes rows that nothing refers to any more, after a grace period for packets in flight.
    pub fn collect_garbage(&mut self) -> Result<(), DatapathError> {
        if !self.has_garbage() {
            return Ok(());
        }
        grace_period()?;
        self.rows.remove_garbage()?;
        self.services.release_garbage();
        grace_period()?;
        self.rows.reclaim();
        self.services.reclaim();
        Ok(())
    }

    fn clear_counters(&mut self, id: EndpointId) -> Result<(), DatapathError> {
        let cpus = aya::util::nr_cpus().map_err(|(what, error)| io_error(what)(error))?;
        for direction in [layout::Direction::Ingress, layout::Direction::Egress] {
            let zero: CounterWords = [0; layout::N_COUNTERS];
            let values = PerCpuValues::try_from(vec![zero; cpus])
                .map_err(io_error("make per-CPU values"))?;
            let index = layout::counter_index(u32::from(id.0), direction);
            self.maps
                .counters
                .set(index, values, 0)
                .map_err(bpf_error(format!("clear counters in map {}", names::COUNTERS)))?;
        }
        Ok(())
    }
}

fn adopted(maps: &Maps) -> impl Iterator<Item = (u32, EndpointId)> {
    (0..maps.endpoints.len())
        .map(|slot| maps.endpoints.load(slot, IDENTITY))
        .filter(|&identity| identity != 0)
        .map(|identity| ((identity >> 32) as u32, EndpointId(identity as u16)))
}

pub(super) fn clear_slot(endpoints: &super::mapped::Mapped, slot: usize) {
    endpoints.store(slot, IDENTITY, 0);
    endpoints.store(slot, POLICY, 0);
    endpoints.store(slot, BORN, 0);
    endpoints.store(slot, OWN4, 0);
    endpoints.store(slot, LINK, 0);
}

/// The slots an interface may be found in.
pub(super) fn slots(ifindex: u32) -> impl Iterator<Item = usize> {
    let first = (ifindex & (layout::ENDPOINT_SLOTS - 1)) as usize;
    first..first + layout::ENDPOINT_PROBES as usize
}

pub(super) const fn identity_word(ifindex: u32, id: EndpointId) -> u64 {
    (ifindex as u64) << 32 | id.0 as u64
}
