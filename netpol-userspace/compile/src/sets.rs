//! Policy sets: what all policies that apply to an endpoint in one direction allow together, in
//! canonical form, interned. Must never depend on the order or the grouping of policies.
//!
//! A large set that a few predicates change of is edited in place, so that an edit costs what it
//! changes and not what the set holds: see [`Sets::edit`].

use std::borrow::Borrow;
use std::collections::BTreeSet;
use std::collections::hash_map::Entry;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use rustc_hash::{FxHashMap, FxHashSet, FxHasher};

use super::atoms::{Atom, AtomId, Atoms};
use super::ids::IdPool;
use super::plan::Row;
use super::ports::Allowed;
use super::small_set::SmallSet;
use super::tiers::{Rank, Ranked, Ruling};
use super::{ClassId, SetId};
use netpol_common::layout::JUDGES_OWN;
use netpol_model::{Action, Direction, NamedPort, Peer, Peers, Pod, Policy, Ports, Protocol, Str};

mod gathering;

pub(super) use gathering::Gathering;

/// Whom some ports are allowed to or from. Atoms are meanings.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Predicate {
    /// Everybody.
    Any,
    /// Nobody: that what an endpoint sends to itself by way of a Service is judged is said so.
    Own,
    /// Addresses with this pod atom.
    Pods(AtomId),
    /// Addresses in a block but in none of the excepted ones.
    Block {
        /// The block.
        cidr: AtomId,
        /// The excepted blocks, sorted.
        except: Box<[AtomId]>,
    },
}

impl Predicate {
    /// The predicate of a peer, which is no node: nodes are told by their addresses.
    pub fn of(peer: &Peer, atoms: &mut Atoms) -> Self {
        match peer {
            Peer::Pods { namespaces, pods } => Self::Pods(
                atoms.intern(Atom::Pods { namespaces: namespaces.clone(), pods: pods.clone() }),
            ),
            Peer::Block(block) => {
                let mut except: Vec<AtomId> =
                    block.except.iter().map(|part| atoms.intern(Atom::Cidr(*part))).collect();
                except.sort_unstable();
                Self::Block { cidr: atoms.intern(Atom::Cidr(block.cidr)), except: except.into() }
            }
            Peer::Nodes(_) => unreachable!("invariant: nodes are told by their addresses"),
        }
    }

    /// The atom without which it does not match, and those with which it does not match.
    pub fn parts(&self) -> (Option<AtomId>, &[AtomId]) {
        match self {
            Self::Any | Self::Own => (None, &[]),
            Self::Pods(atom) => (Some(*atom), &[]),
            Self::Block { cidr, except } => (Some(*cidr), except),
        }
    }

    /// All atoms that it mentions.
    pub fn atoms(&self) -> impl Iterator<Item = AtomId> {
        let (needed, except) = self.parts();
        needed.into_iter().chain(except.iter().copied())
    }
}

/// A set's content: distinct predicates, each with what it says, which is never nothing.
pub(super) type Content = Arc<[(Predicate, Arc<Allowed>)]>;

/// Predicates and what a set allows to them from now on, if anything.
pub(super) type Changes = Vec<(Predicate, Option<Arc<Allowed>>)>;

/// How a set mentions an atom.
#[derive(Debug)]
struct Mention {
    /// The atom that its rows depend on: the meaning or a renewal.
    mark: AtomId,
    /// How many predicates have it.
    n_predicates: u32,
    /// Where those are that do not match without it.
    needed_at: SmallSet<u32>,
}

/// A set in use.
#[derive(Debug)]
pub(super) struct Set {
    any: Option<Arc<Allowed>>,
    /// It has [`Predicate::Own`].
    own: Option<Arc<Allowed>>,
    /// How many entries have rulings.
    n_ranked: usize,
    /// Unlike that of any other set.
    pub stamp: u64,
    /// The other predicates, in no order.
    entries: Vec<(Predicate, Arc<Allowed>)>,
    mentions: FxHashMap<AtomId, Mention>,
    /// Its rows; the one for [`ClassId::NONE`] is what it allows to everybody.
    pub rows: FxHashMap<ClassId, Row>,
    /// The sum of its entries' hashes.
    hash: u64,
    pub n_users: u32,
}

fn entry_hash(predicate: &Predicate, allowed: &Allowed) -> u64 {
    let mut hasher = FxHasher::default();
    (predicate, allowed).hash(&mut hasher);
    hasher.finish()
}

