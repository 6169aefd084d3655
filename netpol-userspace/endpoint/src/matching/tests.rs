//! Tables of interfaces and pods.

#![expect(clippy::unwrap_used, reason = "tests")]

use super::super::Switch;
use super::*;
use netpol_model::Labels;

fn addresses(list: &str) -> Vec<IpAddr> {
    list.split_whitespace().map(|address| address.parse().unwrap()).collect()
}

/// The interface `v{ifindex}`.
fn interface(ifindex: u32, nsid: i32, list: &str) -> Interface {
    Interface {
        ifindex,
        name: format!("v{ifindex}"),
        incarnation: u64::from(ifindex),
        nsid,
        netns: None,
        peer_ifindex: 2,
        peer_name: "eth0".to_owned(),
        addresses: addresses(list),
        link_address: None,
        switch: Switch::None,
        appeared: 100,
    }
}

/// A pod of this node.
fn pod(name: &str, list: &str) -> Pod {
    Pod {
        id: ObjectName::new("default", name),
        uid: format!("uid-{name}").into(),
        labels: Labels::default(),
        node: Some("here".into()),
        addresses: addresses(list).into(),
        host_network: false,
        finished: false,
        running: true,
        ports: [].into(),
        annotations: None,
        created: 100,
    }
}

fn matched(interfaces: &[Interface], pods: &[Pod], previous: &[Endpoint]) -> Matching {
    claimed(interfaces, pods, previous, &[])
}

/// With everything that there may be to go by. Pods have had their status soon after they were
/// created.
fn told(pods: &[Pod], evidence: &Evidence<'_>) -> Matching {
    let window = |pod: &Pod| pod.created - 5..=pod.created + 5;
    let awaited = pods.iter().map(|pod| (pod.uid.clone(), window(pod))).collect();
    match_pods(pods, &Evidence { awaited: &awaited, ..*evidence })
}

const NO_ROUTES: &BTreeMap<IpAddr, Route> = &BTreeMap::new();
const NOTHING: Evidence<'static> = Evidence {
    interfaces: &[],
    node_name: "here",
    previous: &[],
    claims: &[],
    pinned: &[],
    routes: NO_ROUTES,
    awaited: &BTreeMap::new(),
};

