//! What came out of a run, and the table of it. A test that did not say how it ended has failed; must
//! never take silence for success.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use crate::frames::{Frame, Kind};
use crate::matrix::{self, AGENT, CAPABILITIES, Row};
use crate::results;

/// What came out of one job on one kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Cell {
    Passed(u64),
    /// Some tests are about what the kernel is known to lack; the rest passed.
    Missing {
        passed: u64,
        features: BTreeSet<String>,
    },
    Failed {
        passed: u64,
        what: Vec<String>,
    },
    /// netpol refuses the kernel, as it should: the reason.
    Refused(String),
}

/// One kernel's results.
#[derive(Clone, Debug)]
pub(crate) struct Column {
    release: String,
    cells: BTreeMap<String, (Cell, f64)>,
    programs: Vec<Loaded>,
    /// How long all of it took.
    pub(crate) seconds: f64,
}

/// A program that the kernel has taken.
#[derive(Clone, Debug)]
struct Loaded {
    name: String,
    instructions: u64,
    milliseconds: f64,
}

/// What came out.
#[derive(Clone, Debug, Default)]
pub struct Report {
    pub(crate) columns: Vec<Column>,
}

impl Column {
    /// One without results.
    pub(crate) fn new(release: &str) -> Self {
        let (cells, programs) = (BTreeMap::new(), Vec::new());
        Self { release: release.to_owned(), cells, programs, seconds: 0.0 }
    }

    /// There is a result of this job.
    pub(crate) fn has(&self, job: &str) -> bool {
        self.cells.contains_key(job)
    }

    /// This job has no result of its own.
    pub(crate) fn fail(&mut self, job: &str, why: &str, seconds: f64) {
        let cell = Cell::Failed { passed: 0, what: vec![why.to_owned()] };
        self.cells.insert(job.to_owned(), (cell, seconds));
    }

    /// The result of a job.
    pub(crate) fn take(&mut self, frame: &Frame, row: &Row, seconds: f64, show_output: bool) {
        let output = String::from_utf8_lossy(&frame.body);
        let cell = match (frame.kind, frame.name.as_str()) {
            (Kind::TooLong, _) => {
                Cell::Failed { passed: 0, what: vec![format!("killed after {seconds:.0} s")] }
            }
            (_, CAPABILITIES) => self.capabilities(&output, row),
            (_, AGENT) => refused(&output, frame.code),
            _ => tested(&output, frame.code, row),
        };
        let is_bad = matches!(cell, Cell::Failed { .. });
        let release = short(&self.release);
        eprintln!("    {release} {}: {} ({seconds:.0} s)", frame.name, cell.text());
        if is_bad || show_output {
            eprintln!("{output}");
        }
        self.cells.insert(frame.name.clone(), (cell, seconds));
    }

    /// What `netpol capabilities -o json` said.
    fn capabilities(&mut self, output: &str, row: &Row) -> Cell {
        let fail = |what: String| Cell::Failed { passed: 0, what: vec![what] };
        let Ok(said) = serde_json::from_str::<serde_json::Value>(output) else {
            return fail("it said nothing that can be read".to_owned());
        };
        for program in said["programs"].as_array().into_iter().flatten() {
            self.programs.push(Loaded {
                name: program["name"].as_str().unwrap_or_default().to_owned(),
                instructions: program["verified_instructions"].as_u64().unwrap_or(0),
                milliseconds: program["load_ms"].as_f64().unwrap_or(0.0),
            });
        }
        let is_supported = said["supported"].as_bool();
        let reason = said["reason"].as_str().unwrap_or_default().to_owned();
        match (row.is_refused, is_supported) {
            (true, Some(false)) if !reason.is_empty() => return Cell::Refused(reason),
            (true, _) => return fail("the kernel is not refused with a reason".to_owned()),
            (false, Some(true)) => {}
            (false, _) => return fail(format!("the kernel is refused: {reason}")),
        }
        let features = said["features"].as_array().into_iter().flatten();
        let absent: BTreeSet<String> = features
            .filter(|feature| feature["present"] == false)
            .filter_map(|feature| Some(feature["name"].as_str()?.to_owned()))
            .collect();
        let known: BTreeSet<String> = row.lacks.iter().map(|name| (*name).to_owned()).collect();
        if absent != known {
            return fail(format!("missing are {absent:?}, and known to be missing {known:?}"));
        }
        if absent.is_empty() {
            Cell::Passed(1)
        } else {
            Cell::Missing { passed: 1, features: absent }
        }
    }
}

/// What an agent said that should have refused to start.
fn refused(output: &str, code: i32) -> Cell {
    let reason = output.lines().find_map(|line| Some(&line[line.find("this kernel (")?..]));
    match reason.filter(|reason| code > 0 && reason.contains(" lacks ")) {
        Some(reason) => Cell::Refused(reason.to_owned()),
        None => Cell::Failed {
            passed: 0,
            what: vec![format!("the agent did not refuse the kernel with a reason (code {code})")],
        },
    }
}

/// What a test program's output amounts to.
fn tested(output: &str, code: i32, row: &Row) -> Cell {
    let counts = results::read(output);
    let mut what = counts.failed.clone();
    let mut features = BTreeSet::new();
    for (test, feature) in &counts.missing {
        if row.lacks.contains(&feature.as_str()) {
            features.insert(feature.clone());
        } else {
            what.push(format!("{test} (misses {feature}, which this kernel has)"));
        }
    }
    let passed = counts.passed;
    if !counts.is_complete {
        what.push(format!("it ended without a result (code {code})"));
    } else if passed == 0 && features.is_empty() && what.is_empty() {
        what.push("no test was run".to_owned());
    } else if (code == 0) != (counts.missing.is_empty() && counts.failed.is_empty()) {
        what.push(format!("its code {code} is not what it printed"));
    }
    match (what.is_empty(), features.is_empty()) {
        (false, _) => Cell::Failed { passed, what },
        (true, true) => Cell::Passed(passed),
        (true, false) => Cell::Missing { passed, features },
    }
}

