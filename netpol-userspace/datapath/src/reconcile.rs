//! After a restart: takes over what an earlier agent left, then makes the maps equal to the
//! compiler's tables. Deletes only here, and only when the caller says that every source has
//! synced.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use netpol_common::layout;
use zerocopy::FromBytes as _;

use super::arena::{Content as _, Region};
use super::error::{DatapathError, EndpointFailure, bpf_error, ignore_missing};
use super::keys::ip_of;
use super::observe;
use super::rows::{Pair, row_key};
use super::writer::{Datapath, IDENTITY, clear_slot};
use netpol_compile::{ClassId, EndpointId, PortSet, Row, SetId, Step, Tables};

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
        for (set, class) in self.rows.stored.keys() {
            numbers.sets.insert(set.0);
            numbers.classes.insert(class.0);
        }
        for endpoint in observe::endpoints(&self.maps) {
            numbers.sets.extend([endpoint.ingress, endpoint.egress]);
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

    /// Reads the rows that are there and accounts for their port sets.
    pub(super) fn adopt_rows(&mut self) -> Result<(), DatapathError> {
        for (pair, value) in self.read_rows()? {
            let ports = (value.kind == layout::ROW_PORTS).then(|| self.read_ports(&value));
            if let Some(ports) = &ports {
                let region = Region { offset: value.offset, length: ports.length() };
                if !self.arena.adopt(ports, region) {
                    // Nothing of ours looks like this; the row is rewritten or removed later.
                    tracing::warn!(set = pair.0.0, class = pair.1.0, "inconsistent verdict row");
                    continue;
                }
            }
            self.rows.stored.insert(pair, ports);
        }
        Ok(())
    }

    fn read_rows(&self) -> Result<Vec<(Pair, layout::Row)>, DatapathError> {
        self.maps
            .rows
            .iter()
            .map(|entry| {
                let (key, value) = entry.map_err(bpf_error("read the verdict table"))?;
                let key: layout::RowKey = zerocopy::transmute!(key);
                let value: layout::Row = zerocopy::transmute!(value);
                Ok(((SetId(key.set as u16), ClassId(key.class)), value))
            })
            .collect()
    }

    fn read_ports(&self, row: &layout::Row) -> Arc<PortSet> {
        let mut index = row.offset as usize;
        let intervals = row.counts.map(|count| {
            let end = (index + usize::from(count)).min(self.maps.intervals.len());
            let list = (index..end)
                .map(|i| self.maps.intervals.load(i, 0))
                .map(|word| (layout::interval_first(word), layout::interval_last(word)))
                .collect();
            index = end;
            list
        });
        Arc::new(PortSet { intervals })
    }

    /// Makes the maps equal to `tables`, keeping every state on the way between the old verdicts
    /// and the new ones as far as equal content has equal numbers. Endpoints must have been added
    /// before. Everything that is not in `tables` goes.
    pub fn reconcile(&mut self, tables: &Tables) -> Result<Vec<EndpointFailure>, DatapathError> {
        let classes = self.classes.read()?;
        // Rows and classes one by one: as a plan they take as much again as the tables do.
        let mut failures = Vec::new();
        for (&(set, class), row) in &tables.rows {
            let is_there =
                self.rows.stored.get(&(set, class)).is_some_and(|known| match (known, row) {
                    (None, Row::All) => true,
                    (Some(known), Row::Ports(ports)) => known == ports,
                    _ => false,
                });
            if !is_there {
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
            if self.services.get(key) != Some(backends) {
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
        let services = self.read_services()?;
        let stale = services.keys().filter(|key| !tables.services.contains_key(key));
        plan.extend(stale.map(|key| Step::ClearService(*key)));
        let stale_rows: Vec<_> = self
            .rows
            .stored
            .keys()
            .filter(|pair| !tables.rows.contains_key(pair))
            .copied()
            .collect();
        self.rows.missing.retain(|pair, _| tables.rows.contains_key(pair));
        plan.extend(stale_rows.into_iter().map(|(set, class)| Step::RemoveRow(set, class)));

        failures.extend(self.apply(&plan));
        for endpoint in self.endpoints.values().filter(|endpoint| endpoint.slot.is_some()) {
            self.attacher.detach_other_mode(endpoint.ifindex);
        }
        self.remove_unknown_endpoints()?;
        self.remove_unaccounted_rows(tables)?;
        Ok(failures)
    }

    /// Endpoints that an earlier agent knew and that are gone, and addresses of whoever had a
    /// number before.
    fn remove_unknown_endpoints(&mut self) -> Result<(), DatapathError> {
        let known: BTreeMap<usize, EndpointId> = self
            .endpoints
            .iter()
            .filter_map(|(&id, endpoint)| Some((endpoint.slot?, id)))
            .collect();
        for slot in 0..self.maps.endpoints.len() {
            let identity = self.maps.endpoints.load(slot, IDENTITY);
            if identity != 0 && !known.contains_key(&slot) {
                let ifindex = (identity >> 32) as u32;
                let is_reused = self.endpoints.values().any(|endpoint| endpoint.ifindex == ifindex);
                if !is_reused {
                    self.attacher.detach(ifindex);
                }
                clear_slot(&self.maps.endpoints, slot);
                let id = EndpointId(identity as u16);
                if !self.endpoints.contains_key(&id) {
                    self.flows.clear_share(id);
                }
            }
        }
        // One without an entry had none before either: it drops everything.
        let isolated: BTreeSet<u32> = self
            .endpoints
            .values()
            .filter(|endpoint| endpoint.slot.is_some() || endpoint.is_closed)
            .map(|endpoint| endpoint.ifindex)
            .collect();
        for ifindex in self.attacher.linked().difference(&isolated) {
            self.attacher.detach_links(*ifindex);
        }
        let is_own = |own: &layout::OwnAddress| {
            let endpoint = self.endpoints.get(&EndpointId(own.endpoint as u16));
            endpoint.is_some_and(|known| known.addresses.contains(&ip_of(&own.address)))
        };
        let stale: Vec<_> = self
            .maps
            .own_addresses
            .keys()
            .flatten()
            .filter(|key| layout::OwnAddress::read_from_bytes(key).is_ok_and(|own| !is_own(&own)))
            .collect();
        for key in stale {
            ignore_missing(self.maps.own_addresses.remove(&key))?;
        }
        self.reconcile_sources()?;
        self.remove_unknown_guards();
        self.remove_unknown_speakers();
        self.retire_other_versions()
    }

    /// Rows that could not be adopted and are not wanted either.
    fn remove_unaccounted_rows(&mut self, tables: &Tables) -> Result<(), DatapathError> {
        for (pair, _) in self.read_rows()? {
            if !self.rows.stored.contains_key(&pair) && !tables.rows.contains_key(&pair) {
                ignore_missing(self.maps.rows.remove(&row_key(pair)))?;
            }
        }
        Ok(())
    }
}
