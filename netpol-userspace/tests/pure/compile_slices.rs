//! Work in slices: plans that are cut into small parts say the same as whole ones, and so they do
//! where other changes come between the parts.

use netpol_testkit::tables::TakeStep as _;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use netpol_compile::{Compiler, EndpointId, Mark, Step, Tables};
use netpol_model::{Change, Direction, ObjectName};
use netpol_reference::Reference;
use netpol_source::convert;
use netpol_testkit::generate::Rng;
use netpol_testkit::generate::world::{Event, Probe, Size, World};
use netpol_testkit::objects::neighbours::{self, Neighbours};
use netpol_testkit::objects::{
    all_changes, change, namespace_of, pod, policy, put_pod, put_policy, shrink_sequence,
};
use netpol_testkit::rig::{count_verdict, print_verdicts, seeds};

/// One thing that happens while others are under way.
#[derive(Clone)]
enum Action {
    /// Events that are read together.
    Events(Vec<Event>),
    AddEndpoint(EndpointId, String),
    /// While others are under way.
    TakeInEndpoint(EndpointId, String),
    RemoveEndpoint(EndpointId),
    /// So many slices are done.
    Slices(usize),
    /// All of them are.
    Finish,
}

impl fmt::Debug for Action {
    /// One line for each object.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Events(events) => f.debug_list().entries(events).finish(),
            Self::AddEndpoint(id, pod) => write!(f, "add {id:?} of {pod}"),
            Self::TakeInEndpoint(id, pod) => write!(f, "take in {id:?} of {pod}"),
            Self::RemoveEndpoint(id) => write!(f, "remove {id:?}"),
            Self::Slices(n) => write!(f, "{n} slices"),
            Self::Finish => write!(f, "finish"),
        }
    }
}

fn actions(seed: u64, size: Size, n_actions: usize) -> Vec<Action> {
    let mut rng = Rng::new(seed);
    let mut world = World::empty(size.with_tiers_by(seed));
    let first = (0..40).map(|_| world.step(&mut rng)).collect();
    let mut actions = vec![Action::Events(first)];
    for _ in 0..n_actions {
        let id = EndpointId(u16::try_from(1 + rng.below(6)).expect("small"));
        actions.push(match rng.below(12) {
            0..2 => Action::AddEndpoint(id, format!("pod{}", rng.below(size.pods))),
            2 if rng.chance(50) => Action::RemoveEndpoint(id),
            3 => Action::Events((0..1 + rng.below(5)).map(|_| world.step(&mut rng)).collect()),
            4 => Action::Finish,
            5..8 => Action::Slices(1 + rng.below(6)),
            _ => Action::Events(vec![world.step(&mut rng)]),
        });
    }
    actions
}

/// Namespaces that are about the same blocks and pods, and whose work overlaps.
fn actions_of_neighbours(seed: u64, n_actions: usize) -> Vec<Action> {
    let rng = &mut Rng::new(seed);
    let mut all = Neighbours::new(rng);
    let n = all.n_namespaces();
    let mut actions = vec![Action::Events(all.begin(rng))];
    let endpoint = |pod: usize| EndpointId(u16::try_from(1 + pod).expect("small"));
    // One or two of each namespace.
    actions.extend((0..n + 1).map(|pod| Action::AddEndpoint(endpoint(pod), format!("pod{pod}"))));
    for _ in 0..n_actions {
        let some = rng.below(n);
        match rng.below(24) {
            0..3 => actions.push(Action::Events(vec![all.pod_event(rng)])),
            3 => actions.push(Action::RemoveEndpoint(endpoint(rng.below(n + 2)))),
            4..6 => {
                let pod = rng.below(n + 2);
                actions.push(Action::TakeInEndpoint(endpoint(pod), format!("pod{pod}")));
            }
            6 if rng.chance(50) => actions.push(Action::Finish),
            7..12 => actions.push(Action::Slices(1 + rng.below(8))),
            12..14 => actions.push(Action::Events(all.imitate(some, (some + 1) % n))),
            14..16 => {
                // While that is under way.
                actions.push(Action::Events(all.edit(rng, some)));
                actions.push(Action::Slices(1 + rng.below(2)));
                actions.push(Action::Events(all.imitate(some, (some + 1) % n)));
            }
            _ => actions.push(Action::Events(all.edit(rng, some))),
        }
    }
    actions
}

