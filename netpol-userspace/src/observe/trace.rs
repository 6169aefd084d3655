//! "Would this packet pass?", answered by the kernel's own program: the programs of this build
//! are loaded once more, onto the node's pinned policy maps but onto flow tables, counters and
//! events of their own, and run on a packet made for the purpose. Which policies allow what the
//! program allows is asked of the running agent. Must never re-implement a verdict, and leaves
//! nothing behind.

mod party;

use std::fmt;
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Result, bail};
use netpol_common::layout::Reason;
use serde::Serialize;

use self::party::{Directory, Kind, Party};
use super::client;
use super::events;
use super::node::{Node, name};
use crate::agent::questions::{BackendInfo, End, FrontInfo, Owner, Question as AgentQuestion};
use crate::agent::state::EndpointView;
use crate::datapath::Pins;
use crate::datapath::run::Place;
use crate::datapath::scratch::Scratch;
use crate::frames::{Transport, frame, packet};
use crate::model::Direction;

/// A question.
#[derive(Debug, Clone)]
pub struct Question {
    /// Who opens the connection: `namespace/pod`, an address, or `node`.
    pub from: String,
    /// To whom: likewise, or `service/namespace/name`.
    pub to: String,
    /// What the first packet is.
    pub protocol: Protocol,
    /// Where it goes there.
    pub port: Port,
    /// IPv6, where both ends have both families.
    pub is_v6: bool,
}

/// Protocols that can be asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Protocol {
    /// A SYN
    Tcp,
    /// A datagram
    Udp,
    /// An INIT
    Sctp,
    /// An echo request
    Icmp,
}

impl Protocol {
    fn number(self, is_v6: bool) -> u8 {
        match self {
            Self::Tcp => super::protocol::TCP,
            Self::Udp => super::protocol::UDP,
            Self::Sctp => super::protocol::SCTP,
            Self::Icmp if is_v6 => super::protocol::ICMPV6,
            Self::Icmp => super::protocol::ICMP,
        }
    }

    fn transport(self, source: u16, destination: u16, is_v6: bool) -> Transport {
        match self {
            Self::Tcp => Transport::Tcp { source, destination, flags: netpol_common::packet::SYN },
            Self::Udp => Transport::Udp { source, destination },
            Self::Sctp => Transport::Sctp { source, destination, chunk: 1 },
            Self::Icmp => {
                let [high, low] = source.to_be_bytes();
                let body = vec![high, low, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0];
                Transport::Icmp { kind: if is_v6 { 128 } else { 8 }, code: 0, body }
            }
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
            Self::Icmp => "ICMP",
        })
    }
}

/// A destination port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Port {
    /// None was given.
    None,
    /// By number.
    Number(u16),
    /// As the destination pod, or the Service, declares it.
    Name(String),
}

/// The answer: every hop on this node that judges the packet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Answer {
    /// `allow` if every hop allows it, to whichever backend it goes.
    pub verdict: &'static str,
    /// Who opens the connection.
    pub from: Side,
    /// To whom.
    pub to: Side,
    /// Such as `TCP`.
    pub protocol: String,
    /// Egress of the sender, then ingress of the receiver, as far as they are pods of this node.
    pub hops: Vec<Hop>,
    /// For a Service: each place where the packet may end up.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub backends: Vec<Backend>,
    /// What other nodes judge.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub elsewhere: Vec<Elsewhere>,
    /// What else a person should know.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// One end of the packet that was tried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Side {
    /// `namespace/pod`, `service namespace/name`, `node NAME`; `null` if nobody is known there.
    pub name: Option<String>,
    /// Its address; `null` for a node whose addresses are not known.
    pub ip: Option<IpAddr>,
    /// The port; `null` for the sender, whose does not matter, and for ICMP.
    pub port: Option<u16>,
}

/// One endpoint's verdict.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Hop {
    /// `namespace/pod`.
    pub endpoint: String,
    /// `ingress` or `egress`, the endpoint's view.
    pub direction: &'static str,
    /// `allow` or `deny`.
    pub verdict: &'static str,
    /// The policies that allow it, all of them; or, if no policy does, those that isolate the
    /// endpoint in this direction.
    pub policies: Vec<String>,
    /// The policies that isolate the endpoint in this direction.
    pub isolated_by: Vec<String>,
    /// Why, in words.
    pub reason: String,
    /// The word for why it is dropped, as in metrics and `netpol monitor`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<&'static str>,
}

