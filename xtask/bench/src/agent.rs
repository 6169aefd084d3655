//! `cargo xtask bench agent`: what the agent costs on clusters of any size. Its first sync and its
//! memory, what an event costs, when an edit is in force, and what stays of a day of churn. The
//! agent is the real program, on a node with pods in namespaces, at an API server that lists and
//! watches a synthetic cluster. Must never measure an agent that complains of anything.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;

use crate::report::{Report, Row, Table};
use crate::sample::{Figure, Samples};
use crate::{Options, program};

mod churn;
mod door;
mod in_force;
mod inside;
pub(crate) mod lab;
mod objects;
pub(crate) mod probe;
mod process;
mod server;
mod starts;
pub mod synthetic;

use lab::Lab;
use objects::Objects;
use synthetic::{Cluster, Size};

/// Where all randomness begins.
const SEED: u64 = 5;

/// What is measured, and how often.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Clusters by name; what needs only one is measured on the last.
    pub clusters: Vec<(&'static str, Size)>,
    /// Two of them, by index, that differ in the number of pods alone.
    pub pods_apart: Option<(usize, usize)>,
    /// Pods of the agent's node.
    pub n_local: u32,
    /// How often an agent is started for each cluster.
    pub n_rounds: usize,
    /// Edits of each kind in a round.
    pub n_edits: usize,
    /// Events of each kind in a round, compiled in this process.
    pub n_events: usize,
    /// How long the agent is watched under load.
    pub load: Duration,
    /// Pods replaced by others.
    pub n_replaced: usize,
    /// How often memory is looked at meanwhile.
    pub n_looks: usize,
}

impl Plan {
    /// The whole thing.
    pub fn full() -> Self {
        Self {
            clusters: vec![
                ("200 pods, 20 policies", Size::SMALL),
                ("10,000 pods, 1,000 policies", Size::MEDIUM),
                ("10,000 pods, 10,000 policies", Size::SPARSE),
                ("100,000 pods, 10,000 policies", Size::LARGE),
            ],
            pods_apart: Some((2, 3)),
            n_local: 110,
            n_rounds: 3,
            n_edits: 40,
            n_events: 2_000,
            load: Duration::from_secs(10),
            n_replaced: 100_000,
            n_looks: 40,
        }
    }

    /// In less than a minute.
    pub fn quick() -> Self {
        Self {
            clusters: vec![
                ("200 pods, 20 policies", Size::SMALL),
                ("10,000 pods, 1,000 policies", Size::MEDIUM),
            ],
            pods_apart: None,
            n_rounds: 2,
            n_edits: 10,
            n_events: 500,
            load: Duration::from_secs(3),
            n_replaced: 5_000,
            ..Self::full()
        }
    }

    /// Shows that everything works, and says nothing.
    pub fn tiny() -> Self {
        Self {
            clusters: vec![("200 pods, 20 policies", Size::SMALL)],
            n_local: 10,
            n_rounds: 1,
            n_edits: 2,
            n_events: 20,
            load: Duration::from_millis(500),
            n_replaced: 100,
            n_looks: 8,
            ..Self::quick()
        }
    }
}

/// Measures.
///
/// # Errors
/// Something cannot be set up, or the agent does not what it should.
pub fn run(options: &Options) -> Result<Report> {
    let plan = if options.is_quick { Plan::quick() } else { Plan::full() };
    let mut report = measure(&plan, program::netpol()?)?;
    report.is_quick = options.is_quick;
    Ok(report)
}

/// Measures this with that program.
///
/// # Errors
/// As [`run`].
pub fn measure(plan: &Plan, netpol: PathBuf) -> Result<Report> {
    let generate = |(name, size): &(&'static str, Size)| {
        // One of the node's pods is the one with the door.
        let cluster = Cluster::generate(*size, plan.n_local - 1, SEED);
        (*name, Objects::new(Arc::new(cluster), door::objects()))
    };
    let clusters: Vec<(&str, Objects)> = plan.clusters.iter().map(generate).collect();
    let pods: Vec<Ipv4Addr> = match clusters.last() {
        Some((_, objects)) => objects.cluster().local_pods().map(|pod| pod.address).collect(),
        None => Vec::new(),
    };
    let pods: Vec<Ipv4Addr> = pods.into_iter().chain([door::SERVER]).collect();
    let mut lab = Lab::set_up(netpol, &pods, door::CLIENT)?;

    let mut report = Report {
        subject: "agent",
        is_quick: false,
        tables: Vec::new(),
        goals: Vec::new(),
        plots: Vec::new(),
        notes: Vec::new(),
    };
    inside::measure(plan, &clusters, &mut report)?;
    let (server, agent) = starts::measure(plan, &clusters, &mut lab, &mut report)?;
    let life = in_force::measure(plan, &lab, &server, &agent, &mut report)?;
    churn::measure(plan, &server, &agent, life, &mut report)?;
    server.check()?;
    agent.check()?;
    Ok(report)
}

/// A row of figures; a column without samples stays empty.
pub(crate) fn row(name: impl Into<String>, columns: impl IntoIterator<Item = Samples>) -> Row {
    Row { name: name.into(), cells: columns.into_iter().map(|column| column.figure()).collect() }
}

pub(crate) fn table(title: &str, columns: &[&str]) -> Table {
    let columns = columns.iter().map(|column| (*column).to_owned()).collect();
    Table { title: title.to_owned(), columns, rows: Vec::new() }
}

/// Median and 99th percentile of some times, in a unit of so many seconds.
pub(crate) fn p50_p99(times: &[Duration], unit: f64) -> [f64; 2] {
    let mut sorted: Vec<f64> = times.iter().map(|time| time.as_secs_f64() / unit).collect();
    sorted.sort_by(f64::total_cmp);
    [0.5, 0.99].map(|share| crate::sample::quantile(&sorted, share).unwrap_or(f64::NAN))
}

/// The figure, for a goal. Only for what has been sampled.
fn figure(samples: &Samples) -> Figure {
    samples.figure().expect("invariant: every round gives a sample")
}

/// Bytes.
pub(crate) const MEBIBYTE: f64 = 1_048_576.0;
