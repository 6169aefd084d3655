//! The bundled examples say what their READMEs and headers say, by the reference evaluator. Must
//! never touch the system beyond reading them.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::net::IpAddr;
use std::path::Path;

use super::manifests;
use super::plan::{Families, Host, Planner};
use super::reading::Reading;

struct Examples {
    reading: Reading,
}

impl Examples {
    fn read() -> Self {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
        let mut planner = Planner::new(2, Families::Dual);
        Self { reading: Reading::new(&dir, &mut planner, true).unwrap() }
    }

    fn host(&self, name: &str) -> &Host {
        let found = self.reading.layout.hosts.iter().find(|host| host.to_string() == name);
        found.unwrap_or_else(|| panic!("{name} is in no example"))
    }

    /// Whether `from` reaches the port on every address family that both have; the families must
    /// agree.
    fn allowed(&self, from: &str, to: &str, port: &str) -> bool {
        let (from, to) = (self.host(from), self.host(to));
        let written = |p: &&super::pods::Port| format!("{} {}", p.protocol, p.number) == port;
        let port = to.ports.iter().find(written).unwrap_or_else(|| panic!("{to} has no {port}"));
        let pair = |v4: bool| -> Option<bool> {
            let of = |host: &Host| host.addresses.iter().copied().find(|a| a.is_ipv4() == v4);
            let (source, destination): (IpAddr, IpAddr) = (of(from)?, of(to)?);
            Some(self.reading.expectations.allows(from, source, to, destination, port).unwrap())
        };
        let verdicts: Vec<bool> = [pair(true), pair(false)].into_iter().flatten().collect();
        assert!(verdicts.iter().all(|verdict| *verdict == verdicts[0]), "{from} to {to}");
        verdicts[0]
    }
}

/// `from to port` lines: `+` allowed, `-` denied.
fn check(lines: &str) {
    let examples = Examples::read();
    for line in lines.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let [sign, from, to, protocol, number] =
            line.split_whitespace().collect::<Vec<_>>().try_into().unwrap();
        let allowed = examples.allowed(from, to, &format!("{protocol} {number}"));
        assert_eq!(allowed, sign == "+", "{line}");
    }
}

#[test]
fn frontend() {
    check(
        "+ network-policy/busybox network-policy/frontend TCP 80
         - network-policy/busybox network-policy/frontend TCP 8080
         - network-policy-other/stranger network-policy/frontend TCP 80
         - network-policy/frontend network-policy/busybox TCP 8080
         + network-policy-other/stranger network-policy/busybox TCP 8080",
    );
}

#[test]
fn ipblock() {
    check(
        "+ ipblock/in-block ipblock/db TCP 6379
         - ipblock/in-block ipblock/db TCP 6380
         - ipblock/excepted ipblock/db TCP 6379
         - ipblock/next-net ipblock/db TCP 6379
         + ipblock/frontend ipblock/db TCP 6379
         - ipblock/backend ipblock/db TCP 6379
         + ipblock-myproject/client ipblock/db TCP 6379
         - ipblock-myproject/client ipblock/db TCP 6380
         + ipblock/db ipblock/ten TCP 5978
         - ipblock/db ipblock/ten TCP 31999
         + ipblock/db ipblock/ten TCP 32000
         + ipblock/db ipblock/ten TCP 32768
         - ipblock/db ipblock/ten TCP 32769
         - ipblock/db ipblock/next-net TCP 5978
         - ipblock/db ipblock/backend TCP 5978
         + ipblock/frontend ipblock/next-net TCP 5978",
    );
}

#[test]
fn default_denies() {
    check(
        "- deny-ingress/one deny-ingress/two TCP 80
         - deny-ingress-beside/neighbour deny-ingress/one TCP 80
         + deny-ingress/one deny-ingress-beside/neighbour TCP 80
         - deny-egress/one deny-egress/two TCP 80
         + deny-egress-beside/neighbour deny-egress/one TCP 80
         - deny-egress/one deny-egress-beside/neighbour TCP 80
         - deny-all/one deny-all/two TCP 80
         - deny-all-beside/neighbour deny-all/one TCP 80
         - deny-all/one deny-all-beside/neighbour TCP 80
         + deny-all/one deny-all/one TCP 80",
    );
}

