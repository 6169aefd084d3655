//! `cargo xtask test kernels` and `cargo xtask conformance --kernel`, and, inside a virtual machine, its
//! first process.

use std::env;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, Result};
use clap::Parser;
use netpol_arguments::test::Args;
use netpol_debian::Arch;
use netpol_kernels::conformance;
use netpol_kernels::guest;
use netpol_kernels::matrix::{self, ENDS, Extent, KERNELS};
use netpol_kernels::run::{self, Options};

/// netpol's tests inside real kernels, in virtual machines.
#[derive(Parser)]
#[command(name = "cargo xtask test", bin_name = "cargo xtask test")]
struct Cli {
    #[command(flatten)]
    args: Args,
    /// The program that is a machine's first process [default: this one, built for this machine]
    #[arg(long, value_name = "FILE", hide = true)]
    first: Option<PathBuf>,
    /// List the test programs that would be run, and stop
    #[arg(long, hide = true)]
    list: bool,
}

fn main() -> ExitCode {
    if std::process::id() == 1 {
        guest::main();
    }
    // It has options of its own, which are the cluster's.
    let words: Vec<String> = env::args().skip(1).collect();
    let result = match words.split_first() {
        Some((first, words)) if first == "conformance" => conformance::command(words),
        _ => command(Cli::parse()),
    };
    match result {
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
    let Cli { args, first, list } = cli;
    let filter = args.filter.unwrap_or_default();
    let mut versions = args.kernel;
    if versions.is_empty() {
        let all: Vec<&str> = if args.quick {
            ENDS.to_vec()
        } else {
            KERNELS.iter().map(|row| row.version).collect()
        };
        versions = all.into_iter().map(str::to_owned).collect();
    }
    let extent = if args.quick { Extent::Quick } else { Extent::Full };
    if list {
        for name in matrix::programs(extent, &filter) {
            println!("{name}");
        }
        return Ok(true);
    }
    let arch = args.arch.or_else(Arch::host).context("name the kernels' processor with --arch")?;
    if args.prepare {
        for kernel in run::prepare(arch, &versions)? {
            eprintln!("==> Linux {} is ready", kernel.release);
        }
        return Ok(true);
    }
    let netpol = env::var_os("NETPOL_PROGRAM").map(PathBuf::from);
    let netpol = netpol.context("NETPOL_PROGRAM is not set: run `cargo xtask test kernels`")?;
    let first = match first {
        Some(first) => first,
        None => env::current_exe().context("cannot tell where this program is")?,
    };
    if arch.is_host() {
        run::check_netpol(&netpol)?;
    }
    let report = run::run(&Options {
        arch,
        versions,
        extent,
        filter,
        cases: args.cases,
        first,
        netpol,
        show_output: args.show_output,
    })?;
    println!("{}", report.table());
    let (passed, failed) = report.sums();
    eprintln!("==> all kernels: {:.0} s", run::seconds(started));
    println!("{passed} passed, {failed} failed");
    Ok(report.is_fine())
}
