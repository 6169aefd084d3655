//! Which pod each interface belongs to. Pure: no IO, no clock, no memory but its arguments.
//!
//! A network namespace belongs to the pod whose address one of its interfaces has, and all its
//! interfaces with it (Multus). A namespace once matched stays with its pod for as long as that
//! pod exists with the same addresses, whatever addresses the interfaces have meanwhile: a pod
//! that may configure its interfaces must not become another pod by taking its address, and a pod
//! whose address flaps must not lose its policies. What the container runtime has said of a
//! namespace ([`Claim`]) goes before all of that, and outlives the pod's object. Never leaves an
//! interface unmatched that has an address of a pod of this node.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use super::Interface;
use super::scan::is_link_local;
use crate::model::{ObjectName, Pod, Str};
use crate::netns::NetnsId;

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
    /// The pod.
    pub pod: ObjectName,
    /// The pod's uid.
    pub uid: Str,
    /// The pod's addresses as its status gives them, less those that a younger pod has.
    pub addresses: Vec<IpAddr>,
    /// Other addresses the pod may rightly send from on this interface: its link-local ones and,
    /// on a further interface that has none of the pod's addresses, those that no pod claims.
    pub other_addresses: Vec<IpAddr>,
}

/// The container runtime has said whose a namespace is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The namespace, as [`Interface::nsid`].
    pub nsid: i32,
    /// The pod.
    pub pod: ObjectName,
    /// The pod's uid.
    pub uid: Str,
}

/// Something that does not fit together.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Finding {
    /// A pod of this node has no address (yet).
    PodWithoutAddress {
        /// The pod.
        pod: ObjectName,
    },
    /// A pod of this node has addresses that no interface has.
    PodWithoutInterface {
        /// The pod.
        pod: ObjectName,
        /// Its addresses.
        addresses: Vec<IpAddr>,
    },
    /// An interface has no address of a pod of this node: something that is no pod, or a pod
    /// whose status is not known yet.
    InterfaceWithoutPod {
        /// Its index.
        ifindex: u32,
        /// Its name.
        interface: String,
        /// Its addresses.
        addresses: Vec<IpAddr>,
    },
    /// Two pods claim one address.
    AddressOfTwoPods {
        /// The address.
        address: IpAddr,
        /// The younger, which has it.
        pod: ObjectName,
        /// The older, which has lost it.
        loser: ObjectName,
    },
    /// Interfaces in different namespaces have one pod address.
    AddressOnTwoInterfaces {
        /// The address.
        address: IpAddr,
        /// The pod whose address it is.
        pod: ObjectName,
        /// The interfaces' names, by ifindex.
        interfaces: Vec<String>,
    },
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PodWithoutAddress { pod } => write!(
                f,
                "pod {pod} has no address in its status, so it cannot be enforced; \
                 it will be as soon as it has one"
            ),
            Self::PodWithoutInterface { pod, addresses } => write!(
                f,
                "pod {pod} is not enforced: no veth or netkit interface of this node leads to {}; \
                 check the pod's network status and that the agent runs in the node's network \
                 namespace",
                list(addresses)
            ),
            Self::InterfaceWithoutPod { interface, addresses, .. } if addresses.is_empty() => {
                write!(f, "interface {interface} leads to a namespace where it has no address yet")
            }
            Self::InterfaceWithoutPod { interface, addresses, .. } => write!(
                f,
                "interface {interface} ({}) belongs to no known pod of this node and is left alone",
                list(addresses)
            ),
            Self::AddressOfTwoPods { address, pod, loser } => write!(
                f,
                "pods {pod} and {loser} both claim {address}: the younger, {pod}, has it; \
                 delete or correct the other if it is not about to end"
            ),
            Self::AddressOnTwoInterfaces { address, pod, interfaces } => write!(
                f,
                "interfaces {} all have {address} of pod {pod}: find out which of their pods \
                 took it, or remove what an ended pod left behind",
                interfaces.join(", ")
            ),
        }
    }
}

/// What belongs together and what does not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Matching {
    /// By ifindex.
    pub endpoints: Vec<Endpoint>,
    /// Sorted.
    pub findings: Vec<Finding>,
}

