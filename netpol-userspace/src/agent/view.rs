//! Turns what the compiler knows of an endpoint into what people read. Pure.

use std::collections::BTreeMap;

use super::state::{DirectionView, EndpointView, Rule, WatchView};
use crate::compile::{ClassId, Compiler, EndpointId};
use crate::endpoint::{Endpoint, Holder};
use crate::model::Direction;
use crate::source::Watch;

/// The views of all endpoints, sorted by namespace and name; with what policies say, or without.
pub fn endpoints<'a>(
    compiler: &Compiler,
    endpoints: impl Iterator<Item = (EndpointId, &'a Endpoint)>,
    has_rules: bool,
) -> Vec<EndpointView> {
    let mut endpoints: Vec<(EndpointId, &Endpoint)> = endpoints.collect();
    // Who asks for a pod by its name means the one that runs by its object.
    endpoints.sort_by_key(|(_, e)| (&e.pod, e.holder != Holder::Current, e.ifindex));
    endpoints
        .into_iter()
        .map(|(id, endpoint)| EndpointView {
            namespace: endpoint.pod.namespace.to_string(),
            pod: endpoint.pod.name.to_string(),
            uid: endpoint.uid.to_string(),
            interface: endpoint.interface.clone(),
            ifindex: endpoint.ifindex,
            ips: endpoint.addresses.clone(),
            id: id.0,
            ingress: direction(compiler, id, Direction::Ingress, has_rules),
            egress: direction(compiler, id, Direction::Egress, has_rules),
        })
        .collect()
}

/// The views of a source's watches.
pub fn watches(watches: &[Watch]) -> Vec<WatchView> {
    let view = |watch: &Watch| WatchView {
        resource: watch.resource.to_owned(),
        synced: watch.is_synced,
        objects: watch.objects,
    };
    watches.iter().map(view).collect()
}

fn direction(
    compiler: &Compiler,
    id: EndpointId,
    direction: Direction,
    has_rules: bool,
) -> DirectionView {
    let policies = compiler.endpoint_policies(id, direction);
    let set = compiler.endpoint_sets(id).map_or(0, |sets| match direction {
        Direction::Ingress => sets.ingress.0,
        Direction::Egress => sets.egress.0,
    });
    let text = |names: &[crate::model::ObjectName]| names.iter().map(ToString::to_string).collect();
    DirectionView {
        isolated: !policies.is_empty() || set != 0,
        policies: text(&policies),
        rules: if has_rules { compiler.rules(id, direction) } else { Vec::new() }
            .into_iter()
            .map(|rule| Rule { peer: rule.peer, ports: rule.ports, policies: text(&rule.policies) })
            .collect(),
        set,
    }
}

/// Names of the classes in use. Any block may get the closed class, when the tables are full.
pub fn classes(compiler: &Compiler) -> BTreeMap<u32, Vec<String>> {
    let classes = compiler.classes_in_use().chain([ClassId::CLOSED]);
    classes.map(|class| (class.0, compiler.class_names(class))).collect()
}
