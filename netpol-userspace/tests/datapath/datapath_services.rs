//! The second look at packets to Services: the loaded programs, frame by frame, and when and where
//! they are attached. Identification by `tc_index` cannot be tried here, since BPF_PROG_TEST_RUN
//! sets none; the wire tests do.

use std::net::IpAddr;
use std::process::Command;
use std::sync::Arc;

use netpol_common::layout::{Reason, STAMP_MARK};
use netpol_compile::{
    Backend, ClassId, EndpointId, EndpointSets, PortSet, Row, ServiceKey, SetId, Step, Tables,
};
use netpol_datapath::run::{Place, run_marked};
use netpol_datapath::{
    AttachMode, Datapath, Limits, LoadOptions, Part, cleanup, observe, programs_on,
};
use netpol_endpoint::Exit;
use netpol_model::Direction::{Egress, Ingress};
use netpol_model::Protocol;
use netpol_observe::frames::{Transport, frame, packet};
use netpol_testkit::rig::{ID, POD, POD6, Rig, ack, ifindex, in_node, ip, syn, syn_ack, udp};

const VIP: &str = "10.96.0.1";
const VIP6: &str = "fd00:96::1";
const GOOD: &str = "10.2.0.1";
const GOOD6: &str = "fd00:2::1";
const BAD: &str = "10.2.0.2";
const BAD6: &str = "fd00:2::2";
const NODE: &str = "192.168.0.1";
/// A bit that somebody else uses.
const FOREIGN: u32 = 0x4000;

/// Two exits, the pod's interface and the other one.
fn exits() -> Vec<Exit> {
    ["pod0", "other0"].map(exit).into()
}

fn exit(name: &str) -> Exit {
    Exit { ifindex: ifindex(name), incarnation: 1, has_link_header: true }
}

/// A pod that may reach class 3 at ports 8080 and class 4 at all, and Services with an allowed and
/// a denied backend in both families.
fn rig() -> Rig {
    rig_with(&LoadOptions::default())
}

fn rig_with(options: &LoadOptions) -> Rig {
    let mut rig = Rig::with(options, AttachMode::Auto);
    assert!(rig.datapath.set_exits(&exits()).is_empty());
    prepare(&mut rig);
    rig
}

fn prepare(rig: &mut Rig) {
    for (address, class) in [(GOOD, 3), (GOOD6, 3), (BAD, 5), (BAD6, 5)] {
        rig.class(address, class);
    }
    rig.allow_ports(2, 3, [vec![(8080, 8080)], vec![(8080, 8080)], vec![(8080, 8080)]]);
    rig.isolate(0, 2);
    for vip in [VIP, VIP6] {
        for protocol in Protocol::ALL {
            let backends = [3, 5].map(|class| Backend::at(ClassId(class), 8080));
            set_service(rig, vip, protocol, 80, &backends);
        }
    }
}

fn set_service(rig: &mut Rig, vip: &str, protocol: Protocol, port: u16, backends: &[Backend]) {
    let key = ServiceKey { address: vip.parse().unwrap(), protocol, port };
    rig.apply(&[Step::SetService(key, backends.into())]);
}

fn bytes(from: &str, to: &str, transport: &Transport) -> Vec<u8> {
    frame(&packet(from.parse().unwrap(), to.parse().unwrap(), transport))
}

/// The mark of a frame after the program, `None` if it was dropped.
fn look(rig: &mut Rig, program: &str, frame: &[u8], place: Place, mark: u32) -> Option<u32> {
    let program = rig.datapath.programs().when_needed(program).unwrap();
    let result = run_marked(program, frame, place, mark, 1).unwrap();
    result.is_allowed.then_some(result.mark)
}

/// The first look, at the pod.
fn first(rig: &mut Rig, to: &str, transport: &Transport) -> Option<u32> {
    let from = if to.contains(':') { POD6 } else { POD };
    let place = Place { ifindex: rig.ifindex, ingress_ifindex: rig.ifindex };
    look(rig, "netpol_egress", &bytes(from, to, transport), place, FOREIGN)
}

/// The second, at the other interface.
fn second(rig: &mut Rig, from: &str, to: &str, transport: &Transport) -> Option<u32> {
    let frame = bytes(from, to, transport);
    second_on(rig, &frame)
}

fn second_on(rig: &mut Rig, frame: &[u8]) -> Option<u32> {
    let place = Place { ifindex: rig.other_ifindex, ingress_ifindex: rig.ifindex };
    look(rig, "netpol_transit", frame, place, FOREIGN | STAMP_MARK)
}

const STAMPED: Option<u32> = Some(FOREIGN | STAMP_MARK);
const PLAIN: Option<u32> = Some(FOREIGN);

