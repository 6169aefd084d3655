//! `netpol flows`.

use std::io::Write;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result};

use super::output::{self, Format};
use super::places::Places;
use netpol_observe::flows::{Flow, list};

/// List the tracked connections of this node's isolated pods
///
/// Replies pass because the connection they belong to is known; these are the known ones. OPENED
/// says from the pod's view who opened it, `egress` being the pod itself; `unseen` that it was under
/// way when it was met, so that the policies of both directions must allow it. `recheck` in STATE
/// means that policies have changed since: the next packet is judged by the new ones. Pods of other
/// nodes and Services have their names while the agent runs.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  netpol flows
  netpol flows shop/web
  netpol flows -o json | jq '.[] | select(.opened == \"ingress\")'")]
pub struct Args {
    /// Only those of this pod: namespace/pod, its name if no other has it, or its address
    #[arg(add = clap_complete::ArgValueCompleter::new(super::completions::pods))]
    endpoint: Option<String>,

    #[command(flatten)]
    places: Places,

    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// Lists them.
pub fn run(args: &Args, out: &mut dyn Write) -> Result<bool> {
    let (maps, node, mut names) = args.places.maps()?;
    let id = match &args.endpoint {
        Some(wanted) => {
            let node = node.context("cannot find a pod without the names in the state file")?;
            Some(node.endpoint(wanted)?.id)
        }
        None => None,
    };
    let (flows, missing) = list(&maps, &mut names, &args.places.run_dir, id);
    output::warn_of_missing_names(missing);
    output::list(out, args.output, &flows, "no flows", table)?;
    Ok(true)
}

fn table(flows: &[Flow]) -> String {
    let header =
        ["ENDPOINT", "PROTOCOL", "LOCAL", "REMOTE", "REMOTE NAME", "OPENED", "STATE", "IDLE"];
    output::table(header, flows.iter().map(row))
}

fn row(flow: &Flow) -> [String; 8] {
    let opened = if flow.by_node { "by this node".to_owned() } else { flow.opened.to_string() };
    let recheck = if flow.rejudge { ", recheck" } else { "" };
    [
        flow.endpoint.clone().unwrap_or_else(|| format!("#{}", flow.endpoint_id)),
        flow.protocol.clone(),
        end(flow.local, flow.local_port),
        end(flow.remote, flow.remote_port),
        output::owner(
            flow.remote_endpoint.as_deref(),
            flow.remote_service.as_deref(),
            flow.remote_node.as_deref(),
        )
        .unwrap_or_else(|| "-".into()),
        opened,
        format!("{}{recheck}", flow.state),
        idle(flow.idle_seconds),
    ]
}

/// `10.0.0.1:80`, `[fd00::1]:80` or an address alone.
pub fn end(ip: IpAddr, port: Option<u16>) -> String {
    match port {
        Some(port) => SocketAddr::new(ip, port).to_string(),
        None => ip.to_string(),
    }
}

fn idle(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        _ => format!("{}h", seconds / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use netpol_observe::testing::flow as example;

    #[test]
    fn the_table() {
        let nameless = Flow {
            endpoint: None,
            remote_endpoint: None,
            remote_service: None,
            by_node: true,
            rejudge: true,
            idle_seconds: 600,
            ..example(1)
        };
        assert_eq!(
            table(&[example(6), nameless]),
            "\
ENDPOINT  PROTOCOL  LOCAL        REMOTE          REMOTE NAME  OPENED        STATE                 IDLE
shop/web  TCP       10.0.0.1:80  10.0.0.2:40000  shop/client  ingress       established           3s
#1        ICMP      10.0.0.1     10.0.0.2        -            by this node  established, recheck  10m
"
        );
    }

    #[test]
    fn addresses_with_ports() {
        let v6: IpAddr = [0xfd00, 0, 0, 0, 0, 0, 0, 1].into();
        assert_eq!(end(v6, Some(80)), "[fd00::1]:80");
        assert_eq!(end(v6, None), "fd00::1");
        assert_eq!([idle(119), idle(7199), idle(7200)], ["119s", "119m", "2h"]);
    }
}
