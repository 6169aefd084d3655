//! Errors of the datapath, worded for the person who has to act on them.

use std::io;
use std::path::PathBuf;

/// What can go wrong between netpol and the kernel.
#[derive(Debug, thiserror::Error)]
pub enum DatapathError {
    /// A system call failed.
    #[error("{what}: {source}")]
    Io {
        /// What was tried, on what.
        what: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// aya refused or the kernel did.
    #[error("{what}: {message}")]
    Bpf {
        /// What was tried, on what.
        what: String,
        /// The cause chain on one line.
        message: String,
    },
    /// A pinned map has another shape than this build's.
    #[error(
        "pinned map {} does not fit this netpol: {differences}; it belongs to another build: stop that agent and run `netpol cleanup --bpffs {}`", path.display(), bpffs.display()
    )]
    Layout {
        /// The pinned map.
        path: PathBuf,
        /// The directory given by `--bpffs`.
        bpffs: PathBuf,
        /// Every difference, in words.
        differences: String,
    },
    /// Another agent owns the directory.
    #[error(
        "another netpol agent uses {}: stop it first, or give this one its own --bpffs and --run-dir", bpffs.display()
    )]
    Busy {
        /// The directory given by `--bpffs`.
        bpffs: PathBuf,
    },
    /// The interfaces that the maps name have no program of netpol in this network namespace.
    #[error(
        "netpol isolates interfaces {}, but none of them has its programs in this network namespace: run this in the agent's, as by `nsenter --net=/proc/PID/ns/net` with the PID of a process there; if these interfaces are gone, --force removes the rest",
        list(interfaces)
    )]
    Elsewhere {
        /// Their numbers.
        interfaces: Vec<u32>,
    },
    /// Nothing is pinned.
    #[error("no netpol maps below {}: is the agent running with this --bpffs?", bpffs.display())]
    NotRunning {
        /// The directory given by `--bpffs`.
        bpffs: PathBuf,
    },
    /// A capability or kernel feature is missing.
    #[error("{0}")]
    Missing(String),
    /// A table is full.
    #[error("{table} is full ({limit} entries): {consequence}")]
    Full {
        /// Which table.
        table: &'static str,
        /// Its size.
        limit: u32,
        /// What that means for the packets.
        consequence: &'static str,
    },
}

fn list(numbers: &[u32]) -> String {
    numbers.iter().map(u32::to_string).collect::<Vec<_>>().join(", ")
}

/// Names what failed, for [`io::Error`] and rustix errors.
pub fn io_error(what: impl Into<String>) -> impl FnOnce(io::Error) -> DatapathError {
    let what = what.into();
    move |source| DatapathError::Io { what, source }
}

/// Names what failed, for aya's errors: their cause chain on one line, a verifier log cut to its
/// last lines.
pub fn bpf_error<E: std::error::Error>(what: impl Into<String>) -> impl FnOnce(E) -> DatapathError {
    let what = what.into();
    move |error| DatapathError::Bpf { what, message: chain(&error) }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = tail(&error.to_string());
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = tail(&cause.to_string());
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// The last lines of a long text: a verifier log says what matters at its end.
fn tail(text: &str) -> String {
    const LINES: usize = 60;
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}
