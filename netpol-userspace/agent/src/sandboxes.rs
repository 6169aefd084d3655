//! All sandboxes that the container runtime has told of, and what follows for the pods: which
//! addresses a pod has before its status says so, and which it has no more although its status
//! still does. Pure: files are written by the plugin, and removed by who calls this.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::links::is_link_local6;
use netpol_api::sandbox::{Attachment, Sandbox};
use netpol_endpoint::{Claim, Endpoint, Interface};
use netpol_model::{Addresses, Cluster, ObjectName, Pod};

/// How long a sandbox may have neither an interface nor a pod before it is forgotten: its runtime
/// may never have got further.
const LIMBO: Duration = Duration::from_secs(300);

/// The sandboxes of this node.
#[derive(Debug, Default)]
pub(crate) struct Sandboxes {
    /// The latest last.
    list: Vec<Entry>,
    /// The addresses by status of pods that count with others.
    by_status: BTreeMap<ObjectName, Addresses>,
}

#[derive(Debug)]
struct Entry {
    sandbox: Sandbox,
    since: Instant,
    /// The interface it was found to have.
    link: Link,
}

/// What is known of a sandbox's interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Link {
    /// Not found yet.
    Awaited,
    /// By its [`Interface::incarnation`].
    Found { incarnation: u64 },
    /// It was there and is not any more.
    Gone,
}

/// How a pod's sandbox stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Nobody has told of it.
    Unknown,
    /// Its interface has not been found.
    NoInterface,
    /// Its interface has this incarnation.
    Interface(u64),
}

impl Sandboxes {
    /// Those that files tell of.
    pub(crate) fn new(sandboxes: impl IntoIterator<Item = Sandbox>) -> Self {
        let mut all = Self::default();
        for sandbox in sandboxes {
            all.add(sandbox);
        }
        all
    }

    /// Adds one. An address that another one had is taken from it: who gives addresses out
    /// knows that it is free.
    pub(crate) fn add(&mut self, sandbox: Sandbox) {
        let attachment = sandbox.attachment();
        let before = self.list.iter().position(|entry| entry.sandbox.attachment() == attachment);
        let before = before.map(|index| self.list.remove(index));
        let same = before.filter(|entry| entry.sandbox.pair == sandbox.pair);
        if sandbox.is_main() && !sandbox.is_over {
            let takes = |other: &Sandbox| {
                other.is_main() && other.addresses.iter().any(|a| sandbox.addresses.contains(a))
            };
            for entry in self.list.iter_mut().filter(|entry| takes(&entry.sandbox)) {
                entry.sandbox.is_over = true;
            }
        }
        let link = same.map_or(Link::Awaited, |entry| entry.link);
        self.list.push(Entry { sandbox, since: Instant::now(), link });
    }

    /// The runtime has ended it. Returns whether it was known.
    pub(crate) fn end(&mut self, attachment: &Attachment) -> bool {
        let entry = self.list.iter_mut().find(|e| e.sandbox.attachment() == *attachment);
        entry.map(|entry| entry.sandbox.is_over = true).is_some()
    }

    /// The attachments to a network that are not over and not in this list.
    pub(crate) fn not_among(&self, network: &str, valid: &[Attachment]) -> Vec<Attachment> {
        let here = self.live().filter(|sandbox| sandbox.network == network);
        here.map(Sandbox::attachment).filter(|a| !valid.contains(a)).collect()
    }

    /// The sandbox of an attachment.
    pub(crate) fn get(&self, attachment: &Attachment) -> Option<&Sandbox> {
        self.entry(attachment).map(|entry| &entry.sandbox)
    }

    fn entry(&self, attachment: &Attachment) -> Option<&Entry> {
        self.list.iter().find(|entry| entry.sandbox.attachment() == *attachment)
    }

    /// All that are not over.
    pub(crate) fn live(&self) -> impl Iterator<Item = &Sandbox> {
        self.list.iter().map(|entry| &entry.sandbox).filter(|sandbox| !sandbox.is_over)
    }

