//! What only one process may do at a time, with others waiting for their turn.

use std::fs::{self, File};
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result};
use netpol_userspace::lock::Lock;

/// Waits until nobody else has the lock on this directory, and says so if it has to. `whom`
/// completes "waiting for ...".
pub(crate) fn wait(directory: &Path, whom: &str) -> Result<Lock> {
    let mut is_told = false;
    loop {
        if let Some(lock) = take(directory)? {
            return Ok(lock);
        }
        if !is_told {
            eprintln!("waiting for {whom}");
            is_told = true;
        }
        sleep(Duration::from_millis(200));
    }
}

/// The lock on this directory, which is made if it is not there, unless somebody else has it.
pub(crate) fn take(directory: &Path) -> Result<Option<Lock>> {
    fs::create_dir_all(directory)
        .with_context(|| format!("create directory {}", directory.display()))?;
    let file =
        File::open(directory).with_context(|| format!("open directory {}", directory.display()))?;
    Lock::take(file).with_context(|| format!("lock directory {}", directory.display()))
}
