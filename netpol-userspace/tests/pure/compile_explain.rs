//! The policies that are named for an allowed connection, against the reference evaluator with
//! each policy on its own. Must never look at how the compiler finds them.

use std::collections::BTreeSet;

use netpol_compile::{Compiler, EndpointId, Opening};
use netpol_model::{Change, Direction};
use netpol_source::convert;
use netpol_testkit::generate::Rng;
use netpol_testkit::generate::world::{Probe, Size, World};

/// The whole world, and an endpoint for every pod, numbered as they are sorted.
fn compile(world: &World) -> Compiler {
    let mut compiler = Compiler::new();
    let namespaces = world.namespaces.values().map(|o| Change::Namespace(convert::namespace(o)));
    let pods = world.pods.values().map(|object| Change::Pod(convert::pod(object).0));
    let policies = world.policies.values().map(|object| {
        Change::Policy(convert::policy(object).expect("the generator makes valid policies"))
    });
    compiler.apply_all(namespaces.chain(pods).chain(policies));
    let pods = world.pods.values().map(|pod| convert::object_name(&pod.metadata));
    compiler.set_endpoints((1..).map(EndpointId).zip(pods));
    compiler
}

#[test]
fn exactly_the_policies_that_allow_a_connection_by_themselves_are_named() {
    let (mut n_named, mut n_several, mut n_denied) = (0, 0, 0);
    for seed in 5_000..5_030 {
        let mut rng = Rng::new(seed);
        let world = World::random(&mut rng, Size::new(2, 12, 8));
        let compiler = compile(&world);
        let tables = compiler.tables();
        let alone: Vec<_> = world
            .policies
            .iter()
            .map(|(key, policy)| {
                let mut world = world.clone();
                world.policies.retain(|other, _| other == key);
                (convert::object_name(&policy.metadata), world.reference())
            })
            .collect();
        let remotes = world.remotes(&mut rng);
        for (id, pod) in (1..).map(EndpointId).zip(world.pods.values()) {
            let own = convert::pod(pod).0.addresses;
            for probe in world.probes(&mut rng, &remotes, 60) {
                let Probe { remote, protocol, port } = probe;
                if own.contains(&remote) {
                    continue;
                }
                for direction in Direction::BOTH {
                    let opening = Opening { direction, remote, protocol, port };
                    let named: BTreeSet<_> = compiler.allowing(id, &opening).into_iter().collect();
                    let expected: BTreeSet<_> = alone
                        .iter()
                        .filter(|(_, reference)| {
                            reference.isolated(direction, pod)
                                && reference.allows(direction, pod, remote, protocol, port)
                        })
                        .map(|(name, _)| name.clone())
                        .collect();
                    let what = || format!("seed {seed}, {:?}, {opening:?}", pod.metadata.name);
                    assert_eq!(named, expected, "{}", what());
                    let isolated = !compiler.endpoint_policies(id, direction).is_empty();
                    let allowed = tables.judge(id, direction, remote, protocol, port);
                    assert_eq!(isolated && allowed, !named.is_empty(), "{}", what());
                    n_named += usize::from(!named.is_empty());
                    n_several += usize::from(named.len() > 1);
                    n_denied += usize::from(isolated && !allowed);
                }
            }
        }
    }
    // Or the generator would prove little.
    assert!(
        n_named > 1_000 && n_several > 100 && n_denied > 1_000,
        "{n_named} {n_several} {n_denied}"
    );
}
