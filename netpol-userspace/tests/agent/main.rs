//! Agents on nodes of their own: what they make of objects, interfaces, restarts and bad input, what is
//! told about it, the CNI plugin and the playground.

#![expect(clippy::unwrap_used, reason = "tests")]
#![expect(clippy::cast_possible_truncation, reason = "small or random numbers")]

mod agent_churn;
mod agent_identity;
mod agent_lifetime;
mod agent_limits;
mod agent_live;
mod agent_load;
mod agent_refusals;
mod agent_restart;
mod agent_services;
mod attach_foreign;
mod change_wire;
mod cni_first_packet;
mod cni_plugin;
mod established_cut;
mod established_reuse;
mod explain_monitor;
mod explain_services;
mod explain_trace;
mod flow_wire;
mod playground_enforced;
mod playground_first;
mod playground_wiring;
