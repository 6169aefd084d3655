//! Where the agent keeps what commands read, and reading it.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Args;

use super::output::note;
pub use netpol_api::state::RUN_DIR;
use netpol_api::state::{State, state_path};
use netpol_datapath::{Maps, Pins};
use netpol_observe::names::Names;
use netpol_observe::node::Node;

/// Default directory of the pins.
pub const BPFFS: &str = "/sys/fs/bpf/netpol";

/// The directories of the agent that is asked about.
#[derive(Debug, Clone, Args)]
pub struct Places {
    /// Directory of the agent's state file and socket
    #[arg(long, value_name = "DIR", default_value = RUN_DIR)]
    pub run_dir: PathBuf,

    /// Directory of the agent's pinned maps [default: what the agent used, else
    /// /sys/fs/bpf/netpol]
    #[arg(long, value_name = "DIR")]
    pub bpffs: Option<PathBuf>,
}

impl Places {
    /// The state that is known, with a note if no agent keeps it up to date.
    pub fn node(&self) -> Result<Node> {
        let node = self.node_if_any()?.with_context(|| {
            format!(
                "nothing is known about this node, there is no {}: start `netpol agent`, or give \
                 the --run-dir of the one that runs",
                state_path(&self.run_dir).display()
            )
        })?;
        Ok(node)
    }

    /// Likewise, `None` if nothing is known.
    pub fn node_if_any(&self) -> Result<Option<Node>> {
        let node = Node::read(&self.run_dir)?;
        if let Some(node) = &node
            && !node.is_running
        {
            note(&not_running(node));
        }
        Ok(node)
    }

    /// The pins: as given, or where the agent said it pins.
    pub fn pins(&self, state: Option<&State>) -> Pins {
        let told = state.map(|state| state.bpffs.clone());
        Pins::new(self.bpffs.clone().or(told).unwrap_or_else(|| BPFFS.into()))
    }

    /// The maps and the names of what they hold, for commands that can do without names.
    pub fn maps(&self) -> Result<(Maps, Option<Node>, Names)> {
        let node = self.node_if_any()?;
        let maps = Maps::open(&self.pins(node.as_ref().map(|node| &node.state)), false)?;
        if node.is_none() {
            note(&format!(
                "names are not known, there is no {}; give the agent's --run-dir",
                state_path(&self.run_dir).display()
            ));
        }
        let names = node.as_ref().map(|node| Names::of(&node.state)).unwrap_or_default();
        Ok((maps, node, names))
    }

    /// The maps for commands that can do without them.
    pub fn maps_if_any(&self, state: &State) -> Option<Maps> {
        match Maps::open(&self.pins(Some(state)), false) {
            Ok(maps) => Some(maps),
            Err(error) => {
                note(&format!("counters are left out: {error}"));
                None
            }
        }
    }
}

/// What the answers are worth while the agent is down.
pub fn not_running(node: &Node) -> String {
    let since = jiff::Timestamp::try_from(node.written).map_or_else(
        |_| "an unknown time".into(),
        |time| time.strftime("%Y-%m-%d %H:%M:%S UTC").to_string(),
    );
    format!("the agent is not running; showing what has been in force since {since}")
}
