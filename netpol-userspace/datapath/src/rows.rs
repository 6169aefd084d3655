//! Verdict rows and the port sets that they refer to. A row that does not fit is missing, and the
//! set's row for everybody decides. Where that allows more it is held back too, so that nothing is
//! allowed: of sets in which ClusterNetworkPolicies deny something. Must never leave an old row
//! under a pair that has a new one.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use aya::maps::MapData;
use netpol_common::layout::{self, names};
use netpol_compile::{ClassId, PortSet, Row, SetId};

use super::arena::{Arena, Content as _, Placed, Region};
use super::error::{DatapathError, bpf_error, full_or, ignore_missing, no_room};
use super::limits::Limits;
use super::mapped::Mapped;
use super::pinned::{RowBytes, RowKeyBytes, map_for_writing, open};
use super::pins::Pins;

/// What a row is for.
pub(crate) type Pair = (SetId, ClassId);

/// The verdict rows. Owns their map, the arena of port intervals and the account of both. Must never
/// free a port set while a packet may still look at a row that led to it.
pub(crate) struct RowTable {
    map: aya::maps::HashMap<MapData, RowKeyBytes, RowBytes>,
    intervals: Arc<Mapped>,
    arena: Arena<PortSet>,
    /// The most rows.
    limit: u32,
    /// Rows in the map.
    stored: HashMap<Pair, Row>,
    /// Rows to remove once no packet looks at them any more.
    garbage: HashSet<Pair>,
    /// Rows that did not fit, and those that are held back for that.
    missing: BTreeMap<Pair, Row>,
    /// Some address or block has no entry: it is judged like everybody, or like what is around it.
    is_short_of_classes: bool,
    /// Whether something was freed since the missing ones were last tried.
    has_new_room: bool,
}

impl RowTable {
    /// Opens the maps, reads the rows that are there and accounts for their port sets.
    pub(crate) fn open(pins: &Pins, limits: &Limits) -> Result<Self, DatapathError> {
        let mut table = Self {
            map: open(pins, names::ROWS)?,
            intervals: map_for_writing(pins, names::INTERVALS)?,
            arena: Arena::new(limits.intervals),
            limit: limits.rows,
            stored: HashMap::new(),
            garbage: HashSet::new(),
            missing: BTreeMap::new(),
            is_short_of_classes: false,
            has_new_room: false,
        };
        for (pair, value) in table.read()? {
            let row = match value.kind {
                layout::ROW_PORTS => Row::Ports(table.read_ports(&value)),
                layout::ROW_PORTS_AND_OTHERS => Row::PortsAndOthers(table.read_ports(&value)),
                _ => Row::All,
            };
            if let Some(ports) = placed_ports(&row) {
                let region = Region { offset: value.offset, length: ports.length() };
                if !table.arena.adopt(ports, region) {
                    // Nothing of ours looks like this; the row is rewritten or removed later.
                    tracing::warn!(set = pair.0.0, class = pair.1.0, "inconsistent verdict row");
                    continue;
                }
            }
            table.stored.insert(pair, row);
        }
        Ok(table)
    }

    /// The map of intervals.
    pub(crate) fn intervals(&self) -> &Arc<Mapped> {
        &self.intervals
    }

    /// Writes a row. An error leaves what stood there before.
    pub(crate) fn add(&mut self, pair: Pair, row: &Row) -> Result<(), DatapathError> {
        // An agent that ended half-way may have left one under equal content's numbers.
        self.garbage.remove(&pair);
        if pair.1 == ClassId::NONE && self.is_held_back(pair.0, row) {
            return self.leave_out(pair, row);
        }
        self.write(pair, row)?;
        self.missing.remove(&pair);
        if pair.1 == ClassId::CLOSED {
            self.hold_back(pair.0)?;
        }
        Ok(())
    }

    /// Leaves a row out until there is room for it.
    pub(crate) fn leave_out(&mut self, pair: Pair, row: &Row) -> Result<(), DatapathError> {
        self.missing.insert(pair, row.clone());
        if pair.1 != ClassId::NONE {
            self.hold_back(pair.0)?;
        }
        // What stood there, if anything, is of another time.
        self.take_out(pair)
    }

