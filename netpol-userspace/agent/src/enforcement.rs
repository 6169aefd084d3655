//! What is in force in the kernel: puts plans there, puts back what somebody took off, makes room, and
//! keeps what could not be done. Must never decide what is to be in force, nor take for granted what
//! the maps hold before they were reconciled.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use netpol_api::counters::AgentCounters;
use netpol_api::state::ObjectError;
use netpol_compile::{Compiler, EndpointId, Plan, Step, Tables};
use netpol_datapath::{Datapath, DatapathError, EndpointFailure, Link};
use netpol_endpoint::{Exit, PodNetns};

mod room;
mod verification;

/// What endpoints are called where something is said of them.
pub(crate) trait Names {
    /// The name of one, also if it is not known (any more).
    fn name(&self, id: EndpointId) -> String;
}

/// What is in force.
pub(crate) struct Enforcement {
    datapath: Datapath,
    /// The maps equal the compiler's tables as far as they could be made to.
    is_reconciled: bool,
    /// What could not be written for an endpoint, or (`None`) at all.
    failures: BTreeMap<Option<EndpointId>, String>,
    counters: AgentCounters,
    verification: verification::Verification,
    evictions: room::Evictions,
}

impl Enforcement {
    /// What an earlier agent left in force, if anything.
    pub(crate) fn new(datapath: Datapath) -> Self {
        Self {
            datapath,
            is_reconciled: false,
            failures: BTreeMap::new(),
            counters: AgentCounters::default(),
            verification: verification::Verification::default(),
            evictions: room::Evictions::default(),
        }
    }

    /// The datapath, to read.
    pub(crate) fn datapath(&self) -> &Datapath {
        &self.datapath
    }

    /// Whether the maps are this agent's.
    pub(crate) fn is_reconciled(&self) -> bool {
        self.is_reconciled
    }

    /// Whether everything that was tried is in force.
    pub(crate) fn is_without_failures(&self) -> bool {
        self.is_reconciled && self.failures.is_empty()
    }

    // === Plans ===

    /// Puts a plan in force, once the maps are this agent's.
    pub(crate) fn apply(&mut self, plan: &Plan, names: &impl Names) {
        for step in plan {
            if let Step::SetEndpoint(id, _) = step {
                self.failures.remove(&Some(*id));
            }
        }
        for failure in self.datapath.apply(plan) {
            self.record_failure(failure, names);
        }
        self.counters.map_writes += plan.len() as u64;
    }

    /// Makes the maps equal to the compiler's tables.
    pub(crate) fn reconcile(&mut self, tables: &Tables, names: &impl Names) {
        self.failures.clear();
        match self.datapath.reconcile(tables) {
            Ok(failures) => {
                self.is_reconciled = true;
                for failure in failures {
                    self.record_failure(failure, names);
                }
            }
            Err(error) => self.record_failure(EndpointFailure { endpoint: None, error }, names),
        }
    }

    // === Failures and counters ===

    /// Something could not be put in force.
    pub(crate) fn record_failure(&mut self, failure: EndpointFailure, names: &impl Names) {
        let EndpointFailure { endpoint, error } = failure;
        let name = object(endpoint, names);
        tracing::error!(endpoint = name, error = %error, "cannot put in force");
        self.counters.failures += 1;
        self.failures.insert(endpoint, error.to_string());
    }

    fn record_result(
        &mut self,
        endpoint: Option<EndpointId>,
        result: Result<(), DatapathError>,
        names: &impl Names,
    ) {
        if let Err(error) = result {
            self.record_failure(EndpointFailure { endpoint, error }, names);
        }
    }

    /// What is to be in force could not be written down for the next agent.
    pub(crate) fn record_unwritten(&mut self, error: &anyhow::Error) {
        let error = format!("{error:#}; `netpol` commands show an older state");
        tracing::error!(error, "cannot write the state file");
        self.failures.insert(None, error);
    }

    /// What could not be written for an endpoint.
    pub(crate) fn failure_of(&self, id: EndpointId) -> Option<&str> {
        self.failures.get(&Some(id)).map(String::as_str)
    }

    /// What could not be written, that of no endpoint first.
    pub(crate) fn first_failure(&self) -> Option<&str> {
        self.failures.values().next().map(String::as_str)
    }

