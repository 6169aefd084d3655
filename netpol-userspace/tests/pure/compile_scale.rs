//! A large cluster: 100,000 pods, 5,000 namespaces, 10,000 policies, 110 local endpoints. Holds
//! counts that would explode if an idea of the compiler broke; prints times, which it cannot hold
//! anybody to.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

use netpol_compile::{Compiler, EndpointId, Plan, Step};
use netpol_model::{
    Change, Direction, IpBlock, NamedPort, Namespace, NamespaceScope, ObjectName, Operator, Peer,
    Peers, Pod, Policy, PortMatch, PortRange, Ports, Protocol, Requirement, Rule, Selector, Str,
};

const N_NAMESPACES: usize = 5_000;
const N_PODS: usize = 100_000;
const N_ENDPOINTS: usize = 110;

fn namespace_name(index: usize) -> Str {
    format!("ns-{index}").into()
}

fn namespace(index: usize) -> Namespace {
    let name = namespace_name(index);
    let labels = [
        ("kubernetes.io/metadata.name", name.clone()),
        ("team", format!("team-{}", index % 50).into()),
    ];
    Namespace { name, labels: labels.into_iter().collect() }
}

fn address(index: usize) -> IpAddr {
    let index = u32::try_from(index).expect("fits");
    Ipv4Addr::from_bits((10 << 24) + index).into()
}

fn pod_name(index: usize) -> ObjectName {
    ObjectName::new(namespace_name(index % N_NAMESPACES), format!("pod-{index}"))
}

fn pod(index: usize, version: &str) -> Pod {
    let labels = [
        ("app", format!("app-{}", index / N_NAMESPACES % 10)),
        ("pod-template-hash", format!("{:x}", index * 7919 % 65_536)),
        ("tier", ["web", "api", "db"][index % 3].to_owned()),
        ("version", version.to_owned()),
    ];
    Pod {
        id: pod_name(index),
        uid: format!("00000000-0000-0000-0000-{index:012}").into(),
        labels: labels.into_iter().collect(),
        node: Some(format!("node-{}", index / N_ENDPOINTS).into()),
        addresses: vec![address(index)].into(),
        host_network: false,
        finished: false,
        running: true,
        ports: [NamedPort {
            name: "http".into(),
            protocol: Protocol::Tcp,
            port: if index.is_multiple_of(2) { 80 } else { 8080 },
        }]
        .into(),
        annotations: None,
        created: 0,
    }
}

fn is(key: &str, value: String) -> Selector {
    let operator = Operator::In(vec![value.into()]);
    Selector::new([Requirement { key: key.into(), operator }])
}

fn tcp(range: PortRange) -> Ports {
    Ports::Only(vec![PortMatch { protocol: Protocol::Tcp, range }])
}

/// In each namespace one policy on ingress and one on egress.
fn policies(index: usize) -> [Policy; 2] {
    let name = namespace_name(index);
    let own = Peer::Pods {
        namespaces: NamespaceScope::Named(name.clone()),
        pods: is("app", format!("app-{}", index % 10)),
    };
    let team = Peer::Pods {
        namespaces: NamespaceScope::Matching(is("team", format!("team-{}", index % 50))),
        pods: is("tier", "api".to_owned()),
    };
    let outside = Peer::Block(IpBlock {
        cidr: "0.0.0.0/0".parse().expect("a block"),
        except: vec!["10.0.0.0/8".parse().expect("a block")],
    });
    let office = Peer::Block(IpBlock {
        cidr: format!("192.168.{}.0/24", index % 200).parse().expect("a block"),
        except: Vec::new(),
    });
    let rule = |peers: Vec<Peer>, ports| Rule { peers: Peers::Only(peers.into()), ports };
    let policy = |kind: &str, ingress, egress| Policy {
        id: ObjectName::new(name.clone(), kind),
        pods: Selector::everything(),
        ingress,
        egress,
    };
    [
        policy(
            "in",
            Some(vec![
                rule(vec![own, office], tcp(PortRange::Named("http".into()))),
                rule(vec![team.clone()], tcp(PortRange::Numbers(9000, 9100))),
            ]),
            None,
        ),
        policy(
            "out",
            None,
            Some(vec![
                rule(vec![team], tcp(PortRange::Named("http".into()))),
                rule(vec![outside], Ports::Any),
            ]),
        ),
    ]
}

