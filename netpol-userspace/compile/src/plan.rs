//! What the compiler hands to the datapath: numbered things, the full desired tables, and ordered
//! steps from one state to the next. Plain data; must never know how maps are laid out.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use netpol_model::Protocol;

/// A local endpoint, numbered on this node by the agent, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EndpointId(pub u16);

/// A policy set, from 1; [`SetId::NONE`] means "not isolated in this direction". One with the bit
/// [`netpol_common::layout::JUDGES_OWN`] judges what its endpoint sends to itself by way of a Service
/// like anything else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SetId(pub u16);

impl SetId {
    /// No policy isolates this direction.
    pub const NONE: Self = Self(0);

    /// Whether what an endpoint with this set sends to itself by way of a Service is judged.
    pub const fn judges_own(self) -> bool {
        self.0 & netpol_common::layout::JUDGES_OWN != 0
    }
}

/// A class of addresses that no policy of this node tells apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClassId(pub u32);

impl ClassId {
    /// The class of addresses that satisfy no atom. Never stored in an address table.
    pub const NONE: Self = Self(0);

    /// The class of addresses that are told apart from others, but for which there was no number
    /// or no room. It has no rows, so only what a set allows to everybody is allowed for it: fail
    /// closed, where [`ClassId::NONE`] would let longest-prefix match fall through to a block that
    /// may allow more.
    pub const CLOSED: Self = Self(1);
}

/// Destination ports that are allowed, per protocol.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortSet {
    /// TCP, UDP and SCTP in the order of [`Protocol::ALL`]: inclusive intervals, sorted, disjoint
    /// and not adjacent. A whole protocol is `(0, 65535)`.
    pub intervals: [Vec<(u16, u16)>; 3],
}

impl PortSet {
    /// Whether `port` of the protocol is in the set.
    pub fn contains(&self, protocol: Protocol, port: u16) -> bool {
        let list = &self.intervals[protocol as usize];
        let index = list.partition_point(|&(first, _)| first <= port);
        index > 0 && port <= list[index - 1].1
    }

    /// Whether it allows nothing.
    pub fn is_empty(&self) -> bool {
        self.intervals.iter().all(Vec::is_empty)
    }
}

/// What a policy set allows from or to a class. Nothing is an absent row, but where the set allows
/// more to everybody: then it is a row without ports.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Row {
    /// Every protocol and port, ICMP and the rest included.
    All,
    /// Only these ports.
    Ports(Arc<PortSet>),
    /// These ports, which are not all, and every protocol but TCP, UDP and SCTP.
    PortsAndOthers(Arc<PortSet>),
}

impl Row {
    /// Its ports; `None`: all.
    pub fn ports(&self) -> Option<&Arc<PortSet>> {
        match self {
            Self::All => None,
            Self::Ports(ports) | Self::PortsAndOthers(ports) => Some(ports),
        }
    }

    /// Whether it allows protocols that are none of TCP, UDP and SCTP.
    pub fn allows_others(&self) -> bool {
        !matches!(self, Self::Ports(_))
    }

    /// Whether it allows all that the other one allows.
    pub fn covers(&self, other: &Self) -> bool {
        super::ports::row_covers(Some(self), Some(other))
    }

    /// Whether it allows nothing at all.
    pub fn is_closed(&self) -> bool {
        matches!(self, Self::Ports(ports) if ports.is_empty())
    }

    /// Whether it allows `port` of the protocol with this IP protocol number.
    pub fn allows(&self, protocol: u8, port: u16) -> bool {
        match self {
            Self::All => true,
            Self::Ports(set) | Self::PortsAndOthers(set) => match Protocol::from_number(protocol) {
                Some(known) => set.contains(known, port),
                None => self.allows_others(),
            },
        }
    }
}

/// The policy sets of one endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct EndpointSets {
    /// Its ingress set.
    pub ingress: SetId,
    /// Its egress set.
    pub egress: SetId,
}

/// Where a Service is reached: its cluster IP, external IP or load balancer address with the
/// Service's port, or a node's address with the node port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceKey {
    /// The destination address before translation.
    pub address: IpAddr,
    /// The protocol.
    pub protocol: Protocol,
    /// The destination port before translation.
    pub port: u16,
}

/// A kind of backend, or a local endpoint that is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Backend {
    /// Backends that no policy of this node tells apart.
    Kind {
        /// The class of their addresses ([`ClassId::NONE`] is possible).
        class: ClassId,
        /// The destination port after translation.
        port: u16,
        /// They are this node itself: packets to them leave by no interface.
        is_on_node: bool,
    },
    /// This endpoint is a backend. (The kind that it is of is listed as well.)
    Endpoint(EndpointId),
    /// No backend: another node has the address and translates, so packets to it leave this node
    /// as they are. Stands beside others only.
    Elsewhere,
}

