//! `cargo xtask build-and-run`: from a checkout to policies at work, in one command.
//!
//! At the end this process *becomes* netpol (exec), as `cargo run` became this process: Ctrl-C
//! and signals reach netpol and nobody else, its exit code is the command's, and no parent can
//! return to the prompt while it still cleans up.

use std::env;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use netpol_run::{self as run, Workspace, announce};

use crate::build;

const EXAMPLES: &str = "netpol-userspace/examples";

/// Options of `build-and-run`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Show the matrix once and end; without it the playground stays until Ctrl-C
    #[arg(long, conflicts_with = "kubeconfig")]
    once: bool,
    /// Run the agent against this cluster instead of the playground
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Directory of manifests for the playground [default: the bundled examples]
    #[arg(long, value_name = "DIR", conflicts_with = "kubeconfig")]
    manifests: Option<PathBuf>,
    /// Build the optimised binary: a longer build, a faster agent
    #[arg(long)]
    release: bool,
    /// More arguments for `netpol playground` or `netpol agent`
    #[arg(last = true)]
    rest: Vec<OsString>,
}

pub(crate) fn command(workspace: &Workspace, args: &Args) -> Result<ExitCode> {
    let started = Instant::now();
    let _object = build::object(workspace)?;
    let netpol = build::netpol(workspace, args.release)?;
    let arguments = netpol_arguments(workspace, args);
    let mut command = as_root(netpol, arguments)?;
    announce(format_args!(
        "ready after {:.1} s; running {}",
        started.elapsed().as_secs_f64(),
        run::display(&command)
    ));
    let error = command.exec();
    Err(error).with_context(|| format!("cannot start `{}`", run::display(&command)))
}

fn netpol_arguments(workspace: &Workspace, args: &Args) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = Vec::new();
    if let Some(kubeconfig) = &args.kubeconfig {
        arguments.extend(["agent".into(), "--kubeconfig".into(), kubeconfig.into()]);
    } else {
        let manifests = args.manifests.clone();
        let manifests = manifests.unwrap_or_else(|| workspace.root().join(EXAMPLES));
        arguments.extend(["playground".into(), manifests.into()]);
        if args.once {
            arguments.push("--once".into());
        }
    }
    arguments.extend(args.rest.iter().cloned());
    arguments
}

/// netpol needs root. Only netpol: what is built stays the user's.
fn as_root(netpol: PathBuf, arguments: Vec<OsString>) -> Result<Command> {
    let mut command = if run::is_root() {
        Command::new(netpol)
    } else if let Some(sudo) = run::find_program("sudo") {
        announce("netpol loads eBPF programs and makes network namespaces: using sudo");
        let mut command = Command::new(sudo);
        command.arg("-E").arg(netpol);
        command
    } else {
        bail!(
            "netpol loads eBPF programs and makes network namespaces, which needs root, and there \
             is no sudo; run this command as root"
        );
    };
    command.args(arguments);
    // The dynamic linker needs no path of cargo's to start a finished binary.
    run::scrub(&mut command, run::left_by_cargo_run);
    if env::var_os("CARGO").is_some() {
        command.env_remove("LD_LIBRARY_PATH");
    }
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(args: Args) -> Vec<String> {
        let workspace = Workspace::locate().expect("workspace");
        let arguments = netpol_arguments(&workspace, &args);
        arguments.into_iter().map(|a| a.into_string().expect("utf-8")).collect()
    }

    fn no_options() -> Args {
        Args { once: false, kubeconfig: None, manifests: None, release: false, rest: Vec::new() }
    }

    #[test]
    fn the_playground_shows_the_bundled_examples() {
        let arguments = arguments(Args { once: true, ..no_options() });
        assert_eq!(arguments[0], "playground");
        assert!(arguments[1].ends_with(EXAMPLES));
        assert_eq!(arguments[2], "--once");
    }

    #[test]
    fn a_kubeconfig_means_the_agent_and_further_arguments_follow() {
        let args = Args {
            kubeconfig: Some("k.yaml".into()),
            rest: vec!["--node-name".into(), "n1".into()],
            ..no_options()
        };
        assert_eq!(arguments(args), ["agent", "--kubeconfig", "k.yaml", "--node-name", "n1"]);
    }
}
