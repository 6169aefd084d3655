//! Interfaces, addresses, routes and settings of a lab. Must never run a command outside the
//! lab's namespaces.

use std::fs;
use std::net::IpAddr;
use std::process::Command;

use netpol_isolation::netns::Netns;

use super::tunnel::{self, Tunnel};
use super::{Between, Cni, Families, Lab, Pod};
use crate::world::ip;

/// Addresses of the host outside.
pub const OUTSIDE: [&str; 2] = ["198.51.100.7", "2001:db8::7"];
const ROUTER: [&str; 2] = ["172.18.0.254", "fd00:172:18::fe"];
/// A gateway that every routed pod and the outside host see.
const GATEWAY: [&str; 2] = ["169.254.1.1", "fe80::1"];
/// Indexes of pods' interfaces start above those of the node's own.
const FIRST_INDEX: u32 = 1000;
/// The kernel's usual one.
pub const MTU: u32 = 1500;

pub(super) fn main_addresses(node: usize) -> [String; 2] {
    [format!("172.18.0.{node}"), format!("fd00:172:18::{node}")]
}

/// A second address that some nodes have, on loopback.
fn loopback_addresses(node: usize) -> [String; 2] {
    [format!("172.19.0.{node}"), format!("fd00:172:19::{node}")]
}

/// Addresses of a node's tunnel device.
fn overlay_addresses(node: usize) -> [String; 2] {
    [format!("172.20.0.{node}"), format!("fd00:172:20::{node}")]
}

/// The addresses of a pod by its number on its node; 0: the subnet, 1: the gateway.
pub fn pod_addresses(node: usize, pod: u32) -> [String; 2] {
    [format!("10.244.{node}.{pod}"), format!("fd00:10:244:{node}::{pod:x}")]
}

/// What a pod of this node may have as its gateway.
pub fn gateways(node: usize) -> Vec<String> {
    let [v4, v6] = pod_addresses(node, 1);
    vec![v4, v6, GATEWAY[0].to_owned(), GATEWAY[1].to_owned()]
}

/// The route from a pod's node to the pod, for lines of `ip route replace`.
pub fn route_to_pod(lab: &Lab, pod: &Pod, address: IpAddr) -> String {
    match lab.topology.cni {
        Cni::Routed => format!("{address} dev {}", pod.interface),
        _ => format!("{address} dev cbr0"),
    }
}

/// All addresses of a node, main ones first.
pub fn node_addresses(lab: &Lab, node: usize) -> Vec<IpAddr> {
    let mut all = vec![main_addresses(node), loopback_addresses(node)];
    if lab.topology.between == Between::Overlay {
        all.push(overlay_addresses(node));
    }
    if lab.topology.cni != Cni::Routed {
        all.push(pod_addresses(node, 1));
    }
    all.iter().flat_map(|[v4, v6]| lab.of_families([v4, v6])).collect()
}

/// The MTU of pods' interfaces.
pub fn pod_mtu(lab: &Lab) -> u32 {
    match lab.topology.between {
        Between::Direct => MTU,
        Between::Overlay => Tunnel::chosen().mtu(),
    }
}

/// Everything but the pods.
pub fn connect(lab: &Lab) {
    settings(&lab.underlay, lab.families, true);
    let mut script = format!(
        "link set lo up\n{}link set br0 up\naddr add {}/32 dev lo\n",
        bridge("br0", 0xfe),
        GATEWAY[0]
    );
    for address in lab.of_families(ROUTER) {
        script += &format!("addr add {} dev br0 {}\n", subnet(address), nodad(address));
    }
    ip(&lab.underlay, &script);
    connect_outside(lab);
    for number in [1, 2] {
        connect_node(lab, number);
    }
    for number in [1, 2] {
        connect_pod_subnets(lab, number);
    }
}

fn connect_outside(lab: &Lab) {
    settings(&lab.outside, lab.families, false);
    link_into(lab, &lab.underlay, "out0", "outside");
    let mut at_router = format!("link set out0 up\n{}", gateway_address(lab, "out0"));
    for address in lab.outside_addresses() {
        at_router += &format!("route add {address} dev out0\n");
    }
    ip(&lab.underlay, &at_router);
    quick_neighbours(&lab.underlay, "out0");
    ip(&lab.outside, &routed_pod(&lab.outside_addresses(), MTU));
}

/// A veth from `name` in `here` to `eth0` in the namespace `there`.
fn link_into(lab: &Lab, here: &Netns, name: &str, there: &str) {
    let there = lab.spaces().join(there);
    ip(here, &format!("link add {name} type veth peer name eth0 netns {}", there.display()));
}

