//! Kubernetes objects -> model: the API server's defaulting and validation, then plain types.
//! Pure; must never read files or sockets, and never turn something it did not understand into
//! more traffic: what is not understood matches nothing.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::validate;
use netpol_model::{AddressAnnotations, Addresses, NETWORK_STATUS, SOURCE_PREFIXES};
use netpol_model::{Labels, NamedPort, Namespace, ObjectName, Pod, Protocol, Str, Uid};

mod cluster;
mod policy;
mod service;

pub use cluster::{checked_cluster_policy, cluster_policy};
pub use policy::policy;
pub(crate) use policy::stored_policy;
pub use service::{endpoint_slice, node, service};

/// The label that every namespace carries.
pub(crate) const NAMESPACE_NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// One thing in an object that an API server refuses.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Problem {
    /// Where, e.g. `spec.ingress[0].from[1].ipBlock.except[0]`; empty for the whole object.
    pub field: String,
    /// What, in the API server's words.
    pub message: String,
}

impl Problem {
    /// The problem `message` at `field`.
    pub fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { field: field.into(), message: message.into() }
    }

    /// `Invalid value: VALUE: MESSAGE` at `field`.
    pub fn invalid(field: impl Into<String>, value: impl fmt::Debug, message: &str) -> Self {
        Self::new(field, format!("Invalid value: {value:?}: {message}"))
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Messages on unknown fields and kinds name them already, as kubectl's do.
        let named = self.message.starts_with("unknown field ")
            || self.message.starts_with("no matches for kind ");
        match self.field.is_empty() || named {
            true => f.write_str(&self.message),
            false => write!(f, "{}: {}", self.field, self.message),
        }
    }
}

/// All problems in one sentence.
pub fn join(problems: &[Problem]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// Namespace and name; an absent namespace is `default`.
pub fn object_name(metadata: &ObjectMeta) -> ObjectName {
    let namespace = metadata.namespace.as_deref().filter(|name| !name.is_empty());
    ObjectName::new(namespace.unwrap_or("default"), metadata.name.as_deref().unwrap_or_default())
}

/// A namespace, with the label that the API server adds.
pub fn namespace(object: &core::Namespace) -> Namespace {
    let name = object.metadata.name.as_deref().unwrap_or_default();
    named_namespace(name, object.metadata.labels.iter().flatten())
}

/// The namespace `name` with `labels` and the label that the API server adds.
pub fn named_namespace<'a>(
    name: &str,
    labels: impl IntoIterator<Item = (&'a String, &'a String)>,
) -> Namespace {
    let labels = labels.into_iter().map(|(key, value)| (key.as_str(), value.as_str()));
    Namespace { name: name.into(), labels: labels.chain([(NAMESPACE_NAME_LABEL, name)]).collect() }
}

/// What the API server refuses in the metadata of a namespace.
pub(crate) fn namespace_problems(object: &core::Namespace) -> Vec<Problem> {
    metadata_problems(&object.metadata, validate::dns_label)
}

/// What the API server refuses in the metadata of a node.
pub(crate) fn node_problems(object: &core::Node) -> Vec<Problem> {
    metadata_problems(&object.metadata, validate::dns_subdomain)
}

/// What the API server refuses in the metadata of an object that is in a namespace.
pub(crate) fn namespaced_problems(metadata: &ObjectMeta) -> Vec<Problem> {
    let mut problems = metadata_problems(metadata, validate::dns_subdomain);
    let namespace = object_name(metadata).namespace;
    for message in validate::dns_label(&namespace) {
        problems.push(Problem::invalid("metadata.namespace", &*namespace, &message));
    }
    problems
}

fn metadata_problems(metadata: &ObjectMeta, check: fn(&str) -> Vec<String>) -> Vec<Problem> {
    let mut problems = Vec::new();
    match metadata.name.as_deref().unwrap_or_default() {
        "" if metadata.generate_name.is_some() => {
            let message = "Required value: generateName has an API server make up a name when the \
                           object is created; in a file give it a name";
            problems.push(Problem::new("metadata.name", message));
        }
        "" => problems.push(Problem::new("metadata.name", "Required value: name is required")),
        name => problems.extend(
            check(name).iter().map(|message| Problem::invalid("metadata.name", name, message)),
        ),
    }
    for (key, value) in metadata.labels.iter().flatten() {
        label_problems("metadata.labels", key, value, &mut problems);
    }
    problems
}

/// Checks one label of the map at `field`.
fn label_problems(field: &str, key: &str, value: &str, problems: &mut Vec<Problem>) {
    for message in validate::label_key(key) {
        problems.push(Problem::invalid(field, key, &message));
    }
    for message in validate::label_value(value) {
        problems.push(Problem::invalid(field, value, &message));
    }
}

/// A pod, and what could not be used of it (an invalid address, an invalid port): the pod is
/// kept without these. Its metadata is not judged here, see `namespaced_problems`.
pub fn pod(object: &core::Pod) -> (Pod, Vec<Problem>) {
    let mut problems = Vec::new();
    let (spec, status) = (object.spec.as_ref(), object.status.as_ref());
    let phase = status.and_then(|status| status.phase.as_deref());
    let pod_ips = status.and_then(|status| status.pod_ips.as_ref()).into_iter().flatten();
    let addresses = pod_addresses(
        pod_ips.map(|address| address.ip.as_str()),
        status.and_then(|status| status.pod_ip.as_deref()),
        &mut problems,
    );
    let mut ports = PortCollector::default();
    if let Some(spec) = spec {
        for (index, container) in spec.containers.iter().enumerate() {
            ports.container(&format!("spec.containers[{index}]"), container);
        }
        for (index, container) in spec.init_containers.iter().flatten().enumerate() {
            if container.restart_policy.as_deref() == Some("Always") {
                ports.container(&format!("spec.initContainers[{index}]"), container);
            }
        }
    }
    problems.append(&mut ports.problems);
    let id = object_name(&object.metadata);
    let pod = Pod {
        uid: pod_uid(&id, object.metadata.uid.as_deref()),
        labels: labels(object.metadata.labels.as_ref()),
        node: spec.and_then(|spec| pod_node(spec.node_name.as_deref())),
        addresses,
        host_network: spec.and_then(|spec| spec.host_network).unwrap_or(false),
        finished: is_finished(phase),
        running: is_running(phase),
        ports: ports.finish(),
        annotations: address_annotations(object.metadata.annotations.as_ref()),
        created: object.metadata.creation_timestamp.as_ref().map_or(0, |t| t.0.as_second()),
        id,
    };
    (pod, problems)
}

