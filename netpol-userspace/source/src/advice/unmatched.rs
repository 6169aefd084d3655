//! Selectors that match no pod and port names that no pod has. Must never be asked about a
//! cluster without pods.

use std::collections::BTreeSet;

use super::{Scope, Warnings, peers};
use crate::convert::NAMESPACE_NAME_LABEL;
use crate::explain;
use netpol_model::{
    Cluster, Direction, NamespaceScope, Operator, Peer, Peers, Pod, Policy, PortMatch, PortRange,
    Ports, Rule, Selector, Str,
};

/// Warns of what in `policy` matches nothing in `cluster`.
pub(super) fn warn(policy: &Policy, cluster: &Cluster, known: Scope, warnings: &mut Warnings) {
    let files = Files { cluster, known };
    files.selected_pods(policy, warnings);
    for (field, _, peer) in peers(policy) {
        if let Peer::Pods { namespaces, pods } = peer
            && cluster.pods_of(peer).is_empty()
        {
            files.peer(&field, namespaces, pods, warnings);
        }
    }
    for direction in Direction::BOTH {
        for (index, rule) in policy.rules(direction).unwrap_or_default().iter().enumerate() {
            let field = format!("spec.{direction}[{index}]");
            files.port_names(&field, policy, direction, rule, warnings);
        }
    }
}

struct Files<'a> {
    cluster: &'a Cluster,
    known: Scope,
}

