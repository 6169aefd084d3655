//! The compiler against the reference evaluator on random clusters, and its plans against what
//! the documentation of `Step` promises, on random sequences of events.
//!
//! A failure prints a cluster or a sequence that was made as small as it gets.

use netpol_testkit::tables::TakeStep as _;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::Arc;

use netpol_compile::ids::ClassKey;
use netpol_compile::{Compiler, EndpointId, Ids, Plan, Row, SetId, Step, Tables};
use netpol_model::{Change, Direction, ObjectName};
use netpol_source::convert;
use netpol_testkit::generate::Rng;
use netpol_testkit::generate::world::{Event, Probe, Size, World};
use netpol_testkit::objects::{
    all_changes, change, name, namespace, namespace_of, pod, policy, shrink_sequence,
};
use netpol_testkit::rig::{count_verdict, print_verdicts, seeds};

use k8s_openapi::api::core::v1::Pod;

fn name_of_pod(pod: &Pod) -> ObjectName {
    convert::object_name(&pod.metadata)
}

fn changes(world: &World) -> Vec<Change> {
    all_changes(world).collect()
}

fn own_addresses(pod: &Pod) -> Vec<IpAddr> {
    convert::pod(pod).0.addresses.to_vec()
}

/// The tables with contents instead of numbers, which two compilers may give differently.
fn by_content(compiler: &Compiler) -> impl PartialEq + std::fmt::Debug + use<> {
    let ids = compiler.export_ids();
    let sets: BTreeMap<u16, &Arc<str>> = ids.sets.iter().map(|(key, &id)| (id, key)).collect();
    let classes: BTreeMap<u32, &ClassKey> =
        ids.classes.iter().map(|(key, &id)| (id, key)).collect();
    let set = |id: SetId| sets.get(&id.0).map_or_else(String::new, ToString::to_string);
    // Those that no key means have their own numbers.
    let class = |id: u32| classes.get(&id).map_or_else(|| id.to_string(), ToString::to_string);
    let tables = compiler.tables();
    let blocks: BTreeMap<_, _> =
        tables.classes.iter().map(|(block, id)| (*block, class(id.0))).collect();
    let rows: BTreeMap<(String, String), Row> = tables
        .rows
        .iter()
        .map(|((set_id, class_id), row)| ((set(*set_id), class(class_id.0)), row.clone()))
        .collect();
    let endpoints: BTreeMap<_, _> = tables
        .endpoints
        .iter()
        .map(|(id, sets)| (*id, (set(sets.ingress), set(sets.egress))))
        .collect();
    // Nothing may be lost by the translation, and nothing kept that is not used.
    assert_eq!((blocks.len(), rows.len()), (tables.classes.len(), tables.rows.len()));
    (blocks, rows, endpoints, compiler.size())
}

fn full_compile(world: &World, endpoints: &BTreeMap<EndpointId, ObjectName>) -> Compiler {
    let mut compiler = Compiler::new();
    compiler.apply_all(changes(world));
    compiler.set_endpoints(endpoints.iter().map(|(id, name)| (*id, name.clone())));
    compiler
}

fn all_endpoints(world: &World) -> BTreeMap<EndpointId, ObjectName> {
    (1..).map(EndpointId).zip(world.pods.values().map(name_of_pod)).collect()
}

