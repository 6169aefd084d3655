//! The agent's state machine: what is known, what is in force, and what follows from an event.
//! Synchronous; its only IO is through the datapath and the state file.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant as StdInstant};

use tokio::sync::watch;
use tokio::time::Instant;

use super::links::Links;
use super::numbers::{Key, Numbers};
use super::options::{Options, SourceCheck};
use super::sandboxes::Sandboxes;
use super::serve::{Published, QuestionRequest, WaitRequest};
use super::turns::Turns;
use super::{answers, capacity, files, journal, memory, view};
use netpol_api::counters::AgentCounters;
use netpol_api::installation::Report;
use netpol_api::sandbox;
use netpol_api::state::{
    DatapathStatus, ObjectError, SourceStatus, State, Status, VERSION, socket_path,
};
use netpol_compile::ids::{ClassKey, Ids};
use netpol_compile::{Compiler, EndpointId, Plan, Step};
use netpol_datapath::{Datapath, EndpointFailure, NumbersInMaps, Part};
use netpol_endpoint::{Endpoint, Finding, Snapshot, Watcher};
use netpol_model::{Change, ObjectName, Pod};
use netpol_source::{Event, Handle};

mod admission;
mod endpoints;
mod speaking;
mod told;
mod waits;
mod work;

/// How long a wait for "in force" lets discovery look for a pod's interface.
const INTERFACE_PATIENCE: Duration = Duration::from_secs(2);

/// How often attachments are compared with the kernel's where it does not tell of programs that
/// went, in how many parts, so that nothing else waits for all of them (interfaces are often numbered
/// by twos), and how long after it has told of some: the agent itself may take off more.
const VERIFICATION: Duration = Duration::from_secs(1);
const N_PARTS: u32 = 7;
const VERIFICATION_SOON: Duration = Duration::from_millis(100);

/// How long `netpol status` tells that flows made room for others.
const EVICTIONS_TOLD: Duration = Duration::from_secs(60);

/// The agent's state.
pub struct Core {
    node_name: String,
    run_dir: PathBuf,
    bpffs: PathBuf,
    compiler: Compiler,
    datapath: Datapath,
    watcher: Watcher,
    source: Handle,
    source_kind: &'static str,

    is_synced: bool,
    /// The maps equal the compiler's tables as far as they could be made to.
    is_reconciled: bool,
    revision: u64,
    applied_revision: u64,
    source_errors: BTreeMap<String, String>,
    /// Policies that were read and not taken in yet.
    turns: Turns,
    /// Since when something is being compiled, by whose it is.
    compiling_since: work::Since,

    snapshot: Arc<Snapshot>,
    local_pods: BTreeSet<ObjectName>,
    endpoints: Vec<Endpoint>,
    holders: endpoints::Holders,
    /// The boot and the network namespace in which interfaces have their numbers.
    place: String,
    numbers: Numbers,
    findings: Vec<Finding>,

    /// What could not be written for an endpoint, or (`None`) at all.
    failures: BTreeMap<Option<EndpointId>, String>,
    /// Numbers written down by the last state file and the journal.
    written: journal::Written,
    /// The last state file has the endpoints of now.
    are_endpoints_written: bool,
    /// What people were told last.
    told: told::Told,
    counters: AgentCounters,
    /// How many flows of the endpoints made room for others, and when that was last noticed.
    evictions: (u64, Option<StdInstant>),
    notes: Vec<String>,
    is_dirty: bool,

    pending: Vec<waits::Pending>,
    /// Waits whose barrier has passed.
    passed: Vec<waits::Passed>,
    /// When to compare attachments with the kernel's before the next housekeeping.
    verification: Option<Instant>,
    /// What is to be compared then: everything, after the kernel has told of something that went.
    verified: Part,
    must_verify_all: bool,
    answers: Vec<WaitRequest>,

    source_check: SourceCheck,
    speaking: speaking::Speaking,
    /// What the container runtime has told of.
    sandboxes: Sandboxes,
    admissions: admission::Admissions,
    installation: Report,
}

