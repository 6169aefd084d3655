//! Kubernetes' own programs: given by the user, or built once from upstream's Go modules and kept
//! outside the checkout. Must never run them, nor fetch anything but Go modules.

use std::env;
use std::fs;
use std::hash::Hasher as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};

use crate::go;
use crate::turns;

/// The version that `kubernetes/go.mod` pins.
pub const VERSION: &str = "v1.36.3";

/// Environment variables that name directories of ready-made programs; the first one is what
/// controller-runtime's envtest uses.
const GIVEN: [&str; 2] = ["KUBEBUILDER_ASSETS", "NETPOL_KUBERNETES_BIN"];

/// A program: its file name, and the Go package it is built from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Program {
    /// As upstream's releases call it.
    pub name: &'static str,
    /// The directory, beside this one, of the Go module that pins its version.
    module: &'static str,
    package: &'static str,
    is_test: bool,
}

macro_rules! programs {
    ($($(#[$doc:meta])* $constant:ident = $name:literal of $module:literal from $package:literal
        test $is_test:literal;)*) => {
        $($(#[$doc])* pub const $constant: Program = Program {
            name: $name, module: $module, package: $package, is_test: $is_test,
        };)*
    };
}

programs! {
    /// The store.
    ETCD = "etcd" of "kubernetes" from "go.etcd.io/etcd/server/v3" test false;
    /// The API server.
    APISERVER = "kube-apiserver" of "kubernetes" from "k8s.io/kubernetes/cmd/kube-apiserver" test false;
    /// Deployments, Jobs, EndpointSlices, ...
    CONTROLLER_MANAGER = "kube-controller-manager" of "kubernetes" from "k8s.io/kubernetes/cmd/kube-controller-manager" test false;
    /// Gives pods a node.
    SCHEDULER = "kube-scheduler" of "kubernetes" from "k8s.io/kubernetes/cmd/kube-scheduler" test false;
    /// Runs a node's pods.
    KUBELET = "kubelet" of "kubernetes" from "k8s.io/kubernetes/cmd/kubelet" test false;
    /// Services, by iptables or nftables.
    KUBE_PROXY = "kube-proxy" of "kubernetes" from "k8s.io/kubernetes/cmd/kube-proxy" test false;
    /// The command line.
    KUBECTL = "kubectl" of "kubernetes" from "k8s.io/kubernetes/cmd/kubectl" test false;
    /// Servers and clients for upstream's tests; also pauses.
    AGNHOST = "agnhost" of "kubernetes" from "k8s.io/kubernetes/test/images/agnhost" test false;
    /// The cluster's DNS.
    COREDNS = "coredns" of "coredns" from "." test false;
}

/// What a control plane needs.
pub const CONTROL_PLANE: &[Program] = &[ETCD, APISERVER];
/// What a whole cluster needs.
pub const CLUSTER: &[Program] =
    &[ETCD, APISERVER, CONTROLLER_MANAGER, SCHEDULER, KUBELET, KUBE_PROXY, KUBECTL, AGNHOST];

/// Where one wanted program is.
///
/// # Errors
/// The directory that the user gave cannot be read, Go is missing or too old, or a build failed.
pub fn ensure(program: Program) -> Result<PathBuf> {
    if let Some(given) = given(program)? {
        return Ok(given);
    }
    let fingerprint = fingerprint(program.module)?;
    let directory = match program.module {
        "kubernetes" => format!("kubernetes-{VERSION}-{fingerprint:016x}"),
        module => format!("{module}-{fingerprint:016x}"),
    };
    let directory = cache()?.join(directory);
    let path = directory.join(program.name);
    if path.exists() {
        return Ok(path);
    }
    fs::create_dir_all(&directory)
        .with_context(|| format!("create directory {}", directory.display()))?;
    // Builds of several processes take turns, since each of them uses the whole machine.
    let _lock = turns::wait(&directory, "another build of Kubernetes' programs")?;
    if !path.exists() {
        build(program, &path)?;
    }
    Ok(path)
}

fn given(program: Program) -> Result<Option<PathBuf>> {
    for variable in GIVEN {
        let Some(directory) = env::var_os(variable).filter(|value| !value.is_empty()) else {
            continue;
        };
        let directory = PathBuf::from(directory);
        ensure!(
            directory.is_dir(),
            "{variable} is {}, which is no directory: give a directory of Kubernetes' programs, \
             or unset it to have them built",
            directory.display()
        );
        let path = directory.join(program.name);
        if path.exists() {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

/// Where things are kept that outlive the checkout: `NETPOL_CACHE`, or `netpol` in the user's
/// cache directory.
///
/// # Errors
/// Neither `NETPOL_CACHE` nor `XDG_CACHE_HOME` nor `HOME` is set.
pub fn cache() -> Result<PathBuf> {
    let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(directory) = set("NETPOL_CACHE") {
        return Ok(directory);
    }
    let cache = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
    let cache = cache.context("no place to keep built programs: set NETPOL_CACHE or HOME")?;
    Ok(cache.join("netpol"))
}

fn module_directory(module: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(module)
}

/// Changes with the versions that are built, and with what they are built for.
fn fingerprint(module: &str) -> Result<u64> {
    let mut hasher = rustc_hash::FxHasher::default();
    hasher.write(env::consts::ARCH.as_bytes());
    for name in ["go.mod", "go.sum", "main.go"] {
        let path = module_directory(module).join(name);
        // Most programs are upstream's packages as they are.
        if name != "main.go" || path.exists() {
            hasher.write(&fs::read(&path).with_context(|| format!("read {}", path.display()))?);
        }
    }
    Ok(hasher.finish())
}

fn build(program: Program, path: &Path) -> Result<()> {
    let go = go::find()?;
    let started = Instant::now();
    eprintln!("building {} (once; minutes)", program.name);
    let unfinished = path.with_extension("unfinished");
    let version = "k8s.io/component-base/version";
    let numbers: Vec<&str> = VERSION.trim_start_matches('v').split('.').collect();
    let flags = format!(
        "-s -w -X {version}.gitVersion={VERSION} -X {version}.gitMajor={} -X {version}.gitMinor={} \
         -X {version}.gitTreeState=clean",
        numbers[0], numbers[1]
    );
    let verb: &[&str] = if program.is_test { &["test", "-c"] } else { &["build"] };
    let mut command = Command::new(&go);
    command
        .current_dir(module_directory(program.module))
        .args(verb)
        .args(["-mod=readonly", "-trimpath", "-buildvcs=false", "-ldflags", &flags, "-o"])
        .arg(&unfinished)
        .arg(program.package)
        .env("CGO_ENABLED", "0")
        .env("GOTOOLCHAIN", "local")
        .stdin(Stdio::null());
    let output = command.output().with_context(|| format!("start {}", go.display()))?;
    if !output.status.success() {
        bail!(
            "cannot build {} with {}:\n{}",
            program.name,
            go.display(),
            String::from_utf8_lossy(&output.stderr).trim_end()
        );
    }
    fs::rename(&unfinished, path).with_context(|| format!("move to {}", path.display()))?;
    eprintln!("building {}: {:.0} s", program.name, started.elapsed().as_secs_f64());
    Ok(())
}
