//! Room in the tables: what nothing refers to any more is freed, Services share what is too little, and
//! it is told when flows made room for others. Must never take a place from what is in force while
//! there is another.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::{Enforcement, Names};
use crate::capacity;
use netpol_compile::{Compiler, EndpointId};
use netpol_datapath::EndpointFailure;
use netpol_model::ObjectName;

/// How long `netpol status` tells that flows made room for others.
const EVICTIONS_SHOWN: Duration = Duration::from_secs(60);

/// How many flows of the endpoints made room for others, and when there were more of them last.
#[derive(Debug, Default)]
pub(super) struct Evictions {
    n_flows: u64,
    last: Option<Instant>,
}

impl Enforcement {
    /// Frees what nothing refers to any more, for what did not fit. Returns whether that has changed
    /// what there is to say of the tables.
    pub(crate) fn make_room(&mut self, compiler: &mut Compiler, names: &impl Names) -> bool {
        let before = self.datapath.tables();
        match self.datapath.collect_garbage().and_then(|()| self.datapath.retry()) {
            // Before that, the maps may hold more under these numbers than the plans say.
            Ok(()) if self.is_reconciled => {
                compiler.free_numbers();
            }
            Ok(()) => {}
            Err(error) => self.record_failure(EndpointFailure { endpoint: None, error }, names),
        }
        let is_short = self.share_services(compiler, names);
        is_short || before != self.datapath.tables()
    }

    /// Where Services find no place, those of namespaces that want more than their share go without.
    /// Returns whether that is so.
    pub(crate) fn share_services(&mut self, compiler: &Compiler, names: &impl Names) -> bool {
        if !self.datapath.is_short_of_services() {
            return false;
        }
        let [n_keys, n_backends] = capacity::service_room(&self.datapath.limits());
        let beyond = compiler.services_beyond(n_keys, n_backends);
        let result = self.datapath.leave_out_services(beyond);
        self.record_result(None, result, names);
        true
    }

    /// How many addresses and ports of each Service go without.
    pub(crate) fn left_out_services<'a>(
        &self,
        compiler: &'a Compiler,
    ) -> BTreeMap<&'a ObjectName, usize> {
        let mut left_out = BTreeMap::new();
        for key in self.datapath.left_out_services() {
            if let Some(service) = compiler.service_name(key) {
                *left_out.entry(service).or_default() += 1;
            }
        }
        left_out
    }

    /// Counts the flows of these endpoints that made room for others. Returns whether there is
    /// something else to say of them.
    pub(crate) fn count_evictions(&mut self, endpoints: impl Iterator<Item = EndpointId>) -> bool {
        let n_flows = self.datapath.evicted_flows(endpoints);
        let Evictions { n_flows: n_before, last } = &mut self.evictions;
        let is_more = n_flows > *n_before;
        let is_news = is_more || last.is_some_and(|last| last.elapsed() > EVICTIONS_SHOWN);
        if is_news {
            *last = is_more.then(Instant::now);
        }
        *n_before = n_flows;
        is_news
    }

    /// What there is to say of them.
    pub(crate) fn evictions_note(
        &self,
        endpoints: impl Iterator<Item = EndpointId>,
        names: &impl Names,
    ) -> Option<String> {
        self.evictions.last?;
        let of = |id| {
            let uses = self.datapath.flow_use(id)?;
            let caused = self.datapath.evicted_flows([id].into_iter());
            Some(capacity::PodFlows { name: names.name(id), uses, caused })
        };
        let pods: Vec<capacity::PodFlows> = endpoints.filter_map(of).collect();
        Some(capacity::evictions(self.evictions.n_flows, &pods))
    }
}
