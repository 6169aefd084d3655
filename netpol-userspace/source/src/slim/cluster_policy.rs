//! ClusterNetworkPolicies as an API server sends them, in whichever version it serves. Must never let
//! one odd object stop a watch.

use std::borrow::Cow;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use kube::core::ApiResource;
use serde::de::{Deserialize, Deserializer};

use super::{Loose, OnlyMetadata};
use crate::cluster_policy::ClusterNetworkPolicy;

/// A ClusterNetworkPolicy, or why it is none.
#[derive(Debug, Clone)]
pub struct GuardedClusterPolicy {
    /// Name, uid, resourceVersion and nothing else.
    pub metadata: ObjectMeta,
    /// The policy, or the error of reading it.
    pub policy: Result<Box<ClusterNetworkPolicy>, String>,
}

impl<'de> Deserialize<'de> for GuardedClusterPolicy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = serde_json::Value::deserialize(deserializer)?;
        let policy = ClusterNetworkPolicy::deserialize(&value).map(Box::new);
        let metadata = match Loose::<OnlyMetadata>::deserialize(value) {
            Ok(Loose::Good(OnlyMetadata { metadata: Loose::Good(found) })) => found.slim(),
            _ => ObjectMeta::default(),
        };
        Ok(Self { metadata, policy: policy.map_err(|error| error.to_string()) })
    }
}

impl Resource for GuardedClusterPolicy {
    type DynamicType = ApiResource;
    type Scope = kube::core::ClusterResourceScope;

    fn kind(served: &ApiResource) -> Cow<'_, str> {
        served.kind.as_str().into()
    }

    fn group(served: &ApiResource) -> Cow<'_, str> {
        served.group.as_str().into()
    }

    fn version(served: &ApiResource) -> Cow<'_, str> {
        served.version.as_str().into()
    }

    fn plural(served: &ApiResource) -> Cow<'_, str> {
        served.plural.as_str().into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}
