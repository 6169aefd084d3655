//! Objects as an API server sends them, reduced while they are parsed to what policy needs. A
//! value of an unexpected type counts as absent and is remembered, so that one odd object cannot
//! stop a watch. Must never hold what a verdict cannot depend on, or fail on anything but broken
//! JSON.

use std::fmt;
use std::marker::PhantomData;

use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use serde::de::{
    Deserialize, DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess,
    Visitor,
};

use super::convert::{self, PortCollector, Problem};
use netpol_model::{self as model, AddressAnnotations, Addresses, Labels, Str};

mod cluster_policy;
mod service;

pub use cluster_policy::GuardedClusterPolicy;
pub use service::{Read, SlimEndpointSlice, SlimNode, SlimService};

/// A pod, without everything that policy does not depend on.
#[derive(Debug, Clone, Resource)]
#[resource(inherit = Pod)]
pub struct SlimPod {
    /// Name, namespace, uid, resourceVersion and nothing else.
    pub metadata: ObjectMeta,
    pod: Whole,
}

impl<'de> Deserialize<'de> for SlimPod {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Loose::Good(pod) = Loose::<Whole>::deserialize(deserializer)? else {
            return Err(D::Error::custom("a pod is not a JSON object"));
        };
        Ok(Self { metadata: pod.metadata.good().map(Metadata::slim).unwrap_or_default(), pod })
    }
}

/// A namespace: its name and labels.
#[derive(Debug, Clone, Resource)]
#[resource(inherit = Namespace)]
pub struct SlimNamespace {
    /// Name, uid, resourceVersion and nothing else.
    pub metadata: ObjectMeta,
    namespace: Loose<Metadata>,
}

impl<'de> Deserialize<'de> for SlimNamespace {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Loose::Good(OnlyMetadata { metadata: namespace }) = Loose::deserialize(deserializer)?
        else {
            return Err(D::Error::custom("a namespace is not a JSON object"));
        };
        Ok(Self { metadata: namespace.good().map(Metadata::slim).unwrap_or_default(), namespace })
    }
}

impl SlimNamespace {
    /// The namespace as policy sees it, and what of it could not be used.
    pub fn model(&self) -> (model::Namespace, Vec<Problem>) {
        let mut problems = Vec::new();
        let name = self.metadata.name.as_deref().unwrap_or_default();
        let metadata = self.namespace.or("metadata", &mut problems);
        let labels = metadata.map(|metadata| labels(metadata, &mut problems)).unwrap_or_default();
        let labels = labels.iter().map(|(key, value)| (key.clone(), value.clone()));
        let own = (Str::from(convert::NAMESPACE_NAME_LABEL), Str::from(name));
        (model::Namespace { name: name.into(), labels: labels.chain([own]).collect() }, problems)
    }
}

/// Why an object cannot be read, with the path of the field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unreadable(String);

/// A NetworkPolicy, or why it is none. (There are few of them: these are buffered.)
#[derive(Debug, Clone, Resource)]
#[resource(inherit = NetworkPolicy)]
pub struct GuardedPolicy {
    /// The whole metadata, or what is recognisable of it.
    pub metadata: ObjectMeta,
    /// The policy, or the error of reading it.
    pub policy: Result<Box<NetworkPolicy>, Unreadable>,
}

impl<'de> Deserialize<'de> for GuardedPolicy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = serde_json::Value::deserialize(deserializer)?;
        match NetworkPolicy::deserialize(&value) {
            Ok(mut policy) => {
                policy.metadata.managed_fields = None;
                let metadata = policy.metadata.clone();
                Ok(Self { metadata, policy: Ok(Box::new(policy)) })
            }
            Err(error) => {
                let metadata = match Loose::<OnlyMetadata>::deserialize(value) {
                    Ok(Loose::Good(OnlyMetadata { metadata: Loose::Good(found) })) => found.slim(),
                    _ => ObjectMeta::default(),
                };
                Ok(Self { metadata, policy: Err(Unreadable(error.to_string())) })
            }
        }
    }
}

