//! The verdict on one packet of an endpoint, from its headers and the maps' contents.
//!
//! A packet is judged where it enters or leaves its pod. What a pod sends to a Service may have to
//! be judged a second time, *translated*, where it leaves the node or enters another pod: such
//! packets, and the flows they belong to, are *stamped*.
//!
//! The rules are those of README.md ("What it does, exactly"). This module must never parse, count,
//! log or touch a map itself; it asks [`Maps`].

mod answer;
mod apart;
mod endpoint;
mod established;
mod policy;
mod tracked;

pub use answer::{
    Answers, FirstLook, FlowState, PolicyVerdict, Then, Verdict, pack_looked, unpack_looked,
};
pub use apart::{has_flow, judge_apart, judge_refused, judge_related, related_state};
pub use endpoint::{Arrival, Endpoint};
pub use established::is_established;
pub use policy::{ask_service, class_of, judge_flow, judge_flow_to, row_allows};
pub use tracked::{apply_verdict, bar, judge_in, judge_tracked};

use crate::flow::{self, Clock, Inserted};
use crate::layout::{
    Address, Backend, BlockKey, Direction, ExactClass, FragmentPorts, Row, ServiceKey, ServiceValue,
};
use crate::packet::Packet;
use crate::ports::Intervals;
use crate::service::ToService;

/// The policy half of the maps: what [`class_of`] and [`row_allows`] look at.
pub trait Policies: Intervals {
    /// Class of exactly this address.
    fn exact_class(&self, key: &BlockKey) -> Option<ExactClass>;
    /// Class of the longest block that contains this address.
    fn block_class(&self, key: &BlockKey) -> Option<u32>;
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
    /// [`class_of`] on these maps.
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
    ) -> PolicyVerdict {
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

/// Does something in the flow table of a packet's address family, with its key there.
macro_rules! in_table {
    ($maps:expr, $endpoint:expr, $packet:expr, |$table:ident, $key:ident| $what:expr) => {
        if $packet.local.family == 6 {
            let ($table, $key) = ($maps.flows6(), &flow::key6($packet, $endpoint.id));
            $what
        } else {
            let ($table, $key) = ($maps.flows4(), &flow::key4($packet, $endpoint.id));
            $what
        }
    };
}

/// The parts that [`judge`] is made of, each in the flow table of the packet's address family. The
/// kernel's implementation replaces them by functions that are verified on their own; what they
/// compute is what stands here.
pub trait Judge: Maps {
    /// [`judge_in`] its table.
    fn judge_in(
        &self,
        endpoint: &Endpoint,
        arrival: Arrival,
        packet: &Packet,
        answers: Answers,
    ) -> FirstLook {
        in_table!(self, endpoint, packet, |table, key| {
            judge_in(self, table, key, endpoint, arrival, packet, answers)
        })
    }

    /// Enters a packet's flow, with these bits for opener and stamp.
    fn enter(&self, endpoint: &Endpoint, packet: &Packet, bits: u64) -> Inserted {
        in_table!(self, endpoint, packet, |table, key| {
            let hash = flow::hash(key, self.secret());
            flow::insert(table, key, hash, endpoint.epoch, bits, &self.clock())
        })
    }

    /// Notes that a packet's flow was answered.
    fn settle(&self, endpoint: &Endpoint, packet: &Packet) -> Inserted {
        in_table!(self, endpoint, packet, |table, key| {
            flow::settle(table, key, flow::hash(key, self.secret()), &self.clock())
        })
    }

    /// [`bar`]s a packet's flow, or lifts that.
    fn bar(&self, endpoint: &Endpoint, packet: &Packet, is_barred: bool) {
        in_table!(self, endpoint, packet, |table, key| {
            bar(table, key, flow::hash(key, self.secret()), endpoint, is_barred);
        });
    }

    /// [`judge_related`] by what the table says of what an ICMP error quotes.
    fn is_related(&self, endpoint: &Endpoint, inner: &Packet) -> FlowState {
        let state = in_table!(self, endpoint, inner, |table, key| {
            related_state(self, table, key, endpoint)
        });
        judge_related(self, endpoint, inner, state)
    }
}

/// Judges a packet that [`is_established`] did not settle. `inner`: what an ICMP error
/// ([`Kind::Error`](crate::packet::Kind::Error)) is about, if it could be read.
#[inline(always)]
pub fn judge<J: Judge>(
    maps: &J,
    endpoint: &Endpoint,
    arrival: Arrival,
    packet: &mut Packet,
    inner: Option<&Packet>,
) -> Verdict {
    if has_flow(maps, endpoint, arrival, packet) {
        let verdict = judge_tracked(maps, endpoint, arrival, packet);
        return apply_verdict(maps, endpoint, packet, verdict);
    }
    judge_apart(maps, endpoint, arrival, packet, inner)
}
