//! From the model to the contents of the BPF maps. Pure and incremental: no tokio, kube or aya,
//! no IO, no clock.
//!
//! [`Compiler`] owns the cluster. Every change of it, and every endpoint that comes or goes, gives
//! a [`Plan`]: the steps that take the datapath from the old verdicts to the new ones. Only the
//! policies that select local endpoints are compiled; all others cost their memory.

#![forbid(unsafe_code)]

mod addresses;
mod admission;
mod anchors;
mod atoms;
mod changes;
mod classes;
mod describe;
mod edits;
mod endpoints;
mod engine;
mod explain;
pub mod ids;
mod keys;
mod lookup;
pub mod plan;
mod planning;
mod ports;
mod rows;
mod service_shares;
mod services;
mod sets;
pub mod shares;
mod small_set;
mod space;
mod tiers;
mod wanted;
mod work;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

pub use admission::LeftOut;
pub use describe::{ClusterRuleView, Problem, RuleView, Size};
pub use explain::{DecidingRule, Opening, ServiceFront};
pub use ids::Ids;
pub use plan::{
    Backend, ClassId, EndpointId, EndpointSets, Plan, PortSet, Row, ServiceKey, SetId, Step,
    Tables, Verdict,
};
use rustc_hash::FxHashMap;

use self::edits::{EarlierPolicies, Mentions};
use self::endpoints::CompiledEndpoint;
use self::engine::{Engine, Touched};
pub use self::shares::{Demand, Room, Scarce};
use self::tiers::Applying;
use self::wanted::Why;
use self::work::{Job, JobOwner};
pub use self::work::{Mark, UnderWay};
use netpol_model::{Change, Cluster, Direction, Pod, Policy, Str, Strings};

/// From how many rows on a set is edited in place. A new set is in force in one step for all
/// addresses, and for few rows costs no more.
const EDITED_FROM: usize = 64;

/// How many peers of policies are looked at for one namespace without leaving off: what is more is
/// gathered a part at a time.
const GATHERED_FROM: usize = 4_000;

/// The compiler: the cluster, the local endpoints and everything derived from them.
#[derive(Debug)]
pub struct Compiler {
    cluster: Cluster,
    endpoints: BTreeMap<EndpointId, CompiledEndpoint>,
    endpoints_in: FxHashMap<Str, BTreeSet<EndpointId>>,
    engine: Engine,
    strings: Strings,
    /// Endpoints with the closed set because set numbers ran out.
    unnumbered: BTreeSet<EndpointId>,
    /// Sets that are kept only because a former run used them.
    adopted: Vec<SetId>,
    /// Set numbers of a former run whose content could not be read.
    reserved_sets: Vec<SetId>,
    /// How much of what policies say is taken into account.
    shares: admission::Shares,
    /// What [`Compiler::enqueue`] touched.
    taken_in: Dirty,
    /// What is under way.
    jobs: BTreeMap<JobOwner, Job>,
    last_job: u32,
    /// JobOwner turn it was last, of those who have the turns that are not everybody's.
    last_turn: JobOwner,
    /// It was everybody's last.
    was_everybodys: bool,
    /// The last of these was nobody's, because much was left behind.
    was_nobodys: bool,
    /// How often everybody's work has been begun, and how much of that is done.
    everybodys: (u64, u64),
    /// How much is done of a job at a time, where plans are given for all of it.
    slice_size: usize,
    /// Sets that pods of several namespaces may have.
    cluster_sets: wanted::ClusterSets,
    /// Which peers the policies of namespaces with endpoints mention, once one was edited.
    mentions: FxHashMap<Str, Mentions>,
    /// From how many rows on a set is edited in place.
    edited_from: usize,
    /// From how many peers on what policies say is gathered a part at a time.
    gathered_from: usize,
}

/// What changes touched.
#[derive(Debug, Default)]
struct Dirty {
    touched: Touched,
    /// By the namespace whose policies decide.
    of: BTreeMap<Str, Dirt>,
    /// How many marks there are: see [`Compiler::mark`].
    n_marks: u64,
}

/// What they touched of one namespace.
#[derive(Debug, Default)]
struct Dirt {
    /// How many marks there were when it began.
    since: u64,
    endpoints: BTreeMap<EndpointId, Why>,
    /// Policies that were edited, as they were when its endpoints got their sets.
    policies: EarlierPolicies,
}

impl Dirty {
    fn of(&mut self, namespace: &Str) -> &mut Dirt {
        let since = self.n_marks;
        let new = || Dirt { since, ..Dirt::default() };
        self.of.entry(namespace.clone()).or_insert_with(new)
    }

    fn look_at(&mut self, home: &Str, id: EndpointId, why: Why) {
        let known = self.of(home).endpoints.entry(id).or_insert(why);
        *known = why.max(*known);
    }

    /// The endpoint is gone, or another one.
    fn forget(&mut self, id: EndpointId) {
        for dirt in self.of.values_mut() {
            dirt.endpoints.remove(&id);
        }
    }
}

impl Default for Compiler {
    fn default() -> Self {
        Self::new()
    }
}

