//! Pods that come and go, fast, with addresses and interface numbers that others had: nothing is
//! left behind, nobody inherits anything, and the rest stays enforced. Needs root and the eBPF
//! object.

use std::collections::BTreeSet;

use netpol_datapath::observe;
use netpol_model::Direction;

use netpol_testkit::world::traffic::{
    Attempts, Server, Stream, asks, assert_allowed, assert_denied,
};
use netpol_testkit::world::{World, address, eventually};

const SERVER: &str = "10.244.0.1:80";
const FRIENDS: &str = "podSelector: {matchLabels: {app: server}}, policyTypes: [Ingress, Egress], \
                       ingress: [{from: [{podSelector: {matchLabels: {role: friend}}}]}]";

fn shop() -> (World, Server) {
    let mut world = World::new();
    world.pod("server", "10.244.0.1", "{app: server}");
    world.pod("friend", "10.244.0.2", "{role: friend}");
    world.pod("stranger", "10.244.0.3", "{role: stranger}");
    world.policy("friends", FRIENDS);
    let server = Server::start(&world.of("server"), 80);
    world.start();
    (world, server)
}

/// What the maps hold for endpoints: ids with entries, ids with addresses, links.
fn leftovers(world: &World) -> (BTreeSet<u16>, BTreeSet<u16>, usize, usize) {
    let maps = world.maps();
    (
        observe::endpoints(&maps).into_iter().map(|entry| entry.id).collect(),
        observe::own_addresses(&maps).map(|(id, _)| id).collect(),
        world.links().len(),
        observe::classes(&maps).unwrap().len(),
    )
}

#[test]
fn hundreds_of_pods_come_and_go_and_leave_nothing() {
    let (mut world, _server) = shop();
    let before = leftovers(&world);
    let stream = Stream::udp(&world.of("friend"), SERVER);
    let attempts = Attempts::start(&world.of("stranger"), SERVER);
    for number in 0..200 {
        let name = format!("churn-{number}");
        // Isolated; the manifest before the interface, and the other way round.
        if number % 2 == 0 {
            world.declare(&name, &address(1000 + number), "{app: server}");
        }
        world.wire(&name, &address(1000 + number));
        if number % 2 == 1 {
            world.declare(&name, &address(1000 + number), "{app: server}");
        }
        if number % 20 == 19 {
            world.settle();
            // One of them, in place, does not talk to the other.
            assert!(!asks(&world.of(&name), SERVER));
        }
        // Nine remain at any time, the others vanish at once: often while being attached.
        if number >= 10 {
            let name = format!("churn-{}", number - 10);
            if number % 3 == 0 {
                world.remove(&format!("pod-{name}"));
                world.unwire(&name);
            } else {
                world.unwire(&name);
                world.remove(&format!("pod-{name}"));
            }
        }
    }
    world.settle();
    assert_eq!(leftovers(&world).0.len(), before.0.len() + 10);
    for number in 190..200 {
        world.unwire(&format!("churn-{number}"));
        world.remove(&format!("pod-churn-{number}"));
    }
    let status = world.settle();
    assert_eq!(status["datapath"]["endpoints"], 3);
    assert_eq!(leftovers(&world), before);
    stream.finish();
    attempts.finish();
    // A new pod starts counting at zero, whatever its number counted before.
    world.pod("late", "10.244.9.9", "{app: server}");
    world.settle();
    let (maps, id) = (world.maps(), world.id("late"));
    for direction in [Direction::Ingress, Direction::Egress] {
        assert_eq!(observe::drops(&observe::counters(&maps, id, direction).unwrap()), 0);
    }
}

#[test]
fn interfaces_that_vanish_while_they_are_attached_are_no_error_for_long() {
    let (mut world, _server) = shop();
    for round in 0..20 {
        let name = format!("brief-{round}");
        world.declare(&name, "10.244.5.5", "{app: server}");
        for _ in 0..3 {
            world.wire(&name, "10.244.5.5");
            world.unwire(&name);
        }
        world.remove(&format!("pod-{name}"));
    }
    world.settle();
    // The server's, and the guards of the two that no policy selects. (That an interface is gone
    // the agent hears by itself.)
    eventually("only those are left", || world.links().len() == 4);
    let log = world.log();
    assert!(!log.contains("cannot put in force") && !log.contains("put back"), "{log}");
    assert_denied(&world.of("stranger"), SERVER);
    assert_allowed(&world.of("friend"), SERVER);
}