fn content_hash(content: &[(Predicate, Arc<Allowed>)]) -> u64 {
    let hashes = content.iter().map(|(predicate, allowed)| entry_hash(predicate, allowed));
    hashes.fold(0, u64::wrapping_add)
}

impl Set {
    fn empty() -> Self {
        Self {
            any: None,
            own: None,
            n_ranked: 0,
            stamp: 0,
            entries: Vec::new(),
            mentions: FxHashMap::default(),
            rows: FxHashMap::default(),
            hash: 0,
            n_users: 1,
        }
    }

    fn put(&mut self, predicate: Predicate, allowed: Arc<Allowed>, atoms: &mut Atoms) {
        self.hash = self.hash.wrapping_add(entry_hash(&predicate, &allowed));
        match predicate {
            Predicate::Any => {
                self.n_ranked += usize::from(!allowed.rulings.is_empty());
                self.any = Some(allowed);
            }
            Predicate::Own => self.own = Some(allowed),
            _ => self.place(predicate, allowed, atoms, Atoms::usable),
        }
    }

    /// Puts an entry in, of which the hash does not know; `mark` tells what it mentions of a meaning
    /// that it did not write before.
    fn place(
        &mut self,
        predicate: Predicate,
        allowed: Arc<Allowed>,
        atoms: &mut Atoms,
        mark: impl Fn(&mut Atoms, AtomId) -> AtomId,
    ) {
        let (needed, _) = predicate.parts();
        let at = u32::try_from(self.entries.len()).expect("invariant: predicates fit into memory");
        for atom in predicate.atoms() {
            let mention = self.mentions.entry(atom).or_insert_with(|| {
                atoms.write(atom);
                Mention { mark: mark(atoms, atom), n_predicates: 0, needed_at: SmallSet::None }
            });
            mention.n_predicates += 1;
            if Some(atom) == needed {
                mention.needed_at.insert(at);
            }
        }
        self.n_ranked += usize::from(!allowed.rulings.is_empty());
        self.entries.push((predicate, allowed));
    }

    /// Takes the entry at a position out. Mentions may be left without a predicate.
    fn take(&mut self, at: u32) {
        let (predicate, allowed) = self.entries.swap_remove(at as usize);
        self.hash = self.hash.wrapping_sub(entry_hash(&predicate, &allowed));
        self.n_ranked -= usize::from(!allowed.rulings.is_empty());
        for atom in predicate.atoms() {
            let mention = self.mentions.get_mut(&atom).expect("invariant: its atoms are mentioned");
            mention.n_predicates -= 1;
            mention.needed_at.remove(at);
        }
        let last = u32::try_from(self.entries.len()).expect("invariant: positions are u32");
        if let Some((moved, _)) = self.entries.get(at as usize)
            && let (Some(needed), _) = moved.parts()
        {
            let mention = self.mentions.get_mut(&needed).expect("invariant: its atom is mentioned");
            mention.needed_at.remove(last);
            mention.needed_at.insert(at);
        }
    }

    fn find(&self, predicate: &Predicate) -> Option<u32> {
        let mention = self.mentions.get(&predicate.parts().0?)?;
        mention.needed_at.iter().find(|&at| self.entries[at as usize].0 == *predicate)
    }

    /// What it allows to those whom a predicate matches, by that predicate.
    pub fn allowed(&self, predicate: &Predicate) -> Option<&Arc<Allowed>> {
        match predicate {
            Predicate::Any => return self.any.as_ref(),
            Predicate::Own => return self.own.as_ref(),
            Predicate::Pods(_) | Predicate::Block { .. } => {}
        }
        Some(&self.entries[self.find(predicate)? as usize].1)
    }

    fn is(&self, content: &[(Predicate, Arc<Allowed>)]) -> bool {
        let n_special = usize::from(self.any.is_some()) + usize::from(self.own.is_some());
        self.entries.len() + n_special == content.len()
            && content.iter().all(|(predicate, allowed)| self.allowed(predicate) == Some(allowed))
    }

    /// Whether ClusterNetworkPolicies say anything in it: then it may deny some what it allows to
    /// everybody.
    pub(crate) fn is_ranked(&self) -> bool {
        self.n_ranked > 0
    }

    /// What it allows to everybody, if there is such a rule.
    pub(crate) fn to_any(&self) -> Option<&Allowed> {
        self.any.as_deref()
    }

    /// How many predicates there are.
    pub fn n_entries(&self) -> usize {
        self.entries.len()
    }

