//! Who may speak on which interface: what is declared for it, and the guards of pods that no policy
//! selects. Must never take an address for declared because an interface has it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use crate::annotations::{self, Annotated, Trust};
use crate::endpoints::Endpoints;
use crate::enforcement::Enforcement;
use crate::links::{Links, is_link_local6};
use crate::options::SourceCheck;
use crate::sandboxes::Sandboxes;
use netpol_compile::EndpointId;
use netpol_datapath::Datapath;
use netpol_endpoint::{Endpoint, Interface, Snapshot};
use netpol_model::{Cluster, Uid};

/// What is known of speakers beside the endpoints.
#[derive(Debug)]
pub(crate) struct Speakers {
    source_check: SourceCheck,
    /// Which annotations of pods count.
    trust: Trust,
    links: Links,
    /// Interfaces, by [`Interface::incarnation`], for which addresses were declared once.
    mains: BTreeSet<u64>,
}

impl Speakers {
    /// With what an earlier agent knew of links.
    pub(crate) fn new(source_check: SourceCheck, trust: Trust, links: Links) -> Self {
        Self { source_check, trust, links, mains: BTreeSet::new() }
    }

    /// Whether any annotation of pods counts.
    pub(crate) fn has_trust(&self) -> bool {
        self.trust.is_some()
    }

    /// Whether there are to be guards follows from whether there is any policy.
    pub(crate) fn update_guards(&self, cluster: &Cluster, enforcement: &mut Enforcement) {
        let has_policies = cluster.policies.values().any(|of_namespace| !of_namespace.is_empty())
            || !cluster.cluster_policies.is_empty();
        enforcement.want_guards(self.source_check == SourceCheck::All && has_policies);
    }

    /// What is declared for the endpoints, or how they are linked to the node, may have changed
    /// though they are the same.
    pub(crate) fn update(
        &mut self,
        endpoints: &Endpoints,
        sandboxes: &Sandboxes,
        enforcement: &mut Enforcement,
    ) {
        for (id, endpoint) in endpoints.numbered() {
            let addresses = sandboxes.declared_for(endpoint);
            enforcement.set_addresses(id, endpoint.ifindex, addresses, endpoints);
        }
        self.update_links(endpoints, sandboxes, enforcement);
        self.update_prefixes(endpoints, enforcement);
    }

    /// Has the datapath know which pods forward for others.
    pub(crate) fn update_prefixes(&self, endpoints: &Endpoints, enforcement: &mut Enforcement) {
        let of = |endpoint: &Endpoint| {
            let ifindex = endpoint.ifindex;
            let annotated = self.annotated(endpoint, endpoints);
            annotated.prefixes.into_iter().map(move |block| (ifindex, block))
        };
        let wanted = endpoints.list().iter().flat_map(of).collect();
        enforcement.set_source_prefixes(wanted, endpoints);
    }

    /// Has the datapath know how the endpoints' interfaces are linked to the node, and which may have
    /// a guard.
    pub(crate) fn update_links(
        &mut self,
        endpoints: &Endpoints,
        sandboxes: &Sandboxes,
        enforcement: &mut Enforcement,
    ) {
        let Snapshot { interfaces, own_addresses, .. } = endpoints.snapshot();
        let ids: HashMap<u32, EndpointId> =
            endpoints.numbered().map(|(id, endpoint)| (endpoint.ifindex, id)).collect();
        let is_pods = |ifindex| ids.contains_key(&ifindex);
        for (ifindex, link) in self.links.of_pods(interfaces, own_addresses, is_pods) {
            enforcement.set_link(ids[&ifindex], link);
        }
        let mains = self.mains(endpoints, sandboxes, enforcement.datapath());
        for (&ifindex, &id) in &ids {
            enforcement.set_main(id, mains.contains(&ifindex));
        }
    }