/// The first verdict that compiler and evaluator do not agree on.
fn disagreement(world: &World, seed: u64, n_probes: usize) -> Option<String> {
    let mut rng = Rng::new(seed);
    let endpoints = all_endpoints(world);
    let compiler = full_compile(world, &endpoints);
    let (tables, reference) = (compiler.tables(), world.reference());
    let remotes = world.remotes(&mut rng);
    if remotes.is_empty() {
        return None;
    }
    for ((&endpoint, name), pod) in endpoints.iter().zip(world.pods.values()) {
        for direction in Direction::BOTH {
            let policies = compiler.endpoint_policies(endpoint, direction);
            if reference.isolated(direction, pod) == policies.is_empty() {
                return Some(format!("isolation of {name} for {direction}: {policies:?}"));
            }
            let own = own_addresses(pod);
            for probe in world.probes(&mut rng, &remotes, n_probes) {
                // What a pod sends to itself is not looked up in the tables.
                if direction == Direction::Egress && own.contains(&probe.remote) {
                    continue;
                }
                let Probe { remote, protocol, port } = probe;
                let expected = reference.allows(direction, pod, remote, protocol, port);
                count_verdict(world);
                if tables.judge(endpoint, direction, remote, protocol, port) != expected {
                    let class = compiler.class_names(tables.class_of(remote));
                    return Some(format!(
                        "{direction} of {name}: {probe:?} should be allowed: {expected}; the \
                         class is {class:?}, the rules are {:#?}",
                        compiler.rules(endpoint, direction)
                    ));
                }
            }
        }
    }
    None
}

#[test]
fn random_clusters_get_the_verdicts_of_the_reference() {
    let mut n_isolated = 0;
    let seeds = seeds(0..12);
    let n_clusters = usize::try_from(seeds.end - seeds.start).expect("few");
    for seed in seeds {
        let mut rng = Rng::new(seed);
        let world = World::random(&mut rng, Size::default().with_tiers_by(seed));
        if let Some(first) = disagreement(&world, seed, 60) {
            let (world, message) = shrink(world, first, |world| disagreement(world, seed, 400));
            panic!("seed {seed}: {message}\n{}", text(&world));
        }
        let endpoints = all_endpoints(&world);
        let compiler = full_compile(&world, &endpoints);
        let isolated =
            |id: &&EndpointId| !compiler.endpoint_policies(**id, Direction::Ingress).is_empty();
        n_isolated += endpoints.keys().filter(isolated).count();
    }
    // The generator would prove little if hardly anything were isolated.
    print_verdicts();
    assert!(n_isolated > n_clusters * 25, "only {n_isolated} pods are isolated");
}

#[test]
fn crowded_small_clusters_get_the_verdicts_of_the_reference() {
    for seed in seeds(1000..1060) {
        let mut rng = Rng::new(seed);
        let world = World::random(&mut rng, Size::new(2, 12, 6).with_tiers_by(seed));
        if let Some(first) = disagreement(&world, seed, 120) {
            let (world, message) = shrink(world, first, |world| disagreement(world, seed, 400));
            panic!("seed {seed}: {message}\n{}", text(&world));
        }
    }
    print_verdicts();
}

/// Makes a failing cluster smaller while it fails, for a bounded number of tries.
fn shrink(
    mut world: World,
    mut message: String,
    fails: impl Fn(&World) -> Option<String>,
) -> (World, String) {
    let mut n_tries = 0;
    'again: loop {
        for smaller in world.smaller() {
            n_tries += 1;
            if n_tries > 1000 {
                return (world, message);
            }
            if let Some(why) = fails(&smaller) {
                (world, message) = (smaller, why);
                continue 'again;
            }
        }
        return (world, message);
    }
}

fn text(world: &World) -> String {
    let mut text = String::new();
    let mut add = |object: serde_json::Result<String>| {
        writeln!(text, "{}", object.expect("objects are serializable")).expect("to memory");
    };
    world.namespaces.values().for_each(|object| add(serde_json::to_string(object)));
    world.pods.values().for_each(|object| add(serde_json::to_string(object)));
    world.policies.values().for_each(|object| add(serde_json::to_string(object)));
    world.cluster_policies.values().for_each(|object| add(serde_json::to_string(object)));
    world.nodes.values().for_each(|object| add(serde_json::to_string(object)));
    text
}

/// One thing that happens to a compiler.
#[derive(Debug, Clone)]
enum Action {
    Event(Box<Event>),
    AddEndpoint(EndpointId, String),
    RemoveEndpoint(EndpointId),
    /// Several events in one settle.
    Batch(Vec<Event>),
}

