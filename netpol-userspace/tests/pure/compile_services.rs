//! Services in the compiler: against the reference evaluator on random sequences of events, with
//! every step of every plan between the old verdict and the new one, and case by case.

use netpol_testkit::tables::TakeStep as _;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use k8s_openapi::api::core::v1::Pod;
use netpol_compile::{
    Backend, ClassId, Compiler, EndpointId, Plan, Problem, ServiceKey, SetId, Step, Tables, Verdict,
};
use netpol_model::{Change, Direction, EndpointSlice, ObjectName, Protocol, Proxy, Service};
use netpol_reference::services::Answer;
use netpol_source::convert;
use netpol_testkit::generate::Rng;
use netpol_testkit::generate::service_world::{PROXY, ServiceEvent, ServiceWorld};
use netpol_testkit::generate::world::{Event, Probe, Size, World};
use netpol_testkit::objects::{
    change, judge, name, namespace, namespace_of, pod, policy, protocol_port,
};
use netpol_testkit::objects::{
    put_cluster_policy, put_namespace, put_pod, put_policy, shrink_sequence,
};
use netpol_testkit::rig::{count_verdict, from_environment, print_verdicts, seeds};
use serde_json::json;

fn service_change(event: &ServiceEvent) -> Change {
    match event {
        ServiceEvent::Service(object) => {
            let (service, problems) = convert::service(object);
            assert_eq!(problems, [], "the generator made an invalid Service");
            Change::Service(service)
        }
        ServiceEvent::ServiceGone(object) => {
            Change::ServiceGone(convert::object_name(&object.metadata))
        }
        // Ports without a number are valid, and a problem.
        ServiceEvent::Slice(object) => Change::EndpointSlice(convert::endpoint_slice(object).0),
        ServiceEvent::SliceGone(object) => {
            Change::EndpointSliceGone(convert::object_name(&object.metadata))
        }
    }
}

/// One thing that happens to a compiler.
#[derive(Debug, Clone)]
enum Action {
    Event(Box<Event>),
    Service(Box<ServiceEvent>),
    AddEndpoint(EndpointId, String),
    RemoveEndpoint(EndpointId),
    /// The node has these addresses.
    Here(BTreeSet<IpAddr>),
    Batch(Vec<Event>, Vec<ServiceEvent>),
}

impl Action {
    /// What happened together, one by one.
    fn parts(&self) -> Vec<Self> {
        let Self::Batch(events, services) = self else { return vec![self.clone()] };
        let events = events.iter().cloned().map(|event| Self::Event(Box::new(event)));
        let services = services.iter().cloned().map(|event| Self::Service(Box::new(event)));
        events.chain(services).collect()
    }
}

fn actions(seed: u64, size: Size, n_services: usize, n_actions: usize) -> Vec<Action> {
    let mut rng = Rng::new(seed);
    let (mut world, mut services) =
        (World::empty(size.with_nodes().with_tiers_by(seed)), ServiceWorld::default());
    let mut actions = Vec::new();
    for number in 0..n_actions {
        let id = EndpointId(u16::try_from(1 + rng.below(5)).expect("small"));
        let batch = |world: &mut World, services: &mut ServiceWorld, rng: &mut Rng, n: usize| {
            let events = (0..n).map(|_| world.step(rng)).collect();
            let pods = pod_addresses(world);
            Action::Batch(events, (0..n).map(|_| services.step(rng, n_services, &pods)).collect())
        };
        actions.push(match rng.below(14) {
            _ if number == 0 => batch(&mut world, &mut services, &mut rng, 40),
            0..3 => Action::AddEndpoint(id, format!("pod{}", rng.below(size.pods))),
            3 if rng.chance(40) => Action::RemoveEndpoint(id),
            3 if rng.chance(50) => {
                services.change_here(&mut rng);
                Action::Here(services.here.clone())
            }
            4 => {
                let n = 1 + rng.below(3);
                batch(&mut world, &mut services, &mut rng, n)
            }
            5..9 => Action::Event(Box::new(world.step(&mut rng))),
            _ => Action::Service(Box::new(services.step(
                &mut rng,
                n_services,
                &pod_addresses(&world),
            ))),
        });
    }
    actions
}

fn pod_addresses(world: &World) -> Vec<IpAddr> {
    world.pods.values().flat_map(|pod| convert::pod(pod).0.addresses).collect()
}

/// How many questions to Services were answered how, so that a generator that asks nothing of
/// interest is noticed.
#[derive(Debug, Default)]
struct Tally {
    denied: usize,
    mixed: usize,
    allowed: usize,
    /// The pod was a backend itself.
    own: usize,
}

/// A compiler, the datapath that carries out its plans, and the truth.
struct Run {
    compiler: Compiler,
    datapath: Tables,
    world: World,
    services: ServiceWorld,
    endpoints: BTreeMap<EndpointId, String>,
    rng: Rng,
    tally: Tally,
    /// Numbers may run out: then verdicts need not be right, but must not be too permissive.
    scarce: bool,
}

type Question = (EndpointId, Direction, Probe);

