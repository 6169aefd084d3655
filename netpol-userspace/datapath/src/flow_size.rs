//! How large the flow tables are. Pure.

use netpol_common::flow::{SLOTS, WORDS4, WORDS6};
use netpol_common::layout::{FLOW4_BUCKETS, FLOW6_BUCKETS, MAX_FLOW_BUCKETS};

/// Both tables together take at most this part of the machine's memory, if not told otherwise:
/// a quarter of a percent, as Cilium's do.
const PART_OF_MEMORY: u64 = 400;
/// Bytes of a bucket of each table, with what the endpoints' reserves add.
const BUCKET_BYTES: [u64; 2] =
    [(WORDS4 * 8 * SLOTS * 3 / 2) as u64, (WORDS6 * 8 * SLOTS * 3 / 2) as u64];
/// The most buckets that are chosen by memory alone: 524,288 IPv4 and 262,144 IPv6 flows, 25 MB
/// each. (Calico has 512,000 of both together.) The DaemonSet's memory request counts them.
const MOST: [u32; 2] = [1 << 17, 1 << 16];
/// The least: 131,072 and 65,536 flows.
const LEAST: [u32; 2] = [FLOW4_BUCKETS, FLOW6_BUCKETS];

#[expect(clippy::cast_possible_truncation, reason = "it is 4")]
const SLOTS_PER_BUCKET: u32 = SLOTS as u32;

/// Most flows that a table can be told to have room for.
pub const MAX_FLOWS: u32 = MAX_FLOW_BUCKETS * SLOTS_PER_BUCKET;
/// Least flows that one can be told to have room for.
pub const MIN_FLOWS: u32 = 4_096;

/// Buckets of the IPv4 and the IPv6 table on a machine with so many bytes of memory.
pub fn buckets_by_memory(bytes: u64) -> [u32; 2] {
    std::array::from_fn(|family| {
        let buckets = bytes / PART_OF_MEMORY / 2 / BUCKET_BYTES[family];
        let buckets = u32::try_from(buckets).unwrap_or(u32::MAX);
        let buckets = buckets.clamp(LEAST[family], MOST[family]);
        // The largest power of two that is not more.
        1 << buckets.ilog2()
    })
}

/// Buckets that have room for so many flows.
pub fn buckets_for(flows: u32) -> u32 {
    flows.div_ceil(SLOTS_PER_BUCKET).next_power_of_two().min(MAX_FLOW_BUCKETS)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn tables_grow_with_the_memory_between_a_floor_and_a_ceiling() {
        for (gib, expected) in [
            (0, [32_768, 16_384]),
            (1, [32_768, 16_384]),
            (8, [32_768, 16_384]),
            (16, [65_536, 32_768]),
            (32, [131_072, 65_536]),
            (4_096, [131_072, 65_536]),
        ] {
            assert_eq!(buckets_by_memory(gib * GIB), expected, "{gib} GiB");
        }
    }

    #[test]
    fn what_is_asked_for_fits() {
        for (flows, buckets) in
            [(1, 1), (4_096, 1_024), (4_097, 2_048), (512_000, 131_072), (u32::MAX, 1 << 18)]
        {
            assert_eq!(buckets_for(flows), buckets, "{flows}");
        }
        assert_eq!(buckets_for(MAX_FLOWS), MAX_FLOW_BUCKETS);
    }

    /// What the manifest asks for covers the agent, the other tables and the largest flow tables
    /// that are chosen without being told.
    #[test]
    fn the_daemon_sets_request_covers_the_largest_tables() {
        let manifest = include_str!("../../../deploy/base/daemonset.yaml");
        let request = manifest
            .lines()
            .find_map(|line| line.trim().strip_prefix("memory: ")?.strip_suffix("Mi"))
            .and_then(|mebibytes| mebibytes.parse::<u64>().ok())
            .expect("the DaemonSet requests memory");
        let flows: u64 = (0..2).map(|family| u64::from(MOST[family]) * BUCKET_BYTES[family]).sum();
        // The agent takes 10 MB, the other maps 67 in a small cluster.
        let needed = flows + 77_000_000;
        assert!(
            request << 20 >= needed + needed / 4,
            "{request} Mi of {needed} bytes and a quarter"
        );
    }
}
