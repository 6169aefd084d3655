//! Services in the maps: where each one's backends stand in the arena.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use netpol_common::layout;

use super::arena::{Placed, Region};
use super::error::{DatapathError, bpf_error, full_or, ignore_missing};
use super::keys::{address_of, ip_of};
use super::maps::ServiceKeyBytes;
use super::writer::Datapath;
use netpol_compile::{Backend, ClassId, EndpointId, ServiceKey};
use netpol_model::Protocol;

impl Datapath {
    /// Packets to this Service are judged by these backends from now on. If they do not fit, the
    /// programs are told that there are Services which they do not know; that is no failure, see
    /// [`Self::tables`].
    pub(super) fn set_service(
        &mut self,
        key: &ServiceKey,
        backends: &Arc<[Backend]>,
    ) -> Result<(), DatapathError> {
        if self.beyond.contains(key) {
            return self.leave_out_service(key, backends);
        }
        if !self.place_service(key, backends)? {
            // Reclaiming waits for packets in flight: worth it only when room runs out.
            self.collect_garbage()?;
            if !self.place_service(key, backends)? {
                // What stands there is not true any more.
                return self.leave_out_service(key, backends);
            }
        }
        self.unplaced.remove(key);
        self.tell_incomplete();
        Ok(())
    }

    /// The programs know that there are Services which they do not know before this is one of them.
    fn leave_out_service(
        &mut self,
        key: &ServiceKey,
        backends: &Arc<[Backend]>,
    ) -> Result<(), DatapathError> {
        self.unplaced.insert(*key, Arc::clone(backends));
        self.tell_incomplete();
        self.remove_service(key)
    }

    /// These Services go without a place from now on, and no others if they fit.
    pub fn leave_out_services(
        &mut self,
        beyond: BTreeSet<ServiceKey>,
    ) -> Result<(), DatapathError> {
        let placed = beyond.iter().filter_map(|key| Some((*key, self.services.get(key)?.clone())));
        let placed: Vec<(ServiceKey, Arc<[Backend]>)> = placed.collect();
        for (key, backends) in &placed {
            self.leave_out_service(key, backends)?;
        }
        if !placed.is_empty() {
            self.rejudge_all();
        }
        self.beyond = beyond;
        self.collect_garbage()?;
        self.retry_services()
    }

    /// Whether there are Services without a place.
    pub fn is_short_of_services(&self) -> bool {
        !self.unplaced.is_empty()
    }

    /// Those that go without a place since their namespaces want more than their share.
    pub fn left_out_services(&self) -> impl Iterator<Item = &ServiceKey> {
        self.unplaced.keys().filter(|key| self.beyond.contains(key))
    }

    /// Tries again what did not fit.
    pub(super) fn retry_services(&mut self) -> Result<(), DatapathError> {
        let mut unplaced = self.unplaced.clone();
        unplaced.retain(|key, _| !self.beyond.contains(key));
        for (key, backends) in unplaced {
            if self.place_service(&key, &backends)? {
                self.unplaced.remove(&key);
            }
        }
        self.tell_incomplete();
        Ok(())
    }

    /// False: there is no room.
    fn place_service(
        &mut self,
        key: &ServiceKey,
        backends: &Arc<[Backend]>,
    ) -> Result<bool, DatapathError> {
        let has_room = self.services.len() < self.limits.services as usize;
        // More kinds than 16 bits count would need as many classes among one Service's backends.
        let Ok(count) = u16::try_from(backends.len()) else { return Ok(false) };
        if !has_room && !self.services.contains_key(key) {
            return Ok(false);
        }
        let region = match self.backend_arena.place(backends) {
            None => return Ok(false),
            Some(Placed::Known(region)) => region,
            Some(Placed::New(region)) => {
                for (index, backend) in (region.offset as usize..).zip(backends.iter()) {
                    self.maps.backends.store(index, 0, word_of(backend));
                }
                region
            }
        };
        let map_key = layout_key(key);
        let value = layout::service_value(&map_key, region.offset, count);
        let bytes: ServiceKeyBytes = zerocopy::transmute!(map_key);
        if let Err(error) = self.maps.services.insert(bytes, value, 0) {
            self.backend_arena.release(backends);
            return match full_or(error, "service table", self.limits.services) {
                DatapathError::Full { .. } => Ok(false),
                error => Err(error),
            };
        }
        if let Some(before) = self.services.insert(*key, Arc::clone(backends)) {
            self.old_backends.push(before);
        }
        Ok(true)
    }

    /// There is no Service there any more.
    pub(super) fn clear_service(&mut self, key: &ServiceKey) -> Result<(), DatapathError> {
        self.remove_service(key)?;
        self.unplaced.remove(key);
        self.beyond.remove(key);
        self.tell_incomplete();
        Ok(())
    }

    fn remove_service(&mut self, key: &ServiceKey) -> Result<(), DatapathError> {
        let bytes: ServiceKeyBytes = zerocopy::transmute!(layout_key(key));
        ignore_missing(self.maps.services.remove(&bytes))?;
        if let Some(before) = self.services.remove(key) {
            self.old_backends.push(before);
        }
        Ok(())
    }

    /// Reads the Services that are there and accounts for their backends. What cannot be read is
    /// left out, to be written or removed by reconciling.
    pub(super) fn adopt_services(&mut self) -> Result<(), DatapathError> {
        for (key, value) in self.read_services()? {
            let region =
                Region { offset: (value >> 32) as u32, length: u32::from((value >> 16) as u16) };
            let backends: Arc<[Backend]> = (region.offset..region.offset + region.length)
                .filter(|&index| (index as usize) < self.maps.backends.len())
                .map(|index| self.maps.backends.load(index as usize, 0))
                .map(backend_of)
                .collect();
            if self.backend_arena.adopt(&backends, region) {
                self.services.insert(key, backends);
            }
        }
        Ok(())
    }

    /// The keys and values in the map.
    pub(super) fn read_services(&self) -> Result<HashMap<ServiceKey, u64>, DatapathError> {
        let mut all = HashMap::new();
        for entry in self.maps.services.iter() {
            let (key, value) = entry.map_err(bpf_error("read the service table"))?;
            let key: layout::ServiceKey = zerocopy::transmute!(key);
            let known = Protocol::ALL.into_iter().find(|p| p.number() == key.protocol);
            if let Some(protocol) = known {
                let address = ip_of(&key.address);
                all.insert(ServiceKey { address, protocol, port: key.port }, value);
            }
        }
        Ok(all)
    }
}

fn word_of(backend: &Backend) -> layout::Backend {
    match *backend {
        Backend::Kind { class, port, is_on_node } => layout::backend(class.0, port, is_on_node),
        Backend::Endpoint(id) => layout::backend_endpoint(id.0),
        Backend::Elsewhere => layout::BACKEND_ELSEWHERE | 1,
    }
}

pub(super) fn backend_of(word: layout::Backend) -> Backend {
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

/// A key as it stands in the map.
pub(super) fn layout_key(key: &ServiceKey) -> layout::ServiceKey {
    layout::ServiceKey {
        address: address_of(key.address),
        port: key.port,
        protocol: key.protocol.number(),
        reserved: 0,
    }
}
