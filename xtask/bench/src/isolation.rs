//! A subject runs in a process of its own, the first of a PID namespace and with a network and a
//! mount namespace of its own. Whatever it makes there (processes, namespaces, programs, pins,
//! files in its temporary directory) goes with it, however it ends: the kernel cleans up, not a
//! handler that might not run. Must never measure, and never touch the host's own namespaces.

use std::io::Read as _;
use std::path::Path;
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::mount::MountFlags;
use tokio::io::AsyncReadExt as _;
use tokio::process::{Child, Command};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::report::Report;
use crate::{Options, progress};

/// Where a subject may put files: seen by it and its children alone.
const PRIVATE: &str = "/run";
/// The file system of pinned BPF objects, likewise.
const BPFFS: &str = "/sys/fs/bpf";
/// What the namespaces are given to disappear after their first process was told to end.
const PATIENCE: Duration = Duration::from_secs(10);
/// What a shell says of a program that a signal has ended, less the signal's number.
const ENDED_BY_SIGNAL: u8 = 128;

/// How a run ended.
#[derive(Debug)]
pub enum End {
    /// It was measured.
    Measured(Box<Report>),
    /// It failed and has said why, or somebody ended it: the exit code.
    Stopped(ExitCode),
}

/// Fails where this user may not do what measuring takes.
///
/// # Errors
/// The user is not root.
pub fn require_root() -> Result<()> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    bail!(
        "measuring loads eBPF programs and makes network namespaces, which only root may do; \
         nothing was measured. Run it as root: sudo -E cargo xtask bench"
    )
}

/// Runs this program again, in namespaces of its own, to measure `subject`.
///
/// # Errors
/// The namespaces cannot be made, or what was measured cannot be read.
pub fn run(subject: &str, options: &Options) -> Result<End> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime
        .context("start the runtime that waits for signals")?
        .block_on(supervise(subject, options))
}

async fn supervise(subject: &str, options: &Options) -> Result<End> {
    let signals = [
        (SignalKind::interrupt(), "interrupted"),
        (SignalKind::terminate(), "terminated"),
        (SignalKind::hangup(), "terminated: its terminal is gone"),
    ];
    let [mut interrupt, mut terminate, mut hang_up] = listen(signals.map(|(kind, _)| kind))?;
    let mut child = start(subject, options)?;
    let index = tokio::select! {
        end = finish(&mut child) => return end,
        _ = interrupt.recv() => 0,
        _ = terminate.recv() => 1,
        _ = hang_up.recv() => 2,
    };
    let (kind, what) = signals[index];
    end(child).await?;
    progress::say(format_args!("{what}: nothing was concluded, and nothing is left behind"));
    let number = u8::try_from(kind.as_raw_value()).context("a signal's number")?;
    Ok(End::Stopped(ExitCode::from(ENDED_BY_SIGNAL + number)))
}

fn listen(kinds: [SignalKind; 3]) -> Result<[Signal; 3]> {
    let [a, b, c] = kinds.map(signal);
    Ok([a.context("listen for SIGINT")?, b.context("listen for SIGTERM")?, c.context("SIGHUP")?])
}

fn start(subject: &str, options: &Options) -> Result<Child> {
    let this = std::env::current_exe().context("cannot tell where this program is")?;
    let mut command = Command::new("unshare");
    command.args([
        "--net",
        "--mount",
        "--pid",
        "--fork",
        "--kill-child=KILL",
        "--mount-proc",
        "--",
    ]);
    command.arg(this).args([subject, "--inside"]);
    if options.is_quick {
        command.arg("--quick");
    }
    command
        .env("TMPDIR", PRIVATE)
        // Never written to: it ends when this process does.
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        // A Ctrl-C at the terminal is for this process, which then ends the other.
        .process_group(0)
        .kill_on_drop(true);
    command.spawn().context("cannot start `unshare`; on Debian it is in the package util-linux")
}

async fn finish(child: &mut Child) -> Result<End> {
    let mut text = Vec::new();
    let mut stdout = child.stdout.take().context("invariant: standard output is a pipe")?;
    stdout.read_to_end(&mut text).await.context("read what was measured")?;
    let status = child.wait().await.context("wait for the measuring process")?;
    if status.success() {
        let report = serde_json::from_slice(&text).context("cannot read what was measured")?;
        return Ok(End::Measured(Box::new(report)));
    }
    match status.code().and_then(|code| u8::try_from(code).ok()) {
        Some(code) => Ok(End::Stopped(ExitCode::from(code))),
        None => bail!("the measuring process was killed ({status}); is memory short?"),
    }
}

/// Ends it and everything in its namespaces, and waits until they are gone.
async fn end(mut child: Child) -> Result<()> {
    drop(child.stdin.take());
    if let Ok(status) = tokio::time::timeout(PATIENCE, child.wait()).await {
        return status.map(drop).context("wait for the measuring process");
    }
    child.kill().await.context("kill the measuring process")
}

/// Inside the namespaces, before anything is measured: makes them private, and ends this process
/// when the one outside does. Children that still run then are killed by the kernel.
///
/// # Errors
/// Something cannot be mounted.
pub fn enter_namespaces() -> Result<()> {
    std::thread::spawn(|| {
        let _ = std::io::stdin().read(&mut [0]);
        std::process::exit(1);
    });
    mount("tmpfs", PRIVATE)?;
    mount("bpf", BPFFS)
}

fn mount(kind: &str, place: &str) -> Result<()> {
    rustix::mount::mount("netpol-bench", Path::new(place), kind, MountFlags::empty(), None)
        .with_context(|| format!("cannot mount a file system of kind {kind} on {place}"))
}
