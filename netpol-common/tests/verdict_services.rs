//! Flows to Services through both looks, the first at the pod and the second after translation,
//! against what they are for: a packet gets where the proxy sends it exactly if the pod's policies
//! allow that place, or it is the pod itself.

#![expect(clippy::cast_possible_truncation, reason = "small or random numbers")]

mod support;

use std::collections::{BTreeSet, HashMap};

use netpol_common::flow;
use netpol_common::layout::{
    Address, BACKEND_ELSEWHERE, JUDGES_OWN, Reason, SERVICES_INCOMPLETE, TRANSIT_READY, backend,
    backend_endpoint,
};
use netpol_common::packet::{ACK, ICMP, Kind, Packet, SYN, TCP, UDP, set_tcp_flags};
use netpol_common::verdict::{Arrival, Endpoint, Verdict};
use support::{AtomicTable, Random, TIMEOUTS, World, v4, v6};

const ID: u16 = 7;
const SET: u16 = 1;
/// The same, and it judges what the pod sends to itself.
const OWN_SET: u16 = SET | JUDGES_OWN;
const OWN: [u8; 4] = [10, 1, 0, 1];
const NODE: [u8; 4] = [192, 168, 0, 1];

fn tables() -> [AtomicTable; 2] {
    [AtomicTable::new(1024, flow::WORDS4), AtomicTable::new(1024, flow::WORDS6)]
}

fn own(is_v6: bool) -> Address {
    if is_v6 { v6(1, 1) } else { v4(OWN) }
}

fn pod(number: u8, is_v6: bool) -> Address {
    if is_v6 { v6(2, number) } else { v4([10, 2, 0, number]) }
}

fn vip(number: u8, is_v6: bool) -> Address {
    if is_v6 { v6(96, number) } else { v4([10, 96, 0, number]) }
}

fn packet(protocol: u8, flags: u8, local: (Address, u16), remote: (Address, u16)) -> Packet {
    let mut packet = Packet {
        local: local.0,
        remote: remote.0,
        local_port: local.1,
        remote_port: remote.1,
        protocol,
        ..Packet::default()
    };
    if protocol == TCP {
        set_tcp_flags(&mut packet, flags);
    }
    packet
}

/// A backend of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    /// Pod `number`, of this class.
    Pod(u8),
    /// The asking pod itself.
    Own,
    /// A process on this node's own network.
    Node,
}

const OWN_CLASS: u32 = 100;
const NODE_CLASS: u32 = 101;
const TARGET: u16 = 8080;

impl Place {
    fn class(self) -> u32 {
        match self {
            Self::Pod(number) => u32::from(number),
            Self::Own => OWN_CLASS,
            Self::Node => NODE_CLASS,
        }
    }

    fn address(self, is_v6: bool) -> Address {
        match self {
            Self::Pod(number) => pod(number, is_v6),
            Self::Own => own(is_v6),
            Self::Node => {
                if is_v6 {
                    v6(192, 1)
                } else {
                    v4(NODE)
                }
            }
        }
    }
}

/// A flow as the proxy knows it.
type Tuple = (bool, u8, u16, u8);

struct Run<'a> {
    random: Random,
    world: World<'a>,
    endpoint: Endpoint,
    /// Classes that the egress set allows at the target port.
    allowed: BTreeSet<u32>,
    services: HashMap<u8, Vec<Place>>,
    /// What the proxy chose, and whether it hides the pod's address.
    chosen: HashMap<Tuple, (Place, bool)>,
    n: Tally,
}

#[derive(Debug, Default)]
struct Tally {
    stamped: usize,
    cut: usize,
    own: usize,
    own_denied: usize,
    passed: usize,
}

impl<'a> Run<'a> {
    fn new(seed: u64, tables: &'a [AtomicTable; 2]) -> Self {
        let mut world = World::new(&tables[0], &tables[1]);
        world.own = [own(false), own(true)].into_iter().map(|address| (ID, address)).collect();
        for is_v6 in [false, true] {
            for place in (1..5).map(Place::Pod).chain([Place::Own, Place::Node]) {
                world.exact.insert(place.address(is_v6), place.class());
            }
        }
        let endpoint = Endpoint { id: ID, epoch: 1, born: 1, sets: [2, SET] };
        let (allowed, services, chosen) = Default::default();
        let random = Random(seed);
        let mut run =
            Self { random, world, endpoint, allowed, services, chosen, n: Tally::default() };
        run.change_policy();
        for number in 0..3 {
            run.change_service(number);
        }
        run
    }

