//! Whose flows make room for whose when the table is full, and that what an endpoint has is counted
//! exactly.

#![expect(clippy::cast_possible_truncation, reason = "small or random numbers")]

mod support;

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use netpol_common::flow::{
    self, ANSWERED, Clock, HEARD, Inserted, KEY4, KEY6, Key, OPENED_BY_REMOTE, PATIENCE, REPLIED,
    RESET, SLOTS, WORDS4, WORDS6, account,
};
use netpol_common::layout::{MAX_ENDPOINTS, reserve_buckets};
use netpol_common::packet::{Packet, TCP, UDP};
use support::{AtomicTable, Random, SECRET, TIMEOUTS, v4, v6};

const START: u64 = 1_000;
const PODS: u64 = 0;
/// The pods: a victim, and others.
const VICTIM: u16 = 7;
const OTHER: u16 = 8;
const THIRD: u16 = 9;

fn clock(now: u64) -> Clock {
    Clock { now, timeouts: TIMEOUTS }
}

/// A flow of an endpoint with the `remote`th address, told apart from others by `number`.
fn flow_of(endpoint: u16, remote: u32, number: u32, protocol: u8) -> Key<KEY4> {
    let packet = Packet {
        local: v4([10, 1, 0, endpoint as u8]),
        remote: v4([10, (remote >> 16) as u8 | 0x80, (remote >> 8) as u8, remote as u8]),
        local_port: (number >> 16) as u16,
        remote_port: number as u16,
        protocol,
        ..Packet::default()
    };
    flow::key4(&packet, endpoint)
}

fn udp(endpoint: u16, remote: u32, number: u32) -> Key<KEY4> {
    flow_of(endpoint, remote, number, UDP)
}

fn open<const KEY: usize>(table: &AtomicTable, key: &Key<KEY>, opener: u64, now: u64) -> Inserted {
    flow::insert(&table, key, flow::hash(key, SECRET), 1, opener, &clock(now))
}

/// The answer to a flow passes.
fn answer<const KEY: usize>(table: &AtomicTable, key: &Key<KEY>, now: u64) -> bool {
    let Some(entry) = flow::find(&table, key, flow::hash(key, SECRET)) else { return false };
    entry.touch(now, REPLIED, false);
    flow::settle(&table, key, flow::hash(key, SECRET), &clock(now));
    true
}

fn is_known<const KEY: usize>(table: &AtomicTable, key: &Key<KEY>) -> bool {
    flow::find(&table, key, flow::hash(key, SECRET)).is_some()
}

fn is_answered(table: &AtomicTable, key: &Key<KEY4>) -> bool {
    flow::find(&table, key, flow::hash(key, SECRET))
        .is_some_and(|entry| entry.state & ANSWERED != 0)
}

/// A table with this many buckets for all, divided among so many endpoints.
fn divided(buckets: u32, n_endpoints: u64) -> (AtomicTable, u64) {
    let table = AtomicTable::new(buckets, WORDS4);
    let share = (u64::from(buckets) * SLOTS as u64 / 2 / n_endpoints).max(1);
    for endpoint in 0..MAX_ENDPOINTS as u16 {
        table.set_share(endpoint, share);
    }
    (table, share)
}

fn counted(table: &AtomicTable, endpoint: u16, word: usize) -> u64 {
    table.word(endpoint, word).load(Ordering::SeqCst)
}

/// Nobody's flow that was answered, and is live, makes room for one that was not.
#[test]
fn an_answered_flow_never_makes_room_for_one_that_was_not() {
    for seed in 0..30 {
        let mut random = Random(seed);
        let (table, _) = divided(1 << random.below(4), 1 + random.below(8));
        let mut known: HashMap<Key<KEY4>, u64> = HashMap::new();
        for step in 0..1_000 {
            let now = START + step / 40;
            let endpoint = VICTIM + random.below(3) as u16;
            let key = udp(endpoint, random.below(6) as u32, random.below(2_000) as u32);
            let opener = if random.one_in(2) { PODS } else { OPENED_BY_REMOTE };
            let answered: Vec<Key<KEY4>> =
                known.keys().filter(|key| is_answered(&table, key)).copied().collect();
            if !known.contains_key(&key) || !is_known(&table, &key) {
                open(&table, &key, opener, now);
                known.insert(key, now);
                for key in answered {
                    let is_live = now <= known[&key] + TIMEOUTS.udp;
                    assert!(!is_live || is_known(&table, &key), "seed {seed} step {step}");
                }
            } else if answer(&table, &key, now) {
                known.insert(key, now);
            }
        }
        table.assert_accounts::<KEY4>();
    }
}

