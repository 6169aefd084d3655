//! `cargo xtask fresh`: both commands of the README on a machine that has nothing yet: a root file
//! system made for it, with a compiler, Go where the host has it, empty homes and caches, and none
//! of the packages that netpol's own commands install. What they lack shows here and nowhere else.
//!
//! It must not change the host, nor leave anything on it but logs.

use std::env;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use netpol_needs::Need;
use netpol_run::{self as run, Stage, Workspace, announce};
use netpol_setup::{self as setup, Wanted};

const SCRIPT: &str = include_str!("fresh.sh");

/// What such a machine has besides Debian's smallest set: what compiles and links Rust, what fetches
/// a checkout, and `kill`, which every installed Debian has.
const PACKAGES: &str = "ca-certificates,gcc,git,libc6-dev,procps";

/// Both commands of the README.
const COMMANDS: [&[&str]; 2] = [&["build-and-run", "--once"], &["test"]];

/// Variables that would lead to what the host has: homes, caches and settings of its own.
const HOSTS_OWN: [&str; 12] = [
    "CARGO",
    "GO",
    "KUBEBUILDER_",
    "LD_LIBRARY_PATH",
    "NETPOL_",
    "PATH",
    "RUST",
    "SSH_",
    "SUDO_",
    "TMPDIR",
    "XDG_",
    "PYENV",
];

/// Settings of Go that say where modules come from.
const GO_SOURCES: [&str; 4] = ["GOPROXY", "GOSUMDB", "GONOSUMDB", "GOPRIVATE"];

/// Options of `fresh`.
#[derive(clap::Args)]
pub struct Args {
    /// Begin with the commit before the last one, then pull that, and run both commands again
    #[arg(long)]
    pull: bool,
    /// Leave the machine's root file system where it is
    #[arg(long)]
    keep: bool,
    /// Where to make it, on a filesystem of a disk: 15 GB [default: fresh in the target directory]
    #[arg(long, value_name = "DIR")]
    directory: Option<PathBuf>,
}

/// One command's run.
struct Row {
    name: String,
    seconds: f64,
    /// What is on the disk afterwards that was not there in the beginning, in bytes.
    disk: u64,
    /// The most memory that was in use besides what was in the beginning, in bytes.
    memory: u64,
    /// The last line of its output.
    result: String,
    is_success: bool,
}

