//! Keeps atoms, pods, addresses and classes consistent with the cluster. Knows sets only as what
//! mentions atoms, and endpoints only as numbers that Services mention.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;

use ipnet::IpNet;
use rustc_hash::{FxHashMap, FxHashSet};

use super::addresses::Addresses;
use super::atoms::{Atom, AtomId, Atoms, NameUse};
use super::classes::Classes;
use super::ports::row_covers;
use super::rows::{self, SharedPorts};
use super::services::{Changed, Services};
use super::sets::Sets;
use super::work::{Blocks, Job, Which};
use super::{Backend, ClassId, EndpointId, Plan, ServiceKey, SetId, Step, Verdict};
use netpol_model::{Cluster, Labels, NamespaceScope, ObjectName, Pod, Pool, Str};

/// From how many new selectors on over many namespaces, or over one, all pods there are looked at
/// once, instead of all pods for each selector.
const MANY_SELECTORS: usize = 8;

/// The label that every namespace has, its name.
const NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// All derived state but the endpoints.
#[derive(Debug)]
pub(super) struct Engine {
    pub atoms: Atoms,
    pub sets: Sets,
    pub classes: Classes,
    pub addresses: Addresses,
    pub services: Services,
    /// The sorted atoms of each pod that satisfies any. SmallSet pods differ in them.
    held: FxHashMap<ObjectName, Arc<[AtomId]>>,
    held_by_many: Pool<Arc<[AtomId]>>,
    shared: SharedPorts,
    /// Blocks that have the class [`ClassId::CLOSED`] and wait for a number.
    pub unnumbered: BTreeSet<IpNet>,
    /// Blocks that have an entry only until all around them have their classes.
    pub lingering: Vec<IpNet>,
}

/// What a change touched.
#[derive(Debug, Default)]
pub(super) struct Touched {
    /// Pods whose atoms may differ now.
    pub pods: FxHashSet<ObjectName>,
    /// Blocks whose class may differ now.
    pub blocks: Vec<IpNet>,
}

/// A change of class.
#[derive(Debug)]
pub(super) struct Move {
    block: IpNet,
    old: ClassId,
    new: ClassId,
}

impl Move {
    fn step(&self) -> Step {
        match self.new {
            ClassId::NONE => Step::ClearClass(self.block),
            class => Step::SetClass(self.block, class),
        }
    }
}

/// The labels of a namespace. One that is only referred to exists too, with the one label that
/// the API server gives to every namespace: a pod may be known before its namespace is, and file
/// sources need not declare namespaces at all.
pub(super) fn namespace_labels<'a>(cluster: &'a Cluster, name: &Str) -> Cow<'a, Labels> {
    match cluster.namespaces.get(name) {
        Some(namespace) => Cow::Borrowed(&namespace.labels),
        None => Cow::Owned([(NAME_LABEL, name.clone())].into_iter().collect()),
    }
}

/// Whether a pod is in one of the namespaces that a peer looks into.
pub(super) fn is_in(cluster: &Cluster, scope: &NamespaceScope, pod: &Pod) -> bool {
    match scope {
        NamespaceScope::Named(name) => *name == pod.id.namespace,
        NamespaceScope::Matching(selector) => {
            selector.matches(&namespace_labels(cluster, &pod.id.namespace))
        }
    }
}

impl Engine {
    pub fn new(last_set: u16, last_class: u32) -> Self {
        Self {
            atoms: Atoms::default(),
            sets: Sets::new(last_set),
            classes: Classes::new(last_class),
            addresses: Addresses::default(),
            services: Services::default(),
            held: FxHashMap::default(),
            held_by_many: Pool::default(),
            shared: SharedPorts::default(),
            unnumbered: BTreeSet::new(),
            lingering: Vec::new(),
        }
    }

