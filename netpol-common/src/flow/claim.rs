//! Which flow makes room for another one. Must never decide by anything but what the table and its
//! accounts say.

use core::hint::black_box;

use super::place::{account, family};
use super::{
    ANSWERED, Account, BUCKETS, Bucket, Clock, EMPTY, EPOCH_SHIFT, FIRST, KEY4, Key, META_SHIFT,
    OPENED_BY_NODE, OPENER, RESERVE, SECOND, SLOTS, Table, VALID, endpoint_of, index_of,
    is_closing, ports_index, protocol_of,
};
use crate::layout::EPOCH_MASK;

/// For so many ticks what a pod sent is as good as answered to what others send: 4 to 16 seconds,
/// as fast as the kernel ticks.
pub const PATIENCE: u64 = 16;

/// Whose flow looks for room, and how good its claim is.
pub struct Claim {
    /// Its endpoint, in the upper half, and the bits below.
    pub bits: u32,
    /// How many slots its endpoint has.
    pub held: u64,
    /// How many answered flows.
    pub answered: u64,
}

/// [`Claim::bits`]: it was just answered, and stands in the reserve; else it waits for its answer.
const SETTLING: u32 = 1;
/// [`Claim::bits`]: the pod opened it, or the node did.
const PODS: u32 = 2;

impl Claim {
    /// Of a flow with this state word.
    #[inline(always)]
    pub(super) fn new<A: Account>(account: A, endpoint: u16, family: usize, state: u64) -> Self {
        let settling = if state & ANSWERED != 0 { SETTLING } else { 0 };
        let pods = if is_pods(state) { PODS } else { 0 };
        Self {
            bits: (endpoint as u32) << 16 | settling | pods,
            held: account.load(account::HELD + family),
            answered: account.load(account::ANSWERED + family),
        }
    }

    #[inline(always)]
    const fn endpoint(&self) -> u16 {
        (self.bits >> 16) as u16
    }

    #[inline(always)]
    const fn is_settling(&self) -> bool {
        self.bits & SETTLING != 0
    }

    #[inline(always)]
    fn rank_of_own(&self, state: u64, is_answered: bool, is_reserved: bool, idle: u64) -> u64 {
        let is_pods_flow = self.bits & PODS != 0;
        if !is_answered {
            if self.is_settling() && is_reserved {
                RESERVED
            } else if !is_pods_flow && is_pods(state) && idle <= PATIENCE {
                NONE
            } else {
                OWN_WAITING
            }
        } else if !self.is_settling() {
            NONE
        } else if !is_pods(state) {
            OWN_ANSWERED
        } else if is_pods_flow {
            OWN_OPENED
        } else {
            NONE
        }
    }

    /// `account` and `share` are those of whose flow it is.
    #[inline(always)]
    fn rank_of_other<A: Account>(
        &self,
        account: A,
        share: u64,
        family: usize,
        is_answered: bool,
    ) -> u64 {
        let (word, wants, rank) = if is_answered {
            (account::ANSWERED, self.answered, LENT)
        } else {
            (account::HELD, self.held, YIELDING)
        };
        let has = account.load(word + family);
        let is_given = has > share && has > wants && (self.is_settling() || !is_answered);
        if is_given { rank } else { NONE }
    }
}

/// One of the slots in which a flow may be: of equals the one for all scores more, and of free
/// slots the first.
#[derive(Clone, Copy)]
pub struct Place(pub u32);

impl Place {
    pub(super) const fn of(score: u64) -> Self {
        Self(score as u32 & 0xf)
    }

    /// Which of the flow's buckets.
    #[inline(always)]
    pub(super) const fn which(self) -> usize {
        RESERVE.saturating_sub((self.0 >> 2) as usize & 3)
    }

    /// Which slot of it.
    #[inline(always)]
    pub(super) const fn slot(self) -> usize {
        SLOTS - 1 - (self.0 as usize & (SLOTS - 1))
    }

    /// The index of that bucket, of all the flow's.
    #[inline(always)]
    const fn index_in(self, indices: &[u32; BUCKETS]) -> u32 {
        match self.which() {
            FIRST => indices[FIRST],
            SECOND => indices[SECOND],
            _ => indices[RESERVE],
        }
    }
}

/// Whether the pod opened a flow with this state word, or its node.
#[inline(always)]
const fn is_pods(state: u64) -> bool {
    state & OPENER == 0 || state & OPENER == OPENED_BY_NODE
}

/// Indices of the buckets of a flow.
#[inline(always)]
fn indices_of<T: Table>(table: &T, endpoint: u16, hash: u64) -> [u32; BUCKETS] {
    let index = |which| index_of(table, endpoint, hash, which);
    [index(FIRST), index(SECOND), index(RESERVE)]
}

// A score says how well a slot would do, the higher the better: rank, how many of the remote side's
// flows are there, how long it was idle, and which slot it is.

/// It would not.
pub(super) const NONE: u64 = 0;
/// An answered flow of the same endpoint, which the pod opened.
const OWN_OPENED: u64 = 1;
/// An answered flow of the same endpoint, which the pod did not open.
const OWN_ANSWERED: u64 = 2;
/// An unanswered flow of the same endpoint.
const OWN_WAITING: u64 = 3;
/// A slot of the reserve without a live flow; to a flow that stands there, also one with an
/// unanswered one.
pub(super) const RESERVED: u64 = 4;
/// An answered flow of an endpoint that has more than its share.
const LENT: u64 = 5;
/// An unanswered flow of an endpoint that has more than its share.
const YIELDING: u64 = 6;
/// A slot for all without a live flow.
pub(super) const VACANT: u64 = 7;

