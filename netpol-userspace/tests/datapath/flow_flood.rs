//! Floods of one pod's flow table by the loaded programs: what other pods have stays, each answer
//! still passes, and tables of another size have all the flows.

use netpol_testkit::rig;
use std::net::{IpAddr, Ipv4Addr};

use netpol_common::flow::{self, KEY4};
use netpol_common::layout::{self, Reason};
use netpol_compile::{EndpointId, EndpointSets, SetId, Step};
use netpol_datapath::run::{Place, run};
use netpol_datapath::{AttachMode, Datapath, LoadOptions, Maps};
use netpol_model::Direction;
use netpol_observe::frames::{Transport, frame, packet};
use netpol_testkit::rig::{ID, POD, Rig, ack, in_node, syn, syn_ack, udp};

/// Lets the peers in.
const IN: u16 = 1;
/// Lets the pod reach them.
const OUT: u16 = 2;
/// No row allows anything.
const NOTHING: u16 = 3;
const BUCKETS: u32 = 1_024;
const SLOTS: u32 = BUCKETS * flow::SLOTS as u32;

/// The pod that floods, or that is flooded.
const OTHER: EndpointId = EndpointId(8);
const OTHER_POD: &str = "10.1.0.2";

fn options(buckets: u32) -> LoadOptions {
    LoadOptions { flow_buckets: Some([buckets, buckets]), ..LoadOptions::default() }
}

/// Both pods, isolated by these sets.
fn rig(buckets: u32, pod: [u16; 2], other: [u16; 2]) -> Rig {
    let mut rig = Rig::with(&options(buckets), AttachMode::Auto);
    rig.class("10.0.0.0/8", 3);
    rig.allow_all(IN, 3);
    rig.allow_all(OUT, 3);
    rig.isolate(pod[0], pod[1]);
    rig.datapath.add_endpoint(OTHER, rig.other_ifindex, [OTHER_POD.parse().unwrap()]).unwrap();
    let sets = EndpointSets { ingress: SetId(other[0]), egress: SetId(other[1]) };
    rig.apply(&[Step::SetEndpoint(OTHER, sets)]);
    rig
}

fn peer(number: u32) -> IpAddr {
    Ipv4Addr::from(0x0a40_0000 + number).into()
}

/// A packet of the other pod's.
fn other_sends(rig: &mut Rig, direction: Direction, remote: IpAddr, transport: &Transport) -> bool {
    let pod: IpAddr = OTHER_POD.parse().unwrap();
    let (name, source, destination, from) = match direction {
        Direction::Ingress => ("netpol_ingress", remote, pod, rig.ifindex),
        Direction::Egress => ("netpol_egress", pod, remote, rig.other_ifindex),
    };
    let place = Place { ifindex: rig.other_ifindex, ingress_ifindex: from };
    let program = rig.datapath.programs().program(name).unwrap();
    run(program, &frame(&packet(source, destination, transport)), place, 1).unwrap().is_allowed
}

/// Idle connections of the pod's: every other one it opened, every fifth is UDP.
fn open_idle(rig: &mut Rig, count: u16) {
    for n in 0..count {
        let remote = peer(u32::from(n % 7)).to_string();
        if n % 5 == 0 {
            assert!(rig.goes_out(&remote, &udp(1_000 + n, 53)));
            assert!(rig.comes_in(&remote, &udp(53, 1_000 + n)));
        } else {
            assert!(rig.goes_out(&remote, &syn(1_000 + n, 80)));
            assert!(rig.comes_in(&remote, &syn_ack(80, 1_000 + n)));
            assert!(rig.goes_out(&remote, &ack(1_000 + n, 80)));
        }
    }
}

/// How many answers in these connections, which nobody but the pod may open, do not pass.
fn lost(rig: &mut Rig, count: u16) -> usize {
    let mut is_lost = |n: &u16| {
        let remote = peer(u32::from(n % 7)).to_string();
        let answer = if n.is_multiple_of(5) { udp(53, 1_000 + n) } else { ack(80, 1_000 + n) };
        !rig.comes_in(&remote, &answer)
    };
    (0..count).filter(|n| is_lost(n)).count()
}

#[test]
fn a_pod_that_floods_takes_nothing_from_another() {
    for is_answered in [false, true] {
        in_node(|| {
            let mut rig = rig(BUCKETS, [NOTHING, OUT], [NOTHING, OUT]);
            open_idle(&mut rig, 500);
            for n in 0..10 * SLOTS {
                let (remote, port) = (peer(n % 50_000), 1_000 + (n % 60_000) as u16);
                assert!(other_sends(&mut rig, Direction::Egress, remote, &udp(port, 53)));
                if is_answered {
                    assert!(other_sends(&mut rig, Direction::Ingress, remote, &udp(53, port)));
                }
                // Somebody else opens connections all the same, and waits a while for an answer.
                if n % 1_000 == 0 {
                    let port = 20_000 + (n / 1_000) as u16;
                    let remote = peer(3).to_string();
                    assert!(rig.goes_out(&remote, &syn(port, 443)));
                }
                if n % 1_000 == 500 {
                    let port = 20_000 + (n / 1_000) as u16;
                    let remote = peer(3).to_string();
                    assert!(rig.comes_in(&remote, &syn_ack(443, port)), "{n}: an answer is lost");
                    assert!(rig.goes_out(&remote, &ack(port, 443)));
                }
            }
            assert_eq!(lost(&mut rig, 500), 0, "answered: {is_answered}");
            for n in (0..10 * SLOTS).step_by(1_000) {
                let port = 20_000 + (n / 1_000) as u16;
                assert!(
                    n + 500 >= 10 * SLOTS || rig.comes_in(&peer(3).to_string(), &ack(443, port))
                );
            }
            let uses = [ID, OTHER].map(|id| rig.datapath.flow_use(id).unwrap());
            assert_eq!((uses[0].given, uses[0].displaced, uses[0].refused), (0, 0, 0));
            assert!(uses[1].displaced > u64::from(SLOTS), "the flooder pays: {:?}", uses[1]);
            assert_eq!(rig.counted(Direction::Egress, Reason::FlowEvicted), uses[1].given);
            assert_accounts(&rig.maps);
        });
    }
}

