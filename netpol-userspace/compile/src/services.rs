//! Services: which addresses and ports lead to which classes of backends. Derived only while some
//! endpoint is isolated, since nobody else asks. Must never look at a Service's selector: who its
//! backends are is said by EndpointSlices alone.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use rustc_hash::FxHashMap;

use super::addresses::Addresses;
use super::{Backend, EndpointId, EndpointSets, ServiceKey, SetId, Step};
use netpol_model::{
    AddressFamily, ByName, Cluster, EndpointSlice, ObjectName, Proxy, Service, ServicePort, Str,
};

/// Where packets of a Service port may end up: addresses and ports, sorted and distinct.
pub(super) type Targets = Arc<[(IpAddr, u16)]>;

/// Which Services somebody asks about.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Interest {
    /// None.
    #[default]
    None,
    /// Those that have a local endpoint as backend: it has to recognise what it sends to itself.
    Own,
    /// All.
    All,
}

impl Interest {
    /// That of an endpoint with these sets.
    pub fn of(sets: EndpointSets) -> Self {
        match sets {
            EndpointSets { ingress: SetId::NONE, egress: SetId::NONE } => Self::None,
            EndpointSets { egress: SetId::NONE, .. } => Self::Own,
            EndpointSets { .. } => Self::All,
        }
    }

    fn includes(self, backends: &[Backend]) -> bool {
        let is_local = |backend: &Backend| matches!(backend, Backend::Endpoint(_));
        match self {
            Self::None => false,
            Self::Own => backends.iter().any(is_local),
            Self::All => true,
        }
    }
}

/// What is known of this node. Followed whether or not Services are.
#[derive(Debug, Default)]
struct Here {
    endpoints: BTreeMap<EndpointId, Vec<IpAddr>>,
    endpoints_at: BTreeMap<IpAddr, BTreeSet<EndpointId>>,
    /// The node's own addresses.
    node: BTreeSet<IpAddr>,
    /// Addresses of which one of these is new.
    touched: BTreeSet<IpAddr>,
}

/// All Services that have addresses, while they are needed.
#[derive(Debug, Default)]
pub(super) struct Services {
    /// The proxy of this node, if it is not kube-proxy or like it.
    proxy: Option<Str>,
    interest: Interest,
    here: Here,
    /// The interest is new: what is stored has to be looked through.
    is_stale: bool,
    known: BTreeMap<ObjectName, Derived>,
    /// Names of the slices of each Service.
    slices: FxHashMap<ObjectName, Vec<Str>>,
    /// Who claims a key.
    claims: FxHashMap<ServiceKey, Vec<Arc<ObjectName>>>,
    /// Keys with more than one claimant.
    contested: BTreeSet<ServiceKey>,
    /// The Services that have a backend with this address.
    by_address: BTreeSet<(IpAddr, Arc<ObjectName>)>,
    /// Services to look at again.
    touched: BTreeSet<ObjectName>,
    /// What the tables hold.
    stored: BTreeMap<ServiceKey, Arc<[Backend]>>,
}

/// What follows from one Service and its slices.
#[derive(Debug, Default)]
struct Derived {
    created: i64,
    fronts: Vec<Front>,
}

/// One port of a Service in one address family.
#[derive(Debug)]
pub(super) struct Front {
    /// Sorted.
    pub keys: Vec<ServiceKey>,
    /// Where its packets may end up.
    pub targets: Targets,
    backends: Arc<[Backend]>,
    /// Of the keys those with this port are on nodes' addresses, unless they are the Service's own.
    node_port: Option<u16>,
    own: Box<[IpAddr]>,
}

impl Front {
    /// Whether a key is on an address that only nodes have.
    fn is_on_nodes(&self, key: &ServiceKey) -> bool {
        self.node_port == Some(key.port) && !self.own.contains(&key.address)
    }
}

/// What changed for packets to one key; `None`: no Service there.
#[derive(Debug)]
pub(super) struct Changed {
    pub key: ServiceKey,
    pub old: Option<Arc<[Backend]>>,
    pub new: Option<Arc<[Backend]>>,
}

