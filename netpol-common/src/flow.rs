//! The flow table: a lockless set-associative hash table over an array map.
//!
//! A *flow* is a connection as one endpoint sees it. Both directions of it hit the same entry.
//! This module must never decide whether a flow is allowed; it only remembers that it was, when
//! (in which epoch), and who opened it.
//!
//! A bucket holds [`SLOTS`] slots. A slot is `KEY` key words, one *state* word and one *meta*
//! word. The state word is the only one that says "this slot is valid"; it holds the epoch, who
//! opened the flow, whether its packets are stamped, and a tag made of the key's hash.
//!
//! # Concurrency
//!
//! Packets of one flow, and of flows that share a bucket, run on all CPUs at once, without locks.
//!
//! - *Inserting*: compare-and-swap the state word to [`BUSY`]; who succeeds owns the slot, writes
//!   key and meta, and publishes by storing the new state word. Two writers never share a slot.
//! - *Looking up*: key words and the tag must match. The tag is a function of the key, so a
//!   reader that saw the new state word with old key words, or the reverse (weakly ordered CPUs),
//!   sees a mismatch and misses.
//! - *Judging again* compare-and-swaps the state word, so it cannot revive or alter a slot that
//!   was given to another flow meanwhile.
//! - *Meta* (last seen, TCP closing) is stored plainly. A store that loses a race with a new
//!   owner of the slot leaves that owner a last-seen time wrong by the length of the race and TCP
//!   bits of another flow: at worst its entry ages as a closed connection's, two minutes after
//!   the last packet at the soonest, because every later packet of it writes the time anew.
//! - *Free slots*: a slot that was taken is never free again, and who inserts takes the first free
//!   slot of the first bucket, or, if that has none, of the second. So a bucket's slots fill in
//!   order, nothing stands behind a free one, and nothing that has this bucket for its first one
//!   was stored in its second as long as there is a free slot: a look ends there. Whoever sees a
//!   slot free that somebody is just taking comes before that, as a look a moment earlier does.
//!   (Who loses the race for a free slot stores nothing, rather than go on to the next.)
//! - *Fetching* writes zero to a byte that is zero in all that is ever written to a slot.
//! - Two CPUs that insert the same flow at once may leave two equal entries. Both were judged;
//!   look-ups find the first.

use crate::layout::EPOCH_MASK;
use crate::packet::{self, Packet};

/// Slots of a bucket.
pub const SLOTS: usize = 4;
/// Key words of an IPv4 flow: addresses; ports, endpoint, protocol.
pub const KEY4: usize = 2;
/// Key words of an IPv6 flow: both addresses, ports and so on, and one that is always zero.
pub const KEY6: usize = 6;
/// A byte of an IPv4 slot that is zero in every key, and in a free slot: the second of the
/// protocol's two in `ports_word`. [`fetch`] may write it at any time.
pub const SPARE4: usize = if cfg!(target_endian = "little") { 8 + 1 } else { 8 + 6 };
/// Likewise of an IPv6 slot: of the word that is always zero.
pub const SPARE6: usize = 5 * 8;
/// 64-bit words of an IPv4 slot.
pub const WORDS4: usize = KEY4 + 2;
/// 64-bit words of an IPv6 slot.
pub const WORDS6: usize = KEY6 + 2;

/// State word of a free slot.
pub const EMPTY: u64 = 0;
/// State word of a slot that is being written.
pub const BUSY: u64 = 8;
/// The slot holds a flow.
pub const VALID: u64 = 1;
/// The bits that say who opened the flow. None of them: the pod did (egress).
pub const OPENER: u64 = 6;
/// The other side opened it (ingress).
pub const OPENED_BY_REMOTE: u64 = 2;
/// Nobody saw who did, and both directions' policies allow it: it was under way when it was met.
pub const OPENED_UNSEEN: u64 = 4;
/// The node itself did, towards the pod: allowed whatever the policies say.
pub const OPENED_BY_NODE: u64 = 6;
/// Packets of the endpoint's side go to a Service whose outcome is not settled before translation
/// (together with [`VALID`]; alone this bit is [`BUSY`]).
pub const STAMPED: u64 = 8;
const TAG_SHIFT: u32 = 4;
const TAG_MASK: u64 = 0x0fff_ffff;
const EPOCH_SHIFT: u32 = 32;