    fn change_policy(&mut self) {
        self.allowed =
            (1..5).chain([OWN_CLASS, NODE_CLASS]).filter(|_| self.random.one_in(2)).collect();
        self.world.rows.clear();
        for class in &self.allowed {
            let ports = [vec![(TARGET, TARGET)], vec![(TARGET, TARGET)], vec![]];
            self.world.allow_ports(SET, *class, &ports);
            self.world.allow_ports(OWN_SET, *class, &ports);
        }
        self.endpoint.sets[1] = self.random.pick(&[0, SET, SET, SET, OWN_SET, OWN_SET]);
        self.endpoint.epoch += 1;
    }

    fn change_service(&mut self, number: u8) {
        let all = (1..5).map(Place::Pod).chain([Place::Own, Place::Node]);
        let places: Vec<Place> = all.filter(|_| self.random.one_in(4)).collect();
        let mut words: Vec<u64> = places
            .iter()
            .map(|place| backend(place.class(), TARGET, *place == Place::Node))
            .collect();
        // Other endpoints of this node are named, too.
        words.push(backend_endpoint(ID + 1));
        if places.contains(&Place::Own) {
            words.push(backend_endpoint(ID));
        }
        if places.is_empty() {
            words.clear();
        }
        for is_v6 in [false, true] {
            for protocol in [TCP, UDP] {
                self.world.service_of(vip(number, is_v6), protocol, 80, &words);
            }
        }
        // The proxy forgets flows to backends that are gone.
        self.chosen.retain(|tuple, (place, _)| tuple.3 != number || places.contains(place));
        self.services.insert(number, places);
        self.endpoint.epoch += 1;
    }

    fn permits(&self, place: Place) -> bool {
        self.endpoint.sets[1] == 0
            || place == Place::Own && !self.judges_own()
            || self.allowed.contains(&place.class())
    }

    fn judges_own(&self) -> bool {
        self.endpoint.sets[1] == OWN_SET
    }

    /// Whether nobody can look at what the Service's packets become.
    fn is_undecidable(&self, number: u8) -> bool {
        let places = &self.services[&number];
        places.contains(&Place::Node)
            && !self.permits(Place::Node)
            && places.iter().any(|place| self.permits(*place))
    }

    fn judge(&self, arrival: Arrival, packet: &Packet) -> Verdict {
        let verdict = self.world.judge_packet(&self.endpoint, arrival, packet, None);
        assert_eq!(Verdict::unpack(verdict.pack()), verdict);
        assert!(verdict.is_allowed || !verdict.is_stamped);
        verdict
    }

    /// One packet from the pod to a Service, all its way.
    fn step(&mut self, context: &str) {
        let tuple: Tuple = (
            self.random.one_in(2),
            self.random.pick(&[TCP, UDP]),
            1000 + self.random.below(6) as u16,
            self.random.below(3) as u8,
        );
        let (is_v6, protocol, port, number) = tuple;
        let flags = match self.chosen.contains_key(&tuple) {
            true if !self.random.one_in(4) => ACK,
            _ => SYN,
        };
        let first = packet(protocol, flags, (own(is_v6), port), (vip(number, is_v6), 80));
        let verdict = self.judge(Arrival::egress(), &first);
        let places = self.services[&number].clone();
        if places.is_empty() {
            // The proxy refuses it.
            assert!(verdict.is_allowed, "{context}: {verdict:?}");
            assert_eq!(verdict.is_stamped, self.endpoint.sets[1] != 0, "{context}");
            return;
        }
        if self.is_undecidable(number) {
            assert!(!verdict.is_allowed, "{context}: {places:?}, allowed {:?}", self.allowed);
            assert_eq!(verdict.reason, Reason::ServiceMixed, "{context}");
            return;
        }
        if flags == SYN && protocol == TCP {
            self.chosen.remove(&tuple);
        }
        let hides = self.random.one_in(2);
        let choice = (self.random.pick(&places), hides);
        let (place, hides) = self.chosen.get(&tuple).copied().unwrap_or(choice);
        let arrives = match (verdict.is_allowed, verdict.is_stamped) {
            (false, _) => false,
            (true, false) => {
                assert_ne!(place, Place::Own, "{context}: comes back unrecognised");
                true
            }
            // The sender is recognised by its address before it is judged, see transit.rs.
            (true, true) if place == Place::Own && !self.judges_own() => true,
            (true, true) if place == Place::Node => true,
            (true, true) => {
                self.n.stamped += 1;
                let local = if hides { Place::Node.address(is_v6) } else { own(is_v6) };
                let after = packet(protocol, flags, (local, port), (place.address(is_v6), TARGET));
                let verdict = self.judge(Arrival::transit(), &after);
                assert!(!verdict.is_stamped, "{context}: once is enough");
                verdict.is_allowed
            }
        };
        assert_eq!(
            arrives,
            self.permits(place),
            "{context}: {tuple:?} to {place:?} of {places:?}, {verdict:?}, allowed {:?} by {:?}",
            self.allowed,
            self.endpoint.sets,
        );
        if arrives {
            self.chosen.insert(tuple, (place, hides));
            self.answer(tuple, context);
            self.n.passed += 1;
            self.n.own += usize::from(place == Place::Own);
        } else {
            self.n.own_denied += usize::from(place == Place::Own);
            self.n.cut += usize::from(flags == ACK && protocol == TCP);
        }
    }