impl Changed {
    /// The step that makes it so.
    pub fn step(&self) -> Step {
        match &self.new {
            Some(backends) => Step::SetService(self.key, backends.clone()),
            None => Step::ClearService(self.key),
        }
    }
}

impl Services {
    /// The Services that this proxy handles, none: kube-proxy, are those that packets are
    /// translated for on this node. To be said before anything is followed.
    pub(crate) fn set_proxy(&mut self, proxy: Option<Str>) {
        self.proxy = proxy;
    }

    /// Whether packets are translated on this node to what says this of its proxy.
    pub fn handles(&self, proxy: &Proxy) -> bool {
        proxy.is_handled_by(self.proxy.as_deref())
    }

    /// Follows at least these Services from now on.
    pub fn raise(&mut self, interest: Interest, cluster: &Cluster) {
        if interest <= self.interest {
            return;
        }
        let before = std::mem::replace(&mut self.interest, interest);
        self.is_stale = true;
        if before != Interest::None {
            return;
        }
        for slice in cluster.slices.values().flat_map(ByName::values) {
            self.list_slice(slice);
        }
        let services = cluster.services.values().flat_map(ByName::values);
        self.touched.extend(services.map(|service| service.id.clone()));
    }

    /// Forgets what nobody asks about any more; returns the steps that clear the tables of it.
    pub fn lower(&mut self, interest: Interest) -> Vec<Step> {
        if interest >= self.interest {
            return Vec::new();
        }
        if interest == Interest::None {
            let (here, proxy) = (std::mem::take(&mut self.here), self.proxy.take());
            let before = std::mem::replace(self, Self { proxy, here, ..Self::default() });
            return before.stored.into_keys().map(Step::ClearService).collect();
        }
        self.interest = interest;
        let gone = self.stored.extract_if(.., |_, backends| !interest.includes(backends));
        gone.map(|(key, _)| Step::ClearService(key)).collect()
    }

    /// A local endpoint has these addresses now beside those that it had.
    pub(crate) fn add_addresses(&mut self, id: EndpointId, addresses: &[IpAddr]) {
        let mut all = self.here.endpoints.get(&id).cloned().unwrap_or_default();
        all.extend(addresses.iter().filter(|address| !all.contains(address)).collect::<Vec<_>>());
        self.set_addresses(id, all);
    }

    /// A local endpoint has these addresses now; none: it is gone.
    pub fn set_addresses(&mut self, id: EndpointId, addresses: Vec<IpAddr>) {
        let here = &mut self.here;
        let before = match addresses.is_empty() {
            true => here.endpoints.remove(&id),
            false => here.endpoints.insert(id, addresses.clone()),
        };
        let before = before.unwrap_or_default();
        if before == addresses {
            return;
        }
        for address in &before {
            if let Some(ids) = here.endpoints_at.get_mut(address) {
                ids.remove(&id);
                if ids.is_empty() {
                    here.endpoints_at.remove(address);
                }
            }
        }
        for address in &addresses {
            here.endpoints_at.entry(*address).or_default().insert(id);
        }
        here.touched.extend(before.into_iter().chain(addresses));
    }

    /// The node itself has these addresses now.
    pub fn set_node_addresses(&mut self, addresses: BTreeSet<IpAddr>) {
        let before = std::mem::replace(&mut self.here.node, addresses);
        let changed = before.symmetric_difference(&self.here.node).copied();
        self.here.touched.extend(changed);
    }

    /// The addresses of the node itself.
    pub fn node_addresses(&self) -> &BTreeSet<IpAddr> {
        &self.here.node
    }

    /// A Service is different.
    pub fn touch(&mut self, id: ObjectName) {
        if self.interest != Interest::None {
            self.touched.insert(id);
        }
    }

