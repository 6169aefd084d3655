//! Nodes, pods and hosts outside as network namespaces, wired as a CNI plugin would. Must never
//! touch an interface, route or setting outside namespaces that it made.
//!
//! The nodes hang on one bridge in the namespace `underlay`, which is also the router to the
//! hosts outside. Pod traffic is routed between nodes, without tunnels and without NAT.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};

use super::plan::{self, Families, Host, Place};
use super::space::Space;
use netpol_model::ObjectName;

/// How pods are connected to their node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Cni {
    /// Veths on a bridge `cbr0` that has the gateway address, as kubenet does.
    Bridge,
    /// A route to each pod's veth and proxy ARP, as Calico does.
    Routed,
}

/// The router's number among the nodes.
const ROUTER: usize = 254;
const UNDERLAY: &str = "underlay";
/// A gateway that every routed pod sees: the node answers for it by proxy ARP.
const LINK_LOCAL_V4: &str = "169.254.1.1";
/// Likewise; it is set on the host's end of every such veth.
const LINK_LOCAL_V6: &str = "fe80::1";

/// All namespaces and what is in them.
#[derive(Debug)]
pub struct Network {
    dir: PathBuf,
    cni: Cni,
    families: Families,
    underlay: Space,
    nodes: Vec<Arc<Space>>,
    wired: BTreeMap<ObjectName, Wired>,
    n_interfaces: usize,
}

#[derive(Debug)]
struct Wired {
    place: Place,
    addresses: Vec<IpAddr>,
    interface: String,
    space: Arc<Space>,
}

impl Network {
    /// The network of `nodes` nodes without pods; namespaces get names in `dir`.
    pub async fn create(dir: &Path, nodes: usize, cni: Cni, families: Families) -> Result<Self> {
        let underlay = router(dir, UNDERLAY, families).await?;
        let mut lines = Vec::new();
        add_bridge(&mut lines, "br0", plan::node_addresses(ROUTER)[0]);
        // The hosts outside know their router by the same address that routed pods use.
        lines.push(format!("addr add {LINK_LOCAL_V4}/32 dev lo"));
        for address in of(families, plan::node_addresses(ROUTER)) {
            lines.push(format!("addr add {} dev br0{}", subnet(address, 24, 64), nodad(address)));
        }
        underlay.ip(lines).await?;
        underlay.settings(patience_settings("br0", families)).await?;
        let mut network = Self {
            dir: dir.to_owned(),
            cni,
            families,
            underlay,
            nodes: Vec::new(),
            wired: BTreeMap::new(),
            n_interfaces: 0,
        };
        for node in 1..=nodes {
            let space = Arc::new(router(dir, &plan::node_name(node), families).await?);
            network.connect_node(node, &space).await?;
            network.nodes.push(space);
        }
        for node in 1..=nodes {
            network.route_between(node, nodes).await?;
        }
        Ok(network)
    }

    /// The namespace of a node (from 1).
    pub fn node(&self, node: usize) -> &Arc<Space> {
        &self.nodes[node - 1]
    }

    /// The namespace that the host's sockets are in, once it is wired.
    pub fn space(&self, host: &Host) -> Result<&Arc<Space>> {
        if let Place::HostNetwork(node) = host.place {
            return Ok(self.node(node));
        }
        let wired = self.wired.get(&host.id).with_context(|| format!("{host} is not wired"))?;
        Ok(&wired.space)
    }

    /// Removes the hosts that are not among these or have moved, and adds the new ones.
    pub async fn apply(&mut self, hosts: &[Host]) -> Result<()> {
        let wanted: BTreeMap<&ObjectName, &Host> =
            hosts.iter().map(|host| (&host.id, host)).collect();
        let stays = |id: &ObjectName, wired: &Wired| {
            wanted.get(id).is_some_and(|h| h.place == wired.place && h.addresses == wired.addresses)
        };
        let gone: Vec<ObjectName> = self
            .wired
            .iter()
            .filter(|(id, wired)| !stays(id, wired))
            .map(|(id, _)| id.clone())
            .collect();
        let mut given_up = Vec::new();
        for id in gone {
            if let Some(wired) = self.wired.remove(&id) {
                self.remove(&wired).await.with_context(|| format!("cannot remove {id}"))?;
                given_up.extend(wired.addresses);
            }
        }
        if hosts.iter().flat_map(|host| &host.addresses).any(|a| given_up.contains(a)) {
            self.forget_neighbours().await?;
        }
        for host in hosts {
            let own_network = !matches!(host.place, Place::HostNetwork(_));
            if own_network && !self.wired.contains_key(&host.id) {
                let wired = self.add(host).await.with_context(|| format!("cannot add {host}"))?;
                self.wired.insert(host.id.clone(), wired);
            }
        }
        Ok(())
    }

