//! What an API server accepts of a policy although it probably is not meant. Pure; must never
//! call something wrong that an API server refuses, that is [`super::convert`]'s.

use std::fmt;

use ipnet::IpNet;
use k8s_openapi::api::networking::v1::NetworkPolicy;

use super::validate::{self, Cidr};
use netpol_model::{Cluster, Direction, Peer, Peers, Policy, Ports, Rule};

mod tiers;
mod unmatched;

pub use tiers::cluster_warnings;

/// Something about a policy that probably is not meant.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Warning {
    /// Where, e.g. `spec.ingress[0].from[1].podSelector`.
    pub field: String,
    /// What is there, what it means and what to do about it.
    pub message: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.message)
    }
}

/// How much of a cluster is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// All of it: what is not there does not exist.
    Cluster,
    /// What some files hold: the rest of it may be elsewhere.
    SomeFiles,
}

/// A policy as it was written and as it is meant.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// As written.
    pub object: &'a NetworkPolicy,
    /// The fields of it that were written without a value ([`super::schema::left_empty`]).
    pub left_empty: &'a [String],
    /// What was understood.
    pub policy: &'a Policy,
}

/// Warnings about a policy among the pods and namespaces of `cluster`. Where it has no pods at
/// all, nothing is said about selectors: they cannot be judged.
pub fn warnings(subject: Subject<'_>, cluster: &Cluster, known: Scope) -> Vec<Warning> {
    let mut warnings = Warnings::default();
    let Subject { object, policy, .. } = subject;
    empty_selector(subject, &mut warnings);
    for direction in Direction::BOTH {
        direction_without_effect(subject, direction, &mut warnings);
        empty_rules(subject, direction, &mut warnings);
    }
    odd_blocks(object, &mut warnings);
    covered_blocks(policy, &mut warnings);
    if cluster.networked_pods().next().is_some() {
        unmatched::warn(policy, cluster, known, &mut warnings);
    }
    warnings.0
}

#[derive(Debug, Default)]
struct Warnings(Vec<Warning>);

impl Warnings {
    fn add(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.0.push(Warning { field: field.into(), message: message.into() });
    }
}

impl Subject<'_> {
    fn is_left_empty(self, field: &str) -> bool {
        self.left_empty.iter().any(|empty| empty == field)
    }
}

/// The name of a direction in policyTypes.
fn type_name(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "Ingress",
        Direction::Egress => "Egress",
    }
}

/// The name of the field with the peers of a direction.
fn side(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "from",
        Direction::Egress => "to",
    }
}

/// A form that was never filled in: `podSelector:` and nothing behind it.
fn empty_selector(subject: Subject<'_>, warnings: &mut Warnings) {
    let field = "spec.podSelector";
    let inside = format!("{field}.matchLabels");
    let policy = subject.policy;
    if policy.pods.is_everything()
        && (subject.is_left_empty(field) || subject.is_left_empty(&inside))
    {
        let namespace = &policy.id.namespace;
        warnings.add(
            field,
            format!(
                "is left empty, which selects every pod of namespace {namespace}. If that is \
                 meant, write `podSelector: {{}}`; else name the labels of the pods"
            ),
        );
    }
}

/// Rules, or a list left empty, of a direction that policyTypes does not name.
fn direction_without_effect(subject: Subject<'_>, direction: Direction, warnings: &mut Warnings) {
    let Subject { object, policy, .. } = subject;
    let Some(spec) = &object.spec else { return };
    if policy.rules(direction).is_some() {
        return;
    }
    let has_rules = match direction {
        Direction::Ingress => spec.ingress.as_ref().is_some_and(|rules| !rules.is_empty()),
        Direction::Egress => spec.egress.as_ref().is_some_and(|rules| !rules.is_empty()),
    };
    let (field, name) = (format!("spec.{direction}"), type_name(direction));
    if has_rules {
        warnings.add(
            &field,
            format!(
                "has rules without effect: spec.policyTypes does not include {name}, so the \
                 policy does not restrict {direction}. Add {name} to spec.policyTypes, or remove \
                 {field}"
            ),
        );
    } else if subject.is_left_empty(&field) {
        let types = spec.policy_types.as_deref().unwrap_or_default();
        let (why, what) = match types.is_empty() {
            // Only egress gets here: without policyTypes ingress is always restricted.
            true => (
                "without spec.policyTypes only a list with rules counts".to_owned(),
                "write `policyTypes: [Ingress, Egress]`".to_owned(),
            ),
            false => (
                format!("spec.policyTypes does not include {name}"),
                format!("add {name} to spec.policyTypes"),
            ),
        };
        warnings.add(
            &field,
            format!(
                "is empty and does not restrict {direction}: {why}. To deny all {direction} of \
                 the selected pods, {what}; else remove {field}"
            ),
        );
    }
}

