//! Who speaks on an interface, and as whom it may. Must never say to whom.

use core::ptr::read_volatile;

use aya_ebpf::maps::lpm_trie::Key as LpmKey;
use netpol_common::layout::{self, Address};
use netpol_common::verdict::Maps as _;

use super::{Kernel, SOURCE_PREFIXES, SPEAKERS};

/// Who speaks on an interface.
#[derive(Clone, Copy)]
pub struct Speaker(*const layout::Speaker);

/// Reads a word of a [`Speaker`]'s entry, at once: the agent stores it so.
macro_rules! speaker_word {
    ($speaker:expr, $($field:tt)+) => {
        // SAFETY: array values live as long as the map, and every word of them is readable.
        unsafe { read_volatile(&raw const (*$speaker.0).$($field)+) }
    };
}

impl Speaker {
    /// Who speaks on this interface, if anybody is declared to.
    #[inline(always)]
    pub fn on(ifindex: u32) -> Option<Self> {
        let first = ifindex & (layout::ENDPOINT_SLOTS - 1);
        let mut probe = 0;
        while probe < layout::ENDPOINT_PROBES {
            let speaker = Self(SPEAKERS.get_ptr(first + probe)?);
            probe += 1;
            if speaker_word!(speaker, identity) >> 32 == u64::from(ifindex) {
                return Some(speaker);
            }
        }
        None
    }

    /// The interface.
    #[inline(always)]
    pub fn ifindex(self) -> u32 {
        (speaker_word!(self, identity) >> 32) as u32
    }

    /// Its endpoint's id.
    #[inline(always)]
    pub fn id(self) -> u16 {
        speaker_word!(self, identity) as u16
    }

    /// [`layout::Speaker::link`].
    #[inline(always)]
    pub fn link(self) -> u64 {
        speaker_word!(self, link)
    }

    /// [`layout::Speaker::routed_by`].
    #[inline(always)]
    pub fn routed_by(self) -> u32 {
        speaker_word!(self, routed_by) as u32
    }

    /// Whether this is the endpoint's address as far as its entry tells.
    #[inline(always)]
    pub fn is_own4(self, word: u32) -> bool {
        word != 0 && speaker_word!(self, own4) == u64::from(word)
    }

    /// As above; two words in memory's order.
    #[inline(always)]
    pub fn is_own6(self, words: [u64; 2]) -> bool {
        words[0] != 0
            && speaker_word!(self, own6[0]) == words[0]
            && speaker_word!(self, own6[1]) == words[1]
    }

    /// Whether this is the interface's own link-local address.
    #[inline(always)]
    pub fn is_link_local(self, words: [u64; 2]) -> bool {
        words[0] != 0
            && speaker_word!(self, link_local[0]) == words[0]
            && speaker_word!(self, link_local[1]) == words[1]
    }
}

/// Whether the interface's own link-local address is this one. Nobody else has it on that link, and
/// no router forwards what comes from it. A function of its own for its stack.
#[inline(never)]
pub fn is_link_local_of(ifindex: u32, address: &Address) -> bool {
    match Speaker::on(ifindex) {
        Some(speaker) => speaker.is_link_local(two_words(address)),
        None => false,
    }
}

/// Whether the pod of this interface may send from the address though it is not its own, since it
/// forwards for others. A function of its own for its stack.
#[inline(never)]
pub fn may_forward(ifindex: u32, address: &Address) -> bool {
    if Kernel.flags() & layout::HAS_SOURCE_PREFIXES == 0 {
        return false;
    }
    let key = layout::SourcePrefix { ifindex, address: *address };
    SOURCE_PREFIXES.get(LpmKey::new(layout::SOURCE_PREFIX_BITS + 128, key)).is_some()
}

/// An IPv6 address as two words in memory's order.
#[inline(always)]
pub fn two_words(address: &Address) -> [u64; 2] {
    let [a, b, c, d] = address.words.map(u64::from);
    if cfg!(target_endian = "big") {
        [a << 32 | b, c << 32 | d]
    } else {
        [b << 32 | a, d << 32 | c]
    }
}
