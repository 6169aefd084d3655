//! What names a flow: the key words, and their hash. Must never be the same for flows of two
//! endpoints.

use super::{KEY4, KEY6};
use crate::packet::Packet;

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

/// Protocol of a key word made by [`ports_word`].
#[inline(always)]
pub(super) const fn protocol_of(ports: u64) -> u8 {
    ports as u8
}

/// Endpoint id of such a word.
#[inline(always)]
pub(super) const fn endpoint_of(ports: u64) -> u16 {
    (ports >> 16) as u16
}

/// Which word of a key that is.
#[inline(always)]
pub(super) const fn ports_index(key_words: usize) -> usize {
    if key_words == KEY4 { 1 } else { 4 }
}
