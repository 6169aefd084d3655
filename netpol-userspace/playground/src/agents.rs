//! One `netpol agent` per node, each a process inside its node's namespace. Must never outlive
//! the playground: every child asks the kernel to be killed with it.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use tokio::process::{Child, Command};
use tokio::runtime::Handle;

use super::plan;
use super::space::Space;
use super::wiring::Network;
use netpol_api::state::Status;
use netpol_isolation::mounts::PrivateDir;

/// How long agents may take until what was written is in force.
const IN_FORCE: Duration = Duration::from_secs(30);
const LOG_LINES: usize = 20;

/// The running agents.
#[derive(Debug)]
pub struct Agents {
    running: Vec<Agent>,
}

#[derive(Debug)]
struct Agent {
    node: String,
    space: Arc<Space>,
    run_dir: PathBuf,
    log: PathBuf,
    child: Child,
}

impl Agents {
    /// Starts an agent on each node.
    pub async fn start(dir: &PrivateDir, network: &Network, nodes: usize) -> Result<Self> {
        dir.mount_bpffs()?;
        let mut running = Vec::new();
        for node in 1..=nodes {
            let space = network.node(node).clone();
            let node = plan::node_name(node);
            let (run_dir, log) = (dir.run(&node), dir.log(&node));
            std::fs::create_dir_all(&run_dir)?;
            let path = |path: PathBuf| path.to_string_lossy().into_owned();
            let mut arguments = vec!["agent".to_owned()];
            for (flag, value) in [
                ("--node-name", node.clone()),
                ("--manifests", path(dir.manifests())),
                ("--bpffs", path(dir.bpffs().join(&node))),
                ("--run-dir", path(run_dir.clone())),
                ("--netns-dir", path(dir.netns())),
            ] {
                arguments.extend([flag.to_owned(), value]);
            }
            let output = File::create(&log)?;
            let child = spawn(&space, arguments, output.try_clone()?.into(), output.into());
            let child = child.await.with_context(|| format!("cannot start the agent of {node}"))?;
            running.push(Agent { node, space, run_dir, log, child });
        }
        Ok(Self { running })
    }

    /// Waits until every agent has what is in the manifests now in force.
    pub(crate) async fn wait_in_force(&mut self) -> Result<()> {
        let waits = self.running.iter_mut().map(Agent::wait_in_force);
        futures::future::try_join_all(waits).await?;
        Ok(())
    }

    /// Returns, with an error that says why, as soon as an agent has ended.
    pub(crate) async fn died(&mut self) -> anyhow::Error {
        let deaths = self.running.iter_mut().map(|agent| Box::pin(agent.died()));
        let (error, _, _) = futures::future::select_all(deaths).await;
        error
    }

    /// Ends the agents and waits for them.
    pub async fn stop(mut self) {
        for agent in &mut self.running {
            // One that has ended already is as good.
            let _ = agent.child.kill().await;
        }
    }
}

impl Agent {
    async fn wait_in_force(&mut self) -> Result<()> {
        let begun = Instant::now();
        loop {
            let left = IN_FORCE.saturating_sub(begun.elapsed());
            let (space, run_dir) = (self.space.clone(), self.run_dir.clone());
            let answer = tokio::select! {
                answer = status(&space, &run_dir, left) => answer?,
                error = self.died() => return Err(error),
            };
            let Err(message) = answer else { return Ok(()) };
            if begun.elapsed() >= IN_FORCE {
                bail!(
                    "{}: the manifests are not in force after {} s: {message}\n{}",
                    self.node,
                    IN_FORCE.as_secs(),
                    self.log_tail()
                );
            }
            // The agent may not listen yet.
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn died(&mut self) -> anyhow::Error {
        let how = match self.child.wait().await {
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        };
        anyhow::anyhow!("the agent of {} ended ({how}); its log:\n{}", self.node, self.log_tail())
    }

    fn log_tail(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
    }
}

/// `netpol status --wait`: `Ok(Err(message))` if it failed. What of the manifests is of no use was
/// said before, and is no reason not to try the rest.
async fn status(space: &Space, run_dir: &Path, limit: Duration) -> Result<Result<(), String>> {
    let seconds = format!("{}s", limit.as_secs().max(1));
    let run_dir = run_dir.to_string_lossy().into_owned();
    let arguments =
        ["status", "--wait", "--timeout", &seconds, "--run-dir", &run_dir, "--output", "json"];
    let arguments = arguments.map(str::to_owned).to_vec();
    let child = spawn(space, arguments, Stdio::piped(), Stdio::piped()).await?;
    let output = child.wait_with_output().await?;
    let told: Option<Status> = serde_json::from_slice(&output.stdout).ok();
    let is_used = told.is_some_and(|Status { source, datapath, .. }| {
        let is_in_force = source.synced && source.revision == datapath.applied_revision;
        is_in_force && !source.errors.is_empty() && datapath.errors.is_empty()
    });
    if output.status.success() || is_used {
        return Ok(Ok(()));
    }
    let said = [output.stderr, output.stdout].concat();
    Ok(Err(String::from_utf8_lossy(&said).trim().to_owned()))
}

/// Starts this program with other arguments inside a namespace.
async fn spawn(
    space: &Space,
    arguments: Vec<String>,
    stdout: Stdio,
    stderr: Stdio,
) -> Result<Child> {
    let runtime = Handle::current();
    let parent = std::process::id().to_string();
    // The namespace's thread lives as long as the namespace; the kernel counts the end of that
    // thread as the end of the parent.
    space
        .run(move || {
            let _entered = runtime.enter();
            let child = Command::new("/proc/self/exe")
                .args(["playground", "--child-of", &parent, "--"])
                .args(arguments)
                .stdin(Stdio::null())
                .stdout(stdout)
                .stderr(stderr)
                .kill_on_drop(true)
                // A Ctrl-C at the terminal is for the playground, which then ends its children.
                .process_group(0)
                .spawn()?;
            Ok(child)
        })
        .await
}

/// Becomes `netpol ARGUMENTS`, to be killed by the kernel when the playground `parent` ends.
pub(crate) fn become_child_of(parent: u32, arguments: &[String]) -> Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    let now = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get().cast_unsigned());
    if now != Some(parent) {
        bail!("the playground {parent} has ended");
    }
    let error = std::process::Command::new("/proc/self/exe").args(arguments).exec();
    Err(error).context("cannot execute this program again")
}
