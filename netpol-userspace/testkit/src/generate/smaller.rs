//! Objects made smaller, one part at a time, while something stays wrong with them. For property
//! tests and fuzzers. Must never produce what an API server refuses.

use k8s_openapi::api::core::v1::{Namespace, Pod, PodSpec};
use k8s_openapi::api::networking::v1::{
    NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use serde_json::Value;

/// An object's variants, each the original after one edit.
struct Variants<'a, T> {
    of: &'a T,
    found: Vec<T>,
}

impl<'a, T: Clone + PartialEq> Variants<'a, T> {
    fn new(of: &'a T) -> Self {
        Self { of, found: Vec::new() }
    }

    fn add(&mut self, edit: impl FnOnce(&mut T)) {
        let mut smaller = self.of.clone();
        edit(&mut smaller);
        if smaller != *self.of {
            self.found.push(smaller);
        }
    }
}

/// The same policy without a rule, or a rule without a peer or port, or one of these simpler.
pub(super) fn policies(policy: &NetworkPolicy) -> Vec<NetworkPolicy> {
    let Some(spec) = &policy.spec else { return Vec::new() };
    let mut all = Variants::new(spec);
    for index in 0..spec.ingress.as_ref().map_or(0, Vec::len) {
        all.add(|spec| without(&mut spec.ingress, index));
        ingress_rule(&mut all, index);
    }
    for index in 0..spec.egress.as_ref().map_or(0, Vec::len) {
        all.add(|spec| without(&mut spec.egress, index));
        egress_rule(&mut all, index);
    }
    if let Some(selector) = &spec.pod_selector {
        // A missing one is not what a person expects to read.
        all.add(|spec| spec.pod_selector = Some(LabelSelector::default()));
        for smaller in selectors(selector) {
            all.add(|spec| spec.pod_selector = Some(smaller));
        }
    }
    all.add(|spec| drop_if_empty(&mut spec.ingress));
    all.add(|spec| drop_if_empty(&mut spec.egress));
    let specs = all.found.into_iter();
    specs.map(|spec| NetworkPolicy { spec: Some(spec), ..policy.clone() }).collect()
}

fn ingress_rule(all: &mut Variants<'_, NetworkPolicySpec>, index: usize) {
    let Some(rule) = all.of.ingress.as_ref().and_then(|rules| rules.get(index)) else { return };
    for from in peer_lists(&rule.from) {
        all.add(|spec| at(&mut spec.ingress, index, |rule| rule.from = from));
    }
    for ports in port_lists(&rule.ports) {
        all.add(|spec| at(&mut spec.ingress, index, |rule| rule.ports = ports));
    }
}

fn egress_rule(all: &mut Variants<'_, NetworkPolicySpec>, index: usize) {
    let Some(rule) = all.of.egress.as_ref().and_then(|rules| rules.get(index)) else { return };
    for to in peer_lists(&rule.to) {
        all.add(|spec| at(&mut spec.egress, index, |rule| rule.to = to));
    }
    for ports in port_lists(&rule.ports) {
        all.add(|spec| at(&mut spec.egress, index, |rule| rule.ports = ports));
    }
}

/// Without one of several, or with one of them simpler. The last one stays: without any, a list
/// means everything.
fn peer_lists(list: &Option<Vec<NetworkPolicyPeer>>) -> Vec<Option<Vec<NetworkPolicyPeer>>> {
    let mut all = Variants::new(list);
    for (index, peer) in list.iter().flatten().enumerate() {
        if several(list) {
            all.add(|list| without(list, index));
        }
        for smaller in peers(peer) {
            all.add(|list| at(list, index, |peer| *peer = smaller));
        }
    }
    all.add(drop_if_empty);
    all.found
}

fn port_lists(list: &Option<Vec<NetworkPolicyPort>>) -> Vec<Option<Vec<NetworkPolicyPort>>> {
    let mut all = Variants::new(list);
    for index in 0..list.as_ref().map_or(0, Vec::len) {
        if several(list) {
            all.add(|list| without(list, index));
        }
        all.add(|list| at(list, index, |port| port.end_port = None));
    }
    all.add(drop_if_empty);
    all.found
}

fn peers(peer: &NetworkPolicyPeer) -> Vec<NetworkPolicyPeer> {
    let mut all = Variants::new(peer);
    if let Some(block) = &peer.ip_block {
        for index in 0..block.except.as_ref().map_or(0, Vec::len) {
            all.add(|peer| {
                if let Some(block) = &mut peer.ip_block {
                    without(&mut block.except, index);
                    drop_if_empty(&mut block.except);
                }
            });
        }
    }
    if peer.pod_selector.is_some() && peer.namespace_selector.is_some() {
        all.add(|peer| peer.pod_selector = None);
        all.add(|peer| peer.namespace_selector = None);
    }
    for smaller in peer.pod_selector.iter().flat_map(selectors) {
        all.add(|peer| peer.pod_selector = Some(smaller));
    }
    for smaller in peer.namespace_selector.iter().flat_map(selectors) {
        all.add(|peer| peer.namespace_selector = Some(smaller));
    }
    all.found
}

