//! What each test program needs besides what is built here: one table, from which `cargo xtask test`
//! makes it ready before the first test starts. Must never look at the machine or change it.
//!
//! A test program that is not in the table needs nothing. What is missing here shows on a machine
//! that has nothing (`cargo xtask fresh`), and at once where it can be told: by
//! `netpol_cluster::binaries::find` and by the tests below.

use std::fmt;
use std::path::Path;

/// Something that has to be there before a test that needs it starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
    /// Programs that translate and filter addresses, as kube-proxy and others do.
    Translation,
    /// The container network's own plugins.
    NetworkPlugins,
    /// Python, by which some tests send frames.
    Python,
    /// The program `netpol` itself, unoptimised.
    Netpol,
    /// kubectl.
    Kubectl,
    /// etcd, the API server and kubectl.
    ControlPlane,
    /// All that a cluster with nodes and pods takes, and its image.
    Nodes,
    /// The cluster's DNS.
    Dns,
    /// Upstream's NetworkPolicy tests.
    Suite,
    /// The older ones.
    LegacySuite,
    /// Kernels other than this machine's, and what runs them.
    Kernels,
}

use Need::{
    ControlPlane, Dns, Kernels, Kubectl, LegacySuite, Netpol, NetworkPlugins, Nodes, Python, Suite,
    Translation,
};

