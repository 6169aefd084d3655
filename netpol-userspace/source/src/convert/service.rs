//! Services, EndpointSlices and Nodes -> model. What is unusable in one of them is left out and
//! named; must never turn it into a backend or an address.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;

use super::{Problem, add_address, object_name, parse_protocol};
use crate::validate;
use netpol_model::{
    AddressFamily, EndpointSlice, Node, Protocol, Proxy, Service, ServicePort, SliceEndpoint,
    SlicePort,
};

/// The label of a slice that names its Service.
pub(crate) const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

/// The label of a Service, and of its slices, that names the proxy which is to handle it.
pub(crate) const SERVICE_PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";
/// The label of slices (kube-proxy heeds it on Services too) for which there is nothing to translate.
pub(crate) const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";

/// What the labels say of the proxy. As kube-proxy reads them, whose list of Services and slices is
/// of those that have neither, whatever the value (cmd/kube-proxy/app/server.go).
fn proxy(labels: Option<&BTreeMap<String, String>>) -> Proxy {
    let Some(labels) = labels else { return Proxy::Usual };
    match labels.get(SERVICE_PROXY_NAME_LABEL) {
        _ if labels.contains_key(HEADLESS_LABEL) => Proxy::Nobody,
        Some(name) => Proxy::Named(name.as_str().into()),
        None => Proxy::Usual,
    }
}

/// A Service, and what could not be used of it. A headless or ExternalName Service has no address
/// that could be judged, so nothing but its name is kept.
pub fn service(object: &core::Service) -> (Service, Vec<Problem>) {
    let mut problems = Vec::new();
    let created = object.metadata.creation_timestamp.as_ref();
    let mut service = Service {
        id: object_name(&object.metadata),
        cluster_ips: Vec::new(),
        external: Vec::new(),
        ports: Vec::new(),
        proxy: proxy(object.metadata.labels.as_ref()),
        is_external_local: false,
        is_internal_local: false,
        created: created.map_or(0, |time| time.0.as_second()),
    };
    let Some(spec) = &object.spec else { return (service, problems) };
    let cluster_ips = cluster_ips(spec);
    let headless = cluster_ips.iter().any(|(_, text)| *text == "None");
    if headless || spec.type_.as_deref() == Some("ExternalName") {
        return (service, problems);
    }
    service.is_external_local = is_local(spec.external_traffic_policy.as_deref());
    service.is_internal_local = is_local(spec.internal_traffic_policy.as_deref());
    for (field, text) in cluster_ips {
        add_address(&field, text, &mut service.cluster_ips, &mut problems);
    }
    for (field, text) in external(object, spec) {
        add_address(&field, text, &mut service.external, &mut problems);
    }
    for (index, port) in spec.ports.iter().flatten().enumerate() {
        service.ports.extend(service_port(index, port, &mut problems));
    }
    service.cluster_ips.shrink_to_fit();
    service.external.shrink_to_fit();
    service.ports.shrink_to_fit();
    (service, problems)
}

/// What a traffic policy says; kube-proxy takes anything else for `Cluster`.
fn is_local(policy: Option<&str>) -> bool {
    policy == Some("Local")
}

/// The cluster IPs with their fields; `clusterIP` counts where `clusterIPs` is missing. Empty ones
/// are not allocated.
fn cluster_ips(spec: &core::ServiceSpec) -> Vec<(String, &str)> {
    let listed = spec.cluster_ips.iter().flatten().enumerate();
    let mut found: Vec<(String, &str)> = listed
        .map(|(index, text)| (format!("spec.clusterIPs[{index}]"), text.as_str()))
        .filter(|(_, text)| !text.is_empty())
        .collect();
    if found.is_empty() {
        let single = spec.cluster_ip.as_deref().filter(|text| !text.is_empty());
        found.extend(single.map(|text| ("spec.clusterIP".to_owned(), text)));
    }
    found
}

/// External addresses that nodes translate themselves. Traffic to a load balancer of mode Proxy
/// leaves the cluster and is judged by the balancer's address.
fn external<'a>(
    object: &'a core::Service,
    spec: &'a core::ServiceSpec,
) -> impl Iterator<Item = (String, &'a str)> {
    let ips = spec.external_ips.iter().flatten().enumerate();
    let ips = ips.map(|(index, text)| (format!("spec.externalIPs[{index}]"), text.as_str()));
    let balancer = object.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = balancer.and_then(|balancer| balancer.ingress.as_ref());
    let ingress = ingress.into_iter().flatten().enumerate().filter_map(|(index, ingress)| {
        let text = ingress.ip.as_deref().filter(|text| !text.is_empty())?;
        let translated = ingress.ip_mode.as_deref() != Some("Proxy");
        translated.then(|| (format!("status.loadBalancer.ingress[{index}].ip"), text))
    });
    ips.chain(ingress)
}