impl Core {
    /// Starts from what an earlier agent left, if anything.
    pub fn new(
        options: &Options,
        source_kind: &'static str,
        datapath: Datapath,
        watcher: Watcher,
        source: Handle,
    ) -> Self {
        let earlier = files::read_state(&options.run_dir);
        let in_maps = datapath.adopted();
        let adopted = earlier.as_ref().map(|state| adopted_numbers(state, &in_maps));
        // Endpoint numbers have 16 bits, and the table's limit is below that.
        let limit = u16::try_from(options.limits.endpoints).unwrap_or(u16::MAX);
        let numbers = Numbers::adopt(limit, adopted.unwrap_or_default(), in_maps.into_values());
        let (revision, applied_revision) = earlier.as_ref().map_or((0, 0), |state| {
            (state.status.source.revision, state.status.datapath.applied_revision)
        });
        let snapshot = watcher.snapshots().borrow().clone();
        let place = files::place();
        let holders = endpoints::Holders::adopt(earlier.as_ref(), &snapshot, &place, &datapath);
        let mut written_ids = earlier.map(|state| state.ids).unwrap_or_default();
        reserve_unknown(&mut written_ids, &datapath.numbers());
        let proxy = options.service_proxy.as_deref();
        let room = capacity::room(&datapath.limits(), options.max_namespace_memory);
        let mut compiler = Compiler::new().with_service_proxy(proxy).with_room(room);
        compiler.adopt(&written_ids);
        let known = datapath.link_addresses().into_iter();
        let known = known.filter(|&(ifindex, _)| datapath.is_enforced(ifindex));
        let links = Links::adopt(&snapshot.interfaces, known);
        Self {
            node_name: options.node_name.clone(),
            run_dir: options.run_dir.clone(),
            bpffs: options.bpffs.clone(),
            compiler,
            datapath,
            watcher,
            source,
            source_kind,
            is_synced: false,
            is_reconciled: false,
            revision,
            applied_revision,
            source_errors: BTreeMap::new(),
            turns: Turns::default(),
            compiling_since: work::Since::default(),
            snapshot,
            local_pods: BTreeSet::new(),
            endpoints: Vec::new(),
            holders,
            place,
            numbers,
            findings: Vec::new(),
            failures: BTreeMap::new(),
            written: journal::Written::of(written_ids),
            are_endpoints_written: false,
            told: told::Told::default(),
            counters: AgentCounters::default(),
            evictions: (0, None),
            notes: Vec::new(),
            is_dirty: true,
            pending: Vec::new(),
            passed: Vec::new(),
            verification: None,
            verified: Part::first_of(N_PARTS),
            must_verify_all: false,
            answers: Vec::new(),
            source_check: options.source_check,
            speaking: speaking::Speaking::new(links, options.trust),
            sandboxes: Sandboxes::new(sandbox::read_all(&options.run_dir)),
            admissions: admission::Admissions::default(),
            installation: Report::default(),
        }
    }

    /// Something that `netpol status` should say for as long as the agent runs.
    pub fn add_note(&mut self, note: Option<String>) {
        self.notes.extend(note);
    }

    /// The same about the CNI plugin, until there is something else to say.
    pub fn set_installation(&mut self, report: Report) {
        self.installation = report;
        self.is_dirty = true;
    }

    // === Events ===

    /// Something from the source.
    pub fn handle_source(&mut self, event: Event) {
        self.is_dirty = true;
        match event {
            Event::Changes(changes) => self.handle_changes(changes),
            Event::Problem { object, message } => {
                tracing::warn!(object, message, "cannot use an object");
                self.source_errors.insert(object, message);
            }
            Event::Resolved { object } => {
                self.source_errors.remove(&object);
            }
            Event::Synced => self.handle_synced(),
            Event::Barrier(number) => self.handle_barrier(number),
        }
    }