    /// A slice is different.
    pub(crate) fn touch_slice(
        &mut self,
        before: Option<&EndpointSlice>,
        now: Option<&EndpointSlice>,
    ) {
        if self.interest == Interest::None {
            return;
        }
        if let Some(slice) = before
            && let Some(names) = self.slices.get_mut(&owner_of(slice))
        {
            names.retain(|name| *name != slice.id.name);
            if names.is_empty() {
                self.slices.remove(&owner_of(slice));
            }
        }
        if let Some(slice) = now {
            self.list_slice(slice);
        }
        self.touched.extend(before.into_iter().chain(now).map(owner_of));
    }

    fn list_slice(&mut self, slice: &EndpointSlice) {
        let names = self.slices.entry(owner_of(slice)).or_insert_with(|| Vec::with_capacity(1));
        if let Err(index) = names.binary_search(&slice.id.name) {
            names.insert(index, slice.id.name.clone());
        }
    }

    /// A node has other addresses.
    pub(crate) fn touch_nodes(&mut self, cluster: &Cluster) {
        if self.interest != Interest::None {
            let services = cluster.services.values().flat_map(ByName::values);
            let with_node_port = services.filter(|s| s.ports.iter().any(|p| p.node_port.is_some()));
            self.touched.extend(with_node_port.map(|service| service.id.clone()));
        }
    }

    /// Whether there is anything to work off.
    pub(crate) fn is_touched(&self) -> bool {
        !self.touched.is_empty() || !self.here.touched.is_empty() || self.is_stale
    }

    /// Works off what was touched, and the blocks that have another class now.
    pub fn update(
        &mut self,
        cluster: &Cluster,
        addresses: &Addresses,
        moved: impl Iterator<Item = IpNet>,
    ) -> Vec<Changed> {
        let mut keys = BTreeSet::new();
        let mut stale = std::mem::take(&mut self.touched);
        for id in &stale {
            self.derive(id, cluster, &mut keys);
        }
        let here = std::mem::take(&mut self.here.touched);
        if !here.is_empty() {
            keys.extend(self.claims.keys().filter(|key| here.contains(&key.address)));
        }
        if std::mem::take(&mut self.is_stale) {
            keys.extend(self.claims.keys());
        }
        let moved: Vec<IpNet> = moved.chain(here.into_iter().map(IpNet::from)).collect();
        // What leads to the node itself is of the class of its address.
        let of_node = |block: &IpNet| {
            self.here.node.range(block.network()..=block.broadcast()).next().is_some()
        };
        if moved.iter().any(of_node) {
            let node = &self.here.node;
            keys.extend(self.claims.keys().filter(|key| node.contains(&key.address)));
        }
        let first = Arc::new(ObjectName::new("", ""));
        for block in moved {
            let inside = self.by_address.range((block.network(), first.clone())..);
            let inside = inside.take_while(|(address, _)| *address <= block.broadcast());
            stale.extend(inside.map(|(_, service)| ObjectName::clone(service)));
        }
        for id in &stale {
            let fronts = self.known.get_mut(id).map(|derived| &mut derived.fronts);
            for front in fronts.into_iter().flatten() {
                let backends = classify(&front.targets, addresses, &self.here);
                if *backends != *front.backends {
                    front.backends = backends;
                    keys.extend(front.keys.iter().copied());
                }
            }
        }
        keys.into_iter().filter_map(|key| self.store(key, addresses)).collect()
    }

    /// Brings what is stored for a key up to date.
    fn store(&mut self, key: ServiceKey, addresses: &Addresses) -> Option<Changed> {
        let new = self.owner(&key).and_then(|owner| self.known.get(owner)).and_then(|derived| {
            let front =
                derived.fronts.iter().find(|front| front.keys.binary_search(&key).is_ok())?;
            // While nobody is there to translate it for, the node itself receives what goes to
            // one of its own addresses.
            let is_here = self.here.node.contains(&key.address);
            let backends = match (front.backends.is_empty(), is_here) {
                (true, true) => classify(&[(key.address, key.port)], addresses, &self.here),
                (false, false) if front.is_on_nodes(&key) => elsewhere(&front.backends),
                _ => front.backends.clone(),
            };
            self.interest.includes(&backends).then_some(backends)
        });
        let old = match &new {
            Some(backends) => self.stored.insert(key, backends.clone()),
            None => self.stored.remove(&key),
        };
        (old != new).then_some(Changed { key, old, new })
    }

