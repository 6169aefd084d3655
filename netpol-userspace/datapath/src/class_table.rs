//! The kernel's two tables of classes: a hash of single addresses and a trie of blocks. What stands
//! in them is decided in [`super::classes`]; this only writes it.

use std::collections::BTreeMap;

use aya::maps::lpm_trie::Key as LpmKey;
use aya::maps::{HashMap, LpmTrie, MapData};
use ipnet::IpNet;
use netpol_common::layout::{self, Address, names};
use netpol_compile::ClassId;

use super::classes::{Classes, Put, Store, is_address};
use super::error::{DatapathError, bpf_error, full_or, os_error, was_there};
use super::keys::{address_bytes, address_of, ip_of, trie_block, trie_key};
use super::limits::{Limits, N_EXAMPLES, Overflow};
use super::pinned::{AddressBytes, open};
use super::pins::Pins;

/// Update flags: only what is not there, only what is there.
const BPF_NOEXIST: u64 = 1;
const BPF_EXIST: u64 = 2;

/// The classes of addresses and blocks. Owns both maps of them and the account of what fitted. Must
/// never write an entry that [`Classes`] has not decided on.
pub(crate) struct ClassTable {
    maps: ClassMaps,
    classes: Classes,
}

impl ClassTable {
    /// Opens the maps, and counts what an earlier agent has left in them.
    pub(crate) fn open(pins: &Pins, limits: &Limits) -> Result<Self, DatapathError> {
        let maps = ClassMaps {
            addresses: open(pins, names::ADDRESSES)?,
            blocks: open(pins, names::BLOCKS)?,
            limits: *limits,
        };
        let mut classes = Classes::new(limits.addresses, limits.blocks);
        for (block, class) in read(&maps.addresses, &maps.blocks)? {
            classes.adopt(block, class);
        }
        Ok(Self { maps, classes })
    }

    /// Gives an address or a block its class. What has no room is missing, which is no failure.
    pub(crate) fn set(&mut self, block: &IpNet, class: ClassId) -> Result<(), DatapathError> {
        self.classes.set(&mut self.maps, *block, class)
    }

    /// Takes an address or a block out.
    pub(crate) fn clear(&mut self, block: &IpNet) -> Result<(), DatapathError> {
        self.classes.clear(&mut self.maps, *block)
    }

    /// Tries again what had no room.
    pub(crate) fn retry(&mut self) -> Result<(), DatapathError> {
        self.classes.retry(&mut self.maps)
    }

    /// What stands in the maps.
    pub(crate) fn read(&self) -> Result<BTreeMap<IpNet, ClassId>, DatapathError> {
        read(&self.maps.addresses, &self.maps.blocks)
    }

    /// What has no room.
    pub(crate) fn missing(&self) -> impl Iterator<Item = &IpNet> {
        self.classes.missing()
    }

    /// `(used, limit)` of addresses and blocks.
    pub(crate) fn sizes(&self) -> [(usize, usize); 2] {
        self.classes.sizes()
    }

    /// What of the addresses, or of the blocks, has no room.
    pub(crate) fn overflow(&self, of_addresses: bool) -> Option<Overflow> {
        let missing = || self.missing().filter(|block| is_address(block) == of_addresses);
        let n_left_out = missing().count() as u64;
        (n_left_out > 0).then(|| Overflow {
            is_error: true,
            n_left_out,
            examples: missing().take(N_EXAMPLES).map(ToString::to_string).collect(),
            endpoints: Vec::new(),
            consequence: "for isolated pods, only rules without peers apply to these and to the \
                          rest of the smallest block around each; connections that were judged \
                          before go on",
            remedy: "let the policies of this node's pods select fewer pods and name fewer blocks",
        })
    }
}

/// All addresses and blocks with their classes.
#[expect(clippy::cast_possible_truncation, reason = "the class is the lower half")]
pub(crate) fn read(
    addresses: &HashMap<MapData, AddressBytes, u64>,
    blocks: &LpmTrie<MapData, AddressBytes, u32>,
) -> Result<BTreeMap<IpNet, ClassId>, DatapathError> {
    let mut all = BTreeMap::new();
    for entry in addresses {
        let (key, value) = entry.map_err(bpf_error("read the address table"))?;
        let address: Address = zerocopy::transmute!(key);
        all.insert(IpNet::from(ip_of(&address)), ClassId(value as u32));
    }
    for entry in blocks {
        let (key, value) = entry.map_err(bpf_error("read the block table"))?;
        let address: Address = zerocopy::transmute!(key.data());
        if let Some(block) = trie_block(layout::FAMILY_BITS, key.prefix_len(), &address) {
            all.insert(block, ClassId(value));
        }
    }
    Ok(all)
}

/// The two maps.
struct ClassMaps {
    addresses: HashMap<MapData, AddressBytes, u64>,
    blocks: LpmTrie<MapData, AddressBytes, u32>,
    limits: Limits,
}

impl Store for ClassMaps {
    fn put(&mut self, block: &IpNet, class: ClassId, may_add: bool) -> Result<Put, DatapathError> {
        let address = address_of(block.addr());
        if !is_address(block) {
            return self
                .blocks
                .insert(&block_key(block), class.0, 0)
                .map(|()| Put::Changed)
                .map_err(|error| full_or(error, "block table", self.limits.blocks));
        }
        let (key, value) = (address_bytes(&address), layout::exact_class(&address, class.0));
        let full = |error| full_or(error, "address table", self.limits.addresses);
        if may_add {
            match self.addresses.insert(key, value, BPF_NOEXIST) {
                Ok(()) => return Ok(Put::Added),
                Err(error) if os_error(&error) == Some(libc::EEXIST) => {}
                Err(error) => return Err(full(error)),
            }
        }
        match self.addresses.insert(key, value, BPF_EXIST) {
            Ok(()) => Ok(Put::Changed),
            Err(error) if os_error(&error) == Some(libc::ENOENT) => Ok(Put::Absent),
            Err(error) => Err(full(error)),
        }
    }

    fn remove(&mut self, block: &IpNet) -> Result<bool, DatapathError> {
        let removed = match is_address(block) {
            true => self.addresses.remove(&address_bytes(&address_of(block.addr()))),
            false => self.blocks.remove(&block_key(block)),
        };
        was_there(removed)
    }
}

fn block_key(block: &IpNet) -> LpmKey<AddressBytes> {
    trie_key(layout::FAMILY_BITS, block, |address| address_bytes(&address))
}
