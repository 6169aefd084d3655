//! What was read and is on its way into force: policies that wait for their turn, and the compiler,
//! which is asked for a part at a time. Must never say that something is in force of which a part is
//! not.

use std::collections::BTreeMap;

use crate::turns::{self, Turns};
use crate::unix_time;
use netpol_api::state::CompilingView;
use netpol_compile::{self as compile, Compiler, Plan};
use netpol_model::{Change, Cluster, Pod, Str};

/// How many steps the compiler is asked for at a time: some milliseconds' worth.
const SLICE: usize = 1_000;

/// The compiler, and what waits for it.
pub(crate) struct Compilation {
    compiler: Compiler,
    /// Policies that were read and not given to the compiler yet.
    turns: Turns,
    /// Since when something of a namespace is not in force, in seconds since the epoch.
    since: BTreeMap<Option<Str>, i64>,
}

impl Compilation {
    /// Nothing has been read yet.
    pub(crate) fn new(compiler: Compiler) -> Self {
        Self { compiler, turns: Turns::default(), since: BTreeMap::new() }
    }

    /// The compiler, to read.
    pub(crate) fn compiler(&self) -> &Compiler {
        &self.compiler
    }

    /// The compiler, for what needs no turn.
    pub(crate) fn compiler_mut(&mut self) -> &mut Compiler {
        &mut self.compiler
    }

    /// All that the compiler knows of the cluster.
    pub(crate) fn cluster(&self) -> &Cluster {
        self.compiler.cluster()
    }

    // === Changes and plans ===

    /// Adds changes: policies wait for their turn.
    pub(crate) fn add(&mut self, changes: Vec<Change>) {
        let changes = self.turns.add(changes);
        self.compiler.enqueue(changes);
    }

    /// Adds changes that wait for nothing.
    pub(crate) fn add_at_once(&mut self, changes: impl IntoIterator<Item = Change>) {
        self.compiler.enqueue(changes);
    }

    /// Whether there is anything left to compile, or to tidy up.
    pub(crate) fn has_work(&self) -> bool {
        self.compiler.has_work() || !self.turns.is_empty()
    }

    /// Compiles a part. Returns what is to be put in force.
    pub(crate) fn next_plan(&mut self) -> Plan {
        let Self { turns, compiler, .. } = self;
        let next = turns.next(|namespace| compiler.is_busy(namespace));
        compiler.enqueue(next);
        compiler.slice(SLICE)
    }

    // === How far it is ===

    /// Whether something was read that is not in force yet.
    pub(crate) fn is_behind(&self) -> bool {
        self.compiler.is_behind() || !self.turns.is_empty()
    }

    /// Whether something is on its way that this pod depends on.
    pub(crate) fn is_compiling(&self, pod: &Pod) -> bool {
        !self.compiler.is_pod_settled(pod) || self.turns.is_waiting(&pod.id.namespace)
    }

    /// What waits for its turn now.
    pub(crate) fn mark_turns(&self) -> turns::Mark {
        self.turns.mark()
    }

    /// Whether the compiler has all that waited then.
    pub(crate) fn has_turned(&self, mark: &turns::Mark) -> bool {
        self.turns.has_passed(mark)
    }

    /// What the compiler has to do now.
    pub(crate) fn mark_work(&mut self) -> compile::Mark {
        self.compiler.mark()
    }

    /// Whether it has done all that it had to do then.
    pub(crate) fn has_done(&self, mark: &compile::Mark) -> bool {
        self.compiler.has_done(mark)
    }

    /// Records since when something is under way. Returns whether there is something else to say of
    /// that than before.
    pub(crate) fn update_since(&mut self) -> bool {
        if !self.is_behind() {
            let was_behind = !self.since.is_empty();
            self.since.clear();
            return was_behind;
        }
        let now = unix_time();
        let under_way = self.under_way();
        self.since.retain(|namespace, _| under_way.contains_key(namespace));
        for name in under_way.into_keys() {
            self.since.entry(name).or_insert(now);
        }
        true
    }

    /// What is under way, by whose it is: steps done, of how many, and policies that wait.
    fn under_way(&self) -> BTreeMap<Option<Str>, [usize; 3]> {
        let mut all: BTreeMap<Option<Str>, [usize; 3]> = BTreeMap::new();
        for work in self.compiler.under_way() {
            all.insert(work.namespace, [work.done, work.all, 0]);
        }
        for (namespace, waiting) in self.turns.waiting() {
            all.entry(Some(namespace.clone())).or_default()[2] = waiting;
        }
        all
    }

    /// The same for people.
    pub(crate) fn views(&self) -> Vec<CompilingView> {
        let view = |(namespace, [done, all, waiting]): (Option<Str>, [usize; 3])| CompilingView {
            since: self.since.get(&namespace).copied().unwrap_or_default(),
            namespace: namespace.map_or_else(String::new, |name| name.to_string()),
            waiting,
            done,
            all,
        };
        self.under_way().into_iter().map(view).collect()
    }
}
