//! What the kernel says of a process: processor time and memory. Must never count another's.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

/// Ticks of /proc/PID/stat in a second: `USER_HZ`, the same on every machine that netpol runs on.
const TICKS: u64 = 100;

/// How mappings of the kernel's tables are called.
const BPF_MAP: &str = "anon_inode:bpf-map";

/// A process.
#[derive(Debug, Clone, Copy)]
pub struct Process {
    pid: u32,
}

/// Memory of a process, in bytes.
#[derive(Debug, Clone, Copy)]
pub struct Memory {
    /// Resident now.
    pub resident: u64,
    /// Of it, what is its own: heap and stacks.
    pub own: u64,
    /// Of it, tables of the kernel that are mapped into it: they are there as long as programs use them,
    /// with or without the process.
    pub tables: u64,
    /// Most that was resident.
    pub peak: u64,
}

impl Process {
    /// The process of that number.
    pub fn new(pid: u32) -> Self {
        Self { pid }
    }

    /// Processor time of all its threads so far. One that has ended is an error.
    pub fn processor_time(&self) -> Result<Duration> {
        let path = format!("/proc/{}/stat", self.pid);
        let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        // The name before it may contain anything.
        let (_, fields) = text.rsplit_once(')').context("a process has a name")?;
        let fields: Vec<&str> = fields.split_whitespace().collect();
        ensure!(fields.first() != Some(&"Z"), "process {} has ended", self.pid);
        let number = |index: usize| -> Result<u64> {
            let field = fields.get(index).with_context(|| format!("{path} is too short"))?;
            Ok(field.parse()?)
        };
        let ticks = number(11)? + number(12)?;
        Ok(Duration::from_millis(ticks * 1_000 / TICKS))
    }

    /// Its memory.
    pub fn memory(&self) -> Result<Memory> {
        let path = format!("/proc/{}/status", self.pid);
        let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        let bytes = |name: &str| -> Result<u64> {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            let number = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
            Ok(number.with_context(|| format!("{path} does not say {name}"))? * 1_024)
        };
        Ok(Memory {
            resident: bytes("VmRSS:")?,
            own: bytes("RssAnon:")?,
            tables: self.mapped(BPF_MAP)?,
            peak: bytes("VmHWM:")?,
        })
    }

    /// How much of mappings of that name is resident.
    fn mapped(&self, name: &str) -> Result<u64> {
        let path = format!("/proc/{}/smaps", self.pid);
        let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        let mut is_its = false;
        let mut kibibytes = 0;
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match (words.next(), words.next()) {
                (Some("Rss:"), Some(number)) if is_its => kibibytes += number.parse::<u64>()?,
                // A mapping begins with its addresses, what is said of it with a word and a colon.
                (Some(first), _) if !first.ends_with(':') => is_its = line.ends_with(name),
                _ => {}
            }
        }
        Ok(kibibytes * 1_024)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn a_process_has_memory_and_uses_time() {
        let process = Process::new(std::process::id());
        let memory = process.memory().unwrap();
        assert!(memory.own > 0 && memory.own <= memory.resident, "{memory:?}");
        assert!(memory.resident <= memory.peak, "{memory:?}");
        assert_eq!(memory.tables, 0, "{memory:?}");
        let stack = process.mapped("[stack]").unwrap();
        assert!(stack > 0 && stack < memory.own, "{stack} {memory:?}");
        let mut number = 0_u64;
        while process.processor_time().unwrap() < Duration::from_millis(20) {
            number = std::hint::black_box(number + 1);
        }
        let ended = std::process::Command::new("true").spawn().unwrap();
        let (pid, mut ended) = (ended.id(), ended);
        ended.wait().unwrap();
        assert!(Process::new(pid).processor_time().is_err());
    }
}
