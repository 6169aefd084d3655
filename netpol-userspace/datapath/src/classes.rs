//! Which class each address and block has in the maps, also when not all of them fit.
//!
//! Longest-prefix match gives an address that is not stored the class of the block around it,
//! which may allow more: an `except` that did not fit would be no exception. So the nearest stored
//! block around one that is missing is *closed*: its class becomes [`ClassId::CLOSED`], for which
//! only what a policy allows to everybody is allowed. Without a block around it, nothing is needed:
//! an address of no class is allowed no more than that either. (Where everybody is allowed more
//! than somebody, see [`super::rows`].)
//!
//! Must never leave a state, between any two writes, in which an address has a class that is
//! neither its old one, nor its new one, nor allows less than both.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use rustc_hash::FxHashMap;

use super::error::DatapathError;
use netpol_compile::ClassId;

/// Where the classes are written.
pub(crate) trait Store {
    /// Writes the class of an address (a block of full length) or block. With `may_add` false only
    /// one that is there is changed. Returns what happened.
    fn put(&mut self, block: &IpNet, class: ClassId, may_add: bool) -> Result<Put, DatapathError>;
    /// Takes an entry out; returns whether it was there.
    fn remove(&mut self, block: &IpNet) -> Result<bool, DatapathError>;
}

/// What [`Store::put`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Put {
    /// The entry is new.
    Added,
    /// It was there and has the class now.
    Changed,
    /// It was not there and must not be added.
    Absent,
}

/// A block (shorter than an address) that is stored.
#[derive(Debug)]
struct StoredBlock {
    /// The class it should have.
    class: ClassId,
    /// It has [`ClassId::CLOSED`] instead.
    is_closed: bool,
    /// How many missing entries it is the nearest stored block around.
    n_missing: usize,
}

/// What is stored and what is not. Addresses that are stored are merely counted.
#[derive(Debug)]
pub(crate) struct Classes {
    limits: [usize; 2],
    n_addresses: usize,
    blocks: FxHashMap<IpNet, StoredBlock>,
    /// How many stored blocks have each prefix length, for IPv4 and IPv6.
    lengths: [BTreeMap<u8, usize>; 2],
    missing: BTreeMap<IpNet, ClassId>,
    /// Closed blocks that need not be, but could not be written.
    to_open: BTreeSet<IpNet>,
}

/// Whether the block is an address.
pub(crate) fn is_address(block: &IpNet) -> bool {
    block.prefix_len() == block.max_prefix_len()
}

impl Classes {
    /// Nothing stored, and room for this many addresses and blocks.
    pub(crate) fn new(n_addresses: u32, n_blocks: u32) -> Self {
        Self {
            limits: [n_addresses as usize, n_blocks as usize],
            n_addresses: 0,
            blocks: FxHashMap::default(),
            lengths: [BTreeMap::new(), BTreeMap::new()],
            missing: BTreeMap::new(),
            to_open: BTreeSet::new(),
        }
    }

    /// Counts what stands in the maps already.
    pub(crate) fn adopt(&mut self, block: IpNet, class: ClassId) {
        if is_address(&block) {
            self.n_addresses += 1;
        } else {
            let is_closed = class == ClassId::CLOSED;
            self.list(block, StoredBlock { class, is_closed, n_missing: 0 });
        }
    }

    /// `(used, limit)` of addresses and blocks.
    pub(crate) fn sizes(&self) -> [(usize, usize); 2] {
        [(self.n_addresses, self.limits[0]), (self.blocks.len(), self.limits[1])]
    }

    /// What did not fit.
    pub(crate) fn missing(&self) -> impl Iterator<Item = &IpNet> {
        self.missing.keys()
    }

    /// Gives an address or block its class, if there is room. What does not fit is missing, and
    /// what is around it closed; an error is one that has nothing to do with room.
    pub(crate) fn set(
        &mut self,
        store: &mut impl Store,
        block: IpNet,
        class: ClassId,
    ) -> Result<(), DatapathError> {
        let written = match is_address(&block) {
            true => self.put_address(store, block, class),
            false => self.put_block(store, block, class),
        };
        let error = match written {
            Ok(true) => {
                if self.missing.remove(&block).is_some() {
                    self.uncount(store, block, 1);
                }
                return Ok(());
            }
            Ok(false) | Err(DatapathError::Full { .. }) => None,
            Err(error) => Some(error),
        };
        let closed = self.miss(store, block, class);
        error.map_or(closed, Err)
    }

    /// Takes an address or block out.
    pub(crate) fn clear(
        &mut self,
        store: &mut impl Store,
        block: IpNet,
    ) -> Result<(), DatapathError> {
        if self.missing.remove(&block).is_some() {
            self.uncount(store, block, 1);
            return Ok(());
        }
        self.take_out(store, block)
    }

    /// Tries again what did not fit, where there is room now.
    pub(crate) fn retry(&mut self, store: &mut impl Store) -> Result<(), DatapathError> {
        for block in std::mem::take(&mut self.to_open) {
            self.open(store, block);
        }
        for kind in [true, false] {
            if !self.has_room(kind) {
                continue;
            }
            let of_kind = self.missing.iter().filter(|(block, _)| is_address(block) == kind);
            let waiting: Vec<_> = of_kind.map(|(&block, &class)| (block, class)).collect();
            for (block, class) in waiting {
                self.set(store, block, class)?;
                if self.missing.contains_key(&block) {
                    break;
                }
            }
        }
        Ok(())
    }

