//! How full the tables are, for people and metrics. Reads the bookkeeping only.

use netpol_common::layout::{self, Reason};

use super::flow_tables::FlowUse;
use super::limits::{N_EXAMPLES, Overflow, TableUse};
use super::observe;
use super::writer::{Datapath, Endpoint};
use netpol_compile::EndpointId;
use netpol_model::Direction;

impl Datapath {
    /// Every table that can be full, but for the flow tables: those make room by themselves.
    pub fn tables(&self) -> Vec<TableUse> {
        let [addresses, blocks] = self.classes.sizes();
        let n_own: usize = self.endpoints.values().map(|e| e.addresses.len()).sum();
        let n_endpoints = self.endpoints.keys().filter(|id| self.has_entry(**id)).count();
        let [services, backends] = self.services.sizes();
        let is_service_short = services.0 >= services.1;
        let [rows, intervals] = self.rows.sizes();
        let is_row_short = rows.0 >= rows.1;
        let table = |table, used: usize, limit: usize, overflow| TableUse {
            table,
            used: used as u64,
            limit: limit as u64,
            overflow,
        };
        vec![
            table(
                "endpoints",
                n_endpoints,
                self.limits.endpoints as usize,
                self.closed_endpoints(),
            ),
            table(
                "own_addresses",
                n_own,
                layout::MAX_OWN_ADDRESSES as usize,
                self.foreign_addresses(),
            ),
            table(
                "source_prefixes",
                self.prefixes.len(),
                layout::MAX_SOURCE_PREFIXES as usize,
                self.prefixes.overflow(),
            ),
            table("addresses", addresses.0, addresses.1, self.classes.overflow(true)),
            table("blocks", blocks.0, blocks.1, self.classes.overflow(false)),
            table("rows", rows.0, rows.1, self.missing_rows().filter(|_| is_row_short)),
            table(
                "intervals",
                intervals.0,
                intervals.1,
                self.missing_rows().filter(|_| !is_row_short),
            ),
            table(
                "services",
                services.0,
                services.1,
                self.services.overflow().filter(|_| is_service_short),
            ),
            table(
                "backends",
                backends.0,
                backends.1,
                self.services.overflow().filter(|_| !is_service_short),
            ),
        ]
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
        self.has_entry(id).then(|| self.flows.use_of(id.0))
    }

    /// How many live flows made room for these endpoints' flows.
    pub fn evicted_flows(&self, endpoints: impl Iterator<Item = EndpointId>) -> u64 {
        let with_entry = endpoints.filter(|id| self.has_entry(*id));
        with_entry
            .flat_map(|id| Direction::BOTH.map(|direction| (id, direction)))
            .filter_map(|(id, direction)| observe::counters(&self.maps, id.0, direction).ok())
            .map(|counters| counters[Reason::FlowEvicted as usize])
            .sum()
    }

    fn closed_endpoints(&self) -> Option<Overflow> {
        let endpoints = self.endpoints_where(|endpoint| endpoint.is_closed);
        (!endpoints.is_empty()).then(|| Overflow {
            is_error: true,
            n_left_out: endpoints.len() as u64,
            examples: Vec::new(),
            endpoints,
            consequence: "every packet from and to these pods is dropped, the node's included",
            remedy: "move pods to other nodes",
        })
    }

    fn foreign_addresses(&self) -> Option<Overflow> {
        let is_short = |endpoint: &Endpoint| !endpoint.other_addresses.is_empty();
        let mut endpoints = self.endpoints_where(is_short);
        endpoints.retain(|id| self.has_entry(*id));
        let left_out = endpoints.iter().map(|id| &self.endpoints[id].other_addresses);
        let left_out: Vec<_> = left_out.flatten().collect();
        // Any pod can give itself more addresses: that is no fault of the node.
        (!left_out.is_empty()).then(|| Overflow {
            is_error: false,
            n_left_out: left_out.len() as u64,
            examples: left_out.iter().take(N_EXAMPLES).map(ToString::to_string).collect(),
            endpoints,
            consequence: "what these pods send from them is dropped while a policy isolates them",
            remedy: "give the pods fewer addresses",
        })
    }

    fn missing_rows(&self) -> Option<Overflow> {
        let (n_left_out, sets) = self.rows.missing();
        (!sets.is_empty()).then(|| Overflow {
            is_error: true,
            n_left_out: n_left_out as u64,
            examples: Vec::new(),
            endpoints: self.endpoints_where(|endpoint| {
                sets.contains(&endpoint.sets.ingress) || sets.contains(&endpoint.sets.egress)
            }),
            consequence: "some of what their policies allow is denied to these pods",
            remedy: "let the policies of this node's pods tell fewer peers and ports apart, or \
                     move pods to other nodes",
        })
    }

    fn endpoints_where(&self, is_wanted: impl Fn(&Endpoint) -> bool) -> Vec<EndpointId> {
        let wanted = self.endpoints.iter().filter(|(_, endpoint)| is_wanted(endpoint));
        wanted.map(|(&id, _)| id).collect()
    }
}
