//! What has become of the source: whether everything was read once, how many changes there were, and
//! what of it cannot be used. Must never take what is not read yet for what does not exist.

use std::collections::BTreeMap;

use crate::view;
use netpol_api::state::{ObjectError, SourceStatus};
use netpol_source::{Handle, Watches};

/// The source as the agent knows it.
pub(crate) struct SourceState {
    handle: Handle,
    kind: &'static str,
    is_synced: bool,
    /// How many changes were read, also by earlier agents, and how many when all were in force last.
    revision: u64,
    applied_revision: u64,
    /// What cannot be used, by object.
    errors: BTreeMap<String, String>,
}

impl SourceState {
    /// Nothing was read yet; earlier agents had come to these revisions.
    pub(crate) fn new(
        handle: Handle,
        kind: &'static str,
        revision: u64,
        applied_revision: u64,
    ) -> Self {
        let errors = BTreeMap::new();
        Self { handle, kind, is_synced: false, revision, applied_revision, errors }
    }

    /// Of which kind it is.
    pub(crate) fn kind(&self) -> &'static str {
        self.kind
    }

    /// Whether everything that existed has been read: only then may anything be removed.
    pub(crate) fn is_synced(&self) -> bool {
        self.is_synced
    }

    /// How many changes were read.
    pub(crate) fn revision(&self) -> u64 {
        self.revision
    }

    /// How many of them when all were in force last.
    pub(crate) fn applied_revision(&self) -> u64 {
        self.applied_revision
    }

    /// How its watches are doing at any moment.
    pub(crate) fn watches(&self) -> &Watches {
        self.handle.watches()
    }

    /// Has everything read before now be followed by a barrier; returns its number.
    pub(crate) fn barrier(&self) -> u64 {
        self.handle.barrier()
    }

    /// Whether something of it is not used; not that it cannot be watched, while what is known of it
    /// stays in force.
    pub(crate) fn has_unused(&self) -> bool {
        self.errors.keys().any(|object| is_unused(object))
    }

    /// Everything that existed has been read.
    pub(crate) fn set_synced(&mut self) {
        self.is_synced = true;
    }

    /// So many changes were read.
    pub(crate) fn count(&mut self, n_changes: usize) {
        self.revision += n_changes as u64;
    }

    /// All of them are in force. Returns whether that is new.
    pub(crate) fn set_applied(&mut self) -> bool {
        let is_new = self.applied_revision != self.revision;
        self.applied_revision = self.revision;
        is_new
    }

    /// An object cannot be used.
    pub(crate) fn record_problem(&mut self, object: String, message: String) {
        tracing::warn!(object, message, "cannot use an object");
        self.errors.insert(object, message);
    }

    /// It can again.
    pub(crate) fn resolve_problem(&mut self, object: &str) {
        self.errors.remove(object);
    }

    /// All of it for people.
    pub(crate) fn status(&self) -> SourceStatus {
        let error = |(object, message): (&String, &String)| ObjectError {
            object: object.clone(),
            message: message.clone(),
        };
        SourceStatus {
            kind: self.kind.to_owned(),
            synced: self.is_synced,
            revision: self.revision,
            errors: self.errors.iter().map(error).collect(),
            watches: view::watches(&self.watches().read()),
        }
    }
}

fn is_unused(object: &str) -> bool {
    !object.starts_with("watch ")
}