impl SlimPod {
    /// The pod as policy sees it, and what of it could not be used.
    pub fn model(&self) -> (model::Pod, Vec<Problem>) {
        let mut problems = Vec::new();
        let none = (Metadata::default(), Spec::default(), Status::default());
        let metadata = self.pod.metadata.or("metadata", &mut problems).unwrap_or(&none.0);
        let spec = self.pod.spec.or("spec", &mut problems).unwrap_or(&none.1);
        let status = self.pod.status.or("status", &mut problems).unwrap_or(&none.2);
        let id = convert::object_name(&self.metadata);
        let labels = labels(metadata, &mut problems);
        let addresses = addresses(status, &mut problems);
        let mut ports = PortCollector::default();
        containers(&spec.containers, "spec.containers", false, &mut ports);
        containers(&spec.init_containers, "spec.initContainers", true, &mut ports);
        problems.append(&mut ports.problems);
        let created = metadata.created.or("metadata.creationTimestamp", &mut problems);
        let phase = status.phase.or("status.phase", &mut problems).map(|phase| &**phase);
        let pod = model::Pod {
            uid: convert::pod_uid(&id, self.metadata.uid.as_deref()),
            labels,
            node: spec.node.or("spec.nodeName", &mut problems).filter(|n| !n.is_empty()).cloned(),
            addresses,
            host_network: *spec
                .host_network
                .or("spec.hostNetwork", &mut problems)
                .unwrap_or(&false),
            finished: convert::is_finished(phase),
            running: convert::is_running(phase),
            ports: ports.finish(),
            annotations: metadata.annotations.good().and_then(|annotations| {
                let text = |text: &Loose<Str>| text.good().cloned();
                AddressAnnotations::of(
                    text(&annotations.network_status),
                    text(&annotations.source_prefixes),
                )
            }),
            created: created.and_then(|text| seconds(text)).unwrap_or(0),
            id,
        };
        (pod, problems)
    }
}

impl Metadata {
    /// The part of the metadata that kube and we need.
    fn slim(&self) -> ObjectMeta {
        let text = |text: &Loose<Str>| text.good().map(ToString::to_string);
        ObjectMeta {
            name: text(&self.name),
            namespace: text(&self.namespace),
            uid: text(&self.uid),
            resource_version: text(&self.version),
            ..ObjectMeta::default()
        }
    }
}

fn seconds(text: &str) -> Option<i64> {
    let time = serde_json::Value::from(text);
    let time: k8s_openapi::apimachinery::pkg::apis::meta::v1::Time =
        serde_json::from_value(time).ok()?;
    Some(time.0.as_second())
}

fn labels(metadata: &Metadata, problems: &mut Vec<Problem>) -> Labels {
    let list = metadata.labels.or("metadata.labels", problems);
    let list = list.map(|Pairs(list)| list.as_slice()).unwrap_or_default();
    list.iter()
        .filter_map(|(key, value)| {
            let field = || format!("metadata.labels[{key}]");
            Some((key.clone(), value.or_at(field, problems)?.clone()))
        })
        .collect()
}

fn addresses(status: &Status, problems: &mut Vec<Problem>) -> Addresses {
    let mut list = Vec::new();
    let pod_ips = status.pod_ips.or("status.podIPs", problems);
    for (index, entry) in pod_ips.into_iter().flatten().enumerate() {
        let field = || format!("status.podIPs[{index}]");
        let ip = entry.or_at(field, problems).and_then(|entry| entry.ip.or_at(field, problems));
        list.push(ip.map_or("", |ip| &**ip));
    }
    let pod_ip = status.pod_ip.or("status.podIP", problems).map(|ip| &**ip);
    // What was no string has been named already.
    let listed = list.iter().copied().filter(|ip| !ip.is_empty());
    convert::pod_addresses(listed, pod_ip, problems)
}

fn containers(
    list: &Loose<Vec<Loose<Container>>>,
    field: &'static str,
    only_restartable: bool,
    to: &mut PortCollector,
) {
    for (index, container) in list.or(field, &mut to.problems).into_iter().flatten().enumerate() {
        let field = || format!("{field}[{index}]");
        let Some(container) = container.or_at(field, &mut to.problems) else { continue };
        let restart = container.restart_policy.good().map(|policy| &**policy);
        if only_restartable && restart != Some("Always") {
            continue;
        }
        let ports = container.ports.or_at(|| format!("{}.ports", field()), &mut to.problems);
        for (index, port) in ports.into_iter().flatten().enumerate() {
            let field = || format!("{}.ports[{index}]", field());
            let Some(port) = port.or_at(field, &mut to.problems) else { continue };
            let name = port.name.or_at(|| format!("{}.name", field()), &mut to.problems);
            let protocol =
                port.protocol.or_at(|| format!("{}.protocol", field()), &mut to.problems);
            let number = port.port.or_at(|| format!("{}.containerPort", field()), &mut to.problems);
            let text = |text: Option<&'_ Str>| text.map(ToString::to_string);
            to.port(
                field,
                text(name).as_deref(),
                text(protocol).as_deref(),
                number.copied().unwrap_or(0),
            );
        }
    }
}

