//! What the compiler knows, in words for people. Must never be read by programs of netpol's own.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use super::atoms::Atom;
use super::engine::Engine;
use super::tiers::Applying;
use super::{ClassId, Compiler, EndpointId, ServiceKey, SetId, isolating};
use netpol_model::{
    Action, Direction, NamedPort, NamespaceScope, ObjectName, Peer, Peers, Pod, PortMatch,
    PortRange, Ports, Selector, Str, Tier,
};

/// One thing that is allowed to an endpoint, and by whom.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct RuleView {
    /// The other end, such as `pods app=web in namespace shop`.
    pub peer: String,
    /// Protocols and ports, such as `TCP 80, UDP 53`.
    pub ports: String,
    /// The policies that say so, sorted.
    pub policies: Vec<ObjectName>,
}

/// A rule of a ClusterNetworkPolicy that is about an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterRuleView {
    /// The policy's tier.
    pub tier: Tier,
    /// Its priority there.
    pub priority: u16,
    /// Its name.
    pub policy: Str,
    /// The rule's place among those of the policy in that direction, from 0.
    pub rule: usize,
    /// What its author calls it.
    pub name: Option<Str>,
    /// What becomes of what it matches.
    pub action: Action,
    /// The other end, such as `pods app=web in all namespaces`; none: it matches nothing.
    pub peers: Vec<String>,
    /// Protocols and ports, such as `TCP 80, UDP 53`.
    pub ports: String,
}

/// Something about the cluster that keeps policies from meaning what their authors think.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Problem {
    /// More than one pod claims an address.
    SharedAddress {
        /// The address.
        address: IpAddr,
        /// The pod that is taken to have it.
        owner: ObjectName,
        /// The other claimants, sorted.
        others: Vec<ObjectName>,
    },
    /// More than one Service claims an address and port.
    SharedService {
        /// The address, protocol and port.
        key: ServiceKey,
        /// The Service that is taken to have it.
        owner: ObjectName,
        /// The other claimants, sorted.
        others: Vec<ObjectName>,
    },
    /// No number was left for the policies of these endpoints' pods, which are closed therefore.
    SetsExhausted(Vec<ObjectName>),
    /// No number was left for the classes of this many addresses and blocks.
    ClassesExhausted(usize),
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SharedAddress { address, owner, others } => write!(
                f,
                "address {address} is claimed by pod {owner} and also by {}; selectors see it as \
                 {owner}'s, the youngest; check the status of the others",
                list(others)
            ),
            Self::SharedService { key: ServiceKey { address, protocol, port }, owner, others } => {
                write!(
                    f,
                    "{protocol} port {port} of {address} is claimed by Service {owner} and also \
                     by {}; packets to it are judged by the backends of {owner}, the oldest; \
                     give the others other addresses or ports",
                    list(others)
                )
            }
            Self::SetsExhausted(pods) => write!(
                f,
                "too many different combinations of policies on this node: nothing but the \
                 necessary is allowed for {}; let fewer policies differ or move pods away",
                list(pods)
            ),
            Self::ClassesExhausted(n_blocks) => write!(
                f,
                "too many different classes of addresses: {n_blocks} addresses and blocks are \
                 matched by no selector and no block; let fewer selectors and blocks differ"
            ),
        }
    }
}

