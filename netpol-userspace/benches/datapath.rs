//! Nanoseconds per packet of the loaded programs by BPF_PROG_TEST_RUN, next to a program that
//! does nothing, in interleaved rounds of one run. Prints medians and ratios; the figures of one
//! machine mean nothing on another, the ratios roughly do. Run it by `cargo xtask bench datapath`.

#[path = "../tests/common/mod.rs"]
mod common;

use std::time::Duration;

use common::{POD, POD6, Rig, ack, in_node, syn, syn_ack, udp};
use netpol_userspace::datapath::run::{Place, run};
use netpol_userspace::endpoint::Exit;
use netpol_userspace::frames::{Transport, frame, packet};

const ROUNDS: usize = 9;
const REPEAT: u32 = 400_000;
/// Frames of distinct flows per round.
const NEW_FLOWS: u16 = 4_000;
const PEER: &str = "10.2.0.2";
const PEER6: &str = "fd00:2::2";
const VIP: &str = "10.96.0.1";

/// One thing that is measured.
struct Case {
    name: &'static str,
    program: &'static str,
    frames: Vec<Vec<u8>>,
    repeat: u32,
    /// Nanoseconds per round.
    samples: Vec<f64>,
}

impl Case {
    fn new(name: &'static str, program: &'static str, frames: Vec<Vec<u8>>, repeat: u32) -> Self {
        Self { name, program, frames, repeat, samples: Vec::new() }
    }
}

fn main() {
    in_node(|| {
        let mut rig = Rig::new();
        for name in ["netpol_nothing", "netpol_fresh_ingress", "netpol_fresh_egress"] {
            rig.datapath.programs().load_program(name).expect("load a program for measurements");
        }
        for (address, class) in [(PEER, 3), (PEER6, 3)] {
            rig.class(address, class);
        }
        rig.allow_ports(1, 3, [vec![(80, 80)], vec![(53, 53)], vec![]]);
        rig.allow_ports(2, 3, [vec![(0, 65_535)], vec![(0, 65_535)], vec![]]);
        let exits = [rig.ifindex, rig.other_ifindex].map(|ifindex| Exit {
            ifindex,
            incarnation: 1,
            has_link_header: true,
        });
        assert!(rig.datapath.set_exits(&exits).is_empty());
        rig.service(VIP, 80, &[(3, 80), (4, 80)]);
        rig.isolate(1, 2);
        open_flows(&mut rig);
        let mut cases = cases();
        for _ in 0..ROUNDS {
            for case in &mut cases {
                let sample = measure(&mut rig, case);
                case.samples.push(sample);
            }
            // New flows must be new again in the next round.
            rig.datapath.remove_endpoint(common::ID).expect("remove the endpoint");
            let addresses = [POD, POD6].map(|text| text.parse().expect("an address"));
            rig.datapath.add_endpoint(common::ID, rig.ifindex, addresses).expect("add it again");
            rig.isolate(1, 2);
            open_flows(&mut rig);
        }
        report(&mut rig, &mut cases);
    });
}

fn open_flows(rig: &mut Rig) {
    for remote in [PEER, PEER6] {
        assert!(rig.comes_in(remote, &syn(1000, 80)));
        assert!(rig.goes_out(remote, &syn_ack(80, 1000)));
        assert!(rig.comes_in(remote, &udp(1000, 53)));
    }
    assert!(rig.goes_out(VIP, &syn(1000, 80)), "to be judged again");
}

