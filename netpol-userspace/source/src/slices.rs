//! The EndpointSlices of a Service with a selector, where nobody else makes them: files have no
//! EndpointSlice controller. Pure; must never be used beside one.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use netpol_model::{
    AddressFamily, EndpointSlice, ObjectName, Operator, Pod, Protocol, Requirement, Selector,
    Service, SliceEndpoint, SlicePort, Str,
};

/// What a Service says about its backends.
#[derive(Debug, Clone)]
pub struct Selecting {
    selector: Selector,
    /// Target ports by name and protocol of the Service port.
    targets: BTreeMap<(Str, Protocol), Target>,
    /// `spec.publishNotReadyAddresses`.
    not_ready_too: bool,
}

#[derive(Debug, Clone)]
enum Target {
    /// The same number on every pod; none: the Service port's own.
    Number(Option<u16>),
    /// What each pod declares under this name.
    Named(Str),
}

/// What decides whether a pod is a ready backend.
#[derive(Debug, Clone, Copy)]
pub struct Condition {
    /// Its condition Ready is true, or it has none.
    pub ready: bool,
    /// It is being deleted.
    pub ending: bool,
}

impl Condition {
    /// That of a pod as it was written. Hand-written pods have no conditions and are ready.
    pub fn of(pod: &core::Pod) -> Self {
        let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
        let ready = conditions.into_iter().flatten().find(|condition| condition.type_ == "Ready");
        Self {
            ready: ready.is_none_or(|condition| condition.status == "True"),
            ending: pod.metadata.deletion_timestamp.is_some(),
        }
    }
}

impl Selecting {
    /// That of a Service as it was written; `None` without a selector: then its slices are made
    /// by hand.
    pub fn of(service: &core::Service) -> Option<Self> {
        let spec = service.spec.as_ref()?;
        let labels = spec.selector.as_ref().filter(|selector| !selector.is_empty())?;
        let requirements = labels.iter().map(|(key, value)| Requirement {
            key: key.as_str().into(),
            operator: Operator::In(vec![value.as_str().into()]),
        });
        let targets = spec.ports.iter().flatten().filter_map(|port| {
            let protocol = match port.protocol.as_deref() {
                None | Some("") => Protocol::Tcp,
                Some(text) => Protocol::ALL.into_iter().find(|known| known.as_str() == text)?,
            };
            let name = port.name.as_deref().unwrap_or_default().into();
            Some(((name, protocol), target(port.target_port.as_ref())?))
        });
        Some(Self {
            selector: Selector::new(requirements),
            targets: targets.collect(),
            not_ready_too: spec.publish_not_ready_addresses.unwrap_or(false),
        })
    }

    fn port_on(&self, pod: &Pod, name: &Str, protocol: Protocol, own: u16) -> Option<SlicePort> {
        let port = match self.targets.get(&(name.clone(), protocol))? {
            Target::Number(number) => number.unwrap_or(own),
            Target::Named(target) => {
                let declares =
                    |p: &&netpol_model::NamedPort| p.protocol == protocol && p.name == *target;
                pod.ports.iter().find(declares)?.port
            }
        };
        Some(SlicePort { name: name.clone(), protocol, port })
    }

    fn endpoint(&self, address: IpAddr, condition: Condition) -> SliceEndpoint {
        SliceEndpoint {
            address,
            ready: self.not_ready_too || (condition.ready && !condition.ending),
            serving: self.not_ready_too || condition.ready,
        }
    }
}

/// `None` for a number that is no port: nothing can be reached there.
fn target(port: Option<&IntOrString>) -> Option<Target> {
    Some(match port {
        None | Some(IntOrString::Int(0)) => Target::Number(None),
        Some(IntOrString::Int(number)) => Target::Number(Some(u16::try_from(*number).ok()?)),
        Some(IntOrString::String(name)) if name.is_empty() => Target::Number(None),
        Some(IntOrString::String(name)) => Target::Named(name.as_str().into()),
    })
}