impl Need {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Translation,
        NetworkPlugins,
        Python,
        Netpol,
        Kubectl,
        ControlPlane,
        Nodes,
        Dns,
        Suite,
        LegacySuite,
        Kernels,
    ];

    /// Those that are programs of Kubernetes, which are built with Go.
    pub const KUBERNETES: [Self; 6] = [Kubectl, ControlPlane, Nodes, Dns, Suite, LegacySuite];

    /// As it is written on a command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Translation => "translation",
            NetworkPlugins => "network-plugins",
            Python => "python",
            Netpol => "netpol",
            Kubectl => "kubectl",
            ControlPlane => "control-plane",
            Nodes => "nodes",
            Dns => "dns",
            Suite => "suite",
            LegacySuite => "legacy-suite",
            Kernels => "kernels",
        }
    }

    /// The need of this name.
    #[must_use]
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|need| need.name() == name)
    }

    /// What it is for, to complete "to ...".
    #[must_use]
    pub fn purpose(self) -> &'static str {
        match self {
            Translation => "translate and filter addresses as kube-proxy and others do",
            NetworkPlugins => "wire pods as container runtimes do",
            Python => "send any frame from a pod",
            Netpol => "run netpol",
            Kubectl => "render manifests",
            ControlPlane => "run a real API server on this machine",
            Nodes => "run a real cluster on this machine",
            Dns => "give a cluster on this machine its DNS",
            Suite | LegacySuite => "run upstream's NetworkPolicy tests",
            Kernels => "boot other kernels in virtual machines",
        }
    }

    /// The programs that packages of the distribution have, each with its Debian package.
    #[must_use]
    pub fn programs(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Translation => &[
                ("nft", "nftables"),
                ("iptables-restore", "iptables"),
                ("ip6tables-restore", "iptables"),
                ("conntrack", "conntrack"),
                ("ipset", "ipset"),
            ],
            NetworkPlugins => &[("bridge", "containernetworking-plugins")],
            Python => &[("python3", "python3-minimal")],
            Nodes => &[
                ("containerd", "containerd"),
                ("runc", "runc"),
                ("bridge", "containernetworking-plugins"),
                // kube-proxy starts them.
                ("nft", "nftables"),
                ("iptables-restore", "iptables"),
                ("ip6tables-restore", "iptables"),
                ("conntrack", "conntrack"),
            ],
            LegacySuite => &[("busybox", "busybox-static")],
            Kernels => &[
                ("qemu-system-x86_64", "qemu-system-x86"),
                ("busybox", "busybox-static"),
                ("xz", "xz-utils"),
                ("strip", "binutils"),
                ("wg", "wireguard-tools"),
            ],
            Netpol | Kubectl | ControlPlane | Dns | Suite => &[],
        }
    }

    /// Whether this one includes `other`.
    #[must_use]
    pub fn includes(self, other: Self) -> bool {
        self == other
            || matches!(
                (self, other),
                (ControlPlane | Nodes, Kubectl)
                    | (Nodes | Dns | Suite | LegacySuite, ControlPlane)
                    | (Dns | Suite | LegacySuite, Nodes | Kubectl)
            )
    }
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A test program's file name without cargo's hash, its package, and what its tests need.
pub type Row = (&'static str, &'static str, &'static [Need]);

/// The test programs that need something.
pub const TABLE: &[Row] = &[
    ("agent_live", "netpol-userspace", &[Python]),
    ("agent_services", "netpol-userspace", &[Translation]),
    ("cni_first_packet", "netpol-userspace", &[NetworkPlugins]),
    ("cni_plugin", "netpol-userspace", &[NetworkPlugins]),
    ("explain_monitor", "netpol-userspace", &[Python]),
    ("hostile_attacks", "netpol-userspace", &[Translation, Python]),
    ("hostile_flood", "netpol-userspace", &[Translation]),
    ("hostile_fuzz", "netpol-userspace", &[Translation]),
    ("inside_loss", "netpol-userspace", &[Translation]),
    ("inside_sctp", "netpol-userspace", &[Translation]),
    ("service_change", "netpol-userspace", &[Translation]),
    ("service_kinds", "netpol-userspace", &[Translation]),
    ("service_masquerade", "netpol-userspace", &[Translation]),
    ("service_self", "netpol-userspace", &[Translation]),
    ("service_untranslated", "netpol-userspace", &[Translation]),
    ("wire_guard", "netpol-userspace", &[Translation]),
    ("wire_icmp", "netpol-userspace", &[Translation]),
    ("wire_packets", "netpol-userspace", &[Translation]),
    ("wire_policies", "netpol-userspace", &[Translation]),
    ("wire_sources", "netpol-userspace", &[Translation]),
    ("wire_topologies", "netpol-userspace", &[Translation]),
    ("agent", "netpol-bench", &[Netpol]),
    ("endings", "netpol-bench", &[Netpol]),
    ("latency", "netpol-bench", &[Netpol]),
    ("system", "netpol-bench", &[Translation]),
    ("kubernetes_agent", "netpol-cluster", &[ControlPlane]),
    ("kubernetes_cluster", "netpol-cluster", &[Nodes]),
    ("kubernetes_deploy", "netpol-cluster", &[Kubectl]),
    ("kubernetes_smoke", "netpol-cluster", &[Nodes, Netpol]),
    ("kubernetes_source", "netpol-cluster", &[ControlPlane]),
    ("kernels", "netpol-kernels", &FOR_KERNELS),
    // Tries everything that a machine must be able to do.
    ("netpol_capabilities", "netpol-capabilities", &[Translation]),
];

/// The test programs of netpol-userspace that run inside other kernels. Those whose names begin with
/// `inside_` run only there: this machine's kernel may lack what they are about.
pub const IN_KERNELS: &[&str] = &[
    "datapath_verdicts",
    "datapath_attach",
    "datapath_services",
    "attach_foreign",
    "agent_restart",
    "flow_wire",
    "wire_policies",
    "wire_sources",
    "wire_icmp",
    "wire_packets",
    "wire_topologies",
    "service_kinds",
    "hostile_attacks",
    "inside_sctp",
    "inside_loss",
];

/// What running them there needs: what is booted, and what they need here.
pub const FOR_KERNELS: [Need; 4] = [Kernels, Netpol, Translation, Python];

/// What a test program needs.
#[must_use]
pub fn of(program: &str) -> &'static [Need] {
    TABLE.iter().find(|row| row.0 == program).map_or(&[], |row| row.2)
}