    fn handle_changes(&mut self, mut changes: Vec<Change>) {
        self.revision += changes.len() as u64;
        let mut is_local = false;
        for change in &mut changes {
            is_local |= self.note_local(change);
            self.amend(change);
        }
        if !self.is_synced {
            // What follows from one object without the others is nothing to be put in force before
            // all are known.
            return self.compiler.take_in(changes);
        }
        let changes = self.turns.add(changes);
        self.compiler.take_in(changes);
        if is_local {
            self.watcher.rescan();
            self.rematch();
            self.note_annotations();
        }
    }

    /// Keeps the list of pods that may be on this node. Returns whether this one may be.
    fn note_local(&mut self, change: &Change) -> bool {
        match change {
            Change::Pod(pod) => {
                let was_local = self.local_pods.contains(&pod.id);
                if self.may_be_local(pod) {
                    self.local_pods.insert(pod.id.clone());
                    return true;
                }
                self.local_pods.remove(&pod.id);
                was_local
            }
            Change::PodGone(id, _) => self.local_pods.remove(id),
            _ => false,
        }
    }

    fn may_be_local(&self, pod: &Pod) -> bool {
        pod.node.as_deref().is_none_or(|node| node == self.node_name)
    }

    /// Everything that existed has been read: only now may anything be removed.
    fn handle_synced(&mut self) {
        let begun = StdInstant::now();
        self.is_synced = true;
        self.sandboxes.find_interfaces(&self.snapshot.interfaces);
        let outdated = self.outdated_pods();
        self.compiler.take_in(outdated.into_iter().map(Change::Pod));
        self.note_node();
        self.note_policies();
        self.rematch();
        // The tables are reconciled as a whole below, and the plan is as long as they are.
        drop(self.compiler.apply_all([]));
        self.note_links();
        self.note_prefixes();
        self.reconcile();
        self.share_services();
        self.numbers.forget_adopted();
        self.promote_endpoints();
        let plan = self.compiler.forget_adopted();
        self.carry_out(&plan);
        self.applied_revision = self.revision;
        self.counters.record_apply(begun.elapsed());
        tracing::info!(
            changes = self.revision,
            endpoints = self.endpoints.len(),
            milliseconds = begun.elapsed().as_millis(),
            "synced: all policies read so far are in force"
        );
    }

    /// The interfaces have changed.
    pub fn handle_snapshot(&mut self, snapshot: Arc<Snapshot>) {
        let before = std::mem::replace(&mut self.snapshot, snapshot);
        self.is_dirty = true;
        if before.n_filter_losses != self.snapshot.n_filter_losses {
            let soon = Instant::now() + VERIFICATION_SOON;
            self.must_verify_all = true;
            self.verification = Some(self.verification.map_or(soon, |at| at.min(soon)));
        }
        self.holders.forget_routes();
        self.note_node();
        self.note_interfaces();
        if self.is_synced {
            self.rematch();
            self.note_speakers();
        }
    }

    /// Tells the datapath which interfaces packets leave by, and the compiler which addresses
    /// they do not leave for.
    fn note_node(&mut self) {
        for failure in self.datapath.set_exits(&self.snapshot.exits) {
            self.note_failure(failure);
        }
        if self.is_synced {
            self.compiler.take_in_node_addresses(self.snapshot.own_addresses.clone());
        }
    }

    /// Someone wants to know what only the agent knows.
    pub fn handle_question(&self, request: QuestionRequest) {
        let answer = answers::answer(&self.compiler, &self.node_name, &request.question);
        // Who asked may have given up.
        let _ = request.reply.send(answer);
    }

    // === Datapath ===

    /// Puts a plan in force.
    fn carry_out(&mut self, plan: &Plan) {
        if !self.is_reconciled || plan.is_empty() {
            // Before the first reconciliation the maps are an earlier agent's.
            return;
        }
        if plan.iter().any(|step| matches!(step, Step::AddRow(..))) {
            self.write_ahead();
        }
        for step in plan {
            if let Step::SetEndpoint(id, _) = step {
                self.failures.remove(&Some(*id));
            }
        }
        for failure in self.datapath.apply(plan) {
            self.note_failure(failure);
        }
        self.counters.map_writes += plan.len() as u64;
        self.is_dirty = true;
    }

