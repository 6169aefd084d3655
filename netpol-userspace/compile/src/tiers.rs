//! What ClusterNetworkPolicies say of a pod, laid out with what NetworkPolicies say of it so that a
//! set can hold both: rules with a rank. Must never let it matter in which order objects came; of
//! equal priorities the smaller name comes first.
//!
//! The order of asking: the Admin tier, then NetworkPolicies where one isolates the pod in the
//! direction, else the Baseline tier, and what nobody has decided is allowed. The first rule that
//! matches decides: `Accept` and `Deny` for good, `Pass` that the rest of its tier is not asked.

use std::net::IpAddr;

use ipnet::IpNet;

use super::engine::{is_in, namespace_labels};
use super::isolating;
use super::ports::Allowed;
use super::space::Space;
use netpol_model::{
    Action, Cluster, ClusterPolicy, Direction, IpBlock, Labels, NamedPort, Peer, Peers, Pod,
    Policy, Ports, Str, Subject, Tier,
};

/// Where a ruling stands among all others.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Rank {
    /// When it is asked.
    pub layer: Layer,
    /// The policy's priority in its tier.
    pub priority: u16,
    /// The policy's name.
    pub policy: Str,
    /// The rule's place among those of the policy in its direction, from 0.
    pub rule: u16,
}

/// When a ruling is asked. NetworkPolicies come between the tiers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Layer {
    /// The Admin tier.
    Admin,
    /// The Baseline tier.
    Baseline,
    /// What holds if nobody has decided.
    Rest,
}

impl From<Tier> for Layer {
    fn from(tier: Tier) -> Self {
        match tier {
            Tier::Admin => Self::Admin,
            Tier::Baseline => Self::Baseline,
        }
    }
}

/// What one rule of a ClusterNetworkPolicy says of those whom a predicate matches.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Ruling {
    /// When it is asked.
    pub rank: Rank,
    /// What it says.
    pub action: Action,
    /// Of which protocols and ports; never none, and without rulings of its own.
    pub ports: Allowed,
}

/// A rule that stands in a set beside those of NetworkPolicies, or is one of these.
#[derive(Debug, Clone)]
pub(super) struct RankedRule {
    /// Whom it is about: pods and blocks, no nodes.
    pub peers: Peers,
    /// Which protocols and ports.
    pub ports: Ports,
    /// When it is asked and what it says; `None`: it allows as a NetworkPolicy does.
    pub ruling: Option<(Rank, Action)>,
}

/// The policies that apply to a pod in one direction, in the order of asking.
#[derive(Debug)]
pub(super) struct Applying<'a> {
    /// Of the Admin tier.
    pub admin: Vec<&'a ClusterPolicy>,
    /// The NetworkPolicies that isolate it.
    pub policies: Vec<&'a Policy>,
    /// Of the Baseline tier; none where a NetworkPolicy isolates it.
    pub baseline: Vec<&'a ClusterPolicy>,
}

impl<'a> Applying<'a> {
    /// Those for a pod in one direction.
    pub fn of(cluster: &'a Cluster, pod: &'a Pod, direction: Direction) -> Self {
        let policies: Vec<&Policy> = isolating(cluster, pod, direction).collect();
        let tier = |tier| selecting(cluster, pod, tier, direction);
        let baseline = if policies.is_empty() { tier(Tier::Baseline) } else { Vec::new() };
        Self { admin: tier(Tier::Admin), policies, baseline }
    }

    /// Whether none does.
    pub fn is_empty(&self) -> bool {
        self.policies.is_empty() && !self.is_tiered()
    }

    /// Whether any ClusterNetworkPolicy does.
    pub fn is_tiered(&self) -> bool {
        !(self.admin.is_empty() && self.baseline.is_empty())
    }

