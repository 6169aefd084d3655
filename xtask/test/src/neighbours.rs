//! The kernel's tables of neighbours: one for each family in the whole machine, of 1,024 entries by
//! default, however many network namespaces there are. The labs of one run fill that of IPv6, and
//! what finds it full fails with "Invalid argument" or is not answered: so a run makes room, and a
//! run that was not allowed to says so when it fails. Must never change a verdict, only explain it.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};

use netpol_run::announce;

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

/// Where the settings are written down that were before, and who holds it needs larger ones. Several
/// runs share it; the last one puts back what the first one found, also if one was killed.
const LOCK: &str = "/run/netpol-test-neighbours";

/// Larger tables, until the last of those who want them is dropped; then they are as they were.
pub(crate) struct Room {
    shared: Option<File>,
}

impl Room {
    /// Leaves what is large enough, and what it may not change.
    pub(crate) fn make() -> Self {
        let shared = enlarge().inspect_err(|error| {
            announce(format_args!(
                "the kernel's tables of neighbours stay as they are, which is too little for tests \
                 beside others: {error}"
            ));
        });
        Self { shared: shared.ok() }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let Some(file) = self.shared.take() else { return };
        if let Err(error) = restore(&file) {
            announce(format_args!("the kernel's tables of neighbours stay large: {error}"));
        }
    }
}

fn enlarge() -> io::Result<File> {
    let mut file =
        File::options().read(true).write(true).create(true).truncate(false).open(LOCK)?;
    file.lock()?;
    let mut before = String::new();
    file.read_to_string(&mut before)?;
    let is_first = before.is_empty();
    for table in &TABLES {
        // The hard one first: the soft one means nothing above it.
        for (name, wanted) in [(table.hard, ROOM[1]), (table.soft, ROOM[0])] {
            let Some(value) = setting(name).filter(|value| *value < wanted) else { continue };
            if is_first {
                writeln!(file, "{name} {value}")?;
            }
            set(name, wanted)?;
        }
    }
    file.lock_shared()?;
    Ok(file)
}

fn restore(mut file: &File) -> io::Result<()> {
    file.unlock()?;
    match file.try_lock() {
        Ok(()) => {}
        // Somebody else still needs them.
        Err(TryLockError::WouldBlock) => return Ok(()),
        Err(TryLockError::Error(error)) => return Err(error),
    }
    let mut before = String::new();
    file.rewind()?;
    file.read_to_string(&mut before)?;
    for (name, value) in before.lines().rev().filter_map(|line| line.split_once(' ')) {
        if let (true, Ok(value)) =
            (TABLES.iter().any(|t| [t.hard, t.soft].contains(&name)), value.parse())
        {
            set(name, value)?;
        }
    }
    file.set_len(0)
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
