//! IPv6 extension headers (RFC 8200, section 4). Must never follow more of them than
//! [`MAX_EXTENSION_HEADERS`].

use super::{Frame, word};

/// Number of IPv6 extension headers followed before giving up.
const MAX_EXTENSION_HEADERS: usize = 8;

/// Where a chain of IPv6 extension headers leads, in one word: the fragment identification as in
/// memory, the offset behind the chain, the next header there, and how the chain ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chain(pub u64);

impl Chain {
    pub(super) const TRUNCATED: u8 = 0;
    /// It leads to the transport header.
    pub(super) const TRANSPORT: u8 = 1;
    /// It ends in the header of a fragment other than the first.
    pub(super) const LATER_FRAGMENT: u8 = 2;
    /// It goes on for too long.
    pub(super) const ENDLESS: u8 = 3;
    /// Beside the end: it holds the header of a first fragment.
    const FIRST_FRAGMENT: u64 = 0x80;
    /// Likewise: it holds a fragment header at all.
    const FRAGMENT_HEADER: u64 = 0x40;

    /// The same in a frame with so many more bytes in front.
    #[inline(always)]
    pub const fn shifted(self, by: u32) -> Self {
        let offset = (self.offset() + by) as u64 & 0xffff;
        Self(self.0 & !(0xffff << 16) | offset << 16)
    }

    #[inline(always)]
    const fn new(end: u8, next: u8, offset: u32, fragment: u64) -> Self {
        Self(fragment | (offset as u64 & 0xffff) << 16 | (next as u64) << 8 | end as u64)
    }

    #[inline(always)]
    pub(super) const fn end(self) -> u8 {
        self.0 as u8 & 0x3f
    }

    #[inline(always)]
    pub(super) const fn is_first_fragment(self) -> bool {
        self.0 & Self::FIRST_FRAGMENT != 0
    }

    #[inline(always)]
    pub(super) const fn has_fragment_header(self) -> bool {
        self.0 & Self::FRAGMENT_HEADER != 0
    }

    #[inline(always)]
    pub(super) const fn next(self) -> u8 {
        (self.0 >> 8) as u8
    }

    /// At most two chains of eight headers of 2 KiB each stand before it: 16 bits are enough.
    #[inline(always)]
    pub(super) const fn offset(self) -> u32 {
        (self.0 >> 16) as u32 & 0xffff
    }

    #[inline(always)]
    pub(super) const fn fragment_id(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

/// Follows the extension headers from the one of type `next` at `offset`, in a packet that ends at
/// `end`.
#[inline(always)]
pub fn follow<F: Frame>(frame: &F, mut next: u8, mut offset: u32, end: u32) -> Chain {
    let mut fragment = 0;
    for _ in 0..MAX_EXTENSION_HEADERS {
        if next == 44 {
            let Some(header) = frame.load::<8>(offset) else {
                return Chain::new(Chain::TRUNCATED, 0, 0, 0);
            };
            next = header[0];
            offset += 8;
            let position = u16::from_be_bytes([header[2], header[3]]);
            // Offset 0 without "more" is an atomic fragment (RFC 6946): a whole packet.
            if position & 0xfff9 != 0 {
                let id = word(header[4], header[5], header[6], header[7]);
                let is_first = position & 0xfff8 == 0;
                fragment = (id as u64) << 32 | if is_first { Chain::FIRST_FRAGMENT } else { 0 };
            }
            fragment |= Chain::FRAGMENT_HEADER;
            if position & 0xfff8 != 0 && offset <= end {
                return Chain::new(Chain::LATER_FRAGMENT, next, offset, fragment);
            }
        } else if is_extension(next) {
            let Some([following, length]) = frame.load::<2>(offset) else {
                return Chain::new(Chain::TRUNCATED, 0, 0, 0);
            };
            let length = u32::from(length);
            // The authentication header counts 32-bit words, minus 2 (RFC 4302).
            offset += if next == 51 { (length + 2) * 4 } else { (length + 1) * 8 };
            next = following;
        } else {
            return Chain::new(Chain::TRANSPORT, next, offset, fragment);
        }
        if offset > end {
            return Chain::new(Chain::TRUNCATED, 0, 0, 0);
        }
    }
    Chain::new(Chain::ENDLESS, 0, 0, 0)
}

/// Whether an IPv6 next header value names an extension header that tells its own length:
/// hop-by-hop options, routing, authentication, destination options, mobility, HIP, shim6.
#[inline(always)]
const fn is_extension(next: u8) -> bool {
    matches!(next, 0 | 43 | 51 | 60 | 135 | 139 | 140)
}

/// Whether some other protocol stands behind what this IPv6 next header value names.
#[inline(always)]
pub(crate) const fn hides_protocol(next: u8) -> bool {
    next == 44 || is_extension(next)
}
