//! Which endpoint a stamped packet comes from, by its source address: asked where the stamp itself
//! does not say so any more ([`names::SOURCES`]).
//!
//! An address has several endpoints while it changes hands, in whatever order that is heard of,
//! and for as long as two interfaces claim it. Only those with an entry in the endpoint table
//! stamp packets, so the others do not count. While several do, nobody can tell whose a packet is:
//! the address is not in the table then, and the packet is dropped. Must never name one of several.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use netpol_common::layout::{self, names};

use super::error::{DatapathError, bpf_error, full_or, ignore_missing};
use super::keys::{address_bytes, address_of, ip_of};
use super::writer::Datapath;

/// Who has which address.
#[derive(Debug, Default)]
pub(super) struct Sources {
    /// The interfaces of the endpoints that have an entry, by address.
    holders: BTreeMap<IpAddr, BTreeSet<u32>>,
    /// Addresses that could not be written.
    unwritten: BTreeSet<IpAddr>,
    /// An earlier agent's endpoints are not all known yet: one may have any address.
    is_partial: bool,
}

impl Sources {
    /// Nothing is known; `is_partial`: an earlier agent has left endpoints.
    pub(super) fn new(is_partial: bool) -> Self {
        Self { is_partial, ..Self::default() }
    }

    fn add(&mut self, address: IpAddr, ifindex: u32) {
        self.holders.entry(address).or_default().insert(ifindex);
    }

    fn remove(&mut self, address: IpAddr, ifindex: u32) {
        if let Some(holders) = self.holders.get_mut(&address) {
            holders.remove(&ifindex);
            if holders.is_empty() {
                self.holders.remove(&address);
            }
        }
    }

    /// The only one that has it.
    fn only(&self, address: IpAddr) -> Option<u32> {
        let holders = self.holders.get(&address)?;
        let mut all = holders.iter();
        all.next().copied().filter(|_| all.next().is_none())
    }
}

impl Datapath {
    /// The endpoint with this interface, which has an entry, has these addresses from now on.
    pub(super) fn add_sources(&mut self, addresses: &[IpAddr], ifindex: u32) {
        for &address in addresses {
            self.sources.add(address, ifindex);
            self.note_source(address);
        }
    }

    /// It has them no longer, or has no entry any more.
    pub(super) fn remove_sources(&mut self, addresses: &[IpAddr], ifindex: u32) {
        for &address in addresses {
            self.sources.remove(address, ifindex);
            self.note_source(address);
        }
    }

    /// An earlier agent's endpoint has them, so they need not be written.
    pub(super) fn adopt_sources(&mut self, addresses: &[IpAddr], ifindex: u32) {
        for &address in addresses {
            self.sources.add(address, ifindex);
            if self.sources.only(address).is_none() {
                self.note_source(address);
            }
        }
    }

    /// Tries again what could not be written.
    pub(super) fn retry_sources(&mut self) -> Result<(), DatapathError> {
        let mut result = Ok(());
        for address in std::mem::take(&mut self.sources.unwritten) {
            result = self.write_source(address).and(result);
        }
        result
    }

    /// All endpoints are known: makes the table say what holds for them, and nothing else.
    pub(super) fn reconcile_sources(&mut self) -> Result<(), DatapathError> {
        self.sources.is_partial = false;
        let stored = self.maps.sources.keys().map(|key| {
            let key = key.map_err(bpf_error(format!("read map {}", names::SOURCES)))?;
            let address: layout::Address = zerocopy::transmute!(key);
            Ok(ip_of(&address))
        });
        let mut all = stored.collect::<Result<BTreeSet<IpAddr>, DatapathError>>()?;
        all.extend(self.sources.holders.keys());
        for address in all {
            self.note_source(address);
        }
        self.retry_sources()
    }

    /// Brings the table up to date for an address, now or when it is tried again.
    fn note_source(&mut self, address: IpAddr) {
        if let Err(error) = self.write_source(address) {
            tracing::debug!(%address, %error, "cannot write the table of sources");
        }
    }

    /// Likewise. What cannot be written is taken out, so that it names nobody.
    fn write_source(&mut self, address: IpAddr) -> Result<(), DatapathError> {
        let key = address_bytes(&address_of(address));
        let only = self.sources.only(address).filter(|_| !self.sources.is_partial);
        let mut written = Ok(());
        if let Some(ifindex) = only {
            if self.maps.sources.get(&key, 0).is_ok_and(|known| known == ifindex) {
                return Ok(());
            }
            let limit = layout::MAX_OWN_ADDRESSES;
            let inserted = self.maps.sources.insert(key, ifindex, 0);
            written = inserted.map_err(|error| full_or(error, "table of sources", limit));
        }
        if only.is_none() || written.is_err() {
            written = written.and(ignore_missing(self.maps.sources.remove(&key)));
        }
        if written.is_err() {
            self.sources.unwritten.insert(address);
        }
        written
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
        let mut sources = Sources::new(false);
        assert_eq!(sources.only(address()), None);
        sources.add(address(), 7);
        sources.add(address(), 7);
        assert_eq!(sources.only(address()), Some(7));
        sources.add(address(), 8);
        assert_eq!(sources.only(address()), None, "two have it");
        assert_eq!(sources.only(IpAddr::from([10, 0, 0, 2])), None);
    }

    #[test]
    fn whoever_is_left_has_it_in_whatever_order_the_others_went() {
        let orders = [[1, 2, 3], [1, 3, 2], [2, 1, 3], [2, 3, 1], [3, 1, 2], [3, 2, 1]];
        for came in orders {
            for went in orders {
                let mut sources = Sources::new(false);
                came.iter().for_each(|&ifindex| sources.add(address(), ifindex));
                let [first, second, last] = went;
                sources.remove(address(), first);
                assert_eq!(sources.only(address()), None, "{came:?} {went:?}");
                sources.remove(address(), second);
                assert_eq!(sources.only(address()), Some(last), "{came:?} {went:?}");
                sources.remove(address(), last);
                assert!(sources.holders.is_empty(), "{came:?} {went:?}");
            }
        }
    }
}
