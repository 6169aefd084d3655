//! Numbers for sets and classes: handing them out, and what they stand for in a form that can be
//! written, by which a restarted agent gives equal content the same numbers. Must never reuse a
//! number while anything of its former meaning may be left.

use std::collections::BTreeMap;
use std::sync::Arc;

use ipnet::IpNet;
use rustc_hash::{FxHashMap, FxHashSet};
use serde::{Deserialize, Serialize};

use super::atoms::{Atom, AtomId, Atoms};
pub use super::keys::ClassKey;
use super::ports::Allowed;
use super::sets::{Changes, Predicate, Set};
use super::tiers::{Layer, Rank, Ruling};
use netpol_model::{
    Action, NamedPort, NamespaceScope, Operator, Protocol, Requirement, Selector, Str,
};

/// Free numbers of one kind. A number that is given back rests until the datapath holds nothing
/// under it any more, and no packet in flight does: only then it may come to mean something else.
#[derive(Debug)]
pub(super) struct IdPool {
    first: u32,
    last: u32,
    next: u32,
    /// In use or resting.
    used: FxHashSet<u32>,
    resting: Vec<u32>,
}

impl IdPool {
    /// All numbers from `first` to `last`, both included.
    pub fn new(first: u32, last: u32) -> Self {
        Self { first, last, next: first, used: FxHashSet::default(), resting: Vec::new() }
    }

    /// A free number, `None` if there is none.
    pub fn allocate(&mut self) -> Option<u32> {
        let n_all = (self.last + 1).saturating_sub(self.first);
        if self.used.len() >= n_all as usize {
            return None;
        }
        loop {
            let id = self.next;
            self.next = if id < self.last { id + 1 } else { self.first };
            if self.used.insert(id) {
                return Some(id);
            }
        }
    }

    /// Takes a certain number. Returns whether it was there to be taken.
    pub fn take(&mut self, id: u32) -> bool {
        (self.first..=self.last).contains(&id) && self.used.insert(id)
    }

    /// Gives a number back, to rest.
    pub fn release(&mut self, id: u32) {
        self.resting.push(id);
    }

    /// The numbers given back so far have rested long enough. Returns whether there were any.
    pub(crate) fn free_rested(&mut self) -> bool {
        for id in &self.resting {
            self.used.remove(id);
        }
        !std::mem::take(&mut self.resting).is_empty()
    }

    /// The last number there is.
    pub fn last(&self) -> u32 {
        self.last
    }

    /// Where the search for the next free number starts.
    pub fn next(&self) -> u32 {
        self.next
    }

    /// Whether the search is where it began.
    pub(crate) fn is_untouched(&self) -> bool {
        self.next == self.first
    }

    /// Starts the search for the next free number there.
    pub fn start_at(&mut self, next: u32) {
        self.next = next.clamp(self.first, self.last);
    }
}

/// The numbers in use and what they stand for, to be written down and given to
/// [`Compiler::adopt`](super::Compiler::adopt) of the next run. The keys are of this module's
/// making: to be stored and compared, not read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ids {
    /// Set numbers by content.
    pub sets: BTreeMap<Arc<str>, u16>,
    /// What sets say since, each with the set's number, in this order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub edits: Vec<(u16, String)>,
    /// Class numbers by content.
    pub classes: BTreeMap<ClassKey, u32>,
    /// Where the search for the next free set number starts.
    pub next_set: u32,
    /// The same of sets that judge what an endpoint sends to itself.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub next_own_set: u32,
    /// Where the search for the next free class number starts.
    pub next_class: u32,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks so")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

#[derive(Serialize, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
enum AtomKey {
    PodsIn(String, Vec<RequirementKey>),
    Pods(Vec<RequirementKey>, Vec<RequirementKey>),
    Cidr(IpNet),
    Port(u8, String, u16),
}

#[derive(Serialize, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
enum RequirementKey {
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Exists(String),
    DoesNotExist(String),
}