/// A value that may be absent, or of a type that was not expected.
#[derive(Debug, Clone, Default)]
enum Loose<T> {
    #[default]
    Absent,
    Good(T),
    Bad(&'static str),
}

impl<T> Loose<T> {
    fn good(&self) -> Option<&T> {
        match self {
            Self::Good(value) => Some(value),
            _ => None,
        }
    }

    /// The value; reports a wrong type at `field`.
    fn or(&self, field: &str, problems: &mut Vec<Problem>) -> Option<&T> {
        self.or_at(|| field.to_owned(), problems)
    }

    fn or_at(&self, field: impl Fn() -> String, problems: &mut Vec<Problem>) -> Option<&T> {
        if let Self::Bad(got) = self {
            problems.push(Problem::new(field(), format!("invalid type: got \"{got}\"")));
        }
        self.good()
    }
}

/// Makes itself of the one JSON type it expects.
trait Shape<'de>: Sized {
    fn of_bool(_: bool) -> Option<Self> {
        None
    }
    fn of_number(_: i64) -> Option<Self> {
        None
    }
    fn of_text(_: &str) -> Option<Self> {
        None
    }
    fn of_list<A: SeqAccess<'de>>(mut list: A) -> Result<Option<Self>, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(None)
    }
    fn of_map<A: MapAccess<'de>>(mut map: A) -> Result<Option<Self>, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(None)
    }
}

impl<'de, T: Shape<'de>> Deserialize<'de> for Loose<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(LooseVisitor(PhantomData))
    }
}

struct LooseVisitor<T>(PhantomData<T>);

fn found<T>(value: Option<T>, got: &'static str) -> Loose<T> {
    value.map_or(Loose::Bad(got), Loose::Good)
}

impl<'de, T: Shape<'de>> Visitor<'de> for LooseVisitor<T> {
    type Value = Loose<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }
    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Loose::Absent)
    }
    fn visit_bool<E>(self, value: bool) -> Result<Self::Value, E> {
        Ok(found(T::of_bool(value), "boolean"))
    }
    fn visit_i64<E>(self, value: i64) -> Result<Self::Value, E> {
        Ok(found(T::of_number(value), "integer"))
    }
    fn visit_u64<E>(self, value: u64) -> Result<Self::Value, E> {
        Ok(found(i64::try_from(value).ok().and_then(T::of_number), "integer"))
    }
    fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
        Ok(Loose::Bad("number"))
    }
    fn visit_str<E>(self, value: &str) -> Result<Self::Value, E> {
        Ok(found(T::of_text(value), "string"))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Self::Value, A::Error> {
        Ok(found(T::of_list(list)?, "array"))
    }
    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        Ok(found(T::of_map(map)?, "map"))
    }
}

impl Shape<'_> for bool {
    fn of_bool(value: bool) -> Option<Self> {
        Some(value)
    }
}

impl Shape<'_> for i32 {
    fn of_number(value: i64) -> Option<Self> {
        Self::try_from(value).ok()
    }
}

impl Shape<'_> for Str {
    fn of_text(value: &str) -> Option<Self> {
        Some(value.into())
    }
}

impl<'de, T: Shape<'de>> Shape<'de> for Vec<Loose<T>> {
    fn of_list<A: SeqAccess<'de>>(mut list: A) -> Result<Option<Self>, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = list.next_element()? {
            values.push(value);
        }
        Ok(Some(values))
    }
}

/// A map of strings, in the order given.
#[derive(Debug, Clone, Default)]
struct Pairs(Vec<(Str, Loose<Str>)>);

