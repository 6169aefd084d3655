//! `cargo xtask manifests`: writes deploy/netpol.yaml from deploy/base.

use std::process::ExitCode;

use anyhow::Result;
use netpol_cluster::manifests;

fn main() -> Result<ExitCode> {
    println!("{}", manifests::write()?.display());
    Ok(ExitCode::SUCCESS)
}
