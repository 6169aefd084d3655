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

/// The version that `kubernetes/go.mod` and `e2e/go.mod` pin.
pub const VERSION: &str = "v1.36.3";
/// The version that `e2e-legacy/go.mod` pins: the last one with the older tests.
pub const LEGACY_VERSION: &str = "v1.27.16";

/// Environment variables that name directories of ready-made programs; the first one is what
/// controller-runtime's envtest uses.
const GIVEN: [&str; 2] = ["KUBEBUILDER_ASSETS", "NETPOL_KUBERNETES_BIN"];

/// A Go module of ours that pins versions of upstream's packages. One per set of programs, so that
/// a change of one does not rebuild the programs of another.
#[derive(Debug, PartialEq, Eq)]
struct Module {
    /// Its directory in this crate.
    name: &'static str,
    version: &'static str,
    /// The files that decide what is built.
    sources: &'static [&'static str],
}

static KUBERNETES: Module =
    Module { name: "kubernetes", version: VERSION, sources: &["go.mod", "go.sum"] };
static DNS: Module =
    Module { name: "coredns", version: "v1.15.0", sources: &["go.mod", "go.sum", "main.go"] };
static SUITE: Module =
    Module { name: "e2e", version: VERSION, sources: &["go.mod", "go.sum", "e2e_test.go"] };
static LEGACY_SUITE: Module = Module {
    name: "e2e-legacy",
    version: LEGACY_VERSION,
    sources: &["go.mod", "go.sum", "e2e_test.go"],
};

/// A program: its file name, and the Go package it is built from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Program {
    /// As upstream's releases call it.
    pub name: &'static str,
    package: &'static str,
    module: &'static Module,
    is_test: bool,
}

macro_rules! programs {
    ($($(#[$doc:meta])* $constant:ident = $name:literal from $package:literal;)*) => {
        $($(#[$doc])* pub const $constant: Program = Program {
            name: $name, package: $package, module: &KUBERNETES, is_test: false,
        };)*
    };
}

programs! {
    /// The store.
    ETCD = "etcd" from "go.etcd.io/etcd/server/v3";
    /// The API server.
    APISERVER = "kube-apiserver" from "k8s.io/kubernetes/cmd/kube-apiserver";
    /// Deployments, Jobs, EndpointSlices, ...
    CONTROLLER_MANAGER = "kube-controller-manager" from "k8s.io/kubernetes/cmd/kube-controller-manager";
    /// Gives pods a node.
    SCHEDULER = "kube-scheduler" from "k8s.io/kubernetes/cmd/kube-scheduler";
    /// Runs a node's pods.
    KUBELET = "kubelet" from "k8s.io/kubernetes/cmd/kubelet";
    /// Services, by iptables or nftables.
    KUBE_PROXY = "kube-proxy" from "k8s.io/kubernetes/cmd/kube-proxy";
    /// The command line.
    KUBECTL = "kubectl" from "k8s.io/kubernetes/cmd/kubectl";
    /// Servers and clients for upstream's tests; also pauses.
    AGNHOST = "agnhost" from "k8s.io/kubernetes/test/images/agnhost";
}

/// The cluster's DNS.
pub const COREDNS: Program =
    Program { name: "coredns", package: ".", module: &DNS, is_test: false };

/// Upstream's NetworkPolicy tests.
pub const E2E: Program = Program { name: "e2e.test", package: ".", module: &SUITE, is_test: true };
/// Runs [`E2E`] in several processes.
pub const GINKGO: Program = Program {
    name: "ginkgo",
    package: "github.com/onsi/ginkgo/v2/ginkgo",
    module: &SUITE,
    is_test: false,
};
/// The older NetworkPolicy tests, which upstream removed in 1.28.
pub const E2E_LEGACY: Program =
    Program { name: "e2e-legacy.test", package: ".", module: &LEGACY_SUITE, is_test: true };
/// Runs [`E2E_LEGACY`]; runner and tests have to be of one version.
pub const GINKGO_LEGACY: Program = Program {
    name: "ginkgo-legacy",
    package: "github.com/onsi/ginkgo/v2/ginkgo",
    module: &LEGACY_SUITE,
    is_test: false,
};

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
    let directory = program.module.cache()?;
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

impl Module {
    fn directory(&self) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join(self.name)
    }

    /// Where its programs are kept.
    fn cache(&self) -> Result<PathBuf> {
        let name = format!("{}-{}-{:016x}", self.name, self.version, self.fingerprint()?);
        Ok(cache()?.join(name))
    }

    /// Changes with the versions that are built, and with what they are built for.
    fn fingerprint(&self) -> Result<u64> {
        let mut hasher = rustc_hash::FxHasher::default();
        hasher.write(env::consts::ARCH.as_bytes());
        for name in self.sources {
            let path = self.directory().join(name);
            hasher.write(&fs::read(&path).with_context(|| format!("read {}", path.display()))?);
        }
        Ok(hasher.finish())
    }
}

fn build(program: Program, path: &Path) -> Result<()> {
    let go = go::find()?;
    let started = Instant::now();
    let release = program.module.version;
    eprintln!("building {} {release} (once; minutes)", program.name);
    let unfinished = path.with_extension("unfinished");
    let version = "k8s.io/component-base/version";
    let numbers: Vec<&str> = release.trim_start_matches('v').split('.').collect();
    let flags = format!(
        "-s -w -X {version}.gitVersion={release} -X {version}.gitMajor={} -X {version}.gitMinor={} \
         -X {version}.gitTreeState=clean",
        numbers[0], numbers[1]
    );
    let verb: &[&str] = if program.is_test { &["test", "-c"] } else { &["build"] };
    let mut command = Command::new(&go);
    command
        .current_dir(program.module.directory())
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
