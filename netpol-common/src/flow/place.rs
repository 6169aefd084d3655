//! Where a flow is stored, and which one makes room for it. Must never decide by anything but what
//! the table and its accounts say.
//!
//! A new flow takes the first of these that there is, in its two buckets for all and in its
//! endpoint's reserve; of several, the one whose remote side has most of what is there, and of
//! those the one that was idle for longest:
//!
//! 1. a free slot for all;
//! 2. one for all that holds nothing any more: its flow has expired or its endpoint is gone;
//! 3. an unanswered flow of an endpoint that holds more than its share, and more than the new
//!    flow's endpoint;
//! 4. a free or expired slot of the reserve;
//! 5. an unanswered flow of its own endpoint, unless the pod opened that a short while ago and the
//!    new one is somebody else's.
//!
//! A flow that was answered while it stood in the reserve moves to 2 or 3, or in place of an
//! answered flow of an endpoint that has more of these than its share, and than its own. Otherwise
//! it stays, if the bucket of the reserve keeps a slot for new flows; if not, the endpoint has
//! more than it has room for, and one of its own answered flows counts as unanswered from then on:
//! one that others opened, or, if the pod opened the flow in question, any.

use super::claim::{NONE, RESERVED, VACANT, rank};
use super::{
    ANSWERED, Account, BUSY, Bucket, Claim, Clock, EMPTY, Entry, FIRST, KEY4, Key, META_SHIFT,
    Place, RESERVE, SECOND, SLOTS, Search, TAG_BITS, Table, VALID, choose, endpoint_of, find,
    find_in, index_of, ports_index, state_word, tag,
};

/// Word indices of [`crate::layout::FlowUse`].
pub mod account {
    /// First word of the slots held, by family.
    pub const HELD: usize = 0;
    /// First word of the answered flows, by family.
    pub const ANSWERED: usize = 2;
    /// First word of the shares, by family.
    pub const SHARE: usize = 4;
    /// Flows of earlier epochs are void.
    pub const BORN: usize = 6;
    /// Live flows that made room for the endpoint's own.
    pub const DISPLACED: usize = 7;
    /// Live flows that made room for others'.
    pub const GIVEN: usize = 8;
    /// Flows that found no room.
    pub const REFUSED: usize = 9;
}

/// What [`insert`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Inserted {
    /// Into a free or expired slot, or it was there.
    Free = 0,
    /// In place of a live flow.
    Evicted = 1,
    /// Not at all: other CPUs were writing every candidate.
    Contended = 2,
    /// Not at all: every flow there has a better claim.
    Refused = 3,
}

impl Inserted {
    /// The inverse of `inserted as u32`.
    #[inline(always)]
    pub const fn from_number(number: u32) -> Self {
        match number {
            0 => Self::Free,
            1 => Self::Evicted,
            3 => Self::Refused,
            _ => Self::Contended,
        }
    }
}

/// Stores a flow judged in `epoch`, with these bits for opener and stamp; over an older entry of
/// the same key, if there is one.
#[inline(always)]
pub fn insert<T: Table, const KEY: usize>(
    table: &T,
    key: &Key<KEY>,
    hash: u64,
    epoch: u32,
    bits: u64,
    clock: &Clock,
) -> Inserted {
    if let Some(inserted) = enter(table, key, hash, epoch, bits, clock) {
        return inserted;
    }
    let best = choose(table, key, hash, bits, clock);
    take(table, key, hash, epoch, bits, best, clock)
}

/// Notes that the flow with this key was answered, which makes it count for more, and finds room
/// for it outside its endpoint's reserve, or in it. Says so if that was in place of a live one.
#[inline(always)]
pub fn settle<T: Table, const KEY: usize>(
    table: &T,
    key: &Key<KEY>,
    hash: u64,
    clock: &Clock,
) -> Inserted {
    let Some(state) = mark(table, key, hash) else { return Inserted::Free };
    let best = choose(table, key, hash, state, clock);
    move_out(table, key, hash, best, clock)
}

// Both in parts, since the kernel has stack for each of them but not for all.

/// The first part of [`insert`]: `None` if there is no free slot.
#[inline(always)]
pub fn enter<T: Table, const KEY: usize>(
    table: &T,
    key: &Key<KEY>,
    hash: u64,
    epoch: u32,
    bits: u64,
    clock: &Clock,
) -> Option<Inserted> {
    if let Some(entry) = find(table, key, hash) {
        reopen::<T, KEY>(table, &entry, endpoint_of(key[ports_index(KEY)]), epoch, bits);
        entry.touch(clock.now, 0, true);
        return Some(Inserted::Free);
    }
    let state = state_word(tag(hash), epoch, bits);
    store_free(table, hash, &Written { key, state, meta: clock.now << META_SHIFT })
}

