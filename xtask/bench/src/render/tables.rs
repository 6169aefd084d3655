//! A report as text: aligned, without lines and decoration, the same on a terminal and in a file.

use std::fmt::{self, Write as _};

use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, Table as Grid};

use super::Short;
use crate::machine::Machine;
use crate::report::{Goal, Limit, Outcome, Report, Table};
use crate::sample::Figure;

/// All of it.
///
/// # Errors
/// Never: a string takes everything.
pub fn text(machine: &Machine, report: &Report) -> Result<String, fmt::Error> {
    let mut text = String::new();
    let quick = if report.is_quick { ", --quick" } else { "" };
    writeln!(text, "{}{quick}: {}", report.subject, machine.line())?;
    for table in &report.tables {
        writeln!(text, "\n{}\n{}", table.title, grid(table))?;
    }
    if !report.goals.is_empty() {
        writeln!(text, "\ngoals\n{}", goals(&report.goals))?;
    }
    let notes = closing(report);
    if !notes.is_empty() {
        writeln!(text)?;
    }
    for note in notes {
        writeln!(text, "{note}")?;
    }
    Ok(text)
}

fn grid(table: &Table) -> String {
    let mut head = vec![String::new()];
    head.extend(table.columns.iter().cloned());
    let rows = table.rows.iter().map(|row| {
        let cells = row.cells.iter().map(|cell| cell.as_ref().map_or("-".into(), figure));
        std::iter::once(row.name.clone()).chain(cells).collect()
    });
    aligned(head, rows, 1)
}

/// Columns from `first_number` on stand to the right.
fn aligned(
    head: Vec<String>,
    rows: impl Iterator<Item = Vec<String>>,
    first_number: usize,
) -> String {
    let mut grid = Grid::new();
    grid.load_style(NOTHING).set_header(head).add_rows(rows);
    for (index, column) in grid.column_iter_mut().enumerate() {
        column.set_padding((if index == 0 { 2 } else { 1 }, 1));
        if index >= first_number {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    grid.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

/// Median and half the distance of the quartiles; `~`: no difference that this run shows.
fn figure(figure: &Figure) -> String {
    let noise = if figure.is_within_noise() { "~" } else { "" };
    if figure.rounds < 2 {
        return format!("{noise}{}", Short(figure.median));
    }
    format!("{noise}{} ±{}", Short(figure.median), Short(figure.spread() / 2.0))
}

fn goals(goals: &[Goal]) -> String {
    let head = ["", "", "seen", "goal", "best peer"].map(str::to_owned).to_vec();
    let rows = goals.iter().map(|goal| {
        let limit = match goal.limit {
            Limit::AtMost(limit) => format!("at most {}", Short(limit)),
            Limit::AtLeast(limit) => format!("at least {}", Short(limit)),
        };
        let peer = goal.best_peer.as_ref();
        let peer = peer.map_or("-".into(), |(name, seen)| format!("{} ({name})", figure(seen)));
        vec![word(goal.outcome()).to_owned(), goal.measure.clone(), figure(&goal.seen), limit, peer]
    });
    aligned(head, rows, 2)
}

fn word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Met => "met",
        Outcome::Missed => "MISSED",
        Outcome::Unclear => "unclear",
    }
}

/// What a reader must know, the noise last.
fn closing(report: &Report) -> Vec<String> {
    let mut notes = report.notes.clone();
    if report
        .tables
        .iter()
        .flat_map(|table| &table.rows)
        .flat_map(|row| row.cells.iter().flatten())
        .any(|cell| cell.rounds > 1)
    {
        notes.push(
            "Figures are medians of interleaved rounds, ± half the distance of their quartiles."
                .into(),
        );
    }
    notes.extend(noise(report));
    notes
}

/// Says how much of a report is too noisy to conclude from, and what to do about it.
pub fn noise(report: &Report) -> Option<String> {
    let rows: Vec<_> = report.tables.iter().flat_map(|table| &table.rows).collect();
    let is_noisy = |cells: &[Option<Figure>]| cells.iter().flatten().any(Figure::is_within_noise);
    let noisy = rows.iter().filter(|row| is_noisy(&row.cells)).count();
    let unclear = report.goals.iter().filter(|goal| goal.outcome() == Outcome::Unclear).count();
    if noisy == 0 && unclear == 0 {
        return None;
    }
    let advice = if report.is_quick { "leave out --quick, and use" } else { "use" };
    Some(format!(
        "Of {} rows {noisy} have a difference (~) that is smaller than its spread, and of {} goals \
         {unclear} are unclear: there this run was too noisy to conclude. For more, {advice} a \
         machine that does nothing else.",
        rows.len(),
        report.goals.len()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Row;

    fn figure_of(low: f64, median: f64, high: f64, no_difference: Option<f64>) -> Figure {
        Figure { low, median, high, rounds: 7, no_difference }
    }

    fn report() -> Report {
        let cells = vec![
            Some(figure_of(59.0, 60.0, 61.0, None)),
            Some(figure_of(-3.0, 1.0, 4.0, Some(0.0))),
            None,
        ];
        Report {
            subject: "datapath",
            is_quick: false,
            tables: vec![Table {
                title: "ns per packet".into(),
                columns: vec!["time".into(), "above".into(), "ratio".into()],
                rows: vec![Row { name: "established".into(), cells }],
            }],
            goals: vec![Goal {
                measure: "established, times nothing".into(),
                seen: figure_of(2.4, 2.5, 2.6, None),
                limit: Limit::AtMost(2.5),
                best_peer: None,
            }],
            plots: Vec::new(),
            notes: vec!["A note.".into()],
        }
    }

    #[test]
    fn a_report_is_aligned_and_says_what_is_noise() {
        let machine = Machine { date: "today".into(), ..Machine::default() };
        let text = text(&machine, &report()).expect("a string");
        assert!(text.contains("time") && text.contains("60.0 ±1.00"), "{text}");
        assert!(text.contains("~1.00 ±3.50") && text.contains("A note."), "{text}");
        assert!(text.contains("unclear") && text.contains("at most 2.50"), "{text}");
        assert!(!text.lines().any(|line| line.ends_with(' ')), "{text}");
        assert!(text.contains("Of 1 rows 1 have") && text.contains("of 1 goals 1 are"), "{text}");
    }

    #[test]
    fn a_quiet_run_says_nothing_of_noise() {
        let mut report = report();
        report.tables[0].rows[0].cells[1] = Some(figure_of(20.0, 21.0, 22.0, Some(0.0)));
        report.goals[0].seen = figure_of(2.0, 2.1, 2.2, None);
        assert_eq!(noise(&report), None);
        report.goals[0].seen = figure_of(2.0, 2.4, 2.6, None);
        assert!(noise(&report).expect("unclear").contains(
            "Of 1 rows 0 have a difference (~) that is smaller than its spread, and of 1 goals 1"
        ));
    }
}
