//! The loaded programs, frame by frame, against what a verdict should be.

use netpol_common::layout::Reason;
use netpol_compile::{ClassId, SetId, Step};
use netpol_datapath::run::Place;
use netpol_datapath::{AttachMode, Datapath, LoadOptions, Maps, observe};
use netpol_endpoint::Exit;
use netpol_model::Direction::{Egress, Ingress};
use netpol_observe::frames::{Transport, frame, frame_of_type, packet};
use netpol_testkit::rig::{ID, POD, POD6, Rig, ack, in_node, syn, syn_ack, udp};

const PEER: &str = "10.2.0.2";
const PEER6: &str = "fd00:2::2";

fn echo(kind: u8) -> Transport {
    Transport::Icmp { kind, code: 0, body: vec![0x12, 0x34, 0, 1, 0, 0, 0, 0] }
}

#[test]
fn an_isolated_pod_gets_nothing_that_no_row_allows() {
    in_node(|| {
        let mut rig = Rig::new();
        rig.isolate(1, 2);
        for remote in [PEER, PEER6] {
            assert!(!rig.comes_in(remote, &syn(1000, 80)), "{remote}");
            assert!(!rig.goes_out(remote, &syn(1000, 80)), "{remote}");
            assert!(!rig.comes_in(remote, &udp(1000, 80)), "{remote}");
            assert!(!rig.goes_out(remote, &udp(1000, 80)), "{remote}");
        }
        assert_eq!(rig.counted(Ingress, Reason::Policy), 4);
        assert_eq!(rig.counted(Egress, Reason::Policy), 4);
        assert_eq!(rig.counted(Ingress, Reason::NewFlow), 0);
    });
}

#[test]
fn replies_pass_and_only_replies() {
    in_node(|| {
        let mut rig = Rig::new();
        for (remote, peer) in [(PEER, "10.2.0.0/16"), (PEER6, "fd00:2::/64")] {
            rig.class(peer, 3);
            rig.allow_ports(1, 3, [vec![(80, 80)], vec![(53, 53)], vec![]]);
            rig.isolate(1, 2);
            // The answer before the question.
            assert!(!rig.goes_out(remote, &syn_ack(80, 1000)));
            assert!(rig.comes_in(remote, &syn(1000, 80)));
            assert!(rig.goes_out(remote, &syn_ack(80, 1000)));
            assert!(rig.comes_in(remote, &ack(1000, 80)));
            assert!(rig.goes_out(remote, &ack(80, 1000)));
            // Another connection in the same direction as the replies.
            assert!(!rig.goes_out(remote, &syn(80, 1000)));
            assert!(!rig.goes_out(remote, &syn(80, 1001)));
            assert!(rig.comes_in(remote, &udp(1000, 53)));
            assert!(rig.goes_out(remote, &udp(53, 1000)));
            assert!(!rig.goes_out(remote, &udp(53, 1001)));
        }
        assert_eq!(rig.counted(Ingress, Reason::NewFlow), 4);
        assert_eq!(rig.counted(Egress, Reason::NewFlow), 0);
    });
}

#[test]
fn port_sets_are_exact_at_every_edge() {
    in_node(|| {
        let mut rig = Rig::new();
        let many: Vec<(u16, u16)> = (0..1000).map(|i| (i * 10 + 5, i * 10 + 7)).collect();
        rig.class(PEER, 3);
        rig.allow_ports(2, 3, [many.clone(), vec![(0, 0), (65535, 65535)], vec![(100, 200)]]);
        rig.isolate(0, 2);
        for port in (0..10_020).chain([65_535]) {
            let expected = many.iter().any(|&(first, last)| (first..=last).contains(&port));
            assert_eq!(rig.goes_out(PEER, &syn(999, port)), expected, "TCP {port}");
        }
        for (port, expected) in [(0, true), (1, false), (65_534, false), (65_535, true)] {
            assert_eq!(rig.goes_out(PEER, &udp(999, port)), expected, "UDP {port}");
        }
        for (port, expected) in [(99, false), (100, true), (200, true), (201, false)] {
            let init = Transport::Sctp { source: 999, destination: port, chunk: 1 };
            assert_eq!(rig.goes_out(PEER, &init), expected, "SCTP {port}");
        }
    });
}

