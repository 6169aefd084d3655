//! The verdict on one packet of an endpoint, from its headers and the maps' contents.
//!
//! The rules are those of ARCHITECTURE.md's semantics table. This module must never parse, count,
//! log or touch a map itself; it asks [`Maps`].

use crate::flow::{self, Clock, Entry, Inserted, OPENED_BY_NODE, OPENED_BY_REMOTE};
use crate::layout::{
    Address, Backend, Direction, EPOCH_MASK, ExactClass, POLICY_VALID, Reason, Row, ServiceKey,
    ServiceValue,
};
use crate::packet::{Kind, Packet, SCTP, TCP};
use crate::ports::{self, Intervals};

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
    /// [`judge_service`] on these maps.
    fn judge_service(&self, set: u16, key: &ServiceKey) -> ToService;
    /// Whether the address is the endpoint's own.
    fn owns(&self, endpoint: u16, address: &Address) -> bool;
    /// Remembers a first fragment's ports.
    fn remember_fragment(&self, endpoint: u16, direction: Direction, packet: &Packet);
    /// The `(local, remote)` ports of the first fragment of this packet's datagram.
    fn fragment_ports(
        &self,
        endpoint: u16,
        direction: Direction,
        packet: &Packet,
    ) -> Option<(u16, u16)>;
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
        self.sets[direction as usize] != 0
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
    /// The remote address's class, if it was looked up.
    pub class: u32,
}

impl Verdict {
    const PASS: Self = Self {
        is_allowed: true,
        reason: Reason::NewFlow,
        is_noted: false,
        has_evicted: false,
        class: 0,
    };

    /// The verdict in one word, for passing between separately verified functions.
    #[inline(always)]
    pub const fn pack(self) -> u64 {
        self.is_allowed as u64
            | (self.is_noted as u64) << 1
            | (self.has_evicted as u64) << 2
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
            reason: Reason::from_number((word >> 8) as u8).unwrap_or(Reason::Inconsistent),
            class: (word >> 32) as u32,
        }
    }

    /// A drop for this reason, of a packet from or to an address of this class.
    #[inline(always)]
    pub const fn drop(reason: Reason, class: u32) -> Self {
        Self { is_allowed: false, reason, is_noted: true, has_evicted: false, class }
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
    direction: Direction,
    packet: &Packet,
    clock: &Clock,
) -> bool {
    // Who opens a flow a second time matters, and whether it is the node is not known here.
    if packet.is_opening {
        return false;
    }
    let Some(entry) = flow::find(table, key, hash) else { return false };
    // Nor, towards the pod, whether a packet of a flow that the node opened is the node's.
    let may_pose = entry.state & OPENED_BY_NODE != 0 && direction as u8 == Direction::Ingress as u8;
    if entry.epoch() != endpoint.epoch || entry.is_expired(clock) || may_pose {
        return false;
    }
    note(&entry, direction, packet, clock);
    true
}

#[inline(always)]
fn note<B: flow::Bucket>(entry: &Entry<B>, direction: Direction, packet: &Packet, clock: &Clock) {
    let bits = flow::packet_bits(packet, direction as u8 == Direction::Egress as u8, entry.state);
    entry.touch(clock.now, bits, packet.is_opening);
}

const OPENER: u64 = OPENED_BY_REMOTE | OPENED_BY_NODE;

/// The state bits of a flow that is opened in this direction.
#[inline(always)]
const fn opener_bits(direction: Direction, is_from_node: bool) -> u64 {
    let node = if is_from_node { OPENED_BY_NODE } else { 0 };
    match direction {
        Direction::Ingress => OPENED_BY_REMOTE | node,
        Direction::Egress => 0,
    }
}

/// Whether this packet starts a connection, even where one with the same ports is known. (A ping
/// is one flow although each of its requests could open it.)
#[inline(always)]
const fn starts_over(packet: &Packet) -> bool {
    packet.is_opening && matches!(packet.protocol, TCP | SCTP)
}