/// Runs them, and prints what they took.
///
/// # Errors
/// Such a machine cannot be made here.
pub fn command(workspace: &Workspace, args: &Args) -> Result<ExitCode> {
    ensure!(
        run::is_root(),
        "this makes a root file system and runs commands in it, which only root may do; run it as \
         root: sudo -E cargo xtask fresh"
    );
    setup::ensure(&Wanted { fresh: true, ..Wanted::default() })?;
    let default = || workspace.target().join("fresh");
    let directory = args.directory.clone().unwrap_or_else(default);
    fs::create_dir_all(&directory)
        .with_context(|| format!("cannot create {}", directory.display()))?;
    let directory = directory.canonicalize().context("the directory is gone")?;
    let lock = File::create(directory.join("lock")).context("cannot create a lock")?;
    run::take_turn(&lock, "another fresh machine in this directory").context("cannot lock")?;
    let machine = Machine::make(workspace, &directory)?;
    if args.pull {
        machine.git(&["reset", "--quiet", "--hard", "HEAD~1"])?;
    }
    let mut rows = machine.run_all("")?;
    if args.pull && rows.iter().all(|row| row.is_success) {
        machine.git(&["pull", "--quiet"])?;
        rows.extend(machine.run_all(" (after a pull)")?);
    }
    if args.keep {
        announce(format_args!("left in {}", machine.root.display()));
    } else {
        machine.remove()?;
    }
    run::say(table(&rows));
    let all = rows.iter().all(|row| row.is_success);
    Ok(if all { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

struct Machine {
    root: PathBuf,
    logs: PathBuf,
    rust: PathBuf,
    go: Option<PathBuf>,
    /// On its disk in the beginning, in bytes.
    disk: u64,
}

impl Machine {
    fn make(workspace: &Workspace, directory: &Path) -> Result<Self> {
        let rust = run::output(command_of("rustc", &["--print", "sysroot"]), "is Rust installed?")?;
        let go = run::find_program("go")
            .map(|path| run::output(command_of(path, &["env", "GOROOT"]), ""))
            .transpose()?;
        let mut machine = Self {
            root: directory.join("root"),
            logs: directory.join("logs"),
            rust: PathBuf::from(rust.trim()),
            go: go.map(|text| PathBuf::from(text.trim())),
            disk: 0,
        };
        if machine.root.exists() {
            announce("removing what an earlier run left, which was interrupted");
            machine.remove()?;
        }
        fs::create_dir_all(&machine.logs).context("cannot create a directory for logs")?;
        let stage = Stage::start("a root file system that has nothing yet (usually 1 min)");
        machine.install()?;
        machine.copy_settings()?;
        machine.check_bare()?;
        stage.done();
        let stage = Stage::start("a clone of this checkout's last commit");
        let mut clone = command_of("git", &["clone", "--quiet", "--no-hardlinks"]);
        clone.arg(workspace.root()).arg(machine.checkout());
        run::visible(clone, "is this a checkout?")?;
        let mut origin = command_of("git", &["remote", "set-url", "origin"]);
        origin.arg(workspace.root()).current_dir(machine.checkout());
        run::visible(origin, "")?;
        stage.done();
        machine.disk = usage(&machine.root)?;
        Ok(machine)
    }

    fn checkout(&self) -> PathBuf {
        self.root.join("root/netpol")
    }

    fn git(&self, arguments: &[&str]) -> Result<()> {
        let mut command = command_of("git", arguments);
        command.current_dir(self.checkout());
        run::visible(command, "the checkout has to have a commit before its last one")
    }

    fn install(&self) -> Result<()> {
        let release = os_release("VERSION_CODENAME")?;
        let mut command = Command::new("debootstrap");
        command.args(["--variant=minbase", "--include", PACKAGES, &release]);
        command.arg(&self.root).args(mirror());
        let log = self.logs.join("debootstrap.log");
        let output = File::create(&log).context("cannot create a log")?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let status = command.status().context("cannot start debootstrap")?;
        ensure!(status.success(), "debootstrap failed ({status}); its log is {}", log.display());
        Ok(())
    }

    /// Where packages, crates and modules come from, and who is trusted: the host's settings.
    fn copy_settings(&self) -> Result<()> {
        for name in ["apt/sources.list", "apt/sources.list.d", "apt/auth.conf.d", "apt/keyrings"] {
            copy(&Path::new("/etc").join(name), &self.root.join("etc").join(name))?;
        }
        for name in ["resolv.conf", "hosts", "ssl/certs"] {
            copy(&Path::new("/etc").join(name), &self.root.join("etc").join(name))?;
        }
        let acquire = run::output(command_of("apt-config", &["dump", "Acquire"]), "")?;
        fs::write(self.root.join("etc/apt/apt.conf.d/90host"), acquire)?;
        let cargo = env::var_os("CARGO_HOME").map_or_else(
            || PathBuf::from(env::var_os("HOME").unwrap_or_default()).join(".cargo"),
            PathBuf::from,
        );
        for name in ["config.toml", "registry/index"] {
            copy(&cargo.join(name), &self.root.join("root/.cargo").join(name))?;
        }
        Ok(())
    }

    /// That nothing is there of what netpol's commands have to install.
    fn check_bare(&self) -> Result<()> {
        let programs = Need::ALL.iter().flat_map(|need| need.programs()).map(|program| program.0);
        for name in programs.chain(["ip", "tc", "bpf-linker"]) {
            for directory in ["bin", "sbin", "usr/bin", "usr/sbin", "usr/local/bin", "usr/lib/cni"]
            {
                let path = self.root.join(directory).join(name);
                ensure!(!path.exists(), "the fresh machine has {} already", path.display());
            }
        }
        Ok(())
    }

    fn run_all(&self, suffix: &str) -> Result<Vec<Row>> {
        COMMANDS.iter().map(|words| self.run(words, suffix)).collect()
    }

    fn run(&self, words: &[&str], suffix: &str) -> Result<Row> {
        let name = format!("cargo xtask {}{suffix}", words.join(" "));
        let stage = Stage::start(name.clone());
        let log = self.logs.join(format!("{}.log", name.replace([' ', '(', ')'], "-")));
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "--pid", "--uts", "--ipc"]);
        command.args(["--fork", "--kill-child", "--", "sh", "-c", SCRIPT, "fresh.sh"]);
        command.arg(&self.root).arg(&self.rust).arg(self.go.clone().unwrap_or_default());
        command.args(["cargo", "xtask"]).args(words);
        self.set_environment(&mut command)?;
        let memory = Memory::watch();
        let started = Instant::now();
        let (result, is_success) = show_and_log(command, &log)?;
        let seconds = started.elapsed().as_secs_f64();
        stage.done();
        let disk = usage(&self.root)?.saturating_sub(self.disk);
        Ok(Row { name, seconds, disk, memory: memory.most(), result, is_success })
    }

    fn set_environment(&self, command: &mut Command) -> Result<()> {
        for (name, _) in env::vars_os() {
            let text = name.to_string_lossy().into_owned();
            if HOSTS_OWN.iter().any(|own| text.starts_with(own)) {
                command.env_remove(&name);
            }
        }
        if let Some(go) = &self.go {
            for name in GO_SOURCES {
                let value = run::output(command_of(go.join("bin/go"), &["env", name]), "")?;
                command.env(name, value.trim());
            }
        }
        let path = "/opt/rust/bin:/usr/local/go/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:\
                    /usr/bin:/sbin:/bin";
        command.env("HOME", "/root").env("PATH", path).env("CARGO_TERM_PROGRESS_WHEN", "never");
        Ok(())
    }

    fn remove(&self) -> Result<()> {
        let mut command = command_of("rm", &["-rf", "--one-file-system"]);
        command.arg(&self.root);
        run::visible(command, "remove it by hand")
    }
}

fn command_of(program: impl AsRef<std::ffi::OsStr>, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments);
    command
}