fn list(names: &[ObjectName]) -> String {
    names.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

impl Compiler {
    /// The policies that isolate an endpoint in one direction, sorted.
    pub fn endpoint_policies(&self, id: EndpointId, direction: Direction) -> Vec<ObjectName> {
        let pods = self.endpoints.get(&id).into_iter().flat_map(|endpoint| &endpoint.pods);
        let policies = pods.flat_map(|pod| isolating(&self.cluster, pod, direction));
        let names: BTreeSet<ObjectName> = policies.map(|policy| policy.id.clone()).collect();
        names.into_iter().collect()
    }

    /// What is allowed to an endpoint in one direction, by peer. Empty if nothing is, and also if
    /// no policy isolates it: see [`Compiler::endpoint_policies`].
    pub fn rules(&self, id: EndpointId, direction: Direction) -> Vec<RuleView> {
        self.first_rules(id, direction, usize::MAX).0
    }

    /// The same up to so many, in the order of policies, and how many peers of rules are not among
    /// them.
    pub fn first_rules(
        &self,
        id: EndpointId,
        direction: Direction,
        n_most: usize,
    ) -> (Vec<RuleView>, usize) {
        let Some(pod) = self.endpoint_pod(id) else { return (Vec::new(), 0) };
        let mut n_left_out = 0;
        let mut seen: std::collections::BTreeMap<(String, String), BTreeSet<ObjectName>> =
            std::collections::BTreeMap::new();
        for policy in isolating(&self.cluster, pod, direction) {
            for rule in policy.rules(direction).unwrap_or_default() {
                // No text is made of what is not told.
                let n_told = rule.peers.count().min(n_most.saturating_sub(seen.len()));
                n_left_out += rule.peers.count() - n_told;
                if n_told == 0 {
                    continue;
                }
                let ports = ports_text(&rule.ports, direction, pod);
                for peer in peers_text(&rule.peers).take(n_told) {
                    seen.entry((peer, ports.clone())).or_default().insert(policy.id.clone());
                }
            }
        }
        let view = |((peer, ports), policies): (_, BTreeSet<ObjectName>)| RuleView {
            peer,
            ports,
            policies: policies.into_iter().collect(),
        };
        (seen.into_iter().map(view).collect(), n_left_out)
    }

    /// The ClusterNetworkPolicies that are asked about an endpoint in one direction, in their order.
    pub fn endpoint_cluster_policies(&self, id: EndpointId, direction: Direction) -> Vec<Str> {
        let Some(pod) = self.endpoint_pod(id) else { return Vec::new() };
        let applying = Applying::of(&self.cluster, pod, direction);
        applying.tiers().map(|policy| policy.name.clone()).collect()
    }

    /// The rules of ClusterNetworkPolicies that are asked about an endpoint in one direction, in the
    /// order in which they are.
    pub fn cluster_rules(&self, id: EndpointId, direction: Direction) -> Vec<ClusterRuleView> {
        let Some(pod) = self.endpoint_pod(id) else { return Vec::new() };
        let mut views = Vec::new();
        for policy in Applying::of(&self.cluster, pod, direction).tiers() {
            for (place, rule) in policy.rules(direction).iter().enumerate() {
                views.push(ClusterRuleView {
                    tier: policy.tier,
                    priority: policy.priority,
                    policy: policy.name.clone(),
                    rule: place,
                    name: rule.name.clone(),
                    action: rule.action,
                    peers: peers_text(&rule.peers).collect(),
                    ports: ports_text(&rule.ports, direction, pod),
                });
            }
        }
        views
    }

    /// The atoms of a class, sorted. Empty for a class that is not in use.
    pub fn class_names(&self, class: ClassId) -> Vec<String> {
        if class == ClassId::CLOSED {
            return vec!["an address or block that did not fit, or one around it".into()];
        }
        let atoms = self.engine.classes.get(class).map(|class| &*class.atoms).unwrap_or_default();
        let mut names: Vec<String> =
            atoms.iter().map(|&id| atom_text(&self.engine.atoms.get(id).atom)).collect();
        names.sort();
        names
    }

    /// The Service that is reached there; `None` also while Services are not followed because no
    /// endpoint is isolated for egress.
    pub fn service_name(&self, key: &ServiceKey) -> Option<&ObjectName> {
        self.engine.services.named(key)
    }

    /// What a person should look at.
    pub fn problems(&self) -> Vec<Problem> {
        let mut problems: Vec<Problem> = Vec::new();
        for (address, owner, claimants) in self.engine.addresses.contested() {
            let Some(owner) = owner else { continue };
            let mut others: Vec<ObjectName> =
                claimants.iter().filter(|claimant| *claimant != owner).cloned().collect();
            others.sort();
            problems.push(Problem::SharedAddress { address, owner: owner.clone(), others });
        }
        let shared = self.engine.services.contested();
        problems.extend(shared.map(|(key, owner, others)| Problem::SharedService {
            key,
            owner,
            others,
        }));
        problems.sort();
        if !self.unnumbered.is_empty() {
            let pods = self.unnumbered.iter().map(|id| self.endpoints[id].name.clone());
            problems.push(Problem::SetsExhausted(pods.collect()));
        }
        if !self.engine.unnumbered.is_empty() {
            problems.push(Problem::ClassesExhausted(self.engine.unnumbered.len()));
        }
        problems
    }

    /// How many sets, classes and atoms there are, and may be, for metrics.
    pub fn size(&self) -> Size {
        let Engine { sets, classes, atoms, unnumbered, .. } = &self.engine;
        Size {
            sets: sets.iter().filter(|(id, _)| *id != SetId::NONE).count(),
            last_set: sets.ids.last(),
            closed_endpoints: self.unnumbered.len(),
            classes: classes.iter().count(),
            last_class: classes.ids.last(),
            closed_blocks: unnumbered.len(),
            atoms: atoms.len(),
        }
    }

    /// The pod whose interface an endpoint is.
    pub fn endpoint_name(&self, id: EndpointId) -> Option<&ObjectName> {
        self.endpoints.get(&id).map(|endpoint| &endpoint.name)
    }

    /// The named ports of its pod; none if it could be one of several.
    pub fn endpoint_ports(&self, id: EndpointId) -> &[NamedPort] {
        self.endpoint_pod(id).map(|pod| &*pod.ports).unwrap_or_default()
    }

    /// Its pod as last seen; `None` also if it could be one of several.
    pub(super) fn endpoint_pod(&self, id: EndpointId) -> Option<&Pod> {
        match self.endpoints.get(&id)?.pods.as_slice() {
            [pod] => Some(pod),
            _ => None,
        }
    }
}

/// How much the compiler holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Policy sets, the closed one included.
    pub sets: usize,
    /// The last number that a set may have.
    pub last_set: u32,
    /// Endpoints with the closed set because no number was left.
    pub closed_endpoints: usize,
    /// Classes.
    pub classes: usize,
    /// The last number that a class may have.
    pub last_class: u32,
    /// Addresses and blocks with the closed class because no number was left.
    pub closed_blocks: usize,
    /// Atoms.
    pub atoms: usize,
}

