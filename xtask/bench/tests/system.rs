//! That the system benchmark runs, every figure is there and plausible in kind, and nothing is left
//! behind. Must never ask how large a figure is. The benchmark itself tries each way to filter
//! before it measures: what is denied has to be.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use netpol_bench::report::Table;
use netpol_bench::system::{Settings, run_with};

/// Names of what could be left behind where others see it.
fn leftovers() -> BTreeSet<String> {
    let own = std::process::id().to_string();
    let listed = |dir: &str| -> Vec<String> {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries.map(|entry| entry.path().to_string_lossy().into_owned()).collect()
    };
    let mut all: BTreeSet<String> = listed("/run/netpol-playground").into_iter().collect();
    all.retain(|path| path.ends_with(&own));
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    all.extend(mounts.lines().filter(|line| line.contains(&own)).map(str::to_owned));
    all
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
                let is_sum = !column.contains("added");
                assert!(!is_sum || figure.median > 0.0, "{}: {column}: {figure:?}", row.name);
            }
        }
    }
    assert_eq!(report.goals.len(), 6);
    assert!(report.goals.iter().all(|goal| goal.best_peer.is_some()), "{:#?}", report.goals);
    for plot in &report.plots {
        assert!(plot.lines.iter().all(|line| line.points.len() == settings.scales.len()));
    }
    assert_eq!(leftovers(), BTreeSet::new());
}