/// A value of /etc/os-release.
fn os_release(name: &str) -> Result<String> {
    let text = fs::read_to_string("/etc/os-release").context("cannot read /etc/os-release")?;
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    let value = value.with_context(|| format!("/etc/os-release has no {name}: is this Debian?"))?;
    Ok(value.trim_matches('"').to_owned())
}

/// The first place that the host's packages come from, if it is told in a form that is understood;
/// debootstrap knows one of its own.
fn mirror() -> Option<String> {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    let directory = fs::read_dir("/etc/apt/sources.list.d").ok();
    let entries = directory.into_iter().flatten().flatten().map(|entry| entry.path());
    files.extend(entries.filter(|path| {
        path.extension().is_some_and(|extension| extension == "list" || extension == "sources")
    }));
    let texts = files.iter().filter_map(|file| fs::read_to_string(file).ok());
    texts.filter_map(|text| mirror_in(&text)).next()
}

fn mirror_in(text: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let line = line.trim();
        let uri = match line.strip_prefix("URIs:") {
            Some(rest) => rest.split_whitespace().next(),
            None => line
                .strip_prefix("deb ")
                .and_then(|rest| rest.split_whitespace().find(|word| word.contains("://"))),
        }?;
        uri.trim_end_matches('/').ends_with("/debian").then(|| uri.to_owned())
    })
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    if !from.exists() {
        return Ok(());
    }
    let parent = to.parent().context("invariant: it is in a directory")?;
    fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
    let mut command = command_of("cp", &["-aLT", "--remove-destination"]);
    command.arg(from).arg(to);
    run::visible(command, "")
}

/// Bytes below a directory.
fn usage(directory: &Path) -> Result<u64> {
    let mut command = command_of("du", &["-sx", "--block-size=1"]);
    command.arg(directory);
    let said = run::output(command, "")?;
    said.split_whitespace().next().and_then(|word| word.parse().ok()).context("du said nothing")
}

