//! The Kubernetes source on a real API server: what it asks for, what it survives, and what it
//! says. Needs root (network namespaces), and Kubernetes' programs, which are built if need be.
#![expect(clippy::unwrap_used, reason = "tests")]

mod source_world;

use std::time::Instant;

use k8s_openapi::api::core::v1::Pod;
use netpol_cluster::envtest::{ADDRESS, ADMIN, ApiServer};
use netpol_userspace::source::Event;
use serde_json::{Value, json};
use source_world::gate::{Gate, Mode};
use source_world::{AGENT, Source, beside, client, create_all, deployed, requests};

const POLICY: &str = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
                      metadata: {name: NAME, namespace: default}\nspec: {podSelector: {}}\n";

fn policy(server: &ApiServer, name: &str) {
    server.apply(&POLICY.replace("NAME", name)).unwrap();
}

fn pod(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"nodeName": "n1", "automountServiceAccountToken": false,
            "containers": [{"name": "c", "image": "none"}]}})
}

/// A backup of etcd brought back, which resource versions go back with: a watch from where the
/// agent was would stay silent until they have caught up.
#[test]
fn a_restored_backup_is_read_anew() {
    beside(async |mut server| {
        server.apply(&deployed()).unwrap();
        policy(&server, "old");
        server.back_up("backup").unwrap();
        for number in 0..50 {
            policy(&server, &format!("lost-{number}"));
        }
        let mut source = Source::synced(&server).await;
        assert!(source.has_policy("default", "lost-49"));
        server.restore("backup").unwrap();
        policy(&server, "new");
        source.until(|_, cluster| {
            let names: Vec<&str> = cluster.all_policies().map(|policy| &*policy.id.name).collect();
            names == ["new", "old"]
        })
        .await;
    });
}
