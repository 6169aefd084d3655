//! The pods that manifests declare, those of workloads included. Must never assign nodes or
//! addresses: that is `plan`'s.

use std::net::IpAddr;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::manifests::Document;
use netpol_model::{ObjectName, Protocol};

/// Marks a Pod of the manifests as a host outside the cluster.
pub const OUTSIDE: &str = "netpol.dev/outside";
/// The addresses of such a host, separated by commas.
pub const ADDRESS: &str = "netpol.dev/address";

/// One declared container port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Port {
    /// TCP if not given.
    pub protocol: Protocol,
    /// The number.
    pub number: u16,
}

/// A pod as declared.
#[derive(Debug, Clone)]
pub(crate) struct Declared {
    /// Namespace and name.
    pub id: ObjectName,
    /// The example it belongs to.
    pub section: String,
    /// The whole Pod object.
    pub value: Value,
    /// Its declared ports, sorted and distinct.
    pub ports: Vec<Port>,
    /// The addresses it gives itself, usually none.
    pub addresses: Vec<IpAddr>,
    /// Marked as a host outside the cluster.
    pub outside: bool,
}

impl Declared {
    /// `spec.nodeName`.
    pub fn node_name(&self) -> Option<&str> {
        self.value["spec"]["nodeName"].as_str()
    }

    /// `spec.hostNetwork`.
    pub fn host_network(&self) -> bool {
        self.value["spec"]["hostNetwork"] == true
    }

    /// Phase Succeeded or Failed: such a pod has no network any more.
    pub fn finished(&self) -> bool {
        matches!(self.value["status"]["phase"].as_str(), Some("Succeeded" | "Failed"))
    }
}

/// The pods of one document: itself, or what a workload makes of its template on so many nodes.
/// `None` if the document is no pod and has none.
pub fn declared(document: &Document, nodes: usize) -> Result<Option<Vec<Declared>>> {
    let value = &document.value;
    let kind = document.kind();
    let numbered = |replicas: u64| {
        let name = value["metadata"]["name"].as_str().unwrap_or_default();
        (0..replicas).map(|index| from_template(value, &format!("{name}-{index}"), None)).collect()
    };
    let objects: Vec<Value> = match kind {
        "Pod" => vec![value.clone()],
        "Deployment" | "ReplicaSet" | "StatefulSet" | "ReplicationController" => {
            numbered(value["spec"]["replicas"].as_u64().unwrap_or(1))
        }
        "Job" => numbered(value["spec"]["parallelism"].as_u64().unwrap_or(1)),
        "DaemonSet" => (1..=nodes)
            .map(|node| {
                let name = value["metadata"]["name"].as_str().unwrap_or_default();
                let node = format!("node-{node}");
                from_template(value, &format!("{name}-{node}"), Some(node))
            })
            .collect(),
        _ => return Ok(None),
    };
    let pods = objects.into_iter().map(|object| declare(document, object));
    let name = value["metadata"]["name"].as_str().unwrap_or("without a name");
    let pods: Result<Vec<Declared>> = pods.collect();
    pods.map(Some).with_context(|| format!("{}: {kind} {name}", document.path.display()))
}

fn from_template(workload: &Value, name: &str, node: Option<String>) -> Value {
    let template = &workload["spec"]["template"];
    let mut pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": template["metadata"],
        "spec": template["spec"],
    });
    if !pod["metadata"].is_object() {
        pod["metadata"] = json!({});
    }
    pod["metadata"]["name"] = json!(name);
    pod["metadata"]["namespace"] = workload["metadata"]["namespace"].clone();
    if let (Some(node), Some(spec)) = (node, pod["spec"].as_object_mut()) {
        spec.insert("nodeName".to_owned(), json!(node));
    }
    pod
}

fn declare(document: &Document, value: Value) -> Result<Declared> {
    let metadata = &value["metadata"];
    for field in ["name", "namespace"] {
        let given = &metadata[field];
        // YAML takes an unquoted `y`, `on` or `1` for something else.
        ensure!(given.is_null() || given.is_string(), "metadata.{field} is {given}: quote it");
    }
    let name = metadata["name"].as_str().unwrap_or_default();
    let namespace = metadata["namespace"].as_str().filter(|n| !n.is_empty()).unwrap_or("default");
    for name in [name, namespace] {
        let fine = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.".contains(c);
        let valid = !name.is_empty()
            && name.len() <= 253
            && name.chars().all(fine)
            && !name.starts_with(['-', '.'])
            && !name.ends_with(['-', '.']);
        ensure!(valid, "{name:?} is no valid name: lowercase letters, digits, '-' and '.' only");
    }
    let annotations = &metadata["annotations"];
    let outside = annotations[OUTSIDE] == "true" || annotations[OUTSIDE] == true;
    let addresses =
        if outside { outside_addresses(annotations)? } else { status_addresses(&value)? };
    Ok(Declared {
        id: ObjectName::new(namespace, name),
        section: document.section.clone(),
        ports: ports(&value["spec"])?,
        addresses,
        outside,
        value,
    })
}

fn outside_addresses(annotations: &Value) -> Result<Vec<IpAddr>> {
    let text = annotations[ADDRESS].as_str().unwrap_or_default();
    ensure!(
        !text.trim().is_empty(),
        "a host outside the cluster needs its addresses in the annotation {ADDRESS}"
    );
    text.split(',').map(|address| parse_address(address.trim())).collect()
}

