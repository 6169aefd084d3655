//! tmp
/// tmp
#[derive(Debug, Clone, Default)]
#[allow(missing_docs)]
pub struct AgentCounters { pub failures: u64, pub map_writes: u64, pub repaired_attachments: u64 }
impl AgentCounters {
    /// tmp
    pub fn record_apply(&mut self, _d: std::time::Duration) {}
}
/// tmp
pub fn encode(_m: &crate::datapath::Maps, _s: &crate::agent::state::State, _c: &AgentCounters) -> String { String::new() }
