//! That the latency benchmark runs and has a figure for every kind of edit. Must never ask how
//! large one is.

#![expect(clippy::unwrap_used, reason = "tests")]

mod quick;

#[test]
fn a_quick_run_has_every_row() {
    let report = quick::report("latency");
    let table = &report["tables"][0];
    let rows = table["rows"].as_array().unwrap();
    let names: Vec<&str> = rows.iter().map(|row| row["name"].as_str().unwrap()).collect();
    assert_eq!(
        names,
        [
            "edits apart, to denied",
            "edits apart, to allowed",
            "edits at once, to denied",
            "edits at once, to allowed",
        ]
    );
    for row in rows {
        let cells = row["cells"].as_array().unwrap();
        assert_eq!(cells.len(), table["columns"].as_array().unwrap().len());
        for cell in cells {
            assert!(cell["median"].as_f64().unwrap() > 0.0, "{row}");
            assert_eq!(cell["rounds"], 2, "{row}");
        }
    }
    let open = &report["tables"][1]["rows"];
    for (row, name) in open.as_array().unwrap().iter().zip(["TCX links", "the clsact qdisc"]) {
        assert_eq!(row["name"], name);
        assert!(row["cells"][0]["median"].as_f64().unwrap() > 0.0, "{row}");
    }
    assert_eq!(open.as_array().unwrap().len(), 2);
}
