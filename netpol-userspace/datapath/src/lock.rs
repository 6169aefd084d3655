//! A file or directory held by one process at a time, by flock(2). Knows nothing of what it guards,
//! and must never wait.

use std::fs::File;
use std::io;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// Held until it is dropped or the process ends.
#[derive(Debug)]
pub struct Lock(File);

impl Lock {
    /// Takes `file`; nothing if somebody else has it.
    ///
    /// # Errors
    /// Whatever flock(2) says apart from that.
    pub fn take(file: File) -> io::Result<Option<Self>> {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Self(file))),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

impl Drop for Lock {
    /// Closing the file is not enough: a child that was just forked, and has yet to call exec,
    /// holds a copy of the descriptor, and the lock lasts as long as any of them.
    fn drop(&mut self) {
        if let Err(error) = flock(&self.0, FlockOperation::Unlock) {
            tracing::warn!(%error, "cannot release a lock");
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_forked_copy_of_the_descriptor_does_not_keep_the_lock() {
        let directory = tempfile::tempdir().unwrap();
        let take = || Lock::take(File::open(directory.path()).unwrap()).unwrap();
        let lock = take().unwrap();
        assert!(take().is_none());
        let copy = lock.0.try_clone().unwrap();
        drop(lock);
        assert!(take().is_some(), "{copy:?} holds nothing");
    }
}
