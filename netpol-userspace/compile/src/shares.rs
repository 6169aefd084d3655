//! How much of what is scarce each namespace gets: whoever wants no more than an equal share gets
//! all of it, and what they leave is shared out among the others. Pure. Must never depend on who
//! came first.

use std::hash::{Hash, Hasher as _};

use ipnet::IpNet;
use rustc_hash::{FxHashMap, FxHashSet, FxHasher};

use netpol_model::{
    Direction, NamedPort, Operator, Peer, Peers, Pod, Policy, Ports, Rule, Selector, Str,
};

/// What there is room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Entries of the tables that policies fill, for all namespaces together.
    pub tables: Demand,
    /// Bytes of the agent's memory that one namespace may take.
    pub namespace_memory: u64,
}

/// What policies take, or may take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Demand {
    /// Addresses that blocks name.
    pub addresses: u64,
    /// Blocks and exceptions that are no single address.
    pub blocks: u64,
    /// Rows: whom a policy set allows something.
    pub rows: u64,
    /// Ranges of ports.
    pub intervals: u64,
    /// Bytes of memory. Until [`Demand::weighed`] those of selectors alone.
    pub memory: u64,
}

/// What rules are left out for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scarce {
    /// The memory that one namespace may take.
    NamespaceMemory,
    /// Room in this table.
    Table(&'static str),
}

/// About what the agent takes for each row and for each address or block, with all that is known and
/// told of it: 20,000 blocks of one pod took 44 MB, 80,000 254 MB.
const ROW_BYTES: u64 = 900;
const BLOCK_BYTES: u64 = 1_800;
const INTERVAL_BYTES: u64 = 16;
/// What a value of a selector takes beside its text.
const VALUE_BYTES: usize = 48;

impl Demand {
    /// Whether it is no more than there is room for.
    pub fn fits(&self, room: &Self) -> bool {
        self.beyond(room).is_none()
    }

    /// What there is too little room for.
    pub fn beyond(&self, room: &Self) -> Option<Scarce> {
        let all = [
            (self.memory > room.memory, Scarce::NamespaceMemory),
            (self.blocks > room.blocks, Scarce::Table("blocks")),
            (self.addresses > room.addresses, Scarce::Table("addresses")),
            (self.rows > room.rows, Scarce::Table("rows")),
            (self.intervals > room.intervals, Scarce::Table("intervals")),
        ];
        all.into_iter().find_map(|(is_beyond, what)| is_beyond.then_some(what))
    }

    fn map(self, other: Self, f: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            addresses: f(self.addresses, other.addresses),
            blocks: f(self.blocks, other.blocks),
            rows: f(self.rows, other.rows),
            intervals: f(self.intervals, other.intervals),
            memory: f(self.memory, other.memory),
        }
    }

    /// Both together.
    pub fn plus(self, other: Self) -> Self {
        self.map(other, u64::saturating_add)
    }

    /// This without the other.
    pub(crate) fn minus(self, other: Self) -> Self {
        self.map(other, u64::saturating_sub)
    }

    /// The same with rows of so many policy sets, and all memory.
    pub(crate) fn weighed(mut self, n_sets: usize) -> Self {
        self.rows = self.rows.saturating_mul(n_sets as u64);
        let entries = self.addresses + self.blocks;
        self.memory += self.rows.saturating_mul(ROW_BYTES)
            + entries * BLOCK_BYTES
            + self.intervals * INTERVAL_BYTES;
        self
    }

    /// What a policy takes for each policy set that it is part of, if no other says the same.
    pub fn of(policy: &Policy) -> Self {
        let rules = Direction::BOTH.into_iter().flat_map(|d| policy.rules(d).unwrap_or_default());
        let mut demand = Self::default();
        for rule in rules {
            demand.intervals += n_intervals(&rule.ports);
            demand.rows += u64::from(rule.peers == Peers::Any);
            for peer in rule.peers.named() {
                demand.rows += n_rows(peer);
                demand.memory += n_bytes(peer);
                for block in blocks(peer) {
                    demand.add_block(block);
                }
            }
        }
        demand
    }

    fn add_block(&mut self, block: &IpNet) {
        match block.prefix_len() == block.max_prefix_len() {
            true => self.addresses += 1,
            false => self.blocks += 1,
        }
    }
}

