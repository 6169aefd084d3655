//! The reference evaluator: NetworkPolicy as the Kubernetes API documentation words it, and
//! ClusterNetworkPolicy as upstream's does, on the API objects themselves, slow and plain. It exists to be compared with, so it must never share code
//! with the compiler, the model or the conversion, and must never be made faster or cleverer.
//!
//! It takes objects that an API server would admit. What it cannot read (an unknown operator, an
//! unparsable block) matches nothing.
//!
//! Decisions of netpol's own, where the documentation leaves something open: pods on the host's
//! network and finished pods match no selector, are not isolated and own no address; an ipBlock
//! matches pod addresses too; a named egress port is looked up on the pod that has the destination
//! address, whatever matched it, and never matches anything else; of two pods that claim one
//! address the younger has it, of equally young ones the one with the smaller namespace/name;
//! protocols other than TCP, UDP and SCTP match rules without ports only.
//!
//! What depends on more than addresses is not judged here: the pod's own node (always admitted),
//! replies and ICMP errors of allowed flows, neighbour discovery. Service addresses are judged in
//! [`services`].

#![forbid(unsafe_code)]

mod cluster_policies;
mod labels;
mod range;
pub mod services;

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Container, Namespace, Node, Pod};
use k8s_openapi::api::networking::v1::{
    NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use cluster_policies::{ClusterPolicy, Decision, Opening};
use netpol_model::Direction;

/// The objects of a cluster.
#[derive(Debug, Clone, Default)]
pub struct Reference {
    namespaces: Vec<Namespace>,
    pods: Vec<Pod>,
    policies: Vec<NetworkPolicy>,
    cluster_policies: Vec<ClusterPolicy>,
    nodes: Vec<Node>,
    /// Those by whose labels subjects are told, if others.
    subject_namespaces: Option<Vec<Namespace>>,
}

/// What both ends say of a connection; it comes about only if both allow it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// The client's egress policies allow it.
    pub egress: bool,
    /// The server's ingress policies allow it.
    pub ingress: bool,
}

/// One rule of either direction: `from` or `to`, and `ports`.
struct Rule<'a> {
    peers: &'a [NetworkPolicyPeer],
    ports: &'a [NetworkPolicyPort],
}

impl Reference {
    /// The evaluator for a cluster of these objects.
    pub fn new(namespaces: Vec<Namespace>, pods: Vec<Pod>, policies: Vec<NetworkPolicy>) -> Self {
        Self { namespaces, pods, policies, ..Self::default() }
    }

    /// The same cluster with ClusterNetworkPolicies, and with the nodes that these may mean.
    #[must_use]
    pub fn with_cluster_policies(
        mut self,
        policies: Vec<serde_json::Value>,
        nodes: Vec<Node>,
    ) -> Self {
        self.cluster_policies = Self::read_cluster_policies(policies);
        self.nodes = nodes;
        self
    }

    /// The same while subjects are still told by the labels that these namespaces have: whom a
    /// ClusterNetworkPolicy is about and whom its rules mean may be seen at different moments.
    #[must_use]
    pub fn with_subjects_in(mut self, namespaces: Vec<Namespace>) -> Self {
        self.subject_namespaces = Some(namespaces);
        self
    }

    /// Whether `pod`'s policies let a connection or datagram pass that is opened in `direction`,
    /// with `remote` at the other end, of this IP protocol and to this destination port.
    ///
    /// The Admin tier is asked first, and the Baseline tier last. Between them come
    /// NetworkPolicies, and decide for good where any isolates the pod in the direction: it may do
    /// then what at least one rule of at least one of the isolating policies allows. Their order
    /// does not matter and none can take away what another gives. What nobody has decided is
    /// allowed. A pod can always reach itself, which is said of what it sends: from its own address
    /// anybody could come.
    pub fn allows(
        &self,
        direction: Direction,
        pod: &Pod,
        remote: IpAddr,
        protocol: u8,
        dest_port: u16,
    ) -> bool {
        direction == Direction::Egress && addresses(pod).contains(&remote)
            || self.policies_allow(direction, pod, remote, protocol, dest_port)
    }

