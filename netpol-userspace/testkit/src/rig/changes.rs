//! Objects of random clusters as the compiler hears of them. Must never leave any out.

use crate::generate::service_world::{ServiceEvent, ServiceWorld};
use crate::generate::world::{Event, World};
use k8s_openapi::api::core::v1::Pod;
use netpol_model::Change;
use netpol_source::convert;

/// Whether the pod has an interface of its own.
pub fn is_networked(pod: &Pod) -> bool {
    let pod = convert::pod(pod).0;
    pod.is_networked() && !pod.addresses.is_empty()
}

/// Everything but Services.
pub fn all(world: &World) -> Vec<Change> {
    let namespaces = world.namespaces.values().cloned().map(Event::Namespace);
    let pods = world.pods.values().cloned().map(Event::Pod);
    let policies = world.policies.values().cloned().map(Event::Policy);
    namespaces.chain(pods).chain(policies).map(|event| change(&event)).collect()
}

pub fn change(event: &Event) -> Change {
    match event {
        Event::Namespace(object) => Change::Namespace(convert::namespace(object)),
        Event::NamespaceGone(object) => {
            Change::NamespaceGone(object.metadata.name.clone().unwrap().into())
        }
        Event::Pod(object) => Change::Pod(convert::pod(object).0),
        Event::PodGone(object) => Change::PodGone(convert::object_name(&object.metadata), None),
        Event::Policy(object) => Change::Policy(convert::policy(object).unwrap()),
        Event::PolicyGone(object) => Change::PolicyGone(convert::object_name(&object.metadata)),
    }
}

/// Services, their slices and nodes.
pub fn all_services(world: &ServiceWorld) -> Vec<Change> {
    let nodes = world.nodes.values().cloned().map(ServiceEvent::Node);
    let services = world.services.values().cloned().map(ServiceEvent::Service);
    let slices = world.slices.values().cloned().map(ServiceEvent::Slice);
    nodes.chain(services).chain(slices).map(|event| service_change(&event)).collect()
}

pub fn service_change(event: &ServiceEvent) -> Change {
    let name = convert::object_name;
    match event {
        ServiceEvent::Service(object) => Change::Service(convert::service(object).0),
        ServiceEvent::ServiceGone(object) => Change::ServiceGone(name(&object.metadata)),
        ServiceEvent::Slice(object) => Change::EndpointSlice(convert::endpoint_slice(object).0),
        ServiceEvent::SliceGone(object) => Change::EndpointSliceGone(name(&object.metadata)),
        ServiceEvent::Node(object) => Change::Node(convert::node(object).0),
        ServiceEvent::NodeGone(object) => {
            Change::NodeGone(object.metadata.name.clone().unwrap().into())
        }
    }
}
