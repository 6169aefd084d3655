//! Of the generator: the same seed gives the same bytes, and everything it makes is what an API
//! server accepts, in the mix it promises.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use netpol_model::{Change, NamespaceScope, Peer, Peers, Policy as Understood, PortRange, Ports};

use super::*;
use crate::agent::inside;
use crate::agent::objects::{Kind, Objects};

const LOCAL: u32 = 110;

fn generated(size: Size, seed: u64) -> Objects {
    Objects::new(Arc::new(Cluster::generate(size, LOCAL, seed)), Vec::new())
}

fn bytes(objects: &Objects) -> String {
    let mut text = String::new();
    for kind in Kind::ALL {
        for index in 0..objects.len(kind) {
            objects.write(kind, index, 7, &mut text);
        }
    }
    text
}

/// What all objects mean; one that is refused fails the test.
fn understood(objects: &Objects) -> Vec<Change> {
    let mut changes = Vec::new();
    for kind in Kind::ALL {
        for index in 0..objects.len(kind) {
            let mut text = String::new();
            objects.write(kind, index, 7, &mut text);
            changes.push(inside::read(kind, &text).expect("an object without problems"));
        }
    }
    changes
}

#[test]
fn the_same_seed_gives_the_same_bytes() {
    let first = bytes(&generated(Size::SMALL, 1));
    assert_eq!(first, bytes(&generated(Size::SMALL, 1)));
    assert_ne!(first, bytes(&generated(Size::SMALL, 2)));
}

#[test]
fn a_cluster_is_as_large_as_it_was_asked_for() {
    for size in [Size::SMALL, Size::MEDIUM] {
        let cluster = Cluster::generate(size, LOCAL, 3);
        assert_eq!(cluster.namespaces.len(), size.namespaces as usize);
        assert_eq!(cluster.pods.len(), size.pods as usize);
        assert_eq!(cluster.policies.len(), size.policies as usize);
        assert_eq!(cluster.local_pods().count(), LOCAL as usize);
        let local: Vec<u32> = cluster.local_pods().map(|pod| pod.address.to_bits()).collect();
        let first = local[0];
        assert!(local.iter().copied().eq(first..first + LOCAL), "the same for every cluster");
    }
}

#[test]
fn names_and_addresses_are_distinct() {
    let cluster = Cluster::generate(Size::MEDIUM, LOCAL, 4);
    let names: BTreeSet<(&str, String)> = cluster
        .pods
        .iter()
        .map(|pod| cluster.workload_of(pod))
        .zip(&cluster.pods)
        .map(|(workload, pod)| (cluster.namespace_of(workload), pod.name(workload)))
        .collect();
    assert_eq!(names.len(), cluster.pods.len());
    let own = cluster
        .pods
        .iter()
        .filter(|pod| cluster.workload_of(pod).controller != Controller::HostDaemon);
    let addresses: BTreeSet<Ipv4Addr> = own.clone().map(|pod| pod.address).collect();
    assert_eq!(addresses.len(), own.count());
    let uids: BTreeSet<String> = cluster.pods.iter().map(Pod::uid).collect();
    assert_eq!(uids.len(), cluster.pods.len());
}

#[test]
fn everything_is_accepted() {
    let objects = generated(Size::MEDIUM, 5);
    let n_objects: usize = Kind::ALL.iter().map(|kind| objects.len(*kind)).sum();
    assert_eq!(understood(&objects).len(), n_objects);
    assert!(objects.len(Kind::Service) > 100, "{}", objects.len(Kind::Service));
    assert_eq!(objects.len(Kind::Service), objects.len(Kind::EndpointSlice));
}

/// What kinds of peers and ports policies have, and how often.
fn count(policies: &[Understood]) -> BTreeMap<&'static str, usize> {
    let mut counts = BTreeMap::new();
    let mut note = |what| *counts.entry(what).or_default() += 1;
    for policy in policies {
        let rules: Vec<_> = [&policy.ingress, &policy.egress].into_iter().flatten().collect();
        for rules in rules {
            if rules.is_empty() {
                note("deny");
            }
            for rule in rules {
                let Peers::Only(peers) = &rule.peers else {
                    note("anybody");
                    continue;
                };
                for peer in peers.iter() {
                    note(match peer {
                        Peer::Block(block) if block.except.is_empty() => "block",
                        Peer::Block(_) => "block with exceptions",
                        Peer::Nodes(_) => "nodes",
                        Peer::Pods { namespaces: NamespaceScope::Named(_), pods } => {
                            if pods.is_everything() { "own namespace" } else { "own labels" }
                        }
                        Peer::Pods { pods, .. } => {
                            if pods.is_everything() {
                                "namespaces"
                            } else {
                                "pods of namespaces"
                            }
                        }
                    });
                }
                let Ports::Only(ports) = &rule.ports else { continue };
                for port in ports {
                    note(match &port.range {
                        PortRange::All => "all ports",
                        PortRange::Named(_) => "named port",
                        PortRange::Numbers(first, last) if first == last => "port",
                        PortRange::Numbers(..) => "port range",
                    });
                }
            }
        }
    }
    counts
}

#[test]
fn policies_have_every_kind_of_peer() {
    let changes = understood(&generated(Size::MEDIUM, 6));
    let policies: Vec<Understood> = changes
        .into_iter()
        .filter_map(|change| match change {
            Change::Policy(policy) => Some(policy),
            _ => None,
        })
        .collect();
    let counts = count(&policies);
    for what in [
        "deny",
        "anybody",
        "own namespace",
        "own labels",
        "namespaces",
        "pods of namespaces",
        "block",
        "block with exceptions",
        "named port",
        "port",
        "port range",
    ] {
        assert!(counts.get(what).is_some_and(|count| *count >= 10), "{what}: {counts:?}");
    }
}

#[test]
fn every_shape_is_drawn() {
    let cluster = Cluster::generate(Size::MEDIUM, LOCAL, 7);
    for (shape, _) in Shape::ALL {
        let count = cluster.policies.iter().filter(|policy| policy.shape == shape).count();
        assert!(count >= 5, "{shape:?}: {count}");
    }
}

#[test]
fn pods_that_come_later_are_others() {
    let cluster = Cluster::generate(Size::SMALL, LOCAL, 8);
    let mut life = Life::of(&cluster, 9);
    let mut addresses: BTreeSet<Ipv4Addr> = cluster.pods.iter().map(|pod| pod.address).collect();
    for _ in 0..500 {
        let [(_, added), (_, ready), (_, ending), (happened, gone)] = life.replace();
        assert!(addresses.insert(added.address), "{added:?} has an address of before");
        assert_eq!((added.address, ending.address), (ready.address, gone.address));
        assert_eq!(happened, Happened::Deleted);
        assert_ne!(gone.node, 0, "the agent's node keeps its pods");
    }
}
