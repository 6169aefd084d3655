//! A report as JSON, with the machine that it is of and what can be said of each goal.

use anyhow::Result;
use serde_json::{Value, json};

use crate::machine::Machine;
use crate::report::Report;

/// `{"machine": ..., "report": ...}`.
///
/// # Errors
/// A figure is no number.
pub fn document(machine: &Machine, report: &Report) -> Result<Value> {
    let mut document = json!({ "machine": machine, "report": serde_json::to_value(report)? });
    for (index, goal) in report.goals.iter().enumerate() {
        document["report"]["goals"][index]["outcome"] = json!(goal.outcome());
    }
    Ok(document)
}
