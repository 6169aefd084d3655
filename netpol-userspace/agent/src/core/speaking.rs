//! Who may speak on which interface: what is declared for it, and the guards of pods that no policy
//! selects. Must never take an address for declared because an interface has it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use super::Core;
use crate::annotations::{self, Annotated, Trust};
use crate::links::Links;
use crate::numbers::Key;
use crate::options::SourceCheck;
use netpol_compile::EndpointId;
use netpol_datapath::EndpointFailure;
use netpol_endpoint::{Endpoint, Interface, Snapshot};
use netpol_model::Uid;

/// What is known of speakers beside the endpoints.
#[derive(Debug, Default)]
pub(super) struct Speaking {
    pub(super) links: Links,
    /// Interfaces, by [`Interface::incarnation`], for which addresses were declared once.
    mains: BTreeSet<u64>,
    /// Which annotations of pods count.
    pub(super) trust: Trust,
}

impl Speaking {
    pub(super) fn new(links: Links, trust: Trust) -> Self {
        Self { links, mains: BTreeSet::new(), trust }
    }
}

impl Core {
    /// What an endpoint may speak as: its pod's status, and what its interface got by the CNI
    /// plugin's word.
    pub(super) fn declared(&self, endpoint: &Endpoint) -> Vec<IpAddr> {
        let told = self.sandboxes.addresses_of(endpoint.incarnation);
        let mut all = endpoint.addresses.clone();
        all.extend(told.iter().filter(|address| !endpoint.addresses.contains(address)));
        all.retain(|address| !is_link_local6(address));
        all
    }

    /// What the annotations of an endpoint's pod say, as far as they count.
    fn annotated(&self, endpoint: &Endpoint) -> Annotated {
        let trust = self.speaking.trust;
        let pod = self.holders.pods().get(&endpoint.uid).filter(|_| trust.is_some());
        let annotations = pod.and_then(|pod| pod.annotations.as_deref());
        annotations.map(|annotations| annotations::read(annotations, trust)).unwrap_or_default()
    }

    /// Annotations of pods of this node may have changed.
    pub(super) fn note_annotations(&mut self) {
        if self.speaking.trust.is_some() {
            self.note_speakers();
        }
    }

    /// Tells the datapath which pods forward for others.
    pub(super) fn note_prefixes(&mut self) {
        let of = |endpoint: &Endpoint| {
            let ifindex = endpoint.ifindex;
            self.annotated(endpoint).prefixes.into_iter().map(move |block| (ifindex, block))
        };
        let wanted = self.endpoints.iter().flat_map(of).collect();
        if let Err(error) = self.datapath.set_source_prefixes(wanted) {
            self.note_failure(EndpointFailure { endpoint: None, error });
        }
    }

    /// What is declared for the endpoints, or how they are linked to the node, may have changed
    /// though they are the same.
    pub(super) fn note_speakers(&mut self) {
        for (id, endpoint) in
            self.numbered_endpoints().map(|(id, e)| (id, e.clone())).collect::<Vec<_>>()
        {
            let addresses = self.declared(&endpoint);
            if let Err(error) = self.datapath.add_endpoint(id, endpoint.ifindex, addresses) {
                self.note_failure(EndpointFailure { endpoint: Some(id), error });
            }
        }
        self.note_links();
        self.note_prefixes();
    }

    /// Tells the datapath how the endpoints' interfaces are linked to the node, and which may have
    /// a guard.
    pub(super) fn note_links(&mut self) {
        let Snapshot { interfaces, own_addresses, .. } = &*self.snapshot;
        let ids: HashMap<u32, EndpointId> =
            self.numbered_endpoints().map(|(id, endpoint)| (endpoint.ifindex, id)).collect();
        let is_pods = |ifindex| ids.contains_key(&ifindex);
        for (ifindex, link) in self.speaking.links.of_pods(interfaces, own_addresses, is_pods) {
            self.datapath.set_link(ids[&ifindex], link);
        }
        let mains = self.mains();
        for (&ifindex, &id) in &ids {
            self.datapath.set_main(id, mains.contains(&ifindex));
        }
    }

