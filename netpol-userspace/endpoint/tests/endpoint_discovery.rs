//! Endpoint discovery against the real kernel: every test has its own nodes and pods in network
//! namespaces of their own. Needs root. The periodic look is off in all of them.

#![expect(clippy::unwrap_used, reason = "tests")]

mod lab;

use std::net::IpAddr;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::process::Command;

use lab::{
    Lab, Process, connect, global_addresses, ip, ip_in, is_complete, named, parse, wait_for, watch,
};
use netpol_endpoint::{Interface, Options, PodNetns, Snapshot, Watcher};
use netpol_isolation::netns::{Netns, NetnsId};
// The lab takes them from here.

fn ns_id(path: &str) -> NetnsId {
    NetnsId::of_path(path).unwrap()
}

fn id_of(snapshot: &Snapshot, name: &str) -> NetnsId {
    named(snapshot, name).unwrap().netns.as_ref().unwrap().id
}

#[test]
fn what_exists_at_the_start_is_in_the_first_snapshot() {
    let lab = Lab::new();
    let (node, pod) = (lab.node("node"), lab.pod("pod"));
    // On a point-to-point interface the pod's address is the local one.
    connect(&node, "v1", &pod, &["10.1.0.5 peer 10.1.0.1", "10.1.0.6/24", "fd00:1::5/128"]);
    // Neither is a way into a pod: a bridge, and a pair that stays on the node.
    ip(&node, "link add br0 type bridge\nlink add a0 type veth peer name a1\n");
    let watcher = lab.watch(&node);
    let snapshot = watcher.snapshots().borrow().clone();
    assert_eq!(snapshot.problems, Vec::<String>::new());
    assert_eq!(snapshot.interfaces.len(), 1, "{snapshot:#?}");
    let interface = &snapshot.interfaces[0];
    assert_eq!((interface.name.as_str(), interface.peer_name.as_str()), ("v1", "eth0"));
    assert_eq!(global_addresses(interface), parse(&["10.1.0.5", "10.1.0.6", "fd00:1::5"]));
    let is_link_local = |a: &IpAddr| matches!(a, IpAddr::V6(a) if a.is_unicast_link_local());
    let complete = wait_for(&watcher, "the link-local address", |snapshot| {
        snapshot.interfaces[0].addresses.iter().any(is_link_local)
    });
    assert_eq!(complete.interfaces[0].incarnation, interface.incarnation);
    let found = interface.netns.as_ref().unwrap();
    assert_eq!((found.id, found.path.to_str().unwrap()), (ns_id(&pod), pod.as_str()));
    assert_eq!(found.open().unwrap().id(), ns_id(&pod));
}

#[test]
fn pods_come_and_go_live() {
    let lab = Lab::new();
    let node = lab.node("node");
    let watcher = lab.watch(&node);
    assert!(watcher.snapshots().borrow().interfaces.is_empty());
    for round in 0..3 {
        let pods: Vec<(String, String)> =
            (0..5).map(|i| (format!("pod{round}-{i}"), format!("10.1.{round}.{i}"))).collect();
        for (name, address) in &pods {
            connect(&node, name, &lab.pod(name), &[address]);
        }
        for (name, address) in &pods {
            let snapshot = wait_for(&watcher, name, |s| is_complete(s, name, &[address]));
            assert_eq!(id_of(&snapshot, name), ns_id(lab.pods_dir().join(name).to_str().unwrap()));
        }
        for (name, _) in &pods {
            lab.delete_pod(name);
        }
        wait_for(&watcher, "no interface", |snapshot| snapshot.interfaces.is_empty());
    }
}

/// Of a filter, and of what filters hang on, the kernel tells.
#[test]
fn filters_that_somebody_takes_off_are_told_of() {
    let lab = Lab::new();
    let (node, pod) = (lab.node("node"), lab.pod("pod"));
    connect(&node, "v1", &pod, &["10.1.0.5"]);
    let watcher = lab.watch(&node);
    let tc = |arguments: &str| {
        let run = || Command::new("tc").args(arguments.split(' ')).status().unwrap();
        assert!(node.run(run).unwrap().success(), "{arguments}");
    };
    tc("qdisc add dev v1 clsact");
    tc("filter add dev v1 egress pref 10 protocol all u32 match u32 0 0 flowid 1:1");
    let before = watcher.snapshots().borrow().n_filter_losses;
    tc("filter del dev v1 egress");
    let filter = wait_for(&watcher, "the filter", |s| s.n_filter_losses > before);
    tc("qdisc del dev v1 clsact");
    wait_for(&watcher, "the qdisc", |s| s.n_filter_losses > filter.n_filter_losses);
}

