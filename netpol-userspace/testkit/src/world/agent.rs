//! `netpol agent` as a child process, and its socket.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use netpol_isolation::netns::Netns;
use serde_json::Value;

use super::PATIENCE;

/// A running agent, killed when dropped.
pub struct Agent {
    child: Mutex<Child>,
    run_dir: PathBuf,
}

impl Agent {
    pub fn start(node: &Netns, arguments: &[String], run_dir: &Path, log: PathBuf) -> Self {
        let log: File = OpenOptions::new().create(true).append(true).open(log).unwrap();
        let spawn = || {
            Command::new(crate::program())
                .args(arguments)
                .stdin(Stdio::null())
                .stdout(log.try_clone().unwrap())
                .stderr(log)
                .spawn()
                .unwrap()
        };
        // A child belongs to the namespace of the thread that starts it.
        Self { child: Mutex::new(node.run(spawn).unwrap()), run_dir: run_dir.to_owned() }
    }

    pub fn pid(&self) -> u32 {
        self.child.lock().unwrap().id()
    }

    /// SIGKILL, without a chance to do anything.
    pub fn kill(self) {
        self.kill_now();
    }

    /// The same of an agent that somebody still holds.
    pub fn kill_now(&self) {
        let mut child = self.child.lock().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// SIGTERM, and how it ended.
    pub fn terminate(self) -> ExitStatus {
        let mut child = self.child.lock().unwrap();
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        child.wait().unwrap()
    }

    /// Waits until everything written before the call is in force; the status then.
    pub fn wait(&self) -> Value {
        let end = Instant::now() + PATIENCE;
        // Loading the programs alone takes a minute on a machine that is emulated and shared.
        let path = format!("/wait?timeout_ms={}", PATIENCE.as_millis());
        loop {
            // The agent may not listen yet.
            if let Ok((code, body)) = self.ask("POST", &path) {
                assert_eq!(code, 200, "{body}");
                return body;
            }
            if let Some(status) = self.child.lock().unwrap().try_wait().unwrap() {
                panic!("the agent has ended: {status}");
            }
            assert!(Instant::now() < end, "the agent never listened");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// `GET PATH`.
    pub fn get(&self, path: &str) -> Value {
        let (code, body) = self.ask("GET", path).unwrap();
        assert_eq!(code, 200, "{body}");
        body
    }

    pub fn status(&self) -> Value {
        self.get("/status")
    }

    fn ask(&self, method: &str, path: &str) -> std::io::Result<(u16, Value)> {
        let mut socket = UnixStream::connect(self.run_dir.join("agent.sock"))?;
        socket.set_read_timeout(Some(PATIENCE * 2))?;
        write!(socket, "{method} {path} HTTP/1.1\r\nhost: agent\r\nconnection: close\r\n\r\n")?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let code = head.split_whitespace().nth(1).unwrap().parse().unwrap();
        Ok((code, serde_json::from_str(body).unwrap()))
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // Whoever panicked with the lock held has not left a half-changed child.
        let child = self.child.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner);
        let _ = child.kill();
        let _ = child.wait();
    }
}
