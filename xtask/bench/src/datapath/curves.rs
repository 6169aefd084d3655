//! What a packet costs as something grows: flows, peers, blocks, policies, port ranges. Peers and
//! flows are visited in random order, so that memory counts.

use anyhow::{Context as _, Result};
use netpol_common::spread::{ADDRESS, FRESH, PORT as ANY_PORT, PORT_STEP, Spread};
use netpol_model::Change;

use super::Group;
use super::cases::{Before, Case, Kind, fresh, open};
use super::cluster::{self, BLOCK, CLOSED_PORT, FIRST_RANGE, PEERS_OF_POLICIES, PORT, peer, peer6};
use super::frames::Shape;
use super::scene::Scene;
use crate::report::{Goal, Limit, Line, Plot, Report, Row, Table};
use crate::sample::Samples;

/// The last point of a curve that is flat, in times of the first.
const FLAT: f64 = 1.25;

/// Buckets of the flow tables where flows are counted. With as many as agents choose, 100,000
/// flows are three quarters of what fits, and two in a hundred have made room for others: they
/// would be measured as new ones.
const ROOMY: u32 = 2 * netpol_common::layout::FLOW4_BUCKETS;

/// Something that grows.
pub struct Curve {
    /// Name of its scenes and its plot.
    name: &'static str,
    /// What is counted.
    what: &'static str,
    sizes: [u32; 3],
    quick_sizes: [u32; 3],
    cluster: fn(u32) -> Vec<Change>,
    /// What is measured in a scene of this size; also opens the flows for it.
    cases: fn(&mut Scene, u32) -> Result<Vec<Case>>,
    /// See [`Scene::new`].
    flow_buckets: Option<u32>,
    /// Whether an established packet must cost the same at each size.
    is_to_be_flat: bool,
}

/// All of them.
pub fn all() -> [Curve; 5] {
    [
        Curve {
            name: "flows",
            what: "live flows, visited in random order",
            sizes: [1, 1_000, 100_000],
            quick_sizes: [1, 1_000, 100_000],
            cluster: |_| cluster::anybody(),
            cases: of_flows,
            flow_buckets: Some(ROOMY),
            is_to_be_flat: false,
        },
        Curve {
            name: "peers",
            what: "peer addresses, visited in random order",
            sizes: [10, 1_000, 100_000],
            quick_sizes: [10, 100, 1_000],
            cluster: cluster::peers,
            cases: |_, size| Ok(of_peers(size)),
            flow_buckets: None,
            is_to_be_flat: true,
        },
        Curve {
            name: "blocks",
            what: "address blocks, visited in random order",
            sizes: [10, 1_000, 100_000],
            quick_sizes: [10, 100, 1_000],
            cluster: cluster::blocks,
            cases: |_, size| Ok(of_peers(size * BLOCK)),
            flow_buckets: None,
            is_to_be_flat: true,
        },
        Curve {
            name: "policies",
            what: "policies on the pod, 10,000 peers together",
            sizes: [1, 100, 10_000],
            quick_sizes: [1, 10, 100],
            cluster: cluster::policies,
            cases: |_, _| Ok(of_peers(PEERS_OF_POLICIES)),
            flow_buckets: None,
            is_to_be_flat: true,
        },
        Curve {
            name: "ranges",
            what: "port ranges of one rule, in random order",
            sizes: [1, 16, 1_000],
            quick_sizes: [1, 16, 1_000],
            cluster: cluster::ranges,
            cases: |_, size| Ok(of_ranges(size)),
            flow_buckets: None,
            is_to_be_flat: true,
        },
    ]
}

fn of_flows(scene: &mut Scene, size: u32) -> Result<Vec<Case>> {
    let known = Spread { state: 0, count: size, first_port: 0, flags: ADDRESS };
    let mut cases = Vec::new();
    for (family, remote) in [("TCP IPv4", peer(0)), ("TCP IPv6", peer6(0))] {
        let syn = Shape::syn(remote, false, PORT);
        open(scene, syn, size)?;
        let established =
            Case::new(format!("established, {family}"), Kind::Established, syn.later());
        cases.push(established.spread(known).after(Before::Holding(size)));
        // On top of them, from other ports.
        cases.push(Case::new(format!("new, {family}"), Kind::New, syn).spread(fresh(size)));
    }
    Ok(cases)
}

/// New flows from any of the first so many peers.
fn of_peers(count: u32) -> Vec<Case> {
    let syn = Shape::syn(peer(0), false, PORT);
    let closed = Shape { port: CLOSED_PORT, ..syn };
    vec![
        Case::new(ESTABLISHED, Kind::Established, syn.later()).after(Before::Answered),
        Case::new("new, TCP IPv4, in", Kind::New, syn).spread(fresh(count)).after(Before::Empty),
        Case::new("denied, TCP IPv4, in", Kind::Denied, closed).spread(fresh(count)),
    ]
}

const ESTABLISHED: &str = "established, TCP IPv4, in";

