//! The node under test: real maps and loaded programs, kept as an agent keeps them, beside the
//! specification. It runs scripts; it must never make any up.

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;

use crate::generate::service_world::ServiceWorld;
use crate::generate::world::World;
use aya::maps::{HashMap, Map, MapData};
use k8s_openapi::api::core::v1::Pod;
use netpol_common::layout::{FragmentKey, STAMP_MARK, names};
use netpol_compile::{Compiler, EndpointId, Plan, Tables};
use netpol_datapath::run::{Place, run, run_marked};
use netpol_datapath::{AttachMode, Datapath, LoadOptions, Pins};
use netpol_endpoint::Exit;
use netpol_model::Direction;
use netpol_reference::Reference;
use netpol_reference::services::Services;
use netpol_source::convert;

use super::model::{Model, SecondLook, View};
use super::packets::Frame;
use super::script::{Action, Difference, Look, Script, Sending};
use crate::rig::changes::{all, all_services, change, is_networked, service_change};
use crate::rig::{Cleanup, ifindex, ip, unique_bpffs};

/// Local endpoints at most, as many as there are interfaces.
pub const ENDPOINTS: usize = 8;

/// A specification that is wrong on purpose, to see that it is noticed.
#[derive(Clone, Copy)]
pub struct Lie {
    /// Changes what the reference evaluator is told of the cluster.
    pub about_cluster: fn(&mut World),
    /// Claims that flows outlive the policy that allowed them, or that they do not.
    pub about_keeping: bool,
}

pub const NO_LIE: Lie = Lie { about_cluster: |_| {}, about_keeping: false };

/// The loaded programs and everything that they are compared with.
pub struct Node {
    datapath: Datapath,
    ifindexes: Vec<u32>,
    other_ifindex: u32,
    keeps: bool,
    lie: Lie,
    compiler: Compiler,
    model: Model,
    world: World,
    service_world: ServiceWorld,
    reference: Reference,
    services: Services,
    local: BTreeMap<String, Endpoint>,
    /// Frames that passed and that did not.
    pub n_verdicts: [u64; 2],
    pins: Pins,
    _cleanup: Cleanup,
}

/// A local pod.
struct Endpoint {
    id: EndpointId,
    ifindex: u32,
    /// What is known of it while it is there.
    known: Option<Known>,
}

struct Known {
    uid: String,
    own: HashSet<IpAddr>,
}

/// Makes the interfaces that all nodes of this namespace share.
pub fn make_interfaces() {
    for index in 0..ENDPOINTS {
        ip(&format!("link add e{index} type veth peer name f{index}"));
    }
}

impl Node {
    pub fn new(keeps: bool, lie: Lie) -> Self {
        let pins = Pins::new(unique_bpffs());
        let cleanup = Cleanup(pins.clone());
        // Nothing is forgotten, however slow this machine is.
        let options =
            LoadOptions { keep_established: keeps, patience: 1_000, ..LoadOptions::default() };
        let mut datapath = Datapath::open(&pins, &options, AttachMode::Auto).unwrap();
        let ifindex_out = ifindex("other0");
        let exit = Exit { ifindex: ifindex_out, incarnation: 1, has_link_header: true };
        assert!(datapath.set_exits(&[exit]).is_empty());
        Self {
            datapath,
            ifindexes: (0..ENDPOINTS).map(|index| ifindex(&format!("e{index}"))).collect(),
            other_ifindex: ifindex_out,
            keeps,
            lie,
            compiler: Compiler::new(),
            model: Model::new(keeps != lie.about_keeping),
            world: World::default(),
            service_world: ServiceWorld::default(),
            reference: Reference::default(),
            services: Services::default(),
            local: BTreeMap::new(),
            n_verdicts: [0; 2],
            pins,
            _cleanup: cleanup,
        }
    }

    pub fn world(&self) -> &World {
        &self.world
    }

    pub fn services(&self) -> &ServiceWorld {
        &self.service_world
    }

    /// Runs a whole script; what is first found to differ.
    pub fn run(&mut self, script: &Script) -> Option<Difference> {
        self.start(script);
        let differs = |(at, action)| Some(Difference { at, ..self.act(action)? });
        script.actions.iter().enumerate().find_map(differs)
    }

