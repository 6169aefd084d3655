//! Puts a question to the kernel: makes the packet, runs the program at each hop, asks the agent
//! which policies allow it. Must never decide a verdict.

use std::net::IpAddr;
use std::path::Path;

use anyhow::{Result, bail};
use netpol_api::decision::Decision;
use netpol_common::layout::Reason;

use super::masquerade::{Masquerade, is_itself};
use super::party::{Directory, Kind, Party};
use super::service::{front, only_port, passage_of};
use super::{Answer, Backend, Elsewhere, Hop, Port, Protocol, Question, Side};
use crate::events;
use crate::frames::{frame, packet};
use crate::node::{Node, name};
use netpol_api::client;
use netpol_api::questions::{DecidingRule, Opening, Question as AgentQuestion};
use netpol_api::state::{DirectionView, EndpointView};
use netpol_datapath::Pins;
use netpol_datapath::run::Place;
use netpol_datapath::scratch::Scratch;
use netpol_model::Direction;

/// Any interface but "none": the packet came from elsewhere.
const LOOPBACK: u32 = 1;
/// Client ports, from the range that Linux gives out: each packet has another, so that none is
/// taken for a part of a flow that an earlier one opened.
const CLIENT_PORTS: std::ops::Range<u16> = 32_768..61_000;

/// Asks the kernel. One can answer many questions.
pub struct Tracer<'a> {
    pub(super) directory: Directory<'a>,
    pub(super) scratch: Scratch,
    client_ports: std::iter::Cycle<std::ops::Range<u16>>,
}

/// The packet of a question in one family.
#[derive(Debug, Clone, Copy)]
pub(super) struct Try {
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) protocol: Protocol,
    pub(super) port: u16,
}

impl Try {
    pub(super) fn protocol_number(&self) -> u8 {
        self.protocol.number(self.destination.is_ipv6())
    }
}