impl Backend {
    /// A kind of backends elsewhere than on this node itself.
    pub const fn at(class: ClassId, port: u16) -> Self {
        Self::Kind { class, port, is_on_node: false }
    }
}

/// What the tables say of a packet that opens a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// It must not pass.
    Denied,
    /// It goes to a Service, and only its true destination can decide, which is seen after
    /// translation: some backends are allowed and some are not, or none is known, or the pod
    /// itself is one.
    Mixed,
    /// It passes.
    Allowed,
}

impl Verdict {
    /// The verdict on a Service with these backends, for packets of `endpoint`, which is isolated
    /// for egress by `set`, which allows what `allows` says.
    pub(crate) fn of_service(
        endpoint: EndpointId,
        set: SetId,
        backends: &[Backend],
        allows: impl Fn(ClassId, u16) -> bool,
    ) -> Self {
        use netpol_common::service::{Found, ToService};

        let mut found = Found::NOTHING;
        for backend in backends {
            found.add(match *backend {
                Backend::Endpoint(id) if id == endpoint => Found::itself(set.judges_own()),
                Backend::Endpoint(_) => Found::NOTHING,
                Backend::Elsewhere => Found::ELSEWHERE,
                Backend::Kind { class, port, is_on_node } => {
                    Found::backend(allows(class, port), is_on_node)
                }
            });
        }
        match found.answer() {
            ToService::Allowed | ToService::AllowedElsewhere => Self::Allowed,
            ToService::Mixed | ToService::Own | ToService::OwnElsewhere | ToService::Empty => {
                Self::Mixed
            }
            // Of what cannot be decided nobody would see again what is denied.
            ToService::Denied | ToService::Undecidable | ToService::None => Self::Denied,
        }
    }

    /// The verdict on a Service for packets of `endpoint`, which is not isolated for egress.
    pub(crate) fn unless_own(endpoint: EndpointId, backends: &[Backend]) -> Self {
        match backends.contains(&Backend::Endpoint(endpoint)) {
            true => Self::Mixed,
            false => Self::Allowed,
        }
    }
}

/// One write to the datapath.
///
/// Rows never change: what a set says of a class stays the same for as long as some address has the
/// class, also if the set is edited, so the row of a (set, class) pair appears once and disappears
/// once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// A row that must be there before its class or set is used.
    AddRow(SetId, ClassId, Row),
    /// This block (an address if the prefix is full) now has this class; never `ClassId::NONE`.
    SetClass(IpNet, ClassId),
    /// This block has no entry any more (longest prefix match falls to what contains it).
    ClearClass(IpNet),
    /// Packets to this Service are judged by these backends from now on. Sorted and distinct; none
    /// at all: nobody knows who they may go to.
    SetService(ServiceKey, Arc<[Backend]>),
    /// There is no Service there any more: packets are judged by their address.
    ClearService(ServiceKey),
    /// The endpoint's policy sets, both at once.
    SetEndpoint(EndpointId, EndpointSets),
    /// Flows of these endpoints must be judged again (something was taken away from them).
    Rejudge(Vec<EndpointId>),
    /// A row whose set or class nothing refers to any more.
    RemoveRow(SetId, ClassId),
}

/// Ordered steps: after each of them every packet's verdict is the old state's or the new one's.
pub type Plan = Vec<Step>;

/// Everything the datapath should hold, for reconciling after a restart and for tests.
///
/// Lookup: the class of an address is that of the longest stored prefix containing it, else
/// `ClassId::NONE`. The row is (set, class), else (set, `ClassId::NONE`), else deny. The second
/// look-up is sound because a set that allows a class something else than everybody has a row for
/// that, if need be one that allows nothing.
///
/// An egress packet to a stored Service is not judged by the class of its destination but by the
/// backends: [`Verdict::of_service`].
///
/// Services are stored only while some endpoint is isolated: all while one is for egress, else
/// those that have a local endpoint as backend. Nobody else asks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tables {
    /// Address blocks and their classes.
    pub classes: BTreeMap<IpNet, ClassId>,
    /// Rows of all sets in use.
    pub rows: BTreeMap<(SetId, ClassId), Row>,
    /// Endpoints and their sets.
    pub endpoints: BTreeMap<EndpointId, EndpointSets>,
    /// Services and the distinct kinds of backends that they have.
    pub services: BTreeMap<ServiceKey, Arc<[Backend]>>,
}