fn service_port(
    index: usize,
    port: &core::ServicePort,
    problems: &mut Vec<Problem>,
) -> Option<ServicePort> {
    let field = format!("spec.ports[{index}]");
    let protocol = protocol(&field, port.protocol.as_deref(), problems);
    let number = number(format!("{field}.port"), port.port, problems);
    let node_port = port.node_port.filter(|number| *number != 0);
    let node_port = node_port.and_then(|n| self::number(format!("{field}.nodePort"), n, problems));
    let name = port.name.as_deref().unwrap_or_default().into();
    Some(ServicePort { name, protocol: protocol?, port: number?, node_port })
}

fn protocol(field: &str, text: Option<&str>, problems: &mut Vec<Problem>) -> Option<Protocol> {
    parse_protocol(text.filter(|text| !text.is_empty()))
        .map_err(|message| problems.push(Problem::new(format!("{field}.protocol"), message)))
        .ok()
}

fn number(field: String, number: i32, problems: &mut Vec<Problem>) -> Option<u16> {
    validate::port_number(number)
        .map_err(|error| problems.push(Problem::invalid(field, number, &error.to_string())))
        .ok()
}

/// An EndpointSlice, and what could not be used of it. One that belongs to no Service, or whose
/// addresses are names, has no part in anything.
pub fn endpoint_slice(object: &discovery::EndpointSlice) -> (EndpointSlice, Vec<Problem>) {
    let mut problems = Vec::new();
    let labels = object.metadata.labels.as_ref();
    let service = labels.and_then(|labels| labels.get(SERVICE_NAME_LABEL));
    let mut slice = EndpointSlice {
        id: object_name(&object.metadata),
        service: service.map_or("", String::as_str).into(),
        proxy: proxy(labels),
        family: AddressFamily::V4,
        ports: Vec::new(),
        endpoints: Vec::new(),
    };
    match object.address_type.as_str() {
        "IPv4" => {}
        "IPv6" => slice.family = AddressFamily::V6,
        // No proxy can translate to these.
        "FQDN" => return (slice, problems),
        other => {
            let message = format!(
                "Unsupported value: {other:?}: supported values: \"FQDN\", \"IPv4\", \"IPv6\""
            );
            return (slice, vec![Problem::new("addressType", message)]);
        }
    }
    for (index, port) in object.ports.iter().flatten().enumerate() {
        slice.ports.extend(slice_port(index, port, &mut problems));
    }
    for (index, endpoint) in object.endpoints.iter().enumerate() {
        slice.endpoints.extend(slice_endpoints(index, endpoint, slice.family, &mut problems));
    }
    slice.ports.shrink_to_fit();
    slice.endpoints.shrink_to_fit();
    (slice, problems)
}

fn slice_port(
    index: usize,
    port: &discovery::EndpointPort,
    problems: &mut Vec<Problem>,
) -> Option<SlicePort> {
    let field = format!("ports[{index}]");
    let protocol = protocol(&field, port.protocol.as_deref(), problems);
    let Some(number) = port.port else {
        let message = "Required value: without a number no Service port can lead to it";
        problems.push(Problem::new(format!("{field}.port"), message));
        return None;
    };
    let number = self::number(format!("{field}.port"), number, problems);
    let name = port.name.as_deref().unwrap_or_default().into();
    Some(SlicePort { name, protocol: protocol?, port: number? })
}

fn slice_endpoints(
    index: usize,
    endpoint: &discovery::Endpoint,
    family: AddressFamily,
    problems: &mut Vec<Problem>,
) -> impl Iterator<Item = SliceEndpoint> + use<> {
    let mut addresses: Vec<IpAddr> = Vec::new();
    for (position, text) in endpoint.addresses.iter().enumerate() {
        let field = format!("endpoints[{index}].addresses[{position}]");
        add_address(&field, text, &mut addresses, problems);
    }
    addresses.retain(|&address| {
        let fits = AddressFamily::of(address) == family;
        if !fits {
            let field = format!("endpoints[{index}].addresses");
            problems.push(Problem::invalid(field, address, "must be of the slice's addressType"));
        }
        fits
    });
    let conditions = endpoint.conditions.as_ref();
    let ready = conditions.and_then(|conditions| conditions.ready).unwrap_or(true);
    let serving = conditions.and_then(|conditions| conditions.serving).unwrap_or(ready);
    addresses.into_iter().map(move |address| SliceEndpoint { address, ready, serving })
}

