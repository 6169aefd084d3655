//! Verdicts that deserve a name: cases that once were wrong, and those that the random sequences
//! of `verdict_model` reach rarely.

#![expect(clippy::cast_possible_truncation, reason = "small or random numbers")]

mod support;

use netpol_common::flow;
use netpol_common::layout::Reason;
use netpol_common::packet::{
    ACK, ICMP, ICMPV6, Kind, Packet, RST, SCTP, SYN, TCP, UDP, set_tcp_flags,
};
use netpol_common::verdict::{self, Arrival, Endpoint, FlowState, Judge as _, Verdict};
use support::{AtomicTable, World, v4, v6};

const ID: u16 = 7;
const IN: Arrival = Arrival::ingress(false);
const OUT: Arrival = Arrival::egress();
const NODE: Arrival = Arrival::ingress(true);

/// Runs `test` with a pod isolated by set 1 (ingress) and set 2 (egress), which allow nothing yet.
fn with_pod(test: impl FnOnce(World<'_>, Endpoint)) {
    let tables = [AtomicTable::new(64, flow::WORDS4), AtomicTable::new(64, flow::WORDS6)];
    let mut world = World::new(&tables[0], &tables[1]);
    world.own.extend([(ID, v4([10, 1, 0, 1])), (ID, v6(1, 1))]);
    test(world, Endpoint { id: ID, epoch: 1, born: 1, sets: [1, 2] });
}

fn judge(world: &World<'_>, endpoint: &Endpoint, arrival: Arrival, packet: &Packet) -> Verdict {
    world.judge_packet(endpoint, arrival, packet, None)
}

fn passes(world: &World<'_>, endpoint: &Endpoint, arrival: Arrival, packet: &Packet) -> bool {
    judge(world, endpoint, arrival, packet).is_allowed
}

fn packet(protocol: u8) -> Packet {
    Packet {
        local: v4([10, 1, 0, 1]),
        remote: v4([10, 2, 0, 2]),
        local_port: 80,
        remote_port: 1000,
        protocol,
        ..Packet::default()
    }
}

fn tcp(flags: u8) -> Packet {
    let mut packet = packet(TCP);
    set_tcp_flags(&mut packet, flags);
    packet
}

/// Judges the next packet of every flow anew.
fn rejudge(endpoint: &mut Endpoint) {
    endpoint.epoch += 1;
}

#[test]
fn keep_does_not_let_a_new_connection_in_on_an_old_ones_ports() {
    with_pod(|mut world, mut endpoint| {
        world.keeps_established = true;
        let init = Packet { detail: 1, is_opening: true, ..packet(SCTP) };
        world.allow_all(1, 0);
        assert!(passes(&world, &endpoint, IN, &tcp(SYN)));
        assert!(passes(&world, &endpoint, IN, &init));
        world.rows.clear();
        rejudge(&mut endpoint);
        assert!(passes(&world, &endpoint, IN, &tcp(ACK)), "the old connection lives on");
        assert!(passes(&world, &endpoint, OUT, &tcp(ACK)));
        assert!(!passes(&world, &endpoint, IN, &tcp(SYN)), "a new one may not");
        assert!(!passes(&world, &endpoint, IN, &init));
        assert!(passes(&world, &endpoint, IN, &tcp(ACK)), "and does not end the old one");
        assert!(passes(&world, &endpoint, IN, &packet(SCTP)));
    });
}

#[test]
fn keep_takes_no_longer_way_for_flows_that_are_still_allowed() {
    with_pod(|mut world, mut endpoint| {
        world.keeps_established = true;
        world.allow_all(1, 0);
        assert!(passes(&world, &endpoint, IN, &tcp(SYN)));
        rejudge(&mut endpoint);
        assert!(passes(&world, &endpoint, IN, &tcp(ACK)));
        assert_eq!(world.is_established(&endpoint, IN, &tcp(ACK)), FlowState::Allowed);
    });
}

#[test]
fn a_pods_icmp_error_goes_from_its_own_address_to_whom_it_quotes() {
    for (protocol, pod, peer, other) in [
        (ICMP, v4([10, 1, 0, 1]), v4([10, 2, 0, 2]), v4([10, 3, 0, 3])),
        (ICMPV6, v6(1, 1), v6(2, 2), v6(3, 3)),
    ] {
        with_pod(|mut world, endpoint| {
            world.allow_ports(1, 0, &[vec![], vec![(80, 80)], vec![]]);
            let asked = Packet { local: pod, remote: peer, ..packet(UDP) };
            assert!(passes(&world, &endpoint, IN, &asked));
            let error = |local, remote| Packet {
                local,
                remote,
                protocol,
                kind: Kind::Error,
                detail: 3,
                ..Packet::default()
            };
            let sent = |from, to| {
                verdict::judge(&world, &endpoint, OUT, &mut error(from, to), Some(&asked))
            };
            assert!(sent(pod, peer).is_allowed);
            assert_eq!(sent(pod, other), Verdict::drop(Reason::Policy, 0), "to anybody");
            assert_eq!(sent(other, peer), Verdict::drop(Reason::SourceAddress, 0), "spoofed");
            // Towards the pod it may come from any router.
            let router = &mut error(pod, other);
            assert!(verdict::judge(&world, &endpoint, IN, router, Some(&asked)).is_allowed);
        });
    }
}

#[test]
fn from_its_own_address_towards_it_a_pod_is_not_asked_for_less() {
    for own in [v4([10, 1, 0, 1]), v6(1, 1)] {
        with_pod(|world, endpoint| {
            let protocol = if own.family == 6 { ICMPV6 } else { ICMP };
            let flow = Packet { local: own, remote: own, ..packet(UDP) };
            assert!(passes(&world, &endpoint, OUT, &flow), "a pod reaches itself");
            assert!(!passes(&world, &endpoint, IN, &Packet { remote_port: 9, ..flow }), "forged");
            let alone = Packet { protocol, kind: Kind::Stateless, ..flow };
            assert!(passes(&world, &endpoint, OUT, &alone));
            assert!(!passes(&world, &endpoint, IN, &alone), "forged, without a flow");
            assert!(passes(&world, &endpoint, NODE, &flow), "what it has stamped itself");
        });
    }
}

#[test]
fn the_node_reaches_its_pods_also_on_the_ports_of_a_flow_that_was_cut() {
    with_pod(|mut world, mut endpoint| {
        world.allow_all(2, 0);
        assert!(passes(&world, &endpoint, OUT, &packet(UDP)));
        world.rows.clear();
        rejudge(&mut endpoint);
        assert!(!passes(&world, &endpoint, OUT, &packet(UDP)));
        assert!(passes(&world, &endpoint, NODE, &packet(UDP)));
        assert!(!passes(&world, &endpoint, IN, &packet(UDP)), "who only has its address");
        assert!(!passes(&world, &endpoint, OUT, &packet(UDP)), "the pod's flow stays cut");
    });
}

#[test]
fn the_nodes_flows_and_forwarded_ones_from_its_address_are_two_things() {
    with_pod(|mut world, mut endpoint| {
        assert!(passes(&world, &endpoint, NODE, &tcp(SYN)));
        assert!(passes(&world, &endpoint, OUT, &tcp(SYN | ACK)));
        assert!(!passes(&world, &endpoint, IN, &tcp(SYN)), "somebody else opens the same");
        // A masqueraded client's connection, cut; then the node uses the same ports.
        world.allow_all(1, 0);
        assert!(passes(&world, &endpoint, IN, &tcp(SYN)));
        world.rows.clear();
        rejudge(&mut endpoint);
        assert!(!passes(&world, &endpoint, IN, &tcp(ACK)));
        assert!(passes(&world, &endpoint, NODE, &tcp(SYN)));
        assert!(passes(&world, &endpoint, OUT, &tcp(SYN | ACK)));
        rejudge(&mut endpoint);
        assert!(passes(&world, &endpoint, OUT, &tcp(ACK)), "the node's, whatever the policy");
    });
    with_pod(|mut world, mut endpoint| {
        world.allow_all(1, 0);
        assert!(passes(&world, &endpoint, IN, &tcp(SYN)));
        assert!(passes(&world, &endpoint, NODE, &tcp(SYN)), "while the other is allowed, too");
        world.rows.clear();
        rejudge(&mut endpoint);
        assert!(passes(&world, &endpoint, OUT, &tcp(ACK)), "the node's, whatever the policy");
    });
}

#[test]
fn nobody_else_speaks_in_a_flow_of_the_nodes() {
    with_pod(|world, endpoint| {
        for opening in [tcp(SYN), packet(UDP)] {
            assert!(passes(&world, &endpoint, NODE, &opening));
            let next = Packet { is_opening: false, detail: ACK, ..opening };
            assert!(!passes(&world, &endpoint, IN, &next), "with the node's address and ports");
            assert!(passes(&world, &endpoint, NODE, &next));
            assert!(passes(&world, &endpoint, OUT, &next));
        }
    });
}

#[test]
fn a_cut_udp_flow_does_not_come_back_through_the_other_direction() {
    with_pod(|mut world, mut endpoint| {
        // Ingress is open: without the memory of who opened it, the answer would count as a flow
        // of the other side's and the pod's packets as replies to it.
        endpoint.sets = [0, 2];
        world.allow_all(2, 0);
        assert!(passes(&world, &endpoint, OUT, &packet(UDP)));
        world.rows.clear();
        rejudge(&mut endpoint);
        assert!(!passes(&world, &endpoint, IN, &packet(UDP)));
        assert!(!passes(&world, &endpoint, OUT, &packet(UDP)));
        // Denied packets do not keep the memory alive.
        world.clock.now += support::TIMEOUTS.udp + 1;
        assert!(passes(&world, &endpoint, IN, &packet(UDP)));
        assert!(passes(&world, &endpoint, OUT, &packet(UDP)));
    });
}

#[test]
fn an_error_of_the_world_about_nothing_known_is_judged_like_any_other_packet() {
    with_pod(|mut world, endpoint| {
        let mut error = Packet { kind: Kind::Error, detail: 3, ..packet(ICMP) };
        assert!(!verdict::judge(&world, &endpoint, IN, &mut error, Some(&packet(UDP))).is_allowed);
        world.allow_all(1, 0);
        assert!(verdict::judge(&world, &endpoint, IN, &mut error, Some(&packet(UDP))).is_allowed);
        assert_eq!(world.is_related(&endpoint, &packet(UDP)), FlowState::Unknown);
    });
}

/// Connections that the programs know nothing of any more: TCP, and SCTP past its INIT.
fn midway() -> [Packet; 2] {
    [tcp(ACK), Packet { detail: 0, ..packet(SCTP) }]
}

fn openings() -> [Packet; 2] {
    [tcp(SYN), Packet { detail: 1, is_opening: true, ..packet(SCTP) }]
}

#[test]
fn an_idle_connection_is_still_its_openers() {
    for (opening, midway) in openings().into_iter().zip(midway()) {
        with_pod(|mut world, mut endpoint| {
            // A server whose own connections nobody restricts.
            endpoint.sets = [1, 0];
            world.allow_all(1, 0);
            assert!(passes(&world, &endpoint, IN, &opening));
            world.clock.now += support::TIMEOUTS.sctp + 1;
            assert!(passes(&world, &endpoint, OUT, &midway), "the server speaks first");
            world.rows.clear();
            rejudge(&mut endpoint);
            let cut = Verdict::drop(Reason::PolicyCut, 0);
            assert_eq!(judge(&world, &endpoint, IN, &midway), cut);
            assert_eq!(judge(&world, &endpoint, OUT, &midway), cut);
            // However long it was idle, as long as anything is known of it.
            world.clock.now += support::TIMEOUTS.tcp_established + 1;
            assert_eq!(judge(&world, &endpoint, OUT, &midway), cut);
            assert_eq!(judge(&world, &endpoint, IN, &midway), cut);
            assert!(passes(&world, &endpoint, OUT, &opening), "one of its own");
        });
    }
}

#[test]
fn an_idle_connection_of_the_pods_passes_whoever_speaks_first() {
    for (opening, midway) in openings().into_iter().zip(midway()) {
        with_pod(|mut world, endpoint| {
            world.allow_all(2, 0);
            assert!(passes(&world, &endpoint, OUT, &opening));
            world.clock.now += support::TIMEOUTS.sctp + 1;
            assert!(!passes(&world, &endpoint, IN, &opening), "a new one of the other side's");
            assert!(passes(&world, &endpoint, IN, &midway));
            assert!(passes(&world, &endpoint, OUT, &midway));
            assert_eq!(world.is_established(&endpoint, OUT, &midway), FlowState::Allowed);
        });
    }
}

#[test]
fn keep_keeps_no_connection_that_was_idle_for_its_time() {
    with_pod(|mut world, mut endpoint| {
        world.keeps_established = true;
        world.allow_all(1, 0);
        assert!(passes(&world, &endpoint, IN, &tcp(SYN)));
        world.rows.clear();
        rejudge(&mut endpoint);
        assert!(passes(&world, &endpoint, IN, &tcp(ACK)));
        world.clock.now += support::TIMEOUTS.tcp_other + 1;
        assert!(!passes(&world, &endpoint, IN, &tcp(ACK)));
        assert!(!passes(&world, &endpoint, OUT, &tcp(ACK)));
    });
}

#[test]
fn a_connection_whose_opener_nobody_saw_is_cut_by_the_policies_of_either_end() {
    for midway in midway() {
        for first in [IN, OUT] {
            for cut in [1, 2] {
                with_pod(|mut world, mut endpoint| {
                    world.allow_all(1, 0);
                    world.allow_all(2, 0);
                    assert!(passes(&world, &endpoint, first, &midway));
                    for next in [IN, OUT] {
                        assert!(passes(&world, &endpoint, next, &midway));
                        assert_eq!(
                            world.is_established(&endpoint, next, &midway),
                            FlowState::Allowed
                        );
                    }
                    rejudge(&mut endpoint);
                    assert!(passes(&world, &endpoint, OUT, &midway), "both still allow it");
                    world.rows.remove(&(cut, 0));
                    rejudge(&mut endpoint);
                    for next in [IN, OUT] {
                        let verdict = judge(&world, &endpoint, next, &midway);
                        assert_eq!(verdict, Verdict::drop(Reason::PolicyCut, 0), "{first:?} {cut}");
                    }
                });
            }
        }
    }
}

#[test]
fn what_one_direction_denies_was_opened_in_the_other() {
    for midway in midway() {
        for (first, allowing, other) in [(IN, 1, 2), (OUT, 2, 1)] {
            with_pod(|mut world, mut endpoint| {
                world.allow_all(allowing, 0);
                assert!(passes(&world, &endpoint, first, &midway));
                // Later changes of the other direction's policies do not concern it.
                world.allow_all(other, 0);
                rejudge(&mut endpoint);
                assert!(passes(&world, &endpoint, first, &midway));
                world.rows.remove(&(other, 0));
                rejudge(&mut endpoint);
                assert!(passes(&world, &endpoint, IN, &midway));
                assert!(passes(&world, &endpoint, OUT, &midway));
                world.rows.clear();
                rejudge(&mut endpoint);
                assert!(!passes(&world, &endpoint, OUT, &midway));
            });
        }
    }
}

#[test]
fn nothing_midway_passes_that_its_own_direction_denies() {
    for midway in midway() {
        for (first, allowing) in [(IN, 2), (OUT, 1)] {
            with_pod(|mut world, endpoint| {
                world.allow_all(allowing, 0);
                let verdict = judge(&world, &endpoint, first, &midway);
                assert_eq!(verdict, Verdict::drop(Reason::Policy, 0), "{first:?}");
            });
        }
    }
}

#[test]
fn who_opens_on_the_ports_of_an_unseen_connection_is_judged_as_opener() {
    with_pod(|mut world, mut endpoint| {
        world.allow_all(1, 0);
        world.allow_all(2, 0);
        assert!(passes(&world, &endpoint, OUT, &tcp(ACK)));
        assert!(passes(&world, &endpoint, OUT, &tcp(SYN)));
        world.rows.remove(&(1, 0));
        rejudge(&mut endpoint);
        assert!(passes(&world, &endpoint, OUT, &tcp(ACK)), "it is the pod's now");
        assert!(passes(&world, &endpoint, IN, &tcp(ACK)));
    });
}

#[test]
fn a_reset_that_nobody_heeds_does_not_end_a_connection() {
    with_pod(|mut world, mut endpoint| {
        world.allow_all(1, 0);
        for (direction, flags) in [(IN, SYN), (OUT, SYN | ACK), (IN, ACK), (IN, RST), (OUT, ACK)] {
            assert!(passes(&world, &endpoint, direction, &tcp(flags)));
        }
        world.clock.now += support::TIMEOUTS.tcp_other + 1;
        assert_eq!(world.is_established(&endpoint, IN, &tcp(ACK)), FlowState::Allowed);
        // One that nothing comes after ends it.
        assert!(passes(&world, &endpoint, OUT, &tcp(RST)));
        world.clock.now += support::TIMEOUTS.tcp_other + 1;
        assert_eq!(world.is_established(&endpoint, IN, &tcp(ACK)), FlowState::Unknown);
        rejudge(&mut endpoint);
        assert!(passes(&world, &endpoint, IN, &tcp(ACK)), "still the other side's");
    });
}
