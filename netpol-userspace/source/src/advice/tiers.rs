//! Advice on ClusterNetworkPolicies: rules that nothing ever reaches, and priorities that leave the
//! order to names. Must never warn of what may be reached.

use netpol_model::{
    Cluster, ClusterPolicy, ClusterRule, Direction, NamespaceScope, Operator, Peer, Peers,
    PortMatch, PortRange, Ports, Selector, Subject,
};

use super::{Warning, Warnings};

/// Warnings about a ClusterNetworkPolicy among all those that are known.
pub fn cluster_warnings(policy: &ClusterPolicy, cluster: &Cluster) -> Vec<Warning> {
    let mut warnings = Warnings::default();
    let of_tier = || {
        let others = cluster.cluster_policies.values();
        others.filter(|other| other.tier == policy.tier && other.name != policy.name)
    };
    let equal = of_tier().filter(|other| {
        other.priority == policy.priority && may_overlap(&other.subject, &policy.subject)
    });
    let equal: Vec<&str> = equal.map(|other| &*other.name).collect();
    if !equal.is_empty() {
        let others = equal.join(", ");
        warnings.add(
            "spec.priority",
            format!(
                "{} is also that of {others}, which may be about the same pods: then netpol asks \
                 them in the order of their names, and others may do otherwise; give each another \
                 priority",
                policy.priority
            ),
        );
    }
    let earlier = of_tier().filter(|other| {
        other.precedence() < policy.precedence() && covers(&other.subject, &policy.subject)
    });
    let mut earlier: Vec<&ClusterPolicy> = earlier.collect();
    earlier.sort_by(|a, b| a.precedence().cmp(&b.precedence()));
    for direction in Direction::BOTH {
        let rules = policy.rules(direction);
        for (place, rule) in rules.iter().enumerate() {
            // What matches nothing by itself has been told already.
            if rule.peers == Peers::Only([].into()) {
                continue;
            }
            let field = format!("spec.{direction}[{place}]");
            let own = rules[..place].iter().position(|before| decides(before, rule));
            let of_others = || {
                earlier.iter().find_map(|other| {
                    let rules = other.rules(direction).iter();
                    let at = { rules }.position(|before| decides(before, rule))?;
                    Some(format!("{direction}[{at}] of ClusterNetworkPolicy {}", other.name))
                })
            };
            let first = own.map(|at| format!("{direction}[{at}]")).or_else(of_others);
            if let Some(first) = first {
                let message = format!(
                    "never matches anything: {first}, which is asked before, is about all of it; \
                     put it before that, or take it out"
                );
                warnings.add(field, message);
            }
        }
    }
    warnings.0
}

/// Whether all that `rule` is about is decided by `before`.
fn decides(before: &ClusterRule, rule: &ClusterRule) -> bool {
    let has_peers = match (&before.peers, &rule.peers) {
        (Peers::Any, _) => true,
        (Peers::Only(_), Peers::Any) => false,
        (Peers::Only(before), Peers::Only(peers)) => {
            peers.iter().all(|peer| before.iter().any(|other| covers_peer(other, peer)))
        }
    };
    let has_ports = match (&before.ports, &rule.ports) {
        (Ports::Any, _) => true,
        (Ports::Only(_), Ports::Any) => false,
        (Ports::Only(before), Ports::Only(ports)) => {
            ports.iter().all(|port| before.iter().any(|other| covers_port(other, port)))
        }
    };
    has_peers && has_ports
}

fn covers_peer(before: &Peer, peer: &Peer) -> bool {
    match (before, peer) {
        (
            Peer::Pods { namespaces: NamespaceScope::Matching(wide), pods: all },
            Peer::Pods { namespaces: NamespaceScope::Matching(narrow), pods },
        ) => is_wider(wide, narrow) && is_wider(all, pods),
        (Peer::Block(wide), Peer::Block(narrow)) => {
            wide.except.is_empty() && wide.cidr.contains(&narrow.cidr)
        }
        (Peer::Nodes(wide), Peer::Nodes(narrow)) => is_wider(wide, narrow),
        _ => false,
    }
}

fn covers_port(before: &PortMatch, port: &PortMatch) -> bool {
    before.protocol == port.protocol
        && match (&before.range, &port.range) {
            (PortRange::All, _) => true,
            (PortRange::Numbers(first, last), PortRange::Numbers(low, high)) => {
                first <= low && high <= last
            }
            (other, range) => other == range,
        }
}

fn covers(wide: &Subject, narrow: &Subject) -> bool {
    is_wider(&wide.namespaces, &narrow.namespaces) && is_wider(&wide.pods, &narrow.pods)
}

/// Whether a selector selects all that another one does: it asks for nothing that the other one does
/// not ask for.
fn is_wider(wide: &Selector, narrow: &Selector) -> bool {
    wide.requirements().iter().all(|needed| narrow.requirements().contains(needed))
}

fn may_overlap(a: &Subject, b: &Subject) -> bool {
    !are_apart(&a.namespaces, &b.namespaces) && !are_apart(&a.pods, &b.pods)
}

/// Whether nothing can be selected by both: one label would need two values.
fn are_apart(a: &Selector, b: &Selector) -> bool {
    a.requirements().iter().any(|mine| {
        let Operator::In(values) = &mine.operator else { return false };
        b.requirements().iter().any(|theirs| {
            theirs.key == mine.key
                && match &theirs.operator {
                    Operator::In(others) => !others.iter().any(|value| values.contains(value)),
                    Operator::DoesNotExist => true,
                    Operator::NotIn(others) => values.iter().all(|value| others.contains(value)),
                    Operator::Exists => false,
                }
        })
    })
}
