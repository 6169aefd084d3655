//! The loaded programs against the reference evaluator: random clusters are compiled into real
//! maps, changed event by event, and every verdict on random packets must be what the slow
//! evaluator reads out of the Kubernetes documentation.
//!
//! `NETPOL_SEED` repeats a run that failed, `NETPOL_CASES` sets how many clusters are tried
//! (`cargo xtask test fuzz --cases N --seed S`).

#![expect(clippy::unwrap_used, reason = "tests")]

mod common;

use std::net::IpAddr;

use common::{Cleanup, ifindex, in_node, ip, unique_bpffs};
use k8s_openapi::api::core::v1::Pod;
use netpol_userspace::compile::{Compiler, EndpointId, Tables};
use netpol_userspace::datapath::run::{Place, run};
use netpol_userspace::datapath::{AttachMode, Datapath, LoadOptions, Pins};
use netpol_userspace::frames::{Transport, frame, packet};
use netpol_userspace::model::{Change, Direction, ObjectName};
use netpol_userspace::reference::Reference;
use netpol_userspace::reference::generate::Rng;
use netpol_userspace::reference::world::{Event, Probe, Size, World};
use netpol_userspace::source::convert;

/// Clusters that CI tries.
const CASES: u64 = 60;
/// Local endpoints per cluster, as many as there are interfaces.
const ENDPOINTS: usize = 8;
/// Events per cluster, each followed by probes.
const EVENTS: usize = 6;
/// Probes per endpoint and direction each time.
const PROBES: usize = 12;

/// The node under test.
struct Node {
    datapath: Datapath,
    ifindexes: Vec<u32>,
    other_ifindex: u32,
    /// A client port or ICMP id that no packet had before, as long as 16 bits last.
    next_port: u16,
    n_verdicts: [u64; 2],
    compiler: Compiler,
}

#[test]
fn every_verdict_is_the_reference_evaluators() {
    let from_environment =
        |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let seed = from_environment("NETPOL_SEED").unwrap_or(1);
    let cases = from_environment("NETPOL_CASES").unwrap_or(CASES);
    in_node(|| {
        let mut ifindexes = Vec::new();
        for index in 0..ENDPOINTS {
            ip(&format!("link add e{index} type veth peer name f{index}"));
            ifindexes.push(ifindex(&format!("e{index}")));
        }
        let pins = Pins::new(unique_bpffs());
        let _cleanup = Cleanup(pins.clone());
        let datapath = Datapath::open(&pins, &LoadOptions::default(), AttachMode::Auto).unwrap();
        let other_ifindex = ifindex("other0");
        let mut node = Node {
            datapath,
            ifindexes,
            other_ifindex,
            next_port: 1,
            n_verdicts: [0; 2],
            compiler: Compiler::new(),
        };
        for case in seed..seed + cases {
            node.try_cluster(case);
        }
        let [denied, allowed] = node.n_verdicts;
        println!("{} verdicts, {allowed} allow, {denied} deny, 0 differences", allowed + denied);
        // The clusters are worth something: both verdicts are common.
        assert!(denied.min(allowed) * 20 > denied + allowed);
    });
}