    /// Takes new atoms and names into account, what sets that were edited in place have given up, and
    /// what was touched: all of it that is looked at before addresses get their classes, which the
    /// job is to do. Nothing that a set in use mentions is dropped here, so for sets of before the
    /// change nothing but what the change itself did to pods can differ. New blocks are left to
    /// [`Self::match_blocks`].
    pub fn begin(&mut self, cluster: &Cluster, job: &mut Job, mut touched: Touched) -> Plan {
        let (fresh, edited) = self.sets.take_fresh(job.number);
        self.match_fresh(cluster, job, &mut touched);
        self.queue_blocks(job, touched.blocks);
        if !edited.is_empty() {
            // An address that gets a class meanwhile must not be without what a set has given up
            // and without what it has in its place.
            self.match_blocks(job, usize::MAX);
        }
        let Self { sets, classes, atoms, shared, .. } = self;
        let mut plan = Plan::new();
        for id in fresh.iter().copied() {
            plan.extend(rows::add_first(id, sets, classes, atoms, shared));
        }
        job.fresh.extend(&fresh);
        job.sets.extend(fresh.into_iter().chain(edited));
        plan
    }

    /// Holds what is stored against so many new blocks.
    pub(crate) fn match_blocks(&mut self, job: &mut Job, n_most: usize) {
        let mut blocks = Vec::new();
        for id in job.unmatched.split_off(job.unmatched.len().saturating_sub(n_most)) {
            // Under this number there may be no atom by now, or another one.
            let Some(Atom::Cidr(block)) = self.atoms.live(id).map(|known| &*known.atom) else {
                continue;
            };
            let block = *block;
            let Some(is_begun) = self.atoms.begin_matching(id) else { continue };
            if !is_begun {
                self.addresses.add_block(block, id);
            }
            blocks.push(block);
        }
        let found = self.addresses.inside(blocks);
        self.queue_blocks(job, found);
    }

    fn queue_blocks(&mut self, job: &mut Job, blocks: Vec<IpNet>) {
        for block in &blocks {
            if self.stays(block) {
                self.addresses.expect(*block);
            }
        }
        job.blocks.extend(blocks, |block| self.stays(block));
    }

    /// Lists the rows that new sets need.
    pub(crate) fn list_rows(&self, job: &mut Job) {
        for id in std::mem::take(&mut job.fresh) {
            let having = rows::atoms_of(id, &self.sets, &self.atoms).into_iter();
            job.rows.extend(having.map(|atom| (id, Which::Having(atom))));
        }
    }

    /// Whether a block will have an entry of its own.
    pub fn stays(&self, block: &IpNet) -> bool {
        self.addresses.get(block).is_some_and(|entry| {
            let owner = entry.owner.as_deref();
            entry.cidr.is_some() || owner.is_some_and(|owner| self.held.contains_key(owner))
        })
    }

    fn add_fresh_rows(&mut self) -> Plan {
        rows::add_fresh(&mut self.sets, &mut self.classes, &self.atoms, &mut self.shared)
    }

    /// The classes that have an atom and for which a set has no row yet. Either may be gone since: the
    /// set's endpoint, or the last pod that declared a port.
    pub(crate) fn classes_without_row(&self, set: SetId, atom: AtomId) -> Vec<ClassId> {
        let Some(set) = self.sets.get(set) else { return Vec::new() };
        let having = self.atoms.live(atom).into_iter().flat_map(|atom| atom.classes.iter());
        having.filter(|class| !set.rows.contains_key(class)).collect()
    }

    /// The row of a set for a class. Both may have become others of the same number: then it is a row
    /// that the other set needs, or none.
    pub fn add_row(&mut self, set: SetId, class: ClassId) -> Option<Step> {
        let Self { sets, classes, atoms, shared, .. } = self;
        rows::add_row(set, class, sets, classes, atoms, shared)
    }

    /// Finds what satisfies the new atoms and names, and looks at touched pods again.
    fn match_fresh(&mut self, cluster: &Cluster, job: &mut Job, touched: &mut Touched) {
        let mut selectors = Vec::new();
        for id in self.atoms.take_fresh(job.number) {
            job.atoms.push(id);
            let atom = &self.atoms.get(id).atom;
            if matches!(&**atom, Atom::Cidr(_)) {
                job.unmatched.push(id);
                continue;
            }
            let atom = atom.clone();
            if self.atoms.begin_matching(id) == Some(true) {
                // Its pods hold it, and another job has yet to give them their classes.
                let pods = pods_of(cluster, &atom).flat_map(|pod| &pod.addresses);
                touched.blocks.extend(pods.map(|&address| IpNet::from(address)));
            } else {
                selectors.push(atom);
            }
        }
        for (name, is_begun) in self.atoms.take_fresh_names(job.number) {
            let declaring = cluster.all_pods().filter(|pod| declares(pod, &name));
            if is_begun {
                let addresses = declaring.flat_map(|pod| &pod.addresses);
                touched.blocks.extend(addresses.map(|&address| IpNet::from(address)));
            } else {
                touched.pods.extend(declaring.map(|pod| pod.id.clone()));
            }
            job.names.push(name);
        }
        self.match_selectors(cluster, &selectors, touched);
        for id in std::mem::take(&mut touched.pods) {
            match cluster.pod(&id) {
                Some(pod) => self.refresh_pod(cluster, pod, &mut touched.blocks),
                None => self.set_held(&id, Vec::new()),
            }
        }
    }

