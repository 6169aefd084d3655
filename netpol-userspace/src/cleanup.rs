//! `netpol cleanup`.

use std::collections::BTreeSet;
use std::fs;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use tokio::signal::unix::{SignalKind, signal};

use super::output::note;
use super::places::Places;
use netpol_agent::journal;
use netpol_api::sandbox;
use netpol_api::state::{socket_path, state_path};
use netpol_datapath::cleanup::{Summary, cleanup};
use netpol_datapath::{DatapathError, Pins, grace};
use netpol_observe::node::Node;
use netpol_source::kept;

/// End enforcement on this node and remove everything netpol left
///
/// Takes netpol's programs off all interfaces and removes its pinned maps, state file and socket.
/// From then on every packet passes, whatever the policies say. Stop the agent first. Run it in
/// the network namespace that the agent ran in.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  netpol cleanup
  netpol cleanup --bpffs /sys/fs/bpf/other --run-dir /run/other
  netpol cleanup --stay        as a DaemonSet in the agent's place, on every node")]
pub struct Args {
    #[command(flatten)]
    places: Places,

    /// Remove it even though an agent is running, which will then no longer work, or though the
    /// programs are on no interface of this network namespace
    #[arg(long)]
    force: bool,

    /// When done, stay until told to end (SIGTERM): what ends in a DaemonSet is started again
    #[arg(long)]
    stay: bool,
}

/// Removes it, and stays if asked to.
pub fn run(args: &Args, out: &mut dyn Write) -> Result<bool> {
    let is_complete = clean_up(args, out)?;
    if args.stay && is_complete {
        stay(out)?;
    }
    Ok(is_complete)
}

/// Returns at SIGTERM or SIGINT. Nothing is done at them by default for the first process of a
/// container.
fn stay(out: &mut dyn Write) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("start the tokio runtime")?.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
        writeln!(out, "done; staying until told to end")?;
        out.flush()?;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        Ok(())
    })
}

fn clean_up(args: &Args, out: &mut dyn Write) -> Result<bool> {
    let run_dir = &args.places.run_dir;
    if !rustix::process::geteuid().is_root() {
        // Who may not look would find nothing there.
        bail!("only root can see and remove what netpol has left: try again with sudo");
    }
    // A state file that cannot be read must not keep anyone from cleaning up.
    let node = Node::read(run_dir).unwrap_or_else(|error| {
        note(&format!("{error:#}; it is removed all the same"));
        None
    });
    let state = node.as_ref().map(|node| &node.state);
    let pins = args.places.pins(state);
    if !args.force
        && let Some(node) = &node
        && node.is_running
    {
        bail!(refusal(&pins, Some(node.state.pid)));
    }
    grace::expedite();
    let pid = state.map(|state| state.pid);
    let ifindexes = state.into_iter().flat_map(|state| &state.endpoints).map(|view| view.ifindex);
    let summary = match cleanup(&pins, ifindexes, args.force) {
        Err(DatapathError::Busy { .. }) => bail!(refusal(&pins, pid)),
        result => result?,
    };
    let mut files = Vec::new();
    for path in [state_path(run_dir), socket_path(run_dir)] {
        if remove(&path)? {
            files.push(path);
        }
    }
    // Of no interest to anyone: what the agent locks, an unfinished state file, its journal.
    for path in [run_dir.join("lock"), run_dir.join("state.json.new"), journal::path(run_dir)] {
        remove(&path)?;
    }
    // What the CNI plugin wrote, none of which is needed to find pods again by their status.
    let _ = fs::remove_dir_all(sandbox::directory(run_dir));
    // Copies of manifests.
    kept::remove(run_dir);
    // Others may use the directory too.
    let _ = fs::remove_dir(run_dir);
    write!(out, "{}", text(&summary, &pins.bpffs, &files))?;
    // With none found where there should be some, they may go on elsewhere.
    Ok(summary.without.is_empty() || !summary.interfaces.is_empty())
}

fn refusal(pins: &Pins, pid: Option<u32>) -> String {
    let pid = pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default();
    format!(
        "an agent{pid} is using {}: stop it first; --force removes it under the running agent",
        pins.bpffs.display()
    )
}

fn remove(path: &Path) -> Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).with_context(|| format!("cannot remove {}", path.display())),
    }
}

fn text(summary: &Summary, bpffs: &Path, files: &[PathBuf]) -> String {
    if summary.pins == 0 && summary.interfaces.is_empty() && files.is_empty() {
        return format!("nothing to remove: netpol left nothing below {}\n", bpffs.display());
    }
    let mut text = String::new();
    if !summary.interfaces.is_empty() {
        text += &format!("took netpol's programs off {}\n", interfaces(&summary.interfaces));
    }
    if !summary.without.is_empty() {
        text += &format!(
            "found no program of netpol on {}; if the agent ran in another network namespace with \
             --attach clsact, take its filters off there: tc qdisc del dev INTERFACE clsact\n",
            interfaces(&summary.without)
        );
    }
    if summary.pins > 0 {
        text += &format!("removed {} pins below {}\n", summary.pins, bpffs.display());
    }
    for file in files {
        text += &format!("removed {}\n", file.display());
    }
    text
}

fn interfaces(numbers: &BTreeSet<u32>) -> String {
    let what = if numbers.len() == 1 { "interface" } else { "interfaces" };
    let numbers: Vec<String> = numbers.iter().map(u32::to_string).collect();
    format!("{what} {}", numbers.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_it_removed() {
        let nothing = Summary::default();
        assert_eq!(
            text(&nothing, Path::new("/b"), &[]),
            "nothing to remove: netpol left nothing below /b\n"
        );
        let summary = Summary { interfaces: [7, 9].into(), without: [11].into(), pins: 19 };
        assert_eq!(
            text(&summary, Path::new("/b"), &["/r/state.json".into()]),
            "\
took netpol's programs off interfaces 7, 9
found no program of netpol on interface 11; if the agent ran in another network namespace with \
             --attach clsact, take its filters off there: tc qdisc del dev INTERFACE clsact
removed 19 pins below /b
removed /r/state.json
"
        );
    }
}
