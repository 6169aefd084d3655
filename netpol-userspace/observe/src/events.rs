//! What happened to a packet, with names and reasons in words.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use netpol_common::layout::{self, Event as Raw, Reason};
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;

use super::names::Names;
use super::protocol;
use netpol_api::decision::{self, Decision};
use netpol_api::questions::{self as question, DecidingRule, Opening, Owner};
use netpol_datapath::observe::ip_of;
use netpol_model::Direction;

/// A verdict on a packet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Event {
    /// When, in UTC.
    pub time: jiff::Timestamp,
    /// What became of it.
    pub verdict: Decision,
    /// `namespace/pod`, `null` if no name is known for the number.
    pub endpoint: Option<String>,
    /// The endpoint's number in the maps, 0 if it has none.
    pub endpoint_id: u16,
    /// Interface the packet was seen on.
    pub ifindex: u32,
    /// From the pod's view.
    pub direction: Direction,
    /// Such as `TCP`; `null` for what is no IP packet.
    pub protocol: Option<String>,
    /// Where the packet came from.
    pub source: Option<End>,
    /// Where it was going.
    pub destination: Option<End>,
    /// Such as `SYN` or `echo request`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub detail: String,
    /// Why; in JSON a stable word, as in metrics.
    #[serde(serialize_with = "decision::reason")]
    pub reason: Reason,
    /// The reason as a sentence part for people.
    pub message: String,
    /// The policies that isolate the endpoint in this direction, if policies decided.
    pub policies: Vec<String>,
    /// The rules that decided, in the order in which they are asked, where ClusterNetworkPolicies have
    /// rules for the endpoint and a running agent told.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<DecidingRule>,
    /// Selectors and blocks of those policies that the other side matches.
    pub peer_matches: Vec<String>,
    /// Bytes, with the link-layer header.
    pub length: u32,
}

/// One end of a packet's way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct End {
    /// Its address.
    pub ip: IpAddr,
    /// Its port; `null` for protocols without ports.
    pub port: Option<u16>,
    /// `namespace/pod` if it is a pod's.
    pub endpoint: Option<String>,
    /// `namespace/name` if it is a Service's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// The node, if it is a node's or a pod's of another node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
}

/// Time since boot against the time of day.
#[derive(Debug, Clone, Copy)]
pub struct BootTime(pub(crate) SystemTime);

impl BootTime {
    /// When the machine booted, by today's clocks.
    pub fn now() -> Self {
        let uptime = clock_gettime(ClockId::Boottime);
        let uptime = Duration::new(
            uptime.tv_sec.unsigned_abs(),
            u32::try_from(uptime.tv_nsec).unwrap_or_default(),
        );
        Self(SystemTime::now().checked_sub(uptime).unwrap_or(SystemTime::UNIX_EPOCH))
    }

    fn at(self, nanoseconds: u64) -> jiff::Timestamp {
        let time = self.0 + Duration::from_nanos(nanoseconds);
        jiff::Timestamp::try_from(time).unwrap_or(jiff::Timestamp::UNIX_EPOCH)
    }
}

/// Explains an event.
pub fn explain(raw: &Raw, names: &Names, boot: BootTime) -> Event {
    let is_ingress = raw.direction == layout::Direction::Ingress as u8;
    let direction = if is_ingress { Direction::Ingress } else { Direction::Egress };
    let reason = Reason::from_number(raw.reason).unwrap_or(Reason::Inconsistent);
    let policies = match is_by_policy(reason) {
        true => names.policies(raw.endpoint, direction).to_vec(),
        false => Vec::new(),
    };
    let rules = opening(raw, names).map(|opening| names.deciding(&opening)).unwrap_or_default();
    let rules = rules.to_vec();
    let [local_end, remote_end] = ends(raw);
    let local = end(local_end, raw.local_port, names);
    let remote = end(remote_end, raw.remote_port, names);
    let is_ip = local.is_some();
    let (source, destination) = if is_ingress { (remote, local) } else { (local, remote) };
    Event {
        time: boot.at(raw.time),
        verdict: Decision::from(!reason.is_drop()),
        endpoint: names.name(raw.endpoint),
        endpoint_id: raw.endpoint,
        ifindex: raw.ifindex,
        direction,
        protocol: is_ip.then(|| protocol::name(raw.protocol)),
        source,
        destination,
        detail: detail(raw),
        reason,
        message: message(reason, &policies, &rules),
        policies,
        rules,
        peer_matches: names.class(raw.class).to_vec(),
        length: raw.length,
    }
}

