//! Objects that nobody should write, or that come in an order that should not be: the loaded
//! programs judge boundary packets as the reference evaluator does.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};

use netpol_compile::Compiler;
use netpol_datapath::LoadOptions;
use netpol_model::{AddressFamily, Change, EndpointSlice, ObjectName, Proxy};
use netpol_source::convert;
use netpol_testkit::generate::Rng;
use netpol_testkit::generate::world::{Event, Probe, World};
use netpol_testkit::objects::{namespace, pod, policy};
use netpol_testkit::rig::cluster::{Seen, Subject};
use netpol_testkit::rig::{POD, POD6, in_node};

/// The pod `x/web` and one policy that selects it and allows nothing.
fn subject() -> Subject {
    let mut subject = Subject::new(&LoadOptions::default());
    let mut world = World::default();
    let web = pod("x/web", "app=web", &format!("{POD},{POD6}"), "");
    world.pods.insert("web".into(), web.clone());
    world.policies.insert("p".into(), policy("x/p", r#"{"policyTypes": ["Ingress", "Egress"]}"#));
    subject.begin(Compiler::new(), world, web);
    subject
}

/// The policy gets this spec.
fn set(subject: &mut Subject, spec: &str) {
    subject.happen(&Event::Policy(policy("x/p", spec)));
}

fn probes(remotes: &[&str], ports: impl IntoIterator<Item = u16>) -> Vec<Probe> {
    let ports: Vec<u16> = ports.into_iter().collect();
    let mut list = Vec::new();
    for remote in remotes {
        let remote: IpAddr = remote.parse().unwrap();
        for &port in &ports {
            list.extend([6, 17, 132].map(|protocol| Probe { remote, protocol, port }));
        }
    }
    list
}

/// Some of many, always the same.
fn some<T: Clone>(list: &[T], n: usize) -> Vec<T> {
    let mut rng = Rng::new(1);
    (0..n).map(|_| rng.pick(list).clone()).collect()
}

fn joined(parts: impl IntoIterator<Item = String>) -> String {
    parts.into_iter().collect::<Vec<_>>().join(", ")
}

fn intervals(subject: &Subject) -> u64 {
    let tables = subject.rig.datapath.tables();
    tables.iter().find(|table| table.table == "intervals").unwrap().used
}

/// Both verdicts were seen, and everything fit.
fn was_worth_it(subject: &Subject, seen: Seen) {
    assert!(subject.is_exact(), "{:?}", subject.overflows());
    assert!(seen.allowed > 10 && seen.denied > 10 && seen.closed == 0, "{seen:?}");
}

#[test]
fn very_many_ports() {
    in_node(|| {
        let mut subject = subject();
        let port = |port: u16| format!(r#"{{"port": {port}}}"#);
        // Ten thousand ports with gaps between them.
        let ports = joined((0..10_000).map(|n| port(2 * n + 1)));
        set(&mut subject, &format!(r#"{{"ingress": [{{"ports": [{ports}]}}]}}"#));
        assert_eq!(intervals(&subject), 10_000);
        let mut asked: Vec<u16> = vec![1, 2, 3, 4, 9_999, 10_000, 10_001, 19_998, 19_999, 20_000];
        asked.extend([0, 20_001, 65_535]);
        asked.extend(some(&(0..20_010).collect::<Vec<u16>>(), 100));
        let seen = subject.check(&probes(&["10.9.0.1", "fd09::1"], asked), "10,000 ports");
        was_worth_it(&subject, seen);
        // All of them one by one are one interval, in whatever order they come.
        let mut all: Vec<u16> = (1..=65_535).collect();
        all.sort_by_key(|n| n.wrapping_mul(40_503));
        let ports = joined(all.into_iter().map(port));
        set(&mut subject, &format!(r#"{{"ingress": [{{"ports": [{ports}]}}]}}"#));
        subject.housekeeping();
        assert_eq!(intervals(&subject), 1);
        let asked = [0, 1, 2, 19_999, 20_000, 32_767, 32_768, 65_534, 65_535];
        let seen = subject.check(&probes(&["10.9.0.1", "fd09::1"], asked), "all ports");
        was_worth_it(&subject, seen);
        // Overlapping, nested and touching ranges of all protocols, on both sides.
        let ranges =
            [(80, 90), (85, 100), (101, 101), (1, 5), (2, 3), (65_000, 65_535), (103, 110)];
        let mut ports = String::new();
        for (index, (first, last)) in ranges.iter().enumerate() {
            let protocol = ["TCP", "UDP", "SCTP"][index % 3];
            for protocol in [protocol, "TCP"] {
                let separator = if ports.is_empty() { "" } else { ", " };
                let _ = write!(
                    ports,
                    r#"{separator}{{"port": {first}, "endPort": {last}, "protocol": "{protocol}"}}"#
                );
            }
        }
        set(
            &mut subject,
            &format!(
                r#"{{"policyTypes": ["Ingress", "Egress"], "ingress": [{{"ports": [{ports}]}}],
                    "egress": [{{"ports": [{ports}]}}]}}"#
            ),
        );
        let edges = ranges.iter().flat_map(|&(a, b): &(u16, u16)| [a - 1, a, b, b.wrapping_add(1)]);
        let seen = subject.check(&probes(&["10.9.0.1", "fd09::1"], edges), "ranges");
        was_worth_it(&subject, seen);
        // Five hundred ports on one block.
        let ports = joined((0..500).map(|n| port(100 + 3 * n)));
        set(
            &mut subject,
            &format!(
                r#"{{"ingress": [{{"from": [{{"ipBlock": {{"cidr": "10.9.0.0/16"}}}}],
                    "ports": [{ports}]}}]}}"#
            ),
        );
        let asked = (0..20).flat_map(|n| [99 + 3 * 26 * n, 100 + 3 * 26 * n]);
        let remotes = ["10.8.255.255", "10.9.0.0", "10.9.255.255", "10.10.0.0"];
        let seen = subject.check(&probes(&remotes, asked), "500 ports on a block");
        was_worth_it(&subject, seen);
        set(&mut subject, "{}");
        subject.housekeeping();
        assert_eq!(intervals(&subject), 0, "nothing is left behind");
    });
}