    /// All predicates and what they allow.
    pub fn entries(&self) -> impl Iterator<Item = (&Predicate, &Arc<Allowed>)> {
        let any = self.any.iter().map(|allowed| (&Predicate::Any, allowed));
        let own = self.own.iter().map(|allowed| (&Predicate::Own, allowed));
        any.chain(own).chain(self.entries.iter().map(|(predicate, allowed)| (predicate, allowed)))
    }

    /// Its content with these changes.
    pub(crate) fn content_with(&self, changes: &Changes) -> Content {
        let changed: FxHashMap<&Predicate, &Option<Arc<Allowed>>> =
            changes.iter().map(|(predicate, allowed)| (predicate, allowed)).collect();
        let kept = self.entries().filter(|(predicate, _)| !changed.contains_key(predicate));
        let kept = kept.map(|(predicate, allowed)| (predicate.clone(), allowed.clone()));
        let new = changes.iter().filter_map(|(p, allowed)| Some((p.clone(), allowed.clone()?)));
        kept.chain(new).collect()
    }

    /// The atoms that its rows depend on.
    pub fn marks(&self) -> impl Iterator<Item = AtomId> {
        self.mentions.values().map(|mention| mention.mark)
    }

    /// What it mentions for a meaning.
    pub fn mark(&self, meaning: AtomId) -> Option<AtomId> {
        Some(self.mentions.get(&meaning)?.mark)
    }

    /// The meanings of which it mentions a renewal.
    pub fn renewed(&self) -> impl Iterator<Item = AtomId> {
        let renewed = self.mentions.iter().filter(|(meaning, mention)| mention.mark != **meaning);
        renewed.map(|(&meaning, _)| meaning)
    }

    /// Where the predicates are that need an atom.
    pub(crate) fn positions(&self, mark: AtomId, atoms: &Atoms) -> impl Iterator<Item = u32> {
        let mention = self.mentions.get(&atoms.get(mark).meaning);
        let mention = mention.filter(|mention| mention.mark == mark);
        mention.into_iter().flat_map(|mention| mention.needed_at.iter())
    }

    /// What the predicate at a position allows to an address with these atoms.
    pub(crate) fn allowed_at(&self, position: u32, atoms: &[AtomId]) -> Option<&Allowed> {
        let (predicate, allowed) = &self.entries[position as usize];
        let (_, except) = predicate.parts();
        let excepted =
            except.iter().any(|atom| atoms.binary_search(&self.mentions[atom].mark).is_ok());
        (!excepted).then_some(allowed)
    }

    /// The row that decides for a class.
    pub fn row(&self, class: ClassId) -> Option<&Row> {
        self.rows.get(&class).or_else(|| self.rows.get(&ClassId::NONE))
    }

    /// Every port name that it mentions.
    fn names(&self) -> BTreeSet<(Protocol, Str)> {
        self.entries().flat_map(|(_, allowed)| allowed.all_names().cloned()).collect()
    }

    fn hash_with(&self, changes: &Changes) -> u64 {
        changes.iter().fold(self.hash, |hash, (predicate, allowed)| {
            let hash = match self.allowed(predicate) {
                Some(allowed) => hash.wrapping_sub(entry_hash(predicate, allowed)),
                None => hash,
            };
            let new = allowed.as_ref().map_or(0, |allowed| entry_hash(predicate, allowed));
            hash.wrapping_add(new)
        })
    }

    /// The atoms that some predicate needs and none does after these changes.
    fn dropped<'a>(&'a self, changes: &'a Changes) -> impl Iterator<Item = AtomId> + 'a {
        let mut kept: FxHashMap<AtomId, i64> = FxHashMap::default();
        for (predicate, allowed) in changes {
            let n = i64::from(allowed.is_some()) - i64::from(self.find(predicate).is_some());
            predicate.atoms().for_each(|atom| *kept.entry(atom).or_default() += n);
        }
        kept.into_iter().filter_map(|(atom, n)| {
            let mention = self.mentions.get(&atom)?;
            (!mention.needed_at.is_empty() && i64::from(mention.n_predicates) + n == 0)
                .then_some(atom)
        })
    }
}

