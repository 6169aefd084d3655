//! The first sync: from an agent's start to everything in force, and what it takes. Rounds go
//! over all clusters in turn. Must never give an agent anything of a former one.

use std::time::Duration;

use anyhow::{Context as _, Result};

use super::lab::{Agent, Lab};
use super::objects::Objects;
use super::process::Memory;
use super::server::Server;
use super::{MEBIBYTE, Plan, figure, row, table};
use crate::progress;
use crate::report::{Goal, Limit, Report};
use crate::sample::Samples;

/// After it is ready, an agent has this to settle.
const SETTLING: Duration = Duration::from_secs(2);
const MEGABYTE: f64 = 1e6;

/// What the rounds gave for one cluster.
#[derive(Default)]
struct Starts {
    ready: Samples,
    processor: Samples,
    in_force: Samples,
    peak: Samples,
    resident: Samples,
    own: Samples,
    tables: Samples,
    /// Resident, and most of it, without these tables.
    without: [Samples; 2],
    writes: Samples,
    listed: Samples,
}

/// Starts agents. The last one goes on, with its server.
pub fn measure(
    plan: &Plan,
    clusters: &[(&str, Objects)],
    lab: &mut Lab,
    report: &mut Report,
) -> Result<(Server, Agent)> {
    let mut starts: Vec<Starts> = clusters.iter().map(|_| Starts::default()).collect();
    let mut running = None;
    for round in 1..=plan.n_rounds {
        for ((name, objects), starts) in clusters.iter().zip(&mut starts) {
            progress::say(format_args!("first sync, round {round} of {}: {name}", plan.n_rounds));
            // Before the next: two at once would be at the same interfaces.
            drop(running.take());
            running = Some(start(plan, lab, objects, starts)?);
        }
    }
    tell(plan, clusters, &starts, report);
    running.context("no cluster was given")
}

fn start(
    plan: &Plan,
    lab: &mut Lab,
    objects: &Objects,
    starts: &mut Starts,
) -> Result<(Server, Agent)> {
    let server = Server::start(lab.node(), objects.clone())?;
    let agent = lab.start(&server.kubeconfig())?;
    let sync = agent.wait_ready(plan.n_local as usize)?;
    std::thread::sleep(SETTLING);
    let Memory { resident, own, tables, .. } = agent.process().memory()?;
    starts.ready.push(sync.elapsed.as_secs_f64());
    starts.processor.push(sync.processor.as_secs_f64());
    starts.in_force.push(sync.in_force.as_secs_f64());
    starts.peak.push(sync.peak as f64 / MEBIBYTE);
    starts.resident.push(resident as f64 / MEBIBYTE);
    starts.own.push(own as f64 / MEBIBYTE);
    starts.tables.push(tables as f64 / MEBIBYTE);
    for (without, all) in starts.without.iter_mut().zip([resident, sync.peak]) {
        without.push(all.saturating_sub(tables) as f64 / MEBIBYTE);
    }
    // Reading metrics looks at all flows, so it comes after what is said of memory.
    starts.writes.push(agent.metric("netpol_map_writes_total")?);
    starts.listed.push(server.check()? as f64 / MEGABYTE);
    Ok((server, agent))
}

fn tell(plan: &Plan, clusters: &[(&str, Objects)], starts: &[Starts], report: &mut Report) {
    let mut sync = table(
        &format!("First sync of an agent with {} local pods", plan.n_local),
        &[
            "to ready, s",
            "processor, s",
            "of it compile and write, s",
            "peak, MiB",
            "then resident, MiB",
            "of it heap, MiB",
            "of it tables of the kernel, MiB",
            "lists, MB",
        ],
    );
    for ((name, _), s) in clusters.iter().zip(starts) {
        let columns =
            [&s.ready, &s.processor, &s.in_force, &s.peak, &s.resident, &s.own, &s.tables, &s.listed];
        sync.rows.push(row(*name, columns.map(Clone::clone)));
    }
    report.tables.push(sync);
    let Some((small, large)) = plan.pods_apart else { return };
    let n_pods = |index: usize| f64::from(plan.clusters[index].1.pods);
    let n_more = n_pods(large) - n_pods(small);
    let per_pod: Samples =
        starts[large].resident.above(&starts[small].resident).each(|mib| mib * MEBIBYTE / n_more);
    let mut memory = table("Memory for each remote pod, with its Services", &["bytes"]);
    memory.rows.push(row("resident", [per_pod.clone()]));
    report.tables.push(memory);
    let goal = |measure: &str, seen, limit| Goal {
        measure: measure.to_owned(),
        seen,
        limit: Limit::AtMost(limit),
        best_peer: None,
    };
    report.goals.extend([
        goal(
            "the same, compiled and written by the agent, s",
            figure(&starts[large].in_force),
            2.0,
        ),
        goal(
            "resident with the largest cluster, without tables of the kernel, MiB",
            figure(&starts[large].without[0]),
            120.0,
        ),
        goal("the same, at its peak, MiB", figure(&starts[large].without[1]), 150.0),
        goal("memory for each remote pod, bytes", figure(&per_pod), 900.0),
    ]);
}
