//! NetworkPolicy -> model. Strict for objects that nobody has validated (files), forgiving for
//! objects that an API server has stored. Must never open more than the object says.

use k8s_openapi::api::networking::v1 as networking;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::super::validate::{self, Cidr};
use super::{Problem, label_problems, namespaced_problems, object_name, parse_protocol};
use netpol_model::{
    IpBlock, NamespaceScope, Operator, Peer, Peers, Policy, PortMatch, PortRange, Ports,
    Requirement, Rule, Selector, Str,
};

/// A policy that nobody has validated: all or nothing, as the API server would.
pub fn policy(object: &networking::NetworkPolicy) -> Result<Policy, Vec<Problem>> {
    let mut converter = Converter::new(object, true);
    converter.read.problems = namespaced_problems(&object.metadata);
    let policy = converter.policy(object);
    match policy {
        Some(policy) if converter.read.problems.is_empty() => Ok(policy),
        _ => Err(converter.read.problems),
    }
}

/// A policy that an API server has stored. It may hold what newer servers refuse (such as
/// 010.0.0.0/8, kept from before) or what this program does not know yet: a peer or port that is
/// not understood matches nothing while the policy still isolates. The problems name these parts.
/// Refused only if it is not clear which pods the policy selects.
pub(crate) fn stored_policy(
    object: &networking::NetworkPolicy,
) -> Result<(Policy, Vec<Problem>), Vec<Problem>> {
    let mut converter = Converter::new(object, false);
    match converter.policy(object) {
        Some(policy) => Ok((policy, converter.read.problems)),
        None => Err(converter.read.problems),
    }
}

/// Reads selectors, and gathers what is wrong with them and with what is around them.
pub(super) struct Selectors {
    strict: bool,
    pub(super) problems: Vec<Problem>,
}

struct Converter {
    namespace: Str,
    read: Selectors,
    /// How many CIDRs are not written as the blocks that they mean, and the first of them.
    n_odd: u64,
    first_odd: Option<String>,
}

impl Converter {
    fn new(object: &networking::NetworkPolicy, strict: bool) -> Self {
        let namespace = object_name(&object.metadata).namespace;
        Self { namespace, read: Selectors::new(strict), n_odd: 0, first_odd: None }
    }

    fn policy(&mut self, object: &networking::NetworkPolicy) -> Option<Policy> {
        let absent = networking::NetworkPolicySpec::default();
        let spec = object.spec.as_ref().unwrap_or(&absent);
        let pods = match &spec.pod_selector {
            Some(selector) => self.read.selector("spec.podSelector", selector),
            None => Some(Selector::everything()),
        };
        let rules = spec.ingress.iter().flatten().enumerate();
        let ingress: Vec<Rule> = rules
            .map(|(index, rule)| {
                self.rule(
                    &format!("spec.ingress[{index}]"),
                    "from",
                    rule.from.as_deref(),
                    rule.ports.as_deref(),
                )
            })
            .collect();
        let rules = spec.egress.iter().flatten().enumerate();
        let egress: Vec<Rule> = rules
            .map(|(index, rule)| {
                self.rule(
                    &format!("spec.egress[{index}]"),
                    "to",
                    rule.to.as_deref(),
                    rule.ports.as_deref(),
                )
            })
            .collect();
        let types = self.policy_types(spec, &egress);
        if let Some(first) = &self.first_odd {
            tracing::warn!(
                policy = %object_name(&object.metadata),
                blocks = self.n_odd,
                first,
                "a block is not written as what it means; `netpol check` says more"
            );
        }
        Some(Policy {
            id: object_name(&object.metadata),
            pods: pods?,
            ingress: types.0.then_some(ingress),
            egress: types.1.then_some(egress),
        })
    }

    /// Whether the policy isolates for ingress and for egress.
    fn policy_types(
        &mut self,
        spec: &networking::NetworkPolicySpec,
        egress: &[Rule],
    ) -> (bool, bool) {
        let types = spec.policy_types.as_deref().unwrap_or_default();
        if types.is_empty() {
            return (true, !egress.is_empty());
        }
        if types.len() > 2 {
            self.read.problems.push(Problem::invalid(
                "spec.policyTypes",
                types,
                "may not specify more than two policyTypes",
            ));
        }
        for (index, name) in types.iter().enumerate() {
            if !matches!(name.as_str(), "Ingress" | "Egress") {
                self.read.problems.push(Problem::new(
                    format!("spec.policyTypes[{index}]"),
                    format!(
                        "Unsupported value: {name:?}: supported values: \"Egress\", \"Ingress\""
                    ),
                ));
            }
        }
        let has = |wanted: &str| types.iter().any(|name| name == wanted);
        (has("Ingress"), has("Egress"))
    }