#[inline(always)]
const fn opener(state: u64) -> Direction {
    if state & OPENED_BY_REMOTE != 0 { Direction::Ingress } else { Direction::Egress }
}

/// How a packet came, apart from its headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrival {
    /// Towards the pod or from it.
    pub direction: Direction,
    /// Towards the pod, and generated by this node itself (not forwarded by it).
    pub is_from_node: bool,
}

/// The parts that [`judge`] is made of. The kernel's implementation replaces them by functions
/// that are verified on their own; what they compute is what stands here.
pub trait Judge: Maps {
    /// [`judge_in`] the IPv4 flow table.
    fn judge_flow4(&self, endpoint: &Endpoint, arrival: Arrival, packet: &Packet) -> Verdict {
        let key = flow::key4(packet, endpoint.id);
        judge_in(self, self.flows4(), &key, endpoint, arrival, packet)
    }

    /// [`judge_in`] the IPv6 flow table.
    fn judge_flow6(&self, endpoint: &Endpoint, arrival: Arrival, packet: &Packet) -> Verdict {
        let key = flow::key6(packet, endpoint.id);
        judge_in(self, self.flows6(), &key, endpoint, arrival, packet)
    }

    /// [`is_related_in`] the IPv4 flow table.
    fn is_related4(&self, endpoint: &Endpoint, inner: &Packet) -> bool {
        is_related_in(self, self.flows4(), &flow::key4(inner, endpoint.id), endpoint, inner)
    }

