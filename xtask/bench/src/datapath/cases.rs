//! One thing that is measured, and how. Every run is checked by the programs' own counters: a row
//! must never say "established" of packets that were judged as new, or "denied" of any that passed.

use anyhow::{Context as _, Result, ensure};
use netpol_common::layout::Reason;
use netpol_common::spread::{FRESH, IN_TURN, Spread};

use super::frames::{NOTHING, SPREAD_EGRESS, SPREAD_INGRESS, SPREAD_NOTHING, Shape};
use super::scene::Scene;
use crate::sample::{Samples, quantile};

/// The kernel tells whole nanoseconds, and other work disturbs: a sample is the mean of the middle
/// ones of so many.
const PARTS: u32 = 5;
/// Runs of each part.
const REPEAT: u32 = 40_000;
/// The same of new flows, which must not fill the table, nor use a port twice.
const REPEAT_NEW: u32 = 4_000;
/// Of many flows a few make room for others; so many of a thousand may be new again.
const EVICTED_PER_MILLE: u64 = 10;

/// What becomes of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It is of a flow that is known.
    Established,
    /// It opens a flow, and passes.
    New,
    /// No policy allows it.
    Denied,
    /// It is on its way out of the node, and not netpol's concern.
    Passing,
    /// A pod that no policy selects sends it, from its own addresses.
    Guarded,
}

/// What is made of the flow tables before it is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Before {
    /// They stay as they are.
    AsItIs,
    /// The packet's flow is opened.
    Opened,
    /// It is answered, too.
    Answered,
    /// They hold nothing.
    Empty,
    /// They hold connections with so many peers.
    Holding(u32),
    /// They hold as much as they can.
    Full,
}

/// One thing that is measured.
pub struct Case {
    /// Name of its row.
    pub name: String,
    /// Which scene.
    pub scene: usize,
    /// What becomes of it.
    pub kind: Kind,
    /// The packet.
    pub shape: Shape,
    /// What differs from run to run, if anything.
    pub spread: Option<Spread>,
    /// See there.
    pub before: Before,
    /// Nanoseconds, one sample per round.
    pub samples: Samples,
    /// The same of a program that changes the packet likewise and does nothing else.
    pub floor: Samples,
}

impl Case {
    /// A case of the first scene, the same packet each time.
    pub fn new(name: impl Into<String>, kind: Kind, shape: Shape) -> Self {
        let (samples, floor) = (Samples::default(), Samples::default());
        let (name, before) = (name.into(), Before::AsItIs);
        Self { name, scene: 0, kind, shape, spread: None, before, samples, floor }
    }

    /// Another packet each time.
    pub fn spread(mut self, spread: Spread) -> Self {
        self.spread = Some(spread);
        self
    }

    /// Of another scene.
    pub fn at(mut self, scene: usize) -> Self {
        self.scene = scene;
        self
    }

    /// With so full flow tables.
    pub fn after(mut self, before: Before) -> Self {
        self.before = before;
        self
    }

    fn program(&self) -> &'static str {
        match (self.kind, self.spread.is_some(), self.shape.is_out) {
            (Kind::Passing, ..) => "netpol_transit",
            (Kind::Guarded, ..) => "netpol_guard",
            (_, false, false) => "netpol_ingress",
            (_, false, true) => "netpol_egress",
            (_, true, false) => SPREAD_INGRESS,
            (_, true, true) => SPREAD_EGRESS,
        }
    }

    /// Runs of each part.
    fn repeat(&self) -> u32 {
        if self.kind == Kind::New { REPEAT_NEW } else { REPEAT }
    }

    /// Takes the samples of this round.
    ///
    /// # Errors
    /// The programs did something else than the row says.
    pub fn measure(&mut self, scenes: &mut [Scene], round: u32) -> Result<()> {
        let scene = scenes.get_mut(self.scene).context("invariant: a case has its scene")?;
        scene.share_link(self.spread.is_none());
        self.prepare(scene)?;
        let before = scene.counters()?;
        let mut parts = [Vec::new(), Vec::new()];
        let nothing = if self.spread.is_some() { SPREAD_NOTHING } else { NOTHING };
        for part in 0..PARTS {
            let frame = self.frame(round, part);
            for (times, program) in parts.iter_mut().zip([self.program(), nothing]) {
                let ran = scene.run(program, &frame, self.shape.is_out, self.repeat())?;
                let is_expected = program == nothing || self.kind != Kind::Denied;
                ensure!(ran.is_allowed == is_expected, "{}: wrong verdict", self.name);
                times.push(ran.duration.as_nanos() as f64);
            }
        }
        let after = scene.counters()?;
        self.check(|reason| after[reason as usize] - before[reason as usize])
            .with_context(|| format!("the programs did not do what {:?} says", self.name))?;
        let [samples, floor] = parts.map(middle);
        self.samples.push(samples.context("invariant: there are parts")?);
        self.floor.push(floor.context("invariant: there are parts")?);
        Ok(())
    }

    fn prepare(&self, scene: &mut Scene) -> Result<()> {
        let opening = self.shape.opening();
        let packets: &[Shape] = match self.before {
            Before::AsItIs => &[],
            Before::Opened => &[opening],
            Before::Answered => &[opening, opening.answer()],
            Before::Empty => {
                scene.forget_flows();
                &[]
            }
            Before::Holding(count) => {
                scene.forget_flows();
                return open_in_turn(scene, opening, count);
            }
            Before::Full => return fill(scene, opening),
        };
        for packet in packets {
            let program = if packet.is_out { "netpol_egress" } else { "netpol_ingress" };
            let ran = scene.run(program, &packet.frame(), packet.is_out, 1)?;
            ensure!(ran.is_allowed, "{}: its flow is not allowed", self.name);
        }
        Ok(())
    }

    fn frame(&self, round: u32, part: u32) -> Vec<u8> {
        let Some(spread) = self.spread else { return self.shape.frame() };
        let state = spread.state.wrapping_add(round * PARTS + part);
        self.shape.frame_with(Spread { state, ..spread }, part * self.repeat())
    }

    fn evicted_per_mille(&self) -> u64 {
        self.spread.filter(|spread| spread.count > 1).map_or(0, |_| EVICTED_PER_MILLE)
    }

    /// Whether what was counted is what the row says.
    fn check(&self, counted: impl Fn(Reason) -> u64) -> Result<()> {
        let runs = u64::from(PARTS * self.repeat());
        let dropped: u64 = Reason::ALL.iter().filter(|r| r.is_drop()).map(|&r| counted(r)).sum();
        let new = counted(Reason::NewFlow);
        let is_right = match self.kind {
            Kind::Passing | Kind::Guarded => new == 0 && dropped == 0,
            Kind::Established => new <= runs * self.evicted_per_mille() / 1_000 && dropped == 0,
            Kind::New => new == runs && dropped == 0,
            Kind::Denied => counted(Reason::Policy) == runs && dropped == runs && new == 0,
        };
        ensure!(is_right, "of {runs} packets {new} opened a flow and {dropped} were dropped");
        Ok(())
    }
}