fn cases() -> Vec<Case> {
    let towards = |remote: &str, transport: &Transport| {
        let pod = if remote == PEER { POD } else { POD6 };
        frame(&packet(address(remote), address(pod), transport))
    };
    let from = |remote: &str, transport: &Transport| {
        let pod = if remote == PEER6 { POD6 } else { POD };
        frame(&packet(address(pod), address(remote), transport))
    };
    let one = |bytes: Vec<u8>| vec![bytes];
    let distinct = |remote: &str| -> Vec<Vec<u8>> {
        (0..NEW_FLOWS).map(|port| towards(remote, &syn(10_000 + port, 80))).collect()
    };
    // Every run is another flow, of as many as there are ports.
    let fresh = |name, program, frame| Case::new(name, program, one(frame), 60_000);
    let (ingress, egress) = ("netpol_ingress", "netpol_egress");
    let transit = "netpol_transit";
    vec![
        Case::new("nothing", "netpol_nothing", one(towards(PEER, &ack(1000, 80))), REPEAT),
        Case::new("established TCP IPv4, in", ingress, one(towards(PEER, &ack(1000, 80))), REPEAT),
        Case::new("established TCP IPv4, out", egress, one(from(PEER, &ack(80, 1000))), REPEAT),
        Case::new("established UDP IPv4, in", ingress, one(towards(PEER, &udp(1000, 53))), REPEAT),
        Case::new("established TCP IPv6, in", ingress, one(towards(PEER6, &ack(1000, 80))), REPEAT),
        Case::new("established TCP IPv6, out", egress, one(from(PEER6, &ack(80, 1000))), REPEAT),
        Case::new("mixed Service TCP IPv4, out", egress, one(from(VIP, &ack(1000, 80))), REPEAT),
        Case::new("on its way, not stamped", transit, one(from(PEER, &ack(80, 1000))), REPEAT),
        Case::new("denied TCP IPv4, in", ingress, one(towards(PEER, &syn(1000, 81))), REPEAT),
        Case::new("denied TCP IPv6, in", ingress, one(towards(PEER6, &syn(1000, 81))), REPEAT),
        fresh("new flow TCP IPv4, in", "netpol_fresh_ingress", towards(PEER, &syn(1000, 80))),
        fresh("new flow TCP IPv4, out", "netpol_fresh_egress", from(PEER, &syn(1000, 80))),
        fresh("new flow TCP IPv6, in", "netpol_fresh_ingress", towards(PEER6, &syn(1000, 80))),
        fresh("new flow TCP IPv6, out", "netpol_fresh_egress", from(PEER6, &syn(1000, 80))),
        // One run per frame: the timer itself costs as much as the program, so these compare
        // only with each other.
        Case::new("single: nothing", "netpol_nothing", distinct(PEER), 1),
        Case::new("single: new flow IPv4", ingress, distinct(PEER), 1),
        Case::new("single: the same SYN again IPv4", ingress, distinct(PEER), 1),
        Case::new("single: new flow IPv6", ingress, distinct(PEER6), 1),
        Case::new("single: the same SYN again IPv6", ingress, distinct(PEER6), 1),
    ]
}

fn address(text: &str) -> std::net::IpAddr {
    text.parse().expect("an address")
}

/// Median nanoseconds per packet of this round.
fn measure(rig: &mut Rig, case: &Case) -> f64 {
    let place = Place { ifindex: rig.ifindex, ingress_ifindex: rig.other_ifindex };
    let program = rig.datapath.programs().program(case.program).expect("a program");
    let mut times: Vec<Duration> = case
        .frames
        .iter()
        .map(|bytes| run(program, bytes, place, case.repeat).expect("run").duration)
        .collect();
    times.sort();
    times[times.len() / 2].as_nanos() as f64
}

fn report(rig: &mut Rig, cases: &mut [Case]) {
    for name in ["netpol_ingress", "netpol_egress", "netpol_transit"] {
        let info = rig.datapath.programs().info(name).expect("info");
        println!(
            "{name}: {} instructions verified, {} bytes jitted",
            info.verified_instruction_count().unwrap_or_default(),
            info.size_jitted()
        );
    }
    let median = |samples: &[f64]| {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        (sorted[0], sorted[sorted.len() / 2], sorted[sorted.len() - 1])
    };
    println!("\n{:<31} {:>8} {:>15} {:>10}", "ns per packet", "median", "min..max", "x nothing");
    let mut floor = 1.0;
    for case in cases {
        let (low, middle, high) = median(&case.samples);
        if case.name.ends_with("nothing") {
            floor = middle.max(1.0);
        }
        let range = format!("{low:.0}..{high:.0}");
        println!("{:<31} {middle:>8.0} {range:>15} {:>10.1}", case.name, middle / floor);
    }
}