    /// [`is_related_in`] the IPv6 flow table.
    fn is_related6(&self, endpoint: &Endpoint, inner: &Packet) -> bool {
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
    if packet.is_first_fragment {
        maps.remember_fragment(endpoint.id, arrival.direction, packet);
    }
    if packet.kind as u8 == Kind::Fragment as u8
        && let Some((local, remote)) = maps.fragment_ports(endpoint.id, arrival.direction, packet)
    {
        (packet.local_port, packet.remote_port) = (local, remote);
        packet.kind = Kind::Flow;
    }
    if packet.kind as u8 == Kind::Flow as u8 {
        return if packet.local.family == 6 {
            maps.judge_flow6(endpoint, arrival, packet)
        } else {
            maps.judge_flow4(endpoint, arrival, packet)
        };
    }
    if let Some(reason) = refuses_source(maps, endpoint, arrival.direction, packet) {
        return Verdict::drop(reason, 0);
    }
    // What a pod says about a packet goes to that packet's sender. Else any flow would let it
    // send anything, as the rest of an error, to anybody.
    if let Some(inner) = inner
        && (arrival.direction as u8 == Direction::Ingress as u8
            || packet.remote.is_same(&inner.remote))
    {
        let is_related = if inner.local.family == 6 {
            maps.is_related6(endpoint, inner)
        } else {
            maps.is_related4(endpoint, inner)
        };
        if is_related {
            return Verdict::PASS;
        }
    }
    judge_alone(maps, endpoint, arrival, packet)
}

/// Judges a packet of a flow with this key in `table`.
#[inline(always)]
pub fn judge_in<M: Maps + ?Sized, T: flow::Table, const KEY: usize>(
    maps: &M,
    table: &T,
    key: &flow::Key<KEY>,
    endpoint: &Endpoint,
    arrival: Arrival,
    packet: &Packet,
) -> Verdict {
    let opener = opener_bits(arrival.direction, arrival.is_from_node);
    let clock = maps.clock();
    let hash = flow::hash(key, maps.secret());
    if let Some(entry) = flow::find(table, key, hash)
        && !entry.is_expired(&clock)
        && !is_older(entry.epoch(), endpoint.born)
        && !(packet.is_opening && entry.state & OPENER != opener)
        && !poses_as_node(entry.state, arrival)
    {
        return judge_known(maps, &entry, endpoint, arrival, packet, &clock);
    }
    let verdict = judge_new(maps, endpoint, arrival, packet);
    if !verdict.is_allowed || packet.is_answer {
        return verdict;
    }
    let inserted = flow::insert(table, key, hash, endpoint.epoch, opener, &clock);
    Verdict { has_evicted: matches!(inserted, Inserted::Evicted), ..verdict }
}

/// Whether somebody else sends to the pod in a flow that the node opened: a forged source.
#[inline(always)]
const fn poses_as_node(state: u64, arrival: Arrival) -> bool {
    state & OPENED_BY_NODE != 0
        && arrival.direction as u8 == Direction::Ingress as u8
        && !arrival.is_from_node
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
) -> Verdict {
    let opener_bits = entry.state & OPENER;
    if entry.epoch() != endpoint.epoch {
        let (is_allowed, class) = if opener_bits & OPENED_BY_NODE != 0 {
            (true, 0)
        } else {
            is_allowed(maps, endpoint, opener(entry.state), packet)
        };
        if is_allowed {
            entry.renew(endpoint.epoch, opener_bits);
        } else if !maps.keeps_established() || starts_over(packet) {
            // The entry stays as it is, with its old epoch: whichever end sends next, the flow is
            // judged in its opening direction again, until it has been idle for its time. A
            // denied packet does not keep it from being idle, nor does one of the node's, which
            // passes in any case but makes the flow no better.
            if arrival.is_from_node {
                return Verdict::PASS;
            }
            let reason = if packet.is_opening { Reason::Policy } else { Reason::PolicyCut };
            return Verdict::drop(reason, class);
        }
    }
    note(entry, arrival.direction, packet, clock);
    Verdict::PASS
}

/// Judges a packet of no known flow.
#[inline(always)]
fn judge_new<M: Maps + ?Sized>(
    maps: &M,
    endpoint: &Endpoint,
    arrival: Arrival,
    packet: &Packet,
) -> Verdict {
    let Arrival { direction, is_from_node } = arrival;
    if let Some(reason) = refuses_source(maps, endpoint, direction, packet) {
        return Verdict::drop(reason, 0);
    }
    if is_from_node {
        return Verdict { is_noted: true, ..Verdict::PASS };
    }
    // An answer to something never seen opens nothing: an isolated pod has not asked for it.
    if packet.is_answer && endpoint.is_isolated(direction) {
        return Verdict::drop(Reason::Policy, 0);
    }
    let (is_allowed, class) = is_allowed(maps, endpoint, direction, packet);
    if is_allowed {
        Verdict { is_noted: true, class, ..Verdict::PASS }
    } else if class == MIXED {
        Verdict::drop(Reason::ServiceMixed, 0)
    } else {
        Verdict::drop(Reason::Policy, class)
    }
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
    let Arrival { direction, is_from_node } = arrival;
    if is_from_node || !endpoint.is_isolated(direction) {
        return Verdict::PASS;
    }
    let class = maps.class_of(&packet.remote);
    // Without ports only "everything" matches: protocol 255 (reserved) is in no port set.
    let passes = maps.owns(endpoint.id, &packet.remote)
        || maps.row_allows(endpoint.sets[direction as usize], class, NO_PORTS, 0);
    if passes {
        return Verdict { class, ..Verdict::PASS };
    }
    let reason =
        if packet.kind as u8 == Kind::Fragment as u8 { Reason::Fragment } else { Reason::Policy };
    Verdict::drop(reason, class)
}

const NO_PORTS: u8 = 255;

#[inline(always)]
fn refuses_source<M: Maps + ?Sized>(
    maps: &M,
    endpoint: &Endpoint,
    direction: Direction,
    packet: &Packet,
) -> Option<Reason> {
    let is_spoofed = direction as u8 == Direction::Egress as u8
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
) -> bool {
    let hash = flow::hash(key, maps.secret());
    let Some(entry) = flow::find(table, key, hash) else { return false };
    if entry.is_expired(&maps.clock()) || is_older(entry.epoch(), endpoint.born) {
        return false;
    }
    entry.epoch() == endpoint.epoch
        || maps.keeps_established()
        || entry.state & OPENED_BY_NODE != 0
        || is_allowed(maps, endpoint, opener(entry.state), inner).0
}

/// Whether a flow opened in `direction` is allowed, and the class of its remote address.
#[inline(always)]
fn is_allowed<M: Maps + ?Sized>(
    maps: &M,
    endpoint: &Endpoint,
    direction: Direction,
    packet: &Packet,
) -> (bool, u32) {
    let set = endpoint.sets[direction as usize];
    if set == 0 {
        return (true, 0);
    }
    let port = match direction {
        Direction::Ingress => packet.local_port,
        Direction::Egress => packet.remote_port,
    };
    if direction as u8 == Direction::Egress as u8 {
        let key =
            ServiceKey { address: packet.remote, port, protocol: packet.protocol, reserved: 0 };
        match maps.judge_service(set, &key) {
            ToService::None => {}
            ToService::Allowed => return (true, 0),
            ToService::Denied => return (false, 0),
            ToService::Mixed => return (false, MIXED),
        }
    }
    let class = maps.class_of(&packet.remote);
    let allowed = maps.row_allows(set, class, packet.protocol, port)
        // A pod always reaches itself.
        || maps.owns(endpoint.id, &packet.remote);
    (allowed, class)
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

/// What a policy set says of packets to a Service. A policy speaks of pods and their ports; at the
/// client's interface the packet still has the Service's address, so its backends are asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum ToService {
    /// There is no Service there: the address is judged like any other.
    None = 0,
    /// No backend is allowed, or there is none.
    Denied = 1,
    /// Every backend is allowed.
    Allowed = 2,
    /// Some are and some are not.
    Mixed = 3,
}

impl ToService {
    /// The inverse of `as u32`; an unknown number denies.
    #[inline(always)]
    pub const fn from_number(number: u32) -> Self {
        match number {
            0 => Self::None,
            2 => Self::Allowed,
            3 => Self::Mixed,
            _ => Self::Denied,
        }
    }

