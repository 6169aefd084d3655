//! How much the tables hold, and what is told when that is not enough. Plain data.
//!
//! Every table has a limit below the kernel's own, so that a change in place never meets a full
//! table: some kernels refuse it then. What does not fit never makes anything allowed.

use netpol_common::layout::{self, names};

use crate::compile::EndpointId;

/// The most that each table may hold. The tables themselves are made this big, so a change takes
/// effect when there are none yet, as after `netpol cleanup`; later it can only be lowered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Local endpoints that are told apart.
    pub endpoints: u32,
    /// Addresses of one endpoint. A share for each, so that no pod can use up another one's.
    pub endpoint_addresses: u32,
    /// Addresses with a class of their own.
    pub addresses: u32,
    /// Blocks of addresses.
    pub blocks: u32,
    /// Verdict rows.
    pub rows: u32,
    /// Intervals of all port sets together.
    pub intervals: u32,
    /// Addresses and ports of Services.
    pub services: u32,
    /// First fragments that are remembered.
    pub fragments: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            endpoints: layout::MAX_ENDPOINTS - 1,
            endpoint_addresses: layout::MAX_OWN_ADDRESSES / layout::MAX_ENDPOINTS,
            addresses: layout::MAX_ADDRESSES,
            blocks: layout::MAX_BLOCKS,
            rows: layout::MAX_ROWS,
            intervals: layout::MAX_INTERVALS,
            services: layout::MAX_SERVICES,
            fragments: layout::MAX_FRAGMENTS,
        }
    }
}

/// Entries of a hash or trie beyond its limit, for changes in place.
pub(super) const SPARE: u32 = 1;

impl Limits {
    /// The sizes of new maps.
    pub(super) fn sizes(&self) -> [(&'static str, u32); 6] {
        [
            (names::ADDRESSES, self.addresses + SPARE),
            (names::BLOCKS, self.blocks + SPARE),
            (names::ROWS, self.rows + SPARE),
            (names::INTERVALS, self.intervals),
            (names::SERVICES, self.services + SPARE),
            (names::FRAGMENTS, self.fragments),
        ]
    }

    /// The limits that hold where a map of this name has `size` entries.
    pub(super) fn within(mut self, name: &str, size: u32) -> Self {
        let (limit, size) = match name {
            names::ADDRESSES => (&mut self.addresses, size.saturating_sub(SPARE)),
            names::BLOCKS => (&mut self.blocks, size.saturating_sub(SPARE)),
            names::ROWS => (&mut self.rows, size.saturating_sub(SPARE)),
            names::INTERVALS => (&mut self.intervals, size),
            names::SERVICES => (&mut self.services, size.saturating_sub(SPARE)),
            names::FRAGMENTS => (&mut self.fragments, size),
            _ => return self,
        };
        *limit = size.min(*limit);
        self
    }

    /// The limit called `name`, for setting it by a flag.
    pub fn by_name(&mut self, name: &str) -> Option<&mut u32> {
        Some(match name {
            "endpoints" => &mut self.endpoints,
            "endpoint-addresses" => &mut self.endpoint_addresses,
            "addresses" => &mut self.addresses,
            "blocks" => &mut self.blocks,
            "rows" => &mut self.rows,
            "intervals" => &mut self.intervals,
            "services" => &mut self.services,
            "fragments" => &mut self.fragments,
            _ => return None,
        })
    }
}

/// How full a table is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableUse {
    /// Its name in metrics and messages.
    pub table: &'static str,
    /// Entries in use.
    pub used: u64,
    /// Entries there is room for.
    pub limit: u64,
    /// What did not fit, if anything.
    pub overflow: Option<Overflow>,
}

/// What a table has no room for now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overflow {
    /// Whether policies are not in force as they are written because of it.
    pub is_error: bool,
    /// How many entries.
    pub n_left_out: u64,
    /// Some of them, or none if the endpoints say it.
    pub examples: Vec<String>,
    /// The endpoints that are concerned; none: possibly all.
    pub endpoints: Vec<EndpointId>,
    /// What that means for packets.
    pub consequence: &'static str,
    /// What makes room.
    pub remedy: &'static str,
}

/// How many examples a message names.
pub(super) const N_EXAMPLES: usize = 5;