    /// All of it for people.
    pub(crate) fn errors(&self, names: &impl Names) -> Vec<ObjectError> {
        let error = |(endpoint, message): (&Option<EndpointId>, &String)| ObjectError {
            object: object(*endpoint, names),
            message: message.clone(),
        };
        self.failures.iter().map(error).collect()
    }

    /// Counts a batch of changes that took this long.
    pub(crate) fn record_apply(&mut self, time: Duration) {
        self.counters.record_apply(time);
    }

    /// What was counted.
    pub(crate) fn counters(&self) -> &AgentCounters {
        &self.counters
    }

    // === Endpoints ===

    /// An endpoint is at this interface and may speak as these.
    pub(crate) fn set_addresses(
        &mut self,
        id: EndpointId,
        ifindex: u32,
        addresses: Vec<IpAddr>,
        names: &impl Names,
    ) {
        let result = self.datapath.add_endpoint(id, ifindex, addresses);
        self.record_result(Some(id), result, names);
    }

    /// Which network namespace an endpoint's other end is in, if that is known.
    pub(crate) fn set_netns(&mut self, id: EndpointId, netns: Option<PodNetns>) {
        self.datapath.set_netns(id, netns);
    }

    /// An endpoint's interface is gone.
    pub(crate) fn remove_endpoint(
        &mut self,
        id: EndpointId,
        compiler: &mut Compiler,
        names: &impl Names,
    ) {
        self.failures.remove(&Some(id));
        // The kernel's entry first: the compiler's steps for it then find nothing to do.
        let result = self.datapath.remove_endpoint(id);
        self.record_result(None, result, names);
        compiler.enqueue_endpoint_removal(id);
    }

    /// An endpoint's interface is another one's. What is attached stays, closed until the new entry
    /// is complete.
    pub(crate) fn hand_over(&mut self, old: EndpointId, new: EndpointId, names: &impl Names) {
        self.failures.remove(&Some(old));
        let result = self.datapath.hand_over(old, new);
        self.record_result(Some(new), result, names);
    }

    /// An endpoint has another number, for which there is room. What is attached stays.
    pub(crate) fn renumber(&mut self, old: EndpointId, new: EndpointId, names: &impl Names) {
        self.failures.remove(&Some(old));
        let result = self.datapath.renumber(old, new);
        self.record_result(Some(new), result, names);
    }

    // === Speakers and guards ===

    /// Which interfaces packets leave by.
    pub(crate) fn set_exits(&mut self, exits: &[Exit], names: &impl Names) {
        for failure in self.datapath.set_exits(exits) {
            self.record_failure(failure, names);
        }
    }

    /// Which interfaces, by index, pods forward for others at, and for whom.
    pub(crate) fn set_source_prefixes(
        &mut self,
        wanted: BTreeSet<(u32, IpNet)>,
        names: &impl Names,
    ) {
        let result = self.datapath.set_source_prefixes(wanted);
        self.record_result(None, result, names);
    }

    /// How an endpoint's interface is linked to the node.
    pub(crate) fn set_link(&mut self, id: EndpointId, link: Link) {
        self.datapath.set_link(id, link);
    }

    /// Whether declared addresses are those of this endpoint's interface, so that it may have a guard.
    pub(crate) fn set_main(&mut self, id: EndpointId, is_main: bool) {
        self.datapath.set_main(id, is_main);
    }

    /// Whether pods that no policy selects are to have guards.
    pub(crate) fn want_guards(&mut self, is_wanted: bool) {
        self.datapath.want_guards(is_wanted);
    }

    /// Whether guards are still to be put on or taken off.
    pub(crate) fn has_pending_guards(&self) -> bool {
        self.is_reconciled && self.datapath.has_pending_guards()
    }

    /// Does that with one of them.
    pub(crate) fn update_next_guard(&mut self, names: &impl Names) {
        if let Some((id, result)) = self.datapath.update_next_guard() {
            self.record_result(Some(id), result, names);
        }
    }
}

fn object(endpoint: Option<EndpointId>, names: &impl Names) -> String {
    endpoint.map_or_else(|| "datapath".to_owned(), |id| names.name(id))
}
