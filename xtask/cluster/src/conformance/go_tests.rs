//! What a Go test program printed (`-test.v=test2json`), as it comes: each test that has no tests below it is
//! a spec. Must never take a failed test for one that passed, whatever its name is.

use std::collections::{BTreeMap, BTreeSet};

use super::report::{Spec, SpecResult};

/// The test above all others: its name stands before theirs.
const ROOT: &str = "TestConformanceProfiles";
/// Lines of the suite's preparation that say how far it is.
const STEPS: [&str; 2] = ["Test Setup: ", "Namespaces and Pods in "];
/// Begins a line that is the test runner's, not a test's.
const MARK: char = '\u{16}';
/// A connection that was tried begins a line so in the suite's log.
const TRIED: &str = "FAILED Command was ";
/// What fails when a kernel has no SCTP sockets.
const SCTP: &str = "--protocol=sctp";

/// All tests seen so far.
#[derive(Debug)]
pub(super) struct Tests {
    /// This kernel has SCTP sockets.
    has_sctp: bool,
    ended: BTreeMap<String, Ended>,
    logs: BTreeMap<String, Vec<String>>,
    /// Tests with tests below them.
    above: BTreeSet<String>,
    current: String,
}

#[derive(Debug)]
struct Ended {
    word: Word,
    milliseconds: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Word {
    Pass,
    Fail,
    Skip,
}

impl Tests {
    pub(super) fn new(has_sctp: bool) -> Self {
        Self {
            has_sctp,
            ended: BTreeMap::new(),
            logs: BTreeMap::new(),
            above: BTreeSet::new(),
            current: String::new(),
        }
    }

    /// Takes a line; returns what to show if it ends a test.
    pub(super) fn read(&mut self, line: &str) -> Option<String> {
        let trimmed = line.trim_start_matches(MARK).trim_start().trim_start_matches(MARK);
        for start in ["=== RUN ", "=== NAME ", "=== CONT ", "=== PAUSE "] {
            if let Some(name) = trimmed.strip_prefix(start) {
                name.trim().clone_into(&mut self.current);
                self.note_above();
                return None;
            }
        }
        let Some((word, name, milliseconds)) = end(trimmed) else {
            if !trimmed.is_empty() {
                self.logs.entry(self.current.clone()).or_default().push(trimmed.to_owned());
            }
            // How far the preparation is, which takes as long as many tests.
            let is_step = self.current == ROOT && STEPS.iter().any(|step| trimmed.contains(step));
            return is_step.then(|| trimmed.split_once(": ").map_or(trimmed, |it| it.1).to_owned());
        };
        self.ended.insert(name.to_owned(), Ended { word, milliseconds });
        let shown = match word {
            Word::Pass => "passed",
            Word::Fail if self.lacks_sctp(name) => "no SCTP",
            Word::Fail => "FAILED",
            Word::Skip => "skipped",
        };
        let is_spec = !self.above.contains(name);
        is_spec.then(|| format!("{shown:<7} {}", short(name)))
    }

    fn note_above(&mut self) {
        let mut name = self.current.as_str();
        while let Some((above, _)) = name.rsplit_once('/') {
            self.above.insert(above.to_owned());
            name = above;
        }
    }

    /// What came of each. Where there are no SCTP sockets, a spec that ended at such a connection was
    /// not run.
    pub(super) fn specs(&self) -> Vec<Spec> {
        let mut specs = Vec::new();
        for (name, ended) in &self.ended {
            let is_below = |other: &&String| other.starts_with(&format!("{name}/"));
            let fails = |other: &String| self.ended.get(other).is_some_and(Ended::is_failure);
            if self.above.contains(name)
                && (!ended.is_failure() || self.ended.keys().filter(is_below).any(fails))
            {
                continue;
            }
            let (result, reason) = match ended.word {
                Word::Pass => (SpecResult::Passed, String::new()),
                Word::Skip => (SpecResult::NotRun, self.last(name)),
                Word::Fail if self.lacks_sctp(name) => {
                    let reason = "this kernel has no SCTP sockets (what it tries before, passed)";
                    (SpecResult::NotRun, reason.to_owned())
                }
                Word::Fail => (SpecResult::Failed, self.why(name)),
            };
            specs.push(Spec::new(short(name), result, reason, ended.milliseconds));
        }
        // A test that began and of which nothing was heard again: the program broke off.
        let names: BTreeSet<&String> = self.logs.keys().chain([&self.current]).collect();
        let is_open = |name: &String| {
            !name.is_empty() && !self.ended.contains_key(name) && !self.above.contains(name)
        };
        for name in names.into_iter().filter(|name| is_open(name)) {
            let reason = "it did not end".to_owned();
            specs.push(Spec::new(short(name), SpecResult::Failed, reason, 0));
        }
        specs
    }

