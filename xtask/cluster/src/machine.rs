//! One machine of the cluster: a process that holds network, mount, PID, UTS and IPC namespaces,
//! in which everything else of the machine runs. When that process is killed, all of it is gone at
//! once, as when a machine loses power; what it kept on disk stays in its directory.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use netpol_isolation::netns::Netns;

use crate::process::{self, run, wait_for};

const SCRIPT: &str = include_str!("node.sh");

/// Variables that would send requests to the cluster elsewhere.
const PROXIES: [&str; 4] = ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"];

/// How long a machine lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// No longer than this process, however this process ends.
    Attached,
    /// Until somebody ends it.
    Detached,
}

/// A running machine.
#[derive(Debug)]
pub struct Machine {
    name: String,
    home: PathBuf,
    pid: u32,
    started: u64,
    /// The process that waits for the machine's first process, if this process started it; its
    /// standard input keeps an attached machine alive.
    child: Option<Child>,
}

impl Machine {
    /// Starts the machine `name`, whose disk is the directory `home`.
    ///
    /// # Errors
    /// The namespaces or mounts cannot be made: the error has what the script said.
    pub fn start(name: &str, home: &Path, life: Life) -> Result<Self> {
        for directory in ["root", "etc", "var-lib", "var-log", "opt/cni/bin", "logs"] {
            let path = home.join(directory);
            fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
        }
        if !home.join("etc/hosts").exists() {
            run(Command::new("cp").args(["-a", "/etc/."]).arg(home.join("etc")))?;
        }
        let log = home.join("logs/machine.log");
        let pid_file = home.join("pid");
        let _ = fs::remove_file(&pid_file);
        let output = fs::File::create(&log).with_context(|| format!("create {}", log.display()))?;
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--propagation", "private", "--pid", "--net", "--uts", "--ipc"])
            .args(["--fork", "--kill-child", "--", "sh", "-c", SCRIPT, "node.sh", name])
            .arg(home)
            .arg(if life == Life::Attached { "attached" } else { "detached" })
            .stdin(if life == Life::Attached { Stdio::piped() } else { Stdio::null() })
            .stdout(output.try_clone()?)
            .stderr(output)
            .current_dir("/")
            // Ctrl-C in a terminal is for who started the cluster, who then takes it down.
            .process_group(0);
        let mut child = command.spawn().context("start unshare (package util-linux)")?;
        let ready = wait_for("a machine's mounts", Duration::from_secs(60), || {
            if let Some(status) = child.try_wait()? {
                bail!("{status}");
            }
            Ok(pid_file.exists())
        });
        if let Err(error) = ready {
            let _ = child.kill();
            let _ = child.wait();
            let said = fs::read_to_string(&log).unwrap_or_default();
            bail!("cannot make the machine {name}: {error}\n{}", said.trim_end());
        }
        let mut machine = Self::open(name, home)?.context("the machine ended at once")?;
        machine.child = Some(child);
        Ok(machine)
    }

    /// The machine `name` if it is running.
    ///
    /// # Errors
    /// Its directory cannot be read.
    pub fn open(name: &str, home: &Path) -> Result<Option<Self>> {
        let path = home.join("pid");
        let Ok(text) = fs::read_to_string(&path) else {
            return Ok(None);
        };
        let mut numbers = text.split_ascii_whitespace();
        let pid: u32 = numbers
            .next()
            .and_then(|word| word.parse().ok())
            .with_context(|| format!("{} has no process number", path.display()))?;
        let Some(now) = process::start_time(pid) else {
            return Ok(None);
        };
        let recorded: Option<u64> = numbers.next().and_then(|word| word.parse().ok());
        // Another process may have got the number since.
        if recorded.is_some_and(|recorded| recorded != now) || !is_machine(pid, home) {
            return Ok(None);
        }
        if recorded.is_none() {
            fs::write(&path, format!("{pid} {now}\n"))?;
        }
        let (name, home) = (name.to_owned(), home.to_owned());
        Ok(Some(Self { name, home, pid, started: now, child: None }))
    }