    /// The ClusterNetworkPolicies, in their order.
    pub fn tiers(&self) -> impl Iterator<Item = &'a ClusterPolicy> {
        self.admin.iter().chain(&self.baseline).copied()
    }

    /// How many peers all of them name, and one more for each.
    pub fn n_peers(&self, direction: Direction) -> usize {
        let named = self.policies.iter().map(|policy| 1 + policy.n_peers(direction));
        named.chain(self.tiers().map(|policy| 1 + policy.n_peers(direction))).sum()
    }

    /// The addresses of the pod itself to which NetworkPolicies let it go, whatever they say of them:
    /// where that has to be said. Elsewhere no set is asked about these.
    pub fn own_addresses<'p>(&self, pod: &'p Pod, judges_own: bool) -> &'p [IpAddr] {
        if judges_own && !self.policies.is_empty() { &pod.addresses } else { &[] }
    }

    /// Whether the tiers may deny something to the pod that goes to the pod itself: only then what it
    /// sends to itself by way of a Service is judged like anything else.
    pub fn judges_own(&self, cluster: &Cluster, pod: &Pod, direction: Direction) -> bool {
        let may_be_denied = |&address| may_deny_itself(self, cluster, pod, direction, address);
        direction == Direction::Egress
            && self.is_tiered()
            && pod.addresses.iter().any(may_be_denied)
    }

    /// The rules with a rank, and what else a set with such rules has to say.
    pub fn ranked(
        &self,
        cluster: &Cluster,
        pod: &Pod,
        direction: Direction,
        judges_own: bool,
    ) -> Ranked {
        if !self.is_tiered() {
            return Ranked::default();
        }
        let mut rules = Vec::new();
        for policy in self.tiers() {
            for (index, rule) in policy.rules(direction).iter().enumerate() {
                let rank = Rank {
                    layer: policy.tier.into(),
                    priority: policy.priority,
                    policy: policy.name.clone(),
                    rule: u16::try_from(index).unwrap_or(u16::MAX),
                };
                rules.push(RankedRule {
                    peers: without_nodes(&rule.peers, cluster),
                    ports: rule.ports.clone(),
                    ruling: Some((rank, rule.action)),
                });
            }
        }
        if self.policies.is_empty() {
            let rank = Rank { layer: Layer::Rest, priority: 0, policy: "".into(), rule: 0 };
            rules.push(RankedRule {
                peers: Peers::Any,
                ports: Ports::Any,
                ruling: Some((rank, Action::Accept)),
            });
        }
        let own = self.own_addresses(pod, judges_own);
        if !own.is_empty() {
            let own = own.iter().map(|&address| block(IpNet::from(address)));
            let peers = Peers::Only(own.collect());
            rules.push(RankedRule { peers, ports: Ports::Any, ruling: None });
        }
        Ranked { rules, judges_own }
    }
}

/// What ClusterNetworkPolicies add to what NetworkPolicies say of a pod in one direction.
#[derive(Debug, Default)]
pub(super) struct Ranked {
    /// The rules, in their order.
    pub rules: Vec<RankedRule>,
    /// What the pod sends to itself by way of a Service is judged like anything else.
    pub judges_own: bool,
}

/// The policies of a tier that select a pod and say anything of a direction, in their order.
fn selecting<'a>(
    cluster: &'a Cluster,
    pod: &Pod,
    tier: Tier,
    direction: Direction,
) -> Vec<&'a ClusterPolicy> {
    if cluster.cluster_policies.is_empty() || !pod.is_networked() {
        return Vec::new();
    }
    let labels = namespace_labels(cluster, &pod.id.namespace);
    let all = cluster.cluster_policies.values().filter(|policy| {
        policy.tier == tier
            && !policy.rules(direction).is_empty()
            && is_about(&policy.subject, pod, &labels)
    });
    let mut all: Vec<&ClusterPolicy> = all.collect();
    all.sort_by(|a, b| a.precedence().cmp(&b.precedence()));
    all
}

/// Whether a ClusterNetworkPolicy has rules for a pod in a direction that are asked.
pub(super) fn is_tiered(cluster: &Cluster, pod: &Pod, direction: Direction) -> bool {
    !cluster.cluster_policies.is_empty() && Applying::of(cluster, pod, direction).is_tiered()
}

/// Whether a policy is about a pod, in whatever direction.
pub(super) fn is_subject(cluster: &Cluster, policy: &ClusterPolicy, pod: &Pod) -> bool {
    let labels = namespace_labels(cluster, &pod.id.namespace);
    pod.is_networked() && is_about(&policy.subject, pod, &labels)
}

fn is_about(subject: &Subject, pod: &Pod, namespace_labels: &Labels) -> bool {
    subject.pods.matches(&pod.labels) && subject.namespaces.matches(namespace_labels)
}

fn block(cidr: IpNet) -> Peer {
    Peer::Block(IpBlock { cidr, except: Vec::new() })
}

