//! Which blocks pods forward for, by their interfaces: what they send from there is not forged. Must
//! never say of an interface what is not wanted of the pod that it is of now.

use std::collections::BTreeSet;

use aya::maps::lpm_trie::Key as LpmKey;
use ipnet::IpNet;
use netpol_common::layout::{self, HAS_SOURCE_PREFIXES, names};
use zerocopy::FromBytes as _;

use super::error::{DatapathError, bpf_error, full_or, ignore_missing};
use super::keys::{trie_block, trie_key};
use super::limits::{N_EXAMPLES, Overflow};
use super::maps::SourcePrefixBytes;
use super::writer::Datapath;
use netpol_compile::EndpointId;

/// What stands in the table, and what does not though it is wanted.
#[derive(Debug, Default)]
pub(super) struct Prefixes {
    stored: BTreeSet<(u32, IpNet)>,
    missing: BTreeSet<(u32, IpNet)>,
}

impl Datapath {
    /// These blocks, by interface, and no others may be the sources of what pods forward.
    pub fn set_source_prefixes(
        &mut self,
        wanted: BTreeSet<(u32, IpNet)>,
    ) -> Result<(), DatapathError> {
        let mut result = Ok(());
        let mut lost = BTreeSet::new();
        // Out before in: an interface may have become another pod's.
        let stale: Vec<_> = self.prefixes.stored.difference(&wanted).copied().collect();
        for prefix in stale {
            match ignore_missing(self.maps.source_prefixes.remove(&key(&prefix))) {
                Ok(()) => {
                    self.prefixes.stored.remove(&prefix);
                    lost.insert(prefix.0);
                }
                Err(error) => result = Err(error),
            }
        }
        // Flows from there are forged by now.
        let concerned = self.endpoints.iter().filter(|(_, e)| lost.contains(&e.ifindex));
        let concerned: Vec<EndpointId> = concerned.map(|(&id, _)| id).collect();
        if !concerned.is_empty() {
            self.rejudge(&concerned);
        }
        if !wanted.is_empty() {
            self.maps.control.set_flag(HAS_SOURCE_PREFIXES, true);
        }
        self.prefixes.missing.clear();
        let fresh: Vec<_> = wanted.difference(&self.prefixes.stored).copied().collect();
        for prefix in fresh {
            match self.maps.source_prefixes.insert(&key(&prefix), 1, 0) {
                Ok(()) => {
                    self.prefixes.stored.insert(prefix);
                }
                Err(error) => {
                    self.prefixes.missing.insert(prefix);
                    let limit = layout::MAX_SOURCE_PREFIXES;
                    result = Err(full_or(error, "table of source prefixes", limit));
                }
            }
        }
        if self.prefixes.stored.is_empty() {
            self.maps.control.set_flag(HAS_SOURCE_PREFIXES, false);
        }
        result
    }

    /// What an earlier agent has written stays until it is known what is wanted.
    pub(super) fn adopt_prefixes(&mut self) -> Result<(), DatapathError> {
        let what = || format!("read map {}", names::SOURCE_PREFIXES);
        for key in self.maps.source_prefixes.keys() {
            let key = key.map_err(bpf_error(what()))?;
            match prefix_of(&key) {
                Some(prefix) => drop(self.prefixes.stored.insert(prefix)),
                None => return Err(DatapathError::Missing(format!("{}: odd key", what()))),
            }
        }
        Ok(())
    }

    pub(super) fn source_prefixes(&self) -> usize {
        self.prefixes.stored.len()
    }

    pub(super) fn missing_prefixes(&self) -> Option<Overflow> {
        let missing = &self.prefixes.missing;
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
