//! Tables that are too small: whatever does not fit, the loaded programs let nothing pass that the
//! policies deny; the tables say what was left out; and everything is exact again as soon as
//! there is room.

use netpol_testkit::rig;
use std::net::IpAddr;

use aya::maps::lpm_trie::Key as LpmKey;
use netpol_common::layout::{self, Reason};
use netpol_compile::Compiler;
use netpol_datapath::{AttachMode, Limits, LoadOptions, Maps, Part};
use netpol_model::Direction;
use netpol_observe::frames::{Transport, frame, packet};
use netpol_source::convert;
use netpol_testkit::generate::Rng;
use netpol_testkit::generate::world::{Event, Size, World};
use netpol_testkit::objects::{pod, policy};
use netpol_testkit::rig::cluster::{Seen, Subject, tcp};
use netpol_testkit::rig::{ID, POD, Rig, ack, in_node, syn, udp};

/// Random clusters for each table.
const CASES: u64 = 3;
/// Questions after each change.
const PROBES: usize = 25;

fn with(limits: Limits) -> LoadOptions {
    LoadOptions { limits, ..LoadOptions::default() }
}

fn add(total: &mut Seen, seen: Seen) {
    total.allowed += seen.allowed;
    total.denied += seen.denied;
    total.closed += seen.closed;
}

/// Random clusters come, change and go; `make` gives the compiler its limits.
fn try_clusters(table: &str, limits: Limits, make: impl Fn() -> Compiler) -> Seen {
    let mut subject = Subject::new(&with(limits));
    let (mut while_full, mut after) = (Seen::default(), Seen::default());
    let mut n_full = 0;
    for seed in 0.. {
        let mut rng = Rng::new(seed);
        let size = Size::new(3, 20, 12);
        let world = World::random(&mut rng, size);
        let Some(pod) = isolated_pod(&world) else { continue };
        subject.begin(make(), world, pod.clone());
        let about = |step: &str| format!("{table}, seed {seed}, {step}");
        let mut check = |subject: &mut Subject, rng: &mut Rng, step: &str| {
            let remotes = subject.world.remotes(rng);
            let probes = subject.world.probes(rng, &remotes, PROBES);
            let seen = subject.check(&probes, &about(step));
            add(if subject.is_exact() { &mut after } else { &mut while_full }, seen);
        };
        check(&mut subject, &mut rng, "at first");
        n_full += u64::from(!subject.is_exact());
        for _ in 0..6 {
            let mut next = subject.world.clone();
            let event = next.step(&mut rng);
            // The pod under test stays what it is.
            if matches!(&event, Event::Pod(p) | Event::PodGone(p) if p.metadata.name == pod.metadata.name)
            {
                continue;
            }
            subject.happen(&event);
            check(&mut subject, &mut rng, "after an event");
        }
        let policies: Vec<_> = subject.world.policies.clone().into_values().collect();
        for some in policies.chunks(4) {
            for policy in some {
                subject.happen(&Event::PolicyGone(policy.clone()));
                check(&mut subject, &mut rng, "with fewer policies");
            }
            subject.housekeeping();
            check(&mut subject, &mut rng, "with room made");
        }
        assert!(subject.is_exact(), "{:?}", subject.overflows());
        if n_full >= CASES {
            break;
        }
    }
    println!("{table}: while full {while_full:?}, with room {after:?}");
    // It was worth something: things were closed, but not simply all of them.
    assert!(while_full.closed > 5 && while_full.allowed > 5, "{while_full:?}");
    assert_eq!(after.closed, 0);
    after
}

fn isolated_pod(world: &World) -> Option<k8s_openapi::api::core::v1::Pod> {
    let reference = world.reference();
    let is_fit = |pod: &&k8s_openapi::api::core::v1::Pod| {
        let model = convert::pod(pod).0;
        model.is_networked()
            && !model.addresses.is_empty()
            && Direction::BOTH.iter().any(|&direction| reference.is_judged(direction, pod))
    };
    world.pods.values().find(is_fit).cloned()
}