    /// Makes the maps equal to the compiler's tables.
    fn reconcile(&mut self) {
        // All numbers, since until it succeeds what is published names only those written before.
        self.are_endpoints_written = false;
        self.write_ahead();
        self.failures.clear();
        match self.datapath.reconcile(&self.compiler.tables()) {
            Ok(failures) => {
                self.is_reconciled = true;
                for failure in failures {
                    self.note_failure(failure);
                }
            }
            Err(error) => self.note_failure(EndpointFailure { endpoint: None, error }),
        }
        self.is_dirty = true;
    }

    fn note_failure(&mut self, failure: EndpointFailure) {
        let EndpointFailure { endpoint, error } = failure;
        let name = endpoint.map_or_else(|| "datapath".to_owned(), |id| self.endpoint_name(id));
        tracing::error!(endpoint = name, error = %error, "cannot put in force");
        self.counters.failures += 1;
        self.failures.insert(endpoint, error.to_string());
    }

    fn endpoint_name(&self, id: EndpointId) -> String {
        self.numbered_endpoints()
            .find(|(other, _)| *other == id)
            .map_or_else(|| format!("endpoint {}", id.0), |(_, e)| e.pod.to_string())
    }

    fn numbered_endpoints(&self) -> impl Iterator<Item = (EndpointId, &Endpoint)> {
        self.endpoints.iter().filter_map(|endpoint| {
            let id = self.numbers.get(&Key::of(endpoint))?;
            Some((id, endpoint))
        })
    }

    /// Periodic: repairs, retries, cleans up.
    pub fn housekeeping(&mut self) {
        if !self.is_synced {
            return;
        }
        if !self.failures.is_empty() || !self.is_reconciled {
            self.reconcile();
        }
        self.note_prefixes();
        self.verify_attachments(Part::ALL, true);
        self.make_room();
        self.note_evictions();
        self.prune_sandboxes();
        self.holders.forget_routes();
        if self.holders.has_troubles() {
            self.rematch();
        }
    }

    /// Puts programs back that somebody took off: periodically, and when the kernel tells of filters
    /// that went. `is_thorough`: tries again what could not be attached.
    fn verify_attachments(&mut self, part: Part, is_thorough: bool) {
        // Of TCX programs the kernel does not tell.
        let is_unheard = self.is_synced && self.datapath.attach_mode() == "tcx";
        self.verification = is_unheard.then(|| Instant::now() + VERIFICATION / N_PARTS);
        self.must_verify_all &= part != Part::ALL;
        if !self.is_reconciled {
            return;
        }
        let (repaired, failures) = self.datapath.verify_attachments(part, is_thorough);
        self.is_dirty |= !repaired.is_empty() || !failures.is_empty();
        for id in repaired {
            let endpoint = self.endpoint_name(id);
            tracing::warn!(endpoint, "the programs had been taken off its interface; put back");
            self.counters.repaired_attachments += 1;
        }
        let (n_repaired, transit_failures) = self.datapath.verify_transit(part);
        if n_repaired > 0 {
            tracing::warn!(n_repaired, "transit programs had been taken off interfaces; put back");
            self.counters.repaired_attachments += n_repaired as u64;
        }
        for failure in failures.into_iter().chain(transit_failures) {
            self.note_failure(failure);
        }
    }

    /// Frees what nothing refers to any more, for what did not fit.
    fn make_room(&mut self) {
        let before = self.datapath.tables();
        match self.datapath.collect_garbage().and_then(|()| self.datapath.retry()) {
            // Before that, the maps may hold more under these numbers than the plans say.
            Ok(()) if self.is_reconciled => {
                self.compiler.free_numbers();
            }
            Ok(()) => {}
            Err(error) => self.note_failure(EndpointFailure { endpoint: None, error }),
        }
        self.share_services();
        self.is_dirty |= before != self.datapath.tables();
    }

