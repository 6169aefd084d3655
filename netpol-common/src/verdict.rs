//! The verdict on one packet of an endpoint, from its headers and the maps' contents.
//!
//! A packet is judged where it enters or leaves its pod. What a pod sends to a Service may have to
//! be judged a second time, *translated*, where it leaves the node or enters another pod: such
//! packets, and the flows they belong to, are *stamped*.
//!
//! The rules are those of ARCHITECTURE.md's semantics table. This module must never parse, count,
//! log or touch a map itself; it asks [`Maps`].

use crate::flow::{
    self, Clock, Entry, Inserted, OPENED_BY_NODE, OPENED_BY_REMOTE, OPENED_UNSEEN, OPENER, STAMPED,
};
use crate::layout::{
    Address, Backend, Direction, EPOCH_MASK, ExactClass, FragmentPorts, POLICY_VALID, Reason, Row,
    SERVICES_INCOMPLETE, ServiceKey, ServiceValue, TRANSIT_READY,
};
use crate::packet::{FIN, Kind, Packet, SCTP, TCP};
use crate::ports::{self, Intervals};
use crate::service::ToService;

/// The policy half of the maps: what [`class_of`] and [`row_allows`] look at.
pub trait Policies: Intervals {
    /// Class of exactly this address.
    fn exact_class(&self, address: &Address) -> Option<ExactClass>;
    /// Class of the longest block that contains this address.
    fn block_class(&self, address: &Address) -> Option<u32>;
    /// The row of a policy set for a class.
    fn row(&self, set: u16, class: u32) -> Option<Row>;
    /// The Service with this key.
    fn service(&self, key: &ServiceKey) -> Option<ServiceValue>;
    /// A kind of backend, by its index in the arena.
    fn backend(&self, index: u32) -> Option<Backend>;
}

/// The maps, as the verdict needs them.
pub trait Maps {
    /// The IPv4 flow table.
    type Flows4: flow::Table;
    /// The IPv6 flow table.
    type Flows6: flow::Table;
    /// The IPv4 flow table.
    fn flows4(&self) -> &Self::Flows4;
    /// The IPv6 flow table.
    fn flows6(&self) -> &Self::Flows6;
    /// The hash key of the flow tables.
    fn secret(&self) -> [u64; 2];
    /// Time and idle limits.
    fn clock(&self) -> Clock;
    /// Whether flows outlive the policy that allowed them (`--established=keep`).
    fn keeps_established(&self) -> bool;
    /// Whether a pod may send from its own addresses only.
    fn checks_source(&self) -> bool;
    /// [`class_of`] on these maps. (The kernel's is a function that is verified on its own.)
    fn class_of(&self, address: &Address) -> u32;
    /// [`row_allows`] on these maps.
    fn row_allows(&self, set: u16, class: u32, protocol: u8, port: u16) -> bool;
    /// [`crate::service::judge_service`] on these maps.
    fn judge_service(&self, set: u16, endpoint: u16, key: &ServiceKey) -> ToService;
    /// [`judge_flow`] on these maps.
    fn judge_flow(
        &self,
        endpoint: &Endpoint,
        direction: Direction,
        is_translated: bool,
        packet: &Packet,
    ) -> Judged {
        judge_flow(self, endpoint, direction, is_translated, packet)
    }
    /// [`crate::layout::Control::flags`].
    fn flags(&self) -> u64;
    /// Whether the address is the endpoint's own.
    fn owns(&self, endpoint: u16, address: &Address) -> bool;
    /// Remembers a first fragment's ports.
    fn remember_fragment(&self, endpoint: u16, direction: Direction, packet: &Packet);
    /// The protocol and the ports of the first fragment of this packet's datagram; 0: unknown.
    fn fragment_ports(&self, endpoint: u16, direction: Direction, packet: &Packet)
    -> FragmentPorts;
}

/// An endpoint as one packet sees it: read once, so that the whole verdict is by one state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Endpoint {
    /// Its id.
    pub id: u16,
    /// The epoch its flows must have been judged in.
    pub epoch: u32,
    /// Flows of earlier epochs belong to an earlier owner of the id.
    pub born: u32,
    /// Policy set of each direction, indexed by [`Direction`]; 0: not isolated.
    pub sets: [u16; 2],
}

impl Endpoint {
    /// In place of an endpoint that is not known; its number is nobody's.
    pub const NOBODY: Self = Self { id: 0, epoch: 0, born: 0, sets: [0, 0] };

