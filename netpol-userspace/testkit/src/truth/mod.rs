//! A random cluster that changes edit by edit, compiled for a few local endpoints, and what the
//! reference evaluator says about it before and after each edit. It must never ask the compiler
//! or the datapath what a verdict should be.

pub mod questions;

use std::net::IpAddr;

use crate::generate::Rng;
use crate::generate::service_world::{ServiceEvent, ServiceWorld};
use crate::generate::world::{Event, Probe, Size, World};
use k8s_openapi::api::core::v1::Pod;
use netpol_compile::{Compiler, EndpointId, Plan};
use netpol_model::{Direction, ObjectName};
use netpol_reference::Reference;
use netpol_reference::services::Services;
use netpol_source::convert;

use crate::rig::changes::{all, all_services, change, is_networked, service_change};

/// Services that there are at most.
const SERVICES: usize = 6;

/// A local endpoint: a pod of the cluster behind an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Local {
    pub id: EndpointId,
    pub place: usize,
    pub pod: String,
}

/// One edit, as the agent would hear of it.
#[derive(Debug, Clone)]
pub enum Edit {
    Object(Box<Event>),
    Service(Box<ServiceEvent>),
    /// The pod at a place gives way to another.
    Replace(usize, String),
}

/// The cluster and the compiler that follows it.
pub struct Cluster {
    pub world: World,
    pub services: ServiceWorld,
    pub compiler: Compiler,
    pub locals: Vec<Local>,
    next_id: u16,
}

/// What the evaluator knows of one state.
pub struct Truth {
    world: World,
    reference: Reference,
    services: Services,
}

impl Truth {
    /// Whether a packet that opens a flow in this direction passes. `None`: that depends on the
    /// backend that a Service's proxy chooses, or it has none, or it is the pod itself.
    pub fn allows(&self, pod: &str, direction: Direction, probe: &Probe) -> Option<bool> {
        let Probe { remote, protocol, port } = *probe;
        let pod = &self.world.pods[pod];
        let backends = match direction {
            Direction::Egress if self.reference.is_judged(direction, pod) => {
                self.services.backends(remote, protocol, port)
            }
            _ => None,
        };
        let Some(backends) = backends else {
            return Some(self.reference.allows(direction, pod, remote, protocol, port));
        };
        let own = convert::pod(pod).0.addresses;
        let allows = |&&(address, port): &&(IpAddr, u16)| {
            self.reference.allows_backend(pod, address, protocol, port)
        };
        match backends.iter().filter(allows).count() {
            _ if backends.is_empty() => None,
            0 => Some(false),
            _ if backends.iter().any(|(address, _)| own.contains(address)) => None,
            n if n == backends.len() => Some(true),
            _ => None,
        }
    }

    /// Whether the pod has programs in its way at all.
    pub fn is_isolated(&self, pod: &str) -> bool {
        let pod = &self.world.pods[pod];
        Direction::BOTH.iter().any(|&direction| self.reference.is_judged(direction, pod))
    }

    pub fn addresses(&self, pod: &str) -> Vec<IpAddr> {
        convert::pod(&self.world.pods[pod]).0.addresses.to_vec()
    }
}

impl Cluster {
    /// A random one with `n_locals` endpoints at places 0, 1, ...
    pub fn random(rng: &mut Rng, size: Size, n_locals: usize) -> Self {
        let world = World::random(rng, size);
        let mut services = ServiceWorld::default();
        let pods = pod_addresses(&world);
        for _ in 0..4 * SERVICES {
            services.step(rng, SERVICES, &pods);
        }
        let names = world.pods.iter().filter(|(_, pod)| is_networked(pod)).map(|(name, _)| name);
        let locals: Vec<Local> = (1..)
            .zip(names.take(n_locals))
            .map(|(number, pod)| Local {
                id: EndpointId(number),
                place: usize::from(number) - 1,
                pod: pod.clone(),
            })
            .collect();
        let mut compiler = Compiler::new();
        compiler.apply_all(all(&world));
        compiler.apply_all(all_services(&services));
        let next_id = 1 + locals.len() as u16;
        let mut cluster = Self { world, services, compiler, locals, next_id };
        let endpoints: Vec<_> =
            cluster.locals.iter().map(|local| (local.id, cluster.name(&local.pod))).collect();
        cluster.compiler.set_endpoints(endpoints);
        cluster
    }

    pub fn name(&self, pod: &str) -> ObjectName {
        convert::object_name(&self.world.pods[pod].metadata)
    }

    pub fn truth(&self) -> Truth {
        Truth {
            world: self.world.clone(),
            reference: self.world.reference(),
            services: self.services.reference(&self.world),
        }
    }

    /// Something happens to the objects. The compiler is not told yet.
    pub fn step(&mut self, rng: &mut Rng) -> Edit {
        match rng.below(100) {
            0..3 => {
                if let Some(edit) = self.replacement(rng) {
                    return edit;
                }
            }
            3..25 => {
                let pods = pod_addresses(&self.world);
                return Edit::Service(Box::new(self.services.step(rng, SERVICES, &pods)));
            }
            _ => {}
        }
        let event = loop {
            let event = self.world.clone().step(rng);
            if let Some(event) = self.admissible(event) {
                break event;
            }
        };
        self.world.apply(&event);
        Edit::Object(Box::new(event))
    }

    /// An endpoint's addresses are those of its interface, and it ends with that: what happens to
    /// its pod leaves these alone. (That it gives way to another pod is an edit of its own.)
    fn admissible(&self, event: Event) -> Option<Event> {
        let is_local = |pod: &Pod| {
            self.locals.iter().any(|local| pod.metadata.name.as_deref() == Some(&local.pod))
        };
        match event {
            Event::PodGone(pod) if is_local(&pod) => None,
            Event::Pod(mut pod) if is_local(&pod) => {
                let old = &self.world.pods[pod.metadata.name.as_deref().unwrap()];
                pod.status.clone_from(&old.status);
                pod.spec.as_mut().unwrap().host_network = None;
                Some(Event::Pod(pod))
            }
            event => Some(event),
        }
    }

    fn replacement(&mut self, rng: &mut Rng) -> Option<Edit> {
        let is_local = |name: &String| self.locals.iter().any(|local| local.pod == *name);
        let others: Vec<&String> = self
            .world
            .pods
            .iter()
            .filter(|(name, pod)| is_networked(pod) && !is_local(name))
            .map(|(name, _)| name)
            .collect();
        let pod = (!others.is_empty()).then(|| (*rng.pick(&others)).clone())?;
        let index = rng.below(self.locals.len());
        // Numbers are used again much later only.
        self.next_id = self.next_id % 1000 + 1;
        let local = &mut self.locals[index];
        (local.id, local.pod) = (EndpointId(self.next_id), pod.clone());
        Some(Edit::Replace(local.place, pod))
    }

    /// The plan of an edit of objects.
    pub fn plan(&mut self, edit: &Edit) -> Plan {
        match edit {
            Edit::Object(event) => self.compiler.apply(change(event)),
            Edit::Service(event) => self.compiler.apply(service_change(event)),
            Edit::Replace(..) => Plan::new(),
        }
    }
}

fn pod_addresses(world: &World) -> Vec<IpAddr> {
    world.pods.values().flat_map(|pod| convert::pod(pod).0.addresses).collect()
}
