//! The state file and the journal of numbers: what is written when. The status is always of the moment.
//! What policies say is written anew after each change as long as that costs little; where it has many
//! thousands of rules, less often, and never while there is something to put in force. Must never
//! keep verdicts waiting for explanations, nor let a number be used that is not written down.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use rustix::time::{ClockId, clock_gettime};

use crate::overview::{Overview, Remarks};
use crate::{files, journal, memory, view};
use netpol_api::state::{EndpointView, Isolation, State, VERSION};
use netpol_compile::ids::Ids;

/// From how long on it is costly to write everything, and how many times as long is waited then before
/// it is written again.
const COSTLY: Duration = Duration::from_millis(100);
const COSTLY_SHARE: u32 = 100;

/// How long somebody who never stops may keep the rest from being written, and how long the journal may
/// grow meanwhile.
const LONGEST: Duration = Duration::from_secs(10);
const LONGEST_JOURNAL: usize = 4 << 20;

/// What was written, and what it took.
pub(crate) struct StateFile {
    run_dir: PathBuf,
    bpffs: PathBuf,
    /// The boot and the network namespace in which interfaces have their numbers.
    place: String,
    /// Numbers written down by the last state file and the journal.
    written: journal::Written,
    /// The last state file has the endpoints of now.
    has_endpoints: bool,
    last: Option<Arc<State>>,
    /// What it took to write everything.
    cost: Duration,
    /// When everything was written last.
    whole_at: Option<Instant>,
    /// Until when nothing as costly is written.
    rest_until: Option<Instant>,
}

impl StateFile {
    /// These numbers were written down by an earlier agent.
    pub(crate) fn new(run_dir: &Path, bpffs: &Path, place: String, written: Ids) -> Self {
        Self {
            run_dir: run_dir.to_owned(),
            bpffs: bpffs.to_owned(),
            place,
            written: journal::Written::of(written),
            has_endpoints: false,
            last: None,
            cost: Duration::ZERO,
            whole_at: None,
            rest_until: None,
        }
    }

    /// The directory that it is in.
    pub(crate) fn run_dir(&self) -> &Path {
        &self.run_dir
    }

    /// The last state that was written by this agent.
    pub(crate) fn last(&self) -> Option<&Arc<State>> {
        self.last.as_ref()
    }

    // === When ===

    /// Whether the last state file has the endpoints of now.
    pub(crate) fn has_endpoints(&self) -> bool {
        self.has_endpoints
    }

    /// The endpoints are others now.
    pub(crate) fn outdate_endpoints(&mut self) {
        self.has_endpoints = false;
    }

    /// Whether writing everything takes long.
    fn is_costly(&self) -> bool {
        self.cost >= COSTLY && self.last.is_some()
    }

    /// Whether everything has not been written for long.
    fn is_overdue(&self) -> bool {
        self.whole_at.is_some_and(|at| at.elapsed() > LONGEST)
    }

    /// Whether writing everything has to wait. `is_behind`: something is to be put in force.
    pub(crate) fn must_wait(&self, is_behind: bool) -> bool {
        let is_resting = self.rest_until.is_some_and(|until| Instant::now() < until);
        let must_wait = (self.is_costly() && is_resting) || (is_behind && !self.is_overdue());
        must_wait && self.written.n_bytes < LONGEST_JOURNAL && self.last.is_some()
    }

    // === What ===

    /// The whole state of this moment.
    pub(crate) fn whole(&self, overview: &Overview<'_>, remarks: &Remarks, ids: Ids) -> State {
        let endpoints = overview.endpoint_views(true);
        let brief = self.brief(overview, remarks, ids).with_endpoints(endpoints);
        State { classes: Arc::new(view::classes(overview.compilation.compiler())), ..brief }
    }

