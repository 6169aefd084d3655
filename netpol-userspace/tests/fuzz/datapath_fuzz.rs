//! The loaded programs against the reference evaluator: random clusters are compiled into real
//! maps and changed event by event under random traffic, and every frame must come to what a
//! plain specification on top of the slow evaluator says.
//!
//! `NETPOL_SEED` repeats a run that failed, `NETPOL_CASES` sets how many clusters are tried
//! (`cargo xtask test fuzz --cases N --seed S`). A failure is printed as small as it could be
//! made.

use std::net::IpAddr;

use netpol_model::Direction;
use netpol_source::{convert, parse};
use netpol_testkit::cluster_fuzz::node::{ENDPOINTS, Lie, NO_LIE, Node, make_interfaces};
use netpol_testkit::cluster_fuzz::script::{Action, Difference, Script, Sending};
use netpol_testkit::cluster_fuzz::shrink::shrink;
use netpol_testkit::cluster_fuzz::traffic::{Surroundings, Traffic};
use netpol_testkit::generate::Rng;
use netpol_testkit::generate::service_world::{PROXY, ServiceWorld};
use netpol_testkit::generate::world::{Size, World};
use netpol_testkit::rig::changes::is_networked;
use netpol_testkit::rig::{first_seed, from_environment, in_node};

/// Clusters that CI tries.
const CASES: u64 = 16;
/// Clusters between two loads of the programs: keeps their tables far from full.
const CASES_PER_NODE: u64 = 24;
/// Events per cluster, each followed by frames.
const EVENTS: usize = 16;
/// Frames per endpoint and direction each time.
const FRAMES: usize = 28;
/// Services of a cluster that has any.
const SERVICES: usize = 6;

/// Every other cluster has Services.
fn has_services(seed: u64) -> bool {
    seed % 4 >= 2
}

/// Every fourth cluster keeps established flows.
fn keeps(seed: u64) -> bool {
    seed % 4 == 1
}

#[test]
fn every_verdict_is_the_specifications() {
    let (seed, cases) = (first_seed(), from_environment("NETPOL_CASES").unwrap_or(CASES));
    in_node(|| {
        make_interfaces();
        let mut totals = [0, 0];
        for first in (seed..seed + cases).step_by(CASES_PER_NODE as usize) {
            let mut nodes = [false, true].map(|keeps| Node::new(keeps, NO_LIE));
            for case in first..(first + CASES_PER_NODE).min(seed + cases) {
                try_cluster(&mut nodes[usize::from(keeps(case))], case);
            }
            for node in nodes {
                totals[0] += node.n_verdicts[0];
                totals[1] += node.n_verdicts[1];
            }
        }
        let [denied, allowed] = totals;
        println!("{} verdicts, {allowed} allow, {denied} deny, 0 differences", allowed + denied);
        // The clusters are worth something: both verdicts are common. (In few of them chance may
        // have it otherwise.)
        assert!(cases < CASES || denied.min(allowed) * 20 > denied + allowed);
    });
}

/// Panics with a small script if anything differs.
fn try_cluster(node: &mut Node, seed: u64) {
    if let Some(script) = find_difference(node, seed, size(seed)) {
        panic!("{}", report(node, seed, &script));
    }
}

/// Two of five clusters have ClusterNetworkPolicies.
fn size(seed: u64) -> Size {
    let size = match seed % 3 {
        0 => Size::new(8, 60, 30),
        1 => Size::new(2, 10, 5),
        _ => Size::new(3, 20, 12),
    };
    let size = size.with_nodes();
    if seed % 5 < 2 { size.with_tiers(6) } else { size }
}

/// What a person needs to understand and repeat it.
fn report(node: &mut Node, seed: u64, script: &Script) -> String {
    let repeat = format!("Repeat it by: cargo xtask test fuzz --seed {seed} --cases 1\n");
    let Some((small, difference)) = shrink(script, &mut |script| node.run(script)) else {
        return format!("{repeat}A difference that running the same script again does not show.");
    };
    format!("{repeat}{}", small.describe(&difference, keeps(seed)))
}

/// Makes up a cluster, events and frames; the script of what was done up to a difference.
fn find_difference(node: &mut Node, seed: u64, size: Size) -> Option<Script> {
    let mut rng = Rng::new(seed);
    let world = World::random(&mut rng, size);
    let networked = world.pods.iter().filter(|(_, pod)| is_networked(pod));
    let local = networked.map(|(name, _)| name.clone()).take(ENDPOINTS).collect();
    let mut services = ServiceWorld::default();
    if has_services(seed) {
        let pods = addresses(&world);
        services.proxy = (seed % 8 == 6).then(|| PROXY.to_owned());
        for _ in 0..4 * SERVICES {
            services.step(&mut rng, SERVICES, &pods);
        }
    }
    let mut script = Script { world, services, local, actions: Vec::new() };
    node.start(&script);
    let mut traffic = Traffic::new();
    for _ in 0..=EVENTS {
        if probe(node, &mut script, &mut rng, &mut traffic).is_some() {
            return Some(script);
        }
        let event = event(node, &mut rng, &script.local, has_services(seed));
        node.act(&event);
        script.actions.push(event);
    }
    None
}

