//! Which blocks pods forward for, by their interfaces: what they send from there is not forged. Must
//! never say of an interface what is not wanted of the pod that it is of now.

use std::collections::BTreeSet;

use aya::maps::lpm_trie::Key as LpmKey;
use aya::maps::{LpmTrie, MapData};
use ipnet::IpNet;
use netpol_common::layout::{self, names};
use zerocopy::FromBytes as _;

use super::error::{DatapathError, bpf_error, full_or, ignore_missing};
use super::keys::{trie_block, trie_key};
use super::limits::{N_EXAMPLES, Overflow};
use super::pinned::{SourcePrefixBytes, open};
use super::pins::Pins;

/// The blocks that pods forward for. Owns their map and the account of what stands in it. Must never
/// write a block before one that is not wanted any more is out: the interface may be another pod's.
pub(crate) struct PrefixTable {
    map: LpmTrie<MapData, SourcePrefixBytes, u32>,
    stored: BTreeSet<(u32, IpNet)>,
    missing: BTreeSet<(u32, IpNet)>,
}

impl PrefixTable {
    /// Opens the map. What an earlier agent has written stays until it is known what is wanted.
    pub(crate) fn open(pins: &Pins) -> Result<Self, DatapathError> {
        let map: LpmTrie<_, SourcePrefixBytes, u32> = open(pins, names::SOURCE_PREFIXES)?;
        let what = || format!("read map {}", names::SOURCE_PREFIXES);
        let mut stored = BTreeSet::new();
        for key in map.keys() {
            let key = key.map_err(bpf_error(what()))?;
            match prefix_of(&key) {
                Some(prefix) => drop(stored.insert(prefix)),
                None => return Err(DatapathError::Missing(format!("{}: odd key", what()))),
            }
        }
        Ok(Self { map, stored, missing: BTreeSet::new() })
    }

    /// Takes out what is not wanted. Returns the interfaces that have lost a block, and what failed.
    pub(crate) fn keep_only(
        &mut self,
        wanted: &BTreeSet<(u32, IpNet)>,
    ) -> (BTreeSet<u32>, Result<(), DatapathError>) {
        let mut result = Ok(());
        let mut lost = BTreeSet::new();
        let stale: Vec<_> = self.stored.difference(wanted).copied().collect();
        for prefix in stale {
            match ignore_missing(self.map.remove(&key(&prefix))) {
                Ok(()) => {
                    self.stored.remove(&prefix);
                    lost.insert(prefix.0);
                }
                Err(error) => result = Err(error),
            }
        }
        (lost, result)
    }

    /// Writes what is wanted and not there.
    pub(crate) fn add(&mut self, wanted: &BTreeSet<(u32, IpNet)>) -> Result<(), DatapathError> {
        let mut result = Ok(());
        self.missing.clear();
        let fresh: Vec<_> = wanted.difference(&self.stored).copied().collect();
        for prefix in fresh {
            match self.map.insert(&key(&prefix), 1, 0) {
                Ok(()) => {
                    self.stored.insert(prefix);
                }
                Err(error) => {
                    self.missing.insert(prefix);
                    let limit = layout::MAX_SOURCE_PREFIXES;
                    result = Err(full_or(error, "table of source prefixes", limit));
                }
            }
        }
        result
    }

    /// How many blocks are there.
    pub(crate) fn len(&self) -> usize {
        self.stored.len()
    }

    /// What could not be written.
    pub(crate) fn overflow(&self) -> Option<Overflow> {
        let missing = &self.missing;
        (!missing.is_empty()).then(|| Overflow {
            is_error: false,
            n_left_out: missing.len() as u64,
            examples: missing.iter().take(N_EXAMPLES).map(|(_, b)| b.to_string()).collect(),
            endpoints: Vec::new(),
            consequence: "what pods forward from these blocks is dropped",
            remedy: "let the pods' annotations name fewer and larger blocks",
        })
    }
}

fn key((ifindex, block): &(u32, IpNet)) -> LpmKey<SourcePrefixBytes> {
    trie_key(layout::SOURCE_PREFIX_BITS, block, |address| {
        zerocopy::transmute!(layout::SourcePrefix { ifindex: *ifindex, address })
    })
}

fn prefix_of(key: &LpmKey<SourcePrefixBytes>) -> Option<(u32, IpNet)> {
    let source = layout::SourcePrefix::read_from_bytes(&key.data()).ok()?;
    let block = trie_block(layout::SOURCE_PREFIX_BITS, key.prefix_len(), &source.address)?;
    Some((source.ifindex, block))
}
