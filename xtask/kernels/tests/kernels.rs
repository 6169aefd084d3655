//! The oldest and the newest kernel that netpol says it runs on: loads, attaches, judges.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::env;
use std::path::PathBuf;

use netpol_kernels::matrix::{ENDS, Extent};
use netpol_kernels::run::{self, Options};

fn works_on(version: &str) {
    let report = run::run(&Options {
        versions: vec![version.to_owned()],
        extent: Extent::Quick,
        filter: String::new(),
        first: PathBuf::from(env!("CARGO_BIN_EXE_netpol-kernels")),
        netpol: env::var_os("NETPOL_PROGRAM")
            .map(PathBuf::from)
            .expect("`cargo xtask test` sets it"),
        show_output: false,
    })
    .unwrap();
    println!("{}", report.table());
    assert!(report.is_fine(), "{}", report.table());
}

#[test]
fn netpol_works_on_the_oldest_kernel() {
    works_on(ENDS[0]);
}

#[test]
fn netpol_works_on_the_newest_kernel() {
    works_on(ENDS[1]);
}