/// Meta bit: a packet went against the opening direction.
pub const REPLIED: u64 = 1;
/// Meta bit: the endpoint's side sent a FIN.
pub const FIN_LOCAL: u64 = 2;
/// Meta bit: the other side sent a FIN.
pub const FIN_REMOTE: u64 = 4;
/// Meta bit: the last packet was an RST.
pub const RESET: u64 = 8;
const META_SHIFT: u32 = 8;

/// A tick is 256 jiffies.
pub const TICK_SHIFT: u32 = 8;

/// Time in ticks from `jiffies64`.
#[inline(always)]
pub const fn tick(jiffies: u64) -> u64 {
    jiffies >> TICK_SHIFT
}

/// Key words of a flow.
pub type Key<const KEY: usize> = [u64; KEY];

/// The last key word but padding: ports, endpoint, protocol. Never zero, since endpoint ids begin
/// at 1.
#[inline(always)]
const fn ports_word(packet: &Packet, endpoint: u16) -> u64 {
    (packet.local_port as u64) << 48
        | (packet.remote_port as u64) << 32
        | (endpoint as u64) << 16
        | packet.protocol as u64
}

/// The IPv4 key of a packet of `endpoint`.
#[inline(always)]
pub const fn key4(packet: &Packet, endpoint: u16) -> Key<KEY4> {
    [
        (packet.local.words[0] as u64) << 32 | packet.remote.words[0] as u64,
        ports_word(packet, endpoint),
    ]
}

/// The IPv6 key of a packet of `endpoint`.
#[inline(always)]
pub const fn key6(packet: &Packet, endpoint: u16) -> Key<KEY6> {
    let (l, r) = (&packet.local.words, &packet.remote.words);
    [
        (l[0] as u64) << 32 | l[1] as u64,
        (l[2] as u64) << 32 | l[3] as u64,
        (r[0] as u64) << 32 | r[1] as u64,
        (r[2] as u64) << 32 | r[3] as u64,
        ports_word(packet, endpoint),
        0,
    ]
}

/// Keyed hash of a flow key. Not cryptographic: it has to keep someone who does not know the
/// secret from aiming many flows at one bucket, and to spread the rest.
#[inline(always)]
pub const fn hash<const KEY: usize>(key: &Key<KEY>, secret: [u64; 2]) -> u64 {
    let mut h = secret[1];
    let mut i = 0;
    while i < KEY {
        h = (h ^ key[i] ^ secret[0]).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        h ^= h >> 29;
        i += 1;
    }
    h = h.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    h ^ h >> 32
}

/// One bucket in memory.
pub trait Bucket: Copy {
    /// Reads a word.
    fn load(self, word: usize) -> u64;
    /// Writes a word.
    fn store(self, word: usize, value: u64);
    /// Writes a word if it still is `old`; whether it did.
    fn compare_and_swap(self, word: usize, old: u64, new: u64) -> bool;
    /// Writes zero to one byte of the bucket.
    fn store_zero(self, byte: usize);
}

/// The table's buckets.
pub trait Table {
    /// One bucket.
    type Bucket: Bucket;
    /// The bucket at `index`, masked to the table's size by the table.
    fn bucket(&self, index: u32) -> Option<Self::Bucket>;
}

/// A valid slot that holds the flow that was looked for.
#[derive(Clone, Copy)]
pub struct Entry<B: Bucket> {
    bucket: B,
    /// Index of the slot's first word.
    base: usize,
    key_words: usize,
    /// The state word as read.
    pub state: u64,
    /// The meta word as read.
    pub meta: u64,
}

