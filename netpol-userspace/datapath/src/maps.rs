//! The maps as observers read them. Must never write but for the leases that turn events on.

use std::sync::Arc;

use aya::maps::{HashMap, LpmTrie, MapData};
use netpol_common::layout::names;

use super::control::ControlEntry;
use super::counters::CounterTable;
use super::error::DatapathError;
use super::flow_tables::{FlowTable, FlowTables, FlowUse};
use super::mapped::Mapped;
use super::own_addresses::OwnAddressMap;
use super::pinned::{
    AddressBytes, RowBytes, RowKeyBytes, ServiceKeyBytes, check_pinned, map_for_writing, mapped,
    open,
};
use super::pins::Pins;

/// The maps as observers read them. The agent's own are in the tables of [`super::Datapath`].
pub struct Maps {
    /// [`netpol_common::layout::Endpoint`]s.
    pub endpoints: Arc<Mapped>,
    /// Flow buckets and [`netpol_common::layout::FlowUse`]s.
    pub(crate) flow_tables: FlowTables,
    /// The interval arena.
    pub(crate) intervals: Arc<Mapped>,
    /// [`netpol_common::layout::Control`].
    pub(crate) control: ControlEntry,
    /// Exact classes.
    pub addresses: HashMap<MapData, AddressBytes, u64>,
    /// Classes of blocks.
    pub blocks: LpmTrie<MapData, AddressBytes, u32>,
    /// Verdict rows.
    pub(crate) rows: HashMap<MapData, RowKeyBytes, RowBytes>,
    /// [`netpol_common::layout::Speaker`]s.
    pub(crate) speakers: Arc<Mapped>,
    /// The arena of kinds of backends.
    pub(crate) backends: Arc<Mapped>,
    /// Services.
    pub(crate) services: HashMap<MapData, ServiceKeyBytes, u64>,
    /// Addresses of local endpoints.
    pub(crate) own_addresses: OwnAddressMap,
    /// Counters.
    pub(crate) counters: CounterTable,
}

/// Maps that are in this process's memory, by name.
pub(crate) struct SharedMaps<'a>(pub(crate) Vec<(&'static str, &'a Arc<Mapped>)>);

impl Maps {
    /// Opens the pinned maps; read-only mappings suffice for observers.
    pub fn open(pins: &Pins, is_writer: bool) -> Result<Self, DatapathError> {
        if !pins.exist() {
            return Err(DatapathError::NotRunning { bpffs: pins.bpffs.clone() });
        }
        check_pinned(pins)?;
        // Observers write the leases that turn events on.
        let is_writable = |name: &str| name == names::CONTROL;
        Self::around(pins, |name| match is_writer {
            true => map_for_writing(pins, name),
            false => mapped(pins, name, is_writable(name)).map(Arc::new),
        })
    }

    /// The same maps once more, for another task of this process: their memory is mapped once,
    /// since all that is mapped counts as resident.
    pub(crate) fn open_shared(pins: &Pins, shared: &SharedMaps<'_>) -> Result<Self, DatapathError> {
        Self::around(pins, |name| match shared.0.iter().find(|(of, _)| *of == name) {
            Some((_, map)) => Ok(Arc::clone(map)),
            None => mapped(pins, name, false).map(Arc::new),
        })
    }

    /// The IPv4 flow table.
    pub fn table4(&self) -> FlowTable<'_> {
        self.flow_tables.table4()
    }

    /// The IPv6 flow table.
    pub fn table6(&self) -> FlowTable<'_> {
        self.flow_tables.table6()
    }

    /// What the endpoint with this id has of the flow tables.
    pub fn flow_use(&self, id: u16) -> FlowUse {
        self.flow_tables.use_of(id)
    }

    /// The buckets of the IPv4 and of the IPv6 flow table, for who empties them.
    pub fn flow_buckets(&self) -> [&Mapped; 2] {
        let [flows4, flows6, _] = self.flow_tables.maps();
        [flows4, flows6]
    }

    fn around(
        pins: &Pins,
        mapped: impl Fn(&'static str) -> Result<Arc<Mapped>, DatapathError>,
    ) -> Result<Self, DatapathError> {
        let control = ControlEntry::new(mapped(names::CONTROL)?);
        Ok(Self {
            endpoints: mapped(names::ENDPOINTS)?,
            flow_tables: FlowTables::new(
                mapped(names::FLOWS4)?,
                mapped(names::FLOWS6)?,
                mapped(names::FLOW_USE)?,
                control.clone(),
            ),
            intervals: mapped(names::INTERVALS)?,
            control,
            addresses: open(pins, names::ADDRESSES)?,
            blocks: open(pins, names::BLOCKS)?,
            rows: open(pins, names::ROWS)?,
            backends: mapped(names::BACKENDS)?,
            speakers: mapped(names::SPEAKERS)?,
            services: open(pins, names::SERVICES)?,
            own_addresses: OwnAddressMap::open(pins)?,
            counters: CounterTable::open(pins)?,
        })
    }
}
