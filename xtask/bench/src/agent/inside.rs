//! What reading and compiling cost by themselves, in this process and on one thread, without the
//! API server, the kernel and whatever else an agent does. Must never compile anything but what
//! the agent would have read.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use netpol_compile::{Compiler, EndpointId};
use netpol_model::{Change, ObjectName};
use netpol_source::convert;
use netpol_source::slim::{
    GuardedPolicy, SlimEndpointSlice, SlimNamespace, SlimNode, SlimPod, SlimService,
};

use super::objects::{Kind, Objects};
use super::synthetic::{Cluster, Edits, Life, Pod};
use super::{Plan, SEED, figure, p50_p99, row, table};
use crate::progress;
use crate::report::{Goal, Limit, Report};
use crate::sample::Samples;

/// What an object means. One that is not valid is an error.
pub fn read(kind: Kind, text: &str) -> Result<Change> {
    let (change, problems) = match kind {
        Kind::Pod => {
            let (pod, problems) = serde_json::from_str::<SlimPod>(text)?.model();
            (Change::Pod(pod), problems)
        }
        Kind::Namespace => {
            let (namespace, problems) = serde_json::from_str::<SlimNamespace>(text)?.model();
            (Change::Namespace(namespace), problems)
        }
        Kind::Policy => {
            let guarded: GuardedPolicy = serde_json::from_str(text)?;
            let policy = guarded.policy.map_err(anyhow::Error::msg)?;
            let policy = convert::policy(&policy);
            (Change::Policy(policy.map_err(|e| anyhow::anyhow!("{e:?}: {text}"))?), Vec::new())
        }
        Kind::Service => {
            let read = serde_json::from_str::<SlimService>(text)?.read;
            let (service, problems) = read.map_err(anyhow::Error::msg)?;
            (Change::Service(service), problems)
        }
        Kind::EndpointSlice => {
            let read = serde_json::from_str::<SlimEndpointSlice>(text)?.read;
            let (slice, problems) = read.map_err(anyhow::Error::msg)?;
            (Change::EndpointSlice(slice), problems)
        }
        Kind::Node => {
            let read = serde_json::from_str::<SlimNode>(text)?.read;
            let (node, problems) = read.map_err(anyhow::Error::msg)?;
            (Change::Node(node), problems)
        }
    };
    ensure!(problems.is_empty(), "not valid: {problems:?} in {text}");
    Ok(change)
}

/// The endpoints of the node where the agent runs.
pub fn endpoints(cluster: &Cluster) -> Vec<(EndpointId, ObjectName)> {
    let name = |pod: &Pod| {
        let workload = cluster.workload_of(pod);
        ObjectName::new(cluster.namespace_of(workload), pod.name(workload))
    };
    let numbered = cluster.local_pods().zip(1..);
    numbered.map(|(pod, number)| (EndpointId(number), name(pod))).collect()
}

/// A compiler that knows everything, and how long it took to compile.
pub fn compile(cluster: &Cluster, changes: Vec<Change>) -> (Compiler, Duration) {
    let endpoints = endpoints(cluster);
    let begun = Instant::now();
    let mut compiler = Compiler::new();
    let _empty_until_there_are_endpoints = compiler.apply_all(changes);
    let _plan = compiler.set_endpoints(endpoints);
    (compiler, begun.elapsed())
}

/// What one event cost.
#[derive(Debug, Clone, Copy)]
pub struct Cost {
    /// To read it and to compile what follows.
    pub time: Duration,
    /// Steps of the plan: what is to be written to the maps.
    pub steps: usize,
}

/// Reads an object and compiles what follows from it.
pub fn apply(compiler: &mut Compiler, kind: Kind, text: &str) -> Result<Cost> {
    let begun = Instant::now();
    let change = read(kind, text)?;
    let plan = compiler.apply(change);
    Ok(Cost { time: begun.elapsed(), steps: plan.len() })
}

/// Reads a pod that is gone, and compiles what follows.
pub fn remove(compiler: &mut Compiler, text: &str) -> Result<Cost> {
    let begun = Instant::now();
    let Change::Pod(pod) = read(Kind::Pod, text)? else {
        return Err(anyhow::anyhow!("invariant: a pod is read as one")).context("remove a pod");
    };
    let plan = compiler.apply(Change::PodGone(pod.id, Some(pod.uid)));
    Ok(Cost { time: begun.elapsed(), steps: plan.len() })
}

// === Measuring ===

const MICROSECOND: f64 = 1e-6;

/// Compiles every cluster, and events of the last.
pub fn measure(plan: &Plan, clusters: &[(&str, Objects)], report: &mut Report) -> Result<()> {
    let mut compiling = table(
        &format!("Read and compiled in one thread, {} local pods", plan.n_local),
        &["all objects read, s", "of it pods, us each", "compiled, s", "atoms", "classes", "sets"],
    );
    let mut costs = Costs::default();
    for (index, (name, objects)) in clusters.iter().enumerate() {
        let mut columns: [Samples; 6] = Default::default();
        for round in 0..plan.n_rounds {
            progress::say(format_args!(
                "compile, round {} of {}: {name}",
                round + 1,
                plan.n_rounds
            ));
            let (changes, [all, pods]) = read_timed(objects)?;
            let (mut compiler, compiled) = compile(objects.cluster(), changes);
            let size = compiler.size();
            let n_pods = objects.len(Kind::Pod) as f64;
            let figures = [
                all.as_secs_f64(),
                pods.as_secs_f64() / MICROSECOND / n_pods,
                compiled.as_secs_f64(),
                size.atoms as f64,
                size.classes as f64,
                size.sets as f64,
            ];
            for (column, figure) in columns.iter_mut().zip(figures) {
                column.push(figure);
            }
            if index + 1 == clusters.len() {
                costs.round(plan, objects, &mut compiler, round)?;
            }
        }
        if plan.pods_apart.is_some() && index + 1 == clusters.len() {
            report.goals.push(Goal {
                measure: "first compile of the largest cluster, on one core, s".to_owned(),
                seen: figure(&columns[2]),
                limit: Limit::AtMost(2.0),
                best_peer: None,
            });
        }
        compiling.rows.push(row(*name, columns));
    }
    report.tables.push(compiling);
    costs.tell(report);
    Ok(())
}

