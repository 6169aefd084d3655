//! Random frames from a pod to which nothing is allowed, on the wire of each kind of network, with
//! observers everywhere else: they see only what keeps a link working, and what the pod sends to
//! itself. Frames are of all kinds, valid or nearly so, and damaged. Needs root and the eBPF object.
//!
//! `NETPOL_SEED` and `NETPOL_CASES` choose the first case and the number of cases, each of
//! [`FRAMES`] frames on each network.

use std::collections::BTreeMap;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use netpol_testkit::generate::Rng;
use netpol_testkit::hostile::attack::Attack;
use netpol_testkit::hostile::observers::hex;
use netpol_testkit::hostile::stage::{BEFORE, Stage};
use netpol_testkit::lab::{Families, Topology, topology};
use netpol_testkit::raw_frames::mutate::Buffer;
use netpol_testkit::wire_fuzz::judge::{Judge, Lawful};
use netpol_testkit::wire_fuzz::make::Maker;

/// Cases that CI tries.
const CASES: u64 = 2;
/// Frames of a case, on each network.
const FRAMES: usize = 5_000;
/// Whole frames that damaged ones are made from.
const CORPUS: usize = 200;

#[test]
fn bridge() {
    run("bridge", topology::BRIDGE_WITHOUT_NETFILTER);
}

#[test]
fn overlay() {
    run("overlay", topology::OVERLAY);
}

#[test]
fn routed() {
    run("routed", topology::ROUTED);
}

#[derive(Default)]
struct Totals {
    n_sent: u64,
    /// The kernel of the pod's own namespace does not take them.
    n_refused: u64,
    n_dropped: u64,
    seen: BTreeMap<Lawful, u64>,
}

fn run(network: &str, topology: Topology) {
    let cases = from_environment("NETPOL_CASES").unwrap_or(CASES);
    let seed = from_environment("NETPOL_SEED").unwrap_or_else(|| {
        // A long run tries what nobody has tried.
        if std::env::var_os("NETPOL_CASES").is_some() { new_seed() } else { 1 }
    });
    let (since, stage) = (Instant::now(), Stage::new(topology, Families::Dual));
    let attack = stage.attack();
    let mut totals = Totals::default();
    for case in seed..seed + cases {
        try_case(network, case, &attack, &mut totals);
    }
    let Totals { n_sent, n_refused, n_dropped, seen } = totals;
    println!(
        "{network}: {n_sent} random frames in {:.0} s (seed {seed}, {cases} cases), {n_dropped} \
         dropped and counted, {n_refused} more refused by the pod's own kernel; elsewhere seen: \
         {seen:?}; 0 wrong",
        since.elapsed().as_secs_f64()
    );
    // The frames are worth something: most are shut, and each way to pass was taken.
    assert!(n_dropped > n_sent / 2 && n_refused < n_sent / 10);
    for way in [Lawful::Arp, Lawful::Discovery, Lawful::ToItself] {
        assert!(seen.contains_key(&way), "no frame passed as {way:?}: {seen:?}");
    }
}

fn try_case(network: &str, case: u64, attack: &Attack<'_>, totals: &mut Totals) {
    let stage = attack.stage;
    let mut rng = Rng::new(case);
    let maker = Maker::new(attack, &mut rng);
    let judge = Judge::new(attack, maker.token);
    let corpus: Vec<Vec<u8>> = (0..CORPUS).map(|_| maker.frame(&mut rng)).collect();
    let mut buffer = Buffer::new();
    stage.observers.forget();
    let n_dropped_before = stage.n_dropped(attack.attacker);
    let (mut sent, mut n_may_pass) = (Vec::with_capacity(FRAMES), 0);
    for _ in 0..FRAMES {
        let frame = if rng.chance(60) {
            maker.frame(&mut rng)
        } else {
            buffer.fill(&mut rng, &corpus);
            // What the link-layer addresses are is no matter of damage.
            let mut frame = buffer.frame().to_vec();
            maker.address(&mut rng, &mut frame);
            frame
        };
        match attack.sender.offer(&frame) {
            Ok(()) => {
                n_may_pass += u64::from(judge.may_pass(&frame));
                sent.push(frame);
            }
            Err(_) => totals.n_refused += 1,
        }
    }
    attack.is_heard();
    for seen in stage.observers.take() {
        let place = stage.observers.name(seen.place);
        if place == BEFORE || !judge.is_of_attacker(&seen.frame) {
            continue;
        }
        let Some(lawful) = judge.lawful(place, &seen.frame) else {
            panic!(
                "Repeat it by: cargo xtask test hostile --filter {network} --seed {case} --cases 1\n\
                 {place} sees {}\nof what was sent, most like it is {}",
                hex(&seen.frame),
                hex(most_like(&sent, &seen.frame)),
            );
        };
        *totals.seen.entry(lawful).or_default() += 1;
    }
    let n_sent = sent.len() as u64;
    let n_dropped = stage.n_dropped(attack.attacker) - n_dropped_before;
    assert!(
        n_dropped + n_may_pass >= n_sent,
        "{network}, seed {case}: {n_dropped} of {n_sent} frames were dropped, and only {n_may_pass} may pass"
    );
    totals.n_sent += n_sent;
    totals.n_dropped += n_dropped;
}

/// The frame that ends most like this one.
fn most_like<'a>(sent: &'a [Vec<u8>], seen: &[u8]) -> &'a [u8] {
    let alike = |frame: &&Vec<u8>| {
        frame.iter().rev().zip(seen.iter().rev()).take_while(|(a, b)| a == b).count()
    };
    sent.iter().max_by_key(alike).unwrap()
}

fn from_environment(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is not a number: {text}")))
}

fn new_seed() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    u64::try_from(since.as_millis()).unwrap() * 1_000
}
