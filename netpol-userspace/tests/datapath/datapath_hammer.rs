//! The loaded programs on all CPUs at once, on flow tables so small that flows share buckets, while
//! the epoch moves and the table is read: counted exactly, no packet that policies deny may pass,
//! and none of a flow that they allow may be lost.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use aya::programs::SchedClassifier;
use netpol_common::flow::{self, KEY4};
use netpol_common::layout::Reason;
use netpol_datapath::run::{Place, run};
use netpol_datapath::{AttachMode, LoadOptions, Maps, observe};
use netpol_model::Direction;
use netpol_observe::frames::{Transport, frame, packet};
use netpol_testkit::rig::{ID, POD, Rig, ack, in_node, syn, syn_ack, udp};

const PEER: &str = "10.2.0.2";
const ALLOWED: u16 = 80;
const DENIED: u16 = 81;
/// Runs of a program in one system call: far more of them meet those of the other CPU.
const REPEAT: u32 = 64;
const ROUNDS: u32 = 3_000;
/// Between two changes of the epoch: many times what it takes to judge a packet.
const PAUSE: Duration = Duration::from_micros(20);

/// Sends frames as one of several threads.
struct Sender {
    program: SchedClassifier,
    place: Place,
    direction: Direction,
}

impl Sender {
    fn new(rig: &Rig, direction: Direction) -> Self {
        let (name, ingress_ifindex) = match direction {
            Direction::Ingress => ("netpol_ingress", rig.other_ifindex),
            Direction::Egress => ("netpol_egress", rig.ifindex),
        };
        let pin: PathBuf = rig.cleanup.0.program(name);
        let program = SchedClassifier::from_pin(pin).unwrap();
        Self { program, place: Place { ifindex: rig.ifindex, ingress_ifindex }, direction }
    }

    /// Whether the last of `repeat` equal packets passes.
    fn send(&self, transport: &Transport, repeat: u32) -> bool {
        let (pod, peer) = (POD.parse().unwrap(), PEER.parse().unwrap());
        let (source, destination) = match self.direction {
            Direction::Ingress => (peer, pod),
            Direction::Egress => (pod, peer),
        };
        let bytes = frame(&packet(source, destination, transport));
        run(&self.program, &bytes, self.place, repeat).unwrap().is_allowed
    }
}

fn rig(buckets: u32) -> Rig {
    let options = LoadOptions { flow_buckets: Some([buckets, buckets]), ..LoadOptions::default() };
    let mut rig = Rig::with(&options, AttachMode::Auto);
    rig.class(PEER, 3);
    let ports = vec![(ALLOWED, ALLOWED)];
    rig.allow_ports(1, 3, [ports.clone(), ports, vec![]]);
    // No row allows anything in set 2.
    rig.isolate(1, 2);
    rig
}

/// Moves the epoch and reads the table until all of `threads` have ended.
fn disturb(rig: &mut Rig, threads: Vec<thread::ScopedJoinHandle<'_, ()>>) {
    let is_done = AtomicBool::new(false);
    let maps = Maps::open(&rig.cleanup.0, false).unwrap();
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut n_read = 0;
            while !is_done.load(Ordering::Relaxed) {
                n_read += read(&maps);
            }
            n_read
        });
        while threads.iter().any(|thread| !thread.is_finished()) {
            rig.rejudge();
            // A packet whose endpoint changes each time that it is judged is dropped in the end.
            thread::sleep(PAUSE);
        }
        is_done.store(true, Ordering::Relaxed);
        assert!(reader.join().unwrap() > 0, "nothing was in the table");
    });
    for thread in threads {
        thread.join().unwrap();
    }
}

/// Every flow in the table is one that policies allow.
fn read(maps: &Maps) -> usize {
    let flows = maps.table4().slots::<KEY4>();
    flows.map(|slot| assert_eq!(slot.local_port(), ALLOWED)).count()
}