/// A place where packets to a Service may end up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Backend {
    /// `allow` or `deny`.
    pub verdict: &'static str,
    /// Whose it is.
    #[serde(flatten)]
    pub side: Side,
    /// As of an [`Answer`], for packets that go here.
    pub hops: Vec<Hop>,
}

/// A hop that this node does not judge.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Elsewhere {
    /// The node that does.
    pub node: String,
    /// `namespace/pod`.
    pub endpoint: String,
    /// `ingress` or `egress`.
    pub direction: &'static str,
}

const ALLOW: &str = "allow";
const DENY: &str = "deny";
/// Any interface but "none": the packet came from elsewhere.
const LOOPBACK: u32 = 1;
/// Client ports, from the range that Linux gives out: each packet has another, so that none is
/// taken for a part of a flow that an earlier one opened.
const CLIENT_PORTS: std::ops::Range<u16> = 32_768..61_000;

/// Asks the kernel. One can answer many questions.
pub struct Tracer<'a> {
    directory: Directory<'a>,
    scratch: Scratch,
    client_ports: std::iter::Cycle<std::ops::Range<u16>>,
}

/// The packet of a question in one family.
#[derive(Debug, Clone, Copy)]
struct Try {
    source: IpAddr,
    destination: IpAddr,
    protocol: Protocol,
    port: u16,
}

/// What a packet meets on its way.
#[derive(Debug, Default)]
struct Way {
    hops: Vec<Hop>,
    elsewhere: Vec<Elsewhere>,
}

impl<'a> Tracer<'a> {
    /// For questions about this node, whose agent is at `run_dir` if it runs.
    pub fn new(node: &'a Node, run_dir: &'a Path, pins: &Pins) -> Result<Self> {
        let scratch = Scratch::load(pins)?;
        let client_ports = CLIENT_PORTS.cycle();
        Ok(Self { directory: Directory { node, run_dir }, scratch, client_ports })
    }

    /// At least one end must be a pod of this node.
    pub fn ask(&mut self, question: &Question) -> Result<Answer> {
        let party = |text| self.directory.party(text, question.protocol, &question.port);
        let (from, to) = (party(&question.from)?, party(&question.to)?);
        if let Kind::Service(_) = from.kind {
            bail!("{} opens no connections: ask --from one of its pods", question.from);
        }
        let pair = |is_v6| Some((from.source(is_v6)?, to.address(is_v6)?));
        let first = if question.is_v6 { pair(true) } else { pair(false).or(pair(true)) };
        let Some((source, destination)) = first else { return Err(no_common_family(&from, &to)) };
        let mut answer = self.answer(question, &from, &to, source, destination)?;
        let is_v6 = source.is_ipv6();
        if let Some((source, destination)) = pair(!is_v6) {
            let other = self.answer(question, &from, &to, source, destination);
            answer.notes.extend(note_on_other_family(&answer, other));
        }
        Ok(answer)
    }

    fn answer(
        &mut self,
        question: &Question,
        from: &Party,
        to: &Party,
        source: IpAddr,
        destination: IpAddr,
    ) -> Result<Answer> {
        let protocol = question.protocol;
        let port = match &to.kind {
            Kind::Service(_) if question.port == Port::None => only_port(to, protocol)?,
            _ => to.port(protocol, &question.port)?,
        };
        let packet = Try { source, destination, protocol, port };
        let (way, backends, mut notes) = match &to.kind {
            Kind::Service(service) => match front(&service.fronts, to, &packet) {
                Some((end, front)) => {
                    let front_packet = Try { destination: end.ip, port: end.port, ..packet };
                    return self.to_service(from, to, front_packet, front);
                }
                None => {
                    let note = format!("{} has no {protocol} port {port} there", name_of(to));
                    (self.way(from, to, &packet)?, Vec::new(), vec![note])
                }
            },
            _ => (self.way(from, to, &packet)?, Vec::new(), Vec::new()),
        };
        if way.hops.is_empty() {
            bail!(
                "neither {} nor {} is a pod of this node: ask on the node of one of them",
                name_of(from),
                name_of(to)
            );
        }
        notes.extend(inconsistency(&way.hops));
        Ok(assemble(from, to, &packet, way, backends, notes))
    }

