//! The local endpoints with what isolates them. Field names are relied on from outside.

use std::net::IpAddr;

use serde::Serialize;

use super::drops::{self, Drops};
use netpol_api::state::{DirectionView, EndpointView, State};
use netpol_datapath::{DatapathError, Maps, observe};
use netpol_model::Direction;

/// An endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Endpoint {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub pod: String,
    /// The pod's uid.
    pub uid: String,
    /// Name of the host-side interface.
    pub interface: String,
    /// Its index in the node's namespace.
    pub ifindex: u32,
    /// The pod's addresses.
    pub ips: Vec<IpAddr>,
    /// Ingress.
    pub ingress: Isolation,
    /// Egress.
    pub egress: Isolation,
    /// Its number in the maps.
    pub id: u16,
    /// Whether the kernel has the endpoint's policies, as far as any isolate it; absent if the
    /// maps cannot be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enforced: Option<bool>,
}

/// One direction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Isolation {
    /// Whether any NetworkPolicy isolates it.
    pub isolated: bool,
    /// Those that do.
    pub policies: Vec<String>,
    /// The ClusterNetworkPolicies that are asked, in their order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cluster_policies: Vec<String>,
    /// Packets dropped by reason; absent if the maps cannot be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drops: Option<Drops>,
}

/// All of them, with counters if there are maps.
pub fn list(state: &State, maps: Option<&Maps>) -> Result<Vec<Endpoint>, DatapathError> {
    let entries = maps.map(observe::endpoints);
    state
        .endpoints
        .iter()
        .map(|view| {
            let enforced = entries.as_ref().map(|entries| {
                entries.iter().any(|entry| {
                    (entry.id, entry.ifindex) == (view.id, view.ifindex)
                        && (entry.ingress != 0) == view.ingress.is_judged()
                        && (entry.egress != 0) == view.egress.is_judged()
                }) || !(view.ingress.is_judged() || view.egress.is_judged())
            });
            endpoint(view, maps, enforced)
        })
        .collect()
}

fn endpoint(
    view: &EndpointView,
    maps: Option<&Maps>,
    enforced: Option<bool>,
) -> Result<Endpoint, DatapathError> {
    let isolation = |side: &DirectionView, direction| -> Result<_, DatapathError> {
        Ok(Isolation {
            isolated: side.isolated,
            policies: side.policies().to_vec(),
            cluster_policies: side.cluster_policies().map(|rule| rule.policy.clone()).collect(),
            drops: maps.map(|maps| drops::of_endpoint(maps, view.id, direction)).transpose()?,
        })
    };
    Ok(Endpoint {
        namespace: view.namespace.clone(),
        pod: view.pod.clone(),
        uid: view.uid.clone(),
        interface: view.interface.clone(),
        ifindex: view.ifindex,
        ips: view.ips.clone(),
        ingress: isolation(&view.ingress, Direction::Ingress)?,
        egress: isolation(&view.egress, Direction::Egress)?,
        id: view.id,
        enforced,
    })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use netpol_api::testing;

    #[test]
    fn the_fields_others_rely_on() {
        let state = testing::state(vec![testing::endpoint("shop", "web", 1, "10.0.0.1")]);
        let json = serde_json::to_value(list(&state, None).unwrap()).unwrap();
        assert_eq!(
            json,
            serde_json::json!([{
                "namespace": "shop", "pod": "web", "uid": "uid-1",
                "interface": "veth1", "ifindex": 11, "ips": ["10.0.0.1"],
                "ingress": {"isolated": true, "policies": ["shop/deny"]},
                "egress": {"isolated": false, "policies": []},
                "id": 1,
            }])
        );
    }
}
