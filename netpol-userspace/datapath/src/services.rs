//! Services in the maps: where each one's backends stand in the arena. Must never leave a Service in
//! the map whose backends are not those that it was given last.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use aya::maps::MapData;
use netpol_common::layout::{self, names};
use netpol_compile::{Backend, ClassId, EndpointId, ServiceKey};
use netpol_model::Protocol;

use super::arena::{Arena, Placed, Region};
use super::error::{DatapathError, bpf_error, full_or, ignore_missing};
use super::keys::{address_of, ip_of};
use super::limits::{Limits, N_EXAMPLES, Overflow};
use super::mapped::Mapped;
use super::pinned::{ServiceKeyBytes, map_for_writing, open};
use super::pins::Pins;

/// The Services. Owns their map, the arena of their backends and the account of both. Must never
/// free backends while a packet may still look at a Service that led to them.
pub(crate) struct ServiceTable {
    map: aya::maps::HashMap<MapData, ServiceKeyBytes, u64>,
    backends: Arc<Mapped>,
    arena: Arena<[Backend]>,
    /// The most Services.
    limit: u32,
    /// Services in the map, with the backends whose region they use.
    stored: HashMap<ServiceKey, Arc<[Backend]>>,
    /// Services that did not fit into the map.
    unplaced: BTreeMap<ServiceKey, Arc<[Backend]>>,
    /// Services that are not to have a place, since their namespaces want more than their share.
    beyond: BTreeSet<ServiceKey>,
    /// Backends of Services that were changed or cleared since the last grace period.
    old_backends: Vec<Arc<[Backend]>>,
}

impl ServiceTable {
    /// Opens the maps, reads the Services that are there and accounts for their backends. What
    /// cannot be read is left out, to be written or removed by reconciling.
    pub(crate) fn open(pins: &Pins, limits: &Limits) -> Result<Self, DatapathError> {
        let mut table = Self {
            map: open(pins, names::SERVICES)?,
            backends: map_for_writing(pins, names::BACKENDS)?,
            arena: Arena::new(layout::MAX_BACKENDS),
            limit: limits.services,
            stored: HashMap::new(),
            unplaced: BTreeMap::new(),
            beyond: BTreeSet::new(),
            old_backends: Vec::new(),
        };
        for (key, value) in table.read()? {
            let region = region_of(value);
            let backends: Arc<[Backend]> = (region.offset..region.offset + region.length)
                .filter(|&index| (index as usize) < table.backends.len())
                .map(|index| table.backends.load(index as usize, 0))
                .map(backend_of)
                .collect();
            if table.arena.adopt(&backends, region) {
                table.stored.insert(key, backends);
            }
        }
        Ok(table)
    }

    /// The map of backends.
    pub(crate) fn backends(&self) -> &Arc<Mapped> {
        &self.backends
    }

    /// Writes a Service with its backends. False: there is no room, and what stood there still does.
    pub(crate) fn place(
        &mut self,
        key: &ServiceKey,
        backends: &Arc<[Backend]>,
    ) -> Result<bool, DatapathError> {
        let has_room = self.stored.len() < self.limit as usize;
        // More kinds than 16 bits count would need as many classes among one Service's backends.
        let Ok(count) = u16::try_from(backends.len()) else { return Ok(false) };
        if !has_room && !self.stored.contains_key(key) {
            return Ok(false);
        }
        let region = match self.arena.place(backends) {
            None => return Ok(false),
            Some(Placed::Known(region)) => region,
            Some(Placed::New(region)) => {
                for (index, backend) in (region.offset as usize..).zip(backends.iter()) {
                    self.backends.store(index, 0, word_of(backend));
                }
                region
            }
        };
        let map_key = layout_key(key);
        let value = layout::service_value(&map_key, region.offset, count);
        if let Err(error) = self.map.insert(key_bytes(key), value, 0) {
            self.arena.release(backends);
            return match full_or(error, "service table", self.limit) {
                DatapathError::Full { .. } => Ok(false),
                error => Err(error),
            };
        }
        if let Some(before) = self.stored.insert(*key, Arc::clone(backends)) {
            self.old_backends.push(before);
        }
        self.unplaced.remove(key);
        Ok(true)
    }

    /// A Service is without a place, until there is room for it. What stands in the map is to be
    /// taken out ([`Self::take_out`]) once the programs know that there is such a Service.
    pub(crate) fn leave_out(&mut self, key: &ServiceKey, backends: &Arc<[Backend]>) {
        self.unplaced.insert(*key, Arc::clone(backends));
    }

    /// Takes a Service out of the map. Its backends are freed after a grace period.
    pub(crate) fn take_out(&mut self, key: &ServiceKey) -> Result<(), DatapathError> {
        ignore_missing(self.map.remove(&key_bytes(key)))?;
        if let Some(before) = self.stored.remove(key) {
            self.old_backends.push(before);
        }
        Ok(())
    }

    /// There is no such Service any more.
    pub(crate) fn clear(&mut self, key: &ServiceKey) -> Result<(), DatapathError> {
        self.take_out(key)?;
        self.unplaced.remove(key);
        self.beyond.remove(key);
        Ok(())
    }

    /// Tries again what did not fit.
    pub(crate) fn retry(&mut self) -> Result<(), DatapathError> {
        let mut unplaced = self.unplaced.clone();
        unplaced.retain(|key, _| !self.beyond.contains(key));
        for (key, backends) in unplaced {
            self.place(&key, &backends)?;
        }
        Ok(())
    }

    /// Whether a Service is one of those that are to go without a place.
    pub(crate) fn is_beyond(&self, key: &ServiceKey) -> bool {
        self.beyond.contains(key)
    }

