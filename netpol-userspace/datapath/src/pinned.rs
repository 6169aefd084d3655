//! The maps that are pinned, opened and checked. aya adopts whatever stands at a pin path; every map is
//! compared with what this build expects before anything is read from or written to it.

use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::Path;
use std::sync::Arc;

use aya::maps::{Map, MapData, MapInfo, MapType};
use netpol_common::flow;
use netpol_common::layout::{self, names};

use super::error::{DatapathError, bpf_error};
use super::limits::Limits;
use super::mapped::Mapped;
use super::pins::Pins;

/// Bytes of an [`layout::Address`].
pub(crate) type AddressBytes = [u8; size_of::<layout::Address>()];
/// Bytes of a [`layout::RowKey`].
pub(crate) type RowKeyBytes = [u8; size_of::<layout::RowKey>()];
/// Bytes of a [`layout::Row`].
pub(crate) type RowBytes = [u8; size_of::<layout::Row>()];
/// Bytes of a [`layout::ServiceKey`].
pub(crate) type ServiceKeyBytes = [u8; size_of::<layout::ServiceKey>()];
/// Bytes of an [`layout::OwnAddress`].
pub(crate) type OwnAddressBytes = [u8; size_of::<layout::OwnAddress>()];
/// Bytes of a [`layout::SourcePrefix`].
pub(crate) type SourcePrefixBytes = [u8; size_of::<layout::SourcePrefix>()];
/// Words of a [`layout::Counters`].
pub(crate) type CounterWords = [u64; layout::N_COUNTERS];

/// What a map must look like.
struct Expected {
    map_type: MapType,
    key_size: u32,
    value_size: u32,
    size: Size,
}

/// How many entries a map must have.
#[derive(Clone, Copy)]
enum Size {
    Exactly(u32),
    FlowTable,
    /// The agent's choice: [`Limits`].
    Any,
}

#[expect(clippy::cast_possible_truncation, reason = "keys and values are of some bytes")]
fn expected(name: &str) -> Expected {
    use Size::{Any, Exactly, FlowTable};
    use layout as l;
    let of = |map_type, key_size: usize, value_size: usize, size| Expected {
        map_type,
        key_size: key_size as u32,
        value_size: value_size as u32,
        size,
    };
    let array = |value_size, size| of(MapType::Array, 4, value_size, size);
    match name {
        names::ENDPOINTS => {
            array(size_of::<l::Endpoint>(), Exactly(l::ENDPOINT_SLOTS + l::ENDPOINT_PROBES))
        }
        names::SPEAKERS => {
            array(size_of::<l::Speaker>(), Exactly(l::ENDPOINT_SLOTS + l::ENDPOINT_PROBES))
        }
        names::FLOWS4 => array(flow::WORDS4 * flow::SLOTS * 8, FlowTable),
        names::FLOWS6 => array(flow::WORDS6 * flow::SLOTS * 8, FlowTable),
        names::FLOW_USE => array(size_of::<l::FlowUse>(), Exactly(l::MAX_ENDPOINTS)),
        names::INTERVALS => array(8, Any),
        names::CONTROL => array(size_of::<l::Control>(), Exactly(1)),
        names::ADDRESSES => of(MapType::Hash, size_of::<l::Address>(), 8, Any),
        names::BLOCKS => of(MapType::LpmTrie, size_of::<l::Address>() + 4, 4, Any),
        names::ROWS => of(MapType::Hash, size_of::<l::RowKey>(), size_of::<l::Row>(), Any),
        names::OWN_ADDRESSES => {
            of(MapType::Hash, size_of::<l::OwnAddress>(), 4, Exactly(l::MAX_OWN_ADDRESSES))
        }
        names::SOURCE_PREFIXES => of(
            MapType::LpmTrie,
            size_of::<l::SourcePrefix>() + 4,
            4,
            Exactly(l::MAX_SOURCE_PREFIXES),
        ),
        names::SOURCES => {
            of(MapType::Hash, size_of::<l::Address>(), 4, Exactly(l::MAX_OWN_ADDRESSES))
        }
        names::SERVICES => of(MapType::Hash, size_of::<l::ServiceKey>(), 8, Any),
        names::BACKENDS => array(8, Exactly(l::MAX_BACKENDS)),
        names::FRAGMENTS => of(MapType::LruHash, size_of::<l::FragmentKey>(), 8, Any),
        names::COUNTERS => {
            of(MapType::PerCpuArray, 4, size_of::<l::Counters>(), Exactly(l::MAX_ENDPOINTS * 2))
        }
        names::EVENTS => of(MapType::RingBuf, 0, 0, Exactly(l::EVENT_RING_BYTES)),
        names::EVENT_BUDGET => of(MapType::PerCpuArray, 4, size_of::<l::EventBudget>(), Exactly(1)),
        _ => unreachable!("invariant: layout::names::ALL and this table name the same maps"),
    }
}

