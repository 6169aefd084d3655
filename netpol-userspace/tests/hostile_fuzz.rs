//! Random frames on the wire, from a pod to which no policy allows anything: whoever else is there
//! sees only what the specification lets pass, and netpol counts every other frame as dropped.
//!
//! `NETPOL_SEED` repeats a run that failed, `NETPOL_CASES` sets how many frames are sent on each
//! network (`cargo xtask test hostile --filter frames --cases 1000000`). Needs root and the eBPF
//! object.
#![expect(clippy::unwrap_used, reason = "tests")]

mod hostile;
mod lab;
mod world;

use std::hash::{BuildHasher as _, RandomState};
use std::net::IpAddr;
use std::time::Instant;

use hostile::attack::Attack;
use hostile::frames::{ALL_NODES, group_link};
use hostile::observers::{hex, holds};
use hostile::random::{Place, Random};
use hostile::spec::{Who, may_pass, pair};
use hostile::stage::{BEFORE, Stage};
use lab::{Families, Topology, topology};

/// Frames on each network where nobody asks for more: some seconds.
const FRAMES: u64 = 100_000;
/// What was seen is looked at after so many: the kernel keeps a thousand for a processor that is
/// behind (net.core.netdev_max_backlog).
const BATCH: u64 = 500;

fn from_environment(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name}={value} is not a number")))
}

#[test]
fn random_frames_on_a_bridge() {
    random_frames(topology::BRIDGE_WITHOUT_NETFILTER);
}

#[test]
fn random_frames_on_an_overlay() {
    random_frames(topology::OVERLAY);
}

#[test]
fn random_frames_on_routes() {
    random_frames(topology::ROUTED);
}

fn random_frames(topology: Topology) {
    let seed =
        from_environment("NETPOL_SEED").unwrap_or_else(|| RandomState::new().hash_one(0) >> 16);
    let n_frames = from_environment("NETPOL_CASES").unwrap_or(FRAMES);
    println!("NETPOL_SEED={seed} NETPOL_CASES={n_frames}");
    let (stage, started) = (Stage::new(topology, Families::Dual), Instant::now());
    let attack = stage.attack();
    let place = place(&stage, &attack);
    let mut random = Random(seed);
    let (mut n_allowed, mut n_passed, mut n_came) = (0, 0, 0);
    let before = stage.n_dropped(&stage.attacker);
    for first in (0..n_frames).step_by(BATCH as usize) {
        for _ in first..n_frames.min(first + BATCH) {
            let frame = place.frame(&mut random);
            n_allowed += u64::from(may_pass(&frame, &place.who));
            attack.sender.send(&frame);
        }
        // What was sent before is where it can be.
        attack.is_heard();
        let (passed, came) = judge(&stage, &place);
        (n_passed, n_came) = (n_passed + passed, n_came + came);
    }
    let n_dropped = stage.n_dropped(&stage.attacker) - before;
    println!(
        "{n_frames} frames in {:.1} s: {n_came} seen before the programs, {n_dropped} dropped, \
         {n_allowed} of those that may pass; {n_passed} were seen elsewhere, all of these",
        started.elapsed().as_secs_f64()
    );
    assert!(
        n_dropped + n_allowed >= n_frames,
        "{n_dropped} frames were dropped and {n_allowed} may pass, of {n_frames}"
    );
    assert!(n_passed > 0 && n_allowed > 0, "nothing of what may pass has passed");
}

/// Looks at what was seen since the last time: how many of the attacker's frames were seen beyond
/// the programs, and how many before.
fn judge(stage: &Stage, place: &Place) -> (u64, u64) {
    let before = stage.observers.place(BEFORE);
    let (mut n_passed, mut n_came) = (0, 0);
    for seen in stage.observers.take() {
        if seen.place == before {
            n_came += 1;
            continue;
        }
        if !holds(&seen.frame, &place.marker.0) && !place.who.has_sent(&seen.frame) {
            continue;
        }
        n_passed += 1;
        assert!(
            may_pass(&seen.frame, &place.who),
            "seen at {}: {}",
            stage.observers.name(seen.place),
            hex(&seen.frame)
        );
    }
    (n_passed, n_came)
}

/// Everybody whom a frame could be for.
fn place(stage: &Stage, attack: &Attack<'_>) -> Place {
    let (v4, v6) = pair(&stage.attacker.addresses);
    let mut addresses = stage.destinations();
    let groups = [
        "224.0.0.1",
        "239.1.2.3",
        "255.255.255.255",
        "10.244.1.255",
        "127.0.0.1",
        "0.0.0.0",
        "169.254.169.254",
        "ff02::1",
        "ff02::2",
        "ff02::16",
        "ff0e::1",
        "fe80::1",
        "::",
        "::1",
    ];
    addresses.extend(groups.map(|address| address.parse::<IpAddr>().unwrap()));
    let mut links = attack.links();
    links.extend([ALL_NODES, [1, 0, 0x5e, 0, 0, 1], [1, 0x80, 0xc2, 0, 0, 0]]);
    links.push(group_link("ff02::16".parse().unwrap()));
    let node = stage.lab.node_addresses(1).into_iter().filter_map(|address| match address {
        IpAddr::V4(_) => None,
        IpAddr::V6(address) => Some(address),
    });
    let node = node.collect();
    Place {
        who: Who { link: attack.sender.link, v4, v6, node },
        addresses,
        links,
        marker: attack.marker,
    }
}
