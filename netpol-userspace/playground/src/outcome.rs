//! What was expected and what was observed, probe by probe. Plain data; must never run anything.

use std::net::IpAddr;

use serde_json::{Value, json};

use super::plan::Host;
use super::pods::Port;
use super::probe::Observed;
use netpol_source::advice::Warning;

/// One finished probe.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The client, as an index into the hosts.
    pub from: usize,
    /// The server, likewise.
    pub to: usize,
    /// The client's address.
    pub source: IpAddr,
    /// The server's address.
    pub destination: IpAddr,
    /// The server's port.
    pub port: Port,
    /// Whether the reference evaluator allows it.
    pub expected: bool,
    /// What happened.
    pub observed: Observed,
}

impl Outcome {
    /// Whether observation and expectation differ.
    pub fn differs(&self) -> bool {
        match self.observed {
            Observed::Allowed => !self.expected,
            Observed::Blocked => self.expected,
            Observed::Refused | Observed::Error(_) => true,
        }
    }
}

/// Totals.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    /// All probes.
    pub probes: usize,
    /// Answered by the right server.
    pub allowed: usize,
    /// Silent.
    pub blocked: usize,
    /// Not as expected.
    pub differences: usize,
}

impl Summary {
    /// Counts.
    pub fn of(outcomes: &[Outcome]) -> Self {
        let count = |wanted: &dyn Fn(&Outcome) -> bool| {
            outcomes.iter().filter(|outcome| wanted(outcome)).count()
        };
        Self {
            probes: outcomes.len(),
            allowed: count(&|outcome| outcome.observed == Observed::Allowed),
            blocked: count(&|outcome| outcome.observed == Observed::Blocked),
            differences: count(&Outcome::differs),
        }
    }
}

impl std::fmt::Display for Summary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { probes, allowed, blocked, differences } = self;
        write!(
            f,
            "{probes} probes, {allowed} allowed, {blocked} blocked, {differences} differences"
        )
    }
}

/// The machine-readable form, with the warnings about policies.
pub fn to_json(hosts: &[Host], outcomes: &[Outcome], warnings: &[(String, Warning)]) -> Value {
    let probes: Vec<Value> = outcomes
        .iter()
        .map(|outcome| {
            json!({
                "from": hosts[outcome.from].to_string(),
                "to": hosts[outcome.to].to_string(),
                "address": outcome.destination,
                "protocol": outcome.port.protocol.as_str(),
                "port": outcome.port.number,
                "expected": if outcome.expected { "allow" } else { "deny" },
                "observed": observed_word(&outcome.observed),
            })
        })
        .collect();
    let warnings: Vec<Value> = warnings
        .iter()
        .map(|(object, Warning { field, message })| {
            json!({"object": object, "field": field, "message": message})
        })
        .collect();
    let differences = Summary::of(outcomes).differences;
    json!({"probes": probes, "differences": differences, "warnings": warnings})
}

fn observed_word(observed: &Observed) -> String {
    match observed {
        Observed::Allowed => "allow".to_owned(),
        Observed::Blocked => "deny".to_owned(),
        Observed::Refused => "refused".to_owned(),
        Observed::Error(message) => format!("error: {message}"),
    }
}

/// Each difference in a sentence.
pub fn differences<'a>(
    hosts: &'a [Host],
    outcomes: &'a [Outcome],
) -> impl Iterator<Item = String> + 'a {
    outcomes.iter().filter(|outcome| outcome.differs()).map(|outcome| {
        let Outcome { source, destination, port, .. } = outcome;
        format!(
            "{} ({source}) to {} ({destination}) {} {}: expected {}, observed {}",
            hosts[outcome.from],
            hosts[outcome.to],
            port.protocol,
            port.number,
            if outcome.expected { "allow" } else { "deny" },
            observed_word(&outcome.observed),
        )
    })
}