/// Shows a command's output as it comes and keeps it in a log. Returns the last line that says
/// something, and whether it succeeded.
fn show_and_log(mut command: Command, log: &Path) -> Result<(String, bool)> {
    let mut file = File::create(log).context("cannot create a log")?;
    let (reader, writer) = std::io::pipe().context("cannot create a pipe")?;
    let stderr = writer.try_clone().context("cannot duplicate a pipe")?;
    let spawned = command.stdin(Stdio::null()).stdout(writer).stderr(stderr).spawn();
    let mut child = spawned.context("cannot start unshare (package util-linux)")?;
    // It holds the pipe's write ends; without dropping it the reading below never ends.
    drop(command);
    let mut last = String::new();
    let mut line = Vec::new();
    let mut reader = BufReader::new(reader);
    while reader.read_until(b'\n', &mut line).context("cannot read a command's output")? > 0 {
        file.write_all(&line).context("cannot write a log")?;
        let text = String::from_utf8_lossy(&line);
        eprint!("    {text}");
        if !text.trim().is_empty() {
            last = text.trim().to_owned();
        }
        line.clear();
    }
    let status = child.wait().context("cannot wait for unshare")?;
    if !status.success() {
        announce(format_args!("it failed ({status}); its log is {}", log.display()));
    }
    Ok((last, status.success()))
}

/// Looks every second at how much memory the machine can still give.
struct Memory {
    before: u64,
    least: Arc<AtomicU64>,
    ended: Arc<AtomicBool>,
}

impl Memory {
    fn watch() -> Self {
        let before = available();
        let (least, ended) = (Arc::new(AtomicU64::new(before)), Arc::new(AtomicBool::new(false)));
        let (least_seen, is_over) = (least.clone(), ended.clone());
        thread::spawn(move || {
            while !is_over.load(Ordering::Relaxed) {
                least_seen.fetch_min(available(), Ordering::Relaxed);
                thread::sleep(Duration::from_secs(1));
            }
        });
        Self { before, least, ended }
    }

    /// The most that was taken, in bytes.
    fn most(&self) -> u64 {
        self.before.saturating_sub(self.least.load(Ordering::Relaxed))
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
    }
}

fn available() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kibibytes = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    kibibytes.unwrap_or_default() * 1024
}

fn table(rows: &[Row]) -> String {
    let width = rows.iter().map(|row| row.name.len()).max().unwrap_or_default();
    let mut text = format!("{:width$}  {:>11}  {:>7}  {:>7}  result", "", "time", "disk", "memory");
    for row in rows {
        let (minutes, seconds) = (row.seconds as u64 / 60, row.seconds as u64 % 60);
        let [disk, memory] = [row.disk, row.memory].map(|bytes| bytes as f64 / 1e9);
        text.push_str(&format!(
            "\n{:width$}  {minutes:>3} min {seconds:>2} s  {disk:>4.1} GB  {memory:>4.1} GB  {}{}",
            row.name,
            if row.is_success { "" } else { "FAILED: " },
            row.result
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mirror_is_read_from_both_forms_of_sources() {
        let deb822 = "Types: deb\n# URIs: http://x/debian\nURIs: http://m.example/debian\n";
        assert_eq!(mirror_in(deb822), Some("http://m.example/debian".to_owned()));
        let line = "# deb http://no/debian x\ndeb [signed-by=/k] http://m.example/debian x main\n";
        assert_eq!(mirror_in(line), Some("http://m.example/debian".to_owned()));
        assert_eq!(mirror_in("deb http://m.example/debian-security x main\n"), None);
    }

    #[test]
    fn the_table_shows_what_failed() {
        let row = |is_success| Row {
            name: "cargo xtask test".to_owned(),
            seconds: 90.0,
            disk: 1_500_000_000,
            memory: 0,
            result: "3 passed".to_owned(),
            is_success,
        };
        let text = table(&[row(true), row(false)]);
        assert!(text.contains("  1 min 30 s   1.5 GB   0.0 GB  3 passed"), "{text}");
        assert!(text.contains("FAILED: 3 passed"), "{text}");
    }
}
