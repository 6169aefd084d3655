//! What the Kubernetes API server accepts as a name, a label, a port and a CIDR, in its words.
//! Pure checks on strings and numbers; must never know an object or a field path.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};

const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric \
    characters or '-', and must start and end with an alphanumeric character \
    (e.g. 'my-name', or '123-abc')";
const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric \
    characters, '-' or '.', and must start and end with an alphanumeric character \
    (e.g. 'example.com')";
const QUALIFIED: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must \
    start and end with an alphanumeric character (e.g. 'MyName', or 'my.name', or '123-abc')";
const VALUE: &str = "a valid label must be an empty string or consist of alphanumeric \
    characters, '-', '_' or '.', and must start and end with an alphanumeric character \
    (e.g. 'MyValue', or 'my_value', or '12345')";

fn too_long(most: usize) -> String {
    format!("must be no more than {most} bytes")
}

fn is_lower(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit()
}

fn is_dns_label(value: &str) -> bool {
    let bytes = value.as_bytes();
    bytes.iter().all(|&b| is_lower(b) || b == b'-')
        && bytes.first().is_some_and(|&b| is_lower(b))
        && bytes.last().is_some_and(|&b| is_lower(b))
}

/// Why `value` is no RFC 1123 label (the name of a namespace); empty if it is one.
pub(crate) fn dns_label(value: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if value.len() > 63 {
        errors.push(too_long(63));
    }
    if !is_dns_label(value) {
        let dots = value.contains('.') && value.split('.').all(is_dns_label);
        errors.push(if dots { "must not contain dots".into() } else { LABEL.into() });
    }
    errors
}

/// Why `value` is no RFC 1123 subdomain (the name of most objects); empty if it is one.
pub(crate) fn dns_subdomain(value: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if value.len() > 253 {
        errors.push(too_long(253));
    }
    if !value.split('.').all(is_dns_label) {
        errors.push(SUBDOMAIN.into());
    }
    errors
}