    /// These are to go without a place from now on.
    pub(crate) fn set_beyond(&mut self, beyond: BTreeSet<ServiceKey>) {
        self.beyond = beyond;
    }

    /// Those that go without a place since their namespaces want more than their share.
    pub(crate) fn left_out(&self) -> impl Iterator<Item = &ServiceKey> {
        self.unplaced.keys().filter(|key| self.beyond.contains(key))
    }

    /// Those of `keys` that have a place, with their backends.
    pub(crate) fn placed(&self, keys: &BTreeSet<ServiceKey>) -> Vec<(ServiceKey, Arc<[Backend]>)> {
        let placed = keys.iter().filter_map(|key| Some((*key, self.stored.get(key)?.clone())));
        placed.collect()
    }

    /// Whether there are any, with a place or without.
    pub(crate) fn has_any(&self) -> bool {
        !self.stored.is_empty() || !self.unplaced.is_empty()
    }

    /// Whether some are without a place.
    pub(crate) fn is_incomplete(&self) -> bool {
        !self.unplaced.is_empty()
    }

    /// Whether this very Service is in the map.
    pub(crate) fn holds(&self, key: &ServiceKey, backends: &Arc<[Backend]>) -> bool {
        self.stored.get(key) == Some(backends)
    }

    /// Whether [`Self::release_garbage`] or [`Self::reclaim`] has anything to do.
    pub(crate) fn has_garbage(&self) -> bool {
        !self.old_backends.is_empty() || self.arena.has_released()
    }

    /// Gives back the backends that no Service in the map leads to any more. A packet may have read
    /// one just before it went, so they are freed after one more grace period.
    pub(crate) fn release_garbage(&mut self) {
        for backends in std::mem::take(&mut self.old_backends) {
            self.arena.release(&backends);
        }
    }

    /// Frees them: no packet looks at them any more.
    pub(crate) fn reclaim(&mut self) {
        self.arena.reclaim();
    }

    /// The keys and values in the map.
    pub(crate) fn read(&self) -> Result<HashMap<ServiceKey, u64>, DatapathError> {
        let mut all = HashMap::new();
        for entry in &self.map {
            let (key, value) = entry.map_err(bpf_error("read the service table"))?;
            all.extend(service_key(&key).map(|key| (key, value)));
        }
        Ok(all)
    }

    /// `(used, limit)` of Services and backends.
    pub(crate) fn sizes(&self) -> [(usize, usize); 2] {
        [
            (self.stored.len(), self.limit as usize),
            (self.arena.used() as usize, self.arena.capacity() as usize),
        ]
    }

    /// What has no room.
    pub(crate) fn overflow(&self) -> Option<Overflow> {
        let name = |key: &ServiceKey| format!("{} {} port {}", key.protocol, key.address, key.port);
        // What is beyond a share is its namespace's matter, not the node's.
        let unplaced = || self.unplaced.keys().filter(|key| !self.beyond.contains(key));
        let n_left_out = unplaced().count() as u64;
        (n_left_out > 0).then(|| Overflow {
            is_error: true,
            n_left_out,
            examples: unplaced().take(N_EXAMPLES).map(name).collect(),
            endpoints: Vec::new(),
            consequence: "what isolated pods send there passes only if their policies allow both \
                          the Service's address and, after translation, the backend",
            remedy: "let pods be isolated for egress on fewer nodes, or have fewer Services",
        })
    }
}

fn word_of(backend: &Backend) -> layout::Backend {
    match *backend {
        Backend::Kind { class, port, is_on_node } => layout::backend(class.0, port, is_on_node),
        Backend::Endpoint(id) => layout::backend_endpoint(id.0),
        Backend::Elsewhere => layout::BACKEND_ELSEWHERE | 1,
    }
}

/// The kind of backend that a word in the map says.
#[expect(clippy::cast_possible_truncation, reason = "an endpoint's number has 16 bits")]
pub(crate) fn backend_of(word: layout::Backend) -> Backend {
    let class = layout::backend_class(word);
    if word & layout::BACKEND_ENDPOINT != 0 {
        return Backend::Endpoint(EndpointId(class as u16));
    }
    if word & layout::BACKEND_ELSEWHERE != 0 {
        return Backend::Elsewhere;
    }
    Backend::Kind {
        class: ClassId(class),
        port: layout::backend_port(word),
        is_on_node: word & layout::BACKEND_ON_NODE != 0,
    }
}

/// Where a Service's backends are, by its value in the map.
#[expect(clippy::cast_possible_truncation, reason = "parts of a word")]
pub(crate) fn region_of(value: u64) -> Region {
    Region { offset: (value >> 32) as u32, length: u32::from((value >> 16) as u16) }
}

/// The Service that a key in the map is of, unless its protocol is none that netpol knows.
pub(crate) fn service_key(bytes: &ServiceKeyBytes) -> Option<ServiceKey> {
    let key: layout::ServiceKey = zerocopy::transmute!(*bytes);
    let protocol = Protocol::from_number(key.protocol)?;
    Some(ServiceKey { address: ip_of(&key.address), protocol, port: key.port })
}

fn key_bytes(key: &ServiceKey) -> ServiceKeyBytes {
    zerocopy::transmute!(layout_key(key))
}

/// A key as it stands in the map.
pub(crate) fn layout_key(key: &ServiceKey) -> layout::ServiceKey {
    layout::ServiceKey {
        address: address_of(key.address),
        port: key.port,
        protocol: key.protocol.number(),
        reserved: 0,
    }
}