    /// Finds the pods that may satisfy new selectors.
    fn match_selectors(
        &mut self,
        cluster: &Cluster,
        selectors: &[Arc<Atom>],
        touched: &mut Touched,
    ) {
        let is_wide = |atom: &&Arc<Atom>| {
            matches!(&***atom, Atom::Pods { namespaces: NamespaceScope::Matching(_), .. })
        };
        if selectors.iter().filter(is_wide).count() > MANY_SELECTORS {
            for pod in cluster.all_pods() {
                self.refresh_pod(cluster, pod, &mut touched.blocks);
            }
            return;
        }
        let mut by_namespace: FxHashMap<&Str, usize> = FxHashMap::default();
        for atom in selectors {
            if let Atom::Pods { namespaces: NamespaceScope::Named(name), .. } = &**atom {
                *by_namespace.entry(name).or_default() += 1;
            }
        }
        by_namespace.retain(|_, n_selectors| *n_selectors > MANY_SELECTORS);
        for pods in by_namespace.keys().filter_map(|name| cluster.pods.get(*name)) {
            touched.pods.extend(pods.values().map(|pod| pod.id.clone()));
        }
        let is_apart = |atom: &&Arc<Atom>| match &***atom {
            Atom::Pods { namespaces: NamespaceScope::Named(name), .. } => {
                !by_namespace.contains_key(name)
            }
            _ => true,
        };
        for atom in selectors.iter().filter(is_apart) {
            touched.pods.extend(pods_of(cluster, atom).map(|pod| pod.id.clone()));
        }
    }

    fn refresh_pod(&mut self, cluster: &Cluster, pod: &Pod, blocks: &mut Vec<IpNet>) {
        let labels = namespace_labels(cluster, &pod.id.namespace);
        let now = self.atoms.of_pod(pod, &labels);
        if *self.held(&pod.id) != *now {
            self.set_held(&pod.id, now);
            blocks.extend(pod.addresses.iter().map(|&address| IpNet::from(address)));
        }
    }

    fn held(&self, pod: &ObjectName) -> &[AtomId] {
        self.held.get(pod).map(|held| &**held).unwrap_or_default()
    }

    fn set_held(&mut self, pod: &ObjectName, now: Vec<AtomId>) {
        let before = match now.is_empty() {
            true => self.held.remove(pod),
            false => {
                let shared = match self.held_by_many.get(&now[..]) {
                    Some(known) => known.clone(),
                    None => {
                        let new: Arc<[AtomId]> = now.as_slice().into();
                        self.held_by_many.insert(new.clone());
                        new
                    }
                };
                self.held.insert(pod.clone(), shared)
            }
        };
        self.atoms.hold(&before.unwrap_or_default(), &now);
    }

    /// Gives blocks the class that they should have. Returns the rows to add first, then the moves.
    /// What is missing inside them is to have its class before: see [`Addresses::missing_inside`].
    pub(crate) fn reclassify(&mut self, mut blocks: Vec<IpNet>) -> (Plan, Vec<Move>) {
        // Where numbers run out, outer blocks go before what is in them.
        blocks.sort_unstable();
        let mut moves = Vec::new();
        let mut content: Vec<AtomId> = Vec::new();
        for block in blocks {
            let Some(entry) = self.addresses.get(&block) else { continue };
            let old = entry.class;
            let owner = entry.owner.as_deref();
            // An address without atoms of its own has those of the longest block around it.
            content.clear();
            content.extend(owner.into_iter().flat_map(|owner| self.held(owner)));
            content.extend(self.addresses.atoms_around(block));
            content.sort_unstable();
            let new = match self.stays(&block) {
                true => self.classes.acquire(&content, &mut self.atoms),
                false => self.class_without_own(block, old, &content),
            };
            self.classes.release(old);
            if new == ClassId::CLOSED {
                self.unnumbered.insert(block);
            }
            self.addresses.set_class(block, new);
            if old != new {
                moves.push(Move { block, old, new });
            }
        }
        // What is inside a block has its own class before the block does, and keeps it until all
        // around it have: see [`Blocks`].
        moves.sort_by_key(|Move { block, new, .. }| Blocks::order(block, *new != ClassId::NONE));
        (self.add_fresh_rows(), moves)
    }