fn is_isolated(tables: &Tables, endpoint: EndpointId) -> bool {
    let sets = tables.endpoints.get(&endpoint);
    sets.is_some_and(|sets| sets.ingress != SetId::NONE || sets.egress != SetId::NONE)
}

/// Whether a packet that passes is judged once more after translation.
fn is_looked_at_twice(tables: &Tables, (endpoint, direction, probe): &Question) -> bool {
    let Probe { remote, protocol, port } = *probe;
    let sets = tables.endpoints.get(endpoint);
    let is_isolated = sets.is_some_and(|sets| sets.egress != SetId::NONE);
    let key = Protocol::from_number(protocol).map(|protocol| ServiceKey {
        address: remote,
        protocol,
        port,
    });
    let is_service = key.is_some_and(|key| tables.services.contains_key(&key));
    *direction == Direction::Egress
        && (tables.verdict(*endpoint, *direction, remote, protocol, port) == Verdict::Mixed
            || is_isolated && is_service)
}

fn verdict(tables: &Tables, (endpoint, direction, probe): &Question) -> Verdict {
    tables.verdict(*endpoint, *direction, probe.remote, probe.protocol, probe.port)
}

/// The verdict, but [`Verdict::Allowed`] for what is looked at again and passes in any case.
fn effect(tables: &Tables, question: &Question, found: Verdict) -> Verdict {
    let (endpoint, _, Probe { remote: address, protocol, port }) = *question;
    let protocol = Protocol::ALL.into_iter().find(|known| known.number() == protocol);
    let (Verdict::Mixed, Some(protocol)) = (found, protocol) else { return found };
    let set = tables.endpoints[&endpoint].egress;
    if set == SetId::NONE {
        return Verdict::Allowed;
    }
    let allows = |class| {
        let row = tables.rows.get(&(set, class));
        row.or_else(|| tables.rows.get(&(set, ClassId::NONE)))
    };
    let passes = |backend: &Backend| match *backend {
        Backend::Endpoint(_) | Backend::Elsewhere => true,
        Backend::Kind { class, port, .. } => {
            allows(class).is_some_and(|row| row.allows(protocol.number(), port))
        }
    };
    let backends = &tables.services[&ServiceKey { address, protocol, port }];
    match !backends.is_empty() && backends.iter().all(passes) {
        true => Verdict::Allowed,
        false => Verdict::Mixed,
    }
}

impl Run {
    fn new(seed: u64, compiler: Compiler) -> Self {
        Self {
            compiler,
            datapath: Tables::default(),
            world: World::default(),
            services: ServiceWorld::default(),
            endpoints: BTreeMap::new(),
            rng: Rng::new(seed),
            tally: Tally::default(),
            scarce: false,
        }
    }

    fn act(&mut self, action: &Action) -> Result<(), String> {
        let before = (self.world.clone(), self.services.clone());
        match action {
            Action::Event(event) => {
                self.world.apply(event);
                let plan = self.compiler.apply(change(event));
                self.follow(plan, &before, !self.scarce)?;
            }
            Action::Service(event) => {
                self.services.apply(event);
                let plan = self.compiler.apply(service_change(event));
                self.follow(plan, &before, !self.scarce)?;
            }
            Action::Batch(events, services) => {
                events.iter().for_each(|event| self.world.apply(event));
                services.iter().for_each(|event| self.services.apply(event));
                let changes = events.iter().map(change);
                let plan =
                    self.compiler.apply_all(changes.chain(services.iter().map(service_change)));
                self.follow(plan, &before, false)?;
            }
            Action::AddEndpoint(id, pod) => {
                let Some(object) = self.world.pods.get(pod) else { return Ok(()) };
                let name = convert::object_name(&object.metadata);
                // As the agent has it: the interface of another pod is another endpoint.
                if self.endpoints.get(id).is_some_and(|other| other != pod) {
                    self.remove(*id)?;
                }
                self.endpoints.insert(*id, pod.clone());
                let plan = self.compiler.set_endpoint(*id, name);
                self.follow(plan, &before, !self.scarce)?;
            }
            Action::RemoveEndpoint(id) => self.remove(*id)?,
            Action::Here(addresses) => {
                self.services.here.clone_from(addresses);
                let plan = self.compiler.set_node_addresses(addresses.clone());
                self.follow(plan, &before, !self.scarce)?;
            }
        }
        // A pod that is in another namespace now is another one.
        let gone = |pod| namespace_of(&self.world, pod) != namespace_of(&before.0, pod);
        let gone: Vec<EndpointId> =
            self.endpoints.iter().filter(|(_, pod)| gone(pod)).map(|(id, _)| *id).collect();
        for id in gone {
            self.remove(id)?;
        }
        self.compare()
    }

    fn remove(&mut self, id: EndpointId) -> Result<(), String> {
        self.endpoints.remove(&id);
        self.datapath.endpoints.remove(&id);
        let plan = self.compiler.remove_endpoint(id);
        let before = (self.world.clone(), self.services.clone());
        self.follow(plan, &before, !self.scarce)
    }