impl Action {
    /// What happened together, one by one.
    fn parts(&self) -> Vec<Self> {
        let Self::Batch(events) = self else { return vec![self.clone()] };
        events.iter().cloned().map(|event| Self::Event(Box::new(event))).collect()
    }
}

/// A random sequence.
fn actions(seed: u64, size: Size, n_actions: usize) -> Vec<Action> {
    let mut rng = Rng::new(seed);
    let mut world = World::empty(size.with_tiers_by(seed));
    let mut actions = Vec::new();
    for number in 0..n_actions {
        let id = EndpointId(u16::try_from(1 + rng.below(6)).expect("small"));
        actions.push(match rng.below(12) {
            0..2 => Action::AddEndpoint(id, format!("pod{}", rng.below(size.pods))),
            2 if rng.chance(50) => Action::RemoveEndpoint(id),
            3 => Action::Batch((0..1 + rng.below(6)).map(|_| world.step(&mut rng)).collect()),
            _ if number == 0 => Action::Batch((0..40).map(|_| world.step(&mut rng)).collect()),
            _ => Action::Event(Box::new(world.step(&mut rng))),
        });
    }
    actions
}

/// A compiler, the datapath that carries out its plans, and the truth.
struct Run {
    compiler: Compiler,
    datapath: Tables,
    world: World,
    endpoints: BTreeMap<EndpointId, String>,
    seed: u64,
    rng: Rng,
    /// Numbers may run out: then verdicts need not be right, but must not be too permissive.
    scarce: bool,
    /// Sets are edited in place, so that other classes exist than after a fresh start.
    edits: bool,
    /// How many edits were found noted, at restarts.
    n_edits: usize,
    /// What was written down of the numbers.
    noted: Option<Ids>,
}

type Question = (EndpointId, Direction, Probe);

impl Run {
    fn new(seed: u64, compiler: Compiler) -> Self {
        Self {
            compiler,
            datapath: Tables::default(),
            world: World::default(),
            endpoints: BTreeMap::new(),
            seed,
            rng: Rng::new(seed),
            scarce: false,
            edits: false,
            n_edits: 0,
            noted: None,
        }
    }

    /// Likewise, with sets that are edited in place whenever that is possible.
    fn with_edits(seed: u64) -> Self {
        let compiler = Compiler::new().with_sets_edited_from(0);
        Self { edits: true, ..Self::new(seed, compiler) }
    }

    /// Carries out one action and checks everything there is to check about it.
    fn act(&mut self, action: &Action) -> Result<(), String> {
        let before = self.world.clone();
        match action {
            Action::Event(event) => {
                self.world.apply(event);
                let plan = self.compiler.apply(change(event));
                self.follow(plan, &before, !self.scarce)?;
            }
            Action::Batch(events) => {
                events.iter().for_each(|event| self.world.apply(event));
                let plan = self.compiler.apply_all(events.iter().map(change));
                self.follow(plan, &before, false)?;
            }
            Action::AddEndpoint(id, pod) => {
                let Some(object) = self.world.pods.get(pod) else { return Ok(()) };
                self.endpoints.insert(*id, pod.clone());
                let plan = self.compiler.set_endpoint(*id, name_of_pod(object));
                self.follow(plan, &before, !self.scarce)?;
            }
            Action::RemoveEndpoint(id) => self.remove(*id)?,
        }
        // The agent sees the interfaces of pods that are gone go, too. A pod that is in another
        // namespace now is another one.
        let gone = |pod| namespace_of(&self.world, pod) != namespace_of(&before, pod);
        let gone: Vec<EndpointId> =
            self.endpoints.iter().filter(|(_, pod)| gone(pod)).map(|(id, _)| *id).collect();
        for id in gone {
            self.remove(id)?;
        }
        // As the agent does now and then, having waited for packets in flight.
        if self.rng.chance(20) {
            let plan = self.compiler.reuse_numbers();
            let world = self.world.clone();
            self.follow(plan, &world, !self.scarce)?;
        }
        if self.edits && self.rng.chance(20) {
            self.restart()?;
        }
        if self.scarce { self.nothing_opened() } else { self.compare() }
    }

