//! `netpol completions`, and what the shells' scripts then ask for: candidates for the word that is
//! being typed, among them files and the pods of this node. Must never fail loudly or wait: somebody
//! is typing.

use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::ValueEnum as _;
use clap_complete::env::Shells;
use clap_complete::{CompleteEnv, CompletionCandidate, Shell};

use super::places::RUN_DIR;
use netpol_observe::node::Node;

/// What the scripts set when they ask.
const VARIABLE: &str = "NETPOL_COMPLETE";

/// Print the completion script for a shell
///
/// The script makes the shell complete netpol's commands, flags and values, files, and the pods of
/// this node. It asks the program, so it is best made anew whenever a shell starts.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  source <(netpol completions bash)
  source <(netpol completions zsh)
  netpol completions fish | source")]
pub struct Args {
    /// Which shell
    shell: Shell,
}

/// Prints the script.
pub fn run(args: &Args, out: &mut dyn Write) -> Result<bool> {
    let name = args.shell.to_possible_value().context("a shell without a name")?;
    let shells = Shells::builtins();
    let shell = shells.completer(name.get_name()).context("nothing is known of this shell")?;
    shell.write_registration(VARIABLE, "netpol", "netpol", "netpol", out)?;
    Ok(true)
}

/// Answers the script, and ends, if it is the script that asks.
pub fn answer(command: fn() -> clap::Command) {
    CompleteEnv::with_factory(command).var(VARIABLE).bin("netpol").completer("netpol").complete();
}

/// The pods of this node, as far as an agent's state file names them.
pub fn pods(current: &OsStr) -> Vec<CompletionCandidate> {
    let words: Vec<_> = std::env::args_os().collect();
    pods_in(&run_dir(&words), current)
}

/// The directory that the words say that are typed already.
fn run_dir(words: &[impl AsRef<OsStr>]) -> PathBuf {
    let mut words = words.iter().filter_map(|word| word.as_ref().to_str());
    while let Some(word) = words.next() {
        match word.strip_prefix("--run-dir") {
            Some("") => return words.next().unwrap_or(RUN_DIR).into(),
            Some(rest) if rest.starts_with('=') => return rest[1..].into(),
            _ => {}
        }
    }
    RUN_DIR.into()
}

fn pods_in(run_dir: &Path, current: &OsStr) -> Vec<CompletionCandidate> {
    let (Some(current), Ok(Some(node))) = (current.to_str(), Node::read(run_dir)) else {
        return Vec::new();
    };
    let names = node.state.endpoints.iter();
    let names = names.map(|endpoint| format!("{}/{}", endpoint.namespace, endpoint.pod));
    names.filter(|name| name.starts_with(current)).map(CompletionCandidate::new).collect()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use netpol_api::state::state_path;
    use netpol_api::testing::{endpoint, state};

    #[test]
    fn pods_are_those_of_the_state_file() {
        let dir = tempfile::tempdir().unwrap();
        let names = |current: &str| -> Vec<String> {
            let found = pods_in(dir.path(), OsStr::new(current));
            found.iter().map(|pod| pod.get_value().to_str().unwrap().to_owned()).collect()
        };
        assert!(names("").is_empty(), "no agent has run");
        let state = state(vec![
            endpoint("shop", "web", 1, "10.0.0.1"),
            endpoint("shop", "db", 2, "10.0.0.2"),
            endpoint("ops", "log", 3, "10.0.0.3"),
        ]);
        std::fs::write(state_path(dir.path()), serde_json::to_vec(&state).unwrap()).unwrap();
        assert_eq!(names("shop/"), ["shop/web", "shop/db"]);
        assert_eq!(names("").len(), 3);
        assert!(names("x").is_empty());
    }

    #[test]
    fn the_run_directory_is_the_one_that_is_typed() {
        assert_eq!(run_dir(&["netpol", "rules"]), Path::new(RUN_DIR));
        assert_eq!(run_dir(&["netpol", "rules", "--run-dir", "/x", ""]), Path::new("/x"));
        assert_eq!(run_dir(&["netpol", "--run-dir=/y"]), Path::new("/y"));
        assert_eq!(run_dir(&["netpol", "--run-dir"]), Path::new(RUN_DIR));
    }
}