#[test]
fn a_mixed_service_is_judged_by_who_it_turns_out_to_be() {
    in_node(|| {
        let mut rig = rig();
        let sctp = |chunk| Transport::Sctp { source: 1000, destination: 80, chunk };
        let sctp_after = |chunk| Transport::Sctp { source: 1000, destination: 8080, chunk };
        for (pod, vip, good, bad) in [(POD, VIP, GOOD, BAD), (POD6, VIP6, GOOD6, BAD6)] {
            for (before, after) in [
                (syn(1000, 80), syn(1000, 8080)),
                (syn(1000, 80), syn(1000, 8080)),
                (ack(1000, 80), ack(1000, 8080)),
                (udp(1000, 80), udp(1000, 8080)),
                (udp(1000, 80), udp(1000, 8080)),
                (sctp(1), sctp_after(1)),
                (sctp(0), sctp_after(0)),
            ] {
                assert_eq!(first(&mut rig, vip, &before), STAMPED, "{before:?} to {vip}");
                assert_eq!(second(&mut rig, pod, good, &after), PLAIN, "{after:?} to {good}");
                let drops = rig.counted(Egress, Reason::Policy);
                assert_eq!(second(&mut rig, pod, bad, &after), None, "{after:?} to {bad}");
                assert_eq!(rig.counted(Egress, Reason::Policy), drops + 1);
            }
            assert!(rig.comes_in(vip, &syn_ack(80, 1000)), "the answer");
            assert_eq!(first(&mut rig, good, &syn(1001, 8080)), PLAIN, "not by a Service");
        }
        assert_eq!(rig.counted(Egress, Reason::ServiceMixed), 0);
    });
}

#[test]
fn both_looks_follow_the_policies() {
    in_node(|| {
        let mut rig = rig();
        for transport in [syn(1000, 80), ack(1000, 80)] {
            assert_eq!(first(&mut rig, VIP, &transport), STAMPED);
        }
        for transport in [syn(1000, 8080), ack(1000, 8080)] {
            assert_eq!(second(&mut rig, POD, GOOD, &transport), PLAIN);
        }
        rig.class(GOOD, 6);
        rig.class(BAD, 3);
        rig.rejudge();
        assert_eq!(first(&mut rig, VIP, &ack(1000, 80)), STAMPED);
        assert_eq!(second(&mut rig, POD, GOOD, &ack(1000, 8080)), None);
        assert_eq!(rig.counted(Egress, Reason::PolicyCut), 1);
        set_service(&mut rig, VIP, Protocol::Tcp, 80, &[Backend::at(ClassId(3), 8080)]);
        rig.rejudge();
        assert_eq!(first(&mut rig, VIP, &ack(1000, 80)), STAMPED, "all are that are known of");
        assert_eq!(second(&mut rig, POD, BAD, &ack(1000, 8080)), PLAIN);
        set_service(&mut rig, VIP, Protocol::Tcp, 80, &[]);
        rig.rejudge();
        assert_eq!(first(&mut rig, VIP, &ack(1000, 80)), STAMPED, "who knows whom it is");
        assert_eq!(second(&mut rig, POD, VIP, &ack(1000, 80)), None, "nobody, it turns out");
    });
}

/// A flow to a Service of which nothing is allowed any more.
#[test]
fn what_is_pushed_from_a_service_of_denied_backends_is_cut() {
    in_node(|| {
        let mut rig = rig();
        for vip in [VIP, VIP6] {
            assert_eq!(first(&mut rig, vip, &udp(1000, 80)), STAMPED);
            assert!(rig.comes_in(vip, &udp(80, 1000)));
            let denied = [Backend::at(ClassId(5), 8080)];
            set_service(&mut rig, vip, Protocol::Udp, 80, &denied);
            rig.rejudge();
            assert!(!rig.comes_in(vip, &udp(80, 1000)), "{vip}");
            assert!(!rig.comes_in(vip, &udp(80, 1000)), "{vip}: and stays so");
            assert_eq!(first(&mut rig, vip, &udp(1000, 80)), None, "{vip}: nor what the pod sends");
            assert_eq!(first(&mut rig, vip, &udp(1001, 80)), None, "a new one");
        }
        assert_eq!(rig.counted(Ingress, Reason::PolicyCut), 4);
    });
}

