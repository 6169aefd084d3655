//! The loaded programs against the same code run here: whatever the compiler, the linker, the
//! verifier's demands and the short ways for common packets made of it, every verdict and every
//! counter must be the same, for random frames in random sequences between policy changes.
//!
//! `NETPOL_SEED` repeats a run that failed, `NETPOL_CASES` sets how many sequences are tried.

use netpol_testkit::support;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use netpol_common::flow::{WORDS4, WORDS6};
use netpol_common::layout::{self, Address, N_COUNTERS, Reason};
use netpol_common::verdict::{Endpoint, Verdict};
use netpol_compile::{ClassId, PortSet, Row, SetId, Step};
use netpol_datapath::run::Place;
use netpol_datapath::{AttachMode, LoadOptions, observe};
use netpol_model::Direction;
use netpol_testkit::frame_generator::{Ends, Generator, PORTS};
use netpol_testkit::rig::{ID, POD, POD6, Rig, from_environment, in_node, new_seed};
use netpol_testkit::support::{AtomicTable, Random, World};

/// Sequences by default.
const CASES: u64 = 3_000;
/// Frames of a sequence.
const FRAMES: u64 = 60;
/// Sequences between two loads of the programs: keeps their tables far from full.
const CASES_PER_RIG: u64 = 300;

fn address_of(address: IpAddr) -> Address {
    match address {
        IpAddr::V4(v4) => support::v4(v4.octets()),
        IpAddr::V6(v6) => {
            let bytes = v6.octets();
            Address::v6(std::array::from_fn(|i| {
                u32::from_ne_bytes(std::array::from_fn(|j| bytes[i * 4 + j]))
            }))
        }
    }
}

/// Both sides, kept in the same state.
struct Pair<'a> {
    rig: Rig,
    world: World<'a>,
    endpoint: Endpoint,
    counters: [[u64; N_COUNTERS]; 2],
}

/// What the frames of a run came to.
#[derive(Default)]
struct Totals {
    n_allowed: u64,
    n_denied: u64,
    /// By [`Reason`].
    counted: [u64; N_COUNTERS],
}

impl<'a> Pair<'a> {
    fn new(keep: bool, check_source: bool, tables: &'a [AtomicTable; 2]) -> Self {
        let options =
            LoadOptions { keep_established: keep, check_source, ..LoadOptions::default() };
        let rig = Rig::with(&options, AttachMode::Auto);
        let mut world = World::new(&tables[0], &tables[1]);
        world.keeps_established = keep;
        world.checks_source = check_source;
        world.own.extend([POD, POD6].map(|pod| (ID.0, address_of(pod.parse().unwrap()))));
        let endpoint = Endpoint { id: ID.0, epoch: 1, born: 1, sets: [0, 0] };
        let counters = [[0; N_COUNTERS]; 2];
        Self { rig, world, endpoint, counters }
    }

    fn isolate(&mut self, sets: [u16; 2]) {
        self.endpoint.sets = sets;
        self.rig.isolate(sets[0], sets[1]);
    }

    fn rejudge(&mut self) {
        self.endpoint.epoch += 1;
        self.rig.rejudge();
    }

    fn set_class(&mut self, block: IpNet, class: u32) {
        self.rig.apply(&[Step::SetClass(block, ClassId(class))]);
        let address = address_of(block.network());
        if block.prefix_len() == block.max_prefix_len() {
            self.world.exact.insert(address, class);
        } else {
            let bits = u32::from(block.prefix_len());
            self.world.blocks.retain(|known| (known.0, known.1) != (address, bits));
            self.world.blocks.push((address, bits, class));
        }
    }

    fn clear_class(&mut self, address: IpAddr) {
        self.rig.apply(&[Step::ClearClass(address.into())]);
        self.world.exact.remove(&address_of(address));
    }

    /// The set allows the class this.
    fn add_row(&mut self, set: u16, class: u32, row: Row) {
        match &row {
            Row::All => self.world.allow_all(set, class),
            Row::Ports(ports) => self.world.allow_ports(set, class, &ports.intervals),
            Row::PortsAndOthers(ports) => {
                self.world.allow_ports(set, class, &ports.intervals);
                self.world.allow_others(set, class);
            }
        }
        self.rig.apply(&[Step::AddRow(SetId(set), ClassId(class), row)]);
    }

