//! ClusterNetworkPolicy -> model. A rule with a part that is not understood stays at its place and
//! fails closed: `Accept` matches nothing, anything else denies everything. Must never open more
//! than the object says, and never move or drop a rule.

use std::mem;

use super::super::cluster_policy::{
    ClusterNetworkPolicy, DestinationPort, EgressPeer, NamespacedPod, PodsPeer, Port, ProtocolMatch,
};
use super::super::validate::{self, Cidr};
use super::policy::Selectors;
use super::{Problem, metadata_problems};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use netpol_model::{
    Action, ClusterPolicy, ClusterRule, IpBlock, NamespaceScope, Peer, Peers, PortMatch, PortRange,
    Ports, Protocol, Selector, Subject, Tier,
};

/// How many rules a direction, and how many entries a list within a rule may have.
const MOST: usize = 25;
/// How long a rule's name may be.
const LONGEST_NAME: usize = 100;
/// The last priority.
const LAST_PRIORITY: u16 = 1000;

/// A policy that an API server has stored, and what of it is not used as it is written. Refused
/// only if its tier, its priority or its subject is not understood.
pub fn cluster_policy(
    object: &ClusterNetworkPolicy,
) -> Result<(ClusterPolicy, Vec<Problem>), Vec<Problem>> {
    let mut converter = Converter::new(false);
    match converter.policy(object) {
        Some(policy) => Ok((policy, converter.problems())),
        None => Err(converter.problems()),
    }
}

/// A policy that nobody has validated: all or nothing, as the API server would. Beside it what is
/// valid and not enforced.
pub fn checked_cluster_policy(
    object: &ClusterNetworkPolicy,
) -> Result<(ClusterPolicy, Vec<Problem>), Vec<Problem>> {
    let mut converter = Converter::new(true);
    converter.read.problems = metadata_problems(&object.metadata, validate::dns_subdomain);
    let policy = converter.policy(object);
    match policy {
        Some(policy) if converter.read.problems.is_empty() => Ok((policy, converter.notes)),
        _ => Err(converter.read.problems),
    }
}

struct Converter {
    read: Selectors,
    /// What is valid and not enforced.
    notes: Vec<Problem>,
}

/// The peers of a rule, of either direction.
struct PeerFields<'a> {
    namespaces: Option<&'a LabelSelector>,
    pods: Option<&'a NamespacedPod>,
    nodes: Option<&'a LabelSelector>,
    networks: Option<&'a [String]>,
    domain_names: Option<&'a [String]>,
}

impl<'a> From<&'a PodsPeer> for PeerFields<'a> {
    fn from(peer: &'a PodsPeer) -> Self {
        let (namespaces, pods) = (peer.namespaces.as_ref(), peer.pods.as_ref());
        Self { namespaces, pods, nodes: None, networks: None, domain_names: None }
    }
}

impl<'a> From<&'a EgressPeer> for PeerFields<'a> {
    fn from(peer: &'a EgressPeer) -> Self {
        Self {
            namespaces: peer.namespaces.as_ref(),
            pods: peer.pods.as_ref(),
            nodes: peer.nodes.as_ref(),
            networks: peer.networks.as_deref(),
            domain_names: peer.domain_names.as_deref(),
        }
    }
}

/// One rule, of either direction.
struct RuleFields<'a> {
    name: Option<&'a str>,
    action: Option<&'a str>,
    side: &'static str,
    peers: Vec<PeerFields<'a>>,
    protocols: Option<&'a [ProtocolMatch]>,
}

impl Converter {
    fn new(strict: bool) -> Self {
        Self { read: Selectors::new(strict), notes: Vec::new() }
    }

    fn problems(&mut self) -> Vec<Problem> {
        let mut problems = mem::take(&mut self.read.problems);
        problems.append(&mut self.notes);
        problems
    }

    fn problem(&mut self, field: &str, message: impl Into<String>) {
        self.read.problems.push(Problem::new(field, message));
    }

