//! Answers [`Question`]s from what the agent knows. Must never change anything.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use serde_json::{Value, json};

use crate::view;
use netpol_api::questions::{
    self, BackendInfo, DecidingRule, End, FrontInfo, NETWORK_POLICY_TIER, NamedPort, Owner,
    PodInfo, Question, ServiceInfo,
};
use netpol_compile::{Compiler, EndpointId, Opening};
use netpol_model::{Direction, ObjectName, Pod, Protocol, Service, Tier};

/// The answer, as the question says. `node` is this node's name.
pub(crate) fn answer(compiler: &Compiler, node: &str, question: &Question) -> Value {
    match question {
        Question::Ends { ends } => json!(owners(compiler, node, ends)),
        Question::Pod { name } => {
            json!(parse(name).and_then(|id| compiler.cluster().pod(&id)).map(pod_info))
        }
        Question::Service { name } => {
            json!(parse(name).and_then(|id| service_infos(compiler, node, &[id]).pop()))
        }
        Question::Services => json!(service_infos(compiler, node, &all_services(compiler))),
        Question::Node { name } => {
            let node = compiler.cluster().nodes.get(name.as_str());
            json!(node.map(|node| &node.addresses[..]).unwrap_or_default())
        }
        Question::Deciding { openings } => {
            let rules = openings.iter().map(|opening| deciding(compiler, opening));
            json!(rules.collect::<Vec<_>>())
        }
        &Question::Allowing { endpoint, is_ingress, remote, protocol, port } => {
            let direction = if is_ingress { Direction::Ingress } else { Direction::Egress };
            let opening = Opening { direction, remote, protocol, port };
            let policies = compiler.allowing(EndpointId(endpoint), &opening);
            json!(policies.iter().map(ToString::to_string).collect::<Vec<_>>())
        }
    }
}

fn deciding(compiler: &Compiler, opening: &questions::Opening) -> Vec<DecidingRule> {
    let &questions::Opening { endpoint, is_ingress, remote, protocol, port } = opening;
    let direction = if is_ingress { Direction::Ingress } else { Direction::Egress };
    let opening = Opening { direction, remote, protocol, port };
    let rules = compiler.deciding(EndpointId(endpoint), &opening).into_iter();
    let told = rules.map(|rule| DecidingRule {
        tier: rule.tier.map_or(NETWORK_POLICY_TIER, Tier::as_str).to_owned(),
        policy: rule.policy,
        rule: rule.rule.map(|place| view::rule_path(direction, place)),
        name: rule.name.map(|name| name.to_string()),
        priority: rule.priority,
        action: rule.action.to_string(),
    });
    told.collect()
}

fn parse(name: &str) -> Option<ObjectName> {
    let (namespace, name) = name.split_once('/')?;
    Some(ObjectName::new(namespace, name))
}

/// Who is at each of these ends: a pod before a Service before a node.
fn owners(compiler: &Compiler, own_node: &str, ends: &[End]) -> Vec<Owner> {
    let cluster = compiler.cluster();
    let wanted: HashSet<IpAddr> = ends.iter().map(|end| end.ip).collect();
    let nodes: HashMap<IpAddr, &str> = cluster
        .nodes
        .values()
        .flat_map(|node| node.addresses.iter().map(|&address| (address, &*node.name)))
        .filter(|(address, _)| wanted.contains(address))
        .collect();
    let services = services_at(compiler, &wanted, &nodes);
    ends.iter()
        .map(|end| {
            let node = nodes.get(&end.ip).map(ToString::to_string);
            if let Some(pod) = compiler.pod_at(end.ip) {
                return pod_owner(pod, own_node);
            }
            let claimants = services.get(&end.ip).map(Vec::as_slice).unwrap_or_default();
            // The oldest has the address, as for the datapath.
            let service = claimants
                .iter()
                .filter(|service| serves(service, end, node.is_some()))
                .min_by_key(|service| (service.created, &service.id));
            // Who masquerades takes the address of an interface, which no Node object has.
            let node = node.or_else(|| is_here(compiler, end.ip).then(|| own_node.to_owned()));
            Owner { pod: None, service: service.map(|service| service.id.to_string()), node }
        })
        .collect()
}

/// Whether this node has an address, one that others cannot have as well.
fn is_here(compiler: &Compiler, address: IpAddr) -> bool {
    let is_on_a_link = matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
    !address.is_loopback() && !is_on_a_link && compiler.node_addresses().contains(&address)
}

