//! One pod of a cluster behind the loaded programs: events go through the compiler into real maps,
//! and every verdict is compared with the reference evaluator's.

use std::net::IpAddr;

use crate::generate::world::{Event, Probe, World};
use k8s_openapi::api::core::v1::Pod;
use netpol_compile::{Compiler, Tables};
use netpol_datapath::run::Place;
use netpol_datapath::{AttachMode, LoadOptions};
use netpol_model::Direction;
use netpol_observe::frames::{Transport, frame, packet};
use netpol_reference::Reference;
use netpol_source::convert;

use super::changes::{all, change};
use super::{ID, Rig};

/// The first client port: above those that policies name.
const FIRST_PORT: u16 = 20_000;

/// What verdicts were seen.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    pub allowed: u64,
    pub denied: u64,
    /// Denied although policies allow it.
    pub closed: u64,
}

/// The pod, its cluster and its datapath.
pub struct Subject {
    pub rig: Rig,
    pub compiler: Compiler,
    pub world: World,
    pub pod: Pod,
    next_port: u16,
}

impl Subject {
    /// Nothing yet but the maps.
    pub fn new(options: &LoadOptions) -> Self {
        Self {
            rig: Rig::with(options, AttachMode::Auto),
            compiler: Compiler::new(),
            world: World::default(),
            pod: Pod::default(),
            next_port: FIRST_PORT,
        }
    }

    /// Starts anew with this cluster, of which `pod` is here.
    pub fn begin(&mut self, compiler: Compiler, world: World, pod: Pod) {
        let ifindex = self.rig.ifindex;
        let datapath = &mut self.rig.datapath;
        datapath.remove_endpoint(ID).unwrap();
        assert!(datapath.reconcile(&Tables::default()).unwrap().is_empty());
        datapath.collect_garbage().unwrap();
        let addresses = convert::pod(&pod).0.addresses;
        datapath.add_endpoint(ID, ifindex, addresses).unwrap();
        self.compiler = compiler;
        self.compiler.apply_all(all(&world));
        self.compiler.set_endpoint(ID, convert::object_name(&pod.metadata));
        let failures = datapath.reconcile(&self.compiler.tables()).unwrap();
        assert!(failures.is_empty(), "{failures:?}");
        (self.world, self.pod, self.next_port) = (world, pod, FIRST_PORT);
    }

    /// One event, put in force.
    pub fn happen(&mut self, event: &Event) {
        self.world.apply(event);
        let plan = self.compiler.apply(change(event));
        self.rig.apply(&plan);
    }

    /// What the agent does from time to time.
    pub fn housekeeping(&mut self) {
        self.rig.datapath.collect_garbage().unwrap();
        self.rig.datapath.retry().unwrap();
        let plan = self.compiler.reuse_numbers();
        self.rig.apply(&plan);
    }

    /// The tables that something did not fit into.
    pub fn overflows(&self) -> Vec<&'static str> {
        let tables = self.rig.datapath.tables();
        tables.iter().filter(|table| table.overflow.is_some()).map(|table| table.table).collect()
    }

    /// Whether everything fits.
    pub fn is_exact(&self) -> bool {
        let size = self.compiler.size();
        self.overflows().is_empty() && size.closed_endpoints == 0 && size.closed_blocks == 0
    }

    /// Whether any policy applies to the pod: else no program is in its way.
    pub fn is_isolated(&self) -> bool {
        let reference = self.world.reference();
        Direction::BOTH.iter().any(|&direction| reference.is_judged(direction, &self.pod))
    }

    /// Asks about these packets. Where not everything fits, what is allowed may be denied; nothing
    /// that is denied may ever pass.
    pub fn check(&mut self, probes: &[Probe], about: &str) -> Seen {
        let mut seen = Seen::default();
        if !self.is_isolated() {
            return seen;
        }
        let (is_exact, reference) = (self.is_exact(), self.world.reference());
        for probe in probes {
            for direction in Direction::BOTH {
                self.ask(&reference, direction, probe, is_exact, about, &mut seen);
            }
        }
        seen
    }

    fn ask(
        &mut self,
        reference: &Reference,
        direction: Direction,
        probe: &Probe,
        is_exact: bool,
        about: &str,
        seen: &mut Seen,
    ) {
        let Some(observed) = self.passes(direction, probe) else { return };
        let Probe { remote, protocol, port } = *probe;
        let expected = reference.allows(direction, &self.pod, remote, protocol, port);
        assert!(
            observed == expected || (!observed && !is_exact),
            "{about}: {direction} {probe:?}: the program says {observed}, the reference \
             {expected}; {:?}",
            self.overflows()
        );
        match (observed, expected) {
            (true, _) => seen.allowed += 1,
            (false, false) => seen.denied += 1,
            (false, true) => seen.closed += 1,
        }
    }

    /// Whether the first packet of such a flow passes; `None` if the pod cannot have one.
    pub fn passes(&mut self, direction: Direction, probe: &Probe) -> Option<bool> {
        let remote = probe.remote;
        let addresses = convert::pod(&self.pod).0.addresses;
        let own = addresses.into_iter().find(|address| address.is_ipv6() == remote.is_ipv6())?;
        self.next_port = self.next_port.checked_add(1).expect("a client port is left");
        let (source, destination) = (self.next_port, probe.port);
        let transport = match probe.protocol {
            6 => Transport::Tcp { source, destination, flags: netpol_common::packet::SYN },
            17 => Transport::Udp { source, destination },
            132 => Transport::Sctp { source, destination, chunk: 1 },
            _ => return None,
        };
        let ends = match direction {
            Direction::Ingress => (remote, own),
            Direction::Egress => (own, remote),
        };
        let place = Place { ifindex: self.rig.ifindex, ingress_ifindex: self.rig.other_ifindex };
        let bytes = frame(&packet(ends.0, ends.1, &transport));
        Some(self.rig.passes_at(direction, &bytes, place))
    }
}

/// A question about TCP.
pub fn tcp(remote: &str, port: u16) -> Probe {
    Probe { remote: remote.parse::<IpAddr>().unwrap(), protocol: 6, port }
}
