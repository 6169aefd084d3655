//! One run: build, probe, show, and again on every change. Must never give up a good state for
//! manifests with an error.

use std::io::IsTerminal;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::agents::Agents;
use super::expect::Expectations;
use super::isolation::PrivateDir;
use super::outcome::{self, Outcome, Summary};
use super::plan::{Families, Host, Layout, Place, Planner};
use super::probe::{self, Answer, Observed, Patience, Probe};
use super::server::Servers;
use super::watch::Watch;
use super::wiring::Network;
use super::{Options, Output, expect, manifests, matrix};

const DEFAULT_WIDTH: usize = 100;

/// Reads the manifests without doing anything, to refuse them early.
pub fn check(dir: &Path, options: &Options) -> Result<()> {
    let mut planner = Planner::new(options.nodes, options.ip_families);
    read(dir, &mut planner, options).map(|_| ())
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

/// The manifests, planned and understood.
struct State {
    layout: Layout,
    expectations: Expectations,
}

fn read(dir: &Path, planner: &mut Planner, options: &Options) -> Result<State> {
    expect::refuse_problems(dir)?;
    let documents = manifests::read(dir)?;
    // The planner must not remember what turns out to have an error after all.
    let mut next = planner.clone();
    let layout = next.plan(&documents)?;
    let expectations = match options.no_agents {
        true => Expectations::Everything,
        false => Expectations::new(&layout.manifest)?,
    };
    *planner = next;
    Ok(State { layout, expectations })
}

struct Session<'a> {
    options: &'a Options,
    dir: &'a PrivateDir,
    network: Network,
    servers: Servers,
    agents: Option<Agents>,
}

impl<'a> Session<'a> {
    async fn start(options: &'a Options, dir: &'a PrivateDir, state: &State) -> Result<Self> {
        let begun = Instant::now();
        let families = families(options.ip_families);
        let network = Network::create(&dir.netns(), options.nodes, options.cni, families).await?;
        let mut session = Self { options, dir, network, servers: Servers::default(), agents: None };
        session.wire(state).await?;
        progress(&format!("{}, wired in {}", described(options, state), seconds(begun)));
        for (kind, count) in &state.layout.ignored {
            progress(&format!("not used here: {count} × {kind}"));
        }
        if !options.no_agents {
            let agents = Agents::start(dir, &session.network, options.nodes).await?;
            session.agents = Some(agents);
            session.wait_in_force().await?;
            session.explain();
        }
        Ok(session)
    }

    async fn apply(&mut self, state: &State) -> Result<()> {
        self.wire(state).await?;
        self.wait_in_force().await
    }