impl Node {
    /// Compiles a random cluster from scratch, then follows its events.
    fn try_cluster(&mut self, seed: u64) {
        let mut rng = Rng::new(seed);
        let size = if seed.is_multiple_of(3) {
            Size::default()
        } else {
            Size { namespaces: 3, pods: 20, policies: 12 }
        };
        let mut world = World::random(&mut rng, size);
        self.compiler = Compiler::new();
        self.compiler.apply_all(all(&world));
        let local: Vec<(EndpointId, ObjectName)> = world
            .pods
            .iter()
            .filter(|(_, pod)| is_networked(pod))
            .map(|(_, pod)| convert::object_name(&pod.metadata))
            .take(ENDPOINTS)
            .enumerate()
            .map(|(index, name)| (EndpointId(index as u16 + 1), name))
            .collect();
        // Another compiler gives the same numbers to other contents: nothing of the last one may
        // be left.
        for index in 0..ENDPOINTS {
            self.datapath.remove_endpoint(EndpointId(index as u16 + 1)).unwrap();
        }
        assert!(self.datapath.reconcile(&Tables::default()).unwrap().is_empty());
        self.datapath.collect_garbage().unwrap();
        for (index, &ifindex) in self.ifindexes.iter().enumerate() {
            let id = EndpointId(index as u16 + 1);
            let pod = local.iter().find(|(other, _)| *other == id).map(|(_, name)| name);
            if let Some(pod) = pod {
                let addresses = convert::pod(&world.pods[&*pod.name]).0.addresses;
                self.datapath.add_endpoint(id, ifindex, addresses).unwrap();
                self.compiler
                    .set_endpoint(id, convert::object_name(&world.pods[&*pod.name].metadata));
            }
        }
        let failures = self.datapath.reconcile(&self.compiler.tables()).unwrap();
        assert!(failures.is_empty(), "{failures:?}");
        self.probe(seed, &mut rng, &world, &local);
        for _ in 0..EVENTS {
            let event = world.step(&mut rng);
            let plan = self.compiler.apply(change(&event));
            let failures = self.datapath.apply(&plan);
            assert!(failures.is_empty(), "{failures:?}");
            self.probe(seed, &mut rng, &world, &local);
        }
    }

