//! The loaded programs and their maps, packet by packet, and what reads them. Must never need an agent.

#![expect(clippy::unwrap_used, reason = "tests")]
#![expect(clippy::cast_possible_truncation, reason = "small or random numbers")]

mod agent_netns_exec;
mod change_interleaved;
mod cli_node;
mod datapath_attach;
mod datapath_bad_input;
mod datapath_hammer;
mod datapath_limits;
mod datapath_services;
mod datapath_verdicts;
mod established_flows;
mod flow_flood;
