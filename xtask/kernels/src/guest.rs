//! What runs inside, as the machine's first process: mounts, modules, the jobs one by one, each
//! with its time, and a frame for each. Must never end without turning the machine off.

use std::env;
use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rustix::mount::{MountFlags, mount, mount_move};
use rustix::process::{Pid, Signal, chroot, kill_process};
use rustix::system::{RebootCommand, reboot};

use crate::frames::{Frame, Kind};

/// Where the jobs are told.
pub const JOBS: &str = "/jobs";
/// The serial line of results; the kernel's messages are on another one.
const LINE: &str = if cfg!(target_arch = "aarch64") { "/dev/ttyS0" } else { "/dev/ttyS1" };
/// Of what a job printed, at most so much comes out: its end.
const MOST: u64 = 192 << 10;
/// The job whose output is files, and how much of it comes out.
pub const FILES: &str = "files";
const MOST_FILES: u64 = 3 << 20;
/// If this is there, everything moves into a file system that can be left for another root, as
/// containers do. The one that a kernel starts with cannot.
pub const OWN_ROOT: &str = "/own-root";

/// Modules that are there before the first job; others the kernel asks for.
const MODULES: [&str; 7] =
    ["veth", "bridge", "br_netfilter", "sch_ingress", "cls_bpf", "vxlan", "dummy"];

/// Filesystems: what, where, kind.
const MOUNTS: [(&str, &str, &str); 8] = [
    ("proc", "/proc", "proc"),
    ("sysfs", "/sys", "sysfs"),
    ("devtmpfs", "/dev", "devtmpfs"),
    ("devpts", "/dev/pts", "devpts"),
    ("tmpfs", "/run", "tmpfs"),
    ("tmpfs", "/tmp", "tmpfs"),
    ("bpf", "/sys/fs/bpf", "bpf"),
    ("cgroup2", "/sys/fs/cgroup", "cgroup2"),
];

/// One thing to run, as it is told to the machine: a line of fields with tabs between them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// A word.
    pub name: String,
    /// How long it may take.
    pub seconds: u64,
    /// The program and its arguments.
    pub words: Vec<String>,
}

/// The jobs as a file: first the word of the frames.
#[must_use]
pub fn encode(word: &str, jobs: &[Job]) -> String {
    let lines =
        jobs.iter().map(|job| format!("{}\t{}\t{}\n", job.name, job.seconds, job.words.join("\t")));
    format!("{word}\n{}", lines.collect::<String>())
}

/// The word and the jobs of such a file.
///
/// # Errors
/// It is none.
pub fn decode(text: &str) -> Result<(String, Vec<Job>)> {
    let mut lines = text.lines();
    let word = lines.next().context("no word")?.to_owned();
    let jobs = lines.map(|line| {
        let mut fields = line.split('\t').map(str::to_owned);
        let name = fields.next().context("no name")?;
        let seconds = fields.next().and_then(|text| text.parse().ok()).context("no time")?;
        Ok(Job { name, seconds, words: fields.collect() })
    });
    Ok((word, jobs.collect::<Result<_>>()?))
}

/// Runs as the first process, and never returns.
pub fn main() -> ! {
    if let Err(error) = run() {
        eprintln!("the tests' first process: {error:#}");
    }
    rustix::fs::sync();
    // With QEMU's -no-reboot this ends it.
    let _ = reboot(RebootCommand::Restart);
    loop {
        sleep(Duration::from_secs(1));
    }
}

fn run() -> Result<()> {
    if Path::new(OWN_ROOT).exists() {
        own_root()?;
    }
    prepare()?;
    let (word, jobs) = decode(&fs::read_to_string(JOBS).context("read the jobs")?)?;
    let mut line = OpenOptions::new().write(true).open(LINE).context("open the line of results")?;
    let release = fs::read("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut send = |kind, name: &str, code, body: Vec<u8>| {
        let frame = Frame { kind, name: name.to_owned(), code, body };
        line.write_all(&frame.encode(&word)).context("send a result")
    };
    send(Kind::Up, "", 0, release)?;
    for job in &jobs {
        send(Kind::Begin, &job.name, 0, Vec::new())?;
        let (kind, code, output) = match attempt(job) {
            Ok(Some((status, output))) => (Kind::End, code(status), output),
            Ok(None) => (Kind::TooLong, -1, tail(MOST)?),
            Err(error) => (Kind::End, -1, format!("{error:#}\n").into_bytes()),
        };
        send(kind, &job.name, code, output)?;
    }
    send(Kind::Done, "", 0, Vec::new())
}

fn code(status: ExitStatus) -> i32 {
    status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(-1)
}

