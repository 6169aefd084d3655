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
//! # Whose room it is
//!
//! The table is shared by pods that are each other's enemies, and filled by whoever sends to them.
//! A flow has three buckets: two among those *for all*, by its hash, and one in its endpoint's
//! *reserve*, where nobody else's flows are ever stored. What an endpoint holds is counted
//! ([`Account`]), and up to a *share* it is the endpoint's own. `place.rs` says who makes room for
//! whom; what follows from it:
//!
//! - A flow that was answered ([`is_answered`]) never makes room for one that was not.
//! - A flow of an endpoint that holds no more than its share never makes room for another
//!   endpoint's.
//! - A new flow always finds room: in the reserve one slot of each bucket stays for those that wait
//!   for their answer. Once answered, a flow may leave the reserve for the room that is for all,
//!   in place of an answered one of an endpoint that has more than its share.
//! - Within an endpoint, the remote side with the most flows there makes room, and what the pod
//!   opened does not make room for what others did.
//!
//! # Concurrency
//!
//! Packets of one flow, and of flows that share a bucket, run on all CPUs at once, without locks.
//!
//! - *Inserting*: compare-and-swap the state word to [`BUSY`]; who succeeds owns the slot, writes
//!   key and meta, and publishes by compare-and-swapping the new state word, which is a barrier:
//!   a weakly ordered CPU would else let a slot's next owner, who saw the state word, be overtaken
//!   by these stores. Two writers never share a slot.
//! - *Looking up*: key words and the tag must match. The tag is a function of the key, so a
//!   reader that saw the new state word with old key words, or the reverse (weakly ordered CPUs),
//!   sees a mismatch and misses.
//! - *Judging again* compare-and-swaps the state word, so it cannot revive or alter a slot that
//!   was given to another flow meanwhile.
//! - *Meta* (last seen, TCP closing) is stored plainly. A store that loses a race with a new
//!   owner of the slot leaves that owner a last-seen time wrong by the length of the race and TCP
//!   bits of another flow: at worst its entry ages as a closed connection's, two minutes after
//!   the last packet at the soonest, because every later packet of it writes the time anew.
//! - *Accounts*: whether a flow was answered is in the state word as well ([`ANSWERED`]), which is
//!   only changed by compare-and-swap: who succeeds adds to the account, once. Who takes a slot
//!   away has read whose it was after it owned it. So the accounts are exact; what is decided by
//!   them is decided by what they were a moment ago.
//! - *Free slots*: a slot that was taken is never free again, and who inserts takes the first free
//!   slot of the first bucket, or, if that has none, of the second, or of the reserve. So a
//!   bucket's slots fill in order, nothing stands behind a free one, and nothing was stored in a
//!   later bucket as long as there is a free slot in an earlier one: a look ends there. Whoever
//!   sees a slot free that somebody is just taking comes before that, as a look a moment earlier
//!   does. (Who loses the race for a free slot stores nothing, rather than go on to the next.)
//! - *Fetching* writes zero to a byte that is zero in all that is ever written to a slot.
//! - Two CPUs that insert the same flow at once may leave two equal entries. Both were judged;
//!   look-ups find the first. So it is with a flow that has moved out of the reserve: what it left
//!   behind says nothing else than what moved, and is the first to make room.
//!
//! `tests/flow_orders.rs` runs this under every order of two CPUs' loads and stores that a weakly
//! ordered machine allows, `tests/flow_hammer.rs` on the real ones of this machine.

mod place;
mod slot;

pub use place::{
    Claim, Inserted, PATIENCE, Place, account, choose, count, enter, insert, mark, move_out,
    restore, score, settle, take,
};
pub use slot::Slot;

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
/// The flow was answered ([`is_answered`]), which its endpoint's account says too.
pub const ANSWERED: u64 = 1 << 63;
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
/// Meta bit: a packet in the opening direction came after an answer.
pub const HEARD: u64 = 16;
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