/// All sets in use.
#[derive(Debug)]
pub(super) struct Sets {
    by_id: FxHashMap<SetId, Set>,
    by_hash: FxHashMap<u64, SmallSet<SetId>>,
    /// Free numbers.
    pub ids: IdPool,
    /// Those of sets that judge what an endpoint sends to itself.
    pub own_ids: IdPool,
    /// Sets that a job has to make ready: whose rows are still to be computed.
    pub fresh: Vec<SetId>,
    /// Sets that were edited in place, and of which no job has heard.
    edited: Vec<SetId>,
    /// Sets that no endpoint may begin to use yet, with the job that makes them ready: they are new, or
    /// are being edited.
    unready: FxHashMap<SetId, u32>,
    /// Those of them that are being edited: some address may have a class by which they say what they
    /// said before.
    being_edited: FxHashSet<SetId>,
    /// Sets whose numbers have not been asked for yet.
    pub unnoted: Vec<SetId>,
    /// The texts of edits that have not been asked for yet.
    pub unnoted_edits: Vec<(u16, String)>,
    maybe_dead: Vec<SetId>,
    /// Sets that nobody uses, of which there still is something elsewhere.
    dying: Vec<Dying>,
    /// Whether a set could not be numbered since this was last cleared.
    pub exhausted: bool,
    last_stamp: u64,
}

/// The set that isolates and allows nothing. It always exists, so that there is something to fail
/// closed with when numbers run out.
pub(super) const CLOSED: SetId = SetId(1);

impl Sets {
    /// Only the closed set; numbers up to and including `last` of either kind.
    pub fn new(last: u16) -> Self {
        let last = last & !JUDGES_OWN;
        Self {
            by_id: FxHashMap::from_iter([(CLOSED, Set::empty())]),
            by_hash: FxHashMap::from_iter([(0, SmallSet::One(CLOSED))]),
            ids: IdPool::new(u32::from(CLOSED.0) + 1, u32::from(last)),
            own_ids: IdPool::new(u32::from(JUDGES_OWN) + 1, u32::from(JUDGES_OWN | last)),
            fresh: Vec::new(),
            edited: Vec::new(),
            unnoted: Vec::new(),
            unnoted_edits: Vec::new(),
            unready: FxHashMap::default(),
            being_edited: FxHashSet::default(),
            dying: Vec::new(),
            maybe_dead: Vec::new(),
            exhausted: false,
            last_stamp: 0,
        }
    }

    /// The set of that number; `None` for [`SetId::NONE`].
    pub fn get(&self, id: SetId) -> Option<&Set> {
        self.by_id.get(&id)
    }

    /// Likewise, to note its rows.
    pub fn get_mut(&mut self, id: SetId) -> Option<&mut Set> {
        self.by_id.get_mut(&id)
    }

    /// All sets in use.
    pub fn iter(&self) -> impl Iterator<Item = (SetId, &Set)> {
        self.by_id.iter().map(|(&id, set)| (id, set))
    }

    /// Those in which ClusterNetworkPolicies say anything.
    pub(crate) fn ranked(&self) -> impl Iterator<Item = SetId> {
        self.by_id.iter().filter(|(_, set)| set.is_ranked()).map(|(&id, _)| id)
    }

    fn find(&self, content: &[(Predicate, Arc<Allowed>)]) -> Option<SetId> {
        let mut equal = self.by_hash.get(&content_hash(content))?.iter();
        equal.find(|id| self.by_id[id].is(content))
    }

    /// The set with this content, for one more user.
    pub fn acquire(&mut self, content: &[(Predicate, Arc<Allowed>)], atoms: &mut Atoms) -> SetId {
        if let Some(id) = self.find(content) {
            return self.share(id, atoms);
        }
        let Some(id) = self.number(judges_own(content)) else { return self.none_left() };
        self.insert(id, content, None, atoms);
        id
    }

    /// One user more of a set that is there.
    pub fn share(&mut self, id: SetId, atoms: &mut Atoms) -> SetId {
        if let Some(set) = self.by_id.get(&id).filter(|_| self.unready.contains_key(&id)) {
            // Who began to make it ready may take longer than who wants it now.
            atoms.await_pending(set.marks());
            set.names().iter().for_each(|name| atoms.await_pending_name(name));
            self.fresh.push(id);
        }
        self.retain(id);
        id
    }

    fn number(&mut self, judges_own: bool) -> Option<SetId> {
        let pool = if judges_own { &mut self.own_ids } else { &mut self.ids };
        let number = pool.allocate().and_then(|number| u16::try_from(number).ok());
        number.map(SetId)
    }

    /// The numbers of which one is.
    fn pool(&mut self, id: SetId) -> &mut IdPool {
        if id.judges_own() { &mut self.own_ids } else { &mut self.ids }
    }

