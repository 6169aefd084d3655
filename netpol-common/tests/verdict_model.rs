//! Sequences of packets, policy changes and time, judged by the code and by a specification that
//! is written down here once more, in plain collections and without epochs: a flow is judged by
//! the policy of the moment, in the direction in which it was opened.

#![expect(clippy::cast_possible_truncation, reason = "small or random numbers")]

mod support;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use netpol_common::flow::{self, Timeouts};
use netpol_common::layout::{Address, EPOCH_MASK, Reason};
use netpol_common::packet::{
    ACK, FIN, ICMP, ICMPV6, Kind, Packet, RST, SCTP, SYN, TCP, UDP, set_tcp_flags,
};
use netpol_common::verdict::{Arrival, Endpoint, Verdict};
use support::{AtomicTable, Random, TIMEOUTS, World, v4, v6};

const ID: u16 = 7;
const INGRESS: usize = 0;
const EGRESS: usize = 1;
const GRE: u8 = 47;
const PORTS: [u16; 4] = [53, 80, 1000, 1001];

/// What a set allows a class.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Rule {
    All,
    Ports(BTreeSet<(u8, u16)>),
}

impl Rule {
    fn allows(&self, protocol: u8, port: u16) -> bool {
        match self {
            Self::All => true,
            Self::Ports(ports) => ports.contains(&(protocol, port)),
        }
    }

