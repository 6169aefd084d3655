//! The programs' counters, of each endpoint and direction. Must never set one to anything but zero.

use aya::maps::{MapData, PerCpuArray, PerCpuValues};
use netpol_common::layout::{self, N_COUNTERS, names};
use netpol_compile::EndpointId;
use netpol_model::Direction;

use super::error::{DatapathError, bpf_error, io_error};
use super::pinned::{CounterWords, open};
use super::pins::Pins;

/// The counters. Owns their map.
pub(crate) struct CounterTable(PerCpuArray<MapData, CounterWords>);

impl CounterTable {
    /// Opens the map.
    pub(crate) fn open(pins: &Pins) -> Result<Self, DatapathError> {
        open(pins, names::COUNTERS).map(Self)
    }

    /// An endpoint's counters of one direction, summed over processors.
    pub(crate) fn sum(
        &self,
        endpoint: u16,
        direction: Direction,
    ) -> Result<CounterWords, DatapathError> {
        let index = layout::counter_index(u32::from(endpoint), in_map(direction));
        let values = self.0.get(&index, 0).map_err(bpf_error("read the counters"))?;
        let mut sum = [0; N_COUNTERS];
        for cpu in values.iter() {
            for (total, value) in sum.iter_mut().zip(cpu) {
                *total += value;
            }
        }
        Ok(sum)
    }

    /// A new owner of the id has counted nothing yet.
    pub(crate) fn clear(&mut self, id: EndpointId) -> Result<(), DatapathError> {
        let cpus = aya::util::nr_cpus().map_err(|(what, error)| io_error(what)(error))?;
        for direction in Direction::BOTH {
            let zero: CounterWords = [0; N_COUNTERS];
            let values = PerCpuValues::try_from(vec![zero; cpus])
                .map_err(io_error("make per-CPU values"))?;
            let index = layout::counter_index(u32::from(id.0), in_map(direction));
            self.0
                .set(index, values, 0)
                .map_err(bpf_error(format!("clear counters in map {}", names::COUNTERS)))?;
        }
        Ok(())
    }
}

fn in_map(direction: Direction) -> layout::Direction {
    match direction {
        Direction::Ingress => layout::Direction::Ingress,
        Direction::Egress => layout::Direction::Egress,
    }
}
