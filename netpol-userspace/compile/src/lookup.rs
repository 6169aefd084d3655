//! What the datapath does with the tables, packet by packet and step by step. The tests' model of
//! the datapath: must follow the documentation of [`Tables`] and [`Step`](super::Step) to the letter and use
//! nothing else.

use std::net::IpAddr;

use ipnet::IpNet;

use super::planning::NOT_ISOLATED;
use super::{Backend, ClassId, EndpointId, ServiceKey, SetId, Tables, Verdict};
use netpol_model::{Direction, Protocol};

impl Tables {
    /// Whether the tables let a packet of this endpoint pass at its interface, opening a flow in
    /// this direction, `remote` being the other end. That includes [`Verdict::Mixed`], which is
    /// decided after translation. An unknown endpoint is not enforced. Knows nothing of what the
    /// datapath lets pass before it looks at the tables (the pod itself, its own node, replies).
    pub fn judge(
        &self,
        endpoint: EndpointId,
        direction: Direction,
        remote: IpAddr,
        protocol: u8,
        dest_port: u16,
    ) -> bool {
        self.verdict(endpoint, direction, remote, protocol, dest_port) != Verdict::Denied
    }

    /// Likewise, telling apart what only the true destination can decide.
    pub fn verdict(
        &self,
        endpoint: EndpointId,
        direction: Direction,
        remote: IpAddr,
        protocol: u8,
        dest_port: u16,
    ) -> Verdict {
        let Some(sets) = self.endpoints.get(&endpoint) else { return Verdict::Allowed };
        if *sets == NOT_ISOLATED {
            return Verdict::Allowed;
        }
        let set = match direction {
            Direction::Ingress => sets.ingress,
            Direction::Egress => sets.egress,
        };
        let backends = match direction {
            Direction::Ingress => None,
            Direction::Egress => self.backends(remote, protocol, dest_port),
        };
        if set == SetId::NONE {
            let own = |backends| Verdict::unless_own(endpoint, backends);
            return backends.map_or(Verdict::Allowed, own);
        }
        if let Some(backends) = backends {
            let allows = |class, port| self.row_allows(set, class, protocol, port);
            return Verdict::of_service(endpoint, set, backends, allows);
        }
        match self.row_allows(set, self.class_of(remote), protocol, dest_port) {
            true => Verdict::Allowed,
            false => Verdict::Denied,
        }
    }

    fn row_allows(&self, set: SetId, class: ClassId, protocol: u8, port: u16) -> bool {
        self.rows
            .get(&(set, class))
            .or_else(|| self.rows.get(&(set, ClassId::NONE)))
            .is_some_and(|row| row.allows(protocol, port))
    }

    /// The backends of the Service that is reached there, if one is.
    fn backends(&self, address: IpAddr, protocol: u8, port: u16) -> Option<&[Backend]> {
        let protocol = Protocol::from_number(protocol)?;
        self.services.get(&ServiceKey { address, protocol, port }).map(|backends| &**backends)
    }

    /// The class of an address: that of the longest stored block containing it.
    pub fn class_of(&self, address: IpAddr) -> ClassId {
        let mut upper = IpNet::from(address);
        while let Some((block, &class)) = self.classes.range(..=upper).next_back() {
            if block.contains(&address) {
                return class;
            }
            // A block that contains the address and sorts before this one contains both, so it is
            // no longer than what they have in common.
            let Some(length) = n_common_bits(block.addr(), address) else { break };
            upper = IpNet::new(address, length).expect("invariant: at most all bits").trunc();
        }
        ClassId::NONE
    }
}

/// With how many equal bits two addresses of one family start.
fn n_common_bits(a: IpAddr, b: IpAddr) -> Option<u8> {
    let n_bits = match (a, b) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros(),
        (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros(),
        _ => return None,
    };
    u8::try_from(n_bits).ok()
}
