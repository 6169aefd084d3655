//! A ClusterNetworkPolicy (`policy.networking.k8s.io`) after validation: nothing here can be invalid,
//! and what could not be understood has been decided already. Must never hold anything that a
//! verdict cannot depend on.

use std::fmt;

use super::{Direction, Peers, Ports, Selector, Str};

/// One ClusterNetworkPolicy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterPolicy {
    /// Its name: it is in no namespace.
    pub name: Str,
    /// Before or after NetworkPolicies.
    pub tier: Tier,
    /// 0 to 1000; the lower is asked first. Of equal ones that with the smaller name.
    pub priority: u16,
    /// The pods that it is about. Pods on the host's network never are.
    pub subject: Subject,
    /// Rules for what comes in, in their order. None: it says nothing of that.
    pub ingress: Vec<ClusterRule>,
    /// Rules for what goes out, likewise.
    pub egress: Vec<ClusterRule>,
}

impl ClusterPolicy {
    /// The rules of one direction, in their order.
    pub fn rules(&self, direction: Direction) -> &[ClusterRule] {
        match direction {
            Direction::Ingress => &self.ingress,
            Direction::Egress => &self.egress,
        }
    }

    /// How many peers its rules name in a direction.
    pub fn n_peers(&self, direction: Direction) -> usize {
        self.rules(direction).iter().map(|rule| rule.peers.count()).sum()
    }

    /// What decides which of two of a tier is asked first.
    pub fn precedence(&self) -> (u16, &Str) {
        (self.priority, &self.name)
    }
}

/// When a policy is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tier {
    /// Before NetworkPolicies.
    Admin,
    /// After them, for pods that none selects in the direction.
    Baseline,
}

impl Tier {
    /// Both, in the order in which they are asked.
    pub const BOTH: [Self; 2] = [Self::Admin, Self::Baseline];

    /// `Admin` or `Baseline`, the words of the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Admin => "Admin",
            Self::Baseline => "Baseline",
        }
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What becomes of what a rule matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// It is allowed, whatever comes after.
    Accept,
    /// It is denied, whatever comes after.
    Deny,
    /// The rest of the tier is not asked.
    Pass,
}

impl Action {
    /// `Accept`, `Deny` or `Pass`, the words of the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Accept => "Accept",
            Self::Deny => "Deny",
            Self::Pass => "Pass",
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The pods that a policy is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Subject {
    /// In the namespaces whose labels match.
    pub namespaces: Selector,
    /// Which pods there.
    pub pods: Selector,
}

/// One rule. One that holds something unknown has been made what it comes to: an `Accept` that has no
/// peer, or a `Deny` of everything. So rules keep their places.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterRule {
    /// What its author calls it.
    pub name: Option<Str>,
    /// What becomes of what it matches.
    pub action: Action,
    /// Whom it is about. `Any` includes what is no pod.
    pub peers: Peers,
    /// Which protocols and ports. A name of a port stands here once for each protocol.
    pub ports: Ports,
}
