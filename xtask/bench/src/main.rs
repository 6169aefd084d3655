//! The program behind `cargo xtask bench`: has a subject measured in namespaces of its own, and
//! shows what it found. Must never measure anything itself.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Parser, ValueEnum};
use netpol_bench::isolation::{self, End};
use netpol_bench::machine::Machine;
use netpol_bench::render::{json, plot, tables};
use netpol_bench::report::Report;
use netpol_bench::{Options, agent, datapath, latency, load, progress, system};

/// Measure what netpol costs, as ratios within one run.
#[derive(Parser)]
#[command(name = "netpol-bench", bin_name = "cargo xtask bench")]
struct Args {
    /// What to measure
    #[arg(value_enum)]
    subject: Subject,
    /// Fewer rounds and smaller sizes: too short to conclude much from
    #[arg(long)]
    quick: bool,
    /// Write what was found to this file (`-`: standard output, and the tables to standard error)
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw the curves into this directory, as SVG
    #[arg(long, value_name = "DIR")]
    plot: Option<PathBuf>,
    /// The process that measures: its namespaces are its own already
    #[arg(long, hide = true)]
    inside: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Subject {
    /// Nanoseconds per packet of the loaded programs, next to one that does nothing
    Datapath,
    /// Packets and connections between two pods, next to other ways to filter
    System,
    /// Time, memory and map writes of the agent, on synthetic clusters
    Agent,
    /// Time from a policy file's write to the first packet judged by it
    Latency,
    /// What one namespace with very many rules, blocks or selectors costs itself and others
    Load,
}

impl Subject {
    fn name(self) -> &'static str {
        match self {
            Self::Datapath => "datapath",
            Self::System => "system",
            Self::Agent => "agent",
            Self::Latency => "latency",
            Self::Load => "load",
        }
    }

    fn run(self, options: &Options) -> Result<Report> {
        match self {
            Self::Datapath => datapath::run(options),
            Self::System => system::run(options),
            Self::Agent => agent::run(options),
            Self::Latency => latency::run(options),
            Self::Load => load::run(options),
        }
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    let end = if args.inside { measure(&args) } else { measure_and_show(&args) };
    end.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::from(2)
    })
}

fn measure(args: &Args) -> Result<ExitCode> {
    isolation::settle_in()?;
    let report = args.subject.run(&Options { is_quick: args.quick })?;
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