    fn has_room(&self, for_address: bool) -> bool {
        let [(n_addresses, addresses), (n_blocks, blocks)] = self.sizes();
        if for_address { n_addresses < addresses } else { n_blocks < blocks }
    }

    /// Returns whether the address is stored with its class now.
    fn put_address(
        &mut self,
        store: &mut impl Store,
        block: IpNet,
        class: ClassId,
    ) -> Result<bool, DatapathError> {
        let put = store.put(&block, class, self.has_room(true))?;
        self.n_addresses += usize::from(put == Put::Added);
        Ok(put != Put::Absent)
    }

    /// Likewise for a block; while something inside it is missing, it is stored closed.
    fn put_block(
        &mut self,
        store: &mut impl Store,
        block: IpNet,
        class: ClassId,
    ) -> Result<bool, DatapathError> {
        if let Some(known) = self.blocks.get_mut(&block) {
            known.class = class;
            if known.n_missing == 0 {
                store.put(&block, class, true)?;
                known.is_closed = false;
                self.to_open.remove(&block);
            }
            return Ok(true);
        }
        if !self.has_room(false) {
            return Ok(false);
        }
        let n_missing = self.n_missing_nearest_in(block);
        let is_closed = n_missing > 0;
        store.put(&block, if is_closed { ClassId::CLOSED } else { class }, true)?;
        self.list(block, StoredBlock { class, is_closed, n_missing });
        self.uncount(store, block, n_missing);
        Ok(true)
    }

    /// Remembers that something does not fit, and closes what would judge it instead.
    fn miss(
        &mut self,
        store: &mut impl Store,
        block: IpNet,
        class: ClassId,
    ) -> Result<(), DatapathError> {
        if self.missing.insert(block, class).is_some() {
            return Ok(());
        }
        self.count(store, block, 1)?;
        // What could not be changed is out of date.
        self.take_out(store, block)
    }

    /// Takes an entry out of the maps. What is missing inside it is the next block's from then on.
    fn take_out(&mut self, store: &mut impl Store, block: IpNet) -> Result<(), DatapathError> {
        if is_address(&block) {
            self.n_addresses -= usize::from(store.remove(&block)?);
            return Ok(());
        }
        let Some(known) = self.blocks.get(&block) else { return Ok(()) };
        self.count(store, block, known.n_missing)?;
        store.remove(&block)?;
        self.unlist(block);
        Ok(())
    }

    /// The nearest stored block around `block` has `n` more missing entries inside it: closed.
    fn count(
        &mut self,
        store: &mut impl Store,
        block: IpNet,
        n: usize,
    ) -> Result<(), DatapathError> {
        while n > 0
            && let Some(around) = self.around(block)
        {
            let known = self.blocks.get_mut(&around).expect("invariant: listed by its length");
            if known.is_closed || store.put(&around, ClassId::CLOSED, true).is_ok() {
                known.is_closed = true;
                known.n_missing += n;
                self.to_open.remove(&around);
                break;
            }
            // It cannot even be changed in place (no memory): removing needs none.
            let class = known.class;
            self.miss(store, around, class)?;
        }
        Ok(())
    }

    /// The nearest stored block around `block` has `n` fewer missing entries inside it.
    fn uncount(&mut self, store: &mut impl Store, block: IpNet, n: usize) {
        if n > 0
            && let Some(around) = self.around(block)
        {
            let known = self.blocks.get_mut(&around).expect("invariant: listed by its length");
            known.n_missing -= n;
            self.open(store, around);
        }
    }

    /// Gives a closed block its class, if nothing inside it is missing.
    fn open(&mut self, store: &mut impl Store, block: IpNet) {
        let Some(known) = self.blocks.get_mut(&block) else { return };
        if !known.is_closed || known.n_missing > 0 {
            return;
        }
        // A failure leaves it closed, for `retry`.
        if store.put(&block, known.class, true).is_ok() {
            known.is_closed = false;
            self.to_open.remove(&block);
        } else {
            self.to_open.insert(block);
        }
    }

    /// How many missing entries would have `block` as the nearest stored block around them.
    fn n_missing_nearest_in(&self, block: IpNet) -> usize {
        let end = IpNet::from(block.broadcast());
        let inside = self.missing.range(block..=end).map(|(inner, _)| inner);
        let outside = self.around(block);
        inside.filter(|inner| **inner != block && self.around(**inner) == outside).count()
    }

    /// The nearest stored block that contains `block` and is longer than none of it.
    fn around(&self, block: IpNet) -> Option<IpNet> {
        self.lengths[family(&block)].range(..block.prefix_len()).rev().find_map(|(&length, _)| {
            let outer = IpNet::new(block.addr(), length).expect("invariant: shorter").trunc();
            self.blocks.contains_key(&outer).then_some(outer)
        })
    }

    fn list(&mut self, block: IpNet, known: StoredBlock) {
        if self.blocks.insert(block, known).is_none() {
            *self.lengths[family(&block)].entry(block.prefix_len()).or_default() += 1;
        }
    }

    fn unlist(&mut self, block: IpNet) {
        self.to_open.remove(&block);
        if self.blocks.remove(&block).is_none() {
            return;
        }
        let lengths = &mut self.lengths[family(&block)];
        if let Some(n_blocks) = lengths.get_mut(&block.prefix_len()) {
            *n_blocks -= 1;
            if *n_blocks == 0 {
                lengths.remove(&block.prefix_len());
            }
        }
    }
}

fn family(block: &IpNet) -> usize {
    usize::from(matches!(block, IpNet::V6(_)))
}

#[cfg(test)]
mod tests;
