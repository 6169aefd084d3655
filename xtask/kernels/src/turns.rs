//! As many machines at a time as there is room for, in this process. Must never hold a turn longer
//! than its machines run.

use std::sync::{Condvar, LazyLock, Mutex, PoisonError};

use crate::machine;

/// Looked at once: machines that have just been started do not have their memory yet.
static ROOM: LazyLock<usize> = LazyLock::new(machine::room);
static RUNNING: Mutex<usize> = Mutex::new(0);
static ENDED: Condvar = Condvar::new();

/// The right to run a machine, until it is dropped.
pub(crate) struct Turn(());

impl Turn {
    /// Waits until there is room.
    pub(crate) fn wait() -> Self {
        let running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        let running = ENDED.wait_while(running, |running| *running >= *ROOM);
        *running.unwrap_or_else(PoisonError::into_inner) += 1;
        Self(())
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *RUNNING.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        ENDED.notify_one();
    }
}
