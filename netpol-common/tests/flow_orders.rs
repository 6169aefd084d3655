//! The flow table under every order in which a weakly ordered processor may show its loads and
//! stores to another one: loom runs each of them, bounded by how often threads take turns. Plain
//! loads and stores are relaxed, as those of the programs are; what compares and swaps is a full
//! barrier, as the kernel makes it (Documentation/bpf/standardization/instruction-set.rst, and
//! "fully ordered" in Documentation/atomic_t.txt). Must never rest on the order of this machine.

#![expect(clippy::cast_possible_truncation, reason = "small or random numbers")]
#![expect(clippy::unwrap_used, reason = "tests")]

use loom::sync::Arc;
use loom::sync::atomic::{AtomicU64, Ordering};
use loom::thread;

use netpol_common::flow::{
    self, ANSWERED, Clock, Inserted, KEY4, Key, OPENED_BY_REMOTE, REPLIED, SLOTS, Slot, WORDS4,
    account,
};
use netpol_common::flow::{TIMEOUT_SECONDS, Table as _};
use netpol_common::packet::{Packet, UDP};

const BUCKET_WORDS: usize = WORDS4 * SLOTS;
const ACCOUNT_WORDS: usize = 10;
/// Endpoint ids 0 and up; 0 is nobody's.
const N_ENDPOINTS: usize = 3;
const CLOCK: Clock = Clock { now: 1_000, timeouts: TIMEOUT_SECONDS };

/// One bucket for all, and one in each reserve.
struct Words {
    buckets: Vec<AtomicU64>,
    accounts: Vec<AtomicU64>,
}

impl Words {
    fn new() -> Self {
        let zeros = |n: usize| (0..n).map(|_| AtomicU64::new(0)).collect();
        let words = Self {
            buckets: zeros(BUCKET_WORDS * (1 + N_ENDPOINTS)),
            accounts: zeros(ACCOUNT_WORDS * N_ENDPOINTS),
        };
        for endpoint in 1..N_ENDPOINTS {
            words.account(endpoint, account::SHARE).store(100, Ordering::Relaxed);
        }
        words
    }

    fn account(&self, endpoint: usize, word: usize) -> &AtomicU64 {
        &self.accounts[endpoint * ACCOUNT_WORDS + word]
    }

    fn slots(&self) -> Vec<Slot<KEY4>> {
        let buckets = (0..=N_ENDPOINTS as u32).filter_map(|index| self.bucket(index));
        buckets.flat_map(Slot::<KEY4>::read).collect()
    }

    /// Compares the accounts with what is there.
    fn assert_accounts(&self) {
        for endpoint in 1..N_ENDPOINTS {
            let slots = self.slots();
            let own = slots.iter().filter(|slot| usize::from(slot.endpoint()) == endpoint);
            let n_answered = own.clone().filter(|slot| slot.state & ANSWERED != 0).count();
            let read = |word| self.account(endpoint, word).load(Ordering::SeqCst);
            let counts = [read(account::HELD), read(account::ANSWERED)];
            assert_eq!(counts, [own.count() as u64, n_answered as u64], "endpoint {endpoint}");
        }
    }
}

impl<'a> flow::Table for &'a Words {
    type Bucket = Bucket<'a>;
    type Account = Account<'a>;

    fn bucket(&self, index: u32) -> Option<Bucket<'a>> {
        let start = index as usize * BUCKET_WORDS;
        Some(Bucket(self.buckets.get(start..start + BUCKET_WORDS)?))
    }

    fn masks(&self) -> [u32; 2] {
        [0, 0]
    }

    fn secret(&self) -> [u64; 2] {
        [1, 2]
    }

    fn account(&self, endpoint: u16) -> Option<Account<'a>> {
        let start = usize::from(endpoint) * ACCOUNT_WORDS;
        Some(Account(self.accounts.get(start..start + ACCOUNT_WORDS)?))
    }
}

#[derive(Clone, Copy)]
struct Bucket<'a>(&'a [AtomicU64]);

impl flow::Bucket for Bucket<'_> {
    fn load(self, word: usize) -> u64 {
        self.0[word].load(Ordering::Relaxed)
    }

    fn store(self, word: usize, value: u64) {
        self.0[word].store(value, Ordering::Relaxed);
    }

    fn compare_and_swap(self, word: usize, old: u64, new: u64) -> bool {
        self.0[word].compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    fn store_zero(self, _byte: usize) {}
}

#[derive(Clone, Copy)]
struct Account<'a>(&'a [AtomicU64]);

impl flow::Account for Account<'_> {
    fn load(self, word: usize) -> u64 {
        self.0[word].load(Ordering::Relaxed)
    }

    fn add(self, word: usize, value: u64) {
        self.0[word].fetch_add(value, Ordering::SeqCst);
    }
}

/// A flow of an endpoint; its epoch is its number, so that another's entry shows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Flow {
    endpoint: u16,
    number: u16,
}

impl Flow {
    fn key(self) -> Key<KEY4> {
        let packet =
            Packet { local_port: 80, remote_port: self.number, protocol: UDP, ..Packet::default() };
        let mut key = flow::key4(&packet, self.endpoint);
        key[0] = u64::from(self.number) << 32 | u64::from(self.number);
        key
    }