    fn policy(&mut self, object: &ClusterNetworkPolicy) -> Option<ClusterPolicy> {
        let absent = Default::default();
        let spec = object.spec.as_ref().unwrap_or(&absent);
        let tier = match spec.tier.as_deref() {
            Some("Admin") => Some(Tier::Admin),
            Some("Baseline") => Some(Tier::Baseline),
            Some(other) => {
                let supported = "supported values: \"Admin\", \"Baseline\"";
                self.problem("spec.tier", format!("Unsupported value: {other:?}: {supported}"));
                None
            }
            None => {
                self.problem("spec.tier", "Required value");
                None
            }
        };
        let priority = self.priority(spec.priority);
        let subject = match &spec.subject {
            Some(subject) => self.subject(subject),
            None => {
                self.problem("spec.subject", "Required value");
                None
            }
        };
        let ingress = spec.ingress.iter().flatten().map(|rule| RuleFields {
            name: rule.name.as_deref(),
            action: rule.action.as_deref(),
            side: "from",
            peers: rule.from.iter().flatten().map(PeerFields::from).collect(),
            protocols: rule.protocols.as_deref(),
        });
        let ingress = self.rules("spec.ingress", ingress.collect());
        let egress = spec.egress.iter().flatten().map(|rule| RuleFields {
            name: rule.name.as_deref(),
            action: rule.action.as_deref(),
            side: "to",
            peers: rule.to.iter().flatten().map(PeerFields::from).collect(),
            protocols: rule.protocols.as_deref(),
        });
        let egress = self.rules("spec.egress", egress.collect());
        Some(ClusterPolicy {
            name: object.metadata.name.as_deref().unwrap_or_default().into(),
            tier: tier?,
            priority: priority?,
            subject: subject?,
            ingress,
            egress,
        })
    }

    fn priority(&mut self, priority: Option<i64>) -> Option<u16> {
        let Some(given) = priority else {
            self.problem("spec.priority", "Required value");
            return None;
        };
        let last = i64::from(LAST_PRIORITY);
        if !(0..=last).contains(&given) {
            let message = format!("should be from 0 to {LAST_PRIORITY}");
            self.read.problems.push(Problem::invalid("spec.priority", given, &message));
        }
        u16::try_from(given.clamp(0, last)).ok()
    }

    fn subject(&mut self, subject: &PodsPeer) -> Option<Subject> {
        let field = "spec.subject";
        match (&subject.namespaces, &subject.pods) {
            (Some(namespaces), None) => {
                let namespaces = self.read.selector(&format!("{field}.namespaces"), namespaces)?;
                Some(Subject { namespaces, pods: Selector::everything() })
            }
            (None, Some(pods)) => {
                let (namespaces, pods) = self.pods(&format!("{field}.pods"), pods)?;
                Some(Subject { namespaces, pods })
            }
            (None, None) => {
                self.problem(field, "must have one of `namespaces` and `pods`");
                None
            }
            (Some(_), Some(_)) => {
                self.problem(field, "must have at most 1 item: `namespaces` or `pods`");
                None
            }
        }
    }

    fn pods(&mut self, field: &str, pods: &NamespacedPod) -> Option<(Selector, Selector)> {
        let mut one = |name: &str, selector: Option<&LabelSelector>| {
            let field = format!("{field}.{name}");
            match selector {
                Some(selector) => self.read.selector(&field, selector),
                None => {
                    self.problem(&field, "Required value");
                    None
                }
            }
        };
        // Absent like empty: all namespaces.
        let everywhere = LabelSelector::default();
        let namespaces = pods.namespace_selector.as_ref().unwrap_or(&everywhere);
        let namespaces = one("namespaceSelector", Some(namespaces));
        let pods = one("podSelector", pods.pod_selector.as_ref());
        Some((namespaces?, pods?))
    }

    /// Names a list that is longer than an API server admits.
    fn at_most(&mut self, field: &str, n: usize) {
        if n > MOST {
            let message = format!("Too many: {n}: must have at most {MOST} items");
            self.problem(field, message);
        }
    }

    fn rules(&mut self, field: &str, rules: Vec<RuleFields<'_>>) -> Vec<ClusterRule> {
        self.at_most(field, rules.len());
        let rules = rules.iter().enumerate();
        rules.map(|(index, rule)| self.rule(&format!("{field}[{index}]"), rule)).collect()
    }

