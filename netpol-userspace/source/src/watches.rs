//! How the watches of a source are doing, kind by kind, for people and Prometheus. Written by the
//! source, read by everybody; must never be what a decision rests on.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

/// One watch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watch {
    /// What is watched, as in roles: `pods`.
    pub resource: &'static str,
    /// It has been read completely once (or may not be read, and can be done without).
    pub is_synced: bool,
    /// Objects known.
    pub objects: usize,
    /// Lists begun.
    pub lists: u64,
    /// Objects received, in lists and as events.
    pub events: u64,
    /// Failures that were more than the end of a connection.
    pub errors: u64,
    /// When the other end was last heard of.
    pub heard: Option<Instant>,
}

/// All watches of a source; none for one that does not watch an API server.
#[derive(Debug, Clone, Default)]
pub struct Watches(Arc<Mutex<Vec<Watch>>>);

impl Watches {
    /// Of these resources, nothing known yet.
    pub fn new(resources: impl IntoIterator<Item = &'static str>) -> Self {
        let watch = |resource| Watch {
            resource,
            is_synced: false,
            objects: 0,
            lists: 0,
            events: 0,
            errors: 0,
            heard: None,
        };
        Self(Arc::new(Mutex::new(resources.into_iter().map(watch).collect())))
    }

    /// All of them as they are now.
    pub fn read(&self) -> Vec<Watch> {
        self.lock().clone()
    }

    /// Changes one by its number.
    pub fn update(&self, number: usize, change: impl FnOnce(&mut Watch)) {
        if let Some(watch) = self.lock().get_mut(number) {
            change(watch);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Watch>> {
        // Numbers for people: also those of somebody who panicked are good enough.
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
