//! What runs on a node: containerd, the kubelet and kube-proxy, and how they are configured.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::addresses::{DNS_SERVICE, NodeAddresses, PODS};
use crate::binaries;
use crate::control_plane::{server, words};
use crate::images;
use crate::machine::Machine;
use crate::pki::Authority;
use crate::process::{output, wait_for};

/// The daemons, in the order in which they start.
pub const DAEMONS: [&str; 3] = ["containerd", "kubelet", "kube-proxy"];

/// How kube-proxy translates Services' addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProxyMode {
    /// By iptables rules.
    #[default]
    Iptables,
    /// By nftables rules.
    Nftables,
}

impl ProxyMode {
    /// As kube-proxy's configuration calls it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Iptables => "iptables",
            Self::Nftables => "nftables",
        }
    }
}

/// What a node's configuration depends on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings<'a> {
    pub(crate) addresses: NodeAddresses,
    pub(crate) proxy_mode: ProxyMode,
    pub(crate) cgroup: &'a str,
}

/// Writes a node's certificates and configuration.
pub(crate) fn configure(machine: &Machine, pki: &Authority, settings: Settings<'_>) -> Result<()> {
    let name = machine.name();
    let (ipv4, ipv6) = settings.addresses.node();
    let addresses: [IpAddr; 2] = [ipv4.into(), ipv6.into()];
    pki.server(&format!("{name}-server"), &[name], &addresses)?;
    let user = format!("system:node:{name}");
    pki.kubeconfig(name, &user, Some("system:nodes"), &server())?;
    let directory = configuration(machine);
    fs::create_dir_all(&directory).with_context(|| format!("create {}", directory.display()))?;
    let write = |file: &str, text: String| {
        let path = directory.join(file);
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))
    };
    write("containerd.toml", containerd())?;
    write("kubelet.json", serde_json::to_string_pretty(&kubelet(machine, pki, settings))?)?;
    write("kube-proxy.json", serde_json::to_string_pretty(&kube_proxy(machine, pki, settings))?)?;
    // Pods that ask for the node's resolver get none: there is nothing outside.
    fs::write(machine.home().join("etc/resolv.conf"), "options attempts:1\n")?;
    Ok(())
}

/// Starts one of [`DAEMONS`] if it does not run; containerd then answers when this returns.
pub(crate) fn start_daemon(machine: &Machine, name: &str, addresses: NodeAddresses) -> Result<()> {
    if machine.daemon(name).is_some() {
        return Ok(());
    }
    let directory = configuration(machine);
    let file = |name: &str| directory.join(name).to_string_lossy().into_owned();
    match name {
        "containerd" => {
            let program = Path::new("containerd");
            let arguments = ["--config".to_owned(), file("containerd.toml")];
            machine.start_daemon(name, program, &arguments)?;
            wait_for_containerd(machine)
        }
        "kubelet" => {
            let (ipv4, ipv6) = addresses.node();
            let arguments = words(&[
                ("config", &file("kubelet.json")),
                ("kubeconfig", &kubeconfig(machine)),
                ("hostname-override", machine.name()),
                ("node-ip", &format!("{ipv4},{ipv6}")),
            ]);
            machine.start_daemon(name, &binaries::find(binaries::KUBELET)?, &arguments)
        }
        "kube-proxy" => {
            let arguments = words(&[("config", &file("kube-proxy.json"))]);
            machine.start_daemon(name, &binaries::find(binaries::KUBE_PROXY)?, &arguments)
        }
        other => bail!("{other} is no part of a node, which is {}", DAEMONS.join(", ")),
    }
}

fn wait_for_containerd(machine: &Machine) -> Result<()> {
    wait_for("containerd to answer", Duration::from_secs(120), || {
        if machine.daemon("containerd").is_none() {
            bail!("containerd has ended; its log is {}", machine.log("containerd").display());
        }
        Ok(output(machine.command("ctr").arg("version"))?.status.success())
    })
}

fn configuration(machine: &Machine) -> PathBuf {
    machine.home().join("configuration")
}

/// Next to the authority; the same directory for every machine.
fn kubeconfig(machine: &Machine) -> String {
    let directory = machine.home().parent().and_then(Path::parent).unwrap_or(machine.home());
    directory
        .join("pki")
        .join(format!("{}.kubeconfig", machine.name()))
        .to_string_lossy()
        .into_owned()
}

fn containerd() -> String {
    let pause = images::PAUSE;
    format!(
        r#"version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.internal.v1.opt", "io.containerd.tracing.processor.v1.otlp",
]

[debug]
  level = "warn"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  # Without the capability to raise scores, containers could not start.
  restrict_oom_score_adj = true
  # Debian's runc is older than some kernels' own idea of it.
  disable_hugetlb_controller = true
  tolerate_missing_hugetlb_controller = true

[plugins."io.containerd.grpc.v1.cri".containerd]
  snapshotter = "overlayfs"
  default_runtime_name = "runc"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
  SystemdCgroup = false

[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "/opt/cni/bin"
  conf_dir = "/etc/cni/net.d"
"#
    )
}

fn kubelet(machine: &Machine, pki: &Authority, settings: Settings<'_>) -> serde_json::Value {
    let name = machine.name();
    let file = |file: String| pki.file(&file).to_string_lossy().into_owned();
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": { "enabled": false },
            "webhook": { "enabled": true },
            "x509": { "clientCAFile": pki.certificate() },
        },
        "authorization": { "mode": "Webhook" },
        "tlsCertFile": file(format!("{name}-server.crt")),
        "tlsPrivateKeyFile": file(format!("{name}-server.key")),
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": settings.cgroup,
        "failCgroupV1": false,
        "failSwapOn": false,
        "localStorageCapacityIsolation": false,
        "enforceNodeAllocatable": [],
        "oomScoreAdj": 0,
        "maxPods": 110,
        "resolvConf": "/etc/resolv.conf",
        "clusterDNS": [DNS_SERVICE],
        "clusterDomain": "cluster.local",
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        // The host's disk and memory are not the cluster's to judge.
        "evictionHard": {
            "imagefs.available": "0%",
            "memory.available": "1Ki",
            "nodefs.available": "0%",
            "nodefs.inodesFree": "0%",
        },
        "protectKernelDefaults": false,
        "makeIPTablesUtilChains": false,
        "serializeImagePulls": true,
        // Who waits for a node to be ready again looks for a report that is new.
        "nodeStatusUpdateFrequency": "5s",
        "nodeStatusReportFrequency": "5s",
        "syncFrequency": "30s",
        "logging": { "verbosity": 1 },
    })
}

fn kube_proxy(machine: &Machine, pki: &Authority, settings: Settings<'_>) -> serde_json::Value {
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": { "kubeconfig": pki.file("kube-proxy.kubeconfig") },
        "hostnameOverride": machine.name(),
        "mode": settings.proxy_mode.name(),
        "clusterCIDR": format!("{},{}", PODS.0, PODS.1),
        "oomScoreAdj": 0,
        // Zero leaves the host's connection tracking table as it is.
        "conntrack": {
            "maxPerCore": 0,
            "min": 0,
            "tcpEstablishedTimeout": "0s",
            "tcpCloseWaitTimeout": "0s",
            "udpTimeout": "0s",
            "udpStreamTimeout": "0s",
        },
    })
}
