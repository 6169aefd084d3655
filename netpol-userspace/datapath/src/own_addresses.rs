//! Which addresses are an endpoint's own: packets from others are forged. Must never say of an
//! endpoint what its table has not asked for.

use std::collections::HashSet;
use std::net::IpAddr;

use aya::maps::{HashMap, MapData};
use netpol_common::layout::{self, names};
use netpol_compile::EndpointId;
use zerocopy::FromBytes as _;

use super::error::{DatapathError, full_or, ignore_missing};
use super::keys::{address_of, ip_of};
use super::pinned::{OwnAddressBytes, open};
use super::pins::Pins;

/// The addresses of all endpoints. Owns their map.
pub(crate) struct OwnAddressMap(HashMap<MapData, OwnAddressBytes, u32>);

impl OwnAddressMap {
    /// Opens the map.
    pub(crate) fn open(pins: &Pins) -> Result<Self, DatapathError> {
        open(pins, names::OWN_ADDRESSES).map(Self)
    }

    /// All ids with their addresses.
    pub(crate) fn all(&self) -> impl Iterator<Item = (EndpointId, IpAddr)> {
        self.0.keys().flatten().filter_map(|key| parts_of(&key))
    }

    /// The addresses of the endpoint with this id.
    pub(crate) fn of(&self, id: EndpointId) -> HashSet<IpAddr> {
        self.all().filter(|(of, _)| *of == id).map(|(_, address)| address).collect()
    }

    /// Removes those of an endpoint's `known` addresses that are not wanted, also from there. Returns
    /// what it has lost, and what failed.
    pub(crate) fn keep_only(
        &mut self,
        id: EndpointId,
        known: &mut HashSet<IpAddr>,
        wanted: &HashSet<IpAddr>,
    ) -> (Vec<IpAddr>, Result<(), DatapathError>) {
        let (mut lost, mut result) = (Vec::new(), Ok(()));
        for address in known.difference(wanted) {
            match ignore_missing(self.0.remove(&own_address(id, *address))) {
                Ok(()) => lost.push(*address),
                Err(error) => result = Err(error),
            }
        }
        known.retain(|address| !lost.contains(address));
        (lost, result)
    }

    /// Writes what is wanted and not among an endpoint's `known` addresses, also there. Returns what
    /// it has gained, what could not be written, and why.
    pub(crate) fn add(
        &mut self,
        id: EndpointId,
        known: &mut HashSet<IpAddr>,
        wanted: HashSet<IpAddr>,
    ) -> (Vec<IpAddr>, Vec<IpAddr>, Result<(), DatapathError>) {
        let (mut gained, mut refused, mut result) = (Vec::new(), Vec::new(), Ok(()));
        for address in wanted {
            if known.contains(&address) {
                continue;
            }
            match self.0.insert(own_address(id, address), 1, 0) {
                Ok(()) => {
                    known.insert(address);
                    gained.push(address);
                }
                Err(error) => {
                    refused.push(address);
                    let limit = layout::MAX_OWN_ADDRESSES;
                    result = Err(full_or(error, "own-address table", limit));
                }
            }
        }
        (gained, refused, result)
    }

    /// Removes all of which this says that they are not so.
    pub(crate) fn retain(
        &mut self,
        is_so: impl Fn(EndpointId, IpAddr) -> bool,
    ) -> Result<(), DatapathError> {
        let is_stale = |key: &OwnAddressBytes| parts_of(key).is_some_and(|(id, ip)| !is_so(id, ip));
        let stale: Vec<_> = self.0.keys().flatten().filter(is_stale).collect();
        for key in stale {
            ignore_missing(self.0.remove(&key))?;
        }
        Ok(())
    }
}

/// The one of these addresses that stands in the endpoint's entry, see [`layout::Endpoint::own4`].
pub(crate) fn own4<'a>(addresses: impl IntoIterator<Item = &'a IpAddr>) -> u64 {
    let first = addresses.into_iter().filter(|address| address.is_ipv4()).min();
    first.map_or(0, |address| layout::own4(&address_of(*address)).into())
}

fn own_address(id: EndpointId, address: IpAddr) -> OwnAddressBytes {
    let own = layout::OwnAddress { endpoint: u32::from(id.0), address: address_of(address) };
    zerocopy::transmute!(own)
}

#[expect(clippy::cast_possible_truncation, reason = "an endpoint's number has 16 bits")]
fn parts_of(key: &OwnAddressBytes) -> Option<(EndpointId, IpAddr)> {
    let own = layout::OwnAddress::read_from_bytes(key).ok()?;
    Some((EndpointId(own.endpoint as u16), ip_of(&own.address)))
}
