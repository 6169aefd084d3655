//! Which kernels, which test programs on each, and what each kernel is known to lack: tables. Pure.
//!
//! What a kernel lacks is written down here, so that a feature that vanishes, in a kernel or in
//! netpol's probing, fails.

use crate::guest::Job;
use crate::packages::LARGE_PAGES;
use crate::programs;

/// A kernel that netpol's tests run on.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// The start of its release.
    pub version: &'static str,
    /// netpol refuses it, with a reason.
    pub is_refused: bool,
    /// Features that it has not.
    pub lacks: &'static [&'static str],
}

/// All of them, oldest first.
pub const KERNELS: &[Row] = &[
    Row { version: "5.10", is_refused: true, lacks: &[] },
    Row { version: "6.1", is_refused: false, lacks: &["tcx"] },
    Row { version: "6.12", is_refused: false, lacks: &[] },
    Row { version: "6.18", is_refused: false, lacks: &[] },
    Row { version: "7", is_refused: false, lacks: &[] },
];

/// The oldest that netpol runs on, and the newest: these are part of every test run.
pub const ENDS: [&str; 2] = ["6.1", "7"];

/// The row of a kernel; one that is not in the table lacks nothing.
#[must_use]
pub fn row(version: &str) -> Row {
    let version = version.strip_suffix(LARGE_PAGES).unwrap_or(version);
    let found = KERNELS.iter().find(|row| row.version == version);
    found.copied().unwrap_or(Row { version: "", is_refused: false, lacks: &[] })
}

/// How much of the tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// All that the table has.
    Full,
    /// What fits into a test run.
    Quick,
}

/// Tests of a module that are run inside, as one job.
struct Tests {
    module: &'static str,
    /// What the job is called besides, and its variable; empty: it has none.
    variant: [&'static str; 2],
    /// How the names of the tests in the module begin.
    full: &'static [&'static str],
    /// The same for [`Extent::Quick`]; `None`: nothing.
    quick: Option<&'static [&'static str]>,
}

const ALL: &[&str] = &[""];
/// The wirings that differ in which hooks a packet meets.
const WIRINGS: &[&str] = &["routed", "bridge"];

/// What every run has: each loads and verifies the programs, which takes most of the time.
const VERDICTS: &[&str] =
    &["replies_pass_and_only_replies", "icmp_errors_pass_for_known_flows_only"];
const ATTACH: &[&str] = &["another_agent_replaces_the_filters_of_the_one_before"];
const RESTART: &[&str] = &["a_restart_replaces_the_programs_in_their_links"];
const WIRE: &[&str] = &["routed_dual::replies"];

/// Tunnels that carry both families, and IPIP, which carries one.
const GRE: [&str; 2] = ["gre", "NETPOL_TUNNEL=gre"];
const WIREGUARD: [&str; 2] = ["wireguard", "NETPOL_TUNNEL=wireguard"];
const IPIP: [&str; 2] = ["ipip", "NETPOL_TUNNEL=ipip"];
/// The networks with a tunnel, by what their tests are called.
const OVERLAYS: &[&str] = &["an_overlay", "a_routed_overlay"];
const OVERLAYS_V4: &[&str] = &["a_routed_overlay"];
const ROWS_V4: &[&str] = &["routed_overlay"];
const OVERLAYS_DUAL: &[&str] = &["overlay_dual"];
/// One mode of the proxy.
const SERVICES: &[&str] = &["overlay::nftables", "routed_overlay::nftables"];
const SERVICES_V4: &[&str] = &["routed_overlay::nftables"];

const TESTS: &[Tests] = &[
    Tests::quick("datapath_verdicts", ALL, VERDICTS),
    Tests::quick("datapath_attach", ALL, ATTACH),
    Tests::new("datapath_services", ALL),
    Tests::new("attach_foreign", ALL),
    Tests::quick("agent_restart", ALL, RESTART),
    Tests::new("flow_wire", ALL),
    Tests::quick("wire_policies", WIRINGS, WIRE),
    Tests::new("wire_sources", WIRINGS),
    Tests::new("wire_icmp", WIRINGS),
    Tests::new("wire_packets", WIRINGS),
    Tests::new("wire_topologies", OVERLAYS),
    Tests::new("service_kinds", SERVICES),
    Tests::variant(IPIP, "wire_topologies", OVERLAYS_V4),
    Tests::variant(IPIP, "wire_policies", ROWS_V4),
    Tests::variant(IPIP, "wire_icmp", ROWS_V4),
    Tests::variant(IPIP, "service_kinds", SERVICES_V4),
    Tests::variant(GRE, "wire_topologies", OVERLAYS),
    Tests::variant(GRE, "wire_policies", OVERLAYS_DUAL),
    Tests::variant(GRE, "wire_icmp", OVERLAYS_DUAL),
    Tests::variant(GRE, "service_kinds", SERVICES),
    Tests::variant(WIREGUARD, "wire_topologies", OVERLAYS),
    Tests::variant(WIREGUARD, "wire_policies", OVERLAYS_DUAL),
    Tests::variant(WIREGUARD, "wire_icmp", OVERLAYS_DUAL),
    Tests::variant(WIREGUARD, "service_kinds", SERVICES),
    Tests::new("hostile_attacks", ALL),
    Tests::new("inside_sctp", ALL),
    Tests::new("inside_loss", ALL),
];

