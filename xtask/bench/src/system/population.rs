//! The cluster that all variants enforce, so that they compare: a node with 110 pods, and policies
//! that all select the two pods that are measured, in both directions. Must never know how any of
//! them enforces it.
//!
//! Each policy has ten peers of its own, pods on other nodes, and allows one range of ports. The
//! policy in the middle also has the measured pods as peers of each other: it is the one that
//! allows what is measured, and whoever goes through policies one by one meets it half-way. Each of
//! the other pods of the node is isolated, by a policy of its namespace; it exists only as far as
//! it makes the rules of others longer, and has no interface.
//!
//! What grows with this, as kube-router and Calico write their rules: chains and sets with the
//! policies that select pods of the node, what a pod's chain goes through for a new connection
//! with the policies that select the pod, and kube-router's forward chain with the pods of the node
//! (a few rules each, gone through one by one by every packet). An established connection does not
//! meet the policies, and neither does one of conntrack's as soon as it was answered: one-way UDP
//! meets them with every packet.

use std::net::Ipv4Addr;
use std::ops::RangeInclusive;

use super::pair::{CLIENT, SERVER};

/// Pods of the node, the measured ones included.
pub const LOCAL_PODS: u32 = 110;
/// Peers of each policy.
pub const PEERS: u32 = 10;
/// What the policies allow, TCP and UDP.
pub const PORTS: RangeInclusive<u16> = 5000..=5999;
/// A port of theirs on which the server answers.
pub const OPEN: u16 = 5001;
/// A port that no policy allows.
pub const CLOSED: u16 = 6001;

/// How many policies select the measured pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Population {
    pub policies: u32,
}

impl Population {
    /// Of this many policies.
    pub fn new(policies: u32) -> Self {
        Self { policies }
    }

    /// The policy that allows what is measured.
    pub fn allowing(self) -> u32 {
        self.policies / 2
    }

    /// Addresses of a policy's peers.
    pub fn peers(self, policy: u32) -> Vec<Ipv4Addr> {
        let remote = (0..PEERS).map(move |peer| remote(policy * PEERS + peer));
        let measured = (policy == self.allowing()).then_some([CLIENT, SERVER]);
        remote.chain(measured.into_iter().flatten()).collect()
    }
}

/// Addresses of the node's pods, the measured ones in the middle.
pub fn local_pods() -> impl Iterator<Item = Ipv4Addr> {
    let first = u32::from(Ipv4Addr::new(10, 244, 0, 2));
    (first..first + LOCAL_PODS).map(Ipv4Addr::from)
}

/// Whether it is one of the pods that are measured.
pub fn is_measured(pod: Ipv4Addr) -> bool {
    pod == CLIENT || pod == SERVER
}

/// A pod elsewhere, by number.
pub fn remote(number: u32) -> Ipv4Addr {
    // 10.0.0.0/9 has room for millions, and none of this node's.
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 1, 0, 0)) + number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_measured_pods_are_in_the_middle_of_the_node_and_of_the_policies() {
        let pods: Vec<Ipv4Addr> = local_pods().collect();
        assert_eq!((pods[54], pods[55], pods.len()), (CLIENT, SERVER, 110));
        let population = Population::new(100);
        let allowing: Vec<u32> =
            (0..100).filter(|&policy| population.peers(policy).contains(&CLIENT)).collect();
        assert_eq!(allowing, [50]);
        assert!(remote(100_000).octets()[1] < 244, "the addresses overlap with the node's");
    }
}