    /// From the map's words; `None` if the endpoint was not completely written.
    #[inline(always)]
    pub const fn from_words(identity: u64, policy: u64, born: u64) -> Option<Self> {
        if policy & POLICY_VALID == 0 {
            return None;
        }
        Some(Self {
            id: identity as u16,
            epoch: (policy >> 32) as u32 & EPOCH_MASK,
            born: born as u32 & EPOCH_MASK,
            sets: [(policy >> 16) as u16, policy as u16],
        })
    }

    #[inline(always)]
    const fn is_isolated(&self, direction: Direction) -> bool {
        self.set(direction) != 0
    }

    /// The policy set of a direction. Not by an index, whose bounds the kernel's verifier loses
    /// sight of where the compiler computes with it.
    #[inline(always)]
    const fn set(&self, direction: Direction) -> u16 {
        let both = self.sets[0] as u32 | (self.sets[1] as u32) << 16;
        (both >> ((direction as u32 & 1) * 16)) as u16
    }
}

/// A verdict and what it was based on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// Whether the packet passes.
    pub is_allowed: bool,
    /// Why it was dropped, or [`Reason::NewFlow`].
    pub reason: Reason,
    /// Whether to count and report it (a packet of a known flow is neither).
    pub is_noted: bool,
    /// A live flow made room.
    pub has_evicted: bool,
    /// The packet passes, and is to be judged again once it is translated.
    pub is_stamped: bool,
    /// The remote address's class, if it was looked up.
    pub class: u32,
}

impl Verdict {
    const PASS: Self = Self {
        is_allowed: true,
        reason: Reason::NewFlow,
        is_noted: false,
        has_evicted: false,
        is_stamped: false,
        class: 0,
    };

    /// The verdict in one word, for passing between separately verified functions.
    #[inline(always)]
    pub const fn pack(self) -> u64 {
        self.is_allowed as u64
            | (self.is_noted as u64) << 1
            | (self.has_evicted as u64) << 2
            | (self.is_stamped as u64) << 3
            | (self.reason as u64) << 8
            | (self.class as u64) << 32
    }

    /// The inverse of [`Self::pack`].
    #[inline(always)]
    pub fn unpack(word: u64) -> Self {
        Self {
            is_allowed: word & 1 != 0,
            is_noted: word & 2 != 0,
            has_evicted: word & 4 != 0,
            is_stamped: word & 8 != 0,
            reason: Reason::from_number((word >> 8) as u8).unwrap_or(Reason::Inconsistent),
            class: (word >> 32) as u32,
        }
    }

    /// A drop for this reason, of a packet from or to an address of this class.
    #[inline(always)]
    pub const fn drop(reason: Reason, class: u32) -> Self {
        Self { is_allowed: false, reason, is_noted: true, class, ..Self::PASS }
    }
}

/// What is known of the flow that a packet belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Known {
    /// Nothing that lets it pass without another look.
    No = 0,
    /// It is allowed.
    Yes = 1,
    /// It is allowed so far, and what the pod sends in it is to be judged again, translated.
    Stamped = 2,
}

impl Known {
    #[inline(always)]
    const fn of(state: u64) -> Self {
        if state & STAMPED != 0 { Self::Stamped } else { Self::Yes }
    }
}

/// Whether the common case holds: a packet of a flow that was judged in the current epoch and
/// does not try to open it. Notes that it was seen.
#[inline(always)]
pub fn is_established<T: flow::Table, const KEY: usize>(
    table: &T,
    key: &flow::Key<KEY>,
    hash: u64,
    endpoint: &Endpoint,
    arrival: Arrival,
    packet: &Packet,
    clock: &Clock,
) -> Known {
    // Who opens a flow a second time matters, and whether it is the node is not known here.
    if packet.is_opening {
        return Known::No;
    }
    let Some(entry) = flow::find(table, key, hash) else { return Known::No };
    // Nor, towards the pod, whether a packet of a flow that the node opened is the node's.
    let may_pose = is_nodes(entry.state) && arrival.is_towards_pod();
    if entry.epoch() != endpoint.epoch || entry.is_expired(clock) || may_pose {
        return Known::No;
    }
    // What was to be translated has not been.
    if arrival.is_translated && entry.state & STAMPED != 0 {
        return Known::No;
    }
    note(&entry, arrival, packet, clock);
    if arrival.is_towards_pod() { Known::Yes } else { Known::of(entry.state) }
}