#[test]
fn the_longest_block_decides_and_an_address_of_its_own_before_it() {
    in_node(|| {
        let mut rig = Rig::new();
        for (block, class) in [("0.0.0.0/0", 1), ("10.0.0.0/8", 2), ("10.2.0.0/16", 3), (PEER, 4)] {
            rig.class(block, class);
        }
        for class in [1, 3] {
            rig.allow_all(2, class);
        }
        rig.isolate(0, 2);
        assert!(rig.goes_out("8.8.8.8", &udp(1, 1)));
        assert!(!rig.goes_out("10.9.0.1", &udp(1, 1)));
        assert!(rig.goes_out("10.2.0.9", &udp(1, 1)));
        assert!(!rig.goes_out(PEER, &udp(1, 1)));
        // ::/0 was never allowed.
        assert!(!rig.goes_out(PEER6, &udp(1, 1)));
        rig.class("::/0", 1);
        assert!(rig.goes_out(PEER6, &udp(1, 2)));
    });
}

#[test]
fn a_class_without_a_row_gets_what_everybody_gets() {
    in_node(|| {
        let mut rig = Rig::new();
        rig.class(PEER, 4);
        rig.allow_ports(2, 0, [vec![(443, 443)], vec![], vec![]]);
        rig.isolate(0, 2);
        assert!(rig.goes_out(PEER, &syn(1, 443)));
        assert!(!rig.goes_out(PEER, &syn(1, 444)));
    });
}

#[test]
fn icmp_needs_a_rule_without_ports() {
    in_node(|| {
        let mut rig = Rig::new();
        rig.class(PEER, 3);
        rig.class(PEER6, 3);
        rig.allow_ports(2, 3, [vec![(0, 65535)], vec![(0, 65535)], vec![(0, 65535)]]);
        rig.isolate(1, 2);
        assert!(!rig.goes_out(PEER, &echo(8)));
        assert!(!rig.goes_out(PEER6, &echo(128)));
        rig.apply(&[Step::AddRow(SetId(2), ClassId(3), netpol_compile::Row::All)]);
        assert!(!rig.comes_in(PEER, &echo(0)), "a reply to nothing");
        assert!(rig.goes_out(PEER, &echo(8)));
        assert!(rig.comes_in(PEER, &echo(0)));
        assert!(rig.goes_out(PEER6, &echo(128)));
        assert!(rig.comes_in(PEER6, &echo(129)));
        assert!(!rig.comes_in(PEER, &echo(8)), "a request the other way");
        let gre = Transport::Raw { protocol: 47, payload: vec![0; 8] };
        assert!(!rig.comes_in(PEER, &gre));
        assert!(rig.goes_out(PEER, &gre));
        assert!(rig.comes_in(PEER, &gre), "the reply");
    });
}

#[test]
fn a_flow_is_cut_whichever_end_sends_next_and_comes_back_when_allowed() {
    in_node(|| {
        let mut rig = Rig::new();
        rig.class(PEER, 3);
        rig.allow_ports(1, 3, [vec![(80, 80)], vec![(53, 53)], vec![]]);
        // Egress open: the pod's packets must not count as flows of its own.
        rig.isolate(1, 0);
        assert!(rig.comes_in(PEER, &syn(1000, 80)));
        assert!(rig.goes_out(PEER, &ack(80, 1000)));
        assert!(rig.comes_in(PEER, &udp(1000, 53)));
        rig.class(PEER, 4);
        rig.rejudge();
        assert!(!rig.goes_out(PEER, &ack(80, 1000)), "the pod's end");
        assert!(!rig.comes_in(PEER, &ack(1000, 80)), "the other end");
        assert!(!rig.goes_out(PEER, &udp(53, 1000)));
        assert_eq!(rig.counted(Egress, Reason::PolicyCut), 2);
        assert_eq!(rig.counted(Ingress, Reason::PolicyCut), 1);
        rig.class(PEER, 3);
        rig.rejudge();
        assert!(rig.comes_in(PEER, &ack(1000, 80)));
        assert!(rig.goes_out(PEER, &ack(80, 1000)));
    });
}