    /// The numbers as they are, or as they were once with what was noted since.
    fn ids(&mut self) -> Ids {
        let news = self.compiler.new_ids();
        self.n_edits += news.edits.len();
        let now = self.compiler.export_ids();
        let Some(mut ids) = self.noted.take().filter(|_| self.rng.chance(50)) else {
            self.noted = Some(now.clone());
            return now;
        };
        // Numbers of former content may be among them: whoever reads them keeps those out of use.
        let in_use = |id: &u16| now.sets.values().any(|used| used == id);
        ids.sets.retain(|_, id| in_use(id));
        ids.edits.retain(|(id, _)| !news.sets.values().any(|given| given == id));
        ids.sets.extend(news.sets);
        ids.edits.extend(news.edits);
        if ids.sets.values().collect::<BTreeSet<_>>().len() < ids.sets.len() {
            // A number that had its rest in between.
            self.noted = Some(now.clone());
            return now;
        }
        ids.edits.retain(|(id, _)| in_use(id));
        self.noted = Some(Ids { edits: ids.edits.clone(), sets: ids.sets.clone(), ..now.clone() });
        Ids { sets: ids.sets, edits: ids.edits, ..now }
    }

    /// Another run of the program that knows the numbers of this one goes on with the same tables.
    fn restart(&mut self) -> Result<(), String> {
        let ids = self.ids();
        let mut next = Compiler::new().with_sets_edited_from(0);
        next.adopt(&ids);
        next.apply_all(changes(&self.world));
        let names =
            self.endpoints.iter().map(|(id, pod)| (*id, name_of_pod(&self.world.pods[pod])));
        next.set_endpoints(names.collect::<BTreeMap<_, _>>());
        if next.tables() != self.datapath {
            return Err(format!(
                "a restart leads to {:#?}, not to {:#?}, with {:#?}",
                next.tables(),
                self.datapath,
                ids
            ));
        }
        self.noted = None;
        let plan = next.forget_adopted();
        self.compiler = next;
        let world = self.world.clone();
        self.follow(plan, &world, true)
    }

    fn remove(&mut self, id: EndpointId) -> Result<(), String> {
        self.endpoints.remove(&id);
        self.datapath.endpoints.remove(&id);
        let plan = self.compiler.remove_endpoint(id);
        let world = self.world.clone();
        self.follow(plan, &world, !self.scarce)
    }

