//! The lab itself: every kind of network carries everything, and policies hold on both nodes.
//! Needs root and the eBPF object. Must never test a row of the semantics table: those are in the
//! other wire tests. Overlays are VXLAN's here, and IPIP's, GRE's and WireGuard's in other kernels.

use std::net::SocketAddr;

use netpol_testkit::lab::probe::At;
use netpol_testkit::lab::tunnel::Tunnel;
use netpol_testkit::lab::wiring::MTU;
use netpol_testkit::lab::{Families, Lab, Topology, topology};
use netpol_testkit::world::ip;

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
}

#[test]
fn a_routed_overlay_carries() {
    carries(topology::ROUTED_OVERLAY, Families::V4);
}

/// Pods whose packets do not fit into the tunnel, as where a network's MTU is not known to it: their
/// node says so, in an error that has to get into a pod that nobody may open a connection to.
fn says_what_is_too_big(topology: Topology, families: Families) {
    let lab = Lab::new(topology, families);
    let scene = lab.scene("shop");
    let [asks, asked] = scene.closed_pair();
    for pod in [&asks, &asked] {
        let name = &pod.interface;
        ip(&lab.node(pod.node).netns, &format!("link set {name} mtu {MTU}"));
        pod.ip(&format!("link set eth0 mtu {MTU}"));
    }
    let fits = Some(Tunnel::chosen().mtu());
    for &address in &asked.addresses {
        let own = asks.address(address);
        assert_eq!((asks.learnt_mtu(address), asked.learnt_mtu(own)), (None, None));
        scene.transfer(&asks.netns, &asked.netns, SocketAddr::new(address, 80), 400_000);
        assert_eq!((asks.learnt_mtu(address), asked.learnt_mtu(own)), (fits, fits));
    }
    scene.denied(&asked, &asks, 80, At::egress(&asked));
}

#[test]
fn an_overlay_says_what_is_too_big() {
    says_what_is_too_big(topology::OVERLAY, Families::Dual);
}

#[test]
fn a_routed_overlay_says_what_is_too_big() {
    says_what_is_too_big(topology::ROUTED_OVERLAY, Families::V4);
}
