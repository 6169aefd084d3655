//! Where objects come from: files or an API server, turned into [`netpol_model::Change`]s. Must
//! never decide a verdict and never drop an object silently.
//!
//! A source runs on its own and sends [`Event`]s over a bounded channel; it stops when its
//! [`Handle`] is dropped or the receiver is gone.

#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use netpol_model::Change;

pub mod advice;
pub mod catalog;
pub mod cluster_policy;
pub mod convert;
pub mod directory;
pub mod explain;
pub mod foreign;
pub mod kept;
pub mod kubernetes;
pub mod manifests;

pub mod parse;
pub mod schema;
pub mod slices;
pub mod slim;
pub mod validate;
pub mod watches;

pub use directory::{Loaded, load_dir};
pub use kubernetes::spawn_kubernetes;
pub use manifests::spawn_manifests;
pub use watches::{Watch, Watches};

/// What a source tells the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Changes that belong together, to be applied in this order.
    Changes(Vec<Change>),
    /// An object that cannot be used (or not in full), or an error of the source itself. Replaces
    /// an earlier problem of the same `object`.
    Problem {
        /// What it is about, e.g. `NetworkPolicy shop/web (web.yaml)` or `watch namespaces`.
        object: String,
        /// What happened, and what it means.
        message: String,
    },
    /// The problem of that object is over.
    Resolved {
        /// As in [`Event::Problem`].
        object: String,
    },
    /// Everything that existed at the start has been sent. Sent once.
    Synced,
    /// Answers [`Handle::barrier`]: all calls that returned this number or a lower one.
    Barrier(u64),
}

/// Controls a running source. Dropping it stops the source.
pub struct Handle {
    asked: Arc<AtomicU64>,
    wake: Box<dyn Fn() + Send + Sync>,
    stop: Box<dyn Fn() + Send + Sync>,
    watches: Watches,
}

impl Handle {
    fn new(
        asked: Arc<AtomicU64>,
        wake: impl Fn() + Send + Sync + 'static,
        stop: impl Fn() + Send + Sync + 'static,
    ) -> Self {
        let watches = Watches::default();
        Self { asked, wake: Box::new(wake), stop: Box::new(stop), watches }
    }

    fn with_watches(mut self, watches: Watches) -> Self {
        self.watches = watches;
        self
    }

    /// How the source's watches are doing.
    pub fn watches(&self) -> &Watches {
        &self.watches
    }

    /// Asks for an [`Event::Barrier`] with the returned number, or a higher one, after everything
    /// that was written (to the files, to the API server) before this call has been sent. Should
    /// that fail within its time bound, there is an [`Event::Problem`] and no barrier.
    pub fn barrier(&self) -> u64 {
        let number = self.asked.fetch_add(1, Ordering::SeqCst) + 1;
        (self.wake)();
        number
    }
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handle").field("asked", &self.asked).finish_non_exhaustive()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        (self.stop)();
    }
}