/// The last part of [`insert`], into the slot that [`choose`] chose.
#[inline(always)]
pub fn take<T: Table, const KEY: usize>(
    table: &T,
    key: &Key<KEY>,
    hash: u64,
    epoch: u32,
    bits: u64,
    best: u64,
    clock: &Clock,
) -> Inserted {
    let state = state_word(tag(hash), epoch, bits);
    let written = Written { key, state, meta: clock.now << META_SHIFT };
    replace(table, hash, best, &written, clock)
}

/// The first part of [`settle`]: counts the flow as answered, and returns its state word if it
/// stands in the reserve.
#[inline(always)]
pub fn mark<T: Table, const KEY: usize>(table: &T, key: &Key<KEY>, hash: u64) -> Option<u64> {
    let account = table.account(endpoint_of(key[ports_index(KEY)]))?;
    let entry = find(table, key, hash)?;
    let state = entry.state | ANSWERED;
    if entry.state == state || !entry.bucket.compare_and_swap(entry.base + KEY, entry.state, state)
    {
        return None;
    }
    account.add(account::ANSWERED + family(KEY), 1);
    if entry.is_reserved { Some(state) } else { None }
}

/// The last part of [`settle`], by the slot that [`choose`] chose.
#[inline(always)]
pub fn move_out<T: Table, const KEY: usize>(
    table: &T,
    key: &Key<KEY>,
    hash: u64,
    best: u64,
    clock: &Clock,
) -> Inserted {
    let stays = Inserted::Free;
    // The reserve keeps room for new flows.
    if rank(best) == RESERVED {
        return stays;
    }
    let endpoint = endpoint_of(key[ports_index(KEY)]);
    let Some(account) = table.account(endpoint) else { return stays };
    let Some(bucket) = table.bucket(index_of(table, endpoint, hash, RESERVE)) else { return stays };
    let Search::Found(entry) = find_in(bucket, key, tag(hash)) else { return stays };
    // Somebody else has been here meanwhile.
    if entry.state & ANSWERED == 0 {
        return stays;
    }
    let (word, place) = (entry.base + KEY, Place::of(best));
    if rank(best) == NONE || place.which() == RESERVE {
        // It may be this one that does not count.
        let victim = if rank(best) == NONE { word } else { place.slot() * (KEY + 2) + KEY };
        disown(entry.bucket, victim, account, family(KEY));
        return stays;
    }
    let written = Written { key, state: entry.state, meta: entry.meta };
    let inserted = replace(table, hash, best, &written, clock);
    if inserted as u32 <= Inserted::Evicted as u32 {
        // What is left behind holds nothing any more.
        disown(entry.bucket, word, account, family(KEY));
        entry.bucket.store(word + 1, 0);
    }
    inserted
}

/// Stores a flow with the state and meta words that it had in another table, unless it is there.
/// Its tag is that of this table's hash.
#[inline(always)]
pub fn restore<T: Table, const KEY: usize>(
    table: &T,
    key: &Key<KEY>,
    hash: u64,
    state: u64,
    meta: u64,
    clock: &Clock,
) -> Inserted {
    if find(table, key, hash).is_some() {
        return Inserted::Free;
    }
    let waiting = state & !TAG_BITS & !ANSWERED | tag(hash);
    let written = Written { key, state: waiting, meta };
    let inserted = match store_free(table, hash, &written) {
        Some(inserted) => inserted,
        None => {
            let best = choose(table, key, hash, waiting, clock);
            replace(table, hash, best, &written, clock)
        }
    };
    if state & ANSWERED != 0 {
        settle(table, key, hash, clock);
    }
    inserted
}

pub(super) const fn family(key_words: usize) -> usize {
    if key_words == KEY4 { 0 } else { 1 }
}

/// What is written to a slot.
struct Written<'a, const KEY: usize> {
    key: &'a Key<KEY>,
    state: u64,
    meta: u64,
}

