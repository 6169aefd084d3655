//! Which kernels, which test programs on each, and what each kernel is known to lack: tables. Pure.
//!
//! What a kernel lacks is written down here, so that a feature that vanishes, in a kernel or in
//! netpol's probing, fails.

use crate::guest::Job;
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

/// A test program's tests that are run inside.
struct Program {
    name: &'static str,
    /// What libtest selects by: names contain one of these.
    full: &'static [&'static str],
    /// The same for [`Extent::Quick`]; `None`: nothing.
    quick: Option<&'static [&'static str]>,
}

const ALL: &[&str] = &[];
/// The wirings that differ in which hooks a packet meets.
const WIRINGS: &[&str] = &["routed", "bridge"];

/// What every run has: each loads and verifies the programs, which takes most of the time.
const VERDICTS: &[&str] =
    &["replies_pass_and_only_replies", "icmp_errors_pass_for_known_flows_only"];
const ATTACH: &[&str] = &["another_agent_replaces_the_filters_of_the_one_before"];
const RESTART: &[&str] = &["a_restart_replaces_the_programs_in_their_links"];
const WIRE: &[&str] = &["routed_dual::replies"];

const PROGRAMS: &[Program] = &[
    Program { name: "datapath_verdicts", full: ALL, quick: Some(VERDICTS) },
    Program { name: "datapath_attach", full: ALL, quick: Some(ATTACH) },
    Program { name: "datapath_services", full: ALL, quick: None },
    Program { name: "attach_foreign", full: ALL, quick: None },
    Program { name: "agent_restart", full: ALL, quick: Some(RESTART) },
    Program { name: "flow_wire", full: ALL, quick: None },
    Program { name: "wire_policies", full: WIRINGS, quick: Some(WIRE) },
    Program { name: "wire_sources", full: WIRINGS, quick: None },
    Program { name: "wire_icmp", full: WIRINGS, quick: None },
    Program { name: "wire_packets", full: WIRINGS, quick: None },
    Program { name: "hostile_attacks", full: ALL, quick: None },
];

impl Extent {
    /// When a job hangs: on a machine that others use everything takes many times as long.
    fn patience(self) -> u64 {
        match self {
            Self::Full => 3600,
            Self::Quick => 600,
        }
    }
}

/// The job that says what the kernel has.
pub const CAPABILITIES: &str = "capabilities";

/// The jobs on a kernel, in their order; `filter`: only programs whose name contains it.
#[must_use]
pub fn jobs(row: &Row, extent: Extent, filter: &str) -> Vec<Job> {
    let words = [programs::NETPOL, "capabilities", "-o", "json"];
    let first = Job {
        name: CAPABILITIES.to_owned(),
        seconds: extent.patience(),
        words: words.map(str::to_owned).to_vec(),
    };
    let mut jobs = vec![first];
    for (program, names) in selected(extent, filter).filter(|_| !row.is_refused) {
        let mut words = vec![programs::place(program.name)];
        words.extend(names.iter().map(|name| (*name).to_owned()));
        jobs.push(Job { name: program.name.to_owned(), seconds: extent.patience(), words });
    }
    jobs
}

/// The test programs of such jobs.
#[must_use]
pub fn tests(extent: Extent, filter: &str) -> Vec<&'static str> {
    selected(extent, filter).map(|(program, _)| program.name).collect()
}

fn selected(
    extent: Extent,
    filter: &str,
) -> impl Iterator<Item = (&'static Program, &'static [&'static str])> {
    PROGRAMS.iter().filter(move |program| program.name.contains(filter)).filter_map(
        move |program| match extent {
            Extent::Full => Some((program, program.full)),
            Extent::Quick => Some((program, program.quick?)),
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_every_run_has_is_a_part_of_all_and_every_end_is_a_kernel() {
        let full = tests(Extent::Full, "");
        let quick = tests(Extent::Quick, "");
        assert!(!quick.is_empty() && quick.iter().all(|name| full.contains(name)));
        for version in ENDS {
            assert!(!row(version).is_refused && row(version).version == version);
        }
        assert_eq!(full, netpol_needs::IN_KERNELS);
    }

    #[test]
    fn a_refused_kernel_is_only_asked() {
        assert_eq!(jobs(&row("5.10"), Extent::Full, "").len(), 1);
        assert_eq!(jobs(&row("6.1"), Extent::Full, "verdicts").len(), 2);
    }
}
