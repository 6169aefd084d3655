//! Measures a group of sites side by side: in each round every quantity at every site, one site
//! after the other, so that what drifts does so for all of them. Must never measure a site that was
//! not tried.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::packets::{Flows, cost, cost_of_new_flows};
use super::pair::Wiring;
use super::population::Population;
use super::traffic::{tcp_connections, tcp_requests, tcp_stream, udp_packets, udp_requests};
use super::trial::try_out;
use super::variant::{Site, Variant};
use crate::progress;
use crate::sample::Samples;

/// How many flows "many" are.
pub const MANY_FLOWS: usize = 1_000;

/// A quantity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Measure {
    /// Nanoseconds per packet of one established flow.
    OneFlow,
    /// The same of many, in turn.
    ManyFlows,
    /// The same of many that are never answered.
    Unanswered,
    /// The same where each packet is the first of its flow.
    NewFlows,
    /// TCP requests on one connection, a second.
    TcpRequests,
    /// TCP connections with a request each, a second.
    TcpConnections,
    /// UDP requests a second.
    UdpRequests,
    /// UDP packets that arrive a second.
    UdpPackets,
    /// Gigabits a second.
    Stream,
}

impl Measure {
    /// All of them, in the order of the tables.
    pub const ALL: [Self; 9] = [
        Self::OneFlow,
        Self::ManyFlows,
        Self::Unanswered,
        Self::NewFlows,
        Self::TcpRequests,
        Self::TcpConnections,
        Self::UdpRequests,
        Self::UdpPackets,
        Self::Stream,
    ];

    /// Whether it is a cost, told as what is added to the bare path; else a rate, told as a share
    /// of the bare one.
    pub fn is_cost(self) -> bool {
        matches!(self, Self::OneFlow | Self::ManyFlows | Self::Unanswered | Self::NewFlows)
    }

    /// As tables call it; of what netperf measures too, by its names.
    pub fn name(self) -> &'static str {
        match self {
            Self::OneFlow => "1 flow",
            Self::ManyFlows => "1,000 flows",
            Self::Unanswered => "unanswered",
            Self::NewFlows => "new flows",
            Self::TcpRequests => "TCP_RR",
            Self::TcpConnections => "TCP_CRR",
            Self::UdpRequests => "UDP_RR",
            Self::UdpPackets => "UDP pps",
            Self::Stream => "TCP stream",
        }
    }

    fn of(self, site: &Site, round: usize, slice: Duration) -> Result<f64> {
        let pair = &site.pair;
        match self {
            Self::OneFlow => cost(pair, 1, Flows::Answered, slice),
            Self::ManyFlows => cost(pair, MANY_FLOWS, Flows::Answered, slice),
            Self::Unanswered => cost(pair, MANY_FLOWS, Flows::Unanswered, slice),
            Self::NewFlows => cost_of_new_flows(pair, round),
            Self::TcpRequests => tcp_requests(pair, slice),
            Self::TcpConnections => tcp_connections(pair, slice),
            Self::UdpRequests => udp_requests(pair, slice),
            Self::UdpPackets => udp_packets(pair, slice),
            Self::Stream => tcp_stream(pair, slice),
        }
    }
}

/// What is measured side by side.
pub struct Group {
    pub wiring: Wiring,
    /// With how many policies each. The first is what the others are held against.
    pub sites: Vec<(Variant, Population)>,
    pub measures: Vec<Measure>,
}

/// What the rounds of a group gave.
pub struct Found {
    samples: BTreeMap<(Variant, Population, Measure), Samples>,
    base: (Variant, Population),
}

impl Found {
    /// As they were taken.
    pub fn taken(&self, site: (Variant, Population), measure: Measure) -> Option<&Samples> {
        self.samples.get(&(site.0, site.1, measure))
    }

    /// Costs as nanoseconds above the base, rates as percent of it.
    pub fn compared(&self, site: (Variant, Population), measure: Measure) -> Option<Samples> {
        let (taken, base) = (self.taken(site, measure)?, self.taken(self.base, measure)?);
        Some(if measure.is_cost() {
            taken.above(base)
        } else {
            taken.share_of(base).each(|share| share * 100.0)
        })
    }
}

/// How long and how often.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    pub rounds: usize,
    /// What each quantity is given at each site in each round.
    pub slice: Duration,
}

/// Sets the sites up, tries and measures them.
pub fn measure(group: &Group, pace: Pace, bpffs: &Path) -> Result<Found> {
    let wiring = group.wiring.name();
    progress::say(format_args!("{wiring}: setting up {} sites", group.sites.len()));
    let mut sites = Vec::new();
    for (number, &(variant, population)) in group.sites.iter().enumerate() {
        let bpffs = bpffs.join(format!("{wiring}-{number}"));
        let site = Site::new(group.wiring, variant, population, &bpffs)?;
        try_out(&site).with_context(|| format!("{wiring}, site {number}"))?;
        sites.push(site);
    }
    let base = group.sites.first().copied().context("invariant: a group has a base")?;
    let mut found = Found { samples: BTreeMap::new(), base };
    for round in 0..pace.rounds {
        progress::say(format_args!("{wiring}: round {} of {}", round + 1, pace.rounds));
        for &measure in &group.measures {
            for site in &sites {
                let sample = measure.of(site, round, pace.slice).with_context(|| {
                    format!("{wiring}, {}, {}", site.variant.name(), measure.name())
                })?;
                let key = (site.variant, site.population, measure);
                found.samples.entry(key).or_default().push(sample);
            }
        }
    }
    Ok(found)
}
