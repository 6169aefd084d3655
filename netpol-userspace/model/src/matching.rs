//! Whom a policy selects and whom a peer means, found by looking at every pod: for advice and
//! for what the playground tries. Must never decide what is enforced: that is the compiler's,
//! which has indexes for it.

use std::net::IpAddr;

use super::{Cluster, IpBlock, NamespaceScope, Peer, Pod, Policy, Selector, Str};

impl Cluster {
    /// The pods that take part in policy, in no particular order.
    pub fn networked_pods(&self) -> impl Iterator<Item = &Pod> {
        self.all_pods().filter(|pod| pod.is_networked())
    }

    /// The pods that `policy` selects, by name.
    pub fn selected_by(&self, policy: &Policy) -> Vec<&Pod> {
        self.pods_in(&policy.id.namespace, &policy.pods)
    }

    /// The pods of one namespace that match a selector, by name.
    pub(crate) fn pods_in(&self, namespace: &Str, selector: &Selector) -> Vec<&Pod> {
        let pods = self.pods.get(namespace).into_iter().flat_map(|pods| pods.values());
        let pods = pods.map(|pod| &**pod).filter(|pod| pod.is_networked());
        pods.filter(|pod| selector.matches(&pod.labels)).collect()
    }

    /// The namespaces that a peer looks into and that exist, sorted.
    pub fn namespaces_of(&self, scope: &NamespaceScope) -> Vec<Str> {
        let mut names: Vec<Str> = match scope {
            NamespaceScope::Named(name) => vec![name.clone()],
            NamespaceScope::Matching(selector) => {
                let all = self.namespaces.values();
                all.filter(|n| selector.matches(&n.labels)).map(|n| n.name.clone()).collect()
            }
        };
        names.sort();
        names
    }

    /// The pods that a peer means: by their labels, or by their addresses.
    pub fn pods_of(&self, peer: &Peer) -> Vec<&Pod> {
        match peer {
            Peer::Pods { namespaces, pods } => {
                let namespaces = self.namespaces_of(namespaces);
                namespaces.iter().flat_map(|name| self.pods_in(name, pods)).collect()
            }
            Peer::Block(block) => {
                let inside = |pod: &&Pod| pod.addresses.iter().any(|&a| block.contains(a));
                self.networked_pods().filter(inside).collect()
            }
            // Pods that have a node's address are no pods with addresses of their own.
            Peer::Nodes(_) => Vec::new(),
        }
    }
}

impl IpBlock {
    /// Whether `address` is in the block and in none of its exceptions.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.cidr.contains(&address) && !self.except.iter().any(|part| part.contains(&address))
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use crate::{Change, Labels, Namespace, ObjectName, Operator, Requirement};

    fn pod(name: &str, address: &str, change: impl FnOnce(&mut Pod)) -> Change {
        let mut pod = Pod {
            id: ObjectName::new("shop", name),
            uid: name.into(),
            labels: Labels::from_iter([("app", name)]),
            node: None,
            addresses: vec![address.parse().unwrap()].into(),
            host_network: false,
            finished: false,
            running: true,
            ports: [].into(),
            annotations: None,
            created: 0,
        };
        change(&mut pod);
        Change::Pod(pod)
    }

    fn app(name: &str) -> Selector {
        let operator = Operator::In(vec![name.into()]);
        Selector::new([Requirement { key: "app".into(), operator }])
    }

    #[test]
    fn only_pods_with_a_network_of_their_own_are_meant() {
        let mut cluster = Cluster::default();
        let labels = Labels::from_iter([("team", "a")]);
        cluster.apply(Change::Namespace(Namespace { name: "shop".into(), labels }));
        cluster.apply(pod("web", "10.0.0.1", |_| {}));
        cluster.apply(pod("done", "10.0.0.2", |pod| pod.finished = true));
        cluster.apply(pod("host", "10.0.0.3", |pod| pod.host_network = true));
        cluster.apply(pod("db", "10.0.1.1", |_| {}));
        let names =
            |pods: Vec<&Pod>| pods.iter().map(|p| p.id.name.to_string()).collect::<Vec<_>>();
        assert_eq!(names(cluster.pods_in(&"shop".into(), &Selector::everything())), ["db", "web"]);
        assert_eq!(names(cluster.pods_in(&"other".into(), &Selector::everything())), [""; 0]);
        let peer = |namespaces, pods| Peer::Pods { namespaces, pods };
        let own = NamespaceScope::Named("shop".into());
        assert_eq!(names(cluster.pods_of(&peer(own.clone(), app("web")))), ["web"]);
        assert_eq!(names(cluster.pods_of(&peer(own, app("done")))), [""; 0]);
        let team = |value: &str| {
            let operator = Operator::In(vec![value.into()]);
            NamespaceScope::Matching(Selector::new([Requirement { key: "team".into(), operator }]))
        };
        assert_eq!(names(cluster.pods_of(&peer(team("a"), app("db")))), ["db"]);
        assert_eq!(names(cluster.pods_of(&peer(team("b"), app("db")))), [""; 0]);
        let block = |cidr: &str, except: &[&str]| {
            let except = except.iter().map(|part| part.parse().unwrap()).collect();
            Peer::Block(IpBlock { cidr: cidr.parse().unwrap(), except })
        };
        assert_eq!(names(cluster.pods_of(&block("10.0.0.0/16", &["10.0.0.0/24"]))), ["db"]);
        assert_eq!(names(cluster.pods_of(&block("10.0.0.2/31", &[]))), [""; 0]);
    }
}