#[test]
fn keep_lets_old_flows_live_and_no_new_ones() {
    in_node(|| {
        let options = LoadOptions { keep_established: true, ..LoadOptions::default() };
        let mut rig = Rig::with(&options, AttachMode::Auto);
        rig.class(PEER, 3);
        rig.allow_all(1, 3);
        rig.isolate(1, 2);
        assert!(rig.comes_in(PEER, &syn(1000, 80)));
        rig.class(PEER, 4);
        rig.rejudge();
        assert!(rig.goes_out(PEER, &ack(80, 1000)));
        assert!(rig.comes_in(PEER, &ack(1000, 80)));
        assert!(!rig.comes_in(PEER, &syn(1001, 80)));
    });
}

#[test]
fn flows_of_an_earlier_owner_of_the_id_mean_nothing() {
    in_node(|| {
        let mut rig = Rig::new();
        rig.class(PEER, 3);
        rig.allow_all(2, 3);
        rig.isolate(1, 2);
        assert!(rig.goes_out(PEER, &udp(1000, 53)));
        assert!(rig.comes_in(PEER, &udp(53, 1000)));
        rig.datapath.remove_endpoint(ID).unwrap();
        let addresses = [POD.parse().unwrap(), POD6.parse().unwrap()];
        rig.datapath.add_endpoint(ID, rig.ifindex, addresses).unwrap();
        rig.isolate(1, 2);
        assert!(!rig.comes_in(PEER, &udp(53, 1000)));
    });
}

#[test]
fn what_the_node_itself_sends_passes_and_is_answered() {
    in_node(|| {
        let mut rig = Rig::new();
        rig.isolate(1, 2);
        let probe = frame(&packet(PEER.parse().unwrap(), POD.parse().unwrap(), &syn(1000, 80)));
        assert!(!rig.passes_frame(Ingress, &probe), "forwarded");
        let from_node = Place { ifindex: rig.ifindex, ingress_ifindex: 0 };
        assert!(rig.passes_at(Ingress, &probe, from_node));
        assert!(rig.goes_out(PEER, &syn_ack(80, 1000)));
        rig.rejudge();
        assert!(rig.goes_out(PEER, &ack(80, 1000)), "still the node's flow");
        assert!(!rig.goes_out(PEER, &syn(1000, 80)), "to the node is egress");
    });
}

#[test]
fn a_pod_sends_from_its_own_addresses_only() {
    in_node(|| {
        let spoofed =
            frame(&packet("10.1.0.9".parse().unwrap(), PEER.parse().unwrap(), &udp(1000, 53)));
        let mut rig = Rig::new();
        rig.isolate(1, 0);
        assert!(!rig.passes_frame(Egress, &spoofed));
        assert_eq!(rig.counted(Egress, Reason::SourceAddress), 1);
        assert!(rig.goes_out(PEER, &udp(1000, 53)));
        let options = LoadOptions { check_source: false, ..LoadOptions::default() };
        let mut rig = Rig::with(&options, AttachMode::Auto);
        rig.isolate(1, 0);
        assert!(rig.passes_frame(Egress, &spoofed));
    });
}

#[test]
fn a_pods_own_addresses_are_those_it_has_now() {
    in_node(|| {
        let mut rig = Rig::new();
        rig.isolate(1, 0);
        let sends = |rig: &mut Rig, address: &str, port: u16| {
            let source = address.parse().unwrap();
            rig.passes_frame(Egress, &frame(&packet(source, PEER.parse().unwrap(), &udp(port, 53))))
        };
        let (first, second, third) = ("10.1.0.1", "10.1.0.5", "10.1.0.9");
        let all: [(&[&str], [bool; 3]); 5] = [
            (&[second], [false, true, false]),
            (&[second, third], [false, true, true]),
            (&[third], [false, false, true]),
            (&[], [false, false, false]),
            (&[first], [true, false, false]),
        ];
        for (number, (addresses, allowed)) in (1000..).zip(all) {
            let addresses = addresses.iter().map(|address| address.parse().unwrap());
            rig.datapath.add_endpoint(ID, rig.ifindex, addresses).unwrap();
            let seen = [first, second, third].map(|address| sends(&mut rig, address, number));
            assert_eq!(seen, allowed, "{number}");
        }
    });
}