impl Tests {
    const fn new(module: &'static str, full: &'static [&'static str]) -> Self {
        Self { module, variant: ["", ""], full, quick: None }
    }

    const fn quick(
        module: &'static str,
        full: &'static [&'static str],
        quick: &'static [&'static str],
    ) -> Self {
        Self { module, variant: ["", ""], full, quick: Some(quick) }
    }

    const fn variant(
        variant: [&'static str; 2],
        module: &'static str,
        full: &'static [&'static str],
    ) -> Self {
        Self { module, variant, full, quick: None }
    }

    /// The program that the module is part of.
    fn program(&self) -> &'static str {
        netpol_needs::program_in_kernels(self.module).expect("invariant: tried by a test")
    }

    /// What the job is called.
    fn name(&self) -> String {
        let [variant, _] = self.variant;
        if variant.is_empty() {
            self.module.to_owned()
        } else {
            format!("{}/{variant}", self.module)
        }
    }
}

impl Extent {
    /// When a job hangs: on a machine that others use everything takes many times as long.
    fn patience(self) -> u64 {
        match self {
            Self::Full => 3600,
            Self::Quick => 1200,
        }
    }
}

/// The job that says what the kernel has.
pub const CAPABILITIES: &str = "capabilities";

/// The job that starts an agent where netpol refuses the kernel.
pub const AGENT: &str = "agent";

/// The jobs on a kernel, in their order; `filter`: only those whose name contains it; `cases`: how
/// often tests repeat what they repeat.
#[must_use]
pub fn jobs(row: &Row, extent: Extent, filter: &str, cases: Option<u64>) -> Vec<Job> {
    let words = [programs::NETPOL, "capabilities", "-o", "json"];
    let first = Job {
        name: CAPABILITIES.to_owned(),
        seconds: extent.patience(),
        words: words.map(str::to_owned).to_vec(),
    };
    let mut jobs = vec![first];
    if row.is_refused {
        let words = [programs::NETPOL, "agent", "--node-name", "node", "--manifests", "/root"];
        let words = words.map(str::to_owned).to_vec();
        jobs.push(Job { name: AGENT.to_owned(), seconds: extent.patience(), words });
    }
    for (tests, names) in selected(extent, filter).filter(|_| !row.is_refused) {
        let mut words = vec![programs::ENV.to_owned()];
        let [_, variable] = tests.variant;
        words.extend(Some(variable.to_owned()).filter(|variable| !variable.is_empty()));
        words.extend(cases.map(|cases| format!("NETPOL_CASES={cases}")));
        words.push(programs::place(tests.program()));
        words.extend(names.iter().map(|name| format!("{}::{name}", tests.module)));
        jobs.push(Job { name: tests.name(), seconds: extent.patience(), words });
    }
    jobs
}

/// The names of all jobs, in their order.
#[must_use]
pub fn names() -> Vec<String> {
    let first = [CAPABILITIES, AGENT].map(str::to_owned);
    first.into_iter().chain(TESTS.iter().map(Tests::name)).collect()
}

/// The test programs of such jobs.
#[must_use]
pub fn programs(extent: Extent, filter: &str) -> Vec<&'static str> {
    let mut programs: Vec<&str> = Vec::new();
    for (tests, _) in selected(extent, filter) {
        if !programs.contains(&tests.program()) {
            programs.push(tests.program());
        }
    }
    programs
}

fn selected(
    extent: Extent,
    filter: &str,
) -> impl Iterator<Item = (&'static Tests, &'static [&'static str])> {
    TESTS.iter().filter(move |tests| tests.name().contains(filter)).filter_map(move |tests| {
        match extent {
            Extent::Full => Some((tests, tests.full)),
            Extent::Quick => Some((tests, tests.quick?)),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_every_run_has_is_a_part_of_all_and_every_end_is_a_kernel() {
        let full = programs(Extent::Full, "");
        let quick = programs(Extent::Quick, "");
        assert!(!quick.is_empty() && quick.iter().all(|name| full.contains(name)));
        for version in ENDS {
            assert!(!row(version).is_refused && row(version).version == version);
        }
        assert_eq!(full, netpol_needs::programs_in_kernels());
        let modules: std::collections::BTreeSet<_> =
            TESTS.iter().map(|tests| tests.module).collect();
        let known = netpol_needs::IN_KERNELS.iter().map(|(_, module)| *module);
        assert_eq!(modules, known.collect());
    }

    #[test]
    fn a_refused_kernel_is_only_asked() {
        assert_eq!(jobs(&row("5.10"), Extent::Full, "", None).len(), 2);
        assert_eq!(jobs(&row("6.1"), Extent::Full, "verdicts", None).len(), 2);
        let over = jobs(&row("7"), Extent::Full, "wire_icmp/gre", Some(7)).remove(1);
        let words = [
            "/bin/env",
            "NETPOL_TUNNEL=gre",
            "NETPOL_CASES=7",
            "/tests/wire",
            "wire_icmp::overlay_dual",
        ];
        assert_eq!(
            (over.name.as_str(), over.words),
            ("wire_icmp/gre", words.map(str::to_owned).to_vec())
        );
    }
}
