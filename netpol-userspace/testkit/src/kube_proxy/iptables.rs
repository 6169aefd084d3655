//! The rules of kube-proxy's iptables mode (pkg/proxy/iptables/proxier.go), for
//! `iptables-restore --noflush`. Must never contain a rule that kube-proxy would not write.

use std::net::{IpAddr, SocketAddr};

use super::{Config, Family, Lines, MASQUERADE_MARK, Port, Rules, hash};

/// The command that takes the rules.
pub(super) fn restore(family: Family) -> Vec<&'static str> {
    let program = if family == Family::V4 { "iptables-restore" } else { "ip6tables-restore" };
    vec![program, "--noflush"]
}

const FILTER_CHAINS: &[&str] = &[
    "KUBE-SERVICES",
    "KUBE-EXTERNAL-SERVICES",
    "KUBE-FORWARD",
    "KUBE-NODEPORTS",
    "KUBE-PROXY-FIREWALL",
];
const NAT_CHAINS: &[&str] =
    &["KUBE-SERVICES", "KUBE-NODEPORTS", "KUBE-POSTROUTING", "KUBE-MARK-MASQ"];

/// The jumps into kube-proxy's chains, which it makes once.
pub(super) fn jumps() -> String {
    let new = "-m conntrack --ctstate NEW";
    let mut lines = Lines::default();
    lines.add("*filter");
    FILTER_CHAINS.iter().for_each(|chain| lines.add(format!(":{chain} - [0:0]")));
    for (from, condition, to) in [
        ("INPUT", new, "KUBE-EXTERNAL-SERVICES"),
        ("FORWARD", new, "KUBE-EXTERNAL-SERVICES"),
        ("INPUT", "", "KUBE-NODEPORTS"),
        ("FORWARD", new, "KUBE-SERVICES"),
        ("OUTPUT", new, "KUBE-SERVICES"),
        ("FORWARD", "", "KUBE-FORWARD"),
        ("INPUT", new, "KUBE-PROXY-FIREWALL"),
        ("OUTPUT", new, "KUBE-PROXY-FIREWALL"),
        ("FORWARD", new, "KUBE-PROXY-FIREWALL"),
    ] {
        lines.add(format!("-I {from} {condition} -j {to}"));
    }
    lines.add("COMMIT\n*nat");
    NAT_CHAINS.iter().for_each(|chain| lines.add(format!(":{chain} - [0:0]")));
    for (from, to) in [
        ("OUTPUT", "KUBE-SERVICES"),
        ("PREROUTING", "KUBE-SERVICES"),
        ("POSTROUTING", "KUBE-POSTROUTING"),
    ] {
        lines.add(format!("-I {from} -j {to}"));
    }
    lines.add("COMMIT");
    lines.0
}

struct Writer<'a> {
    filter: Lines,
    nat_chains: Lines,
    nat: Lines,
    config: &'a Config,
    pod_cidr: &'static str,
    chains: Vec<String>,
}

/// The names of a port's chains.
struct Names {
    /// All endpoints (`SVC`).
    cluster: String,
    /// The node's own (`SVL`).
    local: String,
    /// What comes to external addresses (`EXT`).
    external: String,
}

/// Everything anew but the chains of others.
pub(super) fn rules(family: Family, ports: &[Port], config: &Config, before: &[String]) -> Rules {
    let mut writer = Writer {
        filter: Lines::default(),
        nat_chains: Lines::default(),
        nat: Lines::default(),
        config,
        pod_cidr: config.pod_cidr(family),
        chains: Vec::new(),
    };
    writer.masquerading();
    for port in ports {
        writer.port(port);
    }
    for stale in before.iter().filter(|chain| !writer.chains.contains(chain)) {
        writer.nat_chains.add(format!(":{stale} - [0:0]"));
        writer.nat.add(format!("-X {stale}"));
    }
    let not_loopback = if family == Family::V4 { "127.0.0.0/8" } else { "::1/128" };
    writer.nat.add(format!(
        "-A KUBE-SERVICES -m addrtype --dst-type LOCAL ! -d {not_loopback} -j KUBE-NODEPORTS"
    ));
    writer.forwarding();
    let mut text = Lines::default();
    text.add("*filter");
    FILTER_CHAINS.iter().for_each(|chain| text.add(format!(":{chain} - [0:0]")));
    text.add(writer.filter.0.trim_end());
    text.add("COMMIT\n*nat");
    NAT_CHAINS.iter().for_each(|chain| text.add(format!(":{chain} - [0:0]")));
    text.add(format!("{}{}COMMIT", writer.nat_chains.0, writer.nat.0));
    Rules { text: text.0, chains: writer.chains }
}

