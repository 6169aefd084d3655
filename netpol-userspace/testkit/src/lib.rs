//! What tests are made of: random clusters and frames, builders of objects, nodes with real agents, labs
//! of two nodes, attackers, kube-proxy's rules. Must never be part of a release, and never hold an
//! expectation that a test should state.

#![forbid(unsafe_code)]
#![expect(
    missing_docs,
    clippy::unwrap_used,
    reason = "tests say what they mean by names, and panic"
)]
#![expect(clippy::new_without_default, reason = "what is made costs namespaces and processes")]
#![expect(
    clippy::cast_possible_truncation,
    reason = "frames and random numbers are cut on purpose"
)]
#![expect(clippy::assigning_clones, reason = "what is made is made once")]

pub mod api_server;
pub mod attacks;
pub mod cluster_fuzz;
pub mod established;
pub mod frame_generator;
pub mod generate;
pub mod hostile;
pub mod kube_proxy;
pub mod lab;
pub mod objects;
pub mod playground;
pub mod raw_frames;
pub mod rig;
pub mod service_lab;
pub mod tables;
pub mod truth;
pub mod wire_fuzz;
pub mod world;

/// The maps as plain collections; netpol-common's own tests have it, too, and depend on nothing else.
#[expect(clippy::should_implement_trait, reason = "a number, not an iterator's item")]
#[path = "../../../netpol-common/tests/support/mod.rs"]
pub mod support;

/// The program `netpol`: the one that is named by `NETPOL_PROGRAM`, else the one that cargo builds beside
/// the tests.
pub fn program() -> std::path::PathBuf {
    if let Some(program) = std::env::var_os("NETPOL_PROGRAM") {
        return program.into();
    }
    let test = std::env::current_exe().unwrap();
    test.ancestors().nth(2).unwrap().join("netpol")
}
