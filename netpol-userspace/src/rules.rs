//! `netpol rules`.

use std::fmt::Write as _;
use std::io::Write;
use std::net::IpAddr;

use anyhow::Result;

use super::output::{self, Format};
use super::places::Places;
use netpol_api::state::ClusterRule;
use netpol_model::Tier;
use netpol_observe::drops;
use netpol_observe::policies::named;
use netpol_observe::rules::{self, Rules, Side};

/// Show what a pod may receive and send, and which policies say so
///
/// For each direction: the policies that isolate the pod, then everything that they allow together,
/// each line with the policies it comes from. The rules of ClusterNetworkPolicies are listed in the
/// order in which they are asked, before and after. What is not listed is dropped, except for what is
/// always allowed. Ports by name are shown with what they stand for on this pod.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  netpol rules shop/web
  netpol rules 10.244.1.7 -o json")]
pub struct Args {
    /// Pod of this node: namespace/pod, its name if no other has it, or its address
    #[arg(add = clap_complete::ArgValueCompleter::new(super::completions::pods))]
    endpoint: String,

    #[command(flatten)]
    places: Places,

    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// Shows them.
pub fn run(args: &Args, out: &mut dyn Write) -> Result<bool> {
    let node = args.places.node()?;
    let endpoint = node.endpoint(&args.endpoint)?;
    let maps = args.places.maps_if_any(&node.state);
    let rules = rules::of(endpoint, maps.as_ref())?;
    output::show(out, args.output, &rules, text)?;
    Ok(true)
}

/// How many ports are named in a line for people, and how many lines there are; `-o json` has all.
const MOST_PORTS: usize = 10;
const MOST_LINES: usize = 100;

fn text(rules: &Rules) -> String {
    let ips: Vec<String> = rules.ips.iter().map(IpAddr::to_string).collect();
    let mut text =
        format!("{}/{} ({}) on {}\n", rules.namespace, rules.pod, ips.join(", "), rules.interface);
    side(&mut text, "ingress", "FROM", &rules.ingress);
    side(&mut text, "egress", "TO", &rules.egress);
    text.push_str("\nalways allowed:\n");
    for line in rules.always_allowed {
        push(&mut text, line);
    }
    text
}

fn side(text: &mut String, direction: &str, peer: &str, side: &Side) {
    text.push('\n');
    let of_tier =
        |tier: Tier| side.cluster_rules.iter().filter(move |rule| rule.tier == tier.as_str());
    let how = match (side.isolated, side.cluster_rules.is_empty()) {
        (true, _) => format!("isolated by {}", named(&side.policies)),
        (false, true) => "open, no policy isolates it".to_owned(),
        (false, false) => "open but for what these deny".to_owned(),
    };
    push_line(text, &format!("{direction}: {how}"));
    cluster_rules(text, "Admin tier, asked first:", peer, of_tier(Tier::Admin));
    if side.isolated {
        if of_tier(Tier::Admin).next().is_some() {
            push(text, "NetworkPolicies, asked then:");
        }
        allowed(text, peer, side);
    }
    cluster_rules(text, "Baseline tier:", peer, of_tier(Tier::Baseline));
    if side.untold > 0 {
        push(text, &format!("and {} more peers: see the policies themselves", side.untold));
    }
    if let Some(dropped) =
        side.drops.as_ref().filter(|_| side.isolated || !side.cluster_rules.is_empty())
    {
        push(text, &dropped_text(dropped));
    }
}

/// The rules of one tier, if there are any.
fn cluster_rules<'a>(
    text: &mut String,
    title: &str,
    peer: &str,
    rules: impl Iterator<Item = &'a ClusterRule>,
) {
    let rules: Vec<&ClusterRule> = rules.collect();
    if rules.is_empty() {
        return;
    }
    push(text, title);
    let rows = rules.iter().take(MOST_LINES).map(|rule| {
        let peers = match rule.peers.as_slice() {
            [] => "nobody: it could not be understood".to_owned(),
            peers => output::some_of(peers),
        };
        let name = rule.name.as_ref().map(|name| format!(" {name:?}")).unwrap_or_default();
        [
            rule.priority.to_string(),
            format!("{} {}{name}", rule.policy, rule.rule),
            rule.action.clone(),
            peers,
            some_ports(&rule.ports),
        ]
    });
    output::table(["PRIORITY", "RULE", "ACTION", peer, "PORTS"], rows)
        .lines()
        .for_each(|line| push(text, line));
    let n_cut = rules.len().saturating_sub(MOST_LINES);
    if n_cut > 0 {
        push(text, &format!("and {n_cut} more lines: -o json has all"));
    }
}

/// What NetworkPolicies allow.
fn allowed(text: &mut String, peer: &str, side: &Side) {
    if side.allowed.is_empty() && side.untold == 0 {
        push(text, "nothing is allowed");
    } else {
        let rows = side
            .allowed
            .iter()
            .take(MOST_LINES)
            .map(|rule| [rule.peer.clone(), some_ports(&rule.ports), named(&rule.policies)]);
        output::table([peer, "PORTS", "ALLOWED BY"], rows)
            .lines()
            .for_each(|line| push(text, line));
    }
    let n_cut = side.allowed.len().saturating_sub(MOST_LINES);
    if n_cut > 0 {
        push(text, &format!("and {n_cut} more lines: -o json has all"));
    }
}