#[test]
fn what_an_earlier_release_left_in_an_entry_says_nothing_of_addresses() {
    in_node(|| {
        let mut rig = Rig::new();
        rig.isolate(1, 0);
        let Rig { datapath, maps, ifindex, other_ifindex, cleanup } = rig;
        drop(datapath);
        // It gives a pod another address, or the entry to another pod, and leaves this word.
        let former = [10, 1, 0, 9];
        let table = Maps::open(&cleanup.0, true).unwrap().endpoints;
        let slot = (0..table.len()).find(|&slot| table.load(slot, 0) != 0).unwrap();
        table.store(slot, 3, u32::from_ne_bytes(former).into());
        let options = LoadOptions::default();
        let datapath = Datapath::open(&cleanup.0, &options, AttachMode::Auto).unwrap();
        let mut rig = Rig { datapath, maps, ifindex, other_ifindex, cleanup };
        let forged = packet(former.into(), PEER.parse().unwrap(), &udp(1000, 53));
        assert!(!rig.passes_frame(Egress, &frame(&forged)));
        assert_eq!(rig.counted(Egress, Reason::SourceAddress), 1);
        assert!(rig.goes_out(PEER, &udp(1000, 53)), "its own address is in the table");
    });
}

#[test]
fn icmp_errors_pass_for_known_flows_only() {
    in_node(|| {
        let mut rig = Rig::new();
        let router = "10.9.9.9";
        let error = |about: &[u8]| Transport::Icmp {
            kind: 3,
            code: 4,
            body: [&[0, 0, 5, 0], &about[..28]].concat(),
        };
        let sent = packet(POD.parse().unwrap(), PEER.parse().unwrap(), &ack(1000, 443));
        rig.class(PEER, 3);
        rig.allow_all(2, 3);
        rig.isolate(1, 2);
        assert!(!rig.comes_in(router, &error(&sent)), "no such flow yet");
        assert!(rig.goes_out(PEER, &syn(1000, 443)));
        assert!(rig.comes_in(router, &error(&sent)));
        let other = packet(POD.parse().unwrap(), PEER.parse().unwrap(), &ack(1001, 443));
        assert!(!rig.comes_in(router, &error(&other)));
        rig.class(PEER, 4);
        rig.rejudge();
        assert!(!rig.comes_in(router, &error(&sent)), "the flow is no longer allowed");

        rig.class(PEER6, 3);
        let sent = packet(POD6.parse().unwrap(), PEER6.parse().unwrap(), &udp(1000, 443));
        let too_big =
            Transport::Icmp { kind: 2, code: 0, body: [&[0, 0, 5, 0], &sent[..48]].concat() };
        assert!(!rig.comes_in("fd00:9::9", &too_big));
        assert!(rig.goes_out(PEER6, &udp(1000, 443)));
        assert!(rig.comes_in("fd00:9::9", &too_big));
    });
}

#[test]
fn arp_and_neighbour_discovery_pass_but_pods_are_no_routers() {
    in_node(|| {
        let mut rig = Rig::new();
        rig.isolate(1, 2);
        // As `frame` has it; to 10.244.0.1.
        let link = frame_of_type(0x0806, &[]);
        let mut arp = vec![0, 1, 8, 0, 6, 4, 0, 1];
        arp.extend(&link[6..12]);
        arp.extend(POD.parse::<std::net::Ipv4Addr>().unwrap().octets());
        arp.extend([0, 0, 0, 0, 0, 0, 10, 244, 0, 1]);
        assert!(rig.passes_frame(Egress, &frame_of_type(0x0806, &arp)));
        assert!(!rig.passes_frame(Egress, &frame_of_type(0x0806, &[0; 28])));
        arp[17] ^= 1;
        assert!(!rig.passes_frame(Egress, &frame_of_type(0x0806, &arp)));
        assert!(rig.passes_frame(Ingress, &frame_of_type(0x0806, &[0; 28])));
        let nd = |kind: u8, hop_limit: u8| {
            let own: std::net::Ipv6Addr = POD6.parse().unwrap();
            let mut body = vec![0; 4];
            if kind != 133 {
                body.extend(own.octets());
            }
            let icmp = Transport::Icmp { kind, code: 0, body };
            let mut bytes = packet(POD6.parse().unwrap(), "fe80::1".parse().unwrap(), &icmp);
            bytes[7] = hop_limit;
            frame(&bytes)
        };
        for kind in [133, 135, 136] {
            assert!(rig.passes_frame(Egress, &nd(kind, 255)), "{kind}");
        }
        assert!(!rig.passes_frame(Egress, &nd(143, 1)), "a report without a router alert");
        assert!(!rig.passes_frame(Egress, &nd(135, 64)), "forwarded neighbour discovery");
        for kind in [134, 137] {
            assert!(!rig.passes_frame(Egress, &nd(kind, 255)), "{kind}");
        }
        assert_eq!(rig.counted(Egress, Reason::RouterMessage), 2);
    });
}