fn is_qualified_part(value: &str) -> bool {
    let bytes = value.as_bytes();
    bytes.iter().all(|&b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        && bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.last().is_some_and(u8::is_ascii_alphanumeric)
}

/// Why `key` is no label key; empty if it is one.
pub(crate) fn label_key(key: &str) -> Vec<String> {
    let mut errors = Vec::new();
    let parts: Vec<&str> = key.split('/').collect();
    let name = match parts[..] {
        [name] => name,
        [prefix, name] => {
            if prefix.is_empty() {
                errors.push("prefix part must be non-empty".into());
            } else {
                errors.extend(dns_subdomain(prefix).iter().map(|e| format!("prefix part {e}")));
            }
            name
        }
        _ => {
            errors.push(format!(
                "a qualified name {QUALIFIED} with an optional DNS subdomain prefix and '/' \
                 (e.g. 'example.com/MyName')"
            ));
            return errors;
        }
    };
    if name.is_empty() {
        errors.push("name part must be non-empty".into());
    } else if name.len() > 63 {
        errors.push(format!("name part {}", too_long(63)));
    }
    if !is_qualified_part(name) {
        errors.push(format!("name part {QUALIFIED}"));
    }
    errors
}

/// Why `value` is no label value; empty if it is one.
pub(crate) fn label_value(value: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if value.len() > 63 {
        errors.push(too_long(63));
    }
    if !value.is_empty() && !is_qualified_part(value) {
        errors.push(VALUE.into());
    }
    errors
}

/// A number that is no port, as the API server words it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be between 1 and 65535, inclusive")]
pub struct NotAPort;

/// The port of this number.
pub fn port_number(number: i32) -> Result<u16, NotAPort> {
    match u16::try_from(number) {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(NotAPort),
    }
}

/// Why `name` is no port name (IANA_SVC_NAME); empty if it is one.
pub(crate) fn port_name(name: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if name.len() > 15 {
        errors.push(too_long(15));
    }
    if name.is_empty() || !name.bytes().all(|b| is_lower(b) || b == b'-') {
        errors
            .push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".into());
    }
    if !name.bytes().any(|b| b.is_ascii_lowercase()) {
        errors.push("must contain at least one letter (a-z)".into());
    }
    if name.contains("--") {
        errors.push("must not contain consecutive hyphens".into());
    }
    if name.starts_with('-') || name.ends_with('-') {
        errors.push("must not begin or end with a hyphen".into());
    }
    errors
}

/// What a CIDR string turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cidr {
    /// A block (host bits zero) in a form every API server takes.
    Valid(IpNet),
    /// A block in a form that older API servers took and stored, and why newer ones refuse it.
    Sloppy(IpNet, &'static str),
    /// No block.
    Invalid(&'static str),
}

const NO_CIDR: &str = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";

/// Reads a CIDR as Go's `ParseCIDR` did and the API server's stricter validation does. The bits
/// behind the mask are masked, leading zeros do not make octal numbers, and IPv4 that is dressed as
/// IPv6 is IPv4, as it is for the traffic.
pub fn cidr(text: &str) -> Cidr {
    let Some((address, length)) = text.split_once('/') else { return Cidr::Invalid(NO_CIDR) };
    if length.is_empty() || length.len() > 6 || !length.bytes().all(|b| b.is_ascii_digit()) {
        return Cidr::Invalid(NO_CIDR);
    }
    let Some((address, plain)) = sloppy_address(address) else { return Cidr::Invalid(NO_CIDR) };
    let block = length.parse().ok().and_then(|bits| IpNet::new(address, bits).ok());
    let Some(block) = block.map(|block| block.trunc()) else { return Cidr::Invalid(NO_CIDR) };
    if is_mapped(address) {
        return Cidr::Sloppy(undressed(block), "must not be an IPv4-mapped IPv6 address");
    }
    if !plain {
        return Cidr::Sloppy(block, "must not have leading 0s in IP");
    }
    if length.len() > 1 && length.starts_with('0') {
        return Cidr::Sloppy(block, "must not have leading 0s in prefix length");
    }
    Cidr::Valid(block)
}

/// What a CIDR means that is written as another block than that, and what is odd about it.
pub(crate) fn odd_cidr(text: &str) -> Option<(IpNet, &'static str)> {
    match cidr(text) {
        Cidr::Sloppy(block, why) => Some((block, why)),
        Cidr::Valid(block) => {
            let written: IpNet = text.parse().ok()?;
            (written.addr() != block.addr()).then_some((block, "has bits behind its mask"))
        }
        Cidr::Invalid(_) => None,
    }
}

/// A block of IPv4-mapped addresses as one of IPv4, if it is of nothing else.
fn undressed(block: IpNet) -> IpNet {
    let (IpNet::V6(v6), Some(bits)) = (block, block.prefix_len().checked_sub(96)) else {
        return block;
    };
    let v4 = v6.network().to_ipv4_mapped().and_then(|address| Ipv4Net::new(address, bits).ok());
    v4.map_or(block, IpNet::V4)
}

/// Whether `address` is an IPv4 address dressed as IPv6.
pub fn is_mapped(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some())
}

/// The address, and whether it was written without leading zeros (which older servers read as
/// decimal, unlike C libraries).
fn sloppy_address(text: &str) -> Option<(IpAddr, bool)> {
    if let Ok(address) = text.parse() {
        return Some((address, true));
    }
    let mut octets = [0u8; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        let part = parts.next()?;
        if part.is_empty() || part.len() > 8 || !part.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        *octet = part.parse().ok()?;
    }
    parts.next().is_none().then(|| (IpAddr::V4(Ipv4Addr::from(octets)), false))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["a", "web-1", "0"] {
            assert!(dns_label(good).is_empty(), "{good}");
            assert!(dns_subdomain(good).is_empty(), "{good}");
        }
        assert!(dns_subdomain("a.b-c.d").is_empty());
        assert_eq!(dns_label("a.b"), ["must not contain dots"]);
        for bad in ["", "-a", "a-", "A", "a_b", "a..b", ".a", "ä", "a b", "a\n"] {
            assert_eq!(dns_label(bad).len(), 1, "{bad:?}");
            assert_eq!(dns_subdomain(bad).len(), 1, "{bad:?}");
        }
        assert_eq!(dns_label(&"a".repeat(64)), ["must be no more than 63 bytes"]);
        assert!(dns_subdomain(&"a".repeat(253)).is_empty());
        assert_eq!(dns_subdomain(&"a".repeat(254)), ["must be no more than 253 bytes"]);
    }

    #[test]
    fn labels() {
        for good in ["app", "App_1.x", "example.com/app", "kubernetes.io/metadata.name"] {
            assert!(label_key(good).is_empty(), "{good}");
        }
        let table = [
            ("", "name part must be non-empty"),
            ("/app", "prefix part must be non-empty"),
            ("a/b/c", "a qualified name must consist"),
            ("Example.com/app", "prefix part a lowercase RFC 1123 subdomain"),
            ("-app", "name part must consist of alphanumeric"),
            ("app name", "name part must consist of alphanumeric"),
        ];
        for (bad, message) in table {
            assert!(label_key(bad)[0].starts_with(message), "{bad}: {:?}", label_key(bad));
        }
        assert_eq!(label_key(&"k".repeat(64)), ["name part must be no more than 63 bytes"]);
        for good in ["", "a", "A.b_c-d", &"v".repeat(63)] {
            assert!(label_value(good).is_empty(), "{good}");
        }
        for bad in ["-a", "a/b", "a b", "a."] {
            assert!(label_value(bad)[0].starts_with("a valid label must be"), "{bad}");
        }
        assert_eq!(label_value(&"v".repeat(64)), ["must be no more than 63 bytes"]);
    }

    #[test]
    fn ports() {
        assert_eq!(port_number(1), Ok(1));
        assert_eq!(port_number(65535), Ok(65535));
        for bad in [0, -1, 65536, i32::MAX] {
            assert_eq!(port_number(bad), Err(NotAPort));
        }
        for good in ["http", "a", "8080-tcp", "x-1"] {
            assert!(port_name(good).is_empty(), "{good}");
        }
        for (bad, errors) in
            [("", 2), ("80", 1), ("HTTP", 2), ("a--b", 1), ("-a", 1), ("abcdefghijklmnop", 1)]
        {
            assert_eq!(port_name(bad).len(), errors, "{bad:?}: {:?}", port_name(bad));
        }
    }

    #[test]
    fn blocks() {
        let net = |text: &str| text.parse::<IpNet>().expect("a CIDR");
        for (text, block) in [
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("10.1.2.3/8", "10.0.0.0/8"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("2001:db8::1/32", "2001:db8::/32"),
            ("::/0", "::/0"),
        ] {
            assert_eq!(cidr(text), Cidr::Valid(net(block)), "{text}");
        }
        for (text, block) in [
            ("010.0.0.0/8", "10.0.0.0/8"),
            ("10.0.0.0/08", "10.0.0.0/8"),
            ("010.1.002.3/8", "10.0.0.0/8"),
            ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
            ("::ffff:10.1.2.3/104", "10.0.0.0/8"),
            ("::ffff:10.1.2.3/128", "10.1.2.3/32"),
            ("::ffff:0:0/96", "0.0.0.0/0"),
            // More than such addresses.
            ("::ffff:10.0.0.0/95", "::fffe:0:0/95"),
            ("::ffff:10.0.0.0/64", "::/64"),
        ] {
            assert!(matches!(cidr(text), Cidr::Sloppy(b, _) if b == net(block)), "{text}");
        }
        for text in [
            "",
            "10.0.0.0",
            "10.0.0.0/",
            "10.0.0.0/33",
            "10.0.0/8",
            "10.0.0.0/-1",
            "10.0.0.0/+8",
            "::/129",
            "fe80::1%eth0/64",
            "10.0.0.256/24",
            "1.2.3.4.5/8",
            "::ffff:010.0.0.0/104",
            "::ffff:10.0.0.0/129",
            "10.0.0.0/8/8",
            " 10.0.0.0/8",
            "x/8",
            "10.0.0.0/4294967304",
        ] {
            assert!(matches!(cidr(text), Cidr::Invalid(_)), "{text}: {:?}", cidr(text));
        }
    }
}
