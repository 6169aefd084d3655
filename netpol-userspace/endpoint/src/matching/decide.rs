//! The steps of one matching, from the strongest evidence to the weakest. Each only looks at what
//! the ones before have left open.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::RangeInclusive;

use super::{
    Claim, Endpoint, Evidence, Finding, Holder, Matching, NOBODY, Owners, Pinned, PodIdx, Why,
    claim,
};
use crate::{Interface, Switch};
use netpol_model::{ObjectName, Pod, Uid};

/// Whose an interface is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Decision<'a> {
    /// A pod with an object.
    Pod {
        pod_idx: PodIdx,
        /// Only shown addresses have told.
        is_by_address: bool,
        /// If the pod should not have it any more.
        why: Option<Why>,
    },
    /// The pod that it was, which has no object that could tell more.
    Kept(&'a Endpoint, Why),
    OneOf(BTreeSet<PodIdx>),
    Unknown,
}

impl Decision<'_> {
    /// Whether both mean the same pod.
    fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Pod { pod_idx: a, .. }, Self::Pod { pod_idx: b, .. }) => a == b,
            (Self::Kept(a, _), Self::Kept(b, _)) => a.uid == b.uid,
            (a, b) => a == b,
        }
    }
}

/// The interfaces that lead to one namespace.
#[derive(Debug, Default)]
struct Group<'a> {
    members: Vec<&'a Interface>,
    /// Addresses that tell whose it is: those by which it is pinned, else those that it shows.
    evident: BTreeSet<IpAddr>,
    is_pinned: bool,
    /// The runtime has said that it is a pod's that nobody knows: it is no other pod's.
    is_barred: bool,
    /// What was known of it cannot simply be kept.
    doubtful: Vec<(u64, &'a Endpoint)>,
    /// What was known of it is kept.
    is_known: bool,
}

/// By [`Interface::nsid`].
type GroupId = i32;

pub(super) struct Matcher<'a> {
    evidence: Evidence<'a>,
    pods: Vec<&'a Pod>,
    owners: Owners,
    groups: BTreeMap<GroupId, Group<'a>>,
    /// By incarnation.
    decisions: BTreeMap<u64, Decision<'a>>,
    /// The last matching, likewise.
    previous: BTreeMap<u64, &'a Endpoint>,
    interfaces: BTreeMap<u64, &'a Interface>,
    by_uid: BTreeMap<&'a Uid, PodIdx>,
    /// The namespace that each pod has been found to have.
    placed: BTreeMap<PodIdx, GroupId>,
    /// The namespaces that are only supposed to be a pod's.
    supposed: BTreeSet<GroupId>,
    findings: BTreeSet<Finding>,
}

impl<'a> Matcher<'a> {
    pub fn new(pods: impl IntoIterator<Item = &'a Pod>, evidence: &Evidence<'a>) -> Self {
        let is_local = |pod: &&Pod| pod.node.as_deref().is_none_or(|n| n == evidence.node_name);
        let pods = pods.into_iter().filter(|pod| !pod.host_network).filter(is_local);
        let mut pods: Vec<&Pod> = pods.collect();
        pods.sort_unstable_by(|a, b| claim(a).cmp(&claim(b)));
        let mut findings = BTreeSet::new();
        let owners = Owners::new(&pods, &mut findings);
        let mut matcher = Self {
            evidence: *evidence,
            owners,
            groups: BTreeMap::new(),
            decisions: BTreeMap::new(),
            previous: evidence.previous.iter().map(|e| (e.incarnation, e)).collect(),
            interfaces: evidence.interfaces.iter().map(|i| (i.incarnation, i)).collect(),
            by_uid: pods.iter().enumerate().map(|(idx, pod)| (&pod.uid, idx)).collect(),
            pods,
            placed: BTreeMap::new(),
            supposed: BTreeSet::new(),
            findings,
        };
        matcher.make_groups();
        matcher
    }

