//! What a benchmark found: tables, goals and plots, as they are printed, written as JSON and drawn.
//! Must never measure.

use serde::{Deserialize, Serialize};

use crate::sample::Figure;

/// All that one run found.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// One of [`SUBJECTS`].
    #[serde(deserialize_with = "subject")]
    pub subject: Subject,
    /// Whether it was run with `--quick`: too short to conclude much from.
    pub is_quick: bool,
    /// The tables, in the order in which they are printed.
    pub tables: Vec<Table>,
    /// What was aimed at.
    pub goals: Vec<Goal>,
    /// Drawn with `--plot`.
    pub plots: Vec<Plot>,
    /// What a reader must know of this run, a sentence each.
    pub notes: Vec<String>,
}

/// The name of what is measured.
pub type Subject = &'static str;

/// What can be measured.
pub const SUBJECTS: [Subject; 6] = ["datapath", "system", "agent", "latency", "load", "tiers"];

fn subject<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Subject, D::Error> {
    let name = String::deserialize(deserializer)?;
    let known = SUBJECTS.into_iter().find(|known| *known == name);
    known.ok_or_else(|| serde::de::Error::custom(format!("there is no subject {name}")))
}

/// A table of figures.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Table {
    /// What the figures are.
    pub title: String,
    /// The heads of the columns behind the rows' names, with units.
    pub columns: Vec<String>,
    /// Its rows.
    pub rows: Vec<Row>,
}

/// A row of a table.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Row {
    /// What was measured.
    pub name: String,
    /// A figure per column, or none where nothing was measured.
    pub cells: Vec<Option<Figure>>,
}

/// A limit that a figure is to keep.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Goal {
    /// What was measured.
    pub measure: String,
    /// What was seen.
    pub seen: Figure,
    /// What it is held against.
    pub limit: Limit,
    /// The best of the peers' ways in the same run, if one was measured: its name and figure.
    pub best_peer: Option<(String, Figure)>,
}

/// What a figure is held against, in its unit.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Limit {
    /// Less is better.
    AtMost(f64),
    /// More is better.
    AtLeast(f64),
}

/// What can be said of a goal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    /// Both quartiles keep the limit.
    Met,
    /// Neither does.
    Missed,
    /// The limit lies between them: the run was too noisy, or too short, to conclude.
    Unclear,
}

impl Goal {
    /// Whether it was met.
    pub fn outcome(&self) -> Outcome {
        let keeps = |figure: f64| match self.limit {
            Limit::AtMost(limit) => figure <= limit,
            Limit::AtLeast(limit) => figure >= limit,
        };
        match (keeps(self.seen.low), keeps(self.seen.high)) {
            (true, true) => Outcome::Met,
            (false, false) => Outcome::Missed,
            _ => Outcome::Unclear,
        }
    }
}

/// A chart of lines.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Plot {
    /// Name of the file, without `.svg`.
    pub file: String,
    /// Its title.
    pub title: String,
    /// What the horizontal axis counts; it is logarithmic.
    pub x: String,
    /// What the vertical axis counts, with its unit; it begins at zero.
    pub y: String,
    /// Its lines.
    pub lines: Vec<Line>,
}

/// A line of a chart.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Line {
    /// What it shows.
    pub name: String,
    /// From left to right.
    pub points: Vec<(f64, f64)>,
}