/// The endpoint's side and the other one as [`Names`] know them; `None` for what is no IP packet.
pub fn ends(raw: &Raw) -> [Option<question::End>; 2] {
    let is_egress = raw.direction == layout::Direction::Egress as u8;
    let of = |address: &layout::Address, port| {
        // Programs leave the address zero where they found none.
        matches!(address.family, 4 | 6).then(|| question::End {
            ip: ip_of(address),
            protocol: raw.protocol,
            port,
        })
    };
    // Only a destination's port tells which Service is meant.
    [of(&raw.local, 0), of(&raw.remote, if is_egress { raw.remote_port } else { 0 })]
}

/// What is to be asked about an event to know by which rules it was decided: nothing unless
/// ClusterNetworkPolicies have rules for the endpoint, policies decided, and it is no Service that the
/// packet goes to.
pub fn opening(raw: &Raw, names: &Names) -> Option<Opening> {
    let is_ingress = raw.direction == layout::Direction::Ingress as u8;
    let endpoint = names.endpoint(raw.endpoint)?;
    let side = if is_ingress { &endpoint.ingress } else { &endpoint.egress };
    let reason = Reason::from_number(raw.reason)?;
    let is_decided = matches!(reason, Reason::NewFlow | Reason::Policy);
    let [_, remote] = ends(raw);
    let remote = remote?;
    if side.cluster_rules().is_empty() || !is_decided || names.owner(remote).service.is_some() {
        return None;
    }
    let port = if is_ingress { raw.local_port } else { raw.remote_port };
    let (remote, protocol) = (remote.ip, raw.protocol);
    Some(Opening { endpoint: raw.endpoint, is_ingress, remote, protocol, port })
}

fn end(end: Option<question::End>, port: u16, names: &Names) -> Option<End> {
    let end = end?;
    let Owner { pod, service, node } = names.owner(end);
    let port = protocol::has_ports(end.protocol).then_some(port);
    Some(End { ip: end.ip, port, endpoint: pod, service, node })
}

fn detail(raw: &Raw) -> String {
    match raw.protocol {
        protocol::TCP => protocol::tcp_flags(raw.detail),
        protocol::ICMP | protocol::ICMPV6 => match protocol::icmp_type(raw.protocol, raw.detail) {
            Some(name) => name.into(),
            None => format!("type {} code {}", raw.detail, raw.code),
        },
        _ => String::new(),
    }
}

/// Whether the endpoint's policies decided.
pub(crate) fn is_by_policy(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::NewFlow
            | Reason::Policy
            | Reason::PolicyCut
            | Reason::Fragment
            | Reason::ServiceMixed
    )
}

