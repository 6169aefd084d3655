//! `netpol services`.

use std::io::Write;

use anyhow::{Context as _, Result};

use super::flows::end;
use super::output::{self, Format, note};
use super::places::Places;
use netpol_api::decision::ServiceDecision;
use netpol_observe::services::{Kind, Service, list};

/// List Services, their backends and which pods of this node may reach them
///
/// A policy speaks of pods, so a packet to a Service is judged by the Service's backends: `allow`
/// if policies allow every backend, `deny` if none (or if only some and nobody could tell packets
/// apart later), `mixed` if some, `empty` if there is none. Where a traffic policy is Local only
/// backends of this node count. VERDICT counts the pods of this
/// node that are isolated for egress, or is that of one pod if one is given; for all others every
/// Service is open. Backends have their names while the agent runs, else what is known of them is
/// which selectors and blocks they match.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  netpol services
  netpol services shop/web
  netpol services -o json | jq '.[] | select(.endpoints[].verdict == \"mixed\")'")]
pub struct Args {
    /// Verdicts for this pod: namespace/pod, its name if no other has it, or its address
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
    let (maps, node, names) = args.places.maps()?;
    let mut id = None;
    if let Some(wanted) = &args.endpoint {
        let node = node.context("cannot find a pod without the names in the state file")?;
        let endpoint = node.endpoint(wanted)?;
        id = Some(endpoint.id);
        if !endpoint.egress.isolated {
            note(&format!("no policy isolates {wanted} for egress: every Service is open to it"));
        }
    }
    let (services, missing) = list(&maps, &names, &args.places.run_dir, id)?;
    output::warn_of_missing_names(missing);
    let none = "no Services with addresses are known";
    output::list(out, args.output, &services, none, |services| table(services, id.is_some()))?;
    Ok(true)
}

fn table(services: &[Service], is_of_one: bool) -> String {
    let header = ["SERVICE", "ADDRESS", "PROTOCOL", "BACKENDS", "VERDICT"];
    let mut rows: Vec<([String; 5], usize)> = Vec::new();
    for service in services {
        let row = row(service, is_of_one);
        // A port on all nodes is one thing to a person.
        match rows.last_mut() {
            Some((last, n_more))
                if service.on_node && last[0] == row[0] && last[2..] == row[2..] =>
            {
                *n_more += 1;
            }
            _ => rows.push((row, 0)),
        }
    }
    output::table(
        header,
        rows.into_iter().map(|([service, mut address, protocol, backends, verdict], n_more)| {
            if n_more > 0 {
                address += &format!(" and {n_more} more");
            }
            [service, address, protocol, backends, verdict]
        }),
    )
}

fn row(service: &Service, is_of_one: bool) -> [String; 5] {
    let name = match (&service.namespace, &service.name) {
        (Some(namespace), Some(name)) => format!("{namespace}/{name}"),
        _ => "-".to_owned(),
    };
    [
        format!("{name}{}", if service.on_node { " (node port)" } else { "" }),
        end(service.address, Some(service.port)),
        service.protocol.clone(),
        backends(service),
        if is_of_one { verdict_of_one(service) } else { verdicts(service) },
    ]
}

fn backends(service: &Service) -> String {
    let texts: Vec<String> = match (&service.backends, &service.kinds) {
        (Some(backends), _) => backends
            .iter()
            .map(|backend| {
                let address = end(backend.ip, Some(backend.port));
                match &backend.owner.pod {
                    Some(pod) => format!("{pod} {address}"),
                    None => address,
                }
            })
            .collect(),
        (None, Some(kinds)) => kinds.iter().map(kind_text).collect(),
        (None, None) => Vec::new(),
    };
    if texts.is_empty() { "none".to_owned() } else { output::some_of(&texts) }
}

fn kind_text(kind: &Kind) -> String {
    let which = match kind.matches.is_empty() {
        true => "backends that no selector or block matches".to_owned(),
        false => kind.matches.join(" + "),
    };
    format!("{which} port {}", kind.port)
}

fn verdict_of_one(service: &Service) -> String {
    service.endpoints.first().map_or_else(|| "open".to_owned(), |of| of.verdict.to_string())
}

fn verdicts(service: &Service) -> String {
    let count = |decision: ServiceDecision| {
        let n_pods = service.endpoints.iter().filter(|of| of.verdict == decision).count();
        (n_pods > 0).then(|| format!("{n_pods} {decision}"))
    };
    let counts: Vec<String> = ServiceDecision::ALL.into_iter().filter_map(count).collect();
    if counts.is_empty() { "open".to_owned() } else { counts.join(", ") }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use netpol_api::questions::{BackendInfo, Owner};
    use netpol_observe::services::Verdict;

    fn service(address: &str, port: u16) -> Service {
        let backend = |ip: &str, pod: Option<&str>| BackendInfo {
            ip: ip.parse().unwrap(),
            port: 5432,
            owner: Owner { pod: pod.map(str::to_owned), ..Owner::default() },
        };
        let verdict = |endpoint: &str, verdict| Verdict { endpoint: endpoint.into(), verdict };
        Service {
            namespace: Some("shop".into()),
            name: Some("db".into()),
            address: address.parse().unwrap(),
            protocol: "TCP".into(),
            port,
            on_node: false,
            backends: Some(vec![
                backend("10.0.1.1", Some("shop/db-0")),
                backend("192.0.2.1", None),
            ]),
            kinds: Some(vec![Kind {
                class: 3,
                matches: vec!["pods app=db".into()],
                port: 5432,
                is_on_node: false,
            }]),
            endpoints: vec![
                verdict("shop/api", ServiceDecision::Allow),
                verdict("shop/web", ServiceDecision::Mixed),
            ],
        }
    }

    #[test]
    fn the_table() {
        let on_node = |address| Service { on_node: true, ..service(address, 30_001) };
        let unnamed = Service {
            namespace: None,
            name: None,
            backends: None,
            endpoints: Vec::new(),
            ..service("fd00::7", 53)
        };
        let services =
            [service("10.96.0.7", 5432), on_node("10.0.0.1"), on_node("10.0.0.2"), unnamed];
        assert_eq!(
            table(&services, false),
            "\
SERVICE              ADDRESS                    PROTOCOL  BACKENDS                                 VERDICT
shop/db              10.96.0.7:5432             TCP       shop/db-0 10.0.1.1:5432, 192.0.2.1:5432  1 allow, 1 mixed
shop/db (node port)  10.0.0.1:30001 and 1 more  TCP       shop/db-0 10.0.1.1:5432, 192.0.2.1:5432  1 allow, 1 mixed
-                    [fd00::7]:53               TCP       pods app=db port 5432                    open
"
        );
    }
}