impl<'de> Shape<'de> for Pairs {
    fn of_map<A: MapAccess<'de>>(mut map: A) -> Result<Option<Self>, A::Error> {
        let mut pairs = Vec::new();
        while let Some((key, value)) = map.next_entry()? {
            pairs.push((key, value));
        }
        Ok(Some(Self(pairs)))
    }
}

/// Finds a key in a list without allocating it.
struct Field(&'static [&'static str]);

impl<'de> DeserializeSeed<'de> for Field {
    type Value = Option<&'static str>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Field {
    type Value = Option<&'static str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a field name")
    }
    fn visit_str<E>(self, key: &str) -> Result<Self::Value, E> {
        Ok(self.0.iter().copied().find(|name| *name == key))
    }
}

/// A struct of loose fields, each with its name in the API.
macro_rules! shape {
    ($name:ident { $($field:ident: $type:ty = $key:literal),* $(,)? }) => {
        #[derive(Debug, Clone, Default)]
        struct $name { $($field: Loose<$type>),* }

        impl<'de> Shape<'de> for $name {
            fn of_map<A: MapAccess<'de>>(mut map: A) -> Result<Option<Self>, A::Error> {
                let mut value = Self::default();
                while let Some(key) = map.next_key_seed(Field(&[$($key),*]))? {
                    match key {
                        $(Some($key) => value.$field = map.next_value()?,)*
                        _ => { map.next_value::<IgnoredAny>()?; }
                    }
                }
                Ok(Some(value))
            }
        }
    };
}

