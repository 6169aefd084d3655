//! netpol on the node: this build's compiler and datapath, fed with the same cluster, in the same
//! order as the agent does it. Must never put anything into a map by itself.
//!
//! As in every cluster there is a Service, so that netpol's programs for what leaves by an
//! interface are on the pods' interfaces too, and each packet passes them.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use anyhow::{Result, anyhow, bail};
use aya::programs::TcAttachType;
use aya::programs::links::LinkOrder;
use aya::programs::tc::TcAttachOptions;
use netpol_compile::{Compiler, EndpointId};
use netpol_datapath::{AttachMode, Datapath, EndpointFailure, LoadOptions, Pins, Programs};
use netpol_endpoint::Exit;
use netpol_isolation::netns::Netns;
use netpol_model::{
    Change, Direction, EndpointSlice, Labels, Namespace, NamespaceScope, ObjectName, Operator,
    Peer, Peers, Pod, Policy, PortMatch, PortRange, Ports, Protocol, Proxy, Requirement, Rule,
    Selector, Service, ServicePort, SliceEndpoint, SlicePort,
};

use super::pair::{BRIDGE, CLIENT, INTERFACES, NODE, SERVER, Wiring};
use super::population::{PEERS, PORTS, Population, is_measured, local_pods, remote};
use super::tools::ip;

const NAMESPACE: &str = "default";
const THIS_NODE: &str = "this";
/// Of the Service.
const CLUSTER_IP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
/// The program that does nothing.
const NOTHING: &str = "netpol_nothing";

/// Attached programs, for as long as it lives; it must be dropped in the node's namespace.
pub enum Attached {
    /// Those of netpol, with the directory that has their pins.
    Netpol(Box<Datapath>, Pins),
    /// Ones that do nothing. Their links go with them.
    Nothing {
        /// Only held.
        _programs: Box<Programs>,
    },
}

impl Drop for Attached {
    fn drop(&mut self) {
        if let Self::Netpol(_, pins) = self {
            // With its pins the programs go, except where the namespace has gone before.
            let _ = pins.remove_all();
        }
    }
}

/// What the policies do to the measured pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Selected {
    /// They isolate them.
    Both,
    /// They select other pods only.
    Neither,
}

/// Programs that do nothing on both hooks of both pods' interfaces. Must run in the namespace of
/// the node.
pub fn attach_nothing() -> Result<Attached> {
    let options = LoadOptions::default();
    let mut programs = Programs::load_scratch(&Pins::new("unused"), &options, &[])?;
    programs.load_program(NOTHING)?;
    for interface in INTERFACES {
        for hook in [TcAttachType::Ingress, TcAttachType::Egress] {
            let options = TcAttachOptions::TcxOrder(LinkOrder::default());
            programs.program(NOTHING)?.attach_with_options(interface, hook, options)?;
        }
    }
    Ok(Attached::Nothing { _programs: Box::new(programs) })
}

/// netpol with these policies. Must run in the namespace of the node, which has the interfaces of
/// the other pods.
pub fn enforce(
    bpffs: &Path,
    wiring: Wiring,
    population: Population,
    selected: Selected,
) -> Result<Attached> {
    let pins = Pins::new(bpffs);
    let datapath = Datapath::open(&pins, &LoadOptions::default(), AttachMode::Auto)?;
    let mut attached = Attached::Netpol(Box::new(datapath), pins);
    let Attached::Netpol(datapath, _) = &mut attached else {
        unreachable!("invariant: it was just made so")
    };
    let mut compiler = Compiler::new();
    let _ = compiler.set_node_addresses(BTreeSet::from([IpAddr::V4(NODE)]));
    check(datapath.set_exits(&exits(wiring)?))?;
    // As at an agent's start, the tables are put in force as a whole.
    let _ = compiler.apply_all(changes(population, selected));
    for (number, address) in local_pods().enumerate() {
        let id = EndpointId(u16::try_from(number + 1)?);
        datapath.add_endpoint(id, ifindex(&interface(address))?, [IpAddr::V4(address)])?;
        let _ = compiler.set_endpoint(id, pod_name(address));
    }
    check(datapath.reconcile(&compiler.tables())?)?;
    for table in datapath.tables() {
        if table.overflow.is_some() {
            bail!(
                "{} policies do not fit into netpol's table {}",
                population.policies,
                table.table
            );
        }
    }
    Ok(attached)
}

/// The node's end of the pod's interface.
fn interface(pod: Ipv4Addr) -> String {
    match pod {
        CLIENT => INTERFACES[0].to_owned(),
        SERVER => INTERFACES[1].to_owned(),
        other => format!("pod{}", other.octets()[3]),
    }
}

/// Interfaces for the pods that are not measured, which only the policies know.
pub fn add_other_interfaces(node: &Netns) -> Result<()> {
    let others = local_pods().filter(|pod| !is_measured(*pod)).map(interface);
    let lines = others
        .map(|name| format!("link add {name} type veth peer name {name}x\nlink set {name} up\n"));
    ip(node, &lines.collect::<String>())
}