/// The name in the table of a test program's file: without cargo's hash. `None` for other programs.
#[must_use]
pub fn test_program(file: &Path) -> Option<&str> {
    if file.parent()?.file_name()? != "deps" {
        return None;
    }
    let (name, hash) = file.file_stem()?.to_str()?.rsplit_once('-')?;
    (hash.len() == 16 && hash.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(name)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn names_are_read_back_and_nothing_includes_less_than_itself() {
        for need in Need::ALL {
            assert_eq!(Need::of_name(need.name()), Some(need));
            assert!(need.includes(need) && !need.purpose().is_empty());
        }
        assert_eq!(Need::of_name("x"), None);
        assert!(Nodes.includes(Kubectl) && !Kubectl.includes(Nodes));
    }

    #[test]
    fn test_programs_are_known_by_where_cargo_puts_them() {
        let name = |path: &str| test_program(Path::new(path)).map(str::to_owned);
        assert_eq!(name("/t/debug/deps/wire_icmp-0123456789abcdef"), Some("wire_icmp".to_owned()));
        assert_eq!(name("/t/debug/netpol-cluster"), None);
        assert_eq!(name("/t/debug/deps/netpol-cluster"), None);
    }

    /// A source file of a test program and the modules below it, as text.
    fn sources(file: &Path, directory: &Path, all: &mut String) {
        let text = fs::read_to_string(file).expect("a test's source");
        for line in text.lines() {
            let line = line.trim().trim_start_matches("pub ");
            let Some(module) = line.strip_prefix("mod ").and_then(|rest| rest.strip_suffix(';'))
            else {
                continue;
            };
            let flat = directory.join(format!("{module}.rs"));
            let nested = directory.join(module).join("mod.rs");
            // One that stands in another package has a path of its own; none of those needs a thing.
            if let Some(found) = [flat, nested].into_iter().find(|path| path.exists()) {
                let below = directory.join(module);
                sources(&found, if below.is_dir() { &below } else { directory }, all);
            }
        }
        all.push_str(&text);
    }

    /// What the sources of a test program show that it needs.
    fn shown(text: &str) -> Vec<Need> {
        let signs: [(Need, &[&str]); 5] = [
            (Translation, &["\"nft\"", "\"iptables", "\"ip6tables", "\"conntrack\"", "\"ipset\""]),
            (NetworkPlugins, &["world::runtime"]),
            (Python, &["send_frames(&"]),
            (ControlPlane, &["ApiServer"]),
            (Nodes, &["Cluster::up(", "[\"up\""]),
        ];
        let is_shown = |words: &[&str]| words.iter().any(|word| text.contains(word));
        signs.into_iter().filter(|(_, words)| is_shown(words)).map(|(need, _)| need).collect()
    }

    /// Whether this program has the tests beside the code of a library below xtask.
    fn is_unit(program: &str, package: &str) -> bool {
        let directory = package.strip_prefix("netpol-").unwrap_or(package);
        let library = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(directory);
        program == package.replace('-', "_") && library.join("src/lib.rs").exists()
    }

    #[test]
    fn every_test_program_declares_what_its_sources_show_and_every_row_has_a_program() {
        let xtask = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let packages: [(&str, PathBuf); 4] = [
            ("netpol-kernels", xtask.join("kernels/tests")),
            ("netpol-userspace", xtask.join("../netpol-userspace/tests")),
            ("netpol-cluster", xtask.join("cluster/tests")),
            ("netpol-bench", xtask.join("bench/tests")),
        ];
        let mut seen = BTreeSet::new();
        for (package, directory) in packages {
            for entry in fs::read_dir(&directory).expect("a package's tests") {
                let path = entry.expect("an entry").path();
                let Some(name) = path.file_stem().and_then(|name| name.to_str()) else { continue };
                if path.extension().is_none_or(|extension| extension != "rs") {
                    continue;
                }
                seen.insert((name.to_owned(), package));
                let mut text = String::new();
                sources(&path, &directory, &mut text);
                for need in shown(&text) {
                    // API servers of their own making need no program.
                    let declared = of(name).iter().any(|has| has.includes(need));
                    let is_other = need == ControlPlane && package != "netpol-cluster";
                    assert!(
                        declared || is_other,
                        "{package}'s {name} needs {need} ({}), and TABLE does not say so",
                        need.purpose()
                    );
                }
            }
        }
        for name in IN_KERNELS {
            assert!(seen.contains(&((*name).to_owned(), "netpol-userspace")), "{name}");
        }
        for (name, package, needs) in TABLE {
            assert!(!needs.is_empty());
            let is_known = is_unit(name, package) || seen.contains(&((*name).to_owned(), *package));
            assert!(is_known, "{package} has no test program {name}");
        }
    }
}