#[test]
fn random_clusters_that_do_not_fit_are_closed_and_then_exact_again() {
    let all = Limits::default();
    in_node(|| {
        let few = Limits { addresses: 5, blocks: 5, rows: 9, intervals: 9, ..all };
        let with_room = [
            try_clusters("addresses", Limits { addresses: 3, ..all }, Compiler::new),
            try_clusters("blocks", Limits { blocks: 3, ..all }, Compiler::new),
            try_clusters("rows", Limits { rows: 4, ..all }, Compiler::new),
            try_clusters("intervals", Limits { intervals: 4, ..all }, Compiler::new),
            try_clusters("classes", all, || Compiler::with_limits(u16::MAX, 6)),
            try_clusters("policy sets", all, || Compiler::with_limits(2, 1000)),
            try_clusters("all", few, || Compiler::with_limits(3, 9)),
        ];
        let n_denied: u64 = with_room.iter().map(|seen| seen.denied).sum();
        let n_allowed: u64 = with_room.iter().map(|seen| seen.allowed).sum();
        assert!(n_denied > 100 && n_allowed > 100, "{with_room:?}");
    });
}

/// The pod `x/web` with both addresses, and one policy that selects it.
fn web(spec: &str) -> World {
    let mut world = World::default();
    let web = pod("x/web", "app=web", &format!("{POD},{}", rig::POD6), "");
    world.pods.insert("web".into(), web);
    world.policies.insert("p".into(), policy("x/p", spec));
    world
}

fn begin(subject: &mut Subject, compiler: Compiler, spec: &str) {
    let world = web(spec);
    let pod = world.pods["web"].clone();
    subject.begin(compiler, world, pod);
}