impl Cell {
    fn text(&self) -> String {
        match self {
            Self::Passed(count) => format!("{count} passed"),
            Self::Missing { passed, features } => {
                let names: Vec<&str> = features.iter().map(String::as_str).collect();
                format!("{passed} passed, missing feature {}", names.join(", "))
            }
            Self::Failed { passed, what } => {
                format!("{passed} passed, {} failed: {}", what.len(), what.join(", "))
            }
            Self::Refused(reason) => format!("refused: {reason}"),
        }
    }

    /// The same for a narrow column.
    fn short(&self) -> String {
        match self {
            Self::Failed { passed, what } => format!("{passed} passed, {} FAILED", what.len()),
            Self::Missing { passed, features } => {
                let names: Vec<&str> = features.iter().map(String::as_str).collect();
                format!("{passed} passed, no {}", names.join(", "))
            }
            Self::Refused(_) => "refused".to_owned(),
            Self::Passed(_) => self.text(),
        }
    }
}

impl Report {
    /// Nothing failed, and something was run.
    #[must_use]
    pub fn is_fine(&self) -> bool {
        let cells = || self.columns.iter().flat_map(|column| column.cells.values());
        cells().count() > 0 && !cells().any(|(cell, _)| matches!(cell, Cell::Failed { .. }))
    }

    /// How many tests passed and failed on all kernels.
    #[must_use]
    pub fn sums(&self) -> (u64, u64) {
        let mut sums = (0, 0);
        for (cell, _) in self.columns.iter().flat_map(|column| column.cells.values()) {
            match cell {
                Cell::Passed(passed) | Cell::Missing { passed, .. } => sums.0 += passed,
                Cell::Failed { passed, what } => {
                    sums.0 += passed;
                    sums.1 += what.len() as u64;
                }
                Cell::Refused(_) => sums.0 += 1,
            }
        }
        sums
    }

    /// Tests by kernels, then programs by kernels, then what deserves a sentence.
    #[must_use]
    pub fn table(&self) -> String {
        let mut rows: Vec<Vec<String>> = Vec::new();
        let mut header = vec!["test".to_owned()];
        header.extend(self.columns.iter().map(|column| short(&column.release)));
        rows.push(header);
        let names = matrix::names().into_iter();
        for name in names.filter(|name| self.columns.iter().any(|column| column.has(name))) {
            let mut row = vec![name.clone()];
            for column in &self.columns {
                let cell = column.cells.get(&name);
                row.push(cell.map_or_else(String::new, |(cell, seconds)| {
                    format!("{}, {seconds:.0} s", cell.short())
                }));
            }
            rows.push(row);
        }
        let programs: BTreeSet<&String> =
            self.columns.iter().flat_map(|column| &column.programs).map(|p| &p.name).collect();
        for name in programs {
            let mut row = vec![name.clone()];
            for column in &self.columns {
                let found = column.programs.iter().find(|program| program.name == *name);
                row.push(found.map_or_else(String::new, |program| {
                    format!("{} insns, {:.0} ms", program.instructions, program.milliseconds)
                }));
            }
            rows.push(row);
        }
        let mut total = vec!["in all".to_owned()];
        total.extend(self.columns.iter().map(|column| format!("{:.0} s", column.seconds)));
        rows.push(total);
        let mut text = aligned(&rows);
        for column in &self.columns {
            for (name, (cell, _)) in &column.cells {
                if let Cell::Refused(_) | Cell::Failed { .. } = cell {
                    let _ = writeln!(text, "{}, {name}: {}", column.release, cell.text());
                }
            }
        }
        text
    }
}

/// A release without what all of them have.
fn short(release: &str) -> String {
    let of_arm = release.replace("-cloud-arm64", " arm64").replace("-arm64-16k", " arm64 16k");
    of_arm.replace("-cloud-amd64", "")
}

fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max()
    };
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        let line = cells.collect::<Vec<_>>().join("  ");
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASS: &str = "test result: ok. 2 passed; 0 failed; 0 ignored;\n";
    const LACK: &str = "test a ... FAILED\n---- a stdout ----\nmissing feature: tcx: x\n\
                        test result: FAILED. 1 passed; 1 failed; 0 ignored;\n";

    #[test]
    fn only_what_a_kernel_is_known_to_lack_may_be_missing() {
        let (old, new) = (matrix::row("6.1"), matrix::row("7"));
        assert_eq!(tested(PASS, 0, &old), Cell::Passed(2));
        assert!(matches!(tested(LACK, 101, &old), Cell::Missing { passed: 1, .. }));
        assert!(matches!(tested(LACK, 101, &new), Cell::Failed { .. }));
    }

    #[test]
    fn an_agent_refuses_with_a_reason_and_ends() {
        let said = "error: this kernel (5.10) lacks atomics, which are needed\n";
        assert!(matches!(refused(said, 2), Cell::Refused(reason) if reason.starts_with("this")));
        for (output, code) in [(said, 0), (said, -1), ("error: no\n", 2), ("", 2)] {
            assert!(matches!(refused(output, code), Cell::Failed { .. }), "{output} {code}");
        }
    }

    #[test]
    fn silence_and_contradiction_are_failures() {
        let row = matrix::row("7");
        for (output, code) in [("", 0), (PASS, 1), ("test result: ok. 0 passed; 0 failed;\n", 0)] {
            assert!(matches!(tested(output, code, &row), Cell::Failed { .. }), "{output} {code}");
        }
        assert!(!Report::default().is_fine());
    }
}