/// Matches `interfaces` with those of `pods` that are networked and of the node `node_name` or
/// of none. `previous` are the endpoints of the last matching, empty at first.
pub fn match_pods<'a>(
    interfaces: &[Interface],
    pods: impl IntoIterator<Item = &'a Pod>,
    node_name: &str,
    previous: &[Endpoint],
    claims: &[Claim],
) -> Matching {
    let is_local = |pod: &&Pod| pod.node.as_deref().is_none_or(|node| node == node_name);
    let mut pods: Vec<&Pod> =
        pods.into_iter().filter(is_local).filter(|pod| pod.is_networked()).collect();
    // The earlier of two has the better claim.
    pods.sort_unstable_by(|a, b| claim(a).cmp(&claim(b)));
    let mut matcher = Matcher { pods, ..Matcher::default() };
    matcher.settle_claims();
    matcher.find_carriers(interfaces);
    matcher.assign(interfaces, previous, claims);
    matcher.finish(interfaces, node_name)
}

/// Sorts younger pods first, then smaller names.
fn claim(pod: &Pod) -> (Reverse<i64>, &ObjectName) {
    (Reverse(pod.created), &pod.id)
}

/// Index into `Matcher::pods`.
type PodIdx = usize;

/// The steps of one matching, in the order of its methods.
#[derive(Default)]
struct Matcher<'a> {
    pods: Vec<&'a Pod>,
    /// The pod that has each address.
    owners: BTreeMap<IpAddr, PodIdx>,
    /// The addresses each pod has.
    owned: Vec<Vec<IpAddr>>,
    /// The namespaces in which each pod's addresses are.
    carriers: BTreeMap<PodIdx, BTreeSet<i32>>,
    /// The pods whose addresses are in each namespace.
    carried: BTreeMap<i32, BTreeSet<PodIdx>>,
    /// The pod each namespace belongs to.
    assigned: BTreeMap<i32, PodIdx>,
    /// Endpoints of pods without an object that are known to be there, by their incarnations: they
    /// stay as they were.
    kept: BTreeMap<u64, Endpoint>,
    findings: BTreeSet<Finding>,
}

impl<'a> Matcher<'a> {
    fn settle_claims(&mut self) {
        for (pod_idx, pod) in self.pods.iter().enumerate() {
            let mut owned = Vec::new();
            for &address in &pod.addresses {
                let owner = *self.owners.entry(address).or_insert(pod_idx);
                if owner != pod_idx {
                    self.findings.insert(Finding::AddressOfTwoPods {
                        address,
                        pod: self.pods[owner].id.clone(),
                        loser: pod.id.clone(),
                    });
                } else if !owned.contains(&address) {
                    owned.push(address);
                }
            }
            self.owned.push(owned);
        }
    }

    fn find_carriers(&mut self, interfaces: &[Interface]) {
        let mut by_address: BTreeMap<IpAddr, Vec<&Interface>> = BTreeMap::new();
        for interface in interfaces {
            for address in &interface.addresses {
                if let Some(&pod_idx) = self.owners.get(address) {
                    by_address.entry(*address).or_default().push(interface);
                    self.carriers.entry(pod_idx).or_default().insert(interface.nsid);
                    self.carried.entry(interface.nsid).or_default().insert(pod_idx);
                }
            }
        }
        for (address, carriers) in by_address {
            if carriers.iter().any(|interface| interface.nsid != carriers[0].nsid) {
                self.findings.insert(Finding::AddressOnTwoInterfaces {
                    address,
                    pod: self.pods[self.owners[&address]].id.clone(),
                    interfaces: carriers.iter().map(|interface| interface.name.clone()).collect(),
                });
            }
        }
    }

