//! Sandboxes, pods and interfaces in tables.

#![expect(clippy::unwrap_used, reason = "tests")]

use super::*;
use netpol_api::sandbox::Pair;
use netpol_endpoint::{PodNetns, Switch};
use netpol_isolation::netns::NetnsId;
use netpol_model::{Change, Labels};

const NOTHING: [IpAddr; 0] = [];

fn addresses(list: &str) -> Vec<IpAddr> {
    list.split_whitespace().map(|address| address.parse().unwrap()).collect()
}

/// The main interface of a pod's sandbox, with the host's end `ifindex`.
fn sandbox(container: &str, pod: &str, ifindex: u32, list: &str) -> Sandbox {
    Sandbox {
        container: container.to_owned(),
        interface: "eth0".to_owned(),
        network: "lab".to_owned(),
        namespace: "default".to_owned(),
        pod: pod.to_owned(),
        uid: format!("uid-{pod}"),
        netns: (4, u64::from(ifindex)),
        pair: Some(Pair { ifindex, peer_ifindex: 2 }),
        addresses: addresses(list),
        is_unconfirmed: false,
        is_over: false,
    }
}

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

fn interface(ifindex: u32, incarnation: u64) -> Interface {
    Interface {
        ifindex,
        name: format!("v{ifindex}"),
        incarnation,
        nsid: 100 + ifindex.cast_signed(),
        netns: None,
        peer_ifindex: 2,
        peer_name: "eth0".to_owned(),
        addresses: vec![],
        link_address: None,
        switch: Switch::None,
        appeared: 100,
    }
}

/// The agent's part: a cluster of amended pods.
#[derive(Default)]
struct World {
    sandboxes: Sandboxes,
    cluster: Cluster,
}

impl World {
    /// The source says this of a pod.
    fn source(&mut self, mut pod: Pod) {
        self.sandboxes.amend(&mut pod);
        self.cluster.apply(Change::Pod(pod));
    }

    fn outdated(&mut self) -> Vec<Pod> {
        let claimants = |address: IpAddr| {
            let networked = self.cluster.all_pods().filter(|pod| pod.is_networked());
            let claiming = networked.filter(|pod| pod.addresses.contains(&address));
            claiming.map(|pod| pod.id.clone()).collect()
        };
        self.sandboxes.outdated(&self.cluster, claimants)
    }

    fn settle(&mut self) {
        for pod in self.outdated() {
            self.cluster.apply(Change::Pod(pod));
        }
        assert!(self.outdated().is_empty(), "settled at once");
    }

    fn add(&mut self, sandbox: Sandbox) {
        self.sandboxes.add(sandbox);
        self.settle();
    }

    fn end(&mut self, container: &str) {
        self.sandboxes.end(&attachment(container));
        self.settle();
    }

    fn of(&self, name: &str) -> Vec<IpAddr> {
        self.cluster.pod(&ObjectName::new("default", name)).unwrap().addresses.to_vec()
    }

    fn prune(&mut self) -> Vec<String> {
        self.sandboxes.prune(&self.cluster).into_iter().map(|a| a.container).collect()
    }
}

fn attachment(container: &str) -> Attachment {
    Attachment { container: container.to_owned(), interface: "eth0".to_owned() }
}

#[test]
fn a_pod_has_the_address_of_its_sandbox_before_its_status_says_so() {
    for sandbox_first in [true, false] {
        let mut world = World::default();
        if sandbox_first {
            world.add(sandbox("c", "p", 7, "10.0.0.1"));
            world.source(pod("p", ""));
        } else {
            world.source(pod("p", ""));
            world.add(sandbox("c", "p", 7, "10.0.0.1"));
        }
        assert_eq!(world.of("p"), addresses("10.0.0.1"));
        world.source(pod("p", "10.0.0.1"));
        assert_eq!(world.of("p"), addresses("10.0.0.1"));
    }
}

#[test]
fn a_status_with_a_part_of_the_addresses_counts_and_a_late_one_does_not() {
    let mut world = World::default();
    world.add(sandbox("c", "p", 7, "10.0.0.1 10.0.0.2 fd00::1"));
    world.source(pod("p", ""));
    assert_eq!(world.of("p"), addresses("10.0.0.1 10.0.0.2 fd00::1"));
    world.source(pod("p", "10.0.0.1 fd00::1"));
    assert_eq!(world.of("p"), addresses("10.0.0.1 fd00::1"));
    // The status of the sandbox before.
    world.source(pod("p", "10.0.0.9"));
    assert_eq!(world.of("p"), addresses("10.0.0.1 10.0.0.2 fd00::1"));
}

#[test]
fn another_uid_is_another_pod_but_for_static_pods_and_files() {
    let mut world = World::default();
    world.add(sandbox("c", "p", 7, "10.0.0.1"));
    world.source(Pod { uid: "uid-later".into(), ..pod("p", "") });
    assert_eq!(world.of("p"), NOTHING);
    // Objects from files without a uid.
    world.source(Pod { uid: "default/p".into(), ..pod("p", "") });
    assert_eq!(world.of("p"), addresses("10.0.0.1"));
    let uid = "0123456789abcdef0123456789abcdef".to_owned();
    world.add(Sandbox { uid, ..sandbox("d", "static-here", 8, "10.0.0.2") });
    world.source(Pod { uid: "mirror".into(), ..pod("static-here", "") });
    assert_eq!(world.of("static-here"), addresses("10.0.0.2"));
    world.add(Sandbox { uid: String::new(), ..sandbox("e", "any", 9, "10.0.0.3") });
    world.source(pod("any", ""));
    assert_eq!(world.of("any"), addresses("10.0.0.3"));
}

