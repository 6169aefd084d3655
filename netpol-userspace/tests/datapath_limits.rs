//! Tables that are too small: whatever does not fit, the loaded programs let nothing pass that the
//! policies deny; the tables say what was left out; and everything is exact again as soon as
//! there is room.

#![expect(clippy::unwrap_used, reason = "tests")]

mod common;
mod compile_support;

use std::net::IpAddr;

use common::cluster::{Seen, Subject, tcp};
use common::{ID, POD, Rig, ack, in_node, syn, udp};
use compile_support::{pod, policy};
use netpol_common::layout::{Reason, names};
use netpol_userspace::compile::{ClassId, Compiler, Row, SetId, Step};
use netpol_userspace::datapath::{AttachMode, Limits, LoadOptions};
use netpol_userspace::frames::{Transport, frame, packet};
use netpol_userspace::model::Direction;
use netpol_userspace::reference::generate::Rng;
use netpol_userspace::reference::world::{Event, Probe, Size, World};
use netpol_userspace::source::convert;

/// Random clusters for each table.
const CASES: u64 = 12;
/// Questions after each change.
const PROBES: usize = 25;

fn with(limits: Limits) -> LoadOptions {
    LoadOptions { limits, ..LoadOptions::default() }
}

fn add(total: &mut Seen, seen: Seen) {
    total.allowed += seen.allowed;
    total.denied += seen.denied;
    total.closed += seen.closed;
}

/// Random clusters come, change and go; `make` gives the compiler its limits.
fn try_clusters(table: &str, limits: Limits, make: impl Fn() -> Compiler) {
    let mut subject = Subject::new(&with(limits));
    let (mut while_full, mut after) = (Seen::default(), Seen::default());
    let mut n_full = 0;
    for seed in 0.. {
        let mut rng = Rng::new(seed);
        let size = Size { namespaces: 3, pods: 20, policies: 12 };
        let world = World::random(&mut rng, size);
        let Some(pod) = isolated_pod(&world) else { continue };
        subject.begin(make(), world, pod.clone());
        let about = |step: &str| format!("{table}, seed {seed}, {step}");
        let mut check = |subject: &mut Subject, rng: &mut Rng, step: &str| {
            let remotes = subject.world.remotes(rng);
            let probes = subject.world.probes(rng, &remotes, PROBES);
            let seen = subject.check(&probes, &about(step));
            add(if subject.is_exact() { &mut after } else { &mut while_full }, seen);
        };
        check(&mut subject, &mut rng, "at first");
        n_full += u64::from(!subject.is_exact());
        for _ in 0..6 {
            let mut next = subject.world.clone();
            let event = next.step(&mut rng);
            // The pod under test stays what it is.
            if matches!(&event, Event::Pod(p) | Event::PodGone(p) if p.metadata.name == pod.metadata.name)
            {
                continue;
            }
            subject.happen(&event);
            check(&mut subject, &mut rng, "after an event");
        }
        for policy in subject.world.policies.clone().into_values() {
            subject.happen(&Event::PolicyGone(policy));
            subject.housekeeping();
            check(&mut subject, &mut rng, "with fewer policies");
        }
        assert!(subject.is_exact(), "{:?}", subject.overflows());
        if n_full >= CASES {
            break;
        }
    }
    println!("{table}: while full {while_full:?}, with room {after:?}");
    // It was worth something: things were closed, but not simply all of them.
    assert!(while_full.closed > 20 && while_full.allowed > 20, "{while_full:?}");
    assert!(after.closed == 0 && after.allowed > 20 && after.denied > 20, "{after:?}");
}

fn isolated_pod(world: &World) -> Option<k8s_openapi::api::core::v1::Pod> {
    let reference = world.reference();
    let is_fit = |pod: &&k8s_openapi::api::core::v1::Pod| {
        let model = convert::pod(pod).0;
        model.is_networked()
            && !model.addresses.is_empty()
            && Direction::BOTH.iter().any(|&direction| reference.isolated(direction, pod))
    };
    world.pods.values().find(is_fit).cloned()
}

#[test]
fn random_clusters_that_do_not_fit_are_closed_and_then_exact_again() {
    let all = Limits::default();
    in_node(|| {
        try_clusters("addresses", Limits { addresses: 3, ..all }, Compiler::new);
        try_clusters("blocks", Limits { blocks: 3, ..all }, Compiler::new);
        try_clusters("rows", Limits { rows: 4, ..all }, Compiler::new);
        try_clusters("intervals", Limits { intervals: 4, ..all }, Compiler::new);
        try_clusters("classes", all, || Compiler::with_limits(u16::MAX, 6));
        try_clusters("policy sets", all, || Compiler::with_limits(2, 1000));
        let few = Limits { addresses: 5, blocks: 5, rows: 9, intervals: 9, ..all };
        try_clusters("all", few, || Compiler::with_limits(3, 9));
    });
}