    /// How an attachment stands.
    pub(crate) fn standing(&self, attachment: &Attachment) -> Standing {
        match self.entry(attachment).map(|entry| entry.link) {
            None => Standing::Unknown,
            Some(Link::Awaited | Link::Gone) => Standing::NoInterface,
            Some(Link::Found { incarnation }) => Standing::Interface(incarnation),
        }
    }

    // === Interfaces ===

    /// Finds the sandboxes' interfaces among those that there are. One whose interface is gone is
    /// over, whether somebody said so or not. Returns whether anything is.
    pub(crate) fn find_interfaces(&mut self, interfaces: &[Interface]) -> bool {
        let mut any_over = false;
        for entry in &mut self.list {
            entry.link = match entry.link {
                Link::Gone => Link::Gone,
                Link::Awaited => Link::of(&entry.sandbox, interfaces).unwrap_or(Link::Awaited),
                Link::Found { incarnation } => {
                    let same = interfaces.iter().find(|i| i.incarnation == incarnation);
                    same.map_or(Link::Gone, Link::to)
                }
            };
            if entry.link == Link::Gone && !entry.sandbox.is_over {
                entry.sandbox.is_over = true;
                any_over = true;
            }
        }
        any_over
    }

    /// Whose the interfaces are that were found, the latest last. One that is over belongs to its
    /// pod until it is gone: it must not be open in between.
    pub(crate) fn claims(&self, cluster: &Cluster) -> Vec<Claim> {
        let claim = |entry: &Entry| {
            let Link::Found { incarnation } = entry.link else { return None };
            let name = entry.sandbox.name();
            let pod = cluster.pod(&name).filter(|pod| entry.sandbox.is_of(pod));
            let uid = pod.map_or_else(|| entry.sandbox.uid.as_str().into(), |pod| pod.uid.clone());
            Some(Claim { incarnation, pod: name, uid })
        };
        self.list.iter().filter_map(claim).collect()
    }

    // === Addresses ===

    /// What the interface with this incarnation got, as the runtime has told.
    pub(crate) fn addresses_of(&self, incarnation: u64) -> Vec<IpAddr> {
        let is_its = |entry: &&Entry| {
            !entry.sandbox.is_over
                && matches!(entry.link, Link::Found { incarnation: of, .. } if of == incarnation)
        };
        let its = self.list.iter().filter(is_its);
        its.flat_map(|entry| entry.sandbox.addresses.iter().copied()).collect()
    }

    /// What an endpoint may speak as: its pod's status, and what its interface got by the CNI
    /// plugin's word.
    pub(crate) fn declared_for(&self, endpoint: &Endpoint) -> Vec<IpAddr> {
        let by_plugin = self.addresses_of(endpoint.incarnation);
        let mut all = endpoint.addresses.clone();
        all.extend(by_plugin.iter().filter(|address| !endpoint.addresses.contains(address)));
        all.retain(|address| !is_link_local6(address));
        all
    }

    /// Gives a pod, as the source has it, the addresses that it has in truth.
    pub(crate) fn amend(&mut self, pod: &mut Pod) {
        match self.true_addresses(pod) {
            Some(addresses) => {
                let by_status = std::mem::replace(&mut pod.addresses, addresses);
                self.by_status.insert(pod.id.clone(), by_status);
            }
            None => {
                self.by_status.remove(&pod.id);
            }
        }
    }

    /// A pod's object is gone.
    pub(crate) fn forget_pod(&mut self, id: &ObjectName) {
        self.by_status.remove(id);
    }

    /// A pod of the cluster as the source had it.
    fn by_status(&self, pod: &Pod) -> Pod {
        let addresses = self.by_status.get(&pod.id).unwrap_or(&pod.addresses).clone();
        Pod { addresses, ..pod.clone() }
    }