    /// The answer comes back from the Service's address.
    fn answer(&mut self, (is_v6, protocol, port, number): Tuple, context: &str) {
        let answer = packet(protocol, SYN | ACK, (own(is_v6), port), (vip(number, is_v6), 80));
        let verdict = self.judge(Arrival::ingress(false), &answer);
        assert!(verdict.is_allowed && !verdict.is_stamped, "{context}: {verdict:?}");
    }
}

#[test]
fn packets_get_exactly_where_the_policies_let_them() {
    let mut n = Tally::default();
    for seed in 0..400 {
        let tables = tables();
        let mut run = Run::new(seed, &tables);
        for step in 0..200 {
            match run.random.below(30) {
                0 => run.change_policy(),
                1 => {
                    let number = run.random.below(3) as u8;
                    run.change_service(number);
                }
                _ => {}
            }
            run.world.clock.now += run.random.below(2) * run.random.below(3);
            run.step(&format!("seed {seed} step {step}"));
        }
        n.stamped += run.n.stamped;
        n.cut += run.n.cut;
        n.own += run.n.own;
        n.own_denied += run.n.own_denied;
        n.passed += run.n.passed;
    }
    assert!(
        n.stamped > 5_000
            && n.cut > 300
            && n.own > 1_000
            && n.own_denied > 300
            && n.passed > 10_000,
        "{n:?}"
    );
}

/// A pod that may reach class 1 at its port, and a Service of an allowed and a denied backend.
fn mixed(tables: &[AtomicTable; 2]) -> (World<'_>, Endpoint) {
    let mut world = World::new(&tables[0], &tables[1]);
    world.own.insert((ID, own(false)));
    world.exact.extend([(pod(1, false), 1), (pod(2, false), 2)]);
    world.allow_ports(SET, 1, &[vec![(TARGET, TARGET)], vec![], vec![]]);
    world.service(vip(1, false), TCP, 80, &[(1, TARGET), (2, TARGET)]);
    (world, Endpoint { id: ID, epoch: 5, born: 1, sets: [0, SET] })
}

fn to_vip(flags: u8) -> Packet {
    packet(TCP, flags, (own(false), 1000), (vip(1, false), 80))
}

fn to_pod(number: u8, flags: u8) -> Packet {
    packet(TCP, flags, (own(false), 1000), (pod(number, false), TARGET))
}

fn look(world: &World<'_>, endpoint: &Endpoint, arrival: Arrival, packet: &Packet) -> Verdict {
    world.judge_packet(endpoint, arrival, packet, None)
}

#[test]
fn nothing_passes_to_be_judged_by_programs_that_are_not_there() {
    let tables = tables();
    let (mut world, mut endpoint) = mixed(&tables);
    world.flags = 0;
    let verdict = look(&world, &endpoint, Arrival::egress(), &to_vip(SYN));
    assert_eq!((verdict.is_allowed, verdict.reason), (false, Reason::ServiceMixed));
    world.flags = TRANSIT_READY;
    let verdict = look(&world, &endpoint, Arrival::egress(), &to_vip(SYN));
    assert!(verdict.is_allowed && verdict.is_stamped);
    // They go: the flow is judged again.
    world.flags = 0;
    endpoint.epoch += 1;
    let verdict = look(&world, &endpoint, Arrival::egress(), &to_vip(ACK));
    assert_eq!((verdict.is_allowed, verdict.reason), (false, Reason::ServiceMixed));
}