impl Files<'_> {
    /// What is said at the end about what may be elsewhere.
    fn unless_elsewhere(&self) -> &'static str {
        match self.known {
            Scope::Cluster => "",
            Scope::SomeFiles => " (fine if they are defined elsewhere)",
        }
    }

    fn selected_pods(&self, policy: &Policy, warnings: &mut Warnings) {
        if !self.cluster.selected_by(policy).is_empty() {
            return;
        }
        let (namespace, pods) = (&policy.id.namespace, explain::pods(&policy.pods));
        let other = self.elsewhere(namespace, &policy.pods);
        let advice = if let Some(on_host) = self.on_host([namespace], &policy.pods) {
            on_host
        } else if !other.is_empty() {
            format!("{} has such pods: correct metadata.namespace if these are meant", list(&other))
        } else if policy.pods.is_everything() {
            "The pods are in other namespaces: correct metadata.namespace if these are meant"
                .to_owned()
        } else {
            "Compare it with the labels of the pods (in a workload: \
             spec.template.metadata.labels)"
                .to_owned()
        };
        warnings.add(
            "spec.podSelector",
            format!(
                "selects no pod in these files ({pods} in namespace {namespace}), so the policy \
                 has no effect{}. {advice}",
                self.unless_elsewhere()
            ),
        );
    }

    /// A peer of pods that means none.
    fn peer(&self, field: &str, scope: &NamespaceScope, pods: &Selector, warnings: &mut Warnings) {
        let found = self.cluster.namespaces_of(scope);
        let unless = self.unless_elsewhere();
        let what = explain::peer(&Peer::Pods { namespaces: scope.clone(), pods: pods.clone() });
        match scope {
            NamespaceScope::Matching(selector) if found.is_empty() => {
                let by_name = names_namespaces(selector);
                if self.known == Scope::SomeFiles && by_name {
                    // A namespace that the files say nothing of has its pods elsewhere too.
                    return;
                }
                let advice = match by_name {
                    true => "Add the pods there that are meant, or correct the name",
                    false => "Add a Namespace object with these labels, or correct the selector",
                };
                warnings.add(
                    format!("{field}.namespaceSelector"),
                    format!(
                        "no namespace in these files matches ({selector}), so this peer allows \
                         nothing{unless}. {advice}"
                    ),
                );
            }
            NamespaceScope::Matching(_) if pods.is_everything() => warnings.add(
                format!("{field}.namespaceSelector"),
                format!(
                    "matches no pod in these files ({what}), so this peer allows nothing{unless}. \
                     Compare it with the labels of the namespaces that have pods"
                ),
            ),
            scope => {
                let other = match scope {
                    NamespaceScope::Named(own) => self.elsewhere(own, pods),
                    NamespaceScope::Matching(_) => BTreeSet::new(),
                };
                let advice = match (self.on_host(&found, pods), other.is_empty()) {
                    (Some(on_host), _) => on_host,
                    (None, true) => "Compare it with the labels of the pods".to_owned(),
                    (None, false) => format!(
                        "{} has such pods: a podSelector alone looks into the policy's own \
                         namespace only, so add a namespaceSelector to this peer if these are meant",
                        list(&other)
                    ),
                };
                warnings.add(
                    format!("{field}.podSelector"),
                    format!(
                        "matches no pod in these files ({what}), so this peer allows \
                         nothing{unless}. {advice}"
                    ),
                );
            }
        }
    }

    /// Other namespaces in which labels match. Nobody asks for "all pods" of another namespace.
    fn elsewhere(&self, namespace: &Str, pods: &Selector) -> BTreeSet<Str> {
        let all = self.cluster.networked_pods();
        let found = all.filter(|pod| pod.id.namespace != *namespace && pods.matches(&pod.labels));
        match pods.is_everything() {
            true => BTreeSet::new(),
            false => found.map(|pod| pod.id.namespace.clone()).collect(),
        }
    }

    /// What to say of a pod on the host's network that would match if it were not.
    fn on_host<'s>(
        &self,
        namespaces: impl IntoIterator<Item = &'s Str>,
        pods: &Selector,
    ) -> Option<String> {
        let all = namespaces.into_iter().filter_map(|name| self.cluster.pods.get(name));
        let mut on_host = all.flat_map(|pods| pods.values()).filter(|pod| pod.host_network);
        let pod = on_host.find(|pod| pods.matches(&pod.labels))?;
        Some(format!(
            "{} has such labels, but is on its node's network, where no selector matches it",
            pod.id
        ))
    }

    /// Port names that no pod declares which the port would be looked up on.
    fn port_names(
        &self,
        field: &str,
        policy: &Policy,
        direction: Direction,
        rule: &Rule,
        warnings: &mut Warnings,
    ) {
        let pods: Vec<&Pod> = match (direction, &rule.peers) {
            (Direction::Ingress, _) => self.cluster.selected_by(policy),
            (_, Peers::Any) => self.cluster.networked_pods().collect(),
            (_, Peers::Only(peers)) => {
                peers.iter().flat_map(|peer| self.cluster.pods_of(peer)).collect()
            }
        };
        let Ports::Only(ports) = &rule.ports else { return };
        // Without any pod, that is what there is to say, and it has been said.
        if pods.is_empty() {
            return;
        }
        for (index, PortMatch { protocol, range }) in ports.iter().enumerate() {
            let PortRange::Named(name) = range else { continue };
            let mut declared = pods.iter().flat_map(|pod| &*pod.ports).filter(|p| p.name == *name);
            let Some(other) = declared.clone().next() else {
                let advice = format!(
                    "Name the containerPort that is meant (`{{name: {name}, containerPort: \
                     NUMBER}}`), or write the number here"
                );
                warnings.add(
                    format!("{field}.ports[{index}].port"),
                    undeclared(direction, *protocol, name, &advice),
                );
                continue;
            };
            if declared.all(|port| port.protocol != *protocol) {
                let advice = format!(
                    "It is a {} port there: a name counts only together with its protocol",
                    other.protocol
                );
                warnings.add(
                    format!("{field}.ports[{index}].port"),
                    undeclared(direction, *protocol, name, &advice),
                );
            }
        }
    }
}

fn undeclared(
    direction: Direction,
    protocol: netpol_model::Protocol,
    name: &str,
    advice: &str,
) -> String {
    let whose = match direction {
        Direction::Ingress => "none of the selected pods",
        Direction::Egress => "none of the pods that the rule is about",
    };
    format!("{whose} declares a {protocol} port named \"{name}\", so this allows nothing. {advice}")
}

/// Whether a namespaceSelector asks for namespaces by their names.
fn names_namespaces(selector: &Selector) -> bool {
    selector.requirements().iter().any(|requirement| {
        &*requirement.key == NAMESPACE_NAME_LABEL && matches!(requirement.operator, Operator::In(_))
    })
}

fn list(namespaces: &BTreeSet<Str>) -> String {
    let names: Vec<&str> = namespaces.iter().map(|name| &**name).collect();
    format!("namespace {}", names.join(", "))
}