    /// Carries out a plan step by step. With `exact` every verdict must be the old or the new one
    /// all the way; in any case whoever lost something must be judged again, and not too early.
    fn follow(
        &mut self,
        plan: Plan,
        before: &(World, ServiceWorld),
        exact: bool,
    ) -> Result<(), String> {
        let after = self.compiler.tables();
        let questions = self.questions(Some(before));
        let old: Vec<Verdict> = questions.iter().map(|q| verdict(&self.datapath, q)).collect();
        let new: Vec<Verdict> = questions.iter().map(|q| verdict(&after, q)).collect();
        // For whoever gets where, it makes no difference whether what may go anywhere is looked
        // at again.
        let effects = |tables: &Tables, verdicts: &[Verdict]| -> Vec<Verdict> {
            let both = questions.iter().zip(verdicts);
            both.map(|(question, &found)| effect(tables, question, found)).collect()
        };
        let (all_old, all_new) = (effects(&self.datapath, &old), effects(&after, &new));
        let was_seen: Vec<bool> =
            questions.iter().map(|q| is_isolated(&self.datapath, q.0)).collect();
        let all_looks: Vec<bool> =
            questions.iter().map(|q| is_looked_at_twice(&self.datapath, q)).collect();
        let mut settled: Vec<bool> = all_old.iter().zip(&all_new).map(|(o, n)| o == n).collect();
        let mut rejudged: BTreeMap<EndpointId, usize> = BTreeMap::new();
        let mut last = old.clone();
        let mut lost_at = vec![0; questions.len()];
        for (position, step) in plan.iter().enumerate() {
            self.datapath.take_step(step).map_err(|why| format!("step {position}: {why}"))?;
            let again: &[EndpointId] = match step {
                Step::Rejudge(endpoints) => endpoints,
                _ => &[],
            };
            rejudged.extend(again.iter().map(|id| (*id, position)));
            for (index, question) in questions.iter().enumerate() {
                let found = verdict(&self.datapath, question);
                let now = effect(&self.datapath, question, found);
                let (old, new) = (all_old[index], all_new[index]);
                // What is looked at again is judged, place by place, by the old or the new rows.
                let is_between = now == old || now == Verdict::Mixed && old != new;
                if exact && now != new && (settled[index] || !is_between) {
                    return Err(format!(
                        "{question:?} is {now:?}, neither old {old:?} nor new {new:?} after step \
                         {position} of {plan:#?}"
                    ));
                }
                settled[index] |= now == new;
                if found < last[index] {
                    lost_at[index] = position;
                }
                last[index] = found;
            }
        }
        if self.datapath != after {
            return Err(format!("the plan leads to {:#?}, not to {after:#?}", self.datapath));
        }
        for (index, question) in questions.iter().enumerate() {
            let judged_again = rejudged.get(&question.0).is_some_and(|at| *at > lost_at[index]);
            if old[index] > new[index] && !judged_again {
                return Err(format!("{question:?} lost something but is not judged again after"));
            }
            // Where no programs are or were there are no flows.
            let is_seen = was_seen[index] && is_isolated(&after, question.0);
            let passes = old[index] != Verdict::Denied && new[index] != Verdict::Denied;
            let looks = all_looks[index] != is_looked_at_twice(&after, question);
            if is_seen && passes && looks && !rejudged.contains_key(&question.0) {
                return Err(format!("{question:?} is looked at twice as before"));
            }
        }
        Ok(())
    }

    /// Questions about all endpoints, on addresses and Services of before and after.
    fn questions(&mut self, before: Option<&(World, ServiceWorld)>) -> Vec<Question> {
        let mut remotes = self.world.remotes(&mut self.rng);
        if let Some((before, _)) = before {
            remotes.extend(before.remotes(&mut self.rng));
        }
        let mut questions = Vec::new();
        for (&endpoint, pod) in &self.endpoints {
            // What a pod sends to its own address is not looked up in the tables.
            let pods = [Some(&self.world), before.map(|(world, _)| world)].into_iter().flatten();
            let own: Vec<IpAddr> = pods
                .filter_map(|world| world.pods.get(pod))
                .flat_map(|pod| convert::pod(pod).0.addresses)
                .collect();
            for direction in Direction::BOTH {
                let probes = self.world.probes(&mut self.rng, &remotes, 8);
                let others = probes.into_iter().filter(|probe| !own.contains(&probe.remote));
                questions.extend(others.map(|probe| (endpoint, direction, probe)));
            }
            let before = before.map(|(world, services)| (world, services)).into_iter();
            for (world, services) in before.chain([(&self.world, &self.services)]) {
                let probes = (0..25).filter_map(|_| services.probe(&mut self.rng, world));
                questions.extend(probes.map(|probe| (endpoint, Direction::Egress, probe)));
            }
        }
        questions
    }

