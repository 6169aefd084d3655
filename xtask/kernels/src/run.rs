//! A run: kernels made ready, and a machine for each, as many at a time as there is room for. Must
//! never let one that breaks take more than one job with it.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use netpol_debian::Arch;

use crate::frames::Kind;
use crate::guest;
use crate::machine::{self, Accelerator, Ending, Machine};
use crate::matrix::{self, Extent, Row};
use crate::packages::{self, Kernel};
use crate::programs::{self, Contents};
use crate::report::{Column, Report};
use crate::turns::Turn;

/// What is to be run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Whose kernels.
    pub arch: Arch,
    /// Starts of the kernels' releases.
    pub versions: Vec<String>,
    /// How much.
    pub extent: Extent,
    /// Only tests whose name in the table contains this.
    pub filter: String,
    /// How often tests repeat what they repeat, if not as often as they do by themselves.
    pub cases: Option<u64>,
    /// The program that becomes the machine's first process.
    pub first: PathBuf,
    /// The program `netpol`.
    pub netpol: PathBuf,
    /// Show what tests print, also if they pass.
    pub show_output: bool,
}

/// Makes kernels ready.
///
/// # Errors
/// One cannot be had: the error says what to do.
pub fn prepare(arch: Arch, versions: &[String]) -> Result<Vec<Kernel>> {
    machine::check(arch, machine::FOR_TESTS)?;
    if !arch.is_host() {
        packages::ensure_tree(arch)?;
    }
    versions.iter().map(|version| packages::ensure_kernel(arch, version)).collect()
}

/// Runs it.
///
/// # Errors
/// Nothing could be run: the error says what to do. What fails inside is in the report.
pub fn run(options: &Options) -> Result<Report> {
    let kernels = prepare(options.arch, &options.versions)?;
    let directory = tempfile::tempdir().context("a temporary directory")?;
    let tests = programs::tests(&matrix::programs(options.extent, &options.filter))?;
    let base = directory.path().join("base.cpio");
    let is_other = !options.arch.is_host();
    let tree = is_other.then(|| packages::ensure_tree(options.arch)).transpose()?;
    let contents = Contents {
        first: &options.first,
        netpol: &options.netpol,
        tests: &tests,
        more: &[],
        other: tree.as_deref().map(|tree| (options.arch, tree)),
    };
    programs::pack(&contents, &base)?;
    let columns = thread::scope(|scope| {
        let running: Vec<_> = options
            .versions
            .iter()
            .zip(&kernels)
            .map(|(version, kernel)| {
                let (base, directory) = (&base, directory.path().join(&kernel.release));
                scope.spawn(move || {
                    fs::create_dir_all(&directory).context("a directory for a machine")?;
                    column(options, &matrix::row(version), kernel, base, &directory)
                })
            })
            .collect();
        let ended = running.into_iter().map(thread::ScopedJoinHandle::join);
        ended.map(|ended| ended.expect("invariant: nothing panics")).collect::<Result<_>>()
    })?;
    Ok(Report { columns })
}

fn column(
    options: &Options,
    row: &Row,
    kernel: &Kernel,
    base: &Path,
    directory: &Path,
) -> Result<Column> {
    let _turn = Turn::wait();
    let started = Instant::now();
    let cache = netpol_debian::cache()?.join("kernels");
    let mut accelerator = machine::accelerator(kernel.arch, &cache);
    let mut column = Column::new(&kernel.release);
    let all = matrix::jobs(row, options.extent, &options.filter, options.cases);
    eprintln!("==> Linux {}: {} programs", kernel.release, all.len());
    // The machine ends a job by itself before.
    let patience = Duration::from_secs(10 + all.iter().map(|job| job.seconds).max().unwrap_or(0));
    let mut rest = all.as_slice();
    // A machine that breaks takes one job with it, and the next machine has those after it.
    while !rest.is_empty() {
        let word = random_word()?;
        let memory = directory.join("memory.cpio");
        join(&[base, &kernel.modules], &guest::encode(&word, rest), &memory)?;
        let size = machine::FOR_TESTS;
        let mut machine = Machine::start(kernel, &memory, &word, size, accelerator, directory)?;
        let mut running: Option<String> = None;
        let mut began = Instant::now();
        let ending = machine.wait(patience, |frame| match frame.kind {
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
        let done = rest.iter().take_while(|job| column.has(&job.name)).count();
        let Some(job) = rest.get(done) else { break };
        eprintln!("    {}: {why}; the kernel's last lines:\n{words}", job.name);
        column.fail(&job.name, &why, began.elapsed().as_secs_f64());
        rest = &rest[done + 1..];
        if running.is_none() && done == 0 {
            // It did not even come to the first job: another try would end the same.
            rest.iter().for_each(|job| column.fail(&job.name, "the kernel did not start", 0.0));
            break;
        }
    }
    for job in all.iter().filter(|job| !column.has(&job.name)).collect::<Vec<_>>() {
        column.fail(&job.name, "it was not run", 0.0);
    }
    column.seconds = started.elapsed().as_secs_f64();
    Ok(column)
}

/// One file of several archives and the jobs, as the kernel takes it.
pub(crate) fn join(archives: &[&Path], jobs: &str, into: &Path) -> Result<()> {
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

pub(crate) fn random_word() -> Result<String> {
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
