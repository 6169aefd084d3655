//! Addresses and blocks: which pod owns an address, which blocks contain it, which class it has
//! now. Must never decide what a class means.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use rustc_hash::{FxHashMap, FxHashSet};

use super::ClassId;
use super::atoms::AtomId;
use super::small_set::SmallSet;
use netpol_model::{Cluster, ObjectName};

/// What is known of one block; an address is a block of full length.
#[derive(Debug)]
pub(super) struct AddressEntry {
    /// The pod that has the address.
    pub owner: Option<Box<ObjectName>>,
    /// A block atom, if a policy in use names exactly this block.
    pub cidr: Option<AtomId>,
    /// The class it is stored with, `NONE` if it is not stored.
    pub class: ClassId,
}

impl Default for AddressEntry {
    fn default() -> Self {
        Self { owner: None, cidr: None, class: ClassId::NONE }
    }
}

/// All pod addresses and block atoms.
#[derive(Debug, Default)]
pub(super) struct Addresses {
    entries: BTreeMap<IpNet, AddressEntry>,
    /// The other atoms of blocks that have several. Apart, since there is an entry for each pod.
    other_cidrs: FxHashMap<IpNet, SmallSet<AtomId>>,
    /// Addresses that more than one pod claims, with all claimants.
    contested: FxHashMap<IpAddr, Vec<ObjectName>>,
    /// How many blocks that may contain others, by atom or class, have each prefix length, for IPv4
    /// and IPv6.
    lengths: [BTreeMap<u8, usize>; 2],
    /// Blocks and addresses that are to be stored and are not yet, as far as somebody has begun to
    /// see to it. May have some that are not to be stored any more.
    missing: BTreeSet<IpNet>,
}

fn family(block: &IpNet) -> usize {
    usize::from(matches!(block, IpNet::V6(_)))
}

/// Whether what is inside a block is to look at it: not at an address for its class.
fn is_around(block: &IpNet, entry: &AddressEntry) -> bool {
    let is_stored = entry.class != ClassId::NONE && block.prefix_len() < block.max_prefix_len();
    is_stored || entry.cidr.is_some()
}

impl Addresses {
    /// A pod says that it has `address`. Returns whether the owner changed.
    pub fn claim(&mut self, address: IpAddr, pod: &ObjectName, cluster: &Cluster) -> bool {
        let entry = self.entries.entry(IpNet::from(address)).or_default();
        match &entry.owner {
            None => {
                entry.owner = Some(Box::new(pod.clone()));
                true
            }
            Some(owner) => {
                if **owner != *pod || self.contested.contains_key(&address) {
                    let claimants =
                        self.contested.entry(address).or_insert_with(|| vec![(**owner).clone()]);
                    if !claimants.contains(pod) {
                        claimants.push(pod.clone());
                    }
                }
                self.elect(address, cluster)
            }
        }
    }

    /// A pod no longer has `address`. Returns whether the owner changed.
    pub(crate) fn unclaim(&mut self, address: IpAddr, pod: &ObjectName, cluster: &Cluster) -> bool {
        if let Some(claimants) = self.contested.get_mut(&address) {
            claimants.retain(|claimant| claimant != pod);
            return self.elect(address, cluster);
        }
        match self.entries.get_mut(&IpNet::from(address)) {
            Some(entry) if entry.owner.as_deref() == Some(pod) => {
                entry.owner = None;
                true
            }
            _ => false,
        }
    }

    /// Of several claimants the youngest has the address, of equally young ones the one with the
    /// smallest name: the old pod's end is then merely not known yet.
    fn elect(&mut self, address: IpAddr, cluster: &Cluster) -> bool {
        let Some(claimants) = self.contested.get(&address) else { return false };
        let age = |id: &ObjectName| cluster.pod(id).map_or(i64::MIN, |pod| pod.created);
        let winner =
            claimants.iter().max_by(|a, b| age(a).cmp(&age(b)).then_with(|| b.cmp(a))).cloned();
        if claimants.len() < 2 {
            self.contested.remove(&address);
        }
        let entry = self.entries.entry(IpNet::from(address)).or_default();
        let changed = entry.owner.as_deref() != winner.as_ref();
        entry.owner = winner.map(Box::new);
        changed
    }

    /// All pods that say that they have `address`.
    pub fn claimants(&self, address: IpAddr) -> Vec<ObjectName> {
        if let Some(claimants) = self.contested.get(&address) {
            return claimants.clone();
        }
        let entry = self.entries.get(&IpNet::from(address));
        entry.and_then(|entry| entry.owner.as_deref().cloned()).into_iter().collect()
    }

    /// Addresses with several claimants: the address, who has it, all who claim it.
    pub(crate) fn contested(
        &self,
    ) -> impl Iterator<Item = (IpAddr, Option<&ObjectName>, &[ObjectName])> {
        self.contested.iter().map(|(&address, claimants)| {
            let entry = self.entries.get(&IpNet::from(address));
            (address, entry.and_then(|entry| entry.owner.as_deref()), claimants.as_slice())
        })
    }

    /// A block atom exists from now on.
    pub(crate) fn add_block(&mut self, block: IpNet, atom: AtomId) {
        let entry = self.entries.entry(block).or_default();
        if entry.cidr.is_some() {
            self.other_cidrs.entry(block).or_default().insert(atom);
            return;
        }
        let was_around = is_around(&block, entry);
        entry.cidr = Some(atom);
        self.count(&block, was_around, true);
    }

    /// Keeps [`Self::lengths`] true.
    fn count(&mut self, block: &IpNet, was_around: bool, is_around: bool) {
        if was_around == is_around {
            return;
        }
        let n_blocks = self.lengths[family(block)].entry(block.prefix_len()).or_default();
        match is_around {
            true => *n_blocks += 1,
            false => *n_blocks -= 1,
        }
        if *n_blocks == 0 {
            self.lengths[family(block)].remove(&block.prefix_len());
        }
    }