const RANK_SHIFT: u32 = 61;
const COUNT_SHIFT: u32 = 56;
const AGE_SHIFT: u32 = 8;
const MAX_AGE: u64 = (1 << (COUNT_SHIFT - AGE_SHIFT)) - 1;

#[inline(always)]
pub(super) const fn rank(score: u64) -> u64 {
    score >> RANK_SHIFT
}

/// The score of the best slot for a flow with this state word, new or just answered, where there is
/// no free one for all.
#[inline(always)]
pub fn choose<T: Table, const KEY: usize>(
    table: &T,
    key: &Key<KEY>,
    hash: u64,
    state: u64,
    clock: &Clock,
) -> u64 {
    let endpoint = endpoint_of(key[ports_index(KEY)]);
    let Some(account) = table.account(endpoint) else { return NONE };
    let indices = indices_of(table, endpoint, hash);
    let claim = Claim::new(account, endpoint, family(KEY), state);
    let score = |place: Place| table.score::<KEY>(place.index_in(&indices), place, &claim, clock);
    let best = best_of(score);
    if best == NONE || rank(best) > OWN_WAITING {
        return best;
    }
    // Which of its own flows an endpoint loses is worth another look.
    best_of(|place| {
        let score = score(place);
        if rank(score) != rank(best) {
            return NONE;
        }
        let Some(bucket) = table.bucket(place.index_in(&indices)) else { return NONE };
        let base = place.slot() * (KEY + 2);
        let ports = bucket.load(base + ports_index(KEY));
        let remote = bucket.load(base + remote_index(KEY));
        let count = |which: usize| table.count::<KEY>(indices[which], ports, remote);
        score | (count(FIRST) + count(SECOND) + count(RESERVE)) << COUNT_SHIFT
    })
}

#[inline(always)]
fn best_of(score: impl Fn(Place) -> u64) -> u64 {
    let mut best = NONE;
    // A compiler that knew how often would write the loop out, and need more stack for it than the
    // kernel gives.
    let mut place = black_box((BUCKETS * SLOTS) as u64);
    while place > 0 {
        place -= 1;
        let score = score(Place(place as u32));
        if score > best {
            best = score;
        }
    }
    best
}

/// How well the slot at `place`, in the bucket at `index`, would do, but for the count.
#[inline(always)]
pub fn score<T: Table, const KEY: usize>(
    table: &T,
    index: u32,
    place: Place,
    claim: &Claim,
    clock: &Clock,
) -> u64 {
    let Some(bucket) = table.bucket(index) else { return NONE };
    let base = place.slot() * (KEY + 2);
    let is_reserved = place.which() == RESERVE;
    let state = bucket.load(base + KEY);
    if state == EMPTY {
        return RESERVED << RANK_SHIFT | place.0 as u64;
    }
    // It is being written.
    if state & VALID == 0 {
        return NONE;
    }
    let meta = bucket.load(base + KEY + 1);
    let ports = bucket.load(base + ports_index(KEY));
    let Some(account) = table.account(endpoint_of(ports)) else { return NONE };
    let idle = clock.now.saturating_sub(meta >> META_SHIFT);
    let age = if idle < MAX_AGE { idle } else { MAX_AGE } << AGE_SHIFT;
    let family = family(KEY);
    let share = account.load(account::SHARE + family);
    let is_void = share == 0 || is_of_earlier(state, account.load(account::BORN));
    let is_answered = state & ANSWERED != 0 && !is_closing(meta);
    let rank = if is_void || clock.is_expired(protocol_of(ports), meta) {
        if is_reserved { RESERVED } else { VACANT }
    } else if endpoint_of(ports) == claim.endpoint() {
        claim.rank_of_own(state, is_answered, is_reserved, idle)
    } else {
        claim.rank_of_other(account, share, family, is_answered)
    };
    if rank == NONE { NONE } else { rank << RANK_SHIFT | age | place.0 as u64 }
}

/// Which word of a key holds the remote side: an IPv4 address in its lower half, or the upper half
/// of an IPv6 address, since whoever has one address of such a network has all.
#[inline(always)]
const fn remote_index(key_words: usize) -> usize {
    if key_words == KEY4 { 0 } else { 2 }
}

/// How many flows there are in the bucket at `index` of the endpoint and the remote side that these
/// words of a key name.
#[inline(always)]
pub fn count<T: Table, const KEY: usize>(table: &T, index: u32, ports: u64, remote: u64) -> u64 {
    let Some(bucket) = table.bucket(index) else { return 0 };
    // The compiler must not see what is computed with it.
    let ones = black_box(u64::MAX);
    let mut count = 0;
    let mut slot = 0;
    while slot < SLOTS {
        let base = slot * (KEY + 2);
        let other = bucket.load(base + remote_index(KEY)) ^ remote;
        let other = if KEY == KEY4 { other as u32 as u64 } else { other };
        let endpoint = (bucket.load(base + ports_index(KEY)) ^ ports) & (0xffff << 16);
        count += is_zero(other | endpoint, ones);
        slot += 1;
    }
    count
}

/// One if so, and without a branch: the kernel's verifier would follow each way that twelve of them
/// in a row can go. `ones`: all bits.
#[inline(always)]
const fn is_zero(word: u64, ones: u64) -> u64 {
    let negative = (word ^ ones).wrapping_add(1);
    1 - ((word | negative) >> 63)
}

/// Whether a flow with this state word is of an earlier owner of the endpoint's id. (What is much
/// older, modulo the range of epochs, is a flow of this one that may not be answered.)
#[inline(always)]
const fn is_of_earlier(state: u64, born: u64) -> bool {
    let epoch = (state >> EPOCH_SHIFT) as u32 & EPOCH_MASK;
    let behind = (born as u32).wrapping_sub(epoch) & EPOCH_MASK;
    behind != 0 && behind < EPOCH_MASK / 8
}
