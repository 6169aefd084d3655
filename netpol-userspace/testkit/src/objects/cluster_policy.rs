//! A ClusterNetworkPolicy as the compiler hears of it, from JSON that the generators make. Must never
//! be given what an API server refuses: it would panic.

use netpol_model::ClusterPolicy;
use serde_json::Value;

/// What the object says, as the source takes it from an API server.
pub(super) fn convert(object: &Value) -> ClusterPolicy {
    let object = serde_json::from_value(object.clone()).expect("a ClusterNetworkPolicy");
    netpol_source::convert::cluster_policy(&object).expect("a usable one").0
}
