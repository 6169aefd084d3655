//! What each test program needs besides what is built here: one table, from which `cargo xtask test`
//! makes it ready before the first test starts. Must never look at the machine or change it.
//!
//! Tests that are not in the table need nothing. What is missing here shows on a machine
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
    /// Upstream's ClusterNetworkPolicy tests.
    TierSuite,
    /// Kernels other than this machine's, and what runs them.
    Kernels,
}

use Need::{
    ControlPlane, Dns, Kernels, Kubectl, LegacySuite, Netpol, NetworkPlugins, Nodes, Python, Suite,
    TierSuite, Translation,
};

impl Need {
    /// All of them.
    pub const ALL: [Self; 12] = [
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
        TierSuite,
        Kernels,
    ];

    /// Those that are programs of Kubernetes, which are built with Go.
    pub const KUBERNETES: [Self; 7] =
        [Kubectl, ControlPlane, Nodes, Dns, Suite, LegacySuite, TierSuite];

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
            TierSuite => "cluster-network-policy-suite",
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
            TierSuite => "run upstream's ClusterNetworkPolicy tests",
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
            LegacySuite | TierSuite => &[("busybox", "busybox-static")],
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
                    | (Nodes | Dns | Suite | LegacySuite | TierSuite, ControlPlane)
                    | (Dns | Suite | LegacySuite | TierSuite, Nodes | Kubectl)
            )
    }
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A test program's file name without cargo's hash, the module of it that the row is about (empty: all of
/// it), its package, and what its tests need.
pub type Row = (&'static str, &'static str, &'static str, &'static [Need]);

/// The tests that need something.
pub const TABLE: &[Row] = &[
    ("agent", "agent_live", USERSPACE, &[Python]),
    ("agent", "agent_services", USERSPACE, &[Translation]),
    ("agent", "cni_first_packet", USERSPACE, &[NetworkPlugins]),
    ("agent", "cni_plugin", USERSPACE, &[NetworkPlugins]),
    ("agent", "explain_monitor", USERSPACE, &[Python]),
    ("hostile", "hostile_attacks", USERSPACE, &[Translation, Python]),
    ("hostile", "hostile_flood", USERSPACE, &[Translation]),
    ("hostile", "hostile_fuzz", USERSPACE, &[Translation]),
    ("inside", "", USERSPACE, &[Translation]),
    ("wire", "", USERSPACE, &[Translation]),
    // Who opens a connection is read while a rule keeps it from being opened.
    ("netpol_endpoint", "", "netpol-endpoint", &[Translation]),
    ("bench_agent", "", "netpol-bench", &[Netpol]),
    ("endings", "", "netpol-bench", &[Netpol]),
    ("latency", "", "netpol-bench", &[Netpol]),
    ("system", "", "netpol-bench", &[Translation]),
    ("kubernetes_agent", "", "netpol-cluster", &[ControlPlane, Netpol]),
    ("kubernetes_cluster", "", "netpol-cluster", &[Nodes]),
    ("kubernetes_deploy", "", "netpol-cluster", &[Kubectl]),
    ("kubernetes_smoke", "", "netpol-cluster", &[Nodes, Netpol]),
    ("kubernetes_source", "", "netpol-cluster", &[ControlPlane]),
    ("kernels", "", "netpol-kernels", &FOR_KERNELS),
    // Tries everything that a machine must be able to do.
    ("netpol_capabilities", "", "netpol-capabilities", &[Translation]),
];

/// The package whose test programs have modules that are told apart here.
const USERSPACE: &str = "netpol-userspace";

/// The tests of netpol-userspace that run inside other kernels: program and module. Those of `inside` run
/// only there: this machine's kernel may lack what they are about.
pub const IN_KERNELS: &[(&str, &str)] = &[
    ("datapath", "datapath_verdicts"),
    ("datapath", "datapath_attach"),
    ("datapath", "datapath_services"),
    ("agent", "attach_foreign"),
    ("agent", "agent_restart"),
    ("agent", "flow_wire"),
    ("wire", "wire_policies"),
    ("wire", "wire_sources"),
    ("wire", "wire_icmp"),
    ("wire", "wire_packets"),
    ("wire", "wire_topologies"),
    ("wire", "service_kinds"),
    ("hostile", "hostile_attacks"),
    ("inside", "inside_sctp"),
    ("inside", "inside_loss"),
];

/// What running them there needs: what is booted, and what they need here.
pub const FOR_KERNELS: [Need; 4] = [Kernels, Netpol, Translation, Python];

/// The program of a module of [`IN_KERNELS`].
#[must_use]
pub fn program_in_kernels(module: &str) -> Option<&'static str> {
    IN_KERNELS.iter().find(|row| row.1 == module).map(|row| row.0)
}