/// The same peers, with the addresses of nodes in place of the nodes.
fn without_nodes(peers: &Peers, cluster: &Cluster) -> Peers {
    let Peers::Only(list) = peers else { return Peers::Any };
    if !list.iter().any(|peer| matches!(peer, Peer::Nodes(_))) {
        return peers.clone();
    }
    let mut all: Vec<Peer> = Vec::with_capacity(list.len());
    for peer in list.iter() {
        let Peer::Nodes(selector) = peer else {
            all.push(peer.clone());
            continue;
        };
        let nodes = cluster.nodes.values().filter(|node| selector.matches(&node.labels));
        all.extend(nodes.flat_map(|node| &node.addresses).map(|&a| block(IpNet::from(a))));
    }
    all.sort();
    all.dedup();
    Peers::Only(all.into())
}

/// Whether the tiers may deny something to a pod that goes to this address of the pod itself.
fn may_deny_itself(
    applying: &Applying<'_>,
    cluster: &Cluster,
    pod: &Pod,
    direction: Direction,
    address: IpAddr,
) -> bool {
    // A tier that is left for all ports is left for good.
    let mut left = None;
    for policy in applying.tiers() {
        for rule in policy.rules(direction) {
            if left == Some(policy.tier) || !mean(&rule.peers, cluster, pod, address) {
                continue;
            }
            match (rule.action, &rule.ports) {
                (Action::Deny, _) => return true,
                (Action::Accept, Ports::Any) => return false,
                (Action::Pass, Ports::Any) => left = Some(policy.tier),
                (Action::Accept | Action::Pass, Ports::Only(_)) => {}
            }
        }
    }
    false
}

/// Whether some of these peers are the pod itself at one of its addresses.
fn mean(peers: &Peers, cluster: &Cluster, pod: &Pod, address: IpAddr) -> bool {
    let Peers::Only(peers) = peers else { return true };
    peers.iter().any(|peer| match peer {
        Peer::Pods { namespaces, pods } => {
            is_in(cluster, namespaces, pod) && pods.matches(&pod.labels)
        }
        Peer::Block(block) => block.contains(address),
        Peer::Nodes(_) => false,
    })
}

/// What is allowed to those whom all these entries of a set are about; `declared`: the ports that
/// they declare.
pub(super) fn judge<'a>(
    entries: impl Iterator<Item = &'a Allowed>,
    declared: &[&NamedPort],
) -> Space {
    let mut by_policies = Allowed::default();
    let mut rulings: Vec<&Ruling> = Vec::new();
    for entry in entries {
        by_policies.add_resolved(entry, declared);
        rulings.extend(&entry.rulings);
    }
    by_policies.normalise();
    // A rule that means somebody in two ways is there twice.
    rulings.sort_unstable_by(|a, b| a.rank.cmp(&b.rank));
    rulings.dedup_by(|a, b| a.rank == b.rank);
    let mut judgement = Judgement { open: Space::all(), allowed: Space::none() };
    let mut rulings = rulings.into_iter().peekable();
    for layer in [Layer::Admin, Layer::Baseline, Layer::Rest] {
        let mut passed = Space::none();
        while let Some(ruling) = rulings.next_if(|ruling| ruling.rank.layer == layer) {
            judgement.ask(ruling, declared, &mut passed);
        }
        judgement.open = judgement.open.or(&passed);
        if layer == Layer::Admin {
            let allowed = judgement.open.and(&Space::of(&by_policies));
            judgement.allowed = judgement.allowed.or(&allowed);
            judgement.open = judgement.open.without(&allowed);
        }
    }
    judgement.allowed
}

/// How far the asking has come.
struct Judgement {
    /// What is not decided.
    open: Space,
    allowed: Space,
}

impl Judgement {
    fn ask(&mut self, ruling: &Ruling, declared: &[&NamedPort], passed: &mut Space) {
        let mut ports = Allowed::default();
        ports.add_resolved(&ruling.ports, declared);
        ports.normalise();
        let decided = self.open.and(&Space::of(&ports));
        self.open = self.open.without(&decided);
        match ruling.action {
            Action::Accept => self.allowed = self.allowed.or(&decided),
            Action::Deny => {}
            Action::Pass => *passed = passed.or(&decided),
        }
    }
}