#[test]
fn only_stamped_packets_are_looked_at_and_only_what_came_from_somewhere() {
    in_node(|| {
        let mut rig = rig();
        let bad = bytes(POD, BAD, &syn(1, 8080));
        let forwarded = Place { ifindex: rig.other_ifindex, ingress_ifindex: rig.ifindex };
        let made_here = Place { ingress_ifindex: 0, ..forwarded };
        let (transit, stamp) = ("netpol_transit", FOREIGN | STAMP_MARK);
        assert_eq!(look(&mut rig, transit, &bad, forwarded, FOREIGN), PLAIN);
        assert_eq!(look(&mut rig, transit, &bad, made_here, stamp), STAMPED, "another's bit");
        assert_eq!(look(&mut rig, transit, &bad, forwarded, stamp), None);
        // Who sent it cannot be told.
        let hidden = bytes(NODE, GOOD, &syn(1, 8080));
        assert_eq!(look(&mut rig, transit, &hidden, forwarded, stamp), None);
        let nobody = observe::counters(&rig.maps, 0, Egress).unwrap();
        assert_eq!(nobody[Reason::ServiceMixed as usize], 1);
        // To the pod itself: whoever has to recognise it sees the stamp.
        let own = bytes(POD, POD, &syn(1, 8080));
        assert_eq!(look(&mut rig, transit, &own, forwarded, stamp), STAMPED);
        let back = Place { ifindex: rig.ifindex, ..forwarded };
        assert_eq!(look(&mut rig, transit, &bad, back, stamp), STAMPED);
        // An address that has gone to nobody is nobody's.
        rig.datapath.remove_endpoint(ID).unwrap();
        assert_eq!(look(&mut rig, transit, &bad, forwarded, stamp), None);
    });
}

/// The other pods of this node, on interfaces of their own.
const OTHERS: [EndpointId; 2] = [EndpointId(8), EndpointId(9)];

/// A pod on this interface that has the first one's address too, or none.
fn put_other(rig: &mut Rig, id: EndpointId, interface: &str, has_address: bool) {
    let address = POD.parse::<IpAddr>().unwrap();
    let addresses = has_address.then_some(address);
    rig.datapath.add_endpoint(id, ifindex(interface), addresses).unwrap();
}

/// Isolates it by this set for egress, 0 not at all.
fn isolate_other(rig: &mut Rig, id: EndpointId, egress: u16) {
    let sets = EndpointSets { ingress: SetId(0), egress: SetId(egress) };
    rig.apply(&[Step::SetEndpoint(id, sets)]);
}

/// Without what the stamp says nobody can tell whose a packet is while several pods have its
/// source; as soon as one is left it is that one's, whoever came and went, and in which order.
#[test]
fn an_address_that_several_pods_have_had_is_the_one_pods_that_is_left() {
    in_node(|| {
        ip("link add pod2 type veth peer name pod3");
        let mut rig = rig();
        let transit = |rig: &mut Rig| second(rig, POD, GOOD, &syn(1, 8080));
        assert_eq!(transit(&mut rig), PLAIN);
        for interface in ["pod2", "other0"] {
            let other = OTHERS[0];
            // Whoever does not stamp packets has sent none. By set 9 nothing may be sent.
            put_other(&mut rig, other, interface, true);
            assert_eq!(transit(&mut rig), PLAIN, "{interface}: not isolated");
            isolate_other(&mut rig, other, 9);
            assert_eq!(transit(&mut rig), None, "{interface}: nobody can tell");
            isolate_other(&mut rig, other, 0);
            assert_eq!(transit(&mut rig), PLAIN, "{interface}: not any more");
            isolate_other(&mut rig, other, 9);
            put_other(&mut rig, other, interface, false);
            assert_eq!(transit(&mut rig), PLAIN, "{interface}: has it no longer");
            put_other(&mut rig, other, interface, true);
            rig.datapath.remove_endpoint(other).unwrap();
            assert_eq!(transit(&mut rig), PLAIN, "{interface}: is gone");
        }
        // The first pod loses it, and the second may send nothing.
        let place = Place { ifindex: ifindex("pod3"), ingress_ifindex: rig.ifindex };
        let (frame, stamp) = (bytes(POD, GOOD, &syn(1, 8080)), FOREIGN | STAMP_MARK);
        let elsewhere = |rig: &mut Rig| look(rig, "netpol_transit", &frame, place, stamp);
        put_other(&mut rig, OTHERS[0], "pod2", true);
        put_other(&mut rig, OTHERS[1], "other0", true);
        isolate_other(&mut rig, OTHERS[0], 9);
        isolate_other(&mut rig, OTHERS[1], 2);
        let none = std::iter::empty::<IpAddr>;
        rig.datapath.add_endpoint(ID, rig.ifindex, none()).unwrap();
        assert_eq!(elsewhere(&mut rig), None, "two are left");
        put_other(&mut rig, OTHERS[1], "other0", false);
        let denied = |rig: &Rig| {
            let counters = observe::counters(&rig.maps, OTHERS[0].0, Egress).unwrap();
            counters[Reason::Policy as usize]
        };
        assert_eq!((elsewhere(&mut rig), denied(&rig)), (None, 1), "the one that may not");
        put_other(&mut rig, OTHERS[1], "other0", true);
        put_other(&mut rig, OTHERS[0], "pod2", false);
        assert_eq!((elsewhere(&mut rig), denied(&rig)), (PLAIN, 1), "the one that may");
        rig.datapath.add_endpoint(ID, rig.ifindex, [POD.parse::<IpAddr>().unwrap()]).unwrap();
        assert_eq!(elsewhere(&mut rig), None, "two again");
        rig.datapath.remove_endpoint(OTHERS[1]).unwrap();
        assert_eq!(elsewhere(&mut rig), PLAIN, "and one");
    });
}

