//! Addresses and the classes that they have: `ADDRESSES` by the whole address, `BLOCKS` by the
//! longest prefix. Must never say what a class means.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Addresses with a class of their own.
pub const MAX_ADDRESSES: u32 = 524_288;
/// CIDR blocks.
pub const MAX_BLOCKS: u32 = 262_144;

/// An IP address as a map key: the family (4 or 6) and four 32-bit words in network byte order
/// as they stand in memory. An IPv4 address is the first word, the others are zero. The family
/// comes first so that `::/0` does not contain IPv4.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Address {
    /// 4 or 6.
    pub family: u32,
    /// Network byte order in memory.
    pub words: [u32; 4],
}

impl Address {
    /// The IPv4 address with these four bytes in network order.
    #[inline(always)]
    pub const fn v4(word: u32) -> Self {
        Self { family: 4, words: [word, 0, 0, 0] }
    }

    /// The IPv6 address with these words in network byte order.
    #[inline(always)]
    pub const fn v6(words: [u32; 4]) -> Self {
        Self { family: 6, words }
    }

    /// Equality without a call to `memcmp`, which the eBPF programs would make of `==`.
    #[inline(always)]
    pub const fn is_same(&self, other: &Self) -> bool {
        let (a, b) = (&self.words, &other.words);
        let difference = (a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2]) | (a[3] ^ b[3]);
        self.family == other.family && difference == 0
    }

    /// Folds the address to 32 bits; exact for IPv4. See [`ExactClass`].
    #[inline(always)]
    pub const fn echo(&self) -> u32 {
        self.words[0] ^ self.words[1] ^ self.words[2] ^ self.words[3]
    }
}

/// Bits of [`Address`] before the address itself, to be added to a prefix length.
pub const FAMILY_BITS: u32 = 32;

/// An address with how many of its bits a block has, as the table of blocks wants it. An address
/// that is looked for has all of them, and is the key of the exact table as well: so the programs,
/// which may not look for what is not on their stack, have it there once.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct BlockKey {
    /// Bits of `address` that count, from its start.
    pub bits: u32,
    /// The address.
    pub address: Address,
}

impl BlockKey {
    /// To look for an address.
    #[inline(always)]
    pub const fn of(address: &Address) -> Self {
        Self { bits: FAMILY_BITS + 128, address: *address }
    }
}

/// Value of the exact address table: class in the low half, [`Address::echo`] of its key in the
/// high half. The kernel may reuse a hash element while a program still reads it; the echo, read
/// in the same load as the class, shows whose class it is.
pub type ExactClass = u64;

/// Packs an [`ExactClass`].
#[inline(always)]
pub const fn exact_class(address: &Address, class: u32) -> ExactClass {
    ((address.echo() as u64) << 32) | class as u64
}

const _: () = assert!(size_of::<Address>() == 20);
