//! The connections that endpoints have, with names.

use std::net::IpAddr;
use std::path::Path;

use netpol_common::layout::EPOCH_MASK;
use serde::Serialize;

use super::names::Names;
use super::protocol;
use netpol_api::decision::{FlowState, Opened};
use netpol_api::questions::End;
use netpol_datapath::observe::{self, EndpointEntry};
use netpol_datapath::{Maps, observe::Flow as Tracked};
use netpol_model::Direction;

/// A connection of a local endpoint.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Flow {
    /// `namespace/pod`, `null` if no name is known for the number.
    pub endpoint: Option<String>,
    /// The endpoint's number in the maps.
    pub endpoint_id: u16,
    /// Such as `TCP`.
    pub protocol: String,
    /// The endpoint's address.
    pub local: IpAddr,
    /// Its port; `null` for protocols without ports.
    pub local_port: Option<u16>,
    /// The other side's address.
    pub remote: IpAddr,
    /// Its port.
    pub remote_port: Option<u16>,
    /// `namespace/pod` if the other side is a pod.
    pub remote_endpoint: Option<String>,
    /// `namespace/name` if it is a Service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remote_service: Option<String>,
    /// The node, if it is a node or a pod of another node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remote_node: Option<String>,
    /// `ingress` if the other side opened it, `egress` if the pod did, `unseen` if the connection
    /// was under way when it was met: then both directions' policies must allow it.
    pub opened: Opened,
    /// This node itself opened it.
    pub by_node: bool,
    /// `new` (no answer yet), `established` or `closing`.
    pub state: FlowState,
    /// Policies changed since it was judged: its next packet is judged by the new ones.
    pub rejudge: bool,
    /// Seconds since its last packet, to about a second.
    pub idle_seconds: u64,
}

/// All connections of endpoints in force, sorted; only those of `endpoint` if one is given. The
/// names of those that are not on this node are asked of the agent that `run_dir` leads to; with
/// why they are missing, if they are.
pub fn list(
    maps: &Maps,
    names: &mut Names,
    run_dir: &Path,
    endpoint: Option<u16>,
) -> (Vec<Flow>, Option<String>) {
    let entries = observe::endpoints(maps);
    let tracked: Vec<(Tracked, &EndpointEntry)> = observe::flows(maps)
        .into_iter()
        .filter(|flow| endpoint.is_none_or(|id| id == flow.endpoint))
        .filter_map(|flow| {
            let entry = entries.iter().find(|entry| entry.id == flow.endpoint)?;
            is_of(flow.epoch, entry).then_some((flow, entry))
        })
        .collect();
    let missing = names.ask(run_dir, tracked.iter().map(|(flow, _)| remote(flow)));
    let mut flows: Vec<Flow> =
        tracked.iter().map(|(flow, entry)| view(flow, entry, names)).collect();
    flows.sort();
    // Two CPUs that admit the same flow at once may leave two entries.
    flows.dedup_by(|a, b| {
        a.idle_seconds = b.idle_seconds;
        a == b
    });
    (flows, missing)
}

/// The other side as [`Names`] know it: its port tells which Service is meant if it is where the
/// connection went, or may have gone.
fn remote(flow: &Tracked) -> End {
    let port = if flow.opened == Some(Direction::Ingress) { 0 } else { flow.remote_port };
    End { ip: flow.remote, protocol: flow.protocol, port }
}

/// Whether a flow judged in `epoch` is this endpoint's and not that of an earlier owner of its
/// number.
fn is_of(epoch: u32, entry: &EndpointEntry) -> bool {
    epoch.wrapping_sub(entry.born) & EPOCH_MASK <= EPOCH_MASK / 2
}

pub(crate) fn view(flow: &Tracked, entry: &EndpointEntry, names: &Names) -> Flow {
    let port = |port| protocol::has_ports(flow.protocol).then_some(port);
    let owner = names.owner(remote(flow));
    Flow {
        endpoint: names.name(flow.endpoint),
        endpoint_id: flow.endpoint,
        protocol: protocol::name(flow.protocol),
        local: flow.local,
        local_port: port(flow.local_port),
        remote: flow.remote,
        remote_port: port(flow.remote_port),
        remote_endpoint: owner.pod,
        remote_service: owner.service,
        remote_node: owner.node,
        opened: match flow.opened {
            Some(Direction::Ingress) => Opened::Ingress,
            Some(Direction::Egress) => Opened::Egress,
            None => Opened::Unseen,
        },
        by_node: flow.is_from_node,
        state: match (flow.is_closing, flow.is_replied) {
            (true, _) => FlowState::Closing,
            (false, true) => FlowState::Established,
            (false, false) => FlowState::New,
        },
        rejudge: flow.epoch != entry.epoch,
        idle_seconds: flow.idle_seconds,
    }
}

#[cfg(test)]
mod tests {

    use super::*;
    use crate::testing::{entry, flow as example, tracked};

    #[test]
    fn names_both_ends_and_leaves_out_ports_that_are_none() {
        let flow = example(protocol::TCP);
        assert_eq!(flow.endpoint.as_deref(), Some("shop/web"));
        assert_eq!(flow.remote_endpoint.as_deref(), Some("shop/client"));
        assert_eq!((flow.local_port, flow.remote_port), (Some(80), Some(40000)));
        assert_eq!(
            (flow.opened, flow.state, flow.rejudge),
            (Opened::Ingress, FlowState::Established, false)
        );
        let ping = example(protocol::ICMP);
        assert_eq!((ping.local_port, ping.remote_port), (None, None));
        let nameless = view(&tracked(6), &entry(), &Names::default());
        assert_eq!((nameless.endpoint, nameless.remote_endpoint), (None, None));
        let unseen = Tracked { opened: None, ..tracked(6) };
        assert_eq!(view(&unseen, &entry(), &Names::default()).opened, Opened::Unseen);
    }

    #[test]
    fn a_flow_judged_before_the_endpoint_was_born_is_not_its() {
        assert!(is_of(5, &entry()) && is_of(9, &entry()));
        assert!(!is_of(4, &entry()));
        let wrapped = EndpointEntry { born: EPOCH_MASK, epoch: 1, ..entry() };
        assert!(is_of(0, &wrapped) && is_of(EPOCH_MASK, &wrapped));
        assert!(!is_of(EPOCH_MASK - 1, &wrapped));
        let changed = EndpointEntry { epoch: 10, ..entry() };
        assert!(view(&tracked(6), &changed, &Names::default()).rejudge);
    }
}
