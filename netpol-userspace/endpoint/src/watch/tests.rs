//! Each source of events alone, and what happens when events are lost: needs root.

#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "../../tests/lab/mod.rs"]
mod lab;

use lab::{Lab, Process, connect, ip, ip_in, is_complete, named, wait_for};

use super::*;
use crate::Interface;
use crate::events::Directory;
use crate::netlink::{Link, Rtnl};
use netpol_isolation::netns::Netns;

const NEVER: Duration = Duration::from_secs(3600);

/// Which sources of events a test leaves on.
#[derive(Clone, Copy, PartialEq)]
enum Only {
    Nothing,
    Links,
    Directory,
    Addresses,
}

fn spawn(lab: &Lab, node: &Netns, only: Only, period: Duration) -> Watcher {
    let options = Options { netns_dir: lab.pods_dir(), period };
    let spawn = || {
        let (mut events, problems) = Events::subscribe(&options.netns_dir).unwrap();
        assert_eq!(problems, Vec::<String>::new());
        events.links = events.links.filter(|_| only == Only::Links);
        events.addresses = events.addresses.filter(|_| only == Only::Addresses);
        events.directory = events.directory.filter(|_: &Directory| only == Only::Directory);
        Watcher::spawn_with(options, events, problems).unwrap()
    };
    node.run(spawn).unwrap()
}

#[test]
fn link_events_alone_suffice() {
    let lab = Lab::new();
    let node = lab.node("node");
    let watcher = spawn(&lab, &node, Only::Links, NEVER);
    // The address comes by retries.
    connect(&node, "v1", &lab.pod("pod"), &["10.1.0.5/32"]);
    wait_for(&watcher, "v1", |s| is_complete(s, "v1", &["10.1.0.5"]));
    ip(&node, "link del v1\n");
    wait_for(&watcher, "no interface", |s| s.interfaces.is_empty());
}

#[test]
fn the_netns_directory_alone_suffices() {
    let lab = Lab::new();
    let node = lab.node("node");
    let one = lab.pod("one");
    let watcher = spawn(&lab, &node, Only::Directory, NEVER);
    connect(&node, "v1", &one, &["10.1.0.5/32"]);
    lab.pod("two");
    wait_for(&watcher, "v1", |s| is_complete(s, "v1", &["10.1.0.5"]));
}

#[test]
fn a_request_alone_suffices() {
    let lab = Lab::new();
    let node = lab.node("node");
    let watcher = spawn(&lab, &node, Only::Nothing, NEVER);
    connect(&node, "v1", &lab.pod("pod"), &["10.1.0.5/32"]);
    watcher.rescan();
    wait_for(&watcher, "v1", |s| is_complete(s, "v1", &["10.1.0.5"]));
}

#[test]
fn a_pod_without_an_interface_alone_suffices() {
    let lab = Lab::new();
    let node = lab.node("node");
    let watcher = spawn(&lab, &node, Only::Nothing, NEVER);
    let finding = Finding::PodWithoutInterface {
        pod: netpol_model::ObjectName::new("default", "pod"),
        addresses: vec!["10.1.0.5".parse().unwrap()],
    };
    watcher.report(&Matching { endpoints: vec![], findings: vec![finding] });
    connect(&node, "v1", &lab.pod("pod"), &["10.1.0.5/32"]);
    wait_for(&watcher, "v1", |s| is_complete(s, "v1", &["10.1.0.5"]));
}

#[test]
fn an_interface_without_a_pod_is_read_again() {
    let lab = Lab::new();
    let (node, pod) = (lab.node("node"), lab.pod("pod"));
    connect(&node, "v1", &pod, &["10.1.0.5/32"]);
    let watcher = spawn(&lab, &node, Only::Nothing, NEVER);
    let snapshot = wait_for(&watcher, "v1", |s| is_complete(s, "v1", &["10.1.0.5"]));
    let evidence = crate::Evidence {
        interfaces: &snapshot.interfaces,
        node_name: "node",
        previous: &[],
        claims: &[],
        pinned: &[],
        routes: &std::collections::BTreeMap::new(),
        awaited: &std::collections::BTreeMap::new(),
    };
    let matching = crate::match_pods([], &evidence);
    watcher.report(&matching);
    ip_in(&pod, "address add 10.1.0.6/32 dev eth0\n");
    wait_for(&watcher, "its second address", |s| is_complete(s, "v1", &["10.1.0.5", "10.1.0.6"]));
}