    fn to_service(
        &mut self,
        from: &Party,
        to: &Party,
        packet: Try,
        front: &FrontInfo,
    ) -> Result<Answer> {
        let mut way = Way::default();
        if let Kind::Endpoint(endpoint) = &from.kind {
            way.hops.push(self.egress(endpoint, &packet, true)?);
        }
        let mut backends = Vec::new();
        for backend in &front.backends {
            let party = self.backend_party(backend);
            let packet = Try { destination: backend.ip, port: backend.port, ..packet };
            let mut one = self.way(from, &party, &packet)?;
            way.elsewhere.append(&mut one.elsewhere);
            let side = side(&party, backend.ip, Some(backend.port));
            backends.push(Backend { verdict: verdict(&one.hops), side, hops: one.hops });
        }
        if way.hops.is_empty() && backends.iter().all(|backend| backend.hops.is_empty()) {
            bail!(
                "neither {} nor a backend of {} is a pod of this node: ask on the node of one",
                name_of(from),
                name_of(to)
            );
        }
        way.elsewhere.sort();
        way.elsewhere.dedup();
        for hop in &mut way.hops {
            summarise(hop, &backends);
        }
        let none = format!("{} has no ready backend: nobody answers there", name_of(to));
        let notes = if backends.is_empty() { vec![none] } else { Vec::new() };
        Ok(assemble(from, to, &packet, way, backends, notes))
    }

    fn backend_party(&self, backend: &BackendInfo) -> Party {
        let Owner { pod, node, .. } = backend.owner.clone();
        let own_node = &self.directory.node.state.node;
        let local = pod.as_ref().and_then(|pod| self.directory.node.endpoint(pod).ok());
        let kind = match (local, &pod, node.clone()) {
            (Some(endpoint), ..) => Kind::Endpoint(Box::new(endpoint.clone())),
            (None, Some(_), Some(node)) => Kind::Elsewhere { node },
            (None, None, Some(node)) if node == *own_node => Kind::ThisNode,
            _ => Kind::Other,
        };
        let name = pod.or(node.map(|node| format!("node {node}")));
        Party { name, ips: vec![backend.ip], kind, ports: Vec::new(), are_ports_known: true }
    }

    /// What a packet between two ends meets.
    fn way(&mut self, from: &Party, to: &Party, packet: &Try) -> Result<Way> {
        let mut way = Way::default();
        let elsewhere = |party: &Party, node: &String, direction: Direction| Elsewhere {
            node: node.clone(),
            endpoint: name_of(party),
            direction: direction.as_str(),
        };
        match &from.kind {
            Kind::Endpoint(endpoint) => way.hops.push(self.egress(endpoint, packet, false)?),
            Kind::Elsewhere { node } => {
                way.elsewhere.push(elsewhere(from, node, Direction::Egress));
            }
            Kind::ThisNode | Kind::Service(_) | Kind::Other => {}
        }
        match &to.kind {
            Kind::Endpoint(endpoint) => {
                let ingress_ifindex = match &from.kind {
                    Kind::ThisNode => 0,
                    Kind::Endpoint(sender) => sender.ifindex,
                    Kind::Elsewhere { .. } | Kind::Service(_) | Kind::Other => LOOPBACK,
                };
                let place = Place { ifindex: endpoint.ifindex, ingress_ifindex };
                way.hops.push(self.hop(endpoint, Direction::Ingress, packet, place, false)?);
            }
            Kind::Elsewhere { node } => {
                way.elsewhere.push(elsewhere(to, node, Direction::Ingress));
            }
            Kind::ThisNode | Kind::Service(_) | Kind::Other => {}
        }
        Ok(way)
    }

    fn egress(&mut self, endpoint: &EndpointView, packet: &Try, to_service: bool) -> Result<Hop> {
        let place = Place { ifindex: endpoint.ifindex, ingress_ifindex: endpoint.ifindex };
        self.hop(endpoint, Direction::Egress, packet, place, to_service)
    }