/// Reads all objects from the text that they have on the wire; how long that took for all, and
/// for pods. Writing the text is not counted.
fn read_timed(objects: &Objects) -> Result<(Vec<Change>, [Duration; 2])> {
    let mut changes = Vec::new();
    let mut times = [Duration::ZERO; 2];
    let mut text = String::new();
    for kind in Kind::ALL {
        for index in 0..objects.len(kind) {
            text.clear();
            objects.write(kind, index, 1, &mut text);
            let begun = Instant::now();
            changes.push(read(kind, &text)?);
            let elapsed = begun.elapsed();
            times[0] += elapsed;
            if kind == Kind::Pod {
                times[1] += elapsed;
            }
        }
    }
    Ok((changes, times))
}

/// What is done to a cluster, one event at a time.
#[derive(Debug, Clone, Copy)]
enum Event {
    Added,
    Ready,
    Relabelled,
    Deleted,
    Namespace,
    Policy,
}

impl Event {
    const ALL: [Self; 6] =
        [Self::Added, Self::Ready, Self::Relabelled, Self::Deleted, Self::Namespace, Self::Policy];

    fn name(self) -> &'static str {
        match self {
            Self::Added => "pod added",
            Self::Ready => "pod's status changed",
            Self::Relabelled => "pod relabelled",
            Self::Deleted => "pod deleted",
            Self::Namespace => "namespace relabelled",
            Self::Policy => "policy edited",
        }
    }
}

/// What events cost, by [`Event::ALL`]: percentiles of each round, and the steps of all.
#[derive(Default)]
struct Costs {
    times: [[Samples; 2]; Event::ALL.len()],
    steps: [[Samples; 2]; Event::ALL.len()],
}

impl Costs {
    fn round(
        &mut self,
        plan: &Plan,
        objects: &Objects,
        compiler: &mut Compiler,
        round: usize,
    ) -> Result<()> {
        let seed = SEED + round as u64;
        let mut life = Life::of(objects.cluster(), seed);
        let mut costs: [Vec<Cost>; Event::ALL.len()] = Default::default();
        let mut note = |event: Event, cost| costs[event as usize].push(cost);
        let mut text = String::new();
        let mut write = |pod: &Pod| {
            text.clear();
            objects.cluster().pod_json(pod, 1, &mut text);
            text.clone()
        };
        for _ in 0..plan.n_events {
            let [(_, added), (_, ready), _, (_, gone)] = life.replace();
            note(Event::Added, apply(compiler, Kind::Pod, &write(&added))?);
            note(Event::Ready, apply(compiler, Kind::Pod, &write(&ready))?);
            note(Event::Deleted, remove(compiler, &write(&gone))?);
            let (_, relabelled) = life.relabel();
            note(Event::Relabelled, apply(compiler, Kind::Pod, &write(&relabelled))?);
        }
        let mut edits = Edits::of(objects.cluster(), seed);
        for _ in 0..plan.n_events.div_ceil(10) {
            let namespace = edits.relabelled_namespace().to_string();
            note(Event::Namespace, apply(compiler, Kind::Namespace, &namespace)?);
            let policy = edits.edited_policy().to_string();
            note(Event::Policy, apply(compiler, Kind::Policy, &policy)?);
        }
        for (event, costs) in costs.iter().enumerate() {
            let times: Vec<Duration> = costs.iter().map(|cost| cost.time).collect();
            for (samples, time) in self.times[event].iter_mut().zip(p50_p99(&times, MICROSECOND)) {
                samples.push(time);
            }
            let n_steps = costs.iter().map(|cost| cost.steps);
            let mean = n_steps.clone().sum::<usize>() as f64 / costs.len() as f64;
            self.steps[event][0].push(mean);
            self.steps[event][1].push(n_steps.max().unwrap_or_default() as f64);
        }
        Ok(())
    }

    fn tell(self, report: &mut Report) {
        let mut table = table(
            "One event read and compiled in one thread, in the largest cluster",
            &["p50, us", "p99, us", "map writes, mean", "map writes, most"],
        );
        for (event, (times, steps)) in
            Event::ALL.into_iter().zip(self.times.into_iter().zip(self.steps))
        {
            let [p50, p99] = times;
            if matches!(event, Event::Added | Event::Relabelled | Event::Deleted) {
                report.goals.push(Goal {
                    measure: format!("{}: read and compiled, p99, us", event.name()),
                    seen: figure(&p99),
                    limit: Limit::AtMost(1_000.0),
                    best_peer: None,
                });
            }
            let [mean, most] = steps;
            table.rows.push(row(event.name(), [p50, p99, mean, most]));
        }
        report.tables.push(table);
    }
}
