//! Which addresses the cluster's machines, pods and Services have. The same in every cluster, since
//! each has network namespaces of its own.

use std::net::{Ipv4Addr, Ipv6Addr};

/// The control plane's address, on the underlay.
pub const CONTROL: (Ipv4Addr, Ipv6Addr) =
    (Ipv4Addr::new(172, 30, 0, 1), Ipv6Addr::new(0xfd00, 0x172, 0x30, 0, 0, 0, 0, 1));
/// The API server's port.
pub const API_PORT: u16 = 6443;
/// All pods.
pub const PODS: (&str, &str) = ("10.244.0.0/16", "fd00:10:244::/56");
/// All Services.
pub const SERVICES: (&str, &str) = ("10.96.0.0/16", "fd00:10:96::/112");
/// The Service `kubernetes`.
pub const API_SERVICE: (Ipv4Addr, Ipv6Addr) =
    (Ipv4Addr::new(10, 96, 0, 1), Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 1));
/// The Service of the cluster's DNS, if one is made.
pub const DNS_SERVICE: &str = "10.96.0.10";

/// The addresses of one node; the first node has index 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeAddresses(pub u8);

impl NodeAddresses {
    fn number(self) -> u8 {
        self.0 + 1
    }

    /// On the underlay.
    #[must_use]
    pub fn node(self) -> (Ipv4Addr, Ipv6Addr) {
        let last = 10 + self.number();
        let ipv6 = Ipv6Addr::new(0xfd00, 0x172, 0x30, 0, 0, 0, 0, 0x10 + u16::from(self.number()));
        (Ipv4Addr::new(172, 30, 0, last), ipv6)
    }

    /// Of the node's pods.
    #[must_use]
    pub fn pods(self) -> (String, String) {
        let number = self.number();
        (format!("10.244.{number}.0/24"), format!("fd00:10:244:{number:x}::/64"))
    }

    /// Of the node's end of the VXLAN.
    #[must_use]
    pub fn vxlan(self) -> (Ipv4Addr, Ipv6Addr) {
        let number = self.number();
        let ipv6 = Ipv6Addr::new(0xfd00, 0x10, 0x244, 0xff, 0, 0, 0, u16::from(number));
        (Ipv4Addr::new(10, 244, 255, number), ipv6)
    }
}
