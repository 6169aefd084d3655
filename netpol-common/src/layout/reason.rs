//! Why a packet got its verdict. Must never give a reason another number or another word: maps,
//! metrics and what people have stored know them.

use super::N_COUNTERS;

/// Makes [`Reason`] and all that lists its variants, so that none can be left out of a list.
macro_rules! reasons {
    ($($(#[$doc:meta])+ $name:ident = $number:literal, $word:literal;)+) => {
        /// Why a packet got its verdict; index into [`Counters`](super::Counters) and field of
        /// [`Event`](super::Event).
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum Reason {
            $($(#[$doc])+ $name = $number,)+
        }

        impl Reason {
            /// All reasons, in the order of their numbers.
            pub const ALL: [Self; [$($number),+].len()] = [$(Self::$name),+];

            /// The reason with this number.
            #[inline(always)]
            pub const fn from_number(number: u8) -> Option<Self> {
                // A match rather than a table: the eBPF programs have no pointers to static data.
                Some(match number {
                    $($number => Self::$name,)+
                    _ => return None,
                })
            }

            /// A short stable word, used in metrics and JSON.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $word,)+
                }
            }
        }
    };
}

reasons! {
    /// Allowed: a new flow was judged and admitted.
    NewFlow = 0, "new-flow";
    /// No policy allows it.
    Policy = 1, "policy";
    /// The flow was allowed once and no longer is.
    PolicyCut = 2, "policy-cut";
    /// The pod sent from an address that is not its own.
    SourceAddress = 3, "source-address";
    /// A fragment whose first fragment was not seen, where the ports decide.
    Fragment = 4, "fragment";
    /// The headers end too early or contradict each other.
    Truncated = 5, "truncated";
    /// An ethertype other than IPv4, IPv6 and ARP, or a VLAN tag.
    Ethertype = 6, "ethertype";
    /// IPv6 extension headers that cannot be followed.
    ExtensionHeaders = 7, "extension-headers";
    /// Router advertisement, redirect or query for listeners sent by a pod.
    RouterMessage = 8, "router-message";
    /// A program is attached but the endpoint is not known: fails closed.
    UnknownEndpoint = 9, "unknown-endpoint";
    /// A map says something impossible: fails closed.
    Inconsistent = 10, "inconsistent";
    /// Not a verdict: a live flow made room for another one.
    FlowEvicted = 11, "flow-evicted";
    /// Not a verdict: an event was not written (rate limit or full ring).
    EventLost = 12, "event-lost";
    /// A Service some of whose backends are allowed and some are not, and which one it will be, or
    /// is, nobody can see: it fails closed.
    ServiceMixed = 13, "service-mixed";
    /// ARP, neighbour discovery or a listener report from a pod that says more than these need, or
    /// goes to where a router would forward it.
    Neighbour = 14, "neighbour";
    /// It came by a link that others share, and is for an address that is not the pod's.
    DestinationAddress = 15, "destination-address";
}

impl Reason {
    /// Whether packets counted here were dropped.
    pub const fn is_drop(self) -> bool {
        !matches!(self, Self::NewFlow | Self::FlowEvicted | Self::EventLost)
    }
}

const _: () = {
    // Programs count with the number's low bits: one too high would be counted as another reason.
    assert!(Reason::ALL.len() <= N_COUNTERS, "N_COUNTERS must be doubled for this reason");
    assert!(N_COUNTERS.is_power_of_two(), "N_COUNTERS is a mask, too");
    let mut number = 0;
    while number < Reason::ALL.len() {
        assert!(Reason::ALL[number] as usize == number, "numbers of reasons follow each other");
        number += 1;
    }
};