fn blocks(peer: &Peer) -> impl Iterator<Item = &IpNet> {
    let block = match peer {
        Peer::Block(block) => Some(block),
        Peer::Pods { .. } | Peer::Nodes(_) => None,
    };
    block.into_iter().flat_map(|block| [&block.cidr].into_iter().chain(&block.except))
}

fn n_intervals(ports: &Ports) -> u64 {
    match ports {
        Ports::Any => 0,
        Ports::Only(list) => list.len() as u64,
    }
}

/// An exception may be inside another block of the same set, and then is one of its classes.
fn n_rows(peer: &Peer) -> u64 {
    match peer {
        Peer::Block(block) => 1 + block.except.len() as u64,
        Peer::Pods { .. } | Peer::Nodes(_) => 1,
    }
}

fn n_bytes(peer: &Peer) -> u64 {
    use netpol_model::NamespaceScope::{Matching, Named};
    let Peer::Pods { namespaces, pods } = peer else { return 0 };
    let of = |selector: &Selector| {
        let values =
            selector.requirements().iter().flat_map(|requirement| match &requirement.operator {
                Operator::In(values) | Operator::NotIn(values) => values.as_slice(),
                Operator::Exists | Operator::DoesNotExist => &[],
            });
        values.map(|value| value.len() + VALUE_BYTES).sum::<usize>() as u64
    };
    of(pods)
        + match namespaces {
            Matching(selector) => of(selector),
            Named(_) => 0,
        }
}

/// The most of something that one may have, so that all have no more than there is: what is left
/// over by those who want less is for the others.
pub fn level(room: u64, demands: impl IntoIterator<Item = u64>) -> u64 {
    let mut demands: Vec<u64> = demands.into_iter().collect();
    demands.sort_unstable();
    let mut left = room;
    for (n_before, demand) in demands.iter().enumerate() {
        let equal = left / (demands.len() - n_before) as u64;
        if *demand > equal {
            return equal;
        }
        left -= demand;
    }
    u64::MAX
}

impl Room {
    /// The most that there is for a namespace that is alone.
    pub fn most(&self) -> Demand {
        Demand { memory: self.namespace_memory, ..self.tables }
    }

    /// The most that one namespace may have, by what all want.
    pub fn level<'a>(&self, demands: impl Iterator<Item = &'a Demand> + Clone) -> Demand {
        let of = |get: fn(&Demand) -> u64| level(get(&self.tables), demands.clone().map(get));
        Demand {
            addresses: of(|demand| demand.addresses),
            blocks: of(|demand| demand.blocks),
            rows: of(|demand| demand.rows),
            intervals: of(|demand| demand.intervals),
            memory: self.namespace_memory,
        }
    }
}

/// What the policies of a namespace take, rule by rule, each block counted once: in the order of
/// their names, ingress first.
#[derive(Debug, Default)]
pub(crate) struct Profile {
    /// Those that select any of the pods, and how many rules each has.
    policies: Vec<(Str, usize)>,
    /// What all rules up to each one take, but for those behind one for which there is never room:
    /// so this takes no longer, however much is written.
    sums: Vec<Demand>,
}

/// What is counted already.
#[derive(Default)]
struct Counted<'a> {
    blocks: FxHashSet<&'a IpNet>,
    /// By hash, of which a collision would do no harm.
    others: FxHashSet<u64>,
    rows: Demand,
    entries: Demand,
}