    /// The interfaces, by index, that declared addresses are of: a pod's only one, those that the
    /// plugin has told addresses of, and those that have, or had when they were found, one of
    /// their pod's.
    fn mains(&mut self) -> BTreeSet<u32> {
        let by_index: BTreeMap<u32, &Interface> =
            self.snapshot.interfaces.iter().map(|i| (i.ifindex, i)).collect();
        let incarnations: BTreeSet<u64> = by_index.values().map(|i| i.incarnation).collect();
        self.speaking.mains.retain(|incarnation| incarnations.contains(incarnation));
        let mut n_of_pod: HashMap<&Uid, usize> = HashMap::new();
        for endpoint in &self.endpoints {
            *n_of_pod.entry(&endpoint.uid).or_default() += 1;
        }
        let mut mains = BTreeSet::new();
        for endpoint in &self.endpoints {
            let has_own = by_index.get(&endpoint.ifindex).is_some_and(|interface| {
                interface.addresses.iter().any(|address| endpoint.addresses.contains(address))
            });
            let is_main = n_of_pod[&endpoint.uid] == 1
                || has_own
                || !self.sandboxes.addresses_of(endpoint.incarnation).is_empty()
                || self.speaking.mains.contains(&endpoint.incarnation)
                || self.datapath.was_guarded(endpoint.ifindex);
            if is_main {
                self.speaking.mains.insert(endpoint.incarnation);
                mains.insert(endpoint.ifindex);
            }
        }
        mains
    }

    /// Whether there are to be guards follows from whether there is any policy.
    pub(super) fn note_policies(&mut self) {
        let policies = &self.compiler.cluster().policies;
        let has_policies = policies.values().any(|of_namespace| !of_namespace.is_empty());
        self.datapath.want_guards(self.source_check == SourceCheck::All && has_policies);
    }

    /// Whether guards are still to be put on or taken off.
    pub fn has_pending_guards(&self) -> bool {
        self.is_reconciled && self.datapath.has_pending_guards()
    }

    /// Does that with one of them.
    pub fn update_next_guard(&mut self) {
        if let Some((id, Err(error))) = self.datapath.settle_a_guard() {
            self.note_failure(EndpointFailure { endpoint: Some(id), error });
        }
        self.is_dirty = true;
        if !self.has_pending_guards() {
            self.settle_waits();
        }
    }

    /// Whether who speaks on this interface is still to be guarded.
    pub(super) fn awaits_guard(&self, incarnation: u64) -> bool {
        let endpoint = self.endpoints.iter().find(|e| e.incarnation == incarnation);
        let id = endpoint.and_then(|endpoint| self.numbers.get(&Key::of(endpoint)));
        id.is_some_and(|id| self.datapath.is_guard_pending(id))
    }

    /// Names what is dropped although an interface has it: addresses that nobody declared.
    pub(super) fn undeclared(&self) -> Vec<String> {
        if self.source_check == SourceCheck::Off {
            return Vec::new();
        }
        let mut notes = Vec::new();
        for (id, endpoint) in self.numbered_endpoints() {
            let interface = self.snapshot.interfaces.iter().find(|i| i.ifindex == endpoint.ifindex);
            let Some(interface) = interface.filter(|_| self.datapath.checks_speaker(id)) else {
                continue;
            };
            let declared = self.declared(endpoint);
            let annotated = self.annotated(endpoint);
            let is_forwarded =
                |address: &IpAddr| annotated.prefixes.iter().any(|block| block.contains(address));
            notes.extend(
                annotated.problems.iter().map(|problem| format!("pod {}: {problem}", endpoint.pod)),
            );
            let found: Vec<String> = interface
                .addresses
                .iter()
                .filter(|address| !declared.contains(address) && !is_link_local6(address))
                .filter(|address| !is_forwarded(address))
                .map(ToString::to_string)
                .collect();
            if !found.is_empty() {
                notes.push(format!(
                    "pod {} has {} on {} ({} here), which nobody has declared: what it sends from \
                     there is dropped (source-address). Its own are those in its status and those \
                     that the CNI plugin tells",
                    endpoint.pod,
                    found.join(", "),
                    interface.peer_name,
                    endpoint.interface
                ));
            }
            if self.speaking.links.is_changed(interface) {
                notes.push(format!(
                    "pod {} has another link-layer address on {} ({} here) than when it was found: \
                     what it sends from there to others on its link is dropped (source-address)",
                    endpoint.pod, interface.peer_name, endpoint.interface
                ));
            }
        }
        notes
    }
}

/// IPv6 link-local addresses are the interface's own affair, and never the pod's addresses.
fn is_link_local6(address: &IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}
