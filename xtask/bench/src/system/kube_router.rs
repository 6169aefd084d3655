//! iptables rules and IP sets as kube-router v2 writes them: a chain for each pod that a rule for
//! its address leads to, from there to a chain for each policy that selects the pod, and marks that
//! say whether one has allowed the packet. By iptables-nft, which is Debian's iptables.
//!
//! Left out are the rules for Services, which only the node's own traffic meets, and IPv6.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

use anyhow::Result;
use netpol_isolation::netns::Netns;

use super::population::{PORTS, Population, local_pods};
use super::tools::feed;

/// Where each of the built-in chains leads.
const CHAINS: [(&str, &str); 3] = [
    ("INPUT", "KUBE-ROUTER-INPUT"),
    ("FORWARD", "KUBE-ROUTER-FORWARD"),
    ("OUTPUT", "KUBE-ROUTER-OUTPUT"),
];
/// What allows everything to pods that no policy selects.
const DEFAULT: &str = "KUBE-NWPLCY-DEFAULT";

/// Puts them in force on the node.
pub fn install(node: &Netns, population: Population) -> Result<()> {
    feed(node, "ipset", &["restore"], &sets(population))?;
    feed(node, "iptables-nft-restore", &[], &rules(population))
}

/// Of each policy the pods that it selects and those that are their peers, for each direction.
fn sets(population: Population) -> String {
    let mut text = String::new();
    for policy in 0..population.policies {
        let peers = population.peers(policy);
        for name in ["DST-I", "SRC-E"] {
            set(&mut text, name, policy, &[population.selected(policy)]);
        }
        for name in ["SRC-I", "DST-E"] {
            set(&mut text, name, policy, &peers);
        }
    }
    text
}

fn set(text: &mut String, kind: &str, policy: u32, addresses: &[Ipv4Addr]) {
    let _ = writeln!(text, "create KUBE-{kind}-{policy} hash:ip family inet timeout 0");
    for address in addresses {
        let _ = writeln!(text, "add KUBE-{kind}-{policy} {address} timeout 0");
    }
}

fn rules(population: Population) -> String {
    let mut text = String::from("*filter\n");
    for (_, chain) in CHAINS {
        let _ = writeln!(text, ":{chain} - [0:0]");
    }
    let _ = writeln!(text, ":KUBE-NWPLCY-COMMON - [0:0]\n:{DEFAULT} - [0:0]");
    for policy in 0..population.policies {
        let _ = writeln!(text, ":KUBE-NWPLCY-{policy} - [0:0]");
    }
    for pod in local_pods() {
        let _ = writeln!(text, ":{} - [0:0]", pod_chain(pod));
    }
    for (built_in, chain) in CHAINS {
        let _ = writeln!(text, "-A {built_in} {} -j {chain}", comment("kube-router netpol"));
    }
    common(&mut text);
    let mark = "-j MARK --set-xmark 0x10000/0x10000";
    let _ = writeln!(text, "-A {DEFAULT} {mark}");
    for policy in 0..population.policies {
        policy_rules(&mut text, policy);
    }
    for pod in local_pods() {
        pod_rules(&mut text, pod, population);
    }
    for (_, chain) in CHAINS {
        let text_of = comment("rule to explicitly ACCEPT traffic that comply to network policies");
        let _ = writeln!(text, "-A {chain} {text_of} -m mark --mark 0x20000/0x20000 -j ACCEPT");
    }
    text + "COMMIT\n"
}

/// What every pod's chain begins with.
fn common(text: &mut String) {
    for (about, rest) in [
        ("rule to drop invalid state for pod", "-m conntrack --ctstate INVALID -j DROP"),
        (
            "rule for stateful firewall for pod",
            "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        ),
        ("allow icmp echo-request messages", "-p icmp --icmp-type echo-request -j ACCEPT"),
        (
            "allow icmp destination-unreachable messages",
            "-p icmp --icmp-type destination-unreachable -j ACCEPT",
        ),
        ("allow icmp time-exceeded messages", "-p icmp --icmp-type time-exceeded -j ACCEPT"),
    ] {
        let _ = writeln!(text, "-A KUBE-NWPLCY-COMMON {} {rest}", comment(about));
    }
}

/// For each direction and protocol: mark what is allowed, and return at once.
fn policy_rules(text: &mut String, policy: u32) {
    let about = comment(&format!("rule to ACCEPT traffic by policy {policy}"));
    let ports = format!("{}:{}", PORTS.start(), PORTS.end());
    for direction in ["I", "E"] {
        let matched = format!(
            "{about} -m set --match-set KUBE-SRC-{direction}-{policy} src \
             -m set --match-set KUBE-DST-{direction}-{policy} dst"
        );
        for protocol in ["tcp", "udp"] {
            let chain = format!("-A KUBE-NWPLCY-{policy} {matched} -p {protocol} --dport {ports}");
            let _ = writeln!(text, "{chain} -j MARK --set-xmark 0x10000/0x10000");
            let _ = writeln!(text, "{chain} -m mark --mark 0x10000/0x10000 -j RETURN");
        }
    }
}

fn pod_rules(text: &mut String, pod: Ipv4Addr, population: Population) {
    let chain = pod_chain(pod);
    let jump = comment(&format!("rule to jump traffic of POD {pod} to chain {chain}"));
    let bridged = "-m physdev --physdev-is-bridged";
    for (from, rest) in [
        ("FORWARD", format!("{jump} -d {pod}")),
        ("OUTPUT", format!("{jump} -d {pod}")),
        ("FORWARD", format!("{bridged} {jump} -d {pod}")),
        ("INPUT", format!("{jump} -s {pod}")),
        ("FORWARD", format!("{jump} -s {pod}")),
        ("OUTPUT", format!("{jump} -s {pod}")),
        ("FORWARD", format!("{bridged} {jump} -s {pod}")),
    ] {
        let _ = writeln!(text, "-A KUBE-ROUTER-{from} {rest} -j {chain}");
    }
    let node = comment("rule to permit the traffic to pods when source is the pod's local node");
    let _ = writeln!(text, "-A {chain} -j KUBE-NWPLCY-COMMON");
    let _ = writeln!(text, "-A {chain} {node} -m addrtype --src-type LOCAL -d {pod} -j ACCEPT");
    for policy in population.selecting(pod) {
        let about = comment(&format!("run through nw policy {policy}"));
        let _ = writeln!(text, "-A {chain} {about} -j KUBE-NWPLCY-{policy}");
    }
    if population.selecting(pod).next().is_none() {
        for side in ["-d", "-s"] {
            let _ = writeln!(text, "-A {chain} {side} {pod} -j {DEFAULT}");
        }
    }
    let unmarked = "-m mark ! --mark 0x10000/0x10000";
    for rest in [
        format!(
            "{unmarked} -m limit --limit 10/minute --limit-burst 10 -j NFLOG --nflog-group 100"
        ),
        format!("{unmarked} -j REJECT"),
        "-j MARK --set-mark 0/0x10000".to_owned(),
        "-j MARK --set-mark 0x20000/0x20000".to_owned(),
    ] {
        let _ = writeln!(text, "-A {chain} {rest}");
    }
}

fn pod_chain(pod: Ipv4Addr) -> String {
    format!("KUBE-POD-FW-{:08X}", u32::from(pod))
}

fn comment(text: &str) -> String {
    format!("-m comment --comment \"{text}\"")
}
