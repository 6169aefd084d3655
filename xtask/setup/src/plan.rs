//! Which compiler builds the eBPF object, and what is missing for it: the decision alone.
//!
//! Pure: facts about the machine go in, a plan comes out. Looking at the machine and carrying
//! the plan out is the crate's own; nothing here may read a file or start a program.

use std::collections::BTreeSet;
use std::fmt;

use netpol_debian::Arch;
use netpol_needs::Need;

/// The bpf-linker release that this repository is built and tested with.
pub(crate) const LINKER_VERSION: Version = Version(0, 10, 3);

/// The oldest compiler that can build netpol-ebpf (the workspace's rust-version).
pub(crate) const MINIMUM_RUST: Version = Version(1, 95, 0);

/// Debian's packages of a compiler with a ready-made `core` for the kernel's instruction set.
const DEBIAN_RUST: &[&str] = &["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf"];

/// Major, minor, patch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(u32, u32, u32);

impl Version {
    /// The first number.
    #[must_use]
    pub fn major(self) -> u32 {
        self.0
    }

    /// Reads the first `A.B.C` in what a program prints about itself.
    #[must_use]
    pub fn find_in(text: &str) -> Option<Self> {
        text.split_whitespace().find_map(|word| {
            let core = word.split(['-', '+']).next()?;
            let mut parts = core.split('.').map(|part| part.parse().ok());
            let version = Self(parts.next()??, parts.next()??, parts.next()??);
            parts.next().is_none().then_some(version)
        })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

/// The package of Go, which builds Kubernetes' programs; it may be any version, since an old one
/// fetches a newer one.
const GO: &str = "golang-go";

/// What is to be done with the machine, which decides what it must have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// netpol is compiled.
    pub build: bool,
    /// Network namespaces are wired.
    pub namespaces: bool,
    /// A fresh root file system is made.
    pub fresh: bool,
    /// netpol is compiled for this other processor, and its kernels are booted if any are.
    pub cross: Option<Arch>,
    /// What tests, clusters and benchmarks need besides.
    pub needs: BTreeSet<Need>,
}

impl Wanted {
    /// To compile netpol and run it in namespaces.
    #[must_use]
    pub fn build() -> Self {
        Self { build: true, namespaces: true, ..Self::default() }
    }

    /// The same, and these.
    #[must_use]
    pub fn with(needs: impl IntoIterator<Item = Need>) -> Self {
        Self { needs: needs.into_iter().collect(), ..Self::build() }
    }
}

/// What was seen on this machine.
#[derive(Clone, Debug, Default)]
pub(crate) struct Facts {
    /// This is Debian itself, whose package names we know.
    pub(crate) debian: bool,
    /// We may install packages.
    pub(crate) root: bool,
    /// The version of the distribution's compiler, if it has one with a cargo beside it.
    pub(crate) packaged_rust: Option<Version>,
    /// The distribution's compiler has a ready-made `core` for bpfel-unknown-none.
    pub(crate) packaged_bpf_core: bool,
    /// The rustup nightly toolchain is there, with the component rust-src.
    pub(crate) nightly_with_src: bool,
    /// The bpf-linker that would be used.
    pub(crate) linker: Option<Version>,
    /// iproute2's `ip` and `tc` are there.
    pub(crate) iproute2: bool,
    /// Programs of packages that are there, of all that some need has.
    pub(crate) programs: BTreeSet<&'static str>,
    /// Go is there, or a directory of Kubernetes' programs.
    pub(crate) go: bool,
    /// debootstrap is there.
    pub(crate) debootstrap: bool,
    /// An installation of packages was interrupted and has to be ended first.
    pub(crate) interrupted: bool,
    /// The compiler and the standard library for the other processor that is wanted, if any.
    pub(crate) cross: CrossFacts,
}

/// What is there for another processor.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct CrossFacts {
    /// The C compiler for it, and its C library.
    pub(crate) compiler: bool,
    /// Rust's standard library for it.
    pub(crate) library: bool,
    /// The program that is such a machine.
    pub(crate) emulator: bool,
}

/// A compiler that can build for bpfel-unknown-none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Toolchain {
    /// The distribution's, with its ready-made `core`.
    Packaged,
    /// rustup's nightly, which builds `core` from rust-src.
    Nightly,
}

/// One thing that is missing, and how to get it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Step {
    /// What is installed.
    pub(crate) what: String,
    /// What it is for.
    pub(crate) why: String,
    /// How: commands, each as its words.
    pub(crate) commands: Vec<Vec<String>>,
    /// Or: by fetching Debian's standard library of Rust for this processor.
    pub(crate) library: Option<Arch>,
}

