//! ClusterNetworkPolicies in the compiler, case by case: the order of asking, what falls to whom,
//! and what is told of numbers, rows and flows when they change.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use netpol_compile::{ClassId, Compiler, EndpointId, Plan, Row, SetId, Step, Tables, Verdict};
use netpol_model::{
    Action, AddressFamily, Change, ClusterPolicy, ClusterRule, Direction, EndpointSlice, IpBlock,
    Labels, NamedPort, Namespace, NamespaceScope, Node, ObjectName, Operator, Peer, Peers, Pod,
    Policy, PortMatch, PortRange, Ports, Protocol, Proxy, Requirement, Rule, Selector, Service,
    ServicePort, SliceEndpoint, SlicePort, Subject, Tier,
};
use netpol_testkit::tables::TakeStep as _;

const WEB: EndpointId = EndpointId(1);
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;

fn is(key: &str, value: &str) -> Selector {
    let operator = Operator::In(vec![value.into()]);
    Selector::new([Requirement { key: key.into(), operator }])
}

fn namespace(name: &str, labels: &[(&str, &str)]) -> Change {
    let name_label = [("kubernetes.io/metadata.name", name)];
    let labels = labels.iter().copied().chain(name_label).collect();
    Change::Namespace(Namespace { name: name.into(), labels })
}

fn pod(namespace: &str, name: &str, address: &str) -> Pod {
    Pod {
        id: ObjectName::new(namespace, name),
        uid: format!("{namespace}/{name}").as_str().into(),
        labels: Labels::from_iter([("app", name)]),
        node: None,
        addresses: vec![address.parse().expect("an address")].into(),
        host_network: false,
        finished: false,
        running: true,
        ports: [NamedPort { name: "http".into(), protocol: Protocol::Tcp, port: 8080 }].into(),
        annotations: None,
        created: 0,
    }
}

fn everyone() -> Peer {
    pods_in(Selector::everything())
}

fn pods_in(namespaces: Selector) -> Peer {
    Peer::Pods { namespaces: NamespaceScope::Matching(namespaces), pods: Selector::everything() }
}

fn app(name: &str) -> Peer {
    let namespaces = NamespaceScope::Matching(Selector::everything());
    Peer::Pods { namespaces, pods: is("app", name) }
}

fn network(cidr: &str) -> Peer {
    Peer::Block(IpBlock { cidr: cidr.parse().expect("a block"), except: Vec::new() })
}

fn tcp(port: u16) -> Ports {
    let range = PortRange::Numbers(port, port);
    Ports::Only(vec![PortMatch { protocol: Protocol::Tcp, range }])
}

fn named(name: &str) -> Ports {
    let entry = |protocol| PortMatch { protocol, range: PortRange::Named(name.into()) };
    Ports::Only(Protocol::ALL.map(entry).into())
}

fn rule(action: Action, peers: impl IntoIterator<Item = Peer>, ports: Ports) -> ClusterRule {
    let peers = Peers::Only(peers.into_iter().collect());
    ClusterRule { name: None, action, peers, ports }
}

/// A policy for everybody's egress, and with the same rules for ingress.
fn policy(name: &str, tier: Tier, priority: u16, rules: Vec<ClusterRule>) -> ClusterPolicy {
    ClusterPolicy {
        name: name.into(),
        tier,
        priority,
        subject: Subject { namespaces: Selector::everything(), pods: Selector::everything() },
        ingress: rules.clone(),
        egress: rules,
    }
}

/// A NetworkPolicy in shop that isolates web in both directions and allows these peers.
fn network_policy(peers: Vec<Peer>, ports: Ports) -> Change {
    let rules = || match peers.is_empty() {
        true => Some(Vec::new()),
        false => {
            Some(vec![Rule { peers: Peers::Only(peers.clone().into()), ports: ports.clone() }])
        }
    };
    Change::Policy(Policy {
        id: ObjectName::new("shop", "np"),
        pods: is("app", "web"),
        ingress: rules(),
        egress: rules(),
    })
}

/// Web in shop, of this node, db in shop, and stranger in other.
struct World {
    compiler: Compiler,
    datapath: Tables,
}

const DB: &str = "10.0.0.2";
const STRANGER: &str = "10.1.0.1";
const OUTSIDE: &str = "192.0.2.1";