fn address_annotations(
    annotations: Option<&BTreeMap<String, String>>,
) -> Option<Box<AddressAnnotations>> {
    let text = |key| annotations?.get(key).map(|text| text.as_str().into());
    AddressAnnotations::of(text(NETWORK_STATUS), text(SOURCE_PREFIXES))
}

/// The uid of a pod, derived from its name where the source has none.
pub(crate) fn pod_uid(id: &ObjectName, uid: Option<&str>) -> Uid {
    match uid.filter(|uid| !uid.is_empty()) {
        Some(uid) => uid.into(),
        None => id.to_string().into(),
    }
}

/// Whether a pod in that phase has ended for good and owns no address any more.
pub fn is_finished(phase: Option<&str>) -> bool {
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// Whether a pod in that phase has containers that run, or are being started again.
pub fn is_running(phase: Option<&str>) -> bool {
    phase == Some("Running")
}

fn pod_node(name: Option<&str>) -> Option<Str> {
    name.filter(|name| !name.is_empty()).map(Str::from)
}

fn labels(map: Option<&BTreeMap<String, String>>) -> Labels {
    map.into_iter().flatten().map(|(key, value)| (key.as_str(), value.as_str())).collect()
}

/// The addresses of `status.podIPs`, or `status.podIP` where that list is empty.
pub fn pod_addresses<'a>(
    pod_ips: impl IntoIterator<Item = &'a str>,
    pod_ip: Option<&str>,
    problems: &mut Vec<Problem>,
) -> Addresses {
    let mut addresses = Vec::new();
    let mut listed = false;
    for (index, text) in pod_ips.into_iter().enumerate() {
        listed = true;
        add_address(&format!("status.podIPs[{index}].ip"), text, &mut addresses, problems);
    }
    if let (false, Some(text)) = (listed, pod_ip.filter(|text| !text.is_empty())) {
        add_address("status.podIP", text, &mut addresses, problems);
    }
    addresses.into()
}

fn add_address(field: &str, text: &str, to: &mut Vec<IpAddr>, problems: &mut Vec<Problem>) {
    match text.parse::<IpAddr>() {
        Ok(address) if validate::is_mapped(address) => {
            problems.push(Problem::invalid(field, text, "must not be an IPv4-mapped IPv6 address"));
        }
        Ok(address) if to.contains(&address) => {}
        Ok(address) => to.push(address),
        Err(_) => problems.push(Problem::invalid(
            field,
            text,
            "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
        )),
    }
}

/// Gathers the named ports of a pod's containers.
#[derive(Default)]
pub(crate) struct PortCollector {
    ports: Vec<NamedPort>,
    /// What could not be used.
    pub problems: Vec<Problem>,
}

impl PortCollector {
    fn container(&mut self, field: &str, container: &core::Container) {
        for (index, port) in container.ports.iter().flatten().enumerate() {
            let (name, protocol) = (port.name.as_deref(), port.protocol.as_deref());
            self.port(|| format!("{field}.ports[{index}]"), name, protocol, port.container_port);
        }
    }

    /// Adds one containerPort; ports without a name are of no use to policies, but are checked.
    pub fn port(
        &mut self,
        field: impl Fn() -> String,
        name: Option<&str>,
        protocol: Option<&str>,
        number: i32,
    ) {
        let name = name.unwrap_or_default();
        let messages = if name.is_empty() { Vec::new() } else { validate::port_name(name) };
        for message in &messages {
            self.problems.push(Problem::invalid(format!("{}.name", field()), name, message));
        }
        let protocol = parse_protocol(protocol);
        if let Err(message) = &protocol {
            self.problems.push(Problem::new(format!("{}.protocol", field()), message));
        }
        let number = validate::port_number(number).map_err(|error| {
            self.problems.push(Problem::invalid(
                format!("{}.containerPort", field()),
                number,
                &error.to_string(),
            ));
        });
        if let (false, true, Ok(protocol), Ok(port)) =
            (name.is_empty(), messages.is_empty(), protocol, number)
        {
            self.ports.push(NamedPort { name: name.into(), protocol, port });
        }
    }

    /// The ports in canonical order.
    pub fn finish(mut self) -> Arc<[NamedPort]> {
        self.ports.sort();
        self.ports.dedup();
        self.ports.into()
    }
}

/// The protocol (absent: TCP), or the API server's message.
fn parse_protocol(protocol: Option<&str>) -> Result<Protocol, String> {
    let Some(text) = protocol else { return Ok(Protocol::Tcp) };
    Protocol::ALL.into_iter().find(|protocol| protocol.as_str() == text).ok_or_else(|| {
        format!("Unsupported value: {text:?}: supported values: \"SCTP\", \"TCP\", \"UDP\"")
    })
}

#[cfg(test)]
mod tests;
