//! The Services that pods of this node may reach, and what the policies of each isolated pod say
//! of them: from the pinned maps, with names from a running agent. Must never decide anything
//! itself.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

use anyhow::Result;
use netpol_common::service::ToService;
use serde::Serialize;

use super::client;
use super::names::Names;
use crate::agent::questions::{BackendInfo, End, Question, ServiceInfo};
use crate::compile::{Backend, ServiceKey};
use crate::datapath::{Maps, evaluate, observe};
use crate::model::Protocol;

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
    /// `allow`; `deny`, also if a backend that is not allowed is this node itself; `mixed` if only
    /// some backends are allowed, or the pod is one itself; `empty` if there is none.
    pub verdict: &'static str,
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
    let (infos, missing) = match client::answer_or_why(asked) {
        Ok(infos) => (infos, None),
        Err(why) => (Vec::new(), Some(why)),
    };
    let mut services = named(infos);
    // What only the maps know: without an agent, everything.
    for key in stored.keys() {
        services.entry(*key).or_insert_with(|| nameless(key));
    }
    let isolated: Vec<(String, u16, u16)> = observe::endpoints(maps)
        .into_iter()
        .filter(|entry| entry.egress != 0 && endpoint.is_none_or(|id| id == entry.id))
        .map(|entry| {
            let name = names.name(entry.id).unwrap_or_else(|| format!("#{}", entry.id));
            (name, entry.id, entry.egress)
        })
        .collect();
    for (key, service) in &mut services {
        let Some(kinds) = stored.get(key) else { continue };
        service.kinds = Some(kinds.iter().filter_map(|kind| view(kind, names)).collect());
        service.endpoints = isolated
            .iter()
            .map(|(name, id, set)| Verdict {
                endpoint: name.clone(),
                verdict: word(evaluate::to_service(maps, *set, *id, key)),
            })
            .collect();
        service.endpoints.sort_by(|a, b| a.endpoint.cmp(&b.endpoint));
    }
    let mut list: Vec<Service> = services.into_values().collect();
    list.sort_by(|a, b| order(a).cmp(&order(b)));
    Ok((list, missing))
}

fn order(service: &Service) -> impl Ord + '_ {
    let Service { namespace, name, on_node, address, port, protocol, .. } = service;
    (namespace, name, on_node, address, port, protocol)
}

fn named(infos: Vec<ServiceInfo>) -> BTreeMap<ServiceKey, Service> {
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
                services.entry(key).or_insert(service);
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

fn word(verdict: ToService) -> &'static str {
    match verdict {
        ToService::Allowed
        | ToService::Own
        | ToService::AllowedElsewhere
        | ToService::OwnElsewhere => "allow",
        ToService::Mixed => "mixed",
        ToService::Empty => "empty",
        ToService::Denied | ToService::Undecidable => "deny",
        // The entry went while this was looked at.
        ToService::None => "deny",
    }
}
