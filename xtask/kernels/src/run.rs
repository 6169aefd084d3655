//! A run: kernels made ready, machines one after the other, and the table of what came out. A test
//! that did not say how it ended has failed; must never take silence for success.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use netpol_cluster::binaries;

use crate::frames::{Frame, Kind};
use crate::guest;
use crate::machine::{self, Accelerator, Ending, Machine};
use crate::matrix::{self, CAPABILITIES, Extent, Row};
use crate::packages::{self, Kernel};
use crate::programs;
use crate::results;

/// One machine at a time: each takes a processor and much memory.
static MACHINES: Mutex<()> = Mutex::new(());

/// What is to be run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Starts of the kernels' releases.
    pub versions: Vec<String>,
    /// How much.
    pub extent: Extent,
    /// Only test programs whose name contains this.
    pub filter: String,
    /// The program that becomes the machine's first process.
    pub first: PathBuf,
    /// The program `netpol`.
    pub netpol: PathBuf,
    /// Show what tests print, also if they pass.
    pub show_output: bool,
}

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
struct Column {
    release: String,
    cells: BTreeMap<String, (Cell, f64)>,
    programs: Vec<Loaded>,
    seconds: f64,
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
    columns: Vec<Column>,
}

/// Makes kernels ready.
///
/// # Errors
/// One cannot be had: the error says what to do.
pub fn prepare(versions: &[String]) -> Result<Vec<Kernel>> {
    machine::check()?;
    versions.iter().map(|version| packages::ensure_kernel(version)).collect()
}

/// Runs it.
///
/// # Errors
/// Nothing could be run: the error says what to do. What fails inside is in the report.
pub fn run(options: &Options) -> Result<Report> {
    let _turn = MACHINES.lock().unwrap_or_else(PoisonError::into_inner);
    let kernels = prepare(&options.versions)?;
    let directory = tempfile::tempdir().context("a temporary directory")?;
    let tests = programs::tests(&matrix::tests(options.extent, &options.filter))?;
    let base = directory.path().join("base.cpio");
    programs::pack(&options.first, &options.netpol, &tests, &base)?;
    let mut report = Report::default();
    for (version, kernel) in options.versions.iter().zip(&kernels) {
        let row = matrix::row(version);
        report.columns.push(column(options, &row, kernel, &base, directory.path())?);
    }
    Ok(report)
}

fn column(
    options: &Options,
    row: &Row,
    kernel: &Kernel,
    base: &Path,
    directory: &Path,
) -> Result<Column> {
    let started = Instant::now();
    let cache = binaries::cache()?.join("kernels");
    let mut accelerator = machine::accelerator(&cache);
    let mut column = Column {
        release: kernel.release.clone(),
        cells: BTreeMap::new(),
        programs: Vec::new(),
        seconds: 0.0,
    };
    let all = matrix::jobs(row, options.extent, &options.filter);
    eprintln!("==> Linux {}: {} programs", kernel.release, all.len());
    let mut rest = all.as_slice();
    // A machine that breaks takes one job with it, and the next machine has those after it.
    while !rest.is_empty() {
        let word = random_word()?;
        let memory = directory.join("memory.cpio");
        join(&[base, &kernel.modules], &guest::encode(&word, rest), &memory)?;
        let mut machine = Machine::start(kernel, &memory, &word, accelerator, directory)?;
        let mut running: Option<String> = None;
        let mut began = Instant::now();
        let ending = machine.wait(matrix::patience, |frame| match frame.kind {
            Kind::Begin => {
                began = Instant::now();
                running = Some(frame.name);
            }
            Kind::End | Kind::TooLong => {
                running = None;
                let seconds = began.elapsed().as_secs_f64();
                column.take(&frame, row, seconds, options.show_output);
            }
            Kind::Up | Kind::Done => {}
        })?;
        let Ending::Broken(why) = ending else { break };
        if !machine.is_up() && accelerator == Accelerator::Kvm {
            eprintln!("    /dev/kvm is there and does not work ({why}): going on without it");
            machine::remember_hang(&cache);
            accelerator = Accelerator::Software;
            continue;
        }
        let words = machine.last_words();
        drop(machine);
        let done = rest.iter().take_while(|job| column.cells.contains_key(&job.name)).count();
        let what = vec![why.clone()];
        let Some(job) = rest.get(done) else { break };
        eprintln!("    {}: {why}; the kernel's last lines:\n{words}", job.name);
        let seconds = began.elapsed().as_secs_f64();
        column.cells.insert(job.name.clone(), (Cell::Failed { passed: 0, what }, seconds));
        rest = &rest[done + 1..];
        if running.is_none() && done == 0 {
            // It did not even come to the first job: another try would end the same.
            for job in rest {
                let what = vec!["the kernel did not start".to_owned()];
                column.cells.insert(job.name.clone(), (Cell::Failed { passed: 0, what }, 0.0));
            }
            break;
        }
    }
    for job in &all {
        column.cells.entry(job.name.clone()).or_insert_with(|| {
            (Cell::Failed { passed: 0, what: vec!["it was not run".to_owned()] }, 0.0)
        });
    }
    column.seconds = started.elapsed().as_secs_f64();
    Ok(column)
}