    fn rule(&mut self, field: &str, rule: &RuleFields<'_>) -> ClusterRule {
        let name = rule.name.filter(|name| !name.is_empty());
        if name.is_some_and(|name| name.chars().count() > LONGEST_NAME) {
            let message = format!("Too long: may not be more than {LONGEST_NAME} characters");
            self.problem(&format!("{field}.name"), message);
        }
        let action = match rule.action {
            Some("Accept") => Some(Action::Accept),
            Some("Deny") => Some(Action::Deny),
            Some("Pass") => Some(Action::Pass),
            Some(other) => {
                let supported = "supported values: \"Accept\", \"Deny\", \"Pass\"";
                let message = format!("Unsupported value: {other:?}: {supported}");
                self.problem(&format!("{field}.action"), message);
                None
            }
            None => {
                self.problem(&format!("{field}.action"), "Required value");
                None
            }
        };
        let ports = self.ports(&format!("{field}.protocols"), rule.protocols);
        let peers = self.peers(&format!("{field}.{}", rule.side), rule, action);
        let named = rule.protocols.iter().copied().flatten();
        let named = named.filter(|entry| entry.destination_named_port.is_some()).count() > 0;
        let unnamed = |peer: &PeerFields<'_>| {
            peer.nodes.is_some() || peer.networks.is_some() || peer.domain_names.is_some()
        };
        let mixed = named && rule.peers.iter().any(unnamed);
        if mixed {
            let message = "networks/nodes/domainNames peer cannot be set with namedPorts since there are no \
                           namedPorts for networks/nodes/domainNames";
            self.problem(field, message);
        }
        let name = name.map(Into::into);
        match (action, peers, ports) {
            (Some(action), Some(peers), Some(ports)) if !mixed => {
                ClusterRule { name, action, peers: Peers::Only(peers.into()), ports }
            }
            (Some(Action::Accept), ..) => {
                let peers = Peers::Only(Vec::new().into());
                ClusterRule { name, action: Action::Accept, peers, ports: Ports::Any }
            }
            _ => ClusterRule { name, action: Action::Deny, peers: Peers::Any, ports: Ports::Any },
        }
    }

    fn peers(
        &mut self,
        field: &str,
        rule: &RuleFields<'_>,
        action: Option<Action>,
    ) -> Option<Vec<Peer>> {
        self.at_most(field, rule.peers.len());
        if rule.peers.is_empty() {
            self.problem(field, "Required value: must have at least 1 item");
            return None;
        }
        let mut all = Some(Vec::new());
        for (index, peer) in rule.peers.iter().enumerate() {
            let peers = self.peer(&format!("{field}[{index}]"), peer, action);
            all = all.zip(peers).map(|(mut all, mut peers)| {
                all.append(&mut peers);
                all
            });
        }
        all
    }

    fn peer(
        &mut self,
        field: &str,
        peer: &PeerFields<'_>,
        action: Option<Action>,
    ) -> Option<Vec<Peer>> {
        let in_namespaces = |namespaces, pods| {
            vec![Peer::Pods { namespaces: NamespaceScope::Matching(namespaces), pods }]
        };
        match (peer.namespaces, peer.pods, peer.nodes, peer.networks, peer.domain_names) {
            (Some(namespaces), None, None, None, None) => {
                let namespaces = self.read.selector(&format!("{field}.namespaces"), namespaces)?;
                Some(in_namespaces(namespaces, Selector::everything()))
            }
            (None, Some(pods), None, None, None) => {
                let (namespaces, pods) = self.pods(&format!("{field}.pods"), pods)?;
                Some(in_namespaces(namespaces, pods))
            }
            (None, None, Some(nodes), None, None) => {
                let nodes = self.read.selector(&format!("{field}.nodes"), nodes)?;
                Some(vec![Peer::Nodes(nodes)])
            }
            (None, None, None, Some(networks), None) => {
                self.networks(&format!("{field}.networks"), networks)
            }
            (None, None, None, None, Some(names)) => {
                self.domain_names(&format!("{field}.domainNames"), names, action);
                None
            }
            (None, None, None, None, None) => {
                self.problem(field, "has no kind of peer that is known");
                None
            }
            _ => {
                self.problem(field, "must have at most 1 item: one kind of peer");
                None
            }
        }
    }

    fn networks(&mut self, field: &str, networks: &[String]) -> Option<Vec<Peer>> {
        self.at_most(field, networks.len());
        if networks.is_empty() {
            self.problem(field, "must have at least 1 item");
            return None;
        }
        let mut peers = Vec::new();
        for (index, text) in networks.iter().enumerate() {
            let field = format!("{field}[{index}]");
            let (Cidr::Valid(cidr) | Cidr::Sloppy(cidr, _)) = validate::cidr(text) else {
                let message = "Invalid CIDR format provided";
                self.read.problems.push(Problem::invalid(field, text, message));
                continue;
            };
            if let Some((block, why)) = validate::odd_cidr(text) {
                let message = format!("Invalid CIDR format provided: {why}, it means {block}");
                self.read.problems.push(Problem::invalid(field, text, &message));
            }
            peers.push(Peer::Block(IpBlock { cidr, except: Vec::new() }));
        }
        (peers.len() == networks.len()).then_some(peers)
    }

    fn domain_names(&mut self, field: &str, names: &[String], action: Option<Action>) {
        self.at_most(field, names.len());
        if names.is_empty() {
            self.problem(field, "must have at least 1 item");
        }
        if matches!(action, Some(Action::Deny | Action::Pass)) {
            self.problem(field, "domainNames peers are only supported in rules with Accept");
        }
        for (index, name) in names.iter().enumerate() {
            if !is_domain_name(name) {
                let field = format!("{field}[{index}]");
                let message = "must be a domain name, which may begin with '*.'";
                self.read.problems.push(Problem::invalid(field, name, message));
            }
            if names[..index].contains(name) {
                self.problem(&format!("{field}[{index}]"), format!("Duplicate value: {name:?}"));
            }
        }
        self.notes.push(Problem::new(field, "not enforced: the rule fails closed"));
    }

    fn ports(&mut self, field: &str, protocols: Option<&[ProtocolMatch]>) -> Option<Ports> {
        let Some(protocols) = protocols else { return Some(Ports::Any) };
        self.at_most(field, protocols.len());
        if protocols.is_empty() {
            self.problem(field, "must have at least 1 item");
            return None;
        }
        let mut all = Some(Vec::new());
        for (index, entry) in protocols.iter().enumerate() {
            let matches = self.protocol(&format!("{field}[{index}]"), entry);
            all = all.zip(matches).map(|(mut all, mut matches)| {
                all.append(&mut matches);
                all
            });
        }
        all.map(Ports::Only)
    }

    fn protocol(&mut self, field: &str, entry: &ProtocolMatch) -> Option<Vec<PortMatch>> {
        let (protocol, word, port) =
            match (&entry.tcp, &entry.udp, &entry.sctp, &entry.destination_named_port) {
                (Some(port), None, None, None) => (Protocol::Tcp, "tcp", port),
                (None, Some(port), None, None) => (Protocol::Udp, "udp", port),
                (None, None, Some(port), None) => (Protocol::Sctp, "sctp", port),
                (None, None, None, Some(name)) => return self.named(field, name),
                (None, None, None, None) => {
                    self.problem(field, "has no kind of protocol that is known");
                    return None;
                }
                _ => {
                    self.problem(field, "must have at most 1 item: one kind of protocol");
                    return None;
                }
            };
        let range = self.destination(&format!("{field}.{word}"), port)?;
        Some(vec![PortMatch { protocol, range }])
    }

    fn named(&mut self, field: &str, name: &str) -> Option<Vec<PortMatch>> {
        // The CRD takes any string; a name that no port can have matches nothing.
        if name.is_empty() {
            self.problem(&format!("{field}.destinationNamedPort"), "Required value");
            return None;
        }
        let each = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].into_iter();
        let range = || PortRange::Named(name.into());
        Some(each.map(|protocol| PortMatch { protocol, range: range() }).collect())
    }

    fn destination(&mut self, field: &str, port: &DestinationPort) -> Option<PortRange> {
        let field = format!("{field}.destinationPort");
        match &port.destination_port {
            Some(Port { number: Some(number), range: None }) => {
                let port = self.number(&format!("{field}.number"), *number)?;
                Some(PortRange::Numbers(port, port))
            }
            Some(Port { number: None, range: Some(range) }) => {
                let field = format!("{field}.range");
                let start = self.number(&format!("{field}.start"), range.start);
                let end = self.number(&format!("{field}.end"), range.end);
                let (start, end) = (start?, end?);
                if start >= end {
                    self.problem(&field, "Start port must be less than End port");
                }
                (start <= end).then_some(PortRange::Numbers(start, end))
            }
            Some(Port { number: Some(_), range: Some(_) }) => {
                self.problem(&field, "must have at most 1 item: `number` or `range`");
                None
            }
            Some(Port { number: None, range: None }) | None => {
                self.problem(&field, "has no kind of port that is known");
                None
            }
        }
    }

    fn number(&mut self, field: &str, number: i32) -> Option<u16> {
        match validate::port_number(number) {
            Ok(port) => Some(port),
            Err(error) => {
                self.read.problems.push(Problem::invalid(field, number, &error.to_string()));
                None
            }
        }
    }
}

/// What the CRD's pattern of a domain name matches.
fn is_domain_name(name: &str) -> bool {
    let name = name.strip_prefix("*.").unwrap_or(name);
    let name = name.strip_suffix('.').unwrap_or(name);
    let labels: Vec<&str> = name.split('.').collect();
    let label = |(index, label): (usize, &&str)| {
        let bytes = label.as_bytes();
        let last = index + 1 == labels.len();
        bytes.first().is_some_and(u8::is_ascii_alphanumeric)
            && bytes.last().is_some_and(u8::is_ascii_alphanumeric)
            && bytes.iter().all(|&b| b.is_ascii_alphanumeric() || b == b'-' || (b == b'_' && !last))
    };
    labels.len() > 1 && labels.iter().enumerate().all(label)
}

#[cfg(test)]
mod tests;
