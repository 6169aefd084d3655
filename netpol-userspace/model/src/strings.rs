//! Makes objects share what they have in common: a cluster has a hundred thousand pods and a few hundred
//! label keys, values, namespaces and nodes. Must never change what an object says.

use std::borrow::Borrow;
use std::hash::Hash;
use std::sync::Arc;

use rustc_hash::FxHashSet;

use super::{
    ClusterPolicy, Labels, NamedPort, NamespaceScope, Operator, Peer, Peers, Pod, Policy,
    PortRange, Ports, Selector, Str,
};

/// What can be shared: cheap to clone, and knows how many have this very memory.
pub trait Shared: Clone + Eq + Hash {
    /// How many have it.
    fn n_sharers(&self) -> usize;
}

impl<T: ?Sized + Eq + Hash> Shared for Arc<T> {
    fn n_sharers(&self) -> usize {
        Self::strong_count(self)
    }
}

impl Shared for Labels {
    fn n_sharers(&self) -> usize {
        self.n_sharers()
    }
}

/// One of each kind of equal things.
#[derive(Debug)]
pub struct Pool<T> {
    known: FxHashSet<T>,
    /// How many there were after the last clean-up.
    n_kept: usize,
}

impl<T> Default for Pool<T> {
    fn default() -> Self {
        Self { known: FxHashSet::default(), n_kept: 0 }
    }
}

impl<T: Shared> Pool<T> {
    /// The one that is equal, if there is one.
    pub fn get<Q: ?Sized + Eq + Hash>(&self, item: &Q) -> Option<&T>
    where
        T: Borrow<Q>,
    {
        self.known.get(item)
    }

    /// Puts in what is not there yet.
    pub fn insert(&mut self, item: T) {
        // What nobody uses any more goes when there may be as much of it as of others.
        if self.known.len() > 2 * self.n_kept + 1024 {
            self.known.retain(|known| known.n_sharers() > 1);
            self.n_kept = self.known.len();
        }
        self.known.insert(item);
    }

    /// Makes it the one that is equal to it, if there is one.
    pub fn share(&mut self, item: &mut T) {
        match self.known.get(item) {
            Some(known) => *item = known.clone(),
            None => self.insert(item.clone()),
        }
    }
}

/// What objects share.
#[derive(Debug, Default)]
pub struct Strings {
    strings: Pool<Str>,
    /// Whole label sets.
    labels: Pool<Labels>,
    /// All ports of a pod.
    ports: Pool<Arc<[NamedPort]>>,
}

impl Strings {
    /// Replaces what a pod is likely to have in common with others.
    pub fn share_pod(&mut self, pod: &mut Pod) {
        self.share(&mut pod.id.namespace);
        if let Some(node) = &mut pod.node {
            self.share(node);
        }
        self.share_ports(&mut pod.ports);
        self.share_labels(&mut pod.labels);
    }

    fn share_ports(&mut self, ports: &mut Arc<[NamedPort]>) {
        if let Some(known) = self.ports.get(ports) {
            *ports = known.clone();
            return;
        }
        let mut own: Vec<NamedPort> = ports.to_vec();
        own.iter_mut().for_each(|port| self.share(&mut port.name));
        *ports = own.into();
        self.ports.insert(ports.clone());
    }

    fn share_labels(&mut self, labels: &mut Labels) {
        if let Some(known) = self.labels.get(labels) {
            *labels = known.clone();
            return;
        }
        let share = |(key, value): (&Str, &Str)| {
            let (mut key, mut value) = (key.clone(), value.clone());
            self.share(&mut key);
            self.share(&mut value);
            (key, value)
        };
        *labels = labels.iter().map(share).collect();
        self.labels.insert(labels.clone());
    }

    /// The same of a policy.
    pub fn share_policy(&mut self, policy: &mut Policy) {
        self.share(&mut policy.id.namespace);
        self.share_selector(&mut policy.pods);
        for rule in policy.ingress.iter_mut().chain(&mut policy.egress).flatten() {
            self.share_rule(&mut rule.peers, &mut rule.ports);
        }
    }

    /// The same of a ClusterNetworkPolicy.
    pub fn share_cluster_policy(&mut self, policy: &mut ClusterPolicy) {
        self.share(&mut policy.name);
        self.share_selector(&mut policy.subject.namespaces);
        self.share_selector(&mut policy.subject.pods);
        for rule in policy.ingress.iter_mut().chain(&mut policy.egress) {
            self.share_rule(&mut rule.peers, &mut rule.ports);
        }
    }

    fn share_rule(&mut self, peers: &mut Peers, ports: &mut Ports) {
        if let Peers::Only(peers) = peers {
            let has_strings = |peer: &Peer| !matches!(peer, Peer::Block(_));
            if peers.iter().any(has_strings) {
                Arc::make_mut(peers).iter_mut().for_each(|peer| self.share_peer(peer));
            }
        }
        if let Ports::Only(ports) = ports {
            for port in ports {
                if let PortRange::Named(name) = &mut port.range {
                    self.share(name);
                }
            }
        }
    }

    fn share_peer(&mut self, peer: &mut Peer) {
        match peer {
            Peer::Pods { namespaces, pods } => {
                self.share_selector(pods);
                match namespaces {
                    NamespaceScope::Named(name) => self.share(name),
                    NamespaceScope::Matching(selector) => self.share_selector(selector),
                }
            }
            Peer::Nodes(selector) => self.share_selector(selector),
            Peer::Block(_) => {}
        }
    }

    fn share_selector(&mut self, selector: &mut Selector) {
        for requirement in selector.requirements_mut() {
            self.share(&mut requirement.key);
            if let Operator::In(values) | Operator::NotIn(values) = &mut requirement.operator {
                values.iter_mut().for_each(|value| self.share(value));
            }
        }
    }

    /// Makes it the one that is equal to it, if there is one.
    pub fn share(&mut self, string: &mut Str) {
        self.strings.share(string);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_strings_become_one_and_unused_ones_go() {
        let mut strings = Strings::default();
        let (mut first, mut second): (Str, Str) = ("web".into(), "web".into());
        strings.share(&mut first);
        strings.share(&mut second);
        assert!(Str::ptr_eq(&first, &second));
        for number in 0..5000 {
            strings.share(&mut number.to_string().into());
        }
        assert!(strings.strings.known.len() < 2000, "{}", strings.strings.known.len());
        assert!(strings.strings.known.contains("web"));
    }
}