    /// Compares with the reference, and with a compiler that starts from what there is now.
    fn compare(&mut self) -> Result<(), String> {
        let (reference, services) = (self.world.reference(), self.services.reference(&self.world));
        for question in self.questions(None) {
            let (endpoint, direction, Probe { remote, protocol, port }) = question;
            let pod = &self.world.pods[&self.endpoints[&endpoint]];
            let own = convert::pod(pod).0.addresses;
            let places = services
                .backends(remote, protocol, port)
                .filter(|_| direction == Direction::Egress);
            // What a pod sends to its own address is not looked up here (towards it, it is), and no
            // pod has an address of the node's.
            if direction == Direction::Egress && places.is_none() && own.contains(&remote)
                || own.iter().any(|address| self.services.here.contains(address))
            {
                continue;
            }
            if places.as_ref().is_some_and(|places| places.iter().any(|(a, _)| own.contains(a))) {
                self.tally.own += 1;
            }
            let expected = match direction {
                Direction::Ingress => {
                    match reference.allows(direction, pod, remote, protocol, port) {
                        true => Answer::Yes,
                        false => Answer::No,
                    }
                }
                Direction::Egress => services.egress(&reference, pod, remote, protocol, port),
            };
            count_verdict(&self.world);
            let found = match verdict(&self.datapath, &question) {
                Verdict::Denied => Answer::No,
                Verdict::Mixed => Answer::Depends,
                Verdict::Allowed => Answer::Yes,
            };
            let wrong = match self.scarce {
                true => rank(found) > rank(expected),
                false => found != expected,
            };
            if wrong {
                return Err(format!(
                    "{question:?} is {found:?}, should be {expected:?}: {places:?}"
                ));
            }
            if places.is_some() && reference.is_judged(direction, pod) {
                match found {
                    Answer::No => self.tally.denied += 1,
                    Answer::Depends => self.tally.mixed += 1,
                    Answer::Yes => self.tally.allowed += 1,
                }
            }
        }
        if self.scarce {
            return Ok(());
        }
        let full = self.full_compile();
        let (incremental, full) = (named_services(&self.compiler), named_services(&full));
        if incremental != full {
            return Err(format!("incremental: {incremental:#?}\nfrom scratch: {full:#?}"));
        }
        Ok(())
    }

    fn full_compile(&self) -> Compiler {
        let proxy = self.services.proxy.as_deref();
        let mut compiler = Compiler::new().with_service_proxy(proxy);
        // In an order that no source would send.
        let endpoints = self
            .endpoints
            .iter()
            .map(|(id, pod)| (*id, convert::object_name(&self.world.pods[pod].metadata)));
        let ServiceWorld { services, slices, here, .. } = self.services.clone();
        compiler.set_node_addresses(here);
        compiler.apply_all(self.world.nodes.values().cloned().map(Event::Node).map(|e| change(&e)));
        compiler.apply_all(
            slices.into_values().map(|object| service_change(&ServiceEvent::Slice(object))),
        );
        compiler.apply_all(self.world.cluster_policies.values().map(put_cluster_policy));
        compiler.apply_all(self.world.policies.values().map(put_policy));
        compiler.apply_all(self.world.pods.values().map(put_pod));
        compiler.set_endpoints(endpoints);
        compiler.apply_all(self.world.namespaces.values().map(put_namespace));
        compiler.apply_all(
            services.into_values().map(|object| service_change(&ServiceEvent::Service(object))),
        );
        compiler
    }

    /// Removes all endpoints; nothing may be left.
    fn finish(&mut self) -> Result<(), String> {
        while let Some((&id, _)) = self.endpoints.first_key_value() {
            self.remove(id)?;
        }
        match self.datapath == Tables::default() {
            true => Ok(()),
            false => Err(format!("left behind: {:#?}", self.datapath)),
        }
    }
}

/// How much an answer lets pass.
fn rank(answer: Answer) -> u8 {
    match answer {
        Answer::No => 0,
        Answer::Depends => 1,
        Answer::Yes => 2,
    }
}

/// The Services with the content of classes instead of their numbers, which may differ.
fn named_services(compiler: &Compiler) -> BTreeMap<ServiceKey, BTreeSet<String>> {
    let name = |backend: &Backend| match backend {
        Backend::Kind { class, port, is_on_node } => {
            format!("{:?} {port} {is_on_node}", compiler.class_names(*class))
        }
        Backend::Endpoint(id) => format!("{id:?}"),
        Backend::Elsewhere => "elsewhere".to_owned(),
    };
    let tables = compiler.tables();
    let services = tables.services.iter();
    services.map(|(key, backends)| (*key, backends.iter().map(name).collect())).collect()
}

fn failure(seed: u64, actions: &[Action], tally: &mut Tally) -> Option<String> {
    let proxy = (seed % 4 == 3).then_some(PROXY);
    let mut run = Run::new(seed, Compiler::new().with_service_proxy(proxy));
    run.services.proxy = proxy.map(str::to_owned);
    for (number, action) in actions.iter().enumerate() {
        if let Err(why) = run.act(action) {
            return Some(format!("at action {number}: {why}"));
        }
    }
    tally.denied += run.tally.denied;
    tally.mixed += run.tally.mixed;
    tally.allowed += run.tally.allowed;
    tally.own += run.tally.own;
    run.finish().err()
}

