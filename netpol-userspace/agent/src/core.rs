//! The agent's state: its parts, and what each event means for them. Synchronous; its only IO is through
//! the datapath and the state file. Must never do itself what is a part's to do.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant as StdInstant};

use tokio::time::Instant;

use super::admissions::Admissions;
use super::compilation::Compilation;
use super::endpoints::{Endpoints, Holders};
use super::enforcement::Enforcement;
use super::links::Links;
use super::numbers::Numbers;
use super::options::Options;
use super::overview::{Overview, Remarks};
use super::sandboxes::{Sandboxes, Standing};
use super::serve::{PluginRequest, QuestionRequest, WaitRequest};
use super::source_state::SourceState;
use super::speakers::Speakers;
use super::state_file::StateFile;
use super::waits::Waits;
use super::{answers, capacity, files};
use netpol_api::installation::Report;
use netpol_api::sandbox::{self, CniRequest};
use netpol_api::state::State;
use netpol_compile::ids::{ClassKey, Ids};
use netpol_compile::{Compiler, EndpointId};
use netpol_datapath::{Datapath, NumbersInMaps};
use netpol_endpoint::{Snapshot, Watcher};
use netpol_model::Change;
use netpol_source::{Event, Handle};

mod effects;
mod publish;

/// The agent's state.
pub(crate) struct Core {
    source: SourceState,
    compilation: Compilation,
    enforcement: Enforcement,
    endpoints: Endpoints,
    sandboxes: Sandboxes,
    speakers: Speakers,
    waits: Waits,
    admissions: Admissions,
    state_file: StateFile,
    remarks: Remarks,
    /// The state file is behind.
    is_dirty: bool,
}

impl Core {
    /// Starts from what an earlier agent left, if anything.
    pub(crate) fn new(
        options: &Options,
        source_kind: &'static str,
        datapath: Datapath,
        watcher: Watcher,
        source: Handle,
    ) -> Self {
        let earlier = files::read_state(&options.run_dir);
        let numbers = adopt_numbers(options, earlier.as_ref(), &datapath);
        let (revision, applied_revision) = earlier.as_ref().map_or((0, 0), |state| {
            (state.status.source.revision, state.status.datapath.applied_revision)
        });
        let snapshot = watcher.snapshots().borrow().clone();
        let place = files::place();
        let holders = Holders::adopt(earlier.as_ref(), &snapshot, &place, &datapath);
        let mut written = earlier.map(|state| state.ids).unwrap_or_default();
        reserve_unknown(&mut written, &datapath.numbers());
        let proxy = options.service_proxy.as_deref();
        let room = capacity::room(&datapath.limits(), options.max_namespace_memory);
        let mut compiler = Compiler::new().with_service_proxy(proxy).with_room(room);
        compiler.adopt(&written);
        let addresses = datapath.link_addresses().into_iter();
        let addresses = addresses.filter(|&(ifindex, _)| datapath.is_enforced(ifindex));
        let links = Links::adopt(&snapshot.interfaces, addresses);
        let node_name = options.node_name.clone();
        Self {
            source: SourceState::new(source, source_kind, revision, applied_revision),
            compilation: Compilation::new(compiler),
            enforcement: Enforcement::new(datapath),
            endpoints: Endpoints::new(node_name, watcher, snapshot, numbers, holders),
            sandboxes: Sandboxes::new(sandbox::read_all(&options.run_dir)),
            speakers: Speakers::new(options.source_check, options.trust, links),
            waits: Waits::default(),
            admissions: Admissions::default(),
            state_file: StateFile::new(&options.run_dir, &options.bpffs, place, written),
            remarks: Remarks::default(),
            is_dirty: true,
        }
    }

