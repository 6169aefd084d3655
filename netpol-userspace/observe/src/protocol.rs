//! Words for protocol numbers, TCP flags and ICMP types.

/// IP protocol numbers.
pub const TCP: u8 = 6;
/// UDP.
pub const UDP: u8 = 17;
/// SCTP.
pub const SCTP: u8 = 132;
/// ICMP for IPv4.
pub const ICMP: u8 = 1;
/// ICMP for IPv6.
pub const ICMPV6: u8 = 58;

/// A protocol's name, or `protocol 47`.
pub fn name(number: u8) -> String {
    match number {
        TCP => "TCP".into(),
        UDP => "UDP".into(),
        SCTP => "SCTP".into(),
        ICMP => "ICMP".into(),
        ICMPV6 => "ICMPv6".into(),
        other => format!("protocol {other}"),
    }
}

/// Whether packets of the protocol have ports.
pub(crate) const fn has_ports(number: u8) -> bool {
    matches!(number, TCP | UDP | SCTP)
}

/// TCP flags such as `SYN,ACK`.
pub(crate) fn tcp_flags(flags: u8) -> String {
    const NAMES: [&str; 8] = ["FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR"];
    let set = NAMES.iter().enumerate().filter(|(bit, _)| flags >> bit & 1 == 1);
    set.map(|(_, name)| *name).collect::<Vec<_>>().join(",")
}

/// The common ICMP types in words.
pub(crate) const fn icmp_type(protocol: u8, number: u8) -> Option<&'static str> {
    Some(match (protocol, number) {
        (ICMP, 0) | (ICMPV6, 129) => "echo reply",
        (ICMP, 8) | (ICMPV6, 128) => "echo request",
        (ICMP, 3) | (ICMPV6, 1) => "destination unreachable",
        (ICMP, 11) | (ICMPV6, 3) => "time exceeded",
        (ICMP, 12) | (ICMPV6, 4) => "parameter problem",
        (ICMP, 5) | (ICMPV6, 137) => "redirect",
        (ICMPV6, 2) => "packet too big",
        (ICMPV6, 133) => "router solicitation",
        (ICMPV6, 134) => "router advertisement",
        (ICMPV6, 135) => "neighbour solicitation",
        (ICMPV6, 136) => "neighbour advertisement",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words() {
        assert_eq!(name(6), "TCP");
        assert_eq!(name(47), "protocol 47");
        assert_eq!(tcp_flags(0x12), "SYN,ACK");
        assert_eq!(tcp_flags(0), "");
        assert_eq!(icmp_type(ICMP, 8), Some("echo request"));
        assert_eq!(icmp_type(ICMPV6, 8), None);
        assert!(has_ports(SCTP) && !has_ports(ICMP));
    }
}