/// What the endpoint is said to have is what is there.
fn assert_accounts(maps: &Maps) {
    let slots: Vec<_> = maps.table4().slots::<KEY4>().collect();
    let answered = slots.iter().filter(|slot| slot.state & flow::ANSWERED != 0).count();
    let account = maps.flow_use(ID.0);
    assert_eq!((account.held, account.answered), (slots.len() as u64, answered as u64));
}

/// Every drop is counted, on the endpoint or, of packets whose endpoint changed too often while
/// they were judged, on nobody.
fn dropped(rig: &Rig, direction: Direction) -> u64 {
    let nobody = observe::counters(&rig.maps, 0, direction).unwrap();
    let counted = [rig.counters(direction), nobody];
    let drops = Reason::ALL.iter().filter(|reason| reason.is_drop());
    drops.flat_map(|&reason| counted.map(|counters| counters[reason as usize])).sum()
}

#[test]
fn what_is_denied_never_passes_and_what_is_allowed_always_does() {
    // More flows than there are slots: each insertion gives somebody else's slot away.
    let buckets = 2;
    let n_slots = buckets as u16 * flow::SLOTS as u16;
    in_node(|| {
        let mut rig = rig(buckets);
        let senders: Vec<_> = (0..4)
            .map(|_| [Direction::Ingress, Direction::Egress].map(|d| Sender::new(&rig, d)))
            .collect();
        thread::scope(|scope| {
            let threads = senders.iter().map(|[into, out_of]| {
                scope.spawn(move || {
                    for round in 0..ROUNDS {
                        let port = 1_000 + round as u16 % (2 * n_slots);
                        let transport = [syn, ack, udp][round as usize % 3];
                        assert!(into.send(&transport(port, ALLOWED), REPEAT));
                        assert!(!into.send(&transport(port, DENIED), REPEAT));
                        assert!(!out_of.send(&ack(DENIED, port), REPEAT));
                    }
                })
            });
            let threads = threads.collect();
            disturb(&mut rig, threads);
        });
        let n_each = u64::from(4 * ROUNDS * REPEAT);
        assert_eq!(
            dropped(&rig, Direction::Ingress),
            n_each,
            "to port {DENIED}, all and no others"
        );
        assert_eq!(dropped(&rig, Direction::Egress), n_each, "answers to what was denied");
        assert!(rig.counted(Direction::Ingress, Reason::FlowEvicted) > 0);
        assert_accounts(&rig.maps);
    });
}

#[test]
fn no_packet_of_an_established_flow_is_lost() {
    // Few enough that each has room whatever the hash, which is another one each time.
    let (buckets, flows) = (64, 1_000..1_024);
    in_node(|| {
        let mut rig = rig(buckets);
        let [into, out_of] = [Direction::Ingress, Direction::Egress].map(|d| Sender::new(&rig, d));
        for port in flows.clone() {
            assert!(into.send(&syn(port, ALLOWED), 1));
            assert!(out_of.send(&syn_ack(ALLOWED, port), 1));
        }
        thread::scope(|scope| {
            let both = [&into, &into, &out_of, &out_of].map(|sender| {
                let mut ports = flows.clone().cycle();
                scope.spawn(move || {
                    for _ in 0..ROUNDS {
                        let port = ports.next().unwrap();
                        let transport = match sender.direction {
                            Direction::Ingress => ack(port, ALLOWED),
                            Direction::Egress => ack(ALLOWED, port),
                        };
                        assert!(sender.send(&transport, REPEAT));
                    }
                })
            });
            disturb(&mut rig, both.into());
        });
        for direction in [Direction::Ingress, Direction::Egress] {
            assert_eq!(dropped(&rig, direction), 0, "{direction:?}");
        }
        let opened = flows.len() as u64;
        assert_eq!(rig.counted(Direction::Ingress, Reason::NewFlow), opened, "none was forgotten");
    });
}
