//! The flow table under many threads at once, on real atomics, in tables so small that all flows
//! collide. Every flow's epoch and opener are a function of its key, so that an entry that a
//! look-up returns for the wrong flow shows.

#![expect(clippy::cast_possible_truncation, reason = "small or random numbers")]

mod support;

use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};

use netpol_common::flow::{
    self, Bucket as _, Clock, EMPTY, Inserted, KEY4, Key, OPENED_BY_NODE, OPENED_BY_REMOTE, SLOTS,
    Slot, WORDS4, WORDS6,
};
use netpol_common::layout::EPOCH_MASK;
use netpol_common::packet::{Packet, UDP};
use support::{AtomicTable, Random, SECRET, TIMEOUTS, v4, v6};

const THREADS: u64 = 8;
const ROUNDS: u64 = 30_000;

fn clock(now: u64) -> Clock {
    Clock { now, timeouts: TIMEOUTS }
}

fn packet(flow: u64) -> Packet {
    Packet {
        local: v4([10, 1, 0, 1]),
        remote: v4([10, 2, (flow >> 8) as u8, flow as u8]),
        local_port: 80,
        remote_port: flow as u16,
        protocol: UDP,
        ..Packet::default()
    }
}

fn key4(flow: u64) -> Key<KEY4> {
    flow::key4(&packet(flow), 7)
}

/// The epoch says whose it is, the opener repeats the lowest bits. Each flow has two epochs that
/// are its own, for judging anew.
fn epoch_of(flow: u64, is_renewed: bool) -> u32 {
    (flow as u32) << 1 | u32::from(is_renewed)
}

fn opener_of(flow: u64) -> u64 {
    (flow & 3) * OPENED_BY_REMOTE
}

fn assert_belongs(flow: u64, epoch: u32, state: u64) {
    assert_eq!(u64::from(epoch >> 1), flow, "the entry of another flow was found");
    assert_eq!(state & (OPENED_BY_REMOTE | OPENED_BY_NODE), opener_of(flow), "flow {flow}");
    assert_eq!(epoch & !EPOCH_MASK, 0);
}

/// One thread's work on flows below `n_flows`; returns how often it found what it looked for.
fn hammer<const KEY: usize>(
    table: &AtomicTable,
    n_flows: u64,
    seed: u64,
    key_of: impl Fn(u64) -> Key<KEY>,
) -> u64 {
    let mut random = Random(seed);
    let mut n_found = 0;
    for round in 0..ROUNDS {
        let flow = random.below(n_flows);
        let key = key_of(flow);
        let hash = flow::hash(&key, SECRET);
        let clock = clock(1_000 + round / 100);
        if random.one_in(2) {
            flow::fetch::<_, KEY>(&table, hash);
        }
        match flow::find(&table, &key, hash) {
            Some(entry) => {
                n_found += 1;
                assert_belongs(flow, entry.epoch(), entry.state);
                match random.below(4) {
                    0 => entry.renew(epoch_of(flow, random.one_in(2)), opener_of(flow)),
                    1 => {
                        entry.touch(clock.now, flow::REPLIED, false);
                        flow::settle(&table, &key, hash, &clock);
                    }
                    _ => {}
                }
            }
            None => {
                let epoch = epoch_of(flow, false);
                flow::insert(&table, &key, hash, epoch, opener_of(flow), &clock);
            }
        }
    }
    n_found
}

fn all_threads(work: impl Fn(u64) -> u64 + Sync) -> u64 {
    let (barrier, total) = (Barrier::new(THREADS as usize), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (barrier, total, work) = (&barrier, &total, &work);
            scope.spawn(move || {
                barrier.wait();
                total.fetch_add(work(thread), Ordering::Relaxed);
            });
        }
    });
    total.into_inner()
}

#[test]
fn no_look_up_ever_returns_another_flows_entry() {
    for (buckets, n_flows) in [(1, 5), (1, 64), (2, 24), (8, 1_000)] {
        let table = AtomicTable::new(buckets, WORDS4);
        let n_found = all_threads(|thread| hammer(&table, n_flows, thread, key4));
        assert!(n_found > 0);
        for slot in table.buckets().flat_map(Slot::<KEY4>::read) {
            let flow = u64::from(slot.remote_port());
            assert_eq!(slot.key, key4(flow));
            assert_belongs(flow, slot.epoch(), slot.state);
        }
        // A look ends at a free slot, so none may stand before one that is taken.
        for bucket in table.buckets() {
            let states = (0..SLOTS).map(|slot| bucket.load(slot * WORDS4 + KEY4));
            assert!(states.skip_while(|&state| state != EMPTY).all(|state| state == EMPTY));
        }
        table.assert_accounts::<KEY4>();
        // Nothing stays locked: a slot that no thread writes any more can be taken again.
        let late = clock(1_000_000);
        for flow in 2_000..2_000 + u64::from(buckets) * 4 {
            let key = key4(flow);
            let inserted = flow::insert(&&table, &key, flow::hash(&key, SECRET), 1, 0, &late);
            assert_ne!(inserted, Inserted::Contended);
        }
    }
}

#[test]
fn nor_in_the_wider_table() {
    let table = AtomicTable::new(2, WORDS6);
    let key_of = |flow: u64| {
        let packet = Packet { local: v6(1, 1), remote: v6(2, flow as u8), ..packet(flow) };
        flow::key6(&packet, 7)
    };
    assert!(all_threads(|thread| hammer(&table, 20, thread, key_of)) > 0);
}

#[test]
fn nothing_is_lost_while_there_is_room() {
    let table = AtomicTable::new(4_096, WORDS4);
    let per_thread = 300;
    let flows = |thread: u64| (0..per_thread).map(move |i| i * THREADS + thread);
    let n_free = all_threads(|thread| {
        let now = clock(1_000);
        let inserted = flows(thread).filter(|&flow| {
            let (key, epoch) = (key4(flow), epoch_of(flow, false));
            let hash = flow::hash(&key, SECRET);
            // Two threads that want the same free slot: one of them has to try again, as the
            // next packet does.
            (0..100).any(|_| {
                flow::insert(&&table, &key, hash, epoch, opener_of(flow), &now) == Inserted::Free
            })
        });
        inserted.count() as u64
    });
    assert_eq!(n_free, per_thread * THREADS);
    for flow in 0..per_thread * THREADS {
        let key = key4(flow);
        let entry = flow::find(&&table, &key, flow::hash(&key, SECRET)).expect("not lost");
        assert_belongs(flow, entry.epoch(), entry.state);
    }
}
