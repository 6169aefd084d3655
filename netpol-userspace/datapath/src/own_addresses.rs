//! Which addresses are an endpoint's own: packets from others are forged. Each endpoint has a share
//! of the table, so that none can use up another one's by giving itself addresses.

use std::collections::HashSet;
use std::net::IpAddr;

use netpol_common::layout;

use super::error::{DatapathError, full_or, ignore_missing};
use super::keys::address_of;
use super::speakers;
use super::writer::{Datapath, OWN4};
use netpol_compile::EndpointId;

impl Datapath {
    /// Whether an endpoint with this id may have an entry.
    pub(super) fn has_entry(&self, id: EndpointId) -> bool {
        (1..=self.limits.endpoints).contains(&u32::from(id.0))
    }

    /// The first of `addresses` become the endpoint's own, as many as it may have.
    pub(super) fn set_addresses(
        &mut self,
        id: EndpointId,
        addresses: impl IntoIterator<Item = IpAddr>,
    ) -> Result<(), DatapathError> {
        let limit = if self.has_entry(id) { self.limits.endpoint_addresses as usize } else { 0 };
        let Some(endpoint) = self.endpoints.get_mut(&id) else { return Ok(()) };
        let mut wanted = HashSet::new();
        endpoint.other_addresses.clear();
        for address in addresses {
            if wanted.len() < limit || wanted.contains(&address) {
                wanted.insert(address);
            } else {
                endpoint.other_addresses.push(address);
            }
        }
        // Out before in: the table has room for what every endpoint may have and no more. What
        // goes leaves the endpoint's entry first.
        if let Some(slot) = endpoint.slot {
            let kept = own4(endpoint.addresses.intersection(&wanted));
            self.maps.endpoints.store(slot, OWN4, kept);
        }
        let kept = endpoint.addresses.intersection(&wanted).copied();
        speakers::note_addresses(&self.maps.speakers, endpoint, kept);
        endpoint.was_declared |= !wanted.is_empty();
        let mut result = Ok(());
        let (mut lost, mut gained) = (Vec::new(), Vec::new());
        for address in endpoint.addresses.difference(&wanted) {
            match ignore_missing(self.maps.own_addresses.remove(&own_address(id, *address))) {
                Ok(()) => lost.push(*address),
                Err(error) => result = Err(error),
            }
        }
        endpoint.addresses.retain(|address| !lost.contains(address));
        for address in wanted {
            if endpoint.addresses.contains(&address) {
                continue;
            }
            match self.maps.own_addresses.insert(own_address(id, address), 1, 0) {
                Ok(()) => {
                    endpoint.addresses.insert(address);
                    gained.push(address);
                }
                Err(error) => {
                    endpoint.other_addresses.push(address);
                    let limit = layout::MAX_OWN_ADDRESSES;
                    result = Err(full_or(error, "own-address table", limit));
                }
            }
        }
        let all = endpoint.addresses.iter().copied();
        speakers::note_addresses(&self.maps.speakers, endpoint, all);
        let (ifindex, slot) = (endpoint.ifindex, endpoint.slot);
        if let Some(slot) = slot {
            self.maps.endpoints.store(slot, OWN4, own4(&endpoint.addresses));
            self.sources.remove(&lost, ifindex);
            self.sources.add(&gained, ifindex);
            if !lost.is_empty() {
                // The flows from there are somebody else's by now, or nobody's.
                self.rejudge(&[id]);
            }
        }
        result
    }

    /// Tries the addresses again that could not be written.
    pub(super) fn retry_addresses(&mut self) -> Result<(), DatapathError> {
        let limit = self.limits.endpoint_addresses as usize;
        let short = self.endpoints.iter().filter(|(id, endpoint)| {
            self.has_entry(**id)
                && !endpoint.other_addresses.is_empty()
                && endpoint.addresses.len() < limit
        });
        let short: Vec<_> = short
            .map(|(&id, endpoint)| {
                let known = endpoint.addresses.iter().chain(&endpoint.other_addresses);
                (id, known.copied().collect::<Vec<_>>())
            })
            .collect();
        for (id, addresses) in short {
            self.set_addresses(id, addresses)?;
        }
        Ok(())
    }

    pub(super) fn own_addresses(&self, id: EndpointId) -> HashSet<IpAddr> {
        super::observe::own_addresses(&self.maps)
            .filter(|&(endpoint, _)| endpoint == id.0)
            .map(|(_, address)| address)
            .collect()
    }
}

/// The one of these addresses that stands in the endpoint's entry, see [`layout::Endpoint::own4`].
pub(super) fn own4<'a>(addresses: impl IntoIterator<Item = &'a IpAddr>) -> u64 {
    let first = addresses.into_iter().filter(|address| address.is_ipv4()).min();
    first.map_or(0, |address| layout::own4(&address_of(*address)).into())
}

fn own_address(id: EndpointId, address: IpAddr) -> [u8; 24] {
    let own = layout::OwnAddress { endpoint: u32::from(id.0), address: address_of(address) };
    zerocopy::transmute!(own)
}