    /// As the machine calls itself.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The directory on the host that has the machine's disk and logs.
    #[must_use]
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// The machine's first process, as the host numbers it.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The machine's root directory, seen from the host.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root", self.pid))
    }

    /// The machine's network namespace.
    ///
    /// # Errors
    /// The machine has ended.
    pub fn netns(&self) -> Result<Netns> {
        let context = || format!("the machine {} has ended", self.name);
        Netns::of_process(self.pid).with_context(context)
    }

    /// A command that runs in all of the machine's namespaces.
    #[must_use]
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args(["--target", &self.pid.to_string()])
            .args(["--mount", "--net", "--uts", "--ipc", "--pid", "--"])
            .arg(program);
        for name in PROXIES {
            command.env_remove(name).env_remove(name.to_lowercase());
        }
        command
    }

    /// Starts a program in the background of the machine; its output goes to [`Self::log`].
    ///
    /// # Errors
    /// The machine has ended.
    pub fn start_daemon(&self, name: &str, program: &Path, arguments: &[String]) -> Result<()> {
        // What the caller's environment says, about proxies for one, is not for the cluster.
        let script = "log=$1 pid=$2; shift 2; umask 022; \
                      env -i HOME=/root PATH=\"$PATH:/usr/sbin:/usr/bin:/sbin:/bin\" \
                      setsid \"$@\" </dev/null >>\"$log\" 2>&1 & echo $! >\"$pid\"";
        let mut command = self.command("sh");
        command.args(["-c", script, "sh"]).arg(self.log(name)).arg(pid_file(name));
        command.arg(program).args(arguments);
        run(&mut command).map(drop)
    }

    /// Ends a program started by [`Self::start_daemon`], at once, and waits until it is gone.
    ///
    /// # Errors
    /// It does not end.
    pub fn kill_daemon(&self, name: &str) -> Result<()> {
        self.signal_daemon(name, "KILL")?;
        wait_for(&format!("{name} to end"), Duration::from_secs(60), || {
            Ok(self.daemon(name).is_none())
        })
    }

    /// Sends a signal to a program started by [`Self::start_daemon`], if it is running.
    ///
    /// # Errors
    /// The machine has ended.
    pub fn signal_daemon(&self, name: &str, signal: &str) -> Result<()> {
        let Some(pid) = self.daemon(name) else {
            return Ok(());
        };
        run(self.command("kill").args(["-s", signal, &pid.to_string()])).map(drop)
    }

    /// The process of a program started by [`Self::start_daemon`], as the machine numbers it, if it
    /// is running.
    #[must_use]
    pub fn daemon(&self, name: &str) -> Option<u32> {
        let root = self.root();
        let file = root.join(pid_file(name).strip_prefix("/").expect("invariant: absolute"));
        let pid: u32 = fs::read_to_string(file).ok()?.trim().parse().ok()?;
        root.join(format!("proc/{pid}")).exists().then_some(pid)
    }

    /// Where a program started by [`Self::start_daemon`] writes.
    #[must_use]
    pub fn log(&self, name: &str) -> PathBuf {
        self.home.join(format!("logs/{name}.log"))
    }

    /// Ends the machine and everything in it, at once, and waits until it is gone.
    ///
    /// # Errors
    /// It does not end.
    pub fn kill(&mut self) -> Result<()> {
        let gone = process::kill(self.pid, self.started, &format!("the machine {}", self.name));
        if let Some(mut child) = self.child.take() {
            let _ = child.wait();
        }
        gone
    }
}

fn pid_file(name: &str) -> PathBuf {
    Path::new("/run/machine").join(format!("{name}.pid"))
}

/// Whether a process is the first one of the machine with this directory.
fn is_machine(pid: u32, home: &Path) -> bool {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let home = home.as_os_str().as_encoded_bytes();
    line.split(|byte| *byte == 0).any(|word| word == home)
}