#[derive(Serialize, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
enum PredicateKey {
    Any,
    Own,
    Pods(AtomKey),
    Block(AtomKey, Vec<AtomKey>),
}

#[derive(Clone, Serialize, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
enum AllowedKey {
    Everything,
    Ports([Vec<(u16, u16)>; 3], Vec<(u8, String)>),
    /// What NetworkPolicies allow, and what ClusterNetworkPolicies say.
    Ranked(Box<AllowedKey>, Vec<RulingKey>),
}

#[derive(Clone, Serialize, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
struct RulingKey {
    layer: LayerKey,
    priority: u16,
    policy: String,
    rule: u16,
    action: ActionKey,
    ports: AllowedKey,
}

#[derive(Clone, Copy, Serialize, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
enum LayerKey {
    Admin,
    Baseline,
    Rest,
}

#[derive(Clone, Copy, Serialize, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
enum ActionKey {
    Accept,
    Deny,
    Pass,
}

/// A set as it is written. Those who are allowed the same stand together, most of which are blocks
/// without exceptions.
#[derive(Serialize, Deserialize)]
struct SetText {
    allowed: Vec<(AllowedKey, Vec<IpNet>, Vec<PredicateKey>)>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    turns: TurnKeys,
}

/// A set as earlier releases have written it, alone or with its turns.
type SetKey = Vec<(PredicateKey, AllowedKey)>;
/// Which renewals of atoms are meant; 0 is the atom itself.
type TurnKeys = Vec<(AtomKey, u32)>;
type EditKey = (Vec<(PredicateKey, Option<AllowedKey>)>, TurnKeys);

/// The key of a class with these atoms.
pub(super) fn class_key(content: &[AtomId], atoms: &Atoms) -> ClassKey {
    if let [id] = content
        && let (Atom::Cidr(block), 0) = (&*atoms.get(*id).atom, atoms.get(*id).turn)
    {
        return ClassKey::of_block(*block);
    }
    let mut key: Vec<(AtomKey, u32)> =
        content.iter().map(|&id| (atom_key(id, atoms), atoms.get(id).turn)).collect();
    key.sort();
    match key.iter().all(|(_, turn)| *turn == 0) {
        true => ClassKey::of_json(&key.iter().map(|(atom, _)| atom).collect::<Vec<_>>()),
        false => ClassKey::of_json(&key),
    }
}

/// The text of a set.
pub(super) fn set_key(set: &Set, atoms: &Atoms) -> Arc<str> {
    let mut groups: FxHashMap<&Allowed, (Vec<IpNet>, Vec<PredicateKey>)> = FxHashMap::default();
    for (predicate, allowed) in set.entries() {
        let (blocks, others) = groups.entry(&**allowed).or_default();
        match predicate_key(predicate, atoms) {
            PredicateKey::Block(AtomKey::Cidr(block), except) if except.is_empty() => {
                blocks.push(block);
            }
            other => others.push(other),
        }
    }
    let group = |(allowed, (mut blocks, mut others)): (_, (Vec<IpNet>, Vec<PredicateKey>))| {
        blocks.sort_unstable();
        others.sort();
        (allowed_key(allowed), blocks, others)
    };
    let mut allowed: Vec<_> = groups.into_iter().map(group).collect();
    allowed.sort();
    text(&SetText { allowed, turns: turn_keys(set, set.renewed(), atoms) }).into()
}

/// The text of what changed of a set.
pub(super) fn edit_key(set: &Set, changes: &Changes, atoms: &Atoms) -> String {
    let key = |(predicate, allowed): &(Predicate, Option<Arc<Allowed>>)| {
        (predicate_key(predicate, atoms), allowed.as_deref().map(allowed_key))
    };
    let mentioned = changes.iter().flat_map(|(predicate, _)| predicate.atoms());
    let key: EditKey = (changes.iter().map(key).collect(), turn_keys(set, mentioned, atoms));
    text(&key)
}