#[test]
fn a_stranger_who_floods_a_pod_takes_nothing_from_it_nor_from_another() {
    for is_answered in [false, true] {
        in_node(|| {
            // What comes in passes; what goes out must be an answer.
            let mut rig = rig(BUCKETS, [IN, OUT], [IN, NOTHING]);
            open_idle(&mut rig, 300);
            // Others have connections to the flooded pod.
            let client = |n: u16| peer(100_000 + u32::from(n));
            for n in 0..100 {
                for (direction, transport) in [
                    (Direction::Ingress, syn(5_000 + n, 80)),
                    (Direction::Egress, syn_ack(80, 5_000 + n)),
                    (Direction::Ingress, ack(5_000 + n, 80)),
                ] {
                    assert!(other_sends(&mut rig, direction, client(n), &transport));
                }
            }
            for n in 0..10 * SLOTS {
                let port = 1_000 + (n % 60_000) as u16;
                // From one address, which is answered, or from as many as there are.
                let remote = if is_answered { peer(9) } else { peer(n) };
                assert!(other_sends(&mut rig, Direction::Ingress, remote, &syn(port, 80)));
                assert!(other_sends(&mut rig, Direction::Egress, remote, &syn_ack(80, port)));
                if is_answered {
                    assert!(other_sends(&mut rig, Direction::Ingress, remote, &ack(port, 80)));
                }
            }
            assert_eq!(lost(&mut rig, 300), 0);
            let n_lost = (0..100)
                .filter(|&n| {
                    let transport = ack(80, 5_000 + n);
                    !other_sends(&mut rig, Direction::Egress, client(n), &transport)
                })
                .count();
            assert_eq!(n_lost, 0, "answered: {is_answered}");
            assert_accounts(&rig.maps);
        });
    }
}

#[test]
fn tables_of_another_size_have_all_the_flows() {
    in_node(|| {
        let mut rig = rig(BUCKETS, [NOTHING, OUT], [NOTHING, OUT]);
        open_idle(&mut rig, 400);
        let pins = rig.cleanup.0.clone();
        for buckets in [4 * BUCKETS, BUCKETS / 2, BUCKETS] {
            let Rig { datapath, ifindex, other_ifindex, cleanup, .. } = rig;
            drop(datapath);
            let mut datapath = Datapath::open(&pins, &options(buckets), AttachMode::Auto).unwrap();
            let addresses: [IpAddr; 2] = [POD.parse().unwrap(), rig::POD6.parse().unwrap()];
            datapath.add_endpoint(ID, ifindex, addresses).unwrap();
            datapath.add_endpoint(OTHER, other_ifindex, [OTHER_POD.parse().unwrap()]).unwrap();
            let maps = Maps::open(&pins, false).unwrap();
            let slots = u64::from(layout::flow_map_entries(buckets)) * 4;
            assert_eq!(maps.table4().n_slots(), slots);
            rig = Rig { datapath, maps, ifindex, other_ifindex, cleanup };
            assert_eq!(lost(&mut rig, 400), 0, "{buckets} buckets");
            assert_accounts(&rig.maps);
            let left = std::fs::read_dir(pins.map("")).unwrap().flatten();
            let left: Vec<_> = left.map(|entry| entry.file_name()).collect();
            assert!(left.iter().all(|name| !name.to_string_lossy().ends_with("_OLD")), "{left:?}");
        }
    });
}

/// What an agent leaves that ends while flows move, the next one finishes.
#[test]
fn tables_that_were_set_aside_are_not_forgotten() {
    in_node(|| {
        let mut rig = rig(BUCKETS, [NOTHING, OUT], [NOTHING, OUT]);
        open_idle(&mut rig, 100);
        let pins = rig.cleanup.0.clone();
        let Rig { datapath, ifindex, other_ifindex, cleanup, .. } = rig;
        drop(datapath);
        for name in ["FLOWS4", "FLOWS6"] {
            std::fs::rename(pins.map(name), pins.map(&format!("{name}_OLD"))).unwrap();
        }
        let mut datapath = Datapath::open(&pins, &options(2 * BUCKETS), AttachMode::Auto).unwrap();
        datapath.add_endpoint(ID, ifindex, [POD.parse().unwrap()]).unwrap();
        let maps = Maps::open(&pins, false).unwrap();
        rig = Rig { datapath, maps, ifindex, other_ifindex, cleanup };
        assert_eq!(lost(&mut rig, 100), 0);
        assert!(!pins.map("FLOW_USE_OLD").exists());
    });
}

/// What the endpoints are said to have is what is there.
fn assert_accounts(maps: &Maps) {
    for id in [ID, OTHER] {
        let slots = maps.table4().slots::<KEY4>();
        let slots: Vec<_> = slots.filter(|slot| slot.endpoint() == id.0).collect();
        let answered = slots.iter().filter(|slot| slot.state & flow::ANSWERED != 0).count();
        let uses = maps.flow_use(id.0);
        assert_eq!((uses.held, uses.answered), (slots.len() as u64, answered as u64), "{id:?}");
    }
}
