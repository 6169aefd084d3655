//! Which endpoint a stamped packet comes from, by its source address: asked where the stamp itself
//! does not say so any more ([`names::SOURCES`]).
//!
//! An address has several endpoints while it changes hands, in whatever order that is heard of,
//! and for as long as two interfaces claim it. Only those with an entry in the endpoint table
//! stamp packets, so the others do not count. While several do, nobody can tell whose a packet is:
//! the address is not in the table then, and the packet is dropped. Must never name one of several.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use aya::maps::{HashMap, MapData};
use netpol_common::layout::{self, names};

use super::error::{DatapathError, bpf_error, full_or, ignore_missing};
use super::keys::{address_bytes, address_of, ip_of};
use super::pinned::{AddressBytes, open};
use super::pins::Pins;

/// The table of sources. Owns its map and who has which address. Must never write an address of which
/// it does not know the only holder.
pub(crate) struct SourceTable {
    map: HashMap<MapData, AddressBytes, u32>,
    holders: Holders,
    /// Addresses that could not be written.
    unwritten: BTreeSet<IpAddr>,
    /// An earlier agent's endpoints are not all known yet: one may have any address.
    is_partial: bool,
}

impl SourceTable {
    /// Opens the map; `is_partial`: an earlier agent has left endpoints.
    pub(crate) fn open(pins: &Pins, is_partial: bool) -> Result<Self, DatapathError> {
        Ok(Self {
            map: open(pins, names::SOURCES)?,
            holders: Holders::default(),
            unwritten: BTreeSet::new(),
            is_partial,
        })
    }

    /// The endpoint with this interface, which has an entry, has these addresses from now on.
    pub(crate) fn add(&mut self, addresses: &[IpAddr], ifindex: u32) {
        for &address in addresses {
            self.holders.add(address, ifindex);
            self.update(address);
        }
    }

    /// It has them no longer, or has no entry any more.
    pub(crate) fn remove(&mut self, addresses: &[IpAddr], ifindex: u32) {
        for &address in addresses {
            self.holders.remove(address, ifindex);
            self.update(address);
        }
    }

    /// An earlier agent's endpoint has them, so they need not be written.
    pub(crate) fn adopt(&mut self, addresses: &[IpAddr], ifindex: u32) {
        for &address in addresses {
            self.holders.add(address, ifindex);
            if self.holders.only(address).is_none() {
                self.update(address);
            }
        }
    }

    /// Tries again what could not be written.
    pub(crate) fn retry(&mut self) -> Result<(), DatapathError> {
        let mut result = Ok(());
        for address in std::mem::take(&mut self.unwritten) {
            result = self.write(address).and(result);
        }
        result
    }

    /// All endpoints are known: makes the table say what holds for them, and nothing else.
    pub(crate) fn reconcile(&mut self) -> Result<(), DatapathError> {
        self.is_partial = false;
        let stored = self.map.keys().map(|key| {
            let key = key.map_err(bpf_error(format!("read map {}", names::SOURCES)))?;
            let address: layout::Address = zerocopy::transmute!(key);
            Ok(ip_of(&address))
        });
        let mut all = stored.collect::<Result<BTreeSet<IpAddr>, DatapathError>>()?;
        all.extend(self.holders.0.keys());
        for address in all {
            self.update(address);
        }
        self.retry()
    }

    /// Brings the table up to date for an address, now or when it is tried again.
    fn update(&mut self, address: IpAddr) {
        if let Err(error) = self.write(address) {
            tracing::debug!(%address, %error, "cannot write the table of sources");
        }
    }

    /// Likewise. What cannot be written is taken out, so that it names nobody.
    fn write(&mut self, address: IpAddr) -> Result<(), DatapathError> {
        let key = address_bytes(&address_of(address));
        let only = self.holders.only(address).filter(|_| !self.is_partial);
        let mut written = Ok(());
        if let Some(ifindex) = only {
            if self.map.get(&key, 0).is_ok_and(|known| known == ifindex) {
                return Ok(());
            }
            let limit = layout::MAX_OWN_ADDRESSES;
            let inserted = self.map.insert(key, ifindex, 0);
            written = inserted.map_err(|error| full_or(error, "table of sources", limit));
        }
        if only.is_none() || written.is_err() {
            written = written.and(ignore_missing(self.map.remove(&key)));
        }
        if written.is_err() {
            self.unwritten.insert(address);
        }
        written
    }
}

/// The interfaces of the endpoints that have an entry, by address.
#[derive(Debug, Default)]
struct Holders(BTreeMap<IpAddr, BTreeSet<u32>>);

impl Holders {
    fn add(&mut self, address: IpAddr, ifindex: u32) {
        self.0.entry(address).or_default().insert(ifindex);
    }

    fn remove(&mut self, address: IpAddr, ifindex: u32) {
        if let Some(holders) = self.0.get_mut(&address) {
            holders.remove(&ifindex);
            if holders.is_empty() {
                self.0.remove(&address);
            }
        }
    }

    /// The only one that has it.
    fn only(&self, address: IpAddr) -> Option<u32> {
        let mut all = self.0.get(&address)?.iter();
        all.next().copied().filter(|_| all.next().is_none())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address() -> IpAddr {
        IpAddr::from([10, 0, 0, 1])
    }

    #[test]
    fn one_of_several_is_never_named() {
        let mut holders = Holders::default();
        assert_eq!(holders.only(address()), None);
        holders.add(address(), 7);
        holders.add(address(), 7);
        assert_eq!(holders.only(address()), Some(7));
        holders.add(address(), 8);
        assert_eq!(holders.only(address()), None, "two have it");
        assert_eq!(holders.only(IpAddr::from([10, 0, 0, 2])), None);
    }

    #[test]
    fn whoever_is_left_has_it_in_whatever_order_the_others_went() {
        let orders = [[1, 2, 3], [1, 3, 2], [2, 1, 3], [2, 3, 1], [3, 1, 2], [3, 2, 1]];
        for came in orders {
            for went in orders {
                let mut holders = Holders::default();
                came.iter().for_each(|&ifindex| holders.add(address(), ifindex));
                let [first, second, last] = went;
                holders.remove(address(), first);
                assert_eq!(holders.only(address()), None, "{came:?} {went:?}");
                holders.remove(address(), second);
                assert_eq!(holders.only(address()), Some(last), "{came:?} {went:?}");
                holders.remove(address(), last);
                assert!(holders.0.is_empty(), "{came:?} {went:?}");
            }
        }
    }
}