    /// Who has a key: the oldest claimant, of equally old ones the one with the smallest name.
    fn owner(&self, key: &ServiceKey) -> Option<&ObjectName> {
        let age = |id: &ObjectName| self.known.get(id).map(|derived| derived.created);
        let claimants = self.claims.get(key)?.iter().map(|id| &**id);
        claimants.min_by_key(|id| (age(id), *id))
    }

    /// Replaces what is known of a Service; adds all its old and new keys to `keys`.
    fn derive(&mut self, id: &ObjectName, cluster: &Cluster, keys: &mut BTreeSet<ServiceKey>) {
        if let Some(old) = self.known.remove(id) {
            self.unlist(id, &old);
            keys.extend(old.fronts.iter().flat_map(|front| front.keys.iter().copied()));
        }
        let service = cluster.service(id).filter(|service| self.handles(&service.proxy));
        let Some(service) = service else { return };
        let names = self.slices.get(id).into_iter().flatten();
        let all = cluster.slices.get(&id.namespace);
        let slices = names.filter_map(|name| all?.get(name));
        let slices: Vec<&EndpointSlice> =
            slices.filter(|slice| self.handles(&slice.proxy)).collect();
        let fronts = fronts(service, &slices, cluster);
        if fronts.is_empty() {
            return;
        }
        let shared = Arc::new(id.clone());
        for front in &fronts {
            keys.extend(front.keys.iter().copied());
            for key in &front.keys {
                // Hardly ever is there another one.
                let claimants = self.claims.entry(*key).or_insert_with(|| Vec::with_capacity(1));
                claimants.push(shared.clone());
                if claimants.len() > 1 {
                    self.contested.insert(*key);
                }
            }
            for (address, _) in &*front.targets {
                self.by_address.insert((*address, shared.clone()));
            }
        }
        self.known.insert(id.clone(), Derived { created: service.created, fronts });
    }

    /// Takes a Service out of all indexes.
    fn unlist(&mut self, id: &ObjectName, derived: &Derived) {
        let shared = Arc::new(id.clone());
        for front in &derived.fronts {
            for key in &front.keys {
                let Some(claimants) = self.claims.get_mut(key) else { continue };
                claimants.retain(|claimant| **claimant != *id);
                if claimants.len() < 2 {
                    self.contested.remove(key);
                }
                if claimants.is_empty() {
                    self.claims.remove(key);
                }
            }
            for (address, _) in &*front.targets {
                self.by_address.remove(&(*address, shared.clone()));
            }
        }
    }

    /// What the tables should hold.
    pub fn stored(&self) -> &BTreeMap<ServiceKey, Arc<[Backend]>> {
        &self.stored
    }

    /// Whether there is a Service to which an endpoint that is isolated for egress, even by a set
    /// that allows everything, sends what is to be looked at again.
    pub(crate) fn may_stamp(&self) -> bool {
        !self.stored.is_empty()
    }

    /// Who has a stored key.
    pub fn named(&self, key: &ServiceKey) -> Option<&ObjectName> {
        self.owner(key)
    }

    /// Keys with several claimants: who has it, and the others, sorted.
    pub(crate) fn contested(
        &self,
    ) -> impl Iterator<Item = (ServiceKey, ObjectName, Vec<ObjectName>)> {
        self.contested.iter().filter_map(|key| {
            let owner = self.owner(key)?.clone();
            let claimants = self.claims.get(key)?.iter().map(|id| ObjectName::clone(id));
            let mut others: Vec<ObjectName> = claimants.filter(|id| *id != owner).collect();
            others.sort();
            Some((*key, owner, others))
        })
    }
}