    /// Where the search for the next free number of its kind starts; 0: none has been given.
    pub(crate) fn next_own(&self) -> u32 {
        match self.own_ids.is_untouched() {
            true => 0,
            false => self.own_ids.next(),
        }
    }

    /// Takes a certain number, of which kind it may be. Returns whether it was there to be taken.
    pub(crate) fn take_number(&mut self, id: SetId) -> bool {
        self.pool(id).take(u32::from(id.0))
    }

    /// Gives it back, to rest.
    pub(crate) fn release_number(&mut self, id: SetId) {
        self.pool(id).release(u32::from(id.0));
    }

    /// The numbers given back so far have rested long enough. Returns whether there were any.
    pub(crate) fn free_rested(&mut self) -> bool {
        let is_freed = self.ids.free_rested();
        self.own_ids.free_rested() || is_freed
    }

    /// What there is for one user more where numbers have run out.
    fn none_left(&mut self) -> SetId {
        self.exhausted = true;
        self.retain(CLOSED);
        CLOSED
    }

    /// Makes a new set under a number taken from the pool. With `renewals` it mentions these instead
    /// of their meanings, else what is current.
    pub fn insert(
        &mut self,
        id: SetId,
        content: &[(Predicate, Arc<Allowed>)],
        renewals: Option<&FxHashMap<AtomId, AtomId>>,
        atoms: &mut Atoms,
    ) {
        let mut set = Set::empty();
        set.entries.reserve_exact(content.len());
        for (predicate, allowed) in content {
            set.put(predicate.clone(), allowed.clone(), atoms);
        }
        if let Some(renewals) = renewals {
            for (meaning, mention) in &mut set.mentions {
                mention.mark = renewals.get(meaning).copied().unwrap_or(*meaning);
            }
        }
        self.register(id, set, atoms);
    }

    fn register(&mut self, id: SetId, mut set: Set, atoms: &mut Atoms) {
        self.last_stamp += 1;
        set.stamp = self.last_stamp;
        for mention in set.mentions.values() {
            atoms.mention(mention.mark, id);
        }
        for name in set.names() {
            atoms.mention_name(&name, id);
        }
        self.by_hash.entry(set.hash).or_default().insert(id);
        self.by_id.insert(id, set);
        self.fresh.push(id);
        self.unnoted.push(id);
    }

    /// Whether a set with this content exists.
    pub fn contains(&self, content: &[(Predicate, Arc<Allowed>)]) -> bool {
        self.find(content).is_some()
    }

    /// One user more.
    pub fn retain(&mut self, id: SetId) {
        if let Some(set) = self.by_id.get_mut(&id) {
            set.n_users += 1;
        }
    }

    /// One user fewer.
    pub fn release(&mut self, id: SetId) {
        if let Some(set) = self.by_id.get_mut(&id) {
            set.n_users -= 1;
            if set.n_users == 0 {
                self.maybe_dead.push(id);
            }
        }
    }

    /// The jobs at whose edits the next one has to look. Of what is new it sees for itself what is
    /// missing: see [`Atoms::await_pending`].
    pub fn awaited(&self) -> BTreeSet<u32> {
        let edited = self.fresh.iter().filter(|id| self.being_edited.contains(id));
        edited.filter_map(|id| self.unready.get(id)).copied().collect()
    }

    /// The sets that a job has to make ready: new ones, and such as only have new atoms.
    pub(crate) fn take_fresh(&mut self, job: u32) -> (Vec<SetId>, Vec<SetId>) {
        let [fresh, edited] = [&mut self.fresh, &mut self.edited].map(|sets| {
            let mut sets = std::mem::take(sets);
            sets.sort_unstable();
            sets.dedup();
            sets
        });
        self.being_edited.extend(&edited);
        self.unready.extend(fresh.iter().chain(&edited).map(|&id| (id, job)));
        (fresh, edited)
    }

    /// That job has made them ready, if no other makes them so since.
    pub fn settle(&mut self, job: u32, sets: &[SetId]) {
        for id in sets {
            if self.unready.get(id) == Some(&job) {
                self.unready.remove(id);
                self.being_edited.remove(id);
            }
        }
    }

    /// Whether there may be sets that nobody uses.
    pub fn has_garbage(&self) -> bool {
        !(self.maybe_dead.is_empty() && self.dying.is_empty())
    }