#[test]
fn addresses_added_later_are_seen() {
    let lab = Lab::new();
    let (node, pod) = (lab.node("node"), lab.pod("pod"));
    let watcher = lab.watch(&node);
    ip(&node, &format!("link add v1 type veth peer name eth0 netns {pod}\n"));
    wait_for(&watcher, "the bare interface", |s| is_complete(s, "v1", &[]));
    ip_in(&pod, "address add fd00:1::5/64 dev eth0 nodad\nlink set eth0 up\n");
    wait_for(&watcher, "the first address", |s| is_complete(s, "v1", &["fd00:1::5"]));
    // The interface is finished now, and what follows comes by address events.
    ip_in(&pod, "address add 10.1.0.5/24 dev eth0\n");
    wait_for(&watcher, "the second", |s| is_complete(s, "v1", &["10.1.0.5", "fd00:1::5"]));
    ip_in(&pod, "address del fd00:1::5/64 dev eth0\n");
    wait_for(&watcher, "one less", |s| is_complete(s, "v1", &["10.1.0.5"]));
}

#[test]
fn a_deleted_veth_is_gone_while_its_pod_stays() {
    let lab = Lab::new();
    let (node, pod) = (lab.node("node"), lab.pod("pod"));
    let watcher = lab.watch(&node);
    connect(&node, "v1", &pod, &["10.1.0.5/32"]);
    wait_for(&watcher, "v1", |s| is_complete(s, "v1", &["10.1.0.5"]));
    ip(&node, "link del v1\n");
    wait_for(&watcher, "no interface", |snapshot| snapshot.interfaces.is_empty());
    // From the pod's side, in a hurry.
    for _ in 0..20 {
        connect(&node, "v2", &pod, &["10.1.0.6/32"]);
        ip_in(&pod, "link del eth0\n");
    }
    connect(&node, "v3", &pod, &["10.1.0.7/32"]);
    let snapshot = wait_for(&watcher, "v3 alone", |s| {
        is_complete(s, "v3", &["10.1.0.7"]) && s.interfaces.len() == 1
    });
    assert_eq!(snapshot.problems, Vec::<String>::new());
}

#[test]
fn nodes_with_equal_indexes_and_names_are_not_mixed_up() {
    let lab = Lab::new();
    let nodes = [lab.node("n0"), lab.node("n1")];
    let watchers = nodes.each_ref().map(|node| lab.watch(node));
    for (n, node) in nodes.iter().enumerate() {
        for p in 0..3 {
            let pod = lab.pod(&format!("n{n}p{p}"));
            connect(node, &format!("v{p}"), &pod, &[&format!("10.{n}.0.{p}/32")]);
        }
    }
    let mut seen = Vec::new();
    for (n, watcher) in watchers.iter().enumerate() {
        for p in 0..3 {
            let (name, address) = (format!("v{p}"), format!("10.{n}.0.{p}"));
            let snapshot = wait_for(watcher, &name, |s| is_complete(s, &name, &[&address]));
            let pod = lab.pods_dir().join(format!("n{n}p{p}"));
            assert_eq!(id_of(&snapshot, &name), NetnsId::of_path(pod).unwrap());
            let interface = named(&snapshot, &name).unwrap();
            seen.push((interface.ifindex, interface.peer_ifindex, interface.nsid));
        }
    }
    assert_eq!(seen[..3], seen[3..], "the test is about pods that look the same");
}

/// A path to a namespace that is held by nothing but `netns`.
fn descriptor_path(netns: &Netns) -> String {
    format!("/proc/{}/fd/{}", std::process::id(), netns.as_fd().as_raw_fd())
}