#[test]
fn services_are_exact_at_every_step_of_random_sequences() {
    let mut tally = Tally::default();
    for seed in seeds(0..32) {
        let size = Size::new(2, 12, 6);
        let actions = actions(seed, size, 5, 60);
        if let Some(why) = failure(seed, &actions, &mut tally) {
            let again = |actions: &[Action]| failure(seed, actions, &mut Tally::default());
            let flat: Vec<Action> = actions.iter().flat_map(Action::parts).collect();
            let (actions, why) = again(&flat).map_or((actions, why), |why| (flat, why));
            let (actions, why) = shrink_sequence(actions, why, again);
            panic!("seed {seed}: {why}\nafter {actions:#?}");
        }
    }
    print_verdicts();
    if from_environment("NETPOL_CASES").is_some() {
        return;
    }
    // The generator would prove little if one of these hardly ever happened.
    let Tally { denied, mixed, allowed, own } = tally;
    assert!(denied > 1000 && mixed > 100 && allowed > 500 && own > 200, "{tally:?}");
}

#[test]
fn without_numbers_for_classes_services_open_nothing() {
    let mut n_exhausted = 0;
    for seed in 3000..3010 {
        let size = Size::new(2, 12, 6);
        let mut run = Run::new(seed, Compiler::with_limits(u16::MAX, 6));
        run.scarce = true;
        for (number, action) in actions(seed, size, 5, 60).iter().enumerate() {
            if let Err(why) = run.act(action) {
                panic!("seed {seed}, action {number}: {why}");
            }
            let scarce = |problem: &Problem| matches!(problem, Problem::ClassesExhausted(_));
            n_exhausted += usize::from(run.compiler.problems().iter().any(scarce));
        }
        run.finish().expect("all is removed in the end");
    }
    assert!(n_exhausted > 50, "only {n_exhausted} times numbers ran out");
}

const ONE: EndpointId = EndpointId(1);

fn service(name: &str, spec: serde_json::Value) -> Change {
    created_service(name, 1, spec)
}

fn created_service(name: &str, second: u8, spec: serde_json::Value) -> Change {
    let (namespace, name) = name.split_once('/').expect("namespace/name");
    let object = json!({"metadata": {"namespace": namespace, "name": name,
        "creationTimestamp": format!("1970-01-01T00:00:{second:02}Z")}, "spec": spec});
    let (service, problems) = convert::service(&serde_json::from_value(object).expect("a Service"));
    assert_eq!(problems, []);
    Change::Service(service)
}

/// A slice of the Service of its own name (`x/web-1` of `web`), `addresses` as ready endpoints.
fn slice(name: &str, ports: serde_json::Value, addresses: &[&str]) -> Change {
    Change::EndpointSlice(slice_model(name, ports, addresses))
}

fn slice_model(name: &str, ports: serde_json::Value, addresses: &[&str]) -> EndpointSlice {
    let (namespace, name) = name.split_once('/').expect("namespace/name");
    let (service, _) = name.split_once('-').expect("a number");
    let v6 = addresses.first().is_some_and(|address| address.contains(':'));
    let endpoints: Vec<_> = addresses.iter().map(|a| json!({"addresses": [a]})).collect();
    let object = json!({"metadata": {"namespace": namespace, "name": name,
            "labels": {"kubernetes.io/service-name": service}},
        "addressType": if v6 { "IPv6" } else { "IPv4" }, "ports": ports, "endpoints": endpoints});
    let object = serde_json::from_value(object).expect("a slice");
    convert::endpoint_slice(&object).0
}

fn node(name: &str, address: &str) -> Change {
    let object = json!({"metadata": {"name": name},
        "status": {"addresses": [{"type": "InternalIP", "address": address}]}});
    Change::Node(convert::node(&serde_json::from_value(object).expect("a node")).0)
}

/// A client `x/client`, isolated, that may reach TCP 8080 of `app=web` only; two such pods and
/// one other.
fn client() -> Compiler {
    client_of(Compiler::new())
}

const ONLY_WEB: &str = r#"{"podSelector": {"matchLabels": {"app": "client"}}, "egress": [
    {"to": [{"podSelector": {"matchLabels": {"app": "web"}}}], "ports": [{"port": 8080}]}]}"#;

/// Likewise, of a compiler that knows nothing yet.
fn client_of(mut compiler: Compiler) -> Compiler {
    let pods: [Pod; 4] = [
        pod("x/client", "app=client", "10.0.0.1,fd00::1", ""),
        pod("x/web1", "app=web", "10.0.0.2,fd00::2", ""),
        pod("x/web2", "app=web", "10.0.0.3", ""),
        pod("x/db", "app=db", "10.0.0.4", ""),
    ];
    compiler.apply(put_namespace(&namespace("x", "")));
    compiler.apply_all(pods.iter().map(put_pod));
    compiler.apply(put_policy(&policy("x/p", ONLY_WEB)));
    compiler.set_endpoint(ONE, name("x/client"));
    compiler
}

fn egress(compiler: &Compiler, remote: &str, port: &str) -> Verdict {
    let (protocol, port) = protocol_port(port);
    let remote = remote.parse().expect("an address");
    compiler.tables().verdict(ONE, Direction::Egress, remote, protocol, port)
}