    fn overview(&self) -> Overview<'_> {
        let Self { source, compilation, enforcement, endpoints, sandboxes, speakers, .. } = self;
        Overview { source, compilation, enforcement, endpoints, sandboxes, speakers }
    }

    /// Something that `netpol status` should say for as long as the agent runs.
    pub(crate) fn add_note(&mut self, note: Option<String>) {
        self.remarks.notes.extend(note);
    }

    /// The same about the CNI plugin, until there is something else to say.
    pub(crate) fn set_installation(&mut self, report: Report) {
        self.remarks.installation = report;
        self.is_dirty = true;
    }

    // === Events of the source and of discovery ===

    /// Something from the source.
    pub(crate) fn handle_source(&mut self, event: Event) {
        self.is_dirty = true;
        match event {
            Event::Changes(changes) => self.handle_changes(changes),
            Event::Problem { object, message } => self.source.record_problem(object, message),
            Event::Resolved { object } => self.source.resolve_problem(&object),
            Event::Synced => self.handle_synced(),
            Event::Barrier(number) => self.handle_barrier(number),
        }
    }

    fn handle_changes(&mut self, mut changes: Vec<Change>) {
        self.source.count(changes.len());
        let mut is_local = false;
        for change in &mut changes {
            is_local |= self.endpoints.update_local(change);
            self.amend(change);
        }
        if !self.source.is_synced() {
            // What follows from one object without the others is nothing to be put in force before
            // all are known.
            return self.compilation.add_at_once(changes);
        }
        self.compilation.add(changes);
        if is_local {
            self.endpoints.rescan();
            self.rematch();
            if self.speakers.has_trust() {
                self.update_speakers();
            }
        }
    }

    /// Everything that existed has been read: only now may anything be removed.
    fn handle_synced(&mut self) {
        let begun = StdInstant::now();
        self.source.set_synced();
        self.sandboxes.find_interfaces(&self.endpoints.snapshot().interfaces);
        self.amend_outdated();
        self.update_node();
        self.update_guards();
        self.rematch();
        // The tables are reconciled as a whole below, and the plan is as long as they are.
        drop(self.compilation.compiler_mut().apply_all([]));
        self.speakers.update_links(&self.endpoints, &self.sandboxes, &mut self.enforcement);
        self.update_prefixes();
        self.reconcile();
        self.is_dirty |=
            self.enforcement.share_services(self.compilation.compiler(), &self.endpoints);
        self.endpoints.forget_adopted(self.compilation.compiler_mut(), &mut self.enforcement);
        let plan = self.compilation.compiler_mut().forget_adopted();
        self.apply(&plan);
        self.source.set_applied();
        self.enforcement.record_apply(begun.elapsed());
        tracing::info!(
            changes = self.source.revision(),
            endpoints = self.endpoints.list().len(),
            milliseconds = begun.elapsed().as_millis(),
            "synced: all policies read so far are in force"
        );
    }

    fn handle_barrier(&mut self, number: u64) {
        let is_awaited = self.waits.pass(number, &self.compilation);
        if is_awaited && self.endpoints.lacks_interfaces() {
            self.endpoints.rescan();
        }
        self.answer_waits();
    }

    /// The interfaces have changed.
    pub(crate) fn handle_snapshot(&mut self, snapshot: Arc<Snapshot>) {
        self.is_dirty = true;
        if self.endpoints.set_snapshot(snapshot) {
            self.enforcement.verify_soon();
        }
        self.endpoints.forget_routes();
        self.update_node();
        if self.sandboxes.find_interfaces(&self.endpoints.snapshot().interfaces) {
            self.update_sandboxes();
        }
        if self.source.is_synced() {
            self.rematch();
            self.update_speakers();
        }
    }

    // === Requests ===

    /// Someone wants to know when what was written before now is in force.
    pub(crate) fn handle_wait(&mut self, request: WaitRequest) {
        self.waits.add(self.source.barrier(), request);
    }

    /// Someone wants to know what only the agent knows.
    pub(crate) fn handle_question(&self, request: QuestionRequest) {
        let node = self.endpoints.node_name();
        let answer = answers::answer(self.compilation.compiler(), node, &request.question);
        // Who asked may have given up.
        let _ = request.reply.send(answer);
    }

    /// A request of the CNI plugin.
    pub(crate) fn handle_plugin(
        &mut self,
        PluginRequest { request, deadline, reply }: PluginRequest,
    ) {
        match request {
            CniRequest::Add { sandbox } => {
                let attachment = sandbox.attachment();
                tracing::debug!(pod = %sandbox.name(), container = sandbox.container, "told of");
                self.sandboxes.add(*sandbox);
                self.sandboxes.find_interfaces(&self.endpoints.snapshot().interfaces);
                if self.sandboxes.standing(&attachment) == Standing::NoInterface {
                    self.endpoints.rescan();
                }
                self.update_sandboxes();
                self.admissions.add(Some(attachment), deadline, reply);
            }
            CniRequest::Check { attachment } => {
                self.admissions.add(Some(attachment), deadline, reply);
            }
            CniRequest::Status => self.admissions.add(None, deadline, reply),
            CniRequest::Delete { attachment } => {
                self.end_sandboxes(&[attachment]);
                self.admissions.reply(reply, Ok(()));
            }
            CniRequest::Collect { network, attachments } => {
                let over = self.sandboxes.not_among(&network, &attachments);
                self.end_sandboxes(&over);
                self.admissions.reply(reply, Ok(()));
            }
        }
    }

    /// Readies the answers to the plugin about pods that are in force, or whose time is up.
    pub(crate) fn answer_admissions(&mut self) {
        let mut admissions = std::mem::take(&mut self.admissions);
        admissions.update(&self.overview());
        self.admissions = admissions;
    }

    /// Whether requests can be answered once the state is published.
    pub(crate) fn has_answers(&self) -> bool {
        self.waits.has_answers() || self.admissions.has_answers()
    }

    /// Answers them.
    pub(crate) fn send_answers(&mut self) {
        self.waits.send_answers();
        self.admissions.send_answers();
    }

    // === Work ===

    /// Whether there is anything left to compile, or to tidy up.
    pub(crate) fn has_work(&self) -> bool {
        self.source.is_synced() && self.compilation.has_work()
    }

    /// Compiles and writes for about so long.
    pub(crate) fn work(&mut self, time: Duration) {
        if !self.has_work() {
            return self.update_progress();
        }
        let begun = StdInstant::now();
        while self.has_work() && begun.elapsed() < time {
            let plan = self.compilation.next_plan();
            self.apply(&plan);
        }
        self.update_guards();
        self.enforcement.record_apply(begun.elapsed());
        self.update_progress();
    }

    /// Whether guards are still to be put on or taken off.
    pub(crate) fn has_pending_guards(&self) -> bool {
        self.enforcement.has_pending_guards()
    }

    /// Does that with one of them.
    pub(crate) fn update_next_guard(&mut self) {
        self.enforcement.update_next_guard(&self.endpoints);
        self.is_dirty = true;
        if !self.has_pending_guards() {
            self.answer_waits();
        }
    }

    /// Periodic: repairs, retries, cleans up.
    pub(crate) fn housekeeping(&mut self) {
        if !self.source.is_synced() {
            return;
        }
        if !self.enforcement.is_without_failures() {
            self.reconcile();
        }
        self.update_prefixes();
        let Self { compilation, enforcement, endpoints, .. } = self;
        self.is_dirty |= enforcement.verify_all(true, endpoints);
        self.is_dirty |= enforcement.make_room(compilation.compiler_mut(), endpoints);
        self.is_dirty |= enforcement.count_evictions(endpoints.ids());
        self.prune_sandboxes();
        self.endpoints.forget_routes();
        if self.endpoints.has_troubles() {
            self.rematch();
        }
    }

    /// Whether there is something to do at [`Self::next_deadline`].
    pub(crate) fn has_deadline(&self) -> bool {
        self.deadlines().next().is_some()
    }

    /// When to call [`Self::handle_deadline`].
    pub(crate) fn next_deadline(&self) -> Instant {
        self.deadlines().min().unwrap_or_else(Instant::now)
    }

    fn deadlines(&self) -> impl Iterator<Item = Instant> {
        let all = [
            self.waits.deadline(),
            self.admissions.deadline(),
            self.enforcement.verification_deadline(),
            self.endpoints.trouble_deadline(),
        ];
        all.into_iter().flatten()
    }

    /// A deadline has passed.
    pub(crate) fn handle_deadline(&mut self) {
        // What people read may be another thing from now on.
        self.is_dirty |= self.endpoints.update_troubles();
        self.answer_waits();
        self.is_dirty |= self.enforcement.verify_due(self.source.is_synced(), &self.endpoints);
    }
}

