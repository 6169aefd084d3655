//! Counts what was lost and what passed, from what the pods of a scenario say. Must never call a
//! run fine in which nothing was sent.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::drops::Drop as Dropped;

/// What the program `traffic` says of itself.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Stats {
    /// The pod.
    pub name: String,
    /// What it sent.
    pub flows: BTreeMap<String, Flow>,
    /// What it got, by sender.
    pub received: BTreeMap<String, Received>,
    /// TCP segments that its network namespace sent again.
    pub retransmitted: Option<u64>,
}

/// One flow's counters.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Flow {
    /// Messages.
    pub sent: u64,
    /// Those of them that came back.
    pub answered: u64,
    /// Answers that took so long that something was sent again.
    pub slow: u64,
    /// When the first one was sent, in microseconds since 1970.
    pub first_sent_us: Option<u64>,
    /// When the last one that came back was sent.
    pub last_answered_us: Option<u64>,
    /// Since the process started.
    pub first_answer_ms: Option<u64>,
    /// The slowest answer.
    pub longest_us: Option<u64>,
    /// What went wrong how often.
    pub errors: BTreeMap<String, u64>,
    /// Of each run of messages with the same fate: when the first was sent in microseconds since
    /// 1970, whether they were answered, how many.
    #[serde(default)]
    pub runs: Vec<(u64, bool, u64)>,
}

/// What came from one sender.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
pub struct Received {
    /// TCP connections.
    pub connections: u64,
    /// Messages, over any protocol.
    pub messages: u64,
}

/// How a scenario went.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Messages that policies allow.
    pub allowed: u64,
    /// Those of them that were not answered.
    pub lost: u64,
    /// Those that took a second attempt.
    pub slow: u64,
    /// Messages that policies deny.
    pub denied: u64,
    /// Those of them that arrived, or were answered.
    pub passed: u64,
    /// Packets of allowed flows that netpol dropped.
    pub wrong_drops: u64,
    /// What was wrong, in words.
    pub problems: Vec<String>,
    /// What was measured, in words.
    pub figures: Vec<String>,
}

impl Outcome {
    /// Nothing was wrong, and there was something that could have been.
    #[must_use]
    pub fn is_fine(&self) -> bool {
        self.problems.is_empty() && self.lost == 0 && self.passed == 0 && self.wrong_drops == 0
    }

    /// Something is wrong.
    pub fn problem(&mut self, text: impl Into<String>) {
        self.problems.push(text.into());
    }

    /// Something was measured.
    pub fn figure(&mut self, text: impl Into<String>) {
        self.figures.push(text.into());
    }

    /// A packet of an allowed flow was dropped.
    pub fn wrong_drop(&mut self, dropped: &Dropped) {
        self.wrong_drops += 1;
        if self.wrong_drops <= 5 {
            self.problem(format!("wrongly dropped: {}", dropped.line()));
        }
    }

    /// Counts what a pod sent: flows called `ok-...` are allowed, those called `no-...` denied.
    pub fn sender(&mut self, stats: &Stats) {
        for (name, flow) in &stats.flows {
            let title = format!("{} {name}", stats.name);
            let is_denied = name.starts_with("no-");
            // A stream that gets no connection sends nothing, which is how it is denied.
            let refused: u64 = flow.errors.values().filter(|_| is_denied && flow.sent == 0).sum();
            if flow.sent + refused == 0 {
                self.problem(format!("{title}: sent nothing ({:?})", flow.errors));
            }
            if is_denied {
                self.denied += flow.sent + refused;
                self.passed += flow.answered;
                if flow.answered > 0 {
                    self.problem(format!("{title}: {} of {} passed", flow.answered, flow.sent));
                }
                continue;
            }
            let lost = flow.sent - flow.answered;
            self.allowed += flow.sent;
            self.lost += lost;
            self.slow += flow.slow;
            if lost > 0 {
                let errors = &flow.errors;
                self.problem(format!("{title}: {lost} of {} lost ({errors:?})", flow.sent));
            }
        }
    }

