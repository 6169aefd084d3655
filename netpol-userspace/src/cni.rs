//! `netpol cni install` and `netpol cni uninstall`. (What the container runtime runs is
//! `netpol_cni`.)

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Subcommand;

use super::places::RUN_DIR;
use netpol_cni::OnUnreachable;
use netpol_cni::conflist::Entry;
use netpol_cni::install::{self, Outcome, Places};

/// Default directory of network configurations.
pub const CONF_DIR: &str = "/etc/cni/net.d";
/// Default directory of plugins.
pub const BIN_DIR: &str = "/opt/cni/bin";

/// Install the CNI plugin, which lets pods start only when enforced
///
/// The plugin is this program, chained after the plugins that make the pods' network. At the start
/// of a pod it waits for the agent to confirm that the pod's policies are in force, so that no
/// packet of it passes unjudged or is dropped wrongly. `netpol agent --cni-conf-dir` installs it
/// too, and puts it back when the configuration is rewritten.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  netpol cni install
  netpol cni uninstall --conf-dir /etc/cni/net.d --bin-dir /opt/cni/bin")]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Copy this program to the plugins and add it to the network configuration in use
    Install {
        #[command(flatten)]
        places: PlaceArgs,

        /// The agent's --run-dir
        #[arg(long, value_name = "DIR", default_value = RUN_DIR)]
        run_dir: PathBuf,

        /// What to do with a new pod if no agent confirms that its policies are in force
        #[arg(long, value_enum, default_value = "fail")]
        on_unreachable: OnUnreachable,
    },
    /// Take it out of every network configuration, and remove the copy
    Uninstall {
        #[command(flatten)]
        places: PlaceArgs,
    },
}

#[derive(Debug, clap::Args)]
struct PlaceArgs {
    /// Directory of the container runtime's network configurations
    #[arg(long, value_name = "DIR", default_value = CONF_DIR)]
    conf_dir: PathBuf,

    /// Directory of the CNI plugins
    #[arg(long, value_name = "DIR", default_value = BIN_DIR)]
    bin_dir: PathBuf,
}

impl PlaceArgs {
    fn places(&self) -> Places {
        Places { conf_dir: self.conf_dir.clone(), bin_dir: self.bin_dir.clone() }
    }
}

/// What a configuration says about netpol.
pub fn entry(run_dir: &std::path::Path, on_unreachable: OnUnreachable) -> Result<Entry> {
    let run_dir = std::path::absolute(run_dir)?;
    let text = run_dir.to_str().with_context(|| format!("{} is not text", run_dir.display()))?;
    Ok(Entry { run_dir: text.to_owned(), on_unreachable: on_unreachable.as_str().to_owned() })
}

/// Does it; false if there is nothing to install into.
pub fn run(args: &Args, out: &mut dyn Write) -> Result<bool> {
    match &args.command {
        Command::Install { places, run_dir, on_unreachable } => {
            let entry = entry(run_dir, *on_unreachable)?;
            match install::install(&places.places(), &entry)? {
                Outcome::NoNetwork => {
                    let directory = places.conf_dir.display();
                    writeln!(
                        out,
                        "there is no network configuration in {directory} yet: install a network \
                         first, and then netpol again"
                    )?;
                    return Ok(false);
                }
                Outcome::Unchanged(file) => writeln!(out, "{}: is installed", file.display())?,
                Outcome::Written(file) => writeln!(out, "{}: written", file.display())?,
            }
        }
        Command::Uninstall { places } => {
            let written = install::uninstall(&places.places())?;
            for file in &written {
                writeln!(out, "{}: netpol removed", file.display())?;
            }
            if written.is_empty() {
                writeln!(out, "nothing to remove")?;
            }
        }
    }
    Ok(true)
}
