//! What is in the table, slot by slot, for who lists or copies it. Must never write.

use super::{Bucket, Clock, EPOCH_SHIFT, KEY4, Key, META_SHIFT, SLOTS, VALID, protocol_of};
use crate::layout::EPOCH_MASK;

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