    /// As [`Self::sender`], where something else than netpol loses messages, too: what was lost is
    /// a figure, and only netpol's drops tell whether it was netpol's doing.
    pub fn sender_beside_proxy(&mut self, stats: &Stats) {
        let mut own = Self::default();
        own.sender(stats);
        self.figures.extend(own.problems.iter().filter(|text| text.contains(" lost ")).cloned());
        self.problems.extend(own.problems.into_iter().filter(|text| !text.contains(" lost ")));
        self.allowed += own.allowed;
        self.denied += own.denied;
        self.passed += own.passed;
        self.slow += own.slow;
    }

    /// Counts what a server got that it should not have got: everything but what comes from pods
    /// whose names start with one of `allowed`.
    pub fn server(&mut self, stats: &Stats, allowed: &[&str]) {
        for (sender, got) in &stats.received {
            if !allowed.iter().any(|name| sender.starts_with(name)) {
                self.passed += got.messages;
                self.problem(format!("{}: got {} from {sender}", stats.name, got.messages));
            }
        }
    }

    /// Adds another part's counts.
    pub fn add(&mut self, other: Self) {
        self.allowed += other.allowed;
        self.lost += other.lost;
        self.slow += other.slow;
        self.denied += other.denied;
        self.passed += other.passed;
        self.wrong_drops += other.wrong_drops;
        self.problems.extend(other.problems);
        self.figures.extend(other.figures);
    }
}

/// The value below which the part `share` of them lies; `None` of none.
#[must_use]
pub fn percentile(values: &[f64], share: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().checked_sub(1)?;
    let index = (share * sorted.len() as f64).ceil() as usize;
    Some(sorted[index.saturating_sub(1).min(last)])
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn stats(text: &str) -> Stats {
        serde_json::from_str(text).unwrap()
    }

    fn flow(name: &str, sent: u64, answered: u64) -> Stats {
        stats(&format!(
            r#"{{"name":"a","flows":{{"{name}":{{"sent":{sent},"answered":{answered},"slow":0,
            "errors":{{}}}}}},"received":{{}},"silent":{{}},"retransmitted":0}}"#
        ))
    }

    #[test]
    fn losses_and_leaks_are_problems_and_silence_too() {
        let cases = [
            (flow("ok-a", 5, 5), true),
            (flow("ok-a", 5, 4), false),
            (flow("ok-a", 0, 0), false),
            (flow("no-a", 5, 0), true),
            (flow("no-a", 5, 1), false),
            (flow("no-a", 0, 0), false),
        ];
        for (stats, expected) in cases {
            let mut outcome = Outcome::default();
            outcome.sender(&stats);
            assert_eq!(outcome.is_fine(), expected, "{stats:?}");
        }
        let mut silent = flow("no-a", 0, 0);
        for flow in silent.flows.values_mut() {
            flow.errors.insert("timeout".into(), 3);
        }
        let mut outcome = Outcome::default();
        outcome.sender(&silent);
        assert!(outcome.is_fine() && outcome.denied == 3);
        let mut outcome = Outcome::default();
        outcome.sender_beside_proxy(&flow("ok-a", 5, 4));
        assert!(outcome.is_fine() && outcome.figures.len() == 1);
        outcome.sender_beside_proxy(&flow("no-a", 5, 1));
        assert_eq!(outcome.passed, 1);
    }

    #[test]
    fn servers_tell_who_reached_them() {
        let got = stats(
            r#"{"name":"s","flows":{},"silent":{},"retransmitted":0,"received":
            {"web-1":{"connections":1,"messages":3},"spy-1":{"connections":0,"messages":2}}}"#,
        );
        let mut outcome = Outcome::default();
        outcome.server(&got, &["web", "spy"]);
        assert!(outcome.is_fine());
        outcome.server(&got, &["web"]);
        assert_eq!(outcome.passed, 2);
    }

    #[test]
    fn percentiles() {
        let values: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(percentile(&values, 0.5), Some(50.0));
        assert_eq!(percentile(&values, 0.99), Some(99.0));
        assert_eq!(percentile(&[3.0], 0.99), Some(3.0));
        assert_eq!(percentile(&[], 0.5), None);
    }
}
