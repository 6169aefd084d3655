//! Where a flow is looked for, and what a packet of it leaves in its entry. Must never take a slot
//! nor give one away.

use super::{
    ANSWERED, Bucket, Clock, EMPTY, EPOCH_SHIFT, FIN_LOCAL, FIN_REMOTE, HEARD, KEY4, Key,
    META_SHIFT, OPENED_BY_REMOTE, REPLIED, RESET, SLOTS, SPARE4, SPARE6, TAG_MASK, TAG_SHIFT,
    Table, VALID, endpoint_of, is_answered, ports_index, protocol_of,
};
use crate::layout::EPOCH_MASK;
use crate::packet::{self, Packet};

/// A flow's first bucket for all, among the [`BUCKETS`] of a flow.
pub(super) const FIRST: usize = 0;
/// The second one.
pub(super) const SECOND: usize = 1;
/// The one in the reserve.
pub(super) const RESERVE: usize = 2;
/// Buckets that a flow may be in.
pub(super) const BUCKETS: usize = 3;

/// Index of one of a flow's buckets.
#[inline(always)]
pub(super) fn index_of<T: Table>(table: &T, endpoint: u16, hash: u64, which: usize) -> u32 {
    let [common, reserve] = table.masks();
    match which {
        FIRST => hash as u32 & common,
        SECOND => (hash >> 18) as u32 & common,
        // These bits are the tag's too: keys are compared in full.
        _ => {
            let first = common + 1 + endpoint as u32 * (reserve + 1);
            first + ((hash >> 40) as u32 & reserve)
        }
    }
}

#[inline(always)]
pub(super) const fn tag(hash: u64) -> u64 {
    ((hash >> 36) & TAG_MASK) << TAG_SHIFT | VALID
}

pub(super) const TAG_BITS: u64 = TAG_MASK << TAG_SHIFT | VALID;

/// What a bucket says of a flow.
pub(super) enum Search<B: Bucket> {
    Found(Entry<B>),
    /// Not here; and since the bucket was never full, the flow is not in another one either.
    Nowhere,
    /// Not here.
    Full,
}

/// Finds the flow with this key, expired or not.
#[inline(always)]
pub fn find<T: Table, const KEY: usize>(
    table: &T,
    key: &Key<KEY>,
    hash: u64,
) -> Option<Entry<T::Bucket>> {
    let wanted = tag(hash);
    let endpoint = endpoint_of(key[ports_index(KEY)]);
    let bucket = |which| table.bucket(index_of(table, endpoint, hash, which));
    match find_in(bucket(FIRST)?, key, wanted) {
        Search::Found(entry) => return Some(entry),
        Search::Nowhere => return None,
        Search::Full => {}
    }
    match find_in(bucket(SECOND)?, key, wanted) {
        Search::Found(entry) => return Some(entry),
        Search::Nowhere => return None,
        Search::Full => {}
    }
    match find_in(bucket(RESERVE)?, key, wanted) {
        Search::Found(entry) => Some(Entry { is_reserved: true, ..entry }),
        _ => None,
    }
}

/// Has the first slots of both buckets for all of this flow fetched from memory while other things
/// are done. There is no instruction for that in eBPF, and a load holds up what comes after it until
/// the memory answers; a store does not. This one changes nothing: see [`SPARE4`].
#[inline(always)]
pub fn fetch<T: Table, const KEY: usize>(table: &T, hash: u64) {
    for which in [FIRST, SECOND] {
        if let Some(bucket) = table.bucket(index_of(table, 0, hash, which)) {
            bucket.store_zero(if KEY == KEY4 { SPARE4 } else { SPARE6 });
        }
    }
}

#[inline(always)]
pub(super) fn find_in<B: Bucket, const KEY: usize>(
    bucket: B,
    key: &Key<KEY>,
    wanted: u64,
) -> Search<B> {
    let mut slot = 0;
    while slot < SLOTS {
        let base = slot * (KEY + 2);
        let state = bucket.load(base + KEY);
        if state & TAG_BITS == wanted && has_key(bucket, base, key) {
            let meta = bucket.load(base + KEY + 1);
            let (key_words, is_reserved) = (KEY, false);
            return Search::Found(Entry { bucket, base, key_words, is_reserved, state, meta });
        }
        if state == EMPTY {
            return Search::Nowhere;
        }
        slot += 1;
    }
    Search::Full
}