/// A compiler whose work is done in slices, and the datapath that carries them out.
struct Run {
    compiler: Compiler,
    datapath: Tables,
    world: World,
    endpoints: BTreeMap<EndpointId, String>,
    /// The worlds since everything was in force last, that one included.
    since: Vec<World>,
    /// One for each of them but the first, made when it was taken in.
    marks: Vec<Mark>,
    /// What is allowed by the policies of one of them and the pods of another, the last one first.
    references: Vec<Reference>,
    rng: Rng,
    slice: usize,
    /// From how many rows on sets are edited in place, if they are: classes may differ then from those
    /// after a fresh start.
    edited_from: Option<usize>,
    /// What is asked about.
    probes: fn(&World, &mut Rng, &[IpAddr]) -> Vec<Probe>,
}

fn few_probes(world: &World, rng: &mut Rng, remotes: &[IpAddr]) -> Vec<Probe> {
    world.probes(rng, remotes, 12)
}

impl Run {
    fn new(seed: u64, slice: usize, edited_from: Option<usize>) -> Self {
        let gathered_from = [4_000, 0, 3, 10][(seed / 5) as usize % 4];
        let compiler = Compiler::new().with_slices_of(slice).with_sets_gathered_from(gathered_from);
        let compiler = match edited_from {
            Some(n_rows) => compiler.with_sets_edited_from(n_rows),
            None => compiler,
        };
        let world = World::default();
        Self {
            compiler,
            datapath: Tables::default(),
            since: vec![world.clone()],
            marks: Vec::new(),
            references: Vec::new(),
            world,
            endpoints: BTreeMap::new(),
            rng: Rng::new(seed),
            slice,
            edited_from,
            probes: few_probes,
        }
    }

    fn act(&mut self, action: &Action) -> Result<(), String> {
        match action {
            Action::Events(events) => {
                let before = self.world.clone();
                events.iter().for_each(|event| self.world.apply(event));
                self.compiler.enqueue(events.iter().map(change));
                self.since.push(self.world.clone());
                self.marks.push(self.compiler.mark());
                self.references.clear();
                // A pod that is in another namespace now is another one.
                let gone = |pod| namespace_of(&self.world, pod) != namespace_of(&before, pod);
                let gone = self.endpoints.iter().filter(|(_, pod)| gone(pod)).map(|(id, _)| *id);
                gone.collect::<Vec<_>>().into_iter().for_each(|id| self.remove(id));
                if self.since.len() > 5 { self.finish() } else { Ok(()) }
            }
            Action::AddEndpoint(id, pod) => {
                let Some(object) = self.world.pods.get(pod) else { return Ok(()) };
                let name = convert::object_name(&object.metadata);
                self.finish()?;
                self.endpoints.insert(*id, pod.clone());
                let plan = self.compiler.set_endpoint(*id, name);
                self.carry_out(&plan)?;
                self.finish()
            }
            Action::TakeInEndpoint(id, pod) => {
                let Some(object) = self.world.pods.get(pod).cloned() else { return Ok(()) };
                self.remove(*id);
                self.endpoints.insert(*id, pod.clone());
                let name = convert::object_name(&object.metadata);
                self.compiler.enqueue_holders(*id, name, vec![convert::pod(&object).0]);
                Ok(())
            }
            Action::RemoveEndpoint(id) => {
                self.remove(*id);
                Ok(())
            }
            Action::Slices(n) => {
                for _ in 0..*n {
                    self.slice()?;
                }
                Ok(())
            }
            Action::Finish => self.finish(),
        }
    }

    /// The interface is gone at once.
    fn remove(&mut self, id: EndpointId) {
        if self.endpoints.remove(&id).is_some() {
            self.datapath.endpoints.remove(&id);
            self.compiler.enqueue_endpoint_removal(id);
        }
    }

    fn carry_out(&mut self, plan: &[Step]) -> Result<(), String> {
        plan.iter().try_for_each(|step| {
            self.datapath.take_step(step).map_err(|why| format!("{step:?}: {why}"))
        })
    }