/// The slices of a Service: one for each family and list of port numbers, since a named target
/// port may have another number on each pod, and a pod that does not declare it lacks it.
pub fn derive<'a>(
    service: &Service,
    selecting: &Selecting,
    pods: impl IntoIterator<Item = (&'a Pod, Condition)>,
) -> Vec<EndpointSlice> {
    type Kind = (AddressFamily, Vec<(Str, Protocol, u16)>);
    let mut kinds: BTreeMap<Kind, Vec<SliceEndpoint>> = BTreeMap::new();
    for (pod, condition) in pods {
        let selected = pod.id.namespace == service.id.namespace
            && !pod.finished
            && selecting.selector.matches(&pod.labels);
        if !selected {
            continue;
        }
        let ports = service.ports.iter().filter_map(|port| {
            let found = selecting.port_on(pod, &port.name, port.protocol, port.port)?;
            Some((found.name, found.protocol, found.port))
        });
        let ports: Vec<_> = ports.collect();
        for family in [AddressFamily::V4, AddressFamily::V6] {
            // As in the API, a pod has one address of each family.
            let address = pod.addresses.iter().find(|&&a| AddressFamily::of(a) == family);
            if let (Some(&address), false) = (address, ports.is_empty()) {
                let endpoint = selecting.endpoint(address, condition);
                kinds.entry((family, ports.clone())).or_default().push(endpoint);
            }
        }
    }
    let slice = |(index, ((family, ports), endpoints)): (usize, (Kind, _))| EndpointSlice {
        id: derived_name(&service.id, index),
        service: service.id.name.clone(),
        // As the controller does it, which gives slices the labels of their Service.
        proxy: service.proxy.clone(),
        family,
        ports: ports
            .into_iter()
            .map(|(name, protocol, port)| SlicePort { name, protocol, port })
            .collect(),
        endpoints,
    };
    kinds.into_iter().enumerate().map(slice).collect()
}