    /// The class of a block that needs no entry of its own: none, as soon as what is around it has
    /// the class that the block should have. Until then it keeps an entry with that class: to wait
    /// for whoever is at work around it would leave in force what was taken away here.
    fn class_without_own(&mut self, block: IpNet, old: ClassId, content: &[AtomId]) -> ClassId {
        let around = self.addresses.class_around(block);
        if old == ClassId::NONE || (content.is_empty() && around == ClassId::NONE) {
            return ClassId::NONE;
        }
        let class = self.classes.acquire(content, &mut self.atoms);
        if class == around {
            self.classes.release(class);
            return ClassId::NONE;
        }
        self.lingering.push(block);
        class
    }

    /// Sets of which some address may do less after these moves.
    pub(crate) fn shrunk_sets(&self, moves: &[Move]) -> FxHashSet<SetId> {
        let mut pairs = FxHashSet::default();
        for Move { block, old, new } in moves {
            let around = || self.addresses.class_around(*block);
            let old = if *old == ClassId::NONE { around() } else { *old };
            let new = if *new == ClassId::NONE { around() } else { *new };
            pairs.insert((old, new));
        }
        let mut shrunk = FxHashSet::default();
        for (old, new) in pairs {
            // A set may deny to the new class what it allows to everybody.
            let with_rows = [old, new].into_iter().filter_map(|class| self.classes.get(class));
            let sets = with_rows.flat_map(|class| class.sets.iter());
            let closing = (new == ClassId::CLOSED).then(|| self.sets.ranked());
            let sets = sets.chain(closing.into_iter().flatten());
            shrunk.extend(sets.filter(|&set| {
                self.sets.get(set).is_some_and(|set| !row_covers(set.row(new), set.row(old)))
            }));
        }
        shrunk
    }

    /// Takes the Services that changed and those with backends that moved into account.
    pub(crate) fn update_services(&mut self, cluster: &Cluster, moves: &[Move]) -> Vec<Changed> {
        self.services.update(cluster, &self.addresses, moves.iter().map(|moved| moved.block))
    }

    /// Those of the askers, each with its egress set, who may reach some Service less after these
    /// changes, or whose packets to it are to be looked at twice now and were not, or the reverse.
    pub(crate) fn cut_off(
        &self,
        changes: &[Changed],
        askers: impl IntoIterator<Item = (EndpointId, SetId)>,
    ) -> BTreeSet<EndpointId> {
        let both = changes.iter().flat_map(|changed| changed.old.iter().chain(&changed.new));
        let named: FxHashSet<EndpointId> = both
            .flat_map(|backends| &**backends)
            .filter_map(|backend| match backend {
                Backend::Endpoint(id) => Some(*id),
                Backend::Kind { .. } | Backend::Elsewhere => None,
            })
            .collect();
        // Whoever is no backend is like all others with the same set.
        let mut by_set: FxHashMap<SetId, bool> = FxHashMap::default();
        let mut less = |&(id, set): &(EndpointId, SetId)| match named.contains(&id) {
            true => self.is_cut_off(changes, id, set),
            false => *by_set.entry(set).or_insert_with(|| self.is_cut_off(changes, id, set)),
        };
        askers.into_iter().filter(|asker| less(asker)).map(|(id, _)| id).collect()
    }