    fn slice(&mut self) -> Result<(), String> {
        let plan = self.compiler.slice(self.slice);
        self.carry_out(&plan)?;
        self.forget_what_is_over();
        if plan.is_empty() { Ok(()) } else { self.is_of_some_world() }
    }

    fn finish(&mut self) -> Result<(), String> {
        while self.compiler.has_work() {
            self.slice()?;
        }
        let tables = self.compiler.tables();
        if self.datapath != tables {
            return Err(format!("slices lead to {:#?}, not to {tables:#?}", self.datapath));
        }
        if let Some(number) = self.marks.iter().position(|mark| !self.compiler.has_done(mark)) {
            return Err(format!("all is done, but not what there was at mark {number}"));
        }
        self.since = vec![self.world.clone()];
        self.marks.clear();
        self.references.clear();
        self.is_of_some_world()?;
        self.is_as_from_scratch()
    }

    /// What is said to be done is in force: no verdict may be one of before any more.
    fn forget_what_is_over(&mut self) {
        let done = self.marks.iter().rposition(|mark| self.compiler.has_done(mark));
        let n_over = done.map_or(0, |last| last + 1);
        if n_over > 0 {
            self.since.drain(..n_over);
            self.marks.drain(..n_over);
            self.references.clear();
        }
    }

    /// Every verdict is one by policies of some moment, on a pod and its peers as they were at some.
    fn is_of_some_world(&mut self) -> Result<(), String> {
        let remotes: BTreeSet<IpAddr> =
            self.since.iter().flat_map(|world| world.remotes(&mut self.rng)).collect();
        let remotes: Vec<IpAddr> = remotes.into_iter().collect();
        self.refer();
        // Of a new endpoint nothing is said before the datapath has it.
        let known =
            self.endpoints.iter().filter(|(id, _)| self.datapath.endpoints.contains_key(id));
        for (&endpoint, pod) in known {
            // What is said to be in force is.
            let is_settled = namespace_of(&self.world, pod)
                .is_some_and(|namespace| self.compiler.is_settled(namespace));
            let (n_holders, n_references) =
                if is_settled { (1, 1) } else { (usize::MAX, usize::MAX) };
            let holders = self.since.iter().rev().filter_map(|world| world.pods.get(pod));
            let holders: Vec<_> = holders.take(n_holders).collect();
            let own: Vec<IpAddr> =
                holders.iter().flat_map(|pod| convert::pod(pod).0.addresses).collect();
            for direction in Direction::BOTH {
                for probe in (self.probes)(&self.world, &mut self.rng, &remotes) {
                    let Probe { remote, protocol, port } = probe;
                    if own.contains(&remote) {
                        continue;
                    }
                    let verdict = self.datapath.judge(endpoint, direction, remote, protocol, port);
                    count_verdict(&self.world);
                    let is_known = self.references.iter().take(n_references).any(|reference| {
                        holders.iter().any(|pod| {
                            reference.allows(direction, pod, remote, protocol, port) == verdict
                        })
                    });
                    if !is_known {
                        return Err(format!(
                            "{endpoint:?} {direction} {probe:?} is {verdict}, as in none of {} worlds{}",
                            self.since.len(),
                            if is_settled { ", and said to be settled" } else { "" }
                        ));
                    }
                }
            }
        }
        Ok(())
    }

    fn refer(&mut self) {
        if !self.references.is_empty() {
            return;
        }
        for pods in self.since.iter().rev() {
            for policies in self.since.iter().rev() {
                let mut world = pods.clone();
                world.policies.clone_from(&policies.policies);
                world.cluster_policies.clone_from(&policies.cluster_policies);
                let reference = world.reference();
                // The subjects of policies may have been told when these were looked at.
                if !world.cluster_policies.is_empty() && policies.namespaces != pods.namespaces {
                    let namespaces = policies.namespaces.values().cloned().collect();
                    self.references.push(reference.clone().with_subjects_in(namespaces));
                }
                self.references.push(reference);
            }
        }
    }