/// The compiler to use, and what has to be installed first.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    /// The compiler that builds the eBPF object.
    pub(crate) toolchain: Toolchain,
    /// What is missing, in the order of installation.
    pub(crate) steps: Vec<Step>,
    /// xtask carries the steps out itself; otherwise it prints them for a person to run.
    pub(crate) automatic: bool,
}

/// Decides. A compiler that is already there wins over one that would have to be installed, and
/// the distribution's over nightly, because it is a fixed version that needs no rebuilt `core`.
pub(crate) fn plan(facts: &Facts, wanted: &Wanted) -> Plan {
    let automatic = facts.debian && facts.root;
    let packaged = facts.packaged_bpf_core && facts.packaged_rust >= Some(MINIMUM_RUST);
    let toolchain = match (packaged, facts.nightly_with_src) {
        (true, _) => Toolchain::Packaged,
        (false, true) => Toolchain::Nightly,
        (false, false) if automatic => Toolchain::Packaged,
        (false, false) => Toolchain::Nightly,
    };
    let toolchain_missing = wanted.build && !packaged && !facts.nightly_with_src;
    let mut steps = Vec::new();
    let mut packages = Packages::default();
    if toolchain_missing && toolchain == Toolchain::Packaged {
        for name in DEBIAN_RUST {
            packages.add(name, "compile the datapath for the kernel");
        }
    } else if toolchain_missing {
        steps.push(nightly());
    }
    if wanted.namespaces && !facts.iproute2 {
        packages.add("iproute2", "wire network namespaces together (ip, tc)");
    }
    for need in &wanted.needs {
        for (program, package) in need.programs() {
            if !facts.programs.contains(program) {
                packages.add(package, need.purpose());
            }
        }
        if Need::KUBERNETES.contains(need) && !facts.go {
            packages.add(GO, "build Kubernetes' programs");
        }
    }
    if wanted.fresh && !facts.debootstrap {
        packages.add("debootstrap", "make a root file system that has nothing yet");
    }
    if let Some(arch) = wanted.cross {
        let library = library(facts, arch);
        if !facts.cross.compiler {
            arch.compiler_packages().into_iter().for_each(|name| packages.add(name, CROSS));
        }
        // Its library is of use to itself only.
        if library.is_some() && automatic && facts.packaged_rust < Some(MINIMUM_RUST) {
            DEBIAN_RUST.iter().for_each(|name| packages.add(name, CROSS));
        }
        if wanted.needs.contains(&Need::Kernels) && !facts.cross.emulator {
            packages.add(arch.emulator_package(), Need::Kernels.purpose());
        }
        steps.extend(packages.step(facts));
        steps.extend(library);
    } else {
        steps.extend(packages.step(facts));
    }
    if wanted.build && facts.linker < Some(LINKER_VERSION) {
        steps.push(linker());
    }
    Plan { toolchain, steps, automatic }
}

/// What is done with another processor's compiler.
const CROSS: &str = "compile netpol for another processor";

/// How to get Rust's standard library for another processor. Debian has it for the compiler that
/// builds the eBPF object; it is unpacked beside it and not installed, since it could only be that
/// on a machine of two processors.
fn library(facts: &Facts, arch: Arch) -> Option<Step> {
    let is_fetched = facts.debian && facts.root;
    let rustup = || vec![words(&["rustup", "target", "add", arch.target()])];
    (!facts.cross.library).then(|| Step {
        what: format!("Rust's standard library for {}", arch.target()),
        why: CROSS.to_owned(),
        commands: if is_fetched { Vec::new() } else { rustup() },
        library: is_fetched.then_some(arch),
    })
}

/// Packages to install, in the order in which they were asked for, and what for.
#[derive(Default)]
struct Packages {
    names: Vec<&'static str>,
    reasons: Vec<&'static str>,
}

impl Packages {
    fn add(&mut self, name: &'static str, reason: &'static str) {
        if !self.names.contains(&name) {
            self.names.push(name);
        }
        if !self.reasons.contains(&reason) {
            self.reasons.push(reason);
        }
    }