    /// How much there is, about: rows of sets that nobody uses.
    pub(crate) fn n_garbage(&self) -> usize {
        let unused = self.maybe_dead.iter().filter_map(|id| self.by_id.get(id));
        let unused = unused.filter(|set| set.n_users == 0).map(|set| set.rows.len());
        unused.sum::<usize>() + self.dying.iter().map(|dying| dying.rows.len()).sum::<usize>()
    }

    /// Forgets sets that nobody uses any more, and so many rows of theirs, which are returned.
    pub(crate) fn take_dead(&mut self, n_most: usize, atoms: &mut Atoms) -> Vec<(SetId, ClassId)> {
        for id in std::mem::take(&mut self.maybe_dead) {
            if self.by_id.get(&id).is_none_or(|set| set.n_users > 0) {
                continue;
            }
            let set = self.by_id.remove(&id).expect("invariant: just looked up");
            self.unhash(set.hash, id);
            self.unready.remove(&id);
            self.being_edited.remove(&id);
            self.unnoted_edits.retain(|(edited, _)| *edited != id.0);
            self.dying.push(Dying::of(id, set));
        }
        let mut rows = Vec::new();
        while rows.len() < n_most
            && let Some(dying) = self.dying.last_mut()
        {
            let n_left = n_most - rows.len();
            let at = dying.rows.len().saturating_sub(n_left);
            rows.extend(dying.rows.drain(at..).map(|class| (dying.id, class)));
            let at = dying.mentions.len().saturating_sub(n_left);
            for (meaning, mark) in dying.mentions.drain(at..) {
                atoms.unmention(mark, dying.id);
                atoms.unwrite(meaning);
            }
            if !(dying.rows.is_empty() && dying.mentions.is_empty()) {
                break;
            }
            for name in &dying.names {
                atoms.unmention_name(name, dying.id);
            }
            let id = dying.id;
            self.release_number(id);
            self.dying.pop();
        }
        rows
    }

    fn unhash(&mut self, hash: u64, id: SetId) {
        if let Some(ids) = self.by_hash.get_mut(&hash) {
            ids.remove(id);
            if ids.is_empty() {
                self.by_hash.remove(&hash);
            }
        }
    }

    // === Editing in place ===

    /// Whether a set can be edited in place so, and no more addresses than that move then: else a
    /// new one is less work.
    pub(crate) fn is_editable(
        &self,
        id: SetId,
        changes: &Changes,
        most_moves: usize,
        atoms: &Atoms,
        n_addresses: impl Fn(ClassId) -> usize,
    ) -> bool {
        let Some(set) = self.get(id).filter(|_| id != CLOSED) else { return false };
        // The row for those of whom it is not known who they are would have to change.
        if set.is_ranked()
            || changes.iter().flat_map(|(_, new)| new).any(|new| !new.rulings.is_empty())
        {
            return false;
        }
        let names = |allowed: &Arc<Allowed>| !allowed.names.is_empty();
        let has_names = changes.iter().any(|(predicate, allowed)| {
            set.allowed(predicate).is_some_and(names) || allowed.as_ref().is_some_and(names)
        });
        if has_names {
            return false;
        }
        let mut n_moves = changes.len();
        for (predicate, _) in changes {
            let Some(needed) = predicate.parts().0 else { return false };
            let classes = &atoms.get(atoms.current(needed)).classes;
            n_moves += classes.iter().map(&n_addresses).sum::<usize>();
            if n_moves > most_moves {
                return false;
            }
        }
        true
    }

    /// Of sets that are to be edited in place, those that must not be: some rows would have to
    /// change after the edit, because another set keeps the addresses apart that this one no longer
    /// tells apart; or there would be two sets with the same content.
    pub fn bound(&self, edits: &FxHashMap<SetId, Changes>, atoms: &Atoms) -> Vec<SetId> {
        let mut droppers: FxHashMap<AtomId, Vec<SetId>> = FxHashMap::default();
        let mut by_hash: FxHashMap<u64, SetId> = FxHashMap::default();
        let mut bound = Vec::new();
        for (&id, changes) in edits {
            let Some(set) = self.get(id) else { continue };
            for meaning in set.dropped(changes) {
                droppers.entry(set.mentions[&meaning].mark).or_default().push(id);
            }
            let hash = set.hash_with(changes);
            if self.by_hash.contains_key(&hash) || by_hash.insert(hash, id).is_some() {
                bound.push(id);
            }
        }
        let kept =
            droppers.into_iter().filter(|(mark, ids)| atoms.get(*mark).sets.len() > ids.len());
        bound.extend(kept.flat_map(|(_, ids)| ids));
        bound
    }

