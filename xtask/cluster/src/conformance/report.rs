//! What came of a suite: read from ginkgo's JSON report, or taken as it is, and written as Markdown and JSON. Every spec of
//! the suite is listed, with the reason if it was not run.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::BufReader;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::suite::Outcome;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct GinkgoSuite {
    run_time: u64,
    suite_succeeded: bool,
    #[serde(default)]
    special_suite_failure_reasons: Option<Vec<String>>,
    spec_reports: Vec<GinkgoSpec>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct GinkgoSpec {
    #[serde(default)]
    container_hierarchy_texts: Option<Vec<String>>,
    leaf_node_type: String,
    leaf_node_text: String,
    state: String,
    run_time: u64,
    #[serde(default)]
    failure: Option<GinkgoFailure>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct GinkgoFailure {
    message: String,
}

impl GinkgoSpec {
    fn name(&self) -> String {
        let containers = self.container_hierarchy_texts.as_deref().unwrap_or_default();
        let mut words: Vec<&str> = containers.iter().map(String::as_str).collect();
        words.push(&self.leaf_node_text);
        words.join(" ").trim().to_owned()
    }
}

/// A spec and what came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Spec {
    name: String,
    result: SpecResult,
    /// Why it failed or was not run.
    #[serde(skip_serializing_if = "String::is_empty")]
    reason: String,
    milliseconds: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum SpecResult {
    Passed,
    Failed,
    NotRun,
}

impl Spec {
    pub(super) fn new(name: String, result: SpecResult, reason: String, milliseconds: u64) -> Self {
        Self { name, result, reason, milliseconds }
    }

    #[cfg(test)]
    pub(super) fn outcome(&self) -> (String, SpecResult) {
        (self.name.clone(), self.result)
    }
}

/// All of a run.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    name: String,
    seconds: u64,
    specs: Vec<Spec>,
    /// What went wrong outside the specs.
    problems: Vec<String>,
    /// What is to be known about the run besides.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    notes: Vec<String>,
}

impl Report {
    /// Reads ginkgo's report.
    pub(super) fn new(name: &str, outcome: &Outcome) -> Result<Self> {
        let cannot = || format!("read ginkgo's report {}", outcome.report.display());
        let file = File::open(&outcome.report).with_context(cannot)?;
        let suites: Vec<GinkgoSuite> =
            serde_json::from_reader(BufReader::new(file)).with_context(cannot)?;
        let mut report = Self::read(name, &suites, outcome);
        if !outcome.is_success && report.is_success() {
            let log = outcome.log.display();
            report.problems.push(format!("ginkgo says that the suite failed; its log is {log}"));
        }
        Ok(report)
    }

    /// Of specs that are known already.
    pub(super) fn of_specs(name: &str, seconds: u64, mut specs: Vec<Spec>) -> Self {
        specs.sort_by(|a, b| a.name.cmp(&b.name));
        Self { name: name.to_owned(), seconds, specs, problems: Vec::new(), notes: Vec::new() }
    }

    fn read(name: &str, suites: &[GinkgoSuite], outcome: &Outcome) -> Self {
        let seconds = suites.iter().map(|suite| suite.run_time / 1_000_000_000).sum();
        let mut report = Self::of_specs(name, seconds, Vec::new());
        for suite in suites {
            for spec in &suite.spec_reports {
                report.add(spec, outcome);
            }
            let reasons = suite.special_suite_failure_reasons.iter().flatten();
            report.problems.extend(reasons.cloned());
            if !suite.suite_succeeded && report.is_success() {
                report.problems.push("the suite failed outside its specs".to_owned());
            }
        }
        report.specs.sort_by(|a, b| a.name.cmp(&b.name));
        report
    }

    fn add(&mut self, spec: &GinkgoSpec, outcome: &Outcome) {
        let name = spec.name();
        let message = spec.failure.as_ref().map_or("", |failure| &failure.message);
        let is_bad = !matches!(spec.state.as_str(), "passed" | "skipped" | "pending");
        if spec.leaf_node_type != "It" {
            if is_bad {
                self.problems.push(format!("{}: {message}", spec.leaf_node_type));
            }
            return;
        }
        if !outcome.has(&name) {
            return;
        }
        let excluded = outcome.exclusions.iter().find(|exclusion| exclusion.applies(&name));
        let (result, reason) = match (spec.state.as_str(), excluded) {
            ("passed", _) => (SpecResult::Passed, ""),
            ("skipped" | "pending", Some(exclusion)) => (SpecResult::NotRun, exclusion.reason),
            ("skipped" | "pending", None) if message.is_empty() => {
                (SpecResult::NotRun, "not asked for")
            }
            ("skipped" | "pending", None) => (SpecResult::NotRun, message),
            _ => (SpecResult::Failed, message),
        };
        let milliseconds = spec.run_time / 1_000_000;
        self.specs.push(Spec { name, result, reason: reason.to_owned(), milliseconds });
    }

    fn count(&self, result: SpecResult) -> usize {
        self.specs.iter().filter(|spec| spec.result == result).count()
    }

    /// How many specs were run.
    pub(super) fn ran(&self) -> usize {
        self.count(SpecResult::Passed) + self.count(SpecResult::Failed)
    }

