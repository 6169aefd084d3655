//! What is written and published, and when. Must never let a number be used before it is written down.

use std::sync::Arc;

use tokio::sync::watch;

use super::Core;
use crate::serve::Published;
use crate::state_file::processor_time;
use netpol_api::state::{State, socket_path};
use netpol_compile::ids::Ids;

impl Core {
    /// Whether the state file is behind.
    pub(crate) fn is_dirty(&self) -> bool {
        self.is_dirty
    }

    /// Publishes the state to the file and the servers: all of it, if that keeps nothing waiting.
    pub(crate) fn write_state(&mut self, published: &watch::Sender<Arc<Published>>) {
        if !self.state_file.must_wait(self.compilation.is_behind()) {
            return self.write_whole_state(published);
        }
        // What policies say is still to be written; but not who is there.
        if !self.state_file.has_endpoints() {
            self.store_endpoints();
        }
        published.send_replace(Arc::new(self.published()));
    }

    /// The same before waits are answered: who has waited for something to be in force looks at what is
    /// in force next.
    pub(crate) fn write_state_for_answers(&mut self, published: &watch::Sender<Arc<Published>>) {
        if !self.waits.has_answers() || self.compilation.is_behind() || !self.is_dirty {
            return self.write_state(published);
        }
        self.write_whole_state(published);
    }

    fn write_whole_state(&mut self, published: &watch::Sender<Arc<Published>>) {
        let begun = processor_time();
        let mut ids = self.compilation.compiler().export_ids();
        if !self.enforcement.is_reconciled() {
            // The maps are still an earlier agent's, and so are the numbers in them.
            ids = self.state_file.take_written();
        }
        let state = self.state_file.whole(&self.overview(), &self.remarks, ids);
        self.store(state);
        self.is_dirty = false;
        self.state_file.record_whole(begun);
        published.send_replace(Arc::new(self.published()));
    }

    /// The status of this moment, and what else was written last.
    pub(crate) fn published(&self) -> Published {
        let overview = self.overview();
        let brief = || Arc::new(self.state_file.brief(&overview, &self.remarks, Ids::default()));
        let state = self.state_file.last().cloned().unwrap_or_else(brief);
        let status = overview.status(&self.remarks);
        Published {
            is_whole: status.ready || overview.is_whole(),
            status,
            state,
            is_able: overview.is_able_to_enforce(),
            counters: self.enforcement.counters().clone(),
            watches: self.source.watches().clone(),
        }
    }

    /// Writes down new numbers before they are used.
    pub(super) fn write_ahead(&mut self) {
        if !self.state_file.has_endpoints() {
            return self.store_endpoints();
        }
        let news = self.compilation.compiler_mut().new_ids();
        if let Err(error) = self.state_file.append(news) {
            self.enforcement.record_unwritten(&error);
        }
    }

    fn store_endpoints(&mut self) {
        let ids = self.state_file.with_written(self.compilation.compiler().export_ids());
        let state = self.state_file.cheap(&self.overview(), &self.remarks, ids);
        self.store(state);
    }

    fn store(&mut self, state: State) {
        if let Err(error) = self.state_file.store(state) {
            self.enforcement.record_unwritten(&error);
        }
        // All of them are written now.
        let _ = self.compilation.compiler_mut().new_ids();
    }

    /// Leaves a state file that says what stays in force, and no socket.
    pub(crate) fn stop(&mut self, published: &watch::Sender<Arc<Published>>) {
        self.write_whole_state(published);
        let _ = std::fs::remove_file(socket_path(self.state_file.run_dir()));
    }
}
