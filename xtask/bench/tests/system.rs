//! That the system benchmark runs, every figure is there and plausible in kind, and nothing is left
//! behind. Must never ask how large a figure is. The benchmark itself tries each way to filter
//! before it measures: what is denied has to be.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::time::Duration;

use netpol_bench::report::Table;
use netpol_bench::system::{Settings, run_with};

/// Names of what could be left behind where others see it.
fn leftovers() -> Vec<String> {
    let own = format!("netpol-bench-{}", std::process::id());
    let entries = fs::read_dir("/sys/fs/bpf").unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| *name == own).collect()
}

fn row_names(table: &Table) -> Vec<&str> {
    table.rows.iter().map(|row| row.name.as_str()).collect()
}

#[test]
fn a_small_run_has_every_figure_and_leaves_nothing_behind() {
    let settings = Settings {
        is_quick: true,
        rounds: 1,
        slice: Duration::from_millis(30),
        policies: 6,
        scales: vec![4, 30],
        has_all_variants: true,
    };
    let report = run_with(&settings).unwrap_or_else(|error| panic!("{error:#}"));
    assert_eq!(report.subject, "system");
    let [routed, bridge, bare, growth] = &report.tables[..] else { panic!("{report:#?}") };
    let all = [
        "empty tcx programs",
        "kernel conntrack only",
        "nftables, one set (kube-network-policies)",
        "nftables, chains (Calico)",
        "iptables + ipset (kube-router)",
        "netpol",
        "netpol, pods not selected",
    ];
    assert_eq!(row_names(routed), all);
    assert_eq!(row_names(bridge)[1..], all);
    assert_eq!(row_names(bare), ["routed", "bridge"]);
    assert_eq!(growth.rows.len(), 3 * settings.scales.len());
    for table in &report.tables {
        for row in &table.rows {
            assert_eq!(row.cells.len(), table.columns.len(), "{}: {}", table.title, row.name);
            for (cell, column) in row.cells.iter().zip(&table.columns) {
                let figure = cell.unwrap_or_else(|| panic!("{}: no {column}", row.name));
                assert!(figure.median.is_finite(), "{}: {column}: {figure:?}", row.name);
                // What is added to the bare path may be less than the noise.
                let is_sum = !column.contains("+ns");
                assert!(!is_sum || figure.median > 0.0, "{}: {column}: {figure:?}", row.name);
            }
        }
    }
    assert_eq!(report.goals.len(), 6);
    assert!(report.goals.iter().all(|goal| goal.best_peer.is_some()), "{:#?}", report.goals);
    for plot in &report.plots {
        assert!(plot.lines.iter().all(|line| line.points.len() == settings.scales.len()));
    }
    assert_eq!(leftovers(), Vec::<String>::new());
}
