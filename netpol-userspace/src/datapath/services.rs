//! Services in the maps: where each one's backends stand in the arena.

use std::collections::HashMap;
use std::sync::Arc;

use netpol_common::layout;

use super::arena::{Placed, Region};
use super::error::{DatapathError, bpf_error};
use super::maps::ServiceKeyBytes;
use super::observe::ip_of;
use super::writer::{Datapath, address_of, full_or, ignore_missing};
use crate::compile::{Backend, ClassId, ServiceKey};
use crate::model::Protocol;

impl Datapath {
    /// Packets to this Service are judged by these backends from now on.
    pub(super) fn set_service(
        &mut self,
        key: &ServiceKey,
        backends: &Arc<[Backend]>,
    ) -> Result<(), DatapathError> {
        let full = |table, limit| DatapathError::Full {
            table,
            limit,
            consequence: "packets of isolated pods to this Service are judged by its address",
        };
        let placed = match self.backend_arena.place(backends) {
            Some(placed) => placed,
            // Reclaiming waits for packets in flight: worth it only when room runs out.
            None => {
                self.collect_garbage()?;
                self.backend_arena
                    .place(backends)
                    .ok_or_else(|| full("backend table", layout::MAX_BACKENDS))?
            }
        };
        let region = match placed {
            Placed::Known(region) => region,
            Placed::New(region) => {
                for (index, backend) in (region.offset as usize..).zip(backends.iter()) {
                    let word = layout::backend(backend.class.0, backend.port);
                    self.maps.backends.store(index, 0, word);
                }
                region
            }
        };
        let map_key = layout_key(key);
        // More kinds than 16 bits count would need as many classes among one Service's backends.
        let count = u16::try_from(region.length).map_err(|_too_many| {
            full("list of kinds of backends of one Service", u32::from(u16::MAX))
        })?;
        let value = layout::service_value(&map_key, region.offset, count);
        let bytes: ServiceKeyBytes = zerocopy::transmute!(map_key);
        if let Err(error) = self.maps.services.insert(bytes, value, 0) {
            self.backend_arena.release(backends);
            return Err(full_or(error, "service table", layout::MAX_SERVICES));
        }
        if let Some(before) = self.services.insert(*key, Arc::clone(backends)) {
            self.old_backends.push(before);
        }
        Ok(())
    }

    /// There is no Service there any more.
    pub(super) fn clear_service(&mut self, key: &ServiceKey) -> Result<(), DatapathError> {
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
                .map(|word| Backend {
                    class: ClassId((word >> 32) as u32),
                    port: (word >> 16) as u16,
                })
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

/// A key as it stands in the map.
pub(super) fn layout_key(key: &ServiceKey) -> layout::ServiceKey {
    layout::ServiceKey {
        address: address_of(key.address),
        port: key.port,
        protocol: key.protocol.number(),
        reserved: 0,
    }
}
