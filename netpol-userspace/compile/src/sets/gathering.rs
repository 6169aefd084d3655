//! A set that is made a part at a time, where policies say very much. Must never be seen by anybody
//! before it says all that they say: until then it has no number and nothing finds it.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use rustc_hash::{FxHashMap, FxHasher};

use super::{
    Atoms, Predicate, Rank, Ranked, Rules, Said, Set, SetId, Sets, SmallSet, Sums, entry_hash,
    own_entry,
};
use crate::ports::Allowed;
use netpol_model::{Action, Direction, NamedPort, ObjectName, Peers, Policy, Ports};

/// What policies say together, as far as it has been gathered. The atoms that it has met live until
/// it is a set or is given up.
#[derive(Debug)]
pub(crate) struct Gathering {
    /// What has a rank, which comes first.
    ranked: Ranked,
    /// The policies that say the rest, which are read as they were when it was begun.
    policies: Vec<ObjectName>,
    direction: Direction,
    /// Where names of ports are looked up, if at all.
    own: Option<Vec<NamedPort>>,
    /// What is looked at next: policy, from 1, rule and peer. The ranked rules are policy 0.
    next: (usize, usize, usize),
    /// How many steps are left, about.
    n_left: usize,
    /// For how many peers room is made when it is begun: many may be waiting.
    n_room: usize,
    /// The rules about everybody.
    any: Vec<u32>,
    /// For each entry of the set the rules about it, until it is known what they allow together.
    rules: Vec<Rules>,
    /// Where predicates are, by hash.
    known: FxHashMap<u64, SmallSet<u32>>,
    sums: Sums<Ports, Option<(Rank, Action)>>,
    are_summed: bool,
    set: Set,
    /// What entries have until it is known what they allow.
    unknown: Arc<Allowed>,
}

fn hash(predicate: &Predicate) -> u64 {
    let mut hasher = FxHasher::default();
    predicate.hash(&mut hasher);
    hasher.finish()
}

impl Gathering {
    /// Of these policies, which isolate a pod in a direction and have about so many peers. Names of ports
    /// are looked up in `own`, if at all.
    pub fn new(
        ranked: Ranked,
        policies: Vec<ObjectName>,
        direction: Direction,
        own: Option<Vec<NamedPort>>,
        n_peers: usize,
    ) -> Self {
        let mut set = Set::empty();
        if ranked.judges_own {
            let (_, own) = own_entry();
            set.hash = entry_hash(&Predicate::Own, &own);
            set.own = Some(own);
        }
        Self {
            ranked,
            policies,
            direction,
            own,
            next: (0, 0, 0),
            n_left: 2 * n_peers,
            n_room: n_peers,
            any: Vec::new(),
            rules: Vec::new(),
            known: FxHashMap::default(),
            sums: Sums::default(),
            are_summed: false,
            set,
            unknown: Arc::new(Allowed::default()),
        }
    }

    /// How many steps are left, about.
    pub fn n_left(&self) -> usize {
        self.n_left
    }