/// Stores a flow in the first free slot for all, if there is one.
#[inline(always)]
fn store_free<T: Table, const KEY: usize>(
    table: &T,
    hash: u64,
    written: &Written<'_, KEY>,
) -> Option<Inserted> {
    let endpoint = endpoint_of(written.key[ports_index(KEY)]);
    for which in [FIRST, SECOND] {
        let Some(bucket) = table.bucket(index_of(table, endpoint, hash, which)) else {
            return Some(Inserted::Contended);
        };
        if let Some(slot) = free_slot::<_, KEY>(bucket) {
            let base = slot * (KEY + 2);
            if !bucket.compare_and_swap(base + KEY, EMPTY, BUSY) {
                return Some(Inserted::Contended);
            }
            if let Some(account) = table.account(endpoint) {
                account.add(account::HELD + family(KEY), 1);
            }
            write(bucket, base, written);
            return Some(Inserted::Free);
        }
    }
    None
}

/// The first free slot of a bucket: [`find`] looks no further than that.
#[inline(always)]
fn free_slot<B: Bucket, const KEY: usize>(bucket: B) -> Option<usize> {
    let mut slot = 0;
    while slot < SLOTS {
        if bucket.load(slot * (KEY + 2) + KEY) == EMPTY {
            return Some(slot);
        }
        slot += 1;
    }
    None
}

#[inline(always)]
fn write<B: Bucket, const KEY: usize>(bucket: B, base: usize, written: &Written<'_, KEY>) {
    let mut i = 0;
    while i < KEY {
        bucket.store(base + i, written.key[i]);
        i += 1;
    }
    bucket.store(base + KEY + 1, written.meta);
    // Always does: the slot is ours. A plain store could be seen before those above it, and they
    // after what the slot's next owner stores.
    bucket.compare_and_swap(base + KEY, BUSY, written.state);
}

/// Adds `change` to the answered flows if this state word says that the flow is one.
#[inline(always)]
fn count_answered<A: Account>(account: A, family: usize, state: u64, change: u64) {
    if state & ANSWERED != 0 {
        account.add(account::ANSWERED + family, change);
    }
}

const MINUS_ONE: u64 = u64::MAX;

/// An entry of the same key starts over: it waits for its answer again.
#[inline(always)]
fn reopen<T: Table, const KEY: usize>(
    table: &T,
    entry: &Entry<T::Bucket>,
    endpoint: u16,
    epoch: u32,
    bits: u64,
) {
    let state = state_word(entry.state & TAG_BITS, epoch, bits);
    if entry.bucket.compare_and_swap(entry.base + KEY, entry.state, state)
        && let Some(account) = table.account(endpoint)
    {
        count_answered(account, family(KEY), entry.state, MINUS_ONE);
    }
}

/// The flow with its state word there no longer counts as answered.
#[inline(always)]
fn disown<B: Bucket, A: Account>(bucket: B, word: usize, account: A, family: usize) {
    let state = bucket.load(word);
    if state & VALID != 0
        && state & ANSWERED != 0
        && bucket.compare_and_swap(word, state, state & !ANSWERED)
    {
        account.add(account::ANSWERED + family, MINUS_ONE);
    }
}

/// Gives the slot with this score away, if it is still worth as much.
#[inline(always)]
fn replace<T: Table, const KEY: usize>(
    table: &T,
    hash: u64,
    best: u64,
    written: &Written<'_, KEY>,
    clock: &Clock,
) -> Inserted {
    let endpoint = endpoint_of(written.key[ports_index(KEY)]);
    let Some(account) = table.account(endpoint) else { return Inserted::Contended };
    if rank(best) == NONE {
        account.add(account::REFUSED, 1);
        return Inserted::Refused;
    }
    let place = Place::of(best);
    let index = index_of(table, endpoint, hash, place.which());
    let Some(bucket) = table.bucket(index) else { return Inserted::Contended };
    let claim = Claim::new(account, endpoint, family(KEY), written.state);
    let base = place.slot() * (KEY + 2);
    let state = bucket.load(base + KEY);
    let now = table.score::<KEY>(index, place, &claim, clock);
    if rank(now) < rank(best) || !bucket.compare_and_swap(base + KEY, state, BUSY) {
        return Inserted::Contended;
    }
    let family = family(KEY);
    account.add(account::HELD + family, 1);
    count_answered(account, family, written.state, 1);
    let is_live = rank(best) != VACANT && rank(best) != RESERVED;
    if state != EMPTY {
        let holder = endpoint_of(bucket.load(base + ports_index(KEY)));
        if let Some(other) = table.account(holder) {
            other.add(account::HELD + family, MINUS_ONE);
            count_answered(other, family, state, MINUS_ONE);
            if is_live {
                let is_own = holder == endpoint;
                other.add(if is_own { account::DISPLACED } else { account::GIVEN }, 1);
            }
        }
    }
    write(bucket, base, written);
    if is_live { Inserted::Evicted } else { Inserted::Free }
}