    /// Judges the frame on both sides.
    fn compare(
        &mut self,
        direction: Direction,
        is_from_node: bool,
        frame: &[u8],
        about: &str,
        totals: &mut Totals,
    ) {
        self.world.clock = observe::clock();
        let here = match direction {
            Direction::Ingress => layout::Direction::Ingress,
            Direction::Egress => layout::Direction::Egress,
        };
        let expected = self.world.run(&self.endpoint, here, is_from_node, frame);
        let ingress_ifindex = match direction {
            Direction::Ingress if is_from_node => 0,
            Direction::Ingress => self.rig.other_ifindex,
            Direction::Egress => self.rig.ifindex,
        };
        let place = Place { ifindex: self.rig.ifindex, ingress_ifindex };
        let is_allowed = self.rig.passes_at(direction, frame, place);
        let counted = self.newly_counted(direction);
        let explain = || {
            let hex: String = frame.iter().map(|byte| format!("{byte:02x}")).collect();
            let sets = self.endpoint.sets;
            format!("{about}: {direction:?}, from node {is_from_node}, sets {sets:?}, frame {hex}")
        };
        assert_eq!(is_allowed, expected.is_allowed, "{expected:?} {counted:?}\n{}", explain());
        assert_eq!(counted, counted_for(&expected), "{expected:?}\n{}", explain());
        *if is_allowed { &mut totals.n_allowed } else { &mut totals.n_denied } += 1;
        for (reason, count) in counted {
            totals.counted[reason as usize] += count;
        }
    }

    /// What the programs counted since the last call.
    fn newly_counted(&mut self, direction: Direction) -> Vec<(Reason, u64)> {
        let now = self.rig.counters(direction);
        let before = std::mem::replace(&mut self.counters[direction as usize], now);
        let changes = Reason::ALL.map(|r| (r, now[r as usize] - before[r as usize]));
        changes.into_iter().filter(|(_, count)| *count != 0).collect()
    }
}

fn counted_for(verdict: &Verdict) -> Vec<(Reason, u64)> {
    assert!(!verdict.has_evicted, "the tables have room");
    if verdict.is_noted { vec![(verdict.reason, 1)] } else { Vec::new() }
}

/// The peers of one sequence: its number is in their addresses, so that no flow or class of
/// another sequence is theirs.
fn peers(case: u64) -> Vec<IpAddr> {
    let (high, low) = ((case >> 8) as u8, case as u8);
    let v4 = (0..4).map(|n| IpAddr::from([11, high, low, n]));
    let v6 = (0..3).map(|n| format!("fd11:{case:x}::{n}").parse().unwrap());
    v4.chain(v6).collect()
}

fn intervals(random: &mut Random) -> [Vec<(u16, u16)>; 3] {
    std::array::from_fn(|_| match random.below(5) {
        0 => vec![(0, 65_535)],
        1 => vec![],
        2 => vec![(0, 52), (54, 79), (81, 999), (1001, 65_534)],
        _ => {
            let mut ports: Vec<u16> = (0..random.below(4)).map(|_| random.pick(&PORTS)).collect();
            ports.sort_unstable();
            ports.dedup();
            // 1000 and 1001 are adjacent, which a port set joins.
            ports.retain(|&port| port != 1001);
            ports.iter().map(|&port| (port, port)).collect()
        }
    })
}

/// Sets of this sequence's own: rows of others do not count. Those of every second one judge what
/// the pod sends to itself by way of a Service.
fn first_set(case: u64) -> u16 {
    let kind = if case & 1 == 0 { 0 } else { layout::JUDGES_OWN };
    kind + 1 + 3 * (case / 2 % 10_000) as u16
}

