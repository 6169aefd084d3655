//! Which ports are tried beside those that pods declare: those that policies name, and one that
//! none names where otherwise nobody would see what is closed. Pure; must never take a declared
//! port away, nor add more than it takes to see what a policy does.

use std::collections::BTreeSet;

use super::plan::{Host, Place};
use super::pods::Port;
use netpol_model::{
    Cluster, Direction, ObjectName, Peer, Peers, Policy, PortMatch, PortRange, Ports, Protocol,
    Rule,
};

/// More ports that policies name are not tried on one host: a table must stay readable.
const MAX_ADDED: usize = 16;
/// The port that no policy names, if none names it; else the next lower one.
const UNNAMED: u16 = 9999;

/// Adds ports to `hosts`, of which those that are pods are in `cluster`, with its policies.
/// Returns, in words, what was left out.
pub fn add(hosts: &mut [Host], cluster: &Cluster) -> Vec<String> {
    let facts = hosts.iter().map(|_| Facts::default()).collect();
    let mut chooser = Chooser { hosts, cluster, facts };
    let mut policies: Vec<&Policy> = cluster.all_policies().collect();
    policies.sort_by(|a, b| a.id.cmp(&b.id));
    for policy in &policies {
        chooser.learn(policy);
    }
    for policy in &policies {
        chooser.add_named(policy);
    }
    let notes = chooser.settle();
    chooser.show_what_is_closed();
    chooser.show_egress();
    notes
}

/// What policies mean for one host.
#[derive(Debug, Default)]
struct Facts {
    /// Port ranges that rules name and that concern this host as a destination.
    named: Vec<(Protocol, u16, u16)>,
    isolated_for_ingress: bool,
    isolated_for_egress: bool,
    /// Ports to be added.
    added: BTreeSet<Port>,
    /// Ports that would have been too many.
    left_out: BTreeSet<Port>,
}

impl Facts {
    fn names(&self, port: &Port) -> bool {
        self.named.iter().any(|&(protocol, first, last)| {
            protocol == port.protocol && (first..=last).contains(&port.number)
        })
    }
}

/// Whom one peer of an egress rule means.
struct Destinations {
    hosts: Vec<usize>,
    /// By labels of their own, and not whole namespaces or blocks, which may be very many.
    by_labels: bool,
}

struct Chooser<'a> {
    hosts: &'a mut [Host],
    cluster: &'a Cluster,
    /// Of each host.
    facts: Vec<Facts>,
}

