//! Two pods on a node, each in a network namespace of its own, as CNI plugins wire them. Must never
//! filter anything.

use std::net::Ipv4Addr;
use std::os::fd::{AsFd as _, AsRawFd as _};

use anyhow::{Context as _, Result};
use netpol_isolation::netns::Netns;

use super::tools::{ip, set};

/// How the pods are connected to their node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wiring {
    /// A route to each pod's veth and a link-local gateway, as Calico and ptp do.
    Routed,
    /// Veths on a bridge, whose packets meet netfilter, as kube-proxy wants it.
    Bridge,
}

impl Wiring {
    /// As tables call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Routed => "routed",
            Self::Bridge => "bridge",
        }
    }
}

/// The pod that opens all connections.
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 56);
/// The pod that answers.
pub const SERVER: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 57);
/// The node's own address; on a bridge it is the bridge's.
pub const NODE: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 1);
/// What routed pods take for their gateway.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// The node's ends of the pods' veths.
pub const INTERFACES: [&str; 2] = ["vethc", "veths"];
/// The bridge.
pub const BRIDGE: &str = "cni0";

/// The namespaces. They go when this is dropped, or with the process.
#[derive(Debug)]
pub struct Pair {
    pub node: Netns,
    pub client: Netns,
    pub server: Netns,
}

impl Pair {
    /// Two pods that reach each other.
    pub fn connect(wiring: Wiring) -> Result<Self> {
        let space = || Netns::create_anonymous().context("cannot create a network namespace");
        let pair = Self { node: space()?, client: space()?, server: space()? };
        for netns in [&pair.node, &pair.client, &pair.server] {
            set(
                netns,
                &[
                    ("ipv6/conf/all/disable_ipv6", "1"),
                    ("ipv6/conf/default/disable_ipv6", "1"),
                    ("ipv4/conf/all/rp_filter", "0"),
                    ("ipv4/conf/default/rp_filter", "0"),
                ],
            )?;
            ip(netns, "link set lo up")?;
        }
        set(&pair.node, &[("ipv4/ip_forward", "1")])?;
        // Enough for all connections that rest in TIME_WAIT.
        set(&pair.client, &[("ipv4/ip_local_port_range", "10000 65000")])?;
        match wiring {
            Wiring::Routed => ip(&pair.node, &format!("address add {NODE}/32 dev lo"))?,
            Wiring::Bridge => pair.add_bridge()?,
        }
        let others = [(CLIENT, &pair.client, SERVER), (SERVER, &pair.server, CLIENT)];
        for (number, (address, netns, other)) in others.into_iter().enumerate() {
            pair.add_pod(wiring, number, address, netns, other)?;
        }
        Ok(pair)
    }

    fn add_bridge(&self) -> Result<()> {
        let mac = mac(0, 0);
        ip(
            &self.node,
            &format!(
                "link add {BRIDGE} address {mac} type bridge stp_state 0 forward_delay 0 \
                 mcast_snooping 0\n\
                 address add {NODE}/24 dev {BRIDGE}\nlink set {BRIDGE} up"
            ),
        )?;
        set(&self.node, &[("bridge/bridge-nf-call-iptables", "1")])
            .context("without br_netfilter bridged packets meet no filter: modprobe br_netfilter")
    }

    /// Neighbours are told, so that no one ever has to ask.
    fn add_pod(
        &self,
        wiring: Wiring,
        number: usize,
        address: Ipv4Addr,
        netns: &Netns,
        other: Ipv4Addr,
    ) -> Result<()> {
        let (interface, other_number) = (INTERFACES[number], 1 - number);
        let (outer, inner) = (mac(1, number), mac(2, number));
        // The open namespace has no name; this is where `ip` finds it.
        let path = format!("/proc/{}/fd/{}", std::process::id(), netns.as_fd().as_raw_fd());
        let mut on_node = format!(
            "link add {interface} address {outer} type veth peer name eth0 address {inner} \
             netns {path}\nlink set {interface} up\n"
        );
        let mut in_pod = "link set eth0 up\n".to_owned();
        match wiring {
            Wiring::Routed => {
                on_node += &format!(
                    "address add {GATEWAY}/32 dev {interface}\n\
                     route add {address}/32 dev {interface} src {NODE}\n\
                     neighbour add {address} lladdr {inner} dev {interface} nud permanent\n"
                );
                in_pod += &format!(
                    "address add {address}/32 dev eth0\nroute add {GATEWAY} dev eth0\n\
                     route add default via {GATEWAY} src {address}\n\
                     neighbour add {GATEWAY} lladdr {outer} dev eth0 nud permanent\n"
                );
            }
            Wiring::Bridge => {
                on_node += &format!("link set {interface} master {BRIDGE}\n");
                in_pod += &format!(
                    "address add {address}/24 dev eth0\nroute add default via {NODE}\n\
                     neighbour add {other} lladdr {} dev eth0 nud permanent\n",
                    mac(2, other_number)
                );
            }
        }
        ip(&self.node, &on_node)?;
        ip(netns, &in_pod)
    }
}

fn mac(kind: usize, number: usize) -> String {
    format!("02:00:00:00:{kind:02x}:{number:02x}")
}