#[inline(always)]
fn note<B: flow::Bucket>(entry: &Entry<B>, arrival: Arrival, packet: &Packet, clock: &Clock) {
    let mut bits = flow::packet_bits(packet, !arrival.is_towards_pod(), entry.state);
    if arrival.is_translated {
        bits |= translated_bits(packet);
    }
    entry.touch(clock.now, bits, packet.is_opening);
}

/// What a packet of the pod's tells of the answers, which come back untranslated and are noted in
/// the flow to the Service.
#[inline(always)]
const fn translated_bits(packet: &Packet) -> u64 {
    let mut bits = 0;
    if packet.protocol == TCP {
        if !packet.is_opening {
            bits |= flow::REPLIED;
        }
        if packet.detail & FIN != 0 {
            bits |= flow::FIN_REMOTE;
        }
    }
    bits
}

/// Whether the node opened the flow.
#[inline(always)]
const fn is_nodes(state: u64) -> bool {
    state & OPENER == OPENED_BY_NODE
}

/// [`STAMPED`] where that is so.
#[inline(always)]
const fn stamp_bit(is_stamped: bool) -> u64 {
    if is_stamped { STAMPED } else { 0 }
}

/// The state bits of a flow that is opened in this direction.
#[inline(always)]
const fn opener_bits(direction: Direction, is_from_node: bool) -> u64 {
    match direction {
        Direction::Ingress if is_from_node => OPENED_BY_NODE,
        Direction::Ingress => OPENED_BY_REMOTE,
        Direction::Egress => 0,
    }
}

/// Whether this packet starts a connection, even where one with the same ports is known. (A ping
/// is one flow although each of its requests could open it.)
#[inline(always)]
const fn starts_over(packet: &Packet) -> bool {
    packet.is_opening && has_opening(packet)
}

/// Whether this packet belongs to a connection that another packet must have opened.
#[inline(always)]
const fn is_midway(packet: &Packet) -> bool {
    !packet.is_opening && has_opening(packet)
}

#[inline(always)]
const fn has_opening(packet: &Packet) -> bool {
    matches!(packet.protocol, TCP | SCTP)
}

/// How a packet came, apart from its headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrival {
    /// Towards the pod or from it.
    pub direction: Direction,
    /// Towards the pod, and generated by this node itself (not forwarded by it), or by the pod
    /// itself and sent back to it by way of a Service.
    pub is_from_node: bool,
    /// From the pod, and seen where it leaves the node or enters another pod: it was stamped.
    pub is_translated: bool,
}

impl Arrival {
    /// Towards the pod.
    #[inline(always)]
    pub const fn ingress(is_from_node: bool) -> Self {
        Self { direction: Direction::Ingress, is_from_node, is_translated: false }
    }

    /// From the pod.
    #[inline(always)]
    pub const fn egress() -> Self {
        Self { direction: Direction::Egress, is_from_node: false, is_translated: false }
    }

    /// From the pod, on its way.
    #[inline(always)]
    pub const fn transit() -> Self {
        Self { direction: Direction::Egress, is_from_node: false, is_translated: true }
    }

    #[inline(always)]
    const fn is_towards_pod(self) -> bool {
        self.direction as u8 == Direction::Ingress as u8
    }
}

/// The parts that [`judge`] is made of. The kernel's implementation replaces them by functions
/// that are verified on their own; what they compute is what stands here.
pub trait Judge: Maps {
    /// [`judge_in`] the IPv4 flow table.
    fn judge_in4(
        &self,
        endpoint: &Endpoint,
        arrival: Arrival,
        packet: &Packet,
        answers: Answers,
    ) -> Looked {
        let key = flow::key4(packet, endpoint.id);
        judge_in(self, self.flows4(), &key, endpoint, arrival, packet, answers)
    }

    /// [`judge_in`] the IPv6 flow table.
    fn judge_in6(
        &self,
        endpoint: &Endpoint,
        arrival: Arrival,
        packet: &Packet,
        answers: Answers,
    ) -> Looked {
        let key = flow::key6(packet, endpoint.id);
        judge_in(self, self.flows6(), &key, endpoint, arrival, packet, answers)
    }

    /// [`is_related_in`] the IPv4 flow table.
    fn is_related4(&self, endpoint: &Endpoint, inner: &Packet) -> Known {
        is_related_in(self, self.flows4(), &flow::key4(inner, endpoint.id), endpoint, inner)
    }

    /// [`is_related_in`] the IPv6 flow table.
    fn is_related6(&self, endpoint: &Endpoint, inner: &Packet) -> Known {
        is_related_in(self, self.flows6(), &flow::key6(inner, endpoint.id), endpoint, inner)
    }
}