impl World {
    fn new() -> Self {
        let mut world = Self { compiler: Compiler::new(), datapath: Tables::default() };
        world.apply([
            namespace("shop", &[("team", "a")]),
            namespace("other", &[("team", "b")]),
            Change::Pod(pod("shop", "web", "10.0.0.1")),
            Change::Pod(pod("shop", "db", DB)),
            Change::Pod(pod("other", "stranger", STRANGER)),
        ]);
        let plan = world.compiler.set_endpoint(WEB, ObjectName::new("shop", "web"));
        world.take(plan);
        world
    }

    /// Carries the plan out. After it, the tables are those of somebody who knows it all at once.
    fn apply(&mut self, changes: impl IntoIterator<Item = Change>) -> Plan {
        let plan = self.compiler.apply_all(changes);
        self.take(plan.clone());
        plan
    }

    fn take(&mut self, plan: Plan) {
        for step in plan {
            self.datapath.take_step(&step).expect("a step that may come now");
        }
        let wanted = self.compiler.tables();
        assert_eq!(self.datapath.rows, wanted.rows);
        assert_eq!(self.datapath.classes, wanted.classes);
        assert_eq!(self.datapath.endpoints, wanted.endpoints);
    }

    fn put(&mut self, policy: ClusterPolicy) -> Plan {
        self.apply([Change::ClusterPolicy(policy)])
    }

    fn allows(&self, direction: Direction, remote: &str, protocol: u8, port: u16) -> bool {
        let remote: IpAddr = remote.parse().expect("an address");
        self.datapath.judge(WEB, direction, remote, protocol, port)
    }

    /// Both directions say so, of a connection with this protocol to this port.
    fn assert(&self, expected: bool, remote: &str, protocol: u8, port: u16) {
        for direction in Direction::BOTH {
            let is_allowed = self.allows(direction, remote, protocol, port);
            assert_eq!(is_allowed, expected, "{direction} {remote} {protocol}/{port}");
        }
    }

    fn sets(&self) -> [SetId; 2] {
        let sets = self.datapath.endpoints[&WEB];
        [sets.ingress, sets.egress]
    }
}

fn rejudges(plan: &Plan) -> bool {
    plan.iter().any(|step| matches!(step, Step::Rejudge(ids) if ids.contains(&WEB)))
}

#[test]
fn an_admin_deny_takes_out_what_it_names_and_nothing_else() {
    let mut world = World::new();
    let plan =
        world.put(policy("a", Tier::Admin, 5, vec![rule(Action::Deny, [app("db")], tcp(80))]));
    assert!(rejudges(&plan), "connections that are denied now are cut");
    world.assert(false, DB, TCP, 80);
    world.assert(true, DB, TCP, 81);
    world.assert(true, DB, UDP, 80);
    world.assert(true, DB, ICMP, 0);
    world.assert(true, DB, 47, 0);
    world.assert(true, STRANGER, TCP, 80);
    world.assert(true, OUTSIDE, TCP, 80);
    let plan = world.apply([Change::ClusterPolicyGone("a".into())]);
    assert!(!rejudges(&plan), "nothing was taken away");
    assert_eq!(world.sets(), [SetId::NONE; 2]);
    world.assert(true, DB, TCP, 80);
}

#[test]
fn the_first_rule_that_matches_decides_by_priority_then_name_then_place() {
    let mut world = World::new();
    let both = vec![
        rule(Action::Accept, [app("db")], tcp(80)),
        rule(Action::Deny, [everyone()], Ports::Any),
    ];
    world.put(policy("b", Tier::Admin, 7, both.clone()));
    world.assert(true, DB, TCP, 80);
    world.assert(false, DB, TCP, 81);
    world.assert(false, DB, ICMP, 0);
    world.assert(false, STRANGER, TCP, 80);
    world.assert(true, OUTSIDE, TCP, 80);
    // The same priority: by name, whichever came first.
    world.put(policy("c", Tier::Admin, 7, vec![rule(Action::Accept, [everyone()], Ports::Any)]));
    world.assert(false, STRANGER, TCP, 80);
    world.put(policy("a", Tier::Admin, 7, vec![rule(Action::Deny, [app("db")], tcp(80))]));
    world.assert(false, DB, TCP, 80);
    // A lower number is asked first.
    world.put(policy("z", Tier::Admin, 6, vec![rule(Action::Accept, [everyone()], Ports::Any)]));
    world.assert(true, DB, TCP, 80);
    world.assert(true, STRANGER, ICMP, 0);
    // The other way round it is another policy.
    let mut reversed = both;
    reversed.reverse();
    world.put(policy("z", Tier::Admin, 6, reversed));
    world.assert(false, DB, TCP, 80);
}