    fn rule(
        &mut self,
        field: &str,
        side: &str,
        peers: Option<&[networking::NetworkPolicyPeer]>,
        ports: Option<&[networking::NetworkPolicyPort]>,
    ) -> Rule {
        let ports = ports.unwrap_or_default();
        let matches = ports.iter().enumerate();
        let mut matches: Vec<PortMatch> = matches
            .filter_map(|(index, port)| self.port(&format!("{field}.ports[{index}]"), port))
            .collect();
        let peers = peers.unwrap_or_default();
        let only = peers.iter().enumerate();
        let only: Vec<Peer> = only
            .filter_map(|(index, peer)| self.peer(&format!("{field}.{side}[{index}]"), peer))
            .collect();
        matches.shrink_to_fit();
        Rule {
            peers: if peers.is_empty() { Peers::Any } else { Peers::Only(only.into()) },
            ports: if ports.is_empty() { Ports::Any } else { Ports::Only(matches) },
        }
    }

    fn peer(&mut self, field: &str, peer: &networking::NetworkPolicyPeer) -> Option<Peer> {
        let selects = peer.pod_selector.is_some() || peer.namespace_selector.is_some();
        // Everything is checked before anything is given up, to name all problems at once.
        let pods = match &peer.pod_selector {
            Some(selector) => self.read.selector(&format!("{field}.podSelector"), selector),
            None => Some(Selector::everything()),
        };
        let namespaces = match &peer.namespace_selector {
            Some(selector) => self
                .read
                .selector(&format!("{field}.namespaceSelector"), selector)
                .map(NamespaceScope::Matching),
            None => Some(NamespaceScope::Named(self.namespace.clone())),
        };
        let block =
            peer.ip_block.as_ref().map(|block| self.block(&format!("{field}.ipBlock"), block));
        match (selects, block) {
            (true, None) => Some(Peer::Pods { namespaces: namespaces?, pods: pods? }),
            (false, Some(block)) => Some(Peer::Block(block?)),
            (true, Some(_)) => {
                let message = "Forbidden: may not specify both ipBlock and another peer";
                self.read.problems.push(Problem::new(field, message));
                None
            }
            (false, None) => {
                self.read.problems.push(Problem::new(field, "Required value: must specify a peer"));
                None
            }
        }
    }

    fn block(&mut self, field: &str, block: &networking::IPBlock) -> Option<IpBlock> {
        if block.cidr.is_empty() {
            self.read.problems.push(Problem::new(format!("{field}.cidr"), "Required value"));
            return None;
        }
        let cidr = self.cidr(format!("{field}.cidr"), &block.cidr)?;
        let mut except = Vec::new();
        let mut complete = true;
        for (index, text) in block.except.iter().flatten().enumerate() {
            let field = format!("{field}.except[{index}]");
            match self.cidr(field.clone(), text) {
                Some(part) if cidr.contains(&part) && cidr.prefix_len() < part.prefix_len() => {
                    except.push(part);
                }
                Some(_) => {
                    let message = "must be a strict subset of `cidr`";
                    self.read.problems.push(Problem::invalid(field, text, message));
                    complete = false;
                }
                None => complete = false,
            }
        }
        except.sort();
        except.dedup();
        except.shrink_to_fit();
        // A block whose exceptions are not all understood would allow too much.
        complete.then_some(IpBlock { cidr, except })
    }

    fn cidr(&mut self, field: String, text: &str) -> Option<ipnet::IpNet> {
        match validate::cidr(text) {
            // Neither more nor less is open for it than on a server that has stored it.
            Cidr::Valid(block) | Cidr::Sloppy(block, _) => {
                if validate::odd_cidr(text).is_some() {
                    self.n_odd += 1;
                    self.first_odd.get_or_insert_with(|| format!("{field}: {text} means {block}"));
                }
                Some(block)
            }
            Cidr::Invalid(message) => {
                self.read.problems.push(Problem::invalid(field, text, message));
                None
            }
        }
    }