#[inline(always)]
fn has_key<B: Bucket, const KEY: usize>(bucket: B, base: usize, key: &Key<KEY>) -> bool {
    let mut difference = 0;
    let mut i = 0;
    while i < KEY {
        difference |= bucket.load(base + i) ^ key[i];
        i += 1;
    }
    difference == 0
}

/// A valid slot that holds the flow that was looked for.
#[derive(Clone, Copy)]
pub struct Entry<B: Bucket> {
    pub(super) bucket: B,
    /// Index of the slot's first word.
    pub(super) base: usize,
    key_words: usize,
    /// It is in its endpoint's reserve.
    pub(super) is_reserved: bool,
    /// The state word as read.
    pub state: u64,
    /// The meta word as read.
    pub meta: u64,
}

/// The epoch in which a flow with this state word was last judged.
#[inline(always)]
pub const fn epoch_of(state: u64) -> u32 {
    (state >> EPOCH_SHIFT) as u32 & EPOCH_MASK
}

impl<B: Bucket> Entry<B> {
    /// The epoch in which the flow was last judged.
    #[inline(always)]
    pub const fn epoch(&self) -> u32 {
        epoch_of(self.state)
    }

    /// Whether the flow has been idle for too long to count.
    #[inline(always)]
    pub fn is_expired(&self, clock: &Clock) -> bool {
        let ports = self.bucket.load(self.base + ports_index(self.key_words));
        clock.is_expired(protocol_of(ports), self.meta)
    }

    /// Notes a packet with these [`packet_bits`]. One that opens the flow again (a SYN on a
    /// closed connection's ports) starts over. One after a reset shows that its receiver did not
    /// heed it (its sequence number is not looked at: anybody who knows the ports may have sent
    /// it), so that only silence after a reset ages the flow. FINs stay: an ordinary connection
    /// goes on with acknowledgements after both.
    #[inline(always)]
    pub fn touch(&self, now: u64, packet_bits: u64, is_opening: bool) {
        let meta = self.meta_after(now, packet_bits, is_opening);
        if meta != self.meta {
            self.bucket.store(self.base + self.key_words + 1, meta);
        }
    }

    #[inline(always)]
    const fn meta_after(&self, now: u64, packet_bits: u64, is_opening: bool) -> u64 {
        let kept = if is_opening { 0 } else { self.meta & (0xff & !RESET) };
        // Not by a reset: that is what whoever had its address forged says to an answer.
        let is_reset = (packet_bits & RESET) * (HEARD / RESET);
        let heard = ((kept & !packet_bits & REPLIED) * (HEARD / REPLIED)) & !is_reset;
        now << META_SHIFT | kept | packet_bits | heard
    }

    /// Whether such a packet is the flow's first answer, or the one that settles that it was
    /// answered, so that [`settle`](super::settle) has something to do.
    #[inline(always)]
    pub const fn is_first_answer(&self, protocol: u8, packet_bits: u64, is_opening: bool) -> bool {
        self.state & ANSWERED == 0
            && is_answered(protocol, self.meta_after(0, packet_bits, is_opening))
    }

    /// Notes that the flow was judged anew, in `epoch`, with these bits for opener and stamp.
    #[inline(always)]
    pub fn renew(&self, epoch: u32, bits: u64) {
        let state = state_word(self.state & (TAG_BITS | ANSWERED), epoch, bits);
        self.bucket.compare_and_swap(self.base + self.key_words, self.state, state);
    }
}

/// A state word; `tag`: with whatever else of the old one remains.
#[inline(always)]
pub(super) const fn state_word(tag: u64, epoch: u32, bits: u64) -> u64 {
    ((epoch & EPOCH_MASK) as u64) << EPOCH_SHIFT | tag | bits
}

/// The meta bits that one packet adds; `from_local` is whether the endpoint's side sent it.
#[inline(always)]
pub const fn packet_bits(packet: &Packet, from_local: bool, opener: u64) -> u64 {
    // Where nobody saw who opened it, the other side's packets count as answers.
    let opened_by_remote = opener & OPENED_BY_REMOTE != 0;
    let mut bits = if from_local == opened_by_remote { REPLIED } else { 0 };
    if packet.protocol == packet::TCP {
        if packet.detail & packet::RST != 0 {
            bits |= RESET;
        }
        if packet.detail & packet::FIN != 0 {
            bits |= if from_local { FIN_LOCAL } else { FIN_REMOTE };
        }
    }
    bits
}
