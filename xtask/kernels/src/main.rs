//! `cargo xtask test kernels`, and, inside a virtual machine, its first process.

use std::env;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, Result};
use clap::Parser;
use netpol_kernels::guest;
use netpol_kernels::matrix::{ENDS, Extent, KERNELS};
use netpol_kernels::run::{self, Options};

/// netpol's tests inside real kernels, in virtual machines.
#[derive(Parser)]
#[command(name = "cargo xtask test kernels", bin_name = "cargo xtask test kernels")]
struct Cli {
    /// The start of a kernel's release, such as 6.1; several can be given. All of the table if none is
    #[arg(long, value_name = "V")]
    kernel: Vec<String>,
    /// Only tests whose name in the table contains this: of a program (wire_icmp), of a tunnel (/gre)
    #[arg(long, value_name = "TEXT", default_value = "")]
    filter: String,
    /// How often agents are replaced under traffic (agent_restart)
    #[arg(long, value_name = "N")]
    cases: Option<u64>,
    /// Only what every test run has
    #[arg(long)]
    quick: bool,
    /// Show what tests print
    #[arg(long)]
    show_output: bool,
    /// Fetch the kernels, and stop before the first one is booted
    #[arg(long)]
    prepare: bool,
}

fn main() -> ExitCode {
    if std::process::id() == 1 {
        guest::main();
    }
    match command(Cli::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn command(cli: Cli) -> Result<bool> {
    let started = Instant::now();
    let mut versions = cli.kernel;
    if versions.is_empty() {
        let all: Vec<&str> =
            if cli.quick { ENDS.to_vec() } else { KERNELS.iter().map(|row| row.version).collect() };
        versions = all.into_iter().map(str::to_owned).collect();
    }
    if cli.prepare {
        for kernel in run::prepare(&versions)? {
            eprintln!("==> Linux {} is ready", kernel.release);
        }
        return Ok(true);
    }
    let netpol = env::var_os("NETPOL_PROGRAM").map(PathBuf::from);
    let netpol = netpol.context("NETPOL_PROGRAM is not set: run `cargo xtask test kernels`")?;
    run::check_netpol(&netpol)?;
    let report = run::run(&Options {
        versions,
        extent: if cli.quick { Extent::Quick } else { Extent::Full },
        filter: cli.filter,
        cases: cli.cases,
        first: env::current_exe().context("cannot tell where this program is")?,
        netpol,
        show_output: cli.show_output,
    })?;
    println!("{}", report.table());
    let (passed, failed) = report.sums();
    eprintln!("==> all kernels: {:.0} s", run::seconds(started));
    println!("{passed} passed, {failed} failed");
    Ok(report.is_fine())
}