fn turn_keys(set: &Set, meanings: impl Iterator<Item = AtomId>, atoms: &Atoms) -> TurnKeys {
    let turn = |meaning| Some((atom_key(meaning, atoms), atoms.get(set.mark(meaning)?).turn));
    let mut turns: TurnKeys = meanings.filter_map(turn).collect();
    turns.sort();
    turns.dedup();
    turns
}

fn text(key: &impl Serialize) -> String {
    serde_json::to_string(key).expect("invariant: keys hold nothing that JSON cannot")
}

fn atom_key(id: AtomId, atoms: &Atoms) -> AtomKey {
    match &*atoms.get(id).atom {
        Atom::Pods { namespaces: NamespaceScope::Named(name), pods } => {
            AtomKey::PodsIn(name.to_string(), selector_key(pods))
        }
        Atom::Pods { namespaces: NamespaceScope::Matching(selector), pods } => {
            AtomKey::Pods(selector_key(selector), selector_key(pods))
        }
        Atom::Cidr(block) => AtomKey::Cidr(*block),
        Atom::Port(port) => AtomKey::Port(port.protocol.number(), port.name.to_string(), port.port),
    }
}

fn selector_key(selector: &Selector) -> Vec<RequirementKey> {
    let strings = |values: &[Str]| values.iter().map(ToString::to_string).collect();
    let key = |requirement: &Requirement| {
        let key = requirement.key.to_string();
        match &requirement.operator {
            Operator::In(values) => RequirementKey::In(key, strings(values)),
            Operator::NotIn(values) => RequirementKey::NotIn(key, strings(values)),
            Operator::Exists => RequirementKey::Exists(key),
            Operator::DoesNotExist => RequirementKey::DoesNotExist(key),
        }
    };
    selector.requirements().iter().map(key).collect()
}

fn predicate_key(predicate: &Predicate, atoms: &Atoms) -> PredicateKey {
    match predicate {
        Predicate::Any => PredicateKey::Any,
        Predicate::Own => PredicateKey::Own,
        Predicate::Pods(atom) => PredicateKey::Pods(atom_key(*atom, atoms)),
        Predicate::Block { cidr, except } => {
            let mut except: Vec<AtomKey> = except.iter().map(|&id| atom_key(id, atoms)).collect();
            except.sort();
            PredicateKey::Block(atom_key(*cidr, atoms), except)
        }
    }
}

fn allowed_key(allowed: &Allowed) -> AllowedKey {
    if !allowed.rulings.is_empty() {
        let rest = Allowed { rulings: Vec::new(), ..allowed.clone() };
        let rulings = allowed.rulings.iter().map(ruling_key).collect();
        return AllowedKey::Ranked(Box::new(allowed_key(&rest)), rulings);
    }
    if allowed.everything {
        return AllowedKey::Everything;
    }
    AllowedKey::Ports(
        allowed.numbers.intervals.clone(),
        allowed.names.iter().map(|(p, name)| (p.number(), name.to_string())).collect(),
    )
}

fn ruling_key(Ruling { rank, action, ports }: &Ruling) -> RulingKey {
    RulingKey {
        layer: match rank.layer {
            Layer::Admin => LayerKey::Admin,
            Layer::Baseline => LayerKey::Baseline,
            Layer::Rest => LayerKey::Rest,
        },
        priority: rank.priority,
        policy: rank.policy.to_string(),
        rule: rank.rule,
        action: match action {
            Action::Accept => ActionKey::Accept,
            Action::Deny => ActionKey::Deny,
            Action::Pass => ActionKey::Pass,
        },
        ports: allowed_key(ports),
    }
}

/// What a set says, and what it mentions instead of meanings.
type ReadSet = (Vec<(Predicate, Arc<Allowed>)>, FxHashMap<AtomId, AtomId>);