/// The next agent finds the endpoints one after another.
#[test]
fn a_new_agent_names_no_pod_by_an_address_before_it_knows_all_pods() {
    in_node(|| {
        ip("link add pod2 type veth peer name pod3");
        let mut rig = rig();
        put_other(&mut rig, OTHERS[0], "pod2", true);
        isolate_other(&mut rig, OTHERS[0], 2);
        assert_eq!(second(&mut rig, POD, GOOD, &syn(1, 8080)), None);
        let Rig { datapath, maps, ifindex: pod0, other_ifindex, cleanup } = rig;
        drop(datapath);
        let options = LoadOptions::default();
        let datapath = Datapath::open(&cleanup.0, &options, AttachMode::Auto).unwrap();
        let mut rig = Rig { datapath, maps, ifindex: pod0, other_ifindex, cleanup };
        let own = [POD, POD6].map(|address| address.parse::<IpAddr>().unwrap());
        rig.datapath.add_endpoint(ID, pod0, own).unwrap();
        let transit = |rig: &mut Rig| second(rig, POD, GOOD, &syn(1, 8080));
        assert_eq!(transit(&mut rig), None, "the other one has it still");
        let none = std::iter::empty::<IpAddr>;
        rig.datapath.add_endpoint(ID, pod0, none()).unwrap();
        rig.datapath.add_endpoint(ID, pod0, own).unwrap();
        assert_eq!(transit(&mut rig), None, "whatever comes and goes");
        // The other one was gone before this agent began.
        let sets = EndpointSets { ingress: SetId(0), egress: SetId(2) };
        let key = |class| (SetId(2), ClassId(class));
        let ports = PortSet { intervals: std::array::from_fn(|_| vec![(8080, 8080)]) };
        let mut tables = Tables::default();
        tables.endpoints.insert(ID, sets);
        tables.rows.insert(key(3), Row::Ports(Arc::new(ports)));
        tables.classes.insert(GOOD.parse::<IpAddr>().unwrap().into(), ClassId(3));
        assert!(rig.datapath.reconcile(&tables).unwrap().is_empty());
        assert_eq!(transit(&mut rig), PLAIN);
    });
}

/// What a pod opened from an address goes on only as long as it has that: another pod may.
#[test]
fn flows_from_an_address_that_the_pod_has_lost_are_cut_until_it_has_it_again() {
    in_node(|| {
        let mut rig = rig();
        let own = [POD, POD6].map(|address| address.parse::<IpAddr>().unwrap());
        for transport in [syn(1000, 80), ack(1000, 80)] {
            assert_eq!(first(&mut rig, VIP, &transport), STAMPED);
        }
        for transport in [syn(1001, 8080), ack(1001, 8080), udp(1001, 8080)] {
            assert!(rig.goes_out(GOOD, &transport) && rig.goes_out(GOOD6, &transport));
        }
        assert!(rig.comes_in(BAD, &syn(1000, 22)), "nobody asks who comes in");
        rig.datapath.add_endpoint(ID, rig.ifindex, [own[1]]).unwrap();
        assert_eq!(first(&mut rig, VIP, &ack(1000, 80)), None);
        for (transport, answer) in
            [(ack(1001, 8080), ack(8080, 1001)), (udp(1001, 8080), udp(8080, 1001))]
        {
            for _ in 0..2 {
                assert!(!rig.goes_out(GOOD, &transport), "{transport:?}");
                assert!(rig.comes_in(GOOD, &answer), "{answer:?} is judged like any other");
            }
            assert!(rig.goes_out(GOOD6, &transport), "the other address is its own");
        }
        assert_eq!(rig.counted(Egress, Reason::SourceAddress), 5);
        assert!(rig.goes_out(BAD, &ack(22, 1000)), "whoever connected to it there is answered");
        rig.datapath.add_endpoint(ID, rig.ifindex, own).unwrap();
        assert_eq!(first(&mut rig, VIP, &ack(1000, 80)), STAMPED);
        assert!(rig.goes_out(GOOD, &ack(1001, 8080)) && rig.goes_out(GOOD, &udp(1001, 8080)));
    });
}

