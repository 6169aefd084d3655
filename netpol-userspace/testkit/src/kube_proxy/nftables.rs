//! The rules of kube-proxy's nftables mode (pkg/proxy/nftables/proxier.go). Must never contain a
//! rule that kube-proxy would not write.

use std::net::{IpAddr, SocketAddr};

use super::{Config, Family, Lines, MASQUERADE_MARK, Port, Rules, hash};

const BASE_CHAINS: &[(&str, &str)] = &[
    ("filter-prerouting-pre-dnat", "filter hook prerouting priority -110"),
    ("filter-output-pre-dnat", "filter hook output priority -110"),
    ("filter-forward", "filter hook forward priority 0"),
    ("filter-input", "filter hook input priority 0"),
    ("filter-output", "filter hook output priority 0"),
    ("nat-output", "nat hook output priority -100"),
    ("nat-postrouting", "nat hook postrouting priority 100"),
    ("nat-prerouting", "nat hook prerouting priority -100"),
];

const CHAINS: &[&str] = &[
    "cluster-ips-check",
    "mark-for-masquerade",
    "masquerading",
    "nodeport-endpoints-check",
    "reject-chain",
    "services",
    "service-endpoints-check",
];

const JUMPS: &[(&str, &str)] = &[
    ("filter-forward", "ct state new jump service-endpoints-check"),
    ("filter-forward", "ct state new jump cluster-ips-check"),
    ("filter-input", "ct state new jump nodeport-endpoints-check"),
    ("filter-input", "ct state new jump service-endpoints-check"),
    ("filter-output", "ct state new jump service-endpoints-check"),
    ("filter-output", "ct state new jump cluster-ips-check"),
    ("nat-output", "jump services"),
    ("nat-postrouting", "jump masquerading"),
    ("nat-prerouting", "jump services"),
];

struct Writer {
    lines: Lines,
    ip: &'static str,
    config: Config,
    pod_cidr: &'static str,
    chains: Vec<String>,
}

/// The whole table anew; chains of before that are no longer needed are emptied (kube-proxy
/// deletes them some time later).
pub(super) fn rules(family: Family, ports: &[Port], config: &Config, before: &[String]) -> Rules {
    let ip = if family == Family::V4 { "ip" } else { "ip6" };
    let mut writer = Writer {
        lines: Lines::default(),
        ip,
        config: config.clone(),
        pod_cidr: config.pod_cidr(family),
        chains: Vec::new(),
    };
    writer.frame(family);
    for port in ports {
        writer.port(port);
    }
    let mut chains = std::mem::take(&mut writer.chains);
    for stale in before.iter().filter(|chain| !chains.contains(chain)).cloned().collect::<Vec<_>>()
    {
        writer.lines.add(format!("flush chain {ip} kube-proxy {stale}"));
        chains.push(stale);
    }
    Rules { text: writer.lines.0, chains }
}

impl Writer {
    fn chain(&mut self, name: &str, hook: &str) {
        let ip = self.ip;
        self.lines.add(format!("add chain {ip} kube-proxy {name} {hook}"));
        self.lines.add(format!("flush chain {ip} kube-proxy {name}"));
    }

    fn rule(&mut self, chain: &str, rule: impl AsRef<str>) {
        let ip = self.ip;
        self.lines.add(format!("add rule {ip} kube-proxy {chain} {}", rule.as_ref()));
    }

    fn element(&mut self, map: &str, element: impl AsRef<str>) {
        let ip = self.ip;
        self.lines.add(format!("add element {ip} kube-proxy {map} {{ {} }}", element.as_ref()));
    }

    /// What does not depend on Services.
    fn frame(&mut self, family: Family) {
        let ip = self.ip;
        let address = if family == Family::V4 { "ipv4_addr" } else { "ipv6_addr" };
        let full = format!("type {address} . inet_proto . inet_service : verdict ;");
        self.lines.add(format!("add table {ip} kube-proxy"));
        for (kind, name, what) in [
            ("set", "cluster-ips", format!("type {address} ;")),
            ("set", "nodeport-ips", format!("type {address} ;")),
            ("map", "no-endpoint-nodeports", "type inet_proto . inet_service : verdict ;".into()),
            ("map", "no-endpoint-services", full.clone()),
            ("map", "service-ips", full),
            ("map", "service-nodeports", "type inet_proto . inet_service : verdict ;".into()),
        ] {
            self.lines.add(format!("add {kind} {ip} kube-proxy {name} {{ {what} }}"));
            self.lines.add(format!("flush {kind} {ip} kube-proxy {name}"));
        }
        for (name, hook) in BASE_CHAINS {
            self.chain(name, &format!("{{ type {hook} ; }}"));
        }
        for name in CHAINS {
            self.chain(name, "");
        }
        for (chain, rule) in JUMPS {
            self.rule(chain, rule);
        }
        let (mark, daddr) = (MASQUERADE_MARK, format!("{ip} daddr"));
        self.rule("cluster-ips-check", format!("{daddr} @cluster-ips reject"));
        self.rule("mark-for-masquerade", format!("mark set mark or {mark}"));
        self.rule("masquerading", format!("mark and {mark} == 0 return"));
        self.rule("masquerading", format!("mark set mark xor {mark}"));
        self.rule("masquerading", "masquerade fully-random");
        let port = "meta l4proto . th dport vmap";
        let node_ports = format!("{daddr} @nodeport-ips {port}");
        self.rule("nodeport-endpoints-check", format!("{node_ports} @no-endpoint-nodeports"));
        self.rule("reject-chain", "reject");
        self.rule("services", format!("{daddr} . {port} @service-ips"));
        self.rule("services", format!("{node_ports} @service-nodeports"));
        self.rule("service-endpoints-check", format!("{daddr} . {port} @no-endpoint-services"));
        for node in self.config.node_addresses.clone() {
            if Family::of(node) == family {
                self.element("nodeport-ips", node.to_string());
            }
        }
    }

