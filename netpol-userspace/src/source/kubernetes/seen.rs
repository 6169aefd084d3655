//! An object as a watch delivers it, whatever its kind: who it is, which version, and what it
//! means. Pure; must never keep the object itself.

use kube::api::ObjectMeta;

use crate::model::{Change, ObjectName, Str};
use crate::source::convert::{self, Problem};
use crate::source::slim::{GuardedPolicy, SlimNamespace, SlimPod};

/// The kinds that are watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Namespaces.
    Namespace = 0,
    /// Pods.
    Pod = 1,
    /// NetworkPolicies.
    Policy = 2,
}

impl Kind {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 3] = [Self::Namespace, Self::Pod, Self::Policy];

    /// The name of the resource in URLs and roles.
    pub fn resource(self) -> &'static str {
        match self {
            Self::Namespace => "namespaces",
            Self::Pod => "pods",
            Self::Policy => "networkpolicies",
        }
    }

    /// The object `id` of this kind, for people.
    pub fn title(self, id: &ObjectName) -> String {
        match self {
            Self::Namespace => format!("Namespace {}", id.name),
            Self::Pod => format!("Pod {id}"),
            Self::Policy => format!("NetworkPolicy {id}"),
        }
    }

    /// The change that says the object is gone.
    pub fn gone(self, id: ObjectName, uid: Option<Str>) -> Change {
        match self {
            Self::Namespace => Change::NamespaceGone(id.name),
            Self::Pod => Change::PodGone(id, uid),
            Self::Policy => Change::PolicyGone(id),
        }
    }
}

/// One object in one version.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Its name (of a namespace: in no namespace).
    pub id: ObjectName,
    /// Its uid.
    pub uid: Str,
    /// Its resourceVersion, 0 if that is no number.
    pub version: u64,
    /// The node it runs on.
    pub node: Option<Str>,
    /// What it means; `None` if it cannot be used at all.
    pub change: Option<Change>,
    /// What is wrong with it.
    pub problems: Vec<Problem>,
}

impl Seen {
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

/// The resourceVersion of an object, 0 if it is no number.
pub fn version(metadata: &ObjectMeta) -> u64 {
    parse_version(metadata.resource_version.as_deref())
}

/// A resourceVersion as a number; they are comparable decimal numbers (KEP-5504).
pub fn parse_version(version: Option<&str>) -> u64 {
    version.and_then(|version| version.parse().ok()).unwrap_or(0)
}

impl From<SlimNamespace> for Seen {
    fn from(object: SlimNamespace) -> Self {
        let (namespace, problems) = object.model();
        Self::new(&object.metadata, Some(Change::Namespace(namespace)), problems)
    }
}

impl From<SlimPod> for Seen {
    fn from(object: SlimPod) -> Self {
        let (pod, problems) = object.model();
        Self::new(&object.metadata, Some(Change::Pod(pod)), problems)
    }
}

impl From<GuardedPolicy> for Seen {
    fn from(object: GuardedPolicy) -> Self {
        let read = match &object.policy {
            Ok(policy) => convert::stored_policy(policy),
            Err(error) => Err(vec![Problem::new("", error)]),
        };
        let (change, problems) = match read {
            Ok((policy, problems)) => (Some(Change::Policy(policy)), problems),
            Err(problems) => (None, problems),
        };
        Self::new(&object.metadata, change, problems)
    }
}