#[test]
fn further_networks_have_no_pod_addresses() {
    let mut world = World::default();
    world.add(Sandbox { interface: "net1".into(), ..sandbox("c", "p", 7, "192.168.0.1") });
    world.source(pod("p", ""));
    assert_eq!(world.of("p"), NOTHING);
}

#[test]
fn an_address_that_was_given_to_another_pod_is_nobody_elses() {
    let mut world = World::default();
    // One that no runtime has told of, and one of another node.
    world.source(pod("untold", "10.0.0.1"));
    world.source(Pod { node: Some("there".into()), ..pod("far", "10.0.0.2") });
    world.add(sandbox("a", "lost", 7, "10.0.0.3"));
    world.source(pod("lost", "10.0.0.3"));
    for (number, owner) in [(1, "untold"), (2, "far"), (3, "lost")] {
        let address = format!("10.0.0.{number}");
        assert_eq!(world.of(owner), addresses(&address));
        let new = format!("new-{number}");
        // Older than the one that has it by its status.
        world.source(Pod { created: 1, ..pod(&new, "") });
        world.add(sandbox(&new, &new, 10 + number, &address));
        assert_eq!((world.of(owner), world.of(&new)), (vec![], addresses(&address)));
    }
    // The status still says so, again and again.
    world.source(pod("untold", "10.0.0.1"));
    assert_eq!(world.of("untold"), NOTHING);
    world.end("new-1");
    assert_eq!((world.of("untold"), world.of("new-1")), (addresses("10.0.0.1"), vec![]));
}

#[test]
fn what_ended_has_no_address_and_a_new_sandbox_its_own() {
    let mut world = World::default();
    world.source(pod("p", "10.0.0.1"));
    world.add(sandbox("a", "p", 7, "10.0.0.1"));
    world.end("a");
    assert_eq!(world.of("p"), NOTHING, "although the status has not changed");
    assert_eq!(world.prune(), [""; 0], "or the address would come back");
    world.add(sandbox("b", "p", 8, "10.0.0.2"));
    assert_eq!(world.of("p"), addresses("10.0.0.2"));
    assert_eq!(world.prune(), ["a"]);
    world.source(pod("p", "10.0.0.2"));
    assert_eq!(world.of("p"), addresses("10.0.0.2"));
    world.end("b");
    world.source(pod("p", ""));
    assert_eq!(world.prune(), ["b"]);
}

#[test]
fn an_interface_is_found_by_both_its_ends_and_its_namespace() {
    let mut sandboxes = Sandboxes::new([sandbox("c", "p", 7, "10.0.0.1")]);
    let standing = |sandboxes: &Sandboxes| sandboxes.standing(&attachment("c"));
    let netns = |ino| {
        let id = NetnsId { dev: 4, ino };
        Some(PodNetns { id, path: std::path::Path::new("/x").into() })
    };
    for other in [
        interface(8, 1),
        Interface { peer_ifindex: 3, ..interface(7, 1) },
        Interface { netns: netns(9), ..interface(7, 1) },
    ] {
        assert!(!sandboxes.find_interfaces(&[other]));
        assert_eq!(standing(&sandboxes), Standing::NoInterface);
    }
    assert!(!sandboxes.find_interfaces(&[Interface { netns: netns(7), ..interface(7, 5) }]));
    assert_eq!(standing(&sandboxes), Standing::Interface(5));
    assert_eq!(standing(&Sandboxes::default()), Standing::Unknown);
}

#[test]
fn a_sandbox_whose_interface_is_gone_is_over() {
    let mut world = World::default();
    world.source(pod("p", "10.0.0.1"));
    world.add(sandbox("c", "p", 7, "10.0.0.1"));
    assert!(!world.sandboxes.find_interfaces(&[]), "it may be yet to come");
    assert!(!world.sandboxes.find_interfaces(&[interface(7, 1)]));
    let claim = |world: &World| world.sandboxes.claims(&world.cluster);
    assert_eq!(claim(&world)[0].incarnation, 1);
    // Another link with the same index.
    assert!(world.sandboxes.find_interfaces(&[interface(7, 2)]));
    world.settle();
    assert_eq!(world.of("p"), NOTHING);
    assert!(claim(&world).is_empty());
    world.cluster.apply(Change::PodGone(ObjectName::new("default", "p"), None));
    assert_eq!(world.prune(), ["c"]);
}

/// Until its interface is gone it is its pod's, whoever says that it is over.
#[test]
fn a_namespace_stays_its_pods_until_its_interface_is_gone() {
    let mut world = World::default();
    world.source(pod("p", ""));
    world.add(sandbox("c", "p", 7, "10.0.0.1"));
    world.sandboxes.find_interfaces(&[interface(7, 1)]);
    world.end("c");
    world.cluster.apply(Change::PodGone(ObjectName::new("default", "p"), None));
    let claims = world.sandboxes.claims(&world.cluster);
    assert_eq!((claims[0].uid.to_string().as_str(), claims[0].incarnation), ("uid-p", 1));
    assert_eq!(world.prune(), [""; 0]);
    world.sandboxes.find_interfaces(&[]);
    assert_eq!(world.prune(), ["c"]);
}

#[test]
fn collection_ends_what_the_runtime_does_not_name() {
    let sandboxes = [("a", "10.0.0.1"), ("b", "10.0.0.2")].map(|(c, a)| sandbox(c, c, 7, a));
    let mut world = World { sandboxes: Sandboxes::new(sandboxes), ..World::default() };
    assert_eq!(world.sandboxes.not_among("lab", &[attachment("a")]), [attachment("b")]);
    world.end("b");
    assert_eq!(world.sandboxes.not_among("lab", &[]), [attachment("a")]);
    assert!(world.sandboxes.not_among("another", &[]).is_empty());
}
