//! Edits under a flood of packets: while the agent's own writer puts random edits (policies,
//! labels, pods, namespaces, Services, endpoints) into the maps of the loaded programs, a second
//! thread sends packets without a pause. Every verdict must be the reference evaluator's for the
//! state before or for the state after the edit in flight: by the sequence numbers read before
//! and after each packet.
//!
//! `NETPOL_CASES` sets how many edits are made, `NETPOL_SEED` repeats a run
//! (`cargo xtask test fuzz --cases N --seed S`).

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use aya::programs::SchedClassifier;
use netpol_compile::Plan;
use netpol_datapath::run::{Place, run};
use netpol_datapath::{AttachMode, Datapath, LoadOptions, Pins};
use netpol_endpoint::Exit;
use netpol_testkit::generate::Rng;
use netpol_testkit::generate::world::Size;

use netpol_testkit::rig::{
    Cleanup, first_seed, from_environment, ifindex, in_node, ip, unique_bpffs,
};
use netpol_testkit::truth::questions::{Asker, Flow, Question};
use netpol_testkit::truth::{Cluster, Edit, Local, Truth};

/// Edits that CI makes.
const EDITS: u64 = 1_000;
const PLACES: usize = 8;
/// New questions for each edit.
const QUESTIONS: usize = 40;
/// Flows that are open at any time.
const FLOWS: usize = 24;
/// Packets that the flood sends between two edits, at least.
const BETWEEN: u64 = 60;
/// Of so many edits that change an answer one is held up until every question has met the state
/// before it and the state after it; the others are raced.
const HELD_UP: u64 = 3;
/// A hang guard.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the flood sends during one edit and until the next.
struct Batch {
    number: u64,
    questions: Vec<Question>,
}

/// What both threads see.
struct Shared {
    batch: Mutex<Arc<Batch>>,
    /// Numbers of the edit begun and of the edit completed last.
    begun: AtomicU64,
    completed: AtomicU64,
    sent: AtomicU64,
    stop: AtomicBool,
    wrong: Mutex<Option<(Question, String)>>,
}

/// What the flood saw.
#[derive(Debug, Default)]
struct Tally {
    /// By verdict.
    verdicts: [u64; 2],
    established: u64,
    /// Sent while an edit was being made.
    in_flight: u64,
    /// In flight, and the edit changes the verdict: the old and the new one.
    turning: [u64; 2],
}

#[test]
fn random_edits_show_no_verdict_that_is_neither_the_old_states_nor_the_new_ones() {
    let (seed, edits) = (first_seed(), from_environment("NETPOL_CASES").unwrap_or(EDITS));
    in_node(|| {
        let ifindexes: Vec<u32> = (0..PLACES)
            .map(|place| {
                ip(&format!("link add e{place} type veth peer name f{place}"));
                ifindex(&format!("e{place}"))
            })
            .collect();
        let pins = Pins::new(unique_bpffs());
        let _cleanup = Cleanup(pins.clone());
        let mut writer = Writer::new(&pins, seed, ifindexes.clone());
        let shared = Shared {
            batch: Mutex::new(Arc::new(Batch { number: 0, questions: Vec::new() })),
            begun: AtomicU64::new(0),
            completed: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            wrong: Mutex::new(None),
        };
        let (begin, other) = (Instant::now(), ifindex("other0"));
        let tally = std::thread::scope(|scope| {
            let flood = scope.spawn(|| Flood::new(&pins, ifindexes, other).run(&shared));
            // The flood must end also when the writer fails.
            let stop = Stop(&shared);
            for number in 1..=edits {
                writer.edit(number, &shared, other);
                if let Some((question, wrong)) = shared.wrong.lock().unwrap().take() {
                    panic!("NETPOL_SEED={seed}: {wrong}; {}", writer.compiled(&question));
                }
            }
            drop(stop);
            flood.join().unwrap()
        });
        let wrong = shared.wrong.into_inner().unwrap();
        assert!(wrong.is_none(), "NETPOL_SEED={seed}: {}", wrong.unwrap().1);
        let [denied, allowed] = tally.verdicts;
        println!(
            "{edits} edits in {:.1?}, {} packets: {allowed} passed, {denied} dropped, {} of \
             established flows; {} during an edit, of which {} at what it changes; 0 wrong",
            begin.elapsed(),
            allowed + denied,
            tally.established,
            tally.in_flight,
            tally.turning.iter().sum::<u64>(),
        );
        // The run is worth something. Whoever was held up met both states; the rest is left to
        // chance, which in a run of this length does not fail.
        assert!(tally.turning.iter().all(|&n| n >= writer.held), "{tally:?}, {}", writer.held);
        if edits >= EDITS {
            assert!(denied.min(allowed) * 20 > denied + allowed, "{tally:?}");
            assert!(tally.established > edits && tally.in_flight > edits, "{tally:?}");
            assert!(writer.held > edits / 50, "{}", writer.held);
        }
    });
}