    /// Whether every spec that was run passed, and nothing else went wrong.
    pub(super) fn is_success(&self) -> bool {
        self.count(SpecResult::Failed) == 0 && self.problems.is_empty()
    }

    /// Notes what went wrong outside the specs.
    pub(super) fn add_problem(&mut self, problem: String) {
        self.problems.push(problem);
    }

    /// Notes what is to be known about the run besides.
    pub(super) fn add_note(&mut self, note: String) {
        self.notes.push(note);
    }

    /// One line with the figures, what went wrong outside the specs, and notes.
    pub(super) fn summary(&self) -> String {
        let mut line = format!(
            "{}: {} specs run, {} passed, {} failed, {} not run, in {} min {:02} s",
            self.name,
            self.ran(),
            self.count(SpecResult::Passed),
            self.count(SpecResult::Failed),
            self.count(SpecResult::NotRun),
            self.seconds / 60,
            self.seconds % 60,
        );
        for more in self.problems.iter().chain(&self.notes) {
            let _ = write!(line, "\n  {more}");
        }
        line
    }

    /// Writes it as `NAME.md` and `NAME.json`.
    pub(super) fn write(&self, directory: &Path) -> Result<()> {
        let json = serde_json::to_string_pretty(self)?;
        for (extension, text) in [("json", json), ("md", self.markdown())] {
            let path = directory.join(format!("{}.{extension}", self.name));
            fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        }
        Ok(())
    }

    fn markdown(&self) -> String {
        let mut text = format!("# {}\n\n{}\n", self.name, self.summary());
        for (title, result) in [
            ("Failed", SpecResult::Failed),
            ("Not run", SpecResult::NotRun),
            ("Passed", SpecResult::Passed),
        ] {
            if self.count(result) == 0 {
                continue;
            }
            let _ = write!(text, "\n## {title}\n\n");
            for spec in self.specs.iter().filter(|spec| spec.result == result) {
                let _ = write!(text, "- {}", spec.name);
                if !spec.reason.is_empty() {
                    let _ = write!(text, ": {}", spec.reason.replace('\n', " "));
                }
                if result != SpecResult::NotRun {
                    let _ = write!(text, " ({:.1} s)", spec.milliseconds as f64 / 1000.0);
                }
                text.push('\n');
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::super::suite::{Exclusion, Outcome, Suite};
    use super::*;

    fn outcome() -> Outcome {
        Outcome {
            suite: Suite::Current,
            report: "ginkgo.json".into(),
            log: "ginkgo.log".into(),
            exclusions: vec![Exclusion { label: "[SCTP]", reason: "no sockets" }],
            is_success: true,
        }
    }

    fn spec(kind: &str, container: &str, state: &str) -> serde_json::Value {
        serde_json::json!({
            "ContainerHierarchyTexts": [format!("[sig-network] {container}")],
            "LeafNodeType": kind, "LeafNodeText": "should", "State": state, "RunTime": 2_500_000,
            "Failure": {"Message": if state == "failed" { "it did not" } else { "" }},
        })
    }

    fn report(specs: &[serde_json::Value]) -> Report {
        let suites = serde_json::json!([{
            "RunTime": 61_000_000_000_u64, "SuiteSucceeded": true, "SpecReports": specs,
        }]);
        let suites: Vec<GinkgoSuite> = serde_json::from_value(suites).expect("a report");
        Report::read("name", &suites, &outcome())
    }

    #[test]
    fn every_spec_of_the_suite_is_listed_and_none_of_another() {
        let report = report(&[
            spec("It", "Netpol B", "passed"),
            spec("It", "Netpol A", "failed"),
            spec("It", "Netpol [SCTP]", "skipped"),
            spec("It", "Netpol C", "skipped"),
            spec("It", "Services", "skipped"),
        ]);
        let listed: Vec<_> = report
            .specs
            .iter()
            .map(|it| (it.name.as_str(), it.result, it.reason.as_str()))
            .collect();
        assert_eq!(
            listed,
            [
                ("[sig-network] Netpol A should", SpecResult::Failed, "it did not"),
                ("[sig-network] Netpol B should", SpecResult::Passed, ""),
                ("[sig-network] Netpol C should", SpecResult::NotRun, "not asked for"),
                ("[sig-network] Netpol [SCTP] should", SpecResult::NotRun, "no sockets"),
            ]
        );
        assert!(!report.is_success());
        assert_eq!(
            report.summary(),
            "name: 2 specs run, 1 passed, 1 failed, 2 not run, in 1 min 01 s"
        );
        assert!(report.markdown().contains("- [sig-network] Netpol A should: it did not (0.0 s)"));
    }

    #[test]
    fn a_suite_whose_preparation_failed_has_not_succeeded() {
        assert!(report(&[spec("It", "Netpol", "passed")]).is_success());
        for state in ["failed", "panicked", "timedout", "interrupted", "aborted"] {
            assert!(!report(&[spec("It", "Netpol", state)]).is_success(), "{state}");
            let prepared =
                report(&[spec("BeforeSuite", "", state), spec("It", "Netpol", "passed")]);
            assert!(!prepared.is_success(), "{state}");
        }
    }
}