/// Judges a packet that [`is_established`] did not settle. `inner`: what an ICMP error
/// ([`Kind::Error`]) is about, if it could be read.
#[inline(always)]
pub fn judge<J: Judge>(
    maps: &J,
    endpoint: &Endpoint,
    arrival: Arrival,
    packet: &mut Packet,
    inner: Option<&Packet>,
) -> Verdict {
    if has_flow(maps, endpoint, arrival, packet) {
        return judge_tracked(maps, endpoint, arrival, packet);
    }
    judge_apart(maps, endpoint, arrival, packet, inner)
}

/// Whether the packet has a flow by which to judge it. Fragments after the first get the ports of
/// their datagram's first one, if that is known.
#[inline(always)]
pub fn has_flow<M: Maps>(
    maps: &M,
    endpoint: &Endpoint,
    arrival: Arrival,
    packet: &mut Packet,
) -> bool {
    if packet.is_first_fragment {
        maps.remember_fragment(endpoint.id, arrival.direction, packet);
    }
    if packet.kind as u8 == Kind::Fragment as u8 {
        let ports = maps.fragment_ports(endpoint.id, arrival.direction, packet);
        if ports != 0 {
            (packet.local_port, packet.remote_port) = ((ports >> 32) as u16, (ports >> 16) as u16);
            packet.protocol = (ports >> 8) as u8;
            packet.kind = Kind::Flow;
        }
    }
    packet.kind as u8 == Kind::Flow as u8
}

/// Judges a packet that has no flow; `inner` as for [`judge`].
#[inline(always)]
pub fn judge_apart<J: Judge>(
    maps: &J,
    endpoint: &Endpoint,
    arrival: Arrival,
    packet: &Packet,
    inner: Option<&Packet>,
) -> Verdict {
    if let Some(reason) = refuses_source(maps, endpoint, arrival, packet) {
        return Verdict::drop(reason, 0);
    }
    // What a pod says about a packet goes to that packet's sender. Else any flow would let it
    // send anything, as the rest of an error, to anybody.
    if let Some(inner) = inner
        && (arrival.is_towards_pod() || packet.remote.is_same(&inner.remote))
    {
        let known = if inner.local.family == 6 {
            maps.is_related6(endpoint, inner)
        } else {
            maps.is_related4(endpoint, inner)
        };
        if known as u32 != Known::No as u32 {
            let is_stamped = known as u32 == Known::Stamped as u32
                && !arrival.is_towards_pod()
                && !arrival.is_translated;
            return Verdict { is_stamped, ..Verdict::PASS };
        }
    }
    judge_alone(maps, endpoint, arrival, packet)
}

/// What the policies said about one packet so far, by the direction of the flow: [`Judged::pack`]
/// of it, zero where nobody asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Answers {
    /// Opened by the other side.
    pub ingress: u64,
    /// Opened by the pod.
    pub egress: u64,
}

impl Answers {
    #[inline(always)]
    const fn get(self, direction: Direction) -> Result<Judged, Direction> {
        let word = match direction {
            Direction::Ingress => self.ingress,
            Direction::Egress => self.egress,
        };
        if word == 0 { Err(direction) } else { Ok(Judged::unpack(word)) }
    }

    #[inline(always)]
    const fn set(&mut self, direction: Direction, judged: Judged) {
        match direction {
            Direction::Ingress => self.ingress = judged.pack(),
            Direction::Egress => self.egress = judged.pack(),
        }
    }
}

/// A verdict, or the direction that the policies have to be asked about first.
pub type Looked = Result<Verdict, Direction>;

/// In one word, see [`Verdict::pack`].
#[inline(always)]
pub const fn pack_looked(looked: Looked) -> u64 {
    match looked {
        Ok(verdict) => verdict.pack(),
        Err(Direction::Ingress) => ASKS,
        Err(Direction::Egress) => ASKS | ASKS_EGRESS,
    }
}

/// The inverse of [`pack_looked`].
#[inline(always)]
pub fn unpack_looked(word: u64) -> Looked {
    match (word & ASKS != 0, word & ASKS_EGRESS != 0) {
        (false, _) => Ok(Verdict::unpack(word)),
        (true, false) => Err(Direction::Ingress),
        (true, true) => Err(Direction::Egress),
    }
}

/// Bits that [`Verdict::pack`] does not use.
const ASKS: u64 = 1 << 4;
const ASKS_EGRESS: u64 = 1 << 5;