    /// Pods, servers, and then the manifests: an agent never looks for a pod that is not there.
    async fn wire(&mut self, state: &State) -> Result<()> {
        let hosts = &state.layout.hosts;
        self.servers.retain(hosts);
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
    async fn round(&mut self, state: &State) -> Result<bool> {
        let outcomes = tokio::select! {
            outcomes = probe_all(&self.network, state) => outcomes?,
            error = died(&mut self.agents) => return Err(error),
        };
        let hosts = &state.layout.hosts;
        let summary = Summary::of(&outcomes);
        match self.options.output {
            Output::Json => anstream::println!("{}", outcome::to_json(hosts, &outcomes)),
            Output::Table => {
                anstream::print!("{}", matrix::render(hosts, &outcomes, width()));
                anstream::println!("{}", matrix::LEGEND);
                for difference in outcome::differences(hosts, &outcomes) {
                    anstream::println!("difference: {difference}");
                }
                anstream::println!("{summary}");
            }
        }
        Ok(summary.differences == 0)
    }

    /// Waits for a change that makes sense; what does not is reported and changes nothing.
    async fn next_state(
        &mut self,
        manifests: &Path,
        watch: &mut Watch,
        planner: &mut Planner,
    ) -> Result<State> {
        loop {
            tokio::select! {
                changed = watch.changed() => changed?,
                error = died(&mut self.agents) => return Err(error),
            }
            match read(manifests, planner, self.options) {
                Ok(state) => return Ok(state),
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

/// Tries every pair and port; what is not as expected is looked at a second time.
async fn probe_all(network: &Network, state: &State) -> Result<Vec<Outcome>> {
    let begun = Instant::now();
    let (mut outcomes, probes) = prepare(network, state)?;
    let all: Vec<usize> = (0..probes.len()).collect();
    let answers = look(&mut outcomes, &probes, &all, Patience::FIRST).await?;
    again_if_slow(&mut outcomes, &probes, &answers).await?;
    let differing: Vec<usize> =
        all.into_iter().filter(|&index| outcomes[index].differs()).collect();
    if !differing.is_empty() {
        look(&mut outcomes, &probes, &differing, Patience::SECOND).await?;
        let n_real = differing.iter().filter(|&&index| outcomes[index].differs()).count();
        progress(&format!(
            "{} probes were not as expected at first, {n_real} still are not",
            differing.len()
        ));
    }
    progress(&format!("{} probes in {}", probes.len(), seconds(begun)));
    Ok(outcomes)
}

fn prepare(network: &Network, state: &State) -> Result<(Vec<Outcome>, Vec<Probe>)> {
    let hosts = &state.layout.hosts;
    let (mut outcomes, mut probes) = (Vec::new(), Vec::new());
    for (from, client) in hosts.iter().enumerate() {
        for (to, server) in hosts.iter().enumerate() {
            if client.place == Place::Outside && server.place == Place::Outside {
                continue;
            }
            for (source, destination) in address_pairs(client, server) {
                for port in &server.ports {
                    let expected =
                        state.expectations.allows(client, source, server, destination, port);
                    let observed = Observed::Blocked;
                    let port = port.clone();
                    probes.push(Probe {
                        space: network.space(client)?.clone(),
                        source,
                        destination: (destination, port.number).into(),
                        protocol: port.protocol,
                        server: server.to_string(),
                        expected,
                    });
                    outcomes.push(Outcome {
                        from,
                        to,
                        source,
                        destination,
                        port,
                        expected,
                        observed,
                    });
                }
            }
        }
    }
    Ok((outcomes, probes))
}

/// One pair for each family that both have.
fn address_pairs(
    client: &Host,
    server: &Host,
) -> impl Iterator<Item = (std::net::IpAddr, std::net::IpAddr)> {
    client.addresses.iter().flat_map(|&source| {
        let same = move |address: &&std::net::IpAddr| address.is_ipv4() == source.is_ipv4();
        server.addresses.iter().filter(same).map(move |&destination| (source, destination))
    })
}

/// Tries the chosen probes and writes down what they saw.
async fn look(
    outcomes: &mut [Outcome],
    probes: &[Probe],
    chosen: &[usize],
    patience: Patience,
) -> Result<Vec<Answer>> {
    let total = chosen.len();
    let show = std::io::stderr().is_terminal();
    let count = move |done: usize| {
        if show && (done.is_multiple_of(50) || done == total) {
            eprint!("\rprobing {done}/{total}{}", if done == total { "\r\x1b[K" } else { "" });
        }
    };
    let selected = chosen.iter().map(|&index| probes[index].clone()).collect();
    let answers = probe::run_all(selected, patience, count).await?;
    for (&index, answer) in chosen.iter().zip(&answers) {
        outcomes[index].observed = answer.observed.clone();
    }
    Ok(answers)
}

/// On a machine where answers came late, silence may have been lateness: it is tried again with
/// time enough for the slowest answer seen.
async fn again_if_slow(
    outcomes: &mut [Outcome],
    probes: &[Probe],
    answers: &[Answer],
) -> Result<()> {
    let answered = answers.iter().filter(|answer| answer.observed == Observed::Allowed);
    let slowest = answered.map(|answer| answer.took).max().unwrap_or(Duration::ZERO);
    if slowest <= Patience::FIRST.blocked / 2 {
        return Ok(());
    }
    let silent: Vec<usize> = (0..outcomes.len())
        .filter(|&index| !outcomes[index].expected && outcomes[index].observed == Observed::Blocked)
        .collect();
    if silent.is_empty() {
        return Ok(());
    }
    progress(&format!(
        "answers took up to {} ms: looking again at {} silent connections",
        slowest.as_millis(),
        silent.len()
    ));
    let patience =
        Patience { blocked: slowest * 4, at_once: Patience::FIRST.at_once / 2, ..Patience::FIRST };
    look(outcomes, probes, &silent, patience).await?;
    Ok(())
}

fn described(options: &Options, state: &State) -> String {
    let n_outside = state.layout.hosts.iter().filter(|host| host.place == Place::Outside).count();
    format!(
        "{} pods on {} nodes ({:?}), {n_outside} hosts outside",
        state.layout.hosts.len() - n_outside,
        options.nodes,
        options.cni
    )
    .to_lowercase()
}

fn progress(message: &str) {
    anstream::eprintln!("playground: {message}");
}

fn seconds(since: Instant) -> String {
    format!("{:.1} s", since.elapsed().as_secs_f64())
}

/// Of the terminal, or as wide as most are.
fn width() -> usize {
    let asked = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
    asked.unwrap_or(DEFAULT_WIDTH)
}