impl Writer<'_> {
    fn masquerading(&mut self) {
        let mark = MASQUERADE_MARK;
        self.nat.add(format!("-A KUBE-POSTROUTING -m mark ! --mark {mark}/{mark} -j RETURN"));
        self.nat.add(format!("-A KUBE-POSTROUTING -j MARK --xor-mark {mark}"));
        self.nat.add("-A KUBE-POSTROUTING -j MASQUERADE --random-fully");
        self.nat.add(format!("-A KUBE-MARK-MASQ -j MARK --or-mark {mark}"));
    }

    fn forwarding(&mut self) {
        let mark = MASQUERADE_MARK;
        self.filter.add("-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP");
        self.filter.add(format!("-A KUBE-FORWARD -m mark --mark {mark}/{mark} -j ACCEPT"));
        self.filter.add("-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT");
    }

    fn port(&mut self, port: &Port) {
        let id = hash(&[&port.name, &port.protocol], 16);
        let names = Names {
            cluster: format!("KUBE-SVC-{id}"),
            local: format!("KUBE-SVL-{id}"),
            external: format!("KUBE-EXT-{id}"),
        };
        self.cluster_ip(port, &names);
        self.external_addresses(port, &names);
        self.node_port(port, &names);
        if !port.internal().is_empty() {
            self.internal_masquerade(port, &names);
        }
        if !port.cluster.is_empty() && port.externally_accessible() {
            self.external_chain(port, &names);
        }
        if port.uses_cluster() {
            self.dispatch(&names.cluster, port, &port.cluster);
        }
        if port.uses_local() {
            self.dispatch(&names.local, port, &port.local);
        }
        for &endpoint in port.reachable() {
            self.endpoint(port, endpoint);
        }
    }

    fn cluster_ip(&mut self, port: &Port, names: &Names) {
        let to = to_address(port, port.cluster_ip);
        if port.internal().is_empty() {
            self.filter.add(format!("-A KUBE-SERVICES {to} -j {}", refusal(port)));
        } else {
            let chain = if port.internal_local { &names.local } else { &names.cluster };
            self.nat.add(format!("-A KUBE-SERVICES {to} -j {chain}"));
        }
    }

    fn external_addresses(&mut self, port: &Port, names: &Names) {
        for &address in port.external_ips.iter().chain(&port.balancer_ips) {
            let to = to_address(port, address);
            if !port.cluster.is_empty() {
                self.nat.add(format!("-A KUBE-SERVICES {to} -j {}", names.external));
            }
            if port.external().is_empty() {
                self.filter.add(format!("-A KUBE-EXTERNAL-SERVICES {to} -j {}", refusal(port)));
            }
        }
    }

    fn node_port(&mut self, port: &Port, names: &Names) {
        let (Some(number), protocol) = (port.node_port, &port.protocol) else { return };
        let to = format!("-m {protocol} -p {protocol} --dport {number}");
        if !port.cluster.is_empty() {
            self.nat.add(format!("-A KUBE-NODEPORTS {to} -j {}", names.external));
        }
        if port.external().is_empty() {
            let local = "-m addrtype --dst-type LOCAL";
            self.filter.add(format!("-A KUBE-EXTERNAL-SERVICES {local} {to} -j {}", refusal(port)));
        }
    }

    /// At the head of the chain that the cluster IP leads to.
    fn internal_masquerade(&mut self, port: &Port, names: &Names) {
        let chain = if port.internal_local { &names.local } else { &names.cluster };
        let to = to_address(port, port.cluster_ip);
        let pods = self.pod_cidr;
        let from = if self.config.masquerade_all { String::new() } else { format!("! -s {pods}") };
        self.nat.add(format!("-A {chain} {to} {from} -j KUBE-MARK-MASQ"));
    }

    fn external_chain(&mut self, port: &Port, names: &Names) {
        let chain = &names.external;
        self.start(chain);
        if port.external_local {
            let local = "-m addrtype --src-type LOCAL";
            self.nat.add(format!("-A {chain} -s {} -j {}", self.pod_cidr, names.cluster));
            self.nat.add(format!("-A {chain} {local} -j KUBE-MARK-MASQ"));
            self.nat.add(format!("-A {chain} {local} -j {}", names.cluster));
        } else {
            self.nat.add(format!("-A {chain} -j KUBE-MARK-MASQ"));
        }
        if !port.external().is_empty() {
            let to = if port.external_local { &names.local } else { &names.cluster };
            self.nat.add(format!("-A {chain} -j {to}"));
        }
    }

    /// The rules that pick an endpoint.
    fn dispatch(&mut self, chain: &str, port: &Port, endpoints: &[SocketAddr]) {
        self.start(chain);
        for (index, &endpoint) in endpoints.iter().enumerate() {
            let remaining = endpoints.len() - index;
            let chance = match remaining {
                1 => String::new(),
                _ => {
                    let probability = 1.0 / remaining as f64;
                    format!("-m statistic --mode random --probability {probability:.10}")
                }
            };
            self.nat.add(format!("-A {chain} {chance} -j {}", endpoint_chain(port, endpoint)));
        }
    }

    fn endpoint(&mut self, port: &Port, endpoint: SocketAddr) {
        let (chain, protocol) = (endpoint_chain(port, endpoint), &port.protocol);
        self.start(&chain);
        self.nat.add(format!("-A {chain} -s {} -j KUBE-MARK-MASQ", endpoint.ip()));
        self.nat.add(format!(
            "-A {chain} -m {protocol} -p {protocol} -j DNAT --to-destination {endpoint}"
        ));
    }

    fn start(&mut self, chain: &str) {
        self.nat_chains.add(format!(":{chain} - [0:0]"));
        self.chains.push(chain.to_owned());
    }
}

fn to_address(port: &Port, address: IpAddr) -> String {
    let protocol = &port.protocol;
    format!("-m {protocol} -p {protocol} -d {address} --dport {}", port.port)
}

/// What becomes of packets to a Service without endpoints; with some, but none of the sort asked
/// for, they vanish.
fn refusal(port: &Port) -> &'static str {
    if port.cluster.is_empty() { "REJECT" } else { "DROP" }
}

fn endpoint_chain(port: &Port, endpoint: SocketAddr) -> String {
    format!("KUBE-SEP-{}", hash(&[&port.name, &port.protocol, &endpoint.to_string()], 16))
}
