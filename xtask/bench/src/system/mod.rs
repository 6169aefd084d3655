//! What packets and connections between two pods of a node cost: bare, with netpol, and with the
//! ways of its peers, in one run. Both pods are isolated in both directions, so each packet passes
//! two filters. `packets` and `traffic` say how it is measured, `population` which policies are
//! enforced, `kube_router` and `nftables` what of the peers is modelled.
//!
//! Everything is in namespaces of its own; what netpol pins is below a directory that goes with
//! the last site, or with the namespaces that [`crate::isolation`] made.

mod enforcer;
mod kube_router;
mod nftables;
mod packets;
mod pair;
mod population;
mod results;
mod rounds;
mod tools;
mod traffic;
mod trial;
mod variant;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use self::pair::Wiring;
use self::population::Population;
use self::rounds::{Group, Measure, Pace};
use self::variant::Variant;
use crate::report::Report;
use crate::{Options, progress};

const BPFFS: &str = "/sys/fs/bpf";

/// How much is measured.
#[derive(Debug, Clone)]
pub struct Settings {
    /// See [`Options`].
    pub is_quick: bool,
    /// How often each figure is taken.
    pub rounds: usize,
    /// How long each takes.
    pub slice: Duration,
    /// Policies of the tables.
    pub policies: u32,
    /// Policies of the curves.
    pub scales: Vec<u32>,
    /// Whether the tables have every way to filter, or only the ones that matter most.
    pub has_all_variants: bool,
}

impl Settings {
    /// For someone who wants to conclude something, or to see that it works.
    pub fn new(options: &Options) -> Self {
        let is_quick = options.is_quick;
        let (rounds, slice) = if is_quick { (3, 100) } else { (9, 300) };
        Self {
            is_quick,
            rounds,
            slice: Duration::from_millis(slice),
            policies: 100,
            scales: if is_quick { vec![10, 1_000] } else { vec![10, 100, 1_000, 10_000] },
            has_all_variants: !is_quick,
        }
    }
}

/// Measures.
pub fn run(options: &Options) -> Result<Report> {
    run_with(&Settings::new(options))
}

/// Measures as much as these say.
pub fn run_with(settings: &Settings) -> Result<Report> {
    tools::require()?;
    let groups =
        [group(Wiring::Routed, settings), group(Wiring::Bridge, settings), curves(settings)];
    let samples: usize = groups.iter().map(|group| group.sites.len() * group.measures.len()).sum();
    let seconds = (samples * settings.rounds) as f64 * settings.slice.as_secs_f64();
    progress::say(format_args!("about {:.0} minutes, and some for setting up", seconds / 60.0));
    raise_file_limit();
    let bpffs = Bpffs::new();
    let pace = Pace { rounds: settings.rounds, slice: settings.slice };
    let measure = |group: &Group, name: &str| rounds::measure(group, pace, &bpffs.0.join(name));
    let [routed, bridge, curves] = &groups;
    let found =
        [measure(routed, "routed")?, measure(bridge, "bridge")?, measure(curves, "curves")?];
    Ok(results::report(settings, &groups, &found))
}

/// Where netpol pins, on the mounted bpffs.
struct Bpffs(PathBuf);

impl Bpffs {
    fn new() -> Self {
        Self(Path::new(BPFFS).join(format!("netpol-bench-{}", std::process::id())))
    }
}

impl Drop for Bpffs {
    /// Of directories alone; whoever pinned something has taken it away.
    fn drop(&mut self) {
        for group in std::fs::read_dir(&self.0).into_iter().flatten().flatten() {
            for site in std::fs::read_dir(group.path()).into_iter().flatten().flatten() {
                let _ = std::fs::remove_dir(site.path());
            }
            let _ = std::fs::remove_dir(group.path());
        }
        let _ = std::fs::remove_dir(&self.0);
    }
}

/// Each flow is a socket; the usual soft limit of 1024 is too low.
fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

/// All ways to filter with the usual number of policies.
fn group(wiring: Wiring, settings: &Settings) -> Group {
    let mut variants = vec![
        Variant::Bare,
        Variant::EmptyProgram,
        Variant::Conntrack,
        Variant::Chains,
        Variant::KubeRouter,
        Variant::Netpol,
    ];
    if settings.has_all_variants {
        variants.insert(3, Variant::OneSet);
        variants.push(Variant::Unselected);
        if wiring == Wiring::Bridge {
            variants.insert(1, Variant::WithoutNetfilter);
        }
    }
    let population = Population::new(settings.policies);
    let sites = variants.into_iter().map(|variant| (variant, population)).collect();
    Group { wiring, sites, measures: Measure::ALL.to_vec() }
}

/// Those that grow with the number of policies, or must not.
fn curves(settings: &Settings) -> Group {
    let mut sites = vec![(Variant::Bare, Population::new(0))];
    for variant in results::CURVES {
        let scales =
            settings.scales.iter().copied().filter(|scale| {
                variant != Variant::KubeRouter || *scale <= results::KUBE_ROUTER_LIMIT
            });
        sites.extend(scales.map(|scale| (variant, Population::new(scale))));
    }
    Group { wiring: Wiring::Routed, sites, measures: results::CURVE_MEASURES.to_vec() }
}
