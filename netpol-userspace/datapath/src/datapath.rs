//! The agent's side of the maps and programs: the tables, and what is done with several of them for one
//! endpoint. What a plan says is done in [`plan`], what is left of an earlier agent is put right in
//! [`reconcile`]. Must never reach into a table.
//!
//! Invariants: an endpoint's entry is complete before its programs are attached, and goes only after
//! they are detached; a guard has its entry before it is attached and until it is off.

mod plan;
mod reconcile;
mod usage;

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

use ipnet::IpNet;
use netpol_common::layout::{HAS_SOURCE_PREFIXES, SERVICES_INCOMPLETE, TRANSIT_READY, names};
use netpol_compile::EndpointId;
use netpol_endpoint::{Exit, PodNetns};

use super::attach::{AttachMode, Attacher, Part};
use super::attachments::Attachments;
use super::class_table::ClassTable;
use super::control::ControlEntry;
use super::counters::CounterTable;
use super::endpoint_map::EndpointMap;
use super::endpoint_table::EndpointTable;
use super::error::{DatapathError, EndpointFailure};
use super::features;
use super::flow_tables::FlowTables;
use super::grace::grace_period;
use super::limits::Limits;
use super::load::{LoadOptions, Programs};
use super::lock::Lock;
use super::maps::{Maps, SharedMaps};
use super::own_addresses::OwnAddressMap;
use super::pinned::{check_pinned, limits_within, map_for_writing};
use super::pins::Pins;
use super::prefixes::PrefixTable;
use super::resize::SetAside;
use super::rows::RowTable;
use super::services::ServiceTable;
use super::sources::SourceTable;
use super::speakers::{Link, SpeakerMap};
use super::transit::TransitHooks;

pub use reconcile::NumbersInMaps;

/// Whether this machine's processors may do a load before one that comes earlier in the program.
const IS_WEAKLY_ORDERED: bool = !cfg!(any(target_arch = "x86_64", target_arch = "x86"));