/// New flows to any of the ranges, and to ports between them.
fn of_ranges(count: u32) -> Vec<Case> {
    let syn = Shape::syn(peer(0), false, FIRST_RANGE);
    let to = |first_port| Spread { state: 0, count, first_port, flags: FRESH | ANY_PORT };
    let between = FIRST_RANGE + PORT_STEP / 2;
    vec![
        Case::new(ESTABLISHED, Kind::Established, syn.later()).after(Before::Answered),
        Case::new("new, TCP IPv4, in", Kind::New, syn).spread(to(FIRST_RANGE)).after(Before::Empty),
        Case::new("denied, TCP IPv4, in", Kind::Denied, syn).spread(to(between)),
    ]
}

/// What the cases of one name say at each size.
struct Series {
    name: String,
    times: Vec<Samples>,
}

impl Series {
    fn last_over_first(&self) -> Option<Samples> {
        Some(self.times.last()?.multiple_of(self.times.first()?))
    }
}

impl Curve {
    /// Adds table, goal and plot.
    pub fn measure(&self, rounds: u32, is_quick: bool, report: &mut Report) -> Result<()> {
        let sizes = if is_quick { self.quick_sizes } else { self.sizes };
        let mut group = Group::default();
        for (index, size) in sizes.into_iter().enumerate() {
            let name = format!("{}{index}", self.name);
            let mut scene = Scene::new(&name, (self.cluster)(size), self.flow_buckets)?;
            let cases = (self.cases)(&mut scene, size)?;
            group.cases.extend(cases.into_iter().map(|case| case.at(index)));
            group.scenes.push(scene);
        }
        group.measure(self.name, rounds)?;
        let all = series(&group.cases, &group.nothing);
        report.tables.push(self.table(&all, sizes));
        report.plots.push(self.plot(&all, sizes)?);
        if self.is_to_be_flat {
            report.goals.push(self.goal(&all)?);
        } else {
            report.notes.extend(all.iter().filter_map(|series| memory(series, sizes)));
            report.notes.extend(all.chunks(2).filter_map(|pair| new_in_memory(pair, sizes)));
        }
        Ok(())
    }

    fn table(&self, all: &[Series], sizes: [u32; 3]) -> Table {
        let mut columns = sizes.map(|size| crate::render::count(size.into())).to_vec();
        columns.push("last / first".into());
        let rows = all.iter().map(|series| {
            let mut cells: Vec<_> = series.times.iter().map(Samples::figure).collect();
            cells.push(series.last_over_first().as_ref().and_then(Samples::figure));
            Row { name: series.name.clone(), cells }
        });
        Table { title: format!("ns per packet by {}", self.what), columns, rows: rows.collect() }
    }

    fn plot(&self, all: &[Series], sizes: [u32; 3]) -> Result<Plot> {
        let line = |series: &Series| {
            let medians = series.times.iter().map(|samples| Some(samples.figure()?.median));
            let medians: Option<Vec<f64>> = medians.collect();
            let points = sizes.iter().map(|&size| f64::from(size)).zip(medians?).collect();
            Some(Line { name: series.name.clone(), points })
        };
        let lines: Option<Vec<Line>> = all.iter().map(line).collect();
        Ok(Plot {
            file: format!("datapath-{}", self.name),
            title: format!("One run of the program, by {}", self.what),
            x: self.what.into(),
            y: "ns per packet".into(),
            lines: lines.context("invariant: there were rounds")?,
        })
    }

    fn goal(&self, all: &[Series]) -> Result<Goal> {
        let established = all.iter().find(|series| series.name == ESTABLISHED);
        let seen = established.and_then(Series::last_over_first).and_then(|s| s.figure());
        Ok(Goal {
            measure: format!("established by {}: last / first", self.name),
            seen: seen.context("invariant: each curve has established packets")?,
            limit: Limit::AtMost(FLAT),
            best_peer: None,
        })
    }
}

/// What memory costs established packets.
fn memory(series: &Series, sizes: [u32; 3]) -> Option<String> {
    if !series.name.starts_with("established") {
        return None;
    }
    let added = series.times.last()?.above(series.times.first()?).figure()?.median;
    let [few, _, many] = sizes.map(|size| crate::render::count(size.into()));
    Some(format!(
        "{}: {many} flows in random order cost {added:.0} ns a packet more than {few}, which is \
         memory traffic.",
        series.name
    ))
}

/// Established packets and new flows, both with as much memory to visit.
fn new_in_memory(pair: &[Series], sizes: [u32; 3]) -> Option<String> {
    let [established, new] = pair else { return None };
    let times = new.times.last()?.multiple_of(established.times.last()?).figure()?.median;
    let many = crate::render::count(sizes[2].into());
    Some(format!(
        "{}: with {many} live flows it costs {} times an established packet.",
        new.name,
        crate::render::Short(times)
    ))
}

/// By name, in the order of the scenes.
fn series(cases: &[Case], nothing: &Samples) -> Vec<Series> {
    let mut all: Vec<Series> = Vec::new();
    for case in cases {
        let time = case.time(nothing);
        match all.iter_mut().find(|series| series.name == case.name) {
            Some(series) => series.times.push(time),
            None => all.push(Series { name: case.name.clone(), times: vec![time] }),
        }
    }
    all
}
