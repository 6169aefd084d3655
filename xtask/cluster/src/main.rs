//! `cargo xtask cluster`: a real Kubernetes cluster on this machine.

use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use netpol_cluster::network::Network;
use netpol_cluster::node::{self, ProxyMode};
use netpol_cluster::{
    Cluster, Options, agent, binaries, cluster, conformance, control_plane, forward, prepare,
    scenarios,
};
use netpol_needs::Need;

/// A real Kubernetes cluster on this machine, in namespaces of its own.
#[derive(Parser)]
#[command(name = "cargo xtask cluster", bin_name = "cargo xtask cluster")]
#[command(disable_help_subcommand = true)]
struct Cli {
    /// Which cluster; several can run side by side
    #[arg(long, default_value = "netpol", global = true)]
    name: String,
    /// Fail at once when something of Kubernetes is not ready, instead of building it
    #[arg(long, global = true)]
    no_prepare: bool,
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Bring it up, or what is missing of it, and wait until it is ready
    Up {
        /// How many nodes
        #[arg(long, default_value_t = 2)]
        nodes: u8,
        /// How kube-proxy works
        #[arg(long, default_value = "iptables")]
        proxy_mode: ProxyMode,
        /// How pods reach pods on other nodes
        #[arg(long, default_value = "bridge-vxlan")]
        network: Network,
        /// When it does not come up, leave what there is
        #[arg(long)]
        keep: bool,
        /// Stay, and end the cluster when this process ends (Ctrl-C)
        #[arg(long)]
        foreground: bool,
    },
    /// End everything of it, and remove its state
    Down,
    /// What runs, which nodes are ready, where the logs are
    Status,
    /// Write the administrator's kubeconfig for this host, and print where it is
    Kubeconfig {
        /// Print the file itself
        #[arg(long)]
        print: bool,
    },
    /// Run kubectl as its administrator
    Kubectl {
        /// kubectl's arguments
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Run a program on one of its machines: `control`, `node-1`, `node-2`, ...
    Node {
        /// The machine
        machine: String,
        /// The program and its arguments; a shell if there are none
        #[arg(last = true)]
        command: Vec<String>,
    },
    /// Restart a node as if it lost its power, and wait until it is ready again
    Restart {
        /// `node-1`, `node-2`, ...
        node: String,
    },
    /// Give every node the images of an archive
    LoadImage {
        /// A tar of one or more images
        archive: std::path::PathBuf,
    },
    /// Deployments, Jobs, nodes and agents that come and go under load, with every message counted
    Scenarios {
        /// How kube-proxy works
        #[arg(long, default_value = "iptables")]
        proxy_mode: ProxyMode,
        /// How pods reach pods on other nodes
        #[arg(long, default_value = "bridge-vxlan")]
        network: Network,
        #[command(flatten)]
        args: scenarios::Args,
    },
    /// Install netpol on it as deploy/ has it, and wait until every node enforces policies
    Deploy {
        /// The program [default: this checkout's, unoptimised; `cargo xtask image` builds others]
        #[arg(long)]
        binary: Option<std::path::PathBuf>,
        /// With the CNI plugin, so that pods start only when their policies are in force
        #[arg(long)]
        with_cni: bool,
    },
    /// Run upstream's NetworkPolicy tests with netpol on a cluster of their own
    Conformance(Box<conformance::Args>),
    /// Build those of Kubernetes' programs that are not ready, and print where all are
    Build {
        /// What of them: kubectl, control-plane, nodes, dns, suite, legacy-suite,
        /// cluster-network-policy-suite [default: all]
        #[arg(value_parser = need)]
        what: Vec<Need>,
    },
    /// Forward a port of this host's loopback to the API server
    #[command(hide = true)]
    Forward,
}

fn main() -> ExitCode {
    match dispatch(Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// What has to be ready before an action begins.
fn needs(action: &Action) -> &'static [Need] {
    match action {
        Action::Up { .. } => &[Need::Nodes],
        Action::Scenarios { .. } => &[Need::Nodes, Need::Dns],
        // The suites know what they need; the others use a cluster that is there.
        _ => &[],
    }
}

fn need(name: &str) -> Result<Need, String> {
    let known = Need::of_name(name).filter(|need| Need::KUBERNETES.contains(need));
    known.ok_or_else(|| {
        format!("of Kubernetes there are {}", Need::KUBERNETES.map(Need::name).join(", "))
    })
}

fn dispatch(cli: Cli) -> Result<ExitCode> {
    let name = cli.name;
    if !cli.no_prepare {
        prepare::ensure(needs(&cli.action))?;
    }
    match cli.action {
        Action::Up { nodes, proxy_mode, network, keep, foreground } => {
            let options = Options { name, nodes, proxy_mode, network, keep };
            let cluster =
                if foreground { Cluster::up(&options) } else { Cluster::up_detached(&options) }?;
            println!("{}", cluster.kubectl(&["get", "nodes", "-o", "wide"])?.trim_end());
            println!("export KUBECONFIG={}", cluster.kubeconfig()?.display());
            if foreground {
                loop {
                    std::thread::park();
                }
            }
        }
        Action::Kubeconfig { print } => {
            let path = open(&name)?.kubeconfig()?;
            if print {
                print!("{}", std::fs::read_to_string(path)?);
            } else {
                println!("{}", path.display());
            }
        }
        Action::Restart { node } => {
            let mut cluster = open(&name)?;
            let index = cluster.nodes().iter().position(|machine| machine.name() == node);
            cluster.restart_node(index.with_context(|| format!("there is no node {node}"))?)?;
        }
        Action::Forward => forward::run(&open(&name)?)?,
        Action::Scenarios { proxy_mode, network, args } => {
            let options = Options { name, proxy_mode, network, ..Options::default() };
            if !scenarios::command(&args, options)? {
                return Ok(ExitCode::FAILURE);
            }
        }
        Action::Down => cluster::take_down(&name)?,
        Action::Status => return status(&name),
        Action::Kubectl { arguments } => {
            return Err(replace(open(&name)?.kubectl_command()?.args(arguments)));
        }
        Action::Node { machine, command } => {
            let cluster = open(&name)?;
            let machine = cluster.machine(&machine)?;
            let (program, arguments) = match command.split_first() {
                Some((program, arguments)) => (program.as_str(), arguments),
                None => ("bash", &[][..]),
            };
            return Err(replace(machine.command(program).args(arguments)));
        }
        Action::LoadImage { archive } => {
            let archive = std::path::absolute(archive)?;
            open(&name)?.load_image(&archive)?;
        }
        Action::Deploy { binary, with_cni } => {
            let cluster = open(&name)?;
            let binary = binary.map_or_else(agent::program, Ok)?;
            let plugin = if with_cni { agent::Plugin::Installed } else { agent::Plugin::None };
            agent::install(&cluster, &binary, plugin)?;
            println!("{}", cluster.kubectl(&["-n", "netpol", "get", "pods", "-o", "wide"])?);
        }
        Action::Conformance(args) => return conformance::command(&args),
        Action::Build { what } => {
            let what = if what.is_empty() { Need::KUBERNETES.to_vec() } else { what };
            prepare::ensure(&what)?;
            let mut paths = Vec::new();
            for program in what.iter().flat_map(|need| binaries::of(*need)) {
                paths.push(binaries::find(*program)?);
            }
            paths.sort();
            paths.dedup();
            paths.iter().for_each(|path| println!("{}", path.display()));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Becomes the program, so that signals, terminal and exit code are its own.
fn replace(command: &mut Command) -> anyhow::Error {
    let error = command.exec();
    anyhow::Error::from(error).context("start nsenter (package util-linux)")
}

fn open(name: &str) -> Result<Cluster> {
    Cluster::open(name)?.with_context(|| {
        format!("there is no cluster {name} running; `cargo xtask cluster up` brings it up")
    })
}

fn status(name: &str) -> Result<ExitCode> {
    let Some(cluster) = Cluster::open(name)? else {
        println!("the cluster {name} is not running; `cargo xtask cluster up` brings it up");
        let others = cluster::names()?;
        if !others.is_empty() {
            println!("there is state of: {}", others.join(", "));
        }
        return Ok(ExitCode::FAILURE);
    };
    let mut all_run = true;
    let control = [cluster.control()].map(|machine| (machine, &control_plane::DAEMONS[..]));
    let nodes = cluster.nodes().iter().map(|machine| (machine, &node::DAEMONS[..]));
    for (machine, daemons) in control.into_iter().chain(nodes) {
        println!("{} (process {})", machine.name(), machine.pid());
        for daemon in daemons {
            let runs = machine.daemon(daemon).is_some();
            all_run &= runs;
            let state = if runs { "runs" } else { "HAS ENDED" };
            println!("  {daemon:<24} {state:<10} {}", machine.log(daemon).display());
        }
    }
    println!("{}", cluster.kubectl(&["get", "nodes", "-o", "wide"])?.trim_end());
    if !all_run {
        println!("start what has ended with `cargo xtask cluster up`");
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn every_command_can_be_parsed() {
        Cli::command().debug_assert();
    }
}