    fn is_cut_off(&self, changes: &[Changed], endpoint: EndpointId, set: SetId) -> bool {
        changes.iter().any(|Changed { key, old, new }| {
            let verdict =
                |backends: &Option<_>| self.verdict(endpoint, set, *key, backends.as_deref());
            match (verdict(old), verdict(new)) {
                // Which backends are allowed may differ.
                (Verdict::Mixed, Verdict::Mixed) => true,
                (before, after) if after >= before && before != Verdict::Denied => {
                    let is_stamped = |verdict, backends: &Option<_>| {
                        // What goes to a Service, unless it is not isolated.
                        verdict == Verdict::Mixed || set != SetId::NONE && backends.is_some()
                    };
                    is_stamped(before, old) != is_stamped(after, new)
                }
                (before, after) => after < before,
            }
        })
    }

    /// What a set says of packets to a key, with these backends or, without a Service there, by
    /// its address.
    fn verdict(
        &self,
        endpoint: EndpointId,
        set: SetId,
        key: ServiceKey,
        backends: Option<&[Backend]>,
    ) -> Verdict {
        match (self.sets.get(set), backends) {
            (None, Some(backends)) => Verdict::unless_own(endpoint, backends),
            (None, None) => Verdict::Allowed,
            (Some(known), backends) => {
                let allows = |class, port| {
                    known.row(class).is_some_and(|row| row.allows(key.protocol.number(), port))
                };
                if let Some(backends) = backends {
                    return Verdict::of_service(endpoint, set, backends, allows);
                }
                match allows(self.addresses.effective_class(IpNet::from(key.address)), key.port) {
                    true => Verdict::Allowed,
                    false => Verdict::Denied,
                }
            }
        }
    }

    /// Whether an endpoint whose set changes from `old` to `new` may do no less than before.
    pub(crate) fn set_covers(&self, new: SetId, old: SetId) -> bool {
        if new == old || new == SetId::NONE {
            return true;
        }
        if new.judges_own() && !old.judges_own() {
            return false;
        }
        let Some(new) = self.sets.get(new) else { return false };
        let Some(old) = self.sets.get(old) else {
            // It could do everything before.
            let is_all = |class| new.row(class) == Some(&super::Row::All);
            return is_all(ClassId::NONE) && new.rows.keys().all(|&class| is_all(class));
        };
        // A row of the new one may allow less than it allows to everybody.
        let classes = old.rows.keys().chain(new.rows.keys().filter(|_| new.is_ranked()));
        classes.into_iter().all(|&class| row_covers(new.row(class), old.row(class)))
    }

    /// Whether there is anything for [`Self::collect_garbage`].
    pub fn has_garbage(&self) -> bool {
        self.sets.has_garbage() || self.atoms.has_garbage() || self.classes.has_garbage()
    }

    /// How much there is for it, about, in steps.
    pub(crate) fn n_garbage(&self) -> usize {
        self.sets.n_garbage() + self.atoms.n_maybe_dead() + self.classes.n_maybe_dead()
    }

    /// Drops what no set in use mentions and no endpoint depends on any more, so much of it of each
    /// kind. Returns the rows that are of no use, and the blocks that are to have another class for
    /// that. Changes no verdict: sets in use cannot tell the classes apart that become one then.
    pub fn collect_garbage(&mut self, cluster: &Cluster, n_most: usize) -> (Plan, Vec<IpNet>) {
        let mut removed = Vec::new();
        for (id, class) in self.sets.take_dead(n_most, &mut self.atoms) {
            removed.push(Step::RemoveRow(id, class));
            if let Some(class) = self.classes.get_mut(class) {
                class.sets.remove(id);
            }
        }
        for (id, sets) in self.classes.take_dead(n_most, &mut self.atoms) {
            for set in sets.iter() {
                if let Some(known) = self.sets.get_mut(set) {
                    known.rows.remove(&id);
                    removed.push(Step::RemoveRow(set, id));
                }
            }
        }
        let first = self.atoms.n_maybe_dead().saturating_sub(n_most);
        let names = self.atoms.take_dead_names();
        let atoms = self.atoms.maybe_dead(first);
        let blocks = self.drop_dead_atoms(cluster, names, atoms);
        self.atoms.free_dead(n_most);
        (removed, blocks)
    }

