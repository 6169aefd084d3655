//! Services, EndpointSlices and Nodes as an API server sends them: reduced to their model while
//! they are parsed, or to the reason why that failed, so that one odd object cannot stop a watch.
//! Must never keep the object itself.

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use serde::de::{Deserialize, DeserializeOwned, Deserializer};

use super::{Loose, OnlyMetadata};
use crate::convert::{self, Problem};
use netpol_model as model;

/// What was read, with what of it could not be used; or why it could not be read.
pub type Read<T> = Result<(T, Vec<Problem>), String>;

macro_rules! reduced {
    ($(#[$doc:meta])* $name:ident, $object:ty, $model:ty, $convert:path) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Resource)]
        #[resource(inherit = $object)]
        pub struct $name {
            /// Name, namespace, uid, resourceVersion and nothing else.
            pub metadata: ObjectMeta,
            /// What it means.
            pub read: Read<$model>,
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let (metadata, read) = reduce::<D, $object, _>(deserializer, $convert)?;
                Ok(Self { metadata, read })
            }
        }
    };
}

reduced! {
    /// A Service.
    SlimService, core::Service, model::Service, convert::service
}
reduced! {
    /// An EndpointSlice.
    SlimEndpointSlice, discovery::EndpointSlice, model::EndpointSlice, convert::endpoint_slice
}
reduced! {
    /// A node.
    SlimNode, core::Node, model::Node, convert::node
}

fn reduce<'de, D, K, T>(
    deserializer: D,
    convert: fn(&K) -> (T, Vec<Problem>),
) -> Result<(ObjectMeta, Read<T>), D::Error>
where
    D: Deserializer<'de>,
    K: Resource<DynamicType = ()> + DeserializeOwned,
{
    let value = serde_json::Value::deserialize(deserializer)?;
    let read = K::deserialize(&value).map(|object| convert(&object));
    let metadata = match Loose::<OnlyMetadata>::deserialize(value) {
        Ok(Loose::Good(OnlyMetadata { metadata: Loose::Good(found) })) => found.slim(),
        _ => ObjectMeta::default(),
    };
    Ok((metadata, read.map_err(|error| error.to_string())))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn objects_are_reduced_while_they_are_parsed() {
        let text = r#"{"metadata": {"name": "web", "namespace": "shop", "resourceVersion": "7",
            "managedFields": [{"manager": "x"}]},
            "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 80}, {"port": 0}]}}"#;
        let slim: SlimService = serde_json::from_str(text).unwrap();
        assert_eq!(slim.metadata.resource_version.as_deref(), Some("7"));
        assert_eq!(slim.metadata.managed_fields, None);
        let (service, problems) = slim.read.unwrap();
        assert_eq!(service.cluster_ips.len(), 1);
        assert_eq!(problems[0].field, "spec.ports[1].port");
    }

    #[test]
    fn an_object_that_is_none_keeps_its_name() {
        let text = r#"{"metadata": {"name": "web-1", "namespace": "shop", "resourceVersion": "7"},
            "addressType": "IPv4", "endpoints": "?"}"#;
        let slim: SlimEndpointSlice = serde_json::from_str(text).unwrap();
        assert!(slim.read.is_err());
        assert_eq!(slim.metadata.name.as_deref(), Some("web-1"));
        assert!(serde_json::from_str::<SlimNode>("{\"metadata\": ").is_err());
    }
}
