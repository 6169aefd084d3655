//! The kernel's tables of neighbours: one for each family in the whole machine, of 1,024 entries by
//! default, however many network namespaces there are. The labs of one run fill that of IPv6, and
//! what finds it full fails with "Invalid argument" or is not answered: so a run makes room, and a
//! run that was not allowed to says so when it fails. Must never change a verdict, only explain it.

use std::fs;
use std::io;

use crate::run::announce;

/// A file of /proc/net/stat, and the settings that say how large the table is: above the first an
/// entry goes that nobody used for 5 s, at the second there is no further one.
struct Table {
    name: &'static str,
    soft: &'static str,
    hard: &'static str,
}

const TABLES: [Table; 2] = [
    Table {
        name: "ndisc_cache",
        soft: "net.ipv6.neigh.default.gc_thresh2",
        hard: "net.ipv6.neigh.default.gc_thresh3",
    },
    Table {
        name: "arp_cache",
        soft: "net.ipv4.neigh.default.gc_thresh2",
        hard: "net.ipv4.neigh.default.gc_thresh3",
    },
];

/// Entries that two labs of many pods each never need, at some 400 bytes.
const ROOM: [u64; 2] = [16_384, 32_768];

/// Larger tables, until it is dropped; then they are as they were.
pub(crate) struct Room {
    before: Vec<(&'static str, u64)>,
}

impl Room {
    /// Leaves what is large enough, and what it may not change.
    pub(crate) fn make() -> Self {
        let mut before = Vec::new();
        for table in &TABLES {
            // The hard one first: the soft one means nothing above it.
            for (name, wanted) in [(table.hard, ROOM[1]), (table.soft, ROOM[0])] {
                let Some(value) = setting(name).filter(|value| *value < wanted) else { continue };
                match set(name, wanted) {
                    Ok(()) => before.push((name, value)),
                    Err(error) => announce(format_args!(
                        "{name} stays {value}, which is too little for tests beside others: {error}"
                    )),
                }
            }
        }
        Self { before }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        for (name, value) in self.before.iter().rev() {
            if let Err(error) = set(name, *value) {
                announce(format_args!("{name} could not be set to {value} again: {error}"));
            }
        }
    }
}

fn path(name: &str) -> String {
    format!("/proc/sys/{}", name.replace('.', "/"))
}

fn setting(name: &str) -> Option<u64> {
    fs::read_to_string(path(name)).ok()?.trim().parse().ok()
}

fn set(name: &str, value: u64) -> io::Result<()> {
    fs::write(path(name), value.to_string())
}

/// How often each table was full since the machine started.
pub(crate) fn overflows() -> [u64; 2] {
    TABLES.each_ref().map(|table| {
        let text = fs::read_to_string(format!("/proc/net/stat/{}", table.name));
        count(&text.unwrap_or_default())
    })
}

/// What there is to say if a table was full since `before`.
pub(crate) fn explain(before: [u64; 2], now: [u64; 2]) -> Option<String> {
    let full = TABLES.iter().zip(before.iter().zip(now)).filter(|(_, (before, now))| now > *before);
    let text: Vec<String> = full
        .map(|(table, (before, now))| {
            format!(
                "the kernel's {} was full {} times during the run, which fails packets of all \
                 network namespaces of this machine: run it alone, or raise {}",
                table.name,
                now - before,
                table.hard
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
