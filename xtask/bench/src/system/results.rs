//! The report of the system benchmark. Must never measure.

use super::Settings;
use super::population::{PEERS, Population};
use super::rounds::{Found, Group, Measure};
use super::variant::Variant;
use crate::report::{Goal, Limit, Line, Plot, Report, Row, Table};
use crate::sample::{Figure, Samples};

/// The ways to filter whose growth is shown.
pub const CURVES: [Variant; 3] = [Variant::Chains, Variant::KubeRouter, Variant::Netpol];
/// The most policies of which kube-router's sets, four for each, are made in less than minutes.
pub const KUBE_ROUTER_LIMIT: u32 = 1_000;
/// In which quantities.
pub const CURVE_MEASURES: [Measure; 4] =
    [Measure::ManyFlows, Measure::Unanswered, Measure::TcpConnections, Measure::UdpPackets];

/// Limits that issue 5 sets: added nanoseconds, or percent of the bare path.
const GOALS: [(Measure, Limit); 5] = [
    (Measure::OneFlow, Limit::AtMost(80.0)),
    (Measure::ManyFlows, Limit::AtMost(100.0)),
    (Measure::TcpConnections, Limit::AtLeast(97.0)),
    (Measure::TcpRequests, Limit::AtLeast(99.0)),
    (Measure::UdpPackets, Limit::AtLeast(98.0)),
];

/// Everything that is told of a run: of both wirings, and of the curves.
pub fn report(settings: &Settings, groups: &[Group; 3], found: &[Found; 3]) -> Report {
    let [routed, bridge, curves] = groups;
    let [on_routed, on_bridge, on_curves] = found;
    Report {
        subject: "system",
        is_quick: settings.is_quick,
        tables: vec![
            compared(routed, on_routed),
            compared(bridge, on_bridge),
            bare(&[(routed, on_routed), (bridge, on_bridge)]),
            growth(curves, on_curves),
        ],
        goals: goals(settings, routed, on_routed, on_curves),
        plots: CURVE_MEASURES.map(|measure| plot(settings, measure, on_curves)).into(),
        notes: notes(),
    }
}

fn head(measure: Measure) -> String {
    format!("{} {}", measure.name(), if measure.is_cost() { "+ns" } else { "%" })
}

fn compared(group: &Group, found: &Found) -> Table {
    let rows = group.sites.iter().skip(1).map(|&site| Row {
        name: site.0.name().to_owned(),
        cells: cells(group, |measure| found.compared(site, measure)),
    });
    let policies = group.sites.first().map_or(0, |site| site.1.policies);
    Table {
        title: format!(
            "two pods, {} wiring, {policies} policies with {} peers: nanoseconds added to a packet, \
             and rates in percent of those without a filter",
            group.wiring.name(),
            policies * PEERS
        ),
        columns: group.measures.iter().map(|measure| head(*measure)).collect(),
        rows: rows.collect(),
    }
}

/// What the others are held against, as it was measured.
fn bare(groups: &[(&Group, &Found)]) -> Table {
    let unit = |measure: &Measure| match measure {
        Measure::Stream => format!("{} Gbit/s", measure.name()),
        measure if measure.is_cost() => format!("{} ns", measure.name()),
        measure => format!("{} /s", measure.name()),
    };
    let row = |(group, found): &(&Group, &Found)| Row {
        name: group.wiring.name().to_owned(),
        cells: cells(group, |measure| found.taken(*group.sites.first()?, measure).cloned()),
    };
    Table {
        title: "no filter, as measured".to_owned(),
        columns: Measure::ALL.iter().map(unit).collect(),
        rows: groups.iter().map(row).collect(),
    }
}

fn growth(group: &Group, found: &Found) -> Table {
    let rows = group.sites.iter().skip(1).map(|&site| Row {
        name: format!("{}, {} policies", site.0.name(), site.1.policies),
        cells: cells(group, |measure| found.compared(site, measure)),
    });
    Table {
        title: format!("the same with more policies, {PEERS} peers each, routed wiring"),
        columns: group.measures.iter().map(|measure| head(*measure)).collect(),
        rows: rows.collect(),
    }
}

fn cells(group: &Group, of: impl Fn(Measure) -> Option<Samples>) -> Vec<Option<Figure>> {
    group.measures.iter().map(|measure| of(*measure)?.figure()).collect()
}