impl Chooser<'_> {
    /// Takes in whom the policy isolates and which ports it names for whom.
    fn learn(&mut self, policy: &Policy) {
        let selected = self.selected(policy);
        for &host in &selected {
            self.facts[host].isolated_for_ingress |= policy.ingress.is_some();
            self.facts[host].isolated_for_egress |= policy.egress.is_some();
        }
        for direction in Direction::BOTH {
            for rule in policy.rules(direction).unwrap_or_default() {
                let concerned = match direction {
                    Direction::Ingress => selected.clone(),
                    Direction::Egress => {
                        let all = self.destinations(rule).into_iter();
                        all.flat_map(|destinations| destinations.hosts).collect()
                    }
                };
                for port in port_matches(rule) {
                    for &host in &concerned {
                        let ranges = self.ranges(host, port);
                        self.facts[host].named.extend(ranges);
                    }
                }
            }
        }
    }

    /// The numbers that a port of a rule means on a host.
    fn ranges(&self, host: usize, port: &PortMatch) -> Vec<(Protocol, u16, u16)> {
        let PortMatch { protocol, range } = port;
        match range {
            PortRange::All => vec![(*protocol, 0, u16::MAX)],
            PortRange::Numbers(first, last) => vec![(*protocol, *first, *last)],
            PortRange::Named(name) => {
                let pod = self.cluster.pod(&self.hosts[host].id);
                let ports = pod.into_iter().flat_map(|pod| &*pod.ports);
                let same = ports.filter(|p| p.name == *name && p.protocol == *protocol);
                same.map(|port| (*protocol, port.port, port.port)).collect()
            }
        }
    }

    /// Adds what the rules of a policy name: of ingress to the pods it selects, of egress to the
    /// pods with the labels it asks for, or else to one destination that shows it.
    fn add_named(&mut self, policy: &Policy) {
        let selected = self.selected(policy);
        for rule in policy.ingress.iter().flatten() {
            for port in port_matches(rule) {
                for &host in &selected {
                    self.want(host, port);
                }
            }
        }
        for rule in policy.egress.iter().flatten() {
            for destinations in self.destinations(rule) {
                for port in port_matches(rule) {
                    for host in self.to_show(&selected, &destinations, port) {
                        self.want(host, port);
                    }
                }
            }
        }
    }

    /// The destinations on which to try a port of an egress rule.
    fn to_show(
        &self,
        selected: &[usize],
        destinations: &Destinations,
        port: &PortMatch,
    ) -> Vec<usize> {
        let Some(&first) = selected.first() else { return Vec::new() };
        let mut hosts = destinations.hosts.clone();
        // A pod always reaches itself.
        hosts.retain(|host| selected != [*host]);
        if destinations.by_labels {
            return hosts;
        }
        if hosts.iter().any(|&host| self.shows(host, port)) {
            return Vec::new();
        }
        let section = &self.hosts[first].section;
        hosts.sort_by_key(|&host| {
            (self.hosts[host].section != *section, selected.contains(&host), host)
        });
        match hosts[..] {
            // The first of them needs another one that it can be seen to reach.
            [one, other, ..] if selected.contains(&one) => vec![one, other],
            [one, ..] => vec![one],
            [] => Vec::new(),
        }
    }

    fn shows(&self, host: usize, port: &PortMatch) -> bool {
        let (mut ports, protocol) = (self.ports(host), port.protocol);
        match port.range {
            PortRange::All => ports.any(|port| port.protocol == protocol),
            PortRange::Numbers(first, last) => {
                let ports: Vec<&Port> = ports.collect();
                [first, last].iter().all(|&number| ports.contains(&&Port { protocol, number }))
            }
            // There it is where it is declared, or nowhere.
            PortRange::Named(_) => true,
        }
    }

    fn want(&mut self, host: usize, port: &PortMatch) {
        let protocol = port.protocol;
        match port.range {
            PortRange::All if self.shows(host, port) => {}
            PortRange::All => self.add(host, Port { protocol, number: UNNAMED }),
            PortRange::Numbers(first, last) => {
                self.add(host, Port { protocol, number: first });
                self.add(host, Port { protocol, number: last });
                if first != last {
                    self.add_outside(host, protocol, first, last);
                }
            }
            PortRange::Named(_) => {}
        }
    }

    /// A port just outside of a range, unless the host has one that no rule names.
    fn add_outside(&mut self, host: usize, protocol: Protocol, first: u16, last: u16) {
        let facts = &self.facts[host];
        if self.ports(host).any(|port| port.protocol == protocol && !facts.names(port)) {
            return;
        }
        let beside = [last.checked_add(1), first.checked_sub(1)].into_iter().flatten();
        let mut beside = beside.filter(|&n| n != 0).map(|number| Port { protocol, number });
        if let Some(port) = beside.find(|port| !facts.names(port)) {
            self.add(host, port);
        }
    }

    fn add(&mut self, host: usize, port: Port) {
        if self.ports(host).any(|known| *known == port) {
            return;
        }
        let facts = &mut self.facts[host];
        let full = facts.added.len() == MAX_ADDED;
        if full { &mut facts.left_out } else { &mut facts.added }.insert(port);
    }

    /// Gives the hosts what was added so far.
    fn settle(&mut self) -> Vec<String> {
        let mut notes = Vec::new();
        for (host, facts) in self.hosts.iter_mut().zip(&mut self.facts) {
            host.ports.extend(std::mem::take(&mut facts.added));
            host.ports.sort();
            if !facts.left_out.is_empty() {
                notes.push(format!(
                    "{host}: {} more ports that policies name are not tried ({MAX_ADDED} are); \
                     what it declares always is",
                    facts.left_out.len()
                ));
            }
        }
        notes
    }

    /// Adds a port that no policy names to hosts of which all ports are named. Of equal pods
    /// (replicas) one is enough.
    fn show_what_is_closed(&mut self) {
        let mut shown: Vec<usize> = Vec::new();
        let wanting = |(index, host): (usize, &Host)| {
            let facts = &self.facts[index];
            // A pod without ports that nothing isolates has nothing that is closed.
            let concerned = facts.isolated_for_ingress || !host.ports.is_empty();
            let all_named = host.ports.iter().all(|port| facts.names(port));
            let own = !matches!(host.place, Place::HostNetwork(_));
            (concerned && all_named && own).then_some(index)
        };
        for index in self.hosts.iter().enumerate().filter_map(wanting) {
            if !shown.iter().any(|&other| self.are_alike(other, index)) {
                shown.push(index);
            }
        }
        shown.into_iter().for_each(|index| self.add_unnamed(index));
    }

    /// Whether two hosts are pods with the same labels, ports and namespace.
    fn are_alike(&self, a: usize, b: usize) -> bool {
        let (one, other) = (&self.hosts[a], &self.hosts[b]);
        let labels = |host: &Host| {
            let pod = self.cluster.pod(&host.id)?;
            (!pod.labels.is_empty()).then_some(&pod.labels)
        };
        one.section == other.section
            && one.id.namespace == other.id.namespace
            && one.ports == other.ports
            && labels(one).is_some_and(|own| labels(other) == Some(own))
    }

    /// Adds ports to pods that have none: to as few as it takes for every pod that is isolated
    /// for egress to have another one of its section to try; and to all (of very many, some)
    /// where otherwise nothing would be tried.
    fn show_egress(&mut self) {
        let nothing = self.hosts.iter().all(|host| host.ports.is_empty());
        let is_empty = |host: &Host| matches!(host.place, Place::Pod(_)) && host.ports.is_empty();
        let portless = self.hosts.iter().enumerate().filter(|(_, host)| is_empty(host));
        let portless: Vec<usize> = portless.map(|(index, _)| index).collect();
        if nothing {
            portless.into_iter().take(MAX_ADDED).for_each(|index| self.add_unnamed(index));
            return;
        }
        for alone in 0..self.hosts.len() {
            if !self.facts[alone].isolated_for_egress || self.meets_a_server(alone) {
                continue;
            }
            let section = &self.hosts[alone].section;
            let mut others = portless.iter().filter(|&&index| index != alone);
            let other = others.find(|&&index| self.hosts[index].section == *section);
            if let Some(&other) = other {
                self.add_unnamed(other);
            }
        }
    }

    /// Whether another host of its section has a port.
    fn meets_a_server(&self, index: usize) -> bool {
        self.hosts.iter().enumerate().any(|(other, host)| {
            other != index && host.section == self.hosts[index].section && !host.ports.is_empty()
        })
    }

    fn add_unnamed(&mut self, index: usize) {
        let facts = &self.facts[index];
        let all = Protocol::ALL
            .into_iter()
            .flat_map(|protocol| (1..=UNNAMED).rev().map(move |number| Port { protocol, number }));
        // None is left if rules name every port of every protocol: then nothing is closed.
        let free = all.into_iter().find(|port| !facts.names(port));
        let host = &mut self.hosts[index];
        host.ports.extend(free.clone());
        host.unnamed = free;
    }

    /// The ports that a host has so far.
    fn ports(&self, host: usize) -> impl Iterator<Item = &Port> {
        self.hosts[host].ports.iter().chain(&self.facts[host].added)
    }

    fn selected(&self, policy: &Policy) -> Vec<usize> {
        self.indices(self.cluster.selected_by(policy).iter().map(|pod| &pod.id))
    }

    fn indices<'p>(&self, ids: impl Iterator<Item = &'p ObjectName>) -> Vec<usize> {
        let ids: BTreeSet<&ObjectName> = ids.collect();
        let is_one = |index: &usize| {
            let host = &self.hosts[*index];
            matches!(host.place, Place::Pod(_)) && ids.contains(&host.id)
        };
        (0..self.hosts.len()).filter(is_one).collect()
    }

    /// The hosts that each peer of an egress rule means. Those on a node's network are left out:
    /// they share their ports with the node.
    fn destinations(&self, rule: &Rule) -> Vec<Destinations> {
        let with = |wanted: &dyn Fn(&Host) -> bool| -> Vec<usize> {
            let own = |host: &Host| !matches!(host.place, Place::HostNetwork(_));
            let hosts = self.hosts.iter().enumerate();
            hosts.filter(|(_, host)| own(host) && wanted(host)).map(|(index, _)| index).collect()
        };
        match &rule.peers {
            Peers::Any => vec![Destinations { hosts: with(&|_| true), by_labels: false }],
            Peers::Only(peers) => peers
                .iter()
                .map(|peer| match peer {
                    Peer::Pods { pods, .. } => Destinations {
                        hosts: self.indices(self.cluster.pods_of(peer).iter().map(|pod| &pod.id)),
                        by_labels: !pods.is_everything(),
                    },
                    Peer::Block(block) => Destinations {
                        hosts: with(&|host| host.addresses.iter().any(|&a| block.contains(a))),
                        by_labels: false,
                    },
                    Peer::Nodes(_) => Destinations { hosts: Vec::new(), by_labels: true },
                })
                .collect(),
        }
    }
}

fn port_matches(rule: &Rule) -> &[PortMatch] {
    match &rule.ports {
        Ports::Any => &[],
        Ports::Only(ports) => ports,
    }
}

#[cfg(test)]
#[path = "ports_tests.rs"]
mod tests;