    /// Changes what a set allows, under the same number. No row changes: the addresses concerned
    /// get other classes, since what the set mentions of the predicates that change is renewed,
    /// and the rows for these classes are new ones. So every address is judged by the set of
    /// before until its class changes, and by the new one from then on.
    pub fn edit(&mut self, id: SetId, changes: &Changes, atoms: &mut Atoms, renewed: &mut Renewed) {
        let Some(set) = self.by_id.get_mut(&id) else { return };
        self.edited.push(id);
        let before = set.hash;
        for (predicate, allowed) in changes {
            // First what is new, so that mentions stay that are still needed.
            let old = set.find(predicate);
            if let Some(allowed) = allowed {
                set.put(predicate.clone(), allowed.clone(), atoms);
            }
            if let Some(old) = old {
                set.take(old);
            }
        }
        for (predicate, _) in changes {
            let (needed, except) = predicate.parts();
            for &meaning in needed.iter().chain(except) {
                let Some(mention) = set.mentions.get_mut(&meaning) else { continue };
                if mention.n_predicates == 0 {
                    let mark = mention.mark;
                    set.mentions.remove(&meaning);
                    atoms.unmention(mark, id);
                    atoms.unwrite(meaning);
                    continue;
                }
                let is_new = !atoms.get(mention.mark).sets.contains(id);
                if is_new || Some(meaning) == needed {
                    let mark = *renewed.0.entry(meaning).or_insert_with(|| atoms.renew(meaning));
                    let old = std::mem::replace(&mut mention.mark, mark);
                    if !is_new && old != mark {
                        atoms.unmention(old, id);
                    }
                    atoms.mention(mark, id);
                }
            }
        }
        let now = set.hash;
        // Now, since what it no longer mentions is forgotten soon.
        self.unnoted_edits.push((id.0, super::ids::edit_key(set, changes, atoms)));
        self.unhash(before, id);
        self.by_hash.entry(now).or_default().insert(id);
    }
}

/// A set that nobody uses, as far as something else refers to it.
#[derive(Debug)]
struct Dying {
    id: SetId,
    rows: Vec<ClassId>,
    /// Meanings and what it mentioned for them.
    mentions: Vec<(AtomId, AtomId)>,
    names: BTreeSet<(Protocol, Str)>,
}

impl Dying {
    fn of(id: SetId, set: Set) -> Self {
        let names = set.names();
        let mentions = set.mentions.iter().map(|(&meaning, mention)| (meaning, mention.mark));
        Self { id, mentions: mentions.collect(), rows: set.rows.into_keys().collect(), names }
    }
}

/// What was renewed in one settle, so that sets that are edited alike mention the same.
#[derive(Debug, Default)]
pub(super) struct Renewed(FxHashMap<AtomId, AtomId>);

/// The content for a pod in one direction: the union of the rules of `policies`, which are those
/// that select the pod and isolate in that direction, and what has a rank.
pub(super) fn content<'a>(
    policies: impl Iterator<Item = &'a Policy>,
    ranked: &'a Ranked,
    pod: &Pod,
    direction: Direction,
    atoms: &mut Atoms,
) -> Content {
    let own = own_ports(pod, direction);
    let mut any = Vec::new();
    let mut union: FxHashMap<Predicate, Rules> = FxHashMap::default();
    let mut sums = Sums::default();
    let rules = policies.filter_map(|policy| policy.rules(direction)).flatten();
    let rules = rules.map(|rule| (&rule.peers, &rule.ports, None));
    let with_rank = ranked.rules.iter();
    let with_rank = with_rank.map(|rule| (&rule.peers, &rule.ports, rule.ruling.as_ref()));
    for (peers, ports, ruling) in with_rank.chain(rules) {
        let index = u32::try_from(sums.rules.len()).expect("invariant: rules fit into memory");
        sums.rules.push(Said { ports, ruling });
        match peers {
            Peers::Any => any.push(index),
            Peers::Only(peers) => {
                for peer in &**peers {
                    match union.entry(Predicate::of(peer, atoms)) {
                        Entry::Vacant(entry) => {
                            entry.insert(Rules::One(index));
                        }
                        Entry::Occupied(mut entry) => entry.get_mut().add(index),
                    }
                }
            }
        }
    }
    let any = sums.of(any, own);
    let mut content = Vec::with_capacity(union.len() + 2);
    content.extend(any.clone().map(|allowed| (Predicate::Any, allowed)));
    content.extend(ranked.judges_own.then(own_entry));
    for (predicate, rules) in union {
        // Not what everybody is allowed anyway.
        let allowed = sums.of(rules.into(), own);
        let allowed = allowed.and_then(|allowed| Allowed::beyond(&allowed, any.as_deref()));
        content.extend(allowed.map(|allowed| (predicate, allowed)));
    }
    content.into()
}

