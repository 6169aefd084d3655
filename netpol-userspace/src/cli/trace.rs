//! `netpol trace`.

use std::fmt::Write as _;
use std::io::Write;

use anyhow::{Result, bail};
use clap::ValueEnum;

use super::output::{self, Format};
use super::places::Places;
use crate::frames::Transport;
use crate::observe::trace::{self, Answer, Question};

/// Ask whether a connection would be allowed, and why
///
/// Runs the kernel's own program on a packet made for the purpose, with the policies that are in
/// force at this moment and no effect on real traffic. Judges the sender's egress and the
/// receiver's ingress, as far as they are pods of this node; ask on the other node for the other
/// half. Exit code 0 if the connection is allowed, 1 if it is denied.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  netpol trace --from shop/web --to shop/db --port 5432
  netpol trace --from 203.0.113.7 --to shop/web --port 443
  netpol trace --from shop/web --to 10.96.0.10 --port 53 --protocol udp
  netpol trace --from node --to shop/web --protocol icmp")]
pub struct Args {
    /// Who opens the connection: namespace/pod, an address, or `node` for this node itself
    #[arg(long, value_name = "A")]
    from: String,

    /// To whom: namespace/pod or an address
    #[arg(long, value_name = "B")]
    to: String,

    /// Destination port; needed for all protocols but icmp
    #[arg(long)]
    port: Option<u16>,

    /// Protocol
    #[arg(long, value_enum, default_value_t = Protocol::Tcp)]
    protocol: Protocol,

    /// Use the IPv6 addresses of pods that have both
    #[arg(short = '6', long)]
    ipv6: bool,

    #[command(flatten)]
    places: Places,

    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// Protocols that can be asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Protocol {
    /// A SYN
    Tcp,
    /// A datagram
    Udp,
    /// An INIT
    Sctp,
    /// An echo request
    Icmp,
}

/// A client's port, from the range that Linux gives out.
const CLIENT_PORT: u16 = 40_000;

/// Asks.
pub fn run(args: &Args, out: &mut dyn Write) -> Result<bool> {
    let node = args.places.node()?;
    let pins = args.places.pins(Some(&node.state));
    let question = Question {
        from: args.from.clone(),
        to: args.to.clone(),
        transport: transport(args)?,
        is_v6: args.ipv6,
    };
    let answer = trace::ask(&node, &pins, &question)?;
    output::show(out, args.output, &answer, text)?;
    Ok(answer.verdict == "allow")
}

fn transport(args: &Args) -> Result<Transport> {
    if args.protocol == Protocol::Icmp {
        let is_v6 = args.ipv6 || args.to.contains(':') || args.from.contains(':');
        let kind = if is_v6 { 128 } else { 8 };
        return Ok(Transport::Icmp { kind, code: 0, body: vec![0; 12] });
    }
    let Some(destination) = args.port else {
        bail!("which port? add --port N, or --protocol icmp");
    };
    let source = CLIENT_PORT;
    Ok(match args.protocol {
        Protocol::Tcp => Transport::Tcp { source, destination, flags: netpol_common::packet::SYN },
        Protocol::Udp => Transport::Udp { source, destination },
        Protocol::Sctp => Transport::Sctp { source, destination, chunk: 1 },
        Protocol::Icmp => unreachable!("answered above"),
    })
}

fn text(answer: &Answer) -> String {
    let mut text = format!("{}\n", answer.verdict);
    for hop in &answer.hops {
        let by = match hop.policies.as_slice() {
            [] => String::new(),
            policies => format!(" (isolated by {})", policies.join(", ")),
        };
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "  {} {}: {}, {}{by}",
            hop.endpoint, hop.direction, hop.verdict, hop.reason
        );
    }
    text
}
