//! The port search against counting.

#![expect(clippy::cast_possible_truncation, reason = "small or random numbers")]

use netpol_common::layout::{
    INTERVAL_ALLOW, Interval, ROW_ALL, ROW_PORTS, ROW_PORTS_AND_OTHERS, Row, interval,
};
use netpol_common::packet::{ICMP, ICMPV6, SCTP, TCP, UDP};
use netpol_common::ports::{Intervals, NO_PORTS, allows};
use proptest::prelude::*;

struct Arena(Vec<Interval>);

impl Intervals for Arena {
    fn interval(&self, index: u32) -> Option<Interval> {
        self.0.get(index as usize).copied()
    }
}

type Lists = [Vec<(u16, u16)>; 3];

/// A row over these lists, with other rows' intervals before and after.
fn row_of(lists: &Lists, before: &[(u16, u16)]) -> (Arena, Row) {
    let word = |&(first, last): &(u16, u16)| interval(first, last, INTERVAL_ALLOW);
    let mut arena: Vec<Interval> = before.iter().map(word).collect();
    let offset = arena.len() as u32;
    arena.extend(lists.iter().flatten().map(word));
    arena.push(interval(0, 65_535, INTERVAL_ALLOW));
    let counts = std::array::from_fn(|i| lists[i].len() as u16);
    (Arena(arena), Row { kind: ROW_PORTS, counts, offset, reserved: 0 })
}

fn assert_exact(lists: &Lists, before: &[(u16, u16)], ports: impl Iterator<Item = u16> + Clone) {
    let (arena, row) = row_of(lists, before);
    for (list, protocol) in lists.iter().zip([TCP, UDP, SCTP]) {
        let mut expected = vec![false; 65_536];
        for &(first, last) in list {
            expected[usize::from(first)..=usize::from(last)].fill(true);
        }
        for port in ports.clone() {
            let found = allows(&arena, &row, protocol, port);
            assert_eq!(found, expected[usize::from(port)], "protocol {protocol} port {port}");
        }
    }
}

/// Sorted, disjoint, non-adjacent intervals from sorted distinct cut points.
fn list() -> impl Strategy<Value = Vec<(u16, u16)>> {
    prop::collection::btree_set(any::<u16>(), 0..60).prop_map(|cuts| {
        let cuts: Vec<u16> = cuts.into_iter().collect();
        let mut list: Vec<(u16, u16)> = Vec::new();
        for pair in cuts.chunks(2) {
            let (first, last) = (pair[0], *pair.last().unwrap_or(&pair[0]));
            if list.last().is_none_or(|&(_, before)| before + 1 < first) {
                list.push((first, last));
            }
        }
        list
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_search_is_exact_at_and_around_every_edge(
        tcp in list(), udp in list(), sctp in list(), before in list(), random: [u16; 16],
    ) {
        let lists = [tcp, udp, sctp];
        let edges: Vec<u16> = lists
            .iter()
            .flatten()
            .flat_map(|&(first, last)| [first, last])
            .flat_map(|port| [port.saturating_sub(1), port, port.saturating_add(1)])
            .chain([0, 1, 65_534, 65_535])
            .chain(random)
            .collect();
        assert_exact(&lists, &before, edges.into_iter());
    }
}

#[test]
fn every_port_of_lists_of_any_length_is_exact() {
    for count in [0u32, 1, 2, 3, 4, 5, 7, 8, 9, 100, 1023, 1024, 1025, 16_383, 32_767, 32_768] {
        // Single ports with a gap of one between them: as many as a protocol can have.
        let list: Vec<(u16, u16)> = (0..count).map(|i| (i as u16 * 2, i as u16 * 2)).collect();
        let lists = [list.clone(), vec![(65_535, 65_535)], list];
        assert_exact(&lists, &[(0, 65_535)], 0..=65_535);
    }
}

#[test]
fn protocols_without_ports_need_a_row_that_allows_everything() {
    let whole = || vec![(0, 65_535)];
    let (arena, ports) = row_of(&[whole(), whole(), whole()], &[]);
    let all = Row { kind: ROW_ALL, ..Row::default() };
    for protocol in [0, ICMP, ICMPV6, 47, 50, 255] {
        assert!(!allows(&arena, &ports, protocol, 0), "{protocol}");
        assert!(allows(&arena, &all, protocol, 0), "{protocol}");
    }
}

#[test]
fn a_row_may_allow_some_ports_and_every_protocol_without_ports() {
    let (arena, ports) = row_of(&[vec![(80, 80)], vec![], vec![(0, 65_535)]], &[]);
    let row = Row { kind: ROW_PORTS_AND_OTHERS, ..ports };
    for (protocol, port, expected) in [
        (TCP, 80, true),
        (TCP, 81, false),
        (UDP, 80, false),
        (SCTP, 7, true),
        (0, 0, true),
        (ICMP, 0, true),
        (ICMPV6, 0, true),
        (47, 0, true),
        (254, 0, true),
        // Of a protocol with ports that are not known.
        (NO_PORTS, 0, false),
    ] {
        assert_eq!(allows(&arena, &row, protocol, port), expected, "{protocol} {port}");
    }
}

#[test]
fn nothing_but_a_valid_row_with_allowing_intervals_allows() {
    let arena = Arena(vec![interval(0, 65_535, INTERVAL_ALLOW)]);
    let row = |kind, counts| Row { kind, counts, offset: 0, reserved: 0 };
    assert!(!allows(&arena, &Row::default(), TCP, 80), "a zeroed row");
    for kind in [0, 4, u16::MAX] {
        assert!(!allows(&arena, &row(kind, [1, 1, 1]), TCP, 80), "kind {kind}");
    }
    assert!(allows(&arena, &row(ROW_PORTS, [1, 0, 0]), TCP, 80));
    assert!(!allows(&arena, &row(ROW_PORTS, [0, 0, 0]), TCP, 80), "no intervals");
    assert!(!allows(&arena, &row(ROW_PORTS, [1, 1, 0]), UDP, 80), "beyond the arena");
    for verdict in [0, 2, 3, 0xffff] {
        let arena = Arena(vec![interval(0, 65_535, verdict)]);
        assert!(!allows(&arena, &row(ROW_PORTS, [1, 0, 0]), TCP, 80), "verdict {verdict}");
    }
}