    /// A block atom is gone.
    pub(crate) fn remove_block(&mut self, block: IpNet, atom: AtomId) {
        let Some(entry) = self.entries.get_mut(&block) else { return };
        let was_around = is_around(&block, entry);
        let others = self.other_cidrs.get_mut(&block);
        if entry.cidr == Some(atom) {
            entry.cidr = None;
            if let Some(others) = others {
                entry.cidr = others.iter().next();
                entry.cidr.map(|cidr| others.remove(cidr));
            }
        } else if let Some(others) = others {
            others.remove(atom);
        }
        if self.other_cidrs.get(&block).is_some_and(SmallSet::is_empty) {
            self.other_cidrs.remove(&block);
        }
        let is_around = is_around(&block, entry);
        self.count(&block, was_around, is_around);
    }

    /// The blocks that contain `block`, itself included, longest first.
    fn containing(&self, block: IpNet) -> impl Iterator<Item = (IpNet, &AddressEntry)> {
        self.lengths[family(&block)].range(..=block.prefix_len()).rev().filter_map(
            move |(&length, _)| {
                let outer =
                    IpNet::new(block.addr(), length).expect("invariant: shorter than the block");
                let outer = outer.trunc();
                Some((outer, self.entries.get(&outer)?))
            },
        )
    }

    /// The atoms of all blocks that contain `block`, itself included.
    pub(crate) fn atoms_around(&self, block: IpNet) -> impl Iterator<Item = AtomId> {
        let with_atoms = self.containing(block).filter_map(|(outer, e)| Some((outer, e.cidr?)));
        with_atoms.flat_map(|(outer, atom)| {
            let others = match self.other_cidrs.is_empty() {
                true => None,
                false => self.other_cidrs.get(&outer),
            };
            others.into_iter().flat_map(SmallSet::iter).chain([atom])
        })
    }

    /// Every stored address and block inside one of `blocks`, these included, each once. Pod
    /// addresses that are not stored follow the blocks by themselves.
    pub fn inside(&self, mut blocks: Vec<IpNet>) -> Vec<IpNet> {
        blocks.sort_unstable();
        let mut found = Vec::new();
        let mut scanned: Option<IpNet> = None;
        for block in blocks {
            if scanned.is_some_and(|outer| outer.contains(&block)) {
                continue;
            }
            scanned = Some(block);
            let end = IpNet::from(block.broadcast());
            let stored =
                |entry: &AddressEntry| entry.class != ClassId::NONE || entry.cidr.is_some();
            let inner = self.entries.range(block..=end).filter(|(_, entry)| stored(entry));
            found.extend(inner.map(|(&inner, _)| inner));
        }
        found
    }

    /// The entry of a block.
    pub fn get(&self, block: &IpNet) -> Option<&AddressEntry> {
        self.entries.get(block)
    }

    /// The class that longest-prefix match gives to `block` while it is not stored itself.
    pub(crate) fn class_around(&self, block: IpNet) -> ClassId {
        let outer = block.supernet().into_iter().flat_map(|outer| self.containing(outer));
        let mut classes = outer.map(|(_, entry)| entry.class);
        classes.find(|class| *class != ClassId::NONE).unwrap_or(ClassId::NONE)
    }

    /// The class that longest-prefix match gives to `block`.
    pub(crate) fn effective_class(&self, block: IpNet) -> ClassId {
        match self.entries.get(&block).map(|entry| entry.class) {
            Some(class) if class != ClassId::NONE => class,
            _ => self.class_around(block),
        }
    }

    /// Notes the class of a block, and forgets the block if nothing is known of it any more.
    pub fn set_class(&mut self, block: IpNet, class: ClassId) {
        let Some(entry) = self.entries.get_mut(&block) else { return };
        let was_around = is_around(&block, entry);
        entry.class = class;
        let is_around = is_around(&block, entry);
        if entry.owner.is_none() && entry.cidr.is_none() && class == ClassId::NONE {
            self.entries.remove(&block);
        }
        self.count(&block, was_around, is_around);
        self.missing.remove(&block);
    }

    /// Somebody has begun to see to it that this block is stored.
    pub fn expect(&mut self, block: IpNet) {
        if self.get(&block).is_some_and(|entry| entry.class == ClassId::NONE) {
            self.missing.insert(block);
        }
    }

    /// What is to be stored inside these blocks, and is not yet, but for the blocks themselves; no
    /// more than so many. Whatever is inside another one comes first.
    pub(crate) fn missing_inside(&self, blocks: &[IpNet], n_most: usize) -> Vec<IpNet> {
        if self.missing.is_empty() {
            return Vec::new();
        }
        let known: FxHashSet<&IpNet> = blocks.iter().collect();
        let mut found = Vec::new();
        let mut outer: Vec<IpNet> = blocks.to_vec();
        outer.sort_unstable();
        let mut scanned: Option<IpNet> = None;
        outer.retain(|block| {
            let is_inside = scanned.is_some_and(|outer| outer.contains(block));
            if !is_inside {
                scanned = Some(*block);
            }
            !is_inside
        });
        for block in outer {
            let inner = self.missing.range(block..=IpNet::from(block.broadcast())).rev();
            let inner = inner.filter(|inner| !known.contains(inner));
            found.extend(inner.take(n_most - found.len()).copied());
        }
        found
    }

    /// All stored blocks with their classes.
    pub fn classes(&self) -> impl Iterator<Item = (IpNet, ClassId)> {
        self.entries
            .iter()
            .filter(|(_, entry)| entry.class != ClassId::NONE)
            .map(|(&block, entry)| (block, entry.class))
    }
}