// === Goals ===

fn goals(settings: &Settings, group: &Group, found: &Found, curves: &Found) -> Vec<Goal> {
    let population = Population::new(settings.policies);
    let goal = |(measure, limit): (Measure, Limit)| {
        let figure = |variant| found.compared((variant, population), measure)?.figure();
        let peers = group.sites.iter().filter(|(variant, _)| variant.is_peer());
        let peers = peers.filter_map(|(variant, _)| Some((*variant, figure(*variant)?)));
        Some(Goal {
            measure: format!("{}, {} policies", head(measure), settings.policies),
            seen: figure(Variant::Netpol)?,
            limit,
            best_peer: best(measure, peers),
        })
    };
    let mut goals: Vec<Goal> = GOALS.into_iter().filter_map(goal).collect();
    goals.extend(flatness(settings, curves));
    goals
}

/// The many flows of the largest cluster, at the limit of the usual one.
fn flatness(settings: &Settings, curves: &Found) -> Option<Goal> {
    let largest = Population::new(*settings.scales.iter().max()?);
    let figure = |variant| curves.compared((variant, largest), Measure::ManyFlows)?.figure();
    let peers = CURVES.into_iter().filter(|variant| variant.is_peer());
    Some(Goal {
        measure: format!(
            "{}, {} policies and {} peers",
            head(Measure::ManyFlows),
            largest.policies,
            largest.policies * PEERS
        ),
        seen: figure(Variant::Netpol)?,
        limit: Limit::AtMost(100.0),
        best_peer: best(Measure::ManyFlows, peers.filter_map(|peer| Some((peer, figure(peer)?)))),
    })
}

fn best(
    measure: Measure,
    figures: impl Iterator<Item = (Variant, Figure)>,
) -> Option<(String, Figure)> {
    let worth = |figure: &Figure| if measure.is_cost() { figure.median } else { -figure.median };
    let best = figures.min_by(|(_, a), (_, b)| worth(a).total_cmp(&worth(b)));
    best.map(|(variant, figure)| (variant.name().to_owned(), figure))
}

// === Plots and notes ===

fn plot(settings: &Settings, measure: Measure, found: &Found) -> Plot {
    let (file, title, y) = match measure {
        Measure::ManyFlows => ("system-flows", "1,000 established flows", "ns added to a packet"),
        Measure::Unanswered => {
            ("system-unanswered", "1,000 flows that are never answered", "ns added to a packet")
        }
        Measure::TcpConnections => (
            "system-connections",
            "TCP connections with a request each",
            "% of those without a filter",
        ),
        _ => ("system-packets", "small UDP packets", "% of those without a filter"),
    };
    let line = |variant: Variant| Line {
        name: variant.name().to_owned(),
        points: settings
            .scales
            .iter()
            .filter_map(|&scale| {
                let samples = found.compared((variant, Population::new(scale)), measure)?;
                Some((f64::from(scale), samples.figure()?.median))
            })
            .collect(),
    };
    Plot {
        file: file.to_owned(),
        title: title.to_owned(),
        x: "policies that select the 110 pods of the node".to_owned(),
        y: y.to_owned(),
        lines: CURVES.map(line).into(),
    }
}

fn notes() -> Vec<String> {
    [
        "Both pods are isolated in both directions, so each packet passes two filters.",
        "The policies are dealt out to the 110 pods of the node; the one that allows what is \
         measured is in the middle of those of its pod.",
        "Packets: one small UDP packet from the call that sends it to the one that receives it, of \
         one flow, of 1,000 in turn, of 1,000 that are never answered, and of flows that are new. \
         What is never answered stays new to conntrack, so filters that are built on it go through \
         the policies with every such packet.",
        "TCP_RR, UDP_RR: requests and answers of one byte; TCP_CRR: a connection for each; pps: \
         small packets of one flow that arrive. The two ends run on a processor each.",
        "Of the batches of a sample the slower half is left out: in those other programs ran too.",
        "kube-router is left out where there are so many policies that making its IP sets, four \
         for each, takes minutes.",
        "kube-network-policies asks a process about first packets; here a set in the kernel judges \
         them, which is the least that design can cost.",
    ]
    .map(str::to_owned)
    .into()
}