    fn is_within(&self, wider: &Self) -> bool {
        match (self, wider) {
            (_, Self::All) => true,
            (Self::All, Self::Ports(_)) => false,
            (Self::Ports(few), Self::Ports(many)) => few.is_subset(many),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Opener {
    Pod,
    Remote,
    Node,
    /// Nobody saw: it was met midway, and either end may have.
    Unseen,
}

/// A connection that was admitted.
#[derive(Debug, Clone, Copy)]
struct Known {
    opener: Opener,
    last_seen: u64,
    is_replied: bool,
    /// FINs of the pod and of the other side.
    fins: [bool; 2],
    is_reset: bool,
}

impl Known {
    fn new(opener: Opener, now: u64) -> Self {
        Self { opener, last_seen: now, is_replied: false, fins: [false; 2], is_reset: false }
    }

    fn is_live(&self, protocol: u8, now: u64) -> bool {
        let Timeouts { tcp_established, tcp_other, sctp, udp, icmp, other } = TIMEOUTS;
        let is_closed = self.is_reset || self.fins == [true; 2];
        let limit = match protocol {
            TCP if self.is_replied && !is_closed => tcp_established,
            TCP => tcp_other,
            UDP => udp,
            SCTP => sctp,
            ICMP | ICMPV6 => icmp,
            _ => other,
        };
        now - self.last_seen <= limit
    }

    fn note(&mut self, packet: &Packet, direction: usize, now: u64) {
        if packet.is_opening {
            *self = Self::new(self.opener, now);
        }
        self.last_seen = now;
        let is_outbound = matches!(self.opener, Opener::Pod | Opener::Unseen);
        self.is_replied |= (direction == EGRESS) != is_outbound;
        if packet.protocol == TCP {
            // Whoever goes on has not heeded a reset.
            self.is_reset = packet.detail & RST != 0;
            self.fins[usize::from(direction == INGRESS)] |= packet.detail & FIN != 0;
        }
    }
}

/// Protocol, local address and port, remote address and port.
type FlowKey = (u8, Address, u16, Address, u16);

fn flow_key(packet: &Packet) -> FlowKey {
    let Packet { protocol, local, local_port, remote, remote_port, .. } = *packet;
    (protocol, local, local_port, remote, remote_port)
}

/// Of a connection that something else must have opened.
fn is_midway(packet: &Packet) -> bool {
    !packet.is_opening && matches!(packet.protocol, TCP | SCTP)
}

type FragmentKey = (usize, Address, Address, u32, Option<u8>);

/// The specification.
#[derive(Default)]
struct Model {
    keeps: bool,
    checks_source: bool,
    own: Vec<Address>,
    class: HashMap<Address, u32>,
    sets: BTreeMap<u16, BTreeMap<u32, Rule>>,
    /// Policy set of each direction, 0: not isolated.
    isolated_by: [u16; 2],
    flows: HashMap<FlowKey, Known>,
    first_fragments: HashMap<FragmentKey, (u8, u16, u16)>,
    now: u64,
}

impl Model {
    fn rule(&self, direction: usize, remote: &Address) -> Option<&Rule> {
        let rules = self.sets.get(&self.isolated_by[direction])?;
        let class = self.class.get(remote).copied().unwrap_or(0);
        rules.get(&class).or_else(|| rules.get(&0))
    }

    /// Whether policy lets a flow be opened in this direction.
    fn permits(&self, direction: usize, packet: &Packet) -> bool {
        let port = if direction == INGRESS { packet.local_port } else { packet.remote_port };
        self.isolated_by[direction] == 0
            || direction == EGRESS && self.own.contains(&packet.remote)
            || self
                .rule(direction, &packet.remote)
                .is_some_and(|rule| rule.allows(packet.protocol, port))
    }

    /// Whether the pod sends it to itself, and has to recognise it by its own stamp. (To another of
    /// its addresses what the policies allow is stamped by nobody.)
    fn is_stamped(&self, packet: &Packet) -> bool {
        let Packet { protocol, remote, remote_port, .. } = *packet;
        let is_by_rule = self.isolated_by[EGRESS] == 0
            || self.rule(EGRESS, &remote).is_some_and(|rule| rule.allows(protocol, remote_port));
        self.own.contains(&remote) && (remote == packet.local || !is_by_rule)
    }

    fn permits_without_ports(&self, direction: usize, remote: &Address) -> bool {
        self.isolated_by[direction] == 0
            || direction == EGRESS && self.own.contains(remote)
            || self.rule(direction, remote) == Some(&Rule::All)
    }

    /// Whether the flow is still allowed.
    fn permits_flow(&self, opener: Opener, packet: &Packet) -> bool {
        match opener {
            Opener::Node => true,
            Opener::Pod => self.permits(EGRESS, packet),
            Opener::Remote => self.permits(INGRESS, packet),
            Opener::Unseen => self.permits(INGRESS, packet) && self.permits(EGRESS, packet),
        }
    }

    /// The reason of a drop, or `None`.
    fn judge(
        &mut self,
        direction: usize,
        is_from_node: bool,
        packet: &Packet,
        inner: Option<&Packet>,
    ) -> Option<Reason> {
        let mut packet = *packet;
        // Only the first fragment of an IPv6 datagram says what it carries.
        let protocol = (packet.local.family == 4).then_some(packet.protocol);
        let datagram = (direction, packet.local, packet.remote, packet.fragment_id, protocol);
        if packet.is_first_fragment {
            let flow = (packet.protocol, packet.local_port, packet.remote_port);
            self.first_fragments.insert(datagram, flow);
        }
        if packet.kind == Kind::Fragment
            && let Some(&flow) = self.first_fragments.get(&datagram)
        {
            (packet.protocol, packet.local_port, packet.remote_port) = flow;
            packet.kind = Kind::Flow;
        }
        if packet.kind == Kind::Flow {
            return self.judge_flow(direction, is_from_node, &packet);
        }
        if self.is_spoofed(direction, &packet) {
            return Some(Reason::SourceAddress);
        }
        if inner.is_some_and(|inner| self.is_related(direction, &packet, inner))
            || is_from_node
            || self.permits_without_ports(direction, &packet.remote)
        {
            return None;
        }
        Some(if packet.kind == Kind::Fragment { Reason::Fragment } else { Reason::Policy })
    }

    fn is_spoofed(&self, direction: usize, packet: &Packet) -> bool {
        direction == EGRESS && self.checks_source && !self.own.contains(&packet.local)
    }

    /// An error about a live and allowed flow; a pod's own goes to whom it quotes.
    fn is_related(&self, direction: usize, packet: &Packet, inner: &Packet) -> bool {
        let Some(known) = self.flows.get(&flow_key(inner)) else { return false };
        known.is_live(inner.protocol, self.now)
            && (self.keeps || self.permits_flow(known.opener, inner))
            && (direction == INGRESS || packet.remote == inner.remote)
    }

    fn judge_flow(
        &mut self,
        direction: usize,
        is_from_node: bool,
        packet: &Packet,
    ) -> Option<Reason> {
        let opener = match (direction, is_from_node) {
            (EGRESS, _) => Opener::Pod,
            (_, true) => Opener::Node,
            (_, false) => Opener::Remote,
        };
        let known = self.flows.get(&flow_key(packet)).copied();
        let is_live = known.is_some_and(|known| known.is_live(packet.protocol, self.now));
        // A connection that goes on is still its opener's, however long it was idle.
        let known = known.filter(|_| is_live || is_midway(packet));
        // Who opens a connection that another end opened opens one of its own.
        let known = known.filter(|known| !packet.is_opening || known.opener == opener);
        // Only the node itself speaks for the node.
        let known = known.filter(|known| {
            known.opener != Opener::Node || direction == EGRESS || opener == Opener::Node
        });
        let Some(mut known) = known else {
            return self.judge_new(direction, opener, packet);
        };
        // The pod has the address no longer from which it opened the flow.
        let may_be_pods = matches!(known.opener, Opener::Pod | Opener::Unseen);
        if may_be_pods && self.is_spoofed(direction, packet) {
            return Some(Reason::SourceAddress);
        }
        let is_new_connection = packet.is_opening && !matches!(packet.protocol, ICMP | ICMPV6);
        let is_kept = self.keeps && !is_new_connection && is_live;
        if !self.permits_flow(known.opener, packet) && !is_kept {
            // The node reaches its pods whatever was cut.
            return match opener {
                Opener::Node => None,
                _ if packet.is_opening => Some(Reason::Policy),
                _ => Some(Reason::PolicyCut),
            };
        }
        known.note(packet, direction, self.now);
        self.flows.insert(flow_key(packet), known);
        None
    }

    fn judge_new(&mut self, direction: usize, opener: Opener, packet: &Packet) -> Option<Reason> {
        if self.is_spoofed(direction, packet) {
            return Some(Reason::SourceAddress);
        }
        let is_isolated = self.isolated_by[direction] != 0;
        let is_refused = packet.is_answer && is_isolated || !self.permits(direction, packet);
        if opener != Opener::Node && is_refused {
            return Some(Reason::Policy);
        }
        if !packet.is_answer {
            // From an address that it does not have the pod has opened nothing.
            let may_be_others = is_midway(packet)
                && opener != Opener::Node
                && !self.is_spoofed(EGRESS, packet)
                && !(opener == Opener::Pod && self.is_stamped(packet))
                && self.permits(1 - direction, packet);
            let opener = if may_be_others { Opener::Unseen } else { opener };
            self.flows.insert(flow_key(packet), Known::new(opener, self.now));
        }
        None
    }

    /// Writes the policies into the maps.
    fn write(&self, world: &mut World<'_>) {
        world.rows.clear();
        world.intervals.clear();
        world.exact.clone_from(&self.class);
        for (&set, rules) in &self.sets {
            for (&class, rule) in rules {
                match rule {
                    Rule::All => world.allow_all(set, class),
                    Rule::Ports(ports) => {
                        let of = |wanted| {
                            let mine = ports.iter().filter(|(protocol, _)| *protocol == wanted);
                            mine.map(|&(_, port)| (port, port)).collect()
                        };
                        world.allow_ports(set, class, &[of(TCP), of(UDP), of(SCTP)]);
                    }
                }
            }
        }
    }
}

/// Everything that a sequence acts on.
struct Run<'a> {
    random: Random,
    model: Model,
    world: World<'a>,
    endpoint: Endpoint,
    /// The pod's addresses, those too that it does not have at the moment.
    addresses: [Address; 2],
    /// Flows that packets come back to.
    recent: Vec<FlowKey>,
}

impl<'a> Run<'a> {
    fn new(seed: u64, tables: &'a [AtomicTable; 2]) -> Self {
        let mut random = Random(seed);
        let addresses = [v4([10, 1, 0, 1]), v6(1, 1)];
        let own = addresses.to_vec();
        let mut world = World::new(&tables[0], &tables[1]);
        world.own = own.iter().map(|&address| (ID, address)).collect();
        world.keeps_established = random.one_in(3);
        world.checks_source = !random.one_in(4);
        let model = Model {
            keeps: world.keeps_established,
            checks_source: world.checks_source,
            own,
            now: world.clock.now,
            ..Model::default()
        };
        // Epochs that wrap on the way, in some runs.
        let epoch = random.pick(&[1, EPOCH_MASK - 20, EPOCH_MASK / 2]);
        let endpoint = Endpoint { id: ID, epoch, born: epoch, sets: [0, 0] };
        Self { random, model, world, endpoint, addresses, recent: Vec::new() }
    }

    fn advance_epoch(&mut self) {
        self.endpoint.epoch = self.endpoint.epoch.wrapping_add(1) & EPOCH_MASK;
    }

    fn remote(&mut self) -> Address {
        let n = self.random.below(3) as u8;
        if self.random.one_in(12) {
            return self.addresses[0];
        }
        if self.random.one_in(3) { v6(2, n) } else { v4([10, 2, 0, n]) }
    }

    fn rule(&mut self) -> Rule {
        if self.random.one_in(3) {
            return Rule::All;
        }
        let n_ports = self.random.below(5);
        let port = |random: &mut Random| (random.pick(&[TCP, UDP, SCTP]), random.pick(&PORTS));
        Rule::Ports((0..n_ports).map(|_| port(&mut self.random)).collect())
    }

    fn change_policy(&mut self) {
        let set = 1 + self.random.below(3) as u16;
        let class = self.random.below(3) as u32;
        let mut tightens = true;
        match self.random.below(6) {
            0 | 1 => {
                let rule = self.rule();
                let rules = self.model.sets.entry(set).or_default();
                // What a set gives to everybody it gives to every class: no class's own rule
                // is narrower where the compiler made it, but the code need not know.
                tightens =
                    rules.insert(class, rule.clone()).is_none_or(|old| !old.is_within(&rule));
            }
            2 => {
                if let Some(rules) = self.model.sets.get_mut(&set) {
                    rules.remove(&class);
                }
            }
            3 => {
                let remote = self.remote();
                if class == 0 {
                    self.model.class.remove(&remote);
                } else {
                    self.model.class.insert(remote, class);
                }
            }
            _ => {
                let sets = [self.random.below(4) as u16, self.random.below(4) as u16];
                // An open direction closes or the other way round, both at once.
                self.model.isolated_by = sets;
                self.endpoint.sets = sets;
            }
        }
        self.model.write(&mut self.world);
        if tightens || self.random.one_in(3) {
            self.advance_epoch();
        }
    }

    /// The pod loses an address, or has it again.
    fn hand_over_address(&mut self) {
        let address = self.random.pick(&self.addresses);
        if self.world.own.remove(&(ID, address)) {
            self.model.own.retain(|own| *own != address);
            self.advance_epoch();
        } else {
            self.world.own.insert((ID, address));
            self.model.own.push(address);
        }
    }

    fn give_id_to_another_pod(&mut self) {
        self.advance_epoch();
        self.endpoint.born = self.endpoint.epoch;
        self.model.flows.clear();
    }

    fn flow_packet(&mut self) -> Packet {
        let remote = self.remote();
        let is_v6 = remote.family == 6;
        let mut local = self.addresses[usize::from(is_v6)];
        if self.random.one_in(15) {
            local = if is_v6 { v6(1, 9) } else { v4([10, 1, 0, 9]) };
        }
        let (local_port, remote_port) = (self.random.pick(&PORTS), self.random.pick(&PORTS));
        let mut packet = Packet { local, remote, local_port, remote_port, ..Packet::default() };
        packet.protocol = self.random.pick(&[TCP, TCP, TCP, UDP, UDP, SCTP, ICMP, GRE]);
        match packet.protocol {
            TCP => {
                let flags =
                    [SYN, SYN, SYN | ACK, ACK, ACK, FIN | ACK, RST, RST | ACK, SYN | FIN, 0];
                let flags = self.random.pick(&flags);
                set_tcp_flags(&mut packet, flags);
                assert_eq!(packet.is_opening, flags & !FIN == SYN);
                assert_eq!(packet.is_answer, flags == SYN | ACK || flags & RST != 0);
            }
            SCTP => {
                packet.detail = self.random.pick(&[0, 1, 2, 3]);
                (packet.is_opening, packet.is_answer) = (packet.detail == 1, packet.detail == 2);
            }
            ICMP => {
                packet.remote_port = local_port;
                packet.is_opening = self.random.one_in(2);
                packet.is_answer = !packet.is_opening;
                packet.protocol = if is_v6 { ICMPV6 } else { ICMP };
            }
            GRE => (packet.local_port, packet.remote_port) = (0, 0),
            _ => {}
        }
        // Packets of flows that were begun, more often than chance has it.
        let alike: Vec<FlowKey> =
            self.recent.iter().filter(|key| key.0 == packet.protocol).copied().collect();
        if !alike.is_empty() && !self.random.one_in(3) {
            let (_, local, local_port, remote, remote_port) = self.random.pick(&alike);
            packet = Packet { local, remote, local_port, remote_port, ..packet };
        } else {
            let index = self.random.below(self.recent.len() as u64 + 1) as usize;
            if self.recent.len() < 6 {
                self.recent.push(flow_key(&packet));
            } else if let Some(old) = self.recent.get_mut(index) {
                *old = flow_key(&packet);
            }
        }
        packet
    }

    /// A packet, and what it quotes.
    fn packet(&mut self) -> (Packet, Option<Packet>) {
        let mut packet = self.flow_packet();
        match self.random.below(12) {
            0 => {
                let inner = self.flow_packet();
                let inner = Packet { is_opening: false, is_answer: false, detail: 0, ..inner };
                packet = Packet {
                    kind: Kind::Error,
                    protocol: if packet.local.family == 6 { ICMPV6 } else { ICMP },
                    local_port: 0,
                    remote_port: 0,
                    is_opening: false,
                    is_answer: false,
                    ..packet
                };
                if self.random.one_in(2) {
                    (packet.local, packet.remote) = (inner.local, inner.remote);
                }
                return (packet, (!self.random.one_in(5)).then_some(inner));
            }
            1 => {
                packet.kind = Kind::Stateless;
                packet.protocol = if packet.local.family == 6 { ICMPV6 } else { ICMP };
                (packet.local_port, packet.remote_port) = (0, 0);
                (packet.is_opening, packet.is_answer) = (false, false);
            }
            2 => {
                packet.fragment_id = self.random.below(4) as u32;
                packet.is_first_fragment = true;
            }
            3 | 4 => {
                packet.fragment_id = self.random.below(4) as u32;
                packet.kind = Kind::Fragment;
                (packet.local_port, packet.remote_port) = (0, 0);
                if packet.local.family == 6 && self.random.one_in(3) {
                    // The first fragment has extension headers behind the fragment header.
                    packet.protocol = 60;
                }
                (packet.is_opening, packet.is_answer, packet.detail) = (false, false, 0);
            }
            _ => {}
        }
        (packet, None)
    }

    /// The reason of a drop, or `None`.
    fn verdict(&self, arrival: Arrival, packet: &Packet, inner: Option<&Packet>) -> Option<Reason> {
        let verdict = self.world.judge_packet(&self.endpoint, arrival, packet, inner);
        assert!(!verdict.has_evicted, "the tables have room");
        assert!(verdict.is_allowed || verdict.is_noted, "every drop is counted");
        assert_eq!(Verdict::unpack(verdict.pack()), verdict);
        (!verdict.is_allowed).then_some(verdict.reason)
    }

    /// One packet, judged by both; whether it passed.
    fn step(&mut self, context: &str) -> bool {
        let direction = self.random.below(2) as usize;
        let is_from_node = direction == INGRESS && self.random.one_in(6);
        let (packet, inner) = self.packet();
        let arrival = match direction {
            INGRESS => Arrival::ingress(is_from_node),
            _ => Arrival::egress(),
        };
        let known = self.model.flows.get(&flow_key(inner.as_ref().unwrap_or(&packet))).copied();
        let expected = self.model.judge(direction, is_from_node, &packet, inner.as_ref());
        let found = self.verdict(arrival, &packet, inner.as_ref());
        assert_eq!(
            found,
            expected,
            "{context}: {arrival:?} {packet:?} quoting {inner:?} of the flow {known:?} at {}; \
             sets {:?} of {:?}, classes {:?}, keep {}, source check {}",
            self.model.now,
            self.model.isolated_by,
            self.model.sets,
            self.model.class,
            self.model.keeps,
            self.model.checks_source,
        );
        expected.is_none()
    }

    fn pass_time(&mut self) {
        // Flows have to live long enough to be met again, and to expire now and then.
        let passed = match self.random.below(60) {
            0 => self.random.below(500),
            1..=3 => self.random.below(25),
            4..=20 => 1,
            _ => 0,
        };
        self.world.clock.now += passed;
        self.model.now += passed;
    }
}

#[test]
fn every_verdict_of_random_sequences_is_the_specifications() {
    let (mut n_passed, mut n_dropped) = (0, 0);
    for seed in 0..600 {
        let tables = [AtomicTable::new(1024, flow::WORDS4), AtomicTable::new(1024, flow::WORDS6)];
        let mut run = Run::new(seed, &tables);
        for step in 0..400 {
            match run.random.below(40) {
                0..=3 => run.change_policy(),
                4 if run.random.one_in(10) => run.give_id_to_another_pod(),
                5 => run.hand_over_address(),
                _ => {}
            }
            run.pass_time();
            if run.step(&format!("seed {seed} step {step}")) {
                n_passed += 1;
            } else {
                n_dropped += 1;
            }
        }
    }
    // The sequences are worth something: neither verdict is rare.
    assert!(n_passed > 40_000 && n_dropped > 40_000, "{n_passed} passed, {n_dropped} dropped");
}
