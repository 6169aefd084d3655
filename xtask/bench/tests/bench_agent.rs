//! That the agent benchmark runs with the real program on a small cluster, tells everything it
//! measured, and leaves nothing behind. Must never ask how large a figure is.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::fs;

use netpol_bench::agent::{self, Plan};
use netpol_bench::program;
use netpol_bench::report::{Report, Table};

/// The tables in order, each with a part of its title and with its rows.
const TABLES: [(&str, &[&str]); 5] = [
    ("Read and compiled", &["200 pods, 20 policies"]),
    (
        "One event",
        &[
            "pod added",
            "pod's status changed",
            "pod relabelled",
            "pod deleted",
            "namespace relabelled",
            "policy edited",
        ],
    ),
    ("First sync", &["200 pods, 20 policies"]),
    ("pod events a second", &["agent"]),
    (
        "first packet",
        &[
            "policy edited, allows",
            "policy edited, denies",
            "pod added",
            "pod deleted",
            "pod relabelled, allowed",
            "pod relabelled, denied",
            "namespace relabelled, allowed",
            "namespace relabelled, denied",
        ],
    ),
];
const CHURN: &[&str] = &["resident, MiB", "events a second", "processor time per event, us"];

#[test]
fn a_small_cluster_is_measured_from_start_to_churn() {
    let report = agent::measure(&Plan::tiny(), program::netpol().unwrap()).unwrap();
    assert_eq!(report.subject, "agent");
    assert_eq!(report.tables.len(), TABLES.len() + 1);
    for (table, (title, rows)) in report.tables.iter().zip(TABLES) {
        assert!(table.title.contains(title), "{} is not about {title}", table.title);
        has_rows(table, rows);
        is_full(table);
    }
    has_rows(report.tables.last().unwrap(), CHURN);
    takes_time_and_memory(&report);
    let points = &report.plots[0].lines[0].points;
    assert!(points.windows(2).all(|pair| pair[0].0 < pair[1].0), "{points:?}");
    assert!(report.goals.iter().any(|goal| goal.measure.starts_with("policy edited")));
    nothing_is_left();
}

fn has_rows(table: &Table, names: &[&str]) {
    let rows: Vec<&str> = table.rows.iter().map(|row| row.name.as_str()).collect();
    assert_eq!(rows, names, "{}", table.title);
}

/// A figure, not negative, in every cell.
fn is_full(table: &Table) {
    for row in &table.rows {
        assert_eq!(row.cells.len(), table.columns.len(), "{}", row.name);
        for (cell, column) in row.cells.iter().zip(&table.columns) {
            let figure = cell.as_ref().unwrap_or_else(|| panic!("{}: no {column}", row.name));
            assert!(figure.median.is_finite(), "{}, {column}: {figure:?}", row.name);
            assert!(figure.median >= 0.0, "{}, {column}: {figure:?}", row.name);
        }
    }
}

/// What cannot be nothing is more.
fn takes_time_and_memory(report: &Report) {
    let table =
        |title: &str| report.tables.iter().find(|table| table.title.contains(title)).unwrap();
    let cell = |table: &Table, row: usize, column: &str| {
        let index = table.columns.iter().position(|name| name.contains(column)).unwrap();
        table.rows[row].cells[index].unwrap().median
    };
    for column in ["to ready", "peak", "resident", "heap", "lists"] {
        assert!(cell(table("First sync"), 0, column) > 0.0, "{column}");
    }
    let sync = table("First sync");
    assert!(cell(sync, 0, "peak") >= cell(sync, 0, "heap"), "{sync:?}");
    for column in ["p50", "p99"] {
        for row in 0..table("One event").rows.len() {
            assert!(cell(table("One event"), row, column) > 0.0, "{row} {column}");
        }
    }
    assert!(cell(table("Read and compiled"), 0, "classes") > 0.0);
}

/// Neither processes nor pins, files or mounts of this process.
fn nothing_is_left() {
    let mark = format!("netpol-bench-{}-", std::process::id());
    for entry in fs::read_dir("/proc").unwrap() {
        // A process may end while it is looked at.
        let Ok(line) = fs::read_to_string(entry.unwrap().path().join("cmdline")) else { continue };
        assert!(!line.contains(&mark), "still runs: {line}");
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(&mark), "{mounts}");
    for place in ["/sys/fs/bpf".into(), std::env::temp_dir()] {
        for entry in fs::read_dir(&place).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            assert!(!name.starts_with(&mark), "{name} is left in {}", place.display());
        }
    }
}