#[test]
fn an_interface_number_that_another_pod_had_means_nothing() {
    let (mut world, _server) = shop();
    for round in 0..5 {
        let old = format!("old-{round}");
        world.wire_at(&old, "10.244.6.1", Some(7777));
        world.declare(&old, "10.244.6.1", "{app: server}");
        world.settle();
        let server = Server::start(&world.of(&old), 80);
        assert_denied(&world.of("stranger"), "10.244.6.1:80");
        drop(server);
        // The same number at once for a pod of another policy, none, and a third.
        world.unwire(&old);
        world.remove(&format!("pod-{old}"));
        let new = format!("new-{round}");
        world.wire_at(&new, "10.244.6.2", Some(7777));
        world.declare(&new, "10.244.6.2", "{role: friend}");
        world.settle();
        let server = Server::start(&world.of(&new), 80);
        assert_allowed(&world.of("stranger"), "10.244.6.2:80");
        assert_allowed(&world.of(&new), SERVER);
        assert_eq!(world.tcx(&format!("v-{new}")).map(|ids| ids.len()), [1, 0]);
        drop(server);
        world.unwire(&new);
        world.remove(&format!("pod-{new}"));
    }
    world.settle();
    assert_eq!(world.links().len(), 4);
}

#[test]
fn an_address_that_another_pod_had_gives_nothing() {
    let (mut world, _server) = shop();
    for round in 0..5 {
        // A friend, replaced within moments by a stranger with its address, and back.
        let (friend, stranger) = (format!("friend-{round}"), format!("stranger-{round}"));
        world.pod(&friend, "10.244.7.1", "{role: friend}");
        world.settle();
        assert_allowed(&world.of(&friend), SERVER);
        world.unwire(&friend);
        world.remove(&format!("pod-{friend}"));
        world.pod(&stranger, "10.244.7.1", "{role: stranger}");
        world.settle();
        assert_denied(&world.of(&stranger), SERVER);
        world.unwire(&stranger);
        world.remove(&format!("pod-{stranger}"));
    }
    world.settle();
}

#[test]
fn two_pods_that_claim_one_address_are_told_and_the_younger_has_it() {
    let (mut world, _server) = shop();
    let declare = |world: &World, name: &str, role: &str, created: &str| {
        world.write(
            &format!("pod-{name}"),
            &format!(
                "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: default, uid: \
                 uid-{name}, labels: {{role: {role}}}, creationTimestamp: \"{created}\"}}\nspec: \
                 {{nodeName: node-1, containers: [{{name: c}}]}}\nstatus: {{podIP: 10.244.8.1, \
                 podIPs: [{{ip: 10.244.8.1}}], phase: Running}}\n"
            ),
        );
    };
    world.wire("one", "10.244.8.1");
    declare(&world, "one", "friend", "2026-01-01T00:00:00Z");
    world.settle();
    assert_allowed(&world.of("one"), SERVER);
    declare(&world, "two", "stranger", "2026-01-02T00:00:00Z");
    let status = world.agent.as_ref().unwrap().wait();
    let errors = status["datapath"]["errors"].to_string();
    assert!(errors.contains("both claim 10.244.8.1"), "{status}");
    assert_denied(&world.of("one"), SERVER);
    world.remove("pod-two");
    world.settle();
    assert_allowed(&world.of("one"), SERVER);
}

#[test]
fn a_pod_without_an_address_is_enforced_once_it_has_one() {
    let (mut world, _server) = shop();
    world.declare("slow", "", "{app: server}");
    let status = world.settle();
    assert!(status["datapath"]["notes"].to_string().contains("default/slow"), "{status}");
    world.wire("slow", "10.244.9.1");
    let _server = Server::start(&world.of("slow"), 80);
    assert_allowed(&world.of("stranger"), "10.244.9.1:80");
    world.declare("slow", "10.244.9.1", "{app: server}");
    world.settle();
    assert_denied(&world.of("stranger"), "10.244.9.1:80");
    eventually("the note is gone", || {
        !world.agent.as_ref().unwrap().status()["datapath"]["notes"].to_string().contains("slow")
    });
}
