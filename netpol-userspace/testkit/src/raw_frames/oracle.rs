//! Which frames may pass and which must, by what another parser reads in them and by the slow
//! evaluator. It is told which frames passed, because these make flows. Must never be cleverer
//! than the documentation.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::Pod;
use netpol_model::Direction;
use netpol_reference::Reference;
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
            isolated: Direction::BOTH.map(|direction| reference.is_judged(direction, pod)),
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
                let passes = direction == Direction::Ingress || self.may_say(frame);
                let permit = passes.then_some(Permit::Neighbourly);
                Judgement { permit, must_pass: passes, opens: None }
            }
            Meaning::Garbage(source) => {
                let is_spoofed = direction == Direction::Egress
                    && source.is_some_and(|source| !self.own.contains(&source));
                let passes = !self.isolates(direction) && !is_spoofed;
                Judgement { permit: passes.then_some(Permit::NotIsolated), ..nothing }
            }
            Meaning::Ip(headers) => {
                if let Some(permit) = self.neighbourly(direction, &headers, frame) {
                    let must_pass = permit.is_some() && headers.is_plain;
                    return Judgement { permit, must_pass, opens: None };
                }
                self.judge_ip(direction, is_from_node, &headers)
            }
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
    fn neighbourly(
        &self,
        direction: Direction,
        headers: &Headers,
        frame: &[u8],
    ) -> Option<Option<Permit>> {
        let Transport::Icmp { kind } = headers.transport else { return None };
        let (IpAddr::V6(source), IpAddr::V6(destination)) = (headers.source, headers.destination)
        else {
            return None;
        };
        let permit = Some(Permit::Neighbourly);
        if direction == Direction::Egress {
            return match kind {
                131..=133 | 135 | 136 | 143 => Some(permit.filter(|_| self.may_say(frame))),
                130 | 134 | 137 if self.isolates(direction) => Some(None),
                130 | 134 | 137 => Some(Some(Permit::NotIsolated)),
                _ => None,
            };
        }
        let is_of_link = destination.is_multicast()
            && (source.is_unicast_link_local() || source.is_unspecified());
        match (kind, headers.hop_limit) {
            (130..=132 | 143, 1) if is_of_link => Some(permit),
            (133..=137, 255) => Some(permit),
            (134 | 137, _) if self.isolates(direction) => Some(None),
            (134 | 137, _) => Some(Some(Permit::NotIsolated)),
            _ => None,
        }
    }

    /// Whether these are the bytes of something that a pod may say to its neighbours, written down
    /// once more from RFC 826, RFC 4861 and RFC 2710; of reports of RFC 3810 the fuzzer makes none.
    fn may_say(&self, frame: &[u8]) -> bool {
        let own = |bytes: &[u8]| {
            let bytes: [u8; 16] = bytes.try_into().unwrap();
            self.own.contains(&IpAddr::from(bytes))
        };
        if frame[12..14] == [8, 6] {
            let own = |at: usize| {
                let bytes: [u8; 4] = frame[at..at + 4].try_into().unwrap();
                self.own.contains(&IpAddr::from(bytes))
            };
            return (42..=60).contains(&frame.len())
                && frame[14..21] == [0, 1, 8, 0, 6, 4, 0]
                && matches!(frame[21], 1 | 2)
                && frame[22..28] == frame[6..12]
                && frame[42..].iter().all(|byte| *byte == 0)
                && (own(28) || frame[28..32] == [0; 4] && frame[21] == 1 && own(38));
        }
        let length = usize::from(u16::from_be_bytes([frame[18], frame[19]]));
        let (source, destination) = (&frame[22..38], &frame[38..54]);
        let is_group = destination[..2] == [0xff, 2];
        let zeros = |bytes: &[u8]| bytes.iter().all(|byte| *byte == 0);
        if frame[20] == 0 {
            let is_alert = frame.get(54..62).is_some_and(|alert| alert[..6] == [58, 0, 5, 2, 0, 0]);
            return is_alert && frame.len() == 54 + length && frame[21] == 1 && zeros(source);
        }
        if frame[20] != 58 || frame[21] != 255 || frame.len() != 54 + length || frame[55] != 0 {
            return false;
        }
        let flags = if frame[54] == 136 { frame[58] & 0x1f } else { frame[58] };
        let is_near =
            is_group || destination[..8] == source[..8] || destination[..2] == [0xfe, 0x80];
        let is_clean = flags == 0 && zeros(&frame[59..62]) && is_near;
        match (frame[54], length) {
            (133, 8) => is_clean && (own(source) || zeros(source)),
            (135, 24) => is_clean && own(source) && frame[62] != 0xff,
            (136, 24) => is_clean && own(source) && own(&frame[62..78]),
            _ => false,
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
