//! From the model to the contents of the BPF maps. Pure and incremental: no tokio, kube or aya,
//! no IO, no clock.

pub mod plan;

pub use plan::{ClassId, EndpointId, EndpointSets, Plan, PortSet, Row, SetId, Step, Tables};
