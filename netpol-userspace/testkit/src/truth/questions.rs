//! Questions to the loaded programs: a frame at an endpoint, and what the evaluator says of it
//! before and after an edit.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::generate::Rng;
use crate::generate::world::Probe;
use netpol_common::packet::{ACK, SYN};
use netpol_model::Direction;
use netpol_observe::frames::{Transport, frame, packet};

use super::{Cluster, Local, Truth};

/// Client ports of flows that are opened once and used across edits; questions use those below,
/// and each direction has its own, so that no flow is another's answer.
const FLOW_PORTS: u16 = 50_000;
const QUESTION_PORTS: u16 = 20_000;
const PORTS_PER_DIRECTION: u16 = 7_000;
/// A denied flow is forgotten when it has been idle for its time, 30 s at the least.
const FORGOTTEN: Duration = Duration::from_secs(20);

/// One frame to try.
#[derive(Debug, Clone)]
pub struct Question {
    pub place: usize,
    pub direction: Direction,
    pub frame: Vec<u8>,
    /// What must become of it in the state before and in the state after.
    pub expected: [bool; 2],
    /// For people.
    pub about: (String, Direction, Probe, &'static str),
}

/// A flow that was opened when it was allowed.
#[derive(Debug, Clone)]
pub struct Flow {
    pub local: Local,
    opened: Direction,
    probe: Probe,
    own: IpAddr,
    client_port: u16,
    last_allowed: Instant,
}

impl Flow {
    /// Whether its entry may have been forgotten, or the endpoint is not what it was.
    pub fn is_stale(&self, cluster: &Cluster) -> bool {
        self.last_allowed.elapsed() > FORGOTTEN || !cluster.locals.contains(&self.local)
    }

    /// A later packet of it from each end, if there is an answer.
    pub fn questions(&mut self, old: &Truth, new: &Truth) -> Vec<Question> {
        let allows = |truth: &Truth| truth.allows(&self.local.pod, self.opened, &self.probe);
        let (Some(old), Some(new)) = (allows(old), allows(new)) else { return Vec::new() };
        let expected = [old, new];
        if expected == [true; 2] {
            self.last_allowed = Instant::now();
        }
        let packet = |direction| {
            let is_forward = direction == self.opened;
            let (client, server) = (self.client_port, self.probe.port);
            let ports = if is_forward { (client, server) } else { (server, client) };
            let transport = match self.probe.protocol {
                6 => Transport::Tcp { source: ports.0, destination: ports.1, flags: ACK },
                17 => Transport::Udp { source: ports.0, destination: ports.1 },
                _ => Transport::Sctp { source: ports.0, destination: ports.1, chunk: 0 },
            };
            Question {
                place: self.local.place,
                direction,
                frame: between(self.own, self.probe.remote, direction, &transport),
                expected,
                about: (self.local.pod.clone(), self.opened, self.probe, "established"),
            }
        };
        Direction::BOTH.map(packet).into()
    }
}

/// Makes questions.
pub struct Asker {
    pub rng: Rng,
    counter: u16,
}

impl Asker {
    pub fn new(rng: Rng) -> Self {
        Self { rng, counter: 0 }
    }

    /// `n` first packets at endpoints that are isolated in both states and keep their pod.
    pub fn questions(
        &mut self,
        cluster: &Cluster,
        steady: &[Local],
        [old, new]: [&Truth; 2],
        n: usize,
    ) -> Vec<Question> {
        let mut remotes = cluster.world.remotes(&mut self.rng);
        remotes.retain(|remote| !remote.is_unspecified());
        let mut found = Vec::new();
        for _ in 0..4 * n {
            let Some(question) = self.question(cluster, steady, &remotes, new) else { continue };
            let (local, direction, probe) = question;
            let expected = [old, new].map(|truth| truth.allows(&local.pod, direction, &probe));
            let [Some(before), Some(after)] = expected else { continue };
            let expected = [before, after];
            let Some((frame, _, _)) = self.first(new, &local, direction, &probe, QUESTION_PORTS)
            else {
                continue;
            };
            let about = (local.pod, direction, probe, "new");
            found.push(Question { place: local.place, direction, frame, expected, about });
            if found.len() == n {
                break;
            }
        }
        found
    }

    fn question(
        &mut self,
        cluster: &Cluster,
        steady: &[Local],
        remotes: &[IpAddr],
        truth: &Truth,
    ) -> Option<(Local, Direction, Probe)> {
        if steady.is_empty() {
            return None;
        }
        let local = self.rng.pick(steady).clone();
        if !truth.is_isolated(&local.pod) {
            return None;
        }
        let direction = *self.rng.pick(&Direction::BOTH);
        let probe = match self.rng.below(4) {
            0 if direction == Direction::Egress => {
                cluster.services.probe(&mut self.rng, &cluster.world)?
            }
            _ => cluster.world.probes(&mut self.rng, remotes, 1)[0],
        };
        Some((local, direction, probe))
    }

    /// A flow to open now, with its first packet and whether that must pass.
    pub fn flow(
        &mut self,
        cluster: &Cluster,
        steady: &[Local],
        truth: &Truth,
    ) -> Option<(Flow, Question)> {
        let remotes = cluster.world.remotes(&mut self.rng);
        let (local, opened, probe) = self.question(cluster, steady, &remotes, truth)?;
        if !matches!(probe.protocol, 6 | 17 | 132) {
            return None;
        }
        let (frame, own, client_port) = self.first(truth, &local, opened, &probe, FLOW_PORTS)?;
        let allowed = truth.allows(&local.pod, opened, &probe)?;
        let about = (local.pod.clone(), opened, probe, "opening");
        let expected = [allowed; 2];
        let question = Question { place: local.place, direction: opened, frame, expected, about };
        let last_allowed = Instant::now();
        Some((Flow { local, opened, probe, own, client_port, last_allowed }, question))
    }

    /// The first packet of a flow, the pod's address in it and the client's port.
    fn first(
        &mut self,
        truth: &Truth,
        local: &Local,
        direction: Direction,
        probe: &Probe,
        first_port: u16,
    ) -> Option<(Vec<u8>, IpAddr, u16)> {
        let is_v6 = probe.remote.is_ipv6();
        let own = truth.addresses(&local.pod).into_iter().find(|own| own.is_ipv6() == is_v6)?;
        self.counter = (self.counter + 1) % PORTS_PER_DIRECTION;
        let source = first_port + PORTS_PER_DIRECTION * direction as u16 + self.counter;
        let destination = probe.port;
        if (QUESTION_PORTS..u16::MAX - 1_000).contains(&destination) {
            return None;
        }
        let transport = match (probe.protocol, is_v6) {
            (6, _) => Transport::Tcp { source, destination, flags: SYN },
            (17, _) => Transport::Udp { source, destination },
            (132, _) => Transport::Sctp { source, destination, chunk: 1 },
            (1, false) | (58, true) => {
                let [high, low] = source.to_be_bytes();
                let kind = if is_v6 { 128 } else { 8 };
                Transport::Icmp { kind, code: 0, body: vec![high, low, 0, 1] }
            }
            // Without ports both ends' packets are of one flow: only one end opens any here.
            (protocol, _) if direction == Direction::Ingress => {
                Transport::Raw { protocol, payload: vec![0; 16] }
            }
            _ => return None,
        };
        Some((between(own, probe.remote, direction, &transport), own, source))
    }
}

fn between(own: IpAddr, remote: IpAddr, direction: Direction, transport: &Transport) -> Vec<u8> {
    frame(&match direction {
        Direction::Ingress => packet(remote, own, transport),
        Direction::Egress => packet(own, remote, transport),
    })
}
