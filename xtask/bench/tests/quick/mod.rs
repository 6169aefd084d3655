//! A quick run of the benchmark's program, as a person starts it. Must never say what to expect of it.

use std::process::Command;

use serde_json::Value;

/// The report on a subject, as JSON.
pub fn report(subject: &str) -> Value {
    // Built out here, where several tests do not wait for each other.
    let program = netpol_bench::program::netpol().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_netpol-bench"))
        .args([subject, "--quick", "--json", "-"])
        .env("NETPOL_PROGRAM", program)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{text}");
    let mut document: Value = serde_json::from_slice(&output.stdout).unwrap();
    document["report"].take()
}