    /// A node without past, in the script's cluster.
    pub fn start(&mut self, script: &Script) {
        // Another compiler gives the same numbers to other contents: nothing of the last one may
        // be left.
        for endpoint in self.local.values() {
            self.datapath.remove_endpoint(endpoint.id).unwrap();
        }
        assert!(self.datapath.reconcile(&Tables::default()).unwrap().is_empty());
        self.datapath.collect_garbage().unwrap();
        self.forget_fragments();
        let proxy = script.services.proxy.as_deref();
        self.compiler = Compiler::new().with_service_proxy(proxy);
        self.compiler.apply_all(all(&script.world));
        self.compiler.apply_all(all_services(&script.services));
        self.model = Model::new(self.keeps != self.lie.about_keeping);
        self.world = script.world.clone();
        self.service_world = script.services.clone();
        let name = |(index, name): (usize, &String)| {
            let id = EndpointId(index as u16 + 1);
            (name.clone(), Endpoint { id, ifindex: self.ifindexes[index], known: None })
        };
        self.local = script.local.iter().enumerate().map(name).collect();
        self.match_endpoints();
        let failures = self.datapath.reconcile(&self.compiler.tables()).unwrap();
        assert!(failures.is_empty(), "{failures:?}");
        self.read_world();
    }

    /// Datagrams of another cluster, or of this one when it was run before, are other datagrams.
    fn forget_fragments(&mut self) {
        let data = MapData::from_pin(self.pins.map(names::FRAGMENTS)).unwrap();
        let mut fragments: HashMap<MapData, [u8; size_of::<FragmentKey>()], u64> =
            Map::LruHashMap(data).try_into().unwrap();
        let keys: Vec<_> = fragments.keys().map(Result::unwrap).collect();
        for key in keys {
            fragments.remove(&key).unwrap();
        }
    }

    /// Does one thing; says so if it came out differently than specified.
    pub fn act(&mut self, action: &Action) -> Option<Difference> {
        match action {
            Action::Event(event) => {
                self.world.apply(event);
                let plan = self.compiler.apply(change(event));
                self.apply_plan(&plan);
                self.match_endpoints();
                self.read_world();
                None
            }
            Action::Service(event) => {
                self.service_world.apply(event);
                let plan = self.compiler.apply(service_change(event));
                self.apply_plan(&plan);
                self.read_world();
                None
            }
            Action::Send(sending) => self.send(sending),
        }
    }

    fn apply_plan(&mut self, plan: &Plan) {
        let failures = self.datapath.apply(plan);
        assert!(failures.is_empty(), "{failures:?}");
    }

    /// Endpoints follow their pods, as the agent has it: another pod under the name is another
    /// endpoint.
    fn match_endpoints(&mut self) {
        let names: Vec<String> = self.local.keys().cloned().collect();
        for name in names {
            let pod = self.world.pods.get(&name).filter(|pod| is_networked(pod)).cloned();
            let uid = pod.as_ref().map(|pod| pod.metadata.uid.clone().unwrap_or_default());
            let endpoint = self.local.get_mut(&name).unwrap();
            let (id, ifindex) = (endpoint.id, endpoint.ifindex);
            let known_uid = endpoint.known.as_ref().map(|known| known.uid.clone());
            if known_uid.is_some() && known_uid != uid {
                endpoint.known = None;
                self.datapath.remove_endpoint(id).unwrap();
                let plan = self.compiler.remove_endpoint(id);
                self.apply_plan(&plan);
                self.model.forget_flows(&name);
            }
            let Some((pod, uid)) = pod.zip(uid) else { continue };
            let own: HashSet<IpAddr> = convert::pod(&pod).0.addresses.into_iter().collect();
            self.datapath.add_endpoint(id, ifindex, own.iter().copied()).unwrap();
            let endpoint = self.local.get_mut(&name).unwrap();
            let is_new = endpoint.known.is_none();
            endpoint.known = Some(Known { uid, own });
            if is_new {
                let plan = self.compiler.set_endpoint(id, convert::object_name(&pod.metadata));
                self.apply_plan(&plan);
            }
        }
    }

    /// The specification's view of the cluster as it is now.
    fn read_world(&mut self) {
        let mut told = self.world.clone();
        (self.lie.about_cluster)(&mut told);
        self.reference = told.reference();
        self.services = self.service_world.reference(&self.world);
        // Programs are attached only while a policy applies: flows that are not seen are not
        // known. (The pod's own sockets would tell, of a real one.)
        let free: Vec<String> =
            self.local.keys().filter(|name| self.isolated(name).is_none()).cloned().collect();
        for name in free {
            self.model.forget_flows(&name);
        }
    }

