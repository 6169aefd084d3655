//! Carries out the compiler's plans: each step in the table that it is about, and what follows from it in
//! others.
//!
//! Invariants: a row is complete before its set or class is used; nothing a packet in flight may still
//! read is reused before a grace period ([`Datapath::collect_garbage`]). Must never leave a step out
//! because another one failed.

use std::collections::BTreeSet;
use std::sync::Arc;

use netpol_common::layout::TRANSIT_READY;
use netpol_compile::{Backend, EndpointId, EndpointSets, Row, ServiceKey, SetId, Step};

use super::Datapath;
use crate::endpoint_table::{EntryChange, NO_SETS};
use crate::error::{DatapathError, EndpointFailure};
use crate::grace::grace_period;
use crate::rows::Pair;
use crate::seed::seed;

impl Datapath {
    /// Carries out the steps in order. A failure concerns what it names; the other steps are
    /// done all the same. What does not fit into its table is no failure: see [`Self::tables`].
    pub fn apply(&mut self, plan: &[Step]) -> Vec<EndpointFailure> {
        let mut failures = self.prepare_transit(plan);
        for step in plan {
            if let Err(failure) = self.apply_step(step) {
                failures.push(failure);
            }
        }
        if let Err(error) = self.retry() {
            failures.push(EndpointFailure { endpoint: None, error });
        }
        self.detach_unneeded_transit();
        failures
    }

    pub(super) fn apply_step(&mut self, step: &Step) -> Result<(), EndpointFailure> {
        let general = |error| EndpointFailure { endpoint: None, error };
        match step {
            Step::AddRow(set, class, row) => self.add_row((*set, *class), row).map_err(general),
            Step::SetClass(block, class) => {
                let set = self.classes.set(block, *class);
                set.and(self.note_missing_classes()).map_err(general)
            }
            Step::ClearClass(block) => {
                let cleared = self.classes.clear(block);
                cleared.and(self.note_missing_classes()).map_err(general)
            }
            Step::SetService(key, backends) => self.set_service(key, backends).map_err(general),
            Step::ClearService(key) => self.clear_service(key).map_err(general),
            Step::SetEndpoint(id, sets) => self
                .set_endpoint(*id, *sets)
                .map_err(|error| EndpointFailure { endpoint: Some(*id), error }),
            Step::Rejudge(ids) => {
                self.rejudge(ids);
                Ok(())
            }
            Step::RemoveRow(set, class) => {
                self.rows.discard((*set, *class));
                Ok(())
            }
        }
    }

    /// Before a plan: whoever will send to Services that are not settled needs the transit programs
    /// by then.
    fn prepare_transit(&mut self, plan: &[Step]) -> Vec<EndpointFailure> {
        let isolates = |step: &Step| {
            matches!(step, Step::SetEndpoint(id, sets)
                if sets.egress != SetId::NONE && self.endpoints.contains(*id))
        };
        let serves = |step: &Step| matches!(step, Step::SetService(..));
        let will_isolate = self.endpoints.isolates_egress() || plan.iter().any(isolates);
        let will_serve = self.services.has_any() || plan.iter().any(serves);
        let is_needed = will_isolate && will_serve;
        if !is_needed || self.transit.is_wanted() && self.control.has_flag(TRANSIT_READY) {
            return Vec::new();
        }
        self.transit.want();
        self.attach_transit()
    }

    /// Rows that everybody without an entry is judged by may have to be held back, or need not be.
    fn note_missing_classes(&mut self) -> Result<(), DatapathError> {
        let is_short = self.classes.missing().next().is_some();
        self.rows.set_short_of_classes(is_short)
    }

    /// Adds a row. One that does not fit is left out; an error has nothing to do with room.
    fn add_row(&mut self, pair: Pair, row: &Row) -> Result<(), DatapathError> {
        let mut added = self.rows.add(pair, row);
        // Reclaiming waits for packets in flight: worth it only when room runs out.
        if matches!(added, Err(DatapathError::Full { .. })) && self.has_garbage() {
            self.collect_garbage()?;
            added = self.rows.add(pair, row);
        }
        let Err(error) = added else { return Ok(()) };
        self.rows.leave_out(pair, row)?;
        match error {
            DatapathError::Full { .. } => Ok(()),
            other => Err(other),
        }
    }