#[test]
fn three_tiers() {
    check(
        "+ three-tier/visitor three-tier/web-0 TCP 80
         - three-tier/visitor three-tier/api-0 TCP 8080
         + three-tier/web-1 three-tier/api-0 TCP 8080
         - three-tier/web-1 three-tier/db-0 TCP 5432
         + three-tier/api-1 three-tier/db-0 TCP 5432
         - three-tier/db-0 three-tier/api-1 TCP 8080
         - three-tier/api-0 three-tier/api-1 TCP 8080
         + three-tier/db-0 three-tier/web-0 TCP 80",
    );
}

#[test]
fn allow_internet() {
    check(
        "+ allow-internet/crawler allow-internet/internet TCP 443
         - allow-internet/crawler allow-internet/office TCP 443
         - allow-internet/crawler allow-internet/inside TCP 443
         - allow-internet/worker allow-internet/internet TCP 443",
    );
}

#[test]
fn dns_egress() {
    check(
        "+ dns-egress/app kube-system/coredns UDP 53
         + dns-egress/app kube-system/coredns TCP 53
         - dns-egress/app kube-system/coredns TCP 9153
         - dns-egress/app kube-system/not-dns UDP 53
         - dns-egress/app dns-egress/db TCP 5432",
    );
}

#[test]
fn match_expressions() {
    check(
        "+ expressions-team/live expressions/cache TCP 6379
         + expressions-team/unlabelled expressions/store TCP 5432
         - expressions-team/test expressions/store TCP 5432
         - expressions-frozen/live expressions/store TCP 5432
         - expressions/cache expressions/store TCP 5432
         + expressions-frozen/live expressions/open TCP 80",
    );
}

#[test]
fn named_ports() {
    check(
        "+ named-ports/other named-ports/v1 TCP 80
         - named-ports/other named-ports/v1 TCP 8080
         + named-ports/other named-ports/v1 SCTP 3868
         - named-ports/other named-ports/v2 TCP 80
         + named-ports/other named-ports/v2 TCP 8080
         + named-ports/client named-ports/v1 TCP 80
         + named-ports/client named-ports/v2 TCP 8080
         - named-ports/client named-ports/v1 SCTP 3868",
    );
}

#[test]
fn two_policies() {
    check(
        "+ two-policies/reader two-policies/server TCP 8080
         - two-policies/reader two-policies/server UDP 8125
         - two-policies/monitor two-policies/server TCP 8080
         + two-policies/monitor two-policies/server UDP 8125
         - two-policies/passer-by two-policies/server TCP 8080",
    );
}

#[test]
fn nothing_in_the_examples_looks_like_a_mistake() {
    let reading = Examples::read().reading;
    assert_eq!(reading.warnings, []);
    assert_eq!(reading.notes, [""; 0]);
}

/// The examples declare what is worth a look: only where every port of a pod is named by policies
/// is there one more, and of replicas on one of them.
#[test]
fn few_ports_are_added_to_the_examples() {
    let reading = Examples::read().reading;
    let added = reading.layout.hosts.iter().filter_map(|host| {
        let port = host.unnamed.as_ref()?;
        Some(format!("{host} {} {}", port.protocol, port.number))
    });
    assert_eq!(
        added.collect::<Vec<_>>(),
        [
            "three-tier/web-0 TCP 9999",
            "three-tier/api-0 TCP 9999",
            "three-tier/db-0 TCP 9999",
            "two-policies/server TCP 9999"
        ]
    );
    let documents =
        manifests::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples")).unwrap();
    let declared = Planner::new(2, Families::Dual).plan(&documents).unwrap();
    for (before, host) in declared.hosts.iter().zip(&reading.layout.hosts) {
        let ports = host.ports.iter().filter(|port| Some(*port) != host.unnamed.as_ref());
        assert_eq!(before.ports, ports.cloned().collect::<Vec<_>>(), "{host}");
    }
}

#[test]
fn every_example_has_a_readme_line_and_a_header() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let readme = std::fs::read_to_string(dir.join("README.md")).unwrap();
    for directory in &manifests::directories(&dir).unwrap()[1..] {
        let name = directory.file_name().unwrap().to_string_lossy().into_owned();
        assert!(readme.contains(&format!("| [{name}]({name}) |")), "{name}");
        for file in std::fs::read_dir(directory).unwrap() {
            let path = file.unwrap().path();
            let text = std::fs::read_to_string(&path).unwrap();
            assert!(text.starts_with("# "), "{} has no header comment", path.display());
        }
    }
}