/// The programs of [`IN_KERNELS`], each once.
#[must_use]
pub fn programs_in_kernels() -> Vec<&'static str> {
    let mut programs: Vec<&str> = IN_KERNELS.iter().map(|row| row.0).collect();
    programs.dedup();
    programs
}

/// What the tests of a program's module need.
pub fn of(program: &str, module: &str) -> impl Iterator<Item = Need> {
    let is_its = move |row: &&Row| row.0 == program && (row.1.is_empty() || row.1 == module);
    TABLE.iter().filter(is_its).flat_map(|row| row.3).copied()
}

/// What any of a program's tests needs.
pub fn of_program(program: &str) -> impl Iterator<Item = Need> {
    TABLE.iter().filter(move |row| row.0 == program).flat_map(|row| row.3).copied()
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

    /// Whether this program has the tests beside the code of a library.
    fn is_unit(program: &str, package: &str) -> bool {
        let directory = package.strip_prefix("netpol-").unwrap_or(package);
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let below = ["xtask", "netpol-userspace"].map(|part| root.join(part).join(directory));
        let is_library = below.iter().any(|directory| directory.join("src/lib.rs").exists());
        program == package.replace('-', "_") && is_library
    }

    #[test]
    fn every_test_program_declares_what_its_sources_show_and_every_row_has_a_program() {
        let xtask = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let userspace = xtask.join("../netpol-userspace");
        let kit = userspace.join("testkit/src");
        let mut seen = BTreeSet::new();
        let mut programs: Vec<(&str, String, String, PathBuf)> = Vec::new();
        for (package, directory) in [
            ("netpol-kernels", xtask.join("kernels/tests")),
            (USERSPACE, userspace.join("tests")),
            ("netpol-cluster", xtask.join("cluster/tests")),
            ("netpol-bench", xtask.join("bench/tests")),
        ] {
            for path in files(&directory) {
                let name = stem(&path);
                if path.join("main.rs").exists() {
                    let modules = files(&path).into_iter().filter(|path| stem(path) != "main");
                    programs.extend(modules.map(|path| (package, name.clone(), stem(&path), path)));
                } else if path.is_file() {
                    programs.push((package, name, String::new(), path));
                }
            }
        }
        for (package, name, module, path) in programs {
            let mut text = String::new();
            sources(&path, path.parent().expect("a directory"), &mut text);
            for used in used_of_kit(&text) {
                sources(&used, &kit, &mut text);
            }
            for need in shown(&text) {
                // API servers of their own making need no program.
                let declared = of(&name, &module).any(|has| has.includes(need));
                let is_other = need == ControlPlane && package != "netpol-cluster";
                assert!(
                    declared || is_other,
                    "{package}'s {name} {module} needs {need} ({}), and TABLE does not say so",
                    need.purpose()
                );
            }
            // Programs are known by their names alone, here and inside other kernels.
            let other = seen.iter().find(|(other, known, _)| *known == name && *other != package);
            assert_eq!(other, None, "{package} has a test program of that name, too");
            seen.insert((package, name.clone(), module));
            seen.insert((package, name, String::new()));
        }
        let is_seen = |package, name: &str, module: &str| {
            seen.contains(&(package, name.to_owned(), module.to_owned()))
        };
        for (program, module) in IN_KERNELS {
            assert!(is_seen(USERSPACE, program, module), "{program} {module}");
        }
        for (name, module, package, needs) in TABLE {
            assert!(!needs.is_empty());
            let is_known = is_unit(name, package) || is_seen(package, name, module);
            assert!(is_known, "{package}'s {name} {module}");
        }
    }

    fn files(directory: &Path) -> Vec<PathBuf> {
        let entries = fs::read_dir(directory).expect("a directory of tests");
        entries.map(|entry| entry.expect("an entry").path()).collect()
    }

    fn stem(path: &Path) -> String {
        path.file_stem().and_then(|name| name.to_str()).expect("a name").to_owned()
    }

    /// The files of the test kit that a source names, and no further ones: what a lab can do is not
    /// what every test has done.
    fn used_of_kit(text: &str) -> Vec<PathBuf> {
        let kit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../netpol-userspace/testkit/src");
        let paths = text.split("netpol_testkit::").skip(1).filter_map(|rest| {
            let end = rest.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':'))?;
            Some(rest[..end].trim_end_matches(':').to_owned())
        });
        let mut found = Vec::new();
        for path in paths {
            let parts: Vec<&str> = path.split("::").collect();
            for n in 1..=parts.len() {
                let base = kit.join(parts[..n].join("/"));
                found.extend(
                    [base.with_extension("rs"), base.join("mod.rs")]
                        .into_iter()
                        .filter(|p| p.exists()),
                );
            }
        }
        found
    }
}