#[test]
fn network_policies_come_between_the_tiers_and_are_final_for_their_direction() {
    let mut world = World::new();
    let pass = rule(Action::Pass, [app("db")], tcp(80));
    let deny_db = rule(Action::Deny, [app("db")], Ports::Any);
    let accept_strangers = rule(Action::Accept, [app("stranger")], Ports::Any);
    world.put(policy("admin", Tier::Admin, 0, vec![pass, deny_db, accept_strangers]));
    let deny_all = rule(Action::Deny, [everyone(), network("0.0.0.0/0")], Ports::Any);
    world.put(policy("base", Tier::Baseline, 0, vec![deny_all]));
    // Nothing isolates web: what was passed on, and what nobody decided, is the baseline's.
    world.assert(false, DB, TCP, 80);
    world.assert(true, STRANGER, TCP, 1);
    world.assert(false, OUTSIDE, TCP, 1);
    // A NetworkPolicy takes its place.
    world.apply([network_policy(vec![app("db"), network("192.0.2.0/24")], Ports::Any)]);
    world.assert(true, DB, TCP, 80);
    world.assert(false, DB, TCP, 81);
    world.assert(true, STRANGER, TCP, 1);
    world.assert(true, OUTSIDE, TCP, 1);
    world.assert(false, "198.51.100.1", TCP, 1);
    world.apply([network_policy(Vec::new(), Ports::Any)]);
    world.assert(false, DB, TCP, 80);
    world.assert(true, STRANGER, TCP, 1);
    world.assert(false, OUTSIDE, TCP, 1);
    world.apply([Change::PolicyGone(ObjectName::new("shop", "np"))]);
    world.assert(false, DB, TCP, 80);
    world.apply([Change::ClusterPolicyGone("base".into())]);
    world.assert(true, DB, TCP, 80);
    world.assert(true, OUTSIDE, TCP, 1);
}

#[test]
fn a_network_policy_for_one_direction_leaves_the_other_to_the_baseline() {
    let mut world = World::new();
    world.put(policy("b", Tier::Baseline, 0, vec![rule(Action::Deny, [app("db")], Ports::Any)]));
    world.apply([Change::Policy(Policy {
        id: ObjectName::new("shop", "np"),
        pods: is("app", "web"),
        ingress: Some(vec![Rule { peers: Peers::Any, ports: Ports::Any }]),
        egress: None,
    })]);
    assert!(world.allows(Direction::Ingress, DB, TCP, 80));
    assert!(!world.allows(Direction::Egress, DB, TCP, 80));
}

#[test]
fn a_pass_in_the_baseline_is_allowed() {
    let mut world = World::new();
    let rules = vec![
        rule(Action::Pass, [app("db")], tcp(80)),
        rule(Action::Deny, [everyone()], Ports::Any),
    ];
    world.put(policy("b", Tier::Baseline, 0, rules));
    world.assert(true, DB, TCP, 80);
    world.assert(false, DB, TCP, 81);
}

#[test]
fn only_subjects_are_concerned_as_their_namespaces_and_labels_change() {
    let mut world = World::new();
    let mut deny = policy("a", Tier::Admin, 0, vec![rule(Action::Deny, [app("db")], Ports::Any)]);
    deny.subject = Subject { namespaces: is("team", "b"), pods: is("app", "web") };
    world.put(deny.clone());
    assert_eq!(world.sets(), [SetId::NONE; 2]);
    world.apply([namespace("shop", &[("team", "b")])]);
    world.assert(false, DB, TCP, 80);
    let mut renamed = pod("shop", "web", "10.0.0.1");
    renamed.labels = Labels::from_iter([("app", "shop")]);
    world.apply([Change::Pod(renamed)]);
    world.assert(true, DB, TCP, 80);
    world.apply([Change::Pod(pod("shop", "web", "10.0.0.1"))]);
    world.assert(false, DB, TCP, 80);
    world.apply([namespace("shop", &[])]);
    world.assert(true, DB, TCP, 80);
    deny.egress.clear();
    deny.subject.namespaces = Selector::everything();
    world.put(deny);
    assert!(!world.allows(Direction::Ingress, DB, TCP, 80));
    assert!(world.allows(Direction::Egress, DB, TCP, 80), "it has no rule for that");
    assert_eq!(world.sets()[1], SetId::NONE);
}

