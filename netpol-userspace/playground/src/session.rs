//! One run: build, probe, show, and again on every change. Must never give up a good state for
//! manifests with an error.

use std::io::Write;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};

use super::agents::Agents;
use super::outcome::{self, Outcome, Summary};
use super::plan::{Families, Place, Planner};
use super::reading::Reading;
use super::server::Servers;
use super::watch::Watch;
use super::wiring::Network;
use super::{Options, Output, matrix, round};
use netpol_isolation::mounts::PrivateDir;

const DEFAULT_WIDTH: usize = 100;

/// Reads the manifests without doing anything: to refuse them early, and to say what in them
/// probably is not meant.
pub fn check(dir: &Path, options: &Options) -> Result<()> {
    let mut planner = Planner::new(options.nodes, options.ip_families);
    let reading = Reading::new(dir, &mut planner, !options.no_agents)?;
    remarks(&reading);
    reading.refuse_nothing(dir)
}

/// Says what probably is not meant, and what is not tried.
fn remarks(reading: &Reading) {
    for (object, warning) in &reading.warnings {
        progress(&format!("warning: {object}: {warning}"));
    }
    for note in &reading.notes {
        progress(note);
    }
}

/// Runs until an error, or after one round with --once. `last` is what the last round saw.
pub async fn run(
    manifests: &Path,
    options: &Options,
    dir: &PrivateDir,
    last: &mut Option<bool>,
) -> Result<bool> {
    let mut watch = Watch::new(manifests)?;
    let mut planner = Planner::new(options.nodes, families(options.ip_families));
    let mut state = read(manifests, &mut planner, options)?;
    let mut session = Session::start(options, dir, &state).await?;
    loop {
        let fine = session.round(&state).await?;
        *last = Some(fine);
        if options.once {
            session.stop().await;
            return Ok(fine);
        }
        progress(&format!("watching {} (Ctrl-C ends)", manifests.display()));
        state = session.next_state(manifests, &mut watch, &mut planner).await?;
        session.apply(&state).await?;
    }
}

fn read(dir: &Path, planner: &mut Planner, options: &Options) -> Result<Reading> {
    let mut next = planner.clone();
    let reading = Reading::new(dir, &mut next, !options.no_agents)?;
    reading.refuse_nothing(dir)?;
    *planner = next;
    Ok(reading)
}

struct Session<'a> {
    options: &'a Options,
    dir: &'a PrivateDir,
    network: Network,
    servers: Servers,
    agents: Option<Agents>,
}

impl<'a> Session<'a> {
    async fn start(options: &'a Options, dir: &'a PrivateDir, state: &Reading) -> Result<Self> {
        let begun = Instant::now();
        let families = families(options.ip_families);
        let network = Network::create(&dir.netns(), options.nodes, options.cni, families).await?;
        let mut session = Self { options, dir, network, servers: Servers::default(), agents: None };
        session.wire(state).await?;
        progress(&format!("{}, wired in {}", described(options, state), seconds(begun)));
        for (kind, count) in &state.layout.ignored {
            progress(&match kind.as_str() {
                "Service" | "EndpointSlice" => format!(
                    "{count} × {kind} without effect: nothing here translates addresses of \
                     Services, pods are probed at their own"
                ),
                kind => format!("not used here: {count} × {kind}"),
            });
        }
        if !options.no_agents {
            let agents = Agents::start(dir, &session.network, options.nodes).await?;
            session.agents = Some(agents);
            session.wait_in_force().await?;
            if !options.once {
                session.explain();
            }
        }
        Ok(session)
    }

    async fn apply(&mut self, state: &Reading) -> Result<()> {
        self.wire(state).await?;
        self.wait_in_force().await
    }

    /// Pods, servers, and then the manifests: an agent never looks for a pod that is not there.
    async fn wire(&mut self, state: &Reading) -> Result<()> {
        let hosts = &state.layout.hosts;
        self.servers.retain(hosts).await;
        self.network.apply(hosts).await?;
        self.servers.start(hosts, &self.network).await?;
        write_manifest(self.dir, &state.layout.manifest)
    }

    async fn wait_in_force(&mut self) -> Result<()> {
        if let Some(agents) = &mut self.agents {
            let begun = Instant::now();
            agents.wait_in_force().await?;
            progress(&format!("in force on {} nodes in {}", self.options.nodes, seconds(begun)));
        }
        Ok(())
    }

