//! One run of one of upstream's test programs: its arguments, its progress, and its results. The
//! programs are upstream's; which specs cannot run on this machine is decided here, and said.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use netpol_needs::Need;
use rustix::net::{AddressFamily, SocketType, ipproto, socket};

use crate::Cluster;
use crate::binaries::{self, Program};

/// The most a run may take: a guard against one that hangs.
const TIMEOUT: &str = "2h";

/// A suite of upstream's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Suite {
    /// The one of the cluster's version.
    Current,
    /// The older one.
    Legacy,
}

impl Suite {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Current => "netpol",
            Self::Legacy => "legacy",
        }
    }

    /// How many specs at once keep two processors busy, but not so busy that allowed connections
    /// time out.
    pub(super) fn parallel(self) -> u8 {
        match self {
            Self::Current => 3,
            Self::Legacy => 6,
        }
    }

    fn programs(self) -> (Program, Program) {
        match self {
            Self::Current => (binaries::GINKGO, binaries::E2E),
            Self::Legacy => (binaries::GINKGO_LEGACY, binaries::E2E_LEGACY),
        }
    }

    pub(super) fn need(self) -> Need {
        match self {
            Self::Current => Need::Suite,
            Self::Legacy => Need::LegacySuite,
        }
    }

    /// The beginning of its specs' names, as a regular expression. The old release has the newer
    /// tests as well, in an older form; of those the current suite is the better judge.
    fn specs(self) -> &'static str {
        match self {
            Self::Current => r"\[sig-network\] Netpol",
            Self::Legacy => r"\[sig-network\] NetworkPolicy",
        }
    }

    /// Whether a spec belongs to this suite, run or not.
    fn has(self, spec: &str) -> bool {
        spec.starts_with(&self.specs().replace('\\', ""))
    }
}

/// Specs that cannot run here, and why.
pub(super) struct Exclusion {
    /// What their names contain.
    pub(super) label: &'static str,
    pub(super) reason: &'static str,
}

impl Exclusion {
    fn here() -> Vec<Self> {
        let no_sctp =
            Self { label: "[Feature:SCTPConnectivity]", reason: "this kernel has no SCTP sockets" };
        if has_sctp() { Vec::new() } else { vec![no_sctp] }
    }

    pub(super) fn applies(&self, spec: &str) -> bool {
        spec.contains(self.label)
    }

    fn regex(&self) -> String {
        self.label.replace('[', r"\[").replace(']', r"\]")
    }
}

/// Whether this kernel, which is that of every machine of the cluster, has SCTP sockets.
pub(super) fn has_sctp() -> bool {
    socket(AddressFamily::INET, SocketType::STREAM, Some(ipproto::SCTP)).is_ok()
}

/// What is to be run.
pub(super) struct Run<'a> {
    pub(super) cluster: &'a Cluster,
    pub(super) suite: Suite,
    pub(super) focus: Option<&'a str>,
    pub(super) parallel: u8,
    pub(super) directory: &'a Path,
}

/// What a run left.
pub(super) struct Outcome {
    pub(super) suite: Suite,
    /// ginkgo's JSON report.
    pub(super) report: PathBuf,
    /// Everything that ginkgo printed.
    pub(super) log: PathBuf,
    pub(super) exclusions: Vec<Exclusion>,
    pub(super) is_success: bool,
}

impl Outcome {
    pub(super) fn has(&self, spec: &str) -> bool {
        self.suite.has(spec)
    }
}