    fn step(&self, facts: &Facts) -> Option<Step> {
        if self.names.is_empty() {
            return None;
        }
        let sudo: &[&str] = if facts.root { &[] } else { &["sudo"] };
        // Whoever else installs packages at the moment is waited for.
        let apt = ["apt-get", "-o", "DPkg::Lock::Timeout=600"];
        let install = ["install", "--yes", "--no-install-recommends"];
        let names = self.names.as_slice();
        let commands = if facts.debian {
            let repair = words(&[sudo, &["dpkg", "--configure", "-a"]].concat());
            let mut commands = if facts.interrupted { vec![repair] } else { Vec::new() };
            commands.push(words(&[sudo, &apt, &["update"]].concat()));
            commands.push(words(&[sudo, &apt, &install, names].concat()));
            commands
        } else {
            // They have these names in most distributions; the package manager has not.
            let manager = "<your distribution's package manager>";
            vec![words(&[&[manager, "install"], names].concat())]
        };
        let (what, why) = (names.join(", "), self.reasons.join("; "));
        Some(Step { what, why, commands, library: None })
    }
}

fn nightly() -> Step {
    Step {
        what: "rustup's nightly toolchain with rust-src".to_owned(),
        why: "compile the datapath for the kernel, with a `core` built from source".to_owned(),
        commands: vec![words(&[
            "rustup",
            "toolchain",
            "install",
            "nightly",
            "--component",
            "rust-src",
        ])],
        library: None,
    }
}