    /// Whether everything may pass between `pod` and `remote` in a direction: every protocol, to
    /// every port. So may then what is of a protocol with ports, but does not say which.
    pub fn allows_all(&self, direction: Direction, pod: &Pod, remote: IpAddr) -> bool {
        // Nothing changes between the numbers that somebody mentions.
        let mentioned = self.mentioned_ports();
        let near = mentioned.iter().flat_map(|number| [number - 1, *number, number + 1]);
        let mut ports: Vec<u16> = near.filter_map(|number| u16::try_from(number).ok()).collect();
        ports.extend([0, u16::MAX]);
        ports.sort_unstable();
        ports.dedup();
        let allows = |protocol, port| self.allows(direction, pod, remote, protocol, port);
        // 255 is reserved: a protocol that nobody can name.
        allows(255, 0) && ports.into_iter().all(|p| allows(6, p) && allows(17, p) && allows(132, p))
    }

    /// Every number of a port in a rule or of a container.
    fn mentioned_ports(&self) -> Vec<i32> {
        let mut found = self.cluster_policy_ports();
        for policy in &self.policies {
            let all = Direction::BOTH.into_iter().flat_map(|direction| rules(policy, direction));
            for port in all.flat_map(|rule| rule.ports) {
                found.extend(port.end_port);
                if let Some(IntOrString::Int(number)) = port.port {
                    found.push(number);
                }
            }
        }
        for spec in self.pods.iter().filter_map(|pod| pod.spec.as_ref()) {
            let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
            let ports = containers.flat_map(|container| container.ports.iter().flatten());
            found.extend(ports.map(|port| port.container_port));
        }
        found
    }

    /// The same of the policies alone, which know nothing of a pod and itself.
    pub(crate) fn policies_allow(
        &self,
        direction: Direction,
        pod: &Pod,
        remote: IpAddr,
        protocol: u8,
        dest_port: u16,
    ) -> bool {
        let opening = Opening { direction, pod, remote, protocol, dest_port };
        self.tiers_allow(opening, |opening| self.network_policies_allow(opening))
    }

    /// Whether `pod` may go to a backend that a Service leads it to. If that is itself,
    /// NetworkPolicies let it; to the tiers it is a pod like any other.
    pub fn allows_backend(&self, pod: &Pod, backend: IpAddr, protocol: u8, port: u16) -> bool {
        let direction = Direction::Egress;
        let opening = Opening { direction, pod, remote: backend, protocol, dest_port: port };
        self.tiers_allow(opening, |opening| {
            addresses(pod).contains(&backend) || self.network_policies_allow(opening)
        })
    }