fn count(plan: &Plan, wanted: fn(&Step) -> bool) -> usize {
    plan.iter().filter(|step| wanted(step)).count()
}

fn timed<T>(what: &str, act: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = act();
    println!("{what}: {:?}", start.elapsed());
    result
}

/// Resident memory in KiB.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("procfs");
    let line = status.lines().find(|line| line.starts_with("VmRSS")).expect("a VmRSS line");
    line.split_whitespace().nth(1).and_then(|text| text.parse().ok()).expect("a number")
}

#[test]
fn a_large_cluster_costs_what_its_local_policies_need() {
    let before = resident();
    let mut changes: Vec<Change> =
        (0..N_NAMESPACES).map(|i| Change::Namespace(namespace(i))).collect();
    changes.extend((0..N_PODS).map(|i| Change::Pod(pod(i, "v1"))));
    changes.extend((0..N_NAMESPACES).flat_map(policies).map(Change::Policy));
    println!("model: {} bytes per pod", (resident() - before) * 1024 / N_PODS as u64);

    let mut compiler = Compiler::new();
    let plan = timed("first sync", || compiler.apply_all(changes));
    assert_eq!(plan, [], "without endpoints nothing is compiled");
    assert_eq!(compiler.size().atoms, 0);

    let endpoints = (0..N_ENDPOINTS)
        .map(|i| (EndpointId(u16::try_from(i + 1).expect("fits")), pod_name(i * 37)));
    let plan = timed("110 endpoints", || compiler.set_endpoints(endpoints));
    println!("{:?}", compiler.size());
    let tables = compiler.tables();
    println!("{} addresses and blocks, {} rows", tables.classes.len(), tables.rows.len());
    // 50 teams with a selector each, shared by directions; the namespaces' own selectors; blocks.
    let size = compiler.size();
    assert!((110..400).contains(&size.atoms), "{size:?}");
    assert!(size.sets <= 2 * N_ENDPOINTS + 1, "{size:?}");
    // Addresses outnumber classes by far: that is what classes are for.
    assert!(size.classes < 2_000, "{size:?}");
    assert!(tables.rows.len() < 20_000, "{} rows", tables.rows.len());
    assert_eq!(count(&plan, |step| matches!(step, Step::SetEndpoint(..))), N_ENDPOINTS);
    assert_eq!(count(&plan, |step| matches!(step, Step::RemoveRow(..))), 0);
    drop((plan, tables));
    println!("model and compiler: {} bytes per pod", (resident() - before) * 1024 / N_PODS as u64);

    // A pod that no local policy tells from others: nothing to do, for a pod that is new and for
    // one that changes.
    let plan = timed("a relabelled pod", || compiler.apply(Change::Pod(pod(4_321, "v2"))));
    assert_eq!(plan, []);
    let plan = timed("1,000 relabelled pods, one by one", || {
        (0..1_000).flat_map(|i| compiler.apply(Change::Pod(pod(i * 97, "v2")))).collect::<Plan>()
    });
    assert_eq!(count(&plan, |step| matches!(step, Step::AddRow(..) | Step::RemoveRow(..))), 0);

    // A policy of a namespace without local endpoints.
    let remote = (0..N_NAMESPACES)
        .find(|i| (0..N_ENDPOINTS).all(|e| pod_name(e * 37).namespace != namespace_name(*i)))
        .expect("a namespace without endpoints");
    let [mut policy, _] = policies(remote);
    policy.ingress = Some(Vec::new());
    let plan = timed("a policy elsewhere", || compiler.apply(Change::Policy(policy)));
    assert_eq!(plan, []);

    // A policy that selects one endpoint: one switch, and no address outside its team moves.
    let [mut policy, _] = policies(37);
    policy.ingress = Some(vec![Rule {
        peers: Peers::Only(
            [Peer::Pods {
                namespaces: NamespaceScope::Matching(Selector::everything()),
                pods: is("app", "app-3".to_owned()),
            }]
            .into(),
        ),
        ports: Ports::Any,
    }]);
    let plan = timed("a policy here, on 10,000 pods", || compiler.apply(Change::Policy(policy)));
    assert_eq!(count(&plan, |step| matches!(step, Step::SetEndpoint(..))), 1);
    let moves = count(&plan, |step| matches!(step, Step::SetClass(..) | Step::ClearClass(..)));
    assert!((10_000..11_000).contains(&moves), "{moves} moves");

    // A namespace that leaves its team moves its pods and nothing else.
    let mut moved = namespace(0);
    moved.labels = [("team", "none")].into_iter().collect();
    let plan = timed("a relabelled namespace", || compiler.apply(Change::Namespace(moved)));
    let moves = count(&plan, |step| matches!(step, Step::SetClass(..) | Step::ClearClass(..)));
    assert!((1..=N_PODS / N_NAMESPACES).contains(&moves), "{moves} moves");
    assert!(!compiler.rules(EndpointId(1), Direction::Ingress).is_empty());
}