    /// Where Services find no place, those of namespaces that want more than their share go without.
    fn share_services(&mut self) {
        if !self.datapath.is_short_of_services() {
            return;
        }
        let [n_keys, n_backends] = capacity::service_room(&self.datapath.limits());
        let beyond = self.compiler.services_beyond(n_keys, n_backends);
        if let Err(error) = self.datapath.leave_out_services(beyond) {
            self.note_failure(EndpointFailure { endpoint: None, error });
        }
        self.is_dirty = true;
    }

    /// How many addresses and ports of each Service go without.
    fn left_out_services(&self) -> BTreeMap<&ObjectName, usize> {
        let mut left_out = BTreeMap::new();
        for key in self.datapath.left_out_services() {
            if let Some(service) = self.compiler.service_name(key) {
                *left_out.entry(service).or_default() += 1;
            }
        }
        left_out
    }

    /// Notes whether flows made room for others since the last time.
    fn note_evictions(&mut self) {
        let ids = self.numbered_endpoints().map(|(id, _)| id);
        let n_evicted = self.datapath.evicted_flows(ids);
        let is_news = n_evicted > self.evictions.0;
        if is_news || self.evictions.1.is_some_and(|last| last.elapsed() > EVICTIONS_TOLD) {
            self.evictions.1 = is_news.then(StdInstant::now);
            self.is_dirty = true;
        }
        self.evictions.0 = n_evicted;
    }

    /// What each pod has of the flow tables, and how many flows made room for its.
    fn flow_uses(&self) -> Vec<capacity::PodFlows> {
        let ids: Vec<EndpointId> = self.numbered_endpoints().map(|(id, _)| id).collect();
        let of = |id| {
            let uses = self.datapath.flow_use(id)?;
            let caused = self.datapath.evicted_flows([id].into_iter());
            Some(capacity::PodFlows { name: self.endpoint_name(id), uses, caused })
        };
        ids.into_iter().filter_map(of).collect()
    }

    // === Telling ===

    /// Whether a wait's patience may be over at [`Self::next_deadline`].
    pub fn has_deadline(&self) -> bool {
        self.deadlines().next().is_some()
    }

    /// When to call [`Self::handle_deadline`].
    pub fn next_deadline(&self) -> Instant {
        self.deadlines().min().unwrap_or_else(Instant::now)
    }

    fn deadlines(&self) -> impl Iterator<Item = Instant> {
        let own = [self.patience(), self.verification];
        own.into_iter().chain([self.admissions.deadline(), self.holders.deadline]).flatten()
    }

    /// A deadline has passed.
    pub fn handle_deadline(&mut self) {
        // What people read may be another thing from now on.
        self.is_dirty |= self.holders.deadline.is_some_and(|deadline| deadline <= Instant::now());
        self.note_troubles();
        self.settle_waits();
        if self.verification.is_some_and(|at| at <= Instant::now()) {
            if self.has_pending_guards() {
                // What goes then is the agent's own doing, mostly.
                self.verification = Some(Instant::now() + VERIFICATION_SOON);
            } else if self.must_verify_all {
                self.verify_attachments(Part::ALL, false);
            } else {
                self.verified = self.verified.next();
                self.verify_attachments(self.verified, false);
            }
        }
    }

    /// Whether the state file is behind.
    pub fn is_dirty(&self) -> bool {
        self.is_dirty
    }

    /// Whether waits can be answered once the state is published.
    pub fn has_answers(&self) -> bool {
        !self.answers.is_empty() || self.admissions.has_answers()
    }

    /// Answers them.
    pub fn send_answers(&mut self) {
        for wait in self.answers.drain(..) {
            // Who asked may have given up.
            let _ = wait.reply.send(());
        }
        self.admissions.answer();
    }

    /// Writes down new numbers before they are used, together with those still in the maps, so
    /// that the next agent does not take either for free should this one end half-way.
    fn write_ahead(&mut self) {
        match self.are_endpoints_written {
            true => self.note_numbers(),
            false => self.store_endpoints(),
        }
    }