fn ingress_from(blocks: &str) -> String {
    format!(r#"{{"ingress": [{{"from": [{blocks}]}}]}}"#)
}

fn set_policy(subject: &mut Subject, spec: &str) {
    subject.happen(&Event::Policy(policy("x/p", spec)));
}

/// What comes in, by address.
fn comes_in(subject: &mut Subject, remotes: &[&str]) -> Vec<bool> {
    let mut passes = |remote| subject.passes(Direction::Ingress, &tcp(remote, 80)).unwrap();
    remotes.iter().map(|remote| passes(remote)).collect()
}

/// Everything but some addresses, of which not all fit: an exception that does not fit must not
/// be judged by the block that it is an exception of, nor may it open another one.
#[test]
fn an_except_that_does_not_fit_closes_the_block_around_it() {
    in_node(|| {
        let limits = Limits { addresses: 2, blocks: 5, ..Limits::default() };
        let mut subject = Subject::new(&with(limits));
        let everything = r#"{"ipBlock": {"cidr": "0.0.0.0/0", "except":
            ["192.0.2.1/32", "192.0.2.2/32", "198.51.100.3/32"]}},
            {"ipBlock": {"cidr": "198.51.100.0/24"}}, {"ipBlock": {"cidr": "203.0.113.0/24"}},
            {"ipBlock": {"cidr": "::/0", "except": ["2001:db8::/64"]}}"#;
        begin(&mut subject, Compiler::new(), &ingress_from(everything));
        assert_eq!(subject.overflows(), ["addresses"]);
        let told = subject.rig.datapath.tables();
        let told = told.iter().find(|table| table.table == "addresses").unwrap();
        let overflow = told.overflow.as_ref().unwrap();
        assert_eq!((told.used, told.limit, overflow.n_left_out), (2, 2, 1));
        // The one that is missing lies in 198.51.100.0/24 or directly in 0.0.0.0/0.
        let remotes = ["192.0.2.1", "192.0.2.2", "203.0.113.9", "2001:db8::1", "2001:db9::1"];
        assert_eq!(comes_in(&mut subject, &remotes), [false, false, true, false, true]);
        let closed = match overflow.examples[0].as_str() {
            "198.51.100.3/32" => "198.51.100.9",
            _ => "8.8.8.8",
        };
        assert_eq!(comes_in(&mut subject, &[closed]), [false], "{:?}", overflow.examples);
        // A smaller block around the missing address takes over, the larger one opens again.
        set_policy(
            &mut subject,
            &ingress_from(&everything.replace("198.51.100.3/32", "9.9.9.9/32")),
        );
        assert_eq!(subject.overflows(), ["addresses"]);
        assert_eq!(comes_in(&mut subject, &["8.8.8.8", "9.9.9.9"]), [false, false]);
        let inner = format!(r#"{everything}, {{"ipBlock": {{"cidr": "9.9.9.0/24"}}}}"#);
        set_policy(&mut subject, &ingress_from(&inner.replace("198.51.100.3/32", "9.9.9.9/32")));
        assert_eq!(subject.overflows(), ["addresses", "blocks"], "the sixth block does not fit");
        assert_eq!(comes_in(&mut subject, &["8.8.8.8", "9.9.9.9"]), [false, false]);
        // One exception less, and all is exact.
        let fewer = everything.replace(r#""192.0.2.2/32", "#, "");
        set_policy(&mut subject, &ingress_from(&fewer));
        assert!(subject.is_exact(), "{:?}", subject.overflows());
        let remotes = ["192.0.2.1", "192.0.2.2", "198.51.100.3", "198.51.100.4", "8.8.8.8"];
        assert_eq!(comes_in(&mut subject, &remotes), [false, true, true, true, true]);
    });
}

/// The kernel's own limits, met because something else took the room: the same thing happens.
#[test]
fn a_table_that_the_kernel_calls_full_closes_likewise() {
    in_node(|| {
        let limits = Limits { addresses: 2, blocks: 2, rows: 3, ..Limits::default() };
        let mut rig = Rig::with(&with(limits), AttachMode::Auto);
        let pins = rig.cleanup.0.clone();
        // Both spare entries and one of ours.
        let mut foreign = Maps::open(&pins, true).unwrap();
        for last in 1..=2u8 {
            let address = layout::Address::v4(u32::from_ne_bytes([203, 0, 113, last]));
            let key: [u8; 20] = zerocopy::transmute!(address);
            foreign.addresses.insert(key, layout::exact_class(&address, 9), 0).unwrap();
            let prefix = layout::FAMILY_BITS + 30;
            let address = layout::Address::v4(u32::from_ne_bytes([203, 0, last, 0]));
            let block = LpmKey::new(prefix, zerocopy::transmute!(address));
            foreign.blocks.insert(&block, 9, 0).unwrap();
        }
        rig.allow_all(5, 2);
        rig.isolate(5, 0);
        rig.class("10.9.0.0/16", 2);
        rig.class("10.9.0.1", 3);
        assert!(rig.comes_in("10.9.0.2", &syn(1, 80)));
        // A third entry of each, as the kernel counts.
        rig.class("10.9.0.7", 3);
        rig.class("10.9.9.0/24", 3);
        let tables = rig.datapath.tables();
        let full = |name| tables.iter().find(|table| table.table == name).unwrap();
        for name in ["addresses", "blocks"] {
            let table = full(name);
            assert!(table.used < table.limit && table.overflow.is_some(), "{table:?}");
        }
        for remote in ["10.9.0.1", "10.9.0.2", "10.9.0.7", "10.9.9.1"] {
            assert!(!rig.comes_in(remote, &syn(2, 80)), "{remote}");
        }
        // In place there is always room; who was missing does not come to life by it.
        rig.class("10.9.0.1", 2);
        assert!(rig.comes_in("10.9.0.1", &syn(3, 80)));
        rig.class("10.9.0.0/16", 4);
        rig.class("10.9.0.0/16", 2);
        assert!(!rig.comes_in("10.9.0.2", &syn(3, 80)));
        // The room comes back.
        for last in 1..=2u8 {
            let address = layout::Address::v4(u32::from_ne_bytes([203, 0, 113, last]));
            let key: [u8; 20] = zerocopy::transmute!(address);
            foreign.addresses.remove(&key).unwrap();
            let prefix = layout::FAMILY_BITS + 30;
            let address = layout::Address::v4(u32::from_ne_bytes([203, 0, last, 0]));
            let block = LpmKey::new(prefix, zerocopy::transmute!(address));
            foreign.blocks.remove(&block).unwrap();
        }
        rig.datapath.retry().unwrap();
        let verdicts = ["10.9.0.1", "10.9.0.2", "10.9.0.7", "10.9.9.1"]
            .map(|remote| rig.comes_in(remote, &syn(4, 80)));
        assert_eq!(verdicts, [true, true, false, false]);
        assert!(rig.datapath.tables().iter().all(|table| table.overflow.is_none()));
    });
}

/// On this kernel, an entry of a table that is completely full can be changed in place: what the
/// spare entry is for on older ones (before 6.13 a full LPM trie refused it).
#[test]
fn entries_of_full_tables_change_in_place() {
    in_node(|| {
        let limits = Limits { addresses: 2, blocks: 2, ..Limits::default() };
        let mut rig = Rig::with(&with(limits), AttachMode::Auto);
        rig.allow_all(5, 2);
        rig.isolate(5, 0);
        for (block, class) in [("10.1.0.0/16", 3), ("10.2.0.0/16", 3)] {
            rig.class(block, class);
        }
        for (address, class) in [("10.3.0.1", 3), ("10.3.0.2", 3)] {
            rig.class(address, class);
        }
        for class in [2, 3, 2] {
            for block in ["10.1.0.0/16", "10.2.0.0/16", "10.3.0.1", "10.3.0.2"] {
                rig.class(block, class);
            }
            rig.rejudge();
            for remote in ["10.1.0.9", "10.2.0.9", "10.3.0.1", "10.3.0.2"] {
                assert_eq!(rig.comes_in(remote, &syn(9, 80)), class == 2, "{remote}");
            }
        }
        assert!(rig.datapath.tables().iter().all(|table| table.overflow.is_none()));
    });
}

/// A row that must give way to another one under the same numbers, which does not fit, goes.
#[test]
fn an_old_row_does_not_outlive_a_new_one_that_does_not_fit() {
    in_node(|| {
        let mut rig =
            Rig::with(&with(Limits { intervals: 2, ..Limits::default() }), AttachMode::Auto);
        rig.class("10.9.0.0/16", 2);
        rig.isolate(5, 0);
        rig.allow_ports(5, 2, [vec![(80, 80), (443, 443)], vec![], vec![]]);
        assert!(rig.comes_in("10.9.0.1", &syn(1, 443)));
        rig.allow_ports(5, 2, [vec![(22, 22), (53, 53), (80, 80)], vec![], vec![]]);
        rig.rejudge();
        for port in [22, 53, 80, 443] {
            assert!(!rig.comes_in("10.9.0.1", &syn(1, port)), "{port}");
        }
        // Two others fit once nobody can be reading the old ones.
        rig.allow_ports(5, 3, [vec![(1, 1), (3, 3)], vec![], vec![]]);
        rig.class("10.9.0.1", 3);
        assert!(rig.comes_in("10.9.0.1", &syn(2, 3)));
    });
}

#[test]
fn an_endpoint_has_a_share_of_own_addresses_that_no_other_one_can_take() {
    in_node(|| {
        let limits = Limits { endpoint_addresses: 2, ..Limits::default() };
        let mut rig = Rig::with(&with(limits), AttachMode::Auto);
        rig.allow_all(5, 0);
        rig.isolate(5, 5);
        let out = |rig: &mut Rig, source: &str, port| {
            let bytes =
                packet(source.parse().unwrap(), "10.9.0.1".parse().unwrap(), &syn(port, 80));
            rig.passes_frame(Direction::Egress, &frame(&bytes))
        };
        let addresses =
            |list: &[&str]| list.iter().map(|a| a.parse().unwrap()).collect::<Vec<IpAddr>>();
        let ifindex = rig.ifindex;
        let many = addresses(&[POD, "10.1.0.2", "10.1.0.3", "10.1.0.4"]);
        rig.datapath.add_endpoint(ID, ifindex, many).unwrap();
        assert!(out(&mut rig, POD, 1) && out(&mut rig, "10.1.0.2", 2));
        assert!(!out(&mut rig, "10.1.0.3", 3) && !out(&mut rig, "10.1.0.4", 4));
        assert_eq!(rig.counted(Direction::Egress, Reason::SourceAddress), 2);
        let tables = rig.datapath.tables();
        let table = tables.iter().find(|table| table.table == "own_addresses").unwrap();
        let overflow = table.overflow.as_ref().unwrap();
        assert_eq!((overflow.n_left_out, overflow.is_error), (2, false));
        assert_eq!(overflow.endpoints, [ID]);
        let fewer = addresses(&[POD, "10.1.0.4"]);
        rig.datapath.add_endpoint(ID, ifindex, fewer).unwrap();
        assert!(out(&mut rig, "10.1.0.4", 5) && !out(&mut rig, "10.1.0.2", 6));
        assert!(rig.datapath.tables().iter().all(|table| table.overflow.is_none()));
    });
}

#[test]
fn a_flow_table_that_is_full_admits_new_flows_and_only_those_that_are_allowed() {
    in_node(|| {
        let options = LoadOptions { flow_buckets: Some([1, 1]), ..LoadOptions::default() };
        let mut rig = Rig::with(&options, AttachMode::Auto);
        rig.class("10.9.0.0/16", 2);
        rig.class("fd09::/16", 2);
        rig.allow_ports(5, 2, [vec![(80, 80)], vec![(53, 53)], vec![]]);
        rig.isolate(5, 0);
        for remote in ["10.9.0.1", "fd09::1"] {
            for port in 1000..1100 {
                assert!(rig.comes_in(remote, &syn(port, 80)), "{remote} {port}");
                assert!(rig.comes_in(remote, &udp(port, 53)), "{remote} {port}");
                assert!(!rig.comes_in(remote, &syn(port, 81)), "{remote} {port}");
                assert!(rig.comes_in(remote, &ack(port, 80)), "{remote} {port}: just admitted");
                assert!(
                    rig.goes_out(remote, &rig::syn_ack(80, port)),
                    "{remote} {port}: its answer"
                );
            }
            // Long gone from the table: judged again like the first packet of its flow.
            assert!(rig.comes_in(remote, &ack(1000, 80)), "{remote}");
        }
        assert!(rig.counted(Direction::Ingress, Reason::FlowEvicted) > 300);
        assert!(rig.datapath.evicted_flows([ID].into_iter()) > 300);
    });
}

#[test]
fn when_first_fragments_are_forgotten_later_ones_are_not_let_in() {
    in_node(|| {
        let mut rig =
            Rig::with(&with(Limits { fragments: 16, ..Limits::default() }), AttachMode::Auto);
        rig.class("10.9.0.0/16", 2);
        rig.allow_ports(5, 2, [vec![], vec![(53, 53)], vec![]]);
        rig.isolate(5, 0);
        let fragments = |id: u16, port| {
            let whole = Transport::Udp { source: 4000, destination: port };
            let mut first = packet("10.9.0.1".parse().unwrap(), POD.parse().unwrap(), &whole);
            let mut later = first.clone();
            first[4..6].copy_from_slice(&id.to_be_bytes());
            later[4..6].copy_from_slice(&id.to_be_bytes());
            first[6] = 0x20;
            later[7] = 1;
            [frame(&first), frame(&later)]
        };
        let mut n_passed = 0;
        for id in 1..=2000 {
            let [first, later] = fragments(id, 53);
            assert!(rig.passes_frame(Direction::Ingress, &first), "{id}");
            assert!(
                rig.passes_frame(Direction::Ingress, &later),
                "{id}: in order it always passes"
            );
            let [first, later] = fragments(10_000 + id, 54);
            assert!(!rig.passes_frame(Direction::Ingress, &first), "{id}");
            assert!(!rig.passes_frame(Direction::Ingress, &later), "{id}");
        }
        for id in 1..=2000 {
            n_passed += u32::from(rig.passes_frame(Direction::Ingress, &fragments(id, 53)[1]));
            assert!(!rig.passes_frame(Direction::Ingress, &fragments(10_000 + id, 54)[1]), "{id}");
        }
        // The kernel keeps a little more than it was asked to, per CPU.
        assert!(n_passed < 1500, "{n_passed} are remembered");
        assert!(rig.counted(Direction::Ingress, Reason::Fragment) >= 500);
    });
}

/// All places for its interface's number are taken: the pod is closed, not open.
#[test]
fn an_endpoint_without_a_free_slot_is_closed_until_there_is_one() {
    in_node(|| {
        let mut rig = Rig::new();
        let foreign = Maps::open(&rig.cleanup.0, true).unwrap();
        let first = (rig.ifindex & (layout::ENDPOINT_SLOTS - 1)) as usize;
        for slot in first..first + layout::ENDPOINT_PROBES as usize {
            foreign.endpoints.store(slot, 0, (slot as u64 + 1_000_000) << 32 | 9);
        }
        rig.allow_all(5, 0);
        rig.isolate(5, 0);
        assert!(!rig.comes_in("10.9.0.1", &syn(1, 80)));
        let closed = |rig: &Rig| {
            let tables = rig.datapath.tables();
            tables.iter().find(|table| table.table == "endpoints").unwrap().overflow.clone()
        };
        assert_eq!(closed(&rig).unwrap().endpoints, [ID]);
        assert_eq!(
            rig.datapath.verify_attachments(Part::ALL, true).0,
            [],
            "the programs are attached"
        );
        foreign.endpoints.store(first + 2, 0, 0);
        rig.datapath.retry().unwrap();
        assert!(rig.comes_in("10.9.0.1", &syn(2, 80)));
        assert_eq!(closed(&rig), None);
    });
}