/// Reads a set's text back, with what changed since. `None` if it is not of this module's making,
/// as after an upgrade that changed the form.
pub(super) fn read_set<'a>(
    key: &str,
    edits: impl Iterator<Item = &'a str>,
    atoms: &mut Atoms,
) -> Option<ReadSet> {
    let (mut content, mut turns) = read_text(key)?;
    for edit in edits {
        let (changes, since): EditKey = serde_json::from_str(edit).ok()?;
        for (predicate, allowed) in changes {
            match allowed {
                Some(allowed) => content.insert(predicate, allowed),
                None => content.remove(&predicate),
            };
        }
        turns.extend(since);
    }
    let mut read = Vec::with_capacity(content.len());
    for (predicate, allowed) in content {
        read.push((read_predicate(predicate, atoms)?, Arc::new(read_allowed(allowed)?)));
    }
    let mut renewals = FxHashMap::default();
    for (atom, turn) in turns {
        let meaning = atoms.intern(read_atom(atom)?);
        renewals.insert(meaning, atoms.renewal(meaning, turn));
    }
    Some((read, renewals))
}

fn read_text(key: &str) -> Option<(BTreeMap<PredicateKey, AllowedKey>, TurnKeys)> {
    if key.starts_with('{') {
        let SetText { allowed, turns } = serde_json::from_str(key).ok()?;
        let mut content = BTreeMap::new();
        for (allowed, blocks, others) in allowed {
            let block = |block| PredicateKey::Block(AtomKey::Cidr(block), Vec::new());
            let predicates = blocks.into_iter().map(block).chain(others);
            content.extend(predicates.map(|predicate| (predicate, allowed.clone())));
        }
        return Some((content, turns));
    }
    let (key, turns): (SetKey, TurnKeys) = match serde_json::from_str(key) {
        Ok(key) => (key, TurnKeys::new()),
        Err(_) => serde_json::from_str(key).ok()?,
    };
    Some((key.into_iter().collect(), turns))
}

fn read_predicate(key: PredicateKey, atoms: &mut Atoms) -> Option<Predicate> {
    let mut atom = |key| Some(atoms.intern(read_atom(key)?));
    Some(match key {
        PredicateKey::Any => Predicate::Any,
        PredicateKey::Own => Predicate::Own,
        PredicateKey::Pods(key) => Predicate::Pods(atom(key)?),
        PredicateKey::Block(cidr, except) => {
            let cidr = atom(cidr)?;
            let mut except = except.into_iter().map(atom).collect::<Option<Vec<_>>>()?;
            except.sort_unstable();
            Predicate::Block { cidr, except: except.into() }
        }
    })
}

fn read_atom(key: AtomKey) -> Option<Atom> {
    Some(match key {
        AtomKey::PodsIn(namespace, pods) => Atom::Pods {
            namespaces: NamespaceScope::Named(namespace.into()),
            pods: read_selector(pods),
        },
        AtomKey::Pods(namespaces, pods) => Atom::Pods {
            namespaces: NamespaceScope::Matching(read_selector(namespaces)),
            pods: read_selector(pods),
        },
        AtomKey::Cidr(block) => Atom::Cidr(block.trunc()),
        AtomKey::Port(protocol, name, port) => {
            Atom::Port(NamedPort { name: name.into(), protocol: read_protocol(protocol)?, port })
        }
    })
}

fn read_selector(key: Vec<RequirementKey>) -> Selector {
    let strings = |values: Vec<String>| values.into_iter().map(Str::from).collect();
    Selector::new(key.into_iter().map(|requirement| {
        let (key, operator) = match requirement {
            RequirementKey::In(key, values) => (key, Operator::In(strings(values))),
            RequirementKey::NotIn(key, values) => (key, Operator::NotIn(strings(values))),
            RequirementKey::Exists(key) => (key, Operator::Exists),
            RequirementKey::DoesNotExist(key) => (key, Operator::DoesNotExist),
        };
        Requirement { key: key.into(), operator }
    }))
}

