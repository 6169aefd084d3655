//! What the running agent counts of its own work. Must never count what the maps count.

use std::time::Duration;

/// What only the running agent knows.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct AgentCounters {
    /// Batches of changes put in force since the agent started.
    pub applies: u64,
    /// Time spent on them, compiling and writing maps.
    pub apply_time: Duration,
    /// Time the last one took.
    pub last_apply: Duration,
    /// Steps done in the maps since the agent started.
    pub map_writes: u64,
    /// What could not be put in force since the agent started, each attempt counted.
    pub failures: u64,
    /// Attachments found missing and put back since the agent started.
    pub repaired_attachments: u64,
}

impl AgentCounters {
    /// Counts a batch of changes that took this long.
    pub fn record_apply(&mut self, time: Duration) {
        self.applies += 1;
        self.apply_time += time;
        self.last_apply = time;
    }
}