/// A node, and what could not be used of it.
pub fn node(object: &core::Node) -> (Node, Vec<Problem>) {
    let mut problems = Vec::new();
    let mut node = Node {
        name: object.metadata.name.as_deref().unwrap_or_default().into(),
        labels: object
            .metadata
            .labels
            .iter()
            .flatten()
            .map(|(k, v)| (k.as_str(), v.as_str()))
            .collect(),
        addresses: Vec::new(),
    };
    let listed = object.status.as_ref().and_then(|status| status.addresses.as_ref());
    for (index, address) in listed.into_iter().flatten().enumerate() {
        if matches!(address.type_.as_str(), "InternalIP" | "ExternalIP") {
            let field = format!("status.addresses[{index}].address");
            add_address(&field, &address.address, &mut node.addresses, &mut problems);
        }
    }
    (node, problems)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use serde_json::{Value, json};

    use super::*;

    fn read_service(spec: Value, status: Value) -> (Service, Vec<Problem>) {
        let object = json!({"metadata": {"name": "web", "namespace": "shop",
            "creationTimestamp": "1970-01-01T00:00:09Z"}, "spec": spec, "status": status});
        service(&serde_json::from_value(object).unwrap())
    }

    fn addresses(list: &[&str]) -> Vec<IpAddr> {
        list.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn a_service_with_everything() {
        let (service, problems) = read_service(
            json!({"clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "fd00:96::1"],
                "externalIPs": ["192.0.2.1"], "type": "LoadBalancer",
                "ports": [{"name": "http", "port": 80, "targetPort": "web", "nodePort": 30080},
                    {"name": "dns", "port": 53, "protocol": "UDP"}]}),
            json!({"loadBalancer": {"ingress": [{"ip": "198.51.100.1"},
                {"ip": "198.51.100.2", "ipMode": "Proxy"},
                {"ip": "198.51.100.3", "ipMode": "VIP"}, {"hostname": "lb.example"}]}}),
        );
        assert_eq!(problems, []);
        assert_eq!(service.cluster_ips, addresses(&["10.96.0.1", "fd00:96::1"]));
        assert_eq!(service.external, addresses(&["192.0.2.1", "198.51.100.1", "198.51.100.3"]));
        assert_eq!(service.created, 9);
        let port = |name: &str, protocol, port, node_port| ServicePort {
            name: name.into(),
            protocol,
            port,
            node_port,
        };
        assert_eq!(
            service.ports,
            [port("http", Protocol::Tcp, 80, Some(30080)), port("dns", Protocol::Udp, 53, None)]
        );
    }

    #[test]
    fn traffic_policies_keep_packets_on_a_node() {
        for (spec, expected) in [
            (json!({}), [false, false]),
            (json!({"externalTrafficPolicy": "Local"}), [true, false]),
            (json!({"internalTrafficPolicy": "Local"}), [false, true]),
            (
                json!({"externalTrafficPolicy": "Cluster", "internalTrafficPolicy": "local"}),
                [false, false],
            ),
        ] {
            let (service, problems) = read_service(spec.clone(), json!(null));
            assert_eq!(problems, []);
            let found = [service.is_external_local, service.is_internal_local];
            assert_eq!(found, expected, "{spec}");
        }
    }

    #[test]
    fn services_without_an_address_have_no_ports_either() {
        for spec in [
            json!({"clusterIP": "None", "externalIPs": ["192.0.2.1"], "ports": [{"port": 80}]}),
            json!({"clusterIPs": ["None"], "ports": [{"port": 80}]}),
            json!({"type": "ExternalName", "externalName": "x.example", "ports": [{"port": 80}]}),
            json!(null),
        ] {
            let (service, problems) = read_service(spec, json!(null));
            assert_eq!(problems, []);
            assert_eq!((service.cluster_ips, service.external), (vec![], vec![]));
            assert_eq!(service.ports, []);
        }
    }

    #[test]
    fn what_is_unusable_is_left_out_and_named() {
        let (service, problems) = read_service(
            json!({"clusterIP": "10.96.0.300", "externalIPs": ["::ffff:10.0.0.1", "192.0.2.1"],
                "ports": [{"port": 0}, {"port": 80, "protocol": "tcp"},
                    {"port": 81, "nodePort": 70000}]}),
            json!(null),
        );
        let fields: Vec<&str> = problems.iter().map(|problem| problem.field.as_str()).collect();
        assert_eq!(
            fields,
            [
                "spec.clusterIP",
                "spec.externalIPs[0]",
                "spec.ports[0].port",
                "spec.ports[1].protocol",
                "spec.ports[2].nodePort"
            ]
        );
        assert_eq!(service.external, addresses(&["192.0.2.1"]));
        assert_eq!(service.ports.len(), 1);
        assert_eq!(service.ports[0].node_port, None);
    }

    #[test]
    fn labels_name_the_proxy() {
        let labelled = |labels: Value| {
            let metadata = json!({"name": "web", "namespace": "shop", "labels": labels});
            let object = json!({"metadata": metadata, "spec": {"clusterIP": "10.96.0.1"}});
            let slice = json!({"metadata": metadata, "addressType": "IPv4", "endpoints": []});
            let proxy = service(&serde_json::from_value(object).unwrap()).0.proxy;
            assert_eq!(read_slice(slice).0.proxy, proxy);
            proxy
        };
        let (name, headless) = (SERVICE_PROXY_NAME_LABEL, HEADLESS_LABEL);
        for (labels, expected, usual, own) in [
            (json!(null), Proxy::Usual, true, false),
            (json!({"app": "web"}), Proxy::Usual, true, false),
            (json!({name: "mine"}), Proxy::Named("mine".into()), false, true),
            (json!({name: "other"}), Proxy::Named("other".into()), false, false),
            (json!({name: ""}), Proxy::Named("".into()), false, false),
            (json!({headless: ""}), Proxy::Nobody, false, false),
            (json!({headless: "", name: "mine"}), Proxy::Nobody, false, false),
        ] {
            let proxy = labelled(labels.clone());
            assert_eq!(proxy, expected, "{labels}");
            assert_eq!(proxy.is_handled_by(None), usual, "{labels}");
            assert_eq!(proxy.is_handled_by(Some("mine")), own, "{labels}");
        }
    }

    fn read_slice(value: Value) -> (EndpointSlice, Vec<Problem>) {
        endpoint_slice(&serde_json::from_value(value).unwrap())
    }

    #[test]
    fn slices_default_as_their_documentation_says() {
        let (slice, problems) = read_slice(json!({
            "metadata": {"name": "web-1", "namespace": "shop",
                "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4",
            "ports": [{"port": 8080}, {"name": "any"}],
            "endpoints": [{"addresses": ["10.0.0.1"]},
                {"addresses": ["10.0.0.2"], "conditions": {"ready": false}},
                {"addresses": ["10.0.0.3"], "conditions": {"ready": false, "serving": true}},
                {"addresses": ["fd00::1"]}]}));
        assert_eq!(&*slice.service, "web");
        let fields: Vec<&str> = problems.iter().map(|problem| problem.field.as_str()).collect();
        assert_eq!(fields, ["ports[1].port", "endpoints[3].addresses"]);
        assert_eq!(
            slice.ports,
            [SlicePort { name: "".into(), protocol: Protocol::Tcp, port: 8080 }]
        );
        let conditions: Vec<(bool, bool)> =
            slice.endpoints.iter().map(|endpoint| (endpoint.ready, endpoint.serving)).collect();
        assert_eq!(conditions, [(true, true), (false, false), (false, true)]);
    }

    #[test]
    fn a_slice_of_names_or_of_no_service_has_no_part() {
        let (slice, problems) = read_slice(json!({"metadata": {"name": "a"},
            "addressType": "FQDN", "endpoints": [{"addresses": ["x.example"]}]}));
        assert_eq!((problems, slice.endpoints, &*slice.service), (vec![], vec![], ""));
        let (_, problems) = read_slice(json!({"metadata": {"name": "a"},
            "addressType": "IPv5", "endpoints": []}));
        assert_eq!(problems[0].field, "addressType");
    }

    #[test]
    fn a_node_is_reached_on_its_addresses_but_not_on_its_names() {
        let object = json!({"metadata": {"name": "n1"}, "status": {"addresses": [
            {"type": "Hostname", "address": "n1"}, {"type": "InternalIP", "address": "172.16.0.1"},
            {"type": "ExternalIP", "address": "fd00:1::1"},
            {"type": "InternalIP", "address": "?"}]}});
        let (node, problems) = node(&serde_json::from_value(object).unwrap());
        assert_eq!(node.addresses, addresses(&["172.16.0.1", "fd00:1::1"]));
        assert_eq!(problems[0].field, "status.addresses[3].address");
    }
}