#[test]
fn a_namespace_that_only_a_process_holds_is_found() {
    let lab = Lab::new();
    let node = lab.node("node");
    let watcher = watch(&node, &lab.path("nothing-here"));
    let netns = Netns::create_anonymous().unwrap();
    let process = Process(netns.run(|| Command::new("sleep").arg("600").spawn()).unwrap().unwrap());
    let (id, pid) = (netns.id(), process.0.id());
    let path = format!("/proc/{pid}/ns/net");
    drop(netns);
    connect(&node, "v1", &path, &["10.1.0.5/32"]);
    let snapshot = wait_for(&watcher, "v1", |s| is_complete(s, "v1", &["10.1.0.5"]));
    let found = named(&snapshot, "v1").unwrap().netns.clone().unwrap();
    assert_eq!((found.id, found.path.to_str().unwrap()), (id, path.as_str()));
    // Nothing of ours holds the namespace, so it and its interface end with the process.
    drop(process);
    wait_for(&watcher, "no interface", |snapshot| snapshot.interfaces.is_empty());
    found.open().unwrap_err();
}

#[test]
fn an_interface_is_found_even_if_no_file_leads_to_its_namespace() {
    let lab = Lab::new();
    let node = lab.node("node");
    let watcher = watch(&node, &lab.path("nothing-here"));
    // Held by this descriptor alone, which discovery does not look at.
    let netns = Netns::create_anonymous().unwrap();
    connect(&node, "v1", &descriptor_path(&netns), &["10.1.0.5/32"]);
    // The `ip` that configured it may have been found inside.
    watcher.rescan();
    wait_for(&watcher, "v1 without a file", |snapshot| {
        named(snapshot, "v1")
            .is_some_and(|v1| global_addresses(v1) == parse(&["10.1.0.5"]) && v1.netns.is_none())
    });
}

#[test]
fn a_directory_that_appears_later_is_watched() {
    let lab = Lab::new();
    let node = lab.node("node");
    let watcher = lab.watch(&node);
    assert!(!lab.pods_dir().parent().unwrap().exists(), "the test is about a directory to come");
    let netns = Netns::create_anonymous().unwrap();
    connect(&node, "v1", &descriptor_path(&netns), &["10.1.0.5/32"]);
    wait_for(&watcher, "v1", |snapshot| named(snapshot, "v1").is_some());
    let file = lab.pod_file(&netns, "pod");
    let expected = PodNetns { id: netns.id(), path: file.as_path().into() };
    let is_found = |s: &Snapshot| named(s, "v1").unwrap().netns.as_ref() == Some(&expected);
    // It is preferred to any process that may have been found first.
    wait_for(&watcher, "its file", is_found);
}

#[test]
fn what_does_not_end_a_link_does_not_end_its_incarnation() {
    let lab = Lab::new();
    let (node, pod) = (lab.node("node"), lab.pod("pod"));
    let watcher = lab.watch(&node);
    connect(&node, "v1", &pod, &["10.1.0.5/32"]);
    let before = wait_for(&watcher, "v1", |s| is_complete(s, "v1", &["10.1.0.5"]));
    ip(
        &node,
        "link set v1 down\nlink set v1 name renamed\nlink set renamed address 02:00:00:00:00:01\n",
    );
    // A bridge says "deleted" of a port that leaves it.
    ip(&node, "link add br0 type bridge\nlink set renamed master br0\nlink set renamed nomaster\n");
    ip_in(&pod, "link set eth0 down\nlink set eth0 name net1\nlink set net1 up\n");
    watcher.rescan();
    ip(&node, "link set renamed up\n");
    // A second pod comes after all of that.
    connect(&node, "v2", &lab.pod("pod2"), &["10.1.0.6/32"]);
    let after = wait_for(&watcher, "the new names", |s| {
        named(s, "renamed").is_some() && is_complete(s, "v2", &["10.1.0.6"])
    });
    let (before, after) = (named(&before, "v1").unwrap(), named(&after, "renamed").unwrap());
    assert_eq!((before.ifindex, before.incarnation), (after.ifindex, after.incarnation));
    assert_eq!(before.netns, after.netns);
}