    /// The pods whose addresses are not what they should be by now, amended: those that lose one
    /// first. `claimants` are the networked pods that claim an address: a pod that starts must not
    /// wait for a look at all pods of the cluster.
    pub(crate) fn outdated(
        &mut self,
        cluster: &Cluster,
        claimants: impl Fn(IpAddr) -> Vec<ObjectName>,
    ) -> Vec<Pod> {
        let sandboxes = || self.list.iter().map(|entry| &entry.sandbox);
        let addresses = sandboxes().flat_map(|sandbox| sandbox.addresses.iter().copied());
        let mut concerned: BTreeSet<ObjectName> = addresses.flat_map(claimants).collect();
        concerned.extend(sandboxes().map(Sandbox::name));
        concerned.extend(self.by_status.keys().cloned());
        let mut outdated = Vec::new();
        for pod in concerned.iter().filter_map(|id| cluster.pod(id)) {
            let mut amended = self.by_status(pod);
            self.amend(&mut amended);
            if amended != *pod {
                outdated.push(amended);
            }
        }
        outdated.sort_by_key(|pod| pod.addresses.len());
        outdated
    }

    /// The addresses of a pod, where its status is wrong or late. What a live sandbox got counts,
    /// unless the status says so too, or a part of it (a pod has one address of a family, the
    /// runtime may have got several). Otherwise what others have now, and what it had in sandboxes
    /// that are over, does not count.
    fn true_addresses(&self, pod: &Pod) -> Option<Addresses> {
        if !pod.is_networked() || self.list.is_empty() {
            return None;
        }
        let main = || self.list.iter().rev().map(|e| &e.sandbox).filter(|s| s.is_main());
        if let Some(live) = main().find(|sandbox| !sandbox.is_over && sandbox.is_of(pod)) {
            let agrees = !pod.addresses.is_empty()
                && pod.addresses.iter().all(|address| live.addresses.contains(address));
            return (!agrees).then(|| live.addresses.clone().into());
        }
        let is_lost = |address: &IpAddr| {
            main().any(|sandbox| {
                (!sandbox.is_over || sandbox.is_of(pod)) && sandbox.addresses.contains(address)
            })
        };
        let left: Addresses =
            pod.addresses.iter().filter(|address| !is_lost(address)).copied().collect();
        (left != pod.addresses).then_some(left)
    }

    // === Ends ===

    /// Forgets what has no more consequences; returns it, for its files to be removed.
    pub(crate) fn prune(&mut self, cluster: &Cluster) -> Vec<Attachment> {
        let mut forgotten = Vec::new();
        let needed: Vec<bool> = (0..self.list.len()).map(|i| self.is_needed(i, cluster)).collect();
        let mut needed = needed.into_iter();
        self.list.retain(|entry| {
            let is_needed = needed.next().unwrap_or(true);
            if !is_needed {
                forgotten.push(entry.sandbox.attachment());
            }
            is_needed
        });
        forgotten
    }

    fn is_needed(&self, index: usize, cluster: &Cluster) -> bool {
        let Entry { sandbox, since, link } = &self.list[index];
        let pod = cluster.pod(&sandbox.name()).filter(|pod| sandbox.is_of(pod));
        match (link, sandbox.is_over) {
            (Link::Found { .. }, _) => true,
            (_, false) => pod.is_some() || since.elapsed() < LIMBO,
            // The status may still give the address that another pod may have by now.
            (_, true) => pod.is_some_and(|pod| {
                let later = self.list[index + 1..].iter().map(|entry| &entry.sandbox);
                let is_replaced =
                    later.into_iter().any(|s| s.is_main() && !s.is_over && s.is_of(pod));
                let by_status = self.by_status.get(&pod.id).unwrap_or(&pod.addresses);
                !is_replaced && by_status.iter().any(|a| sandbox.addresses.contains(a))
            }),
        }
    }
}

impl Link {
    fn to(interface: &Interface) -> Self {
        Self::Found { incarnation: interface.incarnation }
    }

    /// That of a sandbox, if it is among these.
    fn of(sandbox: &Sandbox, interfaces: &[Interface]) -> Option<Self> {
        let pair = sandbox.pair?;
        let is_its = |interface: &&Interface| {
            let netns = interface.netns.as_ref().map(|netns| (netns.id.dev, netns.id.ino));
            interface.ifindex == pair.ifindex
                && interface.peer_ifindex == pair.peer_ifindex
                && netns.is_none_or(|netns| netns == sandbox.netns)
        };
        interfaces.iter().find(is_its).map(Self::to)
    }
}

#[cfg(test)]
mod tests;
