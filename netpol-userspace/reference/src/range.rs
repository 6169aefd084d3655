//! Address blocks by integer arithmetic. Must never use a library's idea of a prefix.

use std::net::IpAddr;

/// Whether `text`, such as `10.0.0.0/8`, contains the address: both are of one family and their
/// first bits, as many as the number after the slash says, are the same. The other bits of the
/// block do not matter. IPv4-mapped IPv6 blocks and addresses contain nothing and lie nowhere.
pub(super) fn contains(text: &str, address: IpAddr) -> bool {
    let Some((base, length)) = text.split_once('/') else { return false };
    let (Ok(base), Ok(length)) = (base.parse::<IpAddr>(), length.parse::<u32>()) else {
        return false;
    };
    match (base, address) {
        (IpAddr::V4(base), IpAddr::V4(address)) if length <= 32 => {
            // Widened, because shifting a number by all of its bits is not defined.
            let dropped = 32 - length;
            u64::from(base.to_bits()) >> dropped == u64::from(address.to_bits()) >> dropped
        }
        (IpAddr::V6(base), IpAddr::V6(address)) if length <= 128 => {
            let mapped = base.to_ipv4_mapped().is_some() || address.to_ipv4_mapped().is_some();
            !mapped
                && (length == 0
                    || first_bits(base.to_bits(), length) == first_bits(address.to_bits(), length))
        }
        _ => false,
    }
}

fn first_bits(number: u128, length: u32) -> u128 {
    number >> (128 - length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containment_goes_by_the_first_bits() {
        let cases = [
            ("10.0.0.0/8", "10.255.255.255", true),
            ("10.0.0.0/8", "11.0.0.0", false),
            ("10.1.2.3/8", "10.0.0.0", true),
            ("0.0.0.0/0", "255.255.255.255", true),
            ("0.0.0.0/0", "::1", false),
            ("::/0", "fd00::1", true),
            ("::/0", "10.0.0.1", false),
            ("10.0.0.1/32", "10.0.0.1", true),
            ("10.0.0.1/32", "10.0.0.0", false),
            ("10.0.0.2/31", "10.0.0.3", true),
            ("10.0.0.2/31", "10.0.0.1", false),
            ("fd00::/127", "fd00::1", true),
            ("fd00::/127", "fd00::2", false),
            ("fd00::1/128", "fd00::1", true),
            ("::ffff:10.0.0.0/104", "::ffff:10.0.0.1", false),
            ("10.0.0.0", "10.0.0.0", false),
            ("10.0.0.0/33", "10.0.0.0", false),
        ];
        for (block, address, expected) in cases {
            let address = address.parse().expect("an address");
            assert_eq!(contains(block, address), expected, "{block} {address}");
        }
    }
}