    fn port(&mut self, field: &str, port: &networking::NetworkPolicyPort) -> Option<PortMatch> {
        let protocol = parse_protocol(port.protocol.as_deref())
            .map_err(|m| self.read.problems.push(Problem::new(format!("{field}.protocol"), m)));
        let range = match (&port.port, port.end_port) {
            (None, None) => Some(PortRange::All),
            (None, Some(end)) => {
                let message = "may not be specified when `port` is not specified";
                self.read.problems.push(Problem::invalid(format!("{field}.endPort"), end, message));
                None
            }
            (Some(IntOrString::Int(first)), end) => self.numbers(field, *first, end),
            (Some(IntOrString::String(name)), end) => self.port_name(field, name, end),
        };
        Some(PortMatch { protocol: protocol.ok()?, range: range? })
    }

    fn numbers(&mut self, field: &str, first: i32, end: Option<i32>) -> Option<PortRange> {
        let mut number = |name: &str, number: i32| match validate::port_number(number) {
            Ok(port) => Some(port),
            Err(error) => {
                let field = format!("{field}.{name}");
                self.read.problems.push(Problem::invalid(field, number, &error.to_string()));
                None
            }
        };
        let low = number("port", first);
        let high = match end {
            Some(end) => number("endPort", end),
            None => low,
        };
        if let Some(end) = end.filter(|end| *end < first) {
            let message = "must be greater than or equal to `port`";
            self.read.problems.push(Problem::invalid(format!("{field}.endPort"), end, message));
            return None;
        }
        Some(PortRange::Numbers(low?, high?))
    }

    fn port_name(&mut self, field: &str, name: &str, end: Option<i32>) -> Option<PortRange> {
        if let Some(end) = end {
            let message = "may not be specified when `port` is non-numeric";
            self.read.problems.push(Problem::invalid(format!("{field}.endPort"), end, message));
        }
        let messages = validate::port_name(name);
        for message in &messages {
            self.read.problems.push(Problem::invalid(format!("{field}.port"), name, message));
        }
        (end.is_none() && messages.is_empty()).then(|| PortRange::Named(name.into()))
    }
}

impl Selectors {
    pub(super) fn new(strict: bool) -> Self {
        Self { strict, problems: Vec::new() }
    }

    pub(super) fn selector(&mut self, field: &str, selector: &LabelSelector) -> Option<Selector> {
        let mut requirements = Vec::new();
        for (key, value) in selector.match_labels.iter().flatten() {
            if self.strict {
                let field = format!("{field}.matchLabels");
                label_problems(&field, key, value, &mut self.problems);
            }
            let operator = Operator::In(vec![value.as_str().into()]);
            requirements.push(Some(Requirement { key: key.as_str().into(), operator }));
        }
        for (index, expression) in selector.match_expressions.iter().flatten().enumerate() {
            let field = format!("{field}.matchExpressions[{index}]");
            requirements.push(self.requirement(&field, expression));
        }
        requirements.into_iter().collect::<Option<Vec<_>>>().map(Selector::new)
    }

    fn requirement(
        &mut self,
        field: &str,
        expression: &LabelSelectorRequirement,
    ) -> Option<Requirement> {
        let given = expression.values.as_deref().unwrap_or_default();
        let values = || given.iter().map(|value| Str::from(value.as_str())).collect();
        let operator = match expression.operator.as_str() {
            "In" | "NotIn" if given.is_empty() => {
                self.problems.push(Problem::new(
                    format!("{field}.values"),
                    "Required value: must be specified when `operator` is 'In' or 'NotIn'",
                ));
                None
            }
            "In" => Some(Operator::In(values())),
            "NotIn" => Some(Operator::NotIn(values())),
            "Exists" | "DoesNotExist" if !given.is_empty() => {
                self.problems.push(Problem::new(
                    format!("{field}.values"),
                    "Forbidden: may not be specified when `operator` is 'Exists' or \
                     'DoesNotExist'",
                ));
                None
            }
            "Exists" => Some(Operator::Exists),
            "DoesNotExist" => Some(Operator::DoesNotExist),
            other => {
                let message = "not a valid selector operator";
                self.problems.push(Problem::invalid(format!("{field}.operator"), other, message));
                None
            }
        };
        if self.strict {
            for message in validate::label_key(&expression.key) {
                let field = format!("{field}.key");
                self.problems.push(Problem::invalid(field, &expression.key, &message));
            }
            for (index, value) in given.iter().enumerate() {
                for message in validate::label_value(value) {
                    let field = format!("{field}.values[{index}]");
                    self.problems.push(Problem::invalid(field, value, &message));
                }
            }
        }
        Some(Requirement { key: expression.key.as_str().into(), operator: operator? })
    }
}
