//! Which pod each interface belongs to. Pure: no IO, no clock, no memory but its arguments.
//!
//! What the container runtime has said ([`Claim`]) goes before everything. Then what is known: an
//! interface stays with its pod for as long as it exists, whatever addresses it shows, wherever its
//! other end is moved, and whatever becomes of the pod's object ([`Holder::Former`]), unless the
//! address that it was known by is another pod's by now and it alone has it. Then the node's own
//! routes, which lead to the interface itself where the network is routed. Then the addresses by
//! which an earlier agent enforced it ([`Pinned`]), and only then those that it shows: a pod that
//! may configure its interfaces must not become another pod by taking its address. All interfaces
//! of a namespace belong to one pod (Multus).
//!
//! Two namespaces are never one pod. What cannot be decided may be one of several
//! ([`Holder::OneOf`]), and is enforced as the strictest of them. Never leaves an interface
//! unmatched that has an address of a pod of this node, or that an earlier agent enforced.

mod decide;
mod finding;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::RangeInclusive;

pub use self::finding::{Finding, Why};
use super::{Interface, Route};
use netpol_isolation::netns::NetnsId;
use netpol_model::{ObjectName, Pod, Uid};

/// An interface that belongs to a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// The interface's index in the agent's namespace.
    pub ifindex: u32,
    /// The interface's name.
    pub interface: String,
    /// See [`Interface::incarnation`].
    pub incarnation: u64,
    /// See [`Interface::nsid`].
    pub nsid: i32,
    /// The pod's namespace, if a file for it was found.
    pub netns: Option<NetnsId>,
    /// The pod, or the interface's name in a namespace that no cluster has ([`NOBODY`]).
    pub pod: ObjectName,
    /// The pod's uid; empty if it is not known which one it is.
    pub uid: Uid,
    /// What is known of that.
    pub holder: Holder,
    /// Nothing but the addresses that it showed has told whose it is.
    pub is_by_address: bool,
    /// Not even these: it was the only one that the pod could be behind. It says nothing to a later
    /// matching, which may know of a better one.
    pub is_supposed: bool,
    /// When the interface was first seen, also by earlier agents, in seconds since the epoch.
    pub appeared: i64,
    /// The pod's addresses as its status gives them, or gave them last, less those that another
    /// pod has.
    pub addresses: Vec<IpAddr>,
}

/// The namespace of endpoints of which nobody knows whose they are. No namespace has this name.
pub const NOBODY: &str = "?";

/// What is known of whose an interface is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holder {
    /// A pod that runs, by its object.
    Current,
    /// A pod that has ended by its object, or has none any more, or has another interface by now.
    Former,
    /// One of the pods with these uids, sorted.
    OneOf(Vec<Uid>),
    /// Nobody knows. An earlier agent enforced it.
    Unknown,
}

/// The container runtime has said whose an interface, and the namespace behind it, is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The interface, as [`Interface::incarnation`].
    pub incarnation: u64,
    /// The pod.
    pub pod: ObjectName,
    /// The pod's uid.
    pub uid: Uid,
}

/// An interface that an earlier agent enforced and that nothing else is remembered of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pinned {
    /// The interface, as [`Interface::incarnation`].
    pub incarnation: u64,
    /// The addresses of the pod that it was.
    pub addresses: Vec<IpAddr>,
}

/// What tells whose the interfaces are.
#[derive(Debug, Clone, Copy)]
pub struct Evidence<'a> {
    /// The interfaces there are.
    pub interfaces: &'a [Interface],
    /// The node's name.
    pub node_name: &'a str,
    /// The endpoints of the last matching, or those that an earlier agent has written down.
    pub previous: &'a [Endpoint],
    /// What the runtime has said.
    pub claims: &'a [Claim],
    /// What is pinned.
    pub pinned: &'a [Pinned],
    /// Where the node sends what is for pods' addresses, as far as that was asked for.
    pub routes: &'a BTreeMap<IpAddr, Route>,
    /// The pods, by uid, that have never had an interface, and when theirs must have come up, in
    /// seconds since the epoch. A pod that is not here had its interface once.
    pub awaited: &'a BTreeMap<Uid, RangeInclusive<i64>>,
}

/// What belongs together and what does not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Matching {
    /// By ifindex.
    pub endpoints: Vec<Endpoint>,
    /// Sorted.
    pub findings: Vec<Finding>,
}

/// Matches interfaces with those of `pods` that have a network of their own and are of the
/// evidence's node or of none.
pub fn match_pods<'a>(
    pods: impl IntoIterator<Item = &'a Pod>,
    evidence: &Evidence<'a>,
) -> Matching {
    decide::Matcher::new(pods, evidence).decide()
}

/// Sorts pods that have not ended first, then younger ones, then smaller names.
fn claim(pod: &Pod) -> (bool, Reverse<i64>, &ObjectName) {
    (pod.finished, Reverse(pod.created), &pod.id)
}

/// Index into the sorted pods.
type PodIdx = usize;

/// Who has which address.
#[derive(Debug, Default)]
struct Owners {
    /// The pod that has each address. One that has ended only has what nobody else claims.
    by_address: BTreeMap<IpAddr, PodIdx>,
    /// The addresses each pod has.
    owned: Vec<Vec<IpAddr>>,
}

impl Owners {
    /// Of sorted pods. The earlier of two has the better claim.
    fn new(pods: &[&Pod], findings: &mut BTreeSet<Finding>) -> Self {
        let mut owners = Self::default();
        for (pod_idx, pod) in pods.iter().enumerate() {
            let mut owned = Vec::new();
            for &address in &pod.addresses {
                let owner = *owners.by_address.entry(address).or_insert(pod_idx);
                if owner == pod_idx {
                    if !owned.contains(&address) {
                        owned.push(address);
                    }
                } else if !pod.finished {
                    findings.insert(Finding::AddressOfTwoPods {
                        address,
                        pod: pods[owner].id.clone(),
                        loser: pod.id.clone(),
                    });
                }
            }
            owners.owned.push(owned);
        }
        owners
    }

    /// Those of `addresses` that nobody else has than this pod, if it is one.
    fn left(&self, addresses: &[IpAddr], pod: Option<PodIdx>) -> Vec<IpAddr> {
        let is_free = |address: &&IpAddr| {
            self.by_address.get(*address).is_none_or(|owner| Some(*owner) == pod)
        };
        addresses.iter().filter(is_free).copied().collect()
    }
}

#[cfg(test)]
mod tests;