    fn hop(
        &mut self,
        endpoint: &EndpointView,
        direction: Direction,
        packet: &Try,
        place: Place,
        to_service: bool,
    ) -> Result<Hop> {
        let (view, remote) = match direction {
            Direction::Ingress => (&endpoint.ingress, packet.source),
            Direction::Egress => (&endpoint.egress, packet.destination),
        };
        let told = |is_allowed: bool, policies: Vec<String>, reason: String| Hop {
            endpoint: name(endpoint),
            direction: direction.as_str(),
            verdict: if is_allowed { ALLOW } else { DENY },
            policies,
            isolated_by: view.policies.clone(),
            reason,
            code: None,
        };
        if !endpoint.ingress.isolated && !endpoint.egress.isolated {
            return Ok(told(true, Vec::new(), "no policy isolates it".to_owned()));
        }
        let (is_allowed, reason) = self.judge(direction, packet, place)?;
        if !is_allowed {
            let reason = reason.unwrap_or(Reason::Inconsistent);
            let policies =
                if events::is_by_policy(reason) { view.policies.clone() } else { Vec::new() };
            let text = events::message(reason, &policies);
            return Ok(Hop { code: Some(reason.as_str()), ..told(false, policies, text) });
        }
        let is_from_node = direction == Direction::Ingress && place.ingress_ifindex == 0;
        Ok(if is_from_node {
            told(true, Vec::new(), "its own node always reaches a pod".to_owned())
        } else if !view.isolated {
            told(true, Vec::new(), format!("no policy isolates it for {direction}"))
        } else if endpoint.ips.contains(&remote) {
            told(true, Vec::new(), "a pod always reaches itself".to_owned())
        } else if to_service {
            told(true, Vec::new(), String::new())
        } else {
            match self.allowing(endpoint, direction, remote, packet) {
                Some(policies) if policies.is_empty() => told(true, policies, CHANGING.to_owned()),
                Some(policies) => {
                    let reason = format!("allowed by {}", policies.join(", "));
                    told(true, policies, reason)
                }
                None => told_without_agent(told, &view.policies),
            }
        })
    }

    fn judge(
        &mut self,
        direction: Direction,
        tried: &Try,
        place: Place,
    ) -> Result<(bool, Option<Reason>)> {
        let client_port = self.client_ports.next().unwrap_or(CLIENT_PORTS.start);
        let is_v6 = tried.source.is_ipv6();
        let transport = tried.protocol.transport(client_port, tried.port, is_v6);
        let bytes = frame(&packet(tried.source, tried.destination, &transport));
        Ok(self.scratch.judge(direction, &bytes, place)?)
    }

    /// The policies that allow it, if an agent says.
    fn allowing(
        &self,
        endpoint: &EndpointView,
        direction: Direction,
        remote: IpAddr,
        tried: &Try,
    ) -> Option<Vec<String>> {
        let question = AgentQuestion::Allowing {
            endpoint: endpoint.id,
            is_ingress: direction == Direction::Ingress,
            remote,
            protocol: tried.protocol.number(remote.is_ipv6()),
            port: tried.port,
        };
        // Without an answer the verdict is still the kernel's.
        client::ask(self.directory.run_dir, &question).ok().flatten()
    }
}

/// Only of several policies it is unknown which one allows something.
fn told_without_agent(
    told: impl Fn(bool, Vec<String>, String) -> Hop,
    isolating: &[String],
) -> Hop {
    match isolating {
        [policy] => told(true, vec![policy.clone()], format!("allowed by {policy}")),
        several => {
            let which = several.join(", ");
            let reason = format!("allowed by one of {which} (which one a running agent knows)");
            told(true, Vec::new(), reason)
        }
    }
}

/// In place of policies.
const CHANGING: &str = "allowed";

fn no_common_family(from: &Party, to: &Party) -> anyhow::Error {
    if matches!(to.kind, Kind::ThisNode) && to.ips.is_empty() {
        return anyhow::anyhow!(
            "the addresses of this node are not known (no Node object, or no agent): give the one \
             that is meant"
        );
    }
    anyhow::anyhow!("{} and {} have no address of one family in common", name_of(from), name_of(to))
}