#[test]
fn what_cannot_be_judged_is_dropped_if_isolated_and_left_alone_otherwise() {
    in_node(|| {
        let mut rig = Rig::new();
        rig.allow_all(2, 0);
        let whole = frame(&packet(POD.parse().unwrap(), PEER.parse().unwrap(), &syn(1000, 80)));
        let whole6 = frame(&packet(POD6.parse().unwrap(), PEER6.parse().unwrap(), &syn(1000, 80)));
        let odd = [
            frame_of_type(0x88cc, &[0; 40]),
            frame_of_type(0x8100, &whole[12..]),
            whole[..14 + 30].to_vec(),
            whole6[..14 + 45].to_vec(),
        ];
        rig.isolate(1, 2);
        for (index, bytes) in odd.iter().enumerate() {
            assert!(!rig.passes_frame(Egress, bytes), "frame {index}");
        }
        assert_eq!(rig.counted(Egress, Reason::Ethertype), 2);
        assert_eq!(rig.counted(Egress, Reason::Truncated), 2);
        assert!(rig.passes_frame(Egress, &whole) && rig.passes_frame(Egress, &whole6));
        rig.isolate(1, 0);
        for (index, bytes) in odd.iter().enumerate() {
            assert!(rig.passes_frame(Egress, bytes), "frame {index}");
        }
    });
}

#[test]
fn options_and_extension_headers_are_looked_through() {
    in_node(|| {
        let mut rig = Rig::new();
        rig.class(PEER, 3);
        rig.class(PEER6, 3);
        rig.allow_ports(2, 3, [vec![(80, 80)], vec![], vec![]]);
        rig.isolate(1, 2);
        for (port, expected) in [(80, true), (81, false)] {
            let plain = packet(POD.parse().unwrap(), PEER.parse().unwrap(), &syn(1000, port));
            let mut bytes = plain[..20].to_vec();
            bytes[0] = 0x46;
            bytes[3] += 4;
            bytes.extend([1, 1, 1, 0]);
            bytes.extend(&plain[20..]);
            assert_eq!(rig.passes_frame(Egress, &frame(&bytes)), expected);

            let plain = packet(POD6.parse().unwrap(), PEER6.parse().unwrap(), &syn(1000, port));
            for kinds in [vec![0], vec![60], vec![0, 60, 43, 60], vec![51], vec![44]] {
                let mut bytes = plain[..40].to_vec();
                bytes[6] = kinds[0];
                for (index, kind) in kinds.iter().enumerate() {
                    let next = kinds.get(index + 1).copied().unwrap_or(6);
                    // Eight bytes each; an AH of two words more than its minimum of -2.
                    bytes.extend([next, 0, 0, 0, 0, 0, 0, 0]);
                    assert!(*kind != 51 || bytes.len().is_multiple_of(8));
                }
                let length = bytes.len() - 40 + plain.len() - 40;
                bytes[4..6].copy_from_slice(&(length as u16).to_be_bytes());
                bytes.extend(&plain[40..]);
                assert_eq!(rig.passes_frame(Egress, &frame(&bytes)), expected, "{kinds:?} {port}");
            }
        }
        let mut endless = packet(POD6.parse().unwrap(), PEER6.parse().unwrap(), &syn(1, 80));
        endless[6] = 60;
        let tail = endless.split_off(40);
        for _ in 0..9 {
            endless.extend([60, 0, 0, 0, 0, 0, 0, 0]);
        }
        endless.extend(tail);
        let length = endless.len() as u16 - 40;
        endless[4..6].copy_from_slice(&length.to_be_bytes());
        assert!(!rig.passes_frame(Egress, &frame(&endless)));
        assert_eq!(rig.counted(Egress, Reason::ExtensionHeaders), 1);
    });
}