#[test]
fn another_bit_may_be_used() {
    in_node(|| {
        let bit = 1 << 31;
        let mut rig = rig_with(&LoadOptions { stamp_mark: bit, ..LoadOptions::default() });
        assert_eq!(first(&mut rig, VIP, &syn(1000, 80)), Some(FOREIGN | bit));
        let place = Place { ifindex: rig.other_ifindex, ingress_ifindex: rig.ifindex };
        let bad = bytes(POD, BAD, &syn(1, 8080));
        assert_eq!(look(&mut rig, "netpol_transit", &bad, place, STAMP_MARK), Some(STAMP_MARK));
        assert_eq!(look(&mut rig, "netpol_transit", &bad, place, bit | STAMP_MARK), None);
    });
}

#[test]
fn fragments_and_errors_are_judged_at_both_looks() {
    in_node(|| {
        let mut rig = rig();
        let whole = bytes(POD, VIP, &udp(1000, 80));
        let fragment = |bytes: &[u8], offset: u16, more: bool| {
            let mut bytes = bytes.to_vec();
            bytes[18..20].copy_from_slice(&7u16.to_be_bytes());
            let flags = offset | if more { 0x2000 } else { 0 };
            bytes[20..22].copy_from_slice(&flags.to_be_bytes());
            bytes
        };
        let place = Place { ifindex: rig.ifindex, ingress_ifindex: rig.ifindex };
        for (offset, more) in [(0, true), (2, false)] {
            let part = fragment(&whole, offset, more);
            assert_eq!(look(&mut rig, "netpol_egress", &part, place, FOREIGN), STAMPED);
            for (to, expected) in [(GOOD, PLAIN), (BAD, None)] {
                let after = fragment(&bytes(POD, to, &udp(1000, 8080)), offset, more);
                assert_eq!(second_on(&mut rig, &after), expected, "offset {offset} to {to}");
            }
        }
        // What the pod says about an answer: it quotes it.
        let error = |to: &str, source: u16| {
            let quoted = packet(to.parse().unwrap(), POD.parse().unwrap(), &udp(source, 1000));
            let body = [vec![0; 4], quoted].concat();
            Transport::Icmp { kind: 3, code: 3, body }
        };
        assert_eq!(first(&mut rig, VIP, &error(VIP, 80)), STAMPED);
        assert_eq!(second(&mut rig, POD, GOOD, &error(GOOD, 8080)), PLAIN);
        assert_eq!(second(&mut rig, POD, BAD, &error(BAD, 8080)), None);
        assert_eq!(first(&mut rig, VIP, &error(VIP, 81)), None, "of nothing that there was");
    });
}

#[test]
fn devices_without_link_layer_header_are_judged_alike() {
    in_node(|| {
        let mut rig = rig();
        // BPF_PROG_TEST_RUN takes the ethertype from where these packets have their source.
        let (pod4, pod6) = ("8.0.0.1", "fd00:1:86dd::1");
        let own = [POD, POD6, pod4, pod6].map(|address| address.parse::<IpAddr>().unwrap());
        rig.datapath.add_endpoint(ID, rig.ifindex, own).unwrap();
        let place = Place { ifindex: rig.other_ifindex, ingress_ifindex: rig.ifindex };
        for (pod, good, bad) in [(pod4, GOOD, BAD), (pod6, GOOD6, BAD6)] {
            for (to, expected) in [(good, PLAIN), (bad, None)] {
                for transport in [syn(1000, 8080), ack(1000, 8080), udp(1000, 8080)] {
                    let packet = packet(pod.parse().unwrap(), to.parse().unwrap(), &transport);
                    let (transit, stamp) = ("netpol_transit_raw", FOREIGN | STAMP_MARK);
                    let found = look(&mut rig, transit, &packet, place, stamp);
                    assert_eq!(found, expected, "{pod} to {to}: {transport:?}");
                }
            }
        }
    });
}

#[test]
fn a_pod_knows_itself_behind_a_service() {
    in_node(|| {
        let mut rig = rig();
        let own = |id| [Backend::at(ClassId(5), 8080), Backend::Endpoint(EndpointId(id))];
        set_service(&mut rig, VIP, Protocol::Tcp, 80, &own(ID.0));
        assert_eq!(first(&mut rig, VIP, &syn(1000, 80)), STAMPED);
        set_service(&mut rig, VIP, Protocol::Tcp, 80, &own(ID.0 + 1));
        assert_eq!(first(&mut rig, VIP, &syn(1001, 80)), None, "another pod");
        // Without policies for what it sends it is stamped all the same, and towards itself only.
        rig.isolate(1, 0);
        assert_eq!(first(&mut rig, VIP, &syn(1002, 80)), PLAIN);
        set_service(&mut rig, VIP, Protocol::Tcp, 80, &own(ID.0));
        assert_eq!(first(&mut rig, VIP, &syn(1003, 80)), STAMPED);
    });
}