#[test]
fn a_cluster_ip_is_judged_by_the_ports_and_classes_of_its_backends() {
    let mut compiler = client();
    compiler.apply(service("x/web", json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}]})));
    assert_eq!(egress(&compiler, "10.96.0.1", "tcp:80"), Verdict::Mixed, "no backend yet");
    compiler.apply(slice("x/web-1", json!([{"port": 8080}]), &["10.0.0.2", "10.0.0.3"]));
    assert_eq!(egress(&compiler, "10.96.0.1", "tcp:80"), Verdict::Allowed);
    assert_eq!(egress(&compiler, "10.96.0.1", "tcp:8080"), Verdict::Denied, "no such port");
    assert_eq!(egress(&compiler, "10.96.0.1", "udp:80"), Verdict::Denied, "no such protocol");
    let only: Vec<usize> = compiler.tables().services.values().map(|list| list.len()).collect();
    assert_eq!(only, [1], "both backends are of one kind");
    compiler.apply(slice("x/web-1", json!([{"port": 8081}]), &["10.0.0.2", "10.0.0.3"]));
    assert_eq!(egress(&compiler, "10.96.0.1", "tcp:80"), Verdict::Denied, "another target port");
    compiler.apply(slice("x/web-1", json!([{"port": 8080}]), &["10.0.0.2", "10.0.0.4"]));
    assert_eq!(egress(&compiler, "10.96.0.1", "tcp:80"), Verdict::Mixed);
    assert!(judge(&compiler, 1, Direction::Egress, "10.96.0.1", "tcp:80"), "decided later");
}

#[test]
fn a_block_that_covers_the_cluster_ip_says_nothing_about_the_backends() {
    let mut compiler = client();
    let spec = r#"{"podSelector": {"matchLabels": {"app": "client"}}, "policyTypes": ["Egress"],
        "egress": [{"to": [{"ipBlock": {"cidr": "10.96.0.0/16"}}]}]}"#;
    compiler.apply(put_policy(&policy("x/p", spec)));
    assert_eq!(egress(&compiler, "10.96.0.1", "tcp:80"), Verdict::Allowed, "a mere address");
    compiler.apply(service("x/web", json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}]})));
    let plan = compiler.apply(slice("x/web-1", json!([{"port": 8080}]), &["10.0.0.2"]));
    // Until now nobody knew whom it leads to.
    assert!(matches!(&plan[..], [Step::SetService(..), Step::Rejudge(ids)] if ids == &[ONE]));
    assert_eq!(egress(&compiler, "10.96.0.1", "tcp:80"), Verdict::Denied);
    let plan = compiler.apply(Change::ServiceGone(name("x/web")));
    assert!(matches!(plan[..], [Step::ClearService(_)]), "{plan:?}");
    assert_eq!(egress(&compiler, "10.96.0.1", "tcp:80"), Verdict::Allowed);
    let spec = json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}]});
    let plan = compiler.apply(service("x/web", spec));
    assert!(matches!(&plan[..], [Step::SetService(..), Step::Rejudge(ids)] if ids == &[ONE]));
}

#[test]
fn ports_are_matched_by_name_and_protocol() {
    let mut compiler = client();
    let ports = json!([{"name": "a", "port": 80}, {"name": "b", "port": 81},
        {"name": "c", "port": 82, "protocol": "UDP"}]);
    compiler.apply(service("x/web", json!({"clusterIP": "10.96.0.1", "ports": ports})));
    let ports = json!([{"name": "b", "port": 8080}, {"name": "a", "port": 9},
        {"name": "c", "port": 8080}]);
    compiler.apply(slice("x/web-1", ports, &["10.0.0.2"]));
    assert_eq!(egress(&compiler, "10.96.0.1", "tcp:80"), Verdict::Denied);
    assert_eq!(egress(&compiler, "10.96.0.1", "tcp:81"), Verdict::Allowed);
    assert_eq!(egress(&compiler, "10.96.0.1", "udp:82"), Verdict::Mixed, "no such backend");
    // A named target port on pods that give it different numbers comes in two slices.
    compiler.apply(slice("x/web-2", json!([{"name": "b", "port": 9090}]), &["10.0.0.3"]));
    assert_eq!(egress(&compiler, "10.96.0.1", "tcp:81"), Verdict::Mixed);
}