#[test]
fn later_fragments_share_the_fate_of_the_first() {
    in_node(|| {
        let mut rig = Rig::new();
        rig.class(PEER, 3);
        rig.allow_ports(2, 3, [vec![], vec![(53, 53)], vec![]]);
        rig.isolate(1, 2);
        let fragment = |port: u16, id: u8, offset: u16, more: bool| {
            let mut bytes = packet(POD.parse().unwrap(), PEER.parse().unwrap(), &udp(1000, port));
            bytes[5] = id;
            let word = offset | if more { 0x2000 } else { 0 };
            bytes[6..8].copy_from_slice(&word.to_be_bytes());
            frame(&bytes)
        };
        assert!(!rig.passes_frame(Egress, &fragment(53, 1, 185, true)), "the first is unknown");
        assert_eq!(rig.counted(Egress, Reason::Fragment), 1);
        assert!(rig.passes_frame(Egress, &fragment(53, 1, 0, true)));
        assert!(rig.passes_frame(Egress, &fragment(53, 1, 185, true)));
        assert!(rig.passes_frame(Egress, &fragment(53, 1, 370, false)));
        assert!(!rig.passes_frame(Egress, &fragment(54, 2, 0, true)));
        assert!(!rig.passes_frame(Egress, &fragment(53, 2, 185, false)), "another datagram");
        // Where ports do not matter, order does not either.
        rig.apply(&[Step::AddRow(SetId(2), ClassId(3), netpol_compile::Row::All)]);
        assert!(rig.passes_frame(Egress, &fragment(53, 3, 185, false)));
    });
}

/// A pod that is isolated for ingress only has the source check too: what it sends must not get
/// around it by being more than can be parsed.
#[test]
fn an_unparsable_packet_is_sent_from_the_pods_own_address_too() {
    in_node(|| {
        let mut rig = Rig::new();
        rig.isolate(1, 0);
        let endless = |source: &str| {
            let (source, peer) = (source.parse().unwrap(), "fd00:2::1".parse().unwrap());
            let mut bytes = packet(source, peer, &udp(1000, 53));
            let tail = bytes.split_off(40);
            let last = std::mem::replace(&mut bytes[6], 60);
            for left in (0..9).rev() {
                bytes.extend([if left == 0 { last } else { 60 }, 0, 1, 4, 0, 0, 0, 0]);
            }
            bytes.extend(tail);
            let length = bytes.len() as u16 - 40;
            bytes[4..6].copy_from_slice(&length.to_be_bytes());
            frame(&bytes)
        };
        assert!(rig.passes_frame(Egress, &endless(POD6)));
        assert!(!rig.passes_frame(Egress, &endless("fd00:1::99")));
        assert_eq!(rig.counted(Egress, Reason::SourceAddress), 1);
        assert!(rig.passes_frame(Egress, &frame_of_type(0x88cc, &[0; 46])), "no address at all");
    });
}

