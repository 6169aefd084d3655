//! What the programs would say of a Service, read from the pinned maps by the programs' own code
//! (`netpol_common::service`), for listings: a packet each would take too long. Must never write.

use std::net::IpAddr;

use netpol_common::layout::{self, ExactClass, Interval, Row, ServiceValue};
use netpol_common::ports::Intervals;
use netpol_common::service::{self, ToService};
use netpol_common::verdict::{self, Policies};

use super::arena::Region;
use super::error::{DatapathError, bpf_error};
use super::keys::address_of;
use super::maps::Maps;
use super::pinned::{AddressBytes, RowKeyBytes, ServiceKeyBytes};
use super::services::{backend_of, layout_key, region_of, service_key};
use netpol_compile::{Backend, ServiceKey};
use netpol_model::Protocol;

impl Intervals for Maps {
    fn interval(&self, index: u32) -> Option<Interval> {
        let index = index as usize;
        (index < self.intervals.len()).then(|| self.intervals.load(index, 0))
    }
}

/// A failing read is an absent entry, as for the programs.
impl Policies for Maps {
    fn exact_class(&self, key: &layout::BlockKey) -> Option<ExactClass> {
        let key: AddressBytes = zerocopy::transmute!(key.address);
        self.addresses.get(&key, 0).ok()
    }

    fn block_class(&self, key: &layout::BlockKey) -> Option<u32> {
        let data: AddressBytes = zerocopy::transmute!(key.address);
        self.blocks.get(&aya::maps::lpm_trie::Key::new(key.bits, data), 0).ok()
    }

    fn row(&self, set: u16, class: u32) -> Option<Row> {
        let key = layout::RowKey { set: u32::from(set), class };
        let key: RowKeyBytes = zerocopy::transmute!(key);
        self.rows.get(&key, 0).ok().map(|bytes| zerocopy::transmute!(bytes))
    }

    fn service(&self, key: &layout::ServiceKey) -> Option<ServiceValue> {
        let key: ServiceKeyBytes = zerocopy::transmute!(*key);
        self.services.get(&key, 0).ok()
    }

    fn backend(&self, index: u32) -> Option<layout::Backend> {
        let index = index as usize;
        (index < self.backends.len()).then(|| self.backends.load(index, 0))
    }
}

/// The Services that the programs know, with the kinds of their backends, sorted.
pub fn services(maps: &Maps) -> Result<Vec<(ServiceKey, Vec<Backend>)>, DatapathError> {
    let mut list = Vec::new();
    for entry in &maps.services {
        let (key, value) = entry.map_err(bpf_error("read the service table"))?;
        let Some(key) = service_key(&key) else { continue };
        let Region { offset, length } = region_of(value);
        let words = (offset..offset + length).filter_map(|index| maps.backend(index));
        list.push((key, words.map(backend_of).collect()));
    }
    list.sort_by_key(|(key, _)| *key);
    Ok(list)
}

/// Whether a policy set allows this to an address.
pub fn allows(maps: &Maps, set: u16, address: IpAddr, protocol: Protocol, port: u16) -> bool {
    let class = verdict::class_of(maps, &address_of(address));
    verdict::row_allows(maps, set, class, protocol.number(), port)
}

/// What an endpoint's policy set says of packets to a Service.
pub fn to_service(maps: &Maps, set: u16, endpoint: u16, key: &ServiceKey) -> ToService {
    service::judge_service(maps, set, endpoint, &layout_key(key))
}
