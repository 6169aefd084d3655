//! Errors of the datapath, worded for the person who has to act on them.

use std::io;
use std::path::PathBuf;

use aya::maps::MapError;
use netpol_compile::EndpointId;

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

/// Something that could not be done for one endpoint or table; everything else was.
#[derive(Debug)]
pub struct EndpointFailure {
    /// The endpoint, if it is about one.
    pub endpoint: Option<EndpointId>,
    /// What went wrong.
    pub error: DatapathError,
}

fn list(numbers: &[u32]) -> String {
    numbers.iter().map(u32::to_string).collect::<Vec<_>>().join(", ")
}

/// Names what failed, for [`io::Error`] and rustix errors.
pub(crate) fn io_error(what: impl Into<String>) -> impl FnOnce(io::Error) -> DatapathError {
    let what = what.into();
    move |source| DatapathError::Io { what, source }
}

/// Names what failed, for aya's errors: their cause chain on one line, a verifier log cut to its
/// last lines.
pub(crate) fn bpf_error<E: std::error::Error>(
    what: impl Into<String>,
) -> impl FnOnce(E) -> DatapathError {
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

/// The kernel's error number, if it is the kernel's error.
pub(crate) fn os_error(error: &MapError) -> Option<i32> {
    match error {
        MapError::SyscallError(error) => error.io_error.raw_os_error(),
        _ => None,
    }
}

/// A table is full.
pub(crate) fn no_room(table: &'static str, limit: u32) -> DatapathError {
    let consequence = "what did not fit is denied for isolated pods";
    DatapathError::Full { table, limit, consequence }
}

/// A map error, named as "full" where that is what it is.
pub(crate) fn full_or(error: MapError, table: &'static str, limit: u32) -> DatapathError {
    match os_error(&error) {
        Some(libc::E2BIG | libc::ENOSPC | libc::ENOMEM) => no_room(table, limit),
        _ => bpf_error(format!("write to the {table}"))(error),
    }
}

/// It need not have been there.
pub(crate) fn ignore_missing(result: Result<(), MapError>) -> Result<(), DatapathError> {
    was_there(result).map(drop)
}

/// Whether what was to be removed was there.
pub(crate) fn was_there(result: Result<(), MapError>) -> Result<bool, DatapathError> {
    match result {
        Ok(()) => Ok(true),
        Err(MapError::KeyNotFound) => Ok(false),
        Err(error) if os_error(&error) == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(bpf_error("remove a map entry")(error)),
    }
}
