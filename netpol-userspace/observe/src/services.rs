//! The Services that pods of this node may reach, and what the policies of each isolated pod say
//! of them: from the pinned maps, with names from a running agent. Must never decide anything
//! itself.

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::path::Path;

use anyhow::Result;
use netpol_common::service::ToService;
use serde::Serialize;

use super::names::Names;
use super::proxy::{self, Sender};
use netpol_api::client;
use netpol_api::decision::ServiceDecision::{self, Allow, Deny, Empty, Mixed};
use netpol_api::questions::{BackendInfo, End, Question, ServiceInfo};
use netpol_compile::{Backend, ServiceKey};
use netpol_datapath::{Maps, evaluate, observe};
use netpol_model::Protocol;

/// One address and port of a Service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Service {
    /// Its namespace; `null` if no agent tells.
    pub namespace: Option<String>,
    /// Its name, likewise.
    pub name: Option<String>,
    /// Where it is reached.
    pub address: IpAddr,
    /// Such as `TCP`.
    pub protocol: String,
    /// The port there.
    pub port: u16,
    /// A port of a node and not of the Service's own addresses.
    pub on_node: bool,
    /// Where packets may end up; `null` if no agent tells.
    pub backends: Option<Vec<BackendInfo>>,
    /// What the programs know of the backends; `null` while they do not follow the Service,
    /// because no pod of this node is isolated for egress.
    pub kinds: Option<Vec<Kind>>,
    /// The pods of this node that are isolated for egress, and whether they may reach it.
    pub endpoints: Vec<Verdict>,
}

/// Backends that policies cannot tell apart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Kind {
    /// Their class.
    pub class: u32,
    /// The selectors and blocks that they match.
    pub matches: Vec<String>,
    /// The port that packets arrive on.
    pub port: u16,
    /// They are this node itself.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub is_on_node: bool,
}

/// What an endpoint's policies say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// `namespace/pod`, or its number if it has no name.
    pub endpoint: String,
    /// `allow`; `deny`, also if only some backends are allowed and nobody could look at packets
    /// again: one of the others is this node itself, or another node translates; `mixed` if some
    /// are allowed, or (as far as is known without an agent) the pod is one itself; `empty` if there
    /// is none.
    pub verdict: ServiceDecision,
}

/// All of them, sorted by name and address; with the verdicts for all endpoints or for one, and
/// with why names are missing, if they are.
pub fn list(
    maps: &Maps,
    names: &Names,
    run_dir: &Path,
    endpoint: Option<u16>,
) -> Result<(Vec<Service>, Option<String>)> {
    let stored: BTreeMap<ServiceKey, Vec<Backend>> =
        evaluate::services(maps)?.into_iter().collect();
    let asked = client::ask::<Vec<ServiceInfo>>(run_dir, &Question::Services);
    let (infos, missing) = match client::answered(asked) {
        Ok(infos) => (infos, None),
        Err(why) => (Vec::new(), Some(why.to_string())),
    };
    let mut services = named(infos, names.node());
    // What only the maps know: without an agent, everything.
    for key in stored.keys() {
        let service = || Listed { service: nameless(key), used: None };
        services.entry(*key).or_insert_with(service);
    }
    let isolated: Vec<(String, u16, u16)> = observe::endpoints(maps)
        .into_iter()
        .filter(|entry| entry.egress != 0 && endpoint.is_none_or(|id| id == entry.id))
        .map(|entry| {
            let name = names.name(entry.id).unwrap_or_else(|| format!("#{}", entry.id));
            (name, entry.id, entry.egress)
        })
        .collect();
    let own: HashSet<(u16, IpAddr)> = observe::own_addresses(maps).collect();
    for (key, Listed { service, used }) in &mut services {
        let Some(kinds) = stored.get(key) else { continue };
        service.kinds = Some(kinds.iter().filter_map(|kind| view(kind, names)).collect());
        let verdict = |id: u16, set: u16| {
            let said = evaluate::to_service(maps, set, id, key);
            let allows = |&(ip, port): &(IpAddr, u16)| {
                own.contains(&(id, ip)) || evaluate::allows(maps, set, ip, key.protocol, port)
            };
            decide(said, kinds, used.as_deref(), allows)
        };
        let verdicts = isolated
            .iter()
            .map(|(name, id, set)| Verdict { endpoint: name.clone(), verdict: verdict(*id, *set) });
        service.endpoints = verdicts.collect();
        service.endpoints.sort_by(|a, b| a.endpoint.cmp(&b.endpoint));
    }
    let mut list: Vec<Service> = services.into_values().map(|known| known.service).collect();
    list.sort_by(|a, b| order(a).cmp(&order(b)));
    Ok((list, missing))
}

fn order(service: &Service) -> impl Ord + '_ {
    let Service { namespace, name, on_node, address, port, protocol, .. } = service;
    (namespace, name, on_node, address, port, protocol)
}

