//! What the reference evaluator says about a connection. Must never look at the compiler.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Pod;

use super::plan::{Host, Place};
use super::pods::Port;
use netpol_model::{Direction, ObjectName};
use netpol_reference::Reference;
use netpol_source::parse::{Contents, Key, Object};

/// The expectations for one state of the manifests.
#[derive(Debug)]
pub(crate) enum Expectations {
    /// No agents, no enforcement: everything passes.
    Everything,
    /// What the policies say.
    Policies(Box<Policies>),
}

/// The evaluator and the pods to ask it about.
#[derive(Debug)]
pub struct Policies {
    reference: Reference,
    pods: BTreeMap<ObjectName, Pod>,
}

impl Expectations {
    /// From the manifests that the agents read.
    pub fn new(contents: &Contents) -> Self {
        let (mut namespaces, mut policies) = (Vec::new(), Vec::new());
        let (mut cluster_policies, mut nodes) = (Vec::new(), Vec::new());
        let mut pods = BTreeMap::new();
        for entry in &contents.entries {
            match (&entry.object, &entry.key) {
                (Some(Object::Namespace(Some(raw), _)), _) => namespaces.push((**raw).clone()),
                (Some(Object::Policy(Some(raw), _)), _) => policies.push((**raw).clone()),
                (Some(Object::ClusterPolicy(Some(raw), _)), _) => {
                    let raw = serde_json::to_value(raw);
                    cluster_policies.push(raw.expect("invariant: it was read from such a value"));
                }
                (Some(Object::Node(Some(raw), _)), _) => nodes.push((**raw).clone()),
                (Some(Object::Pod(Some(raw), ..)), Some(Key::Pod(id))) => {
                    pods.insert(id.clone(), (**raw).clone());
                }
                _ => {}
            }
        }
        let reference = Reference::new(namespaces, pods.values().cloned().collect(), policies)
            .with_cluster_policies(cluster_policies, nodes);
        Self::Policies(Box::new(Policies { reference, pods }))
    }

    /// Whether this connection is allowed: by the client's egress policies if it is a pod, and by
    /// the server's ingress policies if it is one.
    pub fn allows(
        &self,
        from: &Host,
        source: IpAddr,
        to: &Host,
        destination: IpAddr,
        port: &Port,
    ) -> Result<bool> {
        let Self::Policies(policies) = self else { return Ok(true) };
        let (protocol, number) = (port.protocol.number(), port.number);
        let judge = |direction, host: &Host, remote| {
            let pod = policies.pods.get(&host.id);
            let pod = pod.with_context(|| format!("{host} is not among the manifests"))?;
            Ok::<bool, anyhow::Error>(
                policies.reference.allows(direction, pod, remote, protocol, number),
            )
        };
        let egress = match from.place {
            Place::Pod(_) => judge(Direction::Egress, from, destination)?,
            Place::HostNetwork(_) | Place::Outside => true,
        };
        let ingress = match (to.place, from.place) {
            // A node always reaches its own pods.
            (Place::Pod(node), Place::HostNetwork(own)) if node == own => true,
            // What a pod sends to itself does not leave it.
            (Place::Pod(_), Place::Pod(_)) if to.id == from.id => true,
            (Place::Pod(_), _) => judge(Direction::Ingress, to, source)?,
            (Place::HostNetwork(_) | Place::Outside, _) => true,
        };
        Ok(egress && ingress)
    }
}