/// How long an idle flow is remembered, in ticks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Timeouts {
    /// TCP with packets in both directions, not closing.
    pub tcp_established: u64,
    /// TCP that is not (or no longer) established.
    pub tcp_other: u64,
    /// SCTP.
    pub sctp: u64,
    /// UDP.
    pub udp: u64,
    /// ICMP.
    pub icmp: u64,
    /// Everything else.
    pub other: u64,
}

/// Default idle times in seconds. TCP's are those of the kernel's connection tracking
/// (net/netfilter/nf_conntrack_proto_tcp.c); UDP is given its stream time at once, since some
/// resolvers answer late; SCTP peers send heartbeats every 30 s.
pub const TIMEOUT_SECONDS: Timeouts = Timeouts {
    tcp_established: 432_000,
    tcp_other: 120,
    sctp: 3_600,
    udp: 180,
    icmp: 30,
    other: 600,
};

impl Timeouts {
    /// The limit for a flow of `protocol` whose meta word is `meta`.
    #[inline(always)]
    const fn limit(&self, protocol: u8, meta: u64) -> u64 {
        match protocol {
            packet::TCP => {
                let is_closing = meta & RESET != 0
                    || meta & (FIN_LOCAL | FIN_REMOTE) == (FIN_LOCAL | FIN_REMOTE);
                if meta & REPLIED != 0 && !is_closing {
                    self.tcp_established
                } else {
                    self.tcp_other
                }
            }
            packet::UDP => self.udp,
            packet::SCTP => self.sctp,
            packet::ICMP | packet::ICMPV6 => self.icmp,
            _ => self.other,
        }
    }
}

/// Protocol of a key word made by [`ports_word`].
#[inline(always)]
const fn protocol_of(ports: u64) -> u8 {
    ports as u8
}

/// The time now and what it means.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    /// Now, in ticks.
    pub now: u64,
    /// Idle limits.
    pub timeouts: Timeouts,
}

impl Clock {
    #[inline(always)]
    const fn is_expired(&self, protocol: u8, meta: u64) -> bool {
        // A last-seen time in the future is another CPU's newer clock: not expired.
        self.now > (meta >> META_SHIFT) + self.timeouts.limit(protocol, meta)
    }
}

#[inline(always)]
const fn tag(hash: u64) -> u64 {
    ((hash >> 36) & TAG_MASK) << TAG_SHIFT | VALID
}

#[inline(always)]
const fn choices(hash: u64) -> [u32; 2] {
    [hash as u32, (hash >> 18) as u32]
}

const TAG_BITS: u64 = TAG_MASK << TAG_SHIFT | VALID;

/// What a bucket says of a flow.
enum Search<B: Bucket> {
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
    let [first, second] = choices(hash);
    match find_in(table.bucket(first)?, key, wanted) {
        Search::Found(entry) => return Some(entry),
        Search::Nowhere => return None,
        Search::Full => {}
    }
    match find_in(table.bucket(second)?, key, wanted) {
        Search::Found(entry) => Some(entry),
        _ => None,
    }
}

/// Has the first slots of both buckets of this flow fetched from memory while other things are
/// done. There is no instruction for that in eBPF, and a load holds up what comes after it until
/// the memory answers; a store does not. This one changes nothing: see [`SPARE4`].
#[inline(always)]
pub fn fetch<T: Table, const KEY: usize>(table: &T, hash: u64) {
    for index in choices(hash) {
        if let Some(bucket) = table.bucket(index) {
            bucket.store_zero(if KEY == KEY4 { SPARE4 } else { SPARE6 });
        }
    }
}

