//! Shares of what is scarce: a namespace that wants more than its share goes without what is beyond
//! it, whoever came first; nobody else loses anything by it, and what is isolated stays isolated.

use netpol_testkit::tables::TakeStep as _;
use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use netpol_compile::shares::level;
use netpol_compile::{Compiler, Demand, EndpointId, LeftOut, Room, Scarce, Tables};
use netpol_model::{Change, Direction, ObjectName, Peer, Peers, Policy};
use netpol_source::convert;
use netpol_testkit::generate::Rng;
use netpol_testkit::generate::world::{Event, Probe, Size, World};
use netpol_testkit::objects::{change, judge, pod, policy, put_pod, put_policy};
use serde_json::json;

/// Room for so many blocks, and plenty of everything else.
fn blocks(n: u64) -> Room {
    let plenty = u64::MAX / 4;
    let tables =
        Demand { addresses: plenty, blocks: n, rows: plenty, intervals: plenty, memory: plenty };
    Room { tables, namespace_memory: plenty }
}

#[test]
fn a_level_is_the_highest_that_leaves_enough_for_all() {
    let mut rng = Rng::new(1);
    for _ in 0..2_000 {
        let demands: Vec<u64> = (0..rng.below(6)).map(|_| rng.below(30) as u64).collect();
        let room = rng.below(60) as u64;
        let taken = |level: u64| demands.iter().map(|demand| demand.min(&level)).sum::<u64>();
        let expected = match demands.iter().sum::<u64>() <= room {
            true => u64::MAX,
            false => (0..=room).rev().find(|&level| taken(level) <= room).unwrap_or_default(),
        };
        assert_eq!(level(room, demands.iter().copied()), expected, "{room} for {demands:?}");
    }
}

