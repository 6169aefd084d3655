//! What stays in memory of a day in which every pod is replaced once, in minutes: names,
//! addresses and uids that never come again. Must never look at memory while events are on their
//! way.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::in_force::send_pod;
use super::lab::Agent;
use super::objects::Kind;
use super::server::Server;
use super::synthetic::Life;
use super::{MEBIBYTE, Plan, figure, row, table};
use crate::progress;
use crate::report::{Goal, Limit, Line, Plot, Report};
use crate::sample::Samples;

/// What may lie between the sending of the last event and its being read.
const PATIENCE: Duration = Duration::from_secs(120);
/// Growth in hundredths over the last quarter that counts as none.
const FLAT: f64 = 1.0;

/// Replaces pods of those that there are.
pub fn measure(
    plan: &Plan,
    server: &Server,
    agent: &Agent,
    mut life: Life,
    report: &mut Report,
) -> Result<()> {
    progress::say(format_args!("{} pods replaced by others", plan.n_replaced));
    let mut resident = Vec::new();
    let begun = Instant::now();
    let processor = agent.process().processor_time()?;
    for look in 1..=plan.n_looks {
        let until = |look: usize| plan.n_replaced * look / plan.n_looks;
        for _ in until(look - 1)..until(look) {
            for (what, pod) in life.replace() {
                send_pod(server, what, &pod)?;
            }
        }
        wait_read(server, agent)?;
        let bytes = agent.process().memory()?.resident;
        resident.push((until(look) as f64, bytes as f64 / MEBIBYTE));
    }
    let used = agent.process().processor_time()?.saturating_sub(processor);
    let n_events = (plan.n_replaced * 4) as f64;
    let rate: Samples = [n_events / begun.elapsed().as_secs_f64()].into_iter().collect();
    let each: Samples = [used.as_secs_f64() * 1e6 / n_events].into_iter().collect();
    tell(resident, rate, each, report);
    Ok(())
}

/// Waits until the agent has read everything.
fn wait_read(server: &Server, agent: &Agent) -> Result<()> {
    let wanted = (server.objects().len(Kind::Pod) + server.n_sent(Kind::Pod)) as f64;
    let begun = Instant::now();
    while agent.metric("netpol_watch_events_total{resource=\"pods\"}")? < wanted {
        ensure!(begun.elapsed() < PATIENCE, "the agent does not read the last events of pods");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn tell(resident: Vec<(f64, f64)>, rate: Samples, each: Samples, report: &mut Report) {
    let quarter = |number: usize| resident.len() * number / 4;
    let part = |from: usize, to: usize| -> Samples {
        resident[quarter(from)..quarter(to)].iter().map(|(_, mib)| *mib).collect()
    };
    let quarters = [part(0, 1), part(1, 2), part(2, 3), part(3, 4)];
    let base = figure(&quarters[2]).median;
    let growth = quarters[3].each(|mib| 100.0 * (mib / base - 1.0));
    let mut table = table(
        "A day of churn: every pod replaced by another one, as fast as the agent reads",
        &["1st quarter", "2nd", "3rd", "4th"],
    );
    table.rows.push(row("resident, MiB", quarters));
    table.rows.push(row("events a second", [rate]));
    table.rows.push(row("processor time per event, us", [each]));
    report.tables.push(table);
    report.goals.push(Goal {
        measure: "memory of the last quarter of a day's churn, above the third, %".to_owned(),
        seen: figure(&growth),
        limit: Limit::AtMost(FLAT),
        best_peer: None,
    });
    report.plots.push(Plot {
        file: "agent-churn".to_owned(),
        title: "Resident memory while every pod is replaced".to_owned(),
        x: "pods replaced".to_owned(),
        y: "MiB".to_owned(),
        lines: vec![Line { name: "netpol agent".to_owned(), points: resident }],
    });
}
