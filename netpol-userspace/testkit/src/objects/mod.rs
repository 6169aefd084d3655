//! Builders for compiler tests: manifests in one line each.

use crate::generate::world::{Event, World};
use netpol_compile::{Compiler, EndpointId};
use netpol_model::{Change, Direction, ObjectName};
use netpol_source::convert;

mod cluster_policy;
pub mod neighbours;

use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;

/// The namespace of the pod of that name, if there is one.
pub fn namespace_of<'a>(world: &'a World, pod: &str) -> Option<&'a str> {
    world.pods.get(pod)?.metadata.namespace.as_deref()
}

/// A namespace with labels (`a=b,c=d`).
pub fn namespace(name: &str, labels: &str) -> Namespace {
    let text = format!(r#"{{"metadata": {{"name": "{name}", "labels": {}}}}}"#, map(labels));
    serde_json::from_str(&text).expect("a namespace")
}

/// A pod `namespace/name` with labels, addresses and named ports (`web=TCP:80,dns=UDP:53`).
pub fn pod(name: &str, labels: &str, addresses: &str, ports: &str) -> Pod {
    let (namespace, name) = name.split_once('/').expect("namespace/name");
    let ips: Vec<String> = addresses
        .split(',')
        .filter(|address| !address.is_empty())
        .map(|address| format!(r#"{{"ip": "{address}"}}"#))
        .collect();
    let ports: Vec<String> = ports
        .split(',')
        .filter_map(|port| {
            let (name, port) = port.split_once('=')?;
            let (protocol, number) = port.split_once(':')?;
            Some(format!(
                r#"{{"name": "{name}", "protocol": "{protocol}", "containerPort": {number}}}"#
            ))
        })
        .collect();
    let text = format!(
        r#"{{"metadata": {{"namespace": "{namespace}", "name": "{name}", "uid": "u-{name}",
            "labels": {}}},
            "spec": {{"containers": [{{"name": "c", "ports": [{}]}}]}},
            "status": {{"podIPs": [{}]}}}}"#,
        map(labels),
        ports.join(", "),
        ips.join(", ")
    );
    serde_json::from_str(&text).expect("a pod")
}

/// A policy `namespace/name` with a spec in JSON.
pub fn policy(name: &str, spec: &str) -> NetworkPolicy {
    let (namespace, name) = name.split_once('/').expect("namespace/name");
    let text = format!(
        r#"{{"metadata": {{"namespace": "{namespace}", "name": "{name}"}}, "spec": {spec}}}"#
    );
    serde_json::from_str(&text).expect("a policy")
}

fn map(labels: &str) -> String {
    let pairs: Vec<String> = labels
        .split(',')
        .filter_map(|label| label.split_once('='))
        .map(|(key, value)| format!("{key:?}: {value:?}"))
        .collect();
    format!("{{{}}}", pairs.join(", "))
}

/// The change of a namespace.
pub fn put_namespace(object: &Namespace) -> Change {
    Change::Namespace(convert::namespace(object))
}

/// The change of a pod.
pub fn put_pod(object: &Pod) -> Change {
    let (pod, problems) = convert::pod(object);
    assert_eq!(problems, []);
    Change::Pod(pod)
}

/// The change of a policy.
pub fn put_policy(object: &NetworkPolicy) -> Change {
    Change::Policy(convert::policy(object).expect("a valid policy"))
}

/// The change that an event of a random cluster is.
pub fn change(event: &Event) -> Change {
    match event {
        Event::Namespace(object) => put_namespace(object),
        Event::NamespaceGone(object) => {
            Change::NamespaceGone(object.metadata.name.clone().unwrap_or_default().into())
        }
        Event::Pod(object) => put_pod(object),
        Event::PodGone(object) => Change::PodGone(convert::object_name(&object.metadata), None),
        Event::Policy(object) => put_policy(object),
        Event::PolicyGone(object) => Change::PolicyGone(convert::object_name(&object.metadata)),
        Event::ClusterPolicy(object) => put_cluster_policy(object),
        Event::ClusterPolicyGone(object) => {
            let name = object["metadata"]["name"].as_str().expect("a name");
            Change::ClusterPolicyGone(name.into())
        }
        Event::Node(object) => Change::Node(convert::node(object).0),
        Event::NodeGone(object) => {
            Change::NodeGone(object.metadata.name.clone().unwrap_or_default().into())
        }
    }
}

/// The change of a ClusterNetworkPolicy.
pub fn put_cluster_policy(object: &serde_json::Value) -> Change {
    Change::ClusterPolicy(cluster_policy::convert(object))
}

/// The changes that make a random cluster, Services aside.
pub fn all_changes(world: &World) -> impl Iterator<Item = Change> + '_ {
    let namespaces = world.namespaces.values().cloned().map(Event::Namespace);
    let pods = world.pods.values().cloned().map(Event::Pod);
    let policies = world.policies.values().cloned().map(Event::Policy);
    let cluster_policies = world.cluster_policies.values().cloned().map(Event::ClusterPolicy);
    let nodes = world.nodes.values().cloned().map(Event::Node);
    let all = namespaces.chain(pods).chain(policies).chain(cluster_policies).chain(nodes);
    all.map(|event| change(&event))
}

/// The name `namespace/name`.
pub fn name(text: &str) -> ObjectName {
    let (namespace, name) = text.split_once('/').expect("namespace/name");
    ObjectName::new(namespace, name)
}

/// Asks the tables about `proto:port` (`tcp:80`, `icmp:0`).
pub fn judge(
    compiler: &Compiler,
    endpoint: u16,
    direction: Direction,
    remote: &str,
    port: &str,
) -> bool {
    let (protocol, port) = protocol_port(port);
    let remote = remote.parse().expect("an address");
    compiler.tables().judge(EndpointId(endpoint), direction, remote, protocol, port)
}

/// The numbers of `proto:port`.
pub fn protocol_port(text: &str) -> (u8, u16) {
    let (protocol, port) = text.split_once(':').expect("proto:port");
    let protocol = match protocol {
        "tcp" => 6,
        "udp" => 17,
        "sctp" => 132,
        "icmp" => 1,
        other => panic!("unknown protocol {other}"),
    };
    (protocol, port.parse().expect("a port"))
}

/// Leaves out actions while what is left of the sequence still fails; the last failure.
pub fn shrink_sequence<A: Clone>(
    mut actions: Vec<A>,
    mut why: String,
    failure: impl Fn(&[A]) -> Option<String>,
) -> (Vec<A>, String) {
    let mut chunk = actions.len() / 2;
    while chunk > 0 {
        let mut start = 0;
        while start < actions.len() {
            let mut fewer = actions.clone();
            fewer.drain(start..(start + chunk).min(actions.len()));
            match failure(&fewer) {
                Some(message) => (actions, why) = (fewer, message),
                None => start += chunk,
            }
        }
        chunk /= 2;
    }
    (actions, why)
}