    /// As many rows, blocks, sets and classes as after a fresh start, with the same verdicts; as many
    /// blocks where sets are edited in place.
    fn is_as_from_scratch(&self) -> Result<(), String> {
        let mut full = Compiler::new();
        full.apply_all(all_changes(&self.world));
        let names = self
            .endpoints
            .iter()
            .map(|(id, pod)| (*id, convert::object_name(&self.world.pods[pod].metadata)));
        full.set_endpoints(names.collect::<Vec<(EndpointId, ObjectName)>>());
        let count = |compiler: &Compiler| {
            let tables = compiler.tables();
            let blocks: Vec<_> = tables.classes.into_keys().collect();
            (blocks, tables.rows.len(), tables.endpoints.len(), compiler.size())
        };
        let (sliced, full) = (count(&self.compiler), count(&full));
        let is_edited = self.edited_from.is_some();
        match sliced == full || is_edited && sliced.0 == full.0 {
            true => Ok(()),
            false => Err(format!("in slices: {sliced:?}\nfrom scratch: {full:?}")),
        }
    }

    /// Removes all endpoints; nothing may be left.
    fn end(&mut self) -> Result<(), String> {
        self.finish()?;
        self.endpoints
            .keys()
            .copied()
            .collect::<Vec<_>>()
            .into_iter()
            .for_each(|id| self.remove(id));
        self.finish()?;
        match self.datapath == Tables::default() {
            true => Ok(()),
            false => Err(format!("left behind: {:#?}", self.datapath)),
        }
    }
}

fn failure(mut run: Run, actions: &[Action]) -> Option<String> {
    for (number, action) in actions.iter().enumerate() {
        if let Err(why) = run.act(action) {
            return Some(format!("at action {number}: {why}"));
        }
    }
    run.end().err()
}

fn check(usual: std::ops::Range<u64>, size: Size, edits: bool) {
    for seed in seeds(usual) {
        let actions = actions(seed, size, 60);
        let edited_from = edits.then_some(0);
        let run = || Run::new(seed, 1 + usize::try_from(seed % 9).expect("small"), edited_from);
        if let Some(why) = failure(run(), &actions) {
            eprintln!("seed {seed}: {why}; looking for the shortest sequence");
            let (actions, why) =
                shrink_sequence(actions, why, |fewer: &[Action]| failure(run(), fewer));
            panic!("seed {seed}: {why}\nafter {actions:#?}");
        }
    }
    print_verdicts();
}

#[test]
fn changes_between_slices_leave_every_verdict_that_of_some_moment() {
    check(0..30, Size::new(3, 14, 8), false);
    check(100..130, Size::new(1, 6, 4), false);
}

#[test]
fn the_same_with_sets_that_are_edited_in_place() {
    check(200..230, Size::new(3, 14, 8), true);
    check(300..330, Size::new(1, 6, 4), true);
    // Blocks of several namespaces inside each other.
    check(400..420, Size::new(2, 6, 12), true);
}

#[test]
fn neighbours_whose_work_overlaps_never_see_each_others_halves() {
    for seed in seeds(1_000..1_012) {
        let actions = actions_of_neighbours(seed, 50);
        let run = || {
            let edited_from = [Some(0), Some(0), Some(3), Some(12), None][seed as usize % 5];
            let slice = [1, 2, 3, 5, 9, 30][seed as usize % 6];
            let mut run = Run::new(seed, slice, edited_from);
            run.probes = |_, rng, remotes| neighbours::probes(rng, remotes);
            run
        };
        if let Some(why) = failure(run(), &actions) {
            eprintln!("seed {seed}: {why}; looking for the shortest sequence");
            let (actions, why) =
                shrink_sequence(actions, why, |fewer: &[Action]| failure(run(), fewer));
            panic!("seed {seed}: {why}\nafter {actions:#?}");
        }
    }
}