/// A name that no slice in a file can have.
fn derived_name(service: &ObjectName, index: usize) -> ObjectName {
    ObjectName::new(service.namespace.clone(), format!("{}:derived:{index}", service.name))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use serde_json::{Value, json};

    use super::*;
    use crate::convert;

    fn slices(service: Value, pods: &[Value]) -> Vec<String> {
        let service: core::Service = serde_json::from_value(service).unwrap();
        let pods: Vec<core::Pod> =
            pods.iter().map(|pod| serde_json::from_value(pod.clone()).unwrap()).collect();
        let (model, problems) = convert::service(&service);
        assert_eq!(problems, []);
        let models: Vec<(Pod, Condition)> =
            pods.iter().map(|pod| (convert::pod(pod).0, Condition::of(pod))).collect();
        let selecting = Selecting::of(&service).unwrap();
        derive(&model, &selecting, models.iter().map(|(pod, condition)| (pod, *condition)))
            .iter()
            .map(text)
            .collect()
    }

    fn text(slice: &EndpointSlice) -> String {
        let ports: Vec<String> =
            slice.ports.iter().map(|p| format!("{}={}/{}", p.name, p.protocol, p.port)).collect();
        let endpoints: Vec<String> = slice
            .endpoints
            .iter()
            .map(|e| {
                let state = match (e.ready, e.serving) {
                    (true, _) => "ready",
                    (false, true) => "serving",
                    (false, false) => "down",
                };
                format!("{} {state}", e.address)
            })
            .collect();
        format!("{:?} {} -> {}", slice.family, ports.join(","), endpoints.join(", "))
    }

    fn service(ports: Value) -> Value {
        json!({"metadata": {"name": "web", "namespace": "shop"},
            "spec": {"clusterIP": "10.96.0.1", "selector": {"app": "web"}, "ports": ports}})
    }

    fn pod(name: &str, ip: &str, named: Value) -> Value {
        json!({"metadata": {"name": name, "namespace": "shop", "labels": {"app": "web"}},
            "spec": {"containers": [{"name": "c", "ports": named}]},
            "status": {"podIPs": [{"ip": ip}]}})
    }

    #[test]
    fn numbers_names_and_defaults_of_target_ports() {
        let ports = json!([{"name": "a", "port": 80}, {"name": "b", "port": 81, "targetPort": 8081},
            {"name": "c", "port": 82, "targetPort": "web"},
            {"name": "d", "port": 83, "targetPort": "dns", "protocol": "UDP"}]);
        let one = pod("one", "10.0.0.1", json!([{"name": "web", "containerPort": 8080}]));
        let two = pod(
            "two",
            "10.0.0.2",
            json!([{"name": "web", "containerPort": 9090},
                {"name": "dns", "containerPort": 5353, "protocol": "UDP"}]),
        );
        assert_eq!(
            slices(service(ports), &[one, two]),
            [
                "V4 a=TCP/80,b=TCP/8081,c=TCP/8080 -> 10.0.0.1 ready",
                "V4 a=TCP/80,b=TCP/8081,c=TCP/9090,d=UDP/5353 -> 10.0.0.2 ready",
            ]
        );
    }

    #[test]
    fn only_pods_that_match_here_and_have_not_finished() {
        let mut elsewhere = pod("a", "10.0.0.1", json!([]));
        elsewhere["metadata"]["namespace"] = json!("other");
        let mut other = pod("b", "10.0.0.2", json!([]));
        other["metadata"]["labels"]["app"] = json!("db");
        let mut finished = pod("c", "10.0.0.3", json!([]));
        finished["status"]["phase"] = json!("Succeeded");
        let mut on_host = pod("d", "10.0.0.4", json!([]));
        on_host["spec"]["hostNetwork"] = json!(true);
        let found = slices(service(json!([{"port": 80}])), &[elsewhere, other, finished, on_host]);
        assert_eq!(found, ["V4 =TCP/80 -> 10.0.0.4 ready"]);
    }

    #[test]
    fn pods_are_ready_unless_they_say_otherwise() {
        let condition = |status: &str| json!([{"type": "Ready", "status": status}]);
        let mut up = pod("a", "10.0.0.1", json!([]));
        up["status"]["conditions"] = condition("True");
        let mut down = pod("b", "10.0.0.2", json!([]));
        down["status"]["conditions"] = condition("False");
        let mut ending = pod("c", "10.0.0.3", json!([]));
        ending["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        let pods = [up, down, ending];
        assert_eq!(
            slices(service(json!([{"port": 80}])), &pods),
            ["V4 =TCP/80 -> 10.0.0.1 ready, 10.0.0.2 down, 10.0.0.3 serving"]
        );
        let mut all = service(json!([{"port": 80}]));
        all["spec"]["publishNotReadyAddresses"] = json!(true);
        assert_eq!(
            slices(all, &pods),
            ["V4 =TCP/80 -> 10.0.0.1 ready, 10.0.0.2 ready, 10.0.0.3 ready"]
        );
    }

    #[test]
    fn both_families_and_headless() {
        let mut dual = pod("a", "10.0.0.1", json!([]));
        dual["status"]["podIPs"] = json!([{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]);
        assert_eq!(
            slices(service(json!([{"port": 80}])), &[dual.clone()]),
            ["V4 =TCP/80 -> 10.0.0.1 ready", "V6 =TCP/80 -> fd00::1 ready"]
        );
        let mut headless = service(json!([{"port": 80}]));
        headless["spec"]["clusterIP"] = json!("None");
        assert!(slices(headless, &[dual]).is_empty());
    }

    #[test]
    fn without_a_selector_nothing_is_derived() {
        for selector in [json!(null), json!({})] {
            let mut service = service(json!([{"port": 80}]));
            service["spec"]["selector"] = selector;
            assert!(Selecting::of(&serde_json::from_value(service).unwrap()).is_none());
        }
    }
}