fn connect_node(lab: &Lab, number: usize) {
    let node = &lab.node(number).netns;
    settings(node, lab.families, true);
    let port = format!("node{number}");
    link_into(lab, &lab.underlay, &port, &lab.node(number).name);
    ip(&lab.underlay, &format!("link set {port} master br0\nlink set {port} up"));
    let mut script = "link set lo up\nlink set eth0 up\n".to_owned();
    let [v4, v6] = main_addresses(number);
    for address in lab.of_families([&v4, &v6]) {
        script += &format!("addr add {} dev eth0 {}\n", subnet(address), nodad(address));
    }
    let [v4, v6] = loopback_addresses(number);
    for address in lab.of_families([&v4, &v6]) {
        script += &format!("addr add {address} dev lo {}\n", nodad(address));
        ip(&lab.underlay, &format!("route add {address} via {}", main_of(number, address)));
    }
    for router in lab.of_families(ROUTER) {
        script += &format!("route add default via {router}\n");
    }
    if lab.topology.cni != Cni::Routed {
        script += &format!("{}link set cbr0 up\n", bridge("cbr0", number as u8));
        let [v4, v6] = pod_addresses(number, 1);
        for address in lab.of_families([&v4, &v6]) {
            script += &format!("addr add {} dev cbr0 {}\n", subnet(address), nodad(address));
        }
    }
    ip(node, &script);
    quick_neighbours(node, "eth0");
    netfilter(lab, node);
}

/// How packets get from this node, and from the router, to pods.
fn connect_pod_subnets(lab: &Lab, number: usize) {
    let other = 3 - number;
    let node = &lab.node(number).netns;
    let mut script = String::new();
    let gateways = match lab.topology.between {
        Between::Direct => main_addresses(other),
        Between::Overlay => {
            Tunnel::chosen().create(node, [number, other]);
            let [v4, v6] = overlay_addresses(number);
            for address in lab.of_families([&v4, &v6]) {
                let nodad = nodad(address);
                script += &format!("addr add {} dev {} {nodad}\n", subnet(address), tunnel::DEVICE);
            }
            overlay_addresses(other)
        }
    };
    let [v4, v6] = pod_addresses(other, 0);
    for net in lab.of_families([&v4, &v6]) {
        let gateway = &gateways[usize::from(net.is_ipv6())];
        script += &format!("route add {} via {gateway}\n", subnet(net));
        let router = main_of(other, net);
        ip(&lab.underlay, &format!("route add {} via {router}", subnet(net)));
    }
    ip(node, &script);
    if lab.topology.between == Between::Overlay {
        quick_neighbours(node, tunnel::DEVICE);
    }
}

/// Whether bridged packets meet netfilter; if so, connections are tracked, and so fragments put
/// together on their way, as on a node with kube-proxy's rules. Elsewhere nothing does that.
fn netfilter(lab: &Lab, node: &Netns) {
    if lab.topology.cni != Cni::Routed {
        let value = if lab.topology.cni == Cni::Bridge { "1" } else { "0" };
        for name in ["iptables", "ip6tables"] {
            let path = format!("/proc/sys/net/bridge/bridge-nf-call-{name}");
            node.run(|| fs::write(&path, value))
                .unwrap()
                .unwrap_or_else(|error| panic!("{path}: {error}; modprobe br_netfilter"));
        }
    }
    if lab.topology.cni == Cni::Bridge {
        let rules = "table inet lab { chain forward { type filter hook forward priority 0; \
                     ct state established,related counter accept; }; }";
        let nft = || Command::new("nft").arg(rules).output().expect("nft: install nftables");
        let output = node.run(nft).unwrap();
        assert!(output.status.success(), "nft: {}", String::from_utf8_lossy(&output.stderr));
    }
}

/// What a pod's interface is made from.
pub struct Link<'a> {
    pub node: usize,
    pub addresses: &'a [IpAddr],
    pub netns: &'a Netns,
    /// The node's end.
    pub interface: &'a str,
    /// A number of its own.
    pub id: u32,
    /// The namespace's name in the node's directory.
    pub file: &'a str,
}