fn linker() -> Step {
    let version = LINKER_VERSION.to_string();
    Step {
        what: format!("bpf-linker {version}"),
        why:
            "link the datapath into one object with type information (built from source; a minute)"
                .to_owned(),
        commands: vec![words(&[
            "cargo",
            "install",
            "bpf-linker",
            "--version",
            &version,
            "--locked",
            "--force",
            // Optimising it takes a minute and makes linking one small object no faster.
            "--config",
            "profile.release.opt-level=0",
            "--config",
            "profile.release.debug=false",
        ])],
        library: None,
    }
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complete_debian() -> Facts {
        Facts {
            debian: true,
            root: true,
            packaged_rust: Some(Version(1, 96, 0)),
            packaged_bpf_core: true,
            nightly_with_src: false,
            linker: Some(LINKER_VERSION),
            iproute2: true,
            programs: Need::ALL
                .iter()
                .flat_map(|need| need.programs())
                .map(|program| program.0)
                .collect(),
            go: true,
            debootstrap: true,
            interrupted: false,
            cross: CrossFacts { compiler: true, library: true, emulator: true },
        }
    }

    fn everything() -> Wanted {
        Wanted { fresh: true, cross: Some(Arch::Arm64), ..Wanted::with(Need::ALL) }
    }

    fn build(facts: &Facts) -> Plan {
        plan(facts, &Wanted::build())
    }

    fn shell(plan: &Plan) -> Vec<String> {
        plan.steps.iter().flat_map(|s| &s.commands).map(|c| c.join(" ")).collect()
    }

    #[test]
    fn nothing_to_do_when_all_is_there() {
        let plan = plan(&complete_debian(), &everything());
        assert_eq!(plan.toolchain, Toolchain::Packaged);
        assert!(plan.steps.is_empty());
    }

    #[test]
    fn bare_debian_as_root_installs_everything_by_itself_and_at_once() {
        let facts = Facts { debian: true, root: true, ..Facts::default() };
        let plan = plan(&facts, &everything());
        assert_eq!(plan.toolchain, Toolchain::Packaged);
        assert!(plan.automatic);
        assert_eq!(
            shell(&plan),
            [
                "apt-get -o DPkg::Lock::Timeout=600 update",
                "apt-get -o DPkg::Lock::Timeout=600 install --yes --no-install-recommends \
                 rustc-web cargo-web libstd-rust-web-dev-bpf iproute2 nftables iptables conntrack ipset \
                 containernetworking-plugins python3-minimal golang-go containerd runc busybox-static \
                 qemu-system-x86 xz-utils binutils wireguard-tools debootstrap \
                 gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-system-arm",
                "cargo install bpf-linker --version 0.10.3 --locked --force \
                 --config profile.release.opt-level=0 --config profile.release.debug=false",
            ]
        );
        let library = plan.steps.iter().find_map(|step| step.library);
        assert_eq!(library, Some(Arch::Arm64));
    }

    #[test]
    fn another_processors_library_is_for_the_compiler_that_uses_it() {
        let wanted = Wanted { cross: Some(Arch::Arm64), ..Wanted::build() };
        let cross = CrossFacts { library: false, ..complete_debian().cross };
        let debian = plan(&Facts { cross, ..complete_debian() }, &wanted);
        assert_eq!((shell(&debian), debian.steps[0].library), (vec![], Some(Arch::Arm64)));
        let nightly = Facts {
            cross,
            nightly_with_src: true,
            packaged_rust: None,
            packaged_bpf_core: false,
            ..complete_debian()
        };
        let text = shell(&plan(&nightly, &wanted)).join("\n");
        assert!(text.contains("rustc-web cargo-web"), "{text}");
        let person = plan(&Facts { cross, root: false, ..complete_debian() }, &wanted);
        assert_eq!(shell(&person), ["rustup target add aarch64-unknown-linux-gnu"]);
        let kernels = Wanted { cross: Some(Arch::Arm64), ..Wanted::with([Need::Kernels]) };
        let cross = CrossFacts { emulator: false, ..complete_debian().cross };
        let text = shell(&plan(&Facts { cross, ..complete_debian() }, &kernels)).join("\n");
        assert!(text.contains("qemu-system-arm") && !text.contains("gcc"), "{text}");
    }

    #[test]
    fn what_is_not_wanted_is_not_installed() {
        let bare = Facts { debian: true, root: true, ..Facts::default() };
        assert_eq!(plan(&bare, &Wanted::default()).steps, []);
        let only = Facts { programs: BTreeSet::new(), go: false, ..complete_debian() };
        assert_eq!(build(&only).steps, []);
        for (need, packages) in [
            (Need::Translation, "nftables, iptables, conntrack, ipset"),
            (Need::NetworkPlugins, "containernetworking-plugins"),
            (Need::ControlPlane, "golang-go"),
        ] {
            let plan = plan(&only, &Wanted::with([need]));
            let what: Vec<&str> = plan.steps.iter().map(|step| step.what.as_str()).collect();
            assert_eq!(what, [packages], "{need}");
            assert!(plan.steps[0].why.contains(need.purpose()) || need == Need::ControlPlane);
        }
    }

    #[test]
    fn an_interrupted_installation_is_ended_before_the_next_one() {
        let plan = build(&Facts { interrupted: true, iproute2: false, ..complete_debian() });
        assert_eq!(shell(&plan)[0], "dpkg --configure -a");
        assert_eq!(build(&Facts { interrupted: true, ..complete_debian() }).steps, []);
    }

    #[test]
    fn elsewhere_the_way_is_nightly_and_a_person_runs_the_commands() {
        let plan = build(&Facts { root: true, iproute2: true, ..Facts::default() });
        assert_eq!(plan.toolchain, Toolchain::Nightly);
        assert!(!plan.automatic);
        assert_eq!(shell(&plan)[0], "rustup toolchain install nightly --component rust-src");
    }

    #[test]
    fn debian_without_root_never_installs_by_itself() {
        let plan = build(&Facts { debian: true, ..Facts::default() });
        assert!(!plan.automatic);
        assert_eq!(plan.toolchain, Toolchain::Nightly);
        assert!(
            shell(&plan).contains(&"sudo apt-get -o DPkg::Lock::Timeout=600 update".to_owned())
        );
    }

    #[test]
    fn an_installed_nightly_is_used_when_the_distribution_has_no_usable_compiler() {
        for facts in [
            Facts { packaged_rust: Some(Version(1, 85, 0)), ..complete_debian() },
            Facts { packaged_bpf_core: false, ..complete_debian() },
            Facts { packaged_rust: None, ..complete_debian() },
        ] {
            let plan = build(&Facts { nightly_with_src: true, ..facts });
            assert_eq!(plan.toolchain, Toolchain::Nightly);
            assert!(plan.steps.is_empty());
        }
    }

    #[test]
    fn the_distributions_compiler_wins_over_an_installed_nightly() {
        let plan = build(&Facts { nightly_with_src: true, ..complete_debian() });
        assert_eq!(plan.toolchain, Toolchain::Packaged);
    }

    #[test]
    fn an_old_linker_is_replaced_and_a_newer_one_kept() {
        let old = build(&Facts { linker: Some(Version(0, 9, 15)), ..complete_debian() });
        assert_eq!(old.steps.len(), 1);
        assert!(old.steps[0].what.contains("bpf-linker"));
        let newer = build(&Facts { linker: Some(Version(0, 11, 0)), ..complete_debian() });
        assert!(newer.steps.is_empty());
    }

    #[test]
    fn versions_are_found_in_what_programs_print() {
        assert_eq!(
            Version::find_in("rustc 1.96.0 (ac68faa20 2026-05-25)"),
            Some(Version(1, 96, 0))
        );
        assert_eq!(
            Version::find_in("rustc 1.97.0-nightly (e5 2026-05-19)"),
            Some(Version(1, 97, 0))
        );
        assert_eq!(Version::find_in("LLVM version: 22.1.8\n"), Some(Version(22, 1, 8)));
        assert_eq!(Version::find_in("bpf-linker"), None);
        assert_eq!(Version::find_in("2026-05-19 1.2 1.2.3.4"), None);
    }
}