    fn lacks_sctp(&self, name: &str) -> bool {
        !self.has_sctp && self.tried(name).is_some_and(|it| it.contains(SCTP))
    }

    fn log(&self, name: &str) -> &[String] {
        self.logs.get(name).map_or(&[], Vec::as_slice)
    }

    fn last(&self, name: &str) -> String {
        self.log(name).last().cloned().unwrap_or_default()
    }

    /// The last connection that did not do what was expected.
    fn tried(&self, name: &str) -> Option<&str> {
        let mut lines = self.log(name).iter().rev();
        lines.find_map(|line| Some(line.split_once(TRIED)?.1))
    }

    /// The last connection and what was said of it, or all that was said.
    fn why(&self, name: &str) -> String {
        let log = self.log(name);
        let from = log.iter().rposition(|line| line.contains(TRIED));
        let lines = match from {
            Some(from) => &log[from..log.len().min(from + 2)],
            None => &log[log.len().saturating_sub(8)..],
        };
        lines.join(" ")
    }
}

impl Ended {
    fn is_failure(&self) -> bool {
        self.word == Word::Fail
    }
}

/// `--- PASS: Name (1.50s)`.
fn end(line: &str) -> Option<(Word, &str, u64)> {
    let (word, rest) = line.strip_prefix("--- ")?.split_once(": ")?;
    let word = match word {
        "PASS" => Word::Pass,
        "FAIL" => Word::Fail,
        "SKIP" => Word::Skip,
        _ => return None,
    };
    let (name, seconds) = rest.strip_suffix("s)")?.rsplit_once(" (")?;
    let (whole, part) = seconds.split_once('.')?;
    let whole: u64 = whole.parse().ok()?;
    let part: u64 = part.get(..2)?.parse().ok()?;
    Some((word, name, whole * 1000 + part * 10))
}

/// Without the test above all others, and as it was written.
fn short(name: &str) -> String {
    let rest = name.strip_prefix(ROOT).unwrap_or(name).trim_start_matches('/');
    if rest.is_empty() { "preparation and end".to_owned() } else { rest.replace('_', " ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRINTED: &str = "\
=== RUN   TestConformanceProfiles
    suite.go:1: Test Setup: Applying base manifests
=== RUN   TestConformanceProfiles/CNPTierTCP
    suite.go:2: Applying base/x.yaml
=== RUN   TestConformanceProfiles/CNPTierTCP/Should_support_'allow'
    helper.go:9: FAILED Command was [/agnhost connect --timeout=3s --protocol=tcp 10.0.0.1:80]
    helper.go:9: Expected connection to succeed from a/b to c, but instead it miserably failed.
=== RUN   TestConformanceProfiles/CNPTierTCP/Should_support_'deny'
    helper.go:9: FAILED Command was [/agnhost connect --timeout=3s --protocol=tcp 10.0.0.1:80]
    helper.go:9: Expected connection to fail from a/b to c, but instead it successfully connected.
    helper.go:9: \n    \tError Trace:\thelper.go:8
    \tError:      \tCondition never satisfied
=== NAME  TestConformanceProfiles/CNPTierTCP
    apply.go:3: Deleting x
=== RUN   TestConformanceProfiles/CNPTierSCTP
=== RUN   TestConformanceProfiles/CNPTierSCTP/Should_support_both
    helper.go:9: FAILED Command was [/agnhost connect --timeout=3s --protocol=sctp 10.0.0.1:90]
    helper.go:9: Expected connection to succeed
=== RUN   TestConformanceProfiles/CNPTierNodes
    suite.go:2: Skipping CNPTierNodes: suite does not support it
=== NAME  TestConformanceProfiles
--- FAIL: TestConformanceProfiles (61.00s)
    --- FAIL: TestConformanceProfiles/CNPTierTCP (13.00s)
        --- PASS: TestConformanceProfiles/CNPTierTCP/Should_support_'allow' (1.25s)
        --- FAIL: TestConformanceProfiles/CNPTierTCP/Should_support_'deny' (10.00s)
    --- FAIL: TestConformanceProfiles/CNPTierSCTP (10.00s)
        --- FAIL: TestConformanceProfiles/CNPTierSCTP/Should_support_both (10.00s)
    --- SKIP: TestConformanceProfiles/CNPTierNodes (0.00s)
FAIL
";

    fn read(text: &str, has_sctp: bool) -> Tests {
        let mut tests = Tests::new(has_sctp);
        for line in text.lines() {
            tests.read(line);
        }
        tests
    }

    fn results(text: &str, has_sctp: bool) -> Vec<(String, SpecResult)> {
        read(text, has_sctp).specs().iter().map(Spec::outcome).collect()
    }

    fn spec(name: &str, result: SpecResult) -> (String, SpecResult) {
        (name.to_owned(), result)
    }

    #[test]
    fn a_spec_is_a_test_without_others_below() {
        let all = [
            spec("CNPTierNodes", SpecResult::NotRun),
            spec("CNPTierSCTP/Should support both", SpecResult::Failed),
            spec("CNPTierTCP/Should support 'allow'", SpecResult::Passed),
            spec("CNPTierTCP/Should support 'deny'", SpecResult::Failed),
        ];
        assert_eq!(results(PRINTED, true), all);
        let tests = read(PRINTED, true);
        let why = tests.why("TestConformanceProfiles/CNPTierTCP/Should_support_'deny'");
        assert!(why.contains("--protocol=tcp") && why.contains("successfully connected"), "{why}");
    }

    #[test]
    fn without_sctp_sockets_only_what_ends_at_such_a_connection_was_not_run() {
        let failed: Vec<_> = results(PRINTED, false)
            .into_iter()
            .filter(|(_, result)| *result == SpecResult::Failed)
            .collect();
        assert_eq!(failed, [spec("CNPTierTCP/Should support 'deny'", SpecResult::Failed)]);
    }

    #[test]
    fn what_fails_above_all_specs_is_one() {
        let text = "=== RUN   TestConformanceProfiles\n    a.go:1: no CRDs found\n\
                    --- FAIL: TestConformanceProfiles (0.10s)\nFAIL\n";
        assert_eq!(results(text, true), [spec("preparation and end", SpecResult::Failed)]);
        let text = "=== RUN   TestConformanceProfiles\n=== RUN   TestConformanceProfiles/A\n\
                    === RUN   TestConformanceProfiles/A/b\n    --- FAIL: TestConformanceProfiles/A (1.00s)\n        \
                    --- PASS: TestConformanceProfiles/A/b (1.00s)\n--- FAIL: TestConformanceProfiles (1.00s)\n";
        let all = [spec("A", SpecResult::Failed), spec("A/b", SpecResult::Passed)];
        assert_eq!(results(text, true), all);
    }

    #[test]
    fn a_program_that_breaks_off_fails_what_it_was_at() {
        let text = "=== RUN   TestConformanceProfiles\n=== RUN   TestConformanceProfiles/A\n\
                    === RUN   TestConformanceProfiles/A/b\npanic: test timed out\n";
        assert_eq!(results(text, true), [spec("A/b", SpecResult::Failed)]);
    }

    #[test]
    fn marks_of_the_runners_lines_are_none_of_them() {
        let marked: Vec<String> = PRINTED
            .lines()
            .map(|line| match line.trim_start() {
                it if it.starts_with("===") => format!("{MARK}{line}"),
                it if it.starts_with("---") => line.replace("---", &format!("{MARK}---")),
                _ => line.to_owned(),
            })
            .collect();
        assert_eq!(results(&marked.join("\n"), true), results(PRINTED, true));
    }

    #[test]
    fn progress_names_specs_and_the_steps_before_them() {
        let mut tests = Tests::new(true);
        let shown: Vec<_> = PRINTED.lines().filter_map(|line| tests.read(line)).collect();
        assert_eq!(shown.len(), 5, "{shown:?}");
        assert_eq!(shown[0], "Test Setup: Applying base manifests");
        assert_eq!(shown[1], "passed  CNPTierTCP/Should support 'allow'");
    }
}