fn read_allowed(key: AllowedKey) -> Option<Allowed> {
    let mut allowed = Allowed::default();
    match key {
        AllowedKey::Everything => allowed.everything = true,
        AllowedKey::Ports(intervals, names) => {
            allowed.numbers.intervals = intervals;
            for (protocol, name) in names {
                allowed.names.insert((read_protocol(protocol)?, name.into()));
            }
        }
        AllowedKey::Ranked(rest, rulings) => {
            allowed = read_allowed(*rest).unwrap_or_default();
            for ruling in rulings {
                allowed.rulings.push(read_ruling(ruling)?);
            }
            allowed.rulings.sort_unstable();
        }
    }
    allowed.normalise();
    (!allowed.is_empty()).then_some(allowed)
}

fn read_ruling(key: RulingKey) -> Option<Ruling> {
    let layer = match key.layer {
        LayerKey::Admin => Layer::Admin,
        LayerKey::Baseline => Layer::Baseline,
        LayerKey::Rest => Layer::Rest,
    };
    let action = match key.action {
        ActionKey::Accept => Action::Accept,
        ActionKey::Deny => Action::Deny,
        ActionKey::Pass => Action::Pass,
    };
    let RulingKey { priority, policy, rule, ports, .. } = key;
    let rank = Rank { layer, priority, policy: policy.into(), rule };
    Some(Ruling { rank, action, ports: read_allowed(ports)? })
}

fn read_protocol(number: u8) -> Option<Protocol> {
    Protocol::ALL.into_iter().find(|protocol| protocol.number() == number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_freed_number_rests_until_it_may_be_reused_and_all_others_had_their_turn() {
        let mut pool = IdPool::new(2, 5);
        assert_eq!(pool.allocate(), Some(2));
        assert_eq!(pool.allocate(), Some(3));
        pool.release(2);
        assert!(pool.free_rested() && !pool.free_rested());
        assert_eq!(pool.allocate(), Some(4));
        assert_eq!(pool.allocate(), Some(5));
        assert_eq!(pool.allocate(), Some(2));
        assert_eq!(pool.allocate(), None);
        pool.release(4);
        assert_eq!(pool.allocate(), None);
        pool.free_rested();
        assert_eq!(pool.allocate(), Some(4));
    }

    #[test]
    fn taken_numbers_are_not_handed_out() {
        let mut pool = IdPool::new(2, 4);
        assert!(pool.take(3));
        assert!(!pool.take(3));
        assert!(!pool.take(1) && !pool.take(5));
        assert_eq!([pool.allocate(), pool.allocate(), pool.allocate()], [Some(2), Some(4), None]);
    }

    #[test]
    fn text_of_another_making_is_not_understood() {
        for key in ["", "x", "{}", "[[\"Every\",1]]", "[[\"Any\",{\"Ports\":[[[]],[]]}]]"] {
            assert!(read_set(key, [].into_iter(), &mut Atoms::default()).is_none(), "{key}");
        }
    }

    #[test]
    fn the_key_of_a_class_is_that_of_its_text() {
        let mut atoms = Atoms::default();
        let mut block =
            |text: &str| atoms.intern(Atom::Cidr(text.parse().expect("invariant: a block")));
        let (ten, doc) = (block("10.0.0.0/8"), block("2001:db8::/32"));
        let renewed = atoms.renewal(ten, 3);
        for (content, text) in [
            (&[ten][..], "[{\"Cidr\":\"10.0.0.0/8\"}]"),
            (&[doc], "[{\"Cidr\":\"2001:db8::/32\"}]"),
            (&[ten, doc], "[{\"Cidr\":\"10.0.0.0/8\"},{\"Cidr\":\"2001:db8::/32\"}]"),
            (&[renewed], "[[{\"Cidr\":\"10.0.0.0/8\"},3]]"),
            (&[], "[]"),
        ] {
            assert_eq!(class_key(content, &atoms), ClassKey::of_text(text), "{text}");
        }
    }
}
