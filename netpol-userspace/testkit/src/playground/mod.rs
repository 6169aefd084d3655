//! Runs `netpol playground` as a process and reads its rounds. Must never leave one running.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use serde_json::Value;

/// Long enough for a busy machine; nothing waits this long unless something is broken.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// A running playground and the lines it writes.
pub struct Playground {
    /// The process.
    pub child: Child,
    lines: mpsc::Receiver<String>,
}

impl Playground {
    /// Starts one with these arguments, and JSON as output.
    pub fn start(dir: &Path, mode: &[&str], arguments: &[&str]) -> Self {
        let mut child = Command::new(crate::program())
            .args(["playground", "-o", "json"])
            .args(mode)
            .args(arguments)
            .arg(dir)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (lines_tx, lines) = mpsc::channel();
        let streams: [Box<dyn std::io::Read + Send>; 2] =
            [Box::new(child.stdout.take().unwrap()), Box::new(child.stderr.take().unwrap())];
        for stream in streams {
            let lines_tx = lines_tx.clone();
            thread::spawn(move || {
                for line in BufReader::new(stream).lines().map_while(Result::ok) {
                    let _ = lines_tx.send(line);
                }
            });
        }
        Self { child, lines }
    }

    /// The next line for which `wanted` holds.
    pub fn wait_for<T>(&self, what: &str, wanted: impl Fn(&str) -> Option<T>) -> T {
        let end = Instant::now() + PATIENCE;
        let mut seen = Vec::new();
        while let Ok(line) = self.lines.recv_timeout(end.saturating_duration_since(Instant::now()))
        {
            if let Some(found) = wanted(&line) {
                return found;
            }
            seen.push(line);
        }
        panic!("no {what}; instead:\n{}", seen.join("\n"));
    }

    /// The next round of probes.
    pub fn round(&self) -> Value {
        self.wait_for("round", |line| serde_json::from_str(line).ok())
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Its mount point, as others see it.
    pub fn directory(&self) -> PathBuf {
        Path::new("/run/netpol-playground").join(self.child.id().to_string())
    }

    /// The network namespaces of its threads, without the one it was started in.
    pub fn namespaces(&self) -> BTreeSet<PathBuf> {
        let own = fs::read_link("/proc/self/ns/net").unwrap();
        let tasks = fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        let links = tasks.flatten().filter_map(|t| fs::read_link(t.path().join("ns/net")).ok());
        links.filter(|link| *link != own).collect()
    }
}

impl Drop for Playground {
    fn drop(&mut self) {
        // So that it cleans up also when a test fails. One that has ended is not signalled again.
        if let Ok(None) = self.child.try_wait() {
            self.signal(Signal::TERM);
            let _ = self.child.wait();
        }
    }
}

/// A directory with one file.
pub fn manifests(text: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("all.yaml"), text).unwrap();
    dir
}

/// `from to address protocol port` of every probe.
pub fn probes(round: &Value) -> BTreeSet<String> {
    let text = |value: &Value| value.to_string().trim_matches('"').to_owned();
    let fields = ["from", "to", "address", "protocol", "port"];
    let line = |probe: &Value| fields.map(|field| text(&probe[field])).join(" ");
    round["probes"].as_array().unwrap().iter().map(line).collect()
}