fn pod_owner(pod: &Pod, own_node: &str) -> Owner {
    let node = pod.node.as_deref().filter(|node| *node != own_node).map(str::to_owned);
    Owner { pod: Some(pod.id.to_string()), service: None, node }
}

/// The Services that may be reached at some addresses, some of which are nodes'.
fn services_at<'a>(
    compiler: &'a Compiler,
    wanted: &HashSet<IpAddr>,
    nodes: &HashMap<IpAddr, &str>,
) -> HashMap<IpAddr, Vec<&'a Service>> {
    let mut found: HashMap<IpAddr, Vec<&Service>> = HashMap::new();
    let services = compiler.cluster().services.values().flat_map(|services| services.values());
    for service in services.filter(|service| compiler.handles(service)) {
        let own = service.cluster_ips.iter().chain(&service.external).copied();
        for address in own.filter(|address| wanted.contains(address)) {
            found.entry(address).or_default().push(service);
        }
        if service.ports.iter().any(|port| port.node_port.is_some()) {
            for &address in nodes.keys() {
                found.entry(address).or_default().push(service);
            }
        }
    }
    found
}

fn serves(service: &Service, end: &End, is_node: bool) -> bool {
    let is_own = is_own(service, end.ip);
    service.ports.iter().any(|port| {
        port.protocol.number() == end.protocol
            && ((is_own && port.port == end.port) || (is_node && port.node_port == Some(end.port)))
    }) || (is_own && !is_node)
}

fn is_own(service: &Service, address: IpAddr) -> bool {
    service.cluster_ips.contains(&address) || service.external.contains(&address)
}

fn pod_info(pod: &Pod) -> PodInfo {
    PodInfo {
        ips: pod.addresses.to_vec(),
        node: pod.node.as_deref().map(str::to_owned),
        host_network: pod.host_network,
        finished: pod.finished,
        ports: pod.ports.iter().map(|port| named(&port.name, port.protocol, port.port)).collect(),
    }
}

fn named(name: &str, protocol: Protocol, port: u16) -> NamedPort {
    NamedPort { name: name.to_owned(), protocol: protocol.number(), port }
}

fn all_services(compiler: &Compiler) -> Vec<ObjectName> {
    let services = compiler.cluster().services.values().flat_map(|services| services.values());
    let mut ids: Vec<ObjectName> = services.map(|service| service.id.clone()).collect();
    ids.sort();
    ids
}

/// Those of some Services that have addresses.
fn service_infos(compiler: &Compiler, own_node: &str, ids: &[ObjectName]) -> Vec<ServiceInfo> {
    let fronts: Vec<_> = ids.iter().map(|id| compiler.service_fronts(id)).collect();
    let backends = fronts.iter().flatten().flat_map(|front| &front.backends);
    let ends: Vec<End> = backends.map(|&(ip, port)| End { ip, protocol: 0, port }).collect();
    // In the order of `ends`, which is that of the loops below.
    let mut owners = owners(compiler, own_node, &ends).into_iter();
    let mut infos = Vec::new();
    for (id, fronts) in ids.iter().zip(fronts) {
        let Some(service) = compiler.cluster().service(id) else { continue };
        let mut info = ServiceInfo {
            name: id.to_string(),
            ports: service
                .ports
                .iter()
                .filter(|port| !port.name.is_empty())
                .map(|port| named(&port.name, port.protocol, port.port))
                .collect(),
            external: service
                .external
                .iter()
                .copied()
                .filter(|address| !service.cluster_ips.contains(address))
                .collect(),
            is_external_local: service.is_external_local,
            is_internal_local: service.is_internal_local,
            fronts: Vec::new(),
        };
        for front in fronts {
            let ends = front.keys.iter().map(|key| End {
                ip: key.address,
                protocol: key.protocol.number(),
                port: key.port,
            });
            let (own, on_nodes) = ends.partition(|end| is_own(service, end.ip));
            let backends = front.backends.iter().map(|&(ip, port)| {
                let owner = owners.next().unwrap_or_default();
                BackendInfo { ip, port, owner }
            });
            info.fronts.push(FrontInfo { own, on_nodes, backends: backends.collect() });
        }
        if !info.fronts.is_empty() {
            infos.push(info);
        }
    }
    infos
}
