//! Which policies allow what the tables allow, and whose an address is: for people who ask. Looks
//! at the policies themselves, since the tables leave out what another policy allows anyway. Must
//! never be asked for a verdict.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use super::engine::is_in;
use super::tiers::Applying;
use super::{Compiler, EndpointId, ServiceKey, isolating, services};
use netpol_model::{
    Action, ClusterPolicy, Direction, EndpointSlice, ObjectName, Peer, Peers, Pod, Policy,
    PortMatch, PortRange, Ports, Service, Str, Tier,
};

/// The first packet of a connection, as an endpoint's policies see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opening {
    /// From the endpoint's view.
    pub direction: Direction,
    /// The other end.
    pub remote: IpAddr,
    /// IP protocol number.
    pub protocol: u8,
    /// Destination port, where the protocol has ports.
    pub port: u16,
}

/// One port of a Service in one family, and where packets to it may end up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceFront {
    /// Where it is reached: cluster, external and node addresses, sorted.
    pub keys: Vec<ServiceKey>,
    /// Addresses and ports of its backends, sorted.
    pub backends: Vec<(IpAddr, u16)>,
}

/// A rule that has a part in what becomes of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecidingRule {
    /// The tier; `None`: that of NetworkPolicies.
    pub tier: Option<Tier>,
    /// The policy's name, of a NetworkPolicy `namespace/name`.
    pub policy: String,
    /// The rule's place among those of the policy in that direction, from 0. `None`: it is none of
    /// its rules that allows it.
    pub rule: Option<usize>,
    /// What its author calls it.
    pub name: Option<Str>,
    /// The policy's priority, where it has one.
    pub priority: Option<u16>,
    /// What it says.
    pub action: Action,
}

impl Compiler {
    /// The rules that decide on this, in the order in which they are asked: those that pass it on, and
    /// the one that decides; of NetworkPolicies all that allow it, or each as one that denies it. None
    /// where nothing is said of it.
    pub fn deciding(&self, id: EndpointId, opening: &Opening) -> Vec<DecidingRule> {
        let Some(pod) = self.endpoint_pod(id) else { return Vec::new() };
        let applying = Applying::of(&self.cluster, pod, opening.direction);
        let remote = self.pod_at(opening.remote);
        let mut found = Vec::new();
        let mut ask = |policies: &[&ClusterPolicy]| {
            for policy in policies {
                for (place, rule) in policy.rules(opening.direction).iter().enumerate() {
                    if !self.matches(&rule.peers, &rule.ports, opening, pod, remote) {
                        continue;
                    }
                    found.push(DecidingRule {
                        tier: Some(policy.tier),
                        policy: policy.name.to_string(),
                        rule: Some(place),
                        name: rule.name.clone(),
                        priority: Some(policy.priority),
                        action: rule.action,
                    });
                    return rule.action != Action::Pass;
                }
            }
            false
        };
        if ask(&applying.admin) {
            return found;
        }
        if applying.policies.is_empty() {
            ask(&applying.baseline);
            return found;
        }
        let of_policy = |policy: &Policy, rule, action| DecidingRule {
            tier: None,
            policy: policy.id.to_string(),
            rule,
            name: None,
            priority: None,
            action,
        };
        let n_passed = found.len();
        for policy in &applying.policies {
            let rules = policy.rules(opening.direction).unwrap_or_default().iter().enumerate();
            let allowing = rules
                .filter(|(_, rule)| self.matches(&rule.peers, &rule.ports, opening, pod, remote));
            found.extend(allowing.map(|(place, _)| of_policy(policy, Some(place), Action::Accept)));
        }
        if found.len() == n_passed {
            let denying = applying.policies.iter();
            found.extend(denying.map(|policy| of_policy(policy, None, Action::Deny)));
        }
        found
    }