/// Rules, peers and ports that are empty, which means everything and not nothing.
fn empty_rules(subject: Subject<'_>, direction: Direction, warnings: &mut Warnings) {
    let side = side(direction);
    let who = match direction {
        Direction::Ingress => "from anywhere, not from nobody",
        Direction::Egress => "to anywhere, not to nobody",
    };
    for (index, rule) in subject.policy.rules(direction).unwrap_or_default().iter().enumerate() {
        let field = format!("spec.{direction}[{index}]");
        if *rule == (Rule { peers: Peers::Any, ports: Ports::Any }) {
            let name = type_name(direction);
            warnings.add(
                &field,
                format!(
                    "names neither peers (`{side}`) nor `ports`, which allows everything: the \
                     selected pods are open for {direction}, whatever other policies say. If that \
                     is not meant, fill them in; to deny all {direction}, leave spec.{direction} \
                     without rules and {name} in spec.policyTypes"
                ),
            );
            continue;
        }
        let (peers, ports) = (format!("{field}.{side}"), format!("{field}.ports"));
        if subject.is_left_empty(&peers) {
            let message = format!(
                "is empty, which means {who}. If that is meant, leave `{side}` out; else name the \
                 peers"
            );
            warnings.add(&peers, message);
        }
        if subject.is_left_empty(&ports) {
            let message = "is empty, which means every port and protocol, not none. If that is \
                           meant, leave `ports` out; else name them";
            warnings.add(&ports, message);
        }
    }
}

/// CIDRs that are not written as the blocks that they mean.
fn odd_blocks(object: &NetworkPolicy, warnings: &mut Warnings) {
    let Some(spec) = &object.spec else { return };
    let ingress = spec.ingress.iter().flatten().map(|rule| rule.from.as_deref());
    let egress = spec.egress.iter().flatten().map(|rule| rule.to.as_deref());
    let rules = ingress
        .enumerate()
        .map(|(index, peers)| (format!("spec.ingress[{index}].from"), peers))
        .chain(egress.enumerate().map(|(i, peers)| (format!("spec.egress[{i}].to"), peers)));
    for (field, peers) in rules {
        for (index, peer) in peers.unwrap_or_default().iter().enumerate() {
            let Some(block) = &peer.ip_block else { continue };
            let field = format!("{field}[{index}].ipBlock");
            let except = block.except.iter().flatten().enumerate();
            let except = except.map(|(i, text)| (format!("{field}.except[{i}]"), text));
            for (field, text) in [(format!("{field}.cidr"), &block.cidr)].into_iter().chain(except)
            {
                one_cidr(field, text, warnings);
            }
        }
    }
}

fn one_cidr(field: String, text: &str, warnings: &mut Warnings) {
    match (validate::cidr(text), validate::odd_cidr(text)) {
        (Cidr::Sloppy(..), Some((block, why))) => {
            let message = format!(
                "CIDR {text} {why}, for which strict API servers refuse the policy: it means \
                 {block} here. Write that"
            );
            warnings.add(field, message);
        }
        (_, Some((block, why))) => {
            let address = text.split('/').next().unwrap_or_default();
            let bits = block.max_prefix_len();
            let message = format!(
                "CIDR {text} {why}: it means {block}. Write that, or {address}/{bits} for the one \
                 address"
            );
            warnings.add(field, message);
        }
        _ => {}
    }
}

/// Every peer with its place in the object.
fn peers(policy: &Policy) -> impl Iterator<Item = (String, Direction, &Peer)> {
    Direction::BOTH.into_iter().flat_map(move |direction| {
        let side = side(direction);
        let rules = policy.rules(direction).unwrap_or_default().iter().enumerate();
        rules.flat_map(move |(rule_index, rule)| {
            rule.peers.named().iter().enumerate().map(move |(index, peer)| {
                (format!("spec.{direction}[{rule_index}].{side}[{index}]"), direction, peer)
            })
        })
    })
}

fn covered_blocks(policy: &Policy, warnings: &mut Warnings) {
    for (field, _, peer) in peers(policy) {
        if let Peer::Block(block) = peer
            && IpNet::aggregate(&block.except).contains(&block.cidr)
        {
            warnings.add(
                format!("{field}.ipBlock"),
                format!(
                    "matches nothing: its exceptions cover all of {}. Remove the peer, or one of \
                     the exceptions",
                    block.cidr
                ),
            );
        }
    }
}

#[cfg(test)]
mod tests;