    async fn connect_node(&self, node: usize, space: &Space) -> Result<()> {
        let name = plan::node_name(node);
        let peer = space.path();
        self.underlay
            .ip(vec![
                format!("link add {name} type veth peer name eth0 netns {}", peer.display()),
                format!("link set {name} master br0"),
                format!("link set {name} up"),
            ])
            .await?;
        let mut lines = vec!["link set eth0 up".to_owned()];
        if self.cni == Cni::Bridge {
            add_bridge(&mut lines, "cbr0", plan::pod_addresses(node, 1)[0]);
            for address in of(self.families, plan::pod_addresses(node, 1)) {
                let subnet = subnet(address, 24, 64);
                lines.push(format!("addr add {subnet} dev cbr0{}", nodad(address)));
            }
        }
        for address in of(self.families, plan::node_addresses(node)) {
            lines.push(format!("addr add {} dev eth0{}", subnet(address, 24, 64), nodad(address)));
        }
        for router in of(self.families, plan::node_addresses(ROUTER)) {
            lines.push(format!("route add default via {router}"));
        }
        space.ip(lines).await?;
        if self.cni == Cni::Bridge {
            space.settings(patience_settings("cbr0", self.families)).await?;
        }
        space.settings(patience_settings("eth0", self.families)).await
    }

    /// Routes to the pod subnets of all nodes: on the node `of_node` and, once, on the router.
    async fn route_between(&self, of_node: usize, nodes: usize) -> Result<()> {
        let routes_to = |node: usize| {
            let gateways = plan::node_addresses(node).into_iter();
            let both = gateways.zip(plan::pod_addresses(node, 0));
            let both = both.filter(|(gateway, _)| self.families.include(*gateway));
            both.map(|(gateway, net)| format!("route add {} via {gateway}", subnet(net, 24, 64)))
        };
        let others = (1..=nodes).filter(|&node| node != of_node).flat_map(routes_to).collect();
        self.node(of_node).ip(others).await?;
        self.underlay.ip(routes_to(of_node).collect()).await
    }

    async fn add(&mut self, host: &Host) -> Result<Wired> {
        let name = format!("{}_{}", host.id.namespace, host.id.name);
        let space = Arc::new(Space::create(&self.dir, &name)?);
        space.settings(common_settings(self.families, false)).await?;
        self.n_interfaces += 1;
        let n = self.n_interfaces;
        let (router, interface, gateway) = match (host.place, self.cni) {
            (Place::Pod(node), Cni::Bridge) => {
                (self.node(node), format!("veth{n:08x}"), Some(node))
            }
            (Place::Pod(node), Cni::Routed) => (self.node(node), format!("cali{n:011x}"), None),
            _ => return self.add_outside(host, space, format!("out{n}")).await,
        };
        let mut lines = vec![add_veth(&interface, &space), format!("link set {interface} up")];
        match self.cni {
            Cni::Bridge => {
                lines.push(format!("link set {interface} master cbr0"));
                lines.push(format!("link set {interface} type bridge_slave hairpin on"));
            }
            Cni::Routed => prepare_routed(&mut lines, &interface, self.families),
        }
        let node = gateway;
        for &address in &host.addresses {
            match node {
                Some(node) if plan::in_pod_subnet(node, address) => {}
                Some(_) => lines.push(format!("route add {} dev cbr0", single(address))),
                None => lines.push(format!("route add {} dev {interface}", single(address))),
            }
        }
        router.ip(lines).await?;
        router.settings(patience_settings(&interface, self.families)).await?;
        if self.cni == Cni::Routed {
            router.settings(proxy_settings(&interface)).await?;
        }
        space.settings(patience_settings("eth0", self.families)).await?;
        let inside = match gateway {
            Some(node) => bridged_pod(node, &host.addresses),
            None => routed_pod(&host.addresses),
        };
        space.ip(inside).await?;
        let wired =
            Wired { place: host.place, addresses: host.addresses.clone(), interface, space };
        self.route_far(&wired, "add").await?;
        Ok(wired)
    }