const N_CROWD: usize = 1_500;

/// A policy on all pods of the first namespace: one block, one port.
fn crowd_policy(index: usize, port: u16) -> Change {
    let bits = (172 << 24) + (u32::try_from(index).expect("fits") << 4);
    let cidr = ipnet::IpNet::new(Ipv4Addr::from_bits(bits).into(), 28).expect("a length");
    let peers = Peers::Only([Peer::Block(IpBlock { cidr, except: Vec::new() })].into());
    Change::Policy(Policy {
        id: ObjectName::new(namespace_name(0), format!("crowd-{index}")),
        pods: Selector::everything(),
        ingress: Some(vec![Rule { peers, ports: tcp(PortRange::Numbers(port, port)) }]),
        egress: None,
    })
}

/// One at a time, on one pod and on many: what is written is what differs.
#[test]
fn thousands_of_policies_on_a_pod_cost_what_differs() {
    let pods = |n: usize| (0..n).map(|i| i * N_NAMESPACES);
    for n_pods in [1, 110] {
        let mut compiler = Compiler::new();
        compiler.apply(Change::Namespace(namespace(0)));
        compiler.apply_all(pods(n_pods).map(|i| Change::Pod(pod(i, "v1"))));
        let endpoints = pods(n_pods).zip(1..).map(|(i, number)| (EndpointId(number), pod_name(i)));
        compiler.set_endpoints(endpoints);
        let n_steps: usize = timed("policies, one by one", || {
            (0..N_CROWD).map(|i| compiler.apply(crowd_policy(i, 80)).len()).sum()
        });
        // Sets of less than 64 rows are made anew.
        assert!(n_steps < 3 * N_CROWD + 64 * (n_pods + 64), "{n_steps} steps");
        let size = compiler.size();
        assert_eq!((size.classes, size.atoms), (N_CROWD, N_CROWD));
        assert_eq!(compiler.tables().rows.len(), N_CROWD);

        let plan = timed("one edit", || compiler.apply(crowd_policy(1_234, 81)));
        assert!(plan.len() <= 4, "{plan:?}");
        assert_eq!(count(&plan, |step| matches!(step, Step::SetEndpoint(..))), 0);
        let lost = plan.iter().find_map(|step| match step {
            Step::Rejudge(endpoints) => Some(endpoints.len()),
            _ => None,
        });
        assert_eq!(lost, Some(n_pods), "the old port is denied by now");
        let gone = ObjectName::new(namespace_name(0), "crowd-1235");
        let plan = timed("one deleted", || compiler.apply(Change::PolicyGone(gone)));
        assert!(plan.len() <= 4, "{plan:?}");
        assert_eq!(compiler.size().classes, N_CROWD - 1);
    }
}