    /// Does about so many steps: a peer that is looked at is one, and so is finding out what it is
    /// allowed. Returns whether all is done.
    pub fn go_on<'a>(
        &mut self,
        left: &mut usize,
        policy: impl Fn(&ObjectName) -> Option<&'a Policy>,
        atoms: &mut Atoms,
    ) -> bool {
        let n_room = std::mem::take(&mut self.n_room);
        self.known.reserve(n_room);
        self.set.make_room(n_room);
        while *left > 0 && self.next.0 == 0 {
            match self.ranked.rules.get(self.next.1).cloned() {
                Some(rule) => self.look(&rule.peers, &rule.ports, rule.ruling, left, atoms),
                None => self.next = (1, 0, 0),
            }
        }
        while *left > 0
            && let Some(id) = self.next.0.checked_sub(1).and_then(|at| self.policies.get(at))
        {
            let rules = policy(id).and_then(|policy| policy.rules(self.direction));
            match rules.unwrap_or_default().get(self.next.1) {
                Some(rule) => self.look(&rule.peers, &rule.ports, None, left, atoms),
                None => self.next = (self.next.0 + 1, 0, 0),
            }
        }
        if self.next.0 <= self.policies.len() {
            return false;
        }
        if !std::mem::replace(&mut self.are_summed, true) {
            self.known = FxHashMap::default();
            let any = std::mem::take(&mut self.any);
            if let Some(any) = self.sums.of(any, self.own.as_deref()) {
                self.set.put(Predicate::Any, any, atoms);
            }
        }
        // From the last one on, so that what is left out leaves the others where they are.
        while *left > 0
            && let Some(rules) = self.rules.pop()
        {
            *left -= 1;
            self.n_left = self.n_left.saturating_sub(1);
            let allowed = self.sums.of(rules.into(), self.own.as_deref());
            // Not what everybody is allowed anyway.
            let any = self.set.any.as_deref();
            let allowed = allowed.and_then(|allowed| Allowed::beyond(&allowed, any));
            self.set.allow(self.rules.len(), allowed, atoms);
        }
        self.rules.is_empty()
    }

    /// Looks at what is left of a rule.
    fn look(
        &mut self,
        peers: &Peers,
        ports: &Ports,
        ruling: Option<(Rank, Action)>,
        left: &mut usize,
        atoms: &mut Atoms,
    ) {
        if self.next.2 == 0 {
            self.sums.rules.push(Said { ports: ports.clone(), ruling });
        }
        let rule =
            u32::try_from(self.sums.rules.len() - 1).expect("invariant: rules fit into memory");
        let rest = peers.named().get(self.next.2..).unwrap_or_default();
        let n = rest.len().min(*left);
        for peer in &rest[..n] {
            self.add(Predicate::of(peer, atoms), rule, atoms);
        }
        *left -= n.max(1);
        self.n_left = self.n_left.saturating_sub(n);
        if n < rest.len() {
            self.next.2 += n;
            return;
        }
        if *peers == Peers::Any {
            self.any.push(rule);
        }
        self.next = (self.next.0, self.next.1 + 1, 0);
    }

    fn add(&mut self, predicate: Predicate, rule: u32, atoms: &mut Atoms) {
        let places = self.known.entry(hash(&predicate)).or_default();
        let entries = &self.set.entries;
        if let Some(at) = places.iter().find(|&at| entries[at as usize].0 == predicate) {
            return self.rules[at as usize].add(rule);
        }
        places.insert(u32::try_from(entries.len()).expect("invariant: predicates fit into memory"));
        self.rules.push(Rules::One(rule));
        // What it is to mention is found when it gets its number.
        self.set.place(predicate, self.unknown.clone(), atoms, |_, meaning| meaning);
    }

    /// Nobody wants it any more.
    pub fn give_up(self, atoms: &mut Atoms) {
        self.set.forget(atoms);
    }
}

impl Set {
    /// Makes room for so many predicates: to do so later is long at a time.
    fn make_room(&mut self, n_predicates: usize) {
        self.entries.reserve_exact(n_predicates);
        self.mentions.reserve(n_predicates);
    }

    /// Gives back room that is of no use: many policies may say the same.
    fn give_room_back(&mut self) {
        if self.entries.capacity() > 2 * self.entries.len() {
            self.entries.shrink_to_fit();
        }
        if self.mentions.capacity() > 4 * self.mentions.len() {
            self.mentions.shrink_to_fit();
        }
    }

    /// What the entry at a position allows, of which that is not known yet; nothing: it is left out.
    fn allow(&mut self, at: usize, allowed: Option<Arc<Allowed>>, atoms: &mut Atoms) {
        let (predicate, known) = &mut self.entries[at];
        if let Some(allowed) = allowed {
            self.n_ranked += usize::from(!allowed.rulings.is_empty());
            *known = allowed;
            self.hash = self.hash.wrapping_add(entry_hash(predicate, known));
            return;
        }
        self.hash = self.hash.wrapping_add(entry_hash(predicate, known));
        let predicate = predicate.clone();
        self.take(u32::try_from(at).expect("invariant: predicates fit into memory"));
        for atom in predicate.atoms() {
            if self.mentions.get(&atom).is_some_and(|mention| mention.n_predicates == 0) {
                self.mentions.remove(&atom);
                atoms.unwrite(atom);
            }
        }
    }

    /// It will not be a set.
    fn forget(self, atoms: &mut Atoms) {
        self.mentions.into_keys().for_each(|meaning| atoms.unwrite(meaning));
    }

    fn is_equal(&self, other: &Self) -> bool {
        self.any == other.any
            && self.own == other.own
            && self.entries.len() == other.entries.len()
            && other
                .entries
                .iter()
                .all(|(predicate, allowed)| self.allowed(predicate) == Some(allowed))
    }
}

impl Sets {
    /// The set with the content that has been gathered, for one more user.
    pub(crate) fn acquire_gathered(&mut self, gathering: Gathering, atoms: &mut Atoms) -> SetId {
        let mut set = gathering.set;
        let known = {
            let mut alike = self.by_hash.get(&set.hash).into_iter().flat_map(SmallSet::iter);
            alike.find(|id| self.by_id[id].is_equal(&set))
        };
        if let Some(id) = known {
            set.forget(atoms);
            return self.share(id, atoms);
        }
        let Some(id) = self.number(set.own.is_some()) else {
            set.forget(atoms);
            return self.none_left();
        };
        set.give_room_back();
        for (meaning, mention) in &mut set.mentions {
            mention.mark = atoms.usable(*meaning);
        }
        self.register(id, set, atoms);
        id
    }
}
