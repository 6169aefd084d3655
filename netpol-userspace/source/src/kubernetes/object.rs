//! An object as a watch delivers it, whatever its kind: who it is, which version, and what it
//! means. Pure; must never keep the object itself.

use kube::api::ObjectMeta;

use crate::cluster_policy;
use crate::convert::{self, Problem};
use crate::slim::{
    GuardedClusterPolicy, GuardedPolicy, Read, SlimEndpointSlice, SlimNamespace, SlimNode, SlimPod,
    SlimService,
};
use netpol_model::{Change, ObjectName, Str, Uid};

/// The kinds that are watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Namespaces.
    Namespace = 0,
    /// Pods.
    Pod = 1,
    /// NetworkPolicies.
    Policy = 2,
    /// Services.
    Service = 3,
    /// EndpointSlices.
    EndpointSlice = 4,
    /// Nodes.
    Node = 5,
    /// ClusterNetworkPolicies, which not every cluster has.
    ClusterPolicy = 6,
}

/// How many kinds there are.
pub(crate) const N_KINDS: usize = Kind::ALL.len();

impl Kind {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 7] = [
        Self::Namespace,
        Self::Pod,
        Self::Policy,
        Self::Service,
        Self::EndpointSlice,
        Self::Node,
        Self::ClusterPolicy,
    ];

    /// The name of the resource in URLs and roles.
    pub fn resource(self) -> &'static str {
        match self {
            Self::Namespace => "namespaces",
            Self::Pod => "pods",
            Self::Policy => "networkpolicies",
            Self::Service => "services",
            Self::EndpointSlice => "endpointslices",
            Self::Node => "nodes",
            Self::ClusterPolicy => cluster_policy::PLURAL,
        }
    }

    /// The API group of the resource, as roles name it.
    pub fn group(self) -> &'static str {
        match self {
            Self::Namespace | Self::Pod | Self::Service | Self::Node => "",
            Self::Policy => "networking.k8s.io",
            Self::EndpointSlice => "discovery.k8s.io",
            Self::ClusterPolicy => cluster_policy::GROUP,
        }
    }

    /// Of a kind that policies can be enforced without: what happens then.
    pub fn without(self) -> Option<&'static str> {
        match self {
            Self::Namespace | Self::Pod | Self::Policy => None,
            Self::Service => Some(
                "packets to Service addresses are judged by these addresses instead of by the \
                 Services' backends",
            ),
            Self::EndpointSlice => Some("Services are taken to have no backends"),
            Self::Node => Some(
                "packets to node ports are judged by the nodes' addresses instead of by the \
                 Services' backends",
            ),
            Self::ClusterPolicy => Some("no ClusterNetworkPolicy is enforced"),
        }
    }

    /// The object `id` of this kind, for people.
    pub fn title(self, id: &ObjectName) -> String {
        match self {
            Self::Namespace => format!("Namespace {}", id.name),
            Self::Pod => format!("Pod {id}"),
            Self::Policy => format!("NetworkPolicy {id}"),
            Self::Service => format!("Service {id}"),
            Self::EndpointSlice => format!("EndpointSlice {id}"),
            Self::Node => format!("Node {}", id.name),
            Self::ClusterPolicy => format!("{} {}", cluster_policy::KIND, id.name),
        }
    }

    /// The change that says the object is gone.
    pub fn gone(self, id: ObjectName, uid: Option<Uid>) -> Change {
        match self {
            Self::Namespace => Change::NamespaceGone(id.name),
            Self::Pod => Change::PodGone(id, uid),
            Self::Policy => Change::PolicyGone(id),
            Self::Service => Change::ServiceGone(id),
            Self::EndpointSlice => Change::EndpointSliceGone(id),
            Self::Node => Change::NodeGone(id.name),
            Self::ClusterPolicy => Change::ClusterPolicyGone(id.name),
        }
    }
}

