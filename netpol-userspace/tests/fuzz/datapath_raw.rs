//! Damaged frames at isolated pods: millions of frames made from valid ones by changing bits and
//! lengths, cutting, growing, repeating and splicing, and frames of random bytes. What passes must
//! be allowed by the slow evaluator on what an independent parser reads in the frame, or be of the
//! few things that always pass; and what is whole and allowed must pass.
//!
//! `NETPOL_SEED` and `NETPOL_CASES` choose the first round and the number of rounds, each of
//! [`FRAMES`] frames.

use std::collections::BTreeMap;
use std::net::IpAddr;

use netpol_model::Direction;
use netpol_testkit::cluster_fuzz::node::{NO_LIE, Node, make_interfaces};
use netpol_testkit::cluster_fuzz::script::Script;
use netpol_testkit::cluster_fuzz::traffic::{Surroundings, Traffic};
use netpol_testkit::generate::Rng;
use netpol_testkit::raw_frames::mutate::Buffer;
use netpol_testkit::raw_frames::oracle::{Oracle, Permit};
use netpol_testkit::raw_frames::{LOCAL, headers, world};
use netpol_testkit::rig::{first_seed, from_environment, in_node};

/// Rounds that CI tries.
const ROUNDS: u64 = 3;
/// Frames of a round. Flows and fragments are forgotten between rounds.
const FRAMES: usize = 100_000;
/// Whole frames that those of a round are made from, for each pod and direction.
const CORPUS: usize = 300;

/// A pod under attack.
struct Target {
    name: &'static str,
    oracle: Oracle,
    corpus: [Vec<Vec<u8>>; 2],
}

/// What became of the frames.
#[derive(Default)]
struct Totals {
    n_passed: u64,
    n_dropped: u64,
    n_must_pass: u64,
    by_permit: BTreeMap<Permit, u64>,
}

#[test]
fn damaged_frames_pass_only_where_policy_allows_what_they_say() {
    let (seed, rounds) = (first_seed(), from_environment("NETPOL_CASES").unwrap_or(ROUNDS));
    let mut totals = Totals::default();
    in_node(|| {
        make_interfaces();
        let mut node = Node::new(false, NO_LIE);
        for round in seed..seed + rounds {
            try_round(&mut node, round, &mut totals);
        }
    });
    let Totals { n_passed, n_dropped, n_must_pass, by_permit } = totals;
    println!(
        "{} damaged frames: {n_dropped} dropped, {n_passed} passed, of these {by_permit:?}; \
         {n_must_pass} had to pass; 0 wrong",
        n_passed + n_dropped
    );
    assert_eq!(n_passed + n_dropped, rounds * FRAMES as u64);
    // The frames are worth something: each way to pass was taken, and most were shut.
    assert_eq!(by_permit.len(), 6, "{by_permit:?}");
    assert!(n_dropped > rounds * FRAMES as u64 / 4 && n_must_pass > rounds * FRAMES as u64 / 50);
}

fn try_round(node: &mut Node, round: u64, totals: &mut Totals) {
    let mut rng = Rng::new(round);
    let local = LOCAL.map(str::to_owned).to_vec();
    let script = Script { world: world(), local, ..Script::default() };
    node.start(&script);
    let mut targets = LOCAL.map(|name| target(node, &mut rng, name));
    let mut buffer = Buffer::new();
    for number in 0..FRAMES {
        let target = &mut targets[rng.below(LOCAL.len())];
        let direction = *rng.pick(&Direction::BOTH);
        let is_from_node = direction == Direction::Ingress && rng.below(30) == 0;
        let corpus = &target.corpus[usize::from(direction == Direction::Egress)];
        buffer.fill(&mut rng, corpus);
        let frame = buffer.frame();
        let judgement = target.oracle.judge(direction, is_from_node, frame);
        let passed = node.passes(target.name, direction, is_from_node, frame);
        let is_wrong = if passed { judgement.permit.is_none() } else { judgement.must_pass };
        if is_wrong {
            let hex: String = frame.iter().map(|byte| format!("{byte:02x}")).collect();
            panic!(
                "Repeat it by: cargo xtask test fuzz --filter damaged --seed {round} --cases 1\n\
                 Frame {number}, {direction} of pod {}{}: it {}, which was judged {judgement:?}.\n\
                 It says {:?}\nframe {hex}",
                target.name,
                if is_from_node { ", made by the node" } else { "" },
                if passed { "passed" } else { "was dropped" },
                headers::read(frame),
            );
        }
        totals.n_must_pass += u64::from(judgement.must_pass);
        if passed {
            target.oracle.note_passed(&judgement);
            totals.n_passed += 1;
            *totals.by_permit.entry(judgement.permit.unwrap()).or_default() += 1;
        } else {
            totals.n_dropped += 1;
        }
    }
}

/// The pod and whole frames towards it and from it, of all kinds.
fn target(node: &Node, rng: &mut Rng, name: &'static str) -> Target {
    let (pod, own) = node.isolated(name).unwrap();
    let mut own: Vec<IpAddr> = own.iter().copied().collect();
    own.sort_unstable();
    let world = node.world();
    let remotes = world.remotes(rng);
    let surroundings = Surroundings { world, services: node.services(), remotes: &remotes };
    let mut traffic = Traffic::new();
    let corpus = Direction::BOTH.map(|direction| {
        let mut frame = || traffic.frame(rng, name, &own, direction, &surroundings).frame.bytes();
        (0..CORPUS).map(|_| frame()).collect()
    });
    Target { name, oracle: Oracle::new(node.reference(), pod, &own), corpus }
}