/// With destination options behind the fragment header, as sockets with IPV6_DSTOPTS send them,
/// only the first fragment of a datagram tells that it is UDP.
#[test]
fn later_ipv6_fragments_need_not_name_the_protocol() {
    in_node(|| {
        let mut rig = Rig::new();
        let peer = "fd00:2::1";
        rig.class(peer, 3);
        rig.allow_ports(2, 3, [vec![], vec![(53, 53)], vec![]]);
        rig.isolate(1, 2);
        let fragment = |port: u16, id: u8, offset: u16| {
            let plain = packet(POD6.parse().unwrap(), peer.parse().unwrap(), &udp(1000, port));
            let [high, low] = (offset << 3 | u16::from(offset == 0)).to_be_bytes();
            let mut bytes = [&plain[..40], &[60, 0, high, low, 0, 0, 0, id]].concat();
            bytes[6] = 44;
            if offset == 0 {
                bytes.extend([17, 0, 1, 4, 0, 0, 0, 0]);
            }
            bytes.extend(&plain[40..]);
            let length = bytes.len() as u16 - 40;
            bytes[4..6].copy_from_slice(&length.to_be_bytes());
            frame(&bytes)
        };
        assert!(rig.passes_frame(Egress, &fragment(53, 1, 0)));
        assert!(rig.passes_frame(Egress, &fragment(53, 1, 185)));
        assert!(!rig.passes_frame(Egress, &fragment(54, 2, 0)));
        assert!(!rig.passes_frame(Egress, &fragment(53, 2, 185)), "not what its own bytes say");
    });
}

#[test]
fn flows_are_listed_as_they_are() {
    in_node(|| {
        let mut rig = Rig::new();
        rig.allow_all(1, 0);
        rig.isolate(1, 2);
        assert!(rig.comes_in(PEER, &syn(1000, 80)));
        assert!(rig.goes_out(PEER, &syn_ack(80, 1000)));
        assert!(rig.comes_in(PEER6, &udp(1001, 53)));
        let mut flows = observe::flows(&rig.maps);
        flows.sort_by_key(|flow| flow.protocol);
        assert_eq!(flows.len(), 2);
        let tcp = &flows[0];
        assert_eq!((tcp.endpoint, tcp.protocol, tcp.opened), (ID.0, 6, Some(Ingress)));
        assert_eq!((tcp.local.to_string(), tcp.local_port), (POD.to_owned(), 80));
        assert_eq!((tcp.remote.to_string(), tcp.remote_port), (PEER.to_owned(), 1000));
        assert!(tcp.is_replied && !tcp.is_closing && !tcp.is_from_node);
        assert!(tcp.idle_seconds < 60, "{}", tcp.idle_seconds);
        let dns = &flows[1];
        assert_eq!((dns.remote.to_string(), dns.remote_port), (PEER6.to_owned(), 1001));
        assert!(!dns.is_replied);
    });
}

#[test]
fn an_attached_program_without_an_endpoint_entry_fails_closed() {
    in_node(|| {
        let mut rig = Rig::new();
        let bytes = frame(&packet(PEER.parse().unwrap(), POD.parse().unwrap(), &syn(1, 80)));
        assert!(!rig.passes_frame(Ingress, &bytes));
        let counters = observe::counters(&rig.maps, 0, Ingress).unwrap();
        assert_eq!(counters[Reason::UnknownEndpoint as usize], 1);
    });
}

#[test]
fn a_service_is_judged_by_its_backends() {
    in_node(|| {
        let mut rig = Rig::new();
        let exit = Exit { ifindex: rig.ifindex, incarnation: 1, has_link_header: true };
        assert!(rig.datapath.set_exits(&[exit]).is_empty());
        for (vip, other) in [("10.96.0.1", "10.96.0.2"), ("fd00:96::1", "fd00:96::2")] {
            rig.allow_ports(2, 3, [vec![(8080, 8081)], vec![], vec![]]);
            rig.allow_all(2, 4);
            rig.isolate(1, 2);
            assert!(!rig.goes_out(vip, &syn(1000, 80)), "an address of no class");
            rig.service(vip, 80, &[(3, 8080)]);
            assert!(rig.goes_out(vip, &syn(1000, 80)));
            assert!(rig.comes_in(vip, &syn_ack(80, 1000)));
            assert!(!rig.goes_out(vip, &syn(1000, 81)), "another port of the address");
            assert!(!rig.goes_out(vip, &udp(1000, 80)), "another protocol");
            assert!(!rig.goes_out(other, &syn(1000, 80)));
            rig.service(vip, 80, &[(3, 8080), (3, 8081), (4, 9)]);
            assert!(rig.goes_out(vip, &syn(1001, 80)));
            rig.service(vip, 80, &[(3, 8082)]);
            assert!(!rig.goes_out(vip, &syn(1002, 80)));
            assert!(rig.goes_out(vip, &ack(1001, 80)), "judged before");
            rig.rejudge();
            assert!(!rig.goes_out(vip, &ack(1001, 80)));
            // The address itself does not matter as long as there is a Service.
            rig.class(vip, 4);
            assert!(!rig.goes_out(vip, &syn(1004, 80)));
            assert!(rig.goes_out(vip, &syn(1004, 81)));
            // Who stands behind it nobody knows: it is judged again where it leaves.
            rig.service(vip, 80, &[]);
            assert!(rig.goes_out(vip, &syn(1003, 80)));
        }
        let vip = "10.96.0.1";
        let many: Vec<(u32, u16)> = (0..20_000u16).map(|i| (9, i)).collect();
        rig.service(vip, 80, &many);
        assert!(!rig.goes_out(vip, &syn(1006, 80)));
        let all_but_one: Vec<_> = many.into_iter().chain([(4, 1)]).collect();
        rig.service(vip, 80, &all_but_one);
        assert!(rig.goes_out(vip, &syn(1007, 80)));
    });
}