fn status_addresses(pod: &Value) -> Result<Vec<IpAddr>> {
    let status = &pod["status"];
    let listed = status["podIPs"].as_array().into_iter().flatten().map(|entry| &entry["ip"]);
    let mut addresses = Vec::new();
    for text in listed.chain([&status["podIP"]]).filter_map(Value::as_str) {
        let address = parse_address(text)?;
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    Ok(addresses)
}

fn parse_address(text: &str) -> Result<IpAddr> {
    text.parse().with_context(|| format!("{text:?} is no IP address"))
}

/// Ports of `containers` and of restartable `initContainers` (sidecars).
fn ports(spec: &Value) -> Result<Vec<Port>> {
    let containers = spec["containers"].as_array().into_iter().flatten();
    let sidecars = spec["initContainers"].as_array().into_iter().flatten();
    let sidecars = sidecars.filter(|container| container["restartPolicy"] == "Always");
    let mut ports = Vec::new();
    for container in containers.chain(sidecars) {
        for port in container["ports"].as_array().into_iter().flatten() {
            let number = port["containerPort"].as_u64().and_then(|n| u16::try_from(n).ok());
            let Some(number) = number.filter(|&number| number != 0) else {
                bail!("containerPort {} is no port between 1 and 65535", port["containerPort"]);
            };
            let protocol = match port["protocol"].as_str() {
                None | Some("TCP") => Protocol::Tcp,
                Some("UDP") => Protocol::Udp,
                Some("SCTP") => Protocol::Sctp,
                Some(other) => bail!("protocol {other:?} is none of TCP, UDP, SCTP"),
            };
            ports.push(Port { protocol, number });
        }
    }
    ports.sort();
    ports.dedup();
    Ok(ports)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use std::path::PathBuf;

    use super::*;

    fn document(value: Value) -> Document {
        Document {
            path: PathBuf::from("f.yaml"),
            section: String::new(),
            value,
            text: String::new(),
        }
    }

    fn pods(value: Value) -> Vec<Declared> {
        declared(&document(value), 2).unwrap().unwrap()
    }

    #[test]
    fn ports_are_distinct_and_those_of_sidecars_count() {
        let pods = pods(json!({"kind": "Pod", "metadata": {"name": "a"}, "spec": {
            "containers": [
                {"ports": [{"containerPort": 80}, {"containerPort": 53, "protocol": "UDP"}]},
                {"ports": [{"containerPort": 80, "protocol": "TCP"}]}],
            "initContainers": [
                {"restartPolicy": "Always", "ports": [{"containerPort": 90, "protocol": "SCTP"}]},
                {"ports": [{"containerPort": 91}]}]}}));
        let port = |protocol, number| Port { protocol, number };
        let expected = [port(Protocol::Tcp, 80), port(Protocol::Udp, 53), port(Protocol::Sctp, 90)];
        assert_eq!(pods[0].ports, expected);
        assert_eq!(pods[0].id, ObjectName::new("default", "a"));
    }

    #[test]
    fn workloads_become_pods() {
        let workload = |kind: &str| {
            pods(json!({"kind": kind, "metadata": {"name": "w", "namespace": "n"}, "spec": {
                "replicas": 2,
                "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": []}}}}))
        };
        let names = |pods: &[Declared]| -> Vec<String> {
            pods.iter().map(|pod| pod.id.to_string()).collect()
        };
        assert_eq!(names(&workload("Deployment")), ["n/w-0", "n/w-1"]);
        assert_eq!(names(&workload("Job")), ["n/w-0"]);
        let daemons = workload("DaemonSet");
        assert_eq!(names(&daemons), ["n/w-node-1", "n/w-node-2"]);
        assert_eq!(daemons[1].node_name(), Some("node-2"));
        assert_eq!(daemons[1].value["metadata"]["labels"]["a"], "b");
    }

    #[test]
    fn an_outside_host_needs_addresses() {
        let host = |annotations: Value| {
            let metadata = json!({"name": "a", "annotations": annotations});
            declared(&document(json!({"kind": "Pod", "metadata": metadata})), 1)
        };
        let two = host(json!({OUTSIDE: "true", ADDRESS: "172.17.0.5, fd00::5"})).unwrap().unwrap();
        assert!(two[0].outside);
        assert_eq!(two[0].addresses.len(), 2);
        let error = host(json!({OUTSIDE: "true"})).unwrap_err();
        assert!(format!("{error:#}").contains(ADDRESS), "{error:#}");
    }

    #[test]
    fn bad_pods_are_refused_by_name() {
        for (metadata, spec, status, expected) in [
            (json!({"name": "../x"}), json!({}), json!({}), "no valid name"),
            (json!({"name": "a", "namespace": ".."}), json!({}), json!({}), "no valid name"),
            (json!({}), json!({}), json!({}), "no valid name"),
            (json!({"name": "a", "namespace": true}), json!({}), json!({}), "quote it"),
            (json!({"name": "a"}), json!({}), json!({"podIP": "10.0.0.300"}), "10.0.0.300"),
            (
                json!({"name": "a"}),
                json!({"containers": [{"ports": [{"containerPort": 65536}]}]}),
                json!({}),
                "65536",
            ),
            (
                json!({"name": "a"}),
                json!({"containers": [{"ports": [{"containerPort": 1, "protocol": "tcp"}]}]}),
                json!({}),
                "tcp",
            ),
        ] {
            let pod = json!({"kind": "Pod", "metadata": metadata, "spec": spec, "status": status});
            let error = declared(&document(pod), 1).unwrap_err();
            let message = format!("{error:#}");
            assert!(message.contains(expected) && message.contains("f.yaml"), "{message}");
        }
    }

    #[test]
    fn other_kinds_have_no_pods() {
        assert!(declared(&document(json!({"kind": "Service"})), 1).unwrap().is_none());
    }
}