#[test]
fn the_periodic_look_alone_suffices() {
    let lab = Lab::new();
    let (node, pod) = (lab.node("node"), lab.pod("pod"));
    let watcher = spawn(&lab, &node, Only::Nothing, Duration::from_millis(50));
    connect(&node, "v1", &pod, &["10.1.0.5/32"]);
    wait_for(&watcher, "v1", |s| is_complete(s, "v1", &["10.1.0.5"]));
    ip_in(&pod, "address add 10.1.0.6/32 dev eth0\n");
    wait_for(&watcher, "its second address", |s| is_complete(s, "v1", &["10.1.0.5", "10.1.0.6"]));
    lab.delete_pod("pod");
    wait_for(&watcher, "no interface", |s| s.interfaces.is_empty());
}

#[test]
fn an_address_event_updates_an_interface_that_is_finished() {
    let lab = Lab::new();
    let (node, pod) = (lab.node("node"), lab.pod("pod"));
    connect(&node, "v1", &pod, &["10.1.0.5/32"]);
    let watcher = spawn(&lab, &node, Only::Addresses, NEVER);
    wait_for(&watcher, "v1", |s| is_complete(s, "v1", &["10.1.0.5"]));
    ip_in(&pod, "address add 10.1.0.6/32 dev eth0\n");
    wait_for(&watcher, "its second address", |s| is_complete(s, "v1", &["10.1.0.5", "10.1.0.6"]));
}

/// Events and a scanner in `node`, driven by hand: no look falls between what a test does.
fn by_hand(lab: &Lab, node: &Netns) -> (Events, Scanner) {
    let dir = lab.pods_dir();
    let subscribe = move || (Events::subscribe(&dir).unwrap().0, Scanner::new(dir).unwrap());
    let (events, mut scanner) = node.run(subscribe).unwrap();
    scanner.scan(&Changes::default(), &everything());
    (events, scanner)
}

fn everything() -> Scope {
    Scope { everything: true, ..Scope::default() }
}

fn drain(events: &mut Events) -> Changes {
    let mut changes = Changes::default();
    events.drain(&mut changes);
    changes
}

/// Waits for the end of the namespace with the id 0, which the kernel takes its time for.
fn drain_until_namespace_ends(events: &mut Events) -> Changes {
    let mut changes = Changes::default();
    let waker = Waker::new().unwrap();
    let begin = Instant::now();
    while !changes.deleted_nsids.contains(&0) {
        assert!(begin.elapsed() < Duration::from_secs(30), "it never ended: {changes:?}");
        events.wait(&waker, Duration::from_secs(1)).unwrap();
        events.drain(&mut changes);
    }
    changes
}

#[test]
fn a_link_that_replaced_another_unseen_is_another() {
    let lab = Lab::new();
    let (node, pod) = (lab.node("node"), lab.pod("pod"));
    let add = format!("link add index 77 name v1 type veth peer index 88 name eth0 netns {pod}\n");
    ip(&node, &add);
    let (mut events, mut scanner) = by_hand(&lab, &node);
    let before = scanner.interfaces();
    ip(&node, &format!("link del v1\n{add}"));
    scanner.scan(&drain(&mut events), &Scope::default());
    let after = scanner.interfaces();
    assert_eq!((before[0].ifindex, after[0].ifindex), (77, 77));
    assert_ne!(before[0].incarnation, after[0].incarnation);
}

#[test]
fn a_link_whose_other_end_was_moved_unseen_is_the_same() {
    let lab = Lab::new();
    let (node, one, two) = (lab.node("node"), lab.pod("one"), lab.pod("two"));
    // All links stay down, so that the host side hears nothing of the move.
    ip(&node, &format!("link add v1 type veth peer name eth0 netns {one}\n"));
    let (mut events, mut scanner) = by_hand(&lab, &node);
    let before = scanner.interfaces();
    ip_in(&one, &format!("link set eth0 netns {two}\n"));
    lab.delete_pod("one");
    let changes = drain_until_namespace_ends(&mut events);
    scanner.scan(&changes, &Scope::default());
    let after = scanner.interfaces();
    assert_eq!((before[0].nsid, after[0].nsid), (0, 0), "the test is about a reused id");
    assert_eq!(&*before[0].netns.as_ref().unwrap().path, std::path::Path::new(&one));
    assert_eq!(&*after[0].netns.as_ref().unwrap().path, std::path::Path::new(&two));
    assert_eq!(before[0].incarnation, after[0].incarnation, "what is enforced on it stays");
}