/// Judges a packet that has a flow. The flow table says which policies matter, and they are asked
/// from here and not from there, because in the kernel either has little stack left.
#[inline(always)]
pub fn judge_tracked<J: Judge>(
    maps: &J,
    endpoint: &Endpoint,
    arrival: Arrival,
    packet: &Packet,
) -> Verdict {
    let mut answers = Answers::default();
    // What opens a connection is nearly always new: that saves one look.
    if packet.is_opening && !arrival.is_from_node {
        let Arrival { direction, is_translated, .. } = arrival;
        answers.set(direction, maps.judge_flow(endpoint, direction, is_translated, packet));
    }
    let mut looks = 0;
    // Once both directions are answered nothing is left to ask.
    while looks < 3 {
        let looked = if packet.local.family == 6 {
            maps.judge_in6(endpoint, arrival, packet, answers)
        } else {
            maps.judge_in4(endpoint, arrival, packet, answers)
        };
        match looked {
            Ok(verdict) => return verdict,
            Err(direction) => {
                let judged = maps.judge_flow(endpoint, direction, arrival.is_translated, packet);
                answers.set(direction, judged);
            }
        }
        looks += 1;
    }
    Verdict::drop(Reason::Inconsistent, 0)
}

/// Judges a packet that could not be parsed to its end, for this reason. Where no policy isolates
/// it passes like any other, and like any other only from the pod's own address if it has one.
#[inline(always)]
pub fn judge_refused<M: Maps + ?Sized>(
    maps: &M,
    endpoint: &Endpoint,
    arrival: Arrival,
    packet: &Packet,
    reason: Reason,
) -> Verdict {
    if endpoint.is_isolated(arrival.direction) {
        return Verdict::drop(reason, 0);
    }
    // Neighbours talk from link-local addresses; of other packets none or both were read.
    if packet.local.family == 0 || reason as u8 == Reason::RouterMessage as u8 {
        return Verdict::PASS;
    }
    match refuses_source(maps, endpoint, arrival, packet) {
        Some(reason) => Verdict::drop(reason, 0),
        None => Verdict::PASS,
    }
}

/// Judges a packet of a flow with this key in `table`, by what the policies answered so far.
/// Changes nothing before it has all answers that it needs.
#[inline(always)]
pub fn judge_in<M: Maps + ?Sized, T: flow::Table, const KEY: usize>(
    maps: &M,
    table: &T,
    key: &flow::Key<KEY>,
    endpoint: &Endpoint,
    arrival: Arrival,
    packet: &Packet,
    answers: Answers,
) -> Looked {
    let opener = opener_bits(arrival.direction, arrival.is_from_node);
    let clock = maps.clock();
    let hash = flow::hash(key, maps.secret());
    let mut is_remembered = true;
    // A connection that goes on after it was idle for its time is still that of who opened it, as
    // long as its entry has not been given away. Else the answer of a server would make it the
    // server's own, and who opened it could not be cut off any more.
    if let Some(entry) = flow::find(table, key, hash)
        && (is_midway(packet) || !entry.is_expired(&clock))
        && !is_older(entry.epoch(), endpoint.born)
        && !(packet.is_opening && entry.state & OPENER != opener)
        && !poses_as_node(entry.state, arrival)
    {
        if !(arrival.is_translated && entry.state & STAMPED != 0) {
            return judge_known(maps, &entry, endpoint, arrival, packet, &clock, answers);
        }
        // The entry is that of the first look: nobody has translated the packet. It must neither
        // pass by that entry nor replace it.
        is_remembered = false;
    }
    let verdict = judge_new(maps, endpoint, arrival, packet, is_remembered, answers)?;
    if !verdict.is_allowed || packet.is_answer || !is_remembered {
        return Ok(verdict);
    }
    let bits = new_bits(arrival, packet, verdict.is_stamped, answers)?;
    let inserted = flow::insert(table, key, hash, endpoint.epoch, bits, &clock);
    Ok(Verdict { has_evicted: matches!(inserted, Inserted::Evicted), ..verdict })
}