    fn tiers_allow(
        &self,
        opening: Opening<'_>,
        network_policies: impl Fn(Opening<'_>) -> bool,
    ) -> bool {
        match self.tier("Admin", opening) {
            Decision::Accept => return true,
            Decision::Deny => return false,
            Decision::None => {}
        }
        if self.isolated(opening.direction, opening.pod) {
            return network_policies(opening);
        }
        self.tier("Baseline", opening) != Decision::Deny
    }

    /// What an isolated pod may do.
    fn network_policies_allow(&self, opening: Opening<'_>) -> bool {
        let Opening { direction, pod, remote, protocol, dest_port } = opening;
        for policy in self.policies.iter().filter(|policy| self.applies(policy, direction, pod)) {
            for rule in rules(policy, direction) {
                if self.peers_match(policy, &rule, remote)
                    && self.ports_match(&rule, direction, pod, remote, protocol, dest_port)
                {
                    return true;
                }
            }
        }
        false
    }

    /// Whether any policy has something to say of what `pod` does in `direction`: one isolates it,
    /// or a tier has rules for it.
    pub fn is_judged(&self, direction: Direction, pod: &Pod) -> bool {
        self.isolated(direction, pod)
            || self.is_in_tier("Admin", direction, pod)
            || self.is_in_tier("Baseline", direction, pod)
    }

    /// Whether `pod` is isolated in `direction`: a NetworkPolicy of its namespace selects it and has the
    /// direction among its policyTypes.
    pub fn isolated(&self, direction: Direction, pod: &Pod) -> bool {
        self.policies.iter().any(|policy| self.applies(policy, direction, pod))
    }

    /// What both ends say of a connection from one pod to an address of another. The client uses
    /// its first address of the same family; if it has none, nothing comes about.
    pub fn connection(
        &self,
        from: &Pod,
        to: &Pod,
        to_address: IpAddr,
        protocol: u8,
        port: u16,
    ) -> Outcome {
        let source = addresses(from).into_iter().find(|a| a.is_ipv4() == to_address.is_ipv4());
        let Some(source) = source else { return Outcome { egress: false, ingress: false } };
        if addresses(from).contains(&to_address) {
            // It does not leave the pod.
            return Outcome { egress: true, ingress: true };
        }
        Outcome {
            egress: self.allows(Direction::Egress, from, to_address, protocol, port),
            ingress: self.allows(Direction::Ingress, to, source, protocol, port),
        }
    }

    /// The policy is in the pod's namespace, its podSelector matches the pod's labels (an absent
    /// or empty one matches all pods of the namespace), and it is about this direction.
    fn applies(&self, policy: &NetworkPolicy, direction: Direction, pod: &Pod) -> bool {
        let selector = policy.spec.as_ref().and_then(|spec| spec.pod_selector.as_ref());
        namespace_of(&policy.metadata) == namespace_of(&pod.metadata)
            && takes_part(pod)
            && selector.is_none_or(|selector| selects(selector, &pod.metadata))
            && has_type(policy, direction)
    }

    /// An empty or missing `from` or `to` matches all sources or destinations; otherwise at least
    /// one item has to match.
    fn peers_match(&self, policy: &NetworkPolicy, rule: &Rule<'_>, remote: IpAddr) -> bool {
        rule.peers.is_empty()
            || rule.peers.iter().any(|peer| self.peer_matches(policy, peer, remote))
    }

    /// An ipBlock matches addresses in its cidr but in none of its excepts. Without it: a
    /// podSelector alone matches pods of the policy's own namespace, a namespaceSelector alone
    /// all pods of the namespaces it selects, both together the pods that match in the
    /// namespaces that match. An item without any of them matches nothing.
    fn peer_matches(
        &self,
        policy: &NetworkPolicy,
        peer: &NetworkPolicyPeer,
        remote: IpAddr,
    ) -> bool {
        if let Some(block) = &peer.ip_block {
            return peer.pod_selector.is_none()
                && peer.namespace_selector.is_none()
                && range::contains(&block.cidr, remote)
                && !block.except.iter().flatten().any(|part| range::contains(part, remote));
        }
        let Some(pod) = self.pod_at(remote) else { return false };
        let in_namespace = match (&peer.namespace_selector, &peer.pod_selector) {
            (None, None) => return false,
            (None, Some(_)) => namespace_of(&pod.metadata) == namespace_of(&policy.metadata),
            (Some(selector), _) => self.namespace_selected(selector, &pod.metadata),
        };
        let pod_selector = peer.pod_selector.as_ref();
        in_namespace && pod_selector.is_none_or(|selector| selects(selector, &pod.metadata))
    }

    /// A namespace has the labels of its object, and its own name under
    /// kubernetes.io/metadata.name, object or not.
    fn namespace_selected(&self, selector: &LabelSelector, metadata: &ObjectMeta) -> bool {
        let name = namespace_of(metadata);
        let object = self.namespaces.iter().find(|n| n.metadata.name.as_deref() == Some(name));
        let mut labels = object.and_then(|n| n.metadata.labels.clone()).unwrap_or_default();
        labels.insert("kubernetes.io/metadata.name".to_owned(), name.to_owned());
        labels::matches(selector, &labels)
    }

    /// Empty or missing `ports` match all traffic, of whatever protocol; otherwise at least one
    /// item has to match.
    fn ports_match(
        &self,
        rule: &Rule<'_>,
        direction: Direction,
        pod: &Pod,
        remote: IpAddr,
        protocol: u8,
        dest_port: u16,
    ) -> bool {
        if rule.ports.is_empty() {
            return true;
        }
        // The destination of what comes in is the policy's pod, of what goes out the peer.
        let destination = match direction {
            Direction::Ingress => Some(pod),
            Direction::Egress => self.pod_at(remote),
        };
        rule.ports.iter().any(|port| port_matches(port, destination, protocol, dest_port))
    }

    /// The pod that has an address.
    fn pod_at(&self, address: IpAddr) -> Option<&Pod> {
        let mut found: Option<&Pod> = None;
        for pod in &self.pods {
            if !takes_part(pod) || !addresses(pod).contains(&address) {
                continue;
            }
            let wins = match found {
                None => true,
                Some(other) => {
                    let (born, other_born) = (created(pod), created(other));
                    born > other_born || (born == other_born && full_name(pod) < full_name(other))
                }
            };
            if wins {
                found = Some(pod);
            }
        }
        found
    }
}

/// Ports match by protocol (TCP if not given) and: any number if no port is given; the numbers
/// from port to endPort, both included; the one number if there is no endPort; a name if the
/// destination pod declares the port with this name, protocol and number.
fn port_matches(
    port: &NetworkPolicyPort,
    destination: Option<&Pod>,
    protocol: u8,
    dest_port: u16,
) -> bool {
    let wanted = port.protocol.as_deref().unwrap_or("TCP");
    if protocol_name(protocol) != Some(wanted) {
        return false;
    }
    let number = i32::from(dest_port);
    match (&port.port, port.end_port) {
        (None, _) => true,
        (Some(IntOrString::Int(first)), Some(last)) => *first <= number && number <= last,
        (Some(IntOrString::Int(only)), None) => *only == number,
        (Some(IntOrString::String(name)), _) => {
            destination.is_some_and(|pod| declares(pod, name, wanted, number))
        }
    }
}

fn protocol_name(number: u8) -> Option<&'static str> {
    match number {
        6 => Some("TCP"),
        17 => Some("UDP"),
        132 => Some("SCTP"),
        _ => None,
    }
}