/// One object in one version.
#[derive(Debug, Clone)]
pub(crate) struct WatchedObject {
    /// Its name (of a namespace or node: in no namespace).
    pub id: ObjectName,
    /// Its uid.
    pub uid: Uid,
    /// Its resourceVersion, 0 if that is no number.
    pub version: u64,
    /// The node it runs on.
    pub node: Option<Str>,
    /// What it means; `None` if it cannot be used at all.
    pub change: Option<Change>,
    /// What is wrong with it.
    pub problems: Vec<Problem>,
}

impl WatchedObject {
    fn new(metadata: &ObjectMeta, change: Option<Change>, problems: Vec<Problem>) -> Self {
        let (id, uid, node) = match &change {
            Some(Change::Namespace(namespace)) => {
                (ObjectName::new("", namespace.name.clone()), None, None)
            }
            Some(Change::Pod(pod)) => (pod.id.clone(), Some(pod.uid.clone()), pod.node.clone()),
            _ => (convert::object_name(metadata), None, None),
        };
        let uid = uid.unwrap_or_else(|| metadata.uid.as_deref().unwrap_or_default().into());
        Self { id, uid, version: version(metadata), node, change, problems }
    }
}

impl WatchedObject {
    fn of_read<T>(metadata: &ObjectMeta, read: Read<T>, change: fn(T) -> Change) -> Self {
        match read {
            Ok((model, problems)) => Self::new(metadata, Some(change(model)), problems),
            Err(error) => Self::new(metadata, None, vec![Problem::new("", error.clone())]),
        }
    }
}

/// The resourceVersion of an object, 0 if it is no number.
pub fn version(metadata: &ObjectMeta) -> u64 {
    parse_version(metadata.resource_version.as_deref())
}

/// A resourceVersion as a number; they are comparable decimal numbers (KEP-5504).
pub(crate) fn parse_version(version: Option<&str>) -> u64 {
    version.and_then(|version| version.parse().ok()).unwrap_or(0)
}

impl From<SlimNamespace> for WatchedObject {
    fn from(object: SlimNamespace) -> Self {
        let (namespace, problems) = object.model();
        Self::new(&object.metadata, Some(Change::Namespace(namespace)), problems)
    }
}

impl From<SlimPod> for WatchedObject {
    fn from(object: SlimPod) -> Self {
        let (pod, problems) = object.model();
        Self::new(&object.metadata, Some(Change::Pod(pod)), problems)
    }
}

impl From<GuardedPolicy> for WatchedObject {
    fn from(object: GuardedPolicy) -> Self {
        let read = match &object.policy {
            Ok(policy) => convert::stored_policy(policy),
            Err(error) => Err(vec![Problem::new("", error.to_string())]),
        };
        let (change, problems) = match read {
            Ok((policy, problems)) => (Some(Change::Policy(policy)), problems),
            Err(problems) => (None, problems),
        };
        Self::new(&object.metadata, change, problems)
    }
}

impl From<GuardedClusterPolicy> for WatchedObject {
    fn from(object: GuardedClusterPolicy) -> Self {
        let read = match &object.policy {
            Ok(policy) => convert::cluster_policy(policy),
            Err(error) => Err(vec![Problem::new("", error.clone())]),
        };
        let (change, problems) = match read {
            Ok((policy, problems)) => (Some(Change::ClusterPolicy(policy)), problems),
            Err(problems) => (None, problems),
        };
        let name = object.metadata.name.as_deref().unwrap_or_default();
        let id = ObjectName::new("", name);
        Self { id, ..Self::new(&object.metadata, change, problems) }
    }
}

impl From<SlimService> for WatchedObject {
    fn from(object: SlimService) -> Self {
        Self::of_read(&object.metadata, object.read, Change::Service)
    }
}

impl From<SlimEndpointSlice> for WatchedObject {
    fn from(object: SlimEndpointSlice) -> Self {
        Self::of_read(&object.metadata, object.read, Change::EndpointSlice)
    }
}

impl From<SlimNode> for WatchedObject {
    fn from(object: SlimNode) -> Self {
        let name = object.metadata.name.as_deref().unwrap_or_default();
        let id = ObjectName::new("", name);
        Self { id, ..Self::of_read(&object.metadata, object.read, Change::Node) }
    }
}