#[test]
fn a_backend_that_no_interface_leads_to_is_judged_at_once() {
    in_node(|| {
        let mut rig = rig();
        let on_node = |class| Backend::Kind { class: ClassId(class), port: 8080, is_on_node: true };
        set_service(&mut rig, VIP, Protocol::Tcp, 80, &[Backend::at(ClassId(3), 8080), on_node(5)]);
        assert_eq!(first(&mut rig, VIP, &syn(1000, 80)), None);
        assert_eq!(rig.counted(Egress, Reason::ServiceMixed), 1);
        set_service(&mut rig, VIP, Protocol::Tcp, 80, &[on_node(3), Backend::at(ClassId(5), 8080)]);
        assert_eq!(first(&mut rig, VIP, &syn(1001, 80)), STAMPED, "the one on the node is allowed");
        set_service(&mut rig, VIP, Protocol::Tcp, 80, &[on_node(5)]);
        assert_eq!(first(&mut rig, VIP, &syn(1002, 80)), None);
        assert_eq!(rig.counted(Egress, Reason::ServiceMixed), 1, "plainly denied");
    });
}

#[test]
fn a_service_that_does_not_fit_opens_nothing() {
    in_node(|| {
        let mut rig = rig();
        let kinds = |n: u32| -> Arc<[Backend]> {
            (0..n).map(|n| Backend::at(ClassId(100 + n), 8080)).collect()
        };
        let key = ServiceKey { address: VIP.parse().unwrap(), protocol: Protocol::Tcp, port: 80 };
        rig.apply(&[Step::SetService(key, kinds(70_000))]);
        assert_eq!(left_out(&rig, "backends"), 1);
        assert_eq!(first(&mut rig, VIP, &syn(1000, 80)), None);
        // A block around its address does not open it either.
        rig.class("10.96.0.0/16", 4);
        rig.allow_all(2, 4);
        assert_eq!(first(&mut rig, VIP, &syn(1001, 80)), STAMPED);
        assert_eq!(second(&mut rig, POD, GOOD, &syn(1001, 8080)), PLAIN);
        assert_eq!(second(&mut rig, POD, BAD, &syn(1001, 8080)), None);
        assert_eq!(first(&mut rig, GOOD, &syn(1003, 8080)), STAMPED, "it might be one");
        // With fewer backends there is room again.
        rig.apply(&[Step::SetService(key, kinds(60_000))]);
        assert_eq!(left_out(&rig, "backends"), 0);
        assert_eq!(first(&mut rig, VIP, &syn(1002, 80)), None);
        assert_eq!(first(&mut rig, GOOD, &syn(1002, 8080)), PLAIN);
    });
}

/// How many entries a table has no room for.
fn left_out(rig: &Rig, name: &str) -> u64 {
    let tables = rig.datapath.tables();
    let table = tables.iter().find(|table| table.table == name).unwrap();
    table.overflow.as_ref().map_or(0, |overflow| overflow.n_left_out)
}

#[test]
fn a_service_gets_in_when_another_one_goes() {
    in_node(|| {
        let limits = Limits { services: 6, ..Limits::default() };
        let mut rig = rig_with(&LoadOptions { limits, ..LoadOptions::default() });
        assert_eq!(left_out(&rig, "services"), 0);
        let allowed = [Backend::at(ClassId(3), 8080)];
        set_service(&mut rig, "10.96.0.2", Protocol::Tcp, 80, &allowed);
        assert_eq!(left_out(&rig, "services"), 1);
        assert_eq!(first(&mut rig, "10.96.0.2", &syn(1000, 80)), None);
        // A change of one that is there always fits.
        set_service(&mut rig, VIP, Protocol::Tcp, 80, &allowed);
        assert_eq!(first(&mut rig, VIP, &syn(1000, 80)), STAMPED);
        let key = ServiceKey { address: VIP.parse().unwrap(), protocol: Protocol::Udp, port: 80 };
        rig.apply(&[Step::ClearService(key)]);
        assert_eq!(left_out(&rig, "services"), 0);
        assert_eq!(first(&mut rig, "10.96.0.2", &syn(1000, 80)), STAMPED);
    });
}