#[test]
fn a_rule_that_could_not_be_understood_denies_everything_or_accepts_nothing() {
    let mut world = World::new();
    let nothing = ClusterRule {
        name: None,
        action: Action::Accept,
        peers: Peers::Only([].into()),
        ports: Ports::Any,
    };
    let closed = ClusterRule { action: Action::Deny, peers: Peers::Any, ..nothing.clone() };
    let accept = rule(Action::Accept, [app("db")], tcp(80));
    world.put(policy("a", Tier::Admin, 0, vec![nothing, accept, closed]));
    world.assert(true, DB, TCP, 80);
    for (remote, protocol) in [(DB, UDP), (STRANGER, TCP), (OUTSIDE, TCP), (OUTSIDE, ICMP)] {
        world.assert(false, remote, protocol, 80);
    }
}

#[test]
fn names_of_ports_are_the_destinations() {
    let mut world = World::new();
    world.put(policy("a", Tier::Admin, 0, vec![rule(Action::Deny, [everyone()], named("http"))]));
    world.assert(false, DB, TCP, 8080);
    world.assert(true, DB, UDP, 8080);
    let mut db = pod("shop", "db", DB);
    db.ports = [NamedPort { name: "http".into(), protocol: Protocol::Udp, port: 53 }].into();
    world.apply([Change::Pod(db)]);
    assert!(world.allows(Direction::Egress, DB, TCP, 8080));
    assert!(!world.allows(Direction::Egress, DB, UDP, 53));
    assert!(!world.allows(Direction::Ingress, DB, TCP, 8080), "web still has it there");
}

#[test]
fn nodes_are_meant_by_their_labels_and_at_all_their_addresses() {
    let mut world = World::new();
    let zone = |zone: &str, addresses: &[&str]| {
        Change::Node(Node {
            name: "n1".into(),
            labels: Labels::from_iter([("zone", zone)]),
            addresses: addresses.iter().map(|a| a.parse().expect("an address")).collect(),
        })
    };
    world.apply([zone("x", &["203.0.113.1", "2001:db8::1"])]);
    let mut deny = policy("a", Tier::Admin, 0, Vec::new());
    deny.egress = vec![rule(Action::Deny, [Peer::Nodes(is("zone", "x"))], Ports::Any)];
    world.put(deny);
    let allows = |world: &World, to: &str| world.allows(Direction::Egress, to, TCP, 443);
    assert!(!allows(&world, "203.0.113.1") && !allows(&world, "2001:db8::1"));
    assert!(allows(&world, "203.0.113.2"));
    let plan = world.apply([zone("x", &["203.0.113.2"])]);
    assert!(rejudges(&plan));
    assert!(allows(&world, "203.0.113.1") && !allows(&world, "203.0.113.2"));
    world.apply([zone("y", &["203.0.113.2"])]);
    assert!(allows(&world, "203.0.113.2"));
    world.apply([zone("x", &["203.0.113.2"]), Change::NodeGone("n1".into())]);
    assert!(allows(&world, "203.0.113.2"));
}

#[test]
fn whoever_cannot_be_told_apart_is_denied_what_others_are() {
    let mut world = World::new();
    world.put(policy("a", Tier::Admin, 0, vec![rule(Action::Deny, [app("db")], Ports::Any)]));
    for set in world.sets() {
        let row = |class| world.datapath.rows.get(&(set, class));
        assert_eq!(row(ClassId::NONE), Some(&Row::All));
        assert!(row(ClassId::CLOSED).is_some_and(Row::is_closed));
    }
}

fn service(backends: &[&str]) -> [Change; 2] {
    let service = Service {
        id: ObjectName::new("shop", "web"),
        proxy: Proxy::default(),
        cluster_ips: vec!["10.96.0.1".parse().expect("an address")],
        external: Vec::new(),
        is_external_local: false,
        is_internal_local: false,
        ports: vec![ServicePort {
            name: "".into(),
            protocol: Protocol::Tcp,
            port: 80,
            node_port: None,
        }],
        created: 0,
    };
    let endpoints = backends.iter().map(|address| SliceEndpoint {
        address: address.parse().expect("an address"),
        ready: true,
        serving: true,
    });
    let slice = EndpointSlice {
        id: ObjectName::new("shop", "web-1"),
        service: "web".into(),
        proxy: Proxy::default(),
        family: AddressFamily::V4,
        ports: vec![SlicePort { name: "".into(), protocol: Protocol::Tcp, port: 8080 }],
        endpoints: endpoints.collect(),
    };
    [Change::Service(service), Change::EndpointSlice(slice)]
}