    pub fn decide(mut self) -> Matching {
        self.report_shared_addresses();
        self.follow_claims();
        self.follow_memory();
        self.follow_routes();
        self.give_to_successors();
        self.follow_addresses();
        self.keep_doubtful();
        self.suspect_the_missing();
        self.follow_addresses_of_the_ended();
        self.close_the_unknown();
        self.extend_to_namespaces();
        self.finish()
    }

    fn make_groups(&mut self) {
        for interface in self.evidence.interfaces {
            let group = self.groups.entry(interface.nsid).or_default();
            group.members.push(interface);
        }
        for group in self.groups.values_mut() {
            let is_of = |pinned: &&Pinned| {
                group.members.iter().any(|member| member.incarnation == pinned.incarnation)
            };
            let pinned: Vec<&Pinned> = self.evidence.pinned.iter().filter(is_of).collect();
            group.is_pinned = !pinned.is_empty();
            group.evident = match group.is_pinned {
                true => pinned.iter().flat_map(|pinned| &pinned.addresses).copied().collect(),
                false => group.members.iter().flat_map(|m| &m.addresses).copied().collect(),
            };
        }
    }

    fn report_shared_addresses(&mut self) {
        let mut by_address: BTreeMap<IpAddr, Vec<&Interface>> = BTreeMap::new();
        for interface in self.evidence.interfaces {
            for address in &interface.addresses {
                let owner = self.owners.by_address.get(address);
                if owner.is_some_and(|owner| !self.pods[*owner].finished) {
                    by_address.entry(*address).or_default().push(interface);
                }
            }
        }
        for (address, carriers) in by_address {
            if carriers.iter().any(|interface| interface.nsid != carriers[0].nsid) {
                self.findings.insert(Finding::AddressOnTwoInterfaces {
                    address,
                    pod: self.pods[self.owners.by_address[&address]].id.clone(),
                    interfaces: carriers.iter().map(|interface| interface.name.clone()).collect(),
                });
            }
        }
    }

    // === Looking up ===

    fn pod_of(&self, uid: &Uid, id: &ObjectName) -> Option<PodIdx> {
        self.by_uid.get(uid).copied().filter(|pod_idx| self.pods[*pod_idx].id == *id)
    }

