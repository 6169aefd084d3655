//! Ends enforcement: takes the programs off every interface and removes all pins. The one place
//! that lets packets pass that policies forbid; it runs only when a person asks for it.

use std::collections::BTreeSet;

use aya::maps::{Array, MapData};
use aya::programs::{ProgramInfo, TcAttachType};
use netpol_common::layout::{self, names};

use super::attach::{AttachMode, Attacher};
use super::endpoint_map::{IDENTITY, parts_of};
use super::error::{DatapathError, io_error};
use super::filters::filter_programs;
use super::load::ATTACHED;
use super::pinned::open;
use super::pins::Pins;

/// What was removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    /// Interfaces that had programs.
    pub interfaces: BTreeSet<u32>,
    /// Isolated interfaces, by the maps, that have no program of netpol in this network namespace.
    pub without: BTreeSet<u32>,
    /// Pinned links, programs and maps.
    pub pins: usize,
}

/// Removes everything below `pins`, and the clsact filters on interfaces that the maps or
/// `ifindexes` name. Refuses while an agent holds the directory, and where none of the interfaces
/// that should have programs has any, unless `is_forced`.
///
/// Interface numbers mean something only in the agent's network namespace; a filter is taken off
/// only if its program is one that is pinned here, so that the wrong namespace does no harm.
pub fn cleanup(
    pins: &Pins,
    ifindexes: impl IntoIterator<Item = u32>,
    is_forced: bool,
) -> Result<Summary, DatapathError> {
    let root = pins.links().with_file_name("");
    let _lock = if root.exists() && !is_forced { Some(pins.lock()?) } else { None };
    let attacher = Attacher::new(AttachMode::Tcx, pins);
    let mut interfaces = attacher.linked();
    let isolated = known(pins);
    let candidates =
        ifindexes.into_iter().chain(isolated.iter().copied()).chain(all_here()).collect();
    let filtered = with_filters(pins, candidates)?;
    // Once the pins are gone, nothing would tell any more which filters are netpol's.
    if interfaces.is_empty() && filtered.is_empty() && !isolated.is_empty() && !is_forced {
        return Err(DatapathError::Elsewhere { interfaces: isolated.into_iter().collect() });
    }
    for &ifindex in &interfaces {
        attacher.detach_links(ifindex);
    }
    let guarded = attacher.guarded();
    for &ifindex in &guarded {
        attacher.detach_guard(ifindex);
    }
    interfaces.extend(guarded);
    let exits = attacher.transits();
    attacher.detach_all_transit([]);
    interfaces.extend(exits);
    for &ifindex in &filtered {
        let attacher = Attacher::new(AttachMode::Clsact, pins);
        attacher.detach(ifindex);
        attacher.detach_transit(ifindex);
        attacher.detach_guard(ifindex);
    }
    interfaces.extend(filtered);
    let without = isolated.difference(&interfaces).copied().collect();
    Ok(Summary { interfaces, without, pins: pins.remove_all()? })
}

/// Interfaces in the endpoints map, if it is there and of this layout.
fn known(pins: &Pins) -> BTreeSet<u32> {
    type Value = [u64; size_of::<layout::Endpoint>() / 8];
    let Ok(endpoints) = open::<Array<MapData, Value>>(pins, names::ENDPOINTS) else {
        return BTreeSet::new();
    };
    endpoints
        .iter()
        .flatten()
        .map(|value| value[IDENTITY])
        .filter(|&identity| identity != 0)
        .map(|identity| parts_of(identity).0)
        .collect()
}

/// Every interface of this network namespace: transit programs may be on any.
fn all_here() -> Vec<u32> {
    // SAFETY: the list ends with an index of zero, and is freed once.
    unsafe {
        let list = libc::if_nameindex();
        if list.is_null() {
            return Vec::new();
        }
        let mut here = Vec::new();
        let mut next = list;
        while (*next).if_index != 0 {
            here.push((*next).if_index);
            next = next.add(1);
        }
        libc::if_freenameindex(list);
        here
    }
}

/// Those of `candidates` that have a filter with one of the programs pinned here.
fn with_filters(pins: &Pins, candidates: BTreeSet<u32>) -> Result<BTreeSet<u32>, DatapathError> {
    let ours: Vec<u32> = ATTACHED
        .iter()
        .filter_map(|name| ProgramInfo::from_pin(pins.program(name)).ok())
        .map(|info| info.id())
        .collect();
    let mut found = BTreeSet::new();
    for ifindex in candidates {
        for hook in [TcAttachType::Ingress, TcAttachType::Egress] {
            let programs = filter_programs(ifindex, hook)
                .map_err(io_error(format!("list filters of interface {ifindex}")))?;
            if programs.iter().any(|id| ours.contains(id)) {
                found.insert(ifindex);
            }
        }
    }
    Ok(found)
}
