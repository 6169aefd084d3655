//! After a restart: takes over what an earlier agent left, then makes the maps equal to the
//! compiler's tables. Deletes only here, and only when the caller says that every source has
//! synced.

use std::collections::BTreeSet;
use std::sync::Arc;

use netpol_compile::{ClassId, Step, Tables};

use super::Datapath;
use crate::error::{DatapathError, EndpointFailure};
use crate::versions::retire_other_versions;

/// Numbers of sets and classes that the maps hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NumbersInMaps {
    /// Set numbers, without 0.
    pub sets: BTreeSet<u16>,
    /// Class numbers, without 0.
    pub classes: BTreeSet<u32>,
}

impl Datapath {
    /// The numbers that an earlier agent left in the maps.
    pub fn numbers(&self) -> NumbersInMaps {
        let mut numbers = NumbersInMaps::default();
        for (set, class) in self.rows.pairs() {
            numbers.sets.insert(set.0);
            numbers.classes.insert(class.0);
        }
        for sets in self.endpoints.sets_in_entries() {
            numbers.sets.extend([sets.ingress.0, sets.egress.0]);
        }
        // Classes that cannot be read cannot be reconciled either, which is told then.
        let classes = self.classes.read().unwrap_or_default();
        numbers.classes.extend(classes.values().map(|class| class.0));
        numbers.sets.remove(&0);
        for class in [ClassId::NONE, ClassId::CLOSED] {
            numbers.classes.remove(&class.0);
        }
        numbers
    }

    /// Makes the maps equal to `tables`, keeping every state on the way between the old verdicts
    /// and the new ones as far as equal content has equal numbers. Endpoints must have been added
    /// before. Everything that is not in `tables` goes.
    pub fn reconcile(&mut self, tables: &Tables) -> Result<Vec<EndpointFailure>, DatapathError> {
        let classes = self.classes.read()?;
        // Rows and classes one by one: as a plan they take as much again as the tables do.
        let mut failures = Vec::new();
        for (&(set, class), row) in &tables.rows {
            if !self.rows.holds((set, class), row) {
                let step = Step::AddRow(set, class, row.clone());
                failures.extend(self.apply_step(&step).err());
            }
        }
        // Blocks after what is inside them: should that not fit, they are closed before they are
        // given a class that may allow more.
        let mut changed: Vec<_> = tables
            .classes
            .iter()
            .filter(|(block, class)| classes.get(block) != Some(class))
            .collect();
        changed.sort_by_key(|(block, _)| std::cmp::Reverse(block.prefix_len()));
        for (&block, &class) in changed {
            failures.extend(self.apply_step(&Step::SetClass(block, class)).err());
        }
        let mut plan = Vec::new();
        for (key, backends) in &tables.services {
            if !self.services.holds(key, backends) {
                plan.push(Step::SetService(*key, Arc::clone(backends)));
            }
        }
        for (&id, &sets) in &tables.endpoints {
            plan.push(Step::SetEndpoint(id, sets));
        }
        plan.push(Step::Rejudge(tables.endpoints.keys().copied().collect()));
        let known = classes.keys().chain(self.classes.missing());
        for block in known.filter(|block| !tables.classes.contains_key(block)) {
            plan.push(Step::ClearClass(*block));
        }
        let services = self.services.read()?;
        let stale = services.keys().filter(|key| !tables.services.contains_key(key));
        plan.extend(stale.map(|key| Step::ClearService(*key)));
        let stale_rows = self.rows.pairs().filter(|pair| !tables.rows.contains_key(pair));
        plan.extend(stale_rows.map(|(set, class)| Step::RemoveRow(set, class)));
        self.rows.forget_missing(&tables.rows);

        failures.extend(self.apply(&plan));
        for ifindex in self.endpoints.with_entry() {
            self.attachments.detach_other_mode(ifindex);
        }
        self.remove_unknown_endpoints()?;
        self.rows.remove_unknown(&tables.rows)?;
        Ok(failures)
    }

    /// Endpoints that an earlier agent knew and that are gone, and addresses of whoever had a
    /// number before.
    fn remove_unknown_endpoints(&mut self) -> Result<(), DatapathError> {
        for (slot, ifindex, id) in self.endpoints.unknown_entries() {
            if !self.endpoints.has_interface(ifindex) {
                self.attachments.detach_unknown(ifindex);
            }
            self.endpoints.clear_unknown_entry(slot);
            if !self.endpoints.contains(id) {
                self.flows.clear_share(id);
            }
        }
        // One without an entry had none before either: it drops everything.
        let isolated = self.endpoints.isolated().map(|(_, ifindex)| ifindex).collect();
        self.attachments.keep_links_of(&isolated);
        self.endpoints.remove_unknown_addresses()?;
        self.endpoints.reconcile_sources()?;
        self.attachments.remove_unknown_guards();
        for (slot, ifindex) in self.endpoints.unknown_speakers() {
            self.attachments.detach_unknown_guard(ifindex);
            self.endpoints.clear_unknown_speaker(slot);
        }
        retire_other_versions(self.attachments.pins())
    }
}
