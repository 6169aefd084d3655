//! From an event at the API server to the first packet that is judged by it, with and without a
//! thousand other events a second; and what those cost the agent. Must never count an event that
//! was in force already.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use fastrand::Rng;

use super::door::{self, Edit};
use super::lab::{Agent, Lab};
use super::objects::Kind;
use super::probe::Probe;
use super::server::Server;
use super::synthetic::{Happened, Life, Pod, event};
use super::{Plan, SEED, figure, p50_p99, row, table};
use crate::progress;
use crate::report::{Goal, Limit, Report};
use crate::sample::Samples;

/// Pod events a second.
const RATE: u32 = 1_000;
/// How often some of them are sent.
const BEAT: Duration = Duration::from_millis(10);
/// Pause between two edits, in milliseconds: unlike any period of the agent.
const PAUSE: std::ops::Range<u64> = 20..120;
const MILLISECOND: f64 = 1e-3;

/// Measures with an agent that is ready. Returns the pods as they are afterwards.
pub fn measure(
    plan: &Plan,
    lab: &Lab,
    server: &Server,
    agent: &Agent,
    report: &mut Report,
) -> Result<Life> {
    let mut probe = Probe::new(&lab.pod(door::CLIENT)?, &lab.pod(door::SERVER)?, door::SERVER)?;
    probe.until(true, Instant::now()).context("before anything has changed")?;
    let mut bench = Bench { plan, server, probe, rng: Rng::with_seed(SEED) };
    progress::say("edits, without load");
    let quiet = bench.rounds()?;
    let isover = AtomicBool::new(false);
    let mut life = Life::of(server.objects().cluster(), SEED);
    let loaded = std::thread::scope(|scope| -> Result<_> {
        let over = SetOnDrop(&isover);
        let load = scope.spawn(|| send_steadily(server, &mut life, &isover));
        progress::say(format_args!("{RATE} pod events a second"));
        cost_of_load(plan, server, agent, report)?;
        progress::say("edits, under this load");
        let loaded = bench.rounds()?;
        drop(over);
        load.join().map_err(|_| anyhow::anyhow!("the load has panicked"))??;
        Ok(loaded)
    })?;
    tell(&quiet, &loaded, report);
    Ok(life)
}

/// Ends the load also where measuring fails.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// 50th and 99th percentile of each round, in milliseconds.
type Percentiles = [Samples; 2];

struct Bench<'a> {
    plan: &'a Plan,
    server: &'a Server,
    probe: Probe,
    rng: Rng,
}

impl Bench<'_> {
    /// For each kind of edit, what opens and what closes.
    fn rounds(&mut self) -> Result<Vec<(&'static str, Percentiles)>> {
        let mut rows: Vec<(&str, Percentiles)> = Edit::ALL
            .iter()
            .flat_map(|edit| edit.names())
            .map(|name| (name, Default::default()))
            .collect();
        for _ in 0..self.plan.n_rounds {
            for (edit, rows) in Edit::ALL.into_iter().zip(rows.chunks_mut(2)) {
                for (times, (_, samples)) in self.edits(edit)?.iter().zip(rows) {
                    for (share, samples) in p50_p99(times, MILLISECOND).iter().zip(samples) {
                        samples.push(*share);
                    }
                }
            }
        }
        Ok(rows)
    }

    /// Closes and opens the door by turns: the times that opening and closing took.
    fn edits(&mut self, edit: Edit) -> Result<[Vec<Duration>; 2]> {
        let mut times = [Vec::new(), Vec::new()];
        for _ in 0..self.plan.n_edits {
            for opens in [false, true] {
                self.probe.send_for(Duration::from_millis(self.rng.u64(PAUSE)));
                let (kind, what, object) = edit.event(opens);
                let since = Instant::now();
                self.server.send(kind, |version| {
                    let mut object = object;
                    object["metadata"]["resourceVersion"] = version.to_string().into();
                    format!("{{\"type\":\"{what}\",\"object\":{object}}}\n")
                })?;
                let time = self.probe.until(opens, since);
                let time = time.with_context(|| edit.names()[usize::from(!opens)])?;
                times[usize::from(!opens)].push(time);
            }
        }
        Ok(times)
    }
}

/// What a thousand events a second cost.
fn cost_of_load(plan: &Plan, server: &Server, agent: &Agent, report: &mut Report) -> Result<()> {
    let mut share = Samples::default();
    let mut writes = Samples::default();
    for _ in 0..plan.n_rounds {
        let before = (server.n_sent(Kind::Pod), agent.metric("netpol_map_writes_total")?);
        let (processor, begun) = (agent.process().processor_time()?, Instant::now());
        std::thread::sleep(plan.load / plan.n_rounds as u32);
        let used = agent.process().processor_time()?.saturating_sub(processor);
        share.push(100.0 * used.as_secs_f64() / begun.elapsed().as_secs_f64());
        let after = (server.n_sent(Kind::Pod), agent.metric("netpol_map_writes_total")?);
        writes.push((after.1 - before.1) / (after.0 - before.0).max(1) as f64);
    }
    let mut load = table(
        &format!("{RATE} pod events a second: readiness, labels, replacements"),
        &["of one core, %", "map writes per event"],
    );
    load.rows.push(row("agent", [share, writes]));
    report.tables.push(load);
    Ok(())
}

fn tell(
    quiet: &[(&'static str, Percentiles)],
    loaded: &[(&'static str, Percentiles)],
    report: &mut Report,
) {
    let mut times = table(
        "From an event at the API server to the first packet judged by it, ms",
        &["p50", "p99", "p50 under load", "p99 under load"],
    );
    for ((name, [p50, p99]), (_, [p50_loaded, p99_loaded])) in quiet.iter().zip(loaded) {
        let columns = [p50, p99, p50_loaded, p99_loaded].map(Clone::clone);
        times.rows.push(row(*name, columns));
        let limit = match name.split(' ').next() {
            Some("policy") => 20.0,
            // Of a pod, that it is new is what its users wait for.
            Some("pod") => 1.0,
            _ => continue,
        };
        report.goals.push(Goal {
            measure: format!("{name}: event to first packet, p99, ms"),
            seen: figure(p99),
            limit: Limit::AtMost(limit),
            best_peer: None,
        });
    }
    report.tables.push(times);
}

/// Sends what happens to pods in a cluster, at the same pace for ever.
fn send_steadily(server: &Server, life: &mut Life, isover: &AtomicBool) -> Result<()> {
    let mut rng = Rng::with_seed(SEED + 1);
    let per_beat = RATE / (1_000 / BEAT.as_millis() as u32);
    let mut next = Instant::now();
    let mut queued: Vec<(Happened, Pod)> = Vec::new();
    while !isover.load(Ordering::SeqCst) {
        for _ in 0..per_beat {
            if queued.is_empty() {
                match rng.u32(..10) {
                    0..5 => queued.push(life.flicker()),
                    5..6 => queued.push(life.relabel()),
                    _ => queued.extend(life.replace().into_iter().rev()),
                }
            }
            let Some((what, pod)) = queued.pop() else { continue };
            send_pod(server, what, &pod)?;
        }
        next += BEAT;
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    Ok(())
}

/// Sends what happened to a pod.
pub fn send_pod(server: &Server, what: Happened, pod: &Pod) -> Result<()> {
    let cluster = server.objects().cluster();
    server.send(Kind::Pod, |version| {
        let mut text = String::new();
        cluster.pod_json(pod, version, &mut text);
        event(what, &text)
    })
}
