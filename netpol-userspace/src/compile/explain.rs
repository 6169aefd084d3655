//! Which policies allow what the tables allow, and whose an address is: for people who ask. Looks
//! at the classes that the tables hold, so that its words and the verdicts have one origin. Must
//! never be asked for a verdict.

use std::net::IpAddr;

use ipnet::IpNet;

use super::atoms::Atom;
use super::{Compiler, EndpointId, ServiceKey, isolating, services};
use crate::model::{
    Direction, EndpointSlice, NamedPort, ObjectName, Peer, Peers, Pod, PortMatch, PortRange, Ports,
    Rule,
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

impl Compiler {
    /// The policies with a rule that allows this, sorted. Empty also if no policy isolates the
    /// endpoint in that direction.
    pub fn allowing(&self, id: EndpointId, opening: &Opening) -> Vec<ObjectName> {
        let Some(pod) = self.endpoint_pod(id) else { return Vec::new() };
        let atoms = self.atoms_at(opening.remote);
        isolating(&self.cluster, pod, opening.direction)
            .filter(|policy| {
                let rules = policy.rules(opening.direction).unwrap_or_default();
                rules.iter().any(|rule| allows(rule, opening, pod, &atoms))
            })
            .map(|policy| policy.id.clone())
            .collect()
    }

    /// The pod that has an address.
    pub fn pod_at(&self, address: IpAddr) -> Option<&Pod> {
        let entry = self.engine.addresses.get(&IpNet::from(address))?;
        self.cluster.pod(entry.owner.as_ref()?)
    }

    /// Where a Service is reached and where its packets may go, whether or not Services are
    /// followed now.
    pub fn service_fronts(&self, id: &ObjectName) -> Vec<ServiceFront> {
        let Some(service) = self.cluster.service(id) else { return Vec::new() };
        let slices = self.cluster.slices.get(&id.namespace);
        let slices = slices.into_iter().flat_map(|slices| slices.values());
        let slices: Vec<&EndpointSlice> = slices.filter(|slice| slice.service == id.name).collect();
        let fronts = services::fronts(service, &slices, &self.cluster).into_iter();
        fronts
            .map(|front| ServiceFront { keys: front.keys, backends: front.targets.to_vec() })
            .collect()
    }

    /// What the tables know of an address.
    fn atoms_at(&self, address: IpAddr) -> Vec<&Atom> {
        let class = self.engine.addresses.effective_class(IpNet::from(address));
        let atoms = self.engine.classes.get(class).map(|class| &*class.atoms).unwrap_or_default();
        atoms.iter().map(|&id| &*self.engine.atoms.get(id).atom).collect()
    }
}

fn allows(rule: &Rule, opening: &Opening, pod: &Pod, remote: &[&Atom]) -> bool {
    let has_peer = match &rule.peers {
        Peers::Any => true,
        Peers::Only(peers) => peers.iter().any(|peer| is_peer(peer, remote)),
    };
    has_peer
        && match &rule.ports {
            Ports::Any => true,
            Ports::Only(ports) => ports.iter().any(|port| has_port(port, opening, pod, remote)),
        }
}

fn is_peer(peer: &Peer, remote: &[&Atom]) -> bool {
    match peer {
        Peer::Pods { namespaces, pods } => remote.iter().any(|atom| {
            matches!(atom, Atom::Pods { namespaces: n, pods: p } if n == namespaces && p == pods)
        }),
        Peer::Block(block) => {
            let lies_in = |block: &IpNet| remote.contains(&&Atom::Cidr(*block));
            lies_in(&block.cidr) && !block.except.iter().any(lies_in)
        }
    }
}

fn has_port(entry: &PortMatch, opening: &Opening, pod: &Pod, remote: &[&Atom]) -> bool {
    if entry.protocol.number() != opening.protocol {
        return false;
    }
    let is_it = |port: &NamedPort, name: &str| {
        let NamedPort { name: declared, protocol, port } = port;
        **declared == *name && *protocol == entry.protocol && *port == opening.port
    };
    match (&entry.range, opening.direction) {
        (PortRange::All, _) => true,
        (PortRange::Numbers(first, last), _) => (*first..=*last).contains(&opening.port),
        (PortRange::Named(name), Direction::Ingress) => {
            pod.ports.iter().any(|port| is_it(port, name))
        }
        (PortRange::Named(name), Direction::Egress) => {
            remote.iter().any(|atom| matches!(atom, Atom::Port(port) if is_it(port, name)))
        }
    }
}