/// Blocks of all lengths, many inside one another, some with exceptions.
fn blocks(n: u32) -> Vec<String> {
    let mut rng = Rng::new(7);
    (0..n)
        .map(|number| {
            let length = 12 + rng.below(21) as u32;
            let address = Ipv4Addr::from(0x0a00_0000 | (rng.bits() as u32 & 0x00ff_ffff));
            if number % 7 == 0 {
                let words = (rng.bits() as u16 & 0xff, rng.bits() as u16);
                let length = 48 + rng.below(81);
                return format!(r#"{{"cidr": "fd00:{:x}:{:x}::1/{length}"}}"#, words.0, words.1);
            }
            let inner = (length + 2).min(32);
            if number % 3 == 0 && inner > length {
                return format!(
                    r#"{{"cidr": "{address}/{length}", "except": ["{address}/{inner}"]}}"#
                );
            }
            format!(r#"{{"cidr": "{address}/{length}"}}"#)
        })
        .collect()
}

#[test]
fn very_many_blocks_in_one_policy() {
    in_node(|| {
        let mut subject = subject();
        let from =
            joined(blocks(10_000).into_iter().map(|block| format!(r#"{{"ipBlock": {block}}}"#)));
        set(&mut subject, &format!(r#"{{"ingress": [{{"from": [{from}]}}]}}"#));
        let remotes = subject.world.remotes(&mut Rng::new(3));
        let asked: Vec<Probe> = some(&remotes, 400)
            .into_iter()
            .map(|remote| Probe { remote, protocol: 6, port: 80 })
            .collect();
        let seen = subject.check(&asked, "10,000 blocks");
        was_worth_it(&subject, seen);
        set(&mut subject, "{}");
        subject.housekeeping();
        let tables = subject.rig.datapath.tables();
        for table in
            tables.iter().filter(|table| ["addresses", "blocks", "rows"].contains(&table.table))
        {
            assert_eq!(table.used, 0, "nothing is left behind: {table:?}");
        }
    });
}

#[test]
fn everything_but_very_many_addresses() {
    in_node(|| {
        let mut subject = subject();
        let v4 = joined(
            (0..3_000u32).map(|n| format!(r#""{}/32""#, Ipv4Addr::from(0x0a09_0000 + n * 5))),
        );
        let v6 = joined((0..3_000).map(|n| format!(r#""fd09::{:x}/128""#, n * 5)));
        set(
            &mut subject,
            &format!(
                r#"{{"policyTypes": ["Ingress", "Egress"],
                    "ingress": [{{"from": [{{"ipBlock": {{"cidr": "0.0.0.0/0", "except": [{v4}]}}}},
                                           {{"ipBlock": {{"cidr": "::/0", "except": [{v6}]}}}}]}}],
                    "egress": [{{"to": [{{"ipBlock": {{"cidr": "::/0", "except": [{v6}]}}}}],
                                 "ports": [{{"port": 443}}]}}]}}"#
            ),
        );
        let mut remotes: Vec<String> =
            ["0.0.0.1", "255.255.255.254", "10.8.255.255", "::2", "fd08::1", "ffff::1"]
                .map(String::from)
                .to_vec();
        for n in [0u32, 1, 4, 5, 6, 7_499, 7_500, 7_501, 14_994, 14_995, 14_996, 15_000] {
            remotes.push(Ipv4Addr::from(0x0a09_0000 + n).to_string());
            remotes.push(format!("fd09::{n:x}"));
        }
        let remotes: Vec<&str> = remotes.iter().map(String::as_str).collect();
        let seen = subject.check(&probes(&remotes, [80, 443]), "all but 3,000 addresses");
        was_worth_it(&subject, seen);
    });
}

#[test]
fn ten_thousand_policies() {
    in_node(|| {
        let mut subject = subject();
        let mut world = subject.world.clone();
        let selectors =
            [r#"{"matchLabels": {"app": "web"}}"#, r#"{"matchLabels": {"app": "db"}}"#, "{}"];
        for n in 0..10_000u32 {
            let spec = format!(
                r#"{{"podSelector": {}, "ingress": [{{"from": [{{"ipBlock": {{"cidr": "{}/32"}}}}],
                    "ports": [{{"port": {}}}]}}]}}"#,
                selectors[n as usize % 3],
                Ipv4Addr::from(0x0a09_0000 + n % 4_000),
                80 + n % 7,
            );
            // Half of them belong to other pods' namespace.
            let namespace = if n % 2 == 0 { "x" } else { "y" };
            let name = format!("q{n}");
            world.policies.insert(name.clone(), policy(&format!("{namespace}/{name}"), &spec));
        }
        let web = subject.pod.clone();
        subject.begin(Compiler::new(), world, web);
        let probe = |n: u32| Probe {
            remote: Ipv4Addr::from(0x0a09_0000 + n).into(),
            protocol: 6,
            port: 80 + (n % 7) as u16,
        };
        let asked: Vec<Probe> = (0..60).map(|n| probe(n * 41)).collect();
        let seen = subject.check(&asked, "10,000 policies");
        assert!(subject.is_exact() && seen.allowed > 10 && seen.denied > 10, "{seen:?}");
        // One more, and one fewer, take their course.
        let all = r#"{"podSelector": {}, "ingress": [{"ports": [{"port": 82}]}]}"#;
        subject.happen(&Event::Policy(policy("x/one-more", all)));
        subject.check(&asked[..20], "one more");
        let gone = subject.world.policies["q0"].clone();
        subject.happen(&Event::PolicyGone(gone));
        subject.check(&asked[..20], "one fewer");
    });
}

/// Every order of these is possible when several watches race, or objects are made by hand.
#[test]
fn objects_in_impossible_orders() {
    in_node(|| {
        let mut subject = subject();
        let spec = r#"{"ingress": [{"from": [{"podSelector": {"matchLabels": {"role": "friend"}},
            "namespaceSelector": {"matchLabels": {"team": "a"}}}], "ports": [{"port": 80}]}],
            "egress": [{"to": [{"podSelector": {"matchLabels": {"role": "friend"}}}]}]}"#;
        let uid = |object: &k8s_openapi::api::core::v1::Pod, uid: &str| {
            let mut object = object.clone();
            object.metadata.uid = Some(uid.into());
            object
        };
        let friend = pod("y/friend", "role=friend", "10.9.0.1", "");
        let gone_late = pod("x/late", "role=friend", "10.9.0.2", "");
        let sooner = uid(&pod("x/twice", "role=friend", "10.9.0.3", ""), "first");
        let later = uid(&pod("x/twice", "role=foe", "10.9.0.4", ""), "second");
        let web = subject.pod.clone();
        let events = [
            // A policy about namespaces and pods that nobody has heard of.
            Event::Policy(policy("x/p", spec)),
            // Gone before they were there.
            Event::PodGone(friend.clone()),
            Event::NamespaceGone(namespace("y", "")),
            Event::PolicyGone(policy("x/never", "{}")),
            Event::PodGone(gone_late.clone()),
            // The pod before its namespace, the labels last; a namespace that comes twice.
            Event::Pod(friend.clone()),
            Event::Namespace(namespace("y", "team=b")),
            Event::Namespace(namespace("y", "team=a")),
            Event::Namespace(namespace("y", "team=a")),
            Event::Pod(gone_late.clone()),
            // The same name with another uid, without an end of the first; then the first again.
            Event::Pod(sooner.clone()),
            Event::Pod(later.clone()),
            Event::Pod(sooner),
            Event::Pod(later),
            // A namespace ends before what is in it.
            Event::NamespaceGone(namespace("y", "")),
            Event::Pod(friend.clone()),
            Event::PodGone(friend),
            Event::Namespace(namespace("y", "team=a")),
            // The pod under test itself, again and again the same.
            Event::Pod(web.clone()),
            Event::Pod(web),
            Event::PodGone(gone_late.clone()),
            Event::PodGone(gone_late),
            Event::Policy(policy("x/p", "{}")),
        ];
        let remotes = ["10.9.0.1", "10.9.0.2", "10.9.0.3", "10.9.0.4", "10.9.0.5", POD];
        let mut seen = Seen::default();
        for (number, event) in events.iter().enumerate() {
            slices_without_services(&mut subject, number);
            subject.happen(event);
            let now = subject.check(&probes(&remotes, [80, 81]), &format!("event {number}"));
            seen.allowed += now.allowed;
            seen.denied += now.denied;
        }
        was_worth_it(&subject, seen);
    });
}

/// EndpointSlices of a Service that does not exist come, change and go: nothing depends on them.
fn slices_without_services(subject: &mut Subject, number: usize) {
    let id = ObjectName::new("x", "web-1");
    let change = match number % 4 {
        0 => Change::EndpointSliceGone(id),
        _ => Change::EndpointSlice(EndpointSlice {
            id,
            service: "web".into(),
            family: AddressFamily::V4,
            ports: Vec::new(),
            endpoints: Vec::new(),
            proxy: Proxy::default(),
        }),
    };
    let plan = subject.compiler.apply(change);
    subject.rig.apply(&plan);
}

/// A pod that is deleted by name only if it still is the one that was meant.
#[test]
fn the_end_of_an_earlier_pod_of_that_name_is_not_the_end_of_this_one() {
    in_node(|| {
        let mut subject = subject();
        set(
            &mut subject,
            r#"{"ingress": [{"from": [{"podSelector": {"matchLabels": {"role": "friend"}}}]}]}"#,
        );
        let friend = pod("x/friend", "role=friend", "10.9.0.1", "");
        subject.happen(&Event::Pod(friend.clone()));
        let name = convert::object_name(&friend.metadata);
        let plan = subject.compiler.apply(Change::PodGone(name, Some("another".into())));
        subject.rig.apply(&plan);
        let seen = subject.check(&probes(&["10.9.0.1", "10.9.0.2"], [80]), "another's end");
        assert!(seen.allowed >= 3 && seen.denied >= 3, "{seen:?}");
    });
}