    /// The same without what policies say.
    pub(crate) fn brief(&self, overview: &Overview<'_>, remarks: &Remarks, ids: Ids) -> State {
        let holders = overview.endpoints.holders();
        State {
            version: VERSION,
            node: overview.endpoints.node_name().to_owned(),
            pid: std::process::id(),
            bpffs: self.bpffs.clone(),
            status: overview.status(remarks),
            endpoints: overview.endpoint_views(false),
            isolations: Vec::new(),
            classes: Arc::default(),
            ids,
            remembered: memory::write(overview.endpoints.list(), holders.pods()),
            placed: holders.placed().map(ToString::to_string).collect(),
            arrived: holders.arrived().map(|(uid, at)| (uid.to_string(), at)).collect(),
            place: self.place.clone(),
        }
    }

    /// The same at little cost: with what policies say where that is cheap, else with what was written
    /// of that last.
    pub(crate) fn cheap(&self, overview: &Overview<'_>, remarks: &Remarks, ids: Ids) -> State {
        match &self.last {
            Some(last) if self.is_costly() => {
                explained_by(self.brief(overview, remarks, ids), last)
            }
            _ => self.whole(overview, remarks, ids),
        }
    }

    /// Numbers to write down before new ones of them are used, together with those still in the maps,
    /// so that the next agent does not take either for free should this one end half-way.
    pub(crate) fn with_written(&self, mut ids: Ids) -> Ids {
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
        ids
    }

    /// The numbers written down, for who writes them again.
    pub(crate) fn take_written(&mut self) -> Ids {
        std::mem::take(&mut self.written.ids)
    }

    // === Writing ===

    /// Writes down new numbers only: what people read of a change can wait until it is in force.
    pub(crate) fn append(&mut self, news: Ids) -> Result<()> {
        let result = journal::append(&self.run_dir, &news);
        if let Ok(n_bytes) = &result {
            self.written.n_bytes += n_bytes;
        }
        self.written.add(news);
        result.map(drop)
    }

    /// Writes a state, with all numbers.
    pub(crate) fn store(&mut self, mut state: State) -> Result<()> {
        let result = files::write_state(&self.run_dir, &state);
        self.written = journal::Written::of(std::mem::take(&mut state.ids));
        self.last = Some(Arc::new(state));
        self.has_endpoints = true;
        result
    }

    /// Everything was written, from this time of the processor on.
    pub(crate) fn record_whole(&mut self, begun: Duration) {
        self.cost = processor_time().saturating_sub(begun);
        self.whole_at = Some(Instant::now());
        self.rest_until = Some(Instant::now() + self.cost * COSTLY_SHARE);
    }
}

/// What this thread has used so far: how busy the machine is says nothing of what something costs.
pub(crate) fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

/// A state without what policies say, with what was written of that last.
fn explained_by(brief: State, last: &State) -> State {
    let mut endpoints = brief.endpoints.clone();
    // Replicas have the same before and after. What is joined is told apart by where it is, so both
    // have to stay until the end: those of now with `brief`.
    let mut joined = HashMap::new();
    for view in &mut endpoints {
        let is_its = |other: &&EndpointView| (other.id, &other.uid) == (view.id, &view.uid);
        if let Some(before) = last.endpoints.iter().find(is_its) {
            for (view, before) in
                [(&mut view.ingress, &before.ingress), (&mut view.egress, &before.egress)]
            {
                let (now, then) = (&view.isolation, &before.isolation);
                let join = || join(now, then);
                let both = (Arc::as_ptr(now), Arc::as_ptr(then));
                view.isolation = joined.entry(both).or_insert_with(join).clone();
            }
        }
    }
    State { classes: last.classes.clone(), ..brief.with_endpoints(endpoints) }
}

/// The policies of now, and what was said of them then.
fn join(now: &Arc<Isolation>, then: &Arc<Isolation>) -> Arc<Isolation> {
    if now.policies == then.policies {
        return then.clone();
    }
    Arc::new(Isolation {
        policies: now.policies.clone(),
        rules: then.rules.clone(),
        cluster_rules: then.cluster_rules.clone(),
        untold: then.untold,
    })
}