    async fn add_outside(
        &self,
        host: &Host,
        space: Arc<Space>,
        interface: String,
    ) -> Result<Wired> {
        let mut lines = vec![add_veth(&interface, &space), format!("link set {interface} up")];
        prepare_routed(&mut lines, &interface, self.families);
        for &address in &host.addresses {
            lines.push(format!("route add {} dev {interface}", single(address)));
        }
        self.underlay.ip(lines).await?;
        self.underlay.settings(patience_settings(&interface, self.families)).await?;
        space.settings(patience_settings("eth0", self.families)).await?;
        space.ip(routed_pod(&host.addresses)).await?;
        Ok(Wired { place: host.place, addresses: host.addresses.clone(), interface, space })
    }

    async fn remove(&self, wired: &Wired) -> Result<()> {
        let router = match wired.place {
            Place::Pod(node) => self.node(node),
            _ => &self.underlay,
        };
        // Open sockets may keep the namespace for a while; without its veth it is cut off.
        let mut lines = vec![format!("link del {}", wired.interface)];
        if let (Place::Pod(node), Cni::Bridge) = (wired.place, self.cni) {
            let odd = wired.addresses.iter().filter(|&&a| !plan::in_pod_subnet(node, a));
            lines.extend(odd.map(|&address| format!("route del {} dev cbr0", single(address))));
        }
        router.ip(lines).await?;
        self.route_far(wired, "del").await
    }

    /// An address that gets a new owner would be looked for at the old one for some seconds.
    async fn forget_neighbours(&self) -> Result<()> {
        let pods = self.wired.values().map(|wired| &wired.space);
        for space in self.nodes.iter().chain(pods) {
            space.ip(vec!["neigh flush all".to_owned()]).await?;
        }
        Ok(())
    }

    /// Routes everywhere else to pod addresses that lie outside their node's pod subnet.
    async fn route_far(&self, wired: &Wired, action: &str) -> Result<()> {
        let Place::Pod(node) = wired.place else { return Ok(()) };
        let mut lines = Vec::new();
        for &address in wired.addresses.iter().filter(|&&a| !plan::in_pod_subnet(node, a)) {
            let [v4, v6] = plan::node_addresses(node);
            let gateway = if address.is_ipv4() { v4 } else { v6 };
            lines.push(format!("route {action} {} via {gateway}", single(address)));
        }
        let others = self.nodes.iter().enumerate().filter(|(index, _)| index + 1 != node);
        for (_, space) in others {
            space.ip(lines.clone()).await?;
        }
        self.underlay.ip(lines).await
    }
}

/// A new namespace that forwards.
async fn router(dir: &Path, name: &str, families: Families) -> Result<Space> {
    let space = Space::create(dir, name)?;
    space.settings(common_settings(families, true)).await?;
    space.ip(vec!["link set lo up".to_owned()]).await?;
    Ok(space)
}

/// A bridge with an address of its own: else it takes that of one of its ports, and when the port
/// goes everyone sends to an address that is no more. Kubenet sets 0a:58 and the gateway's bytes.
fn add_bridge(lines: &mut Vec<String>, name: &str, gateway: IpAddr) {
    lines.push(format!("link add {name} type bridge stp_state 0 forward_delay 0 mcast_snooping 0"));
    if let IpAddr::V4(gateway) = gateway {
        let [a, b, c, d] = gateway.octets();
        lines.push(format!("link set {name} address 0a:58:{a:02x}:{b:02x}:{c:02x}:{d:02x}"));
    }
    lines.push(format!("link set {name} up"));
}

fn add_veth(interface: &str, space: &Space) -> String {
    let peer = space.path();
    format!("link add {interface} type veth peer name eth0 netns {}", peer.display())
}