/// The Service that a slice belongs to.
fn owner_of(slice: &EndpointSlice) -> ObjectName {
    ObjectName { namespace: slice.id.namespace.clone(), name: slice.service.clone() }
}

/// The ports of a Service in the families that it has. Its cluster IPs tell these: on an external
/// address or a node's address of another family nobody listens. (A Service from a file may have
/// no cluster IP; then nothing speaks against either family.)
pub(super) fn fronts(
    service: &Service,
    slices: &[&EndpointSlice],
    cluster: &Cluster,
) -> Vec<Front> {
    let mut seen = BTreeSet::new();
    let mut fronts = Vec::new();
    let mut families: BTreeSet<AddressFamily> =
        service.cluster_ips.iter().map(|&address| AddressFamily::of(address)).collect();
    if families.is_empty() {
        families.extend([AddressFamily::V4, AddressFamily::V6]);
    }
    for family in families {
        for port in &service.ports {
            let mut keys = keys(service, port, family, cluster);
            keys.sort_unstable();
            keys.retain(|key| seen.insert(*key));
            keys.shrink_to_fit();
            if !keys.is_empty() {
                let targets = targets(slices, port, family);
                let own = service.cluster_ips.iter().chain(&service.external).copied().collect();
                let (node_port, backends) = (port.node_port, Arc::new([]) as Arc<[_]>);
                fronts.push(Front { keys, targets, backends, node_port, own });
            }
        }
    }
    fronts
}

/// Where a port is reached.
fn keys(
    service: &Service,
    port: &ServicePort,
    family: AddressFamily,
    cluster: &Cluster,
) -> Vec<ServiceKey> {
    let key =
        |address, port_number| ServiceKey { address, protocol: port.protocol, port: port_number };
    let own = service.cluster_ips.iter().chain(&service.external);
    let own = own.map(|&address| key(address, port.port));
    let on_nodes = port.node_port.into_iter().flat_map(|node_port| {
        let addresses = cluster.nodes.values().flat_map(|node| &node.addresses);
        addresses.map(move |&address| key(address, node_port))
    });
    own.chain(on_nodes).filter(|key| AddressFamily::of(key.address) == family).collect()
}

/// Where packets to a port may end up: at the ready backends, or, if none is ready, at those that
/// still serve while they end, which is what kube-proxy does.
fn targets(slices: &[&EndpointSlice], port: &ServicePort, family: AddressFamily) -> Targets {
    let (mut ready, mut serving) = (BTreeSet::new(), BTreeSet::new());
    for slice in slices.iter().filter(|slice| slice.family == family) {
        let numbers = slice
            .ports
            .iter()
            .filter(|other| other.name == port.name && other.protocol == port.protocol)
            .map(|other| other.port);
        for number in numbers {
            for endpoint in &slice.endpoints {
                match (endpoint.ready, endpoint.serving) {
                    (true, _) => drop(ready.insert((endpoint.address, number))),
                    (false, true) => drop(serving.insert((endpoint.address, number))),
                    (false, false) => {}
                }
            }
        }
    }
    let chosen = if ready.is_empty() { serving } else { ready };
    chosen.into_iter().collect()
}

/// These backends, of a Service that another node translates packets to.
fn elsewhere(backends: &[Backend]) -> Arc<[Backend]> {
    // The last in their order.
    backends.iter().copied().chain([Backend::Elsewhere]).collect()
}

/// The distinct kinds of backends among some targets, and the local endpoints.
fn classify(targets: &[(IpAddr, u16)], addresses: &Addresses, here: &Here) -> Arc<[Backend]> {
    let mut backends = BTreeSet::new();
    for &(address, port) in targets {
        let class = addresses.effective_class(IpNet::from(address));
        let is_on_node = here.node.contains(&address);
        backends.insert(Backend::Kind { class, port, is_on_node });
        let endpoints = here.endpoints_at.get(&address).into_iter().flatten();
        backends.extend(endpoints.map(|&id| Backend::Endpoint(id)));
    }
    backends.into_iter().collect()
}