    fn assign(&mut self, interfaces: &[Interface], previous: &[Endpoint], claims: &[Claim]) {
        let by_uid: BTreeMap<&str, PodIdx> =
            self.pods.iter().enumerate().map(|(pod_idx, pod)| (&*pod.uid, pod_idx)).collect();
        let incarnations: BTreeMap<u64, i32> =
            interfaces.iter().map(|interface| (interface.incarnation, interface.nsid)).collect();
        for endpoint in previous {
            if let Some(&nsid) = incarnations.get(&endpoint.incarnation)
                && let Some(&pod_idx) = by_uid.get(&*endpoint.uid)
                && self.pods[pod_idx].id == endpoint.pod
                && self.owned[pod_idx] == endpoint.addresses
            {
                self.assigned.insert(nsid, pod_idx);
            }
        }
        let mut without_object = BTreeMap::new();
        for claim in claims {
            match by_uid.get(&*claim.uid).filter(|idx| self.pods[**idx].id == claim.pod) {
                Some(&pod_idx) => drop(self.assigned.insert(claim.nsid, pod_idx)),
                None => drop(without_object.insert(claim.nsid, &claim.pod)),
            }
        }
        for endpoint in previous {
            if let Some(&nsid) = incarnations.get(&endpoint.incarnation)
                && without_object.get(&nsid) == Some(&&endpoint.pod)
            {
                self.assigned.remove(&nsid);
                self.kept.insert(endpoint.incarnation, endpoint.clone());
            }
        }
        let is_free = |nsid: &i32| !without_object.contains_key(nsid);
        for (&nsid, pods) in self.carried.iter().filter(|(nsid, _)| is_free(nsid)) {
            // With addresses of several pods it is that of the pod that is nowhere else.
            let is_elsewhere = |pod_idx: &PodIdx| self.carriers[pod_idx].len() > 1;
            let best = pods.iter().min_by_key(|pod_idx| (is_elsewhere(pod_idx), **pod_idx));
            if let Some(&pod_idx) = best {
                self.assigned.entry(nsid).or_insert(pod_idx);
            }
        }
    }

    fn finish(mut self, interfaces: &[Interface], node_name: &str) -> Matching {
        let mut endpoints = Vec::new();
        for interface in interfaces {
            if let Some(&pod_idx) = self.assigned.get(&interface.nsid) {
                endpoints.push(self.endpoint(interface, pod_idx));
            } else if let Some(endpoint) = self.kept.get(&interface.incarnation) {
                endpoints.push(Endpoint { interface: interface.name.clone(), ..endpoint.clone() });
            } else {
                self.findings.insert(Finding::InterfaceWithoutPod {
                    ifindex: interface.ifindex,
                    interface: interface.name.clone(),
                    addresses: interface.addresses.clone(),
                });
            }
        }
        endpoints.sort_unstable_by_key(|endpoint| endpoint.ifindex);
        let with_interface: BTreeSet<PodIdx> = self.assigned.values().copied().collect();
        for (pod_idx, pod) in self.pods.iter().enumerate() {
            // A pod of no node may run on any of them.
            if pod.node.as_deref() == Some(node_name) && !with_interface.contains(&pod_idx) {
                let (pod, addresses) = (pod.id.clone(), pod.addresses.clone());
                self.findings.insert(if addresses.is_empty() {
                    Finding::PodWithoutAddress { pod }
                } else {
                    Finding::PodWithoutInterface { pod, addresses }
                });
            }
        }
        Matching { endpoints, findings: self.findings.into_iter().collect() }
    }

    fn endpoint(&self, interface: &Interface, pod_idx: PodIdx) -> Endpoint {
        let pod = self.pods[pod_idx];
        let owned = &self.owned[pod_idx];
        let is_main = interface.addresses.iter().any(|address| owned.contains(address));
        // A pod whose address is on no interface has not a further one but has lost its address.
        let is_further = !is_main
            && self.carried.get(&interface.nsid).is_some_and(|pods| pods.contains(&pod_idx));
        let is_its_own = |address: &&IpAddr| {
            is_link_local(address) || is_further && !self.owners.contains_key(*address)
        };
        Endpoint {
            ifindex: interface.ifindex,
            interface: interface.name.clone(),
            incarnation: interface.incarnation,
            nsid: interface.nsid,
            netns: interface.netns.as_ref().map(|netns| netns.id),
            pod: pod.id.clone(),
            uid: pod.uid.clone(),
            addresses: owned.clone(),
            other_addresses: interface.addresses.iter().filter(is_its_own).copied().collect(),
        }
    }
}

fn list(addresses: &[IpAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests;
