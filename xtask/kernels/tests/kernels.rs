//! The oldest and the newest kernel that netpol says it runs on: every program loads, both ways of
//! attaching, verdicts, a restart, and real traffic between two nodes.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::env;
use std::path::PathBuf;

use netpol_debian::Arch;
use netpol_kernels::matrix::{ENDS, Extent};
use netpol_kernels::run::{self, Options};

fn works_on(version: &str) {
    let netpol = env::var_os("NETPOL_PROGRAM").expect("`cargo xtask test` sets it");
    let report = run::run(&Options {
        arch: Arch::host().unwrap(),
        versions: vec![version.to_owned()],
        extent: Extent::Quick,
        filter: String::new(),
        cases: None,
        first: PathBuf::from(env!("CARGO_BIN_EXE_netpol-kernels")),
        netpol: netpol.into(),
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