shape!(Whole { metadata: Metadata = "metadata", spec: Spec = "spec", status: Status = "status" });
shape!(OnlyMetadata { metadata: Metadata = "metadata" });
shape!(Metadata {
    name: Str = "name",
    namespace: Str = "namespace",
    uid: Str = "uid",
    version: Str = "resourceVersion",
    created: Str = "creationTimestamp",
    labels: Pairs = "labels",
    annotations: Annotations = "annotations",
});
shape!(Annotations {
    network_status: Str = "k8s.v1.cni.cncf.io/network-status",
    source_prefixes: Str = "netpol.dev/source-prefixes",
});
shape!(Spec {
    node: Str = "nodeName",
    host_network: bool = "hostNetwork",
    containers: Vec<Loose<Container>> = "containers",
    init_containers: Vec<Loose<Container>> = "initContainers",
});
shape!(Container {
    restart_policy: Str = "restartPolicy",
    ports: Vec<Loose<Port>> = "ports",
});
shape!(Port { name: Str = "name", protocol: Str = "protocol", port: i32 = "containerPort" });
shape!(Status {
    phase: Str = "phase",
    pod_ip: Str = "podIP",
    pod_ips: Vec<Loose<PodIp>> = "podIPs",
});
shape!(PodIp { ip: Str = "ip" });

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use serde_json::{Value, json};

    use super::*;
    use netpol_model::ObjectName;

    fn full() -> Value {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "web-1", "namespace": "shop", "uid": "u-1",
                "resourceVersion": "42", "creationTimestamp": "2026-01-02T03:04:05Z",
                "labels": {"app": "web", "tier": "front"},
                "annotations": {"a": "b"},
                "managedFields": [{"manager": "x", "fieldsV1": {"f:metadata": {}}}]},
            "spec": {"nodeName": "n1", "hostNetwork": true,
                "volumes": [{"name": "v", "emptyDir": {}}],
                "containers": [{"name": "a", "image": "i", "ports": [
                    {"name": "http", "containerPort": 8080, "protocol": "TCP"},
                    {"containerPort": 9}]}],
                "initContainers": [
                    {"name": "i", "ports": [{"name": "init", "containerPort": 1}]},
                    {"name": "s", "restartPolicy": "Always",
                        "ports": [{"name": "side", "containerPort": 2, "protocol": "UDP"}]}]},
            "status": {"phase": "Running", "podIP": "10.0.0.1", "conditions": [{"type": "Ready"}],
                "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]}})
    }

    #[test]
    fn a_slim_pod_and_a_whole_pod_mean_the_same() {
        let mut variants = vec![full()];
        for pointer in ["/status/podIPs", "/status", "/spec", "/metadata/labels", "/metadata/uid"] {
            let mut value = full();
            *value.pointer_mut(pointer).unwrap() = Value::Null;
            variants.push(value);
        }
        for (pointer, new) in [
            ("/status/phase", json!("Succeeded")),
            ("/status/podIPs/0/ip", json!("10.0.0.300")),
            ("/spec/containers/0/ports/0/protocol", json!("tcp")),
            ("/spec/containers/0/ports/0/name", json!("HTTP")),
            ("/spec/nodeName", json!("")),
        ] {
            let mut value = full();
            *value.pointer_mut(pointer).unwrap() = new;
            variants.push(value);
        }
        for value in variants {
            let whole: Pod = serde_json::from_value(value.clone()).unwrap();
            // From text, as from an API server.
            let slim: SlimPod = serde_json::from_str(&value.to_string()).unwrap();
            assert_eq!(slim.model(), convert::pod(&whole), "{value}");
        }
        let slim: SlimPod = serde_json::from_value(full()).unwrap();
        assert_eq!(slim.metadata.resource_version.as_deref(), Some("42"));
    }

    #[test]
    fn a_value_of_the_wrong_type_is_named_and_left_out() {
        let table = [
            ("/status", json!("?"), "status"),
            ("/spec", json!([1, {"a": 2}]), "spec"),
            ("/status/podIPs", json!({"ip": [1]}), "status.podIPs"),
            ("/status/podIPs/1", json!(7), "status.podIPs[1]"),
            ("/status/podIPs/1/ip", json!(7.5), "status.podIPs[1]"),
            ("/metadata/labels", json!(["a"]), "metadata.labels"),
            ("/metadata/labels/app", json!(true), "metadata.labels[app]"),
            ("/spec/containers", json!(1), "spec.containers"),
            ("/spec/containers/0", json!("c"), "spec.containers[0]"),
            ("/spec/containers/0/ports", json!("80"), "spec.containers[0].ports"),
            (
                "/spec/containers/0/ports/0/containerPort",
                json!("80"),
                "spec.containers[0].ports[0].containerPort",
            ),
            ("/spec/hostNetwork", json!("true"), "spec.hostNetwork"),
            ("/spec/nodeName", json!(5), "spec.nodeName"),
        ];
        for (pointer, bad, field) in table {
            let mut value = full();
            *value.pointer_mut(pointer).unwrap() = bad;
            let slim: SlimPod = serde_json::from_str(&value.to_string()).unwrap();
            let (pod, problems) = slim.model();
            assert_eq!(problems[0].field, field, "{value}");
            assert!(problems[0].message.starts_with("invalid type: got"), "{problems:?}");
            assert_eq!(pod.id, ObjectName::new("shop", "web-1"));
        }
    }

    #[test]
    fn namespaces_are_read_loosely_too() {
        let text = r#"{"metadata": {"name": "shop", "resourceVersion": "7", "managedFields": [],
            "labels": {"team": "a", "odd": 5, "kubernetes.io/metadata.name": "forged"}}}"#;
        let slim: SlimNamespace = serde_json::from_str(text).unwrap();
        let (namespace, problems) = slim.model();
        assert_eq!(slim.metadata.resource_version.as_deref(), Some("7"));
        assert_eq!(problems[0].field, "metadata.labels[odd]");
        let expected = [("team", "a"), (convert::NAMESPACE_NAME_LABEL, "shop")];
        assert_eq!(namespace.labels, expected.into_iter().collect());
    }

    #[test]
    fn a_policy_that_is_none_keeps_its_name() {
        let text = r#"{"metadata": {"name": "web", "namespace": "shop", "labels": 5,
            "resourceVersion": "7"}, "spec": "?"}"#;
        let guarded: GuardedPolicy = serde_json::from_str(text).unwrap();
        assert!(guarded.policy.is_err());
        assert_eq!(guarded.metadata.name.as_deref(), Some("web"));
        assert_eq!(guarded.metadata.resource_version.as_deref(), Some("7"));
        let text = r#"{"metadata": {"name": "web"}, "spec": {"podSelector": {}}}"#;
        let guarded: GuardedPolicy = serde_json::from_str(text).unwrap();
        assert!(guarded.policy.is_ok());
    }

    #[test]
    fn only_broken_json_fails() {
        assert!(serde_json::from_str::<SlimPod>("{\"metadata\": ").is_err());
        assert!(serde_json::from_str::<SlimPod>("[]").is_err());
        assert!(serde_json::from_str::<SlimPod>("{\"metadata\": 5}").is_ok());
    }
}
