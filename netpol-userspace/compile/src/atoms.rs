//! Atoms: the distinct peer predicates that the policies of local endpoints use, interned, and the
//! index that finds those a pod may satisfy. Must never give a set an atom of which a class may
//! have been told what an earlier state of the set said.
//!
//! An atom may be *renewed*: another number that says the same, for a set that is edited in place
//! ([`Sets::edit`](super::sets::Sets::edit)). Whoever satisfies one satisfies the other, but
//! classes tell them apart, so that the set's rows for the classes of before can stay as they are.
//! What sets say is written with the first number of all, the *meaning*.

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroU32;
use std::sync::Arc;

use ipnet::IpNet;
use rustc_hash::{FxHashMap, FxHashSet};

use super::anchors::Anchors;
use super::small_set::SmallSet;
use super::{ClassId, SetId};
use netpol_model::{Labels, NamedPort, NamespaceScope, Pod, Protocol, Selector, Str};

/// One predicate on an address.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Atom {
    /// Belongs to a pod with these labels in one of these namespaces.
    Pods {
        /// Where.
        namespaces: NamespaceScope,
        /// Which pods there.
        pods: Selector,
    },
    /// Lies in this block.
    Cidr(IpNet),
    /// Belongs to a pod that declares this port.
    Port(NamedPort),
}

impl Atom {
    /// Whether it is a pod predicate that a pod with these labels satisfies.
    pub fn selects(&self, namespace: &str, namespace_labels: &Labels, labels: &Labels) -> bool {
        let Self::Pods { namespaces, pods } = self else { return false };
        let in_scope = match namespaces {
            NamespaceScope::Named(name) => **name == *namespace,
            NamespaceScope::Matching(selector) => selector.matches(namespace_labels),
        };
        in_scope && pods.matches(labels)
    }

    /// The one namespace whose pods may satisfy it, if there is only one.
    pub fn namespace(&self) -> Option<&Str> {
        match self {
            Self::Pods { namespaces: NamespaceScope::Named(name), .. } => Some(name),
            _ => None,
        }
    }
}

/// Number of a live atom; means nothing outside one compiler and is reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct AtomId(NonZeroU32);

impl AtomId {
    fn index(self) -> usize {
        self.0.get() as usize - 1
    }
}

/// An atom and who refers to it.
#[derive(Debug)]
pub(super) struct AtomRecord {
    /// What it says.
    pub atom: Arc<Atom>,
    /// The number that sets write it with: its own, unless it is a renewal.
    pub meaning: AtomId,
    /// Tells renewals of one atom apart; 0 for the meaning.
    pub turn: u32,
    /// Sets that mention it. Empty for port atoms: sets mention the name, see [`NameUse`].
    pub sets: SmallSet<SetId>,
    /// Classes that contain it.
    pub classes: SmallSet<ClassId>,
    /// Of a meaning: what a set that mentions it from now on should mention.
    current: AtomId,
    /// Of a meaning: sets that write it, and its renewals.
    n_writers: u32,
    /// Pods that hold it.
    n_holders: u32,
    /// Pods and addresses are held against it, or will be.
    is_active: bool,
    /// They have been.
    is_matched: bool,
    /// The job whose work it is to give addresses their classes with it; 0: all have them.
    pending: u32,
}

/// A (protocol, name) pair that egress rules in use mention.
#[derive(Debug, Default)]
pub(super) struct NameUse {
    /// Sets that mention it.
    pub sets: FxHashSet<SetId>,
    /// The port atoms of that name, by number.
    pub numbers: BTreeMap<u16, AtomId>,
    /// As of atoms.
    pending: u32,
}

/// All live atoms.
#[derive(Debug, Default)]
pub(super) struct Atoms {
    slots: Vec<Option<AtomRecord>>,
    free: Vec<AtomId>,
    by_content: HashMap<Arc<Atom>, AtomId>,
    renewed: FxHashMap<(AtomId, u32), AtomId>,
    last_turn: u32,
    anchors: Anchors,
    names: FxHashMap<(Protocol, Str), NameUse>,
    /// Selector and block atoms that not all pods and addresses have been held against yet.
    fresh: Vec<AtomId>,
    /// Names, likewise.
    pub fresh_names: Vec<(Protocol, Str)>,
    /// Atoms that may have lost their last reference.
    maybe_dead: Vec<AtomId>,
    /// Those that have been looked at, and that something may still have referred to.
    maybe_free: Vec<AtomId>,
    maybe_dead_names: Vec<(Protocol, Str)>,
}

impl Atoms {
    /// The live atom of that number.
    pub fn get(&self, id: AtomId) -> &AtomRecord {
        self.slots[id.index()].as_ref().expect("invariant: atoms outlive what mentions them")
    }

