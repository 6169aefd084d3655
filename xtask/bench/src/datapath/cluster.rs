//! Clusters of one measured pod and what its policies name, as the model has them. Pure. Sizes are
//! counts of peers, blocks, policies or port ranges, and nothing else differs.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netpol_userspace::model::{
    Change, IpBlock, Namespace, NamespaceScope, ObjectName, Operator, Peer, Peers, Pod, Policy,
    PortMatch, PortRange, Ports, Protocol, Requirement, Rule, Selector,
};

/// The measured pod.
pub const POD: &str = "10.1.0.1";
/// Its IPv6 address.
pub const POD6: &str = "fd00:1::1";
/// The port that policies allow, TCP and UDP.
pub const PORT: u16 = 80;
/// One that none does.
pub const CLOSED_PORT: u16 = 81;
/// Peers where policies are counted: the same for each size, so that only policies differ.
pub const PEERS_OF_POLICIES: u32 = 10_000;
/// Addresses of one block.
pub const BLOCK: u32 = 16;
/// Blocks of one policy: an object may not be larger than the API server takes.
const BLOCKS_OF_POLICY: u32 = 1_000;
/// The first of the port ranges, which begin every [`netpol_common::spread::PORT_STEP`] ports.
pub const FIRST_RANGE: u16 = 10_000;
/// Ports of a range, less one.
const RANGE: u16 = 3;
const NAMESPACE: &str = "default";

/// The address of a peer: its number stands in the lower three bytes.
pub fn peer(number: u32) -> IpAddr {
    Ipv4Addr::from(0x6400_0000 | number).into()
}

/// Its IPv6 address, likewise.
pub fn peer6(number: u32) -> IpAddr {
    Ipv6Addr::from(0xfd00_0002 << 96 | u128::from(number)).into()
}

/// The pod's name.
pub fn pod_name() -> ObjectName {
    ObjectName::new(NAMESPACE, "measured")
}

/// One policy that allows the port from and to these blocks.
pub fn anybody() -> Vec<Change> {
    let blocks = ["100.0.0.0/8", "fd00:2::/64"].map(|cidr| block(cidr.parse().expect("a block")));
    with_pod([policy(0, blocks.to_vec(), ports())])
}

/// One policy that selects so many pods.
pub fn peers(count: u32) -> Vec<Change> {
    let pods = (0..count).map(|number| other(number, 0));
    let mut changes = with_pod([policy(0, vec![labelled(0)], ports())]);
    changes.extend(pods);
    changes
}

/// Policies that name so many blocks together.
pub fn blocks(count: u32) -> Vec<Change> {
    let of_policy = |first: u32| {
        let last = count.min(first + BLOCKS_OF_POLICY);
        let block = |number: u32| block(net(number * BLOCK));
        policy(first, (first..last).map(block).collect(), ports())
    };
    with_pod((0..count).step_by(BLOCKS_OF_POLICY as usize).map(of_policy))
}

/// So many policies, each with peers of its own.
pub fn policies(count: u32) -> Vec<Change> {
    let mut changes = with_pod((0..count).map(|n| policy(n, vec![labelled(n)], ports())));
    changes.extend((0..PEERS_OF_POLICIES).map(|number| other(number, number % count)));
    changes
}

/// One policy that allows so many port ranges.
pub fn ranges(count: u32) -> Vec<Change> {
    let range = |number: u32| {
        let first = FIRST_RANGE + number as u16 * netpol_common::spread::PORT_STEP;
        tcp(PortRange::Numbers(first, first + RANGE))
    };
    let peers = vec![block("100.0.0.0/8".parse().expect("a block"))];
    with_pod([policy(0, peers, Ports::Only((0..count).map(range).collect()))])
}

fn with_pod(policies: impl IntoIterator<Item = Policy>) -> Vec<Change> {
    let labels = [("kubernetes.io/metadata.name", NAMESPACE)].into_iter().collect();
    let namespace = Namespace { name: NAMESPACE.into(), labels };
    let addresses = [POD, POD6].map(|text| text.parse().expect("an address")).to_vec();
    let mut changes = vec![Change::Namespace(namespace)];
    changes.push(Change::Pod(pod(pod_name(), ("measured", "yes".into()), addresses)));
    changes.extend(policies.into_iter().map(Change::Policy));
    changes
}

/// A pod elsewhere, in the group that [`labelled`] selects.
fn other(number: u32, group: u32) -> Change {
    let name = ObjectName::new(NAMESPACE, format!("peer-{number}"));
    Change::Pod(pod(name, ("group", group.to_string()), vec![peer(number)]))
}

fn pod(id: ObjectName, label: (&str, String), addresses: Vec<IpAddr>) -> Pod {
    Pod {
        uid: format!("uid-{}", id.name).into(),
        id,
        labels: [label].into_iter().collect(),
        node: None,
        addresses,
        host_network: false,
        finished: false,
        ports: Vec::new(),
        created: 0,
    }
}

/// Both directions alike.
fn policy(number: u32, peers: Vec<Peer>, ports: Ports) -> Policy {
    let rules = vec![Rule { peers: Peers::Only(peers), ports }];
    Policy {
        id: ObjectName::new(NAMESPACE, format!("policy-{number}")),
        pods: is("measured", "yes".into()),
        ingress: Some(rules.clone()),
        egress: Some(rules),
    }
}

fn labelled(group: u32) -> Peer {
    let namespaces = NamespaceScope::Named(NAMESPACE.into());
    Peer::Pods { namespaces, pods: is("group", group.to_string()) }
}

fn is(key: &str, value: String) -> Selector {
    let operator = Operator::In(vec![value.into()]);
    Selector::new([Requirement { key: key.into(), operator }])
}

fn block(cidr: ipnet::IpNet) -> Peer {
    Peer::Block(IpBlock { cidr, except: Vec::new() })
}

/// The block that begins at the address of this peer.
fn net(first: u32) -> ipnet::IpNet {
    let prefix = 32 - BLOCK.trailing_zeros() as u8;
    ipnet::IpNet::new(peer(first), prefix).expect("a prefix of IPv4")
}

fn ports() -> Ports {
    let udp = PortMatch { protocol: Protocol::Udp, range: PortRange::Numbers(PORT, PORT) };
    Ports::Only(vec![tcp(PortRange::Numbers(PORT, PORT)), udp])
}

fn tcp(range: PortRange) -> PortMatch {
    PortMatch { protocol: Protocol::Tcp, range }
}