/// Something happens in the cluster.
fn event(node: &Node, rng: &mut Rng, local: &[String], may_be_service: bool) -> Action {
    // Addresses that come and go among the pods of this node, in any order.
    let local: Vec<&String> =
        local.iter().filter(|name| node.world().pods.contains_key(*name)).collect();
    if !local.is_empty() && rng.chance(20) {
        let name = *rng.pick(&local);
        return Action::Event(Box::new(node.world().hand_over(rng, name, &local)));
    }
    if may_be_service && rng.chance(40) {
        let pods = addresses(node.world());
        return Action::Service(Box::new(node.services().clone().step(rng, SERVICES, &pods)));
    }
    Action::Event(Box::new(node.world().clone().step(rng)))
}

fn addresses(world: &World) -> Vec<IpAddr> {
    let of_pods = world.pods.values().filter(|pod| is_networked(pod));
    of_pods.flat_map(|pod| convert::pod(pod).0.addresses).collect()
}

/// Frames of every local pod that programs are in the way of.
fn probe(
    node: &mut Node,
    script: &mut Script,
    rng: &mut Rng,
    traffic: &mut Traffic,
) -> Option<Difference> {
    let world = node.world().clone();
    let services = node.services().clone();
    let remotes = world.remotes(rng);
    let surroundings = Surroundings { world: &world, services: &services, remotes: &remotes };
    for name in script.local.clone() {
        let Some((_, own)) = node.isolated(&name) else { continue };
        let mut own: Vec<IpAddr> = own.iter().copied().collect();
        own.sort_unstable();
        for direction in Direction::BOTH {
            for _ in 0..FRAMES {
                let made = traffic.frame(rng, &name, &own, direction, &surroundings);
                let sending = Sending {
                    pod: name.clone(),
                    direction,
                    is_from_node: made.is_from_node,
                    frame: made.frame,
                    choice: rng.below(1000),
                };
                let action = Action::Send(sending);
                script.actions.push(action.clone());
                if let Some(difference) = node.act(&action) {
                    return Some(difference);
                }
            }
        }
    }
    None
}

/// An evaluator that knows nothing of excepts.
fn without_excepts(world: &mut World) {
    for policy in world.policies.values_mut() {
        let Some(spec) = &mut policy.spec else { continue };
        let from = spec.ingress.iter_mut().flatten().flat_map(|rule| rule.from.iter_mut());
        let to = spec.egress.iter_mut().flatten().flat_map(|rule| rule.to.iter_mut());
        for peer in from.chain(to).flatten() {
            if let Some(block) = &mut peer.ip_block {
                block.except = None;
            }
        }
    }
}

/// A cluster in which a lie is found out.
const LYING: Size = Size::new(2, 10, 6);

/// The first difference of this seed or a later one, as small as it gets.
fn find_small(node: &mut Node, first: u64) -> (u64, Script, Difference) {
    let found =
        (first..first + 100).find_map(|seed| Some((seed, find_difference(node, seed, LYING)?)));
    let (seed, script) = found.expect("a lie that is found out");
    let (small, difference) = shrink(&script, &mut |script| node.run(script)).unwrap();
    println!("{}", small.describe(&difference, false));
    (seed, small, difference)
}

#[test]
fn a_wrong_verdict_is_reported_small() {
    in_node(|| {
        make_interfaces();
        let lie = Lie { about_cluster: without_excepts, ..NO_LIE };
        let mut node = Node::new(false, lie);
        let (seed, small, difference) = find_small(&mut node, 0);
        let text = small.describe(&difference, false);
        assert!(!difference.passed, "the liar allows more");
        assert_eq!(small.actions.len(), 1, "one frame shows it: {text}");
        assert_eq!(small.world.policies.len(), 1, "{text}");
        assert!(small.world.pods.len() <= 2 && small.world.namespaces.is_empty(), "{text}");
        assert!(text.contains("except"), "{text}");
        assert!(text.len() < 1_500, "{} bytes: {text}", text.len());
        // What is printed can be used.
        let contents = parse::file("case.yaml", &small.manifests(), parse::Originals::Dropped);
        assert!(contents.malformed.is_none(), "{:?}", contents.malformed);
        for entry in &contents.entries {
            assert!(entry.object.is_some() && entry.problems.is_empty(), "{entry:?}");
        }
        assert_eq!(contents.entries.len(), small.world.pods.len() + 1);
        // Once more from the start: the same.
        let (_, again, difference) = find_small(&mut node, seed);
        assert_eq!(again.describe(&difference, false), text);
    });
}

#[test]
fn a_wrong_reaction_to_a_change_is_reported_small() {
    in_node(|| {
        make_interfaces();
        let lie = Lie { about_keeping: true, ..NO_LIE };
        let (_, small, difference) = find_small(&mut Node::new(false, lie), 0);
        let text = small.describe(&difference, false);
        assert!(!difference.passed, "the liar says that flows are kept");
        let [Action::Send(_), Action::Event(_), Action::Send(_)] = &small.actions[..] else {
            panic!("a flow is opened, something changes, and it goes on: {text}");
        };
        assert!(small.world.policies.len() <= 2 && small.world.pods.len() <= 2, "{text}");
        assert!(text.len() < 3_000, "{} bytes: {text}", text.len());
    });
}