fn selectors(selector: &LabelSelector) -> Vec<LabelSelector> {
    let mut all = Variants::new(selector);
    all.add(|selector| *selector = LabelSelector::default());
    all.add(|selector| selector.match_labels = None);
    for index in 0..selector.match_expressions.as_ref().map_or(0, Vec::len) {
        all.add(|selector| {
            without(&mut selector.match_expressions, index);
            drop_if_empty(&mut selector.match_expressions);
        });
    }
    all.found
}

/// The same policy without a rule, or without one of several items of a list in it, or without a
/// field that says more than nothing.
pub(super) fn cluster_policies(policy: &Value) -> Vec<Value> {
    let specs = values(&policy["spec"]).into_iter();
    specs
        .map(|spec| {
            let mut smaller = policy.clone();
            smaller["spec"] = spec;
            smaller
        })
        .collect()
}

fn values(value: &Value) -> Vec<Value> {
    let mut found = Vec::new();
    match value {
        Value::Object(fields) => {
            for (key, field) in fields {
                let may_go = matches!(
                    key.as_str(),
                    "ingress"
                        | "egress"
                        | "name"
                        | "protocols"
                        | "matchLabels"
                        | "matchExpressions"
                );
                if may_go {
                    let mut fewer = fields.clone();
                    fewer.remove(key);
                    found.push(fewer.into());
                }
                for smaller in values(field) {
                    let mut fields = fields.clone();
                    fields.insert(key.clone(), smaller);
                    found.push(fields.into());
                }
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                if items.len() > 1 {
                    let mut fewer = items.clone();
                    fewer.remove(index);
                    found.push(fewer.into());
                }
                for smaller in values(item) {
                    let mut items = items.clone();
                    items[index] = smaller;
                    found.push(items.into());
                }
            }
        }
        _ => {}
    }
    found
}

/// The same pod without a label, a container, a port or an address.
pub(super) fn pods(pod: &Pod) -> Vec<Pod> {
    let mut all = Variants::new(pod);
    labels(&mut all, |pod| &mut pod.metadata, &pod.metadata);
    let Some(spec) = &pod.spec else { return all.found };
    let mut edit_spec = |edit: &dyn Fn(&mut PodSpec)| {
        all.add(|pod| pod.spec.iter_mut().for_each(edit));
    };
    edit_spec(&|spec| spec.init_containers = None);
    edit_spec(&|spec| {
        if spec.host_network == Some(false) {
            spec.host_network = None;
        }
    });
    for (index, container) in spec.containers.iter().enumerate() {
        if spec.containers.len() > 1 {
            edit_spec(&|spec| drop(spec.containers.remove(index)));
        }
        edit_spec(&|spec| spec.containers[index].ports = None);
        for port in 0..container.ports.as_ref().map_or(0, Vec::len) {
            edit_spec(&|spec| without(&mut spec.containers[index].ports, port));
        }
    }
    let n_addresses = pod.status.iter().flat_map(|status| status.pod_ips.iter().flatten()).count();
    if n_addresses > 1 {
        // podIP is the first one's.
        all.add(|pod| {
            let ips = pod.status.iter_mut().flat_map(|status| status.pod_ips.iter_mut());
            ips.for_each(|ips| ips.truncate(1));
        });
    }
    all.found
}

/// The same namespace without labels or one of them.
pub(super) fn namespaces(namespace: &Namespace) -> Vec<Namespace> {
    let mut all = Variants::new(namespace);
    labels(&mut all, |namespace| &mut namespace.metadata, &namespace.metadata);
    all.found
}

fn labels<T: Clone + PartialEq>(
    all: &mut Variants<'_, T>,
    metadata_of: impl Fn(&mut T) -> &mut ObjectMeta,
    metadata: &ObjectMeta,
) {
    all.add(|object| metadata_of(object).labels = None);
    for key in metadata.labels.iter().flatten().map(|(key, _)| key) {
        all.add(|object| {
            metadata_of(object).labels.iter_mut().for_each(|labels| drop(labels.remove(key)));
        });
    }
    all.add(|object| metadata_of(object).creation_timestamp = None);
}

fn several<T>(list: &Option<Vec<T>>) -> bool {
    list.as_ref().is_some_and(|list| list.len() > 1)
}

fn without<T>(list: &mut Option<Vec<T>>, index: usize) {
    if let Some(list) = list {
        list.remove(index);
    }
}

fn drop_if_empty<T>(list: &mut Option<Vec<T>>) {
    if list.as_ref().is_some_and(Vec::is_empty) {
        *list = None;
    }
}

fn at<T>(list: &mut Option<Vec<T>>, index: usize, edit: impl FnOnce(&mut T)) {
    if let Some(item) = list.as_mut().and_then(|list| list.get_mut(index)) {
        edit(item);
    }
}
