//! `netpol policies`.

use std::io::Write;

use anyhow::Result;

use super::output::{self, Format};
use super::places::Places;
use netpol_observe::policies::{Policy, list};

/// List the policies in force on this node and whom they isolate
///
/// Shows the NetworkPolicies that select a pod of this node, for which directions, and which pods.
/// A policy that selects no pod of this node is not listed. `-o json` has all names.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  netpol policies
  netpol policies -o json | jq -r '.[] | \"\\(.namespace)/\\(.name)\"'")]
pub struct Args {
    #[command(flatten)]
    places: Places,

    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// Lists them.
pub fn run(args: &Args, out: &mut dyn Write) -> Result<bool> {
    let policies = list(&args.places.node()?.state);
    let none = "no policies in force: no policy selects a pod of this node";
    output::list(out, args.output, &policies, none, table)?;
    Ok(true)
}

fn table(policies: &[Policy]) -> String {
    let rows = policies.iter().map(|policy| {
        [
            policy.namespace.clone(),
            policy.name.clone(),
            policy.directions.iter().map(|d| d.as_str()).collect::<Vec<_>>().join(", "),
            output::some_of(&policy.endpoints),
        ]
    });
    output::table(["NAMESPACE", "POLICY", "DIRECTIONS", "ISOLATES"], rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use netpol_api::testing::{endpoint, state};

    #[test]
    fn the_table() {
        let state = state(vec![
            endpoint("shop", "web", 1, "10.0.0.1"),
            endpoint("shop", "api", 2, "10.0.0.2"),
        ]);
        assert_eq!(
            table(&list(&state)),
            "\
NAMESPACE  POLICY  DIRECTIONS  ISOLATES
shop       deny    ingress     shop/api, shop/web
"
        );
    }
}