#[test]
fn every_way_to_reach_a_service_and_both_families() {
    let mut compiler = client();
    compiler.apply(node("n1", "172.16.0.1"));
    compiler.apply(service(
        "x/web",
        json!({"clusterIPs": ["10.96.0.1", "fd00:96::1"], "externalIPs": ["192.0.2.1"],
            "ports": [{"port": 80, "nodePort": 30080}]}),
    ));
    compiler.apply(slice("x/web-1", json!([{"port": 8080}]), &["10.0.0.2"]));
    compiler.apply(slice("x/web-2", json!([{"port": 8080}]), &["fd00::2"]));
    for (address, port) in [
        ("10.96.0.1", "tcp:80"),
        ("fd00:96::1", "tcp:80"),
        ("192.0.2.1", "tcp:80"),
        ("172.16.0.1", "tcp:30080"),
    ] {
        assert_eq!(egress(&compiler, address, port), Verdict::Allowed, "{address} {port}");
    }
    assert_eq!(egress(&compiler, "172.16.0.2", "tcp:30080"), Verdict::Denied);
    compiler.apply(node("n2", "172.16.0.2"));
    assert_eq!(egress(&compiler, "172.16.0.2", "tcp:30080"), Verdict::Allowed);
    let plan = compiler.apply(Change::NodeGone("n1".into()));
    assert!(matches!(&plan[..], [Step::ClearService(key), Step::Rejudge(_)] if key.port == 30080));
    compiler.apply(Change::EndpointSliceGone(name("x/web-2")));
    assert_eq!(egress(&compiler, "fd00:96::1", "tcp:80"), Verdict::Mixed, "none of this family");
    assert_eq!(egress(&compiler, "10.96.0.1", "tcp:80"), Verdict::Allowed);
}

/// A Service of an outside address that leads to who may be reached, as this proxy's.
fn trap(proxy: Proxy) -> [Change; 2] {
    let spec = json!({"clusterIP": "10.96.0.9", "externalIPs": ["203.0.113.10"],
        "ports": [{"port": 53, "targetPort": 8080}]});
    let Change::Service(service) = service("y/trap", spec) else { panic!("a Service") };
    let slice = slice_model("y/trap-1", json!([{"port": 8080}]), &["10.0.0.2"]);
    let service = Change::Service(Service { proxy: proxy.clone(), ..service });
    [service, Change::EndpointSlice(EndpointSlice { proxy, ..slice })]
}

#[test]
fn services_of_another_proxy_are_mere_addresses() {
    for (own, handled) in [(None, Proxy::Usual), (Some("mine"), Proxy::Named("mine".into()))] {
        let mut compiler = client_of(Compiler::new().with_service_proxy(own));
        let others = [
            Proxy::Usual,
            Proxy::Named("mine".into()),
            Proxy::Named("another".into()),
            Proxy::Named("".into()),
            Proxy::Nobody,
        ];
        for proxy in others.iter().filter(|proxy| **proxy != handled) {
            compiler.apply_all(trap(proxy.clone()));
            assert_eq!(egress(&compiler, "203.0.113.10", "tcp:53"), Verdict::Denied, "{proxy:?}");
            assert!(compiler.tables().services.is_empty(), "{proxy:?}");
            assert!(compiler.service_fronts(&name("y/trap")).is_empty(), "{proxy:?}");
        }
        compiler.apply_all(trap(handled.clone()));
        assert_eq!(egress(&compiler, "203.0.113.10", "tcp:53"), Verdict::Allowed);
        assert_eq!(compiler.service_fronts(&name("y/trap")).len(), 1);
        // Its label changes, and flows are judged by the address again.
        let [service, slice] = trap(Proxy::Nobody);
        let plan = compiler.apply(service);
        assert!(plan.iter().any(|step| matches!(step, Step::Rejudge(_))), "{plan:?}");
        assert!(compiler.tables().services.is_empty());
        // A slice of another proxy's is none of this Service's.
        compiler.apply_all([trap(handled)[0].clone(), slice]);
        assert_eq!(egress(&compiler, "203.0.113.10", "tcp:53"), Verdict::Mixed, "nobody known");
        // Even while nobody was isolated nothing was forgotten.
        let nobody = compiler.apply(Change::PolicyGone(name("x/p")));
        assert!(compiler.tables().services.is_empty(), "{nobody:?}");
        compiler.apply_all(trap(Proxy::Named("another".into())));
        compiler.apply(put_policy(&policy("x/p", ONLY_WEB)));
        assert!(compiler.tables().services.is_empty());
    }
}

/// On a node port of another node packets leave this one untranslated.
#[test]
fn whoever_else_translates_is_named() {
    let mut compiler = client();
    for (name, address) in [("n1", "172.16.0.1"), ("n2", "172.16.0.2"), ("n3", "172.16.0.3")] {
        compiler.apply(node(name, address));
    }
    compiler.set_node_addresses(["172.16.0.1".parse().expect("an address")].into());
    let spec = json!({"clusterIP": "10.96.0.1", "externalIPs": ["192.0.2.1", "172.16.0.3"],
        "ports": [{"port": 30080, "nodePort": 30080}]});
    compiler.apply(service("x/web", spec));
    let elsewhere = |compiler: &Compiler| -> Vec<String> {
        let services = compiler.tables().services;
        let named = services.iter().filter(|(_, list)| list.contains(&Backend::Elsewhere));
        named.map(|(key, _)| key.address.to_string()).collect()
    };
    assert!(elsewhere(&compiler).is_empty(), "nobody is there to be translated to");
    compiler.apply(slice("x/web-1", json!([{"port": 8080}]), &["10.0.0.2"]));
    assert_eq!(elsewhere(&compiler), ["172.16.0.2"], "neither here nor the Service's own");
    compiler.set_node_addresses(["172.16.0.2".parse().expect("an address")].into());
    assert_eq!(elsewhere(&compiler), ["172.16.0.1"]);
    compiler.apply(slice("x/web-1", json!([{"port": 8080}]), &[]));
    assert!(elsewhere(&compiler).is_empty());
}

