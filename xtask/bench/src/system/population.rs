//! The cluster that all variants enforce, so that they compare: a node with 110 pods, and policies
//! for both directions that are dealt out to them in turn, beginning with the two pods that are
//! measured. Must never know how any of them enforces it.
//!
//! Each policy selects one pod, has ten peers of its own on other nodes, and allows one range of
//! ports. Of the policies of a measured pod the one in the middle has the other measured pod for a
//! peer too: it is the one that allows what is measured, and whoever goes through policies one by
//! one meets it half-way. The other pods of the node send nothing.
//!
//! What grows with this, as kube-router and Calico write their rules: what a new connection goes
//! through, with the policies that select its two pods; and kube-router's forward chain with the
//! pods of the node, a few rules each, gone through one by one by every packet. An established
//! connection does not meet the policies. One-way UDP does with every packet, since to conntrack a
//! flow that was never answered stays new.

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

/// How many policies there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Population {
    pub policies: u32,
}

impl Population {
    /// Of this many policies.
    pub fn new(policies: u32) -> Self {
        Self { policies }
    }

    /// The pod that the policy selects.
    pub fn selected(self, policy: u32) -> Ipv4Addr {
        dealt_to().nth((policy % LOCAL_PODS) as usize).unwrap_or(CLIENT)
    }

    /// The policies that select the pod.
    pub fn selecting(self, pod: Ipv4Addr) -> impl DoubleEndedIterator<Item = u32> + Clone {
        let place = dealt_to().position(|dealt| dealt == pod);
        let first = place.map_or(self.policies, |place| place as u32);
        (first..self.policies).step_by(LOCAL_PODS as usize)
    }

    /// Addresses of a policy's peers.
    pub fn peers(self, policy: u32) -> Vec<Ipv4Addr> {
        let remote = (0..PEERS).map(move |peer| remote(policy * PEERS + peer));
        let other = match self.selected(policy) {
            CLIENT => Some(SERVER),
            SERVER => Some(CLIENT),
            _ => None,
        };
        remote.chain(other.filter(|_| self.is_allowing(policy))).collect()
    }

    /// Whether it allows what is measured, to or from one of the measured pods.
    pub fn is_allowing(self, policy: u32) -> bool {
        let pod = self.selected(policy);
        let all = self.selecting(pod);
        is_measured(pod) && all.clone().nth(all.count() / 2) == Some(policy)
    }
}

/// Addresses of the node's pods, the measured ones in the middle.
pub fn local_pods() -> impl Iterator<Item = Ipv4Addr> + Clone {
    let first = u32::from(Ipv4Addr::new(10, 244, 0, 2));
    (first..first + LOCAL_PODS).map(Ipv4Addr::from)
}

/// The node's pods in the order in which policies are dealt out to them.
fn dealt_to() -> impl Iterator<Item = Ipv4Addr> {
    [CLIENT, SERVER].into_iter().chain(local_pods().filter(|pod| !is_measured(*pod)))
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
        let population = Population::new(1_000);
        let of_server: Vec<u32> = population.selecting(SERVER).collect();
        assert_eq!(of_server, [1, 111, 221, 331, 441, 551, 661, 771, 881, 991]);
        assert!(of_server.iter().all(|policy| population.selected(*policy) == SERVER));
        let allowing: Vec<u32> =
            (0..1_000).filter(|&policy| population.is_allowing(policy)).collect();
        assert_eq!(allowing, [550, 551]);
        assert!(population.peers(551).contains(&CLIENT));
        assert!(Population::new(2).peers(1).contains(&CLIENT), "each has one at least");
        assert!(remote(100_000).octets()[1] < 244, "the addresses overlap with the node's");
    }
}