    fn insert(self, table: &Words) -> Inserted {
        let epoch = u32::from(self.number);
        flow::insert(&table, &self.key(), self.hash_in(table), epoch, OPENED_BY_REMOTE, &CLOCK)
    }

    fn hash_in(self, table: &Words) -> u64 {
        flow::hash(&self.key(), (&table).secret())
    }

    /// Into the slot that was chosen before.
    fn take(self, table: &Words, best: u64) -> Inserted {
        let epoch = u32::from(self.number);
        let hash = self.hash_in(table);
        flow::take(&table, &self.key(), hash, epoch, OPENED_BY_REMOTE, best, &CLOCK)
    }

    fn choose(self, table: &Words) -> u64 {
        flow::choose(&table, &self.key(), self.hash_in(table), OPENED_BY_REMOTE, &CLOCK)
    }

    /// The entry that a look finds is its own, or none.
    fn look(self, table: &Words) -> bool {
        let found = flow::find(&table, &self.key(), self.hash_in(table));
        if let Some(entry) = &found {
            assert_eq!(entry.epoch(), u32::from(self.number), "another flow's entry was found");
        }
        found.is_some()
    }

    fn answer(self, table: &Words) {
        if let Some(entry) = flow::find(&table, &self.key(), self.hash_in(table)) {
            entry.touch(CLOCK.now, REPLIED, false);
            flow::settle(&table, &self.key(), self.hash_in(table), &CLOCK);
        }
    }
}

/// A table whose bucket for all holds three answered flows of endpoint 1, which stay, and one of
/// endpoint 2.
fn full(last: Flow) -> Words {
    let table = Words::new();
    for number in 1..SLOTS as u16 {
        let flow = Flow { endpoint: 1, number };
        assert_eq!(flow.insert(&table), Inserted::Free);
        flow.answer(&table);
    }
    assert_eq!(last.insert(&table), Inserted::Free);
    table
}

/// The same where endpoint 2 is gone, so that what it had makes room; and what A chooses.
fn giving(last: Flow) -> (Words, u64) {
    let table = full(last);
    table.account(2, account::SHARE).store(0, Ordering::Relaxed);
    let best = A.choose(&table);
    (table, best)
}

/// Runs what is given under all orders of two threads.
fn check(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}

fn on_two(
    table: Words,
    one: impl FnOnce(&Words) + 'static,
    other: impl FnOnce(&Words),
) -> Arc<Words> {
    let table = Arc::new(table);
    let shared = table.clone();
    let thread = thread::spawn(move || one(&shared));
    other(&table);
    thread.join().unwrap();
    table
}

const A: Flow = Flow { endpoint: 1, number: 10 };
const B: Flow = Flow { endpoint: 2, number: 11 };
const C: Flow = Flow { endpoint: 1, number: 12 };

#[test]
fn two_that_want_the_same_free_slot() {
    check(|| {
        let table = on_two(
            Words::new(),
            |table| {
                A.insert(table);
            },
            |table| {
                B.insert(table);
            },
        );
        let n_stored = [A, B].into_iter().filter(|flow| flow.look(&table)).count();
        assert!(n_stored >= 1);
        assert_eq!(table.slots().len(), n_stored);
        table.assert_accounts();
    });
}

#[test]
fn a_look_at_a_slot_that_is_given_away() {
    check(|| {
        let (table, best) = giving(B);
        let table = on_two(
            table,
            move |table| {
                A.take(table, best);
            },
            |table| {
                for flow in [A, B, A, B] {
                    flow.look(table);
                }
            },
        );
        assert!(A.look(&table) && !B.look(&table));
        table.assert_accounts();
    });
}

#[test]
fn a_slot_that_is_given_away_twice() {
    check(|| {
        let gone = Flow { endpoint: 2, number: 9 };
        let (table, best) = giving(gone);
        assert_eq!(best, B.choose(&table));
        // What B gets holds nothing from the start, so A may take it from B at once; then A's
        // count and B's have to be right.
        let table = on_two(
            table,
            move |table| {
                B.take(table, best);
            },
            move |table| {
                A.take(table, best);
            },
        );
        assert!(A.look(&table) || B.look(&table));
        table.assert_accounts();
    });
}

#[test]
fn a_flow_that_is_judged_again_while_its_slot_is_given_away() {
    check(|| {
        let (table, best) = giving(B);
        let table = on_two(
            table,
            move |table| {
                A.take(table, best);
            },
            |table| {
                if let Some(entry) = flow::find(&table, &B.key(), B.hash_in(table)) {
                    entry.renew(u32::from(B.number), OPENED_BY_REMOTE);
                }
                B.answer(table);
            },
        );
        assert!(!A.look(&table) || !B.look(&table));
        table.assert_accounts();
    });
}

#[test]
fn a_flow_that_is_answered_by_two_at_once() {
    check(|| {
        let table = Words::new();
        C.insert(&table);
        let table = on_two(table, |table| C.answer(table), |table| C.answer(table));
        assert!(C.look(&table));
        table.assert_accounts();
    });
}
