//! Which frames may pass and which must, by what another parser reads in them and by the slow
//! evaluator. It is told which frames passed, because these make flows. Must never be cleverer
//! than the documentation.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::Pod;
use netpol_userspace::model::Direction;
use netpol_userspace::reference::Reference;
use rustc_hash::{FxHashMap, FxHashSet};

use super::headers::{self, Headers, Meaning, Part, Quoted, Transport};

/// Why a frame may pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Permit {
    /// ARP, neighbour discovery, multicast listener discovery.
    Neighbourly,
    /// This node made it.
    OwnNode,
    /// No policy isolates the pod in this direction.
    NotIsolated,
    /// The policies allow it.
    Policy,
    /// It belongs to a flow that was allowed in the direction in which it was opened.
    KnownFlow,
    /// It is about such a flow.
    Related,
}

/// What is to be said of a frame before it is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Judgement {
    /// `None`: it must not pass.
    pub permit: Option<Permit>,
    /// It has to pass.
    pub must_pass: bool,
    /// The flow that it opens if it passes, and who opens it.
    opens: Option<(Flow, Opener)>,
}

/// Who sent a packet, or the first one of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Opener {
    Pod,
    Remote,
    Node,
}

impl Opener {
    const ALL: [Self; 3] = [Self::Pod, Self::Remote, Self::Node];
}

/// Local and remote address and port, and the protocol.
type Flow = (IpAddr, u16, IpAddr, u16, u8);
type Datagram = (Direction, IpAddr, IpAddr, u32, Option<u8>);

/// One pod.
pub struct Oracle {
    reference: Reference,
    pod: Pod,
    own: Vec<IpAddr>,
    isolated: [bool; 2],
    /// Flows that were opened and allowed, perhaps by both ends.
    flows: FxHashSet<(Flow, Opener)>,
    /// What first fragments said: protocol, local and remote port.
    datagrams: FxHashMap<Datagram, (u8, u16, u16)>,
    answers: FxHashMap<(Direction, IpAddr, u8, u16), bool>,
}

/// A protocol that no rule with ports matches.
const NO_PORTS: u8 = 255;
const MAX_ANSWERS: usize = 100_000;

impl Oracle {
    pub fn new(reference: &Reference, pod: &Pod, own: &[IpAddr]) -> Self {
        Self {
            isolated: Direction::BOTH.map(|direction| reference.isolated(direction, pod)),
            reference: reference.clone(),
            pod: pod.clone(),
            own: own.to_vec(),
            flows: FxHashSet::default(),
            datagrams: FxHashMap::default(),
            answers: FxHashMap::default(),
        }
    }

    pub fn judge(&mut self, direction: Direction, is_from_node: bool, frame: &[u8]) -> Judgement {
        let nothing = Judgement { permit: None, must_pass: false, opens: None };
        match headers::read(frame) {
            Meaning::Arp => {
                Judgement { permit: Some(Permit::Neighbourly), must_pass: true, opens: None }
            }
            Meaning::Garbage(source) => {
                let is_spoofed = direction == Direction::Egress
                    && source.is_some_and(|source| !self.own.contains(&source));
                let passes = !self.isolates(direction) && !is_spoofed;
                Judgement { permit: passes.then_some(Permit::NotIsolated), ..nothing }
            }
            Meaning::Ip(headers) => self.judge_ip(direction, is_from_node, &headers),
        }
    }

    /// The frame that was judged last passed.
    pub fn note_passed(&mut self, judgement: &Judgement) {
        self.flows.extend(judgement.opens);
    }

    fn isolates(&self, direction: Direction) -> bool {
        let [ingress, egress] = self.isolated;
        if direction == Direction::Ingress { ingress } else { egress }
    }

    fn judge_ip(
        &mut self,
        direction: Direction,
        is_from_node: bool,
        headers: &Headers,
    ) -> Judgement {
        let alone = |permit, must_pass| Judgement { permit, must_pass, opens: None };
        if let Some(permit) = self.neighbourly(direction, headers) {
            return alone(permit, permit.is_some() && headers.is_plain);
        }
        let (local, remote) = match direction {
            Direction::Ingress => (headers.destination, headers.source),
            Direction::Egress => (headers.source, headers.destination),
        };
        let is_spoofed = direction == Direction::Egress && !self.own.contains(&local);
        match self.flow(direction, local, remote, headers) {
            Some((flow, opens, answers)) => {
                self.judge_flow(direction, is_from_node, is_spoofed, headers, flow, opens, answers)
            }
            None if is_spoofed => alone(None, false),
            None => {
                let permit = self.without_flow(direction, is_from_node, remote, headers);
                let must_pass = permit.is_some_and(|p| p != Permit::Related) && headers.is_plain;
                alone(permit, must_pass)
            }
        }
    }

