//! `netpol playground`: the pods of some manifests as network namespaces, `netpol agent` on each
//! node, and every connection tried and held against the reference evaluator.
//!
//! Must never change anything that another process of the machine can see: all of it happens in
//! a private mount namespace and in network namespaces of its own.

#![forbid(unsafe_code)]

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use tokio::signal::unix::{SignalKind, signal};

mod agents;
#[cfg(test)]
mod examples_tests;
mod expect;
mod manifests;
mod matrix;
mod outcome;
mod plan;
mod pods;
mod ports;
mod probe;
mod reading;
mod round;
mod sctp;
mod server;
mod session;
mod sockets;
mod space;
mod watch;
mod wiring;

pub use plan::Families;
pub use wiring::Cni;

/// More nodes than anyone needs; the addresses have room for them.
const MAX_NODES: usize = 200;

/// What `netpol playground` can be asked for.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Directory with manifests (YAML or JSON, read recursively): Pods or workloads,
    /// NetworkPolicies, Namespaces, as for `kubectl apply`
    #[arg(value_name = "DIR", required_unless_present = "child_of")]
    pub dir: Option<PathBuf>,

    /// Show the matrix once and end, instead of staying and following changes of DIR
    #[arg(long)]
    pub once: bool,

    /// How pods are connected to their node: `bridge` as kubenet, `routed` as Calico
    #[arg(long, value_enum, default_value = "bridge")]
    pub cni: Cni,

    /// Number of nodes (named node-1, node-2, ...) that pods are spread over
    #[arg(long, default_value_t = 2, value_name = "N")]
    pub nodes: usize,

    /// Address families of nodes and pods
    #[arg(long, value_enum, default_value = "dual")]
    pub ip_families: Families,

    /// Output format; `json` is one line per round of probes
    #[arg(short, long, value_enum, default_value = "table")]
    pub output: Output,

    /// Enforce nothing: shows whether the wiring itself lets everything through
    #[arg(long)]
    pub no_agents: bool,

    /// Internal: become `netpol ARGUMENTS`, ended by the kernel together with process PID
    #[arg(long, hide = true, value_name = "PID")]
    pub child_of: Option<u32>,

    /// Internal: the arguments for --child-of
    #[arg(last = true, hide = true, requires = "child_of")]
    pub arguments: Vec<String>,
}

/// How results are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// A matrix for people.
    Table,
    /// One JSON object per round.
    Json,
}

/// Runs the playground; `Ok(true)` if everything was as expected in the last round.
///
/// Must be called while the process has a single thread, so before any runtime exists.
pub fn run(options: Options) -> Result<bool> {
    if let Some(parent) = options.child_of {
        agents::become_child_of(parent, &options.arguments)?;
    }
    let manifests = options.dir.clone().context("DIR is missing")?;
    if !(1..=MAX_NODES).contains(&options.nodes) {
        bail!("--nodes must be between 1 and {MAX_NODES}");
    }
    // Said before anything is set up: the most common mistake.
    session::check(&manifests, &options)?;
    let dir = netpol_isolation::mounts::PrivateDir::enter()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let result = runtime.block_on(async {
        let mut last = None;
        tokio::select! {
            result = session::run(&manifests, &options, &dir, &mut last) => result,
            interrupted = interrupted() => interrupted.and_then(|()| {
                last.context("interrupted before the first round of probes was over")
            }),
        }
    });
    // Ends servers and agents that are left before their directory goes.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    drop(dir);
    result
}

async fn interrupted() -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        _ = hang_up.recv() => {}
    }
    Ok(())
}