/// A policy of a namespace on all its pods, with so many blocks of its own.
fn crowd(namespace: &str, name: &str, n_blocks: usize) -> Change {
    let blocks: Vec<String> = (0..n_blocks)
        .map(|i| format!(r#"{{"ipBlock": {{"cidr": "20.{}.{}.0/30"}}}}"#, i / 250, i % 250))
        .collect();
    let spec =
        format!(r#"{{"podSelector": {{}}, "ingress": [{{"from": [{}]}}]}}"#, blocks.join(","));
    put_policy(&policy(&format!("{namespace}/{name}"), &spec))
}

const BULK: EndpointId = EndpointId(1);
const OTHER: EndpointId = EndpointId(2);

fn two_namespaces() -> Compiler {
    let mut compiler = Compiler::new();
    compiler.apply_all([
        put_pod(&pod("bulk/a", "", "10.0.0.1", "")),
        put_pod(&pod("other/b", "", "10.0.0.2", "")),
        put_pod(&pod("other/c", "role=friend", "10.0.0.3", "")),
        crowd("bulk", "small", 1),
        crowd("other", "small", 1),
    ]);
    compiler.set_endpoints([
        (BULK, ObjectName::new("bulk", "a")),
        (OTHER, ObjectName::new("other", "b")),
    ]);
    compiler
}

/// In how many slices something is in force.
fn slices_until(compiler: &mut Compiler, is_in_force: impl Fn(&Tables) -> bool) -> usize {
    for n in 0..100_000 {
        if is_in_force(&compiler.tables()) {
            return n;
        }
        assert!(compiler.has_work(), "it never is");
        compiler.slice(100);
    }
    panic!("it never is");
}

#[test]
fn what_others_change_is_in_force_long_before_what_takes_long() {
    let mut compiler = two_namespaces();
    let from = |tables: &Tables, endpoint, remote: &str| {
        let remote = remote.parse().expect("an address");
        tables.judge(endpoint, Direction::Ingress, remote, 6, 80)
    };
    let friends = r#"{"podSelector": {}, "ingress": [{"from": [{"podSelector":
        {"matchLabels": {"role": "friend"}}}]}]}"#;
    compiler.enqueue([crowd("bulk", "large", 5_000)]);
    compiler.slice(100);
    assert!(compiler.is_busy("bulk") && !compiler.is_busy("other"));
    compiler.enqueue([put_policy(&policy("other/small", friends))]);
    assert!(compiler.is_busy("other"));
    assert!(slices_until(&mut compiler, |t| from(t, OTHER, "10.0.0.3")) < 5);
    let under_way = compiler.under_way();
    let [bulk] = under_way.as_slice() else { panic!("{under_way:?}") };
    assert_eq!(bulk.namespace.as_deref(), Some("bulk"));
    assert!(bulk.done > 0 && bulk.done < bulk.all, "{bulk:?}");
    // A pod that changes.
    compiler.enqueue([put_pod(&pod("other/c", "role=none", "10.0.0.3", ""))]);
    assert!(slices_until(&mut compiler, |t| !from(t, OTHER, "10.0.0.3")) < 5);
    // A new one.
    let new = EndpointId(3);
    compiler.enqueue([put_pod(&pod("other/new", "", "10.0.0.4", ""))]);
    let (named, _) = convert::pod(&pod("other/new", "", "10.0.0.4", ""));
    compiler.enqueue_holders(new, ObjectName::new("other", "new"), vec![named]);
    let is_closed = |t: &Tables| t.endpoints.contains_key(&new) && !from(t, new, "10.0.0.1");
    assert!(slices_until(&mut compiler, is_closed) < 5);
    // A policy that is deleted.
    compiler.enqueue([Change::PolicyGone(ObjectName::new("other", "small"))]);
    assert!(slices_until(&mut compiler, |t| from(t, OTHER, "10.0.0.3")) < 5);
    assert!(!from(&compiler.tables(), BULK, "20.19.249.1"), "the large one is under way still");
    assert!(slices_until(&mut compiler, |t| from(t, BULK, "20.19.249.1")) > 30);
}

#[test]
fn policies_that_were_taken_in_together_are_in_force_together() {
    let mut compiler = two_namespaces();
    compiler.enqueue([crowd("bulk", "large", 2_000), crowd("bulk", "larger", 3_000)]);
    while compiler.has_work() {
        let plan = compiler.slice(100);
        let n_switches = plan.iter().filter(|step| matches!(step, Step::SetEndpoint(..))).count();
        let tables = compiler.tables();
        let allowed = |remote: &str| {
            let remote = remote.parse().expect("an address");
            tables.judge(BULK, Direction::Ingress, remote, 6, 80)
        };
        assert_eq!(allowed("20.0.3.1"), allowed("20.11.249.1"));
        assert_eq!(allowed("20.0.3.1"), n_switches > 0 || !compiler.is_busy("bulk"));
    }
}
