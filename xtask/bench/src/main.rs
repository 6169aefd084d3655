//! The program behind `cargo xtask bench`: has a subject measured in namespaces of its own, and
//! shows what it found. Must never measure anything itself.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Parser;
use netpol_arguments::bench::{Args, Subject};
use netpol_bench::isolation::{self, End};
use netpol_bench::machine::Machine;
use netpol_bench::render::{json, plot, tables};
use netpol_bench::report::Report;
use netpol_bench::{Options, agent, datapath, latency, load, progress, system, tiers};

/// Measure what netpol costs, as ratios within one run.
#[derive(Parser)]
#[command(name = "netpol-bench", bin_name = "cargo xtask bench")]
struct Cli {
    #[command(flatten)]
    args: Args,
    /// The process that measures: its namespaces are its own already
    #[arg(long, hide = true)]
    inside: bool,
}

fn main() -> ExitCode {
    let Cli { args, inside } = Cli::parse();
    let end = if inside { measure(&args) } else { measure_and_show(&args) };
    end.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::from(2)
    })
}

fn measure(args: &Args) -> Result<ExitCode> {
    isolation::enter_namespaces()?;
    let options = Options { is_quick: args.quick };
    let report = match args.subject {
        Subject::Datapath => datapath::run(&options),
        Subject::System => system::run(&options),
        Subject::Agent => agent::run(&options),
        Subject::Latency => latency::run(&options),
        Subject::Load => load::run(&options),
        Subject::Tiers => tiers::run(&options),
    }?;
    serde_json::to_writer(std::io::stdout(), &report).context("hand on what was measured")?;
    Ok(ExitCode::SUCCESS)
}

fn measure_and_show(args: &Args) -> Result<ExitCode> {
    isolation::require_root()?;
    let machine = Machine::read();
    match isolation::run(args.subject.name(), &Options { is_quick: args.quick })? {
        End::Stopped(code) => Ok(code),
        End::Measured(report) => show(args, &machine, &report).map(|()| ExitCode::SUCCESS),
    }
}

fn show(args: &Args, machine: &Machine, report: &Report) -> Result<()> {
    let text = tables::text(machine, report)?;
    let is_stdout_taken = args.json.as_deref() == Some(Path::new("-"));
    // A reader that went away, as `head` does, is no reason to leave out the files.
    let _ = if is_stdout_taken {
        std::io::stderr().write_all(text.as_bytes())
    } else {
        std::io::stdout().write_all(text.as_bytes())
    };
    if let Some(file) = &args.json {
        let document = format!("{:#}\n", json::document(machine, report)?);
        if is_stdout_taken {
            std::io::stdout().write_all(document.as_bytes()).context("write the JSON")?;
        } else {
            fs::write(file, document)
                .with_context(|| format!("cannot write {}", file.display()))?;
        }
    }
    if let Some(directory) = &args.plot {
        for file in plot::draw_all(&report.plots, directory)? {
            progress::say(format_args!("drawn: {}", file.display()));
        }
    }
    Ok(())
}