    fn store_endpoints(&mut self) {
        let mut ids = self.compiler.export_ids();
        // One that says another thing by now was edited: what it says now is on its way to the maps.
        let in_use: BTreeSet<u16> = ids.sets.values().copied().collect();
        let written = &self.written.ids;
        for (content, id) in written.sets.iter().filter(|(_, id)| !in_use.contains(id)) {
            ids.sets.entry(content.clone()).or_insert(*id);
        }
        ids.edits.extend(written.edits.iter().filter(|(id, _)| !in_use.contains(id)).cloned());
        for (content, id) in &written.classes {
            ids.classes.entry(*content).or_insert(*id);
        }
        let state = match self.told.is_costly() {
            true => self.told.brief(self.state_in_brief(ids)),
            false => self.state_with(ids),
        };
        self.store(state);
    }

    /// The same where only numbers are new: what people read of a change can wait until it is in
    /// force.
    fn note_numbers(&mut self) {
        let news = self.compiler.new_ids();
        match journal::append(&self.run_dir, &news) {
            Ok(n_bytes) => self.written.n_bytes += n_bytes,
            Err(error) => self.note_unwritten(&error),
        }
        self.written.add(news);
    }

    fn store(&mut self, mut state: State) {
        if let Err(error) = files::write_state(&self.run_dir, &state) {
            self.note_unwritten(&error);
        }
        self.written = journal::Written::of(std::mem::take(&mut state.ids));
        self.told.note(state);
        self.are_endpoints_written = true;
        // All of them are written now.
        let _ = self.compiler.new_ids();
    }

    fn note_unwritten(&mut self, error: &anyhow::Error) {
        let error = format!("{error:#}; `netpol` commands show an older state");
        tracing::error!(error, "cannot write the state file");
        self.failures.insert(None, error);
    }

    fn state_with(&self, ids: Ids) -> State {
        let endpoints = view::endpoints(&self.compiler, self.numbered_endpoints(), true);
        let brief = self.state_in_brief(ids).with_endpoints(endpoints);
        State { classes: Arc::new(view::classes(&self.compiler)), ..brief }
    }

    /// The same without what policies say.
    fn state_in_brief(&self, ids: Ids) -> State {
        State {
            version: VERSION,
            node: self.node_name.clone(),
            pid: std::process::id(),
            bpffs: self.bpffs.clone(),
            status: self.status(),
            endpoints: view::endpoints(&self.compiler, self.numbered_endpoints(), false),
            isolations: Vec::new(),
            classes: Arc::default(),
            ids,
            remembered: memory::write(&self.endpoints, self.holders.pods()),
            placed: self.holders.placed().map(ToString::to_string).collect(),
            arrived: self.holders.arrived().map(|(uid, at)| (uid.to_string(), at)).collect(),
            place: self.place.clone(),
        }
    }

    /// Whether everything is in force that is the agent's own to put in force, but for what takes its
    /// time: how much that is may be any tenant's doing.
    fn is_able_to_enforce(&self) -> bool {
        self.is_synced
            && self.is_reconciled
            && self.failures.is_empty()
            && capacity::is_enough(&self.datapath.tables(), &self.compiler.size())
    }

    /// Whether nothing is missing of what was read, but for what is being put in force.
    fn is_whole(&self) -> bool {
        self.is_able_to_enforce()
            && self.compiler.left_out().next().is_none()
            && self.left_out_services().is_empty()
            && !self.source_errors.keys().any(|object| is_unused(object))
            && !self.findings.iter().any(|finding| self.is_lost(finding))
    }

