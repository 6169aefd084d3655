//! `cargo xtask test`: makes ready what the tests need, runs them all, and closes with one line that
//! adds them up.
//!
//! It never skips: what cannot be tested is an error that names what is missing. And nothing is
//! installed, fetched or built once the first test runs, so that no test waits for that.

use std::collections::BTreeSet;
use std::env;
use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::process::{Command, ExitCode, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use netpol_arguments::test::{Args, Scope};
use netpol_needs::Need;
use netpol_run::{self as run, Stage, Workspace, announce};
use netpol_setup::{self as setup, Wanted};
use {netpol_build as build, netpol_capabilities as capabilities};

mod kernels;
mod neighbours;
mod output;
mod selection;
mod summary;

use selection::{Part, Selection};
use summary::Summary;

/// Runs the tests that were asked for, and closes with how many did what. `words` are the arguments as
/// they were written.
///
/// # Errors
/// They cannot be run here.
pub fn command(workspace: &Workspace, args: &Args, words: &[OsString]) -> Result<ExitCode> {
    if args.scope == Scope::Kernels {
        return kernels::command(workspace, args, words);
    }
    if args.quick || !args.kernel.is_empty() || args.arch.is_some() {
        bail!(
            "--kernel, --arch and --quick go with the tests inside other kernels: `cargo xtask test kernels`"
        );
    }
    let privilege = Privilege::find()?;
    let selection = Selection {
        scope: args.scope,
        package: args.package.clone(),
        filter: args.filter.clone(),
        has_library: has_library(workspace, args),
    };
    let needs = prepare(workspace, &selection)?;
    privilege.check_capabilities(&needs)?;
    if args.prepare {
        announce("everything is ready; run the same without --prepare");
        return Ok(ExitCode::SUCCESS);
    }
    let seed =
        args.seed.or_else(|| matches!(args.scope, Scope::Fuzz | Scope::Hostile).then(new_seed));
    if let Some(seed) = seed {
        announce(format!("the first case is {seed}: repeat this run with --seed {seed}"));
    }
    let stage = Stage::start("running the tests");
    let mut lanes = Vec::new();
    for parts in selection.lanes() {
        let mut lane = Vec::new();
        for part in parts {
            let mut command = cargo_test(workspace, args, seed, &selection, part);
            if needs.contains(&Need::Kernels) {
                kernels::tell(&mut command, workspace, &selection)?;
            }
            privilege.apply(&mut command);
            lane.push(command);
        }
        lanes.push(lane);
    }
    let overflows = neighbours::overflows();
    let room = neighbours::Room::make();
    let (summary, is_success) = run_and_count(lanes, &mut std::io::stdout().lock())?;
    drop(room);
    stage.done();
    let verdict = verdict(summary, is_success);
    if let Err(reason) = &verdict {
        eprintln!("error: {reason}");
        if let Some(text) = neighbours::explain(overflows, neighbours::overflows()) {
            eprintln!("note: {text}");
        }
    }
    // The last line of all, in the form that CI systems look for.
    run::say(summary);
    Ok(if verdict.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Makes everything ready that these tests need, and returns what that was.
fn prepare(workspace: &Workspace, selection: &Selection) -> Result<BTreeSet<Need>> {
    let started = Instant::now();
    let possible = selection.possible_needs();
    announce(
        "making ready what the tests need (on a machine that has nothing usually 15 min on two \
         processors; what is there is kept)",
    );
    // Without a filter they are known before anything is built; with one only afterwards.
    let first = if selection.filter.is_none() { possible.clone() } else { BTreeSet::new() };
    let _object = build::object_for(workspace, &Wanted::with(first))?;
    let stage = Stage::start("building the test programs (usually 4 min the first time)");
    let mut command = selection.cargo_test(workspace);
    command.arg("--no-run");
    run::visible(command, "fix the error above")?;
    stage.done();
    let needs = match selection.filter {
        Some(_) if !possible.is_empty() => {
            let needs = selection.needs(workspace)?;
            setup::ensure(&Wanted::with(needs.clone()))?;
            needs
        }
        _ => possible,
    };
    if needs.contains(&Need::Netpol) && selection.package.is_some() {
        build::netpol(workspace, false)?;
    }
    let kubernetes = Need::KUBERNETES.into_iter().filter(|need| needs.contains(need));
    let kubernetes: Vec<&str> = kubernetes.map(Need::name).collect();
    if !kubernetes.is_empty() {
        // Built with its tests, and with the same features.
        let mut command = Command::new(workspace.target().join("debug/netpol-cluster"));
        command.arg("build").args(kubernetes).stdout(Stdio::null());
        run::visible(command, "see above")?;
    }
    if needs.contains(&Need::Kernels) {
        kernels::prepare(workspace, selection)?;
    }
    announce(format_args!("everything is ready: {:.0} s", started.elapsed().as_secs_f64()));
    Ok(needs)
}

/// A first case that no run has begun with before: the time in milliseconds, and room for as many
/// cases as a run may have meanwhile.
fn new_seed() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or_default().wrapping_mul(1_000)
}

fn cargo_test(
    workspace: &Workspace,
    args: &Args,
    seed: Option<u64>,
    selection: &Selection,
    part: Part,
) -> Command {
    let mut command = selection.cargo_test_of(workspace, part);
    command.env("NETPOL_PROGRAM", workspace.netpol("debug"));
    for (variable, value) in [("NETPOL_CASES", args.cases), ("NETPOL_SEED", seed)] {
        if let Some(value) = value {
            command.env(variable, value.to_string());
        }
    }
    command.arg("--");
    // The runner writes into a pipe, so it has to be told when a person is at the other end.
    if std::io::stdout().is_terminal() && env::var_os("NO_COLOR").is_none() {
        command.arg("--color=always");
    }
    if args.show_output || matches!(args.scope, Scope::Fuzz | Scope::Hostile) {
        command.arg("--show-output");
    }
    command.args(&args.filter);
    command
}

fn has_library(workspace: &Workspace, args: &Args) -> bool {
    let Some(package) = &args.package else { return true };
    // Packages stand in directories of their name, or below two others of its last part.
    let last = package.strip_prefix("netpol-").unwrap_or(package);
    let below = ["xtask", "netpol-userspace"].map(|directory| format!("{directory}/{last}"));
    let mut directories = below.into_iter().chain([package.clone()]);
    directories.any(|directory| workspace.root().join(directory).join("src/lib.rs").exists())
}

/// Runs lanes of commands side by side, counts results, and passes the output on: of the first lane as it
/// comes, of each other one after that, so that lines stand where they belong. Returns whether all
/// commands succeeded.
fn run_and_count(lanes: Vec<Vec<Command>>, out: &mut impl Write) -> Result<(Summary, bool)> {
    let running: Vec<_> = lanes.into_iter().map(Lane::start).collect();
    let (mut summary, mut is_success) = (Summary::default(), true);
    for lane in running {
        for line in lane.lines {
            summary.read(&String::from_utf8_lossy(&line));
            // A reader that went away must not keep the tests from ending and cleaning up.
            let _ = out.write_all(&line).and_then(|()| out.flush());
        }
        is_success &= lane.work.join().expect("invariant: a lane does not panic")?;
    }
    Ok((summary, is_success))
}

/// Commands that run one after the other.
struct Lane {
    /// What they write, as it comes.
    lines: mpsc::Receiver<Vec<u8>>,
    /// Whether all have succeeded.
    work: thread::JoinHandle<Result<bool>>,
}

impl Lane {
    fn start(commands: Vec<Command>) -> Self {
        let (sender, lines) = mpsc::channel();
        let work = thread::spawn(move || {
            let mut is_success = true;
            for command in commands {
                // Whoever reads may have stopped; the tests go on to their end.
                let pass_on = |line| drop(sender.send(line));
                is_success &= output::each_line(command, pass_on)?.success();
            }
            Ok(is_success)
        });
        Self { lines, work }
    }
}

/// What the run amounts to. A run that tested nothing has not succeeded.
fn verdict(summary: Summary, cargo_succeeded: bool) -> Result<()> {
    if summary.failed > 0 {
        bail!("{} tests failed; they are listed above, under each `failures:`", summary.failed);
    }
    if !cargo_succeeded {
        bail!("a test binary could not be built, or ended without a result; see above");
    }
    if summary.ignored > 0 {
        bail!("{} tests are marked to be ignored; this repository has none", summary.ignored);
    }
    if summary.passed == 0 {
        bail!("no test was run: does the filter name one?");
    }
    Ok(())
}

/// How tests get to be root while the build stays the user's.
enum Privilege {
    Root,
    Sudo,
}

impl Privilege {
    fn find() -> Result<Self> {
        if run::is_root() {
            return Ok(Self::Root);
        }
        if run::find_program("sudo").is_some() {
            announce("the tests make network namespaces and load eBPF programs: using sudo");
            return Ok(Self::Sudo);
        }
        bail!(
            "the tests make network namespaces and load eBPF programs, which needs root, and there \
             is no sudo here; run this command as root"
        );
    }

    /// Fails with the names of what is missing.
    fn check_capabilities(&self, needs: &BTreeSet<Need>) -> Result<()> {
        let needs: Vec<Need> = needs.iter().copied().collect();
        match self {
            Self::Root => capabilities::require(&needs),
            Self::Sudo => {
                let this = env::current_exe().context("cannot tell where this xtask is")?;
                let mut command = Command::new("sudo");
                command.arg("-E").arg(this).arg("capabilities");
                match needs.as_slice() {
                    [] => command.arg("--bare"),
                    needs => command.args(needs.iter().map(|need| need.name())),
                };
                // Not through `run`: sudo may have to ask for a password.
                let status = command.status().context("cannot start sudo")?;
                if status.success() {
                    return Ok(());
                }
                bail!("the tests need what is named above as missing, or sudo was refused")
            }
        }
    }

    /// Makes cargo start each test binary, and nothing else, as root.
    fn apply(&self, command: &mut Command) {
        if matches!(self, Self::Sudo) {
            let arch = env::consts::ARCH.to_uppercase();
            for libc in ["GNU", "MUSL"] {
                let name = format!("CARGO_TARGET_{arch}_UNKNOWN_LINUX_{libc}_RUNNER");
                command.env(name, "sudo -E");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(passed: u64, failed: u64, ignored: u64) -> Summary {
        Summary { passed, failed, ignored }
    }

    #[test]
    fn only_a_run_that_tested_something_and_failed_nothing_succeeds() {
        assert!(verdict(summary(3, 0, 0), true).is_ok());
        assert!(verdict(summary(3, 1, 0), false).is_err());
        assert!(verdict(summary(3, 0, 0), false).is_err(), "a test binary that crashed");
        assert!(verdict(summary(0, 0, 0), true).is_err(), "nothing was run");
        assert!(verdict(summary(3, 0, 1), true).is_err(), "a test was ignored");
    }

    fn sh(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn output_is_counted_while_it_streams() {
        let command = sh("echo 'test result: ok. 2 passed; 0 failed; 0 ignored;'; exit 4");
        let mut shown = Vec::new();
        let (counted, is_success) =
            run_and_count(vec![vec![command]], &mut shown).expect("sh runs");
        assert!(shown.starts_with(b"test result: ok."), "output passes through");
        assert_eq!(counted, summary(2, 0, 0));
        assert!(!is_success);
    }

    #[test]
    fn lanes_run_side_by_side_and_are_told_one_after_the_other() {
        let directory = env::temp_dir().join(format!("netpol-lanes-{}", std::process::id()));
        let file = directory.display();
        // Each waits for the other, and writes at once.
        let first =
            sh(&format!("echo a >&2; until [ -e {file} ]; do sleep 0.01; done; rmdir {file}"));
        let second = sh(&format!("echo b; mkdir {file}; while [ -e {file} ]; do sleep 0.01; done"));
        let lanes = vec![vec![first, sh("echo c")], vec![second]];
        let mut shown = Vec::new();
        let (_, is_success) = run_and_count(lanes, &mut shown).expect("sh runs");
        assert!(is_success);
        assert_eq!(shown, b"a\nc\nb\n");
    }

    #[test]
    fn a_command_that_cannot_be_started_is_an_error() {
        let lanes = vec![vec![sh("true")], vec![Command::new("/nonexistent")]];
        assert!(run_and_count(lanes, &mut Vec::new()).is_err());
    }
}