/// The programs on the egress hook of an interface, in their order. (The kernel cuts names.)
fn names(interface: &str) -> Vec<String> {
    use aya::programs::{ProgramInfo, TcAttachType, loaded_programs};
    let name = |id| {
        let mut all = loaded_programs().filter_map(Result::ok);
        let found: ProgramInfo = all.find(|program| program.id() == id).unwrap();
        found.name_as_str().unwrap().to_owned()
    };
    programs_on(interface, TcAttachType::Egress).unwrap().into_iter().map(name).collect()
}

/// How many transit programs are on each of these interfaces.
fn on(interfaces: &[&str]) -> Vec<usize> {
    let count = |name: &&str| names(name).iter().filter(|name| *name == "netpol_transit").count();
    interfaces.iter().map(count).collect()
}

#[test]
fn the_programs_are_there_while_they_are_needed() {
    in_node(|| {
        let interfaces = ["pod0", "other0"];
        let mut rig = Rig::new();
        rig.service(VIP, 80, &[(3, 8080), (5, 8080)]);
        rig.isolate(0, 2);
        assert_eq!(on(&interfaces), [0, 0], "nobody knows the exits yet");
        assert!(rig.datapath.set_exits(&exits()[..1]).is_empty());
        assert_eq!(on(&interfaces), [1, 0]);
        assert!(rig.datapath.set_exits(&exits()).is_empty());
        assert_eq!(on(&interfaces), [1, 1]);
        // What is denied on its way does not arrive: the transit program is the first.
        assert_eq!(names("pod0"), ["netpol_transit", "netpol_ingress"]);
        // Isolation for ingress alone needs none, nor do pods without Services.
        rig.isolate(1, 0);
        assert_eq!(on(&interfaces), [0, 0]);
        rig.isolate(1, 2);
        assert_eq!(on(&interfaces), [1, 1]);
        rig.datapath.remove_endpoint(ID).unwrap();
        let own = [POD, POD6].map(|address| address.parse::<IpAddr>().unwrap());
        rig.datapath.add_endpoint(ID, rig.ifindex, own).unwrap();
        rig.isolate(1, 2);
        assert_eq!(names("pod0"), ["netpol_transit", "netpol_ingress"]);
        let key = ServiceKey { address: VIP.parse().unwrap(), protocol: Protocol::Tcp, port: 80 };
        rig.apply(&[Step::ClearService(key)]);
        assert_eq!(on(&interfaces), [0, 0]);
        rig.service(VIP, 80, &[(3, 8080), (5, 8080)]);
        assert_eq!(on(&interfaces), [1, 1]);
        // An interface that goes takes nothing else along; one of the same number is another.
        let index = ifindex("other0");
        ip("link del other0");
        ip(&format!("link add other0 index {index} type veth peer name other1"));
        let other = Exit { incarnation: 2, ..exit("other0") };
        assert!(rig.datapath.set_exits(&[exit("pod0"), other]).is_empty());
        assert_eq!(on(&interfaces), [1, 1]);
        rig.datapath.remove_endpoint(ID).unwrap();
        assert_eq!(on(&interfaces), [0, 0]);
    });
}

/// Filters on the egress hook of an interface by the names of their programs, in the order in which
/// they run: by priority, and of equal ones the newest first.
fn filters_on(interface: &str) -> Vec<String> {
    let arguments = ["-j", "filter", "show", "dev", interface, "egress"];
    let output = Command::new("tc").args(arguments).output().unwrap();
    let all: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let names = all.as_array().unwrap().iter().map(|filter| &filter["options"]["bpf_name"]);
    names.filter_map(|name| Some(name.as_str()?.to_owned())).collect()
}

/// Else a pod would have a flow of what was denied on its way to it, and could answer.
#[test]
fn the_second_look_is_the_first_filter_whichever_came_first() {
    in_node(|| {
        let both = ["netpol_transit", "netpol_ingress"];
        let mut rig = Rig::with(&LoadOptions::default(), AttachMode::Clsact);
        rig.service(VIP, 80, &[(3, 8080), (5, 8080)]);
        rig.isolate(1, 2);
        assert!(rig.datapath.set_exits(&exits()).is_empty());
        assert_eq!(filters_on("pod0"), both);
        for _ in 0..2 {
            rig.datapath.remove_endpoint(ID).unwrap();
            let own = [POD, POD6].map(|address| address.parse::<IpAddr>().unwrap());
            rig.datapath.add_endpoint(ID, rig.ifindex, own).unwrap();
            rig.isolate(1, 2);
            assert_eq!(filters_on("pod0"), both);
        }
    });
}