fn check(failures: Vec<EndpointFailure>) -> Result<()> {
    match failures.first() {
        Some(failure) => Err(anyhow!("netpol cannot enforce the policies: {}", failure.error)),
        None => Ok(()),
    }
}

/// All interfaces but loopback, as discovery finds them.
fn exits(wiring: Wiring) -> Result<Vec<Exit>> {
    let bridge = (wiring == Wiring::Bridge).then(|| BRIDGE.to_owned());
    let exit = |name: String| -> Result<Exit> {
        Ok(Exit { ifindex: ifindex(&name)?, incarnation: 1, has_link_header: true })
    };
    local_pods().map(interface).chain(bridge).map(exit).collect()
}

fn ifindex(name: &str) -> Result<u32> {
    use rustix::net::{AddressFamily, SocketType, netdevice::name_to_index, socket};
    let any = socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    Ok(name_to_index(&any, name)?)
}

// === The cluster as netpol's model has it ===

fn changes(population: Population, selected: Selected) -> Vec<Change> {
    let mut changes =
        vec![Change::Namespace(Namespace { name: NAMESPACE.into(), labels: Labels::default() })];
    for address in local_pods() {
        let app = match selected {
            Selected::Neither if is_measured(address) => "unselected".to_owned(),
            _ => app(address),
        };
        // Whoever is allowed by a policy carries its label.
        let other = if address == CLIENT { SERVER } else { CLIENT };
        let allowed_by = population.selecting(other).find(|one| population.is_allowing(*one));
        let group = allowed_by.filter(|_| is_measured(address)).map_or("none".into(), group);
        changes.push(pod(address, Some(THIS_NODE), &[("app", &app), ("group", &group)]));
    }
    for policy in 0..population.policies {
        let group = group(policy);
        changes.push(policy_object(policy, &app(population.selected(policy)), &group));
        for peer in 0..PEERS {
            let address = remote(policy * PEERS + peer);
            changes.push(pod(address, Some("elsewhere"), &[("group", &group)]));
        }
    }
    changes.extend(service());
    changes
}

fn app(pod: Ipv4Addr) -> String {
    format!("app{}", pod.octets()[3])
}

fn group(policy: u32) -> String {
    format!("g{policy}")
}

fn pod_name(address: Ipv4Addr) -> ObjectName {
    ObjectName::new(NAMESPACE, address.to_string())
}

fn pod(address: Ipv4Addr, node: Option<&str>, labels: &[(&str, &str)]) -> Change {
    Change::Pod(Pod {
        id: pod_name(address),
        uid: address.to_string().into(),
        labels: labels.iter().copied().collect(),
        node: node.map(Into::into),
        addresses: vec![IpAddr::V4(address)].into(),
        host_network: false,
        finished: false,
        running: true,
        ports: [].into(),
        annotations: None,
        created: 0,
    })
}

fn policy_object(number: u32, app: &str, group: &str) -> Change {
    let rule = Rule {
        peers: Peers::Only(
            [Peer::Pods {
                namespaces: NamespaceScope::Named(NAMESPACE.into()),
                pods: select("group", group),
            }]
            .into(),
        ),
        ports: Ports::Only(
            [Protocol::Tcp, Protocol::Udp]
                .map(|protocol| PortMatch {
                    protocol,
                    range: PortRange::Numbers(*PORTS.start(), *PORTS.end()),
                })
                .into(),
        ),
    };
    let rules = |_: Direction| Some(vec![rule.clone()]);
    Change::Policy(Policy {
        id: ObjectName::new(NAMESPACE, format!("policy-{number}")),
        pods: select("app", app),
        ingress: rules(Direction::Ingress),
        egress: rules(Direction::Egress),
    })
}

fn select(key: &str, value: &str) -> Selector {
    let operator = Operator::In(vec![value.into()]);
    Selector::new([Requirement { key: key.into(), operator }])
}

/// One like cluster DNS, with a backend elsewhere.
fn service() -> [Change; 2] {
    let (name, protocol, port) = ("dns", Protocol::Udp, 53);
    let id = ObjectName::new(NAMESPACE, name);
    [
        Change::Service(Service {
            id: id.clone(),
            cluster_ips: vec![IpAddr::V4(CLUSTER_IP)],
            external: Vec::new(),
            is_external_local: false,
            is_internal_local: false,
            ports: vec![ServicePort { name: "".into(), protocol, port, node_port: None }],
            proxy: Proxy::default(),
            created: 0,
        }),
        Change::EndpointSlice(EndpointSlice {
            id,
            service: name.into(),
            family: netpol_model::AddressFamily::V4,
            ports: vec![SlicePort { name: "".into(), protocol, port }],
            endpoints: vec![SliceEndpoint {
                address: IpAddr::V4(remote(0)),
                ready: true,
                serving: true,
            }],
            proxy: Proxy::default(),
        }),
    ]
}
