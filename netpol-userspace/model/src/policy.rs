//! A NetworkPolicy v1 after defaulting and validation: nothing here can be invalid. Must never
//! hold anything that a verdict cannot depend on.

use std::fmt;
use std::sync::Arc;

use ipnet::IpNet;

use super::{Direction, ObjectName, Protocol, Selector, Str};

/// One NetworkPolicy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Namespace and name.
    pub id: ObjectName,
    /// The pods of its namespace that it selects.
    pub pods: Selector,
    /// Ingress rules; `None` if policyTypes does not include Ingress (no isolation by it), an
    /// empty list isolates and allows nothing.
    pub ingress: Option<Vec<Rule>>,
    /// Egress rules, likewise.
    pub egress: Option<Vec<Rule>>,
}

impl Policy {
    /// The rules of one direction, `None` if the policy does not isolate in it.
    pub fn rules(&self, direction: Direction) -> Option<&[Rule]> {
        match direction {
            Direction::Ingress => self.ingress.as_deref(),
            Direction::Egress => self.egress.as_deref(),
        }
    }

    /// How many peers its rules name in a direction.
    pub fn n_peers(&self, direction: Direction) -> usize {
        self.rules(direction).unwrap_or_default().iter().map(|rule| rule.peers.count()).sum()
    }
}

/// One rule: allows what matches both a peer and a port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rule {
    /// Whom it is about.
    pub peers: Peers,
    /// Which protocols and ports.
    pub ports: Ports,
}

/// The `from` or `to` of a rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Peers {
    /// Absent or empty: any peer, pods and everything else.
    Any,
    /// Any of these (an entry in which nothing was understood is left out, so this may be empty
    /// and then selects nothing). Shared by all who know the policy.
    Only(Arc<[Peer]>),
}

impl Peers {
    /// Those that are named: none where it is any peer.
    pub fn named(&self) -> &[Peer] {
        match self {
            Self::Any => &[],
            Self::Only(peers) => peers,
        }
    }

    /// How many there are; any peer counts as one.
    pub fn count(&self) -> usize {
        match self {
            Self::Any => 1,
            Self::Only(peers) => peers.len(),
        }
    }
}

/// One peer.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Peer {
    /// Pods by labels.
    Pods {
        /// In which namespaces.
        namespaces: NamespaceScope,
        /// Which pods there.
        pods: Selector,
    },
    /// Addresses, of pods or not.
    Block(IpBlock),
    /// The addresses of nodes, by the nodes' labels. In ClusterNetworkPolicies only.
    Nodes(Selector),
}

/// The namespaces a pod peer looks into.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NamespaceScope {
    /// One namespace: the policy's own (no namespaceSelector was given).
    Named(Str),
    /// All namespaces whose labels match.
    Matching(Selector),
}

/// An address block without some of its parts.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IpBlock {
    /// The block, host bits zero.
    pub cidr: IpNet,
    /// Parts of it that are excepted, host bits zero, sorted, distinct.
    pub except: Vec<IpNet>,
}

/// The `ports` of a rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Ports {
    /// Absent or empty: every protocol, ICMP and the rest included, and every port.
    Any,
    /// Any of these.
    Only(Vec<PortMatch>),
}

/// One entry of `ports`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortMatch {
    /// The protocol (absent in the object: TCP).
    pub protocol: Protocol,
    /// The destination ports.
    pub range: PortRange,
}

/// Destination ports of one entry.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PortRange {
    /// No port given: every port of the protocol.
    All,
    /// From the first to the second, both included (equal for a single port).
    Numbers(u16, u16),
    /// The port that the *destination* pod declares under this name and protocol.
    Named(Str),
}

impl fmt::Display for IpBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.cidr)?;
        if !self.except.is_empty() {
            let except: Vec<String> = self.except.iter().map(ToString::to_string).collect();
            write!(f, " except {}", except.join(", "))?;
        }
        Ok(())
    }
}

impl fmt::Display for PortMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.protocol)?;
        match &self.range {
            PortRange::All => Ok(()),
            PortRange::Numbers(first, last) if first == last => write!(f, " {first}"),
            PortRange::Numbers(first, last) => write!(f, " {first}-{last}"),
            PortRange::Named(name) => write!(f, " \"{name}\""),
        }
    }
}