/// The agent's side of the maps. One per pin directory.
pub struct Datapath {
    control: ControlEntry,
    endpoints: EndpointTable,
    classes: ClassTable,
    rows: RowTable,
    services: ServiceTable,
    prefixes: PrefixTable,
    flows: FlowTables,
    attachments: Attachments,
    transit: TransitHooks,
    limits: Limits,
    /// What the kernel lacks.
    lacks: Vec<String>,
    _lock: Lock,
}

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
        let control = ControlEntry::open(pins)?;
        check_pinned(pins)?;
        let flows = FlowTables::open(pins, control.clone())?;
        // All of them before any program is switched: what cannot be opened or read changes nothing.
        let limits = limits_within(pins, options.limits)?;
        let entries = EndpointMap::new(map_for_writing(pins, names::ENDPOINTS)?);
        let has_endpoints = entries.identities().next().is_some();
        let speakers = SpeakerMap::new(map_for_writing(pins, names::SPEAKERS)?);
        let own_addresses = OwnAddressMap::open(pins)?;
        let sources = SourceTable::open(pins, has_endpoints)?;
        let counters = CounterTable::open(pins)?;
        let classes = ClassTable::open(pins, &limits)?;
        let rows = RowTable::open(pins, &limits)?;
        let services = ServiceTable::open(pins, &limits)?;
        let prefixes = PrefixTable::open(pins)?;
        if let Some(tables) = &set_aside {
            tables.copy(&flows);
        }
        let transit = TransitHooks::adopt(control.has_flag(TRANSIT_READY));
        entries.clear_all_own4();
        let attacher = Attacher::new(mode, pins);
        attacher.adopt(&mut programs)?;
        programs.pin(pins)?;
        if let Some(tables) = set_aside {
            tables.finish(&flows)?;
        }
        let attachments = Attachments::new(programs, attacher)?;
        let endpoints =
            EndpointTable::new(entries, speakers, own_addresses, sources, counters, limits);
        Ok(Self {
            control,
            endpoints,
            classes,
            rows,
            services,
            prefixes,
            flows,
            attachments,
            transit,
            limits,
            lacks,
            _lock: lock,
        })
    }

    /// The programs, for their figures.
    pub fn programs(&mut self) -> &mut Programs {
        self.attachments.programs()
    }

    /// The maps once more, for who reads them beside this.
    pub fn maps(&self, pins: &Pins) -> Result<Maps, DatapathError> {
        let [flows4, flows6, flow_use] = self.flows.maps();
        let [entries, speakers] = self.endpoints.maps();
        let shared = SharedMaps(vec![
            (names::CONTROL, self.control.map()),
            (names::ENDPOINTS, entries),
            (names::SPEAKERS, speakers),
            (names::FLOWS4, flows4),
            (names::FLOWS6, flows6),
            (names::FLOW_USE, flow_use),
            (names::INTERVALS, self.rows.intervals()),
            (names::BACKENDS, self.services.backends()),
        ]);
        Maps::open_shared(pins, &shared)
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
        self.endpoints.in_entries().collect()
    }

    /// Whether an earlier agent enforced an endpoint on the interface, which is the same since.
    pub fn is_enforced(&self, ifindex: u32) -> bool {
        self.attachments.is_enforced(ifindex)
    }

    /// The addresses of the endpoint that an earlier agent enforced on the interface.
    pub fn enforced_addresses(&self, ifindex: u32) -> Vec<IpAddr> {
        self.endpoints.enforced_addresses(ifindex)
    }

    /// The link-layer addresses of interfaces, by ifindex, that an earlier agent has written.
    pub fn link_addresses(&self) -> Vec<(u32, [u8; 6])> {
        self.endpoints.link_addresses()
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
        if !self.endpoints.contains(id) {
            self.endpoints.add(id, ifindex, &self.control, &self.flows)?;
            self.attachments.add(id, ifindex);
        }
        let result = self.set_addresses(id, addresses);
        self.endpoints.add_speaker(id);
        if self.attachments.adopt_guard(id) {
            self.endpoints.set_declared(id);
        }
        result
    }

    /// Says whether what an endpoint may speak as is declared for its interface, so that it may
    /// have a guard. (Further interfaces of a pod may have none.)
    pub fn set_main(&mut self, id: EndpointId, is_main: bool) {
        self.endpoints.set_main(id, is_main);
    }

    /// Says how an endpoint's interface is linked to the node. Until then nothing is known of it.
    pub fn set_link(&mut self, id: EndpointId, link: Link) {
        self.endpoints.set_link(id, link);
    }

    /// Says where an endpoint's sockets can be read: connections that are older than the programs
    /// on its interface are then known by who opened them.
    pub fn set_netns(&mut self, id: EndpointId, netns: Option<PodNetns>) {
        self.endpoints.set_netns(id, netns);
    }

    /// The endpoint gets an id within the endpoint table's limit; whatever is attached stays.
    /// Its policy sets are to be given next.
    pub fn renumber(&mut self, old: EndpointId, new: EndpointId) -> Result<(), DatapathError> {
        let Some(attachment) = self.attachments.forget(old) else { return Ok(()) };
        let addresses = self.endpoints.renumber([old, new], &self.control, &self.flows)?;
        self.attachments.take_over(new, attachment);
        let result = self.set_addresses(new, addresses);
        self.endpoints.add_speaker(new);
        result
    }

    /// The interface is another endpoint from now on. Whatever is attached stays, and nothing
    /// passes until its policy sets are given, which is to be done next.
    pub fn hand_over(&mut self, old: EndpointId, new: EndpointId) -> Result<(), DatapathError> {
        if !self.endpoints.contains(old) {
            return Ok(());
        }
        let was_isolated = self.endpoints.close(old);
        self.endpoints.remove_speaker(old);
        self.set_addresses(old, [])?;
        let Some(attachment) = self.attachments.forget(old) else { return Ok(()) };
        self.endpoints.hand_over([old, new], was_isolated, &self.control, &self.flows)?;
        self.attachments.take_over(new, attachment);
        self.endpoints.add_speaker(new);
        Ok(())
    }

    /// Takes an endpoint out: programs off first, then its entry.
    pub fn remove_endpoint(&mut self, id: EndpointId) -> Result<(), DatapathError> {
        self.release_endpoint(id);
        self.attachments.detach_guard(id);
        self.endpoints.remove_speaker(id);
        self.set_addresses(id, [])?;
        self.endpoints.forget(id);
        self.attachments.forget(id);
        self.detach_unneeded_transit();
        Ok(())
    }

    /// Takes an endpoint's programs off and clears its entry, but keeps it known.
    fn release_endpoint(&mut self, id: EndpointId) {
        self.attachments.detach(id);
        self.endpoints.release(id, &self.control, &self.flows);
    }

    /// The first of `addresses` become the endpoint's own, as many as it may have.
    fn set_addresses(
        &mut self,
        id: EndpointId,
        addresses: impl IntoIterator<Item = IpAddr>,
    ) -> Result<(), DatapathError> {
        let (has_lost, result) = self.endpoints.set_addresses(id, addresses);
        if has_lost {
            // The flows from there are somebody else's by now, or nobody's.
            self.rejudge(&[id]);
        }
        result
    }

    /// These blocks, by interface, and no others may be the sources of what pods forward.
    pub fn set_source_prefixes(
        &mut self,
        wanted: BTreeSet<(u32, IpNet)>,
    ) -> Result<(), DatapathError> {
        let (lost, removed) = self.prefixes.keep_only(&wanted);
        // Flows from there are forged by now.
        let concerned = self.endpoints.on_interfaces(&lost);
        if !concerned.is_empty() {
            self.rejudge(&concerned);
        }
        if !wanted.is_empty() {
            self.control.set_flag(HAS_SOURCE_PREFIXES, true);
        }
        let added = self.prefixes.add(&wanted);
        if self.prefixes.len() == 0 {
            self.control.set_flag(HAS_SOURCE_PREFIXES, false);
        }
        added.and(removed)
    }

    /// Makes every flow of these endpoints be judged again at its next packet.
    fn rejudge(&mut self, ids: &[EndpointId]) {
        if IS_WEAKLY_ORDERED {
            // A program could have read an address's old class before the new epoch, and enter what
            // it made of it as judged in that. The kernel always has this call.
            let _ = grace_period();
        }
        let epoch = self.control.next_epoch();
        self.endpoints.set_epoch(ids, epoch);
    }

    /// Likewise of all endpoints.
    fn rejudge_all(&mut self) {
        let ids: Vec<EndpointId> = self.endpoints.ids().collect();
        self.rejudge(&ids);
    }

    /// These are the interfaces by which packets leave this network namespace.
    pub fn set_exits(&mut self, exits: &[Exit]) -> Vec<EndpointFailure> {
        let is_news = self.transit.set_exits(exits);
        if is_news && self.transit.is_wanted() { self.attach_transit() } else { Vec::new() }
    }

    /// After a plan: takes the transit programs off when nobody needs them any more.
    fn detach_unneeded_transit(&mut self) {
        let is_needed = self.endpoints.isolates_egress() && self.services.has_any();
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
        if missing == 0 && self.control.has_flag(TRANSIT_READY) {
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
        let was_ready = self.control.has_flag(TRANSIT_READY);
        self.control.set_flag(TRANSIT_READY, is_ready);
        if was_ready && !is_ready {
            // What passed on condition that it is judged again.
            self.rejudge_all();
        }
    }

    /// Says to the programs whether there are Services that they do not know.
    fn update_incomplete(&mut self) {
        let is_incomplete = self.services.is_incomplete();
        if is_incomplete != self.control.has_flag(SERVICES_INCOMPLETE) {
            self.control.set_flag(SERVICES_INCOMPLETE, is_incomplete);
            self.rejudge_all();
        }
    }

    /// Whether pods that no policy selects get a guard.
    pub fn want_guards(&mut self, is_wanted: bool) {
        self.endpoints.want_guards(is_wanted);
    }

    /// As [`Self::want_guards`] was told.
    pub fn wants_guards(&self) -> bool {
        self.endpoints.wants_guards()
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
        self.attachments.is_guard_pending(id, self.endpoints.guarding(id))
    }

    /// Whether some guard is still to be put on or taken off.
    pub fn has_pending_guards(&self) -> bool {
        self.endpoints.ids().any(|id| self.is_guard_pending(id))
    }

    /// Puts one guard on that is missing, or takes one off. Returns the endpoint, if there was any.
    pub fn update_next_guard(&mut self) -> Option<(EndpointId, Result<(), DatapathError>)> {
        let id = self.endpoints.ids().find(|id| self.is_guard_pending(*id))?;
        Some((id, self.update_guard(id)))
    }

    /// Brings an endpoint's guard up to date.
    fn update_guard(&mut self, id: EndpointId) -> Result<(), DatapathError> {
        self.attachments.update_guard(id, self.endpoints.guarding(id))
    }

    /// Checks that the programs still are where they were put, on some interfaces, and puts back what
    /// is missing. Returns the endpoints that had to be repaired, and failures.
    pub fn verify_attachments(
        &mut self,
        part: Part,
        is_thorough: bool,
    ) -> (Vec<EndpointId>, Vec<EndpointFailure>) {
        let wanted = |id| self.endpoints.guarding(id);
        let (mut repaired, mut failures) =
            self.attachments.verify_guards(wanted, part, is_thorough);
        let isolated = self.endpoints.isolated().filter(|(_, ifindex)| part.has(*ifindex));
        let (judged, not_judged) = self.attachments.verify(isolated.map(|(id, _)| id));
        repaired.extend(judged);
        failures.extend(not_judged);
        (repaired, failures)
    }
}