struct Stop<'a>(&'a Shared);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::SeqCst);
    }
}

/// The thread that makes edits.
struct Writer {
    cluster: Cluster,
    datapath: Datapath,
    ifindexes: Vec<u32>,
    asker: Asker,
    truth: Arc<Truth>,
    flows: Vec<Flow>,
    /// How many edits that change an answer were made, and how many of these were held up.
    turning: u64,
    held: u64,
}

impl Writer {
    fn new(pins: &Pins, seed: u64, ifindexes: Vec<u32>) -> Self {
        let mut rng = Rng::new(seed);
        let size = Size::new(3, 20, 12).with_tiers_by(seed);
        let cluster = Cluster::random(&mut rng, size, PLACES);
        let mut datapath = Datapath::open(pins, &LoadOptions::default(), AttachMode::Auto).unwrap();
        // What goes to Services passes only where it is judged again on its way.
        let ifindex = ifindex("other0");
        let exit = Exit { ifindex, incarnation: 1, has_link_header: true };
        assert!(datapath.set_exits(&[exit]).is_empty());
        let truth = Arc::new(cluster.truth());
        for local in &cluster.locals {
            let addresses = truth.addresses(&local.pod);
            datapath.add_endpoint(local.id, ifindexes[local.place], addresses).unwrap();
        }
        let failures = datapath.reconcile(&cluster.compiler.tables()).unwrap();
        assert!(failures.is_empty(), "{failures:?}");
        let asker = Asker::new(rng);
        let flows = Vec::new();
        Self { cluster, datapath, ifindexes, asker, truth, flows, turning: 0, held: 0 }
    }

    fn edit(&mut self, number: u64, shared: &Shared, other: u32) {
        let before = self.cluster.locals.clone();
        let edit = self.cluster.step(&mut self.asker.rng);
        let (old, new) = (self.truth.clone(), Arc::new(self.cluster.truth()));
        // Where no policy isolates a pod there is no program that could be asked.
        let steady: Vec<Local> = before
            .iter()
            .filter(|local| self.cluster.locals.contains(local))
            .filter(|local| old.is_isolated(&local.pod) && new.is_isolated(&local.pod))
            .cloned()
            .collect();
        self.flows.retain(|flow| steady.contains(&flow.local) && !flow.is_stale(&self.cluster));
        let mut questions = self.asker.questions(&self.cluster, &steady, [&old, &new], QUESTIONS);
        for flow in &mut self.flows {
            questions.extend(flow.questions(&old, &new));
        }
        let plan = self.cluster.plan(&edit);
        let all = u64::try_from(questions.len()).unwrap();
        let turns = questions.iter().any(|question| question.expected[0] != question.expected[1]);
        self.turning += u64::from(turns);
        let is_held = turns && self.turning.is_multiple_of(HELD_UP);
        self.held += u64::from(is_held);
        *shared.batch.lock().unwrap() = Arc::new(Batch { number, questions });
        go_on(shared, BETWEEN);

        shared.begun.store(number, Ordering::SeqCst);
        if is_held {
            go_on(shared, all);
        }
        match edit {
            Edit::Replace(place, _) => self.replace(&before[place], place, &new),
            _ => self.carry_out(&plan),
        }
        if is_held {
            go_on(shared, all);
        }
        shared.completed.store(number, Ordering::SeqCst);
        self.truth = new;
        go_on(shared, BETWEEN);
        if number.is_multiple_of(32) {
            self.datapath.collect_garbage().unwrap();
        }
        self.open_flows(&steady, other);
    }

    /// Most often as the agent does it; else with pauses, so that more packets meet the states
    /// in between.
    fn carry_out(&mut self, plan: &Plan) {
        let chunk = if self.asker.rng.chance(60) { plan.len().max(1) } else { 1 };
        for steps in plan.chunks(chunk) {
            let failures = self.datapath.apply(steps);
            assert!(failures.is_empty(), "{failures:?}");
            if chunk == 1 {
                let begin = Instant::now();
                while begin.elapsed() < Duration::from_micros(30) {
                    std::hint::spin_loop();
                }
            }
        }
    }

    /// As the agent does it when a pod goes and another one comes.
    fn replace(&mut self, before: &Local, place: usize, new: &Truth) {
        self.datapath.remove_endpoint(before.id).unwrap();
        let plan = self.cluster.compiler.remove_endpoint(before.id);
        self.carry_out(&plan);
        let local = self.cluster.locals[place].clone();
        let addresses = new.addresses(&local.pod);
        self.datapath.add_endpoint(local.id, self.ifindexes[place], addresses).unwrap();
        let name = self.cluster.name(&local.pod);
        let plan = self.cluster.compiler.set_endpoint(local.id, name);
        self.carry_out(&plan);
    }

