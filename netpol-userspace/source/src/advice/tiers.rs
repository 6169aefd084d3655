//! Advice on ClusterNetworkPolicies: rules that nothing ever reaches, and priorities that leave the
//! order to names. Must never warn of what may be reached.

use netpol_model::{
    Cluster, ClusterPolicy, ClusterRule, Direction, NamespaceScope, Operator, Peer, Peers,
    PortMatch, PortRange, Ports, Requirement, Selector, Str, Subject,
};

use super::{Warning, Warnings};

/// Warnings about a ClusterNetworkPolicy among all those that are known; `left_empty` are the fields of
/// it that were written without a value.
pub fn cluster_warnings(
    policy: &ClusterPolicy,
    left_empty: &[String],
    cluster: &Cluster,
) -> Vec<Warning> {
    let mut warnings = Warnings::default();
    for field in left_empty {
        let (means, instead) = match field.rsplit('.').next() {
            Some("protocols") => ("every protocol and port", "leave the field out"),
            Some("namespaceSelector") => ("all namespaces", "write `namespaceSelector: {}`"),
            _ => continue,
        };
        let message = format!("is left empty, which means {means}. If that is meant, {instead}");
        warnings.add(field, message);
    }
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

/// Whether a selector selects all that another one does: what it asks for, the other one asks for too,
/// or for more.
fn is_wider(wide: &Selector, narrow: &Selector) -> bool {
    let is_met =
        |needed: &Requirement| narrow.requirements().iter().any(|has| implies(has, needed));
    wide.requirements().iter().all(is_met)
}

/// Whether what meets `has` always meets `needed`.
fn implies(has: &Requirement, needed: &Requirement) -> bool {
    let in_all = |few: &[Str], many: &[Str]| few.iter().all(|value| many.contains(value));
    has.key == needed.key
        && match (&has.operator, &needed.operator) {
            (Operator::In(few), Operator::In(many)) => in_all(few, many),
            (Operator::In(these), Operator::NotIn(not)) => !these.iter().any(|v| not.contains(v)),
            (Operator::NotIn(many), Operator::NotIn(few)) => in_all(few, many),
            (Operator::In(_) | Operator::Exists, Operator::Exists)
            | (Operator::DoesNotExist, Operator::DoesNotExist | Operator::NotIn(_)) => true,
            _ => false,
        }
}

fn may_overlap(a: &Subject, b: &Subject) -> bool {
    !are_apart(&a.namespaces, &b.namespaces) && !are_apart(&a.pods, &b.pods)
}

/// Whether nothing can be selected by both: of one label they ask for what cannot be at once.
fn are_apart(a: &Selector, b: &Selector) -> bool {
    let (all, others) = (a.requirements(), b.requirements());
    all.iter().any(|one| others.iter().any(|two| exclude(one, two) || exclude(two, one)))
}

/// Whether what meets `one` never meets `two`, as far as `one` tells.
fn exclude(one: &Requirement, two: &Requirement) -> bool {
    one.key == two.key
        && match (&one.operator, &two.operator) {
            (Operator::In(these), Operator::In(those)) => !these.iter().any(|v| those.contains(v)),
            (Operator::In(these), Operator::NotIn(not)) => these.iter().all(|v| not.contains(v)),
            (Operator::In(_) | Operator::Exists, Operator::DoesNotExist) => true,
            _ => false,
        }
}