/// A pod's interface, from its node's `interface` to `eth0`; returns the former's index.
pub fn connect_pod(lab: &Lab, link: &Link<'_>) -> u32 {
    settings(link.netns, lab.families, false);
    let node = lab.node(link.node);
    let (interface, index, mtu) = (link.interface, FIRST_INDEX + link.id, pod_mtu(lab));
    let mut script = format!(
        "link add {interface} index {index} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {}\n\
         link set {interface} up\n",
        node.netns_dir.join(link.file).display()
    );
    if lab.topology.cni == Cni::Routed {
        script += &gateway_address(lab, interface);
        for &address in link.addresses {
            let source = match address {
                IpAddr::V4(_) => format!("src {}", main_addresses(link.node)[0]),
                IpAddr::V6(_) => String::new(),
            };
            script += &format!("route add {address} dev {interface} {source}\n");
        }
    } else {
        script += &format!(
            "link set {interface} master cbr0\nlink set {interface} type bridge_slave hairpin on\n"
        );
    }
    ip(&node.netns, &script);
    quick_neighbours(&node.netns, interface);
    let inside = match lab.topology.cni {
        Cni::Routed => routed_pod(link.addresses, mtu),
        _ => bridged_pod(link),
    };
    ip(link.netns, &inside);
    quick_neighbours(link.netns, "eth0");
    index
}

fn gateway_address(lab: &Lab, interface: &str) -> String {
    let mut script = String::new();
    for address in lab.of_families(GATEWAY) {
        script += &format!(
            "addr add {address}/{} dev {interface} {}\n",
            if address.is_ipv4() { 32 } else { 64 },
            nodad(address)
        );
    }
    script
}

fn bridged_pod(pod: &Link<'_>) -> String {
    let mut script = "link set lo up\nlink set eth0 up\n".to_owned();
    let gateways = pod_addresses(pod.node, 1);
    for &address in pod.addresses {
        let gateway = &gateways[usize::from(address.is_ipv6())];
        script += &format!(
            "addr add {} dev eth0 {}\nroute add default via {gateway}\n",
            subnet(address),
            nodad(address)
        );
    }
    script
}

fn routed_pod(addresses: &[IpAddr], mtu: u32) -> String {
    let mut script = format!("link set lo up\nlink set eth0 mtu {mtu} up\n");
    for &address in addresses {
        let gateway = GATEWAY[usize::from(address.is_ipv6())];
        script += &format!("addr add {address} dev eth0 {}\n", nodad(address));
        if address.is_ipv4() {
            script += &format!("route add {gateway} dev eth0 scope link\n");
        }
        script += &format!("route add default via {gateway} dev eth0\n");
    }
    script
}

/// A bridge with an address of its own: else it takes that of one of its ports, and changes it
/// when the port goes.
fn bridge(name: &str, number: u8) -> String {
    format!(
        "link add {name} address 0a:58:0a:f4:00:{number:02x} type bridge stp_state 0 \
         forward_delay 0 mcast_snooping 0\n"
    )
}

/// No waiting for duplicate addresses, and nothing that would stop a forged source but netpol.
fn settings(netns: &Netns, families: Families, forward: bool) {
    let mut all = Vec::new();
    for scope in ["all", "default"] {
        for (name, value) in
            [("rp_filter", 0), ("accept_local", 1), ("send_redirects", 0), ("accept_redirects", 0)]
        {
            all.push((format!("ipv4/conf/{scope}/{name}"), value));
        }
        let without_v6 = i32::from(families == Families::V4);
        for (name, value) in [
            ("disable_ipv6", without_v6),
            ("accept_dad", 0),
            ("accept_ra", 0),
            ("accept_redirects", 0),
        ] {
            all.push((format!("ipv6/conf/{scope}/{name}"), value));
        }
    }
    if forward {
        all.extend([("ipv4/ip_forward".to_owned(), 1), ("ipv6/conf/all/forwarding".to_owned(), 1)]);
    }
    write_settings(netns, &all);
}

/// A neighbour that does not answer at once is asked again soon.
fn quick_neighbours(netns: &Netns, interface: &str) {
    let setting = |version| (format!("{version}/neigh/{interface}/retrans_time_ms"), 100);
    write_settings(netns, &["ipv4", "ipv6"].map(setting));
}

fn write_settings(netns: &Netns, settings: &[(String, i32)]) {
    let write = || {
        for (name, value) in settings {
            fs::write(format!("/proc/sys/net/{name}"), value.to_string())
                .unwrap_or_else(|error| panic!("{name}: {error}"));
        }
    };
    netns.run(write).unwrap();
}

fn main_of(node: usize, family_of: IpAddr) -> String {
    main_addresses(node)[usize::from(family_of.is_ipv6())].clone()
}

fn subnet(address: IpAddr) -> String {
    format!("{address}/{}", if address.is_ipv4() { 24 } else { 64 })
}

fn nodad(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "" } else { "nodad" }
}