impl Run<'_> {
    /// Runs the specs to their end; that some fail is no error.
    pub(super) fn execute(&self) -> Result<Outcome> {
        let directory = self.directory;
        if directory.exists() {
            fs::remove_dir_all(directory)?;
        }
        fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
        let outcome = Outcome {
            suite: self.suite,
            report: directory.join("ginkgo.json"),
            log: directory.join("ginkgo.log"),
            exclusions: Exclusion::here(),
            is_success: false,
        };
        eprintln!("==> {} specs, log in {}", self.suite.name(), outcome.log.display());
        let is_success = self.follow(&outcome)?;
        ensure!(
            outcome.report.exists(),
            "the suite ended without a report; its log is {}",
            outcome.log.display()
        );
        Ok(Outcome { is_success, ..outcome })
    }

    fn follow(&self, outcome: &Outcome) -> Result<bool> {
        let (ginkgo, tests) = self.suite.programs();
        let (ginkgo, tests) = (binaries::find(ginkgo)?, binaries::find(tests)?);
        // The control plane's machine reaches the API server, and sees this host's files.
        let mut command = self.cluster.control().command(&ginkgo);
        command
            .args(self.ginkgo_options(outcome))
            .arg(tests)
            .arg("--")
            .args(["--provider", "skeleton", "--disable-log-dump", "--dump-logs-on-failure=false"])
            .arg("--num-nodes")
            .arg(self.cluster.nodes().len().to_string())
            .arg("--kubeconfig")
            .arg(self.cluster.inner_kubeconfig());
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .context("start ginkgo on the control plane's machine")?;
        let stdout = child.stdout.take().context("invariant: standard output is a pipe")?;
        let mut log = File::create(&outcome.log)
            .with_context(|| format!("create {}", outcome.log.display()))?;
        let mut progress = Progress::new();
        for line in BufReader::new(stdout).split(b'\n') {
            let line = line.context("read ginkgo's output")?;
            log.write_all(&line)?;
            log.write_all(b"\n")?;
            progress.read(&String::from_utf8_lossy(&line));
        }
        Ok(child.wait().context("wait for ginkgo")?.success())
    }

    fn ginkgo_options(&self, outcome: &Outcome) -> Vec<String> {
        let focus = format!("{}.*{}", self.suite.specs(), self.focus.unwrap_or_default());
        let mut options = vec![
            format!("--procs={}", self.parallel.max(1)),
            format!("--timeout={TIMEOUT}"),
            "--no-color".to_owned(),
            "-v".to_owned(),
            "--json-report=ginkgo.json".to_owned(),
            format!("--output-dir={}", self.directory.display()),
            format!("--focus={focus}"),
        ];
        options.extend(outcome.exclusions.iter().map(|it| format!("--skip={}", it.regex())));
        options
    }
}

/// Tells a person which specs are done. ginkgo writes a line `• [12.3 seconds]` or
/// `• [FAILED] [12.3 seconds]`, and the spec's name in the next one.
struct Progress {
    started: Instant,
    result: Option<String>,
    done: usize,
}

impl Progress {
    fn new() -> Self {
        Self { started: Instant::now(), result: None, done: 0 }
    }

    fn read(&mut self, line: &str) {
        if let Some(line) = self.finished(line) {
            eprintln!("{:>6.0} s  {line}", self.started.elapsed().as_secs_f64());
        }
    }

    /// The line to show for a spec that is done.
    fn finished(&mut self, line: &str) -> Option<String> {
        if let Some(result) = line.strip_prefix('•').filter(|rest| rest.starts_with(' ')) {
            let word = if result.contains("[FAILED]") || result.contains("[PANICKED]") {
                "FAILED"
            } else if result.contains("[SKIPPED]") {
                "skipped"
            } else {
                "passed"
            };
            self.result = Some(word.to_owned());
            return None;
        }
        let name = line.trim_start().strip_prefix("[sig-network] ")?;
        let result = self.result.take()?;
        self.done += 1;
        let name = name.split(" [Feature:NetworkPolicy]").next().unwrap_or(name);
        Some(format!("{:>3} {result:<7} {}", self.done, name.replace("[It] ", "")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_names_each_spec_with_its_result() {
        let mut progress = Progress::new();
        let lines = [
            "------------------------------",
            "[sig-network] Netpol x should begin [Feature:NetworkPolicy]",
            "• [22.317 seconds]",
            "[sig-network] Netpol x should pass [Feature:NetworkPolicy] [sig-network]",
            "k8s.io/kubernetes/test/e2e/network/netpol/network_policy.go:80",
            "• [FAILED] [42.1 seconds]",
            "[sig-network] Netpol x [It] should fail [Feature:NetworkPolicy]",
        ];
        let shown: Vec<_> = lines.iter().filter_map(|line| progress.finished(line)).collect();
        assert_eq!(shown, ["  1 passed  Netpol x should pass", "  2 FAILED  Netpol x should fail"]);
    }

    #[test]
    fn a_suite_knows_its_specs() {
        assert!(Suite::Current.has("[sig-network] Netpol API should support"));
        assert!(!Suite::Current.has("[sig-network] NetworkPolicy API should support"));
        assert!(Suite::Legacy.has("[sig-network] NetworkPolicyLegacy [LinuxOnly] x"));
        assert!(!Suite::Legacy.has("[sig-node] Pods should"));
    }
}