/// A container, or an init container that goes on running as a sidecar, has the port.
fn declares(pod: &Pod, name: &str, protocol: &str, number: i32) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let has = |container: &Container| {
        container.ports.iter().flatten().any(|port| {
            port.name.as_deref() == Some(name)
                && port.protocol.as_deref().unwrap_or("TCP") == protocol
                && port.container_port == number
        })
    };
    let is_sidecar = |init: &&Container| init.restart_policy.as_deref() == Some("Always");
    spec.containers.iter().any(has)
        || spec.init_containers.iter().flatten().filter(is_sidecar).any(has)
}

/// Missing or empty policyTypes mean Ingress, and Egress too if there is any egress rule.
fn has_type(policy: &NetworkPolicy, direction: Direction) -> bool {
    let (wanted, by_default) = match direction {
        Direction::Ingress => ("Ingress", true),
        Direction::Egress => ("Egress", !rules(policy, Direction::Egress).is_empty()),
    };
    let types = policy.spec.as_ref().and_then(|spec| spec.policy_types.as_deref());
    match types {
        None | Some([]) => by_default,
        Some(types) => types.iter().any(|name| name == wanted),
    }
}

/// The rules of a direction. A missing list and an empty one are the same: no rule.
fn rules(policy: &NetworkPolicy, direction: Direction) -> Vec<Rule<'_>> {
    let Some(NetworkPolicySpec { ingress, egress, .. }) = &policy.spec else { return Vec::new() };
    match direction {
        Direction::Ingress => ingress
            .iter()
            .flatten()
            .map(|rule| Rule {
                peers: rule.from.as_deref().unwrap_or_default(),
                ports: rule.ports.as_deref().unwrap_or_default(),
            })
            .collect(),
        Direction::Egress => egress
            .iter()
            .flatten()
            .map(|rule| Rule {
                peers: rule.to.as_deref().unwrap_or_default(),
                ports: rule.ports.as_deref().unwrap_or_default(),
            })
            .collect(),
    }
}

/// A pod of its own network that has not ended.
fn takes_part(pod: &Pod) -> bool {
    let on_host = pod.spec.as_ref().is_some_and(|spec| spec.host_network == Some(true));
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    !on_host && phase != Some("Succeeded") && phase != Some("Failed")
}

/// The addresses in a pod's status: podIPs, or podIP where that is missing.
pub fn addresses(pod: &Pod) -> Vec<IpAddr> {
    let Some(status) = &pod.status else { return Vec::new() };
    let listed = status.pod_ips.as_deref().unwrap_or_default();
    let texts: Vec<&str> = match listed.is_empty() {
        true => status.pod_ip.iter().map(String::as_str).collect(),
        false => listed.iter().map(|address| address.ip.as_str()).collect(),
    };
    texts.iter().filter_map(|text| text.parse().ok()).collect()
}

fn selects(selector: &LabelSelector, metadata: &ObjectMeta) -> bool {
    labels::matches(selector, &metadata.labels.clone().unwrap_or_default())
}

fn namespace_of(metadata: &ObjectMeta) -> &str {
    match metadata.namespace.as_deref() {
        None | Some("") => "default",
        Some(name) => name,
    }
}

fn full_name(pod: &Pod) -> (&str, &str) {
    (namespace_of(&pod.metadata), pod.metadata.name.as_deref().unwrap_or_default())
}

fn created(pod: &Pod) -> i64 {
    pod.metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second())
}

#[cfg(test)]
mod tests;