    fn interface(&self, incarnation: u64) -> Option<&'a Interface> {
        self.interfaces.get(&incarnation).copied()
    }

    /// When it was first seen by any agent.
    fn appeared(&self, interface: &Interface) -> i64 {
        let before = self.previous.get(&interface.incarnation);
        before.map_or(interface.appeared, |endpoint| endpoint.appeared.min(interface.appeared))
    }

    /// Gives an interface to a pod. One that has another namespace has left this one.
    fn place(&mut self, interface: &Interface, pod_idx: PodIdx, is_by_address: bool) {
        let place = *self.placed.entry(pod_idx).or_insert(interface.nsid);
        let why = match self.pods[pod_idx].finished {
            true => Some(Why::Ended),
            false => (place != interface.nsid).then_some(Why::Elsewhere),
        };
        let decision = Decision::Pod { pod_idx, is_by_address, why };
        self.decisions.insert(interface.incarnation, decision);
    }

    fn place_group(&mut self, group: GroupId, pod_idx: PodIdx) {
        for member in self.groups[&group].members.clone() {
            self.place(member, pod_idx, true);
        }
    }

    /// Pods that run by their objects and have no interface yet.
    fn unplaced(&self) -> impl Iterator<Item = PodIdx> {
        let all = self.pods.iter().enumerate();
        let unplaced =
            all.filter(|(pod_idx, pod)| !pod.finished && !self.placed.contains_key(pod_idx));
        unplaced.map(|(pod_idx, _)| pod_idx)
    }

    fn is_decided(&self, group: &Group<'_>) -> bool {
        group.members.iter().any(|member| self.decisions.contains_key(&member.incarnation))
    }

    /// Whether nothing is known of a namespace.
    fn is_free(&self, group: &Group<'_>) -> bool {
        !group.is_barred && group.doubtful.is_empty() && !self.is_decided(group)
    }

    fn free_groups(&self) -> impl Iterator<Item = (GroupId, &Group<'a>)> {
        let groups = self.groups.iter().map(|(&id, group)| (id, group));
        groups.filter(|(_, group)| self.is_free(group))
    }

    /// Whether a namespace has something by which it could be this pod's.
    fn points_to(&self, group: &Group<'_>, pod_idx: PodIdx) -> bool {
        self.owners.owned[pod_idx].iter().any(|address| group.evident.contains(address))
    }

    // === Steps ===

    fn follow_claims(&mut self) {
        // The latest of a pod first: the sandbox before may still be there.
        for Claim { incarnation, pod, uid } in self.evidence.claims.iter().rev() {
            let Some(interface) = self.interface(*incarnation) else { continue };
            if let Some(pod_idx) = self.pod_of(uid, pod) {
                self.place(interface, pod_idx, false);
                continue;
            }
            let before = self.previous.get(incarnation).copied();
            match before.filter(|endpoint| endpoint.pod == *pod) {
                Some(endpoint) => {
                    self.decisions.insert(*incarnation, Decision::Kept(endpoint, Why::Gone));
                }
                None => {
                    self.groups.entry(interface.nsid).or_default().is_barred = true;
                }
            }
        }
    }

    fn follow_memory(&mut self) {
        let is_sure =
            |e: &&Endpoint| !e.is_supposed && matches!(e.holder, Holder::Current | Holder::Former);
        let (current, former): (Vec<_>, Vec<_>) = self
            .evidence
            .previous
            .iter()
            .filter(is_sure)
            .partition(|endpoint| endpoint.holder == Holder::Current);
        for endpoint in current.into_iter().chain(former) {
            let incarnation = endpoint.incarnation;
            let Some(interface) = self.interface(incarnation) else { continue };
            if self.decisions.contains_key(&incarnation) {
                continue;
            }
            let pod_idx = self.pod_of(&endpoint.uid, &endpoint.pod);
            if endpoint.is_by_address
                && pod_idx.is_some_and(|idx| self.is_routed_past(idx, interface))
            {
                // It never was that pod.
                continue;
            }
            let Some(group) = self.groups.get_mut(&interface.nsid) else { continue };
            group.is_known = true;
            let has_moved =
                |pod_idx| self.placed.get(&pod_idx).is_some_and(|p| *p != interface.nsid);
            let settled = pod_idx.filter(|&pod_idx| {
                let (pod, owned) = (self.pods[pod_idx], &self.owners.owned[pod_idx]);
                let known = &endpoint.addresses;
                let has_its = known.is_empty() || owned.iter().any(|a| known.contains(a));
                !pod.finished && (pod.addresses.is_empty() || has_its) && !has_moved(pod_idx)
            });
            match settled {
                Some(pod_idx) => self.place(interface, pod_idx, endpoint.is_by_address),
                None => group.doubtful.push((incarnation, endpoint)),
            }
        }
    }

    /// Whether the node's route to a pod leads to an interface of another namespace.
    fn is_routed_past(&self, pod_idx: PodIdx, interface: &Interface) -> bool {
        let addresses = self.owners.owned[pod_idx].iter();
        addresses.filter_map(|address| self.routed_to(*address)).any(|to| to.nsid != interface.nsid)
    }

    /// The interface that the node's route to an address leads to.
    fn routed_to(&self, address: IpAddr) -> Option<&'a Interface> {
        let route = self.evidence.routes.get(&address)?;
        self.evidence.interfaces.iter().find(|interface| interface.ifindex == route.ifindex)
    }

    fn follow_routes(&mut self) {
        for pod_idx in self.unplaced().collect::<Vec<_>>() {
            for address in self.owners.owned[pod_idx].clone() {
                let Some(interface) = self.routed_to(address) else { continue };
                let group = &self.groups[&interface.nsid];
                if group.is_barred || self.decisions.contains_key(&interface.incarnation) {
                    continue;
                }
                self.place(interface, pod_idx, false);
            }
        }
        let decisions = &self.decisions;
        for group in self.groups.values_mut() {
            group.doubtful.retain(|(incarnation, _)| !decisions.contains_key(incarnation));
        }
    }

    /// An interface may have been taken for its predecessor's, whose status still had its address.
    /// It is the pod's that has this address by now, if that is found nowhere else.
    fn give_to_successors(&mut self) {
        let doubtful: Vec<GroupId> =
            self.groups.iter().filter(|(_, g)| !g.doubtful.is_empty()).map(|(id, _)| *id).collect();
        for id in doubtful {
            let group = &self.groups[&id];
            let was_known_by = |address: &&IpAddr| {
                group.doubtful.iter().any(|(_, endpoint)| endpoint.addresses.contains(*address))
            };
            let is_successor = |&pod_idx: &PodIdx| {
                let mut owned = self.owners.owned[pod_idx].iter().filter(was_known_by);
                owned.any(|address| group.evident.contains(address))
                    && !self.free_groups().any(|(_, free)| self.points_to(free, pod_idx))
            };
            let successor = self.unplaced().find(is_successor);
            if let Some(pod_idx) = successor {
                self.groups.entry(id).or_default().doubtful.clear();
                let members = self.groups[&id].members.clone();
                for member in members {
                    if !self.decisions.contains_key(&member.incarnation) {
                        self.place(member, pod_idx, true);
                    }
                }
            }
        }
    }

    /// A namespace belongs to the pod whose address is there and nowhere else, with addresses of
    /// several pods to the one of them of which that is true.
    fn follow_addresses(&mut self) {
        loop {
            let pointers = self.pointers();
            let mut carriers: BTreeMap<PodIdx, Vec<GroupId>> = BTreeMap::new();
            for (group, pods) in &pointers {
                pods.iter().for_each(|pod_idx| carriers.entry(*pod_idx).or_default().push(*group));
            }
            let only = |pod_idx: &PodIdx| {
                let all = &carriers[pod_idx];
                let pinned: Vec<_> = all.iter().filter(|id| self.groups[id].is_pinned).collect();
                match (pinned.as_slice(), all.as_slice()) {
                    ([pinned], _) => Some(**pinned),
                    ([], [one]) => Some(*one),
                    _ => None,
                }
            };
            let found = pointers.iter().filter_map(|(group, pods)| {
                let mut alone = pods.iter().filter(|pod_idx| only(pod_idx) == Some(*group));
                alone.next().filter(|_| alone.next().is_none()).map(|pod_idx| (*group, *pod_idx))
            });
            let found: Vec<(GroupId, PodIdx)> = found.collect();
            if found.is_empty() {
                return self.leave_open(&pointers);
            }
            for (group, pod_idx) in found {
                let is_pinned = self.groups[&group].is_pinned;
                for member in self.groups[&group].members.clone() {
                    self.place(member, pod_idx, !is_pinned);
                }
                // Whoever shows the address of a pinned pod may be a later pod that has it.
                let others =
                    carriers[&pod_idx].iter().filter(|other| is_pinned && **other != group);
                let others = others.map(|other| (*other, BTreeSet::from([pod_idx])));
                self.leave_open(&others.collect());
            }
        }
    }

    /// The pods that each free namespace could be by what is evident of it.
    fn pointers(&self) -> BTreeMap<GroupId, BTreeSet<PodIdx>> {
        let unplaced: BTreeSet<PodIdx> = self.unplaced().collect();
        let pods = |group: &Group<'_>| {
            let owners = group.evident.iter().filter_map(|a| self.owners.by_address.get(a));
            owners.copied().filter(|owner| unplaced.contains(owner)).collect::<BTreeSet<_>>()
        };
        let groups = self.free_groups().map(|(id, group)| (id, pods(group)));
        groups.filter(|(_, pods)| !pods.is_empty()).collect()
    }

    fn leave_open(&mut self, groups: &BTreeMap<GroupId, BTreeSet<PodIdx>>) {
        for (id, pods) in groups {
            for member in &self.groups[id].members {
                self.decisions.insert(member.incarnation, Decision::OneOf(pods.clone()));
            }
        }
    }

    fn keep_doubtful(&mut self) {
        let doubtful: Vec<_> = self
            .groups
            .iter_mut()
            .flat_map(|(id, group)| group.doubtful.drain(..).map(|known| (*id, known)))
            .collect();
        for (id, (incarnation, endpoint)) in doubtful {
            let why = match self.pod_of(&endpoint.uid, &endpoint.pod) {
                None => Why::Gone,
                Some(pod_idx) if self.pods[pod_idx].finished => Why::Ended,
                Some(pod_idx) if self.placed.get(&pod_idx).is_some_and(|place| *place != id) => {
                    Why::Elsewhere
                }
                Some(pod_idx) => {
                    if let Some(interface) = self.interface(incarnation) {
                        self.place(interface, pod_idx, endpoint.is_by_address);
                    }
                    continue;
                }
            };
            self.decisions.insert(incarnation, Decision::Kept(endpoint, why));
        }
    }

    /// A pod that is known to be behind a bridge, by the node's route, and has never been found,
    /// may be behind any port of it that came up about then and of which only addresses tell.
    fn suspect_the_missing(&mut self) {
        let mut suspects: BTreeMap<GroupId, BTreeSet<PodIdx>> = BTreeMap::new();
        let mut n_places: BTreeMap<PodIdx, usize> = BTreeMap::new();
        for pod_idx in self.unplaced() {
            let Some(window) = self.evidence.awaited.get(&self.pods[pod_idx].uid) else { continue };
            let bridges = self.bridges_to(pod_idx);
            for (&id, group) in &self.groups {
                if self.may_hide(group, pod_idx, window, &bridges) {
                    suspects.entry(id).or_default().insert(pod_idx);
                    *n_places.entry(pod_idx).or_default() += 1;
                }
            }
        }
        for (id, mut pods) in suspects {
            let decision =
                self.groups[&id].members.iter().find_map(|m| self.decisions.get(&m.incarnation));
            match decision {
                Some(Decision::OneOf(others)) => pods.extend(others),
                Some(Decision::Pod { pod_idx, .. }) => {
                    let pod_idx = *pod_idx;
                    pods.insert(pod_idx);
                    self.placed.remove(&pod_idx);
                }
                _ => {
                    let first = pods.first().copied();
                    if let Some(pod_idx) = first.filter(|p| pods.len() == 1 && n_places[p] == 1) {
                        self.place_group(id, pod_idx);
                        self.supposed.insert(id);
                        continue;
                    }
                }
            }
            self.leave_open(&BTreeMap::from([(id, pods)]));
        }
    }

    /// The devices that the node's routes to a pod lead to, of which our interfaces are ports.
    fn bridges_to(&self, pod_idx: PodIdx) -> BTreeSet<u32> {
        let routes = self.owners.owned[pod_idx].iter();
        let routes = routes.filter_map(|address| self.evidence.routes.get(address));
        routes.filter(|route| route.is_direct).map(|route| route.ifindex).collect()
    }

    /// Whether a pod whose interface must have come up in that window may be behind this namespace.
    fn may_hide(
        &self,
        group: &Group<'_>,
        pod_idx: PodIdx,
        window: &RangeInclusive<i64>,
        bridges: &BTreeSet<u32>,
    ) -> bool {
        let is_port = |member: &&Interface| match member.switch {
            Switch::None => false,
            Switch::Bridge(device) | Switch::Other(device) => bridges.contains(&device),
        };
        let is_open = |member: &&Interface| match self.decisions.get(&member.incarnation) {
            None => group.doubtful.is_empty() && !group.is_barred && !group.is_pinned,
            Some(Decision::Pod { is_by_address, why, .. }) => *is_by_address && why.is_none(),
            Some(Decision::OneOf(_)) => true,
            Some(Decision::Kept(..) | Decision::Unknown) => false,
        };
        // Without a time of creation nothing is ruled out, and what is known stays so.
        let is_timed = self.pods[pod_idx].created != 0;
        let in_time = |member: &&Interface| match is_timed {
            false => !group.is_known,
            true => window.contains(&self.appeared(member)),
        };
        let mut members = group.members.iter().copied();
        members.any(|member| is_port(&member) && is_open(&member) && in_time(&member))
    }

    /// A pod that has ended by its object, and that nobody has seen before, may still run.
    fn follow_addresses_of_the_ended(&mut self) {
        let free: Vec<GroupId> = self.free_groups().map(|(id, _)| id).collect();
        for id in free {
            let group = &self.groups[&id];
            let appeared = group.members.iter().map(|member| self.appeared(member)).min();
            let owners = group.evident.iter().filter_map(|a| self.owners.by_address.get(a));
            let is_its = |pod_idx: &PodIdx| {
                let window = self.evidence.awaited.get(&self.pods[*pod_idx].uid);
                let in_time = window.zip(appeared).is_some_and(|(w, at)| at <= *w.end());
                self.pods[*pod_idx].finished && in_time && !self.placed.contains_key(pod_idx)
            };
            if let Some(pod_idx) = owners.copied().filter(is_its).min() {
                self.place_group(id, pod_idx);
            }
        }
    }

    fn close_the_unknown(&mut self) {
        for Pinned { incarnation, .. } in self.evidence.pinned {
            if self.interface(*incarnation).is_some() {
                self.decisions.entry(*incarnation).or_insert(Decision::Unknown);
            }
        }
    }

    /// All interfaces of a namespace belong to its pod.
    fn extend_to_namespaces(&mut self) {
        for group in self.groups.values() {
            let known = group.members.iter().filter_map(|m| self.decisions.get(&m.incarnation));
            let mut holders: Vec<Decision<'a>> = Vec::new();
            for decision in known {
                if !holders.iter().any(|holder| holder.is_same(decision)) {
                    holders.push(decision.clone());
                }
            }
            let of_all = match holders.as_slice() {
                [] => continue,
                [one] => one.clone(),
                several => one_of(several),
            };
            for member in &group.members {
                self.decisions.entry(member.incarnation).or_insert_with(|| of_all.clone());
            }
        }
    }

    // === Telling ===

    fn finish(mut self) -> Matching {
        let mut endpoints = Vec::new();
        for interface in self.evidence.interfaces {
            let Some(decision) = self.decisions.get(&interface.incarnation) else {
                self.findings.insert(Finding::InterfaceWithoutPod {
                    ifindex: interface.ifindex,
                    interface: interface.name.clone(),
                    addresses: interface.addresses.clone(),
                });
                continue;
            };
            self.findings.extend(self.finding(interface, decision));
            endpoints.push(self.endpoint(interface, decision));
        }
        endpoints.sort_unstable_by_key(|endpoint| endpoint.ifindex);
        for pod_idx in self.unplaced().collect::<Vec<_>>() {
            let pod = self.pods[pod_idx];
            // A pod of no node may run on any of them.
            if pod.node.as_deref() == Some(self.evidence.node_name) {
                let (id, addresses) = (pod.id.clone(), pod.addresses.to_vec());
                self.findings.insert(if addresses.is_empty() {
                    Finding::PodWithoutAddress { pod: id, is_running: pod.running }
                } else {
                    Finding::PodWithoutInterface { pod: id, addresses }
                });
            }
        }
        Matching { endpoints, findings: self.findings.into_iter().collect() }
    }

    fn finding(&self, interface: &Interface, decision: &Decision<'_>) -> Option<Finding> {
        let (ifindex, interface) = (interface.ifindex, interface.name.clone());
        let (pod, why) = match decision {
            Decision::Pod { why: None, .. } => return None,
            Decision::Pod { pod_idx, why: Some(why), .. } => (&self.pods[*pod_idx].id, *why),
            Decision::Kept(endpoint, why) => (&endpoint.pod, *why),
            Decision::OneOf(pods) => {
                let mut pods: Vec<_> = pods.iter().map(|idx| self.pods[*idx].id.clone()).collect();
                pods.sort();
                return Some(Finding::Undecided { ifindex, interface, pods });
            }
            Decision::Unknown => return Some(Finding::Unknown { ifindex, interface }),
        };
        Some(Finding::LeftOver { interface, pod: pod.clone(), why })
    }

    fn endpoint(&self, interface: &Interface, decision: &Decision<'_>) -> Endpoint {
        let nobody = Endpoint {
            ifindex: interface.ifindex,
            interface: interface.name.clone(),
            incarnation: interface.incarnation,
            nsid: interface.nsid,
            netns: interface.netns.as_ref().map(|netns| netns.id),
            pod: ObjectName::new(NOBODY, interface.name.as_str()),
            uid: "".into(),
            holder: Holder::Unknown,
            is_by_address: false,
            is_supposed: false,
            appeared: self.appeared(interface),
            addresses: Vec::new(),
        };
        match decision {
            Decision::Pod { pod_idx, is_by_address, why } => {
                let pod = self.pods[*pod_idx];
                let holder = if why.is_some() { Holder::Former } else { Holder::Current };
                Endpoint {
                    pod: pod.id.clone(),
                    uid: pod.uid.clone(),
                    holder,
                    is_by_address: *is_by_address,
                    is_supposed: self.supposed.contains(&interface.nsid),
                    addresses: self.addresses(interface, *pod_idx, *why),
                    ..nobody
                }
            }
            Decision::Kept(endpoint, why) => {
                let pod_idx = self.pod_of(&endpoint.uid, &endpoint.pod);
                let pod_idx = pod_idx.filter(|_| *why == Why::Ended);
                Endpoint {
                    pod: endpoint.pod.clone(),
                    uid: endpoint.uid.clone(),
                    holder: Holder::Former,
                    is_by_address: endpoint.is_by_address,
                    addresses: self.owners.left(&endpoint.addresses, pod_idx),
                    ..nobody
                }
            }
            Decision::OneOf(pods) => {
                let mut uids: Vec<_> = pods.iter().map(|idx| self.pods[*idx].uid.clone()).collect();
                uids.sort();
                Endpoint { holder: Holder::OneOf(uids), ..nobody }
            }
            Decision::Unknown => {
                let group = &self.groups[&interface.nsid];
                let addresses: Vec<IpAddr> = group.evident.iter().copied().collect();
                let addresses = if group.is_pinned { addresses } else { Vec::new() };
                Endpoint { addresses: self.owners.left(&addresses, None), ..nobody }
            }
        }
    }

    /// The pod's addresses, as far as they are its own at this interface.
    fn addresses(&self, interface: &Interface, pod_idx: PodIdx, why: Option<Why>) -> Vec<IpAddr> {
        let pod = self.pods[pod_idx];
        let before = self.previous.get(&interface.incarnation);
        let before = before.filter(|endpoint| endpoint.uid == pod.uid);
        let before = before.map(|endpoint| endpoint.addresses.as_slice()).unwrap_or_default();
        match why {
            // Those of now are elsewhere.
            Some(Why::Elsewhere | Why::Gone) => self.owners.left(before, None),
            // Its status has lost them.
            _ if pod.addresses.is_empty() => self.owners.left(before, Some(pod_idx)),
            _ => self.owners.owned[pod_idx].clone(),
        }
    }
}

/// Of several holders that a namespace has, where another interface of it belongs.
fn one_of<'a>(holders: &[Decision<'a>]) -> Decision<'a> {
    let mut pods = BTreeSet::new();
    for holder in holders {
        match holder {
            Decision::Pod { pod_idx, .. } => drop(pods.insert(*pod_idx)),
            Decision::OneOf(several) => pods.extend(several),
            Decision::Kept(..) | Decision::Unknown => return Decision::Unknown,
        }
    }
    Decision::OneOf(pods)
}
