//! Whom an attacker may want to reach, and by which link-layer addresses. Must never leave out who
//! could be reached.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::frames::Marker;
use super::stage::Stage;
use crate::lab::Pod;
use crate::lab::wire::BROADCAST;

/// One way that a packet may take from the attacker.
#[derive(Clone, Copy, Debug)]
pub struct Way {
    /// The attacker's own address.
    pub own: IpAddr,
    pub to: IpAddr,
    /// The link-layer address that the frame is for.
    pub link: [u8; 6],
    pub marker: Marker,
}

/// Addresses that nobody has, of documentation (RFC 5737, RFC 3849).
const NOBODY: [&str; 2] = ["192.0.2.77", "2001:db8:77::77"];

impl Stage {
    /// An address of every kind of host, of both families.
    pub fn destinations(&self) -> Vec<IpAddr> {
        let mut all: Vec<IpAddr> = Vec::new();
        all.extend(self.others().iter().flat_map(|pod| &pod.addresses));
        all.extend(self.lab.node_addresses(1));
        all.extend(self.lab.node_addresses(2));
        all.extend(self.lab.outside_addresses());
        all.extend(NOBODY.map(|address| address.parse::<IpAddr>().unwrap()));
        all
    }

    /// A pod of the node, one of the other node, the node, and the host outside.
    pub fn main_destinations(&self) -> Vec<IpAddr> {
        let of_node = self.lab.node_addresses(1);
        let mut all: Vec<IpAddr> = Vec::new();
        for own in &self.attacker.addresses {
            all.extend([self.free.address(*own), self.far_free.address(*own)]);
            all.extend(of_node.iter().find(|address| address.is_ipv4() == own.is_ipv4()));
        }
        all.extend(self.lab.outside_addresses());
        all
    }

    /// The link-layer addresses by which somebody gets what comes from a pod of node 1 that has this
    /// gateway: the node's, all, and on a bridge those of other pods.
    pub fn links(&self, gateway: [u8; 6]) -> Vec<[u8; 6]> {
        let mut links = vec![gateway, BROADCAST];
        if self.is_bridged() {
            links.extend([&self.free, &self.victim].map(|pod: &Pod| pod.wire().own_address()));
        }
        links
    }
}

/// The pair of addresses of one pod.
pub fn pair(addresses: &[IpAddr]) -> (Ipv4Addr, Ipv6Addr) {
    let (mut v4, mut v6) = (Ipv4Addr::UNSPECIFIED, Ipv6Addr::UNSPECIFIED);
    for address in addresses {
        match address {
            IpAddr::V4(address) => v4 = *address,
            IpAddr::V6(address) => v6 = *address,
        }
    }
    (v4, v6)
}