#[test]
fn what_nobody_translated_does_not_pass_by_the_entry_of_the_first_look() {
    let tables = tables();
    let (mut world, endpoint) = mixed(&tables);
    // The address itself is allowed: it says nothing about the backends.
    world.exact.insert(vip(1, false), 1);
    world.allow_all(SET, 1);
    for flags in [SYN, ACK] {
        assert!(look(&world, &endpoint, Arrival::egress(), &to_vip(flags)).is_stamped);
        let verdict = look(&world, &endpoint, Arrival::transit(), &to_vip(flags));
        assert_eq!((verdict.is_allowed, verdict.reason), (false, Reason::ServiceMixed));
    }
    // Without known backends it is a packet to that address.
    world.service(vip(1, false), TCP, 80, &[]);
    for flags in [SYN, ACK] {
        assert!(look(&world, &endpoint, Arrival::egress(), &to_vip(flags)).is_stamped);
        assert!(look(&world, &endpoint, Arrival::transit(), &to_vip(flags)).is_allowed);
    }
    assert!(look(&world, &endpoint, Arrival::egress(), &to_vip(ACK)).is_stamped, "still");
}

/// Anybody may make a Service of any address, and perhaps nobody translates what is sent to it.
#[test]
fn what_nobody_translated_is_judged_by_the_address_that_it_carries() {
    let tables = tables();
    let (mut world, endpoint) = mixed(&tables);
    let itself = backend_endpoint(ID);
    for words in [vec![backend(1, TARGET, false)], vec![backend(1, TARGET, false), itself]] {
        world.service_of(vip(1, false), TCP, 80, &words);
        world.exact.remove(&vip(1, false));
        for flags in [SYN, ACK] {
            assert!(look(&world, &endpoint, Arrival::egress(), &to_vip(flags)).is_stamped);
            let verdict = look(&world, &endpoint, Arrival::transit(), &to_vip(flags));
            assert_eq!((verdict.is_allowed, verdict.reason), (false, Reason::Policy));
            assert!(look(&world, &endpoint, Arrival::transit(), &to_pod(1, flags)).is_allowed);
        }
        // The policy allows the address.
        world.exact.insert(vip(1, false), 9);
        world.allow_all(SET, 9);
        for flags in [SYN, ACK] {
            assert!(look(&world, &endpoint, Arrival::egress(), &to_vip(flags)).is_stamped);
            assert!(look(&world, &endpoint, Arrival::transit(), &to_vip(flags)).is_allowed);
        }
        // Another node has it, and translates: the address says nothing.
        world.exact.remove(&vip(1, false));
        let words: Vec<_> = words.into_iter().chain([BACKEND_ELSEWHERE | 1]).collect();
        world.service_of(vip(1, false), TCP, 80, &words);
        for flags in [SYN, ACK] {
            assert!(look(&world, &endpoint, Arrival::egress(), &to_vip(flags)).is_stamped);
            assert!(look(&world, &endpoint, Arrival::transit(), &to_vip(flags)).is_allowed);
        }
        let words: Vec<_> = words.into_iter().chain([backend(2, TARGET, false)]).collect();
        world.service_of(vip(1, false), TCP, 80, &words);
        let verdict = look(&world, &endpoint, Arrival::transit(), &to_vip(ACK));
        assert_eq!((verdict.is_allowed, verdict.reason), (false, Reason::ServiceMixed));
    }
}