/// The numbers of an earlier agent's endpoints that the maps still know.
fn adopt_numbers(options: &Options, earlier: Option<&State>, datapath: &Datapath) -> Numbers {
    let in_maps = datapath.adopted();
    // Endpoint numbers have 16 bits, and the table's limit is below that.
    let limit = u16::try_from(options.limits.endpoints).unwrap_or(u16::MAX);
    let by_interface: HashMap<(u32, String), EndpointId> = earlier
        .into_iter()
        .flat_map(|state| &state.endpoints)
        .filter(|view| in_maps.get(&view.ifindex) == Some(&EndpointId(view.id)))
        .map(|view| ((view.ifindex, view.uid.clone()), EndpointId(view.id)))
        .collect();
    Numbers::adopt(limit, by_interface, in_maps.into_values())
}

/// Gives numbers that the maps hold, but of which nobody knows any more what they stand for, a
/// content that nothing equals: they must not come to mean something else while they are used.
fn reserve_unknown(ids: &mut Ids, in_maps: &NumbersInMaps) {
    let named: BTreeSet<u16> = ids.sets.values().copied().collect();
    for set in in_maps.sets.iter().filter(|set| !named.contains(set)) {
        ids.sets.insert(format!("unknown {set}").into(), *set);
    }
    let named: BTreeSet<u32> = ids.classes.values().copied().collect();
    for class in in_maps.classes.iter().filter(|class| !named.contains(class)) {
        ids.classes.insert(ClassKey::of_text(&format!("unknown {class}")), *class);
    }
}
