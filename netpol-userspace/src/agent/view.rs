//! Turns what the compiler knows of an endpoint into what people read. Pure.

use std::collections::BTreeMap;

use super::state::{DirectionView, EndpointView, Rule};
use crate::compile::{Compiler, EndpointId, Tables};
use crate::endpoint::Endpoint;
use crate::model::Direction;

/// The views of all endpoints, sorted by namespace and name.
pub fn endpoints<'a>(
    compiler: &Compiler,
    tables: &Tables,
    endpoints: impl Iterator<Item = (EndpointId, &'a Endpoint)>,
) -> Vec<EndpointView> {
    let mut views: Vec<EndpointView> = endpoints
        .map(|(id, endpoint)| EndpointView {
            namespace: endpoint.pod.namespace.to_string(),
            pod: endpoint.pod.name.to_string(),
            uid: endpoint.uid.to_string(),
            interface: endpoint.interface.clone(),
            ifindex: endpoint.ifindex,
            ips: endpoint.addresses.clone(),
            id: id.0,
            ingress: direction(compiler, tables, id, Direction::Ingress),
            egress: direction(compiler, tables, id, Direction::Egress),
        })
        .collect();
    views.sort_by(|a, b| (&a.namespace, &a.pod, a.ifindex).cmp(&(&b.namespace, &b.pod, b.ifindex)));
    views
}

fn direction(
    compiler: &Compiler,
    tables: &Tables,
    id: EndpointId,
    direction: Direction,
) -> DirectionView {
    let policies = compiler.endpoint_policies(id, direction);
    let set = tables.endpoints.get(&id).map_or(0, |sets| match direction {
        Direction::Ingress => sets.ingress.0,
        Direction::Egress => sets.egress.0,
    });
    let text = |names: &[crate::model::ObjectName]| names.iter().map(ToString::to_string).collect();
    DirectionView {
        isolated: !policies.is_empty(),
        policies: text(&policies),
        rules: compiler
            .rules(id, direction)
            .into_iter()
            .map(|rule| Rule { peer: rule.peer, ports: rule.ports, policies: text(&rule.policies) })
            .collect(),
        set,
    }
}

/// Names of the classes in use.
pub fn classes(compiler: &Compiler, tables: &Tables) -> BTreeMap<u32, Vec<String>> {
    let mut names = BTreeMap::new();
    for &class in tables.classes.values() {
        names.entry(class.0).or_insert_with(|| compiler.class_names(class));
    }
    names
}
