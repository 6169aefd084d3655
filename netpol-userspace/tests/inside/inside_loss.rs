//! Networks that lose packets and change their order, between two nodes. Runs inside other kernels
//! alone (`cargo xtask test kernels`), since not every machine's kernel has netem. Needs root and
//! the eBPF object.

use std::net::{SocketAddr, UdpSocket};
use std::process::Command;
use std::time::Duration;

use netpol_testkit::lab::probe::{At, Protocol};
use netpol_testkit::lab::{Families, Lab, Topology, topology};
use netpol_testkit::world::eventually;

/// What the network below does to packets on their way to a node.
const WEATHER: &str = "delay 3ms 2ms loss 5% reorder 30% 50% duplicate 2%";
const TRANSFERRED: usize = 400_000;
/// Three fragments.
const LARGE: usize = 4000;

/// A lab in which packets between nodes are lost, doubled, and overtake each other.
fn stormy(topology: Topology, families: Families) -> Lab {
    let lab = Lab::new(topology, families);
    for number in [1, 2] {
        let line = format!("qdisc add dev node{number} root netem {WEATHER}");
        let run = || Command::new("tc").args(line.split_whitespace()).output().unwrap();
        let output = lab.underlay.run(run).unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!said.contains("qdisc kind is unknown"), "missing feature: netem: {said}");
        assert!(output.status.success(), "tc {line}: {said}");
    }
    lab
}

/// How many packets the network has lost on their way to both nodes.
fn lost(lab: &Lab) -> u64 {
    let read = |number| {
        let line = format!("-s -j qdisc show dev node{number} root");
        let run = || Command::new("tc").args(line.split_whitespace()).output().unwrap();
        let output = lab.underlay.run(run).unwrap();
        let said: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        said[0]["drops"].as_u64().unwrap()
    };
    [1, 2].map(read).iter().sum()
}

/// Whatever is lost and in whatever order the rest comes: what is allowed gets there in the end and
/// nothing of it is dropped, what is denied is dropped.
fn judges(topology: Topology, families: Families) {
    let lab = stormy(topology, families);
    let scene = lab.scene("storm");
    let [asks, asked] = scene.closed_pair();
    scene.serve(&asked, 80);
    for &address in &asked.addresses {
        let own = asks.address(address);
        scene.transfer(&asks.netns, &asked.netns, SocketAddr::new(address, 4080), TRANSFERRED);
        let large = || {
            let socket = UdpSocket::bind((own, 0)).unwrap();
            socket.connect((address, 80)).unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
            let _ = socket.send(&[7; LARGE]);
            socket.recv(&mut [0; LARGE]).is_ok_and(|length| length == LARGE)
        };
        // One in which no fragment was lost, nor overtook the first.
        eventually("a large datagram is answered", || asks.netns.run(large).unwrap());
        let back = SocketAddr::new(own, 80);
        scene.denies(&asked.netns, back, Protocol::Tcp, Some(&asks), At::egress(&asked));
    }
    let stranger = scene.pod("stranger", 1, "{app: stranger}");
    for &address in &asked.addresses {
        // A first packet that is lost is sent again.
        let to = SocketAddr::new(address, 80);
        scene.denies(&stranger.netns, to, Protocol::Tcp, Some(&asked), At::ingress(&asked));
    }
    assert!(lost(&lab) > 0, "the network has lost nothing");
}

#[test]
fn a_network_that_loses_packets_where_pods_are_routed() {
    judges(topology::ROUTED, Families::Dual);
}

#[test]
fn a_network_that_loses_packets_on_a_bridge() {
    judges(topology::BRIDGE, Families::Dual);
}

#[test]
fn a_network_that_loses_packets_below_an_overlay() {
    judges(topology::ROUTED_OVERLAY, Families::V4);
}
