//! What people are told, in the state file and by the servers. The status is always of the moment. What
//! policies say is written anew after each change as long as that costs little; where it has many
//! thousands of rules, less often, and never while there is something to put in force. Must never
//! keep verdicts waiting for explanations.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use tokio::sync::watch;

use super::Core;
use crate::serve::Published;
use netpol_api::state::{EndpointView, Isolation, State};
use netpol_compile::ids::Ids;

/// From how long on it is costly to tell everything, and how many times as long is waited then before
/// it is told again.
const COSTLY: Duration = Duration::from_millis(100);
const COSTLY_SHARE: u32 = 100;

/// How long somebody who never stops may keep the rest from being told, and how long the journal may
/// grow meanwhile.
const LONGEST: Duration = Duration::from_secs(10);
const LONGEST_JOURNAL: usize = 4 << 20;

/// What was told last.
#[derive(Debug, Default)]
pub(super) struct Told {
    state: Option<Arc<State>>,
    cost: Duration,
    /// When everything was told last.
    at: Option<Instant>,
    /// Until when nothing as costly is told.
    rest: Option<Instant>,
}

impl Told {
    /// Whether to tell everything takes long.
    pub fn is_costly(&self) -> bool {
        self.cost >= COSTLY && self.state.is_some()
    }

    /// Whether everything has not been told for long.
    fn is_overdue(&self) -> bool {
        self.at.is_some_and(|at| at.elapsed() > LONGEST)
    }

    /// This was told.
    pub fn note(&mut self, state: State) {
        self.state = Some(Arc::new(state));
    }

    /// A state without what policies say, with what was told of that last.
    pub fn brief(&self, brief: State) -> State {
        let Some(last) = &self.state else { return brief };
        let mut endpoints = brief.endpoints.clone();
        // Replicas have the same before and after. What is joined is told apart by where it is, so both
        // have to stay until the end: those of now with `brief`.
        let mut joined = HashMap::new();
        for view in &mut endpoints {
            let is_its = |other: &&EndpointView| (other.id, &other.uid) == (view.id, &view.uid);
            if let Some(known) = last.endpoints.iter().find(is_its) {
                for (view, known) in
                    [(&mut view.ingress, &known.ingress), (&mut view.egress, &known.egress)]
                {
                    let (now, then) = (&view.isolation, &known.isolation);
                    let join = || join(now, then);
                    let both = (Arc::as_ptr(now), Arc::as_ptr(then));
                    view.isolation = joined.entry(both).or_insert_with(join).clone();
                }
            }
        }
        State { classes: last.classes.clone(), ..brief.with_endpoints(endpoints) }
    }
}

/// What this thread has used so far: how busy the machine is says nothing of what something costs.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

/// The policies of now, and what was said of them then.
fn join(now: &Arc<Isolation>, then: &Arc<Isolation>) -> Arc<Isolation> {
    if now.policies == then.policies {
        return then.clone();
    }
    Arc::new(Isolation {
        policies: now.policies.clone(),
        rules: then.rules.clone(),
        untold: then.untold,
    })
}

impl Core {
    /// Publishes the state to the file and the servers: all of it, if that keeps nothing waiting.
    pub fn write_state(&mut self, published: &watch::Sender<Arc<Published>>) {
        let is_resting = self.told.rest.is_some_and(|until| Instant::now() < until);
        let is_costly = self.told.is_costly() && is_resting;
        let must_wait = is_costly || (self.is_behind() && !self.told.is_overdue());
        let is_short = self.written.n_bytes < LONGEST_JOURNAL;
        if must_wait && is_short && self.told.state.is_some() {
            // The rest of it is still to be told; but not who is there.
            if !self.are_endpoints_written {
                self.store_endpoints();
            }
            published.send_replace(Arc::new(self.published()));
            return;
        }
        self.write_whole_state(published);
    }

    /// The same before waits are answered: who has waited for something to be in force looks at what is
    /// in force next.
    pub fn write_state_for_answers(&mut self, published: &watch::Sender<Arc<Published>>) {
        if self.answers.is_empty() || self.is_behind() || !self.is_dirty {
            return self.write_state(published);
        }
        self.write_whole_state(published);
    }

    pub(super) fn write_whole_state(&mut self, published: &watch::Sender<Arc<Published>>) {
        let begun = processor_time();
        let mut ids = self.compiler.export_ids();
        if !self.is_reconciled {
            // The maps are still an earlier agent's, and so are the numbers in them.
            ids = std::mem::take(&mut self.written.ids);
        }
        let state = self.state_with(ids);
        self.store(state);
        self.is_dirty = false;
        self.told.cost = processor_time().saturating_sub(begun);
        self.told.at = Some(Instant::now());
        self.told.rest = Some(Instant::now() + self.told.cost * COSTLY_SHARE);
        published.send_replace(Arc::new(self.published()));
    }

    /// The status of this moment, and what else was told last.
    pub fn published(&self) -> Published {
        let state = self.told.state.clone();
        let nothing = || Arc::new(self.state_in_brief(Ids::default()));
        let status = self.status();
        Published {
            is_whole: status.ready || self.is_whole(),
            status,
            state: state.unwrap_or_else(nothing),
            is_able: self.is_able_to_enforce(),
            counters: self.counters.clone(),
            watches: self.source.watches().clone(),
        }
    }
}