impl Compiler {
    /// An empty cluster without endpoints.
    pub fn new() -> Self {
        Self::with_limits(u16::MAX, (1 << 24) - 1)
    }

    /// Likewise, with smaller number spaces: the last set and class number that may be given.
    pub fn with_limits(last_set: u16, last_class: u32) -> Self {
        Self {
            cluster: Cluster::default(),
            endpoints: BTreeMap::new(),
            endpoints_in: FxHashMap::default(),
            engine: Engine::new(last_set, last_class),
            strings: Strings::default(),
            unnumbered: BTreeSet::new(),
            adopted: Vec::new(),
            reserved_sets: Vec::new(),
            shares: admission::Shares::default(),
            taken_in: Dirty::default(),
            jobs: BTreeMap::new(),
            last_job: 0,
            last_turn: JobOwner::Nobody,
            was_everybodys: false,
            was_nobodys: false,
            everybodys: (0, 0),
            slice_size: usize::MAX,
            cluster_sets: wanted::ClusterSets::default(),
            mentions: FxHashMap::default(),
            edited_from: EDITED_FROM,
            gathered_from: GATHERED_FROM,
        }
    }

    /// Sets of this many rows and more are edited in place, if that is less work than a new one;
    /// with 0 whenever it is possible, for tests.
    #[must_use]
    pub fn with_sets_edited_from(mut self, n_rows: usize) -> Self {
        self.edited_from = n_rows;
        self
    }

    /// What policies with more peers than this say is gathered a part at a time, for tests.
    #[must_use]
    pub fn with_sets_gathered_from(mut self, n_peers: usize) -> Self {
        self.gathered_from = n_peers;
        self
    }

    /// Plans are made of slices of this size, for tests: see [`Compiler::slice`].
    #[must_use]
    pub fn with_slices_of(mut self, n_steps: usize) -> Self {
        self.slice_size = n_steps;
        self
    }

    /// Packets are translated on this node by the proxy of this name, and only to Services that
    /// say so; `None`: by kube-proxy or one that handles what that handles. To be said first.
    #[must_use]
    pub fn with_service_proxy(mut self, name: Option<&str>) -> Self {
        self.engine.services.set_proxy(name.map(Str::from));
        self
    }

    /// Stores changes whose consequences can wait: they are in the plan of the next call that
    /// gives one, or in slices ([`Compiler::slice`]).
    pub fn enqueue(&mut self, changes: impl IntoIterator<Item = Change>) {
        let mut dirty = std::mem::take(&mut self.taken_in);
        for change in changes {
            self.note(change, &mut dirty);
        }
        self.taken_in = dirty;
    }

    /// Takes one change into account. After each step of the plan every verdict is the one of
    /// before or the one of after.
    pub fn apply(&mut self, change: Change) -> Plan {
        self.apply_all([change])
    }

    /// Takes many changes into account at once, for the initial sync and for bursts. Between the
    /// steps a verdict may also be that of the old policies on the new pods, as if the changes of
    /// pods had come first.
    pub fn apply_all(&mut self, changes: impl IntoIterator<Item = Change>) -> Plan {
        self.enqueue(changes);
        self.settle()
    }

    /// From now on the node itself has these addresses. What a Service leads to there is received
    /// by the node without leaving it by an interface.
    pub fn set_node_addresses(&mut self, addresses: BTreeSet<IpAddr>) -> Plan {
        self.enqueue_node_addresses(addresses);
        self.settle()
    }

    /// Likewise, as with [`Compiler::enqueue`].
    pub fn enqueue_node_addresses(&mut self, addresses: BTreeSet<IpAddr>) {
        self.engine.services.set_node_addresses(addresses);
    }

    /// Everything the datapath should hold now.
    pub fn tables(&self) -> Tables {
        let rows = self.engine.sets.iter().flat_map(|(id, set)| {
            set.rows.iter().map(move |(&class, row)| ((id, class), row.clone()))
        });
        Tables {
            classes: self.engine.addresses.classes().collect(),
            rows: rows.collect(),
            endpoints: self.endpoints.iter().map(|(&id, endpoint)| (id, endpoint.sets)).collect(),
            services: self.engine.services.stored().clone(),
        }
    }

    /// The sets of an endpoint.
    pub fn endpoint_sets(&self, id: EndpointId) -> Option<EndpointSets> {
        self.endpoints.get(&id).map(|endpoint| endpoint.sets)
    }

    /// Every class that some address or block has.
    pub fn classes_in_use(&self) -> impl Iterator<Item = ClassId> {
        self.engine.classes.iter().map(|(id, _)| id)
    }

    /// Everything that is known.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Whether any policy isolates this pod in any direction, or has rules for it.
    pub fn is_isolated(&self, pod: &Pod) -> bool {
        Direction::BOTH.into_iter().any(|d| !Applying::of(&self.cluster, pod, d).is_empty())
    }

    /// Whether anything is kept from an endpoint.
    pub fn is_restricted(&self, id: EndpointId) -> bool {
        self.endpoint_sets(id).is_some_and(|sets| sets != planning::NOT_ISOLATED)
    }