    fn port(&mut self, port: &Port) {
        let base = format!("{}-{}", hash(&[&port.name, &port.protocol], 8), slug(port));
        let cluster_chain = format!("service-{base}");
        let local_chain = format!("local-{base}");
        let external_chain = format!("external-{base}");
        if port.uses_cluster() {
            self.dispatch(&cluster_chain, port, &port.cluster);
        }
        if port.uses_local() {
            self.dispatch(&local_chain, port, &port.local);
        }
        for &endpoint in port.reachable() {
            self.endpoint(port, endpoint);
        }
        let internal_chain = if port.internal_local { &local_chain } else { &cluster_chain };
        self.element("cluster-ips", port.cluster_ip.to_string());
        let none = if port.cluster.is_empty() { "goto reject-chain" } else { "drop" };
        self.service_address(
            port.cluster_ip,
            port,
            internal_chain,
            port.internal().is_empty(),
            none,
        );
        if port.externally_accessible() {
            self.external(port, &external_chain, &cluster_chain, &local_chain, none);
        }
    }

    /// An address of the Service: where its packets go, or that there is no endpoint.
    fn service_address(&mut self, ip: IpAddr, port: &Port, chain: &str, empty: bool, none: &str) {
        let key = format!("{ip} . {} . {}", port.protocol, port.port);
        if empty {
            self.element("no-endpoint-services", format!("{key} : {none}"));
        } else {
            self.element("service-ips", format!("{key} : goto {chain}"));
        }
    }

    /// The chain that picks an endpoint.
    fn dispatch(&mut self, chain: &str, port: &Port, endpoints: &[SocketAddr]) {
        self.chain(chain, "");
        self.chains.push(chain.to_owned());
        let (ip, pods) = (self.ip, self.pod_cidr);
        let to_cluster_ip = format!("{ip} daddr {}", port.cluster_ip);
        if self.config.masquerade_all {
            self.rule(chain, format!("{to_cluster_ip} jump mark-for-masquerade"));
        } else {
            self.rule(
                chain,
                format!("{to_cluster_ip} {ip} saddr != {pods} jump mark-for-masquerade"),
            );
        }
        for &endpoint in endpoints {
            // A goto needs its target.
            self.chain_only(&endpoint_chain(port, endpoint));
        }
        let choices: Vec<String> = endpoints
            .iter()
            .enumerate()
            .map(|(index, &to)| format!("{index} : goto {}", endpoint_chain(port, to)))
            .collect();
        let count = choices.len();
        self.rule(chain, format!("numgen random mod {count} vmap {{ {} }}", choices.join(" , ")));
    }

    fn chain_only(&mut self, name: &str) {
        let ip = self.ip;
        self.lines.add(format!("add chain {ip} kube-proxy {name}"));
    }

    fn endpoint(&mut self, port: &Port, endpoint: SocketAddr) {
        let (ip, chain) = (self.ip, endpoint_chain(port, endpoint));
        self.chain(&chain, "");
        self.chains.push(chain.clone());
        self.rule(&chain, format!("{ip} saddr {} jump mark-for-masquerade", endpoint.ip()));
        self.rule(&chain, format!("meta l4proto {} dnat to {endpoint}", port.protocol));
    }

    /// External and balancer addresses and the node port.
    fn external(&mut self, port: &Port, chain: &str, cluster: &str, local: &str, none: &str) {
        let empty = port.external().is_empty();
        if !port.cluster.is_empty() {
            self.external_chain(port, chain, cluster, local);
        }
        for &address in port.external_ips.iter().chain(&port.balancer_ips) {
            if !port.cluster.is_empty() {
                self.service_address(address, port, chain, false, none);
            }
            if empty {
                self.service_address(address, port, chain, true, none);
            }
        }
        let Some(number) = port.node_port else { return };
        let key = format!("{} . {number}", port.protocol);
        if !port.cluster.is_empty() {
            self.element("service-nodeports", format!("{key} : goto {chain}"));
        }
        if empty {
            self.element("no-endpoint-nodeports", format!("{key} : {none}"));
        }
    }

    fn external_chain(&mut self, port: &Port, chain: &str, cluster: &str, local: &str) {
        self.chain(chain, "");
        self.chains.push(chain.to_owned());
        if !port.external_local {
            self.rule(chain, "jump mark-for-masquerade");
            self.rule(chain, format!("goto {cluster}"));
            return;
        }
        let (ip, pods) = (self.ip, self.pod_cidr);
        self.rule(chain, format!("{ip} saddr {pods} goto {cluster}"));
        self.rule(chain, "fib saddr type local jump mark-for-masquerade");
        self.rule(chain, format!("fib saddr type local goto {cluster}"));
        if !port.local.is_empty() {
            self.rule(chain, format!("goto {local}"));
        }
    }
}

fn slug(port: &Port) -> String {
    format!("{}/{}", port.name.replace(':', "/"), port.protocol)
}

/// Colons are no part of an nftables name.
fn endpoint_chain(port: &Port, endpoint: SocketAddr) -> String {
    let text = endpoint.to_string();
    let written = format!("{}/{}", endpoint.ip().to_string().replace(':', "."), endpoint.port());
    format!("endpoint-{}-{}__{written}", hash(&[&port.name, &port.protocol, &text], 8), slug(port))
}
