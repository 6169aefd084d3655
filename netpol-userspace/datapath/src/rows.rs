//! Verdict rows and the port sets that they refer to. A row that does not fit is missing, and the
//! set's row for everybody decides, which allows no more; should that one be missing, nothing is
//! allowed. Must never leave an old row under a pair that has a new one.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use netpol_common::layout;

use super::arena::{Placed, Region};
use super::error::{DatapathError, full_or, ignore_missing, no_room};
use super::maps::{RowBytes, RowKeyBytes};
use super::writer::Datapath;
use netpol_compile::{ClassId, PortSet, Row, SetId};

/// What a row is for.
pub(super) type Pair = (SetId, ClassId);

/// The rows that are there and those that are not.
#[derive(Debug, Default)]
pub(super) struct Rows {
    /// Rows in the map, with the port set whose region they use.
    pub stored: HashMap<Pair, Option<Arc<PortSet>>>,
    /// Rows to remove once no packet looks at them any more.
    pub garbage: HashSet<Pair>,
    /// Rows that did not fit.
    pub missing: BTreeMap<Pair, Row>,
    /// Whether something was freed since the missing ones were last tried.
    pub has_new_room: bool,
}

impl Datapath {
    /// Adds a row. One that does not fit is noted; an error has nothing to do with room.
    pub(super) fn add_row(
        &mut self,
        set: SetId,
        class: ClassId,
        row: &Row,
    ) -> Result<(), DatapathError> {
        let pair = (set, class);
        // An agent that ended half-way may have left one under equal content's numbers.
        self.rows.garbage.remove(&pair);
        let mut written = self.write_row(pair, row);
        // Reclaiming waits for packets in flight: worth it only when room runs out.
        if matches!(written, Err(DatapathError::Full { .. })) && self.has_garbage() {
            self.collect_garbage()?;
            written = self.write_row(pair, row);
        }
        let Err(error) = written else {
            self.rows.missing.remove(&pair);
            return Ok(());
        };
        // What stood there, if anything, is of another time.
        self.take_row_out(pair)?;
        self.rows.missing.insert(pair, row.clone());
        match error {
            DatapathError::Full { .. } => Ok(()),
            other => Err(other),
        }
    }

    fn write_row(&mut self, pair: Pair, row: &Row) -> Result<(), DatapathError> {
        let is_there = self.rows.stored.contains_key(&pair);
        if !is_there && self.rows.stored.len() >= self.limits.rows as usize {
            return Err(no_room("verdict table", self.limits.rows));
        }
        let (value, ports) = match row {
            Row::All => (layout::Row { kind: layout::ROW_ALL, ..layout::Row::default() }, None),
            Row::Ports(ports) => (self.place(ports)?, Some(Arc::clone(ports))),
        };
        let inserted = self.maps.rows.insert(row_key(pair), row_bytes(&value), 0);
        if let Err(error) = inserted {
            if let Some(ports) = &ports {
                self.arena.release(ports);
            }
            return Err(full_or(error, "verdict table", self.limits.rows));
        }
        if let Some(Some(before)) = self.rows.stored.insert(pair, ports) {
            self.arena.release(&before);
        }
        Ok(())
    }

    fn place(&mut self, ports: &Arc<PortSet>) -> Result<layout::Row, DatapathError> {
        let placed = self
            .arena
            .place(ports)
            .ok_or_else(|| no_room("port interval table", self.arena.capacity()))?;
        let region = match placed {
            Placed::Known(region) => region,
            Placed::New(region) => {
                let all = ports.intervals.iter().flatten();
                for (index, &(first, last)) in (region.offset as usize..).zip(all) {
                    let word = layout::interval(first, last, layout::INTERVAL_ALLOW);
                    self.maps.intervals.store(index, 0, word);
                }
                region
            }
        };
        Ok(ports_row(ports, region))
    }

    /// Notes that a row is of no use any more.
    pub(super) fn drop_row(&mut self, pair: Pair) {
        self.rows.missing.remove(&pair);
        if self.rows.stored.contains_key(&pair) {
            self.rows.garbage.insert(pair);
        }
    }

    /// Takes a row out of the map at once. Its port set is freed after a grace period.
    pub(super) fn take_row_out(&mut self, pair: Pair) -> Result<(), DatapathError> {
        ignore_missing(self.maps.rows.remove(&row_key(pair)))?;
        if let Some(Some(ports)) = self.rows.stored.remove(&pair) {
            self.arena.release(&ports);
        }
        Ok(())
    }

    /// Tries the rows again that did not fit, if something was freed since. Adding one only ever
    /// allows more, so no flow needs to be judged again.
    pub(super) fn retry_rows(&mut self) -> Result<(), DatapathError> {
        if !std::mem::take(&mut self.rows.has_new_room) {
            return Ok(());
        }
        let missing: Vec<_> =
            self.rows.missing.iter().map(|(&pair, row)| (pair, row.clone())).collect();
        for (pair, row) in missing {
            match self.write_row(pair, &row) {
                Ok(()) => {
                    self.rows.missing.remove(&pair);
                }
                // A smaller one may still fit.
                Err(DatapathError::Full { .. }) => {}
                Err(error) => {
                    self.rows.has_new_room = true;
                    return Err(error);
                }
            }
        }
        Ok(())
    }
}

/// The map value of a port-set row.
fn ports_row(ports: &PortSet, region: Region) -> layout::Row {
    layout::Row {
        kind: layout::ROW_PORTS,
        // A port set has at most 32,768 intervals per protocol: disjoint and not adjacent.
        counts: std::array::from_fn(|i| ports.intervals[i].len() as u16),
        offset: region.offset,
        reserved: 0,
    }
}

pub(super) fn row_key((set, class): Pair) -> RowKeyBytes {
    zerocopy::transmute!(layout::RowKey { set: u32::from(set.0), class: class.0 })
}

fn row_bytes(row: &layout::Row) -> RowBytes {
    zerocopy::transmute!(*row)
}
