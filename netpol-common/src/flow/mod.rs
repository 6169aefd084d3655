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

mod age;
mod claim;
mod entry;
mod key;
mod place;
mod slot;

pub use age::{Clock, TICK_SHIFT, TIMEOUT_SECONDS, Timeouts, is_answered, tick};
pub use claim::{Claim, PATIENCE, Place, choose, count, score};
pub use entry::{Entry, epoch_of, fetch, find, packet_bits};
pub use key::{Key, hash, key4, key6};
pub use place::{Inserted, account, enter, insert, mark, move_out, restore, settle, take};
pub use slot::Slot;

use age::is_closing;
use entry::{
    BUCKETS, FIRST, RESERVE, SECOND, Search, TAG_BITS, find_in, index_of, state_word, tag,
};
use key::{endpoint_of, ports_index, protocol_of};

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