/// How a flood is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flood {
    Unanswered,
    Answered,
}

/// So many flows of an endpoint, from or to as many remote addresses.
fn flood(table: &AtomicTable, endpoint: u16, kind: Flood, opener: u64, remotes: u32, count: u32) {
    for number in 0..count {
        let key = udp(endpoint, number % remotes, 100_000 + number);
        open(table, &key, opener, START);
        if kind == Flood::Answered {
            answer(table, &key, START);
        }
    }
}

#[test]
fn what_an_endpoint_has_within_its_share_outlives_any_flood_of_others() {
    for kind in [Flood::Unanswered, Flood::Answered] {
        let (table, share) = divided(256, 4);
        let flows: Vec<_> = (0..share as u32).map(|n| udp(VICTIM, n % 5, n)).collect();
        for (n, key) in flows.iter().enumerate() {
            assert_ne!(open(&table, key, PODS, START), Inserted::Refused);
            assert!(n % 2 == 0 || answer(&table, key, START));
        }
        // Two that flood at the same time, so that either has less than the other now and then.
        for _ in 0..4 {
            flood(&table, OTHER, kind, PODS, 3, 2_000);
            flood(&table, THIRD, kind, OPENED_BY_REMOTE, 2_000, 2_000);
        }
        let lost = flows.iter().filter(|key| !is_known(&table, key)).count();
        assert_eq!(lost, 0, "{kind:?}");
        assert_eq!(counted(&table, VICTIM, account::GIVEN), 0);
        assert!(counted(&table, OTHER, account::HELD) > 2 * share, "it takes what nobody needs");
        table.assert_accounts::<KEY4>();
    }
}

#[test]
fn in_a_table_that_others_have_filled_everybody_gets_the_share() {
    for kind in [Flood::Unanswered, Flood::Answered] {
        for opener in [PODS, OPENED_BY_REMOTE] {
            let (table, share) = divided(256, 8);
            flood(&table, OTHER, kind, PODS, 2, 8_000);
            let flows: Vec<_> = (0..share as u32).map(|n| udp(VICTIM, n, n)).collect();
            for key in &flows {
                open(&table, key, opener, START);
                assert!(is_known(&table, key), "{kind:?}: it waits for its answer");
                assert!(answer(&table, key, START));
                // Nor has the flood ended.
                flood(&table, OTHER, kind, PODS, 2, 4);
            }
            let lost = flows.iter().filter(|key| !is_answered(&table, key)).count();
            assert_eq!(lost, 0, "{kind:?}");
            assert_eq!(counted(&table, VICTIM, account::REFUSED), 0);
            assert_eq!(counted(&table, VICTIM, account::DISPLACED), 0);
            assert!(counted(&table, OTHER, account::GIVEN) >= share / 2, "the flooder paid");
            table.assert_accounts::<KEY4>();
        }
    }
}

/// One remote side sends all it can to a pod, and is answered. Others come all the same, and what
/// they have stays.
#[test]
fn no_remote_side_takes_a_pod_from_the_others() {
    let (table, _) = divided(64, 4);
    let before: Vec<_> = (0..40).map(|n| udp(VICTIM, 100 + n, n)).collect();
    for key in &before {
        open(&table, key, OPENED_BY_REMOTE, START);
        assert!(answer(&table, key, START));
    }
    flood(&table, VICTIM, Flood::Answered, OPENED_BY_REMOTE, 1, 4_000);
    let after: Vec<_> = (0..40).map(|n| udp(VICTIM, 200 + n, n)).collect();
    for key in &after {
        open(&table, key, OPENED_BY_REMOTE, START + 1);
        assert!(answer(&table, key, START + 1), "it waits for its answer");
        flood(&table, VICTIM, Flood::Answered, OPENED_BY_REMOTE, 1, 40);
    }
    flood(&table, VICTIM, Flood::Answered, OPENED_BY_REMOTE, 1, 4_000);
    for key in before.iter().chain(&after) {
        assert!(is_answered(&table, key));
    }
}