    /// Probes everything and shows it. Whether all was as expected.
    async fn round(&mut self, state: &Reading) -> Result<bool> {
        let hosts = &state.layout.hosts;
        let outcomes = tokio::select! {
            outcomes = round::probe_all(&self.network, hosts, &state.expectations) => outcomes?,
            error = died(&mut self.agents) => return Err(error),
        };
        show(self.options.output, state, &outcomes).context("cannot write the results")?;
        Ok(Summary::of(&outcomes).differences == 0)
    }

    /// Waits for a change that makes sense; what does not is reported and changes nothing.
    async fn next_state(
        &mut self,
        manifests: &Path,
        watch: &mut Watch,
        planner: &mut Planner,
    ) -> Result<Reading> {
        loop {
            tokio::select! {
                changed = watch.changed() => changed?,
                error = died(&mut self.agents) => return Err(error),
            }
            match read(manifests, planner, self.options) {
                Ok(state) => {
                    remarks(&state);
                    return Ok(state);
                }
                Err(error) => progress(&format!("{error:#}\nthe last good state stays in force")),
            }
        }
    }

    async fn stop(self) {
        if let Some(agents) = self.agents {
            agents.stop().await;
        }
    }

    /// How to look inside while it runs.
    fn explain(&self) {
        let pid = std::process::id();
        let dir = self.dir.path().display();
        let program = std::env::current_exe().unwrap_or_else(|_| "netpol".into());
        progress(&format!(
            "look inside a node: nsenter --target {pid} --mount \
             --net=/proc/{pid}/root{dir}/netns/node-1 {} endpoints --run-dir {dir}/run/node-1 \
             --bpffs {dir}/bpf/node-1",
            program.display()
        ));
    }
}

/// Never returns if there are no agents.
async fn died(agents: &mut Option<Agents>) -> anyhow::Error {
    match agents {
        Some(agents) => agents.died().await,
        None => std::future::pending().await,
    }
}

/// IPv4 alone where the kernel has nothing else.
fn families(asked: Families) -> Families {
    match asked {
        Families::Dual if !Path::new("/proc/sys/net/ipv6").exists() => Families::Ipv4,
        asked => asked,
    }
}

/// Replaces the manifests in one step, so that no agent sees half of a change.
fn write_manifest(dir: &PrivateDir, manifest: &str) -> Result<()> {
    let directory = dir.manifests();
    let (new, name) = (dir.path().join("cluster.new"), directory.join("cluster.yaml"));
    let write = || {
        std::fs::create_dir_all(&directory)?;
        std::fs::write(&new, manifest)?;
        std::fs::rename(&new, &name)
    };
    write().with_context(|| format!("cannot write {}", name.display()))
}

fn show(output: Output, reading: &Reading, outcomes: &[Outcome]) -> std::io::Result<()> {
    let hosts = &reading.layout.hosts;
    let mut stdout = anstream::stdout().lock();
    match output {
        Output::Json => {
            writeln!(stdout, "{}", outcome::to_json(hosts, outcomes, &reading.warnings))?;
        }
        Output::Table => {
            write!(stdout, "{}", matrix::render(hosts, outcomes, width()))?;
            writeln!(stdout, "{}", matrix::LEGEND)?;
            if let Some(note) = matrix::unnamed(hosts) {
                writeln!(stdout, "{note}")?;
            }
            for difference in outcome::differences(hosts, outcomes) {
                writeln!(stdout, "difference: {difference}")?;
            }
            writeln!(stdout, "{}", Summary::of(outcomes))?;
        }
    }
    stdout.flush()
}

fn described(options: &Options, state: &Reading) -> String {
    let n_outside = state.layout.hosts.iter().filter(|host| host.place == Place::Outside).count();
    format!(
        "{} pods on {} nodes ({:?}), {n_outside} outside",
        state.layout.hosts.len() - n_outside,
        options.nodes,
        options.cni
    )
    .to_lowercase()
}

/// Says on stderr what is going on.
pub fn progress(message: &str) {
    // Nobody may be left to read it; that is no reason to stop.
    let _ = writeln!(anstream::stderr(), "playground: {message}");
}

/// Time since then, for people.
pub fn seconds(since: Instant) -> String {
    format!("{:.1} s", since.elapsed().as_secs_f64())
}

/// Of the terminal, or as wide as most are.
fn width() -> usize {
    let asked = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
    let terminal = || terminal_size::terminal_size().map(|(width, _)| usize::from(width.0));
    asked.or_else(terminal).unwrap_or(DEFAULT_WIDTH)
}