/// Nobody has said by which interfaces packets leave, so nobody looks again at what may not be
/// translated, or to whom it should not be: it fails closed.
#[test]
fn nothing_goes_to_a_service_before_the_exits_are_guarded() {
    in_node(|| {
        let mut rig = Rig::new();
        let vip = "10.96.0.1";
        rig.allow_all(2, 4);
        rig.isolate(1, 2);
        let all = [vec![(4, 8080)], vec![(4, 8080), (3, 8080)], vec![]];
        for (count, backends) in (1..).zip(all) {
            rig.service(vip, 80, &backends);
            assert!(!rig.goes_out(vip, &syn(1005, 80)));
            assert_eq!(rig.counted(Egress, Reason::ServiceMixed), count);
        }
    });
}

/// A flow whose entry has to make way: its opener is not known any more.
#[test]
fn a_forgotten_connection_is_cut_by_the_policies_of_either_direction() {
    in_node(|| {
        for (peer, cut) in [(PEER, 1), (PEER6, 1), (PEER, 2), (PEER6, 2)] {
            let mut rig = Rig::new();
            rig.class(peer, 3);
            rig.allow_all(1, 3);
            rig.allow_all(2, 3);
            rig.isolate(1, 2);
            let init = Transport::Sctp { source: 80, destination: 1000, chunk: 0 };
            for (from_pod, to_pod) in [
                (ack(80, 1000), ack(1000, 80)),
                (init, Transport::Sctp { source: 1000, destination: 80, chunk: 3 }),
            ] {
                assert!(rig.goes_out(peer, &from_pod));
                assert!(rig.comes_in(peer, &to_pod));
            }
            let flows = observe::flows(&rig.maps);
            assert!(flows.iter().all(|flow| flow.opened.is_none() && !flow.is_from_node));
            assert_eq!(flows.len(), 2);
            // Another class, to which only the other direction allows anything.
            rig.class(peer, 4);
            rig.allow_all(3 - cut, 4);
            rig.rejudge();
            assert!(!rig.goes_out(peer, &ack(80, 1000)), "{peer} {cut}");
            assert!(!rig.comes_in(peer, &ack(1000, 80)), "{peer} {cut}");
            assert_eq!(rig.counted(Egress, Reason::PolicyCut), 1);
            assert_eq!(rig.counted(Ingress, Reason::PolicyCut), 1);
        }
    });
}

#[test]
fn a_connection_that_was_reset_but_goes_on_is_not_closing() {
    in_node(|| {
        let mut rig = Rig::new();
        rig.class(PEER, 3);
        rig.allow_all(1, 3);
        rig.isolate(1, 0);
        assert!(rig.comes_in(PEER, &syn(1000, 80)));
        assert!(rig.goes_out(PEER, &syn_ack(80, 1000)));
        let reset = Transport::Tcp { source: 1000, destination: 80, flags: 0x04 };
        assert!(rig.comes_in(PEER, &reset));
        let is_closing = |rig: &Rig| observe::flows(&rig.maps)[0].is_closing;
        assert!(is_closing(&rig));
        assert!(rig.goes_out(PEER, &ack(80, 1000)));
        assert!(!is_closing(&rig));
    });
}