/// What the program takes that does nothing.
///
/// # Errors
/// The kernel refuses.
pub fn empty_program(scene: &mut Scene) -> Result<f64> {
    let frame = Shape::syn(super::cluster::peer(0), false, super::cluster::PORT).frame();
    let run = |_| Ok(scene.run(NOTHING, &frame, false, REPEAT)?.duration.as_nanos() as f64);
    let parts = (0..PARTS).map(run).collect::<Result<_>>()?;
    middle(parts).context("invariant: there are parts")
}

/// The mean of all but the least and the most.
fn middle(mut parts: Vec<f64>) -> Option<f64> {
    parts.sort_by(f64::total_cmp);
    let inner = parts.get(1..parts.len().checked_sub(1)?).filter(|inner| !inner.is_empty());
    match inner {
        Some(inner) => Some(inner.iter().sum::<f64>() / inner.len() as f64),
        None => quantile(&parts, 0.5),
    }
}

/// Opens TCP connections with the first peers in turn, and answers them.
///
/// # Errors
/// The kernel refuses, or not nearly as many are known afterwards.
pub fn open(scene: &mut Scene, syn: Shape, count: u32) -> Result<()> {
    let before = scene.count_flows();
    open_in_turn(scene, syn, count)?;
    let (live, count) = (scene.count_flows() - before, u64::from(count));
    let least = count - count * EVICTED_PER_MILLE / 1_000;
    ensure!((least..=count).contains(&(live as u64)), "of {count} flows {live} are live");
    Ok(())
}

fn open_in_turn(scene: &mut Scene, syn: Shape, count: u32) -> Result<()> {
    let flags = IN_TURN | netpol_common::spread::ADDRESS;
    let spread = Spread { state: count - 1, count, first_port: 0, flags };
    for shape in [syn, syn.answer(), syn.later()] {
        let program = if shape.is_out { SPREAD_EGRESS } else { SPREAD_INGRESS };
        scene.run(program, &shape.frame_with(spread, 0), shape.is_out, count)?;
    }
    Ok(())
}

/// More flows than the table holds.
fn fill(scene: &mut Scene, syn: Shape) -> Result<()> {
    let slots = netpol_common::layout::FLOW4_BUCKETS * netpol_common::flow::SLOTS as u32;
    scene.forget_flows();
    open_in_turn(scene, syn, slots * 2)?;
    let live = scene.count_flows();
    ensure!(live > slots as usize * 95 / 100, "only {live} of {slots} slots are in use");
    Ok(())
}

/// Every packet opens a flow, with any of so many peers.
pub fn fresh(count: u32) -> Spread {
    let flags = FRESH | netpol_common::spread::ADDRESS;
    Spread { state: 0, count, first_port: 0, flags }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_the_mean_of_the_middle_parts() {
        assert_eq!(middle(vec![900.0, 60.0, 62.0, 61.0, 1.0]), Some(61.0));
        assert_eq!(middle(vec![60.0]), Some(60.0));
        assert_eq!(middle(Vec::new()), None);
    }

    #[test]
    fn a_row_that_is_not_what_it_says_is_refused() {
        let remote = crate::datapath::cluster::peer(1);
        let case = |kind| Case::new("", kind, Shape::syn(remote, false, 80));
        let only =
            |wanted: Reason, count: u64| move |r: Reason| if r == wanted { count } else { 0 };
        let runs = |kind| u64::from(PARTS * case(kind).repeat());
        let (new, denied) = (runs(Kind::New), runs(Kind::Denied));
        assert!(case(Kind::New).check(only(Reason::NewFlow, new)).is_ok());
        assert!(case(Kind::New).check(only(Reason::NewFlow, new - 1)).is_err());
        assert!(case(Kind::Denied).check(only(Reason::Policy, denied)).is_ok());
        assert!(case(Kind::Denied).check(only(Reason::Truncated, denied)).is_err());
        assert!(case(Kind::Established).check(|_| 0).is_ok());
        assert!(case(Kind::Established).check(only(Reason::NewFlow, 1)).is_err());
        let many = |count| case(Kind::Established).spread(fresh(count));
        assert!(many(1_000).check(only(Reason::NewFlow, 1)).is_ok());
        assert!(many(1_000).check(only(Reason::NewFlow, denied)).is_err());
        assert!(many(1).check(only(Reason::NewFlow, 1)).is_err());
        assert!(case(Kind::Established).check(only(Reason::Policy, 1)).is_err());
    }
}
