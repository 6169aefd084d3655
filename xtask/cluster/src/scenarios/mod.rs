//! Real life on a real cluster: Deployments, Jobs, nodes and agents that come and go under load, with
//! every message counted. `cargo xtask cluster scenarios` runs them. What policies allow must not be
//! lost, what they deny must not pass; figures are told, not judged.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Result, ensure};

use crate::agent;
use crate::cluster::{Cluster, Options};

mod drain;
mod drops;
mod footprint;
mod lab;
mod latency;
mod pod_start;
mod pods;
mod ports;
mod probes;
mod restart;
mod rolling;
mod rollout;
mod stateful;
mod tally;
mod tiers;

pub use lab::{Lab, Programs};
pub use tally::Outcome;

/// Something that happens on clusters.
struct Scenario {
    name: &'static str,
    what: &'static str,
    run: fn(&mut Lab) -> Result<Outcome>,
}

/// All of them; those that disturb most come last.
const ALL: [Scenario; 13] = [
    Scenario { name: "tiers", what: "three tiers, default deny, DNS names", run: tiers::run },
    Scenario { name: "probes", what: "probes under default deny", run: probes::run },
    Scenario { name: "ports", what: "hostPort, node ports, host network", run: ports::run },
    Scenario { name: "stateful", what: "StatefulSet restarts", run: stateful::run },
    Scenario {
        name: "rolling-servers",
        what: "Deployment replaced under load",
        run: rolling::servers,
    },
    Scenario { name: "rolling-clients", what: "clients replaced", run: rolling::clients },
    Scenario {
        name: "pod-start",
        what: "200 pods from their first packet on",
        run: pod_start::with_plugin,
    },
    Scenario {
        name: "pod-window",
        what: "the same without plugin",
        run: pod_start::without_plugin,
    },
    Scenario { name: "latency", what: "policy edits under traffic", run: latency::run },
    Scenario { name: "footprint", what: "what agents take", run: footprint::run },
    Scenario { name: "rollout", what: "agents replaced under load", run: rollout::run },
    Scenario { name: "drain", what: "a node drained under load", run: drain::run },
    Scenario { name: "restart", what: "a node loses power", run: restart::run },
];

/// Options of `scenarios`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only scenarios whose name contains this; may be repeated
    #[arg(long)]
    filter: Vec<String>,
    /// Run them on the cluster of this name that is up, and leave it so [default: bring one up]
    #[arg(long)]
    keep: bool,
    /// The program to test [default: this checkout's, unoptimised; `cargo xtask image` builds others]
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
}

/// Runs scenarios and prints how they went; true if all went well.
///
/// # Errors
/// There is no such scenario, or the cluster does not come up.
pub fn command(args: &Args, mut options: Options) -> Result<bool> {
    let is_wanted = |scenario: &&Scenario| {
        args.filter.is_empty() || args.filter.iter().any(|part| scenario.name.contains(part))
    };
    let wanted: Vec<&Scenario> = ALL.iter().filter(is_wanted).collect();
    ensure!(!wanted.is_empty(), "no scenario matches; there are {}", names());
    let programs = programs(args)?;
    if !args.keep {
        // It is taken down at the end, so it must not be one that somebody uses.
        options.name = format!("scenarios-{}", std::process::id());
    }
    let cluster = match args.keep {
        true => Cluster::up_detached(&options)?,
        false => Cluster::up(&options)?,
    };
    let mut lab = Lab::new(cluster, programs)?;
    let mut table = String::new();
    let mut is_fine = true;
    for scenario in wanted {
        eprintln!("==> {}: {}", scenario.name, scenario.what);
        let started = Instant::now();
        let outcome = (scenario.run)(&mut lab).unwrap_or_else(|error| {
            let mut outcome = Outcome::default();
            outcome.problem(format!("{error:#}"));
            outcome
        });
        is_fine &= outcome.is_fine();
        let (line, details) = describe(scenario, &outcome, started.elapsed().as_secs_f64());
        eprint!("{details}");
        table += &line;
    }
    println!(
        "{:<18} {:>6} {:>9} {:>6} {:>6} {:>9} {:>7} {:>12} {:>7}",
        "scenario", "", "allowed", "lost", "slow", "denied", "passed", "wrong drops", "s"
    );
    print!("{table}");
    Ok(is_fine)
}

fn describe(scenario: &Scenario, outcome: &Outcome, seconds: f64) -> (String, String) {
    let verdict = if outcome.is_fine() { "ok" } else { "FAILED" };
    let line = format!(
        "{:<18} {verdict:>6} {:>9} {:>6} {:>6} {:>9} {:>7} {:>12} {seconds:>7.0}\n",
        scenario.name,
        outcome.allowed,
        outcome.lost,
        outcome.slow,
        outcome.denied,
        outcome.passed,
        outcome.wrong_drops,
    );
    let mut details = String::new();
    for problem in &outcome.problems {
        details += &format!("    problem: {problem}\n");
    }
    for figure in &outcome.figures {
        details += &format!("    {figure}\n");
    }
    (line.clone(), line + &details)
}

fn names() -> String {
    ALL.map(|scenario| scenario.name).join(", ")
}

/// What pods run: static, so that it is an image by itself, of which hundreds start fast.
const TRAFFIC: &str = "NETPOL_TRAFFIC";

/// What pods and nodes run.
fn programs(args: &Args) -> Result<Programs> {
    let netpol = match &args.binary {
        Some(binary) => std::path::absolute(binary)?,
        None => agent::program()?,
    };
    Ok(Programs { netpol, traffic: agent::given(TRAFFIC)? })
}
