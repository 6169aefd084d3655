//! Clusters of one measured pod and what its policies name, as the model has them. Pure. Sizes are
//! counts of peers, blocks, policies or port ranges, and nothing else differs.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netpol_model::{
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
/// The label that every namespace has by itself.
const NAME: &str = "kubernetes.io/metadata.name";
/// The namespaces that groups of peers are in.
const NAMESPACES: u32 = 100;

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
    let addresses = [POD, POD6].map(|text| text.parse().expect("an address")).to_vec();
    let mut changes = vec![namespace(NAMESPACE)];
    changes.extend((0..NAMESPACES).map(|group| namespace(&namespace_of(group))));
    changes.push(Change::Pod(pod(pod_name(), ("measured", "yes".into()), addresses)));
    changes.extend(policies.into_iter().map(Change::Policy));
    changes
}

fn namespace(name: &str) -> Change {
    let labels = [(NAME, name)].into_iter().collect();
    Change::Namespace(Namespace { name: name.into(), labels })
}

/// Where the pods of a group are.
fn namespace_of(group: u32) -> String {
    format!("peers-{}", group % NAMESPACES)
}

/// A pod elsewhere, in the group that [`labelled`] selects.
fn other(number: u32, group: u32) -> Change {
    let name = ObjectName::new(namespace_of(group), format!("peer-{number}"));
    Change::Pod(pod(name, ("group", group.to_string()), vec![peer(number)]))
}

fn pod(id: ObjectName, label: (&str, String), addresses: Vec<IpAddr>) -> Pod {
    Pod {
        uid: format!("uid-{}", id.name).into(),
        id,
        labels: [label].into_iter().collect(),
        node: None,
        addresses: addresses.into(),
        host_network: false,
        finished: false,
        running: true,
        ports: [].into(),
        annotations: None,
        created: 0,
    }
}

/// Both directions alike.
fn policy(number: u32, peers: Vec<Peer>, ports: Ports) -> Policy {
    let rules = vec![Rule { peers: Peers::Only(peers.into()), ports }];
    Policy {
        id: ObjectName::new(NAMESPACE, format!("policy-{number}")),
        pods: is("measured", "yes".into()),
        ingress: Some(rules.clone()),
        egress: Some(rules),
    }
}

fn labelled(group: u32) -> Peer {
    let namespaces = NamespaceScope::Matching(is(NAME, namespace_of(group)));
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

#[cfg(test)]
mod tests {
    use netpol_compile::{Compiler, EndpointId, Plan, Size, Step};

    use super::*;

    fn compiled(changes: Vec<Change>) -> (Plan, Size) {
        let mut compiler = Compiler::new();
        compiler.apply_all(changes);
        let plan = compiler.set_endpoint(EndpointId(1), pod_name());
        (plan, compiler.size())
    }

    /// Addresses or blocks that get a class, and rows; both directions have one policy set.
    fn counts(plan: &Plan) -> [usize; 2] {
        let count = |wanted: fn(&Step) -> bool| plan.iter().filter(|step| wanted(step)).count();
        [
            count(|step| matches!(step, Step::SetClass(..))),
            count(|step| matches!(step, Step::AddRow(..))),
        ]
    }

    #[test]
    fn what_is_counted_is_what_the_tables_get() {
        let (plan, size) = compiled(peers(50));
        assert_eq!((counts(&plan), size.classes), ([50, 1], 1));
        let (plan, _) = compiled(blocks(2_500));
        assert_eq!(counts(&plan), [2_500, 2_500]);
        let (plan, size) = compiled(policies(30));
        assert_eq!((counts(&plan), size.classes), ([PEERS_OF_POLICIES as usize, 30], 30));
        let (plan, _) = compiled(ranges(1_000));
        let ranges = plan.iter().find_map(|step| match step {
            Step::AddRow(_, _, netpol_compile::Row::Ports(ports)) => Some(ports),
            _ => None,
        });
        assert_eq!(ranges.expect("a row").intervals[0].len(), 1_000);
    }

    #[test]
    fn peers_of_all_sizes_differ_in_the_lower_three_bytes_only() {
        assert_eq!(peer(100_000).to_string(), "100.1.134.160");
        assert_eq!(peer6(100_000).to_string(), "fd00:2::1:86a0");
    }
}
