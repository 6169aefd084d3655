//! Whether the agent has the rights that it needs.

use std::fs;

use super::error::{DatapathError, io_error};

/// Capabilities the agent needs (include/uapi/linux/capability.h) and what for. CAP_SYS_ADMIN
/// includes CAP_BPF and CAP_PERFMON, and nothing less enters a namespace.
const CAPABILITIES: [(u8, &str, &str); 2] = [
    (12, "CAP_NET_ADMIN", "attach programs to interfaces"),
    (21, "CAP_SYS_ADMIN", "load programs, create maps and enter pods' network namespaces"),
];

/// Fails with the names of all missing capabilities.
pub(crate) fn require_capabilities() -> Result<(), DatapathError> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_each_missing_capability() {
        let missing = missing_capabilities("Name:\tx\nCapEff:\t0000000000000000\n");
        assert_eq!(missing.len(), 2);
        assert!(missing[0].starts_with("CAP_NET_ADMIN"), "{missing:?}");
        assert!(missing[1].starts_with("CAP_SYS_ADMIN"), "{missing:?}");
        assert_eq!(missing_capabilities("CapEff:\t0000000000001000\n").len(), 1);
    }

    #[test]
    fn full_root_misses_nothing() {
        assert!(missing_capabilities("CapEff:\t000001ffffffffff\n").is_empty());
    }

    /// What the DaemonSet gives.
    #[test]
    fn two_capabilities_suffice() {
        assert!(missing_capabilities("CapEff:\t0000000000201000\n").is_empty());
    }
}
