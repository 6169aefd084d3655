//! Running other programs: an error says what was run and what it said. Must never hide output
//! that explains a failure.

use std::fs;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::progress::WORD_EVERY;

/// Runs a program to its end and returns what it printed.
///
/// # Errors
/// It cannot be started, or it fails; the error has its arguments and its output.
pub fn run(command: &mut Command) -> Result<String> {
    let output = output(command)?;
    if !output.status.success() {
        bail!(
            "{} failed ({}):\n{}{}",
            describe(command),
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr).trim_end()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a program to its end, whatever that is.
///
/// # Errors
/// It cannot be started.
pub fn output(command: &mut Command) -> Result<Output> {
    let output = command.stdin(Stdio::null()).output();
    output.with_context(|| format!("start {}", describe(command)))
}

/// The command as a person would type it, roughly.
fn describe(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

/// How many times as long this process waits for a cluster as it usually does.
static PATIENCE: AtomicU32 = AtomicU32::new(1);

/// Makes this process wait so many times as long from now on: for emulated processors.
pub fn set_patience(times: u32) {
    PATIENCE.store(times, Ordering::Relaxed);
}

/// As long as that means.
#[must_use]
pub fn patient(usual: Duration) -> Duration {
    usual * PATIENCE.load(Ordering::Relaxed)
}

/// kubectl's option to wait as long as that means.
#[must_use]
pub fn timeout(usual: Duration) -> String {
    format!("--timeout={}s", patient(usual).as_secs())
}

/// Waits until `is_done` says so. `what` completes "waited 60 s for ...".
///
/// # Errors
/// `is_done` fails, or the time is over.
pub fn wait_for(
    what: &str,
    patience: Duration,
    mut is_done: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let patience = patient(patience);
    let started = Instant::now();
    let mut next = WORD_EVERY;
    while !is_done()? {
        if started.elapsed() > patience {
            bail!("waited {} s for {what} in vain", patience.as_secs());
        }
        if started.elapsed() > next {
            eprintln!("    waiting for {what} ({} s)", next.as_secs());
            next += WORD_EVERY;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}

/// When the process started, in clock ticks since boot: with the number, it says which process it
/// is. `None` if there is no such process.
pub(crate) fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before the last parenthesis may hold anything; start time is field 22.
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// Kills the process with this number and start time, if it is still that one, and waits until it
/// is gone.
pub(crate) fn kill(pid: u32, started: u64, what: &str) -> Result<()> {
    if start_time(pid) == Some(started) {
        // The number may be another's only if the process ended since the line above, which takes
        // the kernel a whole round of process numbers.
        let _ = run(Command::new("kill").args(["-s", "KILL", &pid.to_string()]));
    }
    wait_for(&format!("{what} to end"), Duration::from_secs(60), || {
        // A child of this process that has ended waits for its parent to ask.
        Ok(start_time(pid) != Some(started) || is_zombie(pid))
    })
}

fn is_zombie(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, fields)| fields.trim_start().starts_with('Z'))
}
