//! Who the two ends of a question are: pods of this node from the state file, everybody else from
//! the running agent.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use anyhow::{Result, bail};

use super::{Port, Protocol};
use crate::node::{self, Node};
use netpol_api::client;
use netpol_api::questions::{End, NamedPort, Owner, PodInfo, Question, ServiceInfo};
use netpol_api::state::EndpointView;

/// One end of a question.
#[derive(Debug, Clone)]
pub(crate) struct Party {
    /// `namespace/pod`, `service namespace/name`, `node NAME`; an address of nobody has none.
    pub name: Option<String>,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    /// What it is to this node.
    pub kind: Kind,
    /// The node that it is, is on, or has its network from; of a Service the one whose address was
    /// given.
    pub node: Option<String>,
    /// Its named ports.
    pub ports: Vec<NamedPort>,
    /// Whether those are all; else nobody could say.
    pub are_ports_known: bool,
}

/// What an end is to this node.
#[derive(Debug, Clone)]
pub enum Kind {
    /// A pod here, which may be isolated.
    Endpoint(Box<EndpointView>),
    /// This node itself.
    ThisNode,
    /// A pod that another node judges.
    Elsewhere {
        /// That node.
        node: String,
    },
    /// A Service, at one of its addresses or at any.
    Service(Box<ServiceInfo>),
    /// Anything else: no policy is about it.
    Other,
}

/// Where to look names up.
pub struct Directory<'a> {
    /// This node's state.
    pub node: &'a Node,
    /// Where the agent's socket is.
    pub run_dir: &'a Path,
}

impl Directory<'_> {
    /// Who is meant by `text`, towards which a connection of this kind goes.
    pub fn party(&self, text: &str, protocol: Protocol, port: &Port) -> Result<Party> {
        if text == "node" {
            return self.this_node();
        }
        if let Some(name) = service_name(text) {
            return self.service(name);
        }
        if let Ok(endpoint) = self.node.endpoint(text) {
            return self.endpoint(endpoint);
        }
        match text.parse() {
            Ok(address) => self.address(address, protocol, port),
            Err(_) => self.pod(text),
        }
    }

    fn endpoint(&self, endpoint: &EndpointView) -> Result<Party> {
        let name = node::name(endpoint);
        let question = Question::Pod { name: name.clone() };
        let pod = client::ask::<Option<PodInfo>>(self.run_dir, &question)?;
        Ok(Party {
            name: Some(name),
            ips: endpoint.ips.clone(),
            kind: Kind::Endpoint(Box::new(endpoint.clone())),
            node: Some(self.node.state.node.clone()),
            are_ports_known: pod.is_some(),
            ports: pod.flatten().map(|pod| pod.ports).unwrap_or_default(),
        })
    }

    fn this_node(&self) -> Result<Party> {
        let name = &self.node.state.node;
        let ips = client::ask(self.run_dir, &Question::Node { name: name.clone() })?;
        Ok(Party {
            name: Some(format!("node {name}")),
            ips: ips.unwrap_or_default(),
            kind: Kind::ThisNode,
            node: Some(name.clone()),
            ports: Vec::new(),
            are_ports_known: true,
        })
    }

    fn service(&self, name: &str) -> Result<Party> {
        let question = Question::Service { name: name.to_owned() };
        let Some(answer) = client::ask::<Option<ServiceInfo>>(self.run_dir, &question)? else {
            bail!("cannot find service {name}: {AGENT_DOWN} (Services)");
        };
        let Some(service) = answer else {
            bail!(
                "no service {name} with addresses that this node's proxy handles: `netpol services` \
                 lists those there are (for a headless one ask about its pods, for one of another \
                 proxy about its address)"
            );
        };
        let ips = service.fronts.iter().flat_map(|front| &front.own).map(|end| end.ip).collect();
        Ok(Party {
            name: Some(format!("service {name}")),
            ips,
            ports: service.ports.clone(),
            are_ports_known: true,
            kind: Kind::Service(Box::new(service)),
            node: None,
        })
    }

    fn address(&self, ip: IpAddr, protocol: Protocol, port: &Port) -> Result<Party> {
        let number = if let Port::Number(number) = port { *number } else { 0 };
        let end = End { ip, protocol: protocol.number(ip.is_ipv6()), port: number };
        let ends = Question::Ends { ends: vec![end] };
        let owner = client::ask::<Vec<Owner>>(self.run_dir, &ends)?
            .and_then(|mut owners| owners.pop())
            .unwrap_or_default();
        let party = |node: Option<String>, kind| Party {
            name: node.as_ref().map(|node| format!("node {node}")),
            ips: vec![ip],
            kind,
            node,
            ports: Vec::new(),
            are_ports_known: true,
        };
        match owner {
            Owner { pod: Some(name), .. } => Ok(Party { ips: vec![ip], ..self.pod(&name)? }),
            Owner { service: Some(name), node, .. } => {
                Ok(Party { ips: vec![ip], node, ..self.service(&name)? })
            }
            Owner { node, .. } if node.as_ref() == Some(&self.node.state.node) => {
                Ok(party(node, Kind::ThisNode))
            }
            Owner { node, .. } => Ok(party(node, Kind::Other)),
        }
    }

    fn pod(&self, name: &str) -> Result<Party> {
        // The error names the pods of this node if there are several of that name.
        let not_here = self.node.endpoint(name).err();
        if !name.contains('/') {
            return Err(not_here.unwrap_or_else(|| anyhow::anyhow!("no endpoint {name}")));
        }
        let question = Question::Pod { name: name.to_owned() };
        let Some(answer) = client::ask::<Option<PodInfo>>(self.run_dir, &question)? else {
            bail!("pod {name} is not on this node, and {AGENT_DOWN} (pods of other nodes)");
        };
        let Some(pod) = answer else {
            bail!("no pod {name}, neither on this node nor elsewhere in the cluster");
        };
        let is_here = pod.node.as_deref() == Some(&*self.node.state.node);
        let node = pod.node.clone();
        let kind = match pod.node {
            _ if pod.finished => bail!("pod {name} has ended: its address may be another's now"),
            _ if pod.host_network && is_here => Kind::ThisNode,
            _ if pod.host_network => Kind::Other,
            _ if is_here => bail!(
                "pod {name} is to run on this node, but has no interface here yet: see \
                 `netpol status`"
            ),
            Some(node) => Kind::Elsewhere { node },
            None => bail!("pod {name} has no node yet"),
        };
        if pod.ips.is_empty() {
            bail!("pod {name} has no address yet");
        }
        Ok(Party {
            name: Some(name.to_owned()),
            ips: pod.ips,
            kind,
            node,
            ports: pod.ports,
            are_ports_known: true,
        })
    }
}

