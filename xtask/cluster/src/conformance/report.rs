//! What came of a suite: read from ginkgo's JSON report, written as Markdown and JSON. Every spec of
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
enum SpecResult {
    Passed,
    Failed,
    NotRun,
}

/// All of a run.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    name: String,
    seconds: u64,
    specs: Vec<Spec>,
    /// What went wrong outside the specs.
    problems: Vec<String>,
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

    fn read(name: &str, suites: &[GinkgoSuite], outcome: &Outcome) -> Self {
        let mut report = Self {
            name: name.to_owned(),
            seconds: suites.iter().map(|suite| suite.run_time / 1_000_000_000).sum(),
            specs: Vec::new(),
            problems: Vec::new(),
        };
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

    /// One line with the figures.
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
        for problem in &self.problems {
            let _ = write!(line, "\n  {problem}");
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