#[inline(always)]
fn find_in<B: Bucket, const KEY: usize>(bucket: B, key: &Key<KEY>, wanted: u64) -> Search<B> {
    let mut slot = 0;
    while slot < SLOTS {
        let base = slot * (KEY + 2);
        let state = bucket.load(base + KEY);
        if state & TAG_BITS == wanted && has_key(bucket, base, key) {
            let meta = bucket.load(base + KEY + 1);
            return Search::Found(Entry { bucket, base, key_words: KEY, state, meta });
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

impl<B: Bucket> Entry<B> {
    /// The epoch in which the flow was last judged.
    #[inline(always)]
    pub const fn epoch(&self) -> u32 {
        (self.state >> EPOCH_SHIFT) as u32 & EPOCH_MASK
    }

    /// Whether the flow has been idle for too long to count.
    #[inline(always)]
    pub fn is_expired(&self, clock: &Clock) -> bool {
        // The word before the state (IPv4) or the one before the padding (IPv6) has the protocol.
        let ports = self.bucket.load(self.base + if self.key_words == KEY4 { 1 } else { 4 });
        clock.is_expired(protocol_of(ports), self.meta)
    }

    /// Notes a packet with these [`packet_bits`]. One that opens the flow again (a SYN on a
    /// closed connection's ports) starts over. One after a reset shows that its receiver did not
    /// heed it (its sequence number is not looked at: anybody who knows the ports may have sent
    /// it), so that only silence after a reset ages the flow. FINs stay: an ordinary connection
    /// goes on with acknowledgements after both.
    #[inline(always)]
    pub fn touch(&self, now: u64, packet_bits: u64, is_opening: bool) {
        let kept = if is_opening { 0 } else { self.meta & (0xff & !RESET) };
        let meta = now << META_SHIFT | kept | packet_bits;
        if meta != self.meta {
            self.bucket.store(self.base + self.key_words + 1, meta);
        }
    }

    /// Notes that the flow was judged anew, in `epoch`, with these bits for opener and stamp.
    #[inline(always)]
    pub fn renew(&self, epoch: u32, bits: u64) {
        let state = state_word(self.state & TAG_BITS, epoch, bits);
        self.bucket.compare_and_swap(self.base + self.key_words, self.state, state);
    }
}

#[inline(always)]
const fn state_word(tag: u64, epoch: u32, bits: u64) -> u64 {
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

/// What [`insert`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inserted {
    /// Into a free or expired slot.
    Free,
    /// In place of the flow that was idle for longest, which had not expired.
    Evicted,
    /// Not at all: other CPUs were writing every candidate.
    Contended,
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
    if let Some(entry) = find(table, key, hash) {
        entry.renew(epoch, bits);
        entry.touch(clock.now, 0, true);
        return Inserted::Free;
    }
    let [first, second] = choices(hash);
    let (Some(one), Some(two)) = (table.bucket(first), table.bucket(second)) else {
        return Inserted::Contended;
    };
    let mut victim = Victim { bucket: one, base: 0, state: BUSY, age: 0, rank: 0 };
    if !is_free::<_, KEY>(one, &mut victim) && !is_free::<_, KEY>(two, &mut victim) {
        weigh::<_, KEY>(one, clock, &mut victim);
        weigh::<_, KEY>(two, clock, &mut victim);
    }
    if victim.rank == 0 || !victim.bucket.compare_and_swap(victim.base + KEY, victim.state, BUSY) {
        return Inserted::Contended;
    }
    let mut i = 0;
    while i < KEY {
        victim.bucket.store(victim.base + i, key[i]);
        i += 1;
    }
    victim.bucket.store(victim.base + KEY + 1, clock.now << META_SHIFT);
    victim.bucket.store(victim.base + KEY, state_word(tag(hash), epoch, bits));
    if victim.rank == 1 { Inserted::Evicted } else { Inserted::Free }
}

/// The best slot so far for a new flow.
#[derive(Clone, Copy)]
struct Victim<B: Bucket> {
    bucket: B,
    base: usize,
    state: u64,
    age: u64,
    /// 0: none; 1: a live flow; 2: an expired one; 3: a free slot.
    rank: u8,
}

/// Whether the bucket has a free slot. The first one is taken: [`find_in`] looks no further than
/// that.
#[inline(always)]
fn is_free<B: Bucket, const KEY: usize>(bucket: B, victim: &mut Victim<B>) -> bool {
    let mut slot = 0;
    while slot < SLOTS {
        let base = slot * (KEY + 2);
        if bucket.load(base + KEY) == EMPTY {
            *victim = Victim { bucket, base, state: EMPTY, age: 0, rank: 3 };
            return true;
        }
        slot += 1;
    }
    false
}

/// Looks in a bucket without a free slot for one to be given away.
#[inline(always)]
fn weigh<B: Bucket, const KEY: usize>(bucket: B, clock: &Clock, victim: &mut Victim<B>) {
    let mut slot = 0;
    while slot < SLOTS {
        let base = slot * (KEY + 2);
        slot += 1;
        let state = bucket.load(base + KEY);
        // It is being written.
        if state & VALID == 0 {
            continue;
        }
        let meta = bucket.load(base + KEY + 1);
        let ports = bucket.load(base + if KEY == KEY4 { 1 } else { 4 });
        let age = clock.now.saturating_sub(meta >> META_SHIFT);
        let rank = if clock.is_expired(protocol_of(ports), meta) { 2 } else { 1 };
        if rank > victim.rank || rank == victim.rank && rank == 1 && age > victim.age {
            *victim = Victim { bucket, base, state, age, rank };
        }
    }
}

/// A slot as userspace reads it, for listings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot<const KEY: usize> {
    /// The key words.
    pub key: Key<KEY>,
    /// The state word.
    pub state: u64,
    /// The meta word.
    pub meta: u64,
}

impl<const KEY: usize> Slot<KEY> {
    /// The valid slots of a bucket.
    pub fn read<B: Bucket>(bucket: B) -> impl Iterator<Item = Self> {
        (0..SLOTS).filter_map(move |slot| {
            let base = slot * (KEY + 2);
            let state = bucket.load(base + KEY);
            if state & VALID == 0 {
                return None;
            }
            let key = core::array::from_fn(|i| bucket.load(base + i));
            let meta = bucket.load(base + KEY + 1);
            // A slot that changed while it was read is not reported.
            (bucket.load(base + KEY) == state).then_some(Self { key, state, meta })
        })
    }

    /// The endpoint id.
    pub fn endpoint(&self) -> u16 {
        (self.ports() >> 16) as u16
    }

    /// The IP protocol.
    pub fn protocol(&self) -> u8 {
        protocol_of(self.ports())
    }

    /// Port (or ICMP id) of the endpoint's side.
    pub fn local_port(&self) -> u16 {
        (self.ports() >> 48) as u16
    }

    /// Port (or ICMP id) of the other side.
    pub fn remote_port(&self) -> u16 {
        (self.ports() >> 32) as u16
    }

    /// The epoch in which it was last judged.
    pub fn epoch(&self) -> u32 {
        (self.state >> EPOCH_SHIFT) as u32 & EPOCH_MASK
    }

    /// The tick of its last packet.
    pub fn last_seen(&self) -> u64 {
        self.meta >> META_SHIFT
    }

    /// Whether it has been idle for too long to count.
    pub fn is_expired(&self, clock: &Clock) -> bool {
        clock.is_expired(self.protocol(), self.meta)
    }

    /// The addresses, local then remote, as [`crate::layout::Address`] words.
    pub fn addresses(&self) -> [[u32; 4]; 2] {
        let high = |word: u64| (word >> 32) as u32;
        let low = |word: u64| word as u32;
        if KEY == KEY4 {
            return [[high(self.key[0]), 0, 0, 0], [low(self.key[0]), 0, 0, 0]];
        }
        let side = |a: u64, b: u64| [high(a), low(a), high(b), low(b)];
        [side(self.key[0], self.key[1]), side(self.key[2], self.key[3])]
    }

    fn ports(&self) -> u64 {
        if KEY == KEY4 { self.key[1] } else { self.key[4] }
    }
}