/// Bits for opener and stamp of a flow that is entered because of this packet, which passes.
///
/// A connection that is met midway was forgotten (or never seen), and either end may have opened
/// it. Where the policies of the other direction would not have let it, this one was; else nobody
/// knows, and it has to stay allowed in both: whoever it was, a change that forbids it cuts it.
/// What a packet's own direction does not allow never passes on the ground that it could be an
/// answer: anybody could send such answers.
#[inline(always)]
fn new_bits(
    arrival: Arrival,
    packet: &Packet,
    is_stamped: bool,
    answers: Answers,
) -> Result<u64, Direction> {
    let seen = opener_bits(arrival.direction, arrival.is_from_node) | stamp_bit(is_stamped);
    // Nobody opens a connection from a Service's address, nor with a packet that is stamped.
    if !is_midway(packet) || arrival.is_from_node || arrival.is_translated || is_stamped {
        return Ok(seen);
    }
    let other = if arrival.is_towards_pod() { Direction::Egress } else { Direction::Ingress };
    let judged = answers.get(other)?;
    if judged.is_allowed {
        return Ok(OPENED_UNSEEN | stamp_bit(judged.is_stamped));
    }
    Ok(seen)
}

/// Whether somebody else sends to the pod in a flow that the node opened: a forged source.
#[inline(always)]
const fn poses_as_node(state: u64, arrival: Arrival) -> bool {
    is_nodes(state) && arrival.is_towards_pod() && !arrival.is_from_node
}

/// Judges a packet of a known flow: as long as that is allowed in the direction it was opened in,
/// its packets pass both ways.
#[inline(always)]
fn judge_known<M: Maps + ?Sized, B: flow::Bucket>(
    maps: &M,
    entry: &Entry<B>,
    endpoint: &Endpoint,
    arrival: Arrival,
    packet: &Packet,
    clock: &Clock,
    answers: Answers,
) -> Looked {
    let opener_bits = entry.state & OPENER;
    let mut is_stamped = entry.state & STAMPED != 0;
    let is_expired = entry.is_expired(clock);
    if entry.epoch() != endpoint.epoch || is_expired {
        let judged = judge_opened(entry.state, |direction| answers.get(direction))?;
        let is_kept = maps.keeps_established() && !starts_over(packet) && !is_expired;
        if judged.is_allowed {
            // A flow that is kept goes on as it is: what is stamped from its middle on would be
            // judged as new where it leaves. A new one with its ports is judged as such.
            if !is_kept || is_stamped == judged.is_stamped {
                is_stamped = judged.is_stamped;
                entry.renew(endpoint.epoch, opener_bits | stamp_bit(is_stamped));
            }
        } else if !is_kept {
            // The entry stays as it is, with its old epoch: whichever end sends next, the flow is
            // judged in its opening direction again, until it has been idle for its time. A
            // denied packet does not keep it from being idle, nor does one of the node's, which
            // passes in any case but makes the flow no better.
            if arrival.is_from_node {
                return Ok(Verdict::PASS);
            }
            let cut = if packet.is_opening { Reason::Policy } else { Reason::PolicyCut };
            return Ok(Verdict::drop(judged.reason(cut), judged.class));
        }
    }
    note(entry, arrival, packet, clock);
    Ok(Verdict { is_stamped: is_stamped && !arrival.is_towards_pod(), ..Verdict::PASS })
}

/// Judges a packet of no known flow; `is_new`: of no flow at all that could be answered.
#[inline(always)]
fn judge_new<M: Maps + ?Sized>(
    maps: &M,
    endpoint: &Endpoint,
    arrival: Arrival,
    packet: &Packet,
    is_new: bool,
    answers: Answers,
) -> Looked {
    let Arrival { direction, is_from_node, is_translated } = arrival;
    if let Some(reason) = refuses_source(maps, endpoint, arrival, packet) {
        return Ok(Verdict::drop(reason, 0));
    }
    if is_from_node {
        return Ok(Verdict { is_noted: true, ..Verdict::PASS });
    }
    // An answer to something never seen opens nothing: an isolated pod has not asked for it.
    if packet.is_answer && endpoint.is_isolated(direction) && is_new {
        return Ok(Verdict::drop(Reason::Policy, 0));
    }
    let judged = answers.get(direction)?;
    Ok(if judged.is_allowed {
        // The flow was noted where it began.
        let Judged { is_stamped, class, .. } = judged;
        Verdict { is_noted: !is_translated, is_stamped, class, ..Verdict::PASS }
    } else {
        Verdict::drop(judged.reason(Reason::Policy), judged.class)
    })
}

