//! `netpol completions`.

use std::io::Write;

use anyhow::Result;
use clap::CommandFactory as _;
use clap_complete::Shell;

/// Print the completion script for a shell
///
/// The script makes the shell complete netpol's commands, flags and values.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  source <(netpol completions bash)
  netpol completions zsh > \"${fpath[1]}/_netpol\"
  netpol completions fish > ~/.config/fish/completions/netpol.fish")]
pub struct Args {
    /// Which shell
    shell: Shell,
}

/// Prints the script.
pub fn run(args: &Args, out: &mut dyn Write) -> Result<bool> {
    // The generator panics if it cannot write; memory always can be written to.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut super::Cli::command(), "netpol", &mut script);
    out.write_all(&script)?;
    Ok(true)
}
