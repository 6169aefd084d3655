//! What only one process may do at a time, with others waiting for their turn and saying what for.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use netpol_datapath::lock::Lock;

use crate::progress::{Progress, WORD_EVERY};

/// A turn; it ends with this value, or with the process.
pub struct Turn {
    _lock: Lock,
    directory: PathBuf,
}

impl Turn {
    /// Tells those who wait how far it is.
    pub fn progress(&self) -> Progress {
        Progress::new(progress_file(&self.directory))
    }
}

fn progress_file(directory: &Path) -> PathBuf {
    directory.join("progress")
}

/// Waits until nobody else has the lock on this directory, and says so every few seconds if it has
/// to. `whom` completes "waiting for ...".
///
/// # Errors
/// The directory cannot be made or locked.
pub fn wait(directory: &Path, whom: &str) -> Result<Turn> {
    let started = Instant::now();
    let mut next = Duration::ZERO;
    loop {
        if let Some(turn) = take(directory)? {
            return Ok(turn);
        }
        if started.elapsed() >= next {
            let at = fs::read_to_string(progress_file(directory)).unwrap_or_default();
            let at = if at.is_empty() { at } else { format!(", which is {at}") };
            eprintln!("    waiting for {whom}{at} ({} s)", next.as_secs());
            next += WORD_EVERY;
        }
        sleep(Duration::from_millis(200));
    }
}

/// The lock on this directory, which is made if it is not there, unless somebody else has it.
///
/// # Errors
/// As above.
pub fn take(directory: &Path) -> Result<Option<Turn>> {
    fs::create_dir_all(directory)
        .with_context(|| format!("create directory {}", directory.display()))?;
    let file =
        File::open(directory).with_context(|| format!("open directory {}", directory.display()))?;
    let lock =
        Lock::take(file).with_context(|| format!("lock directory {}", directory.display()))?;
    Ok(lock.map(|lock| {
        // What was said in an earlier turn is no longer so.
        let _ = fs::remove_file(progress_file(directory));
        Turn { _lock: lock, directory: directory.to_owned() }
    }))
}