/// Whoever has the address in truth must not speak to the pod as if it had been asked.
#[test]
fn nothing_answers_what_nobody_translated_and_was_dropped() {
    let tables = tables();
    let (mut world, mut endpoint) = mixed(&tables);
    endpoint.sets = [9, SET];
    world.service(vip(1, false), TCP, 80, &[(1, TARGET)]);
    let answer = |flags| packet(TCP, flags, (own(false), 1000), (vip(1, false), 80));
    let comes_in = |world: &World<'_>, endpoint: &Endpoint, flags| {
        look(world, endpoint, Arrival::ingress(false), &answer(flags)).is_allowed
    };
    let leaves = |world: &World<'_>, endpoint: &Endpoint, flags| {
        assert!(look(world, endpoint, Arrival::egress(), &to_vip(flags)).is_stamped);
        look(world, endpoint, Arrival::transit(), &to_vip(flags)).is_allowed
    };
    assert!(!leaves(&world, &endpoint, SYN));
    assert!(!comes_in(&world, &endpoint, SYN | ACK) && !comes_in(&world, &endpoint, ACK));
    // However often it is tried, and before it gets to where it is dropped again.
    assert!(look(&world, &endpoint, Arrival::egress(), &to_vip(ACK)).is_stamped);
    assert!(!comes_in(&world, &endpoint, ACK));
    assert!(!leaves(&world, &endpoint, ACK) && !comes_in(&world, &endpoint, ACK));
    endpoint.epoch += 1;
    assert!(look(&world, &endpoint, Arrival::egress(), &to_vip(ACK)).is_stamped);
    assert!(!comes_in(&world, &endpoint, ACK));
    // The address is allowed: it gets there, and is answered.
    world.exact.insert(vip(1, false), 9);
    world.allow_all(SET, 9);
    assert!(leaves(&world, &endpoint, ACK) && comes_in(&world, &endpoint, ACK));
    assert!(leaves(&world, &endpoint, ACK), "by no entry of its own");
    // And is not any more.
    world.exact.remove(&vip(1, false));
    assert!(!leaves(&world, &endpoint, ACK) && !comes_in(&world, &endpoint, ACK));
    // What a policy lets in comes in.
    world.exact.insert(vip(1, false), 10);
    world.allow_all(9, 10);
    assert!(comes_in(&world, &endpoint, ACK));
}

#[test]
fn without_a_second_look_nothing_passes_to_a_service() {
    let tables = tables();
    let (mut world, endpoint) = mixed(&tables);
    world.service(vip(1, false), TCP, 80, &[(1, TARGET)]);
    world.flags = 0;
    let verdict = look(&world, &endpoint, Arrival::egress(), &to_vip(SYN));
    assert_eq!((verdict.is_allowed, verdict.reason), (false, Reason::ServiceMixed));
    world.flags = TRANSIT_READY;
    assert!(look(&world, &endpoint, Arrival::egress(), &to_vip(SYN)).is_stamped);
}

#[test]
fn established_flows_follow_the_policies_at_both_looks() {
    let tables = tables();
    let (mut world, mut endpoint) = mixed(&tables);
    for flags in [SYN, ACK] {
        assert!(look(&world, &endpoint, Arrival::egress(), &to_vip(flags)).is_stamped);
        assert!(look(&world, &endpoint, Arrival::transit(), &to_pod(1, flags)).is_allowed);
    }
    // Now only the other one is allowed.
    world.rows.clear();
    world.allow_all(SET, 2);
    endpoint.epoch += 1;
    assert!(look(&world, &endpoint, Arrival::egress(), &to_vip(ACK)).is_stamped);
    let verdict = look(&world, &endpoint, Arrival::transit(), &to_pod(1, ACK));
    assert_eq!((verdict.is_allowed, verdict.reason), (false, Reason::PolicyCut));
    // All are that are known of.
    world.allow_all(SET, 1);
    endpoint.epoch += 1;
    assert!(look(&world, &endpoint, Arrival::egress(), &to_vip(ACK)).is_stamped);
    assert!(look(&world, &endpoint, Arrival::transit(), &to_pod(1, ACK)).is_allowed);
}

/// The proxy hears of backends at another time than we do, and translates a flow as it did its
/// first packet.
#[test]
fn flows_go_to_backends_that_the_service_does_not_have() {
    let tables = tables();
    let (mut world, mut endpoint) = mixed(&tables);
    // All backends are allowed, and one that is not among them is not.
    world.service(vip(1, false), TCP, 80, &[(1, TARGET)]);
    for flags in [SYN, ACK] {
        assert!(look(&world, &endpoint, Arrival::egress(), &to_vip(flags)).is_stamped);
        assert!(!look(&world, &endpoint, Arrival::transit(), &to_pod(2, flags)).is_allowed);
        assert!(look(&world, &endpoint, Arrival::transit(), &to_pod(1, flags)).is_allowed);
    }
    // None is allowed. The flow may still go to one that was, but which one it is cannot be told
    // from its answers.
    world.service(vip(1, false), TCP, 80, &[(2, TARGET)]);
    endpoint.epoch += 1;
    for arrival in [Arrival::ingress(false), Arrival::egress()] {
        let verdict = look(&world, &endpoint, arrival, &to_vip(ACK));
        assert_eq!((verdict.is_allowed, verdict.reason), (false, Reason::PolicyCut));
    }
}

