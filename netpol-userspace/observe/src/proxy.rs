//! What a node's proxy does with packets to a Service beside picking a backend: which node's proxy
//! it is, whose address the backends see, and which of them are used at all. As kube-proxy does in
//! all of its modes (pkg/proxy/iptables/proxier.go), without `--masquerade-all`, and with pods that
//! it knows for pods. Must never decide a verdict.

use std::net::IpAddr;

use netpol_api::questions::{BackendInfo, Owner, ServiceInfo};

/// Who sends to a Service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sender<'a> {
    /// A pod with addresses of its own, on this node.
    Pod(&'a str),
    /// This node itself.
    Node(&'a str),
    /// Somebody outside the cluster.
    Outside,
}

/// How packets to an address of a Service go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Passage<'a> {
    /// The node whose proxy translates them; `None`: the one that they come to, whichever it is.
    pub translator: Option<&'a str>,
    /// It masquerades: backends see one of that node's own addresses, not the sender's.
    pub is_masqueraded: bool,
    /// Only backends on this node are used.
    pub only_on: Option<&'a str>,
}

/// How packets from `sender` go on that are for `address` of a Service, which is an address of
/// `node` if it is a node port there.
pub(crate) fn passage<'a>(
    service: &ServiceInfo,
    address: IpAddr,
    node: Option<&'a str>,
    sender: Sender<'a>,
) -> Passage<'a> {
    let from = match sender {
        Sender::Pod(node) | Sender::Node(node) => Some(node),
        Sender::Outside => None,
    };
    // What is the Service's own is translated where it is sent.
    let translator = node.or(from);
    let is_pod = matches!(sender, Sender::Pod(_));
    let is_internal = node.is_none() && !service.external.contains(&address);
    let passage = |is_masqueraded, only_on| Passage { translator, is_masqueraded, only_on };
    if is_internal {
        return passage(!is_pod, translator.filter(|_| service.is_internal_local));
    }
    match (service.is_external_local, sender) {
        (false, _) => passage(true, None),
        // As if they had gone out to a load balancer and come back.
        (true, Sender::Pod(_)) => passage(false, None),
        (true, Sender::Node(_)) if from == translator => passage(true, None),
        (true, _) => passage(false, translator),
    }
}

impl Passage<'_> {
    /// Whether packets may end up at a backend. `here` is this node's name.
    pub(crate) fn leads_to(&self, backend: &BackendInfo, here: &str) -> bool {
        self.only_on.is_none_or(|node| node_of(&backend.owner, here) == Some(node))
    }
}

/// The node that a backend is on, if it is on any.
fn node_of<'a>(owner: &'a Owner, here: &'a str) -> Option<&'a str> {
    // Of a pod of this node no node is told.
    owner.node.as_deref().or(owner.pod.as_ref().map(|_| here))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    const CLUSTER_IP: &str = "10.96.0.1";
    const BALANCER: &str = "203.0.113.1";

    fn service(is_external_local: bool, is_internal_local: bool) -> ServiceInfo {
        ServiceInfo {
            name: "shop/web".into(),
            ports: vec![],
            external: vec![BALANCER.parse().unwrap()],
            is_external_local,
            is_internal_local,
            fronts: vec![],
        }
    }

    fn of(service: &ServiceInfo, to: &str, sender: Sender<'static>) -> Passage<'static> {
        // "n1" and "n2" stand for their addresses.
        let (address, node) = match to {
            "n1" => ("172.16.0.1", Some("n1")),
            "n2" => ("172.16.0.2", Some("n2")),
            other => (other, None),
        };
        passage(service, address.parse().unwrap(), node, sender)
    }

    fn backend(pod: Option<&str>, node: Option<&str>) -> BackendInfo {
        let owner =
            Owner { pod: pod.map(str::to_owned), service: None, node: node.map(str::to_owned) };
        BackendInfo { ip: "10.0.0.1".parse().unwrap(), port: 80, owner }
    }

    use Sender::{Node, Outside, Pod};

    #[test]
    fn what_comes_from_outside_of_the_cluster_network_is_masqueraded() {
        let service = service(false, false);
        for (to, sender, translator, is_masqueraded) in [
            (CLUSTER_IP, Pod("n1"), Some("n1"), false),
            (CLUSTER_IP, Node("n1"), Some("n1"), true),
            (CLUSTER_IP, Outside, None, true),
            (BALANCER, Pod("n2"), Some("n2"), true),
            (BALANCER, Outside, None, true),
            ("n1", Pod("n1"), Some("n1"), true),
            ("n2", Pod("n1"), Some("n2"), true),
            ("n2", Node("n1"), Some("n2"), true),
            ("n2", Outside, Some("n2"), true),
        ] {
            let expected = Passage { translator, is_masqueraded, only_on: None };
            assert_eq!(of(&service, to, sender), expected, "{to} {sender:?}");
        }
    }

    #[test]
    fn local_policies_keep_the_source_and_leave_other_nodes_out() {
        let service = service(true, true);
        for (to, sender, is_masqueraded, only_on) in [
            (CLUSTER_IP, Pod("n1"), false, Some("n1")),
            (CLUSTER_IP, Node("n1"), true, Some("n1")),
            (CLUSTER_IP, Outside, true, None),
            // Pods are not outside.
            (BALANCER, Pod("n1"), false, None),
            ("n1", Pod("n1"), false, None),
            ("n2", Pod("n1"), false, None),
            (BALANCER, Node("n1"), true, None),
            ("n1", Node("n1"), true, None),
            ("n2", Node("n1"), false, Some("n2")),
            ("n2", Outside, false, Some("n2")),
            // Whichever node it comes to.
            (BALANCER, Outside, false, None),
        ] {
            let passage = of(&service, to, sender);
            assert_eq!(passage.is_masqueraded, is_masqueraded, "{to} {sender:?}");
            assert_eq!(passage.only_on, only_on, "{to} {sender:?}");
        }
    }

    #[test]
    fn a_backend_is_where_its_pod_or_its_address_is() {
        let on = |only_on| Passage { translator: None, is_masqueraded: false, only_on };
        for (owner, node) in [
            (backend(Some("shop/web-1"), None), Some("n1")),
            (backend(Some("shop/web-2"), Some("n2")), Some("n2")),
            (backend(None, Some("n2")), Some("n2")),
            (backend(None, None), None),
        ] {
            for which in ["n1", "n2"] {
                let leads = on(Some(which)).leads_to(&owner, "n1");
                assert_eq!(leads, node == Some(which), "{owner:?} {which}");
            }
            assert!(on(None).leads_to(&owner, "n1"), "{owner:?}");
        }
    }
}