/// What to do about a name that the state file does not have.
const AGENT_DOWN: &str = "the agent, which knows the rest of the cluster, does not run: give an \
                          address instead, or start it";

/// The `namespace/name` of `service/namespace/name` or `svc/namespace/name`.
fn service_name(text: &str) -> Option<&str> {
    let name = text.strip_prefix("service/").or_else(|| text.strip_prefix("svc/"))?;
    name.contains('/').then_some(name)
}

/// An address that nobody has.
pub(super) fn any_address(is_v6: bool) -> IpAddr {
    match is_v6 {
        true => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(),
        false => Ipv4Addr::new(192, 0, 2, 1).into(),
    }
}

impl Party {
    /// Its address of a family.
    pub fn address(&self, is_v6: bool) -> Option<IpAddr> {
        self.ips.iter().copied().find(|address| address.is_ipv6() == is_v6)
    }

    /// Likewise as the source of a packet: which of its addresses the node itself uses makes no
    /// difference to a verdict, so any will do where none is known.
    pub fn source(&self, is_v6: bool) -> Option<IpAddr> {
        match self.kind {
            Kind::ThisNode => self.address(is_v6).or(Some(any_address(is_v6))),
            _ => self.address(is_v6),
        }
    }

    /// The port that is meant.
    pub fn port(&self, protocol: Protocol, port: &Port) -> Result<u16> {
        let name = self.name.as_deref().unwrap_or("an address of nobody");
        let number = protocol.number(false);
        let declared = || self.ports.iter().filter(|port| port.protocol == number);
        match port {
            Port::Number(number) => Ok(*number),
            Port::None if protocol == Protocol::Icmp => Ok(0),
            Port::None => bail!("which port? add --port N, or --protocol icmp"),
            Port::Name(wanted) => {
                let mut numbers: Vec<u16> =
                    declared().filter(|port| port.name == *wanted).map(|port| port.port).collect();
                numbers.dedup();
                match numbers[..] {
                    [number] => Ok(number),
                    [] if self.ports.is_empty() && !self.are_ports_known => bail!(
                        "which port {wanted:?} is on {name} is not known: {AGENT_DOWN}, or a number"
                    ),
                    [] => {
                        let known: Vec<&str> = declared().map(|port| &*port.name).collect();
                        bail!(
                            "{name} declares no {protocol} port named {wanted:?} (known here: \
                             {}): give a number",
                            if known.is_empty() { "none".to_owned() } else { known.join(", ") }
                        )
                    }
                    _ => bail!("{name} declares {wanted:?} as {numbers:?}: give the number"),
                }
            }
        }
    }
}