    /// The interfaces, by index, that declared addresses are of: a pod's only one, those that the
    /// plugin has named addresses of, and those that have, or had when they were found, one of
    /// their pod's.
    fn mains(
        &mut self,
        endpoints: &Endpoints,
        sandboxes: &Sandboxes,
        datapath: &Datapath,
    ) -> BTreeSet<u32> {
        let interfaces = &endpoints.snapshot().interfaces;
        let by_index: BTreeMap<u32, &Interface> =
            interfaces.iter().map(|i| (i.ifindex, i)).collect();
        let incarnations: BTreeSet<u64> = by_index.values().map(|i| i.incarnation).collect();
        self.mains.retain(|incarnation| incarnations.contains(incarnation));
        let mut n_of_pod: HashMap<&Uid, usize> = HashMap::new();
        for endpoint in endpoints.list() {
            *n_of_pod.entry(&endpoint.uid).or_default() += 1;
        }
        let mut mains = BTreeSet::new();
        for endpoint in endpoints.list() {
            let has_own = by_index.get(&endpoint.ifindex).is_some_and(|interface| {
                interface.addresses.iter().any(|address| endpoint.addresses.contains(address))
            });
            let is_main = n_of_pod[&endpoint.uid] == 1
                || has_own
                || !sandboxes.addresses_of(endpoint.incarnation).is_empty()
                || self.mains.contains(&endpoint.incarnation)
                || datapath.was_guarded(endpoint.ifindex);
            if is_main {
                self.mains.insert(endpoint.incarnation);
                mains.insert(endpoint.ifindex);
            }
        }
        mains
    }

    /// What the annotations of an endpoint's pod say, as far as they count.
    fn annotated(&self, endpoint: &Endpoint, endpoints: &Endpoints) -> Annotated {
        let pods = endpoints.holders().pods();
        let pod = pods.get(&endpoint.uid).filter(|_| self.trust.is_some());
        let annotations = pod.and_then(|pod| pod.annotations.as_deref());
        annotations
            .map(|annotations| annotations::read(annotations, self.trust))
            .unwrap_or_default()
    }

    /// Names what is dropped although an interface has it: addresses that nobody declared.
    pub(crate) fn undeclared(
        &self,
        endpoints: &Endpoints,
        sandboxes: &Sandboxes,
        datapath: &Datapath,
    ) -> Vec<String> {
        if self.source_check == SourceCheck::Off {
            return Vec::new();
        }
        let mut notes = Vec::new();
        for (id, endpoint) in endpoints.numbered() {
            let interface = endpoints.interface_of(endpoint);
            if let Some(interface) = interface.filter(|_| datapath.checks_speaker(id)) {
                let annotated = self.annotated(endpoint, endpoints);
                let problems = annotated.problems.iter();
                notes.extend(problems.map(|problem| format!("pod {}: {problem}", endpoint.pod)));
                let declared = sandboxes.declared_for(endpoint);
                notes.extend(undeclared_note(endpoint, interface, &declared, &annotated));
                notes.extend(self.link_note(endpoint, interface));
            }
        }
        notes
    }

    fn link_note(&self, endpoint: &Endpoint, interface: &Interface) -> Option<String> {
        self.links.is_changed(interface).then(|| {
            format!(
                "pod {} has another link-layer address on {} ({} here) than when it was found: \
                 what it sends from there to others on its link is dropped (source-address)",
                endpoint.pod, interface.peer_name, endpoint.interface
            )
        })
    }
}

fn undeclared_note(
    endpoint: &Endpoint,
    interface: &Interface,
    declared: &[IpAddr],
    annotated: &Annotated,
) -> Option<String> {
    let is_forwarded =
        |address: &IpAddr| annotated.prefixes.iter().any(|block| block.contains(address));
    let found: Vec<String> = interface
        .addresses
        .iter()
        .filter(|address| !declared.contains(address) && !is_link_local6(address))
        .filter(|address| !is_forwarded(address))
        .map(ToString::to_string)
        .collect();
    (!found.is_empty()).then(|| {
        format!(
            "pod {} has {} on {} ({} here), which nobody has declared: what it sends from \
             there is dropped (source-address). Its own are those in its status and those \
             that the CNI plugin tells",
            endpoint.pod,
            found.join(", "),
            interface.peer_name,
            endpoint.interface
        )
    })
}