/// The host's end of a routed veth.
fn prepare_routed(lines: &mut Vec<String>, interface: &str, families: Families) {
    if families.include(std::net::Ipv6Addr::UNSPECIFIED.into()) {
        lines.push(format!("addr add {LINK_LOCAL_V6}/64 dev {interface} nodad"));
    }
}

fn proxy_settings(interface: &str) -> Vec<(String, &'static str)> {
    vec![
        (format!("ipv4/conf/{interface}/proxy_arp"), "1"),
        // The default delays each answer by up to 0.8 s.
        (format!("ipv4/neigh/{interface}/proxy_delay"), "0"),
    ]
}

/// The first packets over a new interface may be lost while the kernel still brings it up; a lost
/// ARP request or neighbour solicitation is then repeated soon and not after a second.
fn patience_settings(interface: &str, families: Families) -> Vec<(String, &'static str)> {
    let with_ipv6 = families.include(std::net::Ipv6Addr::UNSPECIFIED.into());
    let versions: &[&str] = if with_ipv6 { &["ipv4", "ipv6"] } else { &["ipv4"] };
    let setting = |version| format!("{version}/neigh/{interface}/retrans_time_ms");
    versions.iter().map(|version| (setting(version), "100")).collect()
}

fn bridged_pod(node: usize, addresses: &[IpAddr]) -> Vec<String> {
    let mut lines = pod_links();
    for &address in addresses {
        let [v4, v6] = plan::pod_addresses(node, 1);
        let gateway = if address.is_ipv4() { v4 } else { v6 };
        if plan::in_pod_subnet(node, address) {
            lines.push(format!("addr add {} dev eth0{}", subnet(address, 24, 64), nodad(address)));
        } else {
            lines.push(format!("addr add {} dev eth0{}", single(address), nodad(address)));
            lines.push(format!("route add {gateway} dev eth0"));
        }
        lines.push(format!("route add default via {gateway} dev eth0"));
    }
    lines
}

fn routed_pod(addresses: &[IpAddr]) -> Vec<String> {
    let mut lines = pod_links();
    for &address in addresses {
        lines.push(format!("addr add {} dev eth0{}", single(address), nodad(address)));
        if address.is_ipv4() {
            lines.push(format!("route add {LINK_LOCAL_V4} dev eth0 scope link"));
            lines.push(format!("route add default via {LINK_LOCAL_V4} dev eth0"));
        } else {
            lines.push(format!("route add default via {LINK_LOCAL_V6} dev eth0"));
        }
    }
    lines
}

fn pod_links() -> Vec<String> {
    vec!["link set lo up".to_owned(), "link set eth0 up".to_owned()]
}

/// New interfaces take what is set here: no waiting for duplicate addresses, no reverse path
/// filter (what a pod may send is the policy engine's to decide), no redirects.
fn common_settings(families: Families, forward: bool) -> Vec<(String, &'static str)> {
    let mut settings = Vec::new();
    let mut set = |name: &str, value| settings.push((name.to_owned(), value));
    for scope in ["all", "default"] {
        set(&format!("ipv4/conf/{scope}/rp_filter"), "0");
        set(&format!("ipv4/conf/{scope}/send_redirects"), "0");
        set(&format!("ipv4/conf/{scope}/accept_redirects"), "0");
    }
    if forward {
        set("ipv4/ip_forward", "1");
    }
    if families.include(std::net::Ipv6Addr::UNSPECIFIED.into()) {
        for scope in ["all", "default"] {
            set(&format!("ipv6/conf/{scope}/disable_ipv6"), "0");
            set(&format!("ipv6/conf/{scope}/accept_dad"), "0");
            set(&format!("ipv6/conf/{scope}/accept_ra"), "0");
            set(&format!("ipv6/conf/{scope}/accept_redirects"), "0");
        }
        if forward {
            set("ipv6/conf/all/forwarding", "1");
        }
    }
    settings
}

fn of(families: Families, pair: [IpAddr; 2]) -> impl Iterator<Item = IpAddr> {
    pair.into_iter().filter(move |&address| families.include(address))
}

fn subnet(address: IpAddr, v4: u8, v6: u8) -> String {
    format!("{address}/{}", if address.is_ipv4() { v4 } else { v6 })
}

fn single(address: IpAddr) -> String {
    subnet(address, 32, 128)
}

fn nodad(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "" } else { " nodad" }
}
