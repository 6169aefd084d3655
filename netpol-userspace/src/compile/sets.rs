//! Policy sets: what all policies that apply to an endpoint in one direction allow together, in
//! canonical form, interned. Must never depend on the order or the grouping of policies.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::atoms::{Atom, AtomId, Atoms};
use super::ids::IdPool;
use super::plan::Row;
use super::ports::Allowed;
use super::{ClassId, SetId};
use crate::model::{Direction, Peer, Peers, Pod, Policy, Protocol, Str};

/// Whom some ports are allowed to or from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Predicate {
    /// Everybody.
    Any,
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
    /// The atom without which it does not match, and those with which it does not match.
    fn parts(&self) -> (Option<AtomId>, &[AtomId]) {
        match self {
            Self::Any => (None, &[]),
            Self::Pods(atom) => (Some(*atom), &[]),
            Self::Block { cidr, except } => (Some(*cidr), except),
        }
    }
}

/// A set's content: predicates in order, each with what it allows, which is never nothing.
pub(super) type Content = Arc<[(Predicate, Allowed)]>;

/// A set in use.
#[derive(Debug)]
pub(super) struct Set {
    /// What it allows to whom.
    pub content: Content,
    /// Its rows; the one for [`ClassId::NONE`] is what it allows to everybody.
    pub rows: FxHashMap<ClassId, Row>,
    /// Positions in `content` by the atom without which the predicate does not match.
    pub by_atom: FxHashMap<AtomId, Vec<u32>>,
    n_users: u32,
}

impl Set {
    fn new(content: Content) -> Self {
        let mut by_atom: FxHashMap<AtomId, Vec<u32>> = FxHashMap::default();
        for (index, (predicate, _)) in content.iter().enumerate() {
            if let (Some(atom), _) = predicate.parts() {
                let index = u32::try_from(index).expect("invariant: predicates fit into memory");
                by_atom.entry(atom).or_default().push(index);
            }
        }
        Self { content, rows: FxHashMap::default(), by_atom, n_users: 1 }
    }

    /// What it allows to everybody, if there is such a rule.
    pub fn to_any(&self) -> Option<&Allowed> {
        // `Predicate::Any` sorts first.
        self.content.first().filter(|(p, _)| *p == Predicate::Any).map(|(_, allowed)| allowed)
    }

    /// What the predicate at a position allows to an address with these atoms.
    pub fn allowed_at(&self, position: u32, atoms: &[AtomId]) -> Option<&Allowed> {
        let (predicate, allowed) = &self.content[position as usize];
        let (_, except) = predicate.parts();
        let excepted = except.iter().any(|atom| atoms.binary_search(atom).is_ok());
        (!excepted).then_some(allowed)
    }

    /// The row that decides for a class.
    pub fn row(&self, class: ClassId) -> Option<&Row> {
        self.rows.get(&class).or_else(|| self.rows.get(&ClassId::NONE))
    }

    /// Every atom that it mentions.
    pub fn atoms(&self) -> BTreeSet<AtomId> {
        self.content
            .iter()
            .flat_map(|(predicate, _)| {
                let (needed, except) = predicate.parts();
                needed.into_iter().chain(except.iter().copied())
            })
            .collect()
    }

    /// Every port name that it mentions.
    pub fn names(&self) -> BTreeSet<(Protocol, Str)> {
        self.content.iter().flat_map(|(_, allowed)| allowed.names.iter().cloned()).collect()
    }
}

/// All sets in use.
#[derive(Debug)]
pub(super) struct Sets {
    by_id: FxHashMap<SetId, Set>,
    by_content: HashMap<Content, SetId>,
    /// Free numbers.
    pub ids: IdPool,
    /// Sets whose rows are still to be computed.
    pub fresh: Vec<SetId>,
    /// Sets whose numbers have not been asked for yet.
    pub unnoted: Vec<SetId>,
    maybe_dead: Vec<SetId>,
    /// Whether a set could not be numbered since this was last cleared.
    pub exhausted: bool,
}

/// The set that isolates and allows nothing. It always exists, so that there is something to fail
/// closed with when numbers run out.
pub(super) const CLOSED: SetId = SetId(1);

