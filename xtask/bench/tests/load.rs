//! That the load benchmark runs and has a figure for every kind of thing that there can be very much
//! of. Must never ask how large one is.

#![expect(clippy::unwrap_used, reason = "tests")]

mod quick;

/// Parts of the rows' names, each of four sizes.
const KINDS: [&str; 12] = [
    "a block and a port of its own",
    "1,000 blocks",
    "100 blocks and 100 ports",
    "port range",
    "nest and overlap",
    "an exception each",
    "a peer by label",
    "5,000 label values",
    "Services of 100 ports",
    "1,000 addresses",
    "come at once",
    "1 MiB of annotations",
];

#[test]
fn a_quick_run_has_every_row() {
    let report = quick::report("load");
    let table = &report["tables"][0];
    let rows = table["rows"].as_array().unwrap();
    assert_eq!(rows.len(), KINDS.len() * 4, "{rows:?}");
    for (rows, kind) in rows.chunks(4).zip(KINDS) {
        for row in rows {
            let name = row["name"].as_str().unwrap();
            assert!(name.contains(kind), "{name} is not about {kind}");
            let cells = row["cells"].as_array().unwrap();
            assert_eq!(cells.len(), table["columns"].as_array().unwrap().len());
            for cell in cells {
                assert!(cell["median"].as_f64().unwrap() > 0.0, "{row}");
            }
        }
    }
    let plots = report["plots"].as_array().unwrap();
    assert!(plots.iter().all(|plot| plot["lines"].as_array().unwrap().len() == KINDS.len()));
}
