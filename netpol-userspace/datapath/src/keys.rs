//! Keys of the kernel's tables, and the addresses and blocks that they stand for. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use aya::maps::lpm_trie::Key as LpmKey;
use ipnet::IpNet;
use netpol_common::layout::Address;

use super::pinned::AddressBytes;

/// The map form of an address.
pub(crate) fn address_of(address: IpAddr) -> Address {
    match address {
        IpAddr::V4(v4) => Address::v4(u32::from_ne_bytes(v4.octets())),
        IpAddr::V6(v6) => {
            let bytes = v6.octets();
            Address::v6(std::array::from_fn(|i| {
                u32::from_ne_bytes(std::array::from_fn(|j| bytes[i * 4 + j]))
            }))
        }
    }
}

/// The address that a map key stands for.
pub fn ip_of(address: &Address) -> IpAddr {
    if address.family == 6 {
        let mut bytes = [0; 16];
        for (chunk, word) in bytes.chunks_exact_mut(4).zip(address.words) {
            chunk.copy_from_slice(&word.to_ne_bytes());
        }
        IpAddr::V6(Ipv6Addr::from(bytes))
    } else {
        IpAddr::V4(Ipv4Addr::from(address.words[0].to_ne_bytes()))
    }
}

/// A hash key that is an address.
pub(crate) fn address_bytes(address: &Address) -> AddressBytes {
    zerocopy::transmute!(*address)
}

/// The key of a block in a trie, in whose keys so many bits stand before those of the address.
pub(crate) fn trie_key<const N: usize>(
    bits_before: u32,
    block: &IpNet,
    key: impl FnOnce(Address) -> [u8; N],
) -> LpmKey<[u8; N]> {
    let bits = bits_before + u32::from(block.prefix_len());
    LpmKey::new(bits, key(address_of(block.network())))
}

/// The block that such a key stands for, by its length in bits and its address.
pub(crate) fn trie_block(bits_before: u32, bits: u32, address: &Address) -> Option<IpNet> {
    let length = u8::try_from(bits.checked_sub(bits_before)?).ok()?;
    IpNet::new(ip_of(address), length).ok()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use netpol_common::layout;

    use super::*;

    #[test]
    fn a_block_comes_back_from_its_key() {
        for text in
            ["0.0.0.0/0", "10.1.0.0/16", "10.1.2.3/32", "::/0", "fd00:1::/64", "fd00::1/128"]
        {
            let block: IpNet = text.parse().unwrap();
            let key = trie_key(layout::FAMILY_BITS, &block, |address| address_bytes(&address));
            let address: Address = zerocopy::transmute!(key.data());
            assert_eq!(trie_block(layout::FAMILY_BITS, key.prefix_len(), &address), Some(block));
        }
    }

    #[test]
    fn a_key_shorter_than_what_stands_before_the_address_is_no_block() {
        let address = address_of(IpAddr::from([10, 0, 0, 1]));
        assert_eq!(trie_block(32, 31, &address), None);
        assert_eq!(trie_block(32, 32 + 33, &address), None);
    }
}