impl Profile {
    /// That of these policies, sorted, for pods of these kinds, where there is this much at most.
    pub fn of(policies: &[&Policy], kinds: &[&Pod], most: &Demand) -> Self {
        let sets_of = sets(policies, kinds);
        let mut profile = Self::default();
        let mut counted = Counted::default();
        for (policy, sets) in policies.iter().zip(&sets_of) {
            if sets.is_empty() {
                continue;
            }
            for direction in Direction::BOTH {
                for rule in policy.rules(direction).unwrap_or_default() {
                    if profile.demand().fits(most) {
                        profile.sums.push(counted.add(rule, direction, sets));
                    }
                }
            }
            profile.policies.push((policy.id.name.clone(), n_rules(policy)));
        }
        profile
    }

    /// What all of it takes, or more than there is.
    pub fn demand(&self) -> Demand {
        self.sums.last().copied().unwrap_or_default()
    }

    /// How many rules of each policy there is room for. The last ones go first.
    pub fn admitted(&self, room: &Demand) -> impl Iterator<Item = (&Str, usize)> {
        let mut left = self.sums.partition_point(|sum| sum.fits(room));
        self.policies.iter().map(move |(name, n_rules)| {
            let n = left.min(*n_rules);
            left -= n;
            (name, n)
        })
    }
}

/// The policy sets that each policy is part of: pods that the same policies select, and that
/// declare the same ports, share one.
fn sets(policies: &[&Policy], kinds: &[&Pod]) -> Vec<Vec<usize>> {
    let mut known: FxHashMap<(Vec<usize>, &[NamedPort]), usize> = FxHashMap::default();
    let mut sets_of = vec![Vec::new(); policies.len()];
    for pod in kinds {
        let selecting = policies.iter().enumerate();
        let selecting = selecting.filter(|(_, policy)| policy.pods.matches(&pod.labels));
        let selecting: Vec<usize> = selecting.map(|(index, _)| index).collect();
        let n_known = known.len();
        known.entry((selecting, &pod.ports)).or_insert_with_key(|(selecting, _)| {
            selecting.iter().for_each(|&index| sets_of[index].push(n_known));
            n_known
        });
    }
    sets_of
}

impl<'a> Counted<'a> {
    /// What everything takes with this rule.
    fn add(&mut self, rule: &'a Rule, direction: Direction, sets: &[usize]) -> Demand {
        let n_sets = sets.len() as u64;
        if self.is_new(&rule.ports) {
            self.entries.intervals += n_intervals(&rule.ports);
        }
        if rule.peers == Peers::Any && self.is_new((direction, sets)) {
            self.rows.rows += n_sets;
        }
        for peer in rule.peers.named() {
            if self.is_new((direction, sets, peer)) {
                self.rows.rows += n_rows(peer) * n_sets;
                self.rows.memory += n_bytes(peer);
            }
            for block in blocks(peer) {
                if self.blocks.insert(block) {
                    self.entries.add_block(block);
                }
            }
        }
        self.entries.plus(self.rows).weighed(1)
    }

    fn is_new(&mut self, what: impl Hash) -> bool {
        let mut hasher = FxHasher::default();
        what.hash(&mut hasher);
        self.others.insert(hasher.finish())
    }
}

/// A policy with its first rules only: what it isolates stays isolated.
pub(crate) fn with_first_rules(policy: &Policy, n_rules: usize) -> Policy {
    let of_ingress = policy.ingress.as_ref().map_or(0, Vec::len).min(n_rules);
    let first = |rules: &Option<Vec<Rule>>, n: usize| {
        rules.as_ref().map(|rules| rules.iter().take(n).cloned().collect())
    };
    Policy {
        id: policy.id.clone(),
        pods: policy.pods.clone(),
        ingress: first(&policy.ingress, of_ingress),
        egress: first(&policy.egress, n_rules - of_ingress),
    }
}

/// How many rules a policy has.
pub fn n_rules(policy: &Policy) -> usize {
    let n = |direction| policy.rules(direction).map_or(0, <[Rule]>::len);
    Direction::BOTH.into_iter().map(n).sum()
}