const OUTPUT: &str = "/tmp/output";

/// Runs it to its end, or kills it; `None` if it took too long.
fn attempt(job: &Job) -> Result<Option<(ExitStatus, Vec<u8>)>> {
    let output = File::create(OUTPUT).context("create a file for what it prints")?;
    let (program, arguments) = job.words.split_first().context("a job without a program")?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    command.stdout(output.try_clone()?).stderr(output);
    command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("HOME", "/root");
    command.env("TMPDIR", "/tmp").env("NETPOL_PROGRAM", crate::programs::NETPOL);
    let mut child = command.spawn().with_context(|| format!("start {program}"))?;
    let started = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().context("wait for a job")? {
            break Some(status);
        }
        if started.elapsed() > Duration::from_secs(job.seconds) {
            break None;
        }
        sleep(Duration::from_millis(20));
    };
    // Whatever it left runs no longer, so that it is not in the next one's way.
    end_all();
    if status.is_none() {
        child.wait().context("wait for a job")?;
    }
    let most = if job.name == FILES { MOST_FILES } else { MOST };
    status.map(|status| Ok((status, tail(most)?))).transpose()
}

/// Kills every process but this one; the kernel's own take no notice.
fn end_all() {
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let pid = entry.file_name().to_str().and_then(|name| name.parse().ok());
        if let Some(pid) = pid.filter(|pid| *pid != 1).and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

fn tail(most: u64) -> Result<Vec<u8>> {
    let mut file = File::open(OUTPUT).context("read what a job printed")?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(most)))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Copies everything into memory that is mounted, and makes that the root.
fn own_root() -> Result<()> {
    const NEW: &str = "/new";
    // Programs are started with something to read that is empty.
    fs::create_dir_all("/dev").context("create /dev")?;
    mount("devtmpfs", "/dev", "devtmpfs", MountFlags::empty(), None).context("mount /dev")?;
    fs::create_dir_all(NEW).context("create the new root")?;
    busybox(&["mount", "-t", "tmpfs", "-o", "size=90%,mode=755", "tmpfs", NEW])?;
    for entry in fs::read_dir("/").context("list the old root")?.flatten() {
        let path = entry.path();
        let shown = path.to_string_lossy();
        if shown == NEW || shown == "/dev" {
            continue;
        }
        busybox(&["cp", "-a", &shown, NEW])?;
        // busybox itself is there.
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) && shown != "/bin" {
            busybox(&["rm", "-rf", &shown])?;
        }
    }
    env::set_current_dir(NEW).context("enter the new root")?;
    mount_move(".", "/").context("move the new root over the old one")?;
    chroot(".").context("change the root")?;
    env::set_current_dir("/").context("enter the root")
}

fn prepare() -> Result<()> {
    for (what, place, kind) in MOUNTS {
        fs::create_dir_all(place).with_context(|| format!("create {place}"))?;
        // No kernel has all.
        if let Err(error) = mount(what, place, kind, MountFlags::empty(), None) {
            eprintln!("mount {kind} at {place}: {error}");
        }
    }
    // A line that does not change what is sent.
    busybox(&["stty", "-F", LINE, "raw", "-echo", "-opost"])?;
    busybox(&["ip", "link", "set", "lo", "up"])?;
    for name in MODULES {
        // What is missing shows in the tests that need it, and here.
        if let Err(error) = busybox(&["modprobe", name]) {
            eprintln!("{error:#}");
        }
    }
    for family in ["ipv4", "ipv6"] {
        for (name, value) in [("gc_thresh3", "32768"), ("gc_thresh2", "16384")] {
            let path = format!("/proc/sys/net/{family}/neigh/default/{name}");
            let _ = fs::write(path, value);
        }
    }
    Ok(())
}

fn busybox(words: &[&str]) -> Result<()> {
    let shown = words.join(" ");
    let program = Path::new("/bin/busybox");
    let output = Command::new(program).args(words).output();
    let output = output.with_context(|| format!("start busybox {shown}"))?;
    let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    anyhow::ensure!(output.status.success(), "{shown}: {text}");
    Ok(())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn jobs_are_read_back() {
        let job = |name: &str, words: &[&str]| Job {
            name: name.to_owned(),
            seconds: 7,
            words: words.iter().map(|word| (*word).to_owned()).collect(),
        };
        let jobs = [job("a", &["/x", "with space", "--y"]), job("b", &["/z"])];
        assert_eq!(decode(&encode("w", &jobs)).unwrap(), ("w".to_owned(), jobs.to_vec()));
        assert!(decode("").is_err() && decode("w\na\tx\ty\n").is_err());
    }
}