/// Said if the other family has another answer.
fn note_on_other_family(answer: &Answer, other: Result<Answer>) -> Option<String> {
    let other = other.ok().filter(|other| other.verdict != answer.verdict)?;
    let (family, how) = match other.to.ip.is_some_and(|ip| ip.is_ipv6()) {
        true => ("IPv6", "with"),
        false => ("IPv4", "without"),
    };
    let word = if other.verdict == ALLOW { "allowed" } else { "denied" };
    Some(format!("by {family} it is {word}: ask {how} --ipv6"))
}

/// Said if the agent and the kernel are not of one mind.
fn inconsistency(hops: &[Hop]) -> Option<String> {
    let hop = hops.iter().find(|hop| hop.reason == CHANGING)?;
    Some(format!(
        "the kernel allows {} of {}, but the agent knows no policy that does: policies are \
         changing, ask again",
        hop.direction, hop.endpoint
    ))
}

/// The port of a Service that has only one of the protocol.
fn only_port(to: &Party, protocol: Protocol) -> Result<u16> {
    let Kind::Service(service) = &to.kind else { return to.port(protocol, &Port::None) };
    let number = protocol.number(false);
    let ends = service.fronts.iter().flat_map(|front| &front.own);
    let mut ports: Vec<u16> =
        ends.filter(|end| end.protocol == number).map(|end| end.port).collect();
    ports.sort_unstable();
    ports.dedup();
    match ports[..] {
        [port] => Ok(port),
        [] => bail!("{} has no {protocol} port", name_of(to)),
        _ => bail!("which port of {}? add --port N, one of {ports:?}", name_of(to)),
    }
}

/// Where a packet to a Service arrives, and what stands behind it.
fn front<'a>(fronts: &'a [FrontInfo], to: &Party, packet: &Try) -> Option<(End, &'a FrontInfo)> {
    let number = packet.protocol.number(false);
    fronts.iter().find_map(|front| {
        let end = front.own.iter().chain(&front.on_nodes).find(|end| {
            end.protocol == number
                && end.port == packet.port
                && end.ip.is_ipv6() == packet.destination.is_ipv6()
                && to.ips.contains(&end.ip)
        })?;
        Some((*end, front))
    })
}

/// What a hop to a Service says once the backends are known.
fn summarise(hop: &mut Hop, backends: &[Backend]) {
    if hop.verdict == DENY || !hop.reason.is_empty() {
        return;
    }
    let egress = || {
        let hops = backends.iter().flat_map(|backend| &backend.hops);
        hops.filter(|hop| hop.direction == Direction::Egress.as_str())
    };
    let mut policies: Vec<String> =
        egress().filter(|hop| hop.verdict == ALLOW).flat_map(|hop| hop.policies.clone()).collect();
    policies.sort();
    policies.dedup();
    hop.policies = policies;
    let n_denied = egress().filter(|hop| hop.verdict == DENY).count();
    hop.reason = match n_denied {
        0 => "every backend is allowed".to_owned(),
        _ => format!("{n_denied} of {} backends will be denied", backends.len()),
    };
}

fn assemble(
    from: &Party,
    to: &Party,
    packet: &Try,
    way: Way,
    backends: Vec<Backend>,
    notes: Vec<String>,
) -> Answer {
    let is_reached = backends.iter().all(|backend| backend.verdict == ALLOW);
    let is_allowed = verdict(&way.hops) == ALLOW && is_reached;
    let port = (packet.protocol != Protocol::Icmp).then_some(packet.port);
    Answer {
        verdict: if is_allowed { ALLOW } else { DENY },
        from: side(from, packet.source, None),
        to: side(to, packet.destination, port),
        protocol: packet.protocol.to_string(),
        hops: way.hops,
        backends,
        elsewhere: way.elsewhere,
        notes,
    }
}

fn verdict(hops: &[Hop]) -> &'static str {
    if hops.iter().all(|hop| hop.verdict == ALLOW) { ALLOW } else { DENY }
}

fn side(party: &Party, ip: IpAddr, port: Option<u16>) -> Side {
    let ip = Some(ip).filter(|ip| party.ips.contains(ip));
    Side { name: party.name.clone(), ip, port }
}

fn name_of(party: &Party) -> String {
    let address = || party.ips.first().map_or_else(String::new, ToString::to_string);
    party.name.clone().unwrap_or_else(address)
}