/// Forged addresses are any number of remote sides. What the pod itself opened is not theirs.
#[test]
fn what_a_pod_opened_makes_no_room_for_what_is_sent_to_it() {
    let (table, _) = divided(64, 4);
    let answered: Vec<_> = (0..80).map(|n| udp(VICTIM, n, n)).collect();
    for key in &answered {
        open(&table, key, PODS, START);
        assert!(answer(&table, key, START));
    }
    let lost = || answered.iter().filter(|key| !is_answered(&table, key)).count();
    flood(&table, VICTIM, Flood::Answered, OPENED_BY_REMOTE, 4_000, 4_000);
    assert_eq!(lost(), 0);
    // It waits for its answer while others send.
    for n in 0..100 {
        let key = udp(VICTIM, 1_000 + n, n);
        open(&table, &key, PODS, START);
        let before = lost();
        flood(&table, VICTIM, Flood::Unanswered, OPENED_BY_REMOTE, 60, 60);
        assert_eq!(lost(), before, "{n}");
        // Where all that it may take the place of is the pod's own, it takes that.
        assert!(answer(&table, &key, START), "{n}");
        let before = lost();
        flood(&table, VICTIM, Flood::Answered, OPENED_BY_REMOTE, 60, 60);
        assert_eq!(lost(), before, "{n}");
        assert!(is_answered(&table, &key), "{n}");
    }
    assert!(lost() < 8, "{}", lost());
    table.assert_accounts::<KEY4>();
}

/// A pod that has more connections than there is room for goes on, and loses the longest idle ones.
#[test]
fn an_endpoint_that_fills_the_table_by_itself_still_opens_connections() {
    let (table, _) = divided(64, 1);
    let flows: Vec<_> = (0..2_000).map(|n| udp(VICTIM, n, n)).collect();
    for (n, key) in flows.iter().enumerate() {
        let now = START + n as u64 / 200;
        open(&table, key, PODS, now);
        assert!(answer(&table, key, now), "{n}: not known until its answer");
    }
    let kept = flows.iter().filter(|key| is_known(&table, key)).count();
    let slots = (64 + reserve_buckets(64) as usize) * SLOTS;
    assert!(kept <= slots && kept > slots * 9 / 10, "{kept} of {slots}");
    let newest = &flows[1_900..];
    assert!(newest.iter().filter(|key| is_known(&table, key)).count() > 95);
    assert_eq!(counted(&table, VICTIM, account::REFUSED), 0);
    table.assert_accounts::<KEY4>();
}

#[test]
fn a_pods_own_unanswered_flows_make_room_for_others_sooner_or_later() {
    let (table, _) = divided(1, 1);
    for n in 0..100 {
        open(&table, &udp(VICTIM, n, n), PODS, START);
    }
    let key = udp(VICTIM, 200, 200);
    assert_eq!(open(&table, &key, OPENED_BY_REMOTE, START + PATIENCE), Inserted::Refused);
    assert_eq!(counted(&table, VICTIM, account::REFUSED), 1);
    assert_eq!(open(&table, &key, OPENED_BY_REMOTE, START + PATIENCE + 1), Inserted::Evicted);
}

/// A pod answers whoever says that it wants a connection, whatever address that one forged.
#[test]
fn a_handshake_that_nobody_ends_is_no_answered_flow() {
    let (table, _) = divided(64, 1);
    let touch = |key: &Key<KEY4>, bits| {
        let entry = flow::find(&&table, key, flow::hash(key, SECRET)).expect("known");
        let is_first = entry.is_first_answer(TCP, bits, false);
        entry.touch(START, bits, false);
        if is_first {
            flow::settle(&&table, key, flow::hash(key, SECRET), &clock(START));
        }
    };
    let [half, reset, whole] = [1, 2, 3].map(|n| flow_of(VICTIM, n, n, TCP));
    for key in [&half, &reset, &whole] {
        open(&table, key, OPENED_BY_REMOTE, START);
        touch(key, REPLIED);
        assert!(!is_answered(&table, key));
    }
    // Whose address it is says that it knows of nothing.
    touch(&reset, RESET);
    assert!(!is_answered(&table, &reset));
    touch(&whole, 0);
    assert!(is_answered(&table, &whole));
    let meta = |key| flow::find(&&table, key, flow::hash(key, SECRET)).expect("known").meta & 0xff;
    assert_eq!((meta(&half), meta(&whole)), (REPLIED, REPLIED | HEARD));
    assert_eq!(counted(&table, VICTIM, account::ANSWERED), 1);
    // A closed one counts as little.
    touch(&whole, RESET);
    flood(&table, VICTIM, Flood::Unanswered, OPENED_BY_REMOTE, 2_000, 2_000);
    assert!(!is_known(&table, &whole));
    table.assert_accounts::<KEY4>();
}

