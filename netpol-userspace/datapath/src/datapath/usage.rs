//! How full the tables are, for people and metrics. Reads the bookkeeping only.

use netpol_common::layout::{self, Reason};
use netpol_compile::EndpointId;
use netpol_model::Direction;

use super::Datapath;
use crate::flow_tables::FlowUse;
use crate::limits::{Overflow, TableUse};

impl Datapath {
    /// Every table that can be full, but for the flow tables: those make room by themselves.
    pub fn tables(&self) -> Vec<TableUse> {
        let [addresses, blocks] = self.classes.sizes();
        let [rows, intervals] = self.rows.sizes();
        let [services, backends] = self.services.sizes();
        let (n_endpoints, n_own) = self.endpoints.used();
        let endpoints = (n_endpoints, self.limits().endpoints as usize);
        let own_addresses = (n_own, layout::MAX_OWN_ADDRESSES as usize);
        let source_prefixes = (self.prefixes.len(), layout::MAX_SOURCE_PREFIXES as usize);
        // What did not fit is for want of the one or of the other.
        let (no_rows, no_intervals) = of_either(self.row_overflow(), rows);
        let (no_services, no_backends) = of_either(self.services.overflow(), services);
        vec![
            table_use("endpoints", endpoints, self.endpoints.overflow()),
            table_use("own_addresses", own_addresses, self.endpoints.address_overflow()),
            table_use("source_prefixes", source_prefixes, self.prefixes.overflow()),
            table_use("addresses", addresses, self.classes.overflow(true)),
            table_use("blocks", blocks, self.classes.overflow(false)),
            table_use("rows", rows, no_rows),
            table_use("intervals", intervals, no_intervals),
            table_use("services", services, no_services),
            table_use("backends", backends, no_backends),
        ]
    }

    fn row_overflow(&self) -> Option<Overflow> {
        let (n_left_out, sets) = self.rows.missing();
        (n_left_out > 0).then(|| Overflow {
            is_error: true,
            n_left_out: n_left_out as u64,
            examples: Vec::new(),
            endpoints: self.endpoints.with_sets(&sets),
            consequence: "some of what their policies allow is denied to these pods",
            remedy: "let the policies of this node's pods tell fewer peers and ports apart, or \
                     move pods to other nodes",
        })
    }

    /// How full the flow tables are: slots that hold a flow, also one that has expired and that
    /// nobody has needed the slot of, and all.
    pub fn flow_tables(&self) -> [TableUse; 2] {
        let held = self.flows.held();
        let slots = [self.flows.table4(), self.flows.table6()].map(|table| table.n_slots());
        let table = |table, used, limit| TableUse { table, used, limit, overflow: None };
        [table("flows4", held[0], slots[0]), table("flows6", held[1], slots[1])]
    }

    /// What an endpoint has of the flow tables, if it has an entry.
    pub fn flow_use(&self, id: EndpointId) -> Option<FlowUse> {
        self.endpoints.may_have_entry(id).then(|| self.flows.use_of(id.0))
    }

    /// How many live flows made room for these endpoints' flows.
    pub fn evicted_flows(&self, endpoints: impl Iterator<Item = EndpointId>) -> u64 {
        let with_entry = endpoints.filter(|id| self.endpoints.may_have_entry(*id));
        with_entry
            .flat_map(|id| Direction::BOTH.map(|direction| (id, direction)))
            .filter_map(|(id, direction)| self.endpoints.counters(id, direction).ok())
            .map(|counters| counters[Reason::FlowEvicted as usize])
            .sum()
    }
}

fn table_use(
    table: &'static str,
    (used, limit): (usize, usize),
    overflow: Option<Overflow>,
) -> TableUse {
    TableUse { table, used: used as u64, limit: limit as u64, overflow }
}

/// The overflow is the table's if that is full, else that of what its entries lead to.
fn of_either(
    overflow: Option<Overflow>,
    (used, limit): (usize, usize),
) -> (Option<Overflow>, Option<Overflow>) {
    if used >= limit { (overflow, None) } else { (None, overflow) }
}