    /// Whether some address or block has no entry from now on.
    pub(crate) fn set_short_of_classes(&mut self, is_short: bool) -> Result<(), DatapathError> {
        if self.is_short_of_classes == is_short {
            return Ok(());
        }
        self.is_short_of_classes = is_short;
        if !is_short {
            self.has_new_room = true;
            return Ok(());
        }
        let closed = self.stored.keys().chain(self.missing.keys());
        let closed = closed.filter(|(_, class)| *class == ClassId::CLOSED);
        let sets: Vec<SetId> = closed.map(|(set, _)| *set).collect();
        sets.into_iter().try_for_each(|set| self.hold_back(set))
    }

    /// Whether what a set allows to everybody is more than what it allows to somebody who is judged
    /// by that.
    fn is_held_back(&self, set: SetId, to_everybody: &Row) -> bool {
        let closed = (set, ClassId::CLOSED);
        let may_deny = || self.stored.contains_key(&closed) || self.missing.contains_key(&closed);
        let of_set = (set, ClassId::CLOSED)..=(set, ClassId(u32::MAX));
        self.missing.range(of_set).any(|(_, row)| !row.covers(to_everybody))
            || self.is_short_of_classes && may_deny()
    }

    /// Takes out what a set allows to everybody, if that must not be.
    fn hold_back(&mut self, set: SetId) -> Result<(), DatapathError> {
        let pair = (set, ClassId::NONE);
        match self.stored.get(&pair).cloned() {
            Some(row) if self.is_held_back(set, &row) => {
                self.missing.insert(pair, row);
                self.take_out(pair)
            }
            _ => Ok(()),
        }
    }

    /// A row is of no use any more: it goes with the garbage.
    pub(crate) fn discard(&mut self, pair: Pair) {
        // What was held back for it may not have to be any more.
        self.has_new_room |= self.missing.remove(&pair).is_some();
        if self.stored.contains_key(&pair) {
            self.garbage.insert(pair);
        }
    }

