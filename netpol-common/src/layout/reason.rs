//! Why a packet got its verdict. Must never give a reason another number or another word: maps,
//! metrics and what people have stored know them.

/// Why a packet got its verdict; index into [`Counters`](super::Counters) and field of
/// [`Event`](super::Event).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Reason {
    /// Allowed: a new flow was judged and admitted.
    NewFlow = 0,
    /// No policy allows it.
    Policy = 1,
    /// The flow was allowed once and no longer is.
    PolicyCut = 2,
    /// The pod sent from an address that is not its own.
    SourceAddress = 3,
    /// A fragment whose first fragment was not seen, where the ports decide.
    Fragment = 4,
    /// The headers end too early or contradict each other.
    Truncated = 5,
    /// An ethertype other than IPv4, IPv6 and ARP, or a VLAN tag.
    Ethertype = 6,
    /// IPv6 extension headers that cannot be followed.
    ExtensionHeaders = 7,
    /// Router advertisement, redirect or query for listeners sent by a pod.
    RouterMessage = 8,
    /// A program is attached but the endpoint is not known: fails closed.
    UnknownEndpoint = 9,
    /// A map says something impossible: fails closed.
    Inconsistent = 10,
    /// A Service some of whose backends are allowed and some are not, and which one it will be, or
    /// is, nobody can see: it fails closed.
    ServiceMixed = 13,
    /// ARP, neighbour discovery or a listener report from a pod that says more than these need, or
    /// goes to where a router would forward it.
    Neighbour = 14,
    /// It came by a link that others share, and is for an address that is not the pod's.
    DestinationAddress = 15,
    /// Not a verdict: a live flow made room for another one.
    FlowEvicted = 11,
    /// Not a verdict: an event was not written (rate limit or full ring).
    EventLost = 12,
}

impl Reason {
    /// All reasons, in the order of their numbers.
    pub const ALL: [Self; 16] = [
        Self::NewFlow,
        Self::Policy,
        Self::PolicyCut,
        Self::SourceAddress,
        Self::Fragment,
        Self::Truncated,
        Self::Ethertype,
        Self::ExtensionHeaders,
        Self::RouterMessage,
        Self::UnknownEndpoint,
        Self::Inconsistent,
        Self::FlowEvicted,
        Self::EventLost,
        Self::ServiceMixed,
        Self::Neighbour,
        Self::DestinationAddress,
    ];

    /// The reason with this number.
    #[inline(always)]
    pub const fn from_number(number: u8) -> Option<Self> {
        // A match rather than a table: the eBPF programs have no pointers to static data.
        Some(match number {
            0 => Self::NewFlow,
            1 => Self::Policy,
            2 => Self::PolicyCut,
            3 => Self::SourceAddress,
            4 => Self::Fragment,
            5 => Self::Truncated,
            6 => Self::Ethertype,
            7 => Self::ExtensionHeaders,
            8 => Self::RouterMessage,
            9 => Self::UnknownEndpoint,
            10 => Self::Inconsistent,
            11 => Self::FlowEvicted,
            12 => Self::EventLost,
            13 => Self::ServiceMixed,
            14 => Self::Neighbour,
            15 => Self::DestinationAddress,
            _ => return None,
        })
    }

    /// A short stable word, used in metrics and JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NewFlow => "new-flow",
            Self::Policy => "policy",
            Self::PolicyCut => "policy-cut",
            Self::SourceAddress => "source-address",
            Self::Fragment => "fragment",
            Self::Truncated => "truncated",
            Self::Ethertype => "ethertype",
            Self::ExtensionHeaders => "extension-headers",
            Self::RouterMessage => "router-message",
            Self::UnknownEndpoint => "unknown-endpoint",
            Self::Inconsistent => "inconsistent",
            Self::FlowEvicted => "flow-evicted",
            Self::EventLost => "event-lost",
            Self::ServiceMixed => "service-mixed",
            Self::Neighbour => "neighbour",
            Self::DestinationAddress => "destination-address",
        }
    }

    /// Whether packets counted here were dropped.
    pub const fn is_drop(self) -> bool {
        !matches!(self, Self::NewFlow | Self::FlowEvicted | Self::EventLost)
    }
}