    /// The numbers given since this was last asked that are in use, likewise, and what sets in use
    /// say another thing of: to name all of them takes longer than most changes do.
    pub fn new_ids(&mut self) -> Ids {
        let Engine { atoms, sets, classes, .. } = &mut self.engine;
        let new_sets = std::mem::take(&mut sets.unnoted).into_iter();
        let new_sets: BTreeMap<Arc<str>, u16> =
            new_sets.filter_map(|id| Some((ids::set_key(sets.get(id)?, atoms), id.0))).collect();
        let edits = std::mem::take(&mut sets.unnoted_edits);
        let new_classes = std::mem::take(&mut classes.unnoted).into_iter();
        let new_classes = new_classes.filter_map(|id| Some((id.0, classes.get(id)?)));
        Ids {
            next_set: sets.ids.next(),
            next_own_set: sets.next_own(),
            next_class: classes.ids.next(),
            sets: new_sets,
            edits,
            classes: new_classes
                .map(|(id, class)| (ids::class_key(&class.atoms, atoms), id))
                .collect(),
        }
    }

    /// The numbers in use, for [`Compiler::adopt`] of the next run.
    pub fn export_ids(&self) -> Ids {
        let Engine { atoms, sets, classes, .. } = &self.engine;
        let mut ids = Ids {
            next_set: sets.ids.next(),
            next_own_set: sets.next_own(),
            next_class: classes.ids.next(),
            classes: classes.adopted.iter().map(|(key, id)| (*key, *id)).collect(),
            ..Ids::default()
        };
        for (id, set) in sets.iter() {
            ids.sets.insert(ids::set_key(set, atoms), id.0);
        }
        for (id, class) in classes.iter() {
            ids.classes.insert(ids::class_key(&class.atoms, atoms), id.0);
        }
        ids
    }

    /// Takes over the numbers of a former run, before the first change. Until
    /// [`Compiler::forget_adopted`] its sets stay alive and keep their rows for all classes, so
    /// that endpoints can be left on them while addresses move to their new classes; and no
    /// number of its is given to other content.
    pub fn adopt(&mut self, ids: &Ids) {
        let Engine { atoms, sets, classes, .. } = &mut self.engine;
        sets.ids.start_at(ids.next_set);
        sets.own_ids.start_at(ids.next_own_set);
        classes.ids.start_at(ids.next_class);
        let mut edits: FxHashMap<u16, Vec<&str>> = FxHashMap::default();
        for (id, edit) in &ids.edits {
            edits.entry(*id).or_default().push(edit);
        }
        for (key, &id) in &ids.sets {
            let edits = edits.get(&id).into_iter().flatten().copied();
            let id = SetId(id);
            let read = ids::read_set(key, edits, atoms);
            if read.as_ref().is_some_and(|(content, _)| sets.contains(content))
                || !sets.take_number(id)
            {
                continue;
            }
            // An earlier release may have given any number to any set.
            let is_of_its_kind =
                |(content, _): &(Vec<_>, _)| sets::judges_own(content) == id.judges_own();
            match read.filter(is_of_its_kind) {
                Some((content, renewals)) => {
                    sets.insert(id, &content, Some(&renewals), atoms);
                    self.adopted.push(id);
                }
                None => self.reserved_sets.push(id),
            }
        }
        for (key, &id) in &ids.classes {
            if classes.ids.take(id) {
                classes.adopted.insert(*key, id);
            }
        }
    }

    /// The datapath holds nothing of the former run any more that this one does not want.
    pub fn forget_adopted(&mut self) -> Plan {
        let Engine { sets, classes, .. } = &mut self.engine;
        for id in self.reserved_sets.drain(..) {
            sets.release_number(id);
        }
        for (_, id) in std::mem::take(&mut classes.adopted) {
            classes.ids.release(id);
        }
        for id in self.adopted.drain(..) {
            sets.release(id);
        }
        self.settle()
    }

    /// The datapath has carried out every plan so far, and no packet looks at what they removed
    /// any more: the numbers that they freed may be reused, at once by what waits for one.
    pub fn reuse_numbers(&mut self) -> Plan {
        if self.free_numbers() { self.settle() } else { Plan::new() }
    }

    /// Likewise; what waited for one is worked off as with [`Compiler::enqueue`]. Returns whether
    /// anything did.
    pub fn free_numbers(&mut self) -> bool {
        let Engine { sets, classes, unnumbered, .. } = &mut self.engine;
        let has_sets = sets.free_rested() && !self.unnumbered.is_empty();
        let has_classes = classes.ids.free_rested() && !unnumbered.is_empty();
        if has_sets || has_classes {
            self.retry_unnumbered();
        }
        has_sets || has_classes
    }
}

/// The policies that isolate a pod in one direction.
fn isolating<'a>(
    cluster: &'a Cluster,
    pod: &'a Pod,
    direction: Direction,
) -> impl Iterator<Item = &'a Policy> {
    let here = cluster.policies.get(&pod.id.namespace).filter(|_| pod.is_networked());
    here.into_iter()
        .flat_map(|policies| policies.values())
        .map(|policy| &**policy)
        .filter(move |policy| policy.rules(direction).is_some() && policy.pods.matches(&pod.labels))
}
