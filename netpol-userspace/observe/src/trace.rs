//! "Would this packet pass?", answered by the kernel's own program: the programs of this build
//! are loaded once more, onto the node's pinned policy maps but onto flow tables, counters and
//! events of their own, and run on a packet made for the purpose. Which policies allow what the
//! program allows is asked of the running agent. Must never re-implement a verdict, and leaves
//! nothing behind.

mod masquerade;
mod party;
mod service;
mod tracer;

use std::fmt;
use std::net::IpAddr;

use netpol_api::decision::{self, Decision};
use netpol_api::questions::DecidingRule;
use netpol_common::layout::Reason;
use netpol_model::Direction;
use serde::Serialize;

pub use self::tracer::Tracer;
use crate::frames::Transport;

/// A question.
#[derive(Debug, Clone)]
pub struct Question {
    /// Who opens the connection: `namespace/pod`, an address, or `node`.
    pub from: String,
    /// To whom: likewise, or `service/namespace/name`.
    pub to: String,
    /// What the first packet is.
    pub protocol: Protocol,
    /// Where it goes there.
    pub port: Port,
    /// IPv6, where both ends have both families.
    pub is_v6: bool,
}

/// Protocols that can be asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Protocol {
    /// A SYN
    Tcp,
    /// A datagram
    Udp,
    /// An INIT
    Sctp,
    /// An echo request
    Icmp,
}

impl Protocol {
    fn number(self, is_v6: bool) -> u8 {
        match self {
            Self::Tcp => super::protocol::TCP,
            Self::Udp => super::protocol::UDP,
            Self::Sctp => super::protocol::SCTP,
            Self::Icmp if is_v6 => super::protocol::ICMPV6,
            Self::Icmp => super::protocol::ICMP,
        }
    }

    fn transport(self, source: u16, destination: u16, is_v6: bool) -> Transport {
        match self {
            Self::Tcp => Transport::Tcp { source, destination, flags: netpol_common::packet::SYN },
            Self::Udp => Transport::Udp { source, destination },
            Self::Sctp => Transport::Sctp { source, destination, chunk: 1 },
            Self::Icmp => {
                let [high, low] = source.to_be_bytes();
                let body = vec![high, low, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0];
                Transport::Icmp { kind: if is_v6 { 128 } else { 8 }, code: 0, body }
            }
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
            Self::Icmp => "ICMP",
        })
    }
}

/// A destination port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Port {
    /// None was given.
    None,
    /// By number.
    Number(u16),
    /// As the destination pod, or the Service, declares it.
    Name(String),
}

/// The answer: every hop on this node that judges the packet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Answer {
    /// Allowed if every hop allows it, to whichever backend it goes.
    pub verdict: Decision,
    /// Who opens the connection.
    pub from: Side,
    /// To whom.
    pub to: Side,
    /// Such as `TCP`.
    pub protocol: String,
    /// Egress of the sender, then ingress of the receiver, as far as they are pods of this node.
    pub hops: Vec<Hop>,
    /// For a Service: each place where the packet may end up.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub backends: Vec<Backend>,
    /// What other nodes judge.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub elsewhere: Vec<Elsewhere>,
    /// What else a person should know.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// One end of the packet that was tried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Side {
    /// `namespace/pod`, `service namespace/name`, `node NAME`; `null` if nobody is known there.
    pub name: Option<String>,
    /// Its address; `null` for a node whose addresses are not known.
    pub ip: Option<IpAddr>,
    /// The port; `null` for the sender, whose does not matter, and for ICMP.
    pub port: Option<u16>,
}

/// One endpoint's verdict.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Hop {
    /// `namespace/pod`.
    pub endpoint: String,
    /// From the endpoint's view.
    pub direction: Direction,
    /// What it decides.
    pub verdict: Decision,
    /// The policies that allow it, all of them; or, if no policy does, those that isolate the
    /// endpoint in this direction.
    pub policies: Vec<String>,
    /// The policies that isolate the endpoint in this direction.
    pub isolated_by: Vec<String>,
    /// The rules that decide, in the order in which they are asked, as far as a running agent says.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<DecidingRule>,
    /// Why, in words.
    pub reason: String,
    /// The word for why it is dropped, as in metrics and `netpol monitor`.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "decision::reason_if_any")]
    pub code: Option<Reason>,
}

/// A place where packets to a Service may end up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Backend {
    /// What is decided on the way there.
    pub verdict: Decision,
    /// Whose it is.
    #[serde(flatten)]
    pub side: Side,
    /// What the proxy puts in place of the sender's address, as the backend's ingress policies see
    /// it: one of these. Empty if it leaves it alone, or if another node judges.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub seen_as: Vec<IpAddr>,
    /// As of an [`Answer`], for packets that go here.
    pub hops: Vec<Hop>,
}

/// A hop that this node does not judge.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Elsewhere {
    /// The node that does.
    pub node: String,
    /// `namespace/pod`.
    pub endpoint: String,
    /// From the endpoint's view.
    pub direction: Direction,
}