/// What a packet meets on its way.
#[derive(Debug, Default)]
pub(super) struct Route {
    pub(super) hops: Vec<Hop>,
    pub(super) elsewhere: Vec<Elsewhere>,
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
        let party = |text, port| self.directory.party(text, question.protocol, port);
        // The port is the destination's: at the sender's address it names no Service.
        let (from, to) =
            (party(&question.from, &Port::None)?, party(&question.to, &question.port)?);
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
            answer.notes.extend(other_family_note(&answer, other));
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
                    let passage = passage_of(service, to, from, front, &end);
                    return self.reach_service(from, to, front_packet, front, &passage);
                }
                None => {
                    let note = format!("{} has no {protocol} port {port} there", name_of(to));
                    (self.way(from, to, &packet, None)?, Vec::new(), vec![note])
                }
            },
            _ => (self.way(from, to, &packet, None)?, Vec::new(), Vec::new()),
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

    /// What a packet between two ends meets, of which the receiver sees the sender as `seen`.
    pub(super) fn way(
        &mut self,
        from: &Party,
        to: &Party,
        packet: &Try,
        seen: Option<&Masquerade>,
    ) -> Result<Route> {
        let mut way = Route::default();
        let elsewhere = |party: &Party, node: &String, direction: Direction| Elsewhere {
            node: node.clone(),
            endpoint: name_of(party),
            direction,
        };
        match &from.kind {
            Kind::Endpoint(endpoint) => way.hops.push(self.egress(endpoint, packet, false)?),
            Kind::Elsewhere { node } => {
                way.elsewhere.push(elsewhere(from, node, Direction::Egress));
            }
            Kind::ThisNode | Kind::Service(_) | Kind::Other => {}
        }
        let is_from_elsewhere = seen.is_some_and(|seen| seen.is_elsewhere);
        match &to.kind {
            // It does not leave the pod, or comes back to it with the pod's own stamp.
            Kind::Endpoint(_) if is_itself(from, to) && !is_from_elsewhere => {}
            Kind::Endpoint(endpoint) => {
                let ingress_ifindex = match &from.kind {
                    _ if is_from_elsewhere => LOOPBACK,
                    Kind::ThisNode => 0,
                    Kind::Endpoint(sender) => sender.ifindex,
                    Kind::Elsewhere { .. } | Kind::Service(_) | Kind::Other => LOOPBACK,
                };
                let place = Place { ifindex: endpoint.ifindex, ingress_ifindex };
                way.hops.push(self.ingress(endpoint, packet, place, seen)?);
            }
            Kind::Elsewhere { node } => {
                way.elsewhere.push(elsewhere(to, node, Direction::Ingress));
            }
            Kind::ThisNode | Kind::Service(_) | Kind::Other => {}
        }
        Ok(way)
    }

    pub(super) fn egress(
        &mut self,
        endpoint: &EndpointView,
        packet: &Try,
        to_service: bool,
    ) -> Result<Hop> {
        let place = Place { ifindex: endpoint.ifindex, ingress_ifindex: endpoint.ifindex };
        self.hop(endpoint, Direction::Egress, packet, place, to_service)
    }

    pub(super) fn hop(
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
            direction,
            verdict: is_allowed.into(),
            policies,
            isolated_by: view.policies().to_vec(),
            rules: Vec::new(),
            reason,
            code: None,
        };
        if !endpoint.ingress.is_judged() && !endpoint.egress.is_judged() {
            return Ok(told(true, Vec::new(), "no policy isolates it".to_owned()));
        }
        let (is_allowed, reason) = self.judge(direction, packet, place)?;
        if !is_allowed {
            let reason = reason.unwrap_or(Reason::Inconsistent);
            if !events::is_by_policy(reason) {
                let text = events::message(reason, &[], &[]);
                return Ok(Hop { code: Some(reason), ..told(false, Vec::new(), text) });
            }
            let policies = view.policies().to_vec();
            // What is said of a Service's address says nothing of its backends.
            let rules = match to_service {
                true => None,
                false => self.deciding(endpoint, direction, remote, packet),
            };
            let rules = rules.unwrap_or_default();
            let text = events::message(reason, &policies, &rules);
            return Ok(Hop { code: Some(reason), rules, ..told(false, policies, text) });
        }
        let is_from_node = direction == Direction::Ingress && place.ingress_ifindex == 0;
        Ok(if is_from_node {
            told(true, Vec::new(), "its own node always reaches a pod".to_owned())
        } else if !view.is_judged() {
            told(true, Vec::new(), format!("no policy isolates it for {direction}"))
        } else if direction == Direction::Egress && endpoint.ips.contains(&remote) {
            told(true, Vec::new(), "a pod always reaches itself".to_owned())
        } else if to_service {
            told(true, Vec::new(), String::new())
        } else {
            match self.deciding(endpoint, direction, remote, packet) {
                Some(rules) => {
                    let policies = allowing(&rules);
                    let reason = why_allowed(view, &rules, &policies);
                    Hop { rules, ..told(true, policies, reason) }
                }
                None => told_without_agent(told, view),
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

    /// The rules that decide, if an agent says.
    fn deciding(
        &self,
        endpoint: &EndpointView,
        direction: Direction,
        remote: IpAddr,
        tried: &Try,
    ) -> Option<Vec<DecidingRule>> {
        let opening = Opening {
            endpoint: endpoint.id,
            is_ingress: direction == Direction::Ingress,
            remote,
            protocol: tried.protocol.number(remote.is_ipv6()),
            port: tried.port,
        };
        let question = AgentQuestion::Deciding { openings: vec![opening] };
        // Without an answer the verdict is still the kernel's.
        let answers: Vec<Vec<DecidingRule>> =
            client::ask(self.directory.run_dir, &question).ok().flatten()?;
        answers.into_iter().next()
    }
}

/// The NetworkPolicies with a rule that allows it, each once.
fn allowing(rules: &[DecidingRule]) -> Vec<String> {
    let of_policies = rules.iter().filter(|rule| !rule.is_of_cluster() && rule.rule.is_some());
    let mut policies: Vec<String> = of_policies.map(|rule| rule.policy.clone()).collect();
    policies.dedup();
    policies
}

/// Why the kernel allows what these rules decide on.
fn why_allowed(view: &DirectionView, rules: &[DecidingRule], policies: &[String]) -> String {
    let decides = rules.iter().find(|rule| rule.is_of_cluster() && !rule.is_pass());
    match (decides, policies) {
        (Some(rule), _) if rule.action == "Accept" => format!("accepted by {}", rule.describe()),
        (Some(_), _) => CHANGING.to_owned(),
        (None, []) if view.isolated => CHANGING.to_owned(),
        (None, []) => match rules.last() {
            Some(rule) => format!("passed on by {}, and nothing denies it", rule.describe()),
            None => "no rule of any ClusterNetworkPolicy matches it".to_owned(),
        },
        (None, policies) => format!("allowed by {}", crate::policies::named(policies)),
    }
}

/// Only of several policies it is unknown which one allows something.
fn told_without_agent(
    told: impl Fn(bool, Vec<String>, String) -> Hop,
    view: &DirectionView,
) -> Hop {
    let of_cluster = view.cluster_policies().map(|rule| rule.policy.clone());
    let all: Vec<String> = view.policies().iter().cloned().chain(of_cluster).collect();
    match (view.policies(), all.as_slice()) {
        ([policy], [_]) => told(true, vec![policy.clone()], format!("allowed by {policy}")),
        (_, several) => {
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
fn other_family_note(answer: &Answer, other: Result<Answer>) -> Option<String> {
    let other = other.ok().filter(|other| other.verdict != answer.verdict)?;
    let (family, how) = match other.to.ip.is_some_and(|ip| ip.is_ipv6()) {
        true => ("IPv6", "with"),
        false => ("IPv4", "without"),
    };
    let word = if other.verdict.is_allow() { "allowed" } else { "denied" };
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

pub(super) fn assemble(
    from: &Party,
    to: &Party,
    packet: &Try,
    way: Route,
    backends: Vec<Backend>,
    notes: Vec<String>,
) -> Answer {
    let hops = way.hops.iter().map(|hop| hop.verdict);
    let all = hops.chain(backends.iter().map(|backend| backend.verdict));
    let port = (packet.protocol != Protocol::Icmp).then_some(packet.port);
    Answer {
        verdict: Decision::of_all(all),
        from: side(from, packet.source, None),
        to: side(to, packet.destination, port),
        protocol: packet.protocol.to_string(),
        hops: way.hops,
        backends,
        elsewhere: way.elsewhere,
        notes,
    }
}

pub(super) fn side(party: &Party, ip: IpAddr, port: Option<u16>) -> Side {
    let ip = Some(ip).filter(|ip| party.ips.contains(ip));
    Side { name: party.name.clone(), ip, port }
}

pub(super) fn name_of(party: &Party) -> String {
    let address = || party.ips.first().map_or_else(String::new, ToString::to_string);
    party.name.clone().unwrap_or_else(address)
}