#[test]
fn what_somebody_took_off_is_put_back() {
    in_node(|| {
        let mut rig = Rig::with(&LoadOptions::default(), AttachMode::Tcx);
        assert!(rig.datapath.set_exits(&exits()).is_empty());
        prepare(&mut rig);
        let links: Vec<_> = std::fs::read_dir(rig.cleanup.0.links())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.to_str().unwrap().contains("-transit"))
            .collect();
        assert_eq!(links.len(), 2, "{links:?}");
        assert_eq!(rig.datapath.verify_transit(Part::ALL).0, 0);
        detach(&links[0]);
        assert_eq!(on(&["pod0", "other0"]).iter().sum::<usize>(), 1);
        let (n_repaired, failures) = rig.datapath.verify_transit(Part::ALL);
        assert!(failures.is_empty(), "{failures:?}");
        assert_eq!((n_repaired, on(&["pod0", "other0"])), (1, vec![1, 1]));
    });
}

/// Ends a link, as `bpftool link detach` does.
fn detach(path: &std::path::Path) {
    use aya::programs::links::{FdLink, Link as _, PinnedLink};
    use aya::programs::tc::SchedClassifierLink;
    let pinned = PinnedLink::from_pin(path).unwrap();
    let link: FdLink = pinned.unpin().unwrap();
    let link = SchedClassifierLink::try_from(link).unwrap();
    link.detach().unwrap();
}

#[test]
fn an_exit_that_cannot_be_guarded_closes_what_is_undecided() {
    in_node(|| {
        let mut rig = Rig::with(&LoadOptions::default(), AttachMode::Clsact);
        assert!(rig.datapath.set_exits(&exits()[..1]).is_empty());
        prepare(&mut rig);
        assert_eq!(first(&mut rig, VIP, &syn(1000, 80)), STAMPED);
        // Where there is an ingress qdisc there cannot be a clsact one.
        tc("qdisc add dev other0 ingress");
        let failures = rig.datapath.set_exits(&exits());
        let told: String = failures.iter().map(|failure| failure.error.to_string()).collect();
        assert!(told.contains("netpol_transit to other0: it has an ingress qdisc"), "{told}");
        assert_eq!(first(&mut rig, VIP, &ack(1000, 80)), None, "it was let pass on condition");
        assert_eq!(first(&mut rig, VIP, &syn(1001, 80)), None);
        assert_eq!(rig.counted(Egress, Reason::ServiceMixed), 2);
        assert_eq!(first(&mut rig, GOOD, &syn(1001, 8080)), PLAIN, "nothing undecided");
        let (_, failures) = rig.datapath.verify_transit(Part::ALL);
        assert_eq!(failures.len(), 1, "still: {failures:?}");
        tc("qdisc del dev other0 ingress");
        let (_, failures) = rig.datapath.verify_transit(Part::ALL);
        assert!(failures.is_empty(), "{failures:?}");
        assert_eq!(first(&mut rig, VIP, &syn(1001, 80)), STAMPED);
    });
}

fn tc(arguments: &str) {
    let output = Command::new("tc").args(arguments.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "tc {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn the_next_agent_takes_them_over_and_cleanup_takes_them_off() {
    for mode in [AttachMode::Tcx, AttachMode::Clsact] {
        in_node(|| {
            let mut rig = Rig::with(&LoadOptions::default(), mode);
            assert!(rig.datapath.set_exits(&exits()).is_empty());
            rig.service(VIP, 80, &[(3, 8080), (5, 8080)]);
            rig.isolate(1, 2);
            let Rig { datapath, cleanup: pins, .. } = rig;
            let transits = || match mode {
                AttachMode::Clsact => filters(),
                _ => on(&["pod0", "other0"]),
            };
            assert_eq!(transits(), [1, 1], "{mode:?}");
            drop(datapath);
            assert_eq!(transits(), [1, 1], "they outlive the agent");
            let mut next = Datapath::open(&pins.0, &LoadOptions::default(), mode).unwrap();
            // Before anything else is known, a new interface is an exit too.
            ip("link add new0 type veth peer name new1");
            let all = [exit("pod0"), exit("other0"), exit("new0")];
            assert!(next.set_exits(&all).is_empty());
            assert_eq!(transits(), [1, 1]);
            drop(next);
            let summary = cleanup::cleanup(&pins.0, [], false).unwrap();
            let all: Vec<u32> = all.iter().map(|exit| exit.ifindex).collect();
            assert_eq!(summary.interfaces.into_iter().collect::<Vec<_>>(), all, "{mode:?}");
            assert_eq!(transits(), [0, 0], "{mode:?}");
        });
    }
}

/// Transit filters on the two interfaces.
fn filters() -> Vec<usize> {
    let of = |name| {
        let output =
            Command::new("tc").args(["filter", "show", "dev", name, "egress"]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let is_ours =
            |line: &&str| line.contains("netpol_transit") && line.contains("direct-action");
        text.lines().filter(is_ours).count()
    };
    vec![of("pod0"), of("other0")]
}
