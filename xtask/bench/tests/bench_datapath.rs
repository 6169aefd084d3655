//! That the datapath benchmark runs and shows everything it measured, in every form. Must never ask
//! how large a figure is; that packets are judged as their rows say is checked by the benchmark
//! itself, which fails otherwise.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

const CURVES: [&str; 5] = ["flows", "peers", "blocks", "policies", "ranges"];

#[test]
fn a_quick_run_shows_every_row_as_text_json_and_svg() {
    let plots = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_netpol-bench"))
        .args(["datapath", "--quick", "--json", "-", "--plot"])
        .arg(plots.path())
        .output()
        .unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{text}");
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    let machine = &document["machine"];
    assert!(machine["kernel"].is_string() && machine["date"].is_string(), "{machine}");
    let report = &document["report"];
    assert_eq!(report["subject"], "datapath");
    assert_eq!(report["is_quick"], true);
    every_row_is_there(report);
    every_figure_is_one(report, &text);
    goals_have_outcomes(report, &text);
    plots_are_drawn(report, plots.path());
    assert!(text.contains("packets: round 3 of 3"), "progress: {text}");
}

fn list(value: &Value) -> &[Value] {
    value.as_array().unwrap()
}

fn names(table: &Value) -> Vec<&str> {
    list(&table["rows"]).iter().map(|row| row["name"].as_str().unwrap()).collect()
}

fn every_row_is_there(report: &Value) {
    let tables = list(&report["tables"]);
    assert_eq!(tables.len(), 2 + CURVES.len());
    let packets = names(&tables[0]);
    for kind in ["established", "new", "denied"] {
        for protocol in ["TCP", "UDP"] {
            for family in ["IPv4", "IPv6"] {
                for way in ["in", "out"] {
                    let name = format!("{kind}, {protocol} {family}, {way}");
                    assert!(packets.contains(&name.as_str()), "{name} in {packets:?}");
                }
            }
        }
    }
    for name in [
        "empty program",
        "established, mixed Service, TCP IPv4, out",
        "on its way out of the node, TCP IPv4",
        "from a pod that no policy selects, TCP IPv4",
        "from a pod that no policy selects, TCP IPv6",
        "new, TCP IPv4, in, flow table full",
    ] {
        assert!(packets.contains(&name), "{name} in {packets:?}");
    }
    assert_eq!(packets.len(), 30);
    assert_eq!(names(&tables[1]).len(), 4);
    let flows =
        ["established, TCP IPv4", "new, TCP IPv4", "established, TCP IPv6", "new, TCP IPv6"];
    assert_eq!(names(&tables[2]), flows);
    for table in &tables[3..] {
        let [first, ..] = names(table)[..] else { panic!("{table}") };
        assert_eq!((names(table).len(), first), (3, "established, TCP IPv4, in"));
    }
}

/// Times are positive; what is added may be less than the noise. All is in the text, too.
fn every_figure_is_one(report: &Value, text: &str) {
    for table in list(&report["tables"]) {
        let columns = list(&table["columns"]);
        for row in list(&table["rows"]) {
            assert!(text.contains(row["name"].as_str().unwrap()), "{row}");
            let cells = list(&row["cells"]);
            assert_eq!(cells.len(), columns.len(), "{row}");
            for (cell, column) in cells.iter().zip(columns) {
                if cell.is_null() {
                    assert_eq!(row["name"], "empty program");
                    continue;
                }
                let median = cell["median"].as_f64().unwrap();
                let may_be_noise = column.as_str().unwrap().contains("above empty");
                assert!(median.is_finite() && (median > 0.0 || may_be_noise), "{column}: {row}");
                assert_eq!(cell["rounds"], 3);
            }
        }
    }
}

fn goals_have_outcomes(report: &Value, text: &str) {
    let goals = list(&report["goals"]);
    assert_eq!(goals.len(), 4 + 2 + 4 + CURVES.len() - 1);
    for goal in goals {
        let outcome = goal["outcome"].as_str().unwrap();
        assert!(["met", "missed", "unclear"].contains(&outcome), "{goal}");
        assert!(text.contains(goal["measure"].as_str().unwrap()), "{goal}");
    }
}

fn plots_are_drawn(report: &Value, directory: &Path) {
    let described: Vec<&str> =
        list(&report["plots"]).iter().map(|plot| plot["file"].as_str().unwrap()).collect();
    assert_eq!(described, CURVES.map(|name| format!("datapath-{name}")));
    for name in described {
        let text = fs::read_to_string(directory.join(format!("{name}.svg"))).unwrap();
        let document = roxmltree::Document::parse(&text).unwrap();
        let count = |tag: &str| document.descendants().filter(|n| n.has_tag_name(tag)).count();
        let namespace = "http://www.w3.org/2000/svg";
        assert!(document.root_element().has_tag_name((namespace, "svg")), "{text}");
        let lines = document.descendants().filter(|n| n.tag_name().name() == "polyline").count();
        assert!(lines >= 2, "{name}: {lines} lines, {} without a namespace", count("polyline"));
    }
}
