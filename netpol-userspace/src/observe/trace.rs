//! "Would this packet pass?", answered by the kernel's own program: the programs of this build
//! are loaded once more, onto the node's pinned policy maps but onto flow tables, counters and
//! events of their own, and run on a packet made for the purpose. Must never re-implement a
//! verdict, and leaves nothing behind.

use std::net::IpAddr;

use anyhow::{Context, Result, bail};
use netpol_common::layout::Reason;
use serde::Serialize;

use super::node::{Node, name};
use crate::agent::state::EndpointView;
use crate::datapath::Pins;
use crate::datapath::run::Place;
use crate::datapath::scratch::Scratch;
use crate::frames::{Transport, frame, packet};
use crate::model::Direction;

/// A question.
#[derive(Debug, Clone)]
pub struct Question {
    /// Who opens the connection: `namespace/pod`, an address, or `node`.
    pub from: String,
    /// To whom: `namespace/pod` or an address.
    pub to: String,
    /// The first packet, destination port included.
    pub transport: Transport,
    /// IPv6, where both ends have both families.
    pub is_v6: bool,
}

/// The answer: every hop on this node that judges the packet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Answer {
    /// `allow` if every hop allows it.
    pub verdict: &'static str,
    /// Egress of the sender, then ingress of the receiver, as far as they are pods of this node.
    pub hops: Vec<Hop>,
}

/// One endpoint's verdict.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Hop {
    /// `namespace/pod`.
    pub endpoint: String,
    /// `ingress` or `egress`, the endpoint's view.
    pub direction: &'static str,
    /// `allow` or `deny`.
    pub verdict: &'static str,
    /// The policies that isolate the endpoint in this direction.
    pub policies: Vec<String>,
    /// Why, in words.
    pub reason: String,
}

/// One end of the question.
enum End<'a> {
    Endpoint(&'a EndpointView),
    Address(IpAddr),
    Node,
}

/// Asks the kernel. At least one end must be a pod of this node.
pub fn ask(node: &Node, pins: &Pins, question: &Question) -> Result<Answer> {
    let from = end(node, &question.from)?;
    let to = end(node, &question.to)?;
    let (source, destination) = addresses(&from, &to, question.is_v6)?;
    let bytes = frame(&packet(source, destination, &question.transport));
    let mut scratch = Scratch::load(pins)?;
    let mut hops = Vec::new();
    if let End::Endpoint(endpoint) = from {
        let place = Place { ifindex: endpoint.ifindex, ingress_ifindex: endpoint.ifindex };
        hops.push(hop(&mut scratch, endpoint, Direction::Egress, &bytes, place)?);
    }
    if let End::Endpoint(endpoint) = to {
        let ingress_ifindex = match from {
            End::Node => 0,
            End::Endpoint(sender) => sender.ifindex,
            // Any interface but "none": it came from elsewhere.
            End::Address(_) => LOOPBACK,
        };
        let place = Place { ifindex: endpoint.ifindex, ingress_ifindex };
        hops.push(hop(&mut scratch, endpoint, Direction::Ingress, &bytes, place)?);
    }
    if hops.is_empty() {
        bail!(
            "neither {} nor {} is a pod of this node: ask on the node of one of them",
            question.from,
            question.to
        );
    }
    let is_allowed = hops.iter().all(|hop| hop.verdict == ALLOW);
    Ok(Answer { verdict: if is_allowed { ALLOW } else { DENY }, hops })
}

const ALLOW: &str = "allow";
const DENY: &str = "deny";
const LOOPBACK: u32 = 1;

fn end<'a>(node: &'a Node, text: &str) -> Result<End<'a>> {
    if text == "node" {
        return Ok(End::Node);
    }
    match (node.endpoint(text), text.parse()) {
        (Ok(endpoint), _) => Ok(End::Endpoint(endpoint)),
        (Err(_), Ok(address)) => Ok(End::Address(address)),
        (Err(error), Err(_)) => Err(error),
    }
}

fn addresses(from: &End<'_>, to: &End<'_>, is_v6: bool) -> Result<(IpAddr, IpAddr)> {
    let of = |end: &End<'_>| -> Vec<IpAddr> {
        match end {
            End::Endpoint(endpoint) => endpoint.ips.clone(),
            End::Address(address) => vec![*address],
            // Which of its addresses the node uses makes no difference to the verdict.
            End::Node => {
                vec![[192, 0, 2, 1].into(), IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1])]
            }
        }
    };
    let (sources, destinations) = (of(from), of(to));
    let pair = |v6: bool| {
        let source = sources.iter().find(|address| address.is_ipv6() == v6)?;
        let destination = destinations.iter().find(|address| address.is_ipv6() == v6)?;
        Some((*source, *destination))
    };
    pair(is_v6)
        .or_else(|| if is_v6 { None } else { pair(true) })
        .context("the two ends have no address of one family in common")
}

fn hop(
    scratch: &mut Scratch,
    endpoint: &EndpointView,
    direction: Direction,
    frame: &[u8],
    place: Place,
) -> Result<Hop> {
    let view = match direction {
        Direction::Ingress => &endpoint.ingress,
        Direction::Egress => &endpoint.egress,
    };
    let told = |is_allowed: bool, reason: String| Hop {
        endpoint: name(endpoint),
        direction: direction.as_str(),
        verdict: if is_allowed { ALLOW } else { DENY },
        policies: view.policies.clone(),
        reason,
    };
    if !endpoint.ingress.isolated && !endpoint.egress.isolated {
        return Ok(told(true, "no policy isolates this pod".to_owned()));
    }
    let (is_allowed, reason) = scratch.judge(direction, frame, place)?;
    let text = match (is_allowed, reason) {
        (true, _) if place.ingress_ifindex == 0 && direction == Direction::Ingress => {
            "its own node always reaches a pod".to_owned()
        }
        (true, _) if !view.isolated => format!("no policy isolates it for {direction}"),
        (true, _) => "a policy allows it".to_owned(),
        (false, Some(Reason::Policy)) => "no rule of these policies allows it".to_owned(),
        (false, Some(reason)) => format!("dropped: {}", reason.as_str()),
        (false, None) => "dropped".to_owned(),
    };
    Ok(told(is_allowed, text))
}