#[test]
fn to_itself_through_a_service_a_pod_goes_as_the_tiers_let_it() {
    let to_service = |world: &World| {
        let address = "10.96.0.1".parse().expect("an address");
        world.datapath.verdict(WEB, Direction::Egress, address, TCP, 80)
    };
    let mut world = World::new();
    world.apply(service(&["10.0.0.1"]));
    // Of others than itself: nothing changes for what it sends to itself.
    world.put(policy("a", Tier::Admin, 0, vec![rule(Action::Deny, [app("db")], Ports::Any)]));
    world.apply([network_policy(Vec::new(), Ports::Any)]);
    assert!(world.sets().iter().all(|set| !set.judges_own()));
    assert_eq!(to_service(&world), Verdict::Mixed, "NetworkPolicies let it");
    // Itself at one port.
    let deny = |port| rule(Action::Deny, [pods_in(is("team", "a"))], tcp(port));
    world.put(policy("a", Tier::Admin, 0, vec![deny(8080)]));
    assert!(world.sets()[1].judges_own() && !world.sets()[0].judges_own());
    assert_eq!(to_service(&world), Verdict::Denied);
    world.put(policy("a", Tier::Admin, 0, vec![deny(8081)]));
    assert_eq!(to_service(&world), Verdict::Mixed, "only another port is denied");
    // What comes before decides.
    let accept = rule(Action::Accept, [app("web")], Ports::Any);
    world.put(policy("a", Tier::Admin, 0, vec![accept, deny(8080)]));
    assert!(!world.sets()[1].judges_own());
    assert_eq!(to_service(&world), Verdict::Mixed);
    // The baseline, where NetworkPolicies leave it to that.
    world.apply([
        Change::ClusterPolicyGone("a".into()),
        Change::ClusterPolicy(policy("b", Tier::Baseline, 0, vec![deny(8080)])),
    ]);
    assert_eq!(to_service(&world), Verdict::Mixed);
    world.apply([Change::PolicyGone(ObjectName::new("shop", "np"))]);
    assert_eq!(to_service(&world), Verdict::Denied);
    world.apply(service(&["10.0.0.1", STRANGER]));
    assert_eq!(to_service(&world), Verdict::Mixed, "another backend is allowed");
    world.apply(service(&["10.0.0.1", DB]));
    assert_eq!(to_service(&world), Verdict::Denied, "no backend is");
}

#[test]
fn equal_content_has_equal_numbers_over_restarts() {
    let mut world = World::new();
    let rules = vec![
        rule(Action::Pass, [app("db"), network("192.0.2.0/24")], named("http")),
        rule(Action::Deny, [pods_in(is("team", "a"))], Ports::Any),
    ];
    world.put(policy("a", Tier::Admin, 3, rules.clone()));
    world.apply([network_policy(vec![app("db")], tcp(80))]);
    let ids = world.compiler.export_ids();
    let ids = serde_json::from_str(&serde_json::to_string(&ids).expect("text")).expect("ids");
    let before = world.compiler.tables();
    let mut again = Compiler::new();
    again.adopt(&ids);
    again.apply_all([
        namespace("shop", &[("team", "a")]),
        namespace("other", &[("team", "b")]),
        Change::Pod(pod("shop", "web", "10.0.0.1")),
        Change::Pod(pod("shop", "db", DB)),
        Change::Pod(pod("other", "stranger", STRANGER)),
        Change::ClusterPolicy(policy("a", Tier::Admin, 3, rules)),
        network_policy(vec![app("db")], tcp(80)),
    ]);
    again.set_endpoint(WEB, ObjectName::new("shop", "web"));
    again.forget_adopted();
    assert_eq!(again.tables(), before);
}

#[test]
fn a_number_of_an_earlier_release_does_not_come_to_mean_that_a_pod_is_judged() {
    let mut world = World::new();
    world.apply([network_policy(vec![app("db")], tcp(80))]);
    let mut ids = world.compiler.export_ids();
    let far = |id: &u16| 0x8000 | id;
    let sets: BTreeMap<Arc<str>, u16> =
        ids.sets.iter().map(|(key, id)| (key.clone(), far(id))).collect();
    ids.sets = sets;
    let mut again = Compiler::new();
    again.adopt(&ids);
    again.apply_all([
        Change::Pod(pod("shop", "web", "10.0.0.1")),
        network_policy(vec![app("db")], tcp(80)),
    ]);
    again.set_endpoint(WEB, ObjectName::new("shop", "web"));
    let sets = again.endpoint_sets(WEB).expect("the endpoint");
    assert!(!sets.ingress.judges_own() && !sets.egress.judges_own());
}