    /// The policies with a rule that allows this, sorted. Empty also if no policy isolates the
    /// endpoint in that direction.
    pub fn allowing(&self, id: EndpointId, opening: &Opening) -> Vec<ObjectName> {
        let Some(pod) = self.endpoint_pod(id) else { return Vec::new() };
        let remote = self.pod_at(opening.remote);
        isolating(&self.cluster, pod, opening.direction)
            .filter(|policy| {
                let rules = policy.rules(opening.direction).unwrap_or_default();
                rules
                    .iter()
                    .any(|rule| self.matches(&rule.peers, &rule.ports, opening, pod, remote))
            })
            .map(|policy| policy.id.clone())
            .collect()
    }

    /// The pod that has an address.
    pub fn pod_at(&self, address: IpAddr) -> Option<&Pod> {
        let entry = self.engine.addresses.get(&IpNet::from(address))?;
        self.cluster.pod(entry.owner.as_deref()?)
    }

    /// All networked pods that claim an address.
    pub fn pods_at(&self, address: IpAddr) -> Vec<ObjectName> {
        self.engine.addresses.claimants(address)
    }

    /// The addresses of the node itself, on whichever interface.
    pub fn node_addresses(&self) -> &BTreeSet<IpAddr> {
        self.engine.services.node_addresses()
    }

    /// Whether this node's proxy handles a Service; if not, its addresses are like any other.
    pub fn handles(&self, service: &Service) -> bool {
        self.engine.services.handles(&service.proxy)
    }

    /// Where a Service is reached and where its packets may go, whether or not Services are
    /// followed now: nowhere, if this node's proxy does not handle it.
    pub fn service_fronts(&self, id: &ObjectName) -> Vec<ServiceFront> {
        let service = self.cluster.service(id).filter(|service| self.handles(service));
        let Some(service) = service else { return Vec::new() };
        let slices = self.cluster.slices.get(&id.namespace);
        let slices = slices.into_iter().flat_map(|slices| slices.values()).map(|slice| &**slice);
        let known = &self.engine.services;
        let is_its =
            |slice: &&EndpointSlice| slice.service == id.name && known.handles(&slice.proxy);
        let slices: Vec<&EndpointSlice> = slices.filter(is_its).collect();
        let fronts = services::fronts(service, &slices, &self.cluster).into_iter();
        fronts
            .map(|front| ServiceFront { keys: front.keys, backends: front.targets.to_vec() })
            .collect()
    }

    fn matches(
        &self,
        peers: &Peers,
        ports: &Ports,
        opening: &Opening,
        pod: &Pod,
        remote: Option<&Pod>,
    ) -> bool {
        let has_peer = match peers {
            Peers::Any => true,
            Peers::Only(peers) => peers.iter().any(|peer| match peer {
                Peer::Pods { namespaces, pods } => remote.is_some_and(|remote| {
                    is_in(&self.cluster, namespaces, remote) && pods.matches(&remote.labels)
                }),
                Peer::Block(block) => {
                    let holds = |part: &IpNet| part.contains(&opening.remote);
                    holds(&block.cidr) && !block.except.iter().any(holds)
                }
                Peer::Nodes(nodes) => self.cluster.nodes.values().any(|node| {
                    nodes.matches(&node.labels) && node.addresses.contains(&opening.remote)
                }),
            }),
        };
        // A name stands for what the destination declares.
        let destination = match opening.direction {
            Direction::Ingress => Some(pod),
            Direction::Egress => remote,
        };
        has_peer
            && match ports {
                Ports::Any => true,
                Ports::Only(ports) => ports.iter().any(|port| has_port(port, opening, destination)),
            }
    }
}

fn has_port(entry: &PortMatch, opening: &Opening, destination: Option<&Pod>) -> bool {
    entry.protocol.number() == opening.protocol
        && match &entry.range {
            PortRange::All => true,
            PortRange::Numbers(first, last) => (*first..=*last).contains(&opening.port),
            PortRange::Named(name) => {
                let declared = destination.into_iter().flat_map(|pod| &*pod.ports);
                declared
                    .filter(|port| port.protocol == entry.protocol && port.name == *name)
                    .any(|port| port.port == opening.port)
            }
        }
}
