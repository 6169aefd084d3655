//! nftables rules as two peers write them. Must never be better or worse than theirs without saying
//! so here.
//!
//! *Calico* (nftables mode): a verdict map leads to a chain for each endpoint, which accepts what
//! conntrack knows and then goes through the policies that select the endpoint, each a chain with a
//! set of peers; a mark says that one has allowed the packet. Calico's maps are keyed by interface;
//! here they are by address, so that they work on a bridge too. Left out are its chains for host
//! endpoints and profiles, which are empty where only NetworkPolicies are used.
//!
//! *kube-network-policies*: conntrack's established connections are accepted, and the first packets
//! of isolated pods go to a process by a queue. Here one set of (pod, peer, protocol, ports) judges
//! them in the kernel instead, so this is what that design costs at the very least.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

use anyhow::Result;
use netpol_isolation::netns::Netns;

use super::population::{PORTS, Population, local_pods};
use super::tools::feed;

/// Policies between two looks at the mark.
const GROUP: usize = 5;

/// Conntrack and nothing else, as the rules of kube-proxy bring it.
pub fn install_conntrack(node: &Netns) -> Result<()> {
    let rules = "table ip bench { chain forward { type filter hook forward priority 0; \
                 policy accept; ct state established accept; }; }";
    feed(node, "nft", &["-f", "-"], rules)
}

/// As Calico.
pub fn install_chains(node: &Netns, population: Population) -> Result<()> {
    feed(node, "nft", &["-f", "-"], &chains(population))
}

/// As kube-network-policies.
pub fn install_set(node: &Netns, population: Population) -> Result<()> {
    feed(node, "nft", &["-f", "-"], &one_set(population))
}

fn chains(population: Population) -> String {
    let mut text = String::from("table ip bench {\n");
    for policy in 0..population.policies {
        let peers = list(population.peers(policy));
        let _ =
            writeln!(text, " set peers-{policy} {{ type ipv4_addr; elements = {{ {peers} }}; }}");
        for (direction, side) in [("in", "saddr"), ("out", "daddr")] {
            let _ = writeln!(text, " chain policy-{direction}-{policy} {{");
            for protocol in ["tcp", "udp"] {
                let _ = writeln!(
                    text,
                    "  ip {side} @peers-{policy} {protocol} dport {}-{} \
                     meta mark set meta mark | 0x10000",
                    PORTS.start(),
                    PORTS.end()
                );
            }
            text += " }\n";
        }
    }
    for direction in ["in", "out"] {
        let mut elements = Vec::new();
        for pod in isolated(population) {
            endpoint(&mut text, direction, pod, population);
            elements.push(format!("{pod} : goto {}", chain(direction, pod)));
        }
        let _ = writeln!(
            text,
            " map dispatch-{direction} {{ type ipv4_addr : verdict; elements = {{ {} }}; }}",
            elements.join(", ")
        );
    }
    text + " chain from-workload { ip saddr vmap @dispatch-out; }
 chain to-workload { ip daddr vmap @dispatch-in; }
 chain forward {
  type filter hook forward priority 0; policy accept;
  meta mark set meta mark & 0xfffcffff
  jump from-workload
  jump to-workload
  meta mark & 0x10000 == 0x10000 accept
 }
}
"
}

/// Pods that some policy selects.
fn isolated(population: Population) -> impl Iterator<Item = Ipv4Addr> {
    local_pods().filter(move |pod| population.selecting(*pod).next().is_some())
}

/// The chain of an endpoint in one direction.
fn endpoint(text: &mut String, direction: &str, pod: Ipv4Addr, population: Population) {
    let _ = writeln!(text, " chain {} {{", chain(direction, pod));
    *text += "  ct state established,related accept\n  ct state invalid drop\n  \
              meta mark set meta mark & 0xfffcffff\n";
    for (number, policy) in population.selecting(pod).enumerate() {
        let _ = writeln!(text, "  meta mark & 0x30000 == 0 jump policy-{direction}-{policy}");
        if number % GROUP == GROUP - 1 {
            *text += "  meta mark & 0x10000 == 0x10000 return\n";
        }
    }
    *text += "  meta mark & 0x10000 == 0x10000 return\n  drop\n }\n";
}

fn one_set(population: Population) -> String {
    let mut text = format!(
        "table ip bench {{\n set pods {{ type ipv4_addr; elements = {{ {} }}; }}\n",
        list(isolated(population))
    );
    let _ = writeln!(
        text,
        " set allowed {{ type ipv4_addr . ipv4_addr . inet_proto . inet_service; flags interval;\n  \
         elements = {{"
    );
    for policy in 0..population.policies {
        let pod = population.selected(policy);
        for peer in population.peers(policy) {
            for protocol in ["tcp", "udp"] {
                let (first, last) = (PORTS.start(), PORTS.end());
                let _ = writeln!(text, "   {pod} . {peer} . {protocol} . {first}-{last},");
            }
        }
    }
    text + "  };
 }
 chain forward {
  type filter hook forward priority 0; policy accept;
  ct state established,related accept
  ip saddr @pods ip saddr . ip daddr . meta l4proto . th dport != @allowed drop
  ip daddr @pods ip daddr . ip saddr . meta l4proto . th dport != @allowed drop
 }
}
"
}

fn chain(direction: &str, pod: Ipv4Addr) -> String {
    format!("endpoint-{direction}-{:08x}", u32::from(pod))
}

fn list(addresses: impl IntoIterator<Item = Ipv4Addr>) -> String {
    let texts: Vec<String> = addresses.into_iter().map(|address| address.to_string()).collect();
    texts.join(", ")
}