/// Some of the ports in words, and how many more there are.
fn some_ports(ports: &str) -> String {
    let all: Vec<&str> = ports.split(", ").collect();
    match all.len().saturating_sub(MOST_PORTS) {
        0 | 1 => ports.to_owned(),
        n => format!("{} and {n} more", all[..MOST_PORTS].join(", ")),
    }
}

fn dropped_text(dropped: &drops::Drops) -> String {
    if dropped.is_empty() {
        return "dropped: nothing so far".into();
    }
    let reasons: Vec<String> =
        dropped.iter().map(|(reason, packets)| format!("{reason} {packets}")).collect();
    let total = drops::total(dropped);
    let packets = if total == 1 { "packet" } else { "packets" };
    format!("dropped: {total} {packets} ({})", reasons.join(", "))
}

fn push_line(text: &mut String, line: &str) {
    // As below.
    let _ = writeln!(text, "{line}");
}

fn push(text: &mut String, line: &str) {
    // Writing to a string does not fail.
    let _ = writeln!(text, "  {line}");
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use netpol_api::testing::endpoint;

    #[test]
    fn an_isolated_and_an_open_direction() {
        let mut rules = rules::of(&endpoint("shop", "web", 1, "10.0.0.1"), None).unwrap();
        rules.ingress.drops = Some([("policy", 3), ("fragment", 1)].into());
        assert_eq!(
            text(&rules),
            "\
shop/web (10.0.0.1) on veth1

ingress: isolated by shop/deny
  FROM                               PORTS   ALLOWED BY
  pods app=client in namespace shop  TCP 80  shop/deny
  dropped: 4 packets (fragment 1, policy 3)

egress: open, no policy isolates it

always allowed:
  replies to connections that are allowed, and ICMP errors about them
  connections that this node itself opens to the pod
  connections of the pod to itself
  ARP and IPv6 neighbour discovery
"
        );
    }

    #[test]
    fn rules_of_the_cluster_stand_where_they_are_asked() {
        let rule = |tier: &str, policy: &str, action: &str| ClusterRule {
            tier: tier.into(),
            priority: 5,
            policy: policy.into(),
            rule: "ingress[0]".into(),
            name: (tier == "Admin").then(|| "meta".to_owned()),
            action: action.into(),
            peers: vec!["10.0.0.0/8".into()],
            ports: "TCP 80".into(),
        };
        let mut endpoint = endpoint("shop", "web", 1, "10.0.0.1");
        let isolation = std::sync::Arc::make_mut(&mut endpoint.ingress.isolation);
        isolation.cluster_rules = vec![rule("Admin", "first", "Deny")];
        endpoint.egress.set = 3;
        let isolation = std::sync::Arc::make_mut(&mut endpoint.egress.isolation);
        isolation.cluster_rules = vec![rule("Baseline", "last", "Accept")];
        let text = text(&rules::of(&endpoint, None).unwrap());
        let expected = "\
ingress: isolated by shop/deny
  Admin tier, asked first:
  PRIORITY  RULE                     ACTION  FROM        PORTS
  5         first ingress[0] \"meta\"  Deny    10.0.0.0/8  TCP 80
  NetworkPolicies, asked then:
  FROM                               PORTS   ALLOWED BY
  pods app=client in namespace shop  TCP 80  shop/deny

egress: open but for what these deny
  Baseline tier:
  PRIORITY  RULE             ACTION  TO          PORTS
  5         last ingress[0]  Accept  10.0.0.0/8  TCP 80
";
        assert!(text.contains(expected), "{text}");
    }

    #[test]
    fn what_is_very_much_is_cut_short_and_counted() {
        let mut endpoint = endpoint("shop", "web", 1, "10.0.0.1");
        let isolation = std::sync::Arc::make_mut(&mut endpoint.ingress.isolation);
        isolation.policies = (0..13).map(|number| format!("shop/p{number:02}")).collect();
        isolation.untold = 1_234;
        let mut rule = isolation.rules[0].clone();
        rule.ports = (1..=300).map(|port| format!("TCP {port}")).collect::<Vec<_>>().join(", ");
        isolation.rules = vec![rule; 150];
        let text = text(&rules::of(&endpoint, None).unwrap());
        assert!(text.contains("isolated by shop/p00, shop/p01, "), "{text}");
        assert!(text.contains(", shop/p09 and 3 more\n"), "{text}");
        assert!(text.contains("TCP 10 and 290 more  shop/deny\n"), "{text}");
        assert!(text.contains("  and 50 more lines: -o json has all\n"), "{text}");
        assert!(text.lines().count() < 130 && !text.contains("TCP 11"), "{text}");
        assert!(text.contains("  and 1234 more peers: see the policies themselves\n"), "{text}");
    }

    #[test]
    fn a_direction_that_is_closed() {
        let mut closed = endpoint("shop", "web", 1, "10.0.0.1");
        closed.egress = closed.ingress.clone();
        std::sync::Arc::make_mut(&mut closed.egress.isolation).rules.clear();
        let mut rules = rules::of(&closed, None).unwrap();
        rules.egress.drops = Some([].into());
        let text = text(&rules);
        let expected = "\
egress: isolated by shop/deny
  nothing is allowed
  dropped: nothing so far
";
        assert!(text.contains(expected), "{text}");
    }
}
