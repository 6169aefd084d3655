//! `cargo xtask cluster`: prepares Kubernetes' programs.

use std::process::ExitCode;

use anyhow::Result;
use netpol_cluster::binaries;

fn main() -> Result<ExitCode> {
    for &program in binaries::CLUSTER {
        println!("{}", binaries::ensure(program)?.display());
    }
    Ok(ExitCode::SUCCESS)
}