    /// Packets to this Service are judged by these backends from now on. If they do not fit, the
    /// programs are told that there are Services which they do not know; that is no failure, see
    /// [`Self::tables`].
    fn set_service(
        &mut self,
        key: &ServiceKey,
        backends: &Arc<[Backend]>,
    ) -> Result<(), DatapathError> {
        if self.services.is_beyond(key) {
            return self.leave_out_service(key, backends);
        }
        if !self.services.place(key, backends)? {
            // Reclaiming waits for packets in flight: worth it only when room runs out.
            self.collect_garbage()?;
            if !self.services.place(key, backends)? {
                // What stands there is not true any more.
                return self.leave_out_service(key, backends);
            }
        }
        self.update_incomplete();
        Ok(())
    }

    /// The programs know that there are Services which they do not know before this is one of them.
    fn leave_out_service(
        &mut self,
        key: &ServiceKey,
        backends: &Arc<[Backend]>,
    ) -> Result<(), DatapathError> {
        self.services.leave_out(key, backends);
        self.update_incomplete();
        self.services.take_out(key)
    }

    fn clear_service(&mut self, key: &ServiceKey) -> Result<(), DatapathError> {
        self.services.clear(key)?;
        self.update_incomplete();
        Ok(())
    }

    fn retry_services(&mut self) -> Result<(), DatapathError> {
        self.services.retry()?;
        self.update_incomplete();
        Ok(())
    }

    /// These Services go without a place from now on, and no others if they fit.
    pub fn leave_out_services(
        &mut self,
        beyond: BTreeSet<ServiceKey>,
    ) -> Result<(), DatapathError> {
        let placed = self.services.placed(&beyond);
        for (key, backends) in &placed {
            self.leave_out_service(key, backends)?;
        }
        if !placed.is_empty() {
            self.rejudge_all();
        }
        self.services.set_beyond(beyond);
        self.collect_garbage()?;
        self.retry_services()
    }

    /// Whether there are Services without a place.
    pub fn is_short_of_services(&self) -> bool {
        self.services.is_incomplete()
    }

    /// Those that go without a place since their namespaces want more than their share.
    pub fn left_out_services(&self) -> impl Iterator<Item = &ServiceKey> {
        self.services.left_out()
    }

    /// Tries again what did not fit, as far as there is room now.
    pub fn retry(&mut self) -> Result<(), DatapathError> {
        self.classes.retry()?;
        self.note_missing_classes()?;
        self.rows.retry()?;
        self.retry_services()?;
        self.endpoints.retry_sources()?;
        for (id, sets) in self.endpoints.closed() {
            if self.endpoints.may_have_entry(id) {
                self.set_endpoint(id, sets)?;
            }
        }
        for (id, addresses) in self.endpoints.short_of_addresses() {
            self.set_addresses(id, addresses)?;
        }
        Ok(())
    }

    fn set_endpoint(&mut self, id: EndpointId, sets: EndpointSets) -> Result<(), DatapathError> {
        if sets == NO_SETS {
            // The guard before the programs, which check the same, come off.
            let was_isolated = self.endpoints.clear_sets(id);
            let guarded = if was_isolated { self.update_guard(id) } else { Ok(()) };
            self.release_endpoint(id);
            return guarded;
        }
        let Some(change) = self.endpoints.set_sets(id, sets, &self.flows) else { return Ok(()) };
        // Before the programs, so that none of these flows is new to them; and after them, for
        // those that were opened meanwhile.
        let is_new = change == EntryChange::Added;
        if is_new {
            self.seed(id);
        }
        // Without an entry the programs drop everything: what a policy selects must not be open.
        self.attachments.attach(id)?;
        if is_new {
            self.seed(id);
        }
        self.attachments.detach_guard(id);
        Ok(())
    }

    /// Enters the endpoint's connections into the flow table, to be judged at their next packet.
    fn seed(&self, id: EndpointId) {
        if let Some((connections, born)) = self.endpoints.connections(id) {
            seed(&self.flows, id, &connections, born);
        }
    }

    /// Whether [`Self::collect_garbage`] has anything to do.
    pub fn has_garbage(&self) -> bool {
        self.rows.has_garbage() || self.services.has_garbage()
    }

    /// Removes rows that nothing refers to any more, after a grace period for packets in flight.
    pub fn collect_garbage(&mut self) -> Result<(), DatapathError> {
        if !self.has_garbage() {
            return Ok(());
        }
        grace_period()?;
        self.rows.remove_garbage()?;
        self.services.release_garbage();
        grace_period()?;
        self.rows.reclaim();
        self.services.reclaim();
        Ok(())
    }
}
