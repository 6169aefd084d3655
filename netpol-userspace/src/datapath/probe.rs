//! Questions to the kernel: may we, can it, and "is everyone past this point?".

use std::fs;

use super::error::{DatapathError, io_error};

/// Capabilities the agent needs (include/uapi/linux/capability.h) and what for.
const CAPABILITIES: [(u8, &str, &str); 3] = [
    (39, "CAP_BPF", "load programs and create maps"),
    (12, "CAP_NET_ADMIN", "attach programs to interfaces"),
    (21, "CAP_SYS_ADMIN", "enter pods' network namespaces to find their addresses"),
];

/// Fails with the names of all missing capabilities.
pub fn require_capabilities() -> Result<(), DatapathError> {
    let status =
        fs::read_to_string("/proc/self/status").map_err(io_error("read /proc/self/status"))?;
    let missing = missing_capabilities(&status);
    if missing.is_empty() {
        return Ok(());
    }
    Err(DatapathError::Missing(format!(
        "missing {}: run netpol as root, or add the capabilities to its container's securityContext",
        missing.join(" and ")
    )))
}

fn missing_capabilities(status: &str) -> Vec<String> {
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0);
    CAPABILITIES
        .iter()
        .filter(|(bit, _, _)| effective >> bit & 1 == 0)
        .map(|(_, name, purpose)| format!("{name} (to {purpose})"))
        .collect()
}

/// Returns when no program that was running at the call is running any more. Programs run inside
/// RCU read-side critical sections; this membarrier command waits for all of those
/// (kernel/sched/membarrier.c: MEMBARRIER_CMD_GLOBAL is synchronize_rcu).
pub fn grace_period() -> Result<(), DatapathError> {
    // SAFETY: membarrier takes three integers and touches no memory of ours.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, libc::MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if result == 0 {
        return Ok(());
    }
    Err(io_error("wait for packets in flight (membarrier)")(std::io::Error::last_os_error()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_each_missing_capability() {
        let status = "Name:\tx\nCapEff:\t0000000000001000\n";
        let missing = missing_capabilities(status);
        assert_eq!(missing.len(), 2);
        assert!(missing[0].starts_with("CAP_BPF"), "{missing:?}");
        assert!(missing[1].starts_with("CAP_SYS_ADMIN"), "{missing:?}");
    }

    #[test]
    fn full_root_misses_nothing() {
        assert!(missing_capabilities("CapEff:\t000001ffffffffff\n").is_empty());
    }
}
