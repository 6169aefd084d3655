//! `netpol endpoints`.

use std::io::Write;
use std::net::IpAddr;

use anyhow::Result;

use super::output::{self, Format, note};
use super::places::Places;
use netpol_observe::drops;
use netpol_observe::endpoints::{Endpoint, Isolation, list};

/// List this node's pods with what isolates them and what they lost
///
/// Shows every pod of this node that has an interface of its own. INGRESS and EGRESS say whether
/// policies isolate the pod in that direction: `open` means that no NetworkPolicy selects it, so that
/// everything is allowed that ClusterNetworkPolicies, which are counted as `of the cluster`, do not
/// deny. DROPS counts the packets dropped in both directions.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  netpol endpoints
  netpol endpoints -o json | jq '.[] | select(.ingress.isolated) | .pod'")]
pub struct Args {
    #[command(flatten)]
    places: Places,

    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// Lists them.
pub fn run(args: &Args, out: &mut dyn Write) -> Result<bool> {
    let node = args.places.node()?;
    let maps = args.places.maps_if_any(&node.state);
    let endpoints = list(&node.state, maps.as_ref())?;
    let none = "no endpoints: no pod of this node has an interface here";
    output::list(out, args.output, &endpoints, none, table)?;
    for endpoint in endpoints.iter().filter(|endpoint| endpoint.enforced == Some(false)) {
        note(&format!(
            "warning: policies isolate {}/{}, but the kernel does not have them in force on \
             interface {}; see `netpol status` and the agent's log",
            endpoint.namespace, endpoint.pod, endpoint.interface
        ));
    }
    Ok(true)
}

fn table(endpoints: &[Endpoint]) -> String {
    let header = ["NAMESPACE", "POD", "IPS", "INTERFACE", "INGRESS", "EGRESS", "DROPS"];
    output::table(header, endpoints.iter().map(row))
}

fn row(endpoint: &Endpoint) -> [String; 7] {
    let both = [&endpoint.ingress, &endpoint.egress].map(|side| side.drops.as_ref());
    let drops = match both {
        [Some(ingress), Some(egress)] => (drops::total(ingress) + drops::total(egress)).to_string(),
        _ => "-".into(),
    };
    [
        endpoint.namespace.clone(),
        endpoint.pod.clone(),
        endpoint.ips.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(","),
        endpoint.interface.clone(),
        isolation(&endpoint.ingress),
        isolation(&endpoint.egress),
        drops,
    ]
}

fn isolation(side: &Isolation) -> String {
    let by_policies = match side.isolated {
        true => format!("isolated by {}", side.policies.len()),
        false => "open".into(),
    };
    match side.cluster_policies.len() {
        0 => by_policies,
        n => format!("{by_policies}, {n} of the cluster"),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use netpol_api::testing::{endpoint, state};

    #[test]
    fn the_table() {
        let state = state(vec![
            endpoint("shop", "web", 1, "10.0.0.1"),
            endpoint("shop", "database-0", 2, "fd00::2"),
        ]);
        let mut endpoints = list(&state, None).unwrap();
        endpoints[0].ingress.drops = Some([("policy", 40), ("fragment", 2)].into());
        endpoints[0].egress.drops = Some([].into());
        assert_eq!(
            table(&endpoints),
            "\
NAMESPACE  POD         IPS       INTERFACE  INGRESS        EGRESS  DROPS
shop       web         10.0.0.1  veth1      isolated by 1  open    42
shop       database-0  fd00::2   veth2      isolated by 1  open    -
"
        );
    }
}