/// A reason as a sentence part for people.
///
/// `rules`: those that decided, if that is known.
pub fn message(reason: Reason, policies: &[String], rules: &[DecidingRule]) -> String {
    let denying = rules.last().filter(|rule| rule.is_of_cluster() && rule.action == "Deny");
    let accepting = rules.last().filter(|rule| rule.is_of_cluster() && rule.action == "Accept");
    match (reason, denying, accepting) {
        (Reason::Policy, Some(rule), _) => return format!("denied by {}", rule.describe()),
        (Reason::NewFlow, _, Some(rule)) => {
            return format!("new connection, accepted by {}", rule.describe());
        }
        _ => {}
    }
    let by = match policies {
        [] => "the policies in force".to_owned(),
        policies => super::policies::named(policies),
    };
    match reason {
        Reason::NewFlow => "new connection".into(),
        Reason::Policy => format!("no rule of {by} allows it"),
        Reason::PolicyCut => format!("it was allowed before, but no rule of {by} allows it now"),
        Reason::SourceAddress => "the pod sent from an address that is not its own".into(),
        Reason::Fragment => {
            format!(
                "a fragment that came without its first one, where the rules of {by} name ports"
            )
        }
        Reason::Truncated => "its headers end too early or contradict each other".into(),
        Reason::Ethertype => "it is neither IPv4, IPv6 nor ARP, or has a VLAN tag".into(),
        Reason::ExtensionHeaders => "its IPv6 extension headers cannot be followed".into(),
        Reason::RouterMessage => {
            "a pod may not send router advertisements, redirects or queries for listeners".into()
        }
        Reason::Neighbour => {
            "it says more than ARP, neighbour discovery or a listener report needs, or goes to \
             where a router would forward it"
                .into()
        }
        Reason::DestinationAddress => {
            "it is for an address that is not the pod's, and came to the pod by its link-layer \
             address or to all of the link"
                .into()
        }
        Reason::UnknownEndpoint => {
            "the interface has netpol's program, but belongs to no endpoint that netpol knows"
                .into()
        }
        Reason::Inconsistent => "the maps contradict each other; please report this".into(),
        Reason::ServiceMixed => {
            format!("it goes to a Service of which {by} allow some backends and not others")
        }
        Reason::FlowEvicted => "a connection was forgotten because the flow table was full".into(),
        Reason::EventLost => "an event was lost".into(),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use netpol_common::layout::Address;

    use super::*;
    use crate::testing::{event as example, raw};

    #[test]
    fn a_drop_by_policy_names_the_policies_and_what_the_peer_matches() {
        let event = example(Reason::Policy, protocol::TCP, 2);
        let json = serde_json::to_value(&event).unwrap();
        assert_eq!(
            json,
            serde_json::json!({
                "time": "1970-01-01T00:00:01.5Z",
                "verdict": "deny",
                "endpoint": "shop/web",
                "endpoint_id": 1,
                "ifindex": 11,
                "direction": "ingress",
                "protocol": "TCP",
                "source": {"ip": "10.0.0.2", "port": 40000, "endpoint": "shop/client"},
                "destination": {"ip": "10.0.0.1", "port": 80, "endpoint": "shop/web"},
                "detail": "SYN",
                "reason": "policy",
                "message": "no rule of shop/deny allows it",
                "policies": ["shop/deny"],
                "peer_matches": ["10.0.0.0/8"],
                "length": 74,
            })
        );
    }

    #[test]
    fn egress_goes_the_other_way_round() {
        let raw = Raw { direction: 1, ..raw(Reason::SourceAddress, protocol::UDP, 0) };
        let event = explain(&raw, &Names::default(), BootTime(SystemTime::UNIX_EPOCH));
        assert_eq!(event.direction, Direction::Egress);
        assert_eq!(event.source.unwrap().ip.to_string(), "10.0.0.1");
        assert!(event.policies.is_empty(), "no policy decided this");
    }

    #[test]
    fn what_is_no_ip_packet_has_no_ends() {
        let raw = Raw {
            local: Address::default(),
            remote: Address::default(),
            ..raw(Reason::Ethertype, 0, 0)
        };
        let event = explain(&raw, &Names::default(), BootTime::now());
        assert_eq!((event.source, event.destination, event.protocol), (None, None, None));
    }

    #[test]
    fn icmp_types_have_words_or_numbers() {
        assert_eq!(example(Reason::Policy, protocol::ICMP, 8).detail, "echo request");
        assert_eq!(example(Reason::Policy, protocol::ICMP, 99).detail, "type 99 code 0");
    }

    #[test]
    fn the_clocks_agree() {
        let uptime = clock_gettime(ClockId::Boottime);
        let at = BootTime::now().at(uptime.tv_sec.cast_unsigned() * 1_000_000_000);
        let now = jiff::Timestamp::now();
        assert!((now.as_second() - at.as_second()).abs() < 3600, "{at} against {now}");
    }
}