#[test]
fn kept_flows_go_on_as_they_were() {
    let tables = tables();
    let (mut world, mut endpoint) = mixed(&tables);
    world.keeps_established = true;
    assert!(look(&world, &endpoint, Arrival::egress(), &to_vip(SYN)).is_stamped);
    assert!(look(&world, &endpoint, Arrival::transit(), &to_pod(1, SYN)).is_allowed);
    // A flow from when there was no Service and the address was allowed.
    let services = std::mem::take(&mut world.services);
    world.exact.insert(vip(1, false), 2);
    world.allow_all(SET, 2);
    endpoint.epoch += 1;
    let other = |flags| packet(TCP, flags, (own(false), 1001), (vip(1, false), 80));
    let verdict = look(&world, &endpoint, Arrival::egress(), &other(SYN));
    assert!(verdict.is_allowed && !verdict.is_stamped);
    world.services = services;
    world.exact.remove(&vip(1, false));
    world.rows.retain(|(_, class), _| *class != 2);
    endpoint.epoch += 1;
    let verdict = look(&world, &endpoint, Arrival::egress(), &other(ACK));
    assert!(verdict.is_allowed && !verdict.is_stamped, "it would be cut where it leaves");
    assert!(look(&world, &endpoint, Arrival::egress(), &other(SYN)).is_stamped, "a new one");
    // The first one loses its permission.
    world.rows.clear();
    endpoint.epoch += 1;
    assert!(look(&world, &endpoint, Arrival::egress(), &to_vip(ACK)).is_stamped);
    assert!(look(&world, &endpoint, Arrival::transit(), &to_pod(1, ACK)).is_allowed);
    let verdict = look(&world, &endpoint, Arrival::egress(), &to_vip(SYN));
    assert_eq!((verdict.is_allowed, verdict.reason), (false, Reason::Policy));
}

#[test]
fn translated_flows_last_as_long_as_the_flows_they_belong_to() {
    let tables = tables();
    let (mut world, mut endpoint) = mixed(&tables);
    world.keeps_established = true;
    for flags in [SYN, ACK] {
        assert!(look(&world, &endpoint, Arrival::transit(), &to_pod(1, flags)).is_allowed);
    }
    // Its answers are not seen there, and yet it is established.
    world.clock.now += TIMEOUTS.tcp_established;
    world.rows.clear();
    endpoint.epoch += 1;
    assert!(look(&world, &endpoint, Arrival::transit(), &to_pod(1, ACK)).is_allowed);
    world.clock.now += TIMEOUTS.tcp_established + 1;
    assert!(!look(&world, &endpoint, Arrival::transit(), &to_pod(1, ACK)).is_allowed);
}

#[test]
fn errors_about_a_stamped_flow_are_stamped() {
    let tables = tables();
    let (world, endpoint) = mixed(&tables);
    assert!(look(&world, &endpoint, Arrival::egress(), &to_vip(SYN)).is_stamped);
    assert!(look(&world, &endpoint, Arrival::transit(), &to_pod(1, SYN)).is_allowed);
    let error = |about: &Packet| Packet {
        kind: Kind::Error,
        protocol: ICMP,
        local: about.local,
        remote: about.remote,
        ..Packet::default()
    };
    let judge = |arrival, about: &Packet| {
        let about = Packet { is_opening: false, detail: 0, ..*about };
        world.judge_packet(&endpoint, arrival, &error(&about), Some(&about))
    };
    let verdict = judge(Arrival::egress(), &to_vip(ACK));
    assert!(verdict.is_allowed && verdict.is_stamped);
    assert!(judge(Arrival::transit(), &to_pod(1, ACK)).is_allowed);
    assert!(!judge(Arrival::transit(), &to_pod(2, ACK)).is_allowed, "nothing of it ever passed");
    assert!(judge(Arrival::ingress(false), &to_vip(ACK)).is_allowed);
}

