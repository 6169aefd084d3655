//! The kernel's two tables of classes: a hash of single addresses and a trie of blocks. What stands
//! in them is decided in [`super::classes`]; this only writes it.

use aya::maps::lpm_trie::Key as LpmKey;
use ipnet::IpNet;
use netpol_common::layout;

use super::classes::{Put, Store, is_address};
use super::error::{DatapathError, full_or, os_error, was_there};
use super::keys::{address_bytes, address_of, trie_key};
use super::limits::Limits;
use super::maps::{AddressBytes, Maps};
use super::writer::Datapath;
use netpol_compile::ClassId;

impl Datapath {
    pub(super) fn set_class(&mut self, block: &IpNet, class: ClassId) -> Result<(), DatapathError> {
        self.classes.set(&mut ClassMaps(&mut self.maps, self.limits), *block, class)
    }

    pub(super) fn clear_class(&mut self, block: &IpNet) -> Result<(), DatapathError> {
        self.classes.clear(&mut ClassMaps(&mut self.maps, self.limits), *block)
    }

    pub(super) fn adopt_classes(&mut self) -> Result<(), DatapathError> {
        for (block, class) in super::observe::classes(&self.maps)? {
            self.classes.adopt(block, class);
        }
        Ok(())
    }

    pub(super) fn retry_classes(&mut self) -> Result<(), DatapathError> {
        self.classes.retry(&mut ClassMaps(&mut self.maps, self.limits))
    }
}

/// The two tables of classes in the kernel.
struct ClassMaps<'a>(&'a mut Maps, Limits);

/// Update flags: only what is not there, only what is there.
const BPF_NOEXIST: u64 = 1;
const BPF_EXIST: u64 = 2;

impl Store for ClassMaps<'_> {
    fn put(&mut self, block: &IpNet, class: ClassId, may_add: bool) -> Result<Put, DatapathError> {
        let Self(maps, limits) = self;
        let address = address_of(block.addr());
        if !is_address(block) {
            return maps
                .blocks
                .insert(&lpm_key(block), class.0, 0)
                .map(|()| Put::Changed)
                .map_err(|error| full_or(error, "block table", limits.blocks));
        }
        let (key, value) = (address_bytes(&address), layout::exact_class(&address, class.0));
        let full = |error| full_or(error, "address table", limits.addresses);
        if may_add {
            match maps.addresses.insert(key, value, BPF_NOEXIST) {
                Ok(()) => return Ok(Put::Added),
                Err(error) if os_error(&error) == Some(libc::EEXIST) => {}
                Err(error) => return Err(full(error)),
            }
        }
        match maps.addresses.insert(key, value, BPF_EXIST) {
            Ok(()) => Ok(Put::Changed),
            Err(error) if os_error(&error) == Some(libc::ENOENT) => Ok(Put::Absent),
            Err(error) => Err(full(error)),
        }
    }

    fn remove(&mut self, block: &IpNet) -> Result<bool, DatapathError> {
        let removed = match is_address(block) {
            true => self.0.addresses.remove(&address_bytes(&address_of(block.addr()))),
            false => self.0.blocks.remove(&lpm_key(block)),
        };
        was_there(removed)
    }
}

fn lpm_key(block: &IpNet) -> LpmKey<AddressBytes> {
    trie_key(layout::FAMILY_BITS, block, |address| address_bytes(&address))
}