/// `v1=pod` for each endpoint, `!` and its kind for each finding.
fn summary(matching: &Matching) -> String {
    let endpoints = matching.endpoints.iter().map(|endpoint| match endpoint.uid.is_empty() {
        true => format!("{}=?", endpoint.interface),
        false => format!("{}={}", endpoint.interface, endpoint.pod.name),
    });
    let findings = matching.findings.iter().map(|finding| match finding {
        Finding::PodWithoutAddress { pod, .. } => format!("!no-address:{}", pod.name),
        Finding::PodWithoutInterface { pod, .. } => format!("!no-interface:{}", pod.name),
        Finding::InterfaceWithoutPod { interface, .. } => format!("!no-pod:{interface}"),
        Finding::AddressOfTwoPods { address, pod, loser } => {
            format!("!two-pods:{address}:{}>{}", pod.name, loser.name)
        }
        Finding::AddressOnTwoInterfaces { address, pod, interfaces } => {
            format!("!two-interfaces:{address}:{}:{}", pod.name, interfaces.join("+"))
        }
        Finding::LeftOver { interface, pod, why } => {
            format!("!left-over:{interface}:{}:{why:?}", pod.name)
        }
        Finding::Undecided { interface, pods, .. } => {
            let pods: Vec<&str> = pods.iter().map(|pod| &*pod.name).collect();
            format!("!undecided:{interface}:{}", pods.join("+"))
        }
        Finding::Unknown { interface, .. } => format!("!unknown:{interface}"),
    });
    endpoints.chain(findings).collect::<Vec<_>>().join(" ")
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn pods_and_interfaces_without_history() {
    let elsewhere = |pod: Pod| Pod { node: Some("there".into()), ..pod };
    let anywhere = |pod: Pod| Pod { node: None, ..pod };
    let host = |pod: Pod| Pod { host_network: true, ..pod };
    let finished = |pod: Pod| Pod { finished: true, ..pod };
    let born = |created, pod: Pod| Pod { created, ..pod };
    let v = interface;
    let table = [
        ("nothing", vec![], vec![], ""),
        ("one", vec![v(1, 0, "10.0.0.1")], vec![pod("a", "10.0.0.1")], "v1=a"),
        (
            "two, and one address in common with nothing",
            vec![v(1, 0, "10.0.0.1 fd00::1"), v(2, 1, "10.0.0.2")],
            vec![pod("a", "10.0.0.2"), pod("b", "10.0.0.1")],
            "v1=b v2=a",
        ),
        (
            "either family is enough",
            vec![v(1, 0, "fd00::1 fe80::1")],
            vec![pod("a", "10.0.0.1 fd00::1")],
            "v1=a",
        ),
        (
            "a link-local address says nothing",
            vec![v(1, 0, "fe80::1")],
            vec![pod("a", "fd00::1")],
            "!no-interface:a !no-pod:v1",
        ),
        ("no address yet", vec![v(1, 0, "")], vec![pod("a", "")], "!no-address:a !no-pod:v1"),
        (
            "of another node",
            vec![v(1, 0, "10.0.0.1")],
            vec![elsewhere(pod("a", "10.0.0.1"))],
            "!no-pod:v1",
        ),
        (
            "of no node: matched if it is here, not missed if not",
            vec![v(1, 0, "10.0.0.1")],
            vec![anywhere(pod("a", "10.0.0.1")), anywhere(pod("b", "10.0.0.2"))],
            "v1=a",
        ),
        (
            "pods without a network of their own",
            vec![v(1, 0, "10.0.0.1"), v(2, 1, "10.0.0.2")],
            vec![host(pod("a", "10.0.0.1")), anywhere(host(pod("b", "10.0.0.2")))],
            "!no-pod:v1 !no-pod:v2",
        ),
        (
            "a finished pod that still has its interface",
            vec![v(1, 0, "10.0.0.1")],
            vec![finished(pod("a", "10.0.0.1"))],
            "v1=a !left-over:v1:a:Ended",
        ),
        (
            "an interface that came later than the pod finished",
            vec![Interface { appeared: 200, ..v(1, 0, "10.0.0.1") }],
            vec![finished(pod("a", "10.0.0.1"))],
            "!no-pod:v1",
        ),
        (
            "a finished pod has left its address to another",
            vec![v(1, 0, "10.0.0.1")],
            vec![finished(born(200, pod("a", "10.0.0.1"))), pod("b", "10.0.0.1")],
            "v1=b",
        ),
        (
            "several interfaces of one pod",
            vec![v(1, 0, "10.0.0.1"), v(2, 0, "192.168.0.1"), v(3, 1, "192.168.0.2")],
            vec![pod("a", "10.0.0.1")],
            "v1=a v2=a !no-pod:v3",
        ),
        (
            "the younger of two pods has the address, whatever their order and names",
            vec![v(1, 0, "10.0.0.1")],
            vec![born(100, pod("a", "10.0.0.1")), born(101, pod("b", "10.0.0.1"))],
            "v1=b !no-interface:a !two-pods:10.0.0.1:b>a",
        ),
        (
            "of the same age: the smaller name",
            vec![v(1, 0, "10.0.0.1")],
            vec![pod("b", "10.0.0.1"), pod("a", "10.0.0.1")],
            "v1=a !no-interface:b !two-pods:10.0.0.1:a>b",
        ),
        (
            "a pod keeps the addresses nobody else claims",
            vec![v(1, 0, "10.0.0.1"), v(2, 1, "fd00::1")],
            vec![pod("b", "10.0.0.1 fd00::1"), pod("a", "10.0.0.1")],
            "v1=a v2=b !two-pods:10.0.0.1:a>b",
        ),
        (
            "the same address twice in one status",
            vec![v(1, 0, "10.0.0.1")],
            vec![pod("a", "10.0.0.1 10.0.0.1")],
            "v1=a",
        ),
        (
            "one address in two namespaces: none of them is left alone, nor called the pod",
            vec![v(1, 0, "10.0.0.1"), v(2, 1, "10.0.0.1")],
            vec![pod("a", "10.0.0.1")],
            "v1=? v2=? !no-interface:a !two-interfaces:10.0.0.1:a:v1+v2 !undecided:v1:a \
             !undecided:v2:a",
        ),
        (
            "addresses of two pods that are nowhere else",
            vec![v(1, 0, "10.0.0.1 10.0.0.2")],
            vec![pod("a", "10.0.0.1"), pod("b", "10.0.0.2")],
            "v1=? !no-interface:a !no-interface:b !undecided:v1:a+b",
        ),
        (
            "one address twice in one namespace is its own affair",
            vec![v(1, 0, "10.0.0.1"), v(2, 0, "10.0.0.1")],
            vec![pod("a", "10.0.0.1")],
            "v1=a v2=a",
        ),
        (
            "addresses of two pods: it is the one that is nowhere else",
            vec![v(1, 0, "10.0.0.1 10.0.0.2"), v(2, 1, "10.0.0.1")],
            vec![pod("a", "10.0.0.1"), pod("b", "10.0.0.2")],
            "v1=b v2=a !two-interfaces:10.0.0.1:a:v1+v2",
        ),
    ];
    for (what, interfaces, pods, expected) in table {
        let matching = matched(&interfaces, &pods, &[]);
        assert_eq!(summary(&matching), expected, "{what}");
        let (mut interfaces, mut pods) = (interfaces, pods);
        interfaces.reverse();
        pods.reverse();
        let reversed = matched(&interfaces, &pods, &[]);
        assert_eq!(reversed.endpoints, matching.endpoints, "{what}, reversed");
        // Matching again with what it gave changes nothing.
        let again = matched(&interfaces, &pods, &matching.endpoints);
        assert_eq!(again, reversed, "{what}, again");
    }
}

#[test]
fn a_namespace_stays_with_its_pod() {
    let before = [interface(1, 0, "10.0.0.1 fe80::1"), interface(2, 1, "10.0.0.2")];
    let pods = [pod("a", "10.0.0.1"), pod("b", "10.0.0.2")];
    let first = matched(&before, &pods, &[]);
    assert_eq!(summary(&first), "v1=a v2=b");

    let stolen = [interface(1, 0, "10.0.0.2"), interface(2, 1, "10.0.0.2")];
    let theft = matched(&stolen, &pods, &first.endpoints);
    assert_eq!(summary(&theft), "v1=a v2=b !two-interfaces:10.0.0.2:b:v1+v2");
    assert_eq!(theft.endpoints[0].addresses, addresses("10.0.0.1"));

    let flapping = [interface(1, 0, ""), interface(2, 1, "10.0.0.2")];
    assert_eq!(summary(&matched(&flapping, &pods, &first.endpoints)), "v1=a v2=b");
}

#[test]
fn a_namespace_leaves_its_pod() {
    let interfaces = [interface(1, 0, "10.0.0.1")];
    let old = pod("a", "10.0.0.1");
    let first = matched(&interfaces, std::slice::from_ref(&old), &[]).endpoints;

    let renewed = Pod { uid: "other".into(), ..old.clone() };
    let matching = matched(&interfaces, &[renewed], &first);
    assert_eq!(matching.endpoints[0].uid, Uid::from("other"), "a pod of the same name");

    // The new pod's interface was there before its status: it was taken for the old one's.
    let younger = Pod { created: 101, ..pod("b", "10.0.0.1") };
    let matching = matched(&interfaces, &[old.clone(), younger], &first);
    assert_eq!(summary(&matching), "v1=b !no-interface:a !two-pods:10.0.0.1:b>a");

    let moved =
        [Pod { addresses: addresses("10.0.0.9").into(), ..old.clone() }, pod("b", "10.0.0.1")];
    assert_eq!(summary(&matched(&interfaces, &moved, &first)), "v1=b !no-interface:a");

    let finished = Pod { finished: true, ..old.clone() };
    let ended = "v1=a !left-over:v1:a:Ended";
    assert_eq!(summary(&matched(&interfaces, std::slice::from_ref(&finished), &first)), ended);
    // Its address is another pod's by now, and nobody else has it: it was taken for the old one's.
    let pods = [finished, pod("b", "10.0.0.1")];
    assert_eq!(summary(&matched(&interfaces, &pods, &first)), "v1=b");

    // Another link got the index.
    let successor = Interface { incarnation: 9, ..interface(1, 0, "10.0.0.2") };
    let pods = [old, pod("b", "10.0.0.2")];
    assert_eq!(summary(&matched(&[successor], &pods, &first)), "v1=b !no-interface:a");
}

#[test]
fn which_addresses_an_endpoint_may_use() {
    let interfaces = [
        interface(1, 0, "10.0.0.1 10.0.0.77 fd00::1 fe80::1"),
        interface(2, 0, "192.168.0.1 10.0.0.2 fe80::2"),
        interface(3, 1, "10.0.0.2"),
    ];
    let pods = [pod("a", "fd00::1 10.0.0.1"), pod("b", "10.0.0.2")];
    let matching = matched(&interfaces, &pods, &[]);
    let seen: Vec<_> = matching
        .endpoints
        .iter()
        .map(|e| (&*e.interface, &*e.pod.name, e.addresses.clone()))
        .collect();
    let expected = vec![
        // As in the status; not what the pod has added to its interface, nor its further ones.
        ("v1", "a", addresses("fd00::1 10.0.0.1")),
        ("v2", "a", addresses("fd00::1 10.0.0.1")),
        ("v3", "b", addresses("10.0.0.2")),
    ];
    assert_eq!(seen, expected);
}

#[test]
fn findings_name_what_they_are_about() {
    let interfaces = [
        interface(1, 0, "10.0.0.1"),
        interface(2, 1, "10.0.0.1"),
        interface(3, 2, "10.9.9.9"),
        interface(4, 3, ""),
    ];
    let pods = [pod("a", "10.0.0.1"), pod("b", "10.0.0.1"), pod("c", "")];
    let matching = matched(&interfaces, &pods, &[]);
    let text: Vec<String> = matching.findings.iter().map(ToString::to_string).collect();
    for name in
        ["default/a", "default/b", "default/c", "10.0.0.1", "10.9.9.9", "v1, v2", "v3", "v4"]
    {
        assert!(text.iter().any(|line| line.contains(name)), "{name} is not in {text:#?}");
    }
    assert_eq!(text.len(), 9, "{text:#?}");
}

/// Of the interface `v{ifindex}`.
fn claim(ifindex: u64, name: &str) -> Claim {
    let uid = format!("uid-{name}").into();
    Claim { incarnation: ifindex, pod: ObjectName::new("default", name), uid }
}

fn claimed(
    interfaces: &[Interface],
    pods: &[Pod],
    previous: &[Endpoint],
    claims: &[Claim],
) -> Matching {
    told(pods, &Evidence { interfaces, previous, claims, ..NOTHING })
}

#[test]
fn what_the_runtime_says_goes_before_addresses_and_memory() {
    let interfaces = [interface(1, 10, "10.0.0.2"), interface(2, 20, "")];
    let pods = [pod("a", "10.0.0.1"), pod("b", "10.0.0.2")];
    let by_address = matched(&interfaces, &pods, &[]);
    assert_eq!(summary(&by_address), "v1=b !no-interface:a !no-pod:v2");
    // Pod a has taken the address of pod b, which has not got it yet.
    let claims = [claim(1, "a"), claim(2, "b")];
    let matching = claimed(&interfaces, &pods, &by_address.endpoints, &claims);
    assert_eq!(summary(&matching), "v1=a v2=b");
    assert_eq!(matching.endpoints[0].addresses, addresses("10.0.0.1"));
}

#[test]
fn a_pod_without_an_object_keeps_its_endpoint_while_its_sandbox_is_there() {
    let interfaces = [interface(1, 10, "10.0.0.1")];
    let before = claimed(&interfaces, &[pod("a", "10.0.0.1")], &[], &[claim(1, "a")]);
    let gone = claimed(&interfaces, &[], &before.endpoints, &[claim(1, "a")]);
    assert_eq!(summary(&gone), "v1=a !left-over:v1:a:Gone");
    assert_eq!(gone.endpoints[0].addresses, addresses("10.0.0.1"));
    // Nor is it the pod that has its address by now, which it loses.
    let pods = [pod("b", "10.0.0.1")];
    let reused = claimed(&interfaces, &pods, &before.endpoints, &[claim(1, "a")]);
    assert_eq!(summary(&reused), "v1=a !no-interface:b !left-over:v1:a:Gone");
    assert_eq!(reused.endpoints[0].addresses, addresses(""));
    let never_seen = claimed(&interfaces, &[], &[], &[claim(1, "a")]);
    assert_eq!(summary(&never_seen), "!no-pod:v1");
}

fn routes(list: &[(&str, u32)]) -> BTreeMap<IpAddr, Route> {
    let route = |&(address, ifindex): &(&str, u32)| {
        (address.parse().unwrap(), Route { ifindex, is_direct: true })
    };
    list.iter().map(route).collect()
}

#[test]
fn a_namespace_stays_with_its_pod_whatever_becomes_of_the_object() {
    let interfaces = [interface(1, 0, "10.0.0.1")];
    let a = pod("a", "10.0.0.1");
    let first = matched(&interfaces, std::slice::from_ref(&a), &[]).endpoints;
    let after = |pods: &[Pod]| matched(&interfaces, pods, &first);

    assert_eq!(summary(&after(&[])), "v1=a !left-over:v1:a:Gone");
    let finished = Pod { finished: true, ..a.clone() };
    assert_eq!(summary(&after(&[finished])), "v1=a !left-over:v1:a:Ended");
    let bare = after(&[Pod { addresses: vec![].into(), ..a.clone() }]);
    assert_eq!(summary(&bare), "v1=a");
    assert_eq!(bare.endpoints, first, "its addresses are those of before");
    let renewed = Pod { uid: "other".into(), ..pod("a", "10.0.0.9") };
    assert_eq!(summary(&after(&[renewed])), "v1=a !no-interface:a !left-over:v1:a:Gone");
    // It comes back.
    let gone = after(&[]);
    let back = matched(&interfaces, std::slice::from_ref(&a), &gone.endpoints);
    assert_eq!(back.endpoints, first);
    // Its other end is moved to another namespace, where there is another pod already.
    let moved = [interface(1, 7, "10.0.0.2"), interface(2, 7, "10.0.0.2")];
    let pods = [a.clone(), pod("b", "10.0.0.2")];
    let before = [interface(1, 0, "10.0.0.1"), interface(2, 7, "10.0.0.2")];
    let before = matched(&before, &pods, &[]);
    assert_eq!(summary(&matched(&moved, &pods, &before.endpoints)), "v1=a v2=b");
    // A third interface there may be either's.
    let third = [&moved[..], &[interface(3, 7, "")]].concat();
    let matching = matched(&third, &pods, &before.endpoints);
    assert_eq!(summary(&matching), "v1=a v2=b v3=? !undecided:v3:a+b");
}

#[test]
fn a_sandbox_that_is_made_anew() {
    let a = pod("a", "10.0.0.1");
    let first = matched(&[interface(1, 0, "10.0.0.1")], std::slice::from_ref(&a), &[]);
    // The interface of the one before is still there.
    let both = [interface(1, 0, "10.0.0.1"), interface(2, 1, "10.0.0.2")];
    let now = pod("a", "10.0.0.2");
    let matching = matched(&both, std::slice::from_ref(&now), &first.endpoints);
    assert_eq!(summary(&matching), "v1=a v2=a !left-over:v1:a:Elsewhere");
    assert_eq!(matching.endpoints[0].holder, Holder::Former);
    assert_eq!(matching.endpoints[0].addresses, addresses("10.0.0.1"));
    let again = matched(&both, &[now], &matching.endpoints);
    assert_eq!(again, matching);
    // Or nobody has its new address yet.
    let matching = matched(&both[..1], &[pod("a", "10.0.0.2")], &first.endpoints);
    assert_eq!(summary(&matching), "v1=a");
    assert_eq!(matching.endpoints[0].addresses, addresses("10.0.0.2"));
}

#[test]
fn the_nodes_routes_go_before_addresses() {
    let interfaces = [interface(1, 0, "10.0.0.2"), interface(2, 1, "10.0.0.2")];
    let pods = [pod("a", "10.0.0.1"), pod("b", "10.0.0.2")];
    let routes = routes(&[("10.0.0.1", 1), ("10.0.0.2", 2)]);
    let evidence = Evidence { interfaces: &interfaces, routes: &routes, ..NOTHING };
    let matching = told(&pods, &evidence);
    assert_eq!(summary(&matching), "v1=a v2=b !two-interfaces:10.0.0.2:b:v1+v2");
    // Also where addresses alone have told something else.
    let early = matched(&interfaces[..1], &pods[1..], &[]);
    assert_eq!(summary(&early), "v1=b");
    let late = told(&pods, &Evidence { previous: &early.endpoints, ..evidence });
    assert_eq!(late.endpoints, matching.endpoints);
    // What a route has told stays when there is none any more.
    let evidence = Evidence { interfaces: &interfaces, previous: &late.endpoints, ..NOTHING };
    assert_eq!(told(&pods, &evidence).endpoints, matching.endpoints);
}

#[test]
fn what_is_pinned_is_known() {
    let interfaces = [interface(1, 0, "10.0.0.2"), interface(2, 1, "10.0.0.2")];
    let pinned = [Pinned { incarnation: 1, addresses: addresses("10.0.0.1 fe80::1") }];
    let evidence = Evidence { interfaces: &interfaces, pinned: &pinned, ..NOTHING };
    let pods = [pod("a", "10.0.0.1"), pod("b", "10.0.0.2")];
    let two = "!two-interfaces:10.0.0.2:b:v1+v2";
    assert_eq!(summary(&told(&pods, &evidence)), format!("v1=a v2=b {two}"));
    // Nobody knows whose these addresses were.
    let matching = told(&pods[1..], &evidence);
    assert_eq!(summary(&matching), format!("v1=? v2=b {two} !unknown:v1"));
    assert_eq!(matching.endpoints[0].holder, Holder::Unknown);
    assert_eq!(matching.endpoints[0].addresses, addresses("10.0.0.1 fe80::1"));
    // Who shows them as well is not left alone.
    let shown = [interface(1, 0, "10.0.0.9"), interface(2, 1, "10.0.0.1")];
    let matching = told(&pods[..1], &Evidence { interfaces: &shown, ..evidence });
    assert_eq!(summary(&matching), "v1=a v2=? !undecided:v2:a");
}

/// The interface `v{ifindex}` as a port of bridge 99.
fn port(ifindex: u32, nsid: i32, list: &str) -> Interface {
    Interface { switch: Switch::Bridge(99), ..interface(ifindex, nsid, list) }
}

#[test]
fn a_pod_that_hides_behind_a_bridge() {
    let routes = routes(&[("10.0.0.1", 99), ("10.0.0.2", 99), ("10.0.0.3", 99)]);
    let (a, b) = (pod("a", "10.0.0.1"), pod("b", "10.0.0.2"));
    let look = |interfaces: &[Interface], pods: &[Pod], previous: &[Endpoint]| {
        told(pods, &Evidence { interfaces, previous, routes: &routes, ..NOTHING })
    };
    // It is the only port that it can be.
    let alone = look(&[port(1, 0, "10.9.9.9")], std::slice::from_ref(&a), &[]);
    assert_eq!(summary(&alone), "v1=a");
    let elsewhere = look(&[interface(1, 0, "10.9.9.9")], std::slice::from_ref(&a), &[]);
    assert_eq!(summary(&elsewhere), "!no-interface:a !no-pod:v1");
    // Only as long as there is no better candidate: it may be another pod's, of which nobody has
    // heard yet.
    let later = [port(1, 0, "10.0.0.2"), port(2, 1, "10.0.0.1")];
    let found = look(&later, std::slice::from_ref(&a), &alone.endpoints);
    assert_eq!(summary(&found), "v2=a !no-pod:v1");
    let found = look(&later, &[a.clone(), b.clone()], &alone.endpoints);
    assert_eq!(summary(&found), "v1=b v2=a");
    // What it was found to be by its address stays.
    let found = look(&[port(1, 0, "10.0.0.1")], std::slice::from_ref(&a), &alone.endpoints);
    assert_eq!(
        summary(&look(&later, std::slice::from_ref(&a), &found.endpoints)),
        "v1=a !no-pod:v2"
    );
    // With the address of another pod, which is not to be seen: which of the two is it?
    let pods = [a.clone(), b.clone()];
    let both = "v1=? !no-interface:a !no-interface:b !undecided:v1:a+b";
    assert_eq!(summary(&look(&[port(1, 0, "10.0.0.2")], &pods, &[])), both);
    let known = look(&[port(1, 0, "10.0.0.2")], std::slice::from_ref(&b), &[]);
    assert_eq!(summary(&known), "v1=b");
    assert_eq!(summary(&look(&[port(1, 0, "10.0.0.2")], &pods, &known.endpoints)), both);
    // Beside a port of which nothing is known.
    let two = [port(1, 0, "10.0.0.2"), port(2, 1, "10.9.9.9")];
    assert_eq!(
        summary(&look(&two, &pods, &[])),
        "v1=? v2=? !no-interface:a !no-interface:b !undecided:v1:a+b !undecided:v2:a"
    );
    // What came up long before it, or after its status, is not it.
    for appeared in [90, 110] {
        let other = Interface { appeared, ..port(1, 0, "10.0.0.2") };
        assert_eq!(summary(&look(&[other], &pods, &[])), "v1=b !no-interface:a");
    }
    // Nor what an earlier agent has seen before.
    let mut remembered = known.endpoints;
    remembered[0].appeared = 50;
    let matching = look(&[port(1, 0, "10.0.0.2")], &pods, &remembered);
    assert_eq!(summary(&matching), "v1=b !no-interface:a");
    // One that had an interface once has lost it.
    let interfaces = [port(1, 0, "10.0.0.2")];
    let evidence = Evidence { interfaces: &interfaces, routes: &routes, ..NOTHING };
    assert_eq!(summary(&match_pods(&pods, &evidence)), "v1=b !no-interface:a");
}