    /// Asks about random packets of every endpoint whose pod is still there as it was.
    fn probe(
        &mut self,
        seed: u64,
        rng: &mut Rng,
        world: &World,
        local: &[(EndpointId, ObjectName)],
    ) {
        let reference = world.reference();
        let remotes = world.remotes(rng);
        for (id, name) in local {
            let Some(pod) = world.pods.get(&*name.name).filter(|pod| is_networked(pod)) else {
                continue;
            };
            if convert::object_name(&pod.metadata) != *name {
                // A successor of that name in another namespace.
                continue;
            }
            let addresses = convert::pod(pod).0.addresses;
            let ifindex = self.ifindexes[usize::from(id.0) - 1];
            self.datapath.add_endpoint(*id, ifindex, addresses.iter().copied()).unwrap();
            for direction in Direction::BOTH {
                let is_isolated = Direction::BOTH.iter().any(|&d| reference.isolated(d, pod));
                if !is_isolated {
                    // No program is in its way.
                    continue;
                }
                for probe in world.probes(rng, &remotes, PROBES) {
                    self.ask(seed, rng, &reference, pod, *id, &addresses, direction, &probe);
                }
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "what one question consists of")]
    fn ask(
        &mut self,
        seed: u64,
        rng: &mut Rng,
        reference: &Reference,
        pod: &Pod,
        id: EndpointId,
        addresses: &[IpAddr],
        direction: Direction,
        probe: &Probe,
    ) {
        let is_v6 = probe.remote.is_ipv6();
        let Some(&own) = addresses.iter().find(|address| address.is_ipv6() == is_v6) else {
            return;
        };
        let Some(transport) = self.transport(probe, is_v6, direction, seed) else { return };
        let (source, destination) = match direction {
            Direction::Ingress => (probe.remote, own),
            Direction::Egress => (own, probe.remote),
        };
        let mut bytes = packet(source, destination, &transport);
        if rng.below(4) == 0 {
            bytes = with_options(&bytes);
        }
        let program = match direction {
            Direction::Ingress => "netpol_ingress",
            Direction::Egress => "netpol_egress",
        };
        let place = Place {
            ifindex: self.ifindexes[usize::from(id.0) - 1],
            ingress_ifindex: self.other_ifindex,
        };
        let program = self.datapath.programs().program(program).unwrap();
        let observed = run(program, &frame(&bytes), place, 1).unwrap().is_allowed;
        let port = probe.port;
        let expected = reference.allows(direction, pod, probe.remote, probe.protocol, port);
        assert!(
            observed == expected,
            "NETPOL_SEED={seed} NETPOL_CASES=1: {direction} of pod {}/{} ({own}), remote {}, \
             protocol {} port {port}: the program says {observed}, the reference {expected}, the \
             compiler's tables {}",
            pod.metadata.namespace.as_deref().unwrap_or_default(),
            pod.metadata.name.as_deref().unwrap_or_default(),
            probe.remote,
            probe.protocol,
            self.compiler.tables().judge(id, direction, probe.remote, probe.protocol, port),
        );
        self.n_verdicts[usize::from(observed)] += 1;
    }

    /// The first packet of a flow of its own.
    fn transport(
        &mut self,
        probe: &Probe,
        is_v6: bool,
        direction: Direction,
        seed: u64,
    ) -> Option<Transport> {
        self.next_port = self.next_port.wrapping_add(1).max(1);
        let (source, destination) = (self.next_port, probe.port);
        Some(match (probe.protocol, is_v6) {
            (6, _) => Transport::Tcp { source, destination, flags: netpol_common::packet::SYN },
            (17, _) => Transport::Udp { source, destination },
            (132, _) => Transport::Sctp { source, destination, chunk: 1 },
            (1, false) | (58, true) => {
                let [high, low] = source.to_be_bytes();
                let kind = if is_v6 { 128 } else { 8 };
                Transport::Icmp { kind, code: 0, body: vec![high, low, 0, 1] }
            }
            // A flow of addresses alone: what one end opened answers the other end's packets, so
            // only one end opens any in this cluster.
            (protocol, _) => {
                let opener = if seed & 1 == 0 { Direction::Egress } else { Direction::Ingress };
                if direction != opener {
                    return None;
                }
                Transport::Raw { protocol, payload: vec![0; 16] }
            }
        })
    }
}

/// The same packet with IPv4 options or an IPv6 destination options header.
fn with_options(plain: &[u8]) -> Vec<u8> {
    let is_v6 = plain[0] >> 4 == 6;
    let header = if is_v6 { 40 } else { 20 };
    let mut bytes = plain[..header].to_vec();
    if is_v6 {
        bytes.extend([plain[6], 0, 1, 4, 0, 0, 0, 0]);
        bytes[6] = 60;
        let length = (plain.len() - 40 + 8) as u16;
        bytes[4..6].copy_from_slice(&length.to_be_bytes());
    } else {
        bytes[0] = 0x47;
        bytes.extend([1; 8]);
        let length = (plain.len() + 8) as u16;
        bytes[2..4].copy_from_slice(&length.to_be_bytes());
    }
    bytes.extend(&plain[header..]);
    bytes
}

fn is_networked(pod: &Pod) -> bool {
    let pod = convert::pod(pod).0;
    pod.is_networked() && !pod.addresses.is_empty()
}

fn all(world: &World) -> Vec<Change> {
    let namespaces = world.namespaces.values().cloned().map(Event::Namespace);
    let pods = world.pods.values().cloned().map(Event::Pod);
    let policies = world.policies.values().cloned().map(Event::Policy);
    namespaces.chain(pods).chain(policies).map(|event| change(&event)).collect()
}

fn change(event: &Event) -> Change {
    match event {
        Event::Namespace(object) => Change::Namespace(convert::namespace(object)),
        Event::NamespaceGone(object) => {
            Change::NamespaceGone(object.metadata.name.clone().unwrap_or_default().into())
        }
        Event::Pod(object) => Change::Pod(convert::pod(object).0),
        Event::PodGone(object) => Change::PodGone(convert::object_name(&object.metadata), None),
        Event::Policy(object) => Change::Policy(convert::policy(object).unwrap()),
        Event::PolicyGone(object) => Change::PolicyGone(convert::object_name(&object.metadata)),
    }
}