/// Judges a packet that belongs to no flow, and whose source is in order, by itself: ICMP that is
/// neither request nor reply, an unrelated ICMP error, a later fragment of an unknown datagram.
#[inline(always)]
fn judge_alone<M: Maps>(
    maps: &M,
    endpoint: &Endpoint,
    arrival: Arrival,
    packet: &Packet,
) -> Verdict {
    let Arrival { direction, is_from_node, is_translated } = arrival;
    if is_from_node || !endpoint.is_isolated(direction) {
        return Verdict::PASS;
    }
    let class = maps.class_of(&packet.remote);
    // Without ports only "everything" matches: protocol 255 (reserved) is in no port set.
    let passes = maps.owns(endpoint.id, &packet.remote)
        || maps.row_allows(endpoint.set(direction), class, NO_PORTS, 0);
    if passes {
        // Whether it will be translated, as part of somebody's flow, cannot be told.
        let is_stamped = !arrival.is_towards_pod() && !is_translated && is_transit_ready(maps);
        return Verdict { is_stamped, class, ..Verdict::PASS };
    }
    let reason =
        if packet.kind as u8 == Kind::Fragment as u8 { Reason::Fragment } else { Reason::Policy };
    Verdict::drop(reason, class)
}

const NO_PORTS: u8 = 255;

/// A pod may send from its own addresses only. On its way a packet may have got another one.
#[inline(always)]
fn refuses_source<M: Maps + ?Sized>(
    maps: &M,
    endpoint: &Endpoint,
    arrival: Arrival,
    packet: &Packet,
) -> Option<Reason> {
    let is_spoofed = !arrival.is_towards_pod()
        && !arrival.is_translated
        && maps.checks_source()
        && !maps.owns(endpoint.id, &packet.local);
    if is_spoofed { Some(Reason::SourceAddress) } else { None }
}

/// Whether the flow that an ICMP error quotes, with this key in `table`, is known and still
/// allowed.
#[inline(always)]
pub fn is_related_in<M: Maps + ?Sized, T: flow::Table, const KEY: usize>(
    maps: &M,
    table: &T,
    key: &flow::Key<KEY>,
    endpoint: &Endpoint,
    inner: &Packet,
) -> Known {
    let hash = flow::hash(key, maps.secret());
    let Some(entry) = flow::find(table, key, hash) else { return Known::No };
    if entry.is_expired(&maps.clock()) || is_older(entry.epoch(), endpoint.born) {
        return Known::No;
    }
    if entry.epoch() == endpoint.epoch || maps.keeps_established() {
        return Known::of(entry.state);
    }
    let ask = |direction| Ok(maps.judge_flow(endpoint, direction, false, inner));
    let Ok(judged) = judge_opened(entry.state, ask) else { return Known::No };
    if judged.is_allowed { Known::of(stamp_bit(judged.is_stamped)) } else { Known::No }
}

/// What the policies say of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Judged {
    is_allowed: bool,
    /// Its packets are to be judged again, translated.
    is_stamped: bool,
    /// Denied because nobody can see where it will go.
    is_undecidable: bool,
    /// Class of the remote address, if it was looked up.
    class: u32,
}

impl Judged {
    const ALLOWED: Self =
        Self { is_allowed: true, is_stamped: false, is_undecidable: false, class: 0 };
    const STAMPED: Self = Self { is_stamped: true, ..Self::ALLOWED };
    const DENIED: Self = Self { is_allowed: false, ..Self::ALLOWED };
    const UNDECIDABLE: Self = Self { is_undecidable: true, ..Self::DENIED };

    /// In one word, for passing between separately verified functions. Never zero.
    #[inline(always)]
    pub const fn pack(self) -> u64 {
        self.is_allowed as u64
            | (self.is_stamped as u64) << 1
            | (self.is_undecidable as u64) << 2
            | 1 << 3
            | (self.class as u64) << 32
    }

    /// The inverse of [`Self::pack`]; zero denies.
    #[inline(always)]
    pub const fn unpack(word: u64) -> Self {
        Self {
            is_allowed: word & 1 != 0,
            is_stamped: word & 2 != 0,
            is_undecidable: word & 4 != 0,
            class: (word >> 32) as u32,
        }
    }

    /// Allowed if it can be judged again.
    #[inline(always)]
    const fn stamped_if(is_ready: bool) -> Self {
        if is_ready { Self::STAMPED } else { Self::UNDECIDABLE }
    }

    #[inline(always)]
    const fn reason(&self, otherwise: Reason) -> Reason {
        if self.is_undecidable { Reason::ServiceMixed } else { otherwise }
    }
}

#[inline(always)]
fn is_transit_ready<M: Maps + ?Sized>(maps: &M) -> bool {
    maps.flags() & TRANSIT_READY != 0
}

