//! The lab itself: every kind of network carries everything, and policies hold on both nodes.
//! Needs root and the eBPF object. Must never test a row of the semantics table: those are in the
//! other wire tests.
#![expect(clippy::unwrap_used, reason = "tests")]

mod lab;
mod world;

use lab::probe::At;
use lab::{Families, Lab, Topology, topology};

/// Everyone reaches everyone without policies, and nobody an isolated pod.
fn carries(topology: Topology, families: Families) {
    let lab = Lab::new(topology, families);
    let scene = lab.scene("shop");
    let pods = [
        scene.pod("a", 1, "{app: a}"),
        scene.pod("b", 1, "{app: b}"),
        scene.pod("c", 2, "{app: c}"),
    ];
    pods.iter().for_each(|pod| scene.serve(pod, 80));
    scene.settle();
    for to in &pods {
        for from in &pods {
            scene.allowed(from, to, 80);
        }
        for from in [&lab.node(1).netns, &lab.node(2).netns, &lab.outside] {
            scene.allowed_from(from, &to.addresses, 80);
        }
    }
    scene.policy("closed", "podSelector: {}, policyTypes: [Ingress]");
    scene.settle();
    for to in &pods {
        for from in &pods {
            if from.name == to.name {
                scene.allowed(from, to, 80);
            } else {
                scene.denied(from, to, 80, At::ingress(to));
            }
        }
        scene.denied_from(&lab.outside, &to.addresses, 80, At::ingress(to));
        scene.allowed_from(&lab.node(to.node).netns, &to.addresses, 80);
        scene.denied_from(&lab.node(3 - to.node).netns, &to.addresses, 80, At::ingress(to));
    }
}

#[test]
fn a_bridge_carries() {
    carries(topology::BRIDGE, Families::Dual);
}

#[test]
fn a_bridge_without_netfilter_carries() {
    carries(topology::BRIDGE_WITHOUT_NETFILTER, Families::V6);
}

#[test]
fn routes_carry() {
    carries(topology::ROUTED, Families::Dual);
}

#[test]
fn an_overlay_carries() {
    carries(topology::OVERLAY, Families::Dual);
    carries(topology::ROUTED_OVERLAY, Families::V4);
}