#[test]
fn an_interface_of_an_ending_namespace_stays_until_it_is_deleted() {
    let lab = Lab::new();
    let (node, pod, other) = (lab.node("node"), lab.pod("pod"), lab.pod("other"));
    connect(&node, "v1", &pod, &["10.1.0.5/32"]);
    let (_, mut scanner) = by_hand(&lab, &node);
    let before = scanner.interfaces().remove(0);
    // What the kernel says of an ending namespace, before it deletes the links in it.
    let changes = Changes { deleted_nsids: BTreeSet::from([before.nsid]), ..Changes::default() };
    let peers = BTreeSet::from([before.ifindex]);
    scanner.scan(&changes, &Scope { peers, ..Scope::default() });
    let ending = scanner.interfaces().remove(0);
    assert!(ending.nsid < 0);
    let expected = Interface { nsid: ending.nsid, netns: None, ..before };
    assert_eq!(ending, expected, "what is known of it stays");
    assert!(scanner.unfinished().is_empty());
    // Looking at the links finds that this namespace has not ended at all, in truth.
    ip(&node, &format!("link add v2 type veth peer name eth1 netns {other}\n"));
    scanner.scan(&Changes::default(), &everything());
    let after = scanner.interfaces();
    assert_eq!(after.len(), 2);
    assert!(after.iter().all(|interface| interface.nsid >= 0 && interface.netns.is_some()));
}

#[test]
fn a_peer_refers_back_to_its_link() {
    let lab = Lab::new();
    let node = lab.node("node");
    for name in ["v1", "v2"] {
        connect(&node, name, &lab.pod(name), &["10.1.0.5/32"]);
    }
    let mut rtnl = node.run(Rtnl::open).unwrap().unwrap();
    let links = rtnl.links().unwrap();
    let [one, two] = links.pods.as_slice() else { panic!("{links:?}") };
    assert_eq!(one.peer_ifindex, two.peer_ifindex, "the test is about pods that look the same");
    assert!(rtnl.peer(one).unwrap().is_some());
    assert!(rtnl.peer(two).unwrap().is_some());
    // As if the id of the one had come to mean the other's namespace.
    let mixed_up = Link { nsid: two.nsid, ..one.clone() };
    assert_eq!(rtnl.peer(&mixed_up).unwrap(), None);
}

#[test]
fn another_hardware_address_is_no_other_link() {
    let lab = Lab::new();
    let (node, pod) = (lab.node("node"), lab.pod("pod"));
    ip(&node, &format!("link add v1 type veth peer name eth0 netns {pod}\n"));
    let (_, mut scanner) = by_hand(&lab, &node);
    let before = scanner.interfaces().remove(0);
    ip(&node, "link set v1 address 02:00:00:00:00:01\n");
    ip_in(&pod, "link set eth0 address 02:00:00:00:00:02\n");
    scanner.scan(&Changes::default(), &everything());
    let expected = Interface { link_address: Some([2, 0, 0, 0, 0, 2]), ..before };
    assert_eq!(scanner.interfaces(), [expected]);
}

#[test]
fn a_better_file_replaces_a_process_and_another_process_one_that_ended() {
    let lab = Lab::new();
    let (node, netns) = (lab.node("node"), Netns::create_anonymous().unwrap());
    let sleep = || {
        let mut sleep = std::process::Command::new("sleep");
        Process(netns.run(|| sleep.arg("600").spawn().unwrap()).unwrap())
    };
    let processes = [sleep(), sleep()];
    let path = |process: &Process| PathBuf::from(format!("/proc/{}/ns/net", process.0.id()));
    let paths = processes.each_ref().map(path);
    connect(&node, "v1", paths[0].to_str().unwrap(), &["10.1.0.5/32"]);
    let (_, mut scanner) = by_hand(&lab, &node);
    let found =
        |scanner: &Scanner| scanner.interfaces().remove(0).netns.unwrap().path.to_path_buf();
    let first = found(&scanner);
    assert!(paths.contains(&first));
    let [one, two] = processes;
    let (ended, left) = if path(&one) == first { (one, two) } else { (two, one) };
    drop(ended);
    let look = || Scope { links: true, ..Scope::default() };
    scanner.scan(&Changes::default(), &look());
    assert_eq!(found(&scanner), path(&left));
    let file = lab.pod_file(&netns, "pod");
    scanner.scan(&Changes::default(), &look());
    assert_eq!(found(&scanner), path(&left), "nothing said that there is something better");
    scanner.scan(&Changes { directory: true, ..Changes::default() }, &Scope::default());
    assert_eq!(found(&scanner), file);
}