    /// Carries out a plan step by step. With `exact` every verdict must be the old or the new one
    /// all the way; in any case whoever lost something must be judged again, and not too early.
    fn follow(&mut self, plan: Plan, before: &World, exact: bool) -> Result<(), String> {
        let after = self.compiler.tables();
        let questions = self.questions(before);
        let judge = |tables: &Tables, (endpoint, direction, probe): &Question| {
            tables.judge(*endpoint, *direction, probe.remote, probe.protocol, probe.port)
        };
        let old: Vec<bool> = questions.iter().map(|q| judge(&self.datapath, q)).collect();
        let new: Vec<bool> = questions.iter().map(|q| judge(&after, q)).collect();
        // The labels of a namespace may decide whom policies are about, and whom their rules mean:
        // the one is seen after the other.
        let is_of_both =
            !self.world.cluster_policies.is_empty() && before.namespaces != self.world.namespaces;
        let between = is_of_both.then(|| {
            let namespaces = before.namespaces.values().cloned().collect();
            self.world.reference().with_subjects_in(namespaces)
        });
        let is_between = |(endpoint, direction, probe): &Question, verdict: bool| {
            let (Some(between), Some(pod)) = (&between, self.endpoints.get(endpoint)) else {
                return false;
            };
            let Probe { remote, protocol, port } = *probe;
            self.world.pods.get(pod).is_some_and(|pod| {
                between.allows(*direction, pod, remote, protocol, port) == verdict
            })
        };
        let mut settled: Vec<bool> = old.iter().zip(&new).map(|(old, new)| old == new).collect();
        // What the flows of an endpoint were told when they were last judged again.
        let mut rejudged: Vec<Option<bool>> = vec![None; questions.len()];
        for (position, step) in plan.iter().enumerate() {
            self.datapath.take_step(step).map_err(|why| format!("step {position}: {why}"))?;
            if position % (1 + plan.len() / 500) != 0 && !matches!(step, Step::Rejudge(_)) {
                continue;
            }
            for (index, question) in questions.iter().enumerate() {
                let verdict = judge(&self.datapath, question);
                if exact
                    && settled[index]
                    && verdict != new[index]
                    && !is_between(question, verdict)
                {
                    let (old, new) = (old[index], new[index]);
                    return Err(format!(
                        "{question:?} is neither old {old} nor new {new} after step {position} \
                         of {plan:#?}"
                    ));
                }
                settled[index] |= verdict == new[index];
            }
            if let Step::Rejudge(endpoints) = step {
                for (index, question) in questions.iter().enumerate() {
                    if endpoints.contains(&question.0) {
                        rejudged[index] = Some(judge(&self.datapath, question));
                    }
                }
            }
        }
        if self.datapath != after {
            return Err(format!("the plan leads to {:#?}, not to {after:#?}", self.datapath));
        }
        for (index, question) in questions.iter().enumerate() {
            if old[index] && !new[index] && rejudged[index] != Some(false) {
                return Err(format!(
                    "{question:?} is lost, but flows were told {:?}",
                    rejudged[index]
                ));
            }
        }
        Ok(())
    }

    /// Questions about all endpoints, on addresses of before and after.
    fn questions(&mut self, before: &World) -> Vec<Question> {
        let mut remotes: BTreeSet<IpAddr> = before.remotes(&mut self.rng).into_iter().collect();
        remotes.extend(self.world.remotes(&mut self.rng));
        let remotes: Vec<IpAddr> = remotes.into_iter().collect();
        let mut questions = Vec::new();
        for (&endpoint, pod) in &self.endpoints {
            let pods = [before.pods.get(pod), self.world.pods.get(pod)];
            let own: Vec<IpAddr> = pods.into_iter().flatten().flat_map(own_addresses).collect();
            for direction in Direction::BOTH {
                let probes = self.world.probes(&mut self.rng, &remotes, 50);
                let others = probes.into_iter().filter(|probe| !own.contains(&probe.remote));
                questions.extend(others.map(|probe| (endpoint, direction, probe)));
            }
        }
        questions
    }

    /// Whatever passes may pass.
    fn nothing_opened(&mut self) -> Result<(), String> {
        let reference = self.world.reference();
        let world = self.world.clone();
        for (endpoint, direction, probe) in self.questions(&world) {
            let pod = &self.world.pods[&self.endpoints[&endpoint]];
            let Probe { remote, protocol, port } = probe;
            if self.datapath.judge(endpoint, direction, remote, protocol, port)
                && !reference.allows(direction, pod, remote, protocol, port)
            {
                return Err(format!("{endpoint:?} {direction} {probe:?} must not pass"));
            }
        }
        Ok(())
    }

    /// Compares with the reference, and with a compiler that starts from what there is now.
    fn compare(&mut self) -> Result<(), String> {
        let reference = self.world.reference();
        let world = self.world.clone();
        for (endpoint, direction, probe) in self.questions(&world) {
            let pod = &self.world.pods[&self.endpoints[&endpoint]];
            let Probe { remote, protocol, port } = probe;
            let expected = reference.allows(direction, pod, remote, protocol, port);
            count_verdict(&world);
            if self.datapath.judge(endpoint, direction, remote, protocol, port) != expected {
                return Err(format!("{endpoint:?} {direction} {probe:?} should be {expected}"));
            }
        }
        let names =
            self.endpoints.iter().map(|(id, pod)| (*id, name_of_pod(&self.world.pods[pod])));
        if self.edits {
            return Ok(());
        }
        let full = full_compile(&self.world, &names.collect());
        let (incremental, full) = (by_content(&self.compiler), by_content(&full));
        if incremental != full {
            return Err(format!("incremental: {incremental:#?}\nfrom scratch: {full:#?}"));
        }
        Ok(())
    }

