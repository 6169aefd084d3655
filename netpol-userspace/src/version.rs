//! `netpol version`.

use std::io::Write;

use anyhow::Result;
use serde::Serialize;

use super::output::{self, AnswerFormat};
use netpol_common::layout;

/// Say which version this is, and of which layout its maps are
///
/// The layout version is that of the pinned maps: after an upgrade to another one connections under
/// way are judged anew. The commit is known if the build was told (`NETPOL_COMMIT`).
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  netpol version
  netpol version -o json")]
pub struct Args {
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    output: AnswerFormat,
}

#[derive(Debug, Serialize)]
struct Version {
    version: &'static str,
    /// What it was built from.
    commit: Option<&'static str>,
    layout: u32,
}

/// Says it.
pub fn run(args: &Args, out: &mut dyn Write) -> Result<bool> {
    let version = Version {
        version: env!("CARGO_PKG_VERSION"),
        commit: option_env!("NETPOL_COMMIT").filter(|commit| !commit.is_empty()),
        layout: layout::VERSION,
    };
    output::show(out, args.output.into(), &version, text)?;
    Ok(true)
}

fn text(version: &Version) -> String {
    let Version { version, commit, layout } = version;
    let commit = commit.map(|commit| format!(" ({commit})")).unwrap_or_default();
    format!("netpol {version}{commit}, layout version {layout}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commit_is_told_if_it_is_known() {
        let version = Version { version: "1.2.3", commit: None, layout: 4 };
        assert_eq!(text(&version), "netpol 1.2.3, layout version 4\n");
        let version = Version { commit: Some("4e92276658"), ..version };
        assert_eq!(text(&version), "netpol 1.2.3 (4e92276658), layout version 4\n");
    }
}