/// What an endpoint has of a flow table: its [`FlowUse`](crate::layout::FlowUse) in memory.
pub trait Account: Copy {
    /// Reads a word.
    fn load(self, word: usize) -> u64;
    /// Adds to a word, wrapping: atomically, since others do at the same time.
    fn add(self, word: usize, value: u64);
}

/// The table's buckets: those for all, and then each endpoint's reserve in the order of their ids.
pub trait Table {
    /// One bucket.
    type Bucket: Bucket;
    /// What an endpoint has of the table.
    type Account: Account;
    /// The bucket at `index`.
    fn bucket(&self, index: u32) -> Option<Self::Bucket>;
    /// How many buckets there are for all, and in each reserve, less one: both are powers of two.
    fn masks(&self) -> [u32; 2];
    /// The key of its hash.
    fn secret(&self) -> [u64; 2];
    /// What this endpoint has of the table.
    fn account(&self, endpoint: u16) -> Option<Self::Account>;
    /// [`score`] in this table. The kernel's has it verified on its own, as what follows.
    #[inline(always)]
    fn score<const KEY: usize>(&self, index: u32, place: Place, claim: &Claim, clock: &Clock) -> u64
    where
        Self: Sized,
    {
        score::<Self, KEY>(self, index, place, claim, clock)
    }
    /// [`count`] in this table.
    #[inline(always)]
    fn count<const KEY: usize>(&self, index: u32, ports: u64, remote: u64) -> u64
    where
        Self: Sized,
    {
        count::<Self, KEY>(self, index, ports, remote)
    }
}

/// A valid slot that holds the flow that was looked for.
#[derive(Clone, Copy)]
pub struct Entry<B: Bucket> {
    bucket: B,
    /// Index of the slot's first word.
    base: usize,
    key_words: usize,
    /// It is in its endpoint's reserve.
    is_reserved: bool,
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
                if meta & REPLIED != 0 && !is_closing(meta) {
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

/// Whether both sides have ended the connection, or one has reset it.
#[inline(always)]
const fn is_closing(meta: u64) -> bool {
    meta & RESET != 0 || meta & (FIN_LOCAL | FIN_REMOTE) == (FIN_LOCAL | FIN_REMOTE)
}

/// Whether a flow with this meta word was answered: something came back. Where connections have a
/// handshake, also that whoever opened it went on: else anybody could have a pod answer to forged
/// sources, and would have that many flows that count.
#[inline(always)]
pub const fn is_answered(protocol: u8, meta: u64) -> bool {
    let sign = match protocol {
        packet::TCP | packet::SCTP => HEARD,
        _ => REPLIED,
    };
    meta & sign != 0
}

/// Protocol of a key word made by [`ports_word`].
#[inline(always)]
const fn protocol_of(ports: u64) -> u8 {
    ports as u8
}

/// Endpoint id of such a word.
#[inline(always)]
const fn endpoint_of(ports: u64) -> u16 {
    (ports >> 16) as u16
}

/// Which word of a key that is.
#[inline(always)]
const fn ports_index(key_words: usize) -> usize {
    if key_words == KEY4 { 1 } else { 4 }
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

/// A flow's first bucket for all, among the [`BUCKETS`] of a flow.
const FIRST: usize = 0;
/// The second one.
const SECOND: usize = 1;
/// The one in the reserve.
const RESERVE: usize = 2;
/// Buckets that a flow may be in.
const BUCKETS: usize = 3;

/// Index of one of a flow's buckets.
#[inline(always)]
fn index_of<T: Table>(table: &T, endpoint: u16, hash: u64, which: usize) -> u32 {
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

/// Has the first slots of both buckets for all of this flow fetched from memory while other things are
/// done. There is no instruction for that in eBPF, and a load holds up what comes after it until
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
fn find_in<B: Bucket, const KEY: usize>(bucket: B, key: &Key<KEY>, wanted: u64) -> Search<B> {
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
    /// answered, so that [`settle`] has something to do.
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