    /// Takes atoms that nobody mentions from pods and addresses; returns the blocks concerned.
    pub(crate) fn drop_dead_atoms(
        &mut self,
        cluster: &Cluster,
        names: Vec<NameUse>,
        atoms: Vec<AtomId>,
    ) -> Vec<IpNet> {
        let mut dead_of_pods = FxHashSet::default();
        for name in names {
            dead_of_pods.extend(name.numbers.into_values());
        }
        let mut outer = Vec::new();
        for id in self.atoms.take_dead(atoms) {
            match &*self.atoms.get(id).atom {
                Atom::Cidr(block) => outer.push((*block, id)),
                Atom::Pods { .. } | Atom::Port(_) => {
                    dead_of_pods.insert(id);
                }
            }
        }
        let mut blocks = self.addresses.inside(outer.iter().map(|(block, _)| *block).collect());
        for (block, atom) in outer {
            self.addresses.remove_block(block, atom);
        }
        if dead_of_pods.is_empty() {
            return blocks;
        }
        for pod in self.holders(cluster, &dead_of_pods) {
            let mut now = self.held(&pod).to_vec();
            now.retain(|id| !dead_of_pods.contains(id));
            self.set_held(&pod, now);
            let addresses = cluster.pod(&pod).map(|pod| &*pod.addresses);
            blocks.extend(addresses.unwrap_or_default().iter().map(|&a| IpNet::from(a)));
        }
        blocks
    }

    /// Pods that hold one of these atoms. How many there are is known, so mostly it is enough to look
    /// where they are to be expected.
    fn holders(&self, cluster: &Cluster, wanted: &FxHashSet<AtomId>) -> Vec<ObjectName> {
        let n_wanted = |held: &[AtomId]| held.iter().filter(|atom| wanted.contains(atom)).count();
        let n_all: usize = wanted.iter().map(|&id| self.atoms.n_holders(id)).sum();
        if n_all == 0 {
            return Vec::new();
        }
        let atoms = wanted.iter().map(|&id| &*self.atoms.get(id).atom);
        let (named, wide): (Vec<&Atom>, Vec<&Atom>) =
            atoms.partition(|atom| atom.namespace().is_some());
        if wide.len() <= MANY_SELECTORS {
            let namespaces: FxHashSet<&Str> =
                named.into_iter().filter_map(Atom::namespace).collect();
            let pods = namespaces.into_iter().filter_map(|name| cluster.pods.get(name));
            let pods = pods.flat_map(|pods| pods.values()).map(|pod| &**pod);
            let pods = pods.chain(wide.into_iter().flat_map(|atom| pods_of(cluster, atom)));
            let found: FxHashMap<&ObjectName, usize> =
                pods.map(|pod| (&pod.id, n_wanted(self.held(&pod.id)))).collect();
            if found.values().sum::<usize>() == n_all {
                let found = found.into_iter().filter(|(_, n)| *n > 0);
                return found.map(|(id, _)| id.clone()).collect();
            }
        }
        // Some have other labels by now, or are gone, and are still to be looked at.
        let all = self.held.iter().filter(|(_, held)| n_wanted(held) > 0);
        all.map(|(id, _)| id.clone()).collect()
    }
}

/// The steps of some moves.
pub(super) fn steps(moves: &[Move]) -> impl Iterator<Item = Step> {
    moves.iter().map(Move::step)
}

fn declares(pod: &Pod, (protocol, name): &(netpol_model::Protocol, Str)) -> bool {
    pod.ports.iter().any(|port| *protocol == port.protocol && *name == port.name)
}

/// The pods that satisfy a selector atom.
fn pods_of<'a>(cluster: &'a Cluster, atom: &'a Atom) -> impl Iterator<Item = &'a Pod> {
    let (named, matching, pods) = match atom {
        Atom::Pods { namespaces: NamespaceScope::Named(name), pods } => {
            (cluster.pods.get_key_value(name), None, Some(pods))
        }
        Atom::Pods { namespaces: NamespaceScope::Matching(selector), pods } => {
            (None, Some(selector), Some(pods))
        }
        Atom::Cidr(_) | Atom::Port(_) => (None, None, None),
    };
    let in_matching = matching.into_iter().flat_map(move |selector| {
        cluster.pods.iter().filter(move |(name, _)| {
            selector.is_everything() || selector.matches(&namespace_labels(cluster, name))
        })
    });
    named
        .into_iter()
        .chain(in_matching)
        .flat_map(|(_, pods)| pods.values())
        .map(|pod| &**pod)
        .filter(move |pod| pods.is_some_and(|selector| selector.matches(&pod.labels)))
}