#[test]
fn a_reused_namespace_id_is_the_new_namespace() {
    let lab = Lab::new();
    let node = lab.node("node");
    let watcher = lab.watch(&node);
    connect(&node, "v1", &lab.pod("one"), &["10.1.0.5/32"]);
    let first = wait_for(&watcher, "v1", |s| is_complete(s, "v1", &["10.1.0.5"]));
    lab.delete_pod("one");
    wait_for(&watcher, "no interface", |snapshot| snapshot.interfaces.is_empty());
    let two = lab.pod("two");
    connect(&node, "v1", &two, &["10.1.0.6/32"]);
    let second = wait_for(&watcher, "v1 again", |s| is_complete(s, "v1", &["10.1.0.6"]));
    assert_eq!(id_of(&second, "v1"), ns_id(&two));
    let (first, second) = (named(&first, "v1").unwrap(), named(&second, "v1").unwrap());
    assert_eq!(first.nsid, second.nsid, "the test is about a reused id");
    assert_ne!(first.incarnation, second.incarnation);
}

#[test]
fn a_peer_that_moves_to_another_namespace_leaves_its_link_what_it_is() {
    let lab = Lab::new();
    let (node, one, two) = (lab.node("node"), lab.pod("one"), lab.pod("two"));
    let watcher = lab.watch(&node);
    connect(&node, "v1", &one, &["10.1.0.5/32"]);
    let first = wait_for(&watcher, "v1", |s| is_complete(s, "v1", &["10.1.0.5"]));
    ip_in(&one, &format!("link set eth0 netns {two}\n"));
    lab.delete_pod("one");
    ip_in(&two, "address add 10.1.0.6/32 dev eth0\nlink set eth0 up\n");
    let second = wait_for(&watcher, "the move", |s| is_complete(s, "v1", &["10.1.0.6"]));
    assert_eq!(id_of(&second, "v1"), ns_id(&two));
    let (first, second) = (named(&first, "v1").unwrap(), named(&second, "v1").unwrap());
    assert_eq!((first.ifindex, first.incarnation), (second.ifindex, second.incarnation));
}

#[test]
fn a_reused_interface_index_is_another_incarnation() {
    let lab = Lab::new();
    let (node, pod) = (lab.node("node"), lab.pod("pod"));
    let watcher = lab.watch(&node);
    let add = format!("link add index 77 name v1 type veth peer index 88 name eth0 netns {pod}\n");
    ip(&node, &add);
    ip_in(&pod, "address add 10.1.0.5/32 dev eth0\n");
    let first = wait_for(&watcher, "v1", |s| is_complete(s, "v1", &["10.1.0.5"]));
    // In one go, so that most often no look falls between.
    ip(&node, &format!("link del v1\n{add}"));
    ip_in(&pod, "address add 10.1.0.5/32 dev eth0\n");
    let before = named(&first, "v1").unwrap();
    let second = wait_for(&watcher, "the successor", |s| {
        is_complete(s, "v1", &["10.1.0.5"])
            && named(s, "v1").unwrap().incarnation != before.incarnation
    });
    let after = named(&second, "v1").unwrap();
    assert_eq!((before.ifindex, before.peer_ifindex), (77, 88));
    assert_eq!((after.ifindex, after.peer_ifindex), (77, 88));
}

#[test]
fn two_hundred_pods_at_once() {
    let lab = Lab::new();
    let node = lab.node("node");
    let watcher = lab.watch(&node);
    let mut script = String::new();
    let pods: Vec<(String, String)> =
        (0..200).map(|i| (format!("pod{i}"), format!("10.1.0.{i}"))).collect();
    for (name, _) in &pods {
        let pod = lab.pod(name);
        script.push_str(&format!("link add {name} type veth peer name eth0 netns {pod}\n"));
        script.push_str(&format!("link set {name} up\n"));
    }
    ip(&node, &script);
    for (name, address) in &pods {
        let pod = lab.pods_dir().join(name);
        ip_in(
            pod.to_str().unwrap(),
            &format!("address add {address} dev eth0\nlink set eth0 up\n"),
        );
    }
    let snapshot = wait_for(&watcher, "all pods", |snapshot| {
        pods.iter().all(|(name, address)| is_complete(snapshot, name, &[address]))
    });
    assert_eq!(snapshot.interfaces.len(), 200);
    for (name, _) in &pods {
        assert_eq!(id_of(&snapshot, name), NetnsId::of_path(lab.pods_dir().join(name)).unwrap());
    }
    let (gone, left) = pods.split_at(100);
    for (name, _) in gone {
        lab.delete_pod(name);
    }
    let snapshot = wait_for(&watcher, "half of them", |s| s.interfaces.len() == left.len());
    assert!(left.iter().all(|(name, address)| is_complete(&snapshot, name, &[address])));
}
