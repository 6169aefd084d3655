//! Kubernetes' own programs: which there are, and where they are: given by the user, or built once
//! and kept outside the checkout. Must never build, fetch or run one: `prepare` makes them ready
//! before anything waits for them.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::hash::Hasher as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
pub use netpol_debian::cache;
use netpol_needs::Need;

/// The version that `kubernetes/go.mod` and `e2e/go.mod` pin.
pub const VERSION: &str = "v1.36.3";
/// The version that `e2e-legacy/go.mod` pins: the last one with the older tests.
pub const LEGACY_VERSION: &str = "v1.27.16";
/// The version of network-policy-api that `cluster-network-policy/go.mod` pins.
pub const TIERS_VERSION: &str = "v0.3.0";

/// Environment variables that name directories of ready-made programs; the first one is what
/// controller-runtime's envtest uses.
const GIVEN: [&str; 2] = ["KUBEBUILDER_ASSETS", "NETPOL_KUBERNETES_BIN"];

/// A Go module of ours that pins versions of upstream's packages. One per set of programs, so that
/// a change of one does not rebuild the programs of another.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Module {
    /// Its directory in this crate.
    name: &'static str,
    pub(crate) version: &'static str,
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
static TIER_SUITE: Module = Module {
    name: "cluster-network-policy",
    version: TIERS_VERSION,
    sources: &["go.mod", "go.sum", "patient_test.go"],
};

static TIER_AGNHOST_MODULE: Module =
    Module { name: "agnhost", version: "v1.28.15", sources: &["go.mod", "go.sum"] };

/// A program, or a file beside one: its file name, and what it is made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Program {
    /// As upstream's releases call it.
    pub name: &'static str,
    /// The Go package; for a file, its path in the upstream module.
    pub(crate) package: &'static str,
    pub(crate) module: &'static Module,
    pub(crate) made: Made,
}

/// How it is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Made {
    /// Built from a package.
    Program,
    /// Built from a package's tests.
    Tests,
    /// A copy of a file of this upstream module.
    Copy(&'static str),
}