    /// Removes all endpoints; nothing may be left.
    fn finish(&mut self) -> Result<(), String> {
        while let Some((&id, _)) = self.endpoints.first_key_value() {
            self.remove(id)?;
        }
        if self.datapath != Tables::default() {
            return Err(format!("seed {}: left behind: {:#?}", self.seed, self.datapath));
        }
        Ok(())
    }
}

fn failure(run: &mut Run, actions: &[Action]) -> Option<String> {
    for (number, action) in actions.iter().enumerate() {
        if let Err(why) = run.act(action) {
            return Some(format!("at action {number}: {why}"));
        }
    }
    run.finish().err()
}

fn check_sequences(seeds: std::ops::Range<u64>, size: Size, n_actions: usize) {
    let run = |seed| Run::new(seed, Compiler::new());
    check_runs(run, seeds, size, n_actions);
}

/// How often sets were edited in place.
fn check_runs(
    run: impl Fn(u64) -> Run,
    seeds: std::ops::Range<u64>,
    size: Size,
    n_actions: usize,
) -> usize {
    let mut n_edits = 0;
    for seed in seeds {
        let actions = actions(seed, size, n_actions);
        let mut first = run(seed);
        if let Some(why) = failure(&mut first, &actions) {
            let fails = |fewer: &[Action]| failure(&mut run(seed), fewer);
            let flat: Vec<Action> = actions.iter().flat_map(Action::parts).collect();
            let (actions, why) = fails(&flat).map_or((actions, why), |why| (flat, why));
            let (actions, why) = shrink_sequence(actions, why, fails);
            panic!("seed {seed}: {why}\nafter {actions:#?}");
        }
        n_edits += first.n_edits;
    }
    print_verdicts();
    n_edits
}

#[test]
fn sets_that_are_edited_in_place_say_what_new_ones_would() {
    let small = Size::new(1, 6, 4);
    let n_edits = check_runs(Run::with_edits, 3000..3080, small, 60);
    assert!(n_edits > 20, "only {n_edits} edits in place");
    let large = Size::new(3, 14, 8);
    let n_edits = check_runs(Run::with_edits, 3100..3130, large, 80);
    assert!(n_edits > 5, "only {n_edits} edits in place");
}

#[test]
fn slices_of_any_size_lead_the_same_way() {
    let slices = |seed: u64| 1 + usize::try_from(seed % 7).expect("small");
    let run = |seed| Run::new(seed, Compiler::new().with_slices_of(slices(seed)));
    check_runs(run, seeds(5000..5012), Size::new(3, 14, 8), 60);
    let run = |seed| {
        let mut run = Run::with_edits(seed);
        run.compiler = run.compiler.with_slices_of(slices(seed));
        run
    };
    check_runs(run, 5100..5130, Size::new(1, 6, 4), 50);
    check_runs(run, 5200..5210, Size::new(3, 14, 8), 60);
}

#[test]
fn edits_in_place_open_nothing_when_numbers_run_out() {
    for seed in 4000..4016 {
        let actions = actions(seed, Size::new(2, 14, 8), 60);
        let mut run = Run::new(seed, Compiler::with_limits(6, 12).with_sets_edited_from(0));
        run.scarce = true;
        for (number, action) in actions.iter().enumerate() {
            if let Err(why) = run.act(action) {
                panic!("seed {seed}, action {number}: {why}");
            }
        }
        run.finish().expect("all is removed in the end");
    }
}

#[test]
fn every_sequence_of_events_leads_where_a_fresh_start_leads() {
    check_sequences(seeds(0..16), Size::new(3, 14, 8), 80);
}

