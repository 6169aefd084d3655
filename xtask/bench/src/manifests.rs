//! A directory of manifests that an agent reads, and the objects in it. Must never show the agent
//! half of a file.

use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::agent::synthetic::LOCAL_NODE;

/// The directory that the agent reads.
pub(crate) struct Manifests(tempfile::TempDir);

impl Manifests {
    /// An empty one.
    pub fn new() -> Result<Self> {
        let this = Self(tempfile::tempdir().context("make a temporary directory")?);
        fs::create_dir(this.directory())?;
        Ok(this)
    }

    /// Where it is.
    pub fn directory(&self) -> PathBuf {
        self.0.path().join("manifests")
    }

    /// Writes an object, or a List of them, in one step. JSON is YAML.
    pub fn write(&self, name: &str, object: &Value) -> Result<()> {
        let draft = self.0.path().join(format!("{name}.new"));
        fs::write(&draft, object.to_string())?;
        let place = self.directory().join(format!("{name}.yaml"));
        fs::rename(draft, &place).with_context(|| format!("write {}", place.display()))
    }
}

/// A running pod of the agent's node.
pub(crate) fn pod(namespace: &str, name: &str, address: Ipv4Addr, labels: &Value) -> Value {
    let uid = format!("uid-{namespace}-{name}");
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "uid": uid, "labels": labels},
        "spec": {"nodeName": LOCAL_NODE, "containers": [{"name": "c"}]},
        "status": {"podIP": address, "podIPs": [{"ip": address}], "phase": "Running"},
    })
}

/// A policy of that specification.
pub(crate) fn policy(namespace: &str, name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    })
}

/// Many objects in one.
pub(crate) fn list(items: Vec<Value>) -> Value {
    json!({"apiVersion": "v1", "kind": "List", "items": items})
}
