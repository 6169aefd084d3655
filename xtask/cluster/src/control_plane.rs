//! etcd, the API server, the controller manager and the scheduler, on the machine `control`.

use std::net::IpAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::addresses::{API_PORT, API_SERVICE, CONTROL, PODS, SERVICES};
use crate::binaries;
use crate::machine::Machine;
use crate::pki::Authority;
use crate::process::{output, wait_for};

/// The daemons, in the order in which they start.
pub const DAEMONS: [&str; 4] =
    ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"];

/// How many of them the API server needs, itself included.
const NEEDED: usize = 2;

/// Where the API server is, inside the cluster's network.
#[must_use]
pub fn server() -> String {
    format!("https://{}:{API_PORT}", CONTROL.0)
}

/// Starts what of the control plane does not run, and waits until the API server is ready.
pub(crate) fn start(machine: &Machine, pki: &Authority) -> Result<()> {
    make_certificates(pki)?;
    let (needed, others) = DAEMONS.split_at(NEEDED);
    for name in needed {
        start_daemon(machine, pki, name)?;
    }
    wait_until_ready(machine, pki)?;
    // They give up when the API server does not answer for some seconds.
    for name in others {
        start_daemon(machine, pki, name)?;
    }
    Ok(())
}

/// Starts one of [`DAEMONS`] if it does not run.
pub(crate) fn start_daemon(machine: &Machine, pki: &Authority, name: &str) -> Result<()> {
    if machine.daemon(name).is_some() {
        return Ok(());
    }
    let (program, arguments) = match name {
        "etcd" => (binaries::ETCD, etcd(&machine.home().join("var-lib/etcd"))),
        "kube-apiserver" => (binaries::APISERVER, apiserver(pki)),
        "kube-controller-manager" => (binaries::CONTROLLER_MANAGER, controller_manager(pki)),
        "kube-scheduler" => (binaries::SCHEDULER, component(pki, "kube-scheduler")),
        other => bail!("{other} is no part of the control plane, which is {}", DAEMONS.join(", ")),
    };
    machine.start_daemon(name, &binaries::find(program)?, &arguments)
}

/// Waits until the API server says that it is ready.
pub(crate) fn wait_until_ready(machine: &Machine, pki: &Authority) -> Result<()> {
    let kubectl = binaries::find(binaries::KUBECTL)?;
    wait_for("the API server to be ready", Duration::from_secs(180), || {
        for name in &DAEMONS[..NEEDED] {
            if machine.daemon(name).is_none() {
                bail!("{name} has ended; its log is {}", machine.log(name).display());
            }
        }
        let mut command = machine.command(&kubectl);
        kubectl_options(&mut command, pki);
        command.args(["get", "--raw", "/readyz", "--request-timeout", "30s"]);
        Ok(output(&mut command)?.status.success())
    })
}

/// The options by which kubectl inside the control plane's machine is the administrator.
pub(crate) fn kubectl_options(command: &mut Command, pki: &Authority) {
    command.arg("--kubeconfig").arg(pki.file("admin.kubeconfig"));
}

fn make_certificates(pki: &Authority) -> Result<()> {
    let (ipv4, ipv6) = CONTROL;
    let (service4, service6) = API_SERVICE;
    let addresses: Vec<IpAddr> =
        vec![[127, 0, 0, 1].into(), ipv4.into(), ipv6.into(), service4.into(), service6.into()];
    let service = "kubernetes.default.svc.cluster.local";
    let names =
        ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", service];
    pki.server("apiserver", &names, &addresses)?;
    pki.client("apiserver-kubelet", "kube-apiserver-kubelet-client", Some("system:masters"))?;
    pki.key_pair("service-accounts")?;
    let server = server();
    pki.kubeconfig("admin", "admin", Some("system:masters"), &server)?;
    for name in ["kube-controller-manager", "kube-scheduler", "kube-proxy"] {
        pki.kubeconfig(name, &format!("system:{name}"), None, &server)?;
    }
    Ok(())
}

fn etcd(data: &Path) -> Vec<String> {
    words(&[
        ("data-dir", &data.to_string_lossy()),
        // A test cluster's data need not survive the machine, and the disk is shared by many.
        ("unsafe-no-fsync", "true"),
        ("log-level", "warn"),
    ])
}

fn apiserver(pki: &Authority) -> Vec<String> {
    let file = |name: &str| pki.file(name).to_string_lossy().into_owned();
    words(&[
        ("etcd-servers", "http://127.0.0.1:2379"),
        ("bind-address", "::"),
        ("secure-port", &API_PORT.to_string()),
        ("advertise-address", &CONTROL.0.to_string()),
        ("service-cluster-ip-range", &format!("{},{}", SERVICES.0, SERVICES.1)),
        ("authorization-mode", "Node,RBAC"),
        ("enable-admission-plugins", "NodeRestriction"),
        ("allow-privileged", "true"),
        ("client-ca-file", &file("ca.crt")),
        ("tls-cert-file", &file("apiserver.crt")),
        ("tls-private-key-file", &file("apiserver.key")),
        ("service-account-issuer", "https://kubernetes.default.svc.cluster.local"),
        ("service-account-key-file", &file("service-accounts.pub")),
        ("service-account-signing-key-file", &file("service-accounts.key")),
        ("kubelet-certificate-authority", &file("ca.crt")),
        ("kubelet-client-certificate", &file("apiserver-kubelet.crt")),
        ("kubelet-client-key", &file("apiserver-kubelet.key")),
        ("kubelet-preferred-address-types", "InternalIP"),
    ])
}

fn controller_manager(pki: &Authority) -> Vec<String> {
    let file = |name: &str| pki.file(name).to_string_lossy().into_owned();
    let mut arguments = component(pki, "kube-controller-manager");
    arguments.extend(words(&[
        ("cluster-cidr", &format!("{},{}", PODS.0, PODS.1)),
        // Which node has which pod addresses is fixed, and written by `Cluster`.
        ("allocate-node-cidrs", "false"),
        ("root-ca-file", &file("ca.crt")),
        ("service-account-private-key-file", &file("service-accounts.key")),
        ("cluster-signing-cert-file", &file("ca.crt")),
        ("cluster-signing-key-file", &file("ca.key")),
        ("use-service-account-credentials", "true"),
    ]));
    arguments
}

/// What the programs beside the API server have in common; it is all that the scheduler needs.
fn component(pki: &Authority, name: &str) -> Vec<String> {
    let kubeconfig = pki.file(&format!("{name}.kubeconfig")).to_string_lossy().into_owned();
    words(&[
        ("kubeconfig", &kubeconfig),
        ("authentication-kubeconfig", &kubeconfig),
        ("authorization-kubeconfig", &kubeconfig),
        ("authentication-skip-lookup", "true"),
        ("bind-address", "127.0.0.1"),
        ("leader-elect", "false"),
    ])
}

/// `--name=value` for each.
pub(crate) fn words(options: &[(&str, &str)]) -> Vec<String> {
    options.iter().map(|(name, value)| format!("--{name}={value}")).collect()
}