/// Whether a set with this content judges what an endpoint sends to itself.
pub(super) fn judges_own(content: &[(Predicate, Arc<Allowed>)]) -> bool {
    content.iter().any(|(predicate, _)| *predicate == Predicate::Own)
}

/// What a set has that judges what an endpoint sends to itself.
fn own_entry() -> (Predicate, Arc<Allowed>) {
    (Predicate::Own, Arc::new(Allowed { everything: true, ..Allowed::default() }))
}

/// Rules in their order, mostly one.
#[derive(Debug)]
enum Rules {
    One(u32),
    Many(Vec<u32>),
}

impl Rules {
    fn add(&mut self, rule: u32) {
        match self {
            Self::One(other) if *other == rule => {}
            Self::One(other) => *self = Self::Many(vec![*other, rule]),
            Self::Many(rules) if rules.last() == Some(&rule) => {}
            Self::Many(rules) => rules.push(rule),
        }
    }
}

impl From<Rules> for Vec<u32> {
    fn from(rules: Rules) -> Self {
        match rules {
            Rules::One(rule) => vec![rule],
            Rules::Many(rules) => rules,
        }
    }
}

/// Where the names of a rule's ports are looked up now, if at all.
pub(super) fn own_ports(pod: &Pod, direction: Direction) -> Option<&[NamedPort]> {
    match direction {
        Direction::Ingress => Some(&pod.ports),
        Direction::Egress => None,
    }
}

/// What a rule says of those whom it means.
#[derive(Debug, Clone, Copy)]
struct Said<P, R> {
    /// Which ports.
    ports: P,
    /// When it is asked and what of them, if it has a rank.
    ruling: R,
}

/// What rules say together, each combination once.
#[derive(Debug)]
struct Sums<P, R> {
    /// All rules.
    rules: Vec<Said<P, R>>,
    by_rules: FxHashMap<Vec<u32>, Option<Arc<Allowed>>>,
    known: FxHashMap<Allowed, Arc<Allowed>>,
}

impl<P, R> Default for Sums<P, R> {
    fn default() -> Self {
        Self { rules: Vec::new(), by_rules: FxHashMap::default(), known: FxHashMap::default() }
    }
}

impl<P: Borrow<Ports>, R: Borrow<(Rank, Action)>> Sums<P, Option<R>> {
    /// `None`: nothing. Names of ports are looked up in `own`, if at all.
    fn of(&mut self, rules: Vec<u32>, own: Option<&[NamedPort]>) -> Option<Arc<Allowed>> {
        if let Some(known) = self.by_rules.get(&rules) {
            return known.clone();
        }
        let mut sum = Allowed::default();
        for &rule in &rules {
            let Said { ports, ruling } = &self.rules[rule as usize];
            let Some(ruling) = ruling else {
                sum.add(ports.borrow(), own);
                continue;
            };
            let mut ports_said = Allowed::default();
            ports_said.add(ports.borrow(), own);
            ports_said.normalise();
            if !ports_said.is_empty() {
                let (rank, action) = ruling.borrow().clone();
                sum.rulings.push(Ruling { rank, action, ports: ports_said });
            }
        }
        sum.normalise();
        sum.rulings.sort_unstable();
        let allowed = (!sum.is_empty()).then(|| match self.known.get(&sum) {
            Some(known) => known.clone(),
            None => {
                let shared = Arc::new(sum.clone());
                self.known.insert(sum, shared.clone());
                shared
            }
        });
        self.by_rules.insert(rules, allowed.clone());
        allowed
    }
}

/// What rules of NetworkPolicies with these ports allow together; `None`: nothing.
pub(super) fn sum<'a>(
    ports: impl Iterator<Item = &'a Ports>,
    own: Option<&[NamedPort]>,
) -> Option<Allowed> {
    let mut allowed = Allowed::default();
    ports.for_each(|ports| allowed.add(ports, own));
    allowed.normalise();
    (!allowed.is_empty()).then_some(allowed)
}