    /// The verdict on a Service of which this many backends were asked and allowed.
    #[inline(always)]
    pub const fn of(n_asked: u32, n_allowed: u32) -> Self {
        if n_allowed == 0 {
            Self::Denied
        } else if n_allowed == n_asked {
            Self::Allowed
        } else {
            Self::Mixed
        }
    }
}

/// In place of a class, for a packet to a Service with [`ToService::Mixed`]: classes are smaller.
const MIXED: u32 = u32::MAX;

/// Where the backends of a Service stand in the arena: `(offset, count)`.
#[inline(always)]
pub fn find_service<P: Policies>(maps: &P, key: &ServiceKey) -> Option<(u32, u32)> {
    let mut attempt = 0;
    while attempt < 2 {
        let value = maps.service(key)?;
        if value as u16 == key.echo() {
            return Some(((value >> 32) as u32, u32::from((value >> 16) as u16)));
        }
        attempt += 1;
    }
    None
}

/// Asks for each backend whether `set` allows it.
#[inline(always)]
pub fn judge_service<P: Policies>(maps: &P, set: u16, key: &ServiceKey) -> ToService {
    let Some((offset, count)) = find_service(maps, key) else { return ToService::None };
    let mut n_allowed = 0;
    for index in offset..offset + count {
        n_allowed += u32::from(backend_allows(maps, set, index, key.protocol));
    }
    ToService::of(count, n_allowed)
}

/// Whether `set` allows the backend at `index` of the arena.
#[inline(always)]
pub fn backend_allows<P: Policies>(maps: &P, set: u16, index: u32, protocol: u8) -> bool {
    match maps.backend(index) {
        Some(backend) => {
            row_allows(maps, set, (backend >> 32) as u32, protocol, (backend >> 16) as u16)
        }
        None => false,
    }
}

/// Whether epoch `a` came before `b`, modulo their range.
#[inline(always)]
const fn is_older(a: u32, b: u32) -> bool {
    a.wrapping_sub(b) & EPOCH_MASK > EPOCH_MASK / 2
}
