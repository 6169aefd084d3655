//! The cluster's DNS: CoreDNS, built from its Go module, in pods behind the Service that kubelets
//! tell their pods to ask.

use std::path::PathBuf;

use anyhow::Result;
use netpol_image::{Entry, Image};

use crate::addresses::DNS_SERVICE;
use crate::binaries;
use crate::cluster::Cluster;

const IMAGE: &str = "localhost/coredns:1";

/// Puts CoreDNS into a cluster, and waits until it is ready.
///
/// # Errors
/// It cannot be built, or does not become ready.
pub fn install(cluster: &Cluster) -> Result<()> {
    cluster.load_image(&image(cluster)?)?;
    cluster.apply(&manifests())?;
    let status = ["rollout", "status", "deploy/coredns", "-n", "kube-system", "--timeout=300s"];
    cluster.kubectl(&status).map(drop)
}

fn image(cluster: &Cluster) -> Result<PathBuf> {
    let path = cluster.directory().join("images/coredns.tar");
    if !path.exists() {
        let mut image = Image::of_program(IMAGE, "coredns", binaries::find(binaries::COREDNS)?);
        image.entries.push(Entry::directory("/tmp", 0o1777));
        image.write(&path)?;
    }
    Ok(path)
}

fn manifests() -> String {
    include_str!("dns.yaml").replace("DNS_SERVICE", DNS_SERVICE).replace("IMAGE", IMAGE)
}