/// A Service, and those of its backends that packets from pods of this node may end up at, if an
/// agent tells.
struct Listed {
    service: Service,
    used: Option<Vec<(IpAddr, u16)>>,
}

fn named(infos: Vec<ServiceInfo>, here: &str) -> BTreeMap<ServiceKey, Listed> {
    let mut services = BTreeMap::new();
    for info in infos {
        let (namespace, name) = info.name.split_once('/').unwrap_or(("", &info.name));
        for front in &info.fronts {
            let own = front.own.iter().map(|end| (end, false));
            for (end, on_node) in own.chain(front.on_nodes.iter().map(|end| (end, true))) {
                let Some(key) = key_of(end) else { continue };
                let service = Service {
                    namespace: Some(namespace.to_owned()),
                    name: Some(name.to_owned()),
                    on_node,
                    backends: Some(front.backends.clone()),
                    ..nameless(&key)
                };
                // On which node's address makes no difference to a pod.
                let node = on_node.then_some(here);
                let passage = proxy::passage(&info, end.ip, node, Sender::Pod(here));
                let used = front.backends.iter().filter(|one| passage.leads_to(one, here));
                let used = Some(used.map(|backend| (backend.ip, backend.port)).collect());
                services.entry(key).or_insert(Listed { service, used });
            }
        }
    }
    services
}

fn key_of(end: &End) -> Option<ServiceKey> {
    let protocol = Protocol::from_number(end.protocol)?;
    Some(ServiceKey { address: end.ip, protocol, port: end.port })
}

fn nameless(key: &ServiceKey) -> Service {
    Service {
        namespace: None,
        name: None,
        address: key.address,
        protocol: key.protocol.to_string(),
        port: key.port,
        on_node: false,
        backends: None,
        kinds: None,
        endpoints: Vec::new(),
    }
}

fn view(backend: &Backend, names: &Names) -> Option<Kind> {
    match *backend {
        Backend::Kind { class, port, is_on_node } => {
            let matches = names.class(class.0).to_vec();
            Some(Kind { class: class.0, matches, port, is_on_node })
        }
        // It is of a kind that is listed beside it; and who translates is no backend.
        Backend::Endpoint(_) | Backend::Elsewhere => None,
    }
}

/// The verdict where more is known than the programs say of all packets: what becomes of each.
fn decide(
    said: ToService,
    kinds: &[Backend],
    used: Option<&[(IpAddr, u16)]>,
    allows: impl Fn(&(IpAddr, u16)) -> bool,
) -> ServiceDecision {
    let is_mixed = said == ToService::Mixed;
    if is_mixed && kinds.contains(&Backend::Elsewhere) {
        return Deny;
    }
    match (used, word(said)) {
        (Some([]), Allow | Mixed) => Empty,
        (Some(used), Mixed) => match used.iter().filter(|backend| allows(backend)).count() {
            0 => Deny,
            n_allowed if n_allowed == used.len() => Allow,
            _ => Mixed,
        },
        (_, word) => word,
    }
}

fn word(verdict: ToService) -> ServiceDecision {
    match verdict {
        ToService::Allowed
        | ToService::Own
        | ToService::AllowedElsewhere
        | ToService::OwnElsewhere => Allow,
        ToService::Mixed => Mixed,
        ToService::Empty => Empty,
        // With none the entry went while this was looked at.
        ToService::Denied | ToService::Undecidable | ToService::None => Deny,
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use netpol_compile::ClassId;

    const KIND: Backend = Backend::Kind { class: ClassId(3), port: 80, is_on_node: false };

    fn backends(ports: &[u16]) -> Vec<(IpAddr, u16)> {
        ports.iter().map(|&port| ("10.0.0.1".parse().unwrap(), port)).collect()
    }

    #[test]
    fn what_becomes_of_each_backend_decides_where_the_programs_leave_it_open() {
        let decide = |said, kinds: &[Backend], used: Option<&[u16]>| {
            let used = used.map(backends);
            // Ports below 100 are allowed.
            decide(said, kinds, used.as_deref(), |&(_, port)| port < 100)
        };
        for (used, expected) in [
            (None, Mixed),
            (Some(&[80, 81][..]), Allow),
            (Some(&[80, 8080][..]), Mixed),
            (Some(&[8080][..]), Deny),
            (Some(&[][..]), Empty),
        ] {
            assert_eq!(decide(ToService::Mixed, &[KIND], used), expected, "{used:?}");
        }
        // Nobody looks again at what another node translates, or at what stays on this one.
        let elsewhere = [KIND, Backend::Elsewhere];
        assert_eq!(decide(ToService::Mixed, &elsewhere, Some(&[80])), Deny);
        assert_eq!(decide(ToService::Undecidable, &[KIND], Some(&[80])), Deny);
        assert_eq!(decide(ToService::Own, &[KIND], Some(&[8080])), Allow);
        assert_eq!(decide(ToService::Allowed, &[KIND], Some(&[])), Empty);
        assert_eq!(decide(ToService::Denied, &[KIND], Some(&[])), Deny);
    }
}
