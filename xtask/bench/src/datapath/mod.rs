//! Nanoseconds per packet of the loaded programs (BPF_PROG_TEST_RUN), next to a program that does
//! nothing, in interleaved rounds. Must never attach a program of measurements, nor measure one
//! that the agent would not load.

use anyhow::{Context as _, Result};

use crate::report::Report;
use crate::sample::Samples;
use crate::{Options, progress};

mod cases;
mod cluster;
mod curves;
mod frames;
mod packets;
mod scene;

use cases::Case;
use scene::Scene;

const ROUNDS: u32 = 15;
const QUICK_ROUNDS: u32 = 3;

/// Measures.
///
/// # Errors
/// Something cannot be made or run, or a packet was not judged as its row says.
pub fn run(options: &Options) -> Result<Report> {
    let rounds = if options.is_quick { QUICK_ROUNDS } else { ROUNDS };
    let mut report = Report {
        subject: "datapath",
        is_quick: options.is_quick,
        tables: Vec::new(),
        goals: Vec::new(),
        plots: Vec::new(),
        notes: vec![
            "Nanoseconds of one run of the program by BPF_PROG_TEST_RUN; where packets differ from \
             run to run, what it takes to change them is measured by itself and taken off."
                .into(),
        ],
    };
    packets::measure(rounds, &mut report)?;
    for curve in curves::all() {
        curve.measure(rounds, options.is_quick, &mut report)?;
    }
    Ok(report)
}

/// Cases that are measured in turn, round by round.
#[derive(Default)]
struct Group {
    scenes: Vec<Scene>,
    cases: Vec<Case>,
    /// What the empty program takes.
    nothing: Samples,
}

impl Group {
    fn measure(&mut self, name: &str, rounds: u32) -> Result<()> {
        for round in 0..rounds {
            progress::say(format_args!("{name}: round {} of {rounds}", round + 1));
            let scene = self.scenes.first_mut().context("invariant: a group has scenes")?;
            self.nothing.push(cases::empty_program(scene)?);
            for case in &mut self.cases {
                case.measure(&mut self.scenes, round)?;
            }
        }
        Ok(())
    }
}

impl Case {
    /// Above the program that does nothing.
    fn added(&self) -> Samples {
        self.samples.above(&self.floor)
    }

    /// What the program takes, where the empty one takes `nothing`.
    fn time(&self, nothing: &Samples) -> Samples {
        self.added().plus(nothing)
    }
}