    /// The pod and its addresses, if programs are in its way.
    pub fn isolated(&self, name: &str) -> Option<(&Pod, &HashSet<IpAddr>)> {
        let known = self.local.get(name)?.known.as_ref()?;
        let pod = self.world.pods.get(name)?;
        let reference = &self.reference;
        let is_isolated = Direction::BOTH.iter().any(|&d| reference.is_judged(d, pod));
        is_isolated.then_some((pod, &known.own))
    }

    fn send(&mut self, sending: &Sending) -> Option<Difference> {
        let Sending { pod: name, direction, is_from_node, frame, choice } = sending;
        let (pod, own) = self.isolated(name)?;
        let (pod, own) = (pod.clone(), own.clone());
        // What programs are run takes all of this node.
        let (reference, services) = (self.reference.clone(), self.services.clone());
        let (reference, services) = (&reference, &services);
        let view = View { reference, services, pod: &pod, own: &own };
        let expected = self.model.passes(&view, name, *direction, *is_from_node, frame);
        let (passed, mark) = self.look(name, *direction, *is_from_node, &frame.bytes());
        let differs =
            |passed, look| Some(Difference { at: 0, sending: sending.clone(), passed, look });
        if passed != expected {
            return differs(passed, Look::First);
        }
        let (true, Direction::Egress, Frame::Ip(packet)) = (passed, direction, frame) else {
            return None;
        };
        let is_stamped = mark & STAMP_MARK != 0;
        if self.model.is_stamped(&view, name, packet)? != is_stamped {
            return differs(passed, Look::Stamp { is_stamped });
        }
        if !is_stamped {
            return None;
        }
        if self.is_shared(name, packet.source) {
            let passed = self.passes_again(name, &frame.bytes());
            let look = Look::Second(Box::new(packet.clone()));
            return if passed { differs(passed, look) } else { None };
        }
        // Now and then nobody translates it.
        if choice % 6 == 0 {
            let passes = self.model.untranslated_look(&view, name, packet);
            let passed = self.passes_again(name, &frame.bytes());
            let look = Look::Second(Box::new(packet.clone()));
            return if passed == passes { None } else { differs(passed, look) };
        }
        let SecondLook { translated, passes } =
            self.model.second_look(&view, name, packet, *choice)?;
        let passed = self.passes_again(name, &Frame::Ip(translated.clone()).bytes());
        if passed == passes { None } else { differs(passed, Look::Second(Box::new(translated))) }
    }

    /// Whether another pod of this node that stamps packets claims the address. The programs know
    /// who sent a packet by other means, which cannot be tried here; without these nobody can tell
    /// who did, and nothing passes.
    fn is_shared(&self, name: &str, address: IpAddr) -> bool {
        let others = self.local.keys().filter(|other| *other != name);
        let mut isolated = others.filter_map(|other| self.isolated(other));
        isolated.any(|(_, own)| own.contains(&address))
    }

    /// Whether a stamped frame passes where it leaves the node.
    fn passes_again(&mut self, pod: &str, frame: &[u8]) -> bool {
        let ifindex = self.local[pod].ifindex;
        let program = self.datapath.programs().when_needed("netpol_transit").unwrap();
        let place = Place { ifindex: self.other_ifindex, ingress_ifindex: ifindex };
        let passed = run_marked(program, frame, place, STAMP_MARK, 1).unwrap().is_allowed;
        self.n_verdicts[usize::from(passed)] += 1;
        passed
    }

    /// What the loaded program says of a frame, which may be anything.
    pub fn passes(
        &mut self,
        pod: &str,
        direction: Direction,
        is_from_node: bool,
        frame: &[u8],
    ) -> bool {
        self.look(pod, direction, is_from_node, frame).0
    }

    /// Likewise, and the packet's mark afterwards.
    fn look(
        &mut self,
        pod: &str,
        direction: Direction,
        is_from_node: bool,
        frame: &[u8],
    ) -> (bool, u32) {
        let ifindex = self.local[pod].ifindex;
        let (program, ingress_ifindex) = match direction {
            Direction::Ingress if is_from_node => ("netpol_ingress", 0),
            Direction::Ingress => ("netpol_ingress", self.other_ifindex),
            Direction::Egress => ("netpol_egress", ifindex),
        };
        let program = self.datapath.programs().program(program).unwrap();
        let place = Place { ifindex, ingress_ifindex };
        let result = run(program, frame, place, 1).unwrap();
        self.n_verdicts[usize::from(result.is_allowed)] += 1;
        (result.is_allowed, result.mark)
    }

    pub fn reference(&self) -> &Reference {
        &self.reference
    }
}
