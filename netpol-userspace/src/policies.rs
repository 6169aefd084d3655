//! `netpol policies`.

use std::io::Write;

use anyhow::Result;

use super::output::{self, Format};
use super::places::Places;
use netpol_api::questions::NETWORK_POLICY_TIER;
use netpol_observe::policies::{Policy, list};

/// List the policies in force on this node and whom they isolate
///
/// Shows the NetworkPolicies that select a pod of this node, for which directions, and which pods; and
/// the ClusterNetworkPolicies that have rules for one, in the order in which all of them are asked.
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
    if policies.iter().any(|policy| policy.tier.is_some()) {
        return table_with_tiers(policies);
    }
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

/// The same where there are others than NetworkPolicies.
fn table_with_tiers(policies: &[Policy]) -> String {
    let rows = policies.iter().map(|policy| {
        let namespace = match policy.namespace.as_str() {
            "" => "-".to_owned(),
            namespace => namespace.to_owned(),
        };
        [
            policy.tier.clone().unwrap_or_else(|| NETWORK_POLICY_TIER.to_owned()),
            policy.priority.map_or_else(|| "-".to_owned(), |priority| priority.to_string()),
            namespace,
            policy.name.clone(),
            policy.directions.iter().map(|d| d.as_str()).collect::<Vec<_>>().join(", "),
            output::some_of(&policy.endpoints),
        ]
    });
    let header = ["TIER", "PRIORITY", "NAMESPACE", "POLICY", "DIRECTIONS", "APPLIES TO"];
    output::table(header, rows)
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