    fn status(&self) -> Status {
        let error = |(object, message): (&String, &String)| ObjectError {
            object: object.clone(),
            message: message.clone(),
        };
        let (mut errors, mut notes) = self.datapath_errors();
        let tables = self.datapath.tables();
        let size = self.compiler.size();
        let name = |id| self.endpoint_name(id);
        capacity::tell(&tables, name, &mut errors, &mut notes);
        capacity::tell_left_out(self.compiler.left_out(), &mut errors);
        let left_out_services = self.left_out_services();
        capacity::tell_left_out_services(&left_out_services, &mut errors);
        if self.evictions.1.is_some() {
            notes.push(capacity::evictions(self.evictions.0, &self.flow_uses()));
        }
        Status {
            ready: self.is_whole() && !self.is_behind(),
            source: SourceStatus {
                kind: self.source_kind.to_owned(),
                synced: self.is_synced,
                revision: self.revision,
                errors: self.source_errors.iter().map(error).collect(),
                watches: view::watches(&self.source.watches().read()),
            },
            datapath: DatapathStatus {
                endpoints: self.endpoints.len(),
                guarded: self.datapath.guarded(),
                applied_revision: self.applied_revision,
                attach: self.datapath.attach_mode().to_owned(),
                errors,
                left_out_rules: capacity::left_out_rules(self.compiler.left_out()),
                tables: capacity::views(&tables, &self.datapath.flow_tables(), &size),
                notes,
                compiling: self.compiling(),
            },
        }
    }

    fn datapath_errors(&self) -> (Vec<ObjectError>, Vec<String>) {
        let mut errors: Vec<ObjectError> = self
            .failures
            .iter()
            .map(|(endpoint, message)| ObjectError {
                object: endpoint.map_or_else(|| "datapath".to_owned(), |id| self.endpoint_name(id)),
                message: message.clone(),
            })
            .collect();
        let mut notes = self.notes.clone();
        notes.extend(self.datapath.lacks().iter().cloned());
        notes.extend(self.snapshot.problems.iter().cloned());
        notes.extend(self.unconfirmed());
        notes.extend(self.undeclared());
        notes.extend(self.installation.note.clone());
        errors.extend(self.installation.problem.iter().map(|problem| ObjectError {
            object: "CNI plugin".to_owned(),
            message: problem.clone(),
        }));
        self.tell_findings(&mut errors, &mut notes);
        errors.extend(self.compiler.problems().into_iter().map(|problem| ObjectError {
            object: "policies".to_owned(),
            message: problem.to_string(),
        }));
        (errors, notes)
    }

    /// Leaves a state file that says what stays in force, and no socket.
    pub fn stop(&mut self, published: &watch::Sender<Arc<Published>>) {
        self.write_whole_state(published);
        let _ = std::fs::remove_file(socket_path(&self.run_dir));
    }
}

/// Whether a problem of the source's is that something of it is not used; not that it cannot be
/// watched, while what is known of it stays in force.
fn is_unused(object: &str) -> bool {
    !object.starts_with("watch ")
}

/// Gives numbers that the maps hold, but of which nobody knows any more what they stand for, a
/// content that nothing equals: they must not come to mean something else while they are used.
fn reserve_unknown(ids: &mut Ids, in_maps: &NumbersInMaps) {
    let known: BTreeSet<u16> = ids.sets.values().copied().collect();
    for set in in_maps.sets.iter().filter(|set| !known.contains(set)) {
        ids.sets.insert(format!("unknown {set}").into(), *set);
    }
    let known: BTreeSet<u32> = ids.classes.values().copied().collect();
    for class in in_maps.classes.iter().filter(|class| !known.contains(class)) {
        ids.classes.insert(ClassKey::of_text(&format!("unknown {class}")), *class);
    }
}

/// Endpoint ids of an earlier agent that the maps still know, by (ifindex, uid).
fn adopted_numbers(
    earlier: &State,
    in_maps: &HashMap<u32, EndpointId>,
) -> HashMap<(u32, String), EndpointId> {
    earlier
        .endpoints
        .iter()
        .filter(|view| in_maps.get(&view.ifindex) == Some(&EndpointId(view.id)))
        .map(|view| ((view.ifindex, view.uid.clone()), EndpointId(view.id)))
        .collect()
}