#[test]
fn what_an_endpoint_has_left_behind_makes_room_for_everybody() {
    let (table, share) = divided(64, 16);
    let rest: Vec<_> = (0..share as u32).map(|n| udp(OTHER, n, n)).collect();
    for key in &rest {
        open(&table, key, PODS, START);
        assert!(answer(&table, key, START));
    }
    let n_known = |table: &AtomicTable| rest.iter().filter(|key| is_known(table, key)).count();
    flood(&table, VICTIM, Flood::Unanswered, PODS, 3, 2_000);
    assert_eq!(n_known(&table), rest.len());
    // Its id has another owner, whose flows are of later epochs.
    table.word(OTHER, account::BORN).store(2, Ordering::SeqCst);
    flood(&table, VICTIM, Flood::Unanswered, PODS, 3, 200);
    let then = n_known(&table);
    assert!(then < rest.len());
    // And then it is gone.
    table.set_share(OTHER, 0);
    flood(&table, VICTIM, Flood::Unanswered, PODS, 3, 2_000);
    // Its reserve is nobody's.
    assert!(n_known(&table) <= SLOTS);
    assert_eq!(counted(&table, OTHER, account::GIVEN), 0, "nothing of it was live");
    table.assert_accounts::<KEY4>();
}

#[test]
fn a_flow_that_starts_over_waits_for_its_answer_again() {
    let (table, _) = divided(8, 1);
    let key = udp(VICTIM, 1, 1);
    open(&table, &key, PODS, START);
    assert!(answer(&table, &key, START));
    assert_eq!(counted(&table, VICTIM, account::ANSWERED), 1);
    open(&table, &key, OPENED_BY_REMOTE, START + 1);
    assert!(!is_answered(&table, &key));
    assert_eq!(counted(&table, VICTIM, account::ANSWERED), 0);
    // Judging anew does not matter.
    assert!(answer(&table, &key, START + 1));
    let entry = flow::find(&&table, &key, flow::hash(&key, SECRET)).expect("known");
    entry.renew(9, OPENED_BY_REMOTE);
    assert!(is_answered(&table, &key));
    table.assert_accounts::<KEY4>();
}

#[test]
fn flows_move_to_tables_of_other_sizes() {
    for (from, to) in [(64, 256), (256, 64), (64, 64)] {
        let (old, share) = divided(from, 4);
        let flows: Vec<_> = (0..64).map(|n| udp(VICTIM, n, n)).collect();
        for (n, key) in flows.iter().enumerate() {
            open(&old, key, if n % 3 == 0 { PODS } else { OPENED_BY_REMOTE }, START + n as u64 % 9);
            assert!(n % 2 == 0 || answer(&old, key, START + 9));
        }
        // More than there is room for, of somebody else.
        flood(&old, OTHER, Flood::Unanswered, PODS, 5, 4 * share as u32);
        let (new, _) = divided(to, 4);
        let slots: Vec<flow::Slot<KEY4>> =
            old.buckets().flat_map(flow::Slot::<KEY4>::read).collect();
        // Entered twice, as whoever moves a table that is in use does.
        for slot in slots.iter().chain(&slots) {
            let hash = flow::hash(&slot.key, SECRET);
            flow::restore(&&new, &slot.key, hash, slot.state, slot.meta, &clock(START + 9));
        }
        for key in &flows {
            let [before, after] = [&old, &new].map(|table| {
                let entry = flow::find(&table, key, flow::hash(key, SECRET)).expect("known");
                (entry.state, entry.meta)
            });
            assert_eq!(before, after);
        }
        new.assert_accounts::<KEY4>();
    }
}

/// Whoever has one address of an IPv6 network has all of it.
#[test]
fn an_ipv6_network_is_one_remote_side() {
    let table = AtomicTable::new(64, WORDS6);
    let key = |network: u8, number: u32| {
        let packet = Packet {
            local: v6(1, 1),
            remote: v6(network, number as u8),
            local_port: (number >> 8) as u16,
            protocol: UDP,
            ..Packet::default()
        };
        flow::key6(&packet, VICTIM)
    };
    let others: Vec<Key<KEY6>> = (0..30).map(|n| key(10 + n as u8, n)).collect();
    for other in &others {
        open(&table, other, OPENED_BY_REMOTE, START);
        assert!(answer(&table, other, START));
    }
    for number in 0..4_000 {
        let key = key(9, number);
        open(&table, &key, OPENED_BY_REMOTE, START + 1);
        answer(&table, &key, START + 1);
    }
    assert!(others.iter().all(|other| is_known(&table, other)));
    table.assert_accounts::<KEY6>();
}