fn peers_text(peers: &Peers) -> impl Iterator<Item = String> {
    let any = matches!(peers, Peers::Any).then(|| "any peer".to_owned());
    any.into_iter().chain(peers.named().iter().map(peer_text))
}

fn peer_text(peer: &Peer) -> String {
    match peer {
        Peer::Pods { namespaces, pods } => pods_text(namespaces, pods),
        Peer::Block(block) => block.to_string(),
        Peer::Nodes(nodes) if nodes.is_everything() => "all nodes".to_owned(),
        Peer::Nodes(nodes) => format!("nodes {nodes}"),
    }
}

fn pods_text(namespaces: &NamespaceScope, pods: &Selector) -> String {
    let which = match pods.is_everything() {
        true => "all pods".to_owned(),
        false => format!("pods {pods}"),
    };
    match namespaces {
        NamespaceScope::Named(name) => format!("{which} in namespace {name}"),
        NamespaceScope::Matching(selector) if selector.is_everything() => {
            format!("{which} in all namespaces")
        }
        NamespaceScope::Matching(selector) => format!("{which} in namespaces {selector}"),
    }
}

fn atom_text(atom: &Atom) -> String {
    match atom {
        Atom::Pods { namespaces, pods } => pods_text(namespaces, pods),
        Atom::Cidr(block) => block.to_string(),
        Atom::Port(NamedPort { name, protocol, port }) => {
            format!("pods declaring {protocol} \"{name}\" as {port}")
        }
    }
}

fn ports_text(ports: &Ports, direction: Direction, pod: &Pod) -> String {
    let Ports::Only(entries) = ports else { return "all protocols and ports".into() };
    let texts: Vec<String> = entries
        .iter()
        .map(|entry| match (&entry.range, direction) {
            (PortRange::Named(name), Direction::Ingress) => own_port_text(entry, name, pod),
            (PortRange::Named(_) | PortRange::All | PortRange::Numbers(..), _) => entry.to_string(),
        })
        .collect();
    texts.join(", ")
}

/// A named port of the endpoint's own pod, with what it resolves to.
fn own_port_text(entry: &PortMatch, name: &str, pod: &Pod) -> String {
    let numbers: Vec<String> = pod
        .ports
        .iter()
        .filter(|port| port.protocol == entry.protocol && *port.name == *name)
        .map(|port| port.port.to_string())
        .collect();
    match numbers.is_empty() {
        true => format!("{entry} (not declared by this pod)"),
        false => format!("{entry} ({})", numbers.join(", ")),
    }
}
