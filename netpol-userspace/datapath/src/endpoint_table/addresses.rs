//! Which addresses are an endpoint's own and who speaks on its interface, in all maps that say so. Each
//! endpoint has a share of the table of own addresses, so that none can use up another one's by
//! giving itself addresses. Must never let an entry name an address that the table has lost.

use std::collections::HashSet;
use std::net::IpAddr;

use netpol_compile::EndpointId;

use super::{EndpointTable, LocalEndpoint};
use crate::error::DatapathError;
use crate::own_addresses::own4;

impl EndpointTable {
    /// The first of `addresses` become the endpoint's own, as many as it may have. Returns whether
    /// an isolated one has lost some, and what failed.
    pub(crate) fn set_addresses(
        &mut self,
        id: EndpointId,
        addresses: impl IntoIterator<Item = IpAddr>,
    ) -> (bool, Result<(), DatapathError>) {
        let may_have_any = self.may_have_entry(id);
        let limit = if may_have_any { self.limits.endpoint_addresses as usize } else { 0 };
        let Some(endpoint) = self.known.get_mut(&id) else { return (false, Ok(())) };
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
        let kept: HashSet<IpAddr> = endpoint.addresses.intersection(&wanted).copied().collect();
        if let Some(slot) = endpoint.slot {
            self.entries.set_own4(slot, own4(&kept));
        }
        if let Some(slot) = endpoint.speaker {
            self.speakers.set_addresses(slot, &kept);
        }
        endpoint.was_declared |= !wanted.is_empty();
        let known = &mut endpoint.addresses;
        let (lost, removed) = self.own_addresses.keep_only(id, known, &wanted);
        let (gained, refused, added) = self.own_addresses.add(id, known, wanted);
        endpoint.other_addresses.extend(refused);
        if let Some(slot) = endpoint.speaker {
            self.speakers.set_addresses(slot, &endpoint.addresses);
        }
        let Some(slot) = endpoint.slot else { return (false, added.and(removed)) };
        self.entries.set_own4(slot, own4(&endpoint.addresses));
        self.sources.remove(&lost, endpoint.ifindex);
        self.sources.add(&gained, endpoint.ifindex);
        (!lost.is_empty(), added.and(removed))
    }

    /// Endpoints with addresses that could not be written though they may have more, and all that
    /// they are to have.
    pub(crate) fn short_of_addresses(&self) -> Vec<(EndpointId, Vec<IpAddr>)> {
        let limit = self.limits.endpoint_addresses as usize;
        let short = self.known.iter().filter(|(id, endpoint)| {
            self.may_have_entry(**id)
                && !endpoint.other_addresses.is_empty()
                && endpoint.addresses.len() < limit
        });
        let all = short.map(|(&id, endpoint)| {
            let known = endpoint.addresses.iter().chain(&endpoint.other_addresses);
            (id, known.copied().collect())
        });
        all.collect()
    }

    /// Tries again what could not be written into the table of sources.
    pub(crate) fn retry_sources(&mut self) -> Result<(), DatapathError> {
        self.sources.retry()
    }

    /// Writes who speaks on the interface of an endpoint, if that is not written and has room.
    pub(crate) fn add_speaker(&mut self, id: EndpointId) {
        let may_have_entry = self.may_have_entry(id);
        let Some(endpoint) = self.known.get_mut(&id) else { return };
        if endpoint.speaker.is_none() && may_have_entry {
            let LocalEndpoint { ifindex, link, addresses, .. } = &*endpoint;
            endpoint.speaker = self.speakers.add(*ifindex, id, link, addresses);
        }
    }

    /// Takes that away. The endpoint's programs are gone by then.
    pub(crate) fn remove_speaker(&mut self, id: EndpointId) {
        if let Some(endpoint) = self.known.get_mut(&id)
            && let Some(slot) = endpoint.speaker.take()
        {
            self.speakers.clear(slot);
        }
    }

    /// Removes addresses of whoever had a number before.
    pub(crate) fn remove_unknown_addresses(&mut self) -> Result<(), DatapathError> {
        let known = &self.known;
        self.own_addresses.retain(|id, address| {
            known.get(&id).is_some_and(|endpoint| endpoint.addresses.contains(&address))
        })
    }

    /// All endpoints are known: makes the table of sources say what holds for them.
    pub(crate) fn reconcile_sources(&mut self) -> Result<(), DatapathError> {
        self.sources.reconcile()
    }
}