    /// Likewise, if there is one.
    pub fn live(&self, id: AtomId) -> Option<&AtomRecord> {
        self.slots[id.index()].as_ref()
    }

    /// The live atom of that number, to note a reference.
    pub fn get_mut(&mut self, id: AtomId) -> &mut AtomRecord {
        self.slots[id.index()].as_mut().expect("invariant: atoms outlive what mentions them")
    }

    /// The number of `atom`, new if it was not known. It lives until the end of the settle unless
    /// a set mentions it by then.
    pub(crate) fn intern(&mut self, atom: Atom) -> AtomId {
        if let Some(&id) = self.by_content.get(&atom) {
            if let Atom::Port(port) = &atom {
                // Its name may have been forgotten since, and be wanted again.
                let name = self.names.entry((port.protocol, port.name.clone())).or_default();
                name.numbers.insert(port.port, id);
            }
            return id;
        }
        let atom = Arc::new(atom);
        let id = self.put(atom.clone(), None, 0);
        if let Atom::Port(port) = &*atom {
            let name = self.names.entry((port.protocol, port.name.clone())).or_default();
            name.numbers.insert(port.port, id);
        }
        self.by_content.insert(atom, id);
        id
    }

    fn put(&mut self, atom: Arc<Atom>, meaning: Option<AtomId>, turn: u32) -> AtomId {
        let id = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            let number = u32::try_from(self.slots.len()).ok().and_then(NonZeroU32::new);
            AtomId(number.expect("invariant: atoms fit into memory"))
        });
        self.slots[id.index()] = Some(AtomRecord {
            atom,
            meaning: meaning.unwrap_or(id),
            turn,
            sets: SmallSet::None,
            classes: SmallSet::None,
            current: id,
            n_writers: 0,
            n_holders: 0,
            is_active: false,
            is_matched: false,
            pending: 0,
        });
        self.maybe_dead.push(id);
        id
    }

    /// What a set that mentions this meaning should mention, which other sets may do as well.
    pub fn current(&self, meaning: AtomId) -> AtomId {
        self.get(meaning).current
    }

    /// Likewise, for a set that mentions it from now on: not what a set has given up of which some
    /// address still has a class, and the set a row for that.
    pub fn usable(&mut self, meaning: AtomId) -> AtomId {
        let current = self.current(meaning);
        let known = self.get(current);
        match known.is_active || known.classes.is_empty() {
            true => current,
            false => self.next_renewal(meaning),
        }
    }

    /// What a set should mention whose rows must not depend on whether a class of before has this
    /// atom: itself if no class can have it, else a renewal, the current one from now on.
    pub fn renew(&mut self, meaning: AtomId) -> AtomId {
        let current = self.current(meaning);
        let known = self.get(current);
        match !known.is_active && known.classes.is_empty() {
            true => current,
            false => self.next_renewal(meaning),
        }
    }

    fn next_renewal(&mut self, meaning: AtomId) -> AtomId {
        self.last_turn = self.last_turn.wrapping_add(1).max(1);
        self.renewal(meaning, self.last_turn)
    }

    /// The renewal of that turn; 0 is the meaning itself.
    pub(crate) fn renewal(&mut self, meaning: AtomId, turn: u32) -> AtomId {
        if turn == 0 {
            return meaning;
        }
        if let Some(&id) = self.renewed.get(&(meaning, turn)) {
            return id;
        }
        self.last_turn = self.last_turn.max(turn);
        let id = self.put(self.get(meaning).atom.clone(), Some(meaning), turn);
        self.renewed.insert((meaning, turn), id);
        self.write(meaning);
        self.get_mut(meaning).current = id;
        id
    }

    /// Notes that a set writes a meaning.
    pub fn write(&mut self, meaning: AtomId) {
        self.get_mut(meaning).n_writers += 1;
    }

    /// Notes that a set no longer writes it.
    pub(crate) fn unwrite(&mut self, meaning: AtomId) {
        self.get_mut(meaning).n_writers -= 1;
        self.maybe_dead.push(meaning);
    }

    /// The use of a name, if any set mentions it.
    pub fn name(&self, protocol: Protocol, name: &Str) -> Option<&NameUse> {
        self.names.get(&(protocol, name.clone())).filter(|name| !name.sets.is_empty())
    }

    /// Sets whose rows may depend on whether a class contains the atom.
    pub(crate) fn interested_sets(&self, id: AtomId) -> impl Iterator<Item = SetId> {
        let known = self.get(id);
        let by_name = match &*known.atom {
            Atom::Port(port) => self.name(port.protocol, &port.name),
            Atom::Pods { .. } | Atom::Cidr(_) => None,
        };
        known.sets.iter().chain(by_name.into_iter().flat_map(|name| &name.sets).copied())
    }

    /// Notes that a set mentions an atom.
    pub fn mention(&mut self, id: AtomId, set: SetId) {
        let known = self.get_mut(id);
        known.sets.insert(set);
        if !std::mem::replace(&mut known.is_active, true) {
            let atom = known.atom.clone();
            if let Atom::Pods { namespaces, pods } = &*atom {
                self.anchors.insert(id, namespaces, pods);
            }
            self.fresh.push(id);
        } else if known.pending != 0 {
            self.fresh.push(id);
        }
    }

    /// A set that has mentioned these is used by one more, who has to wait for them.
    pub(crate) fn await_pending(&mut self, ids: impl Iterator<Item = AtomId>) {
        self.fresh.extend(ids.filter(|id| {
            let known = self.slots[id.index()].as_ref();
            known.is_some_and(|known| known.pending != 0)
        }));
    }

    /// The same of a name.
    pub(crate) fn await_pending_name(&mut self, name: &(Protocol, Str)) {
        if self.names.get(name).is_some_and(|known| known.pending != 0) {
            self.fresh_names.push(name.clone());
        }
    }

    /// Notes that a set no longer mentions an atom.
    pub(crate) fn unmention(&mut self, id: AtomId, set: SetId) {
        self.get_mut(id).sets.remove(set);
        self.maybe_dead.push(id);
    }

    /// Notes that a set mentions a name.
    pub(crate) fn mention_name(&mut self, name: &(Protocol, Str), set: SetId) {
        let entry = self.names.entry(name.clone()).or_default();
        if entry.sets.is_empty() || entry.pending != 0 {
            self.fresh_names.push(name.clone());
        }
        entry.sets.insert(set);
    }

    /// Notes that a set no longer mentions a name.
    pub(crate) fn unmention_name(&mut self, name: &(Protocol, Str), set: SetId) {
        if let Some(entry) = self.names.get_mut(name) {
            entry.sets.remove(&set);
            self.maybe_dead_names.push(name.clone());
        }
    }

    /// The atoms that a pod satisfies by itself (not by its address), sorted.
    pub(crate) fn of_pod(&mut self, pod: &Pod, namespace_labels: &Labels) -> Vec<AtomId> {
        if !pod.is_networked() {
            return Vec::new();
        }
        let mut held = Vec::new();
        let namespace = &pod.id.namespace;
        self.anchors.candidates(namespace, namespace_labels, &pod.labels, |id| {
            let atom = &self.slots[id.index()];
            if atom
                .as_ref()
                .is_some_and(|known| known.atom.selects(namespace, namespace_labels, &pod.labels))
            {
                held.push(id);
            }
        });
        for port in &*pod.ports {
            if self.name(port.protocol, &port.name).is_some() {
                held.push(self.intern(Atom::Port(port.clone())));
            }
        }
        held.sort_unstable();
        held.dedup();
        held
    }

    /// Notes what a pod holds now instead of `before`, which matters for port atoms only.
    pub fn hold(&mut self, before: &[AtomId], now: &[AtomId]) {
        for &id in now {
            self.get_mut(id).n_holders += 1;
        }
        for &id in before {
            let known = self.get_mut(id);
            known.n_holders -= 1;
            if known.n_holders == 0 {
                self.maybe_dead.push(id);
            }
        }
    }

    /// How many pods hold it.
    pub fn n_holders(&self, id: AtomId) -> usize {
        self.get(id).n_holders as usize
    }

    /// Names that no set mentions any more: forgotten from now on.
    pub(crate) fn take_dead_names(&mut self) -> Vec<NameUse> {
        let mut dead = Vec::new();
        for name in std::mem::take(&mut self.maybe_dead_names) {
            if self.names.get(&name).is_some_and(|entry| entry.sets.is_empty()) {
                dead.extend(self.names.remove(&name));
            }
        }
        dead
    }

    /// How many may have lost their last reference, and have not been looked at.
    pub(crate) fn n_maybe_dead(&self) -> usize {
        self.maybe_dead.len()
    }

    /// Whatever is written is not to be looked at, of those from the `first` on.
    pub(crate) fn keep_written(&mut self, first: usize) {
        for id in self.maybe_dead.split_off(first) {
            if self.slots[id.index()].as_ref().is_some_and(|known| known.n_writers == 0) {
                self.maybe_dead.push(id);
            }
        }
    }

    /// Takes those that may have, from the `first` on.
    pub(crate) fn maybe_dead(&mut self, first: usize) -> Vec<AtomId> {
        self.maybe_dead.split_off(first)
    }

    /// Whether anything is left that may be forgotten.
    pub fn has_garbage(&self) -> bool {
        let names = &self.maybe_dead_names;
        !(self.maybe_dead.is_empty() && self.maybe_free.is_empty() && names.is_empty())
    }

    /// The selector and block atoms among these that no set mentions any more: no pod will match them
    /// from now on. They stay readable until [`Atoms::free_dead`].
    pub(crate) fn take_dead(&mut self, ids: Vec<AtomId>) -> Vec<AtomId> {
        let mut dead = Vec::new();
        for id in ids {
            self.maybe_free.push(id);
            let Some(known) = self.slots[id.index()].as_mut() else { continue };
            if !known.sets.is_empty() || !std::mem::take(&mut known.is_active) {
                continue;
            }
            known.pending = 0;
            if let Atom::Pods { namespaces, pods } = &*known.atom {
                self.anchors.remove(id, namespaces, pods);
            }
            if std::mem::take(&mut known.is_matched) {
                dead.push(id);
            }
            let meaning = known.meaning;
            let meaning = self.get_mut(meaning);
            if meaning.current == id {
                meaning.current = meaning.meaning;
            }
        }
        dead
    }

    /// A class has an atom no more.
    pub fn leave(&mut self, id: AtomId, class: ClassId) {
        let known = self.get_mut(id);
        known.classes.remove(class);
        if known.classes.is_empty() {
            self.maybe_free.push(id);
        }
    }

    /// Forgets atoms that nothing refers to, of so many.
    pub(crate) fn free_dead(&mut self, n_most: usize) {
        for _ in 0..n_most {
            let Some(id) = self.maybe_free.pop() else { return };
            let slot = &mut self.slots[id.index()];
            let Some(known) = slot.take_if(|known| {
                known.sets.is_empty()
                    && known.classes.is_empty()
                    && !known.is_active
                    && known.n_holders == 0
                    && known.n_writers == 0
            }) else {
                continue;
            };
            self.free.push(id);
            if known.turn > 0 {
                self.renewed.remove(&(known.meaning, known.turn));
                self.unwrite(known.meaning);
                continue;
            }
            if let Atom::Port(port) = &*known.atom
                && let Some(name) = self.names.get_mut(&(port.protocol, port.name.clone()))
            {
                name.numbers.remove(&port.port);
            }
            self.by_content.remove(&known.atom);
        }
    }

    /// Hands over the atoms that addresses are to get their classes with by a job.
    pub(crate) fn take_fresh(&mut self, job: u32) -> Vec<AtomId> {
        let mut fresh = std::mem::take(&mut self.fresh);
        // In about the order in which they were written, which mostly is theirs.
        fresh.sort_unstable();
        fresh.retain(|id| {
            let Some(known) = self.slots[id.index()].as_mut() else { return false };
            let is_ready = known.is_matched && known.pending == 0;
            if !known.is_active || known.pending == job || is_ready {
                return false;
            }
            known.pending = job;
            true
        });
        fresh
    }

    /// From now on pods and addresses are held against an atom. Returns whether they are already;
    /// `None`: no set mentions it any more.
    pub(crate) fn begin_matching(&mut self, id: AtomId) -> Option<bool> {
        let known = self.slots[id.index()].as_mut().filter(|known| known.is_active)?;
        Some(std::mem::replace(&mut known.is_matched, true))
    }

    /// The same of names.
    pub(crate) fn take_fresh_names(&mut self, job: u32) -> Vec<((Protocol, Str), bool)> {
        let names = std::mem::take(&mut self.fresh_names).into_iter();
        names
            .filter_map(|name| {
                let known = self.names.get_mut(&name)?;
                let is_begun = std::mem::replace(&mut known.pending, job) != 0;
                Some((name, is_begun))
            })
            .collect()
    }

    /// All addresses have their classes with what that job has taken, if no other has since.
    pub fn settle(&mut self, job: u32, ids: &[AtomId], names: &[(Protocol, Str)]) {
        for id in ids {
            if let Some(known) = &mut self.slots[id.index()]
                && known.pending == job
            {
                known.pending = 0;
            }
        }
        for name in names {
            if let Some(known) = self.names.get_mut(name)
                && known.pending == job
            {
                known.pending = 0;
            }
        }
    }

    /// Whether no pod can satisfy anything.
    pub fn is_empty(&self) -> bool {
        self.by_content.is_empty() && self.names.is_empty()
    }

    /// How many atoms are live.
    pub fn len(&self) -> usize {
        self.by_content.len()
    }
}