impl Sets {
    /// Only the closed set; numbers up to and including `last`.
    pub fn new(last: u16) -> Self {
        let nothing: Content = Arc::new([]);
        Self {
            by_id: FxHashMap::from_iter([(CLOSED, Set::new(nothing.clone()))]),
            by_content: HashMap::from_iter([(nothing, CLOSED)]),
            ids: IdPool::new(u32::from(CLOSED.0) + 1, u32::from(last)),
            fresh: Vec::new(),
            unnoted: Vec::new(),
            maybe_dead: Vec::new(),
            exhausted: false,
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

    /// The set with this content, for one more user.
    pub fn acquire(&mut self, content: Content, atoms: &mut Atoms) -> SetId {
        if let Some(&id) = self.by_content.get(&content) {
            self.retain(id);
            return id;
        }
        let number = self.ids.allocate().and_then(|number| u16::try_from(number).ok());
        let Some(number) = number else {
            self.exhausted = true;
            self.retain(CLOSED);
            return CLOSED;
        };
        self.insert(SetId(number), content, atoms);
        SetId(number)
    }

    /// Makes a new set under a number taken from the pool.
    pub fn insert(&mut self, id: SetId, content: Content, atoms: &mut Atoms) {
        let set = Set::new(content.clone());
        for atom in set.atoms() {
            atoms.mention(atom, id);
        }
        for name in set.names() {
            atoms.mention_name(&name, id);
        }
        self.by_content.insert(content, id);
        self.by_id.insert(id, set);
        self.fresh.push(id);
        self.unnoted.push(id);
    }

    /// Whether a set with this content exists.
    pub fn contains(&self, content: &Content) -> bool {
        self.by_content.contains_key(content)
    }

    fn retain(&mut self, id: SetId) {
        self.by_id.get_mut(&id).expect("invariant: interned sets exist").n_users += 1;
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

    /// Forgets sets that nobody uses any more and returns them.
    pub fn take_dead(&mut self, atoms: &mut Atoms) -> Vec<(SetId, Set)> {
        let mut dead = Vec::new();
        for id in std::mem::take(&mut self.maybe_dead) {
            if self.by_id.get(&id).is_none_or(|set| set.n_users > 0) {
                continue;
            }
            let set = self.by_id.remove(&id).expect("invariant: just looked up");
            for atom in set.atoms() {
                atoms.unmention(atom, id);
            }
            for name in set.names() {
                atoms.unmention_name(&name, id);
            }
            self.by_content.remove(&set.content);
            self.ids.release(u32::from(id.0));
            dead.push((id, set));
        }
        dead
    }
}

/// The content for a pod in one direction: the union of the rules of `policies`, which are those
/// that select the pod and isolate in that direction.
pub(super) fn content<'a>(
    policies: impl Iterator<Item = &'a Policy>,
    pod: &Pod,
    direction: Direction,
    atoms: &mut Atoms,
) -> Content {
    let own = match direction {
        Direction::Ingress => Some(pod.ports.as_slice()),
        Direction::Egress => None,
    };
    let mut union: BTreeMap<Predicate, Allowed> = BTreeMap::new();
    for rule in policies.filter_map(|policy| policy.rules(direction)).flatten() {
        let mut add = |predicate| union.entry(predicate).or_default().add(&rule.ports, own);
        match &rule.peers {
            Peers::Any => add(Predicate::Any),
            Peers::Only(peers) => peers.iter().for_each(|peer| add(predicate(peer, atoms))),
        }
    }
    canonical(union)
}

fn predicate(peer: &Peer, atoms: &mut Atoms) -> Predicate {
    match peer {
        Peer::Pods { namespaces, pods } => Predicate::Pods(
            atoms.intern(Atom::Pods { namespaces: namespaces.clone(), pods: pods.clone() }),
        ),
        Peer::Block(block) => {
            let mut except: Vec<AtomId> =
                block.except.iter().map(|part| atoms.intern(Atom::Cidr(*part))).collect();
            except.sort_unstable();
            Predicate::Block { cidr: atoms.intern(Atom::Cidr(block.cidr)), except: except.into() }
        }
    }
}

/// Leaves out what allows nothing, or nothing that everybody is not allowed anyway.
fn canonical(mut union: BTreeMap<Predicate, Allowed>) -> Content {
    union.values_mut().for_each(Allowed::normalise);
    let any = union.remove(&Predicate::Any).unwrap_or_default();
    union.retain(|_, allowed| !any.covers(allowed));
    let any = (!any.is_empty()).then_some((Predicate::Any, any));
    any.into_iter().chain(union).collect()
}
