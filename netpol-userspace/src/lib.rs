//! The command line: what can be asked for, and how answers and errors are told.
//!
//! One file per command. A command writes its answer to the writer it is given and returns
//! whether the answer is "yes"; notes go to standard error. Must never start a thread or a runtime
//! before a command asks for it.

#![forbid(unsafe_code)]

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{CommandFactory as _, Parser, Subcommand};

mod agent;
mod capabilities;
pub mod check;
mod cleanup;
mod cni;
mod completions;
mod endpoints;
mod error;
mod flows;
mod monitor;
mod output;
mod places;
mod policies;
mod rules;
mod services;
mod status;
mod trace;
mod version;

pub use agent::AgentArgs;

const AFTER_HELP: &str = "\
Exit codes: 0 yes, allowed, fine; 1 no, denied, findings; 2 error.

Start here:
  netpol check policy.yaml          what does this policy mean, and is it valid?
  netpol playground DIR             try policies on real packets, without a cluster
  netpol status                     is everything in force on this node?
  netpol rules NAMESPACE/POD        what may this pod do, and by which policy?
  netpol trace --from A --to B      would this connection be allowed, and by which policy?
  netpol monitor                    which packets are dropped, and why?";

/// Kubernetes NetworkPolicy, enforced by eBPF at each pod's interface
#[derive(Debug, Parser)]
#[command(name = "netpol", version, after_help = AFTER_HELP, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Agent(Box<AgentArgs>),
    Status(status::Args),
    Endpoints(endpoints::Args),
    Policies(policies::Args),
    Rules(rules::Args),
    Flows(flows::Args),
    Services(services::Args),
    Trace(trace::Args),
    Monitor(monitor::Args),
    /// Explain policies, and name what an API server would refuse
    ///
    /// Says in plain sentences what each policy does, what an API server would refuse and why
    /// (errors), and what is probably not meant (warnings): rules left empty that open everything,
    /// selectors that match no pod, port names that no pod has, parts without effect. Needs no
    /// cluster and no agent. Reads files, directories and, as `-`, standard input. Pods and
    /// workloads among them are what selectors and port names are compared with; without any,
    /// nothing is said about these. Exit code 1 if there are errors, with --strict also if there
    /// are only warnings.
    #[command(after_help = "\
Examples:
  netpol check policy.yaml
  netpol check --strict manifests/            for scripts: exit code 1 also on warnings
  netpol check manifests/ -o json
  kubectl get networkpolicy,pod,namespace -A -o yaml | netpol check -")]
    Check {
        /// YAML or JSON files, directories of them, or - for standard input
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,

        /// Warnings are findings, too: exit code 1
        #[arg(long)]
        strict: bool,

        /// Output format
        #[arg(short, long, value_enum, default_value_t)]
        output: output::AnswerFormat,
    },
    Capabilities(capabilities::Args),
    Cleanup(cleanup::Args),
    Cni(cni::Args),
    /// Try policies on real packets, without a cluster
    ///
    /// Makes each pod of the manifests a network namespace, on nodes that are namespaces too,
    /// enforces the manifests' NetworkPolicies there, tries every connection and shows the
    /// results next to what the policies say. Pods have servers on the ports that they declare
    /// and on those that policies name for them, and one on a port that no policy names where
    /// else nobody would see what is closed. What in the policies probably is not meant is said
    /// first, as by `netpol check`. Editing a file takes effect at once. Touches nothing else on
    /// this machine and cleans up when it ends. Exit code 1 if anything was not as expected, 2 if
    /// nothing could be tried.
    #[command(after_help = "\
Examples:
  netpol playground examples/frontend
  netpol playground --once --cni routed -o json DIR    for scripts: exit code 1 on a difference")]
    Playground(netpol_playground::Options),
    Completions(completions::Args),
    Version(version::Args),
}

/// Parses the command line, runs the command and tells the outcome.
pub fn main() -> ExitCode {
    if netpol_cni::is_call() {
        return netpol_cni::main();
    }
    completions::answer(Cli::command);
    let result = run(Cli::parse().command);
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        // The reader of a pipe has seen enough.
        Err(error) if error::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // There is nobody left to tell if this fails.
            let _ = writeln!(anstream::stderr(), "netpol: {}", error::text(&error));
            ExitCode::from(2)
        }
    }
}

fn run(command: Command) -> Result<bool> {
    // Neither holds a lock on standard output: both run long and have threads that write.
    match command {
        Command::Playground(options) => return netpol_playground::run(options),
        Command::Agent(args) => return agent::run(*args),
        _ => {}
    }
    let mut out = io::BufWriter::new(anstream::stdout().lock());
    let answer = match command {
        Command::Agent(_) | Command::Playground(_) => unreachable!("invariant: returned above"),
        Command::Status(args) => status::run(&args, &mut out),
        Command::Endpoints(args) => endpoints::run(&args, &mut out),
        Command::Policies(args) => policies::run(&args, &mut out),
        Command::Rules(args) => rules::run(&args, &mut out),
        Command::Flows(args) => flows::run(&args, &mut out),
        Command::Services(args) => services::run(&args, &mut out),
        Command::Trace(args) => trace::run(&args, &mut out),
        Command::Monitor(args) => monitor::run(&args, &mut out),
        Command::Check { files, strict, output } => {
            check::run(&files, strict, output, &mut out).map(|has_findings| !has_findings)
        }
        Command::Capabilities(args) => capabilities::run(&args, &mut out),
        Command::Cleanup(args) => cleanup::run(&args, &mut out),
        Command::Cni(args) => cni::run(&args, &mut out),
        Command::Completions(args) => completions::run(&args, &mut out),
        Command::Version(args) => version::run(&args, &mut out),
    };
    // What was written before an error is still true.
    out.flush()?;
    answer
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::Cli;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_explains_itself_with_an_example() {
        for command in Cli::command().get_subcommands() {
            let name = command.get_name();
            let summary = command.get_about().map(ToString::to_string).unwrap_or_default();
            assert!((20..=80).contains(&summary.len()), "{name}: {summary}");
            let long = command.get_long_about().map(ToString::to_string).unwrap_or_default();
            assert!(long.len() > summary.len() + 40, "{name} has no description");
            let after = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(after.contains("netpol ") && after.contains("Example"), "{name}: {after}");
        }
    }
}
