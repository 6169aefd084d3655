//! `cargo xtask conformance`: upstream's NetworkPolicy and ClusterNetworkPolicy suites on a real
//! cluster with netpol on every node. Must neither change upstream's tests nor call a run good that did not test.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum;
use netpol_needs::Need;

use crate::agent::{self, Plugin};
use crate::cluster::take_down;
use crate::network::Network;
use crate::node::ProxyMode;
use crate::prepare as prepare_programs;
use crate::process;
use crate::{Cluster, Options};

mod go_tests;
mod prepare;
mod report;
mod suite;
mod tiers;

use report::Report;
use suite::Suite;

/// Options of `conformance`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// How kube-proxy works; both ways mean two clusters, one after the other
    #[arg(long, value_name = "MODE", default_value = "both")]
    proxy_mode: Proxies,
    /// Which of upstream's suites
    #[arg(long, value_name = "SUITE", default_value = "current")]
    suite: Suites,
    /// Only specs whose name matches this regular expression
    #[arg(long, value_name = "REGEX")]
    focus: Option<String>,
    /// How many specs at once; they wait more than they work [default: 3 of the current suite, 6
    /// of the older one, which waits five minutes for each connection that is denied]
    #[arg(long, value_name = "N")]
    parallel: Option<u8>,
    /// How pods reach pods on other nodes
    #[arg(long, default_value = "bridge-vxlan")]
    network: Network,
    /// netpol's program [default: this checkout's, unoptimised; `cargo xtask image` builds others]
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// Run the suite on a cluster that enforces nothing, where it must fail
    #[arg(long, conflicts_with = "binary")]
    without_netpol: bool,
    /// Without netpol's CNI plugin: clients that connect in their first moment, as the older
    /// suite's do, are then not always enforced yet
    #[arg(long, conflicts_with = "without_netpol")]
    without_plugin: bool,
    /// Leave the cluster as it is, or use the one that was left
    #[arg(long)]
    keep: bool,
    /// Where reports and logs go
    #[arg(long, value_name = "DIR", default_value = "target/conformance")]
    output: PathBuf,
    #[command(flatten)]
    tiers: tiers::Options,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Proxies {
    /// iptables
    Iptables,
    /// nftables
    Nftables,
    /// First iptables, then nftables
    Both,
}

impl Proxies {
    fn modes(self) -> &'static [ProxyMode] {
        match self {
            Self::Iptables => &[ProxyMode::Iptables],
            Self::Nftables => &[ProxyMode::Nftables],
            Self::Both => &[ProxyMode::Iptables, ProxyMode::Nftables],
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Suites {
    /// The one of the cluster's version
    Current,
    /// The older one, of the last version that had it
    Legacy,
    /// ClusterNetworkPolicy's, of network-policy-api
    ClusterNetworkPolicy,
    /// One after the other
    All,
}

impl Suites {
    fn suites(self) -> &'static [Part] {
        const CURRENT: Part = Part::NetworkPolicy(Suite::Current);
        const LEGACY: Part = Part::NetworkPolicy(Suite::Legacy);
        match self {
            Self::Current => &[CURRENT],
            Self::Legacy => &[LEGACY],
            Self::ClusterNetworkPolicy => &[Part::ClusterNetworkPolicy],
            Self::All => &[CURRENT, LEGACY, Part::ClusterNetworkPolicy],
        }
    }
}

/// One suite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// Of Kubernetes' own.
    NetworkPolicy(Suite),
    /// Of network-policy-api's.
    ClusterNetworkPolicy,
}

impl Part {
    fn name(self) -> &'static str {
        match self {
            Self::NetworkPolicy(suite) => suite.name(),
            Self::ClusterNetworkPolicy => "cluster-network-policy",
        }
    }

    fn need(self) -> Need {
        match self {
            Self::NetworkPolicy(suite) => suite.need(),
            Self::ClusterNetworkPolicy => Need::TierSuite,
        }
    }
}

impl Args {
    /// The kernel to boot for it, with all of the cluster in one virtual machine.
    #[must_use]
    pub fn kernel(&self) -> Option<&str> {
        self.tiers.kernel()
    }

    /// Where reports and logs go.
    #[must_use]
    pub fn output(&self) -> &Path {
        &self.output
    }

    /// The words that a run inside a virtual machine is given besides those that were written, so
    /// that it does the same. `patience`: if none was asked for.
    ///
    /// # Errors
    /// What was asked for cannot be done inside.
    pub fn inside(&self, patience: u32) -> Result<Vec<String>> {
        tiers::check(&self.tiers)?;
        ensure!(
            self.suite == Suites::ClusterNetworkPolicy,
            "--kernel goes with --suite cluster-network-policy"
        );
        ensure!(
            !self.keep && self.binary.is_none(),
            "--keep and --binary cannot be given with --kernel"
        );
        let mut words = self.tiers.of_checkout();
        if !self.tiers.has_patience() {
            words.push(format!("--patience={patience}"));
        }
        Ok(words)
    }
}