fn change(pair: &mut Pair<'_>, random: &mut Random, case: u64, peers: &[IpAddr]) {
    let first = first_set(case);
    let class = random.below(4) as u32;
    match random.below(8) {
        0 | 1 => {
            let ports = Arc::new(PortSet { intervals: intervals(random) });
            let row = match random.below(6) {
                0 | 1 => Row::All,
                2 => Row::PortsAndOthers(ports),
                _ => Row::Ports(ports),
            };
            pair.add_row(first + random.below(3) as u16, class, row);
        }
        2 => pair.set_class(random.pick(peers).into(), class.max(1)),
        3 => pair.clear_class(random.pick(peers)),
        4 if random.one_in(3) => {
            let peer = random.pick(peers);
            let bits =
                if peer.is_ipv6() { random.pick(&[48, 64, 127]) } else { random.pick(&[24, 31]) };
            let block = IpNet::new(peer, bits).unwrap().trunc();
            pair.set_class(block, class.max(1));
        }
        4 | 5 => {
            let set = |random: &mut Random| match random.below(4) {
                0 => 0,
                n => first + n as u16 - 1,
            };
            let sets = [set(random), set(random)];
            // Neither direction: the endpoint is let go, and its programs with it.
            pair.isolate(if sets == [0, 0] { [first, 0] } else { sets });
        }
        _ => {}
    }
    if random.one_in(2) {
        pair.rejudge();
    }
}

fn run_case(pair: &mut Pair<'_>, seed: u64, case: u64, totals: &mut Totals) {
    let mut random = Random(seed ^ case.wrapping_mul(0xd6e8_feb8_6659_fd93));
    let peers = peers(case);
    let mut generator = Generator::new(Ends {
        pod: [POD.parse().unwrap(), POD6.parse().unwrap()],
        peers: peers.clone(),
        strangers: ["10.1.0.99".parse().unwrap(), "fd00:1::99".parse().unwrap()],
    });
    let first = first_set(case);
    pair.isolate([first, first + 1]);
    for _ in 0..8 {
        change(pair, &mut random, case, &peers);
    }
    for number in 0..FRAMES {
        if random.one_in(6) {
            change(pair, &mut random, case, &peers);
        }
        let is_to_pod = random.one_in(2);
        let direction = if is_to_pod { Direction::Ingress } else { Direction::Egress };
        let is_from_node = is_to_pod && random.one_in(8);
        let frame = generator.frame(&mut random, is_to_pod);
        let about = format!("NETPOL_SEED={seed} case {case} frame {number}");
        pair.compare(direction, is_from_node, &frame, &about, totals);
    }
}

#[test]
fn the_loaded_programs_judge_as_the_same_code_does_here() {
    let seed = from_environment("NETPOL_SEED").unwrap_or_else(new_seed);
    let cases = from_environment("NETPOL_CASES").unwrap_or(CASES);
    println!("NETPOL_SEED={seed} NETPOL_CASES={cases}");
    let mut totals = Totals::default();
    in_node(|| {
        // Every kind of load gets its share, however few cases there are.
        let per_rig = CASES_PER_RIG.min(cases.div_ceil(4)).max(1);
        for first in (0..cases).step_by(per_rig as usize) {
            let kind = first / per_rig;
            let tables = [AtomicTable::new(1 << 14, WORDS4), AtomicTable::new(1 << 14, WORDS6)];
            let mut pair = Pair::new(kind & 1 != 0, kind & 2 == 0, &tables);
            for case in first..cases.min(first + per_rig) {
                run_case(&mut pair, seed, case, &mut totals);
            }
        }
    });
    let Totals { n_allowed, n_denied, counted } = totals;
    println!("{n_allowed} frames passed, {n_denied} did not; by reason: {counted:?}");
    assert_eq!(n_allowed + n_denied, cases * FRAMES);
    if cases < CASES {
        return;
    }
    // The frames are worth something: they reach every verdict that a frame can have.
    assert!(n_allowed > cases * FRAMES / 10 && n_denied > cases * FRAMES / 10);
    for reason in Reason::ALL {
        let is_of_frames = !matches!(
            reason,
            Reason::UnknownEndpoint
                | Reason::Inconsistent
                | Reason::FlowEvicted
                | Reason::EventLost
                | Reason::ServiceMixed
                // The link is not shared.
                | Reason::DestinationAddress
        );
        assert_eq!(counted[reason as usize] != 0, is_of_frames, "{reason:?}");
    }
}