/// What the policies say of a flow with this state word; `ask`: what they say by direction.
#[inline(always)]
fn judge_opened(
    state: u64,
    ask: impl Fn(Direction) -> Result<Judged, Direction>,
) -> Result<Judged, Direction> {
    let opener = state & OPENER;
    if opener == OPENED_BY_NODE {
        return Ok(Judged::ALLOWED);
    }
    if opener != 0 {
        let judged = ask(Direction::Ingress)?;
        if opener == OPENED_BY_REMOTE || !judged.is_allowed {
            return Ok(judged);
        }
    }
    ask(Direction::Egress)
}

/// What the policies say of a flow opened in `direction`.
#[inline(always)]
pub fn judge_flow<M: Maps + ?Sized>(
    maps: &M,
    endpoint: &Endpoint,
    direction: Direction,
    is_translated: bool,
    packet: &Packet,
) -> Judged {
    let set = endpoint.set(direction);
    let is_egress = direction as u8 == Direction::Egress as u8;
    if is_egress && !(set == 0 && is_translated) {
        let to_service = judge_service(maps, endpoint, set, is_translated, packet);
        if let Some(judged) = to_service {
            return judged;
        }
    }
    if set == 0 {
        return Judged::ALLOWED;
    }
    let port = if is_egress { packet.remote_port } else { packet.local_port };
    let class = maps.class_of(&packet.remote);
    let is_allowed = maps.row_allows(set, class, packet.protocol, port)
        // A pod always reaches itself.
        || maps.owns(endpoint.id, &packet.remote);
    if is_allowed && is_egress && !is_translated && maps.flags() & SERVICES_INCOMPLETE != 0 {
        // It may be a Service after all.
        return Judged { class, ..Judged::stamped_if(is_transit_ready(maps)) };
    }
    Judged { is_allowed, class, ..Judged::DENIED }
}

/// What the policies say of a flow to a Service, if they need not look at the address.
#[inline(always)]
fn judge_service<M: Maps + ?Sized>(
    maps: &M,
    endpoint: &Endpoint,
    set: u16,
    is_translated: bool,
    packet: &Packet,
) -> Option<Judged> {
    let key = ServiceKey {
        address: packet.remote,
        port: packet.remote_port,
        protocol: packet.protocol,
        reserved: 0,
    };
    match maps.judge_service(set, endpoint.id, &key) {
        ToService::None => None,
        ToService::Own if is_translated => Some(Judged::ALLOWED),
        ToService::Own => Some(Judged::STAMPED),
        // Whoever is not isolated is stamped to be recognised by itself, and for nothing else.
        _ if set == 0 => None,
        // Nobody has translated it. Where nobody is known to whom it would be, it remains a packet
        // to this address; else who it will be is decided elsewhere.
        ToService::Empty if is_translated => None,
        ToService::Mixed if is_translated => Some(Judged::UNDECIDABLE),
        ToService::Mixed | ToService::Empty => Some(Judged::stamped_if(is_transit_ready(maps))),
        ToService::Undecidable => Some(Judged::UNDECIDABLE),
        // Whoever translates may know of backends that are not known here yet, and goes on with
        // those that are not known here any more.
        ToService::Allowed => {
            let is_stamped = !is_translated && is_transit_ready(maps);
            Some(Judged { is_stamped, ..Judged::ALLOWED })
        }
        ToService::Denied => Some(Judged::DENIED),
    }
}

/// The class of an address: its own, else that of the longest block around it, else 0.
#[inline(always)]
pub fn class_of<P: Policies>(maps: &P, address: &Address) -> u32 {
    // Twice, because an element that is being reused says so by a wrong echo.
    let mut attempt = 0;
    while attempt < 2 {
        match maps.exact_class(address) {
            None => break,
            Some(exact) if (exact >> 32) as u32 == address.echo() => return exact as u32,
            Some(_) => attempt += 1,
        }
    }
    maps.block_class(address).unwrap_or_default()
}

/// Whether `set` allows this protocol and destination port for `class`.
#[inline(always)]
pub fn row_allows<P: Policies>(maps: &P, set: u16, class: u32, protocol: u8, port: u16) -> bool {
    if let Some(row) = maps.row(set, class) {
        return ports::allows(maps, &row, protocol, port);
    }
    match maps.row(set, 0) {
        Some(row) => ports::allows(maps, &row, protocol, port),
        None => false,
    }
}

/// Whether epoch `a` came before `b`, modulo their range.
#[inline(always)]
const fn is_older(a: u32, b: u32) -> bool {
    a.wrapping_sub(b) & EPOCH_MASK > EPOCH_MASK / 2
}