impl Column {
    fn take(&mut self, frame: &Frame, row: &Row, seconds: f64, show_output: bool) {
        let output = String::from_utf8_lossy(&frame.body);
        let cell = match (frame.kind, frame.name.as_str()) {
            (Kind::TooLong, _) => {
                Cell::Failed { passed: 0, what: vec![format!("killed after {seconds:.0} s")] }
            }
            (_, CAPABILITIES) => self.capabilities(&output, row),
            _ => tested(&output, frame.code, row),
        };
        let is_bad = matches!(cell, Cell::Failed { .. });
        eprintln!("    {}: {} ({seconds:.0} s)", frame.name, cell.text());
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
        header.extend(self.columns.iter().map(|column| column.release.replace("-cloud-amd64", "")));
        rows.push(header);
        let names = std::iter::once(CAPABILITIES)
            .chain(matrix::tests(Extent::Full, ""))
            .filter(|name| self.columns.iter().any(|column| column.cells.contains_key(*name)));
        for name in names {
            let mut row = vec![name.to_owned()];
            for column in &self.columns {
                let cell = column.cells.get(name);
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

/// One file of several archives and the jobs, as the kernel takes it.
fn join(archives: &[&Path], jobs: &str, into: &Path) -> Result<()> {
    let mut last = crate::archive::Archive::new(Vec::new());
    last.bytes(Path::new(guest::JOBS), 0o644, jobs.as_bytes())?;
    let last = last.into_inner()?;
    let mut file = fs::File::create(into).with_context(|| format!("create {}", into.display()))?;
    for path in archives {
        let mut archive =
            fs::File::open(path).with_context(|| format!("open {}", path.display()))?;
        std::io::copy(&mut archive, &mut file).context("write the machine's memory")?;
    }
    std::io::copy(&mut last.as_slice(), &mut file).context("write the machine's memory")?;
    Ok(())
}

fn random_word() -> Result<String> {
    let mut bytes = [0u8; 16];
    let mut file = fs::File::open("/dev/urandom").context("open /dev/urandom")?;
    file.read_exact(&mut bytes).context("read /dev/urandom")?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// How long it took, for people.
#[must_use]
pub fn seconds(since: Instant) -> f64 {
    Duration::as_secs_f64(&since.elapsed())
}

/// Makes sure that the program can be asked for `netpol` at all.
///
/// # Errors
/// It is not there.
pub fn check_netpol(netpol: &Path) -> Result<()> {
    let status = Command::new(netpol).arg("--version").output();
    status.with_context(|| format!("{} does not run: is it built?", netpol.display()))?;
    Ok(())
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
    fn silence_and_contradiction_are_failures() {
        let row = matrix::row("7");
        for (output, code) in [("", 0), (PASS, 1), ("test result: ok. 0 passed; 0 failed;\n", 0)] {
            assert!(matches!(tested(output, code, &row), Cell::Failed { .. }), "{output} {code}");
        }
        assert!(!Report::default().is_fine());
    }
}