/// Runs what was asked for, and says what passed. Exit code 1: a spec failed.
///
/// # Errors
/// The question could not be asked: no cluster, no suite, netpol does not become ready.
pub fn command(args: &Args) -> Result<ExitCode> {
    tiers::check(&args.tiers)?;
    ensure!(
        args.tiers.kernel().is_none(),
        "virtual machines are started by `cargo xtask conformance`"
    );
    process::set_patience(args.tiers.patience());
    let output = std::path::absolute(&args.output)?;
    fs::create_dir_all(&output).with_context(|| format!("create {}", output.display()))?;
    // All of it, before anything is begun.
    let suites = args.suite.suites().iter().map(|suite| suite.need());
    prepare_programs::ensure(&suites.chain([Need::Nodes]).collect::<Vec<_>>())?;
    let mut reports = Vec::new();
    for &mode in args.proxy_mode.modes() {
        reports.extend(on_cluster(args, mode, &output)?);
    }
    for report in &reports {
        println!("{}", report.summary());
    }
    let all_passed = reports.iter().all(Report::is_success);
    Ok(if all_passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn on_cluster(args: &Args, proxy_mode: ProxyMode, output: &Path) -> Result<Vec<Report>> {
    let options = Options {
        name: format!("conformance-{}", proxy_mode.name()),
        proxy_mode,
        network: args.network,
        ..Options::default()
    };
    let cluster = if args.keep { Cluster::up_detached(&options)? } else { fresh(&options)? };
    if args.without_netpol {
        eprintln!("==> WITHOUT netpol: nothing enforces policies on this cluster");
        return run_suites(args, &cluster, output);
    }
    let binary = args.binary.clone().map_or_else(agent::program, Ok)?;
    let plugin = if args.without_plugin { Plugin::None } else { Plugin::Installed };
    agent::install(&cluster, &binary, plugin)?;
    eprintln!("==> netpol is ready on every node");
    let restarts_before = prepare::restarts(&cluster)?;
    let mut reports = run_suites(args, &cluster, output)?;
    // What was found is not lost when the cluster answers no longer.
    let logs = prepare::collect_logs(&cluster, output, proxy_mode.name());
    let problem = match logs.and_then(|()| prepare::restarts(&cluster)) {
        Ok(restarts) if restarts <= restarts_before => None,
        Ok(restarts) => {
            let times = restarts - restarts_before;
            Some(format!("netpol's agents ended and were started again: {times} times"))
        }
        Err(error) => Some(format!("the agents cannot be asked at the end: {error:#}")),
    };
    if let (Some(report), Some(problem)) = (reports.last_mut(), problem) {
        report.add_problem(problem);
        report.write(output)?;
    }
    Ok(reports)
}

fn run_suites(args: &Args, cluster: &Cluster, output: &Path) -> Result<Vec<Report>> {
    let mut reports = Vec::new();
    for &suite in args.suite.suites() {
        let name = run_name(suite, cluster.options().proxy_mode, args.without_netpol);
        let report = run_suite(args, cluster, suite, &name, &output.join(&name))?;
        report.write(output)?;
        // A run of no spec would be green, and mean nothing.
        ensure!(report.ran() > 0, "no spec of {name} was run: does --focus match one?");
        reports.push(report);
    }
    Ok(reports)
}

fn run_suite(
    args: &Args,
    cluster: &Cluster,
    part: Part,
    name: &str,
    directory: &Path,
) -> Result<Report> {
    let focus = args.focus.as_deref();
    let suite = match part {
        Part::NetworkPolicy(suite) => suite,
        Part::ClusterNetworkPolicy => {
            return tiers::Run { cluster, args: &args.tiers, focus, name, directory }.execute();
        }
    };
    if suite == Suite::Legacy {
        prepare::shell_image(cluster)?;
    }
    let parallel = args.parallel.unwrap_or(suite.parallel());
    let outcome = suite::Run { cluster, suite, focus, parallel, directory }.execute()?;
    Report::new(name, &outcome)
}

/// A cluster that has nothing of an earlier run, and ends with this one.
fn fresh(options: &Options) -> Result<Cluster> {
    take_down(&options.name)?;
    Cluster::up(options)
}

fn run_name(suite: Part, proxy_mode: ProxyMode, without_netpol: bool) -> String {
    let control = if without_netpol { "-without-netpol" } else { "" };
    format!("{}-{}{control}", suite.name(), proxy_mode.name())
}
