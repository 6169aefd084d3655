//! `netpol trace`.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::io::Write;
use std::net::IpAddr;
use std::str::FromStr;

use anyhow::Result;
use clap_complete::ArgValueCompleter;

use super::completions;
use super::flows;
use super::output::{self, Format};
use super::places::Places;
use netpol_observe::trace::{Answer, Hop, Port, Protocol, Question, Side, Tracer};

/// Ask whether a connection would be allowed, and by which policy
///
/// Runs the kernel's own program on a packet made for the purpose, with the policies that are in
/// force at this moment and no effect on real traffic. Judges the sender's egress and the
/// receiver's ingress, as far as they are pods of this node; ask on the other node for the other
/// half. To a Service, every backend is judged, with the source that it sees: on node ports, external
/// and load balancer addresses the node's proxy puts an address of the node there (as kube-proxy does
/// without --masquerade-all), and where a traffic policy is Local only backends of one node count. Where
/// several addresses come into question each is judged; if they differ, the answer is deny. For each half: the policies that allow it, or those
/// that isolate the pod although none of their rules does. Exit code 0 if the connection is
/// allowed, 1 if it is denied, to a Service also if only some backends are.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  netpol trace --from shop/web --to shop/db --port 5432
  netpol trace --from shop/web --to service/shop/db --port postgres
  netpol trace --from 203.0.113.7 --to shop/web --port https
  netpol trace --from shop/web --to 10.96.0.10 --port 53 --protocol udp
  netpol trace --from node --to shop/web --protocol icmp")]
pub struct Args {
    /// Who opens the connection: namespace/pod, an address, or `node` for this node itself
    #[arg(long, value_name = "A", add = ArgValueCompleter::new(completions::pods))]
    from: String,

    /// To whom: likewise, or service/NAMESPACE/NAME (or svc/...)
    #[arg(long, value_name = "B", add = ArgValueCompleter::new(completions::pods))]
    to: String,

    /// Destination port, by number or by the name that the pod or Service gives it; needed for
    /// all protocols but icmp
    #[arg(long, value_parser = parse_port)]
    port: Option<Port>,

    /// Protocol
    #[arg(long, value_enum, default_value_t = Protocol::Tcp)]
    protocol: Protocol,

    /// Use the IPv6 addresses where both ends have both
    #[arg(short = '6', long)]
    ipv6: bool,

    #[command(flatten)]
    places: Places,

    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

#[expect(clippy::unnecessary_wraps, reason = "what clap takes")]
fn parse_port(text: &str) -> Result<Port, Infallible> {
    Ok(u16::from_str(text).map_or_else(|_name| Port::Name(text.to_owned()), Port::Number))
}

/// Asks.
pub fn run(args: &Args, out: &mut dyn Write) -> Result<bool> {
    let node = args.places.node()?;
    let pins = args.places.pins(Some(&node.state));
    let mut tracer = Tracer::new(&node, &args.places.run_dir, &pins)?;
    let answer = tracer.ask(&Question {
        from: args.from.clone(),
        to: args.to.clone(),
        protocol: args.protocol,
        port: args.port.clone().unwrap_or(Port::None),
        is_v6: args.ipv6,
    })?;
    output::show(out, args.output, &answer, text)?;
    Ok(answer.verdict.is_allow())
}

fn text(answer: &Answer) -> String {
    let Answer { verdict, from, to, protocol, hops, backends, elsewhere, notes } = answer;
    // The other half may be denied by another node.
    let here = if verdict.is_allow() && !elsewhere.is_empty() { " here" } else { "" };
    let mut text = format!("{verdict}{here}: {protocol} from {} to {}", side(from), side(to));
    let n_reached = backends.iter().filter(|backend| backend.verdict.is_allow()).count();
    let is_let_out = hops.iter().all(|hop| hop.verdict.is_allow());
    if is_let_out && !(backends.is_empty() || n_reached == 0 || n_reached == backends.len()) {
        // Writing to a string cannot fail.
        let _ = write!(text, ", as {n_reached} of {} backends can be reached", backends.len());
    }
    text.push('\n');
    push_hops(&mut text, hops, "  ");
    for backend in backends {
        let _ = writeln!(
            text,
            "  {}: backend {}{}",
            backend.verdict,
            side(&backend.side),
            seen_as(&backend.seen_as)
        );
        push_hops(&mut text, &backend.hops, "    ");
    }
    for other in elsewhere {
        let _ = writeln!(
            text,
            "  {} {}: judged on {}, ask there, too",
            other.endpoint, other.direction, other.node
        );
    }
    for note in notes {
        let _ = writeln!(text, "  note: {note}");
    }
    text
}

/// `, which sees 10.0.0.1`, if that is not the sender's.
fn seen_as(sources: &[IpAddr]) -> String {
    match sources {
        [] => String::new(),
        [one] => format!(", which sees {one}"),
        several => {
            let several: Vec<String> = several.iter().map(ToString::to_string).collect();
            format!(", which sees one of {}", several.join(", "))
        }
    }
}

/// `shop/web (10.0.0.1:80)`.
fn side(side: &Side) -> String {
    let address = side.ip.map(|ip| flows::end(ip, side.port));
    match (&side.name, address) {
        (Some(name), Some(address)) => format!("{name} ({address})"),
        (Some(name), None) => name.clone(),
        (None, Some(address)) => address,
        (None, None) => "nobody".to_owned(),
    }
}

fn push_hops(text: &mut String, hops: &[Hop], indent: &str) {
    let who = |hop: &Hop| format!("{} {}:", hop.endpoint, hop.direction);
    let width = hops.iter().map(|hop| who(hop).len()).max().unwrap_or_default();
    for hop in hops {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{indent}{:width$} {:5}  {}", who(hop), hop.verdict, hop.reason);
    }
}