/// Compares every pinned map with what this build expects, naming all differences of the first
/// map that has any. Maps that are not pinned are fine.
pub(crate) fn check_pinned(pins: &Pins) -> Result<(), DatapathError> {
    for name in names::ALL {
        let path = pins.map(name);
        if !path.exists() {
            continue;
        }
        let info = MapInfo::from_pin(&path)
            .map_err(bpf_error(format!("open pinned map {}", path.display())))?;
        let differences = differences(name, &info);
        if !differences.is_empty() {
            return Err(DatapathError::Layout {
                path,
                bpffs: pins.bpffs.clone(),
                differences: differences.join(", "),
            });
        }
    }
    Ok(())
}

fn differences(name: &str, info: &MapInfo) -> Vec<String> {
    let Expected { map_type, key_size, value_size, size } = expected(name);
    let mut list = Vec::new();
    let mut compare = |what: &str, is: String, should: String| {
        if is != should {
            list.push(format!("{what} is {is}, should be {should}"));
        }
    };
    let is_type = info.map_type().map_or_else(|_| "unknown".into(), |kind| format!("{kind:?}"));
    compare("type", is_type, format!("{map_type:?}"));
    compare("key size", info.key_size().to_string(), key_size.to_string());
    compare("value size", info.value_size().to_string(), value_size.to_string());
    match size {
        Size::Exactly(entries) => {
            compare("size", info.max_entries().to_string(), entries.to_string());
        }
        Size::FlowTable if layout::common_buckets(info.max_entries()).is_none() => {
            list.push(format!("size is {}, which no flow table has", info.max_entries()));
        }
        Size::FlowTable | Size::Any => {}
    }
    list
}

/// What is left of `limits` in the maps that are pinned.
pub(crate) fn limits_within(pins: &Pins, limits: Limits) -> Result<Limits, DatapathError> {
    let mut within = limits;
    for (name, _) in limits.sizes() {
        let path = pins.map(name);
        let info = MapInfo::from_pin(&path)
            .map_err(bpf_error(format!("open pinned map {}", path.display())))?;
        within = within.within(name, info.max_entries());
    }
    Ok(within)
}

/// Opens a pinned map as aya's type `T`.
pub(crate) fn open<T>(pins: &Pins, name: &str) -> Result<T, DatapathError>
where
    T: TryFrom<Map, Error = aya::maps::MapError>,
{
    let path = pins.map(name);
    let what = || format!("open pinned map {}", path.display());
    let data = MapData::from_pin(&path).map_err(bpf_error(what()))?;
    let map = Map::from_map_data(data).map_err(bpf_error(what()))?;
    T::try_from(map).map_err(bpf_error(what()))
}

/// A pinned array map in our address space, for who writes it.
pub(crate) fn map_for_writing(pins: &Pins, name: &str) -> Result<Arc<Mapped>, DatapathError> {
    // The agent enters few flows and reads none; who lists them reads all.
    let map = match name {
        names::FLOWS4 | names::FLOWS6 => Mapped::in_windows,
        _ => Mapped::new,
    };
    mapped_by(map, &pins.map(name), name, true).map(Arc::new)
}

/// A pinned array map in our address space.
pub(crate) fn mapped(pins: &Pins, name: &str, is_writable: bool) -> Result<Mapped, DatapathError> {
    mapped_at(&pins.map(name), name, is_writable)
}

/// The map of this name that is pinned at `path`.
pub(crate) fn mapped_at(
    path: &Path,
    name: &str,
    is_writable: bool,
) -> Result<Mapped, DatapathError> {
    mapped_by(Mapped::new, path, name, is_writable)
}

/// A way to map a map.
type Mapping = fn(&str, BorrowedFd<'_>, usize, usize, bool) -> Result<Mapped, DatapathError>;

fn mapped_by(
    map: Mapping,
    path: &Path,
    name: &str,
    is_writable: bool,
) -> Result<Mapped, DatapathError> {
    let what = format!("open pinned map {}", path.display());
    let info = MapInfo::from_pin(path).map_err(bpf_error(what.clone()))?;
    let fd = info.fd().map_err(bpf_error(what))?;
    map(name, fd.as_fd(), info.value_size() as usize, info.max_entries() as usize, is_writable)
}

/// Buckets for all of the flow table that is pinned under this name, if one is.
pub(crate) fn pinned_buckets(pins: &Pins, name: &str) -> Result<Option<u32>, DatapathError> {
    let path = pins.map(name);
    if !path.exists() {
        return Ok(None);
    }
    let info = MapInfo::from_pin(&path)
        .map_err(bpf_error(format!("open pinned map {}", path.display())))?;
    Ok(layout::common_buckets(info.max_entries()))
}