    /// The flow of a packet, and whether it can only open or only answer one.
    fn flow(
        &mut self,
        direction: Direction,
        local: IpAddr,
        remote: IpAddr,
        headers: &Headers,
    ) -> Option<(Flow, bool, bool)> {
        let protocol = headers.protocol;
        let datagram = |id: u32| {
            let protocol = local.is_ipv4().then_some(protocol);
            (direction, local, remote, id, protocol)
        };
        if let Part::Later(id) = headers.part {
            let &(protocol, local_port, remote_port) = self.datagrams.get(&datagram(id))?;
            return Some(((local, local_port, remote, remote_port, protocol), false, false));
        }
        let (source, destination, opens, answers) = match headers.transport {
            Transport::Ports { source, destination, opens, answers } => {
                (source, destination, opens, answers)
            }
            Transport::Echo { id, opens } => (id, id, opens, !opens),
            _ => (0, 0, false, false),
        };
        let (local_port, remote_port) = match direction {
            Direction::Ingress => (destination, source),
            Direction::Egress => (source, destination),
        };
        if let Part::First(id) = headers.part {
            self.datagrams.insert(datagram(id), (protocol, local_port, remote_port));
        }
        match headers.transport {
            Transport::Icmp { .. } | Transport::Error(_) => None,
            _ => Some(((local, local_port, remote, remote_port, protocol), opens, answers)),
        }
    }

    #[expect(clippy::too_many_arguments, reason = "what a verdict depends on")]
    fn judge_flow(
        &mut self,
        direction: Direction,
        is_from_node: bool,
        is_spoofed: bool,
        headers: &Headers,
        flow: Flow,
        opens: bool,
        answers: bool,
    ) -> Judgement {
        let (_, local_port, remote, remote_port, protocol) = flow;
        let port = if direction == Direction::Ingress { local_port } else { remote_port };
        let sender = match direction {
            Direction::Egress => Opener::Pod,
            Direction::Ingress if is_from_node => Opener::Node,
            Direction::Ingress => Opener::Remote,
        };
        // Who opens a flow that another opened opens one of its own, and nobody else speaks for
        // the node.
        let is_known = Opener::ALL.into_iter().any(|opener| {
            (!opens || opener == sender)
                && (opener != Opener::Node || sender != Opener::Remote)
                && self.flows.contains(&(flow, opener))
        });
        let is_isolated = self.isolates(direction);
        let policy = if is_spoofed || (answers && is_isolated) {
            None
        } else if !is_isolated {
            Some(Permit::NotIsolated)
        } else {
            self.allows(direction, remote, protocol, port).then_some(Permit::Policy)
        };
        let permit = if is_from_node {
            Some(Permit::OwnNode)
        } else {
            policy.or(is_known.then_some(Permit::KnownFlow))
        };
        let is_later = matches!(headers.part, Part::Later(_));
        Judgement {
            permit,
            // What only a flow that is remembered lets pass may have been forgotten.
            must_pass: (policy.is_some() || is_from_node) && headers.is_plain && !is_later,
            opens: (permit.is_some_and(|permit| permit != Permit::KnownFlow) && !answers)
                .then_some((flow, sender)),
        }
    }

    fn without_flow(
        &mut self,
        direction: Direction,
        is_from_node: bool,
        remote: IpAddr,
        headers: &Headers,
    ) -> Option<Permit> {
        if is_from_node {
            return Some(Permit::OwnNode);
        }
        if !self.isolates(direction) {
            return Some(Permit::NotIsolated);
        }
        if self.allows(direction, remote, NO_PORTS, 0) {
            return Some(Permit::Policy);
        }
        match headers.transport {
            Transport::Error(Some(quoted)) if self.is_related(direction, headers, &quoted) => {
                Some(Permit::Related)
            }
            _ => None,
        }
    }

    /// An error about a packet that went the other way, to whom sent that.
    fn is_related(&self, direction: Direction, headers: &Headers, quoted: &Quoted) -> bool {
        let (source, destination) = (quoted.source, quoted.destination);
        let (local, remote) = match direction {
            Direction::Ingress => (source, destination),
            Direction::Egress => (destination, source),
        };
        let flow = (local.0, local.1, remote.0, remote.1, quoted.protocol);
        Opener::ALL.into_iter().any(|opener| self.flows.contains(&(flow, opener)))
            && (direction == Direction::Ingress || headers.destination == source.0)
    }

    /// The verdict on neighbours' talk, if it is any.
    fn neighbourly(&self, direction: Direction, headers: &Headers) -> Option<Option<Permit>> {
        let Transport::Icmp { kind } = headers.transport else { return None };
        if headers.source.is_ipv4() {
            return None;
        }
        let permit = Some(Permit::Neighbourly);
        match (kind, headers.hop_limit) {
            (130..=132 | 143, 1) | (133 | 135 | 136, 255) => Some(permit),
            (134 | 137, 255) if direction == Direction::Ingress => Some(permit),
            (134 | 137, _) if self.isolates(direction) => Some(None),
            (134 | 137, _) => Some(Some(Permit::NotIsolated)),
            _ => None,
        }
    }

    fn allows(&mut self, direction: Direction, remote: IpAddr, protocol: u8, port: u16) -> bool {
        if self.answers.len() > MAX_ANSWERS {
            self.answers.clear();
        }
        let question = (direction, remote, protocol, port);
        *self
            .answers
            .entry(question)
            .or_insert_with(|| self.reference.allows(direction, &self.pod, remote, protocol, port))
    }
}
