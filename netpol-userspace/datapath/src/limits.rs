//! How much the tables hold, and what is told when that is not enough. Plain data.
//!
//! Every table has a limit below the kernel's own, so that a change in place never meets a full
//! table: some kernels refuse it then. What does not fit never makes anything allowed.

use netpol_common::layout::{self, names};

use netpol_compile::EndpointId;

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

/// The tables may take this part of the machine's memory when all of them are full, if they are not
/// told otherwise. So machines of 4 GB and more have tables of the default size, and no larger ones:
/// the DaemonSet's memory request counts what an empty one takes.
const PART_OF_MEMORY: u64 = 20;
/// What full tables of the default size take: about 96 bytes for an address or a Service, 128 for a
/// block with the inner node that leads to it, 64 for a row, 8 for an interval, and 16 for a bucket.
const FULL_BYTES: u64 = 200 << 20;
/// The smallest tables are this part of the default size.
const LEAST_PART: u64 = 8;

/// The most that a table can be told to hold is so many times the default.
const MOST_TIMES: u32 = 16;

/// Entries of a hash or trie beyond its limit, for changes in place.
pub(crate) const SPARE: u32 = 1;

impl Limits {
    /// Those of a machine with so many bytes of memory.
    pub fn by_memory(bytes: u64) -> Self {
        let full = bytes / PART_OF_MEMORY;
        let eighths = (full * LEAST_PART / FULL_BYTES).clamp(1, LEAST_PART);
        let part =
            |limit: u32| u32::try_from(u64::from(limit) * eighths / LEAST_PART).unwrap_or(limit);
        let all = Self::default();
        Self {
            addresses: part(all.addresses),
            blocks: part(all.blocks),
            rows: part(all.rows),
            intervals: part(all.intervals),
            services: part(all.services),
            ..all
        }
    }

    /// What of these is more than there is room for in tables that are there.
    pub fn beyond(&self, room: &Self) -> Vec<&'static str> {
        let all = [
            ("addresses", self.addresses > room.addresses),
            ("blocks", self.blocks > room.blocks),
            ("rows", self.rows > room.rows),
            ("intervals", self.intervals > room.intervals),
            ("services", self.services > room.services),
            ("fragments", self.fragments > room.fragments),
        ];
        all.into_iter().filter_map(|(table, is_beyond)| is_beyond.then_some(table)).collect()
    }

    /// The sizes of new maps.
    pub(crate) fn sizes(&self) -> [(&'static str, u32); 6] {
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
    pub(crate) fn within(mut self, name: &str, size: u32) -> Self {
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

    /// The most that the limit called `name` can be, if this is the default: what is sized by the
    /// layout has no more room, the other tables are made as large as they are told.
    pub fn most(mut self, name: &str) -> Option<u32> {
        let times = match name {
            "endpoints" | "endpoint-addresses" => 1,
            _ => MOST_TIMES,
        };
        self.by_name(name).map(|limit| limit.saturating_mul(times))
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
pub(crate) const N_EXAMPLES: usize = 5;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_smaller_on_small_machines() {
        let all = Limits::default();
        for (mebibytes, eighths) in
            [(0, 1), (512, 1), (1_024, 2), (2_048, 4), (4_096, 8), (1 << 20, 8)]
        {
            let limits = Limits::by_memory(mebibytes << 20);
            let expected = [all.blocks, all.rows, all.services].map(|n| n / 8 * eighths);
            assert_eq!([limits.blocks, limits.rows, limits.services], expected, "{mebibytes} MiB");
            assert_eq!(limits.endpoints, all.endpoints);
            assert!(limits.beyond(&all).is_empty());
        }
        let more = Limits { blocks: all.blocks + 1, ..all };
        assert_eq!(more.beyond(&all), ["blocks"]);
    }
}