#[test]
fn backends_outside_the_cluster_are_judged_by_the_blocks_they_are_in() {
    let mut compiler = client();
    let spec = r#"{"podSelector": {"matchLabels": {"app": "client"}}, "policyTypes": ["Egress"],
        "egress": [{"to": [{"ipBlock": {"cidr": "192.0.2.0/24"}}], "ports": [{"port": 5432}]}]}"#;
    compiler.apply(put_policy(&policy("x/p", spec)));
    compiler.apply(service("x/sql", json!({"clusterIP": "10.96.0.1", "ports": [{"port": 1}]})));
    compiler.apply(slice("x/sql-1", json!([{"port": 5432}]), &["192.0.2.7"]));
    assert_eq!(egress(&compiler, "10.96.0.1", "tcp:1"), Verdict::Allowed);
    compiler.apply(slice("x/sql-1", json!([{"port": 5432}]), &["192.0.2.7", "198.51.100.1"]));
    assert_eq!(egress(&compiler, "10.96.0.1", "tcp:1"), Verdict::Mixed);
}

#[test]
fn a_backend_that_changes_class_takes_its_services_along() {
    let mut compiler = client();
    compiler.apply(service("x/web", json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}]})));
    compiler.apply(slice("x/web-1", json!([{"port": 8080}]), &["10.0.0.2"]));
    let plan = compiler.apply(put_pod(&pod("x/web1", "app=db", "10.0.0.2,fd00::2", "")));
    let position = |found: fn(&Step) -> bool| plan.iter().position(found).expect("such a step");
    let class = position(|step| matches!(step, Step::ClearClass(_) | Step::SetClass(..)));
    let service = position(|step| matches!(step, Step::SetService(..)));
    let rejudge = position(|step| matches!(step, Step::Rejudge(_)));
    assert!(class < service && service < rejudge, "{plan:#?}");
    assert_eq!(egress(&compiler, "10.96.0.1", "tcp:80"), Verdict::Denied);
}

#[test]
fn services_are_followed_only_while_somebody_is_isolated_for_egress() {
    let mut compiler = client();
    compiler.apply(service("x/web", json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}]})));
    compiler.apply(slice("x/web-1", json!([{"port": 8080}]), &["10.0.0.2"]));
    assert_eq!(compiler.tables().services.len(), 1);
    let plan = compiler.apply(Change::PolicyGone(name("x/p")));
    assert!(plan.iter().any(|step| matches!(step, Step::ClearService(_))), "{plan:#?}");
    assert!(compiler.tables().services.is_empty());
    let ingress = r#"{"podSelector": {}, "policyTypes": ["Ingress"]}"#;
    compiler.apply(put_policy(&policy("x/in", ingress)));
    assert!(compiler.tables().services.is_empty());
    // Slices that changed meanwhile are not missed.
    compiler.apply(slice("x/web-1", json!([{"port": 8080}]), &["10.0.0.4"]));
    let everything = r#"{"podSelector": {}, "egress": [{}]}"#;
    let plan = compiler.apply(put_policy(&policy("x/out", everything)));
    let set = plan.iter().position(|step| matches!(step, Step::SetService(..)));
    let switch = plan.iter().position(|step| matches!(step, Step::SetEndpoint(..)));
    assert!(set.expect("a Service") < switch.expect("a switch"), "{plan:#?}");
    assert_eq!(egress(&compiler, "10.96.0.1", "tcp:80"), Verdict::Allowed);
}

#[test]
fn the_older_of_two_services_has_the_address() {
    let mut compiler = client();
    let spec = json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}]});
    compiler.apply(created_service("x/web", 5, spec.clone()));
    compiler.apply(slice("x/web-1", json!([{"port": 8080}]), &["10.0.0.2"]));
    compiler.apply(created_service("x/db", 3, spec.clone()));
    compiler.apply(slice("x/db-1", json!([{"port": 8080}]), &["10.0.0.4"]));
    assert_eq!(egress(&compiler, "10.96.0.1", "tcp:80"), Verdict::Denied);
    let key = ServiceKey {
        address: "10.96.0.1".parse().expect("an address"),
        protocol: Protocol::Tcp,
        port: 80,
    };
    let (owner, others): (ObjectName, _) = (name("x/db"), vec![name("x/web")]);
    assert_eq!(compiler.service_name(&key), Some(&owner));
    assert_eq!(compiler.problems(), [Problem::SharedService { key, owner, others }]);
    let text = compiler.problems()[0].to_string();
    assert!(text.starts_with("TCP port 80 of 10.96.0.1 is claimed by Service x/db"), "{text}");
    compiler.apply(Change::ServiceGone(name("x/db")));
    assert_eq!(egress(&compiler, "10.96.0.1", "tcp:80"), Verdict::Allowed);
    assert_eq!(compiler.problems(), []);
}
