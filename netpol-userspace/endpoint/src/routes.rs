//! Where the node itself sends packets to a pod's address: to the pod's interface, where the network
//! is routed, or to a bridge that it is a port of. Nobody in a pod can change that. Must never
//! change anything in the kernel.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;

use super::netlink::{Route, Rtnl};

/// Asks the kernel, and remembers until told to forget.
pub struct Routes {
    rtnl: Rtnl,
    known: BTreeMap<IpAddr, Option<Route>>,
}

impl Routes {
    /// Of the calling thread's namespace, whoever asks later.
    pub fn open() -> io::Result<Self> {
        Ok(Self { rtnl: Rtnl::open()?, known: BTreeMap::new() })
    }

    /// Routes may have changed.
    pub fn forget(&mut self) {
        self.known.clear();
    }

    /// The routes to these addresses, of those that have one.
    pub fn to(&mut self, addresses: impl IntoIterator<Item = IpAddr>) -> BTreeMap<IpAddr, Route> {
        let mut found = BTreeMap::new();
        for address in addresses {
            let route = match self.known.get(&address) {
                Some(known) => *known,
                None => {
                    let route = self.rtnl.route_to(address).unwrap_or_else(|error| {
                        tracing::debug!(%address, %error, "cannot ask for a route");
                        None
                    });
                    self.known.insert(address, route);
                    route
                }
            };
            found.extend(route.map(|route| (address, route)));
        }
        found
    }
}