#[test]
fn services_that_did_not_fit_are_looked_at_twice() {
    let tables = tables();
    let (mut world, endpoint) = mixed(&tables);
    world.services.clear();
    world.flags = TRANSIT_READY | SERVICES_INCOMPLETE;
    assert!(!look(&world, &endpoint, Arrival::egress(), &to_vip(SYN)).is_allowed);
    world.exact.insert(vip(1, false), 3);
    world.allow_all(SET, 3);
    assert!(look(&world, &endpoint, Arrival::egress(), &to_vip(SYN)).is_stamped);
    assert!(look(&world, &endpoint, Arrival::transit(), &to_pod(1, SYN)).is_allowed);
    assert!(!look(&world, &endpoint, Arrival::transit(), &to_pod(2, SYN)).is_allowed);
    world.flags = SERVICES_INCOMPLETE;
    let new = packet(TCP, SYN, (own(false), 1001), (vip(1, false), 80));
    assert!(!look(&world, &endpoint, Arrival::egress(), &new).is_allowed);
}

#[test]
fn a_pod_that_only_receives_under_policy_is_stamped_towards_itself_alone() {
    let tables = tables();
    let (mut world, mut endpoint) = mixed(&tables);
    endpoint.sets = [SET, 0];
    let verdict = look(&world, &endpoint, Arrival::egress(), &to_vip(SYN));
    assert!(verdict.is_allowed && !verdict.is_stamped);
    endpoint.epoch += 1;
    world.flags = 0;
    let words = [backend(1, TARGET, false), backend_endpoint(ID)];
    world.service_of(vip(1, false), TCP, 80, &words);
    for flags in [SYN, ACK] {
        let verdict = look(&world, &endpoint, Arrival::egress(), &to_vip(flags));
        assert!(verdict.is_allowed && verdict.is_stamped, "whoever else looks at it");
    }
    // It comes back with a node's address; its stamp is as good as the node's word.
    let back = packet(TCP, SYN, (own(false), TARGET), (v4(NODE), 4000));
    assert!(!look(&world, &endpoint, Arrival::ingress(false), &back).is_allowed);
    assert!(look(&world, &endpoint, Arrival::ingress(true), &back).is_allowed);
}

/// Nobody answers for a Service of which the pod may reach nothing any more: else who only pushes
/// could do so for ever.
#[test]
fn what_comes_from_a_service_of_denied_backends_is_cut() {
    let from_vip = |protocol| Packet {
        detail: ACK,
        ..packet(protocol, ACK, (own(false), 1000), (vip(1, false), 80))
    };
    let error = |about: &Packet| Packet {
        kind: Kind::Error,
        protocol: ICMP,
        local: about.local,
        remote: about.remote,
        ..Packet::default()
    };
    for protocol in [TCP, UDP] {
        let tables = tables();
        let (mut world, mut endpoint) = mixed(&tables);
        world.service(vip(1, false), protocol, 80, &[(1, TARGET), (2, TARGET)]);
        world.allow_all(SET, 1);
        let opening = packet(protocol, SYN, (own(false), 1000), (vip(1, false), 80));
        assert!(look(&world, &endpoint, Arrival::egress(), &opening).is_stamped);
        assert!(look(&world, &endpoint, Arrival::ingress(false), &from_vip(protocol)).is_allowed);
        world.rows.clear();
        endpoint.epoch += 1;
        let about = Packet { is_opening: false, ..opening };
        let related = |endpoint: &Endpoint, arrival| {
            world.judge_packet(endpoint, arrival, &error(&about), Some(&about))
        };
        endpoint.sets[0] = 2;
        for _ in 0..2 {
            let verdict = look(&world, &endpoint, Arrival::ingress(false), &from_vip(protocol));
            assert_eq!((verdict.is_allowed, verdict.reason), (false, Reason::PolicyCut));
            assert!(!related(&endpoint, Arrival::ingress(false)).is_allowed);
            assert!(!related(&endpoint, Arrival::egress()).is_allowed);
            let verdict = look(&world, &endpoint, Arrival::egress(), &about);
            assert_eq!((verdict.is_allowed, verdict.reason), (false, Reason::PolicyCut));
        }
    }
}
