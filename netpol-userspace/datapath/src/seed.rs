//! Tells the flow table about connections that are older than the programs on their interface, so
//! that a pod which becomes isolated keeps the flows it opened and is judged by the right
//! direction for those it did not. Must never decide whether a flow is allowed: seeded flows are
//! judged at their next packet like any others after a change.

use netpol_common::flow::{self, OPENED_BY_NODE, OPENED_BY_REMOTE, OPENER};
use netpol_common::packet::Packet;

use super::clock::clock;
use super::flow_tables::FlowTables;
use super::keys::address_of;
use netpol_compile::EndpointId;
use netpol_endpoint::sockets::Connection;
use netpol_model::Direction;

/// Enters the connections, as judged in `epoch`. One that the programs have met meanwhile is
/// corrected if they took the wrong end for the opener.
pub(crate) fn seed(
    flows: &FlowTables,
    endpoint: EndpointId,
    connections: &[Connection],
    epoch: u32,
) {
    let clock = clock();
    for connection in connections {
        let packet = Packet {
            local: address_of(connection.local),
            remote: address_of(connection.remote),
            local_port: connection.local_port,
            remote_port: connection.remote_port,
            protocol: connection.protocol,
            ..Packet::default()
        };
        let opener = match connection.opened {
            Direction::Ingress => OPENED_BY_REMOTE,
            Direction::Egress => 0,
        };
        if connection.local.is_ipv4() {
            let key = flow::key4(&packet, endpoint.0);
            enter(&flows.table4(), &key, epoch, opener, &clock);
        } else {
            let key = flow::key6(&packet, endpoint.0);
            enter(&flows.table6(), &key, epoch, opener, &clock);
        }
    }
}

fn enter<T: flow::Table, const KEY: usize>(
    table: &T,
    key: &flow::Key<KEY>,
    epoch: u32,
    opener: u64,
    clock: &flow::Clock,
) {
    let hash = flow::hash(key, table.secret());
    if let Some(entry) = flow::find(table, key, hash)
        && agrees(entry.state, opener)
        && entry.epoch() >= epoch
    {
        return;
    }
    flow::insert(table, key, hash, epoch, opener, clock);
    if let Some(entry) = flow::find(table, key, hash) {
        // An established connection, not a first packet that waits for its answer.
        entry.touch(clock.now, flow::REPLIED | flow::HEARD, false);
        flow::settle(table, key, hash, clock);
    }
}

/// Whether what the programs noted says the same; that the other side was the node they know better.
const fn agrees(state: u64, opener: u64) -> bool {
    match state & OPENER {
        OPENED_BY_NODE => opener == OPENED_BY_REMOTE,
        noted => noted == opener,
    }
}