/// The change of a policy of a namespace with one rule for each of these blocks, for all its pods.
fn names(policy_name: &str, cidrs: impl IntoIterator<Item = String>) -> Change {
    let rules: Vec<String> = cidrs
        .into_iter()
        .map(|cidr| format!(r#"{{"from": [{{"ipBlock": {{"cidr": "{cidr}"}}}}]}}"#))
        .collect();
    let spec = format!(r#"{{"podSelector": {{}}, "ingress": [{}]}}"#, rules.join(", "));
    put_policy(&policy(policy_name, &spec))
}

fn thirty(network: u8, n: usize) -> impl Iterator<Item = String> {
    (0..n).map(move |number| format!("{network}.0.{number}.0/24"))
}

/// Pod 1 of namespace `bulk`, pod 2 of `small`.
fn node(room: Room) -> Compiler {
    let mut compiler = Compiler::new().with_room(room);
    compiler.apply(put_pod(&pod("bulk/a", "", "10.0.0.1", "")));
    compiler.apply(put_pod(&pod("small/b", "", "10.0.0.2", "")));
    compiler.set_endpoint(EndpointId(1), ObjectName::new("bulk", "a"));
    compiler.set_endpoint(EndpointId(2), ObjectName::new("small", "b"));
    compiler
}

fn allows(compiler: &Compiler, endpoint: u16, remote: &str) -> bool {
    judge(compiler, endpoint, Direction::Ingress, remote, "tcp:80")
}

#[test]
fn who_wants_too_much_goes_without_whoever_came_first() {
    let bulk = || names("bulk/p", thirty(20, 30));
    let small = || names("small/p", thirty(30, 5));
    for order in [[bulk(), small()], [small(), bulk()]] {
        let mut compiler = node(blocks(20));
        for change in order {
            compiler.apply(change);
        }
        assert!((0..5).all(|n| allows(&compiler, 2, &format!("30.0.{n}.1"))));
        assert!((0..15).all(|n| allows(&compiler, 1, &format!("20.0.{n}.1"))));
        assert!(!allows(&compiler, 1, "20.0.15.1") && !allows(&compiler, 1, "20.0.29.1"));
        let expected = LeftOut {
            policy: ObjectName::new("bulk", "p"),
            n_rules: 30,
            n_left_out: 15,
            scarce: Scarce::Table("blocks"),
        };
        assert_eq!(compiler.left_out().collect::<Vec<_>>(), [expected]);
        let n_blocks = compiler.tables().classes.keys().filter(|b| b.prefix_len() < 32).count();
        assert_eq!(n_blocks, 20);
        // As soon as there is room it has all of it.
        compiler.apply(Change::PolicyGone(ObjectName::new("small", "p")));
        compiler.apply(names("bulk/p", thirty(20, 20)));
        assert!((0..20).all(|n| allows(&compiler, 1, &format!("20.0.{n}.1"))));
        assert_eq!(compiler.left_out().next(), None);
    }
}

#[test]
fn what_is_isolated_stays_isolated_and_the_last_rules_go_first() {
    let mut compiler = node(blocks(3));
    compiler.apply_all([
        names("bulk/a", thirty(20, 2)),
        names("bulk/b", thirty(21, 3)),
        // Its podSelector counts, without a rule.
        names("bulk/c", thirty(22, 1)),
    ]);
    let n_left_out: Vec<usize> = compiler.left_out().map(|left_out| left_out.n_left_out).collect();
    assert_eq!(n_left_out, [2, 1]);
    assert!(allows(&compiler, 1, "20.0.1.1") && allows(&compiler, 1, "21.0.0.1"));
    assert!(!allows(&compiler, 1, "21.0.1.1") && !allows(&compiler, 1, "22.0.0.1"));
    compiler.apply(Change::PolicyGone(ObjectName::new("bulk", "a")));
    compiler.apply(Change::PolicyGone(ObjectName::new("bulk", "b")));
    assert!(allows(&compiler, 1, "22.0.0.1"));
    assert!(!allows(&compiler, 1, "9.9.9.9"), "it is isolated");
}

#[test]
fn who_has_no_pod_here_takes_nothing_and_one_block_counts_once() {
    let mut compiler = node(blocks(4));
    compiler.apply(names("elsewhere/p", thirty(20, 30)));
    compiler.apply(names("small/p", thirty(30, 4)));
    for number in 0..10 {
        compiler.apply(names(&format!("small/p{number}"), thirty(30, 4)));
    }
    assert_eq!(compiler.left_out().next(), None);
    // Its pod comes, and goes again.
    compiler.apply(put_pod(&pod("elsewhere/c", "", "10.0.0.3", "")));
    compiler.set_endpoint(EndpointId(3), ObjectName::new("elsewhere", "c"));
    assert_eq!(compiler.left_out().filter(|l| &*l.policy.namespace == "elsewhere").count(), 1);
    assert!(!allows(&compiler, 3, "20.0.2.1"));
    compiler.remove_endpoint(EndpointId(3));
    assert_eq!(compiler.left_out().next(), None);
    assert!((0..4).all(|n| allows(&compiler, 2, &format!("30.0.{n}.1"))));
}

#[test]
fn memory_is_each_namespaces_own_matter() {
    let room = Room { namespace_memory: 60_000, ..blocks(u64::MAX / 4) };
    let mut compiler = node(room);
    compiler.apply(names("small/p", thirty(30, 5)));
    compiler.apply(names("bulk/p", thirty(20, 200)));
    let left_out: Vec<LeftOut> = compiler.left_out().collect();
    let [LeftOut { policy: id, n_left_out, scarce, .. }] = left_out.as_slice() else {
        panic!("{left_out:?}")
    };
    assert_eq!((&*id.namespace, *scarce), ("bulk", Scarce::NamespaceMemory));
    assert!((150..200).contains(n_left_out), "{n_left_out}");
    // A selector of many long values takes memory too.
    let values: Vec<String> = (0..600).map(|n| format!("\"{n}{}\"", "x".repeat(50))).collect();
    let requirement =
        format!(r#"{{"key": "k", "operator": "In", "values": [{}]}}"#, values.join(","));
    let spec = format!(
        r#"{{"podSelector": {{}}, "ingress": [{{"from": [{{"podSelector": {{"matchExpressions": [{requirement}]}}}}]}}]}}"#
    );
    compiler.apply(put_policy(&policy("small/z", &spec)));
    let small = compiler.left_out().filter(|left_out| &*left_out.policy.namespace == "small");
    assert_eq!(small.map(|left_out| left_out.policy.to_string()).collect::<Vec<_>>(), ["small/z"]);
}

/// A Service of so many ports.
fn service(name: &str, address: &str, n_ports: usize) -> Change {
    let (namespace, name) = name.split_once('/').expect("namespace/name");
    let ports: Vec<_> =
        (1..=n_ports).map(|n| json!({"name": format!("p{n}"), "port": n})).collect();
    let object = json!({"metadata": {"namespace": namespace, "name": name},
        "spec": {"clusterIP": address, "ports": ports}});
    let (service, problems) = convert::service(&serde_json::from_value(object).expect("a Service"));
    assert_eq!(problems, []);
    Change::Service(service)
}

/// Of the Services of a namespace the last ones have no place, and nobody else's.
#[test]
fn services_have_shares_too() {
    let many = || service("bulk/many", "10.96.0.1", 6);
    let more = || service("bulk/more", "10.96.0.0", 6);
    let few = || service("small/few", "10.96.9.9", 3);
    let beyond = |changes: [Change; 3], room: [u64; 2]| {
        let mut compiler = node(blocks(u64::MAX / 4));
        let none = r#"{"podSelector": {}, "policyTypes": ["Egress"]}"#;
        compiler.apply(put_policy(&policy("small/none", none)));
        changes.into_iter().for_each(|change| drop(compiler.apply(change)));
        let beyond = compiler.services_beyond(room[0], room[1]);
        beyond.iter().map(|key| format!("{}:{}", key.address, key.port)).collect::<Vec<_>>()
    };
    let plenty = u64::MAX;
    for changes in [[many(), more(), few()], [few(), more(), many()]] {
        assert_eq!(beyond(changes.clone(), [15, plenty]), [""; 0]);
        let last = ["10.96.0.0:5", "10.96.0.0:6"];
        assert_eq!(beyond(changes.clone(), [13, plenty]), last);
        let n_of_bulk = |address: &&String| address.starts_with("10.96.0.");
        let all = beyond(changes, [4, plenty]);
        assert_eq!((all.len(), all.iter().filter(n_of_bulk).count()), (11, 10), "{all:?}");
    }
}

/// A random cluster, compiled in slices with room for few blocks.
struct Run {
    room: u64,
    compiler: Compiler,
    tables: Tables,
    world: World,
    endpoints: BTreeMap<EndpointId, String>,
}

impl Run {
    fn new(room: u64) -> Self {
        Self {
            room,
            compiler: Compiler::new().with_room(blocks(room)).with_sets_edited_from(0),
            tables: Tables::default(),
            world: World::empty(Size::new(3, 6, 8)),
            endpoints: BTreeMap::new(),
        }
    }

    fn step(&mut self, rng: &mut Rng) {
        let id = EndpointId(u16::try_from(1 + rng.below(5)).expect("small"));
        match rng.below(8) {
            0 => {
                let pod = format!("pod{}", rng.below(6));
                let Some(object) = self.world.pods.get(&pod).cloned() else { return };
                let last_seen = vec![convert::pod(&object).0];
                if !last_seen[0].is_networked() {
                    return;
                }
                self.remove(id);
                let name = convert::object_name(&object.metadata);
                self.compiler.enqueue_holders(id, name, last_seen);
                self.endpoints.insert(id, pod);
            }
            1 if rng.chance(30) => self.remove(id),
            2 => self.slices(rng.below(4)),
            _ => {
                let before = self.world.clone();
                let event = self.world.step(rng);
                self.compiler.enqueue([change(&event)]);
                // One that ends, or is another one, is judged as it was, which the reference is not.
                let seen = |world: &World, pod: &String| {
                    let pod = convert::pod(world.pods.get(pod)?).0;
                    pod.is_networked().then_some((pod.id, pod.uid))
                };
                let same = |pod: &String| {
                    let now = seen(&self.world, pod);
                    now.is_some() && now == seen(&before, pod)
                };
                let all = self.endpoints.iter();
                let gone: Vec<EndpointId> =
                    all.filter(|(_, pod)| !same(pod)).map(|(id, _)| *id).collect();
                gone.into_iter().for_each(|id| self.remove(id));
            }
        }
    }

    fn remove(&mut self, id: EndpointId) {
        if self.endpoints.remove(&id).is_some() {
            self.tables.endpoints.remove(&id);
            self.compiler.enqueue_endpoint_removal(id);
        }
    }

    fn slices(&mut self, n: usize) {
        for _ in 0..n {
            for step in self.compiler.slice(3) {
                self.tables.take_step(&step).expect("a step that can be done");
            }
        }
    }

    /// What should be taken into account, found by counting.
    fn expected(&self) -> (World, usize) {
        let mut by_namespace: BTreeMap<&str, Vec<(&String, Policy)>> = BTreeMap::new();
        let pods: Vec<_> =
            self.endpoints.values().map(|pod| convert::pod(&self.world.pods[pod]).0).collect();
        let mut converted: Vec<(&String, Policy)> = self
            .world
            .policies
            .iter()
            .map(|(name, object)| (name, convert::policy(object).expect("a valid policy")))
            .collect();
        converted.sort_by(|(_, a), (_, b)| a.id.cmp(&b.id));
        for (name, policy) in converted {
            let selects = |pod: &&netpol_model::Pod| {
                pod.id.namespace == policy.id.namespace && policy.pods.matches(&pod.labels)
            };
            if pods.iter().any(|pod| selects(&pod)) {
                let namespace = namespace_of_policy(&self.world, name);
                by_namespace.entry(namespace).or_default().push((name, policy));
            }
        }
        let wanted = |policies: &[(&String, Policy)]| {
            let all: BTreeSet<IpNet> =
                policies.iter().flat_map(|(_, p)| nets(p).concat()).collect();
            all.len()
        };
        let room = usize::try_from(self.room).expect("small");
        let total: usize = by_namespace.values().map(|policies| wanted(policies)).sum();
        let taken =
            |level: usize| by_namespace.values().map(|p| wanted(p).min(level)).sum::<usize>();
        let level = match total <= room {
            true => usize::MAX,
            false => (0..=room).rev().find(|&level| taken(level) <= room).unwrap_or_default(),
        };
        let (mut world, mut n_left_out) = (self.world.clone(), 0);
        for policies in by_namespace.values() {
            let mut seen = BTreeSet::new();
            let mut is_full = false;
            for (name, policy) in policies {
                let mut n_admitted = 0;
                for nets in nets(policy) {
                    seen.extend(nets);
                    is_full |= seen.len() > level;
                    n_admitted += usize::from(!is_full);
                    n_left_out += usize::from(is_full);
                }
                let object = world.policies.get_mut(*name).expect("it is there");
                cut(object, policy, n_admitted);
            }
        }
        (world, n_left_out)
    }

    /// Returns how many rules are left out.
    fn check(&mut self, rng: &mut Rng) -> usize {
        while self.compiler.has_work() {
            self.slices(1);
        }
        assert_eq!(self.tables, self.compiler.tables());
        let (world, n_expected) = self.expected();
        let n_left_out: usize = self.compiler.left_out().map(|l| l.n_left_out).sum();
        assert_eq!(n_left_out, n_expected, "{:#?}", self.compiler.left_out().collect::<Vec<_>>());
        let reference = world.reference();
        let remotes = self.world.remotes(rng);
        for (&id, name) in &self.endpoints {
            let object = &self.world.pods[name];
            let own = convert::pod(object).0.addresses;
            for direction in Direction::BOTH {
                for probe in self.world.probes(rng, &remotes, 40) {
                    let Probe { remote, protocol, port } = probe;
                    if own.contains(&remote) {
                        continue;
                    }
                    let verdict = self.tables.judge(id, direction, remote, protocol, port);
                    let expected = reference.allows(direction, object, remote, protocol, port);
                    assert_eq!(verdict, expected, "{name} {direction} {probe:?}");
                }
            }
        }
        self.is_as_from_scratch();
        n_left_out
    }

    /// A new start, at which everything comes in another order, leaves out the same.
    fn is_as_from_scratch(&self) {
        let mut full = Compiler::new().with_room(blocks(self.room));
        let policies = self.world.policies.values().rev().cloned().map(Event::Policy);
        let pods = self.world.pods.values().rev().cloned().map(Event::Pod);
        let namespaces = self.world.namespaces.values().cloned().map(Event::Namespace);
        full.apply_all(policies.chain(pods).chain(namespaces).map(|event| change(&event)));
        for (id, pod) in self.endpoints.iter().rev() {
            full.set_endpoint(*id, convert::object_name(&self.world.pods[pod].metadata));
        }
        let left_out = |compiler: &Compiler| compiler.left_out().collect::<Vec<_>>();
        assert_eq!(left_out(&full), left_out(&self.compiler));
        let blocks = |tables: Tables| tables.classes.into_keys().collect::<Vec<_>>();
        assert_eq!(blocks(full.tables()), blocks(self.compiler.tables()));
    }
}

fn namespace_of_policy<'a>(world: &'a World, name: &str) -> &'a str {
    world.policies[name].metadata.namespace.as_deref().unwrap_or("default")
}

/// The blocks that each rule names, single addresses aside.
fn nets(policy: &Policy) -> Vec<Vec<IpNet>> {
    let rules = Direction::BOTH.into_iter().flat_map(|d| policy.rules(d).unwrap_or_default());
    let of_rule = |rule: &netpol_model::Rule| {
        let Peers::Only(peers) = &rule.peers else { return Vec::new() };
        let mut nets = Vec::new();
        for peer in peers.iter() {
            if let Peer::Block(block) = peer {
                nets.extend([block.cidr].iter().chain(&block.except));
            }
        }
        nets.retain(|net: &IpNet| net.prefix_len() < net.max_prefix_len());
        nets
    };
    rules.map(of_rule).collect()
}

/// Leaves the first rules, and what the policy isolates.
fn cut(
    object: &mut k8s_openapi::api::networking::v1::NetworkPolicy,
    policy: &Policy,
    n_admitted: usize,
) {
    let spec = object.spec.as_mut().expect("it was read");
    let types = Direction::BOTH.into_iter().filter(|d| policy.rules(*d).is_some());
    spec.policy_types = Some(
        types.map(|d| if d == Direction::Ingress { "Ingress" } else { "Egress" }.into()).collect(),
    );
    let mut n_left = n_admitted;
    // What is not isolated has no rules that count.
    for direction in Direction::BOTH {
        let n_rules = policy.rules(direction).map_or(0, <[_]>::len);
        let n = n_rules.min(n_left);
        n_left -= n;
        match direction {
            Direction::Ingress => spec.ingress.iter_mut().for_each(|rules| rules.truncate(n)),
            Direction::Egress => spec.egress.iter_mut().for_each(|rules| rules.truncate(n)),
        }
    }
}

#[test]
fn what_is_left_out_does_not_depend_on_what_came_first() {
    let mut n_cut = 0;
    for seed in 0..60 {
        let mut rng = Rng::new(seed);
        let mut run = Run::new(rng.below(8) as u64);
        for number in 0..120 {
            run.step(&mut rng);
            if number % 20 == 19 {
                n_cut += usize::from(run.check(&mut rng) > 0);
            }
        }
    }
    assert!(n_cut > 60, "only {n_cut} of 360 worlds had too little room");
}
