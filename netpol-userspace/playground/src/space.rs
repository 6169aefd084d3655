//! One network namespace of the playground with a thread that works inside it. Must never run
//! work of one namespace in another: every job runs on the thread that entered it.

use std::fs;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;

use anyhow::{Context, Result, anyhow, bail};
use tokio::sync::oneshot;

use netpol_isolation::netns::{self, Netns};

type Job = Box<dyn FnOnce() + Send>;

/// A namespace, alive until it is dropped and its last socket is closed.
#[derive(Debug)]
pub struct Space {
    dir: PathBuf,
    name: String,
    jobs: mpsc::Sender<Job>,
}

impl Space {
    /// Creates the namespace `name`, visible in `dir`.
    pub fn create(dir: &Path, name: &str) -> Result<Self> {
        let netns = Netns::create(dir, name).context("cannot create a network namespace")?;
        let (jobs, queue) = mpsc::channel::<Job>();
        let work = move || queue.into_iter().for_each(|job| job());
        netns.spawn(name, work).with_context(|| format!("cannot enter the namespace {name}"))?;
        Ok(Self { dir: dir.to_owned(), name: name.to_owned(), jobs })
    }

    /// Its bind mount.
    pub fn path(&self) -> PathBuf {
        self.dir.join(&self.name)
    }

    /// Runs `work` inside the namespace. What it opens or starts belongs to the namespace.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (answer, answered) = oneshot::channel();
        // Whoever stopped waiting does not need the answer.
        let job = move || drop(answer.send(work()));
        let gone = || anyhow!("the thread in the namespace {} has ended", self.name);
        self.jobs.send(Box::new(job)).map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }

    /// Runs these lines of `ip -batch` inside the namespace.
    pub async fn ip(&self, lines: Vec<String>) -> Result<()> {
        let name = self.name.clone();
        self.run(move || {
            ip_batch(&lines).with_context(|| format!("cannot set up the network of {name}"))
        })
        .await
    }

    /// Writes settings below /proc/sys/net of the namespace.
    pub async fn settings(&self, settings: Vec<(String, &'static str)>) -> Result<()> {
        self.run(move || {
            for (name, value) in settings {
                let path = Path::new("/proc/sys/net").join(&name);
                fs::write(&path, value)
                    .with_context(|| format!("cannot write {value} to {}", path.display()))?;
            }
            Ok(())
        })
        .await
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        // If the name cannot be removed now, it goes with the mount namespace.
        let _ = netns::delete(&self.dir, &self.name);
    }
}

fn ip_batch(lines: &[String]) -> Result<()> {
    if lines.is_empty() {
        return Ok(());
    }
    let mut child = Command::new("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .context("cannot run `ip`: install the package iproute2")?;
    let mut input = child.stdin.take().context("invariant: stdin is a pipe")?;
    // If `ip` ends at a bad line it does not read the rest; its own message says why.
    let _ = input.write_all((lines.join("\n") + "\n").as_bytes());
    drop(input);
    let output = child.wait_with_output()?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        let number = message.rsplit(':').next().and_then(|number| number.parse::<usize>().ok());
        let line = number.and_then(|n| lines.get(n.checked_sub(1)?)).map_or("", |line| line);
        bail!("`ip {line}` failed: {message}");
    }
    Ok(())
}