    /// Tries the rows again that did not fit, if something was freed since. Adding one only ever
    /// allows more, so no flow needs to be judged again.
    pub(crate) fn retry(&mut self) -> Result<(), DatapathError> {
        if !std::mem::take(&mut self.has_new_room) {
            return Ok(());
        }
        let missing = self.missing.iter().map(|(&pair, row)| (pair, row.clone()));
        let (to_everybody, others): (Vec<_>, Vec<_>) =
            missing.partition(|((_, class), _)| *class == ClassId::NONE);
        for (pair, row) in others.into_iter().chain(to_everybody) {
            if pair.1 == ClassId::NONE && self.is_held_back(pair.0, &row) {
                continue;
            }
            match self.write(pair, &row) {
                Ok(()) => {
                    self.missing.remove(&pair);
                }
                // A smaller one may still fit.
                Err(DatapathError::Full { .. }) => {}
                Err(error) => {
                    self.has_new_room = true;
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Whether [`Self::remove_garbage`] or [`Self::reclaim`] has anything to do.
    pub(crate) fn has_garbage(&self) -> bool {
        !self.garbage.is_empty() || self.arena.has_released()
    }

    /// Takes discarded rows out, which no packet looks at any more.
    pub(crate) fn remove_garbage(&mut self) -> Result<(), DatapathError> {
        for pair in std::mem::take(&mut self.garbage) {
            self.take_out(pair)?;
        }
        Ok(())
    }

    /// Frees the port sets of rows that were taken out, which no packet looks at any more.
    pub(crate) fn reclaim(&mut self) {
        self.arena.reclaim();
        self.has_new_room = true;
    }

    /// What rows there are.
    pub(crate) fn pairs(&self) -> impl Iterator<Item = Pair> {
        self.stored.keys().copied()
    }

    /// Whether this very row is in the map.
    pub(crate) fn holds(&self, pair: Pair, row: &Row) -> bool {
        self.stored.get(&pair) == Some(row)
    }

    /// Forgets rows that did not fit and are not wanted any more.
    pub(crate) fn forget_missing(&mut self, wanted: &BTreeMap<Pair, Row>) {
        self.missing.retain(|pair, _| wanted.contains_key(pair));
    }

    /// Removes rows that could not be adopted and are not wanted either.
    pub(crate) fn remove_unknown(
        &mut self,
        wanted: &BTreeMap<Pair, Row>,
    ) -> Result<(), DatapathError> {
        for (pair, _) in self.read()? {
            if !self.stored.contains_key(&pair) && !wanted.contains_key(&pair) {
                ignore_missing(self.map.remove(&row_key(pair)))?;
            }
        }
        Ok(())
    }

    /// `(used, limit)` of rows and intervals.
    pub(crate) fn sizes(&self) -> [(usize, usize); 2] {
        [
            (self.stored.len(), self.limit as usize),
            (self.arena.used() as usize, self.arena.capacity() as usize),
        ]
    }

    /// How many rows did not fit, and whose sets they are of.
    pub(crate) fn missing(&self) -> (usize, BTreeSet<SetId>) {
        (self.missing.len(), self.missing.keys().map(|(set, _)| *set).collect())
    }

    fn write(&mut self, pair: Pair, row: &Row) -> Result<(), DatapathError> {
        let is_there = self.stored.contains_key(&pair);
        if !is_there && self.stored.len() >= self.limit as usize {
            return Err(no_room("verdict table", self.limit));
        }
        let value = match row {
            Row::All => layout::Row { kind: layout::ROW_ALL, ..layout::Row::default() },
            Row::Ports(ports) => self.place(ports)?,
            Row::PortsAndOthers(ports) => {
                layout::Row { kind: layout::ROW_PORTS_AND_OTHERS, ..self.place(ports)? }
            }
        };
        if let Err(error) = self.map.insert(row_key(pair), row_bytes(&value), 0) {
            if let Some(ports) = placed_ports(row) {
                self.arena.release(ports);
            }
            return Err(full_or(error, "verdict table", self.limit));
        }
        let before = self.stored.insert(pair, row.clone());
        if let Some(ports) = before.as_ref().and_then(placed_ports) {
            self.arena.release(ports);
        }
        Ok(())
    }

    fn place(&mut self, ports: &Arc<PortSet>) -> Result<layout::Row, DatapathError> {
        if ports.is_empty() {
            // There is always room for nothing.
            return Ok(ports_row(ports, Region { offset: 0, length: 0 }));
        }
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
                    self.intervals.store(index, 0, word);
                }
                region
            }
        };
        Ok(ports_row(ports, region))
    }

    /// Takes a row out of the map at once. Its port set is freed after a grace period.
    fn take_out(&mut self, pair: Pair) -> Result<(), DatapathError> {
        ignore_missing(self.map.remove(&row_key(pair)))?;
        if let Some(ports) = self.stored.remove(&pair).as_ref().and_then(placed_ports) {
            self.arena.release(ports);
        }
        Ok(())
    }

    #[expect(clippy::cast_possible_truncation, reason = "a set's number has 16 bits")]
    fn read(&self) -> Result<Vec<(Pair, layout::Row)>, DatapathError> {
        self.map
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
            let end = (index + usize::from(count)).min(self.intervals.len());
            let list = (index..end)
                .map(|i| self.intervals.load(i, 0))
                .map(|word| (layout::interval_first(word), layout::interval_last(word)))
                .collect();
            index = end;
            list
        });
        Arc::new(PortSet { intervals })
    }
}

/// The ports of a row, as far as they take room.
fn placed_ports(row: &Row) -> Option<&Arc<PortSet>> {
    row.ports().filter(|ports| !ports.is_empty())
}

/// The map value of a port-set row.
#[expect(
    clippy::cast_possible_truncation,
    reason = "a port set has at most 32,768 intervals per protocol: disjoint and not adjacent"
)]
fn ports_row(ports: &PortSet, region: Region) -> layout::Row {
    layout::Row {
        kind: layout::ROW_PORTS,
        counts: std::array::from_fn(|i| ports.intervals[i].len() as u16),
        offset: region.offset,
        reserved: 0,
    }
}

fn row_key((set, class): Pair) -> RowKeyBytes {
    zerocopy::transmute!(layout::RowKey { set: u32::from(set.0), class: class.0 })
}

fn row_bytes(row: &layout::Row) -> RowBytes {
    zerocopy::transmute!(*row)
}
