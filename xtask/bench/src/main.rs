//! The program behind `cargo xtask bench`: chooses the subject and shows what it found. Must
//! never measure anything itself.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, ValueEnum};
use netpol_bench::report::Report;
use netpol_bench::{Options, datapath, system};

/// Measure what netpol costs, as ratios within one run.
#[derive(Parser)]
#[command(name = "netpol-bench", bin_name = "cargo xtask bench")]
struct Args {
    /// What to measure
    #[arg(value_enum)]
    subject: Subject,
    /// Fewer rounds and smaller sizes
    #[arg(long)]
    quick: bool,
    /// Write what was found to this file (`-`: standard output, and the tables to standard error)
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw the curves into this directory, as SVG
    #[arg(long, value_name = "DIR")]
    plot: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Subject {
    /// Nanoseconds per packet of the loaded programs, next to one that does nothing
    Datapath,
    /// Packets and connections between two pods, next to other ways to filter
    System,
}

impl Subject {
    fn run(self, options: &Options) -> Result<Report> {
        match self {
            Self::Datapath => datapath::run(options),
            Self::System => system::run(options),
        }
    }
}

fn main() -> ExitCode {
    match measure(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn measure(args: &Args) -> Result<()> {
    let report = args.subject.run(&Options { is_quick: args.quick })?;
    println!("{}", serde_json::to_string_pretty(&report)?);
    Ok(())
}
