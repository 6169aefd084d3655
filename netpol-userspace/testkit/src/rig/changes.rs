//! Objects of random clusters as the compiler hears of them. Must never leave any out.

use crate::generate::service_world::{ServiceEvent, ServiceWorld};
use crate::generate::world::World;
use crate::objects::all_changes;
pub use crate::objects::change;
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
    all_changes(world).collect()
}

/// Services and their slices.
pub fn all_services(world: &ServiceWorld) -> Vec<Change> {
    let services = world.services.values().cloned().map(ServiceEvent::Service);
    let slices = world.slices.values().cloned().map(ServiceEvent::Slice);
    services.chain(slices).map(|event| service_change(&event)).collect()
}

pub fn service_change(event: &ServiceEvent) -> Change {
    let name = convert::object_name;
    match event {
        ServiceEvent::Service(object) => Change::Service(convert::service(object).0),
        ServiceEvent::ServiceGone(object) => Change::ServiceGone(name(&object.metadata)),
        ServiceEvent::Slice(object) => Change::EndpointSlice(convert::endpoint_slice(object).0),
        ServiceEvent::SliceGone(object) => Change::EndpointSliceGone(name(&object.metadata)),
    }
}