    /// What the compiler's tables say now, and the latest answer of the programs: whose fault it is.
    fn compiled(&mut self, question: &Question) -> String {
        let (pod, direction, probe, _) = &question.about;
        let local = self.cluster.locals.iter().find(|local| local.pod == *pod).unwrap();
        let tables = self.cluster.compiler.tables();
        let verdict =
            tables.verdict(local.id, *direction, probe.remote, probe.protocol, probe.port);
        let truth = self.truth.allows(pod, *direction, probe);
        let name = program_name(question);
        let program = self.datapath.programs().program(name).unwrap();
        let place = place_of(question, &self.ifindexes, 0);
        let passes = run(program, &question.frame, place, 1).unwrap().is_allowed;
        format!("now the tables say {verdict:?}, the evaluator {truth:?}, the program {passes}")
    }

    /// Opens flows to be watched over the next edits, while the flood goes on.
    fn open_flows(&mut self, steady: &[Local], other: u32) {
        if self.flows.len() == FLOWS {
            self.flows.remove(0);
        }
        let truth = self.truth.clone();
        for _ in 0..4 {
            let Some((flow, question)) = self.asker.flow(&self.cluster, steady, &truth) else {
                continue;
            };
            let name = program_name(&question);
            let program = self.datapath.programs().program(name).unwrap();
            let place = place_of(&question, &self.ifindexes, other);
            let passed = run(program, &question.frame, place, 1).unwrap().is_allowed;
            assert_eq!(passed, question.expected[1], "{:?}", question.about);
            if passed && self.flows.len() < FLOWS {
                self.flows.push(flow);
            }
        }
    }
}

/// Waits until the flood has sent so many more packets.
fn go_on(shared: &Shared, packets: u64) {
    let (target, begin) = (shared.sent.load(Ordering::SeqCst) + packets, Instant::now());
    while shared.sent.load(Ordering::SeqCst) < target {
        if shared.wrong.lock().unwrap().is_some() {
            return;
        }
        assert!(begin.elapsed() < PATIENCE, "the flood has stopped");
        std::thread::yield_now();
    }
}

fn program_name(question: &Question) -> &'static str {
    ["netpol_ingress", "netpol_egress"][question.direction as usize]
}

fn place_of(question: &Question, ifindexes: &[u32], other: u32) -> Place {
    Place { ifindex: ifindexes[question.place], ingress_ifindex: other }
}

/// The thread that sends packets.
struct Flood {
    programs: [SchedClassifier; 2],
    ifindexes: Vec<u32>,
    other: u32,
    tally: Tally,
}

impl Flood {
    fn new(pins: &Pins, ifindexes: Vec<u32>, other: u32) -> Self {
        let programs = ["netpol_ingress", "netpol_egress"]
            .map(|name| SchedClassifier::from_pin(pins.program(name)).unwrap());
        Self { programs, ifindexes, other, tally: Tally::default() }
    }

    fn run(mut self, shared: &Shared) -> Tally {
        let mut turn = 0;
        while !shared.stop.load(Ordering::SeqCst) {
            let batch = shared.batch.lock().unwrap().clone();
            if batch.questions.is_empty() {
                // Nobody is isolated at the moment.
                shared.sent.fetch_add(1, Ordering::SeqCst);
                std::thread::yield_now();
                continue;
            }
            // A few at a time: the batch may be an old one by then.
            for _ in 0..8 {
                turn += 1;
                let question = &batch.questions[turn % batch.questions.len()];
                if let Err(wrong) = self.ask(&batch, question, shared) {
                    *shared.wrong.lock().unwrap() = Some((question.clone(), wrong));
                    return self.tally;
                }
            }
        }
        self.tally
    }

    fn ask(&mut self, batch: &Batch, question: &Question, shared: &Shared) -> Result<(), String> {
        let completed = shared.completed.load(Ordering::SeqCst);
        let program = &self.programs[question.direction as usize];
        let place = place_of(question, &self.ifindexes, self.other);
        let passed = run(program, &question.frame, place, 1).unwrap().is_allowed;
        let begun = shared.begun.load(Ordering::SeqCst);
        if begun > batch.number {
            // The next edit was begun meanwhile: it may be right by a state not known here.
            return Ok(());
        }
        shared.sent.fetch_add(1, Ordering::SeqCst);
        let [old, new] = question.expected;
        let (may_be_old, may_be_new) = (completed < batch.number, begun == batch.number);
        self.count(question, passed, may_be_old && may_be_new);
        if may_be_old && passed == old || may_be_new && passed == new {
            return Ok(());
        }
        Err(format!(
            "edit {}, {completed} completed before the packet, {begun} begun after it: {} packet \
             of {:?}: passed: {passed}, but before the edit: {old}, after it: {new}",
            batch.number, question.direction, question.about
        ))
    }

    fn count(&mut self, question: &Question, passed: bool, in_flight: bool) {
        let [old, new] = question.expected;
        self.tally.verdicts[usize::from(passed)] += 1;
        self.tally.established += u64::from(question.about.3 == "established");
        self.tally.in_flight += u64::from(in_flight);
        if in_flight && old != new {
            self.tally.turning[usize::from(passed == new)] += 1;
        }
    }
}