#[test]
fn lost_events_are_made_up_for() {
    let lab = Lab::new();
    let (node, pod) = (lab.node("node"), lab.pod("pod"));
    let add = format!("link add index 77 name v1 type veth peer index 88 name eth0 netns {pod}\n");
    let address = "address add 10.1.0.5/32 dev eth0\n";
    ip(&node, &add);
    ip_in(&pod, address);
    let (mut events, mut scanner) = by_hand(&lab, &node);
    // The kernel's least: room for about one event.
    events.links.as_ref().unwrap().set_rx_buf_sz(1_i32).unwrap();
    let before = scanner.interfaces();
    // That deletion is lost among the changes of another link.
    ip(&node, "link add a0 type veth peer name a1\n");
    ip(&node, &"link set a0 up\nlink set a0 down\n".repeat(50));
    ip(&node, &format!("link del v1\n{add}link add v2 type veth peer name eth1 netns {pod}\n"));
    ip_in(&pod, address);
    let changes = drain(&mut events);
    assert!(changes.lost && !changes.deleted_links.contains(&77), "{changes:?}");
    scanner.scan(&changes, &Scope::default());
    let after = scanner.interfaces();
    assert_eq!(after.len(), 2);
    assert_eq!((before[0].ifindex, after[1].ifindex), (77, 77));
    assert_eq!(before[0].addresses, after[1].addresses);
    assert_ne!(before[0].incarnation, after[1].incarnation, "it is another veth");
    // Believing nothing finds the same again.
    scanner.scan(&Changes::default(), &everything());
    assert_eq!(scanner.interfaces(), after);
    assert_eq!(scanner.problem(), None);
}

#[test]
fn an_unchanged_node_publishes_nothing() {
    let lab = Lab::new();
    let (node, pod) = (lab.node("node"), lab.pod("pod"));
    connect(&node, "v1", &pod, &["10.1.0.5/32"]);
    let watcher = spawn(&lab, &node, Only::Links, Duration::from_millis(1));
    // IPv6 gives itself an address some time after the link is up.
    wait_for(&watcher, "all addresses", |s| named(s, "v1").unwrap().addresses.len() == 2);
    let mut snapshots = watcher.snapshots();
    snapshots.mark_unchanged();
    for _ in 0..20 {
        watcher.rescan();
        thread::sleep(Duration::from_millis(5));
    }
    assert!(!snapshots.has_changed().unwrap());
}

#[test]
fn retries_slow_down_and_speed_up() {
    let mut retry = Retry::default();
    let nothing = Attention::default();
    let one = BTreeSet::from([(1, 1)]);
    let due = |retry: &mut Retry| retry.at = Some(Instant::now());
    retry.plan(BTreeSet::new(), &nothing, false);
    assert!(retry.at.is_none());
    retry.plan(one.clone(), &nothing, false);
    assert_eq!(retry.pause, RETRY_FIRST);
    retry.plan(one.clone(), &nothing, false);
    assert_eq!(retry.pause, RETRY_FIRST, "an event is not a retry");
    for _ in 0..10 {
        due(&mut retry);
        retry.plan(one.clone(), &nothing, false);
    }
    assert_eq!(retry.pause, RETRY_LAST);
    assert!(!retry.is_young());
    retry.plan(BTreeSet::from([(1, 1), (2, 2)]), &nothing, false);
    assert_eq!(retry.pause, RETRY_FIRST, "something new");
    due(&mut retry);
    retry.plan(one, &nothing, false);
    assert_eq!(retry.pause, 2 * RETRY_FIRST, "less is nothing new");
    let attention = Attention { pods: true, ..Attention::default() };
    retry.plan(BTreeSet::new(), &attention, false);
    assert!(retry.at.is_some());
    retry.plan(BTreeSet::new(), &nothing, false);
    assert!(retry.at.is_none());
}
