//! Putting in force what was read, in parts: between two of them everything else that the agent has
//! to do is looked at. Must never say that something is in force of which a part is not.

use std::collections::BTreeMap;
use std::time::{Duration, Instant as StdInstant, SystemTime};

use super::Core;
use netpol_api::state::CompilingView;
use netpol_model::{Pod, Str};

/// How many steps the compiler is asked for at a time: some milliseconds' worth.
const SLICE: usize = 1_000;

/// Since when something of a namespace is not in force, in seconds since the epoch.
pub(super) type Since = BTreeMap<Option<Str>, i64>;

impl Core {
    /// Whether there is anything left to compile, or to tidy up.
    pub fn has_work(&self) -> bool {
        self.is_synced && (self.compiler.has_work() || !self.turns.is_empty())
    }

    /// Whether something was read that is not in force yet.
    pub(super) fn is_behind(&self) -> bool {
        self.compiler.is_behind() || !self.turns.is_empty()
    }

    /// Whether something is on its way that this pod depends on.
    pub(super) fn is_compiling(&self, pod: &Pod) -> bool {
        !self.compiler.is_pod_settled(pod) || self.turns.is_waiting(&pod.id.namespace)
    }

    /// Compiles and writes for about so long.
    pub fn work(&mut self, time: Duration) {
        if !self.has_work() {
            return self.note_progress();
        }
        let begun = StdInstant::now();
        while self.has_work() && begun.elapsed() < time {
            let Self { turns, compiler, .. } = self;
            let next = turns.next(|namespace| compiler.is_busy(namespace));
            compiler.take_in(next);
            let plan = compiler.slice(SLICE);
            self.carry_out(&plan);
        }
        self.note_policies();
        self.counters.record_apply(begun.elapsed());
        self.note_progress();
    }

    /// Notes what is in force now, and since when something is not.
    fn note_progress(&mut self) {
        if !self.is_synced {
            return;
        }
        if self.is_behind() {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            let now = now.as_secs().cast_signed();
            let under_way = self.under_way();
            self.compiling_since.retain(|namespace, _| under_way.contains_key(namespace));
            for name in under_way.into_keys() {
                self.compiling_since.entry(name).or_insert(now);
            }
            self.is_dirty = true;
            return self.settle_waits();
        }
        let is_news = !self.compiling_since.is_empty() || self.applied_revision != self.revision;
        self.compiling_since.clear();
        if is_news {
            self.applied_revision = self.revision;
            self.is_dirty = true;
        }
        self.settle_waits();
    }

    /// What is under way, by whose it is: steps done, of how many, and policies that wait.
    fn under_way(&self) -> BTreeMap<Option<Str>, [usize; 3]> {
        let mut all: BTreeMap<Option<Str>, [usize; 3]> = BTreeMap::new();
        for way in self.compiler.under_way() {
            all.insert(way.namespace, [way.done, way.all, 0]);
        }
        for (namespace, waiting) in self.turns.waiting() {
            all.entry(Some(namespace.clone())).or_default()[2] = waiting;
        }
        all
    }

    /// The same for people.
    pub(super) fn compiling(&self) -> Vec<CompilingView> {
        let view = |(namespace, [done, all, waiting]): (Option<Str>, [usize; 3])| CompilingView {
            since: self.compiling_since.get(&namespace).copied().unwrap_or_default(),
            namespace: namespace.map_or_else(String::new, |name| name.to_string()),
            waiting,
            done,
            all,
        };
        self.under_way().into_iter().map(view).collect()
    }
}