macro_rules! programs {
    ($($(#[$doc:meta])* $constant:ident = $name:literal from $package:literal;)*) => {
        $($(#[$doc])* pub const $constant: Program = Program {
            name: $name, package: $package, module: &KUBERNETES, made: Made::Program,
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
    Program { name: "coredns", package: ".", module: &DNS, made: Made::Program };

/// Upstream's NetworkPolicy tests.
pub const E2E: Program =
    Program { name: "e2e.test", package: ".", module: &SUITE, made: Made::Tests };
/// Runs [`E2E`] in several processes.
pub const GINKGO: Program = Program {
    name: "ginkgo",
    package: "github.com/onsi/ginkgo/v2/ginkgo",
    module: &SUITE,
    made: Made::Program,
};
/// The older NetworkPolicy tests, which upstream removed in 1.28.
pub const E2E_LEGACY: Program =
    Program { name: "e2e-legacy.test", package: ".", module: &LEGACY_SUITE, made: Made::Tests };
/// Runs [`E2E_LEGACY`]; runner and tests have to be of one version.
pub const GINKGO_LEGACY: Program = Program {
    name: "ginkgo-legacy",
    package: "github.com/onsi/ginkgo/v2/ginkgo",
    module: &LEGACY_SUITE,
    made: Made::Program,
};

/// Upstream's ClusterNetworkPolicy tests, as upstream builds them.
pub const TIERS: Program = Program {
    name: "cluster-network-policy.test",
    package: "sigs.k8s.io/network-policy-api/conformance",
    module: &TIER_SUITE,
    made: Made::Tests,
};
/// The same tests with timeouts that an emulated processor needs.
pub const PATIENT_TIERS: Program = Program {
    name: "cluster-network-policy-patient.test",
    package: ".",
    module: &TIER_SUITE,
    made: Made::Tests,
};
/// [`AGNHOST`] in the version that the ClusterNetworkPolicy tests name, 2.45. Later ones write to an
/// SCTP server that has answered and closed, and fail by chance.
pub const TIER_AGNHOST: Program = Program {
    name: "agnhost-2.45",
    package: "k8s.io/kubernetes/test/images/agnhost",
    module: &TIER_AGNHOST_MODULE,
    made: Made::Program,
};
/// The experimental channel's definition of ClusterNetworkPolicy, of the tests' version.
pub const EXPERIMENTAL_TIERS: Program = Program {
    name: "clusternetworkpolicies-experimental.yaml",
    package: "config/crd/experimental/policy.networking.k8s.io_clusternetworkpolicies.yaml",
    module: &TIER_SUITE,
    made: Made::Copy(TIERS_API),
};
/// The standard channel's.
pub const STANDARD_TIERS: Program = Program {
    name: "clusternetworkpolicies-standard.yaml",
    package: "config/crd/standard/policy.networking.k8s.io_clusternetworkpolicies.yaml",
    module: &TIER_SUITE,
    made: Made::Copy(TIERS_API),
};
const TIERS_API: &str = "sigs.k8s.io/network-policy-api";

const CONTROL_PLANE: &[Program] = &[ETCD, APISERVER, KUBECTL];
const NODES: &[Program] =
    &[ETCD, APISERVER, CONTROLLER_MANAGER, SCHEDULER, KUBELET, KUBE_PROXY, KUBECTL, AGNHOST];

/// The programs that make up a need; none if it is no need of Kubernetes' programs.
#[must_use]
pub fn of(need: Need) -> &'static [Program] {
    match need {
        Need::Kubectl => &[KUBECTL],
        Need::ControlPlane => CONTROL_PLANE,
        Need::Nodes => NODES,
        Need::Dns => &[COREDNS],
        Need::Suite => &[E2E, GINKGO],
        Need::LegacySuite => &[E2E_LEGACY, GINKGO_LEGACY],
        Need::TierSuite => {
            &[TIERS, PATIENT_TIERS, EXPERIMENTAL_TIERS, STANDARD_TIERS, TIER_AGNHOST]
        }
        Need::Translation | Need::NetworkPlugins | Need::Python | Need::Netpol | Need::Kernels => {
            &[]
        }
    }
}

/// Where one program is.
///
/// # Errors
/// It is not there: the error says how to make it ready. Or the directory that the user gave cannot
/// be read.
pub fn find(program: Program) -> Result<PathBuf> {
    check_declared(program)?;
    if let Some(path) = ready(program)? {
        return Ok(path);
    }
    let name = program.name;
    let directory = program.module.cache()?;
    bail!(
        "{name} {} is not ready in {}: `cargo xtask cluster build` builds it, and so does \
         `cargo xtask test` before the first test; or give a directory of programs in {}",
        program.module.version,
        directory.display(),
        GIVEN[0]
    )
}

/// A test program that uses what it does not declare would fail on a machine that has only what is
/// declared. It fails everywhere.
fn check_declared(program: Program) -> Result<()> {
    let executable = env::current_exe().unwrap_or_default();
    let Some(test) = netpol_needs::test_program(&executable) else {
        return Ok(());
    };
    let mut declared = netpol_needs::of_program(test);
    let is_declared = declared.any(|need| {
        let included = Need::KUBERNETES.into_iter().filter(|other| need.includes(*other));
        included.flat_map(of).any(|one| one.name == program.name)
    });
    ensure!(
        is_declared,
        "the test program {test} uses {}, and the table of netpol-needs does not say so",
        program.name
    );
    Ok(())
}

/// The program if it is there in full.
pub(crate) fn ready(program: Program) -> Result<Option<PathBuf>> {
    if let Some(given) = given(program)? {
        return Ok(Some(given));
    }
    let directory = program.module.cache()?;
    let path = directory.join(program.name);
    let is_whole = sizes(&directory).get(program.name).is_some_and(|size| {
        fs::metadata(&path).is_ok_and(|found| found.is_file() && found.len() == *size)
    });
    Ok(is_whole.then_some(path))
}

/// The programs that were finished in a cache directory, and how many bytes each has: what was cut
/// short by a power failure or a full disk is not taken for whole.
pub(crate) fn sizes(directory: &Path) -> BTreeMap<String, u64> {
    let text = fs::read_to_string(directory.join(FINISHED)).unwrap_or_default();
    let lines = text.lines().filter_map(|line| line.split_once(' '));
    lines.filter_map(|(size, name)| Some((name.to_owned(), size.parse().ok()?))).collect()
}

/// The file of finished programs: lines of a size in bytes and a name.
pub(crate) const FINISHED: &str = "finished";

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

impl Module {
    /// Its name, for people.
    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    pub(crate) fn directory(&self) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join(self.name)
    }

    /// Where its programs are kept.
    pub(crate) fn cache(&self) -> Result<PathBuf> {
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
