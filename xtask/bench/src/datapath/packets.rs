//! The table of packets: what each kind of packet costs. Must never be measured at one size only
//! and called flat: that is what `curves.rs` is for.

use std::net::IpAddr;

use anyhow::{Context as _, Result};

use super::Group;
use super::cases::{Before, Case, Kind, fresh};
use super::cluster::{self, CLOSED_PORT, PORT, peer, peer6};
use super::frames::Shape;
use super::scene::Scene;
use crate::report::{Goal, Limit, Report, Row, Table};
use crate::sample::Samples;

const SERVICE: &str = "10.96.0.1";
/// An established packet, in times of the empty program.
const ESTABLISHED: f64 = 2.5;
/// A new flow, in times of an established packet.
const NEW: f64 = 4.0;
/// The guard of a pod that no policy selects, in nanoseconds above the empty program.
const GUARD: f64 = 25.0;
/// One peer, so that this table is about the programs and not about memory.
const ONE: u32 = 1;

/// Adds table and goals.
pub fn measure(rounds: u32, report: &mut Report) -> Result<()> {
    let mut scene = Scene::new("packets", cluster::anybody(), None)?;
    scene.add_service(SERVICE, PORT, peer(0))?;
    for program in ["netpol_ingress", "netpol_egress", "netpol_transit", "netpol_guard"] {
        let (verified, bytes) = scene.size(program)?;
        report.notes.push(format!(
            "{program}: {verified} instructions verified, {bytes} bytes of machine code."
        ));
    }
    let mut group = Group { scenes: vec![scene], cases: cases(), ..Group::default() };
    group.measure("packets", rounds)?;
    let (cases, nothing) = (&group.cases, &group.nothing);
    report.tables.push(table(cases, nothing));
    report.tables.push(against_established(cases, nothing)?);
    report.goals.extend(goals(cases, nothing)?);
    Ok(())
}

/// Family, its name and a peer of it.
fn families() -> [(&'static str, IpAddr); 2] {
    [("IPv4", peer(0)), ("IPv6", peer6(0))]
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (family, remote) in families() {
        for (name, opening) in
            [("TCP", Shape::syn(remote, false, PORT)), ("UDP", Shape::udp(remote, false, PORT))]
        {
            let known = |way: &str, shape: Shape| {
                let name = format!("established, {name} {family}, {way}");
                Case::new(name, Kind::Established, shape.later()).after(Before::Answered)
            };
            cases.push(known("in", opening));
            cases.push(known("out", opening.answer()));
        }
    }
    let service = Shape::syn(SERVICE.parse().expect("an address"), true, PORT).later();
    cases.push(
        Case::new("established, mixed Service, TCP IPv4, out", Kind::Established, service)
            .after(Before::Opened),
    );
    let passing = Shape::syn(peer(0), true, PORT).later();
    cases.push(Case::new("on its way out of the node, TCP IPv4", Kind::Passing, passing));
    for (family, remote) in families() {
        let shape = Shape::syn(remote, true, PORT).later();
        cases.push(Case::new(guarded(family), Kind::Guarded, shape));
    }
    for (family, remote) in families() {
        for (way, is_out) in [("in", false), ("out", true)] {
            let (tcp, udp) = (Shape::syn(remote, is_out, PORT), Shape::udp(remote, is_out, PORT));
            for (name, shape) in [("TCP", tcp), ("UDP", udp)] {
                let new = format!("new, {name} {family}, {way}");
                cases
                    .push(Case::new(new, Kind::New, shape).spread(fresh(ONE)).after(Before::Empty));
                let shape = Shape { port: CLOSED_PORT, ..shape };
                let denied = format!("denied, {name} {family}, {way}");
                cases.push(Case::new(denied, Kind::Denied, shape).spread(fresh(ONE)));
            }
        }
    }
    cases.push(
        Case::new(FULL, Kind::New, Shape::syn(peer(0), false, PORT))
            .spread(fresh(ONE))
            .after(Before::Full),
    );
    cases
}

/// Name of the row of what a pod sends that no policy selects, on a link that it shares.
fn guarded(family: &str) -> String {
    format!("from a pod that no policy selects, TCP {family}")
}

const FULL: &str = "new, TCP IPv4, in, flow table full";

fn table(cases: &[Case], nothing: &Samples) -> Table {
    let mut rows =
        vec![Row { name: "empty program".into(), cells: vec![nothing.figure(), None, None] }];
    rows.extend(cases.iter().map(|case| {
        let time = case.time(nothing);
        let cells = vec![time.figure(), case.added().figure(), time.multiple_of(nothing).figure()];
        Row { name: case.name.clone(), cells }
    }));
    let columns = ["ns", "ns above empty", "times empty"].map(str::to_owned).to_vec();
    Table { title: "ns per packet".into(), columns, rows }
}

/// The pairs that are held against each other: family and direction, TCP.
fn pairs(cases: &[Case]) -> Result<Vec<(String, &Case, &Case)>> {
    let find = |name: String| {
        let found = cases.iter().find(|case| case.name == name);
        found.with_context(|| format!("invariant: there is a case {name:?}"))
    };
    let mut pairs = Vec::new();
    for (family, _) in families() {
        for way in ["in", "out"] {
            let what = format!("TCP {family}, {way}");
            let known = find(format!("established, {what}"))?;
            let new = find(format!("new, {what}"))?;
            pairs.push((what, known, new));
        }
    }
    Ok(pairs)
}

fn against_established(cases: &[Case], nothing: &Samples) -> Result<Table> {
    let rows = pairs(cases)?.into_iter().map(|(name, known, new)| {
        let times = new.time(nothing).multiple_of(&known.time(nothing));
        let added = new.added().multiple_of(&known.added());
        Row { name, cells: vec![times.figure(), added.figure()] }
    });
    Ok(Table {
        title: "a new flow, in times of an established packet".into(),
        columns: vec!["program time".into(), "time above empty".into()],
        rows: rows.collect(),
    })
}

fn goals(cases: &[Case], nothing: &Samples) -> Result<Vec<Goal>> {
    let mut goals = Vec::new();
    let mut add = |measure: String, samples: Samples, limit| {
        let seen = samples.figure().context("invariant: there were rounds")?;
        goals.push(Goal { measure, seen, limit: Limit::AtMost(limit), best_peer: None });
        anyhow::Ok(())
    };
    for (name, known, _) in pairs(cases)? {
        let times = known.time(nothing).multiple_of(nothing);
        add(format!("established {name}, times empty"), times, ESTABLISHED)?;
    }
    for case in cases.iter().filter(|case| case.kind == Kind::Guarded) {
        add(format!("{}, ns above empty", case.name), case.added(), GUARD)?;
    }
    for (name, known, new) in pairs(cases)? {
        let times = new.time(nothing).multiple_of(&known.time(nothing));
        add(format!("new {name}, times established"), times, NEW)?;
    }
    Ok(goals)
}
