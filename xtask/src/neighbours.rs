//! Whether the kernel's tables of neighbours overflowed during a run. There is one for each family
//! in the whole machine, of 1,024 entries by default, however many network namespaces there are: a
//! run beside others fails then with "Invalid argument" where an IPv6 packet is sent. Must never
//! change a verdict, only explain it.

use std::fs;

/// Files of /proc/net/stat, and the setting that says how large the table is.
const TABLES: [(&str, &str); 2] = [
    ("ndisc_cache", "net.ipv6.neigh.default.gc_thresh3"),
    ("arp_cache", "net.ipv4.neigh.default.gc_thresh3"),
];

/// How often each table was full since the machine started.
pub(crate) fn overflows() -> [u64; 2] {
    TABLES.map(|(name, _)| {
        count(&fs::read_to_string(format!("/proc/net/stat/{name}")).unwrap_or_default())
    })
}

/// What there is to say if a table was full since `before`.
pub(crate) fn explain(before: [u64; 2], now: [u64; 2]) -> Option<String> {
    let full = TABLES.iter().zip(before.iter().zip(now)).filter(|(_, (before, now))| now > *before);
    let text: Vec<String> = full
        .map(|((name, setting), (before, now))| {
            format!(
                "the kernel's {name} was full {} times during the run, which fails packets of all \
                 network namespaces of this machine: run it alone, or raise {setting}",
                now - before
            )
        })
        .collect();
    (!text.is_empty()).then(|| text.join("\n"))
}

/// The column `table_fulls`, added up over all processors; numbers are hexadecimal.
fn count(text: &str) -> u64 {
    let mut lines = text.lines();
    let header = lines.next().unwrap_or_default();
    let Some(column) = header.split_whitespace().position(|name| name == "table_fulls") else {
        return 0;
    };
    let cells = lines.filter_map(|line| line.split_whitespace().nth(column));
    cells.filter_map(|cell| u64::from_str_radix(cell, 16).ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_overflowed_meanwhile_is_named() {
        let text =
            "entries  allocs table_fulls\n00000000 0000aa6b 0000000a\n00000000 00 00000001\n";
        assert_eq!(count(text), 11);
        assert_eq!(count(""), 0);
        assert_eq!(explain([3, 0], [3, 0]), None);
        let text = explain([3, 0], [5, 0]).expect("it overflowed");
        assert!(text.contains("ndisc_cache was full 2 times") && !text.contains("arp"), "{text}");
    }
}