#[test]
fn sequences_in_one_crowded_namespace() {
    check_sequences(seeds(500..530), Size::new(1, 6, 4), 50);
}

#[test]
fn sequences_in_a_cluster_of_full_size() {
    check_sequences(900..901, Size::default(), 200);
}

#[test]
fn when_numbers_run_out_nothing_opens_and_whoever_loses_is_judged_again() {
    let mut n_exhausted = 0;
    for seed in 2000..2016 {
        let actions = actions(seed, Size::new(2, 14, 8), 60);
        let mut run = Run::new(seed, Compiler::with_limits(4, 9));
        run.scarce = true;
        for (number, action) in actions.iter().enumerate() {
            if let Err(why) = run.act(action) {
                panic!("seed {seed}, action {number}: {why}");
            }
            n_exhausted += usize::from(!run.compiler.problems().is_empty());
        }
        run.finish().expect("all is removed in the end");
    }
    assert!(n_exhausted > 100, "only {n_exhausted} times numbers ran out");
}

// === Thousands of rules on a pod ===

/// A policy of namespace x on pods with `app=a`, about blocks that lie apart, inside each other or
/// are shared, with excepts, about pods, with many ports or ranges of them.
fn crowd_policy(rng: &mut Rng, number: usize) -> Event {
    let block = |rng: &mut Rng, length: usize| {
        let bits = (20 << 24) | (rng.below(4096) << 12) | (rng.below(16) << 8);
        let address = std::net::Ipv4Addr::from_bits(u32::try_from(bits).expect("32 bits"));
        let length = u8::try_from(length).expect("at most 32");
        ipnet::IpNet::new(address.into(), length).expect("a length").trunc()
    };
    let peer = |rng: &mut Rng| match rng.below(12) {
        0 => format!(
            r#"{{"podSelector": {{"matchExpressions": [{{"key": "app", "operator": "In",
                "values": ["p{}", "p{}"]}}]}}}}"#,
            rng.below(20),
            rng.below(20)
        ),
        1 => r#"{"namespaceSelector": {}}"#.to_owned(),
        2 => {
            let outer = block(rng, 20);
            let inner = outer.subnets(24).expect("longer").nth(rng.below(16)).expect("of 16");
            format!(r#"{{"ipBlock": {{"cidr": "{outer}", "except": ["{inner}"]}}}}"#)
        }
        3 if rng.chance(10) => {
            format!(r#"{{"ipBlock": {{"cidr": "0.0.0.0/0", "except": ["{}"]}}}}"#, block(rng, 16))
        }
        4..6 => {
            let length = 8 + rng.below(25);
            format!(r#"{{"ipBlock": {{"cidr": "{}"}}}}"#, block(rng, length))
        }
        _ => format!(r#"{{"ipBlock": {{"cidr": "{}"}}}}"#, block(rng, 28)),
    };
    let ports = match rng.below(8) {
        0 => String::new(),
        1 => (0..100).map(|i| format!(r#"{{"port": {}}},"#, 70 + 3 * i)).collect(),
        2 => format!(r#"{{"port": {}, "endPort": 9000}},"#, 1 + rng.below(200)),
        3 => r#"{"port": "http"},"#.to_owned(),
        _ => format!(r#"{{"port": {}}},"#, 79 + rng.below(5)),
    };
    let peers: Vec<String> = (0..1 + rng.below(3)).map(|_| peer(rng)).collect();
    let (key, kind) = if rng.chance(80) { ("from", "ingress") } else { ("to", "egress") };
    let spec = format!(
        r#"{{"podSelector": {{"matchLabels": {{"app": "a"}}}}, "{kind}": [{{"{key}": [{}],
            "ports": [{}]}}], "policyTypes": ["{}"]}}"#,
        peers.join(", "),
        ports.trim_end_matches(','),
        if kind == "ingress" { "Ingress" } else { "Egress" },
    );
    Event::Policy(policy(&format!("x/crowd{number}"), &spec))
}

#[test]
fn thousands_of_rules_on_a_pod_are_edited_one_by_one() {
    const N_POLICIES: usize = 1_000;
    let mut rng = Rng::new(77);
    let mut run = Run::with_edits(77);
    run.compiler = Compiler::new();
    let mut events = vec![Event::Namespace(namespace("x", "team=red"))];
    for number in 0..3 {
        let address = format!("10.0.0.{}", number + 1);
        events.push(Event::Pod(pod(&format!("x/a{number}"), "app=a", &address, "http=TCP:80")));
    }
    for number in 0..40 {
        let (name, labels) = (format!("x/p{number}"), format!("app=p{}", number % 20));
        let address = format!("20.{}.{}.1", number * 6, number % 16);
        events.push(Event::Pod(pod(&name, &labels, &address, "http=TCP:81")));
    }
    events.extend((0..N_POLICIES).map(|number| crowd_policy(&mut rng, number)));
    events.iter().for_each(|event| run.world.apply(event));
    run.compiler.apply_all(events.iter().map(change));
    for number in 0..3 {
        let id = EndpointId(number + 1);
        run.endpoints.insert(id, format!("a{number}"));
        run.compiler.set_endpoint(id, name(&format!("x/a{number}")));
    }
    run.datapath = run.compiler.tables();
    run.compare().expect("as the reference says");
    let mut n_in_place = 0;
    for number in 0..15 {
        let index = rng.below(N_POLICIES + 20);
        let old = run.world.policies.get(&format!("crowd{index}")).cloned();
        let event = match old {
            Some(old) if rng.chance(25) => Event::PolicyGone(old),
            _ => crowd_policy(&mut rng, index),
        };
        let sets = run.compiler.tables().endpoints;
        if let Err(why) = run.act(&Action::Event(Box::new(event.clone()))) {
            panic!("edit {number}, {event:?}: {why}");
        }
        n_in_place += usize::from(run.compiler.tables().endpoints == sets);
    }
    assert!(n_in_place > 5, "only {n_in_place} edits kept the sets");
}

/// Several policies come to say what others said before, all at once: what is edited in place must
/// not be what somebody else comes to.
#[test]
fn contents_that_move_from_pod_to_pod() {
    const PODS: usize = 4;
    let put = |number: usize, n_blocks: usize| {
        let block = |block| format!(r#"{{"ipBlock": {{"cidr": "20.0.{block}.0/24"}}}}"#);
        let list: Vec<String> = (0..n_blocks).map(block).collect();
        let spec = format!(
            r#"{{"podSelector": {{"matchLabels": {{"app": "a{number}"}}}},
                "ingress": [{{"from": [{}]}}]}}"#,
            list.join(", ")
        );
        Event::Policy(policy(&format!("x/p{number}"), &spec))
    };
    let mut n_in_place = 0;
    for seed in 5000..5040 {
        let mut rng = Rng::new(seed);
        let mut run = Run::with_edits(seed);
        let mut actions = vec![Action::Event(Box::new(Event::Namespace(namespace("x", ""))))];
        for number in 0..PODS {
            let (name, labels) = (format!("x/a{number}"), format!("app=a{number}"));
            let address = format!("10.0.0.{}", number + 1);
            actions.push(Action::Event(Box::new(Event::Pod(pod(&name, &labels, &address, "")))));
            let id = EndpointId(u16::try_from(number + 1).expect("few"));
            actions.push(Action::AddEndpoint(id, format!("a{number}")));
        }
        for _ in 0..12 {
            let numbers = (0..PODS).filter(|_| rng.chance(70)).collect::<Vec<_>>();
            let events = numbers.into_iter().map(|number| put(number, 1 + rng.below(6)));
            actions.push(Action::Batch(events.collect()));
        }
        for (number, action) in actions.iter().enumerate() {
            if let Err(why) = run.act(action) {
                panic!("seed {seed}, action {number}: {why}\nafter {actions:#?}");
            }
        }
        n_in_place += run.n_edits;
    }
    assert!(n_in_place > 20, "only {n_in_place} edits in place");
}
