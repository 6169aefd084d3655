//! What the agent tells about tables that are too small. Pure.

use std::fmt::Write as _;

use super::state::{ObjectError, TableView};
use crate::compile::{EndpointId, Size};
use crate::datapath::{FlowUse, Overflow, TableUse};

/// How many pods a message names.
const N_PODS: usize = 10;

/// Adds a line for each table that something did not fit into.
pub fn tell(
    tables: &[TableUse],
    name: impl Fn(EndpointId) -> String,
    errors: &mut Vec<ObjectError>,
    notes: &mut Vec<String>,
) {
    for table in tables {
        let Some(overflow) = &table.overflow else { continue };
        let message = text(table, overflow, &name);
        let object = format!("table {}", table.table);
        if overflow.is_error {
            errors.push(ObjectError { object, message });
        } else {
            notes.push(format!("{object} {message}"));
        }
    }
}

fn text(table: &TableUse, overflow: &Overflow, name: impl Fn(EndpointId) -> String) -> String {
    let Overflow { n_left_out, examples, endpoints, consequence, remedy, .. } = overflow;
    let (used, limit) = (table.used, table.limit);
    let entries = if *n_left_out == 1 { "entry" } else { "entries" };
    let mut text = format!("has no room for {n_left_out} more {entries} ({used} of {limit} used)");
    if !examples.is_empty() {
        let more = if examples.len() as u64 == *n_left_out { "" } else { ", ..." };
        let _ = write!(text, ", {}{more}", examples.join(", "));
    }
    if !endpoints.is_empty() {
        let names: Vec<String> = endpoints.iter().take(N_PODS).map(|&id| name(id)).collect();
        let more = endpoints.len() - names.len();
        let more = if more == 0 { String::new() } else { format!(" and {more} more") };
        let _ = write!(text, ", pods {}{more}", names.join(", "));
    }
    let _ = write!(text, ": {consequence}; {remedy}");
    text
}

/// What a pod has of the flow tables.
#[derive(Debug, Clone)]
pub struct PodFlows {
    /// Its name.
    pub name: String,
    /// What is counted.
    pub uses: FlowUse,
    /// Live flows that made room for its.
    pub caused: u64,
}

/// What is told when flows had to make room: who had more than there was room for, and whether
/// that was others' loss.
pub fn evictions(n_evicted: u64, pods: &[PodFlows]) -> String {
    let mut causes: Vec<&PodFlows> = pods.iter().filter(|pod| pod.caused > 0).collect();
    causes.sort_by_key(|pod| std::cmp::Reverse(pod.caused));
    let causes: Vec<String> = causes
        .iter()
        .take(N_CAUSES)
        .map(|PodFlows { name, uses, caused }| {
            format!(
                "{name} ({caused} made room for its; it holds {} of a share of {})",
                uses.held, uses.share
            )
        })
        .collect();
    let given: u64 = pods.iter().map(|pod| pod.uses.given).sum();
    let refused: u64 = pods.iter().map(|pod| pod.uses.refused).sum();
    let mut text = format!(
        "the flow tables are full: {n_evicted} live connections made room for others, {given} of \
         them for another pod's, none of which was within its pod's share"
    );
    if !causes.is_empty() {
        let _ = write!(text, "; most for {}", causes.join(", "));
    }
    if refused > 0 {
        let _ = write!(text, "; {refused} packets had a connection that found no room");
    }
    text.push_str(
        "; the next packet of a forgotten one is judged as if it opened the connection, so an \
         answer to what only its pod may open is dropped until the pod sends again; --flow-table-size makes them larger",
    );
    text
}

/// How many pods that message names.
const N_CAUSES: usize = 3;

/// Whether all fit.
pub fn is_enough(tables: &[TableUse], size: &Size) -> bool {
    let is_short = |table: &TableUse| table.overflow.as_ref().is_some_and(|o| o.is_error);
    !tables.iter().any(is_short) && size.closed_endpoints == 0 && size.closed_blocks == 0
}

/// Every table for the state file, those of numbers included.
pub fn views(tables: &[TableUse], flow_tables: &[TableUse], size: &Size) -> Vec<TableView> {
    let of_numbers = [
        ("policy_sets", size.sets, size.last_set, size.closed_endpoints),
        // Class 1 is the closed one.
        ("classes", size.classes, size.last_class - 1, size.closed_blocks),
    ];
    let of_numbers = of_numbers.map(|(table, used, limit, left_out)| TableView {
        table: table.to_owned(),
        used: used as u64,
        limit: limit.into(),
        left_out: left_out as u64,
    });
    let in_kernel = tables.iter().chain(flow_tables).map(|table| TableView {
        table: table.table.to_owned(),
        used: table.used,
        limit: table.limit,
        left_out: table.overflow.as_ref().map_or(0, |overflow| overflow.n_left_out),
    });
    in_kernel.chain(of_numbers).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overflow(examples: &[&str], endpoints: &[u16]) -> TableUse {
        TableUse {
            table: "rows",
            used: 9,
            limit: 10,
            overflow: Some(Overflow {
                is_error: true,
                n_left_out: 3,
                examples: examples.iter().map(ToString::to_string).collect(),
                endpoints: endpoints.iter().map(|&id| EndpointId(id)).collect(),
                consequence: "it is denied",
                remedy: "have less",
            }),
        }
    }

    fn told(table: TableUse) -> (Vec<ObjectError>, Vec<String>) {
        let (mut errors, mut notes) = (Vec::new(), Vec::new());
        tell(&[table], |id| format!("shop/web-{}", id.0), &mut errors, &mut notes);
        (errors, notes)
    }

    #[test]
    fn says_which_table_what_it_means_and_what_to_do() {
        let (errors, notes) = told(overflow(&["10.0.0.0/8"], &[1, 2]));
        assert_eq!(
            (errors[0].object.as_str(), errors[0].message.as_str(), notes.len()),
            (
                "table rows",
                "has no room for 3 more entries (9 of 10 used), 10.0.0.0/8, ..., pods shop/web-1, \
                 shop/web-2: it is denied; have less",
                0
            )
        );
        let many: Vec<u16> = (1..=12).collect();
        let (errors, _) = told(overflow(&[], &many));
        assert!(errors[0].message.contains("shop/web-10 and 2 more: "), "{}", errors[0].message);
    }

    #[test]
    fn evictions_are_told_with_who_caused_them() {
        let pod = |name: &str, caused, given| PodFlows {
            name: name.to_owned(),
            uses: FlowUse { held: 900, share: 100, given, ..FlowUse::default() },
            caused,
        };
        let pods = [pod("a/quiet", 0, 0), pod("a/busy", 7, 2), pod("a/flood", 5_000, 1)];
        let text = evictions(5_007, &pods);
        for part in [
            "5007 live connections made room for others, 3 of them for another pod's",
            "most for a/flood (5000 made room for its; it holds 900 of a share of 100), a/busy (7",
        ] {
            assert!(text.contains(part), "{text}");
        }
        assert!(!text.contains("quiet") && !text.contains("found no room"), "{text}");
    }

    #[test]
    fn what_is_no_fault_of_the_node_is_a_note() {
        let mut table = overflow(&[], &[]);
        table.overflow.iter_mut().for_each(|overflow| overflow.is_error = false);
        let (errors, notes) = told(table);
        assert!(errors.is_empty());
        assert!(notes[0].starts_with("table rows has no room for 3 more"), "{notes:?}");
    }
}
